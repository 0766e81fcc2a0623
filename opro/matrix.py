"""Prompts x checkpoints x baselines on a split: python -m opro.matrix --checkpoint pocket-base pocket-lora --search

PROMPTS are prompt files (all of their prompts), run folders (what the run hands over) and folders of opro.cotune (the
prompt of its best pair; its checkpoint is given with the others). With --search every
checkpoint is searched first, by opro.optimize with its defaults, each trying the best prompts of those before it; a
finished search is taken as it is. Every prompt is scored on every checkpoint, with what silence and shuffled audio
give; detectors are tuned on the search half of dev, as are thresholds and calibration, so of --split dev the other
half, the holdout, is scored. With --soft the soft prompts of opro.ceiling have rows, and what words could reach at most
is said. Written to --out: matrix.json, .csv, .md, .tex and per-clip predictions. What was scored before comes from the
cache, so an interrupted matrix goes on.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluators import latency
from evaluators.audio_lm.checkpoint import OMNI, Checkpoint
from evaluators.build import FEATURES
from evaluators.cache import CachedEvaluator
from evaluators.classifier import Classifier, read_classifiers
from evaluators.clips import ClipSet
from evaluators.detectors.detectors import open_detector
from evaluators.detectors.tuned import check_detects, tune_detector
from evaluators.errors import UserError
from evaluators.evaluator import ScoreTable, share
from evaluators.files import (
    check_folder,
    csv_text,
    json_text,
    read_json,
    resolve,
    write_json,
    write_text,
)
from evaluators.manifest import columns_of, verify
from evaluators.orders import evals_per_clip
from evaluators.prompts import Prompt
from evaluators.splits import check_trained_on, halves
from evaluators.statistics import calibration, metrics
from evaluators.statistics.compare import compare_pairs, resample
from evaluators.statistics.describe import describe, interval
from evaluators.targets import Predictions
from evaluators.tasks import Task
from evaluators.threads import use_threads
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.optimize import run as run_search
from opro.problem import CACHE, Data, Model, Problem, open_data, open_model, seeds_of
from opro.results.ceilings import VECTORS, Reached, beyond, ceiling_of, read_soft_folder
from opro.results.confusion import by_label, confusion_sheet
from opro.results.cotuned import is_cotuned, read_best
from opro.results.looks import look_id, record_use, said_of_uses
from opro.results.matrix_rows import matrix_sheet, row_code
from opro.results.predictions import write_predictions
from opro.results.provenance import provenance
from opro.results.run_folder import RunFolder
from opro.results.sheet import percent, render
from opro.results.shown import time_of
from opro.search.budget import most_evals
from opro.search.select import CONTROLS
from opro.settings import (
    SEED_PROMPTS,
    DataSettings,
    Dtype,
    MachineSettings,
    ModelSettings,
    OptimizeSettings,
    Quantization,
    SplitSettings,
    file_name,
)


@dataclass(frozen=True)
class MatrixSettings(MachineSettings, DataSettings):
    """The matrix."""

    split: Literal["train", "dev", "test"] = flag(
        "test", "split to score on; of dev the holdout, for the other half is tuned on"
    )
    search: bool = flag(False, "search prompts for every checkpoint first, where no run is there")
    seed: int = flag(0, "seed of searches and resamples", min=0)
    quantization: Quantization = flag("none", "4-bit weights through bitsandbytes")
    dtype: Dtype = flag(
        "auto", "auto is bfloat16 on CUDA (float16 on cards without it), float32 elsewhere"
    )
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps")
    heard: Literal["refuse", "allow"] = flag(
        "refuse", "clips of sources that a checkpoint was trained on; allow stands in its rows"
    )
    swap: bool = flag(False, "average both orders of a prompt's options")
    out: Path | None = flag(None, "folder for the results (default: RUNS_DIR/matrix-SPLIT)")
    format: Literal["table", "csv", "markdown", "latex", "json"] = flag("table", "how to print it")

    @property
    def judged_on(self) -> str:
        """What is scored, in words."""
        return "holdout of dev" if self.split == "dev" else self.split

    def model(self, checkpoint: str) -> ModelSettings:
        """The settings of one of its models."""
        return ModelSettings(
            checkpoint=checkpoint,
            heard=self.heard,
            quantization=self.quantization,
            dtype=self.dtype,
            device=self.device,
        )


@dataclass(frozen=True)
class Entry:
    """A classifier of the matrix.

    Attributes:
        searched_on: The checkpoints whose search chose it.
        from_file: It stands in a prompt file, so it may be the baseline.
        soft: Digest of the vectors that stand in the place of its words; "": it has words.
    """

    classifier: Classifier
    name: str
    searched_on: tuple[str, ...] = ()
    from_file: bool = False
    soft: str = ""


@dataclass(frozen=True)
class Clips:
    """What is scored, and the search half of dev, on which thresholds and detectors are tuned; no clip is in both."""

    scored: ClipSet
    tuned_on: ClipSet


@dataclass(frozen=True)
class Row:
    """One configuration: what it said of the split, and what stands in its line besides.

    Attributes:
        tuned: What it said with the threshold that is best on the search half of dev; None of a detector.
        tuned_dev: Its balanced accuracy there.
        by_hand: It is a prompt of a file.
    """

    said: Predictions
    fields: dict[str, Any]
    tuned: Predictions | None = None
    tuned_dev: float = 0.0
    by_hand: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(MatrixSettings, argv, __doc__ or "", _extra_flags, config=False)
    use_threads(settings.threads)
    out = settings.out or settings.runs_dir / f"matrix-{settings.split}"
    for what, names in (("--checkpoint", space.checkpoint), ("--baselines", space.baselines)):
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise UserError(f"{what} {twice[0]!r} is given twice")
    settings = dataclasses.replace(settings, out=out)
    return _run(settings, space)


def _extra_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=["pocket-base"],
        metavar="TEXT",
        help="shipped names, directories or hub ids (default: pocket-base)",
    )
    parser.add_argument(
        "--prompts",
        nargs="+",
        type=Path,
        default=[SEED_PROMPTS],
        metavar="PATH",
        help=f"prompt files and run folders (default: {SEED_PROMPTS})",
    )
    parser.add_argument(
        "--baselines",
        nargs="*",
        default=[],
        metavar="NAME",
        help="energy, webrtc, silero, ten, whisper[:MODEL], pyannote[:MODEL], marblenet:FILE.onnx",
    )
    parser.add_argument(
        "--soft",
        nargs="*",
        type=Path,
        default=[],
        metavar="DIR",
        help="folders of opro.ceiling: a row each on the checkpoint it was trained on",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and its cost; score nothing"
    )


def _run(settings: MatrixSettings, space: argparse.Namespace) -> int:
    out = Path(str(settings.out))
    check_folder(out, "--out")
    check_folder(settings.runs_dir, "--runs-dir")
    data = open_data(settings)
    clips = _open_clips(data, settings.split)
    models = [
        open_model(settings.model(name), data, [clips.scored], machine=settings)
        for name in space.checkpoint
    ]
    for name in space.baselines:
        check_detects(name, data.task.labels)
        open_detector(name)
    entries = _entries(space.prompts, data, settings)
    softs = [_open_soft(path, models, settings, clips) for path in space.soft]
    share([model.evaluator for model in (*models, *(soft for soft, _ in softs))])
    plan = list(_plan(settings, models, entries, space.baselines, clips))
    plan += [f"soft        {entry.name}, trained on {model.name}" for model, entry in softs]
    print("\n".join(plan), file=sys.stdout if space.dry_run else sys.stderr)
    if space.dry_run:
        hand_over({"dry_run": True, "folder": str(out), "plan": plan})
        return DONE
    if settings.search:
        entries = _searched(entries, models, settings)
    prompts = [e.classifier.prompt for e in entries]
    for model in models:  # prompts that a model cannot score are found before the split is used
        model.evaluator.score(prompts, clips.tuned_on.first(1).as_control("silence"))
    about = f"matrix, {len(models)} checkpoints, {len(entries)} prompts, {len(space.baselines)} baselines"
    shows = [
        *(
            look_id("matrix", m.evaluator.fingerprint, e.classifier)
            for m in models
            for e in entries
        ),
        *(look_id("matrix", m.evaluator.fingerprint, e.classifier) for m, e in softs),
        *space.baselines,
    ]
    uses = (
        record_use(settings.runs_dir, data.digest, "matrix", about, shows)
        if settings.split == "test"
        else None
    )
    rows: list[Row] = []
    for model in models:
        _say(f"{model.name}: {len(entries)} prompts on {len(clips.scored)} clips")
        rows += _model_rows(model, entries, clips)
        model.evaluator.release()  # its memory is the next one's
        for soft, entry in softs:
            if soft.name == model.name:
                rows += _model_rows(soft, [entry], clips)
                soft.evaluator.release()
    for name in space.baselines:
        _say(f"{name}: tuned on {len(clips.tuned_on)} dev clips, scored on {len(clips.scored)}")
        rows.append(_detector_row(name, clips, data))
    result = _result(rows, settings, space.checkpoint[0])
    if softs:
        result["ceilings"] = list(_ceilings(rows, settings.seed))
    result |= {"judged_on": settings.judged_on, "manifest": data.digest, "test_openings": uses}
    _write(out, result, rows, settings)
    result["paths"] = {"folder": str(out), "matrix": str(out / "matrix.json")}
    _show(result, settings, out)
    hand_over(result)
    return DONE


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _open_clips(data: Data, split: str) -> Clips:
    if split == "dev":
        tuned_on, scored = data.halves(SplitSettings(split="dev"))
    else:
        scored, dev = data.split(split), data.split("dev")
        tuned_on = ClipSet(data.task, tuple(halves(dev.clips)[0]))
    verify([*scored, *tuned_on])
    return Clips(scored, tuned_on)


def _training(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """How a checkpoint was fine-tuned, as far as its folder tells."""
    if checkpoint is None or checkpoint.adapter is None:
        config = read_json(checkpoint.base / "config.json") if checkpoint else {}
        omni = config.get("model_type") in OMNI
        return {"finetuning": "none", "data": "", "loss": None, "clips": 0, "omni": omni}
    path = checkpoint.adapter / "training.json"
    raw = read_json(path) if path.is_file() else {}
    loss = (raw.get("recipe") or {}).get("loss")
    words = {"full": ", plain loss", "answer": ", masked loss"}.get(loss or "", "")
    clips = raw.get("clips") or 0
    return {
        "finetuning": f"LoRA{words}",
        "data": f"{clips:,} clips" if clips else "unknown",
        "loss": loss,
        "clips": clips,
        "cotuned": is_cotuned(checkpoint.adapter.parent),
    }


def _entries(files: Sequence[Path], data: Data, settings: MatrixSettings) -> list[Entry]:
    """The classifiers of prompt files and finished runs, each once."""
    found: dict[Classifier, Entry] = {}
    for path in files:
        if path.is_dir():
            if is_cotuned(path):
                _add_cotuned(found, path, data.task)
            else:
                _add_run(found, path)
            continue
        classifiers = (
            [Classifier(p) for p in seeds_of(data.task, path)]
            if path == SEED_PROMPTS
            else read_classifiers(resolve(path), data.task.labels)
        )
        for i, one in enumerate(classifiers):
            name = f"{path.stem} {i + 1}" if len(classifiers) > 1 else path.stem
            both = one.prompt.both_orders or settings.swap
            one = dataclasses.replace(one, prompt=dataclasses.replace(one.prompt, both_orders=both))
            found[one] = dataclasses.replace(found.get(one, Entry(one, name)), from_file=True)
    return list(found.values())


def _add_cotuned(found: dict[Classifier, Entry], path: Path, task: Task) -> None:
    checkpoint, best = read_best(path, task.labels)
    old = found.get(best, Entry(best, f"cotuned with {Path(checkpoint).name}"))
    found[best] = dataclasses.replace(old, searched_on=(*old.searched_on, checkpoint))


def _add_run(found: dict[Classifier, Entry], path: Path) -> None:
    run = RunFolder.read(path)
    best, names = run.best, run.checkpoints
    old = found.get(best, Entry(best, f"searched on {', '.join(Path(n).name for n in names)}"))
    on = tuple(dict.fromkeys((*old.searched_on, *names)))
    found[best] = dataclasses.replace(old, searched_on=on)


def _search_settings(
    settings: MatrixSettings, checkpoint: str, before: Sequence[Path] = ()
) -> OptimizeSettings:
    """A search with the defaults, that tries what the searches before it found."""
    return OptimizeSettings(
        checkpoint=checkpoint,
        share=",".join(map(str, before)) or None,
        manifest=settings.manifest,
        quantization=settings.quantization,
        dtype=settings.dtype,
        device=settings.device,
        heard=settings.heard,
        swap=settings.swap,
        task=settings.task,
        seed=settings.seed,
        runs_dir=settings.runs_dir,
    ).checked()


def _searched(
    entries: Sequence[Entry], models: Sequence[Model], settings: MatrixSettings
) -> list[Entry]:
    """The entries with those that searches choose; searches that are not finished are run."""
    found = {e.classifier: e for e in entries}
    folders: list[Path] = []
    for model in models:
        search = _search_settings(settings, model.name, folders)
        _say(f"{model.name}: search of {search.iterations} x {search.candidates} prompts on dev")
        folders.append(run_search(search, beside=[m.evaluator for m in models]))
        _add_run(found, folders[-1])
    return list(found.values())


def _plan(
    settings: MatrixSettings,
    models: Sequence[Model],
    entries: Sequence[Entry],
    detectors: Sequence[str],
    clips: Clips,
) -> Iterator[str]:
    """What will be scored, how much of it is in the cache, and how long it takes."""
    scored, tuned_on = clips.scored, clips.tuned_on
    prompts = [e.classifier.prompt for e in entries]
    searched = len(models) if settings.search else 0
    more = f" and up to {searched} that searches choose" if searched else ""
    yield f"split       {settings.judged_on}: {len(scored)} clips; {len(tuned_on)} dev clips to tune on"
    yield f"prompts     {len(prompts)}{more}"
    yield f"baselines   {', '.join(detectors) or 'none'}"
    for model in models:
        # The split as it is, as silence and shuffled, and the search half of dev; the holdout is about as large.
        total = (len(prompts) + searched) * (3 * len(scored) + len(tuned_on))
        total *= 2 if settings.swap else 1
        if searched:
            seeds = tuple(Prompt(str(i)) for i in range(len(prompts)))
            one = Problem(scored.task, seeds, tuned_on, tuned_on, model.evaluator, {})
            total += most_evals(one, _search_settings(settings, model.name))
        asked = sum(map(evals_per_clip, prompts)) * len(scored)
        cached = max(0, asked - model.evaluator.count_missing(prompts, scored))
        seconds = time_of(model.evaluator, total - cached)
        yield f"{model.name}: at most {total:,} evals, {cached:,} cached; {seconds}"
        for line in model.evaluator.about().memory:
            yield f"memory      {line}"
        for text in model.warnings:
            yield f"warning     {text}"


def _open_soft(
    path: Path, models: Sequence[Model], settings: MatrixSettings, clips: Clips
) -> tuple[Model, Entry]:
    """The soft prompt of a folder as a model that says what it says, and its entry.

    Raises:
        UserError: It is no such folder, its checkpoint is not in the matrix, or it was trained on what is scored.
    """
    from evaluators.audio_lm.soft import SoftScorer, load_soft

    soft = read_soft_folder(path, clips.scored.task.labels)
    of = next((m for m in models if m.checkpoint and m.checkpoint.digest == soft.weights), None)
    if of is None or of.checkpoint is None:
        raise UserError(
            f"--soft {str(path)!r} was trained on the weights of {soft.checkpoint!r}, which are of none of --checkpoint"
            f" {' '.join(m.name for m in models)}; give them too"
        )
    warnings = check_trained_on(
        [*clips.scored, *clips.tuned_on], soft.sources, str(path), settings.heard
    )
    vectors = load_soft(path / VECTORS, soft.prompt, soft.digest)
    scorer = SoftScorer(
        of.checkpoint,
        vectors,
        settings.device,
        settings.dtype,
        features=settings.runs_dir / FEATURES,
    )
    cached = CachedEvaluator(scorer, settings.runs_dir / CACHE)
    entry = Entry(soft.classifier, soft.name, soft=soft.digest)
    return Model(of.name, cached, of.checkpoint, (*of.warnings, *warnings)), entry


def _ceilings(rows: Sequence[Row], seed: int) -> Iterator[dict[str, Any]]:
    """What each soft prompt reaches beside the best hand-written and the searched prompt of its checkpoint."""
    for row in rows:
        if not row.fields.get("soft"):
            continue
        model = row.fields["model"]
        hand = _best_by_hand(rows, model)
        if hand is None or row.tuned is None:
            continue
        own = [
            r.tuned
            for r in rows
            if r.fields["model"] == model and model in r.fields.get("searched_on", ())
        ]
        searched = own[-1] if own else None
        others = {r.fields["model"] for r in rows if r.fields["finetuning"].startswith("LoRA")}
        best = {name: _best_by_hand(rows, name) for name in sorted(others - {model})}
        tuned = {name: one for name, one in best.items() if one is not None}
        about = {"model": model, "prompt": row.fields["prompt"]}
        found = ceiling_of(Reached(hand, row.tuned, searched), seed)
        yield {**about, **found, "fine_tuned": beyond(row.tuned, tuned, seed)}


def _best_by_hand(rows: Sequence[Row], model: str) -> Predictions | None:
    """What the prompt of a file that is best on dev with its threshold says with it."""
    own = [r for r in rows if r.fields["model"] == model and r.by_hand]
    return max(own, key=lambda r: r.tuned_dev).tuned if own else None


def _model_rows(model: Model, entries: Sequence[Entry], clips: Clips) -> Iterator[Row]:
    prompts = list(dict.fromkeys(e.classifier.prompt for e in entries))
    table = model.evaluator.score(prompts, clips.scored)
    fitted = model.evaluator.score(prompts, clips.tuned_on)
    controls = {
        audio: model.evaluator.score(prompts, clips.scored.as_control(audio)) for audio in CONTROLS
    }
    dev = []
    for e in entries:
        said = fitted.predict(e.classifier)
        dev.append(metrics.balanced_accuracy(said.targets.kinds, said.right))
    seeds = [i for i, e in enumerate(entries) if e.from_file]
    baseline = max(seeds, key=lambda i: dev[i]) if seeds else None
    took = latency.measure(model.evaluator, prompts[0], clips.tuned_on)
    about = _training(model.checkpoint)
    for i, entry in enumerate(entries):
        one = entry.classifier
        said = table.predict(one, f"{model.name}, {entry.name}")
        own = str(Path(model.name)) in (str(Path(name)) for name in entry.searched_on)
        yield Row(
            said,
            {
                "row": row_code(about, i == baseline, own),
                "model": model.name,
                "finetuning": about["finetuning"],
                "data": about["data"],
                "prompt": entry.name,
                "prompt_id": one.prompt_id,
                **({"soft": entry.soft} if entry.soft else {"text": one.prompt.text}),
                **({"presentation": one.prompt.given} if one.prompt.given else {}),
                "answers": one.prompt.to_dict()["answers"],
                "bias": one.bias,
                "searched_on": list(entry.searched_on),
                "baseline": i == baseline,
                "fingerprint": model.evaluator.fingerprint,
                "dev_score": dev[i],
                **_tuned(table, fitted, one),
                **({"labels": labels} if (labels := by_label(said)) else {}),
                "controls": {
                    audio: _balanced(control.predict(one)) for audio, control in controls.items()
                },
                "evals": len(clips.scored),
                "latency": took.to_dict(),
                "warnings": [
                    *model.warnings,
                    *_flattered(entry, clips),
                    *_unlisted(entry, table.unlisted[prompts.index(one.prompt)]),
                ],
            },
            table.predict(rule := _with_threshold(fitted, one.prompt), said.name),
            _balanced(fitted.predict(rule)),
            entry.from_file,
        )


def _flattered(entry: Entry, clips: Clips) -> Iterator[str]:
    if entry.searched_on and clips.scored[0].split == "dev":
        yield (
            f"{entry.name}: the holdout of dev, which is scored here, chose it if its search was of these clips: then"
            " its score is flattered"
        )


def _unlisted(entry: Entry, shares: NDArray[np.floating]) -> Iterator[str]:
    """A warning where a server did not list all answers."""
    if share := float(shares.mean()):
        yield (
            f"{entry.name}: {100 * share:.0f} % of its answers are not among the tokens that the server lists: their"
            " scores are upper bounds"
        )


def _balanced(said: Predictions) -> float:
    return metrics.balanced_accuracy(said.targets.kinds, said.right)


def _with_threshold(fitted: ScoreTable, prompt: Prompt) -> Classifier:
    """A prompt with the threshold that is best on dev."""
    own = fitted.logp[fitted.prompts.index(prompt)]
    return Classifier(prompt, calibration.fit_shift(fitted.targets.truth, own))


def _tuned(table: ScoreTable, fitted: ScoreTable, classifier: Classifier) -> dict[str, Any]:
    """What threshold and calibration fitted on dev change on the split."""
    plain = Classifier(classifier.prompt)
    said, dev = table.predict(plain), fitted.predict(plain)
    own = fitted.logp[fitted.prompts.index(plain.prompt)]
    shifted = table.predict(_with_threshold(fitted, plain.prompt))
    c = resample(said.targets)
    out: dict[str, Any] = {
        "threshold_on_dev": interval(c, c.balanced(shifted.right.astype(np.float64)))
    }
    as_it_is = {"reliability": _reliability(table.predict(classifier))}
    try:
        fit = calibration.fit_distribution(dev.targets.truth, own)
    except UserError as error:
        return out | {"calibrated": None, "calibration_failed": str(error)} | as_it_is
    shares = fit.distribution(table.logp[table.prompts.index(plain.prompt)])
    calibrated = dataclasses.replace(
        said,
        decided=shares.argmax(axis=-1),
        probability=shares[:, 0],
        distribution=None if said.distribution is None else shares,
    )
    found = metrics.statistics_of(c, calibrated)
    return out | {
        "calibrated": {
            "temperature": fit.temperature,
            "bias": fit.bias,
            **{name: interval(c, found[name]) for name in ("ece", "brier", "nll")},
            "reliability": _reliability(calibrated),
        },
        **as_it_is,
    }


def _reliability(said: Predictions) -> list[dict[str, float]]:
    """Bins of a reliability diagram of what was decided."""
    assert said.sure is not None
    return [dataclasses.asdict(r) for r in calibration.reliability(said.sure, said.right)]


def _detector_row(name: str, clips: Clips, data: Data) -> Row:
    tuned = tune_detector(name, clips.tuned_on)
    nothing = Classifier(Prompt("", tuple((label, ("",)) for label in data.task.labels), ""))
    said = tuned.score([nothing.prompt], clips.scored).predict(nothing, name)
    warnings = []
    if name == "silero" and "vad_fraction" in columns_of(data.manifest):
        warnings.append(
            "silero is scored on clips that were selected by their voice activity (column vad_fraction),"
            " by Silero unless the recipe said otherwise: its score is flattered"
        )
    controls = {
        audio: _balanced(
            tuned.score([nothing.prompt], clips.scored.as_control(audio)).predict(nothing)
        )
        for audio in CONTROLS
    }
    return Row(
        said,
        {
            "row": "",
            "model": name,
            "finetuning": "",
            "data": "",
            "prompt": tuned.rule,
            "baseline": False,
            "fingerprint": tuned.fingerprint,
            "reliability": _reliability(said),
            "controls": controls,
            "evals": len(clips.scored),
            "latency": latency.measure(tuned, nothing.prompt, clips.tuned_on).to_dict(),
            "warnings": warnings,
        },
    )


def _result(rows: Sequence[Row], settings: MatrixSettings, first_model: str) -> dict[str, Any]:
    """The matrix as plain data. The reference is the first checkpoint's baseline prompt."""
    reference = next(
        (
            i
            for i, r in enumerate(rows)
            if r.fields["baseline"] and r.fields["model"] == first_model
        ),
        0,
    )
    others = [i for i in range(len(rows)) if i != reference]
    pairs = compare_pairs(
        [r.said for r in rows], pairs=[(i, reference) for i in others], seed=settings.seed
    )
    gains = dict(zip(others, pairs, strict=True))
    out = []
    for i, row in enumerate(rows):
        gain = gains.get(i)
        difference = gain and {
            "value": gain["difference"],
            **{k: gain[k] for k in ("low", "high", "p", "p_holm")},
        }
        described = describe(row.said, seed=settings.seed)
        out.append(
            {**row.fields, **described, "reference": i == reference, "difference": difference}
        )
    return {
        "split": settings.split,
        "seed": settings.seed,
        "clips": len(rows[0].said.targets),
        "sources": len(set(rows[0].said.targets.sources.tolist())),
        "reference": rows[reference].said.name,
        "rows": out,
    }


