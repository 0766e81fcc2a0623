"""What the dev split of a clip set can show, told before anything is spent on it."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluators.clips import Clip, ClipSet
from evaluators.errors import UserError
from evaluators.files import write_bytes
from evaluators.splits import Registry, halves, write_registry
from evaluators.statistics.resampling import MIN_SOURCES
from evaluators.tasks import SPEECH_TASK, Task
from opro.search.power import Half, shown_by

from .clip_set import outline, project_registry
from .design import allocate, assign_splits, conditions
from .readers import read_collections
from .recipe import Factorial, Made
from .recordings import LABELS


def dev_lines(clips: Sequence[Clip], task: Task = SPEECH_TASK) -> list[str]:
    """What the dev split of some clips can show, and how it could show more.

    Args:
        clips: Of all splits.
        task: Whose labels they have.
    """
    dev = [c for c in clips if c.split == "dev"]
    labels = {c.label for c in clips} if task.choices else set(task.labels)
    if {c.label for c in dev} != labels and not task.choices:
        return ["dev shows nothing: it lacks a label; give it a larger share"]
    both = [ClipSet(task, tuple(half)) for half in halves(dev)]
    if not all(both):
        return ["dev shows nothing: it has one source; give it a larger share"]
    sources = {
        label: len({c.source_id for c in clips if c.label == label}) for label in sorted(labels)
    }
    few = both[1].targets.fewest_sources < MIN_SOURCES
    cure = [f"  -> {more_sources(sources)}"] if few else []
    return [f"dev shows {shown_by((Half.of(both[0]), Half.of(both[1])))}", *cure]


def more_sources(sources: Mapping[str, int]) -> str:
    """How dev comes to enough sources for a claim.

    Args:
        sources: Of each label, in all splits.

    >>> more_sources({"SPEECH": 60, "NONSPEECH": 200})
    'SPEECH has 60 sources: --splits dev=0.5,test=0.5 gives dev enough, without a train split; or add 40 sources'
    """
    label = min(sources, key=lambda k: sources[k])
    count, needed = sources[label], 2 * MIN_SOURCES
    share = max(0.5, math.ceil(20 * (needed + 1) / count) / 20)
    add = f"add {max(needed, 5 * needed - count)} sources"
    if share > 0.8:
        return f"{label} has {count} sources: {add} (dev needs {needed} of each label)"
    return (
        f"{label} has {count} sources: --splits dev={share:g},test={1 - share:g} gives dev enough, without a train"
        f" split; or {add}"
    )


def outline_of_recipe(recipe: Made, out: Path) -> list[str]:
    """`clip_set.outline` with the splits that the recipe would make, and what dev could show."""
    _, registry = project_registry(out)
    splits = assign_splits(recipe, read_collections(recipe.recordings), registry.splits)
    return [*outline(recipe, out, splits), *dev_of_recipe(recipe, out)]


def dev_of_recipe(recipe: Made, out: Path) -> list[str]:
    """What the dev split that a recipe would make can show, as far as names and headers tell: sources take turns.

    Raises:
        UserError: As `read_collections`.
    """
    recordings = [r for r in read_collections(recipe.recordings) if r.category != "silence"]
    known = project_registry(out)[1].splits
    splits = assign_splits(recipe, recordings, known)
    of_cell = recipe.clips_per_cell if isinstance(recipe, Factorial) else recipe.base_clips // 2
    of_cell = allocate(of_cell, recipe.splits).get("dev", 0)
    clips = of_cell * len(conditions(recipe))  # of each label
    cuts = clips if isinstance(recipe, Factorial) else of_cell
    dev: dict[str, int] = {}
    for label in LABELS:
        sources = {r.source_id for r in recordings if r.label == label}
        dev[label] = min(cuts, sum(splits[s] == "dev" for s in sources))
    label = min(dev, key=lambda k: dev[k])
    held = "" if recipe.split_by == "stratified" else "let split_by: stratified hold the shares, "
    if dev[label] < 2 * MIN_SOURCES:
        return [
            f"dev shows no gain, however large: it has {dev[label]} sources of {label}, a claim needs"
            f" {2 * MIN_SOURCES}",
            f"  -> {held}give dev a larger share in the recipe (splits), or add recordings of other speakers and"
            " places",
        ]
    search, holdout = (_half([(n + 1 - k) // 2 for n in dev.values()], clips // 2) for k in (0, 1))
    lines = [f"dev shows {shown_by((search, holdout))}"]
    if (count := recipe.renderings) > 1:
        more = search.grown(1, count), holdout.grown(1, count)
        lines.append(f"with --renderings all it shows {shown_by(more)}")
    return lines


@contextlib.contextmanager
def registered(recipe: Made, out: Path) -> Iterator[None]:
    """With the splits of a stratified recipe in the project's registry, from where a build takes them.

    A build that is refused leaves the registry as it was.
    """
    if recipe.split_by == "hash":
        yield
        return
    path, registry = project_registry(out)
    before, made = path.read_bytes() if path.is_file() else None, not out.exists()
    splits = assign_splits(recipe, read_collections(recipe.recordings), registry.splits)
    write_registry(path, Registry(registry.splits | splits, registry.trained_on))
    try:
        yield
    except UserError:
        if before is not None:
            write_bytes(path, before)
        else:
            path.unlink()
        if made and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise


def _half(sources: Sequence[int], clips: int) -> Half:
    """A half with so many sources and so many clips of each label."""
    truth = np.repeat(np.arange(len(sources)), clips)
    first = np.cumsum([0, *sources[:-1]])
    own = [first[k] + np.arange(clips) % n for k, n in enumerate(sources)]
    return Half(truth, np.concatenate(own))
