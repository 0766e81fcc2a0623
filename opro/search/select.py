"""The decision: finalists and baseline on clips the search never saw. The baseline stays unless the gain is real."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.classifier import Classifier
from evaluators.clips import Audio, ClipSet
from evaluators.errors import UserError
from evaluators.evaluator import Evaluator, ScoreTable
from evaluators.statistics import metrics
from evaluators.statistics.compare import ALPHA, compare, compare_many, estimate
from evaluators.statistics.resampling import MIN_SOURCES, Estimate
from evaluators.targets import Predictions
from opro.problem import Problem
from opro.search.brittleness import MARGIN, Brittleness, How, brittleness, steadiest
from opro.search.budget import edited_pairs, most_beside, most_finalists, most_selected
from opro.search.history import History, Trial
from opro.search.lengths import length_of, unit_of
from opro.search.objective import Objective
from opro.search.parts import score_in_parts
from opro.settings import SearchSettings

CONTROLS: tuple[Audio, ...] = ("silence", "shuffled")
DECIDED = ("balanced_accuracy", "accuracy", "worst_slice")  # metrics of what is decided


@dataclass(frozen=True)
class Turn:
    """Which decision on a half one is, and the level that it has.

    The level is spent over the decisions on a half by a fixed series (alpha spending: Foster and Stine 2008, J. R.
    Stat. Soc. B 70; Tian and Ramdas 2021, Stat. Methods Med. Res. 30): 2.5 % for the first one, which has it alone,
    and 2.5 % / (n (n - 1)) for the n-th. All later ones together have another 2.5 %, since the series telescopes. So
    any number of decisions errs with at most 5 %, by the union bound, whatever their order and however they depend
    on each other; not where prompts are made from what was seen of the half.
    """

    number: int = 1

    @property
    def level(self) -> float:
        """One-sided, of this decision.

        >>> [round(Turn(n).level, 6) for n in (1, 2, 3, 20)]
        [0.025, 0.0125, 0.004167, 6.6e-05]
        """
        return ALPHA if self.number == 1 else ALPHA / (self.number * (self.number - 1))

    @property
    def left(self) -> float:
        """Of all decisions after it together: what later terms of the series add up to."""
        return ALPHA / self.number

    def said(self) -> str:
        """In words, with what is left; empty of the first one."""
        if self.number == 1:
            return ""
        return (
            f"; {ordinal(self.number)} decision on this half, level {self.level:.2g}, {self.left:.2g} left for all"
            f" later ones: a holdout of recordings that no run has decided on has {ALPHA} again"
        )


def ordinal(number: int) -> str:
    """A place in words.

    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 112)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '13th', '21st', '112th']
    """
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


@dataclass(frozen=True)
class Finalist:
    """A trial on the holdout: its score, and its gain over the baseline with bounds and p corrected by Holm.

    `brittleness` is of the search half; None where it is not measured.
    """

    trial: Trial
    score: Estimate
    gain: Estimate
    brittleness: Brittleness | None = None


@dataclass(frozen=True)
class TwoByTwo:
    """{best seed prompt, prompt found} x {argmax, threshold fitted on the search half}, on the same holdout clips.

    Attributes:
        metric: A key of `evaluators.statistics.metrics.METRICS` that thresholds change.
        found: The prompt that was chosen; where the baseline was kept, the finalist with the largest gain; None without
            finalists, and then there are no cells of it.
        scores: ``seed`` or ``found`` -> ``argmax`` or ``threshold`` -> score.
        wording: ``argmax`` or ``threshold`` -> gain of the found wording, both prompts decided in this way.
        threshold: ``seed`` or ``found`` -> gain of its threshold over its argmax.
        both: Gain of found with threshold over seed with argmax.
    """

    metric: str
    found: Trial | None
    scores: Mapping[str, Mapping[str, Estimate]]
    wording: Mapping[str, Estimate]
    threshold: Mapping[str, Estimate]
    both: Estimate


@dataclass(frozen=True)
class Decision:
    """What the holdout says, in the metric of the objective.

    Attributes:
        baseline: The seed prompt that scored best on the search half, decided as the finalists are.
        baseline_score: Its score on the holdout.
        finalists: Best search reward first, of several searches what most of them found best; empty when none beat the
            baseline on the search half.
        winner: The finalist that replaces the baseline, see `shorter_tie` and `steadiest`, or None.
        to_first_seed: Gain of the chosen prompt (or the baseline) over the first seed prompt.
        reason: Why, in one sentence.
        two_by_two: How much is wording, how much threshold; None where no threshold is known.
        controls: By prompt id, score of chosen prompt and baseline with silence or shuffled audio.
        predictions: On the holdout, by prompt id.
        turn: Which decision on this half it is; None where nothing could replace the baseline, which spends nothing.
        brittleness: Of baseline and finalists, on the search half; empty where it is not measured.
    """

    baseline: Trial
    baseline_score: Estimate
    finalists: tuple[Finalist, ...]
    winner: Finalist | None
    to_first_seed: Estimate
    reason: str
    two_by_two: TwoByTwo | None
    controls: Mapping[str, Mapping[str, float]]
    predictions: Mapping[str, Predictions]
    turn: Turn | None = None
    brittleness: tuple[Brittleness, ...] = ()

    @property
    def chosen(self) -> Trial:
        """What is handed over."""
        return self.winner.trial if self.winner else self.baseline

    @property
    def chosen_score(self) -> Estimate:
        """Its score on the holdout."""
        return self.winner.score if self.winner else self.baseline_score


def pick_finalists(
    scored: Sequence[Trial], fewest_sources: int, wins: Mapping[str, int] | None = None
) -> tuple[Trial, list[Trial]]:
    """(baseline, finalists): the best seed prompt on the search half, and the best trials that beat it there.

    Args:
        scored: Trials scored on the search half, best first. In a decision complete ones alone.
        fewest_sources: Of the rarest label of the holdout: one finalist for every ten, at least one, at most five.
        wins: Of several searches: prompt id -> in how many it was best; the more, the earlier it is a finalist.
    Raises:
        UserError: No seed prompt could be scored.
    """
    baseline = next((t for t in scored if t.iteration == 0), None)
    if baseline is None:
        raise UserError(
            "no seed prompt could be scored by this model; --seeds needs one whose answer words differ"
        )
    better = [
        t
        for t in scored
        if t.iteration > 0 and t.rank > baseline.rank and t.reward > baseline.reward
    ]
    if wins:
        better.sort(key=lambda t: -wins.get(t.prompt.prompt_id, 0))
    return baseline, better[: most_finalists(fewest_sources)]


def decide(
    problem: Problem,
    settings: SearchSettings,
    history: History,
    advance: Callable[[int, int], None] = lambda scored, skipped: None,
    take_turn: Callable[[Sequence[Trial]], Turn] = lambda compared: Turn(),
) -> Decision:
    """Scores finalists and baseline on the holdout and decides.

    The objective itself is compared, and each trial with the bias that was fitted on the search half where
    ``--threshold dev`` says so: then wording must gain beyond a threshold. Trials that a race dropped are passed over,
    see `Search.finish_finalists`. A finalist replaces the baseline when the p of its gain, corrected by Holm over the
    finalists, is below the level: 2.5 % one-sided in the first decision on a half, less in later ones, see `Turn`. Then
    the lower bound that is shown, of this level, is above zero. Of several, the one with the largest gain, or one that
    cannot be told from it and is less brittle, where that is measured (`steadiest`), or shorter (`shorter_tie`). With
    fewer than ten sources of a label no claim is made. `tests/bench_coverage.py` shows how often it errs.

    Args:
        advance: Called with the pairs scored, and the pairs that will never be asked for.
        take_turn: Called with baseline and finalists before they are scored, where one could replace the other.
    """
    fewest = problem.holdout_clips.targets.fewest_sources
    metric, complete = settings.objective, history.complete
    seed = settings.seed
    baseline, rivals = pick_finalists(complete, fewest, history.wins)
    first = min((t for t in complete if t.iteration == 0), key=lambda t: t.number)
    turn = take_turn([baseline, *rivals]) if rivals and fewest >= MIN_SOURCES else None
    alpha = turn.level if turn else ALPHA
    trials = list({t.number: t for t in [baseline, first, *rivals]}.values())
    table = score_in_parts(
        problem.evaluator, [t.prompt for t in trials], problem.holdout_clips, advance
    )
    said = {t.number: table.predict(t.classifier) for t in trials}
    gains = compare_many(
        [said[t.number] for t in rivals], said[baseline.number], metric, seed=seed, alpha=alpha
    )
    steady = _brittleness(problem, settings, [baseline, *rivals], advance)
    finalists = [
        Finalist(t, estimate(said[t.number], metric, seed=seed), gain, steady.get(t.number))
        for t, gain in zip(rivals, gains, strict=True)
    ]
    winner, why = _handed_over(problem, settings, finalists, said, alpha)
    chosen = winner.trial if winner else baseline
    found = winner or max(finalists, key=lambda f: f.gain.value, default=None)
    shown = list(dict.fromkeys((baseline.classifier, chosen.classifier)))
    most = most_selected(problem.holdout_clips) + most_beside(len(problem.seed_prompts))
    asked = len(trials) + len(CONTROLS) * len(shown)
    advance(0, (most - asked) * len(problem.holdout_clips))
    return Decision(
        baseline=baseline,
        baseline_score=estimate(said[baseline.number], metric, seed=settings.seed),
        finalists=tuple(finalists),
        winner=winner,
        to_first_seed=compare(said[chosen.number], said[first.number], metric, seed=settings.seed),
        reason=_reason(finalists, winner, fewest, _unfinished(history, baseline), turn) + why,
        two_by_two=two_by_two(
            table, baseline, found.trial if found else None, metric, settings.seed
        ),
        controls=control_scores(problem.evaluator, shown, problem.holdout_clips, advance),
        predictions={t.prompt.prompt_id: said[t.number] for t in trials},
        turn=turn,
        brittleness=tuple(steady.values()),
    )


def _brittleness(
    problem: Problem,
    settings: SearchSettings,
    trials: Sequence[Trial],
    advance: Callable[[int, int], None],
) -> dict[int, Brittleness]:
    """By number of the trial, on the search half; empty without ``--brittleness``."""
    left = edited_pairs(problem, settings)
    if not left:
        return {}

    def count(scored: int, skipped: int) -> None:
        nonlocal left
        left -= scored
        advance(scored, skipped)

    objective = Objective(settings.objective, settings.threshold)
    how = How(settings.brittleness, objective, settings.seed)
    found = brittleness(
        problem.evaluator, [t.classifier for t in trials], problem.search_clips, how, count
    )
    advance(0, left)
    return {t.number: one for t, one in zip(trials, found, strict=True)}


def _handed_over(
    problem: Problem,
    settings: SearchSettings,
    finalists: Sequence[Finalist],
    said: Mapping[int, Predictions],
    alpha: float,
) -> tuple[Finalist | None, str]:
    """(What replaces the baseline, or None; in words why it is not the finalist that gains most, or "").

    Args:
        said: On the holdout, by number of the trial.
    """
    gains = [f.gain for f in finalists]
    best = winner_of(gains, problem.holdout_clips.targets.fewest_sources, alpha)
    if best is None:
        return None, ""
    prompts = [f.trial.prompt for f in finalists]
    lengths = [length_of(problem.evaluator, prompt) for prompt in prompts]

    def ahead(i: int) -> Estimate:
        first, other = (said[finalists[k].trial.number] for k in (best, i))
        return compare(first, other, settings.objective, seed=settings.seed)

    steady = [f.brittleness for f in finalists if f.brittleness is not None]
    if steady:
        return _steadiest(finalists, tied_with(best, gains, ahead, alpha), lengths)
    taken = shorter_tie(best, gains, lengths, ahead, alpha)
    if taken == best:
        return finalists[best], ""
    return finalists[taken], (
        f"; another one gains {points(gains[best])}, which is more by {points(ahead(taken))}: the holdout does not tell"
        f" them apart, so the shorter is handed over, {lengths[taken]} {unit_of(problem.evaluator, prompts[taken])}"
        f" in place of {lengths[best]}"
    )


def _steadiest(
    finalists: Sequence[Finalist], tied: Sequence[int], lengths: Sequence[int]
) -> tuple[Finalist, str]:
    """(What is handed over of those that tie, the one that gains most first; why, where it is not that one)."""
    gains, best = [f.gain for f in finalists], tied[0]
    floors = [f.brittleness.floor if f.brittleness else -np.inf for f in finalists]
    taken = steadiest(tied, floors, lengths, gains)
    if taken == best:
        return finalists[best], ""
    own, other = (f"{100 * floors[i]:.1f}" for i in (taken, best))
    alike = abs(floors[taken] - floors[best]) <= MARGIN
    what = "the shorter of two that are as steady" if alike else "the less brittle"
    return finalists[taken], (
        f"; another one gains {points(gains[best])}: the holdout does not tell them apart, so {what} is handed over:"
        f" nine of ten trivial edits leave it {own} or more on the search half, the other one {other}"
    )


def tied_with(
    best: int, gains: Sequence[Estimate], ahead: Callable[[int], Estimate], alpha: float = ALPHA
) -> list[int]:
    """`best`, then those finalists that replace the baseline, too, and that the holdout does not tell from it.

    Args:
        best, gains, ahead, alpha: As in `shorter_tie`.
    """
    others = [i for i in _confirmed(gains, alpha) if i != best]
    lows = {i: ahead(i).low for i in others}
    return [best, *(i for i in others if (low := lows[i]) is not None and low <= 0)]


def shorter_tie(
    best: int,
    gains: Sequence[Estimate],
    lengths: Sequence[int],
    ahead: Callable[[int], Estimate],
    alpha: float = ALPHA,
) -> int:
    """Index of the shortest finalist among `best` and those that the holdout does not tell from it.

    Only finalists that replace the baseline by the corrected test are looked at. That test errs in none of them with
    its probability, so that which of them is taken, by whatever rule, does not raise the error. Not told apart is where
    the 95 % interval of the difference to `best` holds zero: that is no proof of being alike.

    Args:
        best: From `winner_of`.
        gains: As there.
        lengths: Tokens or words of each.
        ahead: How much better `best` is than another one, on the same clips.
        alpha: Level of the corrected test, one-sided.
    """
    tied = [best]
    for i in _confirmed(gains, alpha):
        if lengths[i] < lengths[best]:
            low = ahead(i).low
            tied += [i] if low is not None and low <= 0 else []
    return min(tied, key=lambda i: (lengths[i], -gains[i].value))


def _confirmed(gains: Sequence[Estimate], alpha: float) -> list[int]:
    return [i for i, gain in enumerate(gains) if gain.p is not None and gain.p < alpha]


def winner_of(gains: Sequence[Estimate], fewest_sources: int, alpha: float = ALPHA) -> int | None:
    """Index of the largest gain that replaces the baseline, or None.

    Args:
        gains: From `compare_many`: p is corrected.
        fewest_sources: Of the rarest label.
        alpha: Level, one-sided.
    """
    real = _confirmed(gains, alpha)
    if not real or fewest_sources < MIN_SOURCES:
        return None
    return max(real, key=lambda i: gains[i].value)


def two_by_two(
    table: ScoreTable, best_seed: Trial, found: Trial | None, objective: str, seed: int = 0
) -> TwoByTwo | None:
    """The four classifiers of two prompts on the holdout.

    None where a trial's fitted threshold is not known, or none is fitted since labels are no classes.

    Args:
        table: Scores of both prompts on clips that chose and fitted nothing.
        seed: Of the resamples.
    """
    if not table.targets.classes:
        return None
    metric = objective if objective in DECIDED else "balanced_accuracy"
    said: dict[str, dict[str, Predictions]] = {}
    for name, trial in (("seed", best_seed), ("found", found)):
        if trial is None:
            continue
        if trial.outcome is None or trial.outcome.fitted is None:
            return None
        said[name] = {
            "argmax": table.predict(Classifier(trial.prompt)),
            "threshold": table.predict(Classifier(trial.prompt, trial.outcome.fitted)),
        }

    def gain(a: Predictions, b: Predictions) -> Estimate:
        return compare(a, b, metric, seed=seed)

    both, modes = said.get("found", said["seed"]), ("argmax", "threshold") if found else ()
    return TwoByTwo(
        metric,
        found,
        {
            name: {mode: estimate(one, metric, seed=seed) for mode, one in pair.items()}
            for name, pair in said.items()
        },
        {mode: gain(said["found"][mode], said["seed"][mode]) for mode in modes},
        {name: gain(pair["threshold"], pair["argmax"]) for name, pair in said.items()},
        gain(both["threshold"], said["seed"]["argmax"]),
    )


def _unfinished(history: History, baseline: Trial) -> int:
    """Forecasts above the baseline that the budget could not finish."""
    dropped = [t for t in history.trials if t.state == "dropped" and t.iteration > 0]
    return sum(t.rank > baseline.rank and t.reward > baseline.reward for t in dropped)


def _reason(
    finalists: Sequence[Finalist],
    winner: Finalist | None,
    fewest: int,
    unfinished: int = 0,
    turn: Turn | None = None,
) -> str:
    if not finalists and unfinished:
        return (
            "baseline kept: no candidate that was scored on the whole search half is above it;"
            f" --max-evals left nothing to finish {unfinished} whose forecast is"
        )
    if not finalists:
        return "baseline kept: no candidate scored above it on the search half"
    best = winner or max(finalists, key=lambda f: f.gain.value)
    gain = f"{points(best.gain)} on {best.gain.clips} holdout clips of {best.gain.sources} sources"
    if fewest < MIN_SOURCES:
        return (
            f"baseline kept: the holdout has only {fewest} sources of one label,"
            f" {MIN_SOURCES} are needed for a claim (the best finalist shows {gain})"
        )
    turn = turn or Turn()
    # A p of three digits would read as 0.000 beside a level that is spent.
    p = p_text(best.gain.p) if turn.number == 1 else f"{best.gain.p:.2g}"
    if winner is None:
        counts = f"{ALPHA:.3f}" if turn.number == 1 else f"{turn.level:.2g}"
        return (
            f"baseline kept: the best finalist gains {gain}, corrected p {p}; a gain counts below {counts}"
            f"{turn.said()}"
        )
    return f"replaced: gains {gain}, corrected p {p}{turn.said()}"


def p_text(p: float | None) -> str:
    """A p of three digits behind the point, or of one that counts.

    >>> p_text(0.0123), p_text(0.00021), p_text(None)
    ('0.012', '0.0002', '-')
    """
    if p is None:
        return "-"
    return f"{p:.1g}" if 0 < p < 0.0005 else f"{p:.3f}"


def points(gain: Estimate) -> str:
    """A gain in points of percent, as in ``+9.5 points [+1.4, +17.5]``."""
    if gain.low is None or gain.high is None:
        return f"{100 * gain.value:+.1f} points [too few sources for an interval]"
    return f"{100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def control_scores(
    evaluator: Evaluator,
    classifiers: Sequence[Classifier],
    clips: ClipSet,
    advance: Callable[[int, int], None] = lambda scored, skipped: None,
) -> dict[str, dict[str, float]]:
    """Balanced accuracy and share of first-label answers with silence and shuffled audio: what the text alone gives."""
    out: dict[str, dict[str, float]] = {}
    for audio in CONTROLS:
        prompts = [c.prompt for c in classifiers]
        table = score_in_parts(evaluator, prompts, clips.as_control(audio), advance)
        for classifier in classifiers:
            out.setdefault(classifier.prompt_id, {}).update(_control(table, classifier, audio))
    return out


def _control(table: ScoreTable, classifier: Classifier, audio: str) -> dict[str, float]:
    said = table.predict(classifier)
    return {
        audio: metrics.balanced_accuracy(said.targets.kinds, said.right),
        f"{audio}_first_label": float(np.mean(said.decided == 0)),
    }
