"""Builds a clip set from recordings: `python -m data.build RECIPE --out DIR`

RECIPE is a name under data/recipes or a YAML file:

    factorial         4 durations x 5 SNRs x 2 classes, 2,000 clips
    bank              the published 22 one-factor conditions of 970 base clips
    crossed, clean    the first study's 640 and 160 clips, with splits by source
    import            manifests of the first study (*_metadata.csv), with splits by source
    debian            recordings under free licences, fetched from Debian packages: real data in one command
    demo              the clips that ship with the project

Recordings are given in the recipe or by --recordings, which may be repeated: a folder or CSV file (path, label,
category, source_id), or LAYOUT=DIR with the layouts voxconverse, esc50, musan, gtzan and fma.
An interrupted build goes on where it was with the same command. The same recipe and recordings give the same bytes,
whatever the number of processes.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar, get_args

from filelock import FileLock, Timeout

from evaluators.errors import PauseError, UserError
from evaluators.files import append_line, read_yaml, write_text
from evaluators.manifest import SPLITS
from evaluators.splits import Registry, load_registry, registry_path, write_registry
from opro.cli import Parser, run_verb

from .building import debian, import_study
from .building.attribution import write_attribution
from .building.design import Job, conditions, plan, quotas, split_sources
from .building.recipe import (
    AnyRecipe,
    Design,
    Factorial,
    Import,
    Packages,
    Variants,
    read_recipe,
    recipe_path,
)
from .building.recordings import Collection, Layout, Recording, read_collection, write_table
from .building.render import make
from .building.rooms import find_responses
from .building.scan import Scan, from_json, scan, to_json
from .building.voice import VOICES, Voice

T, R = TypeVar("T"), TypeVar("R")
STATE = ".build"  # inside --out while a build is unfinished
REJECTED = ("recording", "label", "category", "source_id", "reason")
CHUNK = 16  # recordings or clips that a process takes at once


# Each process builds its own voice activity detector, once.
_recipe: Design
_durations: tuple[int, ...]
_voice: Voice


def _start_worker(recipe: Design, durations: tuple[int, ...]) -> None:
    global _recipe, _durations, _voice
    _recipe, _durations = recipe, durations
    _voice = VOICES[recipe.voice]()


def _scan_one(recording: Recording) -> Scan | str:
    try:
        return scan(recording, _recipe, _durations, _voice)
    except UserError as error:
        return str(error)


def _make_one(task: tuple[Job, Path]) -> dict[str, Any]:
    job, folder = task
    encoded, row = make(job, _recipe)
    target = folder / row["path"]
    scratch = target.with_suffix(".part")
    scratch.write_bytes(encoded)
    scratch.replace(target)  # a clip is there whole or not at all
    return row


def _spread(
    work: Callable[[T], R], items: Sequence[T], recipe: Design, processes: int, title: str
) -> Iterator[R]:
    """Results in the order of the items, from one or several processes, with progress and time left on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        Left(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=len(items))
        if processes == 1:
            _start_worker(recipe, base_durations(recipe))
            for item in items:
                yield work(item)
                progress.advance(task)
            return
        with ProcessPoolExecutor(
            processes,
            mp_context=get_context("spawn"),
            initializer=_start_worker,
            initargs=(recipe, base_durations(recipe)),
        ) as pool:
            try:
                for result in pool.map(work, items, chunksize=CHUNK):
                    yield result
                    progress.advance(task)
            except BrokenProcessPool:
                raise PauseError(
                    "a process was killed, perhaps for lack of memory; try --processes 1, which"
                    " goes on from here"
                ) from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def base_durations(recipe: Design) -> tuple[int, ...]:
    """Durations that are cut from recordings; variants are made from one base duration."""
    return (recipe.base_ms,) if isinstance(recipe, Variants) else tuple(recipe.durations_ms)


class State:
    """The journal of an unfinished build: results by key, appended as they come, a torn last line dropped."""

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


