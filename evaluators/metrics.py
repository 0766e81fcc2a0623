"""Metrics of a set of clips, and statistics that know that clips of one source are not independent. Pure numpy.

Clips are given as arrays: `truth` (index of the right label), `sources` (ids). Sources are the clusters of every
interval and test; they are resampled within the labels they carry.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]

RESAMPLES = 4000
MIN_SOURCES = (
    10  # per label; with fewer no claim is made (percentile intervals cover .88 at 7 clusters)
)


def margins(logp: Floats) -> Floats:
    """``[..., clip]`` log-odds of the first label against all others, from ``[..., clip, label]``."""
    return np.asarray(logp[..., 0] - np.logaddexp.reduce(logp[..., 1:], axis=-1))


def decide(logp: Floats, bias: float = 0.0) -> Ints:
    """Index of the label decided on, ``[..., clip]``: the likeliest, the first label's log-odds shifted by `bias`."""
    shifted = np.array(logp, dtype=np.float64)
    shifted[..., 0] += bias
    return np.asarray(shifted.argmax(axis=-1))


def balanced_weights(truth: Ints) -> Floats:
    """Weight of each clip such that a weighted sum of hits is balanced accuracy; a missing class counts for nothing."""
    kinds, inverse, counts = np.unique(truth, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / (len(kinds) * counts[inverse]))


def balanced_accuracy(truth: Ints, right: Bools) -> float:
    """Mean over the classes that occur of the share decided right."""
    return float((balanced_weights(truth) * right).sum())


def auroc(truth: Ints, margin: Floats) -> float:
    """Area under the ROC curve of the first label; ties count half. NaN when a class is missing."""
    positive = truth == 0
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n1 or not n0:
        return math.nan
    ranks = stats.rankdata(margin)
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def nll(truth: Ints, logp: Floats) -> float:
    """Balanced mean of the negative log-probability of the right label, in nats, among the labels."""
    own = logp - np.logaddexp.reduce(logp, axis=-1, keepdims=True)
    return float(-(balanced_weights(truth) * own[np.arange(len(truth)), truth]).sum())


def fit_bias(truth: Ints, margin: Floats) -> float:
    """The shift of the log-odds with the best balanced accuracy; of equal ones the middle of the widest stretch.

    For dev clips only: what is fitted here must be judged on others.
    """
    edges = np.unique(margin)
    cuts = np.concatenate([[edges[0] - 1.0], (edges[1:] + edges[:-1]) / 2, [edges[-1] + 1.0]])
    weight = balanced_weights(truth)
    order = np.argsort(margin)
    hits = np.concatenate([[0.0], np.cumsum((weight * (truth == 0))[order])])
    false = np.concatenate([[0.0], np.cumsum((weight * (truth != 0))[order])])
    below = np.searchsorted(margin[order], cuts)
    score = (hits[-1] - hits[below]) + false[below]
    best = np.flatnonzero(score >= score.max() - 1e-12)
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    run = max(runs, key=lambda r: (cuts[r[-1]] - cuts[r[0]], -abs(cuts[r].mean())))
    return -float((cuts[run[0]] + cuts[run[-1]]) / 2)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, the clips and sources behind it."""

    value: float
    low: float
    high: float
    clips: int
    sources: int


@dataclass(frozen=True)
class Difference:
    """A paired difference a - b of balanced accuracy on the same clips.

    `low` and `high` are the bounds of the two-sided interval at the given level; `p` is one-sided, for a > b.
    """

    value: float
    low: float
    high: float
    p: float
    clips: int
    sources: int


def fewest_sources(truth: Ints, sources: Sequence[str]) -> int:
    """Number of sources of the label that has the fewest."""
    ids = np.asarray(sources)
    return min(len(np.unique(ids[truth == k])) for k in np.unique(truth))


def estimate(
    truth: Ints, right: Bools, sources: Sequence[str], *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Balanced accuracy with a cluster-bootstrap interval over sources (expanded percentile)."""
    draws = _resample(truth, right.astype(float), sources, seed)
    low, high = _expanded(draws, fewest_sources(truth, sources), (1 - level) / 2)
    return Estimate(balanced_accuracy(truth, right), low, high, len(truth), len(set(sources)))


def paired_difference(
    truth: Ints, a: Bools, b: Bools, sources: Sequence[str], *, alpha: float = 0.025, seed: int = 0
) -> Difference:
    """Balanced accuracy of `a` minus that of `b` on the same clips.

    The interval resamples sources within labels and is widened for few clusters; each bound is one-sided at `alpha`.
    The test flips the sign of each source's contribution: exact when neither is better.
    """
    gain = a.astype(float) - b.astype(float)
    low, high = _expanded(
        _resample(truth, gain, sources, seed), fewest_sources(truth, sources), alpha
    )
    return Difference(
        float((balanced_weights(truth) * gain).sum()),
        low,
        high,
        sign_flip(truth, gain, sources, seed=seed),
        len(truth),
        len(set(sources)),
    )


def sign_flip(
    truth: Ints, gain: Floats, sources: Sequence[str], *, flips: int = 20_000, seed: int = 0
) -> float:
    """One-sided p of a positive balanced gain, by random sign flips of whole sources; never below 1 / (flips + 1)."""
    _, inverse = np.unique(np.asarray(sources), return_inverse=True)
    parts = np.bincount(inverse, weights=balanced_weights(truth) * gain)
    parts = parts[parts != 0]
    if not len(parts):
        return 1.0
    signs = np.random.default_rng(seed).integers(0, 2, (flips, len(parts)), dtype=np.int8) * 2 - 1
    return float((1 + (signs @ parts >= parts.sum() - 1e-12).sum()) / (flips + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the given order."""
    adjusted, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def _resample(truth: Ints, value: Floats, sources: Sequence[str], seed: int) -> Floats:
    """``[resample]`` balanced means of `value`, sources drawn with replacement within the labels they carry."""
    ids, inverse = np.unique(np.asarray(sources), return_inverse=True)
    kinds = np.unique(truth)
    count = np.stack([np.bincount(inverse, truth == k, len(ids)) for k in kinds])  # [label, source]
    total = np.stack([np.bincount(inverse, value * (truth == k), len(ids)) for k in kinds])
    strata = np.unique(count > 0, axis=1, return_inverse=True)[1].ravel()
    rng = np.random.default_rng(seed)
    draws = np.zeros((RESAMPLES, len(ids)))
    for stratum in np.unique(strata):
        member = np.flatnonzero(strata == stratum)
        draws[:, member] = rng.multinomial(
            len(member), np.full(len(member), 1 / len(member)), RESAMPLES
        )
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nanmean((draws @ total.T) / (draws @ count.T), axis=1))


def _expanded(draws: Floats, clusters: int, alpha: float) -> tuple[float, float]:
    """Percentile bounds at a level widened for few clusters (Hesterberg 2015, arXiv 1411.5279, expanded percentile)."""
    if clusters < 2:
        return -math.inf, math.inf
    tail = float(
        stats.norm.cdf(math.sqrt(clusters / (clusters - 1)) * stats.t.ppf(alpha, clusters - 1))
    )
    return float(np.quantile(draws, tail)), float(np.quantile(draws, 1 - tail))
