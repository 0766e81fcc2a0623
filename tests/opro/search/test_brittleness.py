"""Brittleness: how it is measured on the search half, and how it decides among finalists that tie."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searches import Display, Searched, Spied, Told, clip, clip_set, half, scored_trial

from evaluators.classifier import Classifier
from evaluators.errors import PromptError
from evaluators.prompts import Prompt
from evaluators.statistics.compare import compare
from evaluators.statistics.resampling import Estimate
from evaluators.tasks import SPEECH_TASK
from opro import optimize
from opro.problem import Problem
from opro.search import budget, select
from opro.search.brittleness import CLIPS, How, brittleness, steadiest
from opro.search.edits import trivial_edits
from opro.search.history import best_first
from opro.search.objective import Objective
from opro.settings import SearchSettings

TEXT = (
    "Is it speech, or is it anything else?\nA) Speech\nB) Other sounds\n\nAnswer with one letter."
)
CLIPS_OF = clip_set(clip(i, i % 2, source=f"s{i // 2}") for i in range(80))
TRUTH = CLIPS_OF.targets.truth
SIGN = np.where(TRUTH == 0, 1.0, -1.0)


def right_about(share, seed, shift=0.0):
    """Log-odds that are right about such a share of the clips, all shifted by some nats."""
    right = np.random.default_rng(seed).permutation(len(TRUTH)) < round(share * len(TRUTH))
    return SIGN * np.where(right, 1, -1) + shift


def measured(one, odds, edits, bias=0.0, bad=lambda prompt, place: False):
    table = {e.prompt: o for e, o in zip(trivial_edits(one), odds[1:], strict=False)}
    told = Told({one: odds[0], **table}, CLIPS_OF, bad)
    (found,) = brittleness(told, [Classifier(one, bias)], CLIPS_OF, How(edits))
    return found, told


def test_one_edit_loses_what_the_one_comparison_says():
    one = Prompt(TEXT)
    odds = [right_about(0.9, 0), right_about(0.6, 1)]
    found, told = measured(one, odds, 1)
    table = told.score([one, found.edits[0].prompt], list(CLIPS_OF))
    own, edited = (table.predict(Classifier(p)) for p in table.prompts)
    gain = compare(own, edited)
    assert found.loss == replace(gain, p=found.loss.p) and found.loss.p == pytest.approx(gain.p)
    assert found.scores == (pytest.approx(0.6),) and found.score == pytest.approx(0.9, abs=0.03)


def test_quantiles_are_over_edits_and_the_loss_is_the_mean_of_losses():
    one, edits = Prompt(TEXT), 11
    odds = [right_about(0.9, 0), *(right_about(0.5 + 0.04 * k, k) for k in range(edits))]
    found, _ = measured(one, odds, edits)
    scores = sorted(found.scores)
    assert found.floor == pytest.approx(scores[1])  # of eleven, the second is the tenth part
    assert found.quantiles[0.5] == pytest.approx(scores[5])
    assert found.quantiles[0.0] == scores[0] and found.quantiles[1.0] == scores[-1]
    assert found.loss.value == pytest.approx(found.score - np.mean(found.scores))
    assert found.loss.low < found.loss.value < found.loss.high


def test_each_edit_keeps_the_threshold():
    """An edit that shifts all answers is brittle, however well it ranks; a fitted threshold would hide it."""
    one = Prompt(TEXT)
    odds = [right_about(1.0, 0, -5.0), right_about(1.0, 0, 5.0)]
    found, _ = measured(one, odds, 1, bias=5.0)
    assert found.score == 1.0 and found.scores == (0.5,)


def test_a_threshold_fitted_anew_tells_whether_the_wording_is_lost():
    one, dev = Prompt(TEXT), Objective("balanced_accuracy", "dev")
    odds = [right_about(1.0, 0), right_about(1.0, 0, 5.0), right_about(0.5, 1)]
    table = {e.prompt: o for e, o in zip(trivial_edits(one, 2), odds[1:], strict=True)}
    told = Told({one: odds[0], **table}, CLIPS_OF)
    (found,) = brittleness(told, [Classifier(one)], CLIPS_OF, How(2, dev))
    assert found.scores == (0.5, pytest.approx(0.5, abs=0.1)) and found.anew[0] == 1.0
    assert found.anew[1] < 0.65 and found.floor_anew == pytest.approx(np.quantile(found.anew, 0.1))
    (plain,) = brittleness(told, [Classifier(one)], CLIPS_OF, How(2))
    (ranked,) = brittleness(told, [Classifier(one)], CLIPS_OF, How(2, Objective("auroc", "dev")))
    assert ranked.anew == () and ranked.score == 1.0  # which no threshold changes
    assert plain.anew == () and plain.floor_anew is None and plain.scores == found.scores


def test_an_edit_that_cannot_be_asked_is_counted_and_left_out():
    one = Prompt(TEXT)
    bad = trivial_edits(one)[1].prompt
    odds = [right_about(0.9, 0), *(right_about(0.6, k) for k in range(3))]
    found, _ = measured(one, odds, 3, bad=lambda prompt, place: prompt == bad)
    assert found.refused == 1 and len(found.scores) == 2
    assert bad not in [e.prompt for e in found.edits]
    with pytest.raises(PromptError):
        measured(one, odds, 3, bad=lambda prompt, place: True)


def test_at_most_so_many_clips_the_first_ones():
    many = half("s", CLIPS + 40)
    spied = Spied()
    (found,) = brittleness(spied, [Classifier(Prompt(TEXT))], many, How(2))
    asked = [c.clip_id for _, clips in spied.calls for c in clips]
    assert asked == [c.clip_id for c in many][:CLIPS] and found.loss.clips == CLIPS


def gain(value):
    return Estimate(value, value - 0.1, value + 0.1, 9, 9, 0.001)


@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.integers(1, 9), st.floats(0, 0.3)), min_size=1, max_size=5
    ),
    st.data(),
)
def test_the_least_brittle_of_those_that_tie_then_the_shortest(found, data):
    tied = data.draw(st.lists(st.sampled_from(range(len(found))), min_size=1, unique=True))
    floors, lengths = [f / 100 for f, _, _ in found], [n for _, n, _ in found]
    taken = steadiest(tied, floors, lengths, [gain(g) for _, _, g in found])
    top = max(floors[i] for i in tied)
    assert taken in tied and floors[taken] >= top - 0.01 - 1e-9
    if all(floors[i] < top - 0.02 for i in tied if i != taken):
        assert floors[taken] == top
    if len({floors[i] for i in tied}) == 1:
        assert lengths[taken] == min(lengths[i] for i in tied)


# ---- in the decision

STEADY, FRAIL = (Prompt(f"{name}: {TEXT}") for name in ("Steady, though long", "Frail"))
SEED = Prompt("Seed: speech? A or B")
OWNER = {q: p for p in (STEADY, FRAIL, SEED) for q in (p, *(e.prompt for e in trivial_edits(p)))}


class Planted(Spied):
    """Right about a share of the clips, by prompt: as it is, and with a trivial edit."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def score(self, prompts, clips):
        table = super().score(prompts, clips)
        for row, p in zip(table.logp, prompts, strict=True):
            own = OWNER[p]
            whole, edited = self.share[own]
            rng = np.random.default_rng(len(own.text))
            right = rng.permutation(len(clips)) < (edited if p != own else whole) * len(clips)
            sign = np.array([1.0 if c.label == "SPEECH" else -1.0 for c in clips])
            first = sign * np.where(right, 1, -1)
            row[:] = np.stack([-np.logaddexp(0, -first), -np.logaddexp(0, first)], -1)
        return table


