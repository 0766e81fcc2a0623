"""Labels recordings with what a search found: python -m opro.predict runs/NAME AUDIO...

The first word is a finished run, or a prompt file such as its best.yaml. AUDIO are files, folders, patterns, or - for a
list on standard input. A recording no longer than --window-ms is one clip; a longer one is cut into overlapping
windows, whose answers are merged into segments. Into --out go labels.csv (a row a window), segments.csv, segments as
RTTM and as Audacity labels, and rejected.csv with what could not be read. The same command goes on where it was
interrupted. An answer is "unsure" where the run's holdout does not allow it at --error-rate.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import soundfile
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from evaluators.audio import RATE, Wave
from evaluators.build import build_evaluator
from evaluators.classifier import Classifier, read_classifiers
from evaluators.clips import Clip
from evaluators.errors import PauseError, UserError
from evaluators.evaluator import Evaluator, require_presents
from evaluators.files import check_folder, disk_faults, replacing, resolve, settle, write_text
from evaluators.orders import BothOrders, evals_per_clip
from evaluators.prompts import OPTIONS, Prompt, is_frame
from evaluators.tasks import task_named
from evaluators.threads import use_threads
from opro.callable import make_callable
from opro.cli import DONE, FAULT, check_names, check_values, flag, hand_over, parse, run_verb
from opro.recordings.answers import Answers, answers_of_run
from opro.recordings.blocks import blocks, seconds_of
from opro.recordings.inputs import find_recordings
from opro.recordings.journal import Journal, alone
from opro.recordings.reference import judge
from opro.recordings.segments import Merging, Segment, audacity, merge, rttm, union
from opro.recordings.windows import Cut, Window, windows
from opro.results.progress import spelled
from opro.results.result import Result, pandas
from opro.results.run_folder import RunFolder
from opro.results.shown import time_of
from opro.settings import Dtype, MachineSettings, Quantization, model_settings

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 256  # windows that are scored at once
SHOWN = 20  # recordings whose answers are printed


@dataclass(frozen=True)
class PredictSettings(MachineSettings):
    """The answers."""

    out: Path = flag(Path("runs/predictions"), "folder for the answers")
    window_ms: int = flag(
        1000, "length of a window; shorter recordings are one clip", min=20, max=86_400_000
    )
    hop_ms: int = flag(500, "from one window to the next", min=10, max=86_400_000)
    smooth_ms: int = flag(0, "length of the running median over the windows' answers", min=0)
    min_speech_ms: int = flag(0, "segments that are shorter are dropped", min=0)
    min_gap_ms: int = flag(0, "gaps between segments that are shorter are filled", min=0)
    error_rate: float = flag(
        0.1, "share of each class's clips, at most, that may be answered wrongly", min=0.0
    )
    gate: bool = flag(
        False,
        "also write the parts of long recordings that may hold speech, as WAV files: of windows with speech at most"
        " --error-rate are left out",
    )
    reference: Path | None = flag(
        None, "RTTM file with the true segments of these recordings, to judge the segments by"
    )
    uem: Path | None = flag(None, "UEM file with what is judged (default: all of each recording)")
    checkpoint: str | None = flag(None, "checkpoint (default: the run's, else pocket-base)")
    adapter: Path | None = flag(None, "directory of a LoRA adapter made elsewhere")
    quantization: Quantization | None = flag(None, "none or nf4 (default: the run's)")
    dtype: Dtype | None = flag(None, "auto, float32 or bfloat16 (default: the run's)")
    device: str | None = flag(None, "auto, cpu, cuda, cuda:1, mps (default: the run's)")
    task: str = flag("speech", "what is decided, where a prompt file is given")


@dataclass(frozen=True)
class Labelling:
    """One labelling: who answers, how recordings are cut, and where it is written."""

    answers: Answers
    evaluator: Evaluator
    cut: Cut
    merging: Merging
    gate: bool
    journal: Journal


@dataclass(frozen=True)
class Job:
    """What is to be labelled, by what.

    Attributes:
        recordings: In the order in which they were named.
        seconds: By recording, as the headers claim.
    """

    settings: PredictSettings
    answers: Answers
    evaluator: Evaluator
    cut: Cut
    recordings: Sequence[Path]
    seconds: Mapping[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(PredictSettings, argv, __doc__ or "", _add_words, config=False)
    use_threads(settings.threads)
    answers, config = _answers(settings, Path(space.classifier))
    job = _open(settings, answers, config, space.audio)
    plan = list(_plan(job))
    print("\n".join(plan), file=sys.stdout if space.dry_run else sys.stderr)
    if space.dry_run:
        hand_over({"dry_run": True, "folder": str(settings.out), "plan": plan})
        return DONE
    with alone(settings.out):
        labelling = _labelled(job)
        lines, result = _write(labelling, job.recordings, settings.out)
    print("\n".join(lines))
    rejected = len(result["rejected"])
    if rejected:
        print(f"{rejected} could not be read: {settings.out / 'rejected.csv'}", file=sys.stderr)
    print(f"answers in {settings.out}")
    if settings.reference is not None:
        result["judged"] = judge(settings.out, settings.reference, settings.uem)
        print(result["judged"])
    hand_over(result)
    return FAULT if rejected else DONE


class Options(TypedDict, total=False):
    """Flags of ``python -m opro.predict`` that `predict` takes: see `PredictSettings` for what each does."""

    window_ms: int
    hop_ms: int
    smooth_ms: int
    min_speech_ms: int
    min_gap_ms: int
    error_rate: float
    gate: bool
    adapter: Path
    quantization: Quantization
    dtype: Dtype
    device: str
    task: str


@dataclass(frozen=True)
class Labels:
    """What was said of some recordings, as data frames. Times are seconds.

    Attributes:
        recordings: A row a recording: file, seconds, windows; of one that is a single clip its label, answer ("unsure"
            where it must be) and probabilities, of a longer one the seconds of its segments.
        windows: A row a window: file, start_s, end_s, label, answer, log_odds, probabilities.
        segments: A row a segment of the first label in recordings of several windows: file, start_s, end_s.
        rejected: A row a recording that could not be read: file, reason.
        notes: What could not be had, a sentence each.
    """

    recordings: "pd.DataFrame"
    windows: "pd.DataFrame"
    segments: "pd.DataFrame"
    rejected: "pd.DataFrame"
    notes: tuple[str, ...] = ()


def predict(
    classifier: "Result | Classifier | Prompt | str | Path",
    audio: "str | Path | Sequence[str | Path]",
    *,
    evaluator: Evaluator | str | Path | None = None,
    out: str | Path | None = None,
    **options: Unpack[Options],
) -> Labels:
    """Labels recordings with what a search found, as ``python -m opro.predict`` does.

    Args:
        classifier: A finished run or its folder, which alone tells what is "unsure"; else a classifier, a prompt, or a
            prompt file that holds one.
        audio: Files, folders and patterns.
        evaluator: Checkpoint or `Evaluator`; None: the run's, else pocket-base.
        out: Folder for the files that the command writes, from which an interrupted call goes on; None: no files.
        options: Flags of the command, such as ``window_ms=500``.
    Raises:
        UserError: Something cannot be used; nothing is written then.
    """
    asked = [str(audio)] if isinstance(audio, str | Path) else [str(one) for one in audio]
    checkpoint = str(evaluator) if isinstance(evaluator, str | Path) else None
    given = None if isinstance(evaluator, str | Path) else evaluator
    check_names(options, Options)
    if options.get("gate") and out is None:
        raise UserError("gate=True writes files: give out=FOLDER for them")
    if not isinstance(classifier, Result | Classifier | Prompt | str | Path):
        raise UserError(
            f"predict was given {type(classifier).__name__}; expected a run, a classifier, a prompt, or a path"
        )
    with tempfile.TemporaryDirectory(prefix="opro-predict-") as scratch:
        folder = Path(scratch) / "out" if out is None else Path(out)
        settings = PredictSettings(out=folder, checkpoint=checkpoint, **options)
        check_values(settings)
        job = _open(settings, *_given(settings, classifier), asked, given)
        with alone(folder):
            labelling = _labelled(job)
            _write(labelling, job.recordings, folder)
            return _labels(labelling, job, folder)


def _given(
    settings: PredictSettings, classifier: "Result | Classifier | Prompt | str | Path"
) -> tuple[Answers, Mapping[str, Any]]:
    if isinstance(classifier, Result):
        return _answers(settings, classifier.path)
    if isinstance(classifier, str | Path):
        return _answers(settings, Path(classifier))
    note = (
        "a prompt alone tells nothing of sureness: give its run for calibrated answers and 'unsure'"
    )
    found = Classifier(classifier) if isinstance(classifier, Prompt) else classifier
    return Answers(task_named(settings.task).labels, found, notes=(note,)), {}


def _labels(labelling: Labelling, job: Job, folder: Path) -> Labels:
    pd = pandas()
    known = {str(path) for path in job.recordings}
    rows = [dict(row) for row in labelling.journal.recordings() if row["file"] in known]
    for row in rows:
        found = row.pop("segments", None)
        row.pop("gate", None)
        row.pop("kept", None)
        if found is not None:
            row["speech_s"] = sum(end - start for start, end in found)
    return Labels(
        pd.DataFrame([row for row in rows if "error" not in row]),
        pd.read_csv(folder / "labels.csv", dtype={"file": str}),
        pd.read_csv(folder / "segments.csv", dtype={"file": str}),
        pd.read_csv(folder / "rejected.csv", dtype=str),
        job.answers.notes,
    )


def _open(
    settings: PredictSettings,
    answers: Answers,
    config: Mapping[str, Any],
    audio: Sequence[str],
    given: Evaluator | None = None,
) -> Job:
    """What is to be labelled, by what; raises UserError for whatever would fail later."""
    check_folder(settings.out, "--out")
    cut = Cut.of_ms(settings.window_ms, settings.hop_ms)
    recordings = find_recordings(audio)
    if settings.gate and (answers.conformal is None or not answers.conformal.promised[0]):
        raise UserError(
            f"--gate cannot promise an error rate of {settings.error_rate:g}:"
            f" {'; '.join(answers.notes) or 'no holdout tells what is missed'}"
        )
    if is_frame(answers.classifier.prompt):
        raise UserError(
            f"prompt {answers.classifier.prompt_id} has {OPTIONS}, where each clip's own options are put; recordings"
            " bring none: opro.rescore scores a manifest with it"
        )
    evaluator = _evaluator(settings, config) if given is None else given
    require_presents(evaluator, [answers.classifier.prompt])
    if evals_per_clip(answers.classifier.prompt) > 1:
        evaluator = BothOrders(evaluator)
    return Job(settings, answers, evaluator, cut, recordings, _lengths(recordings))


def _evaluator(settings: PredictSettings, config: Mapping[str, Any]) -> Evaluator:
    model = model_settings(settings, config)
    return build_evaluator(
        model.checkpoint,
        adapter=model.adapter,
        quantization=model.quantization,
        device=model.device,
        dtype=model.dtype,
        ray=settings.ray,
        ray_cpus=settings.ray_cpus,
    )[0]


def _labelled(job: Job) -> Labelling:
    """Labels all that is not done."""
    settings, answers = job.settings, job.answers
    identity = {
        "classifier": answers.classifier.to_dict(),
        "fingerprint": job.evaluator.fingerprint,
        "window_ms": settings.window_ms,
        "hop_ms": settings.hop_ms,
        "conformal": None if answers.conformal is None else vars(answers.conformal),
    }
    merging = Merging(
        settings.smooth_ms / 1000, settings.min_speech_ms / 1000, settings.min_gap_ms / 1000
    )
    journal = Journal.open(settings.out, identity)
    labelling = Labelling(answers, job.evaluator, job.cut, merging, settings.gate, journal)
    _label(labelling, job.recordings, job.seconds)
    return labelling


def _add_words(parser: Any) -> None:
    parser.add_argument("classifier", metavar="RUN|best.yaml", help="finished run, or prompt file")
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="what to label; - reads a list")
    parser.add_argument("--dry-run", action="store_true", help="print the plan; score nothing")


def _answers(settings: PredictSettings, path: Path) -> tuple[Answers, Mapping[str, Any]]:
    """Who answers, and the settings of its run."""
    if path.is_dir():
        run = RunFolder.read(path)
        return answers_of_run(run, run.best, settings.error_rate), run.config
    labels = task_named(settings.task).labels
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{str(path)!r} is no run folder, and no prompt file such as best.yaml")
    found = read_classifiers(resolve(path), labels)
    if len(found) > 1:
        raise UserError(
            f"{path}: holds {len(found)} prompts; expected one, as in a run's best.yaml"
        )
    note = f"{path.name} alone tells nothing of sureness: give its run's folder for calibrated answers and 'unsure'"
    return Answers(labels, found[0], notes=(note,)), {}


def _lengths(recordings: Sequence[Path]) -> dict[str, float]:
    """Seconds that the headers claim; what cannot be read counts nothing here, and is told of later."""
    out = {}
    for path in recordings:
        try:
            out[str(path)] = seconds_of(path)
        except UserError:
            out[str(path)] = 0.0
    return out


def _plan(job: Job) -> Iterator[str]:
    settings, answers, seconds = job.settings, job.answers, job.seconds
    count = sum(job.cut.count(round(s * RATE)) for s in seconds.values())
    evals = count * evals_per_clip(answers.classifier.prompt)
    yield (
        f"recordings  {len(seconds):,}, {spelled(sum(seconds.values()))} by their headers; {count:,} windows of at most"
        f" {settings.window_ms} ms"
    )
    yield f"time        {time_of(job.evaluator, evals)}"
    if answers.conformal is not None:
        yield (
            f"unsure      answers are given for {100 * (answers.sure_share or 0):.0f} % of the holdout's clips; of new"
            f" sources like its own at most {100 * settings.error_rate:g} % of a class are answered wrongly"
        )
    for text in answers.notes:
        yield f"warning     {text}"


def _label(labelling: Labelling, recordings: Sequence[Path], seconds: Mapping[str, float]) -> None:
    """Labels what is not done, chunk by chunk over all recordings."""
    journal = labelling.journal
    todo = [path for path in recordings if str(path) not in journal.done]
    columns = (TextColumn("{task.description}"), BarColumn(None), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True, force_jupyter=False)
    with (
        Progress(*columns, *left, console=console, disable=not console.is_terminal) as bar,
        tempfile.TemporaryDirectory(prefix="opro-windows-") as scratch,
    ):
        task = bar.add_task("audio", total=sum(seconds[str(p)] for p in todo) or None)
        pieces = _pieces(todo, labelling)
        while chunk := list(itertools.islice(pieces, CHUNK)):
            for piece in _scored(labelling, chunk, Path(scratch)):
                if piece.last:
                    _finish(labelling, piece)
                    bar.advance(task, seconds[piece.file])


@dataclass(frozen=True)
class Piece:
    """A window on its way, or the news that a recording cannot be read.

    Attributes:
        samples: Of the recording as far as it was read.
        known: What was said of it, if that is on disk.
    """

    file: str
    window: Window | None
    samples: int
    last: bool
    error: str = ""
    known: Mapping[str, Any] | None = None


def _pieces(paths: Iterable[Path], labelling: Labelling) -> Iterator[Piece]:
    """All windows of all recordings; a recording's last one is marked."""
    for path in paths:
        known = labelling.journal.begun.get(str(path), [])
        held: Piece | None = None
        try:
            for number, window in enumerate(windows(path, labelling.cut)):
                if held is not None:
                    yield held
                end = window.first + len(window.wave)
                row = known[number] if number < len(known) else None
                held = Piece(str(path), window, end, last=False, known=row)
        except UserError as error:
            if held is not None:
                yield held
            yield Piece(str(path), None, 0, last=True, error=str(error))
            continue
        assert held is not None, "a recording has a window, or is an error"
        yield replace(held, last=True)


