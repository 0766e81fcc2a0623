"""Builds a clip set from recordings: by several processes, resumable, the same bytes every time."""

import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

from evaluators.errors import PauseError, UserError
from evaluators.files import append_line, is_written, remove_torn, write_bytes, write_text
from evaluators.manifest import SPLITS
from evaluators.plain_data import log_lines, parse_json
from evaluators.renderings import FILE
from evaluators.splits import Registry, load_registry, registry_path, write_registry

from .attribution import write_attribution
from .design import Job, Responses, allocate, conditions, plan_clips, split_sources
from .readers import collection_notes, read_collections
from .recipe import Factorial, Made, Variants
from .recordings import Recording, write_table
from .render import render_clip
from .renderings import by_rendering, told
from .rooms import find_responses
from .scan import CANCELLED, NOTES, SILENT, Scan, scan_recording
from .voice import ACTIVITIES, VoiceActivity

T, R = TypeVar("T"), TypeVar("R")
STATE = ".build"  # folder inside --out while a build is unfinished
REJECTED = ("recording", "label", "category", "source_id", "reason")  # columns of rejected.csv
SCAN_FIELDS = (
    "vad_speech vad_nonspeech min_active_dbfs min_source_snr_db voice".split()
)  # of a recipe
VARYING = re.compile(
    r"^.*?:[0-9]+: |'[^']*'|-?[0-9][0-9.,]*"
)  # what two reasons of one kind differ in
CHUNK = 16  # recordings or clips that a process takes at once


def build(recipe: Made, out: Path, processes: int) -> int:
    """Builds into `out`, or goes on with an interrupted build there; returns the number of clips.

    Recordings that cannot be read are left out. `rejected.csv` says why each was, also where a build fails for want of
    others; what was scanned is then kept for the next try.

    Raises:
        UserError: Recordings or recipe are wrong, or too few recordings are left. Or `out` holds another build.
        PauseError: A process was killed; the same command goes on.
    """
    for collection in recipe.recordings:
        folder = collection.path.resolve()
        if collection.layout != "synthetic" and out.resolve().is_relative_to(folder):
            raise UserError(
                f"--out {str(out)!r} lies inside the recordings {str(collection.path)!r}; its clips"
                " would be taken for recordings"
            )
    recordings = read_collections(recipe.recordings)
    ACTIVITIES[recipe.voice]()  # a missing package is reported here, not by every process
    responses = _responses(recipe)
    registry_file, registry = project_registry(out)
    for note in collection_notes(recipe.recordings, recordings):
        print(f"note: {note}", file=sys.stderr)
    state = out / STATE
    with _locked(out) as created:
        identity = _check_identity(state / "recipe", recipe, recordings, registry)
        scans = _scan_all(recipe, recordings, Journal(state / "scans.jsonl", _is_scan), processes)
        duplicates = duplicate_recordings(recordings, scans)
        rejected = _rejected(recordings, scans, duplicates)
        write_table(out / "rejected.csv", rejected, REJECTED)
        kept = [r for r in recordings if r.name not in duplicates]
        try:
            splits = split_sources(recipe, kept, registry.splits)
            jobs = plan_clips(recipe, kept, scans, splits, responses)
        except UserError as error:
            if out / "clips" in created:
                (out / "clips").rmdir()
            raise UserError(f"{error}; {_left_out(rejected, recordings, out)}") from None
        write_text(state / "recipe", identity)
        rows = _render_all(recipe, jobs, out, processes)
        write_attribution(rows, [c.path for c in recipe.recordings], out)
        write_registry(registry_file, Registry(registry.splits | splits, registry.trained_on))
        first, more = by_rendering(rows)
        if more:
            write_table(out / FILE, more, list(more[0]))
        write_table(out / "manifest.csv", first, list(first[0]))  # last: a set with it is whole
    shutil.rmtree(state)
    for text in told(first, more):
        print(f"note: {text}", file=sys.stderr)
    for note in _scan_notes(recordings, scans):
        print(f"note: {note}", file=sys.stderr)
    if rejected:
        print(f"note: {_left_out(rejected, recordings, out)}", file=sys.stderr)
    return len(jobs)


def rebuild_and_compare(recipe: Made, out: Path, processes: int) -> list[str]:
    """Ids of the clips in `out` that differ from a rebuild elsewhere."""
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "built"
        built.mkdir()
        write_registry(built / "registry.json", project_registry(out)[1])
        build(recipe, built, processes)
        return differing_clips(built, out)


