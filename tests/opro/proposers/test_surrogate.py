"""The surrogate: which proposals to score, by their words."""

import numpy as np
import pytest

from evaluators.prompts import Prompt
from opro.proposers import surrogate
from opro.proposers.surrogate import pick, words_of

GOOD = [Prompt(f"Listen well, is a person talking {i}? A) yes B) no") for i in range(6)]
POOR = [Prompt(f"Noise or something else, decide {i}: A = talk, B = rest") for i in range(6)]


def chosen(past, pool, count, seed=0):
    return pick(past, pool, count, np.random.default_rng(seed))


def share_of_good(sd):
    """Of 40 picks of 3 among 3 prompts that are like the good ones, and 3 that are like the poor ones."""
    past = [(p, 0.9, sd) for p in GOOD[:3]] + [(p, 0.5, sd) for p in POOR[:3]]
    pool = [p for pair in zip(GOOD[3:], POOR[3:], strict=True) for p in pair]
    found = [i for seed in range(40) for i in chosen(past, pool, 3, seed)]
    return np.mean([i % 2 == 0 for i in found])


def test_prompts_that_share_their_words_with_good_ones_are_picked_the_surer_the_more():
    assert share_of_good(0.0) > 0.9
    assert 0.45 < share_of_good(1.0) < 0.75


def test_between_prompts_that_are_well_known_luck_does_not_decide():
    """A hundred scores each, and a lead of three points; also where the pool says the same twice."""
    past = [(p, reward, 0.0) for p, reward in ((GOOD[0], 0.73), (POOR[0], 0.7)) for _ in range(100)]
    pool = [POOR[0], Prompt(POOR[0].text.upper()), GOOD[0], Prompt(GOOD[0].text.upper())]
    for seed in range(20):
        assert set(chosen(past, pool, 2, seed)) == {2, 3}


@pytest.mark.parametrize(("count", "most"), [(0, 0), (2, 2), (6, 6), (9, 6)])
def test_as_many_as_wanted_are_picked_each_once_and_the_same_for_the_same_seed(count, most):
    past = [(p, 0.5 + i / 10, 0.01) for i, p in enumerate(GOOD[:3])]
    found = chosen(past, POOR, count)
    assert len(found) == len(set(found)) == most and set(found) <= set(range(6))
    assert found == chosen(past, POOR, count)


def test_different_draws_pick_differently_where_nothing_is_known():
    past = [(GOOD[0], 0.5, 0.0)]
    assert len({chosen(past, POOR, 1, seed)[0] for seed in range(40)}) > 3


def test_words_are_words_marks_pairs_and_what_each_answer_stands_for():
    found = words_of(Prompt("Is it A?\nB!", (("SPEECH", ("A", "1")), ("NONSPEECH", ("B",)))))
    assert found == {
        "is", "it", "a", "?", "\n", "b", "!", "is it", "it a", "a ?", "? \n", "\n b", "b !",
        "SPEECH=A", "SPEECH=1", "NONSPEECH=B",
    }  # fmt: skip
    assert words_of(Prompt("a B")) == words_of(Prompt("A b"))


def test_likeness_is_the_square_of_the_share_of_common_words():
    found = surrogate._kernel(
        [frozenset("abcd"), frozenset("abcd"), frozenset("ab"), frozenset("x")]
    )
    assert found[0, 1] == pytest.approx(1) and np.diag(found) == pytest.approx(1)
    assert found[0, 2] == pytest.approx((2 / np.sqrt(8)) ** 2) and found[0, 3] == 0