def _scored(labelling: Labelling, chunk: Sequence[Piece], scratch: Path) -> Sequence[Piece]:
    """The chunk, with what was said of its windows in the journal."""
    new = [p for p in chunk if p.window is not None and p.known is None]
    clips = [_clip(p, scratch, i) for i, p in enumerate(new)]
    rows: list[dict[str, Any]] = []
    if clips:
        table = labelling.evaluator.score([labelling.answers.classifier.prompt], clips)
        for piece, said in zip(new, labelling.answers.rows(table.logp[0]), strict=True):
            assert piece.window is not None
            where = {
                "file": piece.file,
                "start_s": round(piece.window.start_s, 6),
                "end_s": round(piece.window.end_s, 6),
            }
            rows.append(where | said)
        labelling.journal.add_windows(rows)
    for row in rows:
        labelling.journal.begun.setdefault(row["file"], []).append(row)
    return chunk


def _clip(piece: Piece, scratch: Path, number: int) -> Clip:
    """The window as a clip: a file that the next chunk writes over."""
    assert piece.window is not None
    path = scratch / f"{number}.wav"
    encoded = io.BytesIO()  # libsndfile does not say that a disk is full
    soundfile.write(encoded, piece.window.wave, RATE, "FLOAT", format="WAV")
    with disk_faults(scratch):
        path.write_bytes(encoded.getvalue())
    return Clip(
        clip_id=f"{piece.file}:{piece.window.first}",
        path=path,
        label="",
        category="",
        duration_ms=1000 * len(piece.window.wave) / RATE,
        snr_db=None,
        condition="",
        source_id=piece.file,
        split="",
        licence="",
        sha256=hashlib.sha256(piece.window.wave.tobytes()).hexdigest(),
    )