def differing_clips(built: Path, kept: Path) -> list[str]:
    """Ids of the clips whose manifest row or file in `kept` differs from a rebuild.

    The digest of the file may differ between the two: an Ogg container holds a random number.
    """

    def read(folder: Path) -> dict[str, dict[str, str]]:
        rows: dict[str, dict[str, str]] = {}
        for name in ("manifest.csv", FILE):
            if name == FILE and not (folder / name).is_file():
                continue
            with (folder / name).open(newline="", encoding="utf-8") as file:
                rows |= {row["clip_id"]: row for row in csv.DictReader(file)}
        return rows

    def is_whole(row: dict[str, str]) -> bool:
        file = kept / row["path"]
        return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]

    new, old = read(built), read(kept)
    return sorted(set(new) ^ set(old)) + [
        name
        for name in sorted(set(new) & set(old))
        if new[name] | {"sha256": ""} != old[name] | {"sha256": ""} or not is_whole(old[name])
    ]


def project_registry(folder: Path) -> tuple[Path, Registry]:
    """Path and content of the project's registry: beside the manifest, or in the folder above if one is there."""
    path = registry_path(folder)
    return path, load_registry(path) if path.is_file() else Registry({}, {})


def duplicate_recordings(
    recordings: Sequence[Recording], scans: Mapping[str, Scan]
) -> dict[str, str]:
    """Name of each recording whose samples equal those of an earlier one -> name of the earlier one."""
    first: dict[str, Recording] = {}
    out = {}
    for recording in recordings:
        scan = scans[recording.name]
        if not scan.digest or scan.reason in (CANCELLED, SILENT):
            continue  # nothing was heard that could be the same
        kept = first.setdefault(scan.digest, recording)
        if kept is not recording and recording.category != "silence":
            out[recording.name] = kept.name
    return out


class Journal:
    """Results of an unfinished build by key, appended to a file as they come.

    Args:
        path: The file.
        is_result: Tells whether a value is a result; what is none, or torn, or damaged, is dropped and made again.
    """

    def __init__(self, path: Path, is_result: Callable[[Any], bool]) -> None:
        self.path = path
        self.done: dict[str, Any] = {}
        if path.is_file():
            self.done.update((k, v) for k, v in _whole_lines(path) if is_result(v))
            write_text(path, "".join(map(_line, self.done.items())))

    def add(self, results: Iterable[tuple[str, Any]]) -> None:
        """Stores results, a chunk at a time."""
        pending: list[tuple[str, Any]] = []
        try:
            for key, value in results:
                self.done[key] = value
                pending.append((key, value))
                if len(pending) == 4 * CHUNK:
                    append_line(self.path, "".join(map(_line, pending)))
                    pending = []
        finally:
            if pending:
                append_line(self.path, "".join(map(_line, pending)))


def _whole_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of each line of a journal, to the first that is torn or damaged; the rest is made again."""
    for where, line in log_lines(path):
        try:
            key, value = parse_json(line, where)
        except (UserError, ValueError, TypeError):
            return
        if not isinstance(key, str):
            return
        yield key, value


def _is_scan(value: Any) -> bool:
    try:
        Scan.from_json(value)
    except (KeyError, TypeError, ValueError, IndexError):
        return False
    return True


def _is_row(value: Any) -> bool:
    path = value.get("path") if isinstance(value, dict) else None
    return isinstance(path, str) and not Path(path).is_absolute() and ".." not in Path(path).parts


def _line(entry: tuple[str, Any]) -> str:
    return json.dumps(entry) + "\n"


# Each process opens its own voice activity detector, once.
_recipe: Made
_activity: VoiceActivity


def _start_worker(recipe: Made) -> None:
    global _recipe, _activity
    _recipe, _activity = recipe, ACTIVITIES[recipe.voice]()
    if (parent := parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """Ends this process when its parent has ended, even where that was killed and could not tell."""
    parent.join()
    os._exit(1)


def _scan_one(recording: Recording) -> Scan:
    if recording.fault:
        return Scan((), "", 0.0, recording.fault)
    try:
        return scan_recording(recording, _recipe, _activity)
    except UserError as error:
        return Scan((), "", 0.0, str(error))


def _render_one(task: tuple[Job, Path]) -> dict[str, Any]:
    job, folder = task
    encoded, row = render_clip(job, _recipe)
    write_bytes(folder / row["path"], encoded)
    return row


def _map(
    work: Callable[[T], R], items: Sequence[T], recipe: Made, processes: int, title: str
) -> Iterator[R]:
    """Results in the order of the items, from one or several processes; progress and time left go to stderr."""
    with contextlib.ExitStack() as stack:
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeLeftColumn())
        progress = stack.enter_context(Progress(*columns, *times, console=Console(stderr=True)))
        results: Iterator[R]
        if processes == 1:
            _start_worker(recipe)
            results = map(work, items)
        else:
            pool = stack.enter_context(
                ProcessPoolExecutor(
                    processes, get_context("spawn"), initializer=_start_worker, initargs=(recipe,)
                )
            )
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            results = pool.map(work, items, chunksize=CHUNK)
        try:
            yield from progress.track(results, total=len(items), description=title)
        except BrokenProcessPool:
            raise PauseError(
                "a process was killed, perhaps for lack of memory; try --processes 1, which"
                " goes on from here"
            ) from None


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[list[Path]]:
    """Locks the folder for one build and gives the folders that it had to create; another process is refused."""
    created = [path for path in (out / STATE, out / "clips", out) if not path.exists()]
    (out / STATE).mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / STATE / "lock")
    try:
        with lock.acquire(timeout=0):
            (out / "clips").mkdir(exist_ok=True)
            if out / STATE not in created:  # a folder that was never built into keeps what it has
                remove_torn(out)
            yield created
    except Timeout:
        raise UserError(f"--out {str(out)!r}: another process is building there") from None


def _check_identity(
    path: Path, recipe: Made, recordings: Sequence[Recording], registry: Registry
) -> str:
    """A digest of all that a build depends on, compared with that of a build that has begun to write clips."""
    digest = hashlib.sha256(repr(recipe).encode())
    for r in recordings:
        digest.update(repr((r, _stat(r))).encode())
    digest.update(repr(sorted(registry.splits.items())).encode())
    if is_written(path) and path.read_text() != digest.hexdigest():
        raise UserError(
            f"--out {str(path.parent.parent)!r} holds an unfinished build of another recipe or other"
            " recordings; remove it, or choose another folder"
        )
    return digest.hexdigest()


def _stat(recording: Recording) -> tuple[int, int] | None:
    """Size and time of a recording's file, None where there is none."""
    try:
        stat = recording.path.stat() if recording.path else None
    except OSError:
        return None
    return stat and (stat.st_size, stat.st_mtime_ns)


