"""Sources drawn again: intervals that know that clips of one source are not independent. Pure numpy.

Sources are resampled within the labels that they carry. What is resampled are totals of sources, so that thousands of
resamples of many configurations are one product of matrices.

A share that is alike in all sources, such as no miss in 25, is moved by no resample, and its percentiles would be an
interval of no width. Such a share has the bounds of Clopper and Pearson (1934) at its effective number of sources, as
Korn and Graubard (1998) do for surveys, sources taken as alike within (each counts once, however many its clips); what
it is a part of, as balanced accuracy is of two, has them added to its own percentiles as squares (Zou and Donner 2008).

A difference of two means on the same clips has Student's bounds, by the variance CR2 of its sources' totals and degrees
of freedom by Satterthwaite over the kinds (Bell and McCaffrey 2002; Imbens and Kolesar 2016). Where it lies it is about
normal, while shares near an end are not, and with few sources it finds more at the same error than percentiles do
(`tests/bench_decision.py`, `tests/bench_answers.py`).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from evaluators.files import finite_or_none

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Numbers = NDArray[np.floating] | NDArray[np.integer] | NDArray[np.bool_]

RESAMPLES = 4000
ALIKE = 1e-12  # numbers that differ by less are equal but for rounding
KEPT_BY_ALL = 2**24  # bytes of draws of which eight are kept
KEPT_BY_TWO = 2**27  # bytes of draws of which two are kept; larger ones are made anew each time
AT_ONCE = 2**16  # numbers drawn, so that they lie in the processor's caches
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
class Unmoved:
    """Shares that no resample moves, as parts of a statistic.

    Attributes:
        weight: ``[..., part]`` of each in the statistic, negative where it is taken off; 0 where resamples do move it.
        share: ``[..., part]``.
        sources: ``[..., part]`` effective number, see `effective_sources`.
    """

    weight: Floats
    share: Floats
    sources: Floats

    def reach(self, alpha: float) -> tuple[Floats, Floats]:
        """``[...]`` how far the statistic may lie below and above, each one-sided at `alpha`, by these parts alone."""
        low, high = exact_bounds(self.share, self.sources, alpha)
        down, up = np.maximum(self.share - low, 0), np.maximum(high - self.share, 0)
        positive = self.weight > 0
        below, above = np.where(positive, down, up), np.where(positive, up, down)
        return tuple(np.sqrt(((self.weight * r) ** 2).sum(-1)) for r in (below, above))

    def times(self, factor: Floats | float) -> "Unmoved":
        """The same parts at other weights: `factor` is a number, or ``[..., 1]``."""
        return replace(self, weight=self.weight * factor)

    def and_of(self, other: "Unmoved") -> "Unmoved":
        """The parts of both."""
        pairs = ((getattr(self, n), getattr(other, n)) for n in ("weight", "share", "sources"))
        return Unmoved(*(np.concatenate(pair, axis=-1) for pair in pairs))


@dataclass(frozen=True)
class Statistic:
    """A statistic of one or more configurations on the same clips, and the same of every resample.

    Attributes:
        value: ``[...]``; NaN where it is undefined, as a hit rate without clips of the first label is.
        draws: ``[..., resample]``.
        unmoved: Its parts that are alike in all sources; None where it is no share.
        residuals: ``[..., kind, source]``, see `Clusters.residuals`; None where it is no mean.
    """

    value: Floats
    draws: Floats
    unmoved: Unmoved | None = None
    residuals: Floats | None = None

    def __sub__(self, other: "Statistic") -> "Statistic":
        """The difference on the same resamples.

        Where they move it, they know best how the two go together. Where none does, the parts of both bound it; but
        two that are equal in every resample have no difference to bound.
        """
        gain = Statistic(_exactly(self.value - other.value), _exactly(self.draws - other.draws))
        if self.residuals is not None and other.residuals is not None:
            gain = replace(gain, residuals=_exactly(self.residuals - other.residuals))
        if self.unmoved is None or other.unmoved is None:
            return gain
        stuck = ((np.ptp(gain.draws, axis=-1) <= ALIKE) & (np.abs(gain.value) > ALIKE))[..., None]
        parts = self.unmoved.and_of(other.unmoved.times(-1.0)).times(stuck)
        return replace(gain, unmoved=parts)

    def __getitem__(self, i: int) -> "Statistic":
        own = self.unmoved
        parts = own and Unmoved(own.weight[i], own.share[i], own.sources[i])
        residuals = None if self.residuals is None else self.residuals[i]
        return Statistic(self.value[i], self.draws[i], parts, residuals)


@dataclass(frozen=True)
class Clusters:
    """The sources of a set of clips, and how often each resample draws them.

    Attributes:
        truth: ``[clip]`` index of the right label.
        index: ``[clip]`` index of its source.
        weights: ``[resample, source]`` times drawn, with replacement within the labels that sources carry; of the
            smallest type that holds them, see `resampled`.
        fewest: Sources of the label that has the fewest, which decides how far intervals are widened.
        kinds: ``[clip]`` what means are balanced over and sources are drawn within: `truth`, but where labels are
            places among a clip's own options and no classes.
    """

    truth: Ints
    index: Ints
    weights: Ints
    fewest: int
    kinds: Ints

    @property
    def sources(self) -> int:
        """Number of sources."""
        return int(self.weights.shape[1])

    def totals(self, value: Numbers) -> Floats:
        """``[..., source]`` sums of ``[..., clip]``."""
        flat = np.reshape(value, (-1, len(self.truth)))
        sums = [np.bincount(self.index, row, self.sources) for row in flat]
        return np.reshape(sums, (*np.shape(value)[:-1], self.sources))

    def resampled(self, totals: Numbers) -> Floats:
        """``[..., resample]`` sums of ``[..., source]`` over the sources of each resample."""
        step = 64 * max(1, AT_ONCE // 8 // self.sources)
        parts = (self.weights[at : at + step] for at in range(0, len(self.weights), step))
        return np.concatenate([totals @ part.astype(np.float64).T for part in parts], axis=-1)

    def ratio(self, over: Numbers, under: Numbers) -> Statistic:
        """Sum of ``[..., clip]`` over the sum of the same shape (or ``[clip]``)."""
        a, b = self.totals(over), self.totals(under)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.asarray(a.sum(-1) / b.sum(-1))
            return Statistic(value, self.resampled(a) / self.resampled(b))

    @functools.cached_property
    def held(self) -> Floats:
        """``[kind, source]`` clips, of the kinds that occur."""
        kinds = [self.kinds == k for k in np.unique(self.kinds)]
        return np.stack([np.bincount(self.index, own, self.sources) for own in kinds])

    def residuals(self, value: Numbers) -> Floats:
        """``[..., kind, source]`` of ``[..., clip]``: a source's total less its clips times the mean of their kind.

        Over the clips of the kind, and over the root of what is left of 1 when the source's share of them is taken off
        (CR2 of a mean: Bell and McCaffrey 2002), so that their squares add up to the variance of the kind's mean.
        """
        out, size = [], self.held.sum(-1)
        for k, n, whole in zip(np.unique(self.kinds), self.held, size, strict=True):
            total = self.totals(value * (self.kinds == k))
            left = np.maximum(1 - n / whole, ALIKE)
            out.append((total - total.sum(-1, keepdims=True) / whole * n) / whole / np.sqrt(left))
        return np.stack(out, axis=-2)

    @functools.cached_property
    def degrees(self) -> Floats:
        """``[kind]`` degrees of freedom of its part of the variance: those of Bell and McCaffrey (2002).

        A source's total is taken to vary as its clips squared, as where its clips are wholly alike; with sources of
        equal size that gives one less than their number.
        """
        out = []
        for clips in self.held:
            n = clips[clips > 0]
            share, varies, whole = n / n.sum(), n**2, (n**2).sum()
            weight = 1 / np.maximum(1 - share, ALIKE)
            # Residuals i and j vary together as whole s_i s_j - s_i v_j - v_i s_j, and i with itself by v_i more.
            cross = whole * share**2 - 2 * share * varies
            ss, vv, sv = (float(weight @ x) for x in (share**2, varies**2, share * varies))
            trace = weight @ (varies + cross)
            squares = whole**2 * ss**2 + 2 * ss * vv + 2 * sv**2 - 4 * whole * ss * sv
            squares += weight**2 @ (varies**2 + 2 * varies * cross)
            out.append(trace**2 / max(squares, ALIKE))
        return np.array(out)

    def mean(self, value: Numbers) -> Statistic:
        """Mean over clips of ``[..., clip]``."""
        whole = self.ratio(value, np.ones(len(self.truth)))
        return replace(whole, residuals=self.residuals(value) * self._parts)

    @property
    def _parts(self) -> Floats:
        """``[kind, 1]`` share of the clips."""
        return np.asarray(self.held.sum(-1, keepdims=True) / len(self.truth))

    def share(self, over: Numbers, under: Numbers) -> Statistic:
        """`ratio` of what lies between 0 and `under` (``[clip]``, 0 or 1), as a count of some of its clips does."""
        found, within = self.ratio(over, under), np.asarray(under, dtype=bool)
        whole = np.isin(np.asarray(over)[..., within], (0, 1)).all(-1)
        edge = (found.value <= ALIKE) | (found.value >= 1 - ALIKE)
        alike = (np.ptp(found.draws, axis=-1) <= ALIKE) & (whole | edge)
        size = np.full(np.shape(found.value), effective_sources(self.totals(under)))
        parts = Unmoved(*(np.asarray(a)[..., None] for a in (alike * 1.0, found.value, size)))
        return replace(found, unmoved=parts)

    def accuracy(self, value: Numbers) -> Statistic:
        """`mean` of ``[..., clip]`` between 0 and 1: a share of all clips, and of each label's."""
        whole = self.share(value, np.ones(len(self.truth)))
        assert whole.unmoved is not None
        parts, moved = whole.unmoved, 1 - whole.unmoved.weight
        for k in np.unique(self.kinds):
            own = self.share(value * (self.kinds == k), self.kinds == k).unmoved
            assert own is not None
            parts = parts.and_of(own.times(moved * (self.kinds == k).mean()))
        return replace(whole, unmoved=parts, residuals=self.residuals(value) * self._parts)

    def balanced(self, value: Numbers) -> Statistic:
        """Mean over the labels that occur of the mean over their clips of ``[..., clip]``, between 0 and 1."""
        kinds = [self.kinds == k for k in np.unique(self.kinds)]
        parts = [self.share(value * own, own) for own in kinds]
        unmoved = functools.reduce(Unmoved.and_of, (p.unmoved for p in parts if p.unmoved))
        return Statistic(
            np.mean([p.value for p in parts], axis=0),
            np.mean([p.draws for p in parts], axis=0),
            unmoved.times(1 / len(parts)),
            self.residuals(value) / len(parts),
        )

    def bounds(self, statistic: Statistic, alpha: float) -> tuple[float, float]:
        """Bounds of one configuration, each one-sided at `alpha`: expanded percentiles, and what these cannot see."""
        low, high = percentile_bounds(statistic.draws, self.fewest, alpha)
        if statistic.unmoved is None or not math.isfinite(low):
            return low, high
        value = float(statistic.value)
        below, above = map(float, statistic.unmoved.reach(alpha))
        if below:
            low = value - math.hypot(max(value - low, 0.0), below)
        if above:
            high = value + math.hypot(max(high - value, 0.0), above)
        return low, high

    def p_of_gain(self, gain: Statistic) -> float:
        """The smallest level at which the lower bound of a gain is not above zero: its one-sided p."""
        if (found := self._student(gain)) is not None:
            error, degrees = found
            return float(scipy.special.stdtr(degrees, -float(gain.value) / error))
        p = level_at_zero(gain.draws, self.fewest)
        if gain.unmoved is None or not gain.unmoved.weight.any() or self.bounds(gain, p)[0] > 0:
            return p
        low, high = p, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.bounds(gain, middle)[0] > 0 else (middle, high)
        return high

    def bounds_of_gain(self, gain: Statistic, alpha: float) -> tuple[float, float]:
        """Bounds of a difference of two configurations, each one-sided at `alpha`: Student's, of means.

        Of what is no mean, as AUROC, and of a gain that is alike in all sources they are those of `bounds`.
        """
        if (found := self._student(gain)) is None:
            return self.bounds(gain, alpha)
        error, degrees = found
        reach, value = -float(scipy.special.stdtrit(degrees, alpha)) * error, float(gain.value)
        most = math.inf if gain.unmoved is None else 1.0  # a difference of shares
        return max(value - reach, -most), min(value + reach, most)

    def _student(self, gain: Statistic) -> tuple[float, float] | None:
        """(Standard error, degrees of freedom) of a difference of means; None where sources do not tell them."""
        if gain.residuals is None or self.fewest < 2:
            return None
        variance = float((gain.residuals.sum(-2) ** 2).sum())
        parts = (gain.residuals**2).sum(-1)
        if not variance > ALIKE**2 or not parts.sum() > 0:
            return None
        return math.sqrt(variance), float(parts.sum() ** 2 / (parts**2 / self.degrees).sum())

    def gain(self, gain: Statistic, alpha: float) -> Estimate:
        """A difference of two configurations with its bounds, each one-sided at `alpha`, and its p."""
        low, high = map(finite_or_none, self.bounds_of_gain(gain, alpha))
        size = len(self.truth), self.sources
        return Estimate(float(gain.value), low, high, *size, self.p_of_gain(gain))

    def estimate(self, statistic: Statistic, level: float = 0.95) -> Estimate:
        """The statistic of one configuration with its interval, see `bounds`."""
        low, high = self.bounds(statistic, (1 - level) / 2)
        return Estimate(
            float(statistic.value),
            finite_or_none(low),
            finite_or_none(high),
            len(self.truth),
            self.sources,
        )


