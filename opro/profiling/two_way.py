"""Statistics over wordings: each interval knows that other wordings and other recordings might have been drawn.

Wordings and sources are resampled together, each with replacement and independently of the other: the pigeonhole
bootstrap (Owen 2007, Annals of Applied Statistics 1(2), 386-411), which for means is a little wider than need be.
A measured quantile far from the middle lies too far out, for it holds the noise of the clips beside what wordings do,
and its resamples lie further out by about as much again: each interval is moved back by twice that (how often it then
holds the truth: `python tests/bench_profile.py --coverage 200`). Pure numpy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import decide, log_odds, odds_of_each
from evaluators.files import finite_or_none
from evaluators.statistics.calibration import fit_shift
from evaluators.statistics.compare import resample
from evaluators.statistics.metrics import auroc_statistic, balanced_accuracy, rates
from evaluators.statistics.resampling import Clusters, Statistic, percentile_bounds
from evaluators.targets import Targets

RESAMPLES = 2000
ALPHA = 0.025  # of each bound
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DRAWN = tuple(percent / 100 for percent in range(5, 100, 5))  # of what is drawn
AT_ONCE = 2**24  # numbers of a block of resamples
OUTCOMES = ("balanced_accuracy", "auroc", "bias", "hit_rate", "false_alarm_rate")

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Value = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class TwoWay:
    """Resamples of wordings and sources.

    Attributes:
        sources: Of the clips.
        times: ``[resample, wording]`` how often each wording is drawn, within its group.
    """

    sources: Clusters
    times: Ints

    @classmethod
    def of(
        cls,
        targets: Targets,
        groups: Sequence[str],
        *,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> "TwoWay":
        """The resamples of clips and of wordings, of which each belongs to a group; equal for equal arguments."""
        names = np.asarray(groups)
        times = np.zeros((resamples, len(names)), dtype=np.int64)
        rng = np.random.default_rng([seed, len(names)])
        for name in np.unique(names):
            own = np.flatnonzero(names == name)
            times[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), resamples)
        return cls(resample(targets, resamples=resamples, seed=seed), times)

    def interval(self, statistic: Statistic, least: float = -np.inf, most: float = np.inf) -> Value:
        """{value, low, high} of one number that lies between `least` and `most`, 95 %."""
        value = float(statistic.value)
        if not np.isfinite(value):
            return {"value": None, "low": None, "high": None}
        moved = statistic.draws - 2 * (np.nanmedian(statistic.draws) - value)
        low, high = percentile_bounds(moved, self.sources.fewest, ALPHA)
        if np.isfinite(low):  # there are sources enough for an interval
            low, high = np.clip([low, high], least, most)
        return {
            "value": finite_or_none(value),
            "low": finite_or_none(float(low)),
            "high": finite_or_none(float(high)),
        }

    def mean(self, each: Statistic, rows: Ints) -> Statistic:
        """Mean over some wordings of ``[wording]``."""
        times = self.times[:, rows].T
        drawn = (each.draws[rows] * times).sum(0) / times.sum(0)
        return Statistic(np.asarray(each.value[rows].mean()), drawn)

    def spread(self, each: Statistic, rows: Ints) -> Statistic:
        """Standard deviation over some wordings of ``[wording]``."""
        times, middle = self.times[:, rows].T, self.mean(each, rows)
        square = ((each.draws[rows] - middle.draws) ** 2 * times).sum(0) / times.sum(0)
        return Statistic(np.asarray(each.value[rows].std()), np.sqrt(square))

    def quantiles(
        self, each: Statistic, rows: Ints, shares: Sequence[float]
    ) -> Iterator[Statistic]:
        """Quantiles over some wordings of ``[wording]``, linear between two of them, as numpy's are."""
        draws, times = each.draws[rows], self.times[:, rows].T
        order = np.argsort(draws, axis=0)
        passed = np.cumsum(np.take_along_axis(times, order, axis=0), axis=0)
        ordered = np.take_along_axis(draws, order, axis=0)
        for share in shares:
            at = (len(rows) - 1) * share
            ends = []
            for place in (int(np.floor(at)), int(np.ceil(at))):
                first = (passed > place).argmax(axis=0)
                ends.append(np.take_along_axis(ordered, first[None], axis=0)[0])
            drawn = ends[0] + (at - np.floor(at)) * (ends[1] - ends[0])
            yield Statistic(np.asarray(np.quantile(each.value[rows], share)), drawn)

    def consistency(self, decided: Ints, rows: Ints, labels: int) -> Statistic:
        """How often two different wordings of some give a clip the same answer; clips of each label weigh alike.

        Args:
            decided: ``[wording, clip]`` index of the label decided on.
        """
        said = decided[rows][:, :, None] == np.arange(labels)  # [wording, clip, label]
        flat = said.reshape(len(rows), -1).astype(np.float64)
        shape = said.shape[1:]

        def same(times: Floats) -> Floats:
            """``[..., clip]`` share of the pairs of different wordings, each so often there."""
            twice = (times**2).sum(-1)[:, None]
            votes = (times @ flat).reshape(-1, *shape)
            return np.asarray(((votes**2).sum(-1) - twice) / (times.sum(-1)[:, None] ** 2 - twice))

        c = self.sources
        value = float(np.asarray(c.balanced(same(np.ones((1, len(rows))))[0]).value))
        drawn = []
        step = max(1, AT_ONCE // flat.shape[1])
        for begin in range(0, len(self.times), step):
            part = slice(begin, begin + step)
            agreed = same(self.times[part][:, rows].astype(np.float64))
            drawn.append(_balanced_draws(c, agreed, part))
        return Statistic(np.asarray(value), np.concatenate(drawn))


def _balanced_draws(c: Clusters, value: Floats, part: slice) -> Floats:
    """``[resample]`` balanced means of ``[resample, clip]`` values, each under its own weights of the sources."""
    weights = c.weights[part][:, c.index]
    means = []
    for kind in np.unique(c.kinds):
        own = weights * (c.kinds == kind)
        means.append((own * value).sum(-1) / own.sum(-1))
    return np.asarray(np.mean(means, axis=0))


@dataclass(frozen=True, eq=False)
class Answers:
    """What a checkpoint said with each wording.

    Attributes:
        targets: The clips.
        logp: ``[wording, clip, label]`` nats.
    """

    targets: Targets
    logp: Floats

    @cached_property
    def decided(self) -> Ints:
        """``[wording, clip]`` index of the likeliest label."""
        return decide(self.logp)

    @cached_property
    def tuned(self) -> Floats:
        """``[wording]`` balanced accuracy with the best threshold of each, fitted on the same clips as in a search."""
        truth = self.targets.truth
        out = []
        for logp in self.logp:
            right = decide(logp, fit_shift(truth, logp)) == truth
            out.append(balanced_accuracy(self.targets.kinds, right))
        return np.array(out)

    def outcomes(self, c: Clusters) -> dict[str, Statistic]:
        """``[wording]`` each of `OUTCOMES`, with every resample of the sources.

        Bias is how much more often than one in the number of labels the first one is said, clips of each label weighing
        alike: 0.2 is "yes" to 70 % of balanced clips.
        """
        found = rates(c, self.decided)
        said = c.balanced(self.decided == 0)
        chance = 1 / len(self.targets.labels)
        areas = [_auroc(c, logp) for logp in self.logp]
        out = {
            "balanced_accuracy": found["balanced_accuracy"],
            "auroc": Statistic(
                np.array([a.value for a in areas]), np.stack([a.draws for a in areas])
            ),
            "bias": Statistic(said.value - chance, said.draws - chance),
            "hit_rate": found["hit_rate"],
            "false_alarm_rate": found["false_alarm_rate"],
        }
        return {name: out[name] for name in OUTCOMES}


def _auroc(c: Clusters, logp: Floats) -> Statistic:
    """Area under the ROC curve of ``[clip, label]`` nats; of more labels the mean over each against the rest."""
    if logp.shape[-1] == 2:
        return auroc_statistic(c, log_odds(logp))
    odds = odds_of_each(logp)
    parts = [auroc_statistic(c, odds[:, k], int(k)) for k in np.unique(c.truth)]
    return Statistic(
        np.asarray(np.mean([p.value for p in parts], axis=0)),
        np.asarray(np.mean([p.draws for p in parts], axis=0)),
    )


def noise(each: Statistic, rows: Ints) -> float:
    """Standard deviation over wordings by the sampling of sources alone: what equal wordings would differ by."""
    apart = each.draws[rows] - each.draws[rows].mean(axis=0)
    return float(np.sqrt(np.nanmean(np.nanvar(apart, axis=1))))


def summary(
    t: TwoWay, answers: Answers, outcomes: Mapping[str, Statistic], rows: Ints
) -> dict[str, Statistic]:
    """Every number that is told of some wordings, by name: ``balanced_accuracy_q50``, ``auroc_sd``, ``consistency``."""
    out: dict[str, Statistic] = {}
    for name in OUTCOMES[:3]:
        shares = DRAWN if name == OUTCOMES[0] else QUANTILES
        for share, one in zip(shares, t.quantiles(outcomes[name], rows, shares), strict=True):
            out[f"{name}_q{round(100 * share)}"] = one
        out[f"{name}_mean"] = t.mean(outcomes[name], rows)
        out[f"{name}_sd"] = t.spread(outcomes[name], rows)
    out["consistency"] = t.consistency(answers.decided, rows, len(answers.targets.labels))
    return out


def possible(name: str) -> tuple[float, float]:
    """The least and the most that a number of `summary` can be.

    >>> possible("auroc_q50"), possible("bias_q5"), possible("bias_sd")
    ((0.0, 1.0), (-1.0, 1.0), (0.0, 1.0))
    """
    return (-1.0 if name.startswith("bias") and not name.endswith("_sd") else 0.0), 1.0