def decided(share, edits):
    display, evaluator = Display(), Planted(share)
    problem = Problem(SPEECH_TASK, (SEED,), half("s", 60), half("f", 100), evaluator, {})
    trials = [
        scored_trial(0, 0.6, 0, prompt=SEED),
        scored_trial(1, 0.9, prompt=STEADY),
        scored_trial(2, 0.91, prompt=FRAIL),
    ]
    settings = SearchSettings(brittleness=edits)
    found = type("H", (), {"complete": best_first(trials), "trials": trials, "wins": {}})
    decision = select.decide(problem, settings, found, display.advance)
    return decision, evaluator, display, problem, settings


ALIKE = {STEADY: (0.9, 0.9), FRAIL: (0.92, 0.6), SEED: (0.5, 0.5)}


def test_of_two_that_tie_the_less_brittle_is_handed_over_and_it_is_said():
    without, evaluator, *_ = decided(ALIKE, 0)
    assert without.chosen.prompt == FRAIL and without.brittleness == ()
    assert evaluator.evals("s") == 0  # nothing of the search half is asked for
    decision, *_ = decided(ALIKE, 30)
    assert decision.chosen.prompt == STEADY
    assert [b.classifier.prompt for b in decision.brittleness] == [SEED, FRAIL, STEADY]
    steady, frail = (
        f.brittleness for f in sorted(decision.finalists, key=lambda f: f.trial.number)
    )
    assert steady.floor > frail.floor and len(steady.edits) == len(frail.edits) == 30
    assert steady.floor_anew is not None  # as the search's own threshold says
    assert decision.reason.endswith(
        f"so the less brittle is handed over: nine of ten trivial edits leave it {100 * steady.floor:.1f} or more on"
        f" the search half, the other one {100 * frail.floor:.1f}"
    )
    assert f"another one gains {select.points(frail_gain(decision))}" in decision.reason
    assert [(f.gain, f.score) for f in decision.finalists] == [
        (f.gain, f.score) for f in without.finalists
    ]