def clusters(
    truth: Ints,
    sources: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    kinds: Ints | None = None,
) -> Clusters:
    """Draws the resamples of a set of clips; `kinds` where they are not the right labels."""
    ids, index = np.unique(np.asarray(sources), return_inverse=True)
    kinds = np.asarray(truth if kinds is None else kinds)
    held = np.stack([np.bincount(index, kinds == k, len(ids)) > 0 for k in np.unique(kinds)])
    strata = np.unique(held, axis=1, return_inverse=True)[1].ravel()
    weights = _weights(strata.tobytes(), resamples, seed, strata.size * resamples)
    return Clusters(np.asarray(truth), index, weights, fewest_sources(kinds, sources), kinds)


def _weights(strata: bytes, resamples: int, seed: int, size: int) -> Ints:
    """`_drawn`, of which as much is kept as memory allows."""
    if size <= KEPT_BY_ALL:
        return _kept_by_all(strata, resamples, seed)
    return (_kept_by_two if size <= KEPT_BY_TWO else _drawn)(strata, resamples, seed)


def _drawn(strata: bytes, resamples: int, seed: int) -> Ints:
    """How often each source stands in each resample ``[resample, source]``; sources change places in their stratum."""
    of = np.frombuffer(strata, dtype=np.intp)
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(of)), dtype=np.uint8)
    for stratum in np.unique(of):
        member = np.flatnonzero(of == stratum)
        share, step = np.full(len(member), 1 / len(member)), max(1, AT_ONCE // len(member))
        for begin in range(0, resamples, step):  # one stream of numbers, however it is cut
            drawn = rng.multinomial(len(member), share, min(step, resamples - begin))
            kind = np.promote_types(weights.dtype, np.min_scalar_type(drawn.max()))
            weights = weights.astype(kind, copy=False)
            weights[begin : begin + step, member] = drawn
    weights.flags.writeable = False
    return weights


_kept_by_all = functools.lru_cache(8)(_drawn)  # slices, metrics and prompts ask for them again
_kept_by_two = functools.lru_cache(2)(_drawn)  # search half and holdout


def _exactly(gain: Floats) -> Floats:
    """Zero where two are equal but for rounding, which must not count as a gain."""
    return np.where(np.abs(gain) <= ALIKE, 0.0, gain)


def effective_sources(clips: Floats | Ints) -> float:
    """Of ``[source]`` clips: so many sources of equal size weigh alike (Kish 1965); 0 without clips.

    >>> effective_sources(np.array([3, 3, 0, 3])), effective_sources(np.array([8, 1, 1]))
    (3.0, 1.5151515151515151)
    """
    return float(clips.sum() ** 2 / max((clips**2).sum(), 1.0))


def exact_bounds(share: Floats, trials: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Bounds of a share of so many independent trials, each one-sided at `alpha` (Clopper and Pearson 1934).

    Args:
        share: ``[...]``, as is `trials`, which need not be whole (Korn and Graubard 1998).

    >>> low, high = exact_bounds(np.array(0.0), np.array(25.0), 0.025)
    >>> f"{low:.3f} {high:.3f}"
    '0.000 0.137'
    """
    right = np.clip(share, 0, 1) * trials
    with np.errstate(invalid="ignore"):
        low = scipy.special.betaincinv(right, trials - right + 1, alpha)
        high = scipy.special.betaincinv(right + 1, trials - right, 1 - alpha)
    return np.where(share <= ALIKE, 0.0, low), np.where(share >= 1 - ALIKE, 1.0, high)


def percentile_bounds(draws: Floats, sources: int, alpha: float) -> tuple[float, float]:
    """Bounds, each one-sided at `alpha`: percentiles at a level widened for few sources.

    The expanded percentile interval of Hesterberg (2015, arXiv 1411.5279). Infinite with fewer than two sources.
    """
    if sources < 2:
        return -math.inf, math.inf
    wider = math.sqrt(sources / (sources - 1)) * scipy.special.stdtrit(sources - 1, alpha)
    tail = float(scipy.special.ndtr(wider))
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
    narrower = float(scipy.special.ndtri(tail)) * math.sqrt((sources - 1) / sources)
    return float(scipy.special.stdtr(sources - 1, narrower))