def read_all(recipe: Design) -> list[Recording]:
    """The recordings of all collections; names are unique."""
    if not recipe.recordings:
        raise UserError(
            "no recordings: give --recordings DIR (a folder with manifest.csv) or LAYOUT=DIR, such"
            " as esc50=ESC-50-master; python -m data.build debian --out recordings fetches some"
        )
    out: dict[str, Recording] = {}
    tables = sum(c.layout == "csv" for c in recipe.recordings)
    for collection in recipe.recordings:
        for recording in read_collection(collection):
            if collection.layout == "csv" and tables > 1:
                folder = collection.path.resolve()
                folder = folder if folder.is_dir() else folder.parent
                recording = replace(recording, name=f"{folder.name}/{recording.name}")
            if recording.name in out:
                raise UserError(
                    f"recording {recording.name!r} stands in two collections; give each once"
                )
            out[recording.name] = recording
    labels: dict[str, str] = {}
    for recording in out.values():
        other = labels.setdefault(recording.source_id, recording.label)
        if other != recording.label:
            raise UserError(
                f"{recording.where or recording.name}: source {recording.source_id!r} has label"
                f" {other} elsewhere and {recording.label} here; one source, one label"
            )
    return list(out.values())


def twins(
    recordings: Sequence[Recording], scans: Mapping[str, Scan]
) -> dict[str, tuple[Recording, Recording]]:
    """Recordings whose samples equal those of an earlier one: name -> (it, the one that is kept)."""
    first: dict[str, Recording] = {}
    out = {}
    for recording in recordings:
        kept = first.setdefault(scans[recording.name].digest, recording)
        if kept is not recording and recording.category != "silence":
            out[recording.name] = (recording, kept)
    return out


def build(recipe: Factorial | Variants, out: Path, processes: int) -> int:
    """Builds into `out`; returns the number of clips."""
    for collection in recipe.recordings:
        if collection.layout != "synthetic" and out.resolve().is_relative_to(
            collection.path.resolve()
        ):
            raise UserError(
                f"--out {str(out)!r} lies inside the recordings {str(collection.path)!r}; its clips"
                " would be taken for recordings"
            )
    recordings = read_all(recipe)
    VOICES[recipe.voice]()  # a missing package is said here, not by every process
    responses = (
        find_responses(recipe.responses, recipe.t60_s)
        if isinstance(recipe, Variants) and recipe.responses
        else {}
    )
    registry_file, registry = _registry(out)
    state = out / STATE
    had = [p for p in (out, state, out / "clips") if p.exists()]
    with _locked(out):
        identity = _identity(recipe, recordings, registry)
        known = state / "recipe"
        if known.is_file() and known.read_text() != identity:
            raise UserError(
                f"--out {str(out)!r} holds an unfinished build of another recipe or other"
                " recordings; remove it, or choose another folder"
            )
        (out / "clips").mkdir(parents=True, exist_ok=True)
        known.write_text(identity)
        try:
            scans = _scan_all(recipe, recordings, State(state / "scans.jsonl"), processes)
            copies = twins(recordings, scans)
            kept = [r for r in recordings if r.name not in copies]
            splits = split_sources(recipe, [r.source_id for r in kept], registry.splits)
            jobs = plan(recipe, kept, scans, splits, responses)
        except UserError:
            # Wrong input leaves nothing behind.
            for path in (state, out / "clips", out):
                if path not in had and path.exists():
                    shutil.rmtree(path)
            raise
        rows = State(state / "rows.jsonl")
        todo = [
            (job, out)
            for job in jobs
            if job.clip_id not in rows.done or not (out / rows.done[job.clip_id]["path"]).is_file()
        ]
        rows.add(
            (row["clip_id"], row) for row in _spread(_make_one, todo, recipe, processes, "clips")
        )
        made = [rows.done[job.clip_id] for job in jobs]
        write_table(out / "rejected.csv", _rejections(recordings, scans, copies), REJECTED)
        write_attribution(made, [c.path for c in recipe.recordings], out)
        write_registry(registry_file, Registry(registry.splits | splits, registry.trained_on))
        write_table(out / "manifest.csv", made, list(made[0]))
    shutil.rmtree(state)
    return len(jobs)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One build a folder; another process is refused."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {str(out)!r} is a file; expected a folder")
    (out / STATE).mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / STATE / "lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise UserError(f"--out {str(out)!r}: another process is building there") from None


