"""Psychometric curves: from which duration or SNR on speech is detected, with intervals over sources. Pure numpy.

The hit rate is fitted as ``g + (1 - g) (1 - l) F((x - m) / s)``: `g` is the measured false-alarm rate, so that a model
that says "speech" to everything detects nothing; `l` the share missed however easy the clip; `F` the logistic curve;
`x` log2 of the duration in ms, or the SNR in dB. A threshold is where detection corrected for guessing,
``(hit rate - g) / (1 - g)``, reaches a share: DT75 is the duration at which it is 75 %.
The fit is the posterior mode under weak priors in units of the range of `x`, as in psignifit (Schuett et al. 2016).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from evaluators.statistics.compare import resample
from evaluators.statistics.metrics import Floats
from evaluators.statistics.resampling import percentile_bounds
from evaluators.targets import Predictions

MIN_LEVELS = 3
MOST_GUESSED = 0.9  # false-alarm rate
LAPSES = 9  # the prior of the lapse rate is Beta(1, 10), by which none is likeliest
STEPS = 40  # of Fisher scoring; 15 are enough nearly always


@dataclass(frozen=True)
class Curve:
    """Fitted curves, one for each resample; arrays are ``[...]``.

    Attributes:
        location: In the unit of `x`, as is `scale`.
        guess: Measured false-alarm rate.
        lapse: Share missed however easy the clip.
    """

    location: Floats
    scale: Floats
    guess: Floats
    lapse: Floats

    def detection(self, x: Floats) -> Floats:
        """Share detected beyond guessing at ``[level]``: ``[..., level]``."""
        z = (np.asarray(x) - self.location[..., None]) / self.scale[..., None]
        return np.asarray((1 - self.lapse[..., None]) / (1 + np.exp(-np.clip(z, -50, 50))))

    def hit_rate(self, x: Floats) -> Floats:
        """Hit rate at ``[level]``: ``[..., level]``."""
        g = self.guess[..., None]
        return np.asarray(g + (1 - g) * self.detection(x))

    def threshold(self, share: float) -> Floats:
        """``[...]`` `x` at which detection beyond guessing is `share`; inf where lapses keep it below."""
        f = share / (1 - self.lapse)
        with np.errstate(divide="ignore", invalid="ignore"):
            x = self.location + self.scale * np.log(f / (1 - f))
        return np.asarray(np.where(f < 1, x, np.inf))


@dataclass(frozen=True)
class Threshold:
    """A threshold with its interval, in ms or dB.

    `censored` holds, for value, low and high, ``"<="`` or ``">="`` where the number is only the end of what was
    measured and the truth lies at it or beyond, else ``""``.
    """

    value: float
    low: float
    high: float
    censored: tuple[str, str, str]

    def text(self, unit: str) -> str:
        """As in ``310 ms [240, >= 1000]``."""
        shown = [
            f"{sign} {number:.0f}".strip()
            for sign, number in zip(self.censored, (self.value, self.low, self.high), strict=True)
        ]
        return f"{shown[0]} {unit} [{shown[1]}, {shown[2]}]"


def fit(x: Floats, hits: Floats, trials: Floats, guess: Floats) -> Curve:
    """Fits curves to counts.

    Args:
        x: ``[level]`` rising.
        hits: ``[..., level]``, likewise `trials`; a level without trials counts for nothing.
        guess: ``[...]`` false-alarm rate.
    """
    middle, half = (x[0] + x[-1]) / 2, (x[-1] - x[0]) / 2
    z = (x - middle) / half
    shape = np.shape(guess)
    hits, trials = (np.reshape(a, (-1, len(x))) for a in (hits, trials))
    g = np.clip(np.reshape(guess, (-1, 1)), 0.0, 0.98)
    mean = np.array([0.0, math.log(0.4), -4.0])  # location, log scale, logit of the lapse
    spread = np.array([3.0, 2.0, 4.0])
    theta = np.tile(mean, (len(hits), 1))
    damping = np.full(len(hits), 1e-3)

    def model(theta: Floats) -> tuple[Floats, Floats]:
        """Hit rates ``[fit, level]`` and their derivatives ``[fit, level, parameter]``."""
        scale = np.exp(theta[:, 1:2])
        u = (z - theta[:, :1]) / scale
        f = 1 / (1 + np.exp(-np.clip(u, -30, 30)))
        keep = 1 / (1 + np.exp(theta[:, 2:]))  # 1 - lapse
        slope = (1 - g) * keep * f * (1 - f)
        p = g + (1 - g) * keep * f
        d = np.stack([-slope / scale, -slope * u, -(1 - g) * f * keep * (1 - keep)], axis=-1)
        return np.clip(p, 1e-9, 1 - 1e-9), d

    def loss(theta: Floats) -> Floats:
        p, _ = model(theta)
        fitted = -(hits * np.log(p) + (trials - hits) * np.log1p(-p)).sum(-1)
        fitted = fitted + LAPSES * np.logaddexp(0, theta[:, 2])
        return np.asarray(fitted + 0.5 * (((theta - mean) / spread) ** 2).sum(-1))

    best = loss(theta)
    for _ in range(STEPS):
        p, d = model(theta)
        gradient = ((trials * p - hits) / (p * (1 - p)))[..., None] * d
        gradient = gradient.sum(1) + (theta - mean) / spread**2
        lapse = 1 / (1 + np.exp(-theta[:, 2]))
        gradient[:, 2] += LAPSES * lapse
        weight = trials / (p * (1 - p))
        curvature = np.einsum("fl,fli,flj->fij", weight, d, d) + np.diag(1 / spread**2)
        curvature[:, 2, 2] += LAPSES * lapse * (1 - lapse)
        diagonal = np.einsum("fii->fi", curvature) * damping[:, None]
        curvature = curvature + diagonal[:, None, :] * np.eye(3)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        tried = theta - np.clip(step, -2, 2)
        value = loss(tried)
        better = value <= best
        done = np.abs(step).max() < 1e-7
        theta = np.where(better[:, None], tried, theta)
        best = np.where(better, value, best)
        damping = np.where(better, damping / 5, damping * 10)
        if done:
            break
    return Curve(
        np.reshape(middle + half * theta[:, 0], shape),
        np.reshape(half * np.exp(theta[:, 1]), shape),
        np.reshape(guess, shape),
        np.reshape(1 / (1 + np.exp(-theta[:, 2])), shape),
    )


@dataclass(frozen=True)
class Psychometric:
    """The curve of one configuration over one property of clips.

    Attributes:
        unit: ``ms`` or ``dB``.
        levels: ``[level]`` of clips of the first label, in `unit`, rising.
        hits: ``[level]`` clips of them answered right, of `trials`.
        curve: The fit; `draws` the fits of the resamples.
        thresholds: By share: .5, .75, .9.
    """

    unit: str
    levels: Floats
    hits: Floats
    trials: Floats
    curve: Curve
    draws: Curve
    sources: int
    thresholds: dict[float, Threshold]

    def axis(self, level: Floats) -> Floats:
        """`x` of the curve at ``[level]`` in `unit`."""
        return axis(self.unit, level)

    def band(self, level: Floats, alpha: float = 0.025) -> tuple[Floats, Floats]:
        """Bounds of the hit rate at ``[level]``."""
        rate = self.draws.hit_rate(self.axis(level))
        bounds = [percentile_bounds(rate[:, i], self.sources, alpha) for i in range(rate.shape[1])]
        return np.array([b[0] for b in bounds]), np.array([b[1] for b in bounds])


def axis(unit: str, level: Floats) -> Floats:
    """`x` of a level: log2 of ms, dB as they are."""
    return np.asarray(np.log2(level) if unit == "ms" else level, dtype=np.float64)


def psychometric(
    unit: str,
    level: Floats,
    said: Predictions,
    *,
    shares: Sequence[float] = (0.5, 0.75, 0.9),
    resamples: int = 2000,
    seed: int = 0,
) -> Psychometric | None:
    """Fits the hit rate over a property of clips and resamples the whole fit over sources, false-alarm rate included.

    Args:
        level: ``[clip]`` in `unit`; NaN (a clip without SNR) is left out.
        said: Decisions; label 0 is to be detected.

    Returns:
        None where fewer than three levels hold clips of the first label, there are no others, or nine tenths of them
        are answered with the first label, which leaves nothing to tell detection by.
    """
    known = ~np.isnan(level)
    truth, decided = said.targets.truth, said.decided
    positive = known & (truth == 0)
    levels = np.unique(level[positive])
    if len(levels) < MIN_LEVELS or not (known & (truth != 0)).any():
        return None
    c = resample(said.targets.take(known), resamples=resamples, seed=seed)
    level, truth, decided = level[known], truth[known], decided[known]
    at = (level == levels[:, None]) & (truth == 0)  # [level, clip]
    hit, trial = c.totals(at & (decided == 0)), c.totals(at)  # [level, source]
    wrong, other = c.totals((truth != 0) & (decided == 0)), c.totals(truth != 0)
    if wrong.sum() > MOST_GUESSED * other.sum():
        return None
    x = axis(unit, levels)
    curve = fit(x, hit.sum(-1), trial.sum(-1), np.asarray(wrong.sum() / other.sum()))
    draws = fit(
        x, c.resampled(hit).T, c.resampled(trial).T, c.resampled(wrong) / c.resampled(other)
    )
    thresholds = {
        share: _threshold(unit, x, float(curve.threshold(share)), draws.threshold(share), c.fewest)
        for share in shares
    }
    return Psychometric(
        unit, levels, hit.sum(-1), trial.sum(-1), curve, draws, c.fewest, thresholds
    )


def _threshold(unit: str, x: Floats, value: float, draws: Floats, sources: int) -> Threshold:
    """Student's interval on the scale of `x` by the spread of the resamples, their bias taken off.

    It keeps its level with few sources where percentiles do not (`tests/bench_coverage.py`).
    """
    ends, beyond = (float(x[0]), float(x[-1])), (x[-1] - x[0]) / 2
    held = np.clip(draws, ends[0] - beyond, ends[1] + beyond)
    middle = float(np.clip(value, ends[0] - beyond, ends[1] + beyond))
    found = [value, -math.inf, math.inf]
    if sources > 1:
        spread = held.std() * math.sqrt(sources / (sources - 1))
        reach = float(scipy.special.stdtrit(sources - 1, 0.975) * spread)
        centre = 2 * middle - float(held.mean())
        found = [value, min(middle, centre - reach), max(middle, centre + reach)]
    signs = tuple("<=" if v <= ends[0] else ">=" if v >= ends[1] else "" for v in found)
    held_at = [min(max(v, ends[0]), ends[1]) for v in found]
    if unit == "ms":
        held_at = [2**v for v in held_at]
    return Threshold(held_at[0], held_at[1], held_at[2], (signs[0], signs[1], signs[2]))