def _finish(labelling: Labelling, piece: Piece) -> None:
    """Writes what a recording came to, and forgets its windows."""
    journal = labelling.journal
    rows = journal.begun.pop(piece.file, [])
    if piece.error:
        journal.add_recording({"file": piece.file, "error": piece.error})
    else:
        said: dict[str, Any] = {"file": piece.file, "seconds": piece.samples / RATE}
        said["windows"] = len(rows)
        if len(rows) > 1:
            firsts = [round(row["start_s"] * RATE) for row in rows]
            odds = np.array([row["log_odds"] for row in rows])
            found = merge(firsts, odds, labelling.cut, piece.samples, labelling.merging)
            said["segments"] = [[s.start_s, s.end_s] for s in found]
            if labelling.gate:
                kept = np.array([row["kept"] for row in rows])
                said["gate"] = [
                    [s.start_s, s.end_s] for s in union(firsts, kept, labelling.cut, piece.samples)
                ]
        else:
            said |= {k: v for k, v in rows[0].items() if k not in ("file", "start_s", "end_s")}
        journal.add_recording(said)
    journal.done.add(piece.file)


def _write(
    labelling: Labelling, recordings: Sequence[Path], out: Path
) -> tuple[list[str], dict[str, Any]]:
    """Writes the files that people open. Returns what came out, in lines and as plain data for ``--json``."""
    labels, journal = labelling.answers.labels, labelling.journal
    names = _names(recordings)
    _write_labels(labelling, out, names)
    segments: list[tuple[str, Segment]] = []
    rejected: list[dict[str, str]] = []
    shown: list[str] = []
    seconds = speech = 0.0
    clips: dict[str, int] = {}
    for row in journal.recordings():
        if row["file"] not in names:
            continue
        if "error" in row:
            rejected.append({"file": row["file"], "reason": row["error"]})
            continue
        seconds += row["seconds"]
        name = names[row["file"]]
        if "segments" in row:
            found = [Segment(*pair) for pair in row["segments"]]
            segments += [(row["file"], s) for s in found]
            part = sum(s.end_s - s.start_s for s in found)
            speech += part
            write_text(out / "rttm" / f"{name}.rttm", rttm(name, found, labels[0]))
            write_text(out / "audacity" / f"{name}.txt", audacity(found, labels[0]))
            if labelling.gate:
                _write_gate(out / "gate", Path(row["file"]), name, row["gate"])
            shown.append(
                f"{row['file']}: {len(found)} segments of {labels[0]}, {part:.1f} of {row['seconds']:.1f} s"
            )
        else:
            answer = row.get("answer", row["label"])
            clips[answer] = clips.get(answer, 0) + 1
            shown.append(f"{row['file']}: {answer}, P({labels[0]}) {row['p_' + labels[0]]:.3f}")
    _csv(out / "segments.csv", ("file", "start_s", "end_s"), (
        {"file": f, "start_s": s.start_s, "end_s": s.end_s} for f, s in segments
    ))  # fmt: skip
    _csv(out / "rejected.csv", ("file", "reason"), rejected)
    lines = shown[:SHOWN]
    if len(shown) > SHOWN:
        lines.append(f"... and {len(shown) - SHOWN:,} more in {out / 'labels.csv'}")
    counts = ", ".join(f"{n:,} {label}" for label, n in sorted(clips.items()))
    lines.append(
        f"{len(shown):,} recordings, {spelled(seconds)}"
        + (f"; clips: {counts}" if clips else "")
        + (f"; {len(segments):,} segments of {labels[0]}, {spelled(speech)}" if segments else "")
    )
    files = ("labels.csv", "segments.csv", "rejected.csv")
    paths = {Path(one).stem: str(out / one) for one in files}
    return lines, {
        "recordings": len(shown),
        "seconds": seconds,
        "clips": clips,
        "segments": len(segments),
        "segments_seconds": speech,
        "rejected": rejected,
        "paths": {"folder": str(out), **paths},
    }


