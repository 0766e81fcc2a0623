"""Every statistic of some predictions as plain data, which goes into JSON as it is."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.statistics import metrics, psychometrics
from evaluators.statistics.compare import resample
from evaluators.statistics.crossings import Crossing, crossings
from evaluators.statistics.metrics import grouped
from evaluators.statistics.resampling import Clusters, Statistic
from evaluators.targets import Predictions

RATES = ("accuracy", "balanced_accuracy", "hit_rate", "false_alarm_rate")
SLICE_RESAMPLES = 2000


def interval(c: Clusters, statistic: Statistic) -> dict[str, float | None] | None:
    """{value, low, high}; None where the statistic is undefined, as a hit rate without clips to hit."""
    return None if math.isnan(statistic.value) else c.estimate(statistic).to_dict()


def describe(said: Predictions, *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Every statistic with its 95 % interval over sources.

    Returns:
        rows, sources, the rates, what can be had of auroc, ece, brier, nll and confidences; ``slices``: property ->
        value -> rows, sources and rates, balanced accuracy only where both kinds of clips are in it; ``thresholds``
        and ``crossings``, each by its definition in `DEFINITIONS`. What is undefined is None.
    """
    c = resample(said.targets, resamples=resamples, seed=seed)
    found = metrics.statistics_of(c, said)
    out: dict[str, Any] = {"rows": len(said.targets), "sources": c.sources}
    for name in (*RATES, "auroc", "ece", "brier"):
        out[name] = interval(c, found.pop(name)) if name in found else None
    out |= {name: interval(c, statistic) for name, statistic in found.items()}
    out["slices"] = {}
    for name, values in said.targets.slices.items():
        values = grouped(values)
        out["slices"][name] = {v: _slice(said.take(values == v), seed) for v in ordered(values)}
    out["thresholds"] = thresholds(said, seed=seed)
    out["crossings"] = {name: _plain(one) for name, one in crossed(said, seed=seed).items()}
    return out


def ordered(values: NDArray[np.str_]) -> list[str]:
    """Values that occur, numbers by size, without the empty one; none where all clips are alike."""
    found = [v for v in np.unique(values) if v]
    try:
        found.sort(key=lambda v: float(v.split(" to ")[0]))
    except ValueError:
        found.sort()
    return found if len(set(values)) > 1 else []


def _slice(said: Predictions, seed: int) -> dict[str, Any]:
    c = resample(said.targets, resamples=SLICE_RESAMPLES, seed=seed)
    found = metrics.rates(c, said.decided)
    if len(np.unique(c.truth)) < 2:  # one class has no balance; its rate is told by name
        del found["balanced_accuracy"]
    return {
        "rows": len(said.targets),
        "sources": c.sources,
        **{name: interval(c, found[name]) if name in found else None for name in RATES},
    }


AXES = {"duration_ms": ("DT", "ms"), "snr_db": ("SNR", "dB")}
SHARES = (0.75, 0.9)  # of the published thresholds
DEFINITIONS = {  # of the two kinds of thresholds, as tables and pages say them
    "thresholds": "fitted curve: hits beyond the measured false alarms reach the share",
    "crossings": (
        "published: balanced accuracy by level, joined by lines over log duration or dB, crosses the share"
    ),
}


def _levels(said: Predictions) -> Iterator[tuple[str, NDArray[np.floating]]]:
    """(property, ``[clip]`` level or NaN) of the properties of `AXES` that are numbers; none of more than two labels.

    A threshold is of something that is detected.
    """
    for name in AXES if len(said.targets.labels) == 2 else ():
        if name in said.targets.slices:
            try:
                yield name, np.array([float(v or math.nan) for v in said.targets.slices[name]])
            except ValueError:
                continue


def curves(said: Predictions, *, seed: int = 0) -> dict[str, psychometrics.Psychometric]:
    """Property -> psychometric curve, where the clips have enough of its levels."""
    fitted = {
        name: psychometrics.psychometric(AXES[name][1], level, said, seed=seed)
        for name, level in _levels(said)
    }
    return {name: curve for name, curve in fitted.items() if curve is not None}


def crossed(said: Predictions, *, seed: int = 0) -> dict[str, Crossing]:
    """DT75, DT90, SNR75 and SNR90 by the published definition, where clips have 2 to `MOST_LEVELS` such levels."""
    out = {}
    for name, level in _levels(said):
        if len(np.unique(level[~np.isnan(level)])) > metrics.MOST_LEVELS:
            continue
        prefix, unit = AXES[name]
        for share in SHARES:
            found = crossings(unit, level, said, share, seed=seed)
            if found is not None:
                out[f"{prefix}{100 * share:.0f}"] = found
    return out


def _plain(one: Crossing) -> dict[str, Any]:
    return {
        "value": one.value,
        "low": one.low,
        "high": one.high,
        "censored": list(one.censored),
        "at": list(one.at),
        "text": one.text(),
    }


def thresholds(said: Predictions, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """DT50, DT75, DT90 in ms and SNR75 in dB, where the clips have levels: {value, low, high, censored, text}."""
    out = {}
    for name, curve in curves(said, seed=seed).items():
        prefix, unit = AXES[name]
        for share, t in curve.thresholds.items():
            if prefix == "SNR" and share != 0.75:
                continue
            out[f"{prefix}{100 * share:.0f}"] = {
                "value": t.value,
                "low": t.low,
                "high": t.high,
                "censored": list(t.censored),
                "text": t.text(unit),
            }
    return out
