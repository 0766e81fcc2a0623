"""The one comparison: value, bounds and p of every difference that this project prints come from here."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy

from evaluators.statistics.metrics import METRICS
from evaluators.statistics.resampling import (
    ALIKE,
    RESAMPLES,
    Clusters,
    Estimate,
    Floats,
    Statistic,
    clusters,
)
from evaluators.targets import Predictions, Scores, Targets

ALPHA = 0.025  # one-sided
POWER = 0.8
MOST_RESAMPLES = 10 * RESAMPLES


def resample(targets: Targets, *, resamples: int = RESAMPLES, seed: int = 0) -> Clusters:
    """The resamples of a clip set; equal for equal targets and seed."""
    sources = targets.sources.tolist()
    return clusters(targets.truth, sources, resamples=resamples, seed=seed, kinds=targets.kinds)


def estimate(
    said: Predictions, metric: str = "balanced_accuracy", *, seed: int = 0, level: float = 0.95
) -> Estimate:
    """A metric of some predictions with its interval over sources.

    Args:
        metric: A key of `evaluators.statistics.metrics.METRICS`.
    """
    c = resample(said.targets, seed=seed)
    return c.estimate(METRICS[metric](c, said), level)


def difference(
    c: Clusters, a: Statistic, b: Statistic, *, alpha: float = ALPHA, two_sided: bool = False
) -> Estimate:
    """``a - b`` on the same resamples. Each bound is one-sided at `alpha`.

    `p` is one-sided, for a > b: below `alpha` exactly where the lower bound is above zero. `two_sided` asks for a
    difference in either direction: twice the smaller of the two.
    """
    found = c.gain(a - b, alpha)
    if two_sided and found.p is not None:
        return replace(found, p=min(1.0, 2 * min(found.p, c.p_of_gain(b - a))))
    return found


def compare(
    a: Predictions,
    b: Predictions,
    metric: str = "balanced_accuracy",
    *,
    seed: int = 0,
    alpha: float = ALPHA,
) -> Estimate:
    """How much better `a` is than `b` on the same clips."""
    c = resample(a.targets, seed=seed)
    return difference(c, METRICS[metric](c, a), METRICS[metric](c, b), alpha=alpha)


def compare_by_percentiles(
    a: Predictions, b: Predictions, metric: str = "balanced_accuracy", *, seed: int = 0
) -> Estimate:
    """`compare` as it was until means had Student's bounds; without a p."""
    c = resample(a.targets, seed=seed)
    return c.estimate(METRICS[metric](c, a) - METRICS[metric](c, b))


def compare_many(
    rivals: Sequence[Predictions],
    reference: Predictions,
    metric: str = "balanced_accuracy",
    *,
    seed: int = 0,
    alpha: float = ALPHA,
) -> list[Estimate]:
    """How much better each rival is than the reference, corrected for their number by Holm's step-down.

    The strongest rival's bound is at the strictest level, ``alpha / number of rivals``. Of those that must pass before
    it and do not, none passes: so the corrected p is below `alpha` only where the bound shown is above zero.

    Returns:
        In the order of the rivals; `p` is corrected.
    """
    if not rivals:
        return []
    c = resample(reference.targets, resamples=resamples_at(alpha), seed=seed)
    base = METRICS[metric](c, reference)
    gains = [METRICS[metric](c, one) - base for one in rivals]
    return step_down(c, gains, alpha=alpha)


def resamples_at(alpha: float, count: int = RESAMPLES) -> int:
    """Resamples that leave as many beyond a bound at this level as `count` at `ALPHA`; `MOST_RESAMPLES` at most."""
    return min(MOST_RESAMPLES, count * math.ceil(max(1.0, ALPHA / alpha)))


