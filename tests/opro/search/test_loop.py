"""The loop: what it journals, what it spends, and that a search cut anywhere ends as the one that was not."""

import dataclasses
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from common import LABELS
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from searches import SEEDS, Display, Made, Searched, Spied, Told, half, logp_of

from evaluators.cache import CachedEvaluator
from evaluators.classifier import log_odds
from evaluators.errors import UserError
from evaluators.fakes import FakeEvaluator
from evaluators.orders import BothOrders
from evaluators.prompts import Prompt
from evaluators.statistics import metrics
from evaluators.statistics.compare import resample
from evaluators.statistics.resampling import clusters
from opro.results.progress import Progress
from opro.search import budget, forecast, loop
from opro.search.budget import Budget, fit_budget
from opro.search.history import Candidate, History, Outcome
from opro.search.objective import OBJECTIVES, Objective
from opro.search.select import pick_finalists
from opro.settings import OptimizeSettings

UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # making failures small takes minutes here


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)


def logp(prompt, some):
    return FakeEvaluator().score([prompt], some).logp[0]


def few_resamples(monkeypatch):
    """Few draws: where only journals are compared."""
    monkeypatch.setitem(resample.__kwdefaults__, "resamples", 40)
    monkeypatch.setattr(forecast, "DRAWS", 8)


def selection(holdout, raced=96):
    """Pairs set aside: of the selection, and after a race of `raced` search clips for a forecast to finish."""
    return budget.most_selected(holdout) * len(holdout) + raced


def least(strategy, search, seeds=3):
    """Pairs that a search takes at least, without its selection."""
    if strategy != "race":
        return (seeds + 1) * search
    return search + seeds * min(32, search)


# Budgets.


class Metered:
    """The evaluators of a run, as `build_evaluator` stacks them; evals of recorded audio by the usage they tell."""

    def __init__(self, folder, bad=lambda text: False):
        self.inner = BothOrders(CachedEvaluator(Spied(bad=bad), folder))
        self.requested = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def score(self, prompts, clips):
        before = self.inner.usage.requested
        try:
            return self.inner.score(prompts, clips)
        finally:
            if clips[0].audio == "recorded":
                self.requested += self.inner.usage.requested - before


OPTIONS = "A) speech B) none"  # so that --swap really asks twice


def seeds_with_options(count):
    return tuple(Prompt(f"Seed {i}: {OPTIONS}") for i in range(count))