def _scan_key(recording: Recording, recipe: Made) -> str:
    """Name of a recording, and a digest of all that its scan depends on: another recipe may use the same scans."""
    used = [getattr(recipe, name) for name in ("cut_ms", "durations_ms", *SCAN_FIELDS)]
    digest = hashlib.sha256(repr((recording, _stat(recording), used)).encode()).hexdigest()
    return f"{recording.name} {digest[:24]}"


def _scan_all(
    recipe: Made, recordings: Sequence[Recording], journal: Journal, processes: int
) -> dict[str, Scan]:
    keys = {r.name: _scan_key(r, recipe) for r in recordings}
    todo = [r for r in recordings if keys[r.name] not in journal.done]
    found = _map(_scan_one, todo, recipe, processes, "recordings")
    journal.add((keys[r.name], scan.to_json()) for r, scan in zip(todo, found, strict=True))
    return {r.name: Scan.from_json(journal.done[keys[r.name]]) for r in recordings}


def _render_all(
    recipe: Made, jobs: Sequence[Job], out: Path, processes: int
) -> list[dict[str, Any]]:
    journal = Journal(out / STATE / "rows.jsonl", _is_row)
    done = {name for name, row in journal.done.items() if (out / row["path"]).is_file()}
    todo = [(job, out) for job in jobs if job.clip_id not in done]
    rows = _map(_render_one, todo, recipe, processes, "clips")
    journal.add((row["clip_id"], row) for row in rows)
    return [journal.done[job.clip_id] for job in jobs]


def _rejected(
    recordings: Sequence[Recording], scans: Mapping[str, Scan], duplicates: Mapping[str, str]
) -> list[dict[str, str]]:
    out = []
    for r in recordings:
        reason = scans[r.name].reason
        if r.name in duplicates:
            reason = f"same samples as {duplicates[r.name]}"
        if reason:
            values = (r.name, r.label, r.category, r.source_id, reason)
            out.append(dict(zip(REJECTED, values, strict=True)))
    return out


def _left_out(
    rejected: Sequence[Mapping[str, str]], recordings: Sequence[Recording], out: Path
) -> str:
    """How many recordings were left out, and the three most frequent reasons."""
    if not rejected:
        return "no recording was left out"
    kinds: dict[str, list[str]] = {}
    for row in rejected:
        kinds.setdefault(VARYING.sub("", row["reason"]), []).append(row["reason"])
    most = sorted(kinds.values(), key=len, reverse=True)[:3]
    listed = ", ".join(f"{len(reasons)} x {reasons[0]!r}" for reasons in most)
    return (
        f"{len(rejected)} of {len(recordings)} recordings were left out, for {listed}; all of them:"
        f" {out / 'rejected.csv'}"
    )