def _write(
    out: Path, result: dict[str, Any], rows: Sequence[Row], settings: MatrixSettings
) -> None:
    for number, row in enumerate(rows, 1):
        path = Path("predictions") / f"{number:02d}-{file_name(row.said.name)[:80]}.csv"
        write_predictions(out / path, row.said)
        result["rows"][number - 1]["predictions"] = str(path)
    about = {k: str(v) for k, v in dataclasses.asdict(settings).items()}
    result["provenance"] = provenance({"settings": about})
    write_json(out / "matrix.json", result)
    for name, form in (("matrix.csv", "csv"), ("matrix.md", "markdown"), ("matrix.tex", "latex")):
        write_text(out / name, _text(result, form))


def _text(result: dict[str, Any], form: str) -> str:
    if form == "json":
        return json_text(result)
    if form == "csv":
        rows = [_flat(row) for row in result["rows"]]
        return csv_text(rows, tuple(dict.fromkeys(k for row in rows for k in row)))
    return render(matrix_sheet(result), form) + "\n"  # type: ignore[arg-type]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One line of numbers: estimates become NAME, NAME_low, NAME_high."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and "low" in value:
            out |= {f"{key}{'' if k == 'value' else '_' + k}": v for k, v in value.items()}
        elif key in ("controls", "latency", "answers"):
            out |= {f"{key}_{k}": v for k, v in value.items()}
        elif key == "thresholds":
            out |= {name: t["text"] for name, t in value.items()}
        elif not isinstance(value, dict | list) and value is not None:
            out[key] = value
    return out


def _show(result: dict[str, Any], settings: MatrixSettings, out: Path) -> None:
    if settings.format != "table":
        print(_text(result, settings.format), end="")
        return
    print(render(matrix_sheet(result)))
    several = [r for r in result["rows"] if "labels" in r]
    if several:
        best = max(several, key=lambda r: r["balanced_accuracy"]["value"])
        print(
            render(
                confusion_sheet(
                    best["labels"], f"best row here ({best['model']}, {best['prompt']})"
                )
            )
        )
    for text in dict.fromkeys(w for r in result["rows"] for w in r["warnings"]):
        print(f"warning: {text}")
    for one in result.get("ceilings", ()):
        print(f"ceiling of {one['model']}: {one['sentence']}")
        for name, gain in one["fine_tuned"].items():
            print(
                f"  {name}, best hand-written: {percent(gain, signed=True)} points over the soft prompt"
            )
    if result["test_openings"] is not None:
        print(said_of_uses(result["test_openings"]))
    print(f"written to {out}; python -m opro.report {out}")


if __name__ == "__main__":
    sys.exit(run_verb(main))
