"""Where balanced accuracy by duration or SNR crosses a share: the published definition, beside the fitted one.

As in the study that this project continues: balanced accuracy of each level, joined by straight lines over the
logarithm of the duration, or over the SNR in dB; no curve is fitted. It depends on the levels that were measured, may
cross a share never or several times, and a bias towards one answer moves it, which `psychometrics` takes off.
"""

from dataclasses import dataclass, replace

import numpy as np

from evaluators.statistics.compare import resample
from evaluators.statistics.metrics import Floats
from evaluators.statistics.psychometrics import axis
from evaluators.statistics.resampling import ALIKE, percentile_bounds
from evaluators.targets import Predictions

MIN_LEVELS = 2
CURVE_RESAMPLES = 2000


@dataclass(frozen=True)
class Crossing:
    """Where lines between levels cross a share.

    Attributes:
        unit: ``ms`` or ``dB``.
        at: Every crossing in `unit`, rising.
        upwards: Whether each is one from below.
        ends: The first and the last level.
        starts_above: Whether the share is reached at the first level.
        low, high: 95 % interval over sources where it is crossed once, from below; else None, as with one source.
        censored: Of low and high, ``"<="`` or ``">="`` where the truth lies at the end of what was measured or beyond.
    """

    unit: str
    at: tuple[float, ...]
    upwards: tuple[bool, ...]
    ends: tuple[float, float]
    starts_above: bool
    low: float | None = None
    high: float | None = None
    censored: tuple[str, str] = ("", "")

    @property
    def value(self) -> float | None:
        """The level where the share is reached, None unless it is crossed once, from below."""
        return self.at[0] if self.upwards == (True,) else None

    def text(self) -> str:
        """As in ``310 ms [240, >= 1000]``, or in words why there is no such level."""
        first, last = (f"{round(end)}" for end in self.ends)
        if not self.at:
            if self.starts_above:
                return f"never crossed: above at every level from {first} to {last} {self.unit}"
            return f"never crossed: below at every level from {first} to {last} {self.unit}"
        if self.value is not None:
            bounds = (
                "?" if bound is None else f"{sign} {round(bound)}".strip()
                for sign, bound in zip(self.censored, (self.low, self.high), strict=True)
            )
            return f"{round(self.value)} {self.unit} [{', '.join(bounds)}]"
        ways = [
            f"{'up' if up else 'down'} at {round(level)}"
            for level, up in zip(self.at, self.upwards, strict=True)
        ]
        times = "once" if len(ways) == 1 else f"{len(ways)} times"
        return f"crossed {times}: {', '.join(ways)} {self.unit}"


def crossings(
    unit: str, level: Floats, said: Predictions, share: float, *, seed: int = 0
) -> Crossing | None:
    """Where balanced accuracy by level crosses `share`, with its interval over sources.

    Args:
        level: ``[clip]`` in `unit`; NaN (a clip without SNR) is left out, as is a level that lacks a label.

    Returns:
        None where fewer than two levels hold clips of all labels.
    """
    known = ~np.isnan(level)
    if not known.any():
        return None
    c = resample(said.targets.take(known), resamples=CURVE_RESAMPLES, seed=seed)
    level, right = level[known], said.right[known]
    kinds = np.unique(c.truth)
    levels = np.array(
        [v for v in np.unique(level) if len(np.unique(c.truth[level == v])) == len(kinds)]
    )
    if len(levels) < MIN_LEVELS or len(kinds) < 2:
        return None
    x, at = axis(unit, levels), level == levels[:, None]  # [level, clip]
    parts = [c.ratio(at & (c.truth == k) & right, at & (c.truth == k)) for k in kinds]
    found = _crossings(x, np.mean([p.value for p in parts], axis=0), share)
    starts_above = bool(np.mean([p.value[0] for p in parts]) >= share - ALIKE)
    places = tuple(float(2**place if unit == "ms" else place) for place, _ in found)
    out = Crossing(
        unit,
        places,
        tuple(up for _, up in found),
        (float(levels[0]), float(levels[-1])),
        starts_above,
    )
    if out.value is None or c.fewest < 2:
        return out
    draws = np.mean([p.draws for p in parts], axis=0).T  # [resample, level]
    held = np.array([_first_rise(x, y, share) for y in draws])
    bounds = percentile_bounds(held, c.fewest, 0.025)
    signs = ["<=" if b <= x[0] else ">=" if b >= x[-1] else "" for b in bounds]
    low, high = (float(2**b if unit == "ms" else b) for b in bounds)
    return replace(out, low=low, high=high, censored=(signs[0], signs[1]))


def _crossings(x: Floats, y: Floats, share: float) -> list[tuple[float, bool]]:
    """(place, whether from below) of each crossing of the lines through ``[level]`` points; at the share is above."""
    above = y >= share - ALIKE
    return [
        (float(x[i] + (share - y[i]) / (y[i + 1] - y[i]) * (x[i + 1] - x[i])), bool(above[i + 1]))
        for i in np.flatnonzero(above[1:] != above[:-1])
    ]


def _first_rise(x: Floats, y: Floats, share: float) -> float:
    """Where a resample first reaches the share: the first level where it starts above it, the last where never.

    A level that lost all clips of a label is left out, as in the measurement itself.
    """
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    if not len(y):
        return float("nan")
    if y[0] >= share - ALIKE:
        return float(x[0])
    return next((place for place, up in _crossings(x, y, share) if up), float(x[-1]))