def _scan_notes(recordings: Sequence[Recording], scans: Mapping[str, Scan]) -> Iterator[str]:
    """What was mended or is strange, of the recordings that are used."""
    for what, _ in NOTES:
        names = [
            r.name for r in recordings if what in scans[r.name].notes and scans[r.name].windows
        ]
        if names:
            yield f"{len(names)} recordings {what}, such as {names[0]}"


def _responses(recipe: Made) -> Responses:
    if isinstance(recipe, Variants) and recipe.responses:
        return find_responses(recipe.responses, recipe.t60_s)
    return {}


def outline(recipe: Made, out: Path, splits: Mapping[str, str] | None = None) -> list[str]:
    """What a build would make, from names and earlier scans: cells, counts, sources per split, what is missing.

    Args:
        splits: Of the sources; None: those of `split_sources`.
    """
    everything = read_collections(recipe.recordings)
    _responses(recipe)
    if splits is None:
        splits = split_sources(recipe, everything, project_registry(out)[1].splits)
    known, left_out = _known_reasons(recipe, everything, out)
    recordings = [r for r in everything if r.name not in left_out]
    cells = conditions(recipe)
    if isinstance(recipe, Factorial):
        count, kind, cuts_each = recipe.clips_per_cell, "clips", len(cells)
    else:
        count, kind, cuts_each = recipe.base_clips // 2, "base clips", 1
    cuts = {split: n * cuts_each for split, n in allocate(count, recipe.splits).items()}
    total = 2 * count * len(cells)
    seconds = sum(c.duration_ms for c in cells) / len(cells) * total / 1000
    lines = [
        f"{total:,} clips: {len(cells)} conditions x {count} {kind} of each class,"
        f" {seconds / 60:.0f} minutes of audio, about {seconds * 22_000 / 1e6:.0f} MB",
        "conditions: " + ", ".join(c.name for c in cells),
        "",
        f"{'split':6} {'category':12} {'sources':>8} {'recordings':>11} {'cuts needed':>12}"
        f" {'at most':>8}",
    ]
    warnings = [f"note: {text}" for text in collection_notes(recipe.recordings, everything)]
    if left_out:
        rows = [{"reason": reason} for reason in left_out.values()]
        warnings.append(f"left out: {_left_out(rows, everything, out)}")
    warnings += _renderings_note(recipe, cuts)
    whole = sum(recipe.categories.values())
    shares = {"speech": 1.0} | {k: v / whole for k, v in recipe.categories.items()}
    for split in (s for s in SPLITS if recipe.splits.get(s)):
        for category, share in shares.items():
            part = [
                r for r in recordings if r.category == category and splits[r.source_id] == split
            ]
            sources = len({r.source_id for r in part})
            need = round(cuts[split] * share)
            cap = recipe.cap["SPEECH" if category == "speech" else "NONSPEECH"]
            lines.append(
                f"{split:6} {category:12} {sources:8,} {len(part):11,} {need:12,} {sources * cap:8,}"
            )
            if need > sources * cap:
                warnings.append(
                    f"missing: {need - sources * cap} {category} cuts in {split} ({sources} sources"
                    f" with at most {cap if sources else 0} clips each)"
                )
            if split == "test" and category == "speech" and sources < 10:
                warnings.append(
                    f"warning: {sources} speech sources in test; with fewer than 10 no claim is made"
                )
    if not any(text.startswith("missing") for text in warnings):
        decoded = "all were decoded" if known == len(everything) else "as far as names tell"
        warnings.append(f"nothing is missing, {decoded}")
    return [*lines, "", *warnings]


def _renderings_note(recipe: Made, cuts: Mapping[str, int]) -> list[str]:
    """How many further renderings there would be; nothing where there are none."""
    if recipe.renderings == 1:
        return []
    each = 1 if isinstance(recipe, Factorial) else len(conditions(recipe))
    count = 2 * each * sum(cuts.get(split, 0) for split in ("dev", "test"))
    return [
        f"note: {recipe.renderings - 1} further renderings of dev and test, of {count:,} clips each: other cuts of the"
        " same sources, where these have them"
    ]


def _known_reasons(
    recipe: Made, recordings: Sequence[Recording], out: Path
) -> tuple[int, dict[str, str]]:
    """How many recordings were scanned by a build that failed or was interrupted, and why some are left out."""
    journal = out / STATE / "scans.jsonl"
    done = {k: v for k, v in _whole_lines(journal) if _is_scan(v)}
    found = {r.name: done.get(_scan_key(r, recipe)) for r in recordings}
    reasons = {r.name: r.fault for r in recordings if r.fault}
    reasons |= {name: scan["reason"] for name, scan in found.items() if scan and scan["reason"]}
    return sum(scan is not None for scan in found.values()), reasons
