"""Metrics of a set of clips, and statistics that know that clips of one source are not independent. Pure numpy.

Clips are given as arrays: `truth` (index of the right label), `sources` (ids). Sources are the clusters of every
interval and test; they are resampled within the labels they carry. What is resampled are totals of sources, so that
thousands of resamples of many configurations are one product of matrices (`Clusters`).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]

RESAMPLES = 4000
FLIPS = 20_000
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
    _, place, equal = np.unique(margin, return_inverse=True, return_counts=True)
    ranks = (equal.cumsum() - (equal - 1) / 2)[place]
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


@dataclass(frozen=True)
class Statistic:
    """A statistic of one or more configurations on the same clips, and the same of every resample.

    Attributes:
        value: ``[...]``; NaN where it is undefined, as a hit rate without clips of the first label is.
        draws: ``[..., resample]``.
    """

    value: Floats
    draws: Floats

    def __sub__(self, other: "Statistic") -> "Statistic":
        return Statistic(self.value - other.value, self.draws - other.draws)

    def __getitem__(self, i: int) -> "Statistic":
        return Statistic(self.value[i], self.draws[i])


@dataclass(frozen=True)
class Clusters:
    """The sources of a set of clips, and how often each resample draws them.

    Attributes:
        truth: ``[clip]`` index of the right label.
        index: ``[clip]`` index of its source.
        weights: ``[resample, source]`` times drawn, with replacement within the labels that sources carry.
        fewest: Sources of the label that has the fewest, which decides how far intervals are widened.
        seed: Of the sign flips.
    """

    truth: Ints
    index: Ints
    weights: Floats
    fewest: int
    seed: int

    @property
    def sources(self) -> int:
        """Number of sources."""
        return self.weights.shape[1]

    def totals(self, value: Floats) -> Floats:
        """``[..., source]`` sums of ``[..., clip]``."""
        flat = np.reshape(value, (-1, len(self.truth)))
        sums = [np.bincount(self.index, row, self.sources) for row in flat]
        return np.reshape(sums, (*np.shape(value)[:-1], self.sources))

    def ratio(self, over: Floats, under: Floats) -> Statistic:
        """Sum of ``[..., clip]`` over the sum of the same shape (or ``[clip]``)."""
        a, b = self.totals(over), self.totals(under)
        with np.errstate(invalid="ignore", divide="ignore"):
            return Statistic(
                np.asarray(a.sum(-1) / b.sum(-1)), (a @ self.weights.T) / (b @ self.weights.T)
            )

    def mean(self, value: Floats) -> Statistic:
        """Mean over clips of ``[..., clip]``."""
        return self.ratio(value, np.ones(len(self.truth)))

    def balanced(self, value: Floats) -> Statistic:
        """Mean over the labels that occur of the mean over their clips of ``[..., clip]``."""
        parts = [self.ratio(value * (self.truth == k), self.truth == k) for k in self._kinds]
        return Statistic(
            np.mean([p.value for p in parts], axis=0), np.mean([p.draws for p in parts], axis=0)
        )

    @functools.cached_property
    def signs(self) -> NDArray[np.int8]:
        """``[source, flip]`` of the sign-flip test, +1 or -1."""
        rng = np.random.default_rng(self.seed)
        return rng.integers(0, 2, (self.sources, FLIPS), dtype=np.int8) * np.int8(2) - np.int8(1)

    @property
    def _kinds(self) -> Ints:
        return np.unique(self.truth)

    def estimate(self, statistic: Statistic, level: float = 0.95) -> Estimate:
        """The statistic of one configuration with its interval (expanded percentile)."""
        low, high = expanded(statistic.draws, self.fewest, (1 - level) / 2)
        return Estimate(float(statistic.value), low, high, len(self.truth), self.sources)


def clusters(
    truth: Ints, sources: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Clusters:
    """Draws the resamples of a set of clips."""
    ids, index = np.unique(np.asarray(sources), return_inverse=True)
    held = np.stack([np.bincount(index, truth == k, len(ids)) > 0 for k in np.unique(truth)])
    strata = np.unique(held, axis=1, return_inverse=True)[1].ravel()
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(ids)))
    for stratum in np.unique(strata):
        member = np.flatnonzero(strata == stratum)
        weights[:, member] = rng.multinomial(
            len(member), np.full(len(member), 1 / len(member)), resamples
        )
    return Clusters(np.asarray(truth), index, weights, fewest_sources(truth, sources), seed)


def rates(c: Clusters, decided: Ints) -> dict[str, Statistic]:
    """Accuracy, balanced accuracy, hit rate and false-alarm rate of ``[..., clip]`` decisions.

    A hit is the first label decided on where it is right, a false alarm where it is not.
    """
    right, first = decided == c.truth, decided == 0
    return {
        "accuracy": c.mean(right),
        "balanced_accuracy": c.balanced(right),
        "hit_rate": c.ratio(first & (c.truth == 0), c.truth == 0),
        "false_alarm_rate": c.ratio(first & (c.truth != 0), c.truth != 0),
    }


def ranked(c: Clusters, score: Floats) -> Statistic:
    """Area under the ROC curve of one ``[clip]`` score of the first label.

    How the clips of two sources compare is counted once; a resample is then a quadratic form in its weights.
    """
    positive = c.truth == 0
    wins = _wins(score[positive], c.index[positive], score[~positive], c.index[~positive])
    up, down = np.unique(c.index[positive]), np.unique(c.index[~positive])
    n1 = np.bincount(c.index[positive], minlength=c.sources)
    n0 = np.bincount(c.index[~positive], minlength=c.sources)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = ((c.weights[:, up] @ wins) * c.weights[:, down]).sum(-1)
        draws = draws / ((c.weights @ n1) * (c.weights @ n0))
        return Statistic(np.asarray(wins.sum() / (n1.sum() * n0.sum())), draws)


def _wins(a: Floats, of_a: Ints, b: Floats, of_b: Ints) -> Floats:
    """``[source of a, source of b]``: pairs of clips in which `a` is larger, equal ones counted half."""
    _, rank = np.unique(np.concatenate([a, b]), return_inverse=True)
    size, rank_a = rank.max(initial=-1) + 1, rank[: len(a)]
    order = np.argsort(of_b, kind="stable")
    rank_b = rank[len(a) :][order]
    edges = np.flatnonzero(np.diff(of_b[order], prepend=-1))
    _, row = np.unique(of_a, return_inverse=True)
    out = np.zeros((row.max(initial=-1) + 1, len(edges)))
    for begin in range(0, len(out), 64):  # sources at once, so that memory stays small
        mine = (row >= begin) & (row < begin + 64)
        count = np.zeros((min(64, len(out) - begin), size))
        np.add.at(count, (row[mine] - begin, rank_a[mine]), 1.0)
        above = count.sum(-1, keepdims=True) - np.cumsum(count, axis=-1) + count / 2
        if len(edges):
            out[begin : begin + 64] = np.add.reduceat(above[:, rank_b], edges, axis=-1)
    return out


def calibration_error(c: Clusters, confidence: Floats, right: Bools, bins: int = 15) -> Statistic:
    """Expected calibration error of one ``[clip]`` confidence in what was decided, equal bins (Guo et al. 2017).

    It cannot be negative, so that small sets and their resamples overstate it.
    """
    cell = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    inside = cell == np.arange(bins)[:, None]
    gap, count = (
        c.totals(inside * (confidence - right)),
        np.bincount(c.index, minlength=c.sources),
    )
    return Statistic(
        np.asarray(np.abs(gap.sum(-1)).sum() / count.sum()),
        np.abs(gap @ c.weights.T).sum(0) / (count @ c.weights.T),
    )


def describe(
    c: Clusters, decided: Ints, probability: Floats | None = None, score: Floats | None = None
) -> dict[str, Statistic]:
    """Every statistic of one configuration's ``[clip]`` decisions.

    Args:
        probability: Of the first label, among the labels: adds calibration and confidence.
        score: That ranks the first label: adds ``auroc``; `probability` where it is not given.
    """
    out = rates(c, decided)
    score = probability if score is None else score
    if score is not None:
        out["auroc"] = ranked(c, score)
    if probability is not None:
        right = decided == c.truth
        sure = np.where(decided == 0, probability, 1 - probability)
        out["ece"] = calibration_error(c, sure, right)
        out["brier"] = c.mean((probability - (c.truth == 0)) ** 2)
        own = np.where(c.truth == 0, probability, 1 - probability)
        out["nll"] = c.mean(-np.log(np.maximum(own, np.finfo(np.float64).tiny)))
        out["confidence"] = c.mean(sure)
        out["confidence_right"] = c.ratio(sure * right, right)
        out["confidence_wrong"] = c.ratio(sure * ~right, ~right)
        out["confidence_gap"] = out["confidence_right"] - out["confidence_wrong"]
    return out


def estimate(
    truth: Ints, right: Bools, sources: Sequence[str], *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Balanced accuracy with a cluster-bootstrap interval over sources (expanded percentile)."""
    c = clusters(truth, sources, seed=seed)
    return c.estimate(c.balanced(right), level)


