"""All arithmetic of --max-evals. What a search then spends is tested with the loop."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import SEEDS, clip, clip_set, half, scored_trial

from evaluators.errors import UserError
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK, Task
from opro.problem import Problem
from opro.search import budget
from opro.search.budget import Budget, fit_budget
from opro.search.history import Candidate, Trial
from opro.settings import SearchSettings


def problem(search=96, holdout=60, seeds=3, both_orders=False, sources=40):
    return Problem(
        SPEECH_TASK,
        tuple(Prompt(f"Seed {i}: A or B", both_orders=both_orders) for i in range(seeds)),
        half("s", search, sources),
        half("f", holdout, sources),
        None,
        {},
        ("first",),
    )


def searching(**changes):
    return SearchSettings(**{"iterations": 4, "candidates": 6, **changes})


def least(one, **changes):
    """Evals of the sentence that refuses too few; found by asking for one."""
    with pytest.raises(UserError, match=r"--max-evals is 1; the seeds and the selection") as caught:
        fit_budget(one, searching(max_evals=1, **changes))
    return int(str(caught.value).split("clips take ")[1].split(",")[0])


def test_the_selection_takes_finalists_and_baseline():
    """One finalist for ten sources of the rarer label."""
    for count, finalists in ((8, 1), (19, 1), (20, 2), (39, 3), (49, 4), (50, 5), (80, 5)):
        holdout = clip_set(
            clip(i, i % 2, source=f"s{i % 2}-{i // 2 % count}") for i in range(4 * count)
        )
        assert budget.most_finalists(count) == finalists
        assert budget.most_selected(holdout) == finalists + 1
        one = dataclasses.replace(problem(), holdout_clips=holdout)
        found = Budget.of(one, searching(max_evals=10_000))
        finished = len(one.search_clips)  # a forecast, after a race
        assert found.selection == (finalists + 1) * len(holdout) + finished


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("strategy", "search", "seeds", "expected"),
    [
        ("race", 96, 3, 2 * 32 + 3 * 32),
        ("race", 20, 3, 2 * 20 + 3 * 20),
        ("race", 96, 1, 2 * 32 + 32),
        ("opro", 96, 3, 3 * 32 + 32),
        ("random", 20, 2, 2 * 20 + 20),
    ],
)
def test_the_least_a_search_needs_is_seeds_selection_and_one_candidate(
    strategy, search, seeds, expected, swap
):
    """On the fewest clips that halves are cut to."""
    one = problem(search, 60, seeds)
    selected = (2 + 1) * 60
    needed = (selected + expected) * (2 if swap else 1)
    assert least(one, strategy=strategy, swap=swap) == needed
    fit_budget(one, searching(strategy=strategy, max_evals=needed, swap=swap))
    with pytest.raises(UserError, match="give more, or fewer --clips"):
        fit_budget(one, searching(strategy=strategy, max_evals=needed - 1, swap=swap))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(64, 400),
    st.integers(64, 400),
    st.none() | st.integers(3000, 20_000),
    st.booleans(),
)
def test_halves_are_cut_to_what_few_evals_can_use(search, holdout, max_evals, swap):
    """A fifth for the selection, a twelfth of the rest a prompt, even numbers, never fewer than 64 and 32."""
    one = problem(search, holdout, sources=100)
    found = fit_budget(one, searching(max_evals=max_evals, swap=swap))
    first, second = found.search_clips, found.holdout_clips
    assert list(first) == list(one.search_clips)[: len(first)]
    assert list(second) == list(one.holdout_clips)[: len(second)]
    if max_evals is None:
        assert found is one
        return
    pairs = max_evals // (2 if swap else 1)
    share = pairs // 5 // budget.most_selected(one.holdout_clips)
    assert len(second) == min(holdout, max(64, share - share % 2))
    share = (pairs - budget.most_selected(second) * len(second)) // 12
    assert len(first) == min(search, max(32, share - share % 2))
    assert found.warnings[0] == "first"
    told = f"{len(first)} of its {search} clips, the selection on {len(second)} of {holdout}"
    cut = (len(first), len(second)) != (search, holdout)
    assert [told in w for w in found.warnings[1:]] == [True] * cut


def test_clips_of_a_shorter_half_are_not_invented():
    found = fit_budget(problem(20, 10), searching(max_evals=5000))
    assert (len(found.search_clips), len(found.holdout_clips)) == (20, 10)
    assert found.warnings == ("first",)


@pytest.mark.parametrize(("max_evals", "swap", "pairs"), [
    (None, False, math.inf), (None, True, math.inf), (999, False, 999), (999, True, 499),
])  # fmt: skip
def test_both_orders_of_a_prompt_are_two_evals(max_evals, swap, pairs):
    one = problem()
    assert budget.max_pairs(one, searching(max_evals=max_evals, swap=swap)) == pairs
    assert Budget.of(one, searching(max_evals=max_evals, swap=swap)).pairs == pairs
    told = problem(both_orders=True)  # by the seed prompts themselves, as in a best.yaml of --swap
    twice = pairs if math.isinf(pairs) else 499
    assert budget.max_pairs(told, searching(max_evals=max_evals, swap=swap)) == twice
    mixed = dataclasses.replace(one, seed_prompts=(*one.seed_prompts, told.seed_prompts[0]))
    assert budget.max_pairs(mixed, searching(max_evals=max_evals, swap=swap)) == twice


def test_what_is_left_counts_every_clip_that_earlier_trials_were_scored_on():
    one = Budget(1000, 200, 6, True)
    failed = Trial(3, 1, Candidate(SEEDS[0], "x"), "failed", None, "lost", failed_after=32)
    earlier = [
        scored_trial(0, 0.5, 0, n_scored=96),
        scored_trial(1, 0.5, 1, state="dropped", n_scored=16),
        failed,
        Trial(4, 1, Candidate(SEEDS[1], "x")),
    ]
    assert one.left(earlier) == 1000 - 200 - 96 - 16 - 32
    assert Budget(math.inf, 200, 6, True).left(earlier) == math.inf


def test_a_race_takes_two_blocks_a_candidate_and_smaller_ones_where_little_is_left():
    one = Budget(10_000, 0, 6, True)
    for left in range(0, 3000, 6):  # 768 among them
        block = 32 if left >= 2 * 2 * 32 * 6 else 16
        assert one.first_block(left) == block
        assert one.candidates(left, 200) == min(6, left // (2 * block))
    assert one.candidates(-50, 200) == 0
    assert one.candidates(math.inf, 200) == 6 and one.first_block(math.inf) == 32


def test_without_a_race_a_candidate_takes_all_clips():
    one = Budget(10_000, 0, 6, False)
    assert [one.candidates(left, 200) for left in (-1, 199, 200, 399, 1200, 5000)] == [
        0,
        0,
        1,
        1,
        6,
        6,
    ]
    assert one.candidates(math.inf, 200) == 6


def test_only_a_strategy_that_races_does_of_any_number_of_labels():
    for strategy in ("race", "opro", "random"):
        assert Budget.of(problem(), searching(strategy=strategy)).races == (strategy == "race")
    three = Task("three", ("A", "B", "C"), "x")
    assert Budget.of(dataclasses.replace(problem(), task=three), searching()).races


def test_most_evals_are_all_prompts_on_all_clips_selection_and_controls():
    one, prompts = problem(), 3 + 4 * 6
    selected, beside = (1 + 2) * 60, (4 + 1) * 60  # of three seed prompts the first
    plain = prompts * 96 + selected + beside
    assert budget.planned_pairs(one, searching()) == plain
    assert budget.most_evals(one, searching()) == plain
    assert budget.most_evals(one, searching(swap=True)) == 2 * plain
    assert budget.most_evals(one, searching(max_evals=1001)) == 1001 + beside
    assert budget.most_evals(one, searching(max_evals=1001, swap=True)) == 1000 + 2 * beside
    assert budget.most_evals(one, searching(max_evals=10**6)) == plain
    assert budget.planned_pairs(one, searching(max_evals=1001, swap=True)) == plain