def frail_gain(decision):
    return next(f.gain for f in decision.finalists if f.trial.prompt == FRAIL)


def test_one_that_is_worse_on_the_holdout_is_not_taken_however_steady():
    decision, *_ = decided(ALIKE | {STEADY: (0.65, 0.99)}, 30)
    assert decision.chosen.prompt == FRAIL and "brittle" not in decision.reason


def test_nothing_that_does_not_replace_the_baseline_is_taken():
    decision, *_ = decided(ALIKE | {STEADY: (0.55, 0.99), FRAIL: (0.55, 0.1)}, 30)
    assert decision.winner is None and len(decision.brittleness) == 3


def test_as_steady_ones_leave_it_to_the_length():
    decision, *_ = decided(ALIKE | {STEADY: (0.92, 0.9), FRAIL: (0.9, 0.9)}, 30)
    assert decision.chosen.prompt == FRAIL
    assert "the shorter of two that are as steady is handed over" in decision.reason


def test_edits_are_asked_on_the_search_half_alone_and_what_is_planned_is_asked_or_skipped():
    decision, evaluator, _, problem, settings = decided(ALIKE, 20)
    edited = {e.prompt for b in decision.brittleness for e in b.edits}
    for prompts, clips in evaluator.calls:
        if edited & set(prompts):
            assert all(c.clip_id.startswith("s") for c in clips)
    assert evaluator.evals("s") == sum(1 + len(b.edits) for b in decision.brittleness) * 60
    before = budget.planned_pairs(problem, replace(settings, brittleness=0))
    assert budget.planned_pairs(problem, settings) - before == budget.edited_pairs(
        problem, settings
    )
    assert budget.edited_pairs(problem, settings) == (1 + 2) * 21 * 60


@pytest.mark.parametrize("max_evals", [None, 2000])
def test_a_search_advances_by_all_that_it_plans(tmp_path, max_evals):
    one = Searched(tmp_path / "a.jsonl", brittleness=7, max_evals=max_evals)
    shown, plain = one.display, replace(one.settings, brittleness=0)
    assert shown.scored + shown.skipped == budget.planned_pairs(one.problem, one.settings)
    more = budget.most_evals(one.problem, one.settings) - budget.most_evals(one.problem, plain)
    assert more == budget.edited_pairs(one.problem, one.settings) > 0
    assert one.evaluator.usage.requested <= budget.most_evals(one.problem, one.settings)
    without = Searched(tmp_path / "b.jsonl", max_evals=max_evals)
    assert one.journal == without.journal  # the search is the same


def test_names_of_runs_without_it_stay():
    assert "brittleness" not in optimize.OptimizeSettings().checked().config
    assert optimize.OptimizeSettings(brittleness=5).checked().config["brittleness"] == 5
