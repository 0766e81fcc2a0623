"""Metrics of a set of clips: plain numbers, and the same with all resamples. Pure numpy.

The first label is what is to be detected: a hit is it, decided on where it is right.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import among_labels, log_odds, odds_of_each, sigmoid
from evaluators.statistics.resampling import (
    ALIKE,
    AT_ONCE,
    Clusters,
    Statistic,
    Unmoved,
    effective_sources,
)
from evaluators.targets import Predictions, Targets

MOST_LEVELS, GROUPS = 12, 5  # a property of more numbers is sliced in groups
PAIRS_A_CLIP = 64  # of sources, from which on a resampled AUROC goes by clips: about where both ways take as long
Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]


def balanced_weights(truth: Ints) -> Floats:
    """Weight of each clip so that the weighted sum of hits is balanced accuracy; absent classes are ignored."""
    counts = np.bincount(truth)
    return np.asarray(1.0 / (np.count_nonzero(counts) * counts[truth]))


def balanced_accuracy(truth: Ints, right: Bools) -> float:
    """Mean over the classes that occur of the share decided right."""
    return float((balanced_weights(truth) * right).sum())


def auroc(truth: Ints, score: Floats) -> float:
    """Area under the ROC curve of the first label; ties count half. NaN when a class is missing."""
    positive = truth == 0
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if not n1 or not n0:
        return math.nan
    _, place, equal = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (equal.cumsum() - (equal - 1) / 2)[place]
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def auroc_of(truth: Ints, logp: Floats) -> float:
    """The same from ``[clip, label]`` nats; of more than two labels the mean over each against the rest."""
    if logp.shape[-1] == 2:
        return auroc(truth, log_odds(logp))
    return float(np.mean(list(aurocs(truth, logp).values())))


def aurocs(truth: Ints, logp: Floats) -> dict[int, float]:
    """Label -> area under the ROC curve of it against the rest, of the labels that occur."""
    odds = odds_of_each(logp)
    return {int(k): auroc((truth != k).astype(int), odds[:, k]) for k in np.unique(truth)}


def confusion(truth: Ints, decided: Ints, labels: int) -> Ints:
    """``[right label, label decided on]`` clips."""
    return np.bincount(truth * labels + decided, minlength=labels**2).reshape(labels, labels)


def nll(truth: Ints, logp: Floats) -> float:
    """Balanced mean of the negative log-probability of the right label, in nats, among the labels."""
    own = logp - np.logaddexp.reduce(logp, axis=-1, keepdims=True)
    return float(-(balanced_weights(truth) * own[np.arange(len(truth)), truth]).sum())


def rates(c: Clusters, decided: Ints) -> dict[str, Statistic]:
    """Accuracy, balanced accuracy, hit rate and false-alarm rate of ``[..., clip]`` decisions.

    A hit is the first label decided on where it is right, a false alarm where it is not.
    """
    right, first = decided == c.truth, decided == 0
    return {
        "accuracy": c.accuracy(right),
        "balanced_accuracy": c.balanced(right),
        "hit_rate": c.share(first & (c.truth == 0), c.truth == 0),
        "false_alarm_rate": c.share(first & (c.truth != 0), c.truth != 0),
    }


def auroc_statistic(c: Clusters, score: Floats, label: int = 0) -> Statistic:
    """Area under the ROC curve of one ``[clip]`` score of a label.

    Where no resample moves it, as where all pairs are in order, it is a share of as many pairs as have no source in
    common.
    """
    positive = c.truth == label
    n1 = np.bincount(c.index[positive], minlength=c.sources)
    n0 = np.bincount(c.index[~positive], minlength=c.sources)
    pairs = np.count_nonzero(n1) * np.count_nonzero(n0)
    won = _won_of_sources if pairs <= PAIRS_A_CLIP * len(score) else _won_of_clips
    with np.errstate(invalid="ignore", divide="ignore"):
        whole, draws = won(c, score, positive)
        draws = draws / (c.resampled(n1) * c.resampled(n0))
        value = np.asarray(whole / (n1.sum() * n0.sum()))
    alike = np.ptp(draws) <= ALIKE
    size = min(effective_sources(n1), effective_sources(n0))
    return Statistic(value, draws, Unmoved(*(np.array([v]) for v in (alike * 1.0, value, size))))


def _won_of_sources(c: Clusters, score: Floats, positive: Bools) -> tuple[Floats, Floats]:
    """(Pairs of clips in which the positive one is larger, equal ones counted half; the same of each resample).

    By pairs of sources, where these are few: how the clips of two compare is counted once; a resample is then a
    quadratic form in its weights.
    """
    wins = _wins(score[positive], c.index[positive], score[~positive], c.index[~positive])
    up, down = np.unique(c.index[positive]), np.unique(c.index[~positive])
    return wins.sum(), ((c.weights[:, up] @ wins) * c.weights[:, down]).sum(-1)


def _won_of_clips(c: Clusters, score: Floats, positive: Bools) -> tuple[Floats, Floats]:
    """`_won_of_sources` by clips in order, so that it costs as much as there are clips: whole numbers and halves."""
    order = np.argsort(score, kind="stable")
    _, first, size = np.unique(score[order], return_index=True, return_counts=True)
    up, own, last = positive[order], c.index[order], first + size - 1
    place = np.repeat(np.arange(len(first)), size)[up]  # of a positive clip among the values

    def won(times: Floats) -> Floats:
        """Of ``[resample, clip]`` times that each clip stands there."""
        below = np.cumsum(times * ~up, axis=-1)
        less = np.where(first > 0, below[:, first - 1], 0.0)
        return np.asarray((times[:, up] * ((less + below[:, last]) / 2)[:, place]).sum(-1))

    step = max(1, AT_ONCE // len(score))
    parts = (c.weights[at : at + step] for at in range(0, len(c.weights), step))
    draws = [won(part[:, own].astype(np.float64)) for part in parts]
    return won(np.ones((1, len(score))))[0], np.concatenate(draws)


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
        np.abs(c.resampled(gap)).sum(0) / c.resampled(count),
        c.share(np.abs(confidence - right), np.ones(len(right))).unmoved,  # 0 or 1 where this is
    )


def statistics_of(c: Clusters, said: Predictions) -> dict[str, Statistic]:
    """Every statistic of one configuration's predictions: rates, and what ranking and probability allow besides.

    Args:
        c: The resamples of its targets.
    """
    out = rates(c, said.decided)
    if said.ranking is not None:
        out["auroc"] = _ranking(c, said)
    if said.sure is not None:
        out |= _of_probability(c, said, said.sure)
    return out


def _of_probability(c: Clusters, said: Predictions, sure: Floats) -> dict[str, Statistic]:
    right, own = said.decided == c.truth, _own(said)
    out = {
        "ece": calibration_error(c, sure, right),
        "brier": c.share(_squares(said), np.ones(len(right))),
        "nll": c.mean(-np.log(np.maximum(own, np.finfo(np.float64).tiny))),
        "confidence": c.share(sure, np.ones(len(right))),
        "confidence_right": c.ratio(sure * right, right),
        "confidence_wrong": c.ratio(sure * ~right, ~right),
    }
    out["confidence_gap"] = out["confidence_right"] - out["confidence_wrong"]
    return out


def _own(said: Predictions) -> Floats:
    """``[clip]`` probability of the right label."""
    truth = said.targets.truth
    if said.distribution is not None:
        return np.asarray(said.distribution[np.arange(len(truth)), truth])
    assert said.probability is not None
    return np.where(truth == 0, said.probability, 1 - said.probability)


def _squares(said: Predictions) -> Floats:
    """``[clip]`` squared error of the probability (Brier 1950), halved: of two labels that of the first one."""
    if said.distribution is not None:
        right = np.eye(len(said.targets.labels))[said.targets.truth]
        return np.asarray(((said.distribution - right) ** 2).sum(axis=-1) / 2)
    assert said.probability is not None
    return np.asarray((said.probability - (said.targets.truth == 0)) ** 2)


def _ranking(c: Clusters, said: Predictions) -> Statistic:
    if said.ranking is None:
        raise ValueError(f"{said.name}: nothing ranks its clips, so it has no AUROC")
    if said.logp is None:
        return auroc_statistic(c, said.ranking)
    odds = odds_of_each(said.logp)
    parts = [auroc_statistic(c, odds[:, k], int(k)) for k in np.unique(c.truth)]
    return Statistic(
        np.asarray(np.mean([p.value for p in parts], axis=0)),
        np.asarray(np.mean([p.draws for p in parts], axis=0)),
    )


def grouped(values: NDArray[np.str_]) -> NDArray[np.str_]:
    """Numbers of more than `MOST_LEVELS` sizes, as measured ones are, in five groups of about equal size."""
    try:
        sizes = np.array([float(v) if v else math.nan for v in values])
    except ValueError:
        return values
    if len(np.unique(sizes[~np.isnan(sizes)])) <= MOST_LEVELS:
        return values
    edges = np.nanquantile(sizes, np.linspace(0, 1, GROUPS + 1), method="nearest")
    out = values.astype(object)
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (sizes >= low) & ((sizes < high) | (i == GROUPS - 1))
        out[inside] = f"{low:g} to {high:g}"
    return out.astype(str)


def levels(targets: Targets) -> dict[str, Bools]:
    """``[clip]`` masks of the durations (to 1 ms) and SNRs (to 5 dB) at which both classes occur, by name.

    Of more than `MOST_LEVELS` durations, as clips from life have, groups.
    """
    found: dict[str, Bools] = {}
    for name, unit, step in (("duration_ms", "ms", 1), ("snr_db", "dB", 5)):
        texts = targets.slices.get(name)
        if texts is None:
            continue
        values = np.array([float(text or math.nan) for text in texts])
        near = np.round(values / step) * step
        sign = "+g" if unit == "dB" else "g"
        named = grouped(np.array(["" if np.isnan(v) else f"{v + 0.0:{sign}}" for v in near]))
        for at in np.unique(near[~np.isnan(near)]):  # by size
            name = str(named[near == at][0])
            mask = named == name
            if len(np.unique(targets.truth[mask])) > 1:
                found[f"{name} {unit}"] = mask
    return found


def _worst_level(c: Clusters, said: Predictions) -> Statistic:
    """Balanced accuracy where it is worst, in each resample; without levels that of all clips."""
    right = said.right.astype(np.float64)
    found = [
        [
            c.share(right * (mask & (c.kinds == k)), mask & (c.kinds == k))
            for k in np.unique(c.kinds[mask])
        ]
        for mask in levels(said.targets).values()
    ]
    if not found:
        return c.balanced(said.right)
    values = np.stack([np.mean([one.value for one in pair], axis=0) for pair in found])
    draws = np.stack([np.mean([one.draws for one in pair], axis=0) for pair in found])
    lowest = np.where(np.isnan(draws).all(0), math.nan, np.nanmin(np.nan_to_num(draws, nan=2.0), 0))
    one, *others = (part.unmoved for part in found[int(values.argmin())])
    other = others[0] if len(others) == 1 else None  # of more labels a bound is not known
    unmoved = one.and_of(other).times(0.5) if one and other else None
    return Statistic(np.asarray(values.min(0)), lowest, unmoved)


def _likelihood(c: Clusters, said: Predictions) -> Statistic:
    """1 less the balanced mean negative log-probability of the right label, in nats.

    From the log-odds where these are what ranks: a probability of 37 nats is rounded to 0 or 1.
    """
    if said.probability is None:
        raise ValueError(f"{said.name}: it gives no probability, so it has no likelihood")
    odds = said.score
    if said.logp is not None:
        loss = -among_labels(said.logp)[np.arange(len(c.truth)), c.truth]
    elif odds is not None and np.allclose(sigmoid(odds), said.probability, atol=1e-9):
        loss = np.logaddexp(0, np.where(c.truth == 0, -odds, odds))
    else:
        loss = -np.log(np.maximum(_own(said), np.finfo(np.float64).tiny))
    parts = [c.ratio(loss * (c.kinds == k), c.kinds == k) for k in np.unique(c.kinds)]
    return Statistic(
        np.asarray(1 - np.mean([p.value for p in parts], axis=0)),
        np.asarray(1 - np.mean([p.draws for p in parts], axis=0)),
        residuals=-c.residuals(loss) / len(parts),
    )


METRICS: dict[str, Callable[[Clusters, Predictions], Statistic]] = {
    "balanced_accuracy": lambda c, said: c.balanced(said.right),
    "accuracy": lambda c, said: c.accuracy(said.right),
    "auroc": _ranking,
    "nll": _likelihood,
    "worst_slice": _worst_level,
}
