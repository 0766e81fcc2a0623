"""The selection: finalists and baseline on clips the search never saw; the baseline stays unless the gain is real."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt
from evaluators.statistics import metrics
from opro.search.history import Trial
from opro.search.objective import Reward

FINALISTS = 5  # at most
SOURCES_PER_FINALIST = (
    10  # of the rarest label: with few sources every finalist costs much power (Holm)
)
ALPHA = 0.025  # one-sided


@dataclass(frozen=True)
class Final:
    """A finalist on the fresh half: its score, and its paired difference to the baseline."""

    trial: Trial
    score: metrics.Estimate
    difference: metrics.Difference
    p_holm: float


@dataclass(frozen=True)
class Selection:
    """What the fresh half says.

    Attributes:
        baseline: The seed that scored best on the search half.
        baseline_score: Its score on the fresh half.
        finals: The finalists, best search reward first; empty when none beat the baseline on the search half.
        chosen: The finalist that replaces the baseline, or None.
        to_first_seed: Paired difference of the chosen prompt (or the baseline) to the first seed prompt.
        reason: Why, in one sentence.
        controls: Score of chosen prompt and baseline when silence or shuffled audio is heard.
        logp: ``[clip, label]`` on the fresh half, by prompt id.
    """

    baseline: Trial
    baseline_score: metrics.Estimate
    finals: tuple[Final, ...]
    chosen: Final | None
    to_first_seed: metrics.Difference
    reason: str
    controls: dict[str, dict[str, float]]
    logp: dict[str, NDArray[np.float32]]


def most_finalists(sources: int) -> int:
    """How many finalists a fresh half with that many `sources` of the rarest label can judge."""
    return max(1, min(FINALISTS, sources // SOURCES_PER_FINALIST))


def pick_finalists(scored: Sequence[Trial], sources: int) -> tuple[Trial, list[Trial]]:
    """(baseline, finalists): the best seed on the search half, and the best trials that beat it there.

    One finalist for every ten `sources` of the rarest label of the fresh half, at least one, at most five.
    """
    baseline = next((t for t in scored if t.iteration == 0), None)
    if baseline is None:
        raise UserError(
            "no seed prompt could be scored by this model; --seeds needs one whose answer words differ"
        )
    return (
        baseline,
        [
            t
            for t in scored
            if t.iteration > 0
            and t.rank > baseline.rank
            and (t.reward or 0) > (baseline.reward or 0)
        ][: most_finalists(sources)],
    )


def select(
    evaluator: Evaluator,
    scored: Sequence[Trial],
    fresh: Sequence[Clip],
    labels: Sequence[str],
    reward: Reward,
    seed: int,
) -> Selection:
    """Re-scores finalists and baseline on the fresh half and decides.

    Balanced accuracy is compared, whatever the reward was. A finalist replaces the baseline when the lower bound of
    its paired difference is above zero: one-sided 2.5 %, sources resampled, Holm-corrected over the finalists. Of
    several, the one with the largest difference. With fewer than ten sources of a label no claim is made. The
    sign-flip p is reported beside it. `tests/bench_coverage.py` shows how often the rule errs.

    Args:
        scored: Trials scored on the search half, best first.
        fresh: Clips that no trial has seen.
    """
    truth = np.array([labels.index(clip.label) for clip in fresh])
    sources = [clip.source_id for clip in fresh]
    fewest = metrics.fewest_sources(truth, sources)
    baseline, finalists = pick_finalists(scored, fewest)
    first = min((t for t in scored if t.iteration == 0), key=lambda t: t.number)
    trials = list({t.number: t for t in [baseline, first, *finalists]}.values())
    table = evaluator.score([t.candidate.prompt for t in trials], fresh)
    # A threshold fitted on the search half is carried over, never fitted again.
    right = {
        t.number: reward.judge(table.logp[i], truth, fresh, bias=t.bias).right
        for i, t in enumerate(trials)
    }
    c = metrics.clusters(truth, sources, seed=seed)
    bounds, p_holm, best = judge(c, np.stack([right[t.number] for t in [*finalists, baseline]]))
    finals = [
        Final(t, c.estimate(c.balanced(right[t.number])), bounds[i], p_holm[i])
        for i, t in enumerate(finalists)
    ]
    chosen = None if best is None else finals[best]
    judged = [baseline] + ([chosen.trial] if chosen else [])
    return Selection(
        baseline=baseline,
        baseline_score=c.estimate(c.balanced(right[baseline.number])),
        finals=tuple(finals),
        chosen=chosen,
        to_first_seed=metrics.difference(
            c,
            right[(chosen.trial if chosen else baseline).number],
            right[first.number],
            alpha=ALPHA,
        ),
        reason=_reason(finals, chosen, fewest),
        controls=_controls(evaluator, judged, fresh, truth, reward),
        logp={t.candidate.prompt.prompt_id: table.logp[i] for i, t in enumerate(trials)},
    )


def judge(
    c: metrics.Clusters, right: NDArray[np.bool_]
) -> tuple[list[metrics.Difference], list[float], int | None]:
    """The decision on the fresh half alone.

    Args:
        c: Its sources.
        right: ``[finalist + 1, clip]``, the baseline last.

    Returns:
        Of each finalist the difference to the baseline, its bounds at Holm's level, and its corrected p; the index of
        the one that replaces the baseline, or None.
    """
    finalists, baseline = right[:-1], right[-1]
    plain = [metrics.difference(c, one, baseline, alpha=ALPHA) for one in finalists]
    # Holm's step-down on the bounds: the strongest finalist must clear the strictest level.
    order = sorted(range(len(finalists)), key=lambda i: -plain[i].low)
    bounds = {
        i: metrics.difference(c, finalists[i], baseline, alpha=ALPHA / (len(order) - rank))
        for rank, i in enumerate(order)
    }
    cleared = list(itertools.takewhile(lambda i: bounds[i].low > 0, order))
    best = None
    if cleared and c.fewest >= metrics.MIN_SOURCES:
        best = max(cleared, key=lambda i: bounds[i].value)
    return [bounds[i] for i in range(len(order))], metrics.holm([d.p for d in plain]), best


def _reason(finals: Sequence[Final], chosen: Final | None, fewest: int) -> str:
    if not finals:
        return "baseline kept: no candidate scored above it on the search half"
    best = max(finals, key=lambda f: f.difference.value)
    d = best.difference
    gain = (
        f"{100 * d.value:+.1f} points [{100 * d.low:+.1f}, {100 * d.high:+.1f}] on {d.clips} fresh"
        f" clips of {d.sources} sources"
    )
    if fewest < metrics.MIN_SOURCES:
        return (
            f"baseline kept: the fresh half has only {fewest} sources of one label,"
            f" {metrics.MIN_SOURCES} are needed for a claim (the best finalist shows {gain})"
        )
    if chosen is None:
        return (
            f"baseline kept: the best finalist gains {gain}, corrected p {best.p_holm:.3f}; its"
            " lower bound is not above zero"
        )
    d = chosen.difference
    return (
        f"replaced: gains {100 * d.value:+.1f} points [{100 * d.low:+.1f}, {100 * d.high:+.1f}] on"
        f" {d.clips} fresh clips of {d.sources} sources, corrected p {chosen.p_holm:.3f}"
    )


def _controls(
    evaluator: Evaluator, trials: Sequence[Trial], fresh: Sequence[Clip], truth: Any, reward: Reward
) -> dict[str, dict[str, float]]:
    """Balanced accuracy and share of first-label answers with silence and shuffled audio: what the text alone says."""
    out: dict[str, dict[str, float]] = {}
    prompts: list[Prompt] = [t.candidate.prompt for t in trials]
    for audio in ("silence", "shuffled"):
        heard = [replace(clip, audio=audio) for clip in fresh]
        table = evaluator.score(prompts, heard)
        for i, trial in enumerate(trials):
            right = reward.judge(table.logp[i], truth, heard, bias=trial.bias).right
            first = metrics.decide(table.logp[i], trial.bias) == 0
            out.setdefault(trial.candidate.prompt.prompt_id, {}).update(
                {
                    audio: metrics.balanced_accuracy(truth, right),
                    f"{audio}_first_label": float(first.mean()),
                }
            )
    return out