def step_down(c: Clusters, gains: Sequence[Statistic], *, alpha: float = ALPHA) -> list[Estimate]:
    """Gains over one reference with Holm's correction: bounds at each one's level, and corrected p."""
    p = [c.p_of_gain(gain) for gain in gains]
    corrected = holm(p)
    order = sorted(range(len(p)), key=lambda i: p[i])
    return [
        replace(c.gain(gain, alpha / (len(p) - order.index(i))), p=corrected[i])
        for i, gain in enumerate(gains)
    ]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the given order."""
    adjusted, running = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def detectable(
    c: Clusters, gain: Statistic, *, alpha: float = ALPHA, power: float = POWER
) -> float | None:
    """The smallest true difference that as many sources as these, as unlike as these, would mostly show.

    So many standard errors as lie between a difference whose bound is zero in half of all data, and one in `power` of
    them (Bloom 1995, Evaluation Review 19), by the spread of the resamples.

    Returns:
        None with fewer than two sources, and where no resample moves the difference.
    """
    spread, n = float(np.std(gain.draws)), c.fewest
    if n < 2 or not spread > ALIKE:
        return None
    errors = float(scipy.special.stdtrit(n - 1, 1 - alpha) + scipy.special.stdtrit(n - 1, power))
    return errors * spread * math.sqrt(n / (n - 1))


def compare_pairs(
    said: Sequence[Predictions],
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    metric: str = "balanced_accuracy",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Paired differences of a metric, a - b, on the same clips.

    Args:
        pairs: Indices; None for all.
        metric: A key of `evaluators.statistics.metrics.METRICS`.

    Returns:
        {a, b, difference, low, high, p, p_holm, detectable} each: 95 % interval over sources, two-sided p of the same
        interval, Holm over the pairs, see `detectable`, at the level that Holm asks of the first.
    """
    pairs = list(itertools.combinations(range(len(said)), 2)) if pairs is None else list(pairs)
    if not pairs:
        return []
    first = said[0].targets
    for other in said[1:]:
        assert other.targets.clip_ids == first.clip_ids
        assert (other.targets.truth == first.truth).all()
    c = resample(first, resamples=resamples, seed=seed)
    values: Sequence[Statistic] | Statistic
    if metric == "balanced_accuracy":  # of all at once
        values = c.balanced(np.stack([one.right for one in said]).astype(np.float64))
    else:
        values = [METRICS[metric](c, one) for one in said]
    return _family([_Pair(said[a].name, said[b].name, c, values[a], values[b]) for a, b in pairs])


def mean_of(c: Clusters, value: Floats) -> Statistic:
    """Mean of ``[..., sample]`` scores; between 0 and 1 it is a share, which has bounds where all are alike."""
    inside = bool(((value >= 0) & (value <= 1)).all())
    return c.accuracy(value) if inside else c.mean(value)


def resample_scores(scores: Scores, *, resamples: int = RESAMPLES, seed: int = 0) -> Clusters:
    """The resamples of some samples: of their sources, all of one kind."""
    return _drawn(tuple(scores.sources.tolist()), resamples, seed)


@functools.lru_cache(maxsize=1)  # logs of one task and their pairs share it; it may take 400 MB
def _drawn(sources: tuple[str, ...], resamples: int, seed: int) -> Clusters:
    kind = np.zeros(len(sources), dtype=np.int64)
    return clusters(kind, sources, resamples=resamples, seed=seed)


def compare_scores(
    pairs: Sequence[tuple[Scores, Scores]], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """Paired differences of mean scores, a - b; the two of a pair hold the same samples in the same order.

    Returns:
        As `compare_pairs`; Holm is over all pairs.
    """
    made = []
    for a, b in pairs:
        assert a.ids == b.ids
        assert (a.sources == b.sources).all()
        c = resample_scores(a, resamples=resamples, seed=seed)
        both = mean_of(c, np.stack([a.value, b.value]))
        made.append(_Pair(a.name, b.name, c, both[0], both[1]))
    return _family(made)


@dataclass(frozen=True, eq=False)
class _Pair:
    a: str
    b: str
    clusters: Clusters
    of_a: Statistic
    of_b: Statistic


def _family(pairs: Sequence[_Pair]) -> list[dict[str, Any]]:
    """The differences of all pairs, which share one correction."""
    gains = [difference(p.clusters, p.of_a, p.of_b, two_sided=True) for p in pairs]
    corrected = holm([gain.p or 0.0 for gain in gains])
    alpha = ALPHA / max(len(pairs), 1)
    return [
        {
            "a": pair.a,
            "b": pair.b,
            "difference": gain.value,
            "low": gain.low,
            "high": gain.high,
            "p": gain.p,
            "p_holm": adjusted,
            "detectable": detectable(pair.clusters, pair.of_a - pair.of_b, alpha=alpha),
        }
        for pair, gain, adjusted in zip(pairs, gains, corrected, strict=True)
    ]