def _write_labels(labelling: Labelling, out: Path, names: Mapping[str, str]) -> None:
    """labels.csv from the journal, row by row, of the recordings that were named in this call."""
    labels = labelling.answers.labels
    columns = ["file", "start_s", "end_s", "label"]
    columns += ["answer"] if labelling.answers.conformal is not None else []
    columns += ["log_odds", *(f"p_{v}" for v in labels)]
    rows = (row for row in labelling.journal.windows() if row["file"] in names)
    _csv(out / "labels.csv", columns, rows)


def _csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with replacing(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _names(recordings: Sequence[Path]) -> dict[str, str]:
    """A file name for each recording: its own, with a digest of its path where several have it."""
    stems = [path.stem for path in recordings]
    return {
        str(p): p.stem
        if stems.count(p.stem) == 1
        else f"{p.stem}-{hashlib.sha256(str(p).encode()).hexdigest()[:8]}"
        for p in recordings
    }


def _write_gate(folder: Path, path: Path, name: str, parts: Sequence[Sequence[float]]) -> None:
    """The parts of a recording as WAV files, 16 kHz mono, with their times in their names; in one pass over it."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [
        (round(start * RATE), round(end * RATE), target)
        for start, end in parts
        if not (target := folder / f"{name}_{start:010.3f}_{end:010.3f}.wav").exists()
    ]
    done = 0
    with _parts_of(todo):
        for block in blocks(path) if todo else ():
            for first, last, target in todo:
                piece = block[max(0, first - done) : max(0, last - done)]
                if len(piece):
                    _append(_part(target), piece, new=first >= done)
            done += len(block)
            for _, last, target in todo:
                if last <= done:
                    settle(_part(target), target)
            todo = [one for one in todo if one[1] > done]
        for _, _, target in todo:  # rounding may end a part with the recording
            if _part(target).exists():
                settle(_part(target), target)


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.tmp")


@contextlib.contextmanager
def _parts_of(todo: Sequence[tuple[int, int, Path]]) -> Iterator[None]:
    """Nothing is left of parts that were not written to their end."""
    try:
        yield
    finally:
        for _, _, target in todo:
            _part(target).unlink(missing_ok=True)


def _append(path: Path, wave: Wave, *, new: bool) -> None:
    try:
        if new:
            soundfile.write(path, wave, RATE, format="WAV", subtype="PCM_16")
            return
        with soundfile.SoundFile(path, "r+") as file:
            file.seek(0, soundfile.SEEK_END)
            file.write(wave)
    except (
        soundfile.LibsndfileError
    ) as error:  # it says no more of a full disk than "System error."
        raise PauseError(
            f"{str(path.parent)!r} cannot be written ({error.error_string.rstrip('.')}); make room or mend the folder,"
            " then give the same command again"
        ) from None


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_verb(main))
