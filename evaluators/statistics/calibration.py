"""Thresholds and calibration, fitted on the search half of dev and applied elsewhere. Pure numpy and scipy."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from evaluators.classifier import Bias, Calibration, among_labels, log_odds
from evaluators.errors import UserError
from evaluators.statistics.metrics import Bools, Floats, Ints, balanced_weights

TEMPERATURES = (0.02, 50.0)
TURNS = 8  # over all labels; most end after one or two
SURE = 2.0
LEAST = 1e4  # nats below which an answer is as good as impossible


def fit_shift(truth: Ints, logp: Floats) -> Bias:
    """The bias of `Classifier.decide` with the best balanced accuracy, from ``[clip, label]`` nats: see `fit_bias`.

    Of more than two labels each has its own. They begin where all labels are as likely on average (batch calibration:
    Zhou et al. 2024), if that is better than none; then each in turn is moved to where balanced accuracy is best, if
    that gains more than `SURE` standard errors of the clips it changes. Without that bar 50 labels fit 400 clips 14
    points better than others like them, with it by none (tests/evaluators/statistics/test_calibration.py).
    """
    if logp.shape[-1] == 2:
        return fit_bias(truth, log_odds(logp))
    weight = balanced_weights(truth)
    nats = np.maximum(np.asarray(logp, dtype=np.float64), -LEAST)
    bias, right = np.zeros(nats.shape[1]), nats.argmax(axis=-1) == truth

    def gains(now: Bools, bar: float) -> bool:
        change = weight * (now.astype(np.float64) - right)
        return bool(change.sum() > bar * math.sqrt((change**2).sum()) + 1e-12)

    even, heard = -among_labels(nats).mean(axis=0), np.isin(np.arange(nats.shape[1]), truth)
    even = np.where(
        heard, even - even[heard].mean(), 0.0
    )  # of labels without a clip nothing is known
    if gains(now := (nats + even).argmax(axis=-1) == truth, 0.0):
        bias, right = even, now
    for _ in range(TURNS):
        moved = False
        for k in range(len(bias)):
            there = bias.copy()
            there[k] = _best_alone(truth, nats + bias, nats[:, k], k, weight)
            if gains(now := (nats + there).argmax(axis=-1) == truth, SURE):
                bias, right, moved = there, now, True
        if not moved:
            break
    return tuple((bias - bias.mean()).tolist()) if bias.any() else 0.0


def _best_alone(truth: Ints, shifted: Floats, own: Floats, k: int, weight: Floats) -> float:
    """The bias of one label with the best balanced accuracy while the `shifted` nats of the others stay."""
    rest = shifted.copy()
    rest[:, k] = -math.inf
    second = rest.argmax(axis=-1)
    margin = own - rest[np.arange(len(rest)), second]
    return fit_bias(np.where(truth == k, 0, 1), margin, second == truth, weight)


def fit_bias(
    truth: Ints, margin: Floats, others: Bools | None = None, weight: Floats | None = None
) -> float:
    """The shift of the log-odds with the best balanced accuracy; of equal ones the middle of the widest stretch.

    For dev clips only: what is fitted on them must be measured on others.

    Args:
        others: ``[clip]`` whether the label that is decided on where the first one is not is right; None: of two
            labels it is wherever the first one is not.
    """
    if others is None:
        others = truth != 0
    edges = np.unique(margin)
    cuts = np.concatenate([[edges[0] - 1.0], (edges[1:] + edges[:-1]) / 2, [edges[-1] + 1.0]])
    weight = balanced_weights(truth) if weight is None else weight
    order = np.argsort(margin)
    hits = np.concatenate([[0.0], np.cumsum((weight * (truth == 0))[order])])
    false = np.concatenate([[0.0], np.cumsum((weight * others)[order])])
    below = np.searchsorted(margin[order], cuts)
    score = (hits[-1] - hits[below]) + false[below]
    best = np.flatnonzero(score >= score.max() - 1e-12)
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    run = max(runs, key=lambda r: (cuts[r[-1]] - cuts[r[0]], -abs(cuts[r].mean())))
    return -float((cuts[run[0]] + cuts[run[-1]]) / 2)


def _minimize(loss: Callable[[Floats], tuple[float, Floats]], start: Floats, **more: Any) -> Any:
    """The least loss, from a function that gives its gradient too."""
    return scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", **more)


def fit_calibration(truth: Ints, margin: Floats) -> Calibration:
    """Temperature and bias with the lowest negative log-likelihood (Platt 1999; Guo et al. 2017). For dev clips only.

    Raises:
        UserError: A class is missing, or no temperature within 0.02 to 50 is best, as where the scores part the
            classes without a mistake or rank them the wrong way round.
    """
    sign = np.where(truth == 0, 1.0, -1.0)
    if len(np.unique(sign)) < 2:
        raise UserError("calibration needs dev clips of both classes")
    scale = max(float(np.std(margin)), 1e-9)  # so that the search starts in a good place
    x = np.asarray(margin, dtype=np.float64)

    def loss(theta: Floats) -> tuple[float, Floats]:
        slope = math.exp(-theta[0])
        z = sign * (x * slope + theta[1])
        wrong = -sign / (1 + np.exp(np.clip(z, -700, 700)))
        return float(np.logaddexp(0, -z).mean()), np.array(
            [-(wrong * x).mean() * slope, wrong.mean()]
        )

    bounds = tuple(math.log(t) for t in TEMPERATURES)
    found = _minimize(
        loss,
        np.array([min(max(math.log(scale), bounds[0]), bounds[1]), 0.0]),
        bounds=[bounds, (None, None)],
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000},
    )
    log_temperature, bias = (float(v) for v in found.x)
    parted = x[truth == 0].min() >= x[truth != 0].max()
    if parted or min(log_temperature - bounds[0], bounds[1] - log_temperature) < 1e-3:
        raise UserError(
            f"calibration: the best temperature lies beyond {math.exp(log_temperature):.3g}, so none"
            " fits: the scores part the dev clips without a mistake, or rank them the wrong"
            " way round"
        )
    return Calibration(math.exp(log_temperature), bias)


def fit_distribution(truth: Ints, logp: Floats) -> Calibration:
    """Temperature, and of more than two labels a bias for each, from ``[clip, label]`` nats that hold the decision's.

    Of two labels see `fit_calibration`. Balanced over the labels, as decisions are (Alexandari et al. 2020).

    Raises:
        UserError: A class is missing, or no temperature fits.
    """
    labels = logp.shape[-1]
    if labels == 2:
        return fit_calibration(truth, log_odds(logp))
    if len(np.unique(truth)) < labels:
        raise UserError("calibration needs dev clips of all classes")
    nats, weight = among_labels(np.maximum(logp, -LEAST)), balanced_weights(truth)
    each = np.eye(labels)[truth]

    def loss(theta: Floats) -> tuple[float, Floats]:
        slope = math.exp(-theta[0])
        told = among_labels(nats * slope + theta[1:])
        wrong = weight[:, None] * (np.exp(told) - each)  # gradient by what softmax takes
        return -float((weight * told[np.arange(len(truth)), truth]).sum()), np.concatenate(
            [[-(wrong * nats).sum() * slope], wrong.sum(axis=0)]
        )

    bounds = tuple(math.log(t) for t in TEMPERATURES)
    start = np.zeros(labels + 1)
    start[0] = min(max(math.log(max(float(nats.std()), 1e-9)), bounds[0]), bounds[1])
    limits = [bounds, *[(-LEAST, LEAST)] * labels]
    found = _minimize(loss, start, bounds=limits)
    log_temperature, bias = float(found.x[0]), found.x[1:]
    parted = ((nats * math.exp(-log_temperature) + bias).argmax(axis=-1) == truth).all()
    if parted or min(log_temperature - bounds[0], bounds[1] - log_temperature) < 1e-3:
        raise UserError(
            f"calibration: the best temperature lies beyond {math.exp(log_temperature):.3g}, so none fits: the scores"
            " part the dev clips without a mistake, or tell nothing of them"
        )
    return Calibration(math.exp(log_temperature), tuple((bias - bias.mean()).tolist()))


@dataclass(frozen=True)
class Reliability:
    """One bin of a reliability diagram: mean confidence, share right, clips."""

    confidence: float
    right: float
    clips: int


def reliability(confidence: Floats, right: Bools, bins: int = 10) -> list[Reliability]:
    """Bins of equal width over the confidence in what was decided; empty ones are left out."""
    cell = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        Reliability(
            float(confidence[cell == b].mean()),
            float(right[cell == b].mean()),
            int((cell == b).sum()),
        )
        for b in np.unique(cell)
    ]
