"""Builds a clip set from recordings: by several processes, resumable, the same bytes every time."""

import contextlib
import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

from evaluators.errors import PauseError, UserError
from evaluators.files import append_line, write_text
from evaluators.manifest import SPLITS
from evaluators.splits import Registry, load_registry, registry_path, write_registry

from .attribution import write_attribution
from .design import Job, Responses, allocate, conditions, plan_clips, split_sources
from .readers import read_collections
from .recipe import Factorial, Made, Variants
from .recordings import Recording, write_table
from .render import render_clip
from .rooms import find_responses
from .scan import Scan, scan_recording
from .voice import ACTIVITIES, VoiceActivity

T, R = TypeVar("T"), TypeVar("R")
STATE = ".build"  # folder inside --out while a build is unfinished
REJECTED = ("recording", "label", "category", "source_id", "reason")  # columns of rejected.csv
CHUNK = 16  # recordings or clips that a process takes at once


def build(recipe: Made, out: Path, processes: int) -> int:
    """Builds into `out`, or goes on with an interrupted build there; returns the number of clips.

    Raises:
        UserError: Recordings or recipe are wrong; nothing is left behind. Or `out` holds another build.
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
    state = out / STATE
    with _locked(out) as created:
        _check_identity(state / "recipe", recipe, recordings, registry)
        try:
            scans = _scan_all(recipe, recordings, Journal(state / "scans.jsonl"), processes)
            duplicates = duplicate_recordings(recordings, scans)
            kept = [r for r in recordings if r.name not in duplicates]
            splits = split_sources(recipe, [r.source_id for r in kept], registry.splits)
            jobs = plan_clips(recipe, kept, scans, splits, responses)
        except UserError:
            for path in created:
                shutil.rmtree(path, ignore_errors=True)
            raise
        rows = _render_all(recipe, jobs, out, processes)
        write_table(out / "rejected.csv", _rejected(recordings, scans, duplicates), REJECTED)
        write_attribution(rows, [c.path for c in recipe.recordings], out)
        write_registry(registry_file, Registry(registry.splits | splits, registry.trained_on))
        write_table(out / "manifest.csv", rows, list(rows[0]))  # last: a set with it is whole
    shutil.rmtree(state)
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
        with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
            return {row["clip_id"]: row for row in csv.DictReader(file)}

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
        kept = first.setdefault(scans[recording.name].digest, recording)
        if kept is not recording and recording.category != "silence":
            out[recording.name] = kept.name
    return out


class Journal:
    """Results of an unfinished build by key, appended to a file as they come; a torn last line is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    key, value = json.loads(line)
                except ValueError:
                    break
                self.done[key] = value
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


def _line(entry: tuple[str, Any]) -> str:
    return json.dumps(entry) + "\n"


# Each process opens its own voice activity detector, once.
_recipe: Made
_activity: VoiceActivity


def _start_worker(recipe: Made) -> None:
    global _recipe, _activity
    _recipe, _activity = recipe, ACTIVITIES[recipe.voice]()


def _scan_one(recording: Recording) -> Scan | str:
    try:
        return scan_recording(recording, _recipe, _activity)
    except UserError as error:
        return str(error)


def _render_one(task: tuple[Job, Path]) -> dict[str, Any]:
    job, folder = task
    encoded, row = render_clip(job, _recipe)
    target = folder / row["path"]
    scratch = target.with_suffix(".part")
    scratch.write_bytes(encoded)
    scratch.replace(target)  # a clip is there whole or not at all
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
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {str(out)!r} is a file; expected a folder")
    created = [path for path in (out / STATE, out / "clips", out) if not path.exists()]
    (out / STATE).mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / STATE / "lock")
    try:
        with lock.acquire(timeout=0):
            (out / "clips").mkdir(exist_ok=True)
            yield created
    except Timeout:
        raise UserError(f"--out {str(out)!r}: another process is building there") from None


def _check_identity(
    path: Path, recipe: Made, recordings: Sequence[Recording], registry: Registry
) -> None:
    """Stores a digest of all that a build depends on, or compares it with the stored one of an unfinished build."""
    digest = hashlib.sha256(repr(recipe).encode())
    for r in recordings:
        stat = r.path.stat() if r.path else None
        digest.update(repr((r, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    digest.update(repr(sorted(registry.splits.items())).encode())
    if path.is_file() and path.read_text() != digest.hexdigest():
        raise UserError(
            f"--out {str(path.parent.parent)!r} holds an unfinished build of another recipe or other"
            " recordings; remove it, or choose another folder"
        )
    path.write_text(digest.hexdigest())


def _scan_all(
    recipe: Made, recordings: Sequence[Recording], journal: Journal, processes: int
) -> dict[str, Scan]:
    todo = [r for r in recordings if r.name not in journal.done]
    bad: list[str] = []

    def results() -> Iterator[tuple[str, Any]]:
        found = _map(_scan_one, todo, recipe, processes, "recordings")
        for recording, scan in zip(todo, found, strict=True):
            if isinstance(scan, str):
                bad.append(scan)
            else:
                yield recording.name, scan.to_json()

    journal.add(results())
    if bad:
        more = f"; {len(bad) - 1} more recordings are bad too" if len(bad) > 1 else ""
        raise UserError(bad[0] + more)
    return {r.name: Scan.from_json(journal.done[r.name]) for r in recordings}


def _render_all(
    recipe: Made, jobs: Sequence[Job], out: Path, processes: int
) -> list[dict[str, Any]]:
    journal = Journal(out / STATE / "rows.jsonl")
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


def _responses(recipe: Made) -> Responses:
    if isinstance(recipe, Variants) and recipe.responses:
        return find_responses(recipe.responses, recipe.t60_s)
    return {}


def outline(recipe: Made, out: Path) -> list[str]:
    """What a build would make, from names and headers alone: cells, counts, sources per split, what is missing."""
    recordings = read_collections(recipe.recordings)
    _responses(recipe)
    registry = project_registry(out)[1]
    splits = split_sources(recipe, [r.source_id for r in recordings], registry.splits)
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
    warnings = []
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
    return [*lines, "", *(warnings or ["nothing is missing, as far as names and headers tell"])]
