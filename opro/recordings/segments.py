"""From what was said of overlapping windows to segments, and the files that other tools open."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from evaluators.audio import RATE
from opro.recordings.windows import Cut

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, in seconds."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Merging:
    """How windows become segments, in seconds.

    Attributes:
        smooth_s: Length of the running median over the steps; 0: none.
        shortest_s: Segments that are shorter are dropped.
        gap_s: Gaps that are shorter are filled, before short segments are dropped.
    """

    smooth_s: float = 0.0
    shortest_s: float = 0.0
    gap_s: float = 0.0


def edges(firsts: Sequence[int], cut: Cut, samples: int) -> NDArray[np.int64]:
    """``[step + 1]`` samples at which steps begin and end: a step is heard by the same windows all through it."""
    ends = [min(first + cut.window, samples) for first in firsts]
    return np.unique(np.array([0, *firsts, *ends, samples], dtype=np.int64))


def over_steps(
    firsts: Sequence[int], values: Floats, cut: Cut, samples: int
) -> tuple[NDArray[np.int64], Floats]:
    """(edges, ``[step]`` mean over the windows that hear a step), from a value a window."""
    at = edges(firsts, cut, samples)
    begin = np.searchsorted(at, firsts)
    end = np.searchsorted(at, np.minimum(np.array(firsts) + cut.window, samples))
    sums, counts = np.zeros(len(at)), np.zeros(len(at))
    np.add.at(sums, begin, values)
    np.add.at(sums, end, -np.asarray(values))
    np.add.at(counts, begin, 1)
    np.add.at(counts, end, -1)
    return at, np.cumsum(sums)[:-1] / np.cumsum(counts)[:-1]


def merge(
    firsts: Sequence[int], odds: Floats, cut: Cut, samples: int, how: Merging
) -> list[Segment]:
    """The stretches where the label is decided on.

    Each step takes the mean log-odds of the windows that hear it, then a running median.

    Args:
        firsts: First sample of each window, rising.
        odds: ``[window]`` log-odds of the label, the threshold at 0.
        samples: Of the recording.
    """
    at, mean = over_steps(firsts, odds, cut, samples)
    if how.smooth_s * RATE > cut.hop:
        windows = round(how.smooth_s * RATE / cut.hop) | 1
        mean = scipy.ndimage.median_filter(mean, windows, mode="nearest")
    return _joined(at, mean > 0, how)


def union(firsts: Sequence[int], kept: Bools, cut: Cut, samples: int) -> list[Segment]:
    """The stretches that at least one of the kept windows hears."""
    at, mean = over_steps(firsts, kept.astype(float), cut, samples)
    return _joined(at, mean > 1e-9, Merging())


def _joined(at: NDArray[np.int64], on: Bools, how: Merging) -> list[Segment]:
    edge = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(np.int8)))
    spans = [(int(at[a]), int(at[b])) for a, b in zip(edge[::2], edge[1::2], strict=True)]
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start - merged[-1][1] < how.gap_s * RATE:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return [
        Segment(start / RATE, end / RATE)
        for start, end in merged
        if end - start >= how.shortest_s * RATE
    ]


def rttm(name: str, segments: Iterable[Segment], label: str) -> str:
    """Lines of a Rich Transcription Time Marked file (NIST, RT-09 evaluation plan)."""
    name = name.replace(" ", "_")
    return "".join(
        f"SPEAKER {name} 1 {s.start_s:.3f} {s.end_s - s.start_s:.3f} <NA> <NA> {label.lower()} <NA> <NA>\n"
        for s in segments
    )


def audacity(segments: Iterable[Segment], label: str) -> str:
    """Lines of a label track, which Audacity imports."""
    return "".join(f"{s.start_s:.6f}\t{s.end_s:.6f}\t{label}\n" for s in segments)