def _identity(recipe: Design, recordings: Sequence[Recording], registry: Registry) -> str:
    """Digest of all that a build depends on: a resumed build must go on with the same."""
    digest = hashlib.sha256(repr(recipe).encode())
    for r in recordings:
        stat = r.path.stat() if r.path else None
        digest.update(repr((r, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    digest.update(repr(sorted(registry.splits.items())).encode())
    return digest.hexdigest()


def _scan_all(
    recipe: Design, recordings: Sequence[Recording], state: State, processes: int
) -> dict[str, Scan]:
    todo = [r for r in recordings if r.name not in state.done]
    bad: list[str] = []

    def results() -> Iterator[tuple[str, Any]]:
        for recording, found in zip(
            todo, _spread(_scan_one, todo, recipe, processes, "recordings"), strict=True
        ):
            if isinstance(found, str):
                bad.append(found)
            else:
                yield recording.name, to_json(found)

    state.add(results())
    if bad:
        more = f"; {len(bad) - 1} more recordings are bad too" if len(bad) > 1 else ""
        raise UserError(bad[0] + more)
    return {r.name: from_json(state.done[r.name]) for r in recordings}


def _registry(out: Path) -> tuple[Path, Registry]:
    """The project's registry: beside the manifest, or in the folder above when it is there already."""
    path = registry_path(out)
    return path, load_registry(path) if path.is_file() else Registry({}, {})


def _rejections(
    recordings: Sequence[Recording],
    scans: Mapping[str, Scan],
    copies: Mapping[str, tuple[Recording, Recording]],
) -> list[dict[str, str]]:
    out = []
    for r in recordings:
        reason = scans[r.name].reason
        if r.name in copies:
            reason = f"same samples as {copies[r.name][1].name}"
        if reason:
            values = (r.name, r.label, r.category, r.source_id, reason)
            out.append(dict(zip(REJECTED, values, strict=True)))
    return out


def outline(recipe: Factorial | Variants, out: Path) -> list[str]:
    """What a build would make, from names and headers alone: cells, counts, sources per split, what is missing."""
    recordings = read_all(recipe)
    if isinstance(recipe, Variants) and recipe.responses:
        find_responses(recipe.responses, recipe.t60_s)
    _, registry = _registry(out)
    splits = split_sources(recipe, [r.source_id for r in recordings], registry.splits)
    cells = conditions(recipe)
    if isinstance(recipe, Factorial):
        per_split = {
            s: n * len(cells) for s, n in quotas(recipe.clips_per_cell, recipe.splits).items()
        }
        each = f"{recipe.clips_per_cell} clips of each class"
        total = 2 * recipe.clips_per_cell * len(cells)
    else:
        per_split = quotas(recipe.base_clips // 2, recipe.splits)
        each = f"{recipe.base_clips // 2} base clips of each class"
        total = 2 * (recipe.base_clips // 2) * len(cells)
    seconds = sum(c.duration_ms for c in cells) / len(cells) * total / 1000
    lines = [
        f"{total:,} clips: {len(cells)} conditions x {each}, {seconds / 60:.0f} minutes of audio,"
        f" about {seconds * 22_000 / 1e6:.0f} MB",
        "conditions: " + ", ".join(c.name for c in cells),
        "",
        f"{'split':6} {'category':12} {'sources':>8} {'recordings':>11} {'cuts needed':>12}"
        f" {'at most':>8}",
    ]
    missing = []
    shares = {"speech": 1.0} | {
        k: v / sum(recipe.categories.values()) for k, v in recipe.categories.items()
    }
    for split in (s for s in SPLITS if recipe.splits.get(s)):
        for category, share in shares.items():
            part = [
                r for r in recordings if r.category == category and splits[r.source_id] == split
            ]
            sources = len({r.source_id for r in part})
            need = round(per_split[split] * share)
            room = sources * recipe.cap["SPEECH" if category == "speech" else "NONSPEECH"]
            lines.append(
                f"{split:6} {category:12} {sources:8,} {len(part):11,} {need:12,} {room:8,}"
            )
            if need > room:
                missing.append(
                    f"missing: {need - room} {category} cuts in {split} ({sources} sources with at"
                    f" most {room // sources if sources else 0} clips each)"
                )
            if split == "test" and category == "speech" and sources < 10:
                missing.append(
                    f"warning: {sources} speech sources in test; with fewer than 10 no claim is made"
                )
    return [*lines, "", *(missing or ["nothing is missing, as far as names and headers tell"])]


def _collections(texts: Sequence[str]) -> tuple[Collection, ...]:
    out = []
    for text in texts:
        layout, sign, path = text.partition("=")
        if not sign or Path(text).exists():
            layout, path = "csv", text
        if layout not in get_args(Layout):
            raise UserError(
                f"--recordings {text!r}: layout {layout!r} is not one of"
                f" {', '.join(get_args(Layout))}; a folder that holds = is given as csv=DIR"
            )
        if layout in ("folder", "synthetic"):
            raise UserError(
                f"--recordings {text!r}: layout {layout!r} needs more than a path; write it in a"
                " recipe"
            )
        out.append(Collection(layout, Path(path)))  # type: ignore[arg-type]
    return tuple(out)


def _makers() -> Any:
    """The tool that made the shipped clips; it is part of a checkout, not of an installed wheel."""
    try:
        from .makers import demo_clips
    except ImportError:
        raise UserError(
            "this needs data/makers, which only a checkout of the project has"
        ) from None
    return demo_clips


def _demo(args: argparse.Namespace) -> int:
    """The shipped set: matched pairs, Ogg/Opus, compared by samples."""
    demo_clips = _makers()
    if len(args.recordings) != 1:
        raise UserError("recipe demo is built from one folder: give --recordings DIR once")
    recipe = demo_clips.read_recipe(recipe_path(args.recipe))
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "built"
        built.mkdir()
        demo_clips.build(recipe, Path(args.recordings[0]), built)
        if args.check:
            return _report(demo_clips.compare(built, args.out))
        args.out.mkdir(parents=True, exist_ok=True)
        shutil.copytree(built, args.out, dirs_exist_ok=True)
    return 0


def _report(different: Sequence[str]) -> int:
    print(
        f"{len(different)} clips differ" + (f": {', '.join(different[:10])}" if different else "")
    )
    return 1 if different else 0


def run(args: argparse.Namespace) -> int:
    """Reads the recipe and does what its design asks for."""
    path = recipe_path(args.recipe)
    if (args.out / "manifest.csv").exists() != args.check:
        raise UserError(
            f"--out {str(args.out)!r} holds {'no' if args.check else 'a'} manifest.csv; "
            + ("--check compares with one" if args.check else "remove it first, or use --check")
        )
    if args.processes < 1:
        raise UserError(f"--processes is {args.processes}; expected 1 or more")
    raw = read_yaml(path)
    if isinstance(raw, dict) and raw.get("design") == "matched":
        if args.dry_run:
            raise UserError("--dry-run is for other recipes; demo is fixed: 1,800 clips, 5.5 MB")
        done = _demo(args)
        if args.check:
            return done
        print(f"wrote {args.out}; check it with: python -m data.audit {args.out}")
        return 0
    recipe: AnyRecipe = read_recipe(path)
    if args.check and not isinstance(recipe, Design):
        raise UserError("--check is for sets that are built from recordings; this recipe copies")
    if isinstance(recipe, Packages):
        return debian.fetch(recipe, args.out, args.packages, args.dry_run)
    if isinstance(recipe, Import):
        recipe = replace(
            recipe,
            manifests=tuple(Path(t) for t in args.recordings) or recipe.manifests,
            root=args.root or recipe.root,
        )
        count = import_study.convert(recipe, args.out, args.dry_run)
        if not args.dry_run:
            print(f"wrote {args.out}, {count} clips; check it: python -m data.audit {args.out}")
        return 0
    assert isinstance(recipe, Factorial | Variants)
    if args.recordings:
        recipe = replace(recipe, recordings=_collections(args.recordings))
    if args.dry_run:
        print("\n".join(outline(recipe, args.out)))
        return 0
    if args.check:
        with tempfile.TemporaryDirectory() as scratch:
            built = Path(scratch) / "built"
            _, registry = _registry(args.out)
            built.mkdir()
            write_registry(built / "registry.json", registry)
            build(recipe, built, args.processes)
            return _report(_makers().compare(built, args.out))
    count = build(recipe, args.out, args.processes)
    print(f"wrote {args.out}, {count:,} clips; check it with: python -m data.audit {args.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name of a recipe under data/recipes, or a YAML file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--recordings",
        action="append",
        default=[],
        metavar="[LAYOUT=]DIR",
        help="recordings, instead of the recipe's; may be repeated (import: the CSV files)",
    )
    parser.add_argument("--root", type=Path, help="import: folder that audio_path is relative to")
    parser.add_argument(
        "--packages", help="debian: packages separated by commas, or all (default: the recipe's)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="processes that decode and write (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print cells, counts, sources and what is missing"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="rebuild elsewhere and compare with --out, write nothing",
    )
    args = parser.parse_args(argv)

    def whole() -> int:
        try:
            return run(args)
        except OSError as error:
            raise PauseError(
                f"{str(error.filename or args.out)!r} cannot be used ({error.strerror}); make room"
                " or mend the folder, then give the same command again"
            ) from None

    return run_verb(whole)


if __name__ == "__main__":
    sys.exit(main())
