"""Sources drawn again: intervals that know that clips of one source are not independent. Pure numpy.

Sources are resampled within the labels that they carry. What is resampled are totals of sources, so that thousands of
resamples of many configurations are one product of matrices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from evaluators.files import finite_or_none

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Numbers = NDArray[np.floating] | NDArray[np.integer] | NDArray[np.bool_]

RESAMPLES = 4000
MIN_SOURCES = (
    10  # per label; with fewer no claim is made (percentile intervals cover .88 at 7 clusters)
)


@dataclass(frozen=True)
class Estimate:
    """A value, or a difference of two, with its interval over sources.

    Attributes:
        value: A share of 1, or nats.
        low, high: Bounds of the interval; None where there are too few sources.
        clips, sources: How many it was estimated from.
        p: Of a difference: the level at which the bound would be zero. Never another test.
    """

    value: float
    low: float | None
    high: float | None
    clips: int
    sources: int
    p: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """{value, low, high}, as result files hold it."""
        return {"value": finite_or_none(self.value), "low": self.low, "high": self.high}


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
    """

    truth: Ints
    index: Ints
    weights: Floats
    fewest: int

    @property
    def sources(self) -> int:
        """Number of sources."""
        return int(self.weights.shape[1])

    def totals(self, value: Numbers) -> Floats:
        """``[..., source]`` sums of ``[..., clip]``."""
        flat = np.reshape(value, (-1, len(self.truth)))
        sums = [np.bincount(self.index, row, self.sources) for row in flat]
        return np.reshape(sums, (*np.shape(value)[:-1], self.sources))

    def ratio(self, over: Numbers, under: Numbers) -> Statistic:
        """Sum of ``[..., clip]`` over the sum of the same shape (or ``[clip]``)."""
        a, b = self.totals(over), self.totals(under)
        with np.errstate(invalid="ignore", divide="ignore"):
            return Statistic(
                np.asarray(a.sum(-1) / b.sum(-1)), (a @ self.weights.T) / (b @ self.weights.T)
            )

    def mean(self, value: Numbers) -> Statistic:
        """Mean over clips of ``[..., clip]``."""
        return self.ratio(value, np.ones(len(self.truth)))

    def balanced(self, value: Numbers) -> Statistic:
        """Mean over the labels that occur of the mean over their clips of ``[..., clip]``."""
        parts = [self.ratio(value * (self.truth == k), self.truth == k) for k in self._kinds]
        return Statistic(
            np.mean([p.value for p in parts], axis=0), np.mean([p.draws for p in parts], axis=0)
        )

    @property
    def _kinds(self) -> Ints:
        return np.unique(self.truth)

    def estimate(self, statistic: Statistic, level: float = 0.95) -> Estimate:
        """The statistic of one configuration with its interval (expanded percentile)."""
        low, high = percentile_bounds(statistic.draws, self.fewest, (1 - level) / 2)
        return Estimate(
            float(statistic.value),
            finite_or_none(low),
            finite_or_none(high),
            len(self.truth),
            self.sources,
        )


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
    return Clusters(np.asarray(truth), index, weights, fewest_sources(truth, sources))


def percentile_bounds(draws: Floats, sources: int, alpha: float) -> tuple[float, float]:
    """Bounds, each one-sided at `alpha`: percentiles at a level widened for few sources.

    The expanded percentile interval of Hesterberg (2015, arXiv 1411.5279). Infinite with fewer than two sources.
    """
    if sources < 2:
        return -math.inf, math.inf
    tail = float(ndtr(math.sqrt(sources / (sources - 1)) * stdtrit(sources - 1, alpha)))
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return math.nan, math.nan
    return float(np.quantile(draws, tail)), float(np.quantile(draws, 1 - tail))


def level_at_zero(draws: Floats, sources: int) -> float:
    """The smallest level at which the lower bound of `percentile_bounds` is not above zero: one-sided p of a gain.

    So p < alpha says the same as "the lower bound at alpha is above zero". Resamples tell no smaller share than one in
    their number.
    """
    draws = np.sort(draws[~np.isnan(draws)])
    if sources < 2 or not len(draws):
        return 1.0
    # The quantile function is linear between order statistics: where does it cross zero?
    below = int(np.searchsorted(draws, 0.0, side="right"))  # draws that are not above zero
    if below == len(draws):
        return 1.0
    tail = 0.0
    if below:
        step = draws[below] - draws[below - 1]
        tail = (below - 1 - draws[below - 1] / step) / (len(draws) - 1)
    tail = max(tail, 1 / (len(draws) + 1))
    return float(stdtr(sources - 1, float(ndtri(tail)) * math.sqrt((sources - 1) / sources)))