@settings(max_examples=18, deadline=None, phases=UNSHRUNK, derandomize=True)
@given(
    strategy=st.sampled_from(["race", "race", "opro", "random"]),
    more=st.integers(0, 3000),
    each=st.integers(1, 8),
    seeds=st.integers(1, 6),
    swap=st.booleans(),
    bad=st.sets(st.integers(0, 8), max_size=5),
    short=st.integers(0, 2),
    cut=st.none() | st.floats(0, 1),
)
def test_search_and_selection_never_ask_for_more_evals_than_they_may(
    strategy, more, each, seeds, swap, bad, short, cut
):
    """With both orders, several seed prompts, and prompts that cannot be scored; the display ends at its total."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        few_resamples(patch)
        refused = tuple(f"Seed {i}:" for i in bad if 0 < len(bad) < 9 and i < seeds - 1)
        refused += tuple(f".{i} " for i in bad)
        options = {
            "search": 100, "holdout": 64, "seeds": seeds_with_options(seeds), "strategy": strategy, "candidates": each,
            "swap": swap, "fit": fit_budget, "iterations": 3,
        }  # fmt: skip
        raced = 64 if strategy == "race" else 0
        aside = selection(half("f", 64, 40), raced)
        most = (aside + least(strategy, 64, seeds)) * (1 + swap)
        options["max_evals"] = most + more

        def searched(name):
            return Searched(
                Path(folder) / f"{name}.jsonl",
                evaluator=Metered(
                    Path(folder) / name, lambda text: any(r in text for r in refused)
                ),
                proposer=Made(short, 1, options=True, both_orders=swap),
                **options,
            )

        found = searched("whole")
        assert found.evaluator.requested <= most + more
        shown = found.display
        assert shown.scored + shown.skipped == budget.planned_pairs(found.problem, found.settings)
        asked = found.evaluator.usage.requested  # controls too
        most_asked = budget.most_evals(found.problem, found.settings)
        assert shown.scored * (1 + swap) <= asked <= most_asked  # what is finished is not shown
        assert {t.state for t in found.history.trials} <= {"complete", "dropped", "failed"}
        unable = [any(r in t.prompt.text for r in refused) for t in found.history.trials]
        for t, cannot in zip(found.history.trials, unable, strict=True):
            if t.iteration == 0:
                assert (t.state == "failed") == cannot, t
            elif t.state == "failed":
                assert cannot or "--max-evals left nothing" in t.error
        if cut is not None:
            raw = found.journal
            (Path(folder) / "again.jsonl").write_bytes(raw[: max(1, round(cut * len(raw)))])
            again = searched("again")
            assert again.journal == raw
            assert again.evaluator.requested <= 2 * (
                most + more
            )  # what was known is asked of the cache


def test_seeds_that_are_asked_in_both_orders_count_twice_without_the_flag(tmp_path):
    """As in a best.yaml of a run with --swap."""
    seeds = [dataclasses.replace(p, both_orders=True) for p in seeds_with_options(2)]
    evaluator = Metered(tmp_path / "cache")
    Searched(
        tmp_path / "t.jsonl", evaluator=evaluator, seeds=seeds, max_evals=2000, fit=fit_budget,
        proposer=Made(options=True, both_orders=True), search=100, iterations=3,
    )  # fmt: skip
    assert 1000 < evaluator.requested <= 2000


def test_the_first_seed_prompt_comes_on_top_of_the_budget(tmp_path):
    """Where it is not the baseline it is scored on the holdout, too, which decides nothing."""
    seeds = [Prompt(f"S0.{i}: speech? A or B") for i in range(2)]
    needed = selection(half("f", 40), 0) + 64 * 3 + 64 * 3
    found = Searched(
        tmp_path / "t.jsonl", search=64, holdout=40, seeds=seeds, strategy="opro", max_evals=needed, iterations=1,
        candidates=4,
    )  # fmt: skip
    assert len(found.decision.finalists) == 2 and found.decision.baseline.number == 1
    assert found.proposed == {0: 2, 1: 4}
    assert found.evaluator.evals("f") == 4 * 40 and found.evaluator.evals() <= needed + 40


def test_few_evals_make_smaller_iterations_and_the_search_ends_early(tmp_path):
    """Two blocks of a race for each candidate, of 32 clips where many can be afforded, else of 16."""
    for more in (0, 50, 150, 400, 900, 2500):
        most = selection(half("f", 40)) + least("race", 96) + more
        found = Searched(
            tmp_path / f"{more}.jsonl", holdout=40, max_evals=most, iterations=4, candidates=6
        )
        of = {n: [t for t in found.history.trials if t.iteration == n] for n in found.proposed}
        raced = {t["number"]: t["clips"] for t in reversed(found.told)}  # before one is finished
        for number in range(1, 5):
            spent = sum(raced[t.number] for n in of if n < number for t in of[n])
            left = most - selection(half("f", 40)) - spent
            block = 32 if left >= 2 * 2 * 32 * 6 else 16
            expected = min(6, int(left // (2 * block)))
            assert found.proposed.get(number, 0) == max(0, expected)
            if expected < 1:
                assert max(found.proposed) == number - 1
                break
            for t in of[number]:
                assert len(t.outcome.blocks) <= 1 or t.n_scored > block
                if len(t.outcome.blocks) == 1:
                    assert t.n_scored == block


@pytest.mark.parametrize("strategy", ["opro", "random"])
def test_without_a_race_a_candidate_costs_all_clips(tmp_path, strategy):
    most = selection(half("f", 40), raced=0) + least(strategy, 64) + 64 * 4
    found = Searched(
        tmp_path / "t.jsonl", search=64, holdout=40, strategy=strategy, max_evals=most, iterations=4, candidates=3
    )  # fmt: skip
    assert found.proposed == {0: 3, 1: 3, 2: 2}
    assert {(t["state"], t["clips"]) for t in found.told} == {("complete", 64)}


def test_where_the_seeds_leave_nothing_no_candidate_is_asked_for(tmp_path):
    proposer = Made()
    most = selection(half("f", 40), raced=0) + 3 * 64
    found = Searched(
        tmp_path / "t.jsonl", search=64, holdout=40, strategy="opro", max_evals=most, proposer=proposer
    )  # fmt: skip
    assert proposer.asked == [] and found.proposed == {0: 3}
    shown = found.display
    assert shown.scored + shown.skipped == budget.planned_pairs(found.problem, found.settings)


@pytest.mark.parametrize(("more", "dear"), [(-1, True), (0, False)])
def test_seeds_that_take_more_than_a_third_of_the_evals_race_the_first(tmp_path, more, dear):
    """Three seeds on 96 clips: beyond a third of what is left only the first is sure to be scored on everything."""
    left = 3 * 3 * 96 + more
    seeds = [Prompt(f"Seed {i}: speech? A or B") for i in (1, 5, 9)]
    found = Searched(
        tmp_path / "t.jsonl", holdout=40, max_evals=selection(half("f", 40)) + left, iterations=0, seeds=seeds
    )  # fmt: skip
    first, *others = found.told
    assert (first["state"], first["clips"]) == ("complete", 96)
    calls = [(p, len(c)) for p, c in found.evaluator.calls if c[0].clip_id.startswith("s")]
    if dear:
        assert calls[0] == (seeds[:1], 96) and calls[1] == (seeds[1:], 32)
        assert sum(t["clips"] for t in others) <= max(2 * 32, (left - 96) / 2)
    else:
        assert calls == [(seeds, 96)]
        assert all(t["clips"] == 96 for t in others)


def test_seeds_too_many_for_half_of_what_is_left_still_get_a_first_block_each(tmp_path):
    seeds = [Prompt(f"Seed {i}: speech? A or B") for i in range(9)]
    most = selection(half("f", 40)) + least("race", 96, 9)
    found = Searched(tmp_path / "t.jsonl", holdout=40, max_evals=most, iterations=0, seeds=seeds)
    assert all(t["clips"] >= 16 for t in found.told)
    assert {t["number"] for t in found.told} == set(range(9))
    assert found.evaluator.evals() <= most


@pytest.mark.parametrize("bad", [1, 2, 8])
@pytest.mark.parametrize("max_evals", [None, 0])
def test_where_the_first_seeds_cannot_be_scored_all_others_are(tmp_path, bad, max_evals):
    """The first that can be scored is, in full, and the others race it; the decision is made without the failed."""
    seeds = [Prompt(f"Seed {i}: speech? A or B") for i in range(9)]
    refused = [p.text for p in seeds[:bad]]
    most = None if max_evals is None else selection(half("f", 40)) + least("race", 96, 9)
    found = Searched(
        tmp_path / "t.jsonl", holdout=40, max_evals=most, seeds=seeds, evaluator=Spied(bad=refused.__contains__)
    )  # fmt: skip
    seeds_told = list({t["number"]: t for t in found.told if t["number"] < 9}.values())
    assert [t["state"] == "failed" for t in seeds_told] == [True] * bad + [False] * (9 - bad)
    assert [t["error"] for t in seeds_told[:bad]] == [
        f"{text} cannot be scored" for text in refused
    ]
    assert seeds_told[bad]["state"] == "complete" and all(
        t["clips"] >= 16 for t in seeds_told[bad:]
    )
    assert found.decision.baseline.number >= bad
    assert most is None or found.evaluator.evals() <= most
    shown = found.display
    assert shown.scored + shown.skipped == budget.planned_pairs(found.problem, found.settings)


def test_where_no_seed_can_be_scored_one_sentence_says_so(tmp_path):
    most = selection(half("f", 40)) + least("race", 96)
    for name, max_evals in (("a", most), ("b", None)):
        with pytest.raises(UserError, match="no seed prompt could be scored"):
            Searched(
                tmp_path / f"{name}.jsonl", holdout=40, max_evals=max_evals, evaluator=Spied(bad=bool)
            )  # fmt: skip


def test_a_prompt_that_fails_after_some_clips_has_spent_them(tmp_path):
    """It is told as failed, with the clips it took, and the next iterations have so much less."""
    search = half("s", 96)
    truth = search.targets.truth
    good = np.where(truth == 0, 2.0, -2.0)
    poor = good * np.where(np.arange(96) % 3 == 0, -1, 1)
    first = {p: poor for p in SEEDS}

    class Odds(dict):
        def __missing__(self, prompt):
            return good

    seen = []

    def bad(prompt, place):
        if prompt in first:
            return False
        seen.append(place)
        return place == 50

    found = Searched(
        tmp_path / "t.jsonl", search=search, holdout=40, evaluator=Told(Odds(first), search, bad), decides=False,
        max_evals=selection(half("f", 40)) + 3000, iterations=1, candidates=2,
    )  # fmt: skip
    failed = [t for t in found.told if t["state"] == "failed"]
    assert failed and all(t["reward"] is None for t in failed)
    assert any(0 < t["clips"] < 96 for t in failed)
    trials = found.history.trials
    assert found.evaluator.forwards == sum(t.n_scored for t in trials) == found.display.scored
    left = Budget.of(found.problem, found.settings).left(trials)
    assert left == 3000 - found.evaluator.forwards


# What is told.


def test_a_told_score_is_the_balanced_accuracy_of_the_models_own_log_probabilities(tmp_path):
    found = Searched(tmp_path / "t.jsonl", strategy="opro")
    search = found.problem.search_clips
    truth = np.array([LABELS.index(c.label) for c in search])
    sources = [c.source_id for c in search]
    c = clusters(truth, sources, seed=0)
    for trial in found.history.trials:
        own, one = logp(trial.prompt, search), trial.outcome
        right = (own[:, 1] > own[:, 0]) == truth
        score = (right[truth == 0].mean() + right[truth == 1].mean()) / 2
        assert trial.state == "complete" and one.n_scored == 96 and one.sd == 0
        assert one.score == pytest.approx(score, abs=1e-6)
        assert trial.reward == pytest.approx(score, abs=1e-6) and one.bias == 0
        assert trial.classifier.prompt == trial.prompt and trial.classifier.bias == 0
        loss = -np.array([own[i, k] for i, k in enumerate(truth)], dtype=float)
        loss += np.logaddexp(own[:, 0], own[:, 1])
        expected = (loss[truth == 0].mean() + loss[truth == 1].mean()) / 2
        assert one.loss == pytest.approx(expected, abs=1e-5)
        assert one.loss == pytest.approx(metrics.nll(truth, own), abs=1e-5)
        e = c.estimate(c.balanced(right.astype(float)))
        assert (one.low, one.high) == pytest.approx((e.low, e.high), abs=1e-6)
        assert one.blocks == (trial.reward,)
        ms = np.array([x.duration_ms == 200 for x in search])
        at = [right[ms & (truth == k)].mean() for k in (0, 1)]
        assert one.slices["200 ms"] == pytest.approx((np.mean(at), ms.sum()), abs=1e-6)
    assert len({t.outcome.score for t in found.history.trials}) > 3


def test_a_fitted_threshold_is_told_as_a_bias_and_scored_with(tmp_path):
    found = Searched(tmp_path / "t.jsonl", strategy="opro", threshold="dev", iterations=1)
    search = found.problem.search_clips
    truth = np.array([LABELS.index(c.label) for c in search])
    assert any(abs(t.outcome.bias) > 0.01 for t in found.history.trials)
    for t in found.history.trials:
        own = logp(t.prompt, search).astype(float)
        right = (own[:, 1] > own[:, 0] + t.classifier.bias) == truth
        score = (right[truth == 0].mean() + right[truth == 1].mean()) / 2
        assert t.outcome.score == pytest.approx(score, abs=1e-6)


def test_a_dropped_trial_tells_a_forecast_whose_interval_counts_its_own_error(tmp_path):
    found = Searched(tmp_path / "t.jsonl", iterations=3, candidates=8)
    search = found.problem.search_clips
    truth = np.array([LABELS.index(c.label) for c in search])
    c = clusters(truth, [x.source_id for x in search], seed=0)
    of = {t.number: entry for t, entry in found.saved}
    dropped = [t for t in found.history.trials if t.state == "dropped"]
    assert len(dropped) > 5
    for t in dropped:
        entry, one = of[t.number], t.outcome
        assert 0 < one.n_scored < 96 and one.n_scored == len(entry.scored)
        assert one.loss is None and not one.slices
        hits = [entry.p_correct[truth == k].mean() for k in (0, 1)]
        assert one.score == pytest.approx(np.mean(hits), abs=1e-6)
        known = log_odds(entry.logp.astype(np.float64))
        odds = log_odds(entry.expected)
        assert odds[entry.scored] == pytest.approx(known, abs=1e-6)
        e = c.estimate(c.balanced(np.where(odds > 0, 0, 1) == truth))
        low = max(0.0, one.score - math.sqrt((e.value - e.low) ** 2 + (1.96 * entry.sd) ** 2))
        high = min(1.0, one.score + math.sqrt((e.high - e.value) ** 2 + (1.96 * entry.sd) ** 2))
        assert (one.low, one.high) == pytest.approx((low, high), abs=2e-6)
        assert one.sd == pytest.approx(entry.sd, abs=1e-6) and one.sd > 0
        assert t.reward == pytest.approx(entry.reward, abs=1e-6)
        own = logp(t.prompt, [search[int(i)] for i in entry.scored])
        assert np.array_equal(entry.logp, own)
    told = {e["number"]: e for e in found.told}
    assert all(len(told[t.number]["blocks"]) == len(t.outcome.blocks) >= 1 for t in dropped)


def test_a_forecast_of_few_sources_has_no_interval_or_a_true_one(tmp_path):
    found = Searched(tmp_path / "t.jsonl", sources=2, iterations=1, candidates=6)
    for t in found.history.trials:
        assert 0 <= t.outcome.score <= 1
        assert (t.outcome.low is None) == (t.outcome.high is None)


def test_a_prompt_that_cannot_be_scored_fails_alone_with_its_reason(tmp_path):
    whole = Searched(tmp_path / "whole.jsonl", iterations=0)
    bad = SEEDS[1].text
    found = Searched(tmp_path / "t.jsonl", iterations=0, evaluator=Spied(bad=[bad].__contains__))
    failed = found.told[1]
    assert failed["state"] == "failed" and failed["error"] == f"{bad} cannot be scored"
    assert failed["clips"] == 0 and failed["reward"] is None
    assert [t for t in found.told if t["number"] != 1] == [
        t for t in whole.told if t["number"] != 1
    ]


def test_an_objective_that_is_no_number_fails_its_prompt_alone(tmp_path):
    """A right answer of probability zero has an infinite loss."""
    search = half("s", 40)
    odds = np.where(search.targets.truth == 0, 2.0, -2.0)

    class Sure(Told):
        def score(self, prompts, clips):
            table = super().score(prompts, clips)
            for p, prompt in enumerate(prompts):
                if prompt == SEEDS[0]:
                    table.logp[p, 0] = -np.inf
            return table

    found = Searched(
        tmp_path / "t.jsonl", search=search, evaluator=Sure(dict.fromkeys(SEEDS, odds), search), objective="nll",
        iterations=0, decides=False,
    )  # fmt: skip
    assert [t["state"] for t in found.told] == ["failed", "complete", "complete"]
    assert "no finite number" in found.told[0]["error"] and found.told[0]["clips"] == 40


def test_candidates_that_no_eval_is_left_for_fail_with_that_reason(tmp_path):
    """Journalled by a run with more evals, as after a change by hand: told, not scored, nothing spent."""
    path = tmp_path / "t.jsonl"
    Searched(path, holdout=40, iterations=1)
    lines = path.read_bytes().splitlines(keepends=True)
    for name, less in (("few", 96), ("none", 400)):
        cut = tmp_path / f"{name}.jsonl"
        cut.write_bytes(b"".join(lines[:6]))
        most = selection(half("f", 40)) + least("race", 96) - less
        found = Searched(cut, holdout=40, iterations=1, max_evals=most)
        failed = [t for t in found.told if t["state"] == "failed"]
        assert failed and all("--max-evals left nothing" in t["error"] for t in failed)
        assert all(t["clips"] == 0 for t in failed)


# The order of things.


def test_every_candidate_is_journalled_before_it_is_scored(tmp_path):
    path = tmp_path / "t.jsonl"

    def look(prompts):
        text = path.read_text()
        assert all(json.dumps(p.text)[1:-1] in text for p in prompts)

    found = Searched(path, evaluator=Spied(look))
    assert len(found.evaluator.calls) > 5


def test_scores_are_saved_before_the_trial_is_told(tmp_path):
    path = tmp_path / "t.jsonl"
    states = []

    def look(trial, entry):
        numbers = [json.loads(x).get("number") for x in path.read_text().splitlines()]
        states.append(trial.number in numbers)

    found = Searched(path, on_save=look)
    assert len(states) == len(found.told) and not any(states)
    assert [t.number for t, _ in found.saved] == [t["number"] for t in found.told]


def test_seeds_come_first_and_every_iteration_asks_for_its_candidates(tmp_path):
    found = Searched(tmp_path / "t.jsonl", iterations=3, candidates=4)
    assert found.proposed == {0: 3, 1: 4, 2: 4, 3: 4}
    assert found.proposer.asked == [(1, 4), (2, 4), (3, 4)]
    trials = found.history.trials
    assert [t.candidate.origin for t in trials] == ["seed"] * 3 + ["made"] * 12
    assert tuple(t.prompt for t in trials[:3]) == SEEDS
    assert [n for n, _ in found.display.stages] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [s for _, s in found.display.stages][::2] == ["seeds"] + ["proposing"] * 3
    assert [s for _, s in found.display.stages][1::2] == ["scoring"] * 4


def test_a_proposer_sees_earlier_iterations_and_the_scores_of_the_best_complete_trials(tmp_path):
    views = []

    class Looks(Made):
        def propose(self, view, n):
            views.append(view)
            return super().propose(view, n)

    found = Searched(tmp_path / "t.jsonl", iterations=4, candidates=8, proposer=Looks())
    assert [v.iteration for v in views] == [1, 2, 3, 4]
    for view in views:
        assert view.trials == tuple(t for t in found.history.trials if t.iteration < view.iteration)
        assert view.clips is found.problem.search_clips
        complete = [t for t in view.trials if t.state == "complete"]
        best = sorted(complete, key=lambda t: t.rank, reverse=True)
        assert list(view.logp) == [t.number for t in best[:24]]
        for t in best:
            assert np.array_equal(view.logp[t.number], logp(t.prompt, view.clips))
        assert view.scored == sorted(view.trials, key=lambda t: t.rank, reverse=True)


def test_scores_of_the_best_alone_are_held_however_many_trials_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "REFERENCES", 3)
    shown = []

    class Looks(Made):
        def propose(self, view, n):
            shown.append(list(view.logp))
            return super().propose(view, n)

    found = Searched(
        tmp_path / "t.jsonl", iterations=6, candidates=4, strategy="opro", proposer=Looks()
    )
    complete = found.history.complete
    assert len(complete) == 27 and len(found.search.logp) <= 3 + 4
    for number, numbers in enumerate(shown, 1):
        assert numbers == [t.number for t in complete if t.iteration < number][:3]


@pytest.mark.parametrize("strategy", ["race", "opro"])
@pytest.mark.parametrize("short", [0, 2, 5])
def test_pairs_scored_and_skipped_add_up_to_what_was_planned(tmp_path, strategy, short):
    """Also where fewer candidates could be made than were asked for."""
    found = Searched(
        tmp_path / "t.jsonl", proposer=Made(short, 1), strategy=strategy, decides=False
    )
    assert found.proposed == {0: 3, 1: 5 - short, 2: 5}
    assert found.display.scored == found.evaluator.evals("s")
    assert found.display.scored + found.display.skipped == (3 + 2 * 5) * 96


@pytest.mark.parametrize(
    ("swap", "max_evals"),
    [
        (False, None),
        (True, 700),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in ((True, None), (False, 700))),
        (False, 1500),
        pytest.param(True, 1500, marks=pytest.mark.slow),
    ],
)
def test_the_live_line_ends_at_its_total_resumed_or_not(tmp_path, max_evals, swap):
    most = max_evals and max_evals * (1 + swap)
    options = {"max_evals": most, "swap": swap, "iterations": 3, "candidates": 4, "search": 80}
    options |= {"fit": fit_budget, "seeds": seeds_with_options(3)}
    path, bars = tmp_path / "t.jsonl", []

    class Shown(Display):
        """Opened late: the problem is made by the search itself."""

        def bind(self, problem, settings):
            shown = OptimizeSettings(**dataclasses.asdict(settings))
            self.bar = Progress(problem, shown)
            bars.append(self.bar)

        def advance(self, scored, skipped):
            super().advance(scored, skipped)
            self.bar.advance(scored, skipped)
            task = self.bar._bar.tasks[0]
            assert task.completed <= task.total

    def run(kept=None):
        display = Shown()

        def fit(problem, settings):
            fitted = fit_budget(problem, settings)
            display.bind(fitted, settings)
            return fitted

        if kept is not None:
            lines = whole.splitlines(keepends=True)
            path.write_bytes(b"".join(lines[: round(kept * len(lines))]))
        found = Searched(
            path, evaluator=Metered(tmp_path / "cache"), display=display,
            proposer=Made(options=True, both_orders=swap), **{**options, "fit": fit},
        )  # fmt: skip
        task = display.bar._bar.tasks[0]
        assert task.completed == task.total == display.scored * (1 + swap)
        return found

    whole = run().journal
    for kept in (0.2, 0.6, 1):
        assert run(kept).journal == whole
    assert len(bars) == 4


def test_the_display_is_told_every_trial_and_the_best_so_far(tmp_path):
    found = Searched(tmp_path / "t.jsonl")
    assert [t.number for t, _ in found.display.trials] == [t["number"] for t in found.told]
    so_far = []
    for trial, best in found.display.trials:
        so_far.append(found.history.trials[trial.number])
        assert best.number == max(so_far, key=lambda t: t.rank).number


def test_a_search_tells_nothing_better_from_clips_it_is_decided_on(tmp_path):
    """Trials are scored on the search half alone; the holdout is asked for last, for all that are compared."""
    found = Searched(tmp_path / "t.jsonl")
    halves = [{c.clip_id[0] for c in cs} for _, cs in found.evaluator.calls]
    first = halves.index({"f"})
    assert all(h == {"s"} for h in halves[:first]) and all(h == {"f"} for h in halves[first:])
    prompts, scored_on = found.evaluator.calls[first]
    compared = [found.decision.baseline, *(f.trial for f in found.decision.finalists)]
    assert {t.prompt for t in compared} | {SEEDS[0]} == set(prompts)
    assert [c.clip_id for c in scored_on] == [c.clip_id for c in found.problem.holdout_clips]
    assert found.decision.baseline.iteration == 0


def test_a_resumed_search_scores_again_the_best_twenty_four_and_no_more(tmp_path):
    seeds = [Prompt(f"Seed {i}: speech? A or B") for i in range(30)]
    path = tmp_path / "t.jsonl"
    options = {"search": 40, "holdout": 8, "seeds": seeds, "candidates": 2}
    before = Searched(path, iterations=0, **options)
    best = [t.prompt for t in before.history.complete]
    assert len(best) == 30
    found = Searched(path, iterations=1, **options)
    prompts, scored_on = found.evaluator.calls[0]
    assert prompts == best[:24] and len(scored_on) == 40


def test_seconds_are_counted_where_they_are_spent(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    def one(prompts):
        now[0] += 1

    class Slow(Made):
        def propose(self, view, n):
            now[0] += 100
            return super().propose(view, n)

    found = Searched(tmp_path / "t.jsonl", evaluator=Spied(one), proposer=Slow(), decides=False)
    assert found.clock.seconds["proposing"] == pytest.approx(200)
    assert found.clock.seconds["scoring"] == pytest.approx(len(found.evaluator.calls))


def test_an_iteration_without_a_candidate_is_journalled_and_the_next_one_comes(tmp_path):
    found = Searched(tmp_path / "t.jsonl", proposer=Made(5, 1))
    assert found.proposed == {0: 3, 1: 0, 2: 5}


def test_a_search_cannot_be_changed():
    assert loop.Search.__dataclass_params__.frozen and dataclasses.is_dataclass(loop.Clock)


# Resumes.


def cuts_of(raw, within=1):
    """After every line, and within every `within`-th."""
    ends = [i + 1 for i, byte in enumerate(raw) if byte == 10]
    return [
        *ends[:-1],
        *(end + 9 for end in ends[:-1:within]),
        *(end - 1 for end in ends[1::within]),
    ]


@pytest.mark.parametrize(
    "more",
    [
        {"max_evals": 480},
        {"max_evals": 1500, "swap": True},
        {"threshold": "dev", "max_evals": 900},
        {"bad": True, "max_evals": 600},
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in ({}, {"max_evals": 600}, {"max_evals": 750}, {"bad": True})
        ),
    ],
    ids=str,
)
def test_a_search_cut_after_every_line_and_within_it_ends_byte_equal(tmp_path, monkeypatch, more):
    few_resamples(monkeypatch)
    bad = ("Seed 5:", ".1 ") if more.pop("bad", False) else ()
    options = {
        "iterations": 3,
        "candidates": 4,
        "search": 80,
        "holdout": 40,
        "decides": False,
        **more,
    }

    def searched(path):
        evaluator = Spied(bad=lambda text: any(b in text for b in bad))
        return Searched(
            path, evaluator=BothOrders(evaluator), seeds=seeds_with_seed_numbers(),
            proposer=Made(options=True, both_orders="swap" in more), **options,
        )  # fmt: skip

    raw = searched(tmp_path / "whole.jsonl").journal
    assert raw.count(b"\n") > 6
    for cut in cuts_of(raw, within=4):
        path = tmp_path / f"cut{cut}.jsonl"
        path.write_bytes(raw[:cut])
        assert searched(path).journal == raw, f"cut after {raw[:cut].count(10)} lines"


def seeds_with_seed_numbers():
    return tuple(Prompt(f"Seed {i}: {OPTIONS}") for i in (5, 1, 7))


@pytest.mark.parametrize("strategy", ["opro", "random"])
def test_a_search_that_scores_everything_resumes_byte_equal_too(tmp_path, monkeypatch, strategy):
    few_resamples(monkeypatch)
    options = {"max_evals": 1300, "strategy": strategy, "search": 64, "decides": False}
    raw = Searched(tmp_path / "whole.jsonl", **options).journal
    for lines in range(1, raw.count(b"\n"), 2):
        path = tmp_path / f"cut{lines}.jsonl"
        path.write_bytes(b"".join(raw.splitlines(keepends=True)[:lines]))
        assert Searched(path, **options).journal == raw


def test_a_search_cut_anywhere_chooses_what_the_whole_one_chose(tmp_path):
    whole = Searched(tmp_path / "whole.jsonl")
    lines = whole.journal.splitlines(keepends=True)
    for kept in (1, 4, 9, len(lines)):
        path = tmp_path / f"cut{kept}.jsonl"
        path.write_bytes(b"".join(lines[:kept]))
        again = Searched(path)
        for one in ("baseline", "finalists", "winner", "reason", "to_first_seed", "controls"):
            assert getattr(again.decision, one) == getattr(whole.decision, one)


def test_what_was_told_is_not_told_or_saved_again(tmp_path):
    whole = Searched(tmp_path / "whole.jsonl")
    lines = whole.journal.splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:-2]))
    again = Searched(tmp_path / "cut.jsonl")
    assert [t.number for t, _ in again.saved] == [t.number for t, _ in whole.saved[-2:]]
    assert [t.number for t, _ in again.display.trials] == [t.number for t, _ in again.saved]
    assert again.proposer.asked == []


def test_a_finished_search_proposes_and_races_nothing_again(tmp_path):
    Searched(tmp_path / "t.jsonl")
    again = Searched(tmp_path / "t.jsonl")
    assert again.proposer.asked == [] and again.saved == [] and again.display.trials == []
    shown = again.display
    assert shown.scored + shown.skipped == budget.planned_pairs(again.problem, again.settings)


def test_log_probabilities_of_helpers_are_those_of_their_odds():
    odds = np.array([2.0, -3.0])
    assert logp_of(odds)[:, 0] - logp_of(odds)[:, 1] == pytest.approx(odds)


@pytest.mark.parametrize("max_evals", [600, 800, 1000, 1200])
def test_what_is_decided_among_was_scored_on_every_search_clip(tmp_path, max_evals):
    """A forecast that beats the best seed is finished before it may become a finalist, as far as the budget goes."""
    found = Searched(
        tmp_path / "t.jsonl", iterations=3, candidates=8, threshold="dev", max_evals=max_evals
    )
    decided = [found.decision.baseline, *(f.trial for f in found.decision.finalists)]
    assert all(t.state == "complete" and t.n_scored == 96 for t in decided)
    told = [t["number"] for t in found.told]
    assert (len(told) > len(set(told))) == (max_evals != 800)  # one was finished
    again = History(found.path, LABELS)
    assert again.trials == found.history.trials and again.best == found.history.best
    controls = sum(len(c) for _, c in found.evaluator.calls if c[0].audio != "recorded")
    assert found.evaluator.evals() - controls <= max_evals


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("threshold", ["argmax", "dev"])
def test_what_is_searched_is_what_is_told_selected_and_shown(tmp_path, objective, threshold):
    found = Searched(
        tmp_path / "t.jsonl",
        strategy="opro",
        candidates=6,
        objective=objective,
        threshold=threshold,
    )
    for trial in found.history.complete:
        assert trial.outcome.score == trial.reward
        if trial.outcome.low is not None:
            assert trial.outcome.low <= trial.reward <= trial.outcome.high
    holdout = found.problem.holdout_clips
    measure = Objective(objective, threshold)
    finalists = found.decision.finalists
    assert finalists or objective != "balanced_accuracy"
    for one in (*finalists[:1], found.decision):
        trial, score = (
            (one.trial, one.score) if hasattr(one, "trial") else (one.baseline, one.baseline_score)
        )
        own = measure.measure(logp(trial.prompt, holdout), holdout, bias=trial.classifier.bias)
        assert score.value == pytest.approx(own.reward, abs=1e-6)
    base = found.decision.baseline_score
    for one in finalists:
        assert one.gain.value == pytest.approx(one.score.value - base.value, abs=1e-9)
    assert objective != "nll" or not any(t.classifier.bias for t in found.history.complete)


def raced_by_hand(path, *, forecasts=2, left=130, told=(), **more):
    """A journal of one seed and so many dropped trials that beat it, with so many pairs left to finish them.

    Args:
        told: Of each trial its reward or forecast, the forecast's sd, and whether it was dropped.
    """
    problem = {"search": half("s", 96), "holdout": half("f", 96)}
    outcomes = told or [(0.9, 0.01, True)] * forecasts
    journal = History(path, LABELS)
    journal.begin({"seed": 0})
    seeds = journal.add(0, [Candidate(SEEDS[0], "seed")])
    made = journal.add(
        1, [Candidate(Prompt(f"{i}: speech? A or B"), "made") for i in range(forecasts)]
    )
    journal.tell(
        dataclasses.replace(
            seeds[0], state="complete", outcome=Outcome(0.1, 0.0, 0.1, loss=3.0, n_scored=96)
        )
    )
    for t, (reward, sd, dropped) in zip(made, outcomes, strict=True):
        outcome = Outcome(reward, sd, reward, n_scored=64)
        if not dropped:
            outcome = Outcome(reward, 0.0, reward, loss=1.0, n_scored=96)
        state = "dropped" if dropped else "complete"
        journal.tell(dataclasses.replace(t, state=state, outcome=outcome))
    aside = budget.most_selected(more.get("holdout", problem["holdout"])) * 96
    most = aside + 96 + sum(64 if dropped else 96 for *_, dropped in outcomes) + left
    return {
        "seeds": SEEDS[:1],
        "iterations": 1,
        "candidates": forecasts,
        "max_evals": most,
        **problem,
        **more,
    }


@pytest.mark.parametrize("left", [95, 100, 130, 160, 191, 192, 300])
def test_a_search_cut_while_it_finishes_forecasts_goes_on_as_the_whole_one(tmp_path, left):
    """What was asked for twice is known from the journal alone."""
    how = raced_by_hand(tmp_path / "whole.jsonl", left=left)
    begun = (tmp_path / "whole.jsonl").read_bytes()
    whole = Searched(tmp_path / "whole.jsonl", **how)
    finished = whole.journal[len(begun) :].splitlines(keepends=True)
    assert len(finished) == min(2, left // 96)
    assert ("left nothing to finish 2" in whole.decision.reason) == (not finished)
    assert whole.evaluator.evals() <= how["max_evals"] + 4 * 96
    for kept in range(len(finished) + 1):
        path = tmp_path / f"cut{kept}.jsonl"
        path.write_bytes(begun + b"".join(finished[:kept]))
        again = Searched(path, **how)
        assert again.journal == whole.journal
        assert again.decision.reason == whole.decision.reason


def trials_of(decision):
    """What is compared on the holdout."""
    return [decision.baseline, *(one.trial for one in decision.finalists)]


raced = st.tuples(st.floats(0, 1), st.floats(0, 0.2), st.booleans())


@settings(max_examples=15, deadline=None, phases=UNSHRUNK)
@given(st.lists(raced, min_size=1, max_size=6), st.integers(0, 700), st.sampled_from([8, 40, 60]))
def test_what_a_race_dropped_is_no_finalist_before_it_was_scored_on_all_clips(made, left, sources):
    """And none is passed over that the budget could finish."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        few_resamples(patch)
        path = Path(folder) / "raced.jsonl"
        search, holdout = half("s", 96, sources), half("f", 96, sources)
        how = raced_by_hand(
            path, forecasts=len(made), left=left, told=made, search=search, holdout=holdout
        )
        found = Searched(path, **how)
        trials = found.history.trials
        assert all(t.state == "complete" and t.n_scored == 96 for t in trials_of(found.decision))
        finished = {t.number for t in trials if t.asked_twice}
        waiting = [t for t in trials if t.state == "dropped"]
        assert {t.number for t in trials[1:] if t.state == "complete"} == finished | {
            i for i, (_, _, dropped) in enumerate(made, 1) if not dropped
        }
        best, rivals = pick_finalists(found.history.scored, holdout.targets.fewest_sources)
        if any(t in waiting for t in (best, *rivals)):  # nothing was left to finish it
            assert left - 96 * len(finished) < 96