def paired_difference(
    truth: Ints, a: Bools, b: Bools, sources: Sequence[str], *, alpha: float = 0.025, seed: int = 0
) -> Difference:
    """Balanced accuracy of `a` minus that of `b` on the same clips.

    The interval resamples sources within labels and is widened for few clusters; each bound is one-sided at `alpha`.
    The test flips the sign of each source's contribution: exact when neither is better.
    """
    c = clusters(truth, sources, seed=seed)
    return difference(c, a, b, alpha=alpha)


def difference(c: Clusters, a: Bools, b: Bools, *, alpha: float = 0.025) -> Difference:
    """`paired_difference` with the resamples drawn."""
    gain = a.astype(float) - b.astype(float)
    e = c.estimate(c.balanced(gain), 1 - 2 * alpha)
    p = float(sign_flip(c, gain))
    return Difference(e.value, e.low, e.high, p, e.clips, e.sources)


def sign_flip(c: Clusters, gain: Floats, *, two_sided: bool = False) -> Floats:
    """p of a positive balanced ``[..., clip]`` gain, by random sign flips of whole sources.

    Never below 1 / (flips + 1); `two_sided` for a gain in either direction.
    """
    parts = c.totals(balanced_weights(c.truth) * gain)
    found = parts.sum(-1)[..., None]
    if two_sided:
        found = np.abs(found)
    count = np.ones(parts.shape[:-1])
    for begin in range(0, FLIPS, 2000):
        seen = parts @ c.signs[:, begin : begin + 2000].astype(np.float64)
        count += ((np.abs(seen) if two_sided else seen) >= found - 1e-12).sum(-1)
    return np.asarray(count / (FLIPS + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the given order."""
    adjusted, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def expanded(draws: Floats, sources: int, alpha: float) -> tuple[float, float]:
    """Percentile bounds at a level widened for few clusters (Hesterberg 2015, arXiv 1411.5279, expanded percentile)."""
    if sources < 2:
        return -math.inf, math.inf
    tail = float(ndtr(math.sqrt(sources / (sources - 1)) * stdtrit(sources - 1, alpha)))
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return math.nan, math.nan
    return float(np.quantile(draws, tail)), float(np.quantile(draws, 1 - tail))
