"""What a configuration said of each clip, and every statistic of it as plain data that goes into JSON as it is."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import Clip
from evaluators.files import finite_or_none
from evaluators.statistics import calibration, metrics, psychometrics
from evaluators.statistics.metrics import Floats, Ints

SLICES = ("duration_ms", "snr_db", "condition", "category")
RATES = ("accuracy", "balanced_accuracy", "hit_rate", "false_alarm_rate")
SLICE_RESAMPLES = 2000
MOST_LEVELS, GROUPS = 12, 5  # a property of more numbers is sliced in groups


@dataclass(frozen=True)
class Judgements:
    """One configuration's answers on a set of clips; arrays are ``[clip]``.

    Attributes:
        labels: The first one is what is to be detected: a hit is it, said where it is right.
        truth: Index of the right label.
        decided: Index of the label decided on.
        probability: Of the first label, NaN-free; None where only decisions are known.
        score: That ranks the first label, in any unit; None where it is the probability or unknown.
        slices: Property -> value of each clip as text, "" where a clip has none.
    """

    labels: tuple[str, ...]
    clip_ids: tuple[str, ...]
    sources: tuple[str, ...]
    truth: Ints
    decided: Ints
    probability: Floats | None = None
    score: Floats | None = None
    slices: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)


def from_scores(
    logp: Floats, clips: Sequence[Clip], labels: Sequence[str], bias: float = 0.0
) -> Judgements:
    """Judgements by ``[clip, label]`` log-probabilities, the first label's log-odds shifted by `bias`."""
    margin = metrics.margins(logp)
    return Judgements(
        labels=tuple(labels),
        clip_ids=tuple(c.clip_id for c in clips),
        sources=tuple(c.source_id for c in clips),
        truth=np.array([labels.index(c.label) for c in clips]),
        decided=metrics.decide(logp, bias),
        probability=calibration.probability(margin + bias),
        score=margin,
        slices=slices_of(clips),
    )


def slices_of(clips: Sequence[Clip]) -> dict[str, NDArray[np.str_]]:
    """The properties by which clips are sliced, as text."""

    def text(value: float | str | None) -> str:
        return "" if value is None else value if isinstance(value, str) else f"{value + 0.0:g}"

    return {name: np.array([text(getattr(c, name)) for c in clips]) for name in SLICES}


def interval(c: metrics.Clusters, statistic: metrics.Statistic) -> dict[str, float | None] | None:
    """{value, low, high}; None where the statistic is undefined, as a hit rate without clips to hit."""
    if math.isnan(statistic.value):
        return None
    e = c.estimate(statistic)
    return {
        "value": finite_or_none(e.value),
        "low": finite_or_none(e.low),
        "high": finite_or_none(e.high),
    }


def describe(j: Judgements, *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Every statistic with its 95 % interval over sources.

    Returns:
        rows, sources, the rates, what can be had of auroc, ece, brier, nll and confidences; ``slices``: property ->
        value -> rows, sources and rates, balanced accuracy only where both kinds of clips are in it; ``thresholds``.
        What is undefined is None.
    """
    c = metrics.clusters(j.truth, j.sources, resamples=resamples, seed=seed)
    found = metrics.describe(c, j.decided, j.probability, j.score)
    out: dict[str, Any] = {"rows": len(j.truth), "sources": c.sources}
    for name in (*RATES, "auroc", "ece", "brier"):
        out[name] = interval(c, found.pop(name)) if name in found else None
    out |= {name: interval(c, statistic) for name, statistic in found.items()}
    out["slices"] = {}
    for name, values in j.slices.items():
        values = grouped(values)
        out["slices"][name] = {v: _slice(j, values == v, seed) for v in ordered(values)}
    out["thresholds"] = thresholds(j, seed=seed)
    return out


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


def ordered(values: NDArray[np.str_]) -> list[str]:
    """Values that occur, numbers by size, without the empty one; none where all clips are alike."""
    found = [v for v in np.unique(values) if v]
    try:
        found.sort(key=lambda v: float(v.split(" to ")[0]))
    except ValueError:
        found.sort()
    return found if len(set(values)) > 1 else []


def _slice(j: Judgements, inside: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    c = metrics.clusters(
        j.truth[inside],
        np.asarray(j.sources)[inside],
        resamples=SLICE_RESAMPLES,
        seed=seed,
    )
    found = metrics.rates(c, j.decided[inside])
    if len(np.unique(c.truth)) < 2:  # one kind of clips has no balance; its rate is told by name
        del found["balanced_accuracy"]
    return {
        "rows": int(inside.sum()),
        "sources": c.sources,
        **{name: interval(c, found[name]) if name in found else None for name in RATES},
    }


AXES = {"duration_ms": ("DT", "ms"), "snr_db": ("SNR", "dB")}


def curves(j: Judgements, *, seed: int = 0) -> dict[str, psychometrics.Psychometric]:
    """Property -> psychometric curve, where the clips have enough of its levels."""
    out = {}
    for name, (_, unit) in AXES.items():
        if name not in j.slices:
            continue
        try:
            level = np.array([float(v) if v else math.nan for v in j.slices[name]])
        except ValueError:
            continue
        fitted = psychometrics.psychometric(unit, level, j.truth, j.decided, j.sources, seed=seed)
        if fitted is not None:
            out[name] = fitted
    return out


def thresholds(j: Judgements, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """DT50, DT75, DT90 in ms and SNR75 in dB, where the clips have levels: {value, low, high, censored, text}."""
    out = {}
    for name, curve in curves(j, seed=seed).items():
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


def compare(
    named: Sequence[tuple[str, Judgements]],
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Paired differences of balanced accuracy, a - b, on the same clips.

    Args:
        pairs: Indices; None for all.

    Returns:
        {a, b, difference, low, high, p, p_holm} each: 95 % interval over sources, two-sided sign-flip p over sources,
        Holm over the pairs.
    """
    pairs = list(itertools.combinations(range(len(named)), 2)) if pairs is None else list(pairs)
    if not pairs:
        return []
    first = named[0][1]
    for _, other in named[1:]:
        assert other.clip_ids == first.clip_ids and (other.truth == first.truth).all()
    c = metrics.clusters(first.truth, first.sources, resamples=resamples, seed=seed)
    right = np.stack([j.decided == j.truth for _, j in named]).astype(np.float64)
    balanced = c.balanced(right)
    gains = np.stack([right[a] - right[b] for a, b in pairs])
    p = [float(v) for v in metrics.sign_flip(c, gains, two_sided=True)]
    out = []
    for (a, b), one, adjusted in zip(pairs, p, metrics.holm(p), strict=True):
        e = c.estimate(balanced[a] - balanced[b])
        out.append(
            {
                "a": named[a][0],
                "b": named[b][0],
                "difference": e.value,
                "low": finite_or_none(e.low),
                "high": finite_or_none(e.high),
                "p": one,
                "p_holm": adjusted,
            }
        )
    return out
