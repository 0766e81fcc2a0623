"""Splits: the registry of sources, the halves of dev, a balanced order, and what a checkpoint was trained on."""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from evaluators.clips import Clip
from evaluators.errors import LeakError, UserError
from evaluators.files import read_json, write_text
from evaluators.manifest import SPLITS, manifest_path, read_manifest
from evaluators.names import by_key, first_spellings, name_key, shared_names, spelled
from evaluators.tasks import Task


def _order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


LOUD_DB = 20.0  # a higher signal-to-noise ratio makes no clip any clearer


def clearest(clips: Sequence[Clip], labels: Sequence[str], count: int) -> tuple[Clip, ...]:
    """The `count` clearest clips, equally many of each label: the least noise first, then the longest."""

    def clearness(clip: Clip) -> tuple[float, float]:
        noise = LOUD_DB if clip.snr_db is None else min(clip.snr_db, LOUD_DB)
        return noise, clip.duration_ms

    by_label = [
        sorted((c for c in clips if c.label == label), key=clearness, reverse=True)
        for label in labels
    ]
    each = min(count // len(labels), *map(len, by_label))
    return tuple(clip for own in by_label for clip in own[:each])


def balanced_order(clips: Sequence[Clip], salt: str = "") -> list[Clip]:
    """The clips in a fixed order in which every prefix is balanced over label, duration, SNR and source.

    Depends on nothing but the clips' ids and attributes, so "the first N" is the same set on every machine.
    Each cell (label, duration, condition) is ordered so that its sources take turns; then the cells take turns.
    Each `salt` gives another such order: benches draw their clips by it.
    """
    ordered = [clips[i] for i in _by_digest([salt + clip.clip_id for clip in clips])]
    sources, used = [clip.source_id for clip in ordered], dict[str, int]()
    cells: dict[tuple[str, int, str], list[int]] = {}
    for i, clip in enumerate(ordered):
        cells.setdefault((clip.label, round(clip.duration_ms), _cell(clip)), []).append(i)
    labels = sorted({key[0] for key in cells})
    queues = {label: deque[tuple[Iterator[int], int]]() for label in labels}  # with the clips left
    for key in sorted(cells, key=lambda k: _order(salt + repr(k))):
        queues[key[0]].append((_least_used(cells[key], sources, used), len(cells[key])))
    out: list[Clip] = []
    for turn in _turns([sum(left for _, left in queues[label]) for label in labels]):
        queue = queues[labels[turn]]
        cell, left = queue.popleft()
        i = next(cell)
        used[sources[i]] = used.get(sources[i], 0) + 1
        if left > 1:
            queue.append((cell, left - 1))
        out.append(ordered[i])
    return out


def _least_used(cell: list[int], sources: Sequence[str], used: Mapping[str, int]) -> Iterator[int]:
    """The clips of a cell: each time the first of those whose source was used least, as it is asked for."""
    waiting = {0: cell}  # by how often their source was used when last looked at, which only grows
    while waiting:
        count = min(waiting)
        for i in sorted(waiting.pop(count)):
            now = used.get(sources[i], 0)
            if now == count:
                yield i
            else:
                waiting.setdefault(now, []).append(i)


def _by_digest(texts: Sequence[str]) -> list[int]:
    """Places of the texts in the order of their SHA-256."""
    digests = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    found: list[int] = np.argsort(np.frombuffer(digests, dtype="S32"), kind="stable").tolist()
    return found


def _turns(totals: Sequence[int]) -> list[int]:
    """Whose turn it is, of labels with so many clips: always the one that is furthest behind its share, else the first.

    Labels of equal size alternate.

    >>> _turns([2, 4])
    [0, 1, 1, 0, 1, 1]
    """
    label = np.repeat(np.arange(len(totals)), totals)
    behind = np.concatenate([np.arange(total) / total for total in totals] or [np.zeros(0)])
    found: list[int] = label[np.lexsort((label, behind))].tolist()
    return found


def _cell(clip: Clip) -> str:
    return "none" if clip.snr_db is None else str(round(clip.snr_db / 5) * 5)


def halves(clips: Sequence[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Dev halved by source, stratified by label: (search half, fresh half).

    The halves depend on the source ids and clip counts alone, never on a run's seed: otherwise the half that
    decided one run would have been searched by the next. Largest sources first, each goes to the lighter half, with all
    of its spellings.
    """
    half_of: dict[str, int] = {}
    one = first_spellings(sorted({clip.source_id for clip in clips}))
    counts: dict[str, dict[str, int]] = {}  # by label and source
    for clip in clips:
        own, source = counts.setdefault(clip.label, {}), one[clip.source_id]
        own[source] = own.get(source, 0) + 1
    for label in sorted(counts):
        own = {s: n for s, n in counts[label].items() if s not in half_of}
        load = [[0, 0], [0, 0]]  # per half: clips, sources
        for source in sorted(own, key=lambda s: (-own[s], _order(s))):
            half = min((0, 1), key=lambda h: (load[h][0], load[h][1], h))
            half_of[source] = half
            load[half][0] += own[source]
            load[half][1] += 1
    ordered = balanced_order(clips)
    first = [clip for clip in ordered if half_of[one[clip.source_id]] == 0]
    second = [clip for clip in ordered if half_of[one[clip.source_id]] == 1]
    return first, second


@dataclass(frozen=True)
class Registry:
    """The splits of a project's sources, and which checkpoint was trained on which sources.

    `splits` maps source id to split; `trained_on` maps a checkpoint's name to the ids it was trained on.
    """

    splits: dict[str, str]
    trained_on: dict[str, tuple[str, ...]]

    @cached_property
    def _by_key(self) -> dict[str, str]:
        return by_key(self.splits)

    def split_of(self, source: str) -> str | None:
        """The split of a source, in any spelling; None where it has none."""
        return self._by_key.get(name_key(source))


def registry_path(folder: Path) -> Path:
    """The project's registry for a folder of clips: in it, or in the folder above if it is there."""
    above = folder.parent / "registry.json"
    here = folder / "registry.json"
    return above if above.is_file() and not here.is_file() else here


def read_registry(where: Path) -> Registry | None:
    """The split registry of a manifest's project, or None when it has none."""
    path = registry_path(manifest_path(where).parent)
    return load_registry(path) if path.is_file() else None


def load_registry(path: Path) -> Registry:
    """A registry file."""
    raw = read_json(path)
    try:
        wrong = {s for s in raw["splits"].values() if s not in SPLITS}
        if wrong:
            raise ValueError(f"split {sorted(map(str, wrong))[0]!r} is not one of {SPLITS}")
        if not all(isinstance(ids, list) for ids in raw["trained_on"].values()):
            raise ValueError("'trained_on' holds no list of source ids")
        for name, one in first_spellings(raw["splits"]).items():
            if raw["splits"][name] != raw["splits"][one]:
                raise ValueError(f"source {one!r} has two splits{spelled(one, name)}")
        return Registry(
            dict(raw["splits"]), {name: tuple(ids) for name, ids in raw["trained_on"].items()}
        )
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path}: not a split registry ({error}); expected keys 'splits' and 'trained_on'"
        ) from None


def write_registry(path: Path, registry: Registry) -> None:
    """Writes the registry as stable JSON."""
    raw = {
        "schema": 1,
        "splits": dict(sorted(registry.splits.items())),
        "trained_on": {name: sorted(ids) for name, ids in sorted(registry.trained_on.items())},
    }
    write_text(path, json.dumps(raw, indent=1, ensure_ascii=False) + "\n")


def check_registry(clips: Iterable[Clip], registry: Registry | None) -> None:
    """Raises UserError when a clip's split is not the one its source has in the registry."""
    if registry is None:
        return
    for clip in clips:
        known = registry.split_of(clip.source_id)
        if known is not None and known != clip.split:
            raise LeakError(
                f"clip {clip.clip_id!r}: source {clip.source_id!r} is registered as {known!r} but"
                f" the manifest says {clip.split!r}; a source keeps its split in all clip sets of a"
                " project"
            )


def trained_sources(
    checkpoint: str,
    stored: frozenset[str] | None,
    where: Path | None,
    train_manifest: Path | None,
    task: Task | Sequence[str],
) -> frozenset[str] | None:
    """Source ids that a checkpoint was trained on, or None when nothing tells.

    Args:
        checkpoint: Its name, under which the registry may list its sources.
        stored: Ids that the checkpoint itself carries.
        where: Manifest whose registry is asked; None: there is none.
        train_manifest: Manifest it was trained on, by flag.
        task: Of that manifest, or its labels.
    """
    registry = None if where is None else read_registry(where)
    known = [stored] if stored is not None else []
    if registry is not None and checkpoint in registry.trained_on:
        known.append(frozenset(registry.trained_on[checkpoint]))
    if train_manifest is not None:
        clips = read_manifest(train_manifest, task, "train")
        known.append(frozenset(c.source_id for c in clips))
    return frozenset().union(*known) if known else None


def check_trained_on(
    clips: Iterable[Clip],
    sources: frozenset[str] | None,
    checkpoint: str,
    policy: Literal["refuse", "allow"] = "refuse",
) -> list[str]:
    """Warnings about clips whose sources a checkpoint was trained on. They belong into every result that follows.

    Args:
        sources: What it was trained on, from `trained_sources`; None where nothing tells.
        policy: Of ``--heard``: refuse such clips, or allow them with a warning.
    Raises:
        LeakError: It was trained on some of the sources, and the policy is to refuse; lists them.
    """
    if sources is None:
        return [
            f"what {checkpoint!r} was trained on is unknown: give --train-manifest, or scores may"
            " measure memory"
        ]
    overlap = shared_names({clip.source_id for clip in clips}, sources)
    if not overlap:
        return []
    text = (
        f"checkpoint {checkpoint!r} was trained on {len(overlap)} of the sources to be scored"
        f" ({', '.join(overlap[:8])}{', ...' if len(overlap) > 8 else ''})"
    )
    if policy == "allow":
        return [f"{text}: scores measure memory (--heard allow)"]
    raise LeakError(
        f"{text}; score clips of other sources, or give --heard allow, which is recorded"
    )
