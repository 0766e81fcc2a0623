"""Prompts that other runs found good."""

import pytest
from searches import clip, clip_set, half, scored_trial, three_seeds, view_of

from evaluators.errors import LeakError
from evaluators.prompts import Prompt
from opro.proposers.shared import PastRun, Shared, shared_candidates
from opro.search.history import Candidate


def past(name, *texts, sources=()):
    trials = [scored_trial(i, 0.9 - i / 10, prompt=Prompt(t)) for i, t in enumerate(texts)]
    return PastRun(name, trials, frozenset(sources))


class Numbered:
    name = "numbered"

    def __init__(self, texts=()):
        self.texts, self.asked = texts, []

    def propose(self, view, n):
        self.asked.append((view.iteration, n))
        texts = [*self.texts, *(f"own {i}: A or B" for i in range(n))][:n]
        return [Candidate(Prompt(t), "own") for t in texts]


def test_runs_take_turns_the_best_of_each_first_and_none_comes_twice():
    runs = [past("a", "1 A B", "2 A B", "3 A B"), past("b", "4 A B", "1 A B"), past("c")]
    found = shared_candidates(runs, half("f", 4), 9)
    assert [(c.prompt.text, c.origin) for c in found] == [
        ("1 A B", "shared:a"), ("4 A B", "shared:b"), ("2 A B", "shared:a"), ("3 A B", "shared:a")
    ]  # fmt: skip
    assert shared_candidates(runs, half("f", 4), 2) == found[:2]
    assert shared_candidates(runs, half("f", 4), 0) == [] == shared_candidates([], half("f", 4), 3)


def test_a_run_that_searched_on_a_source_of_the_holdout_is_refused():
    holdout = clip_set([clip(0, source="x"), clip(1, 1, source="y")])
    good, bad = past("good", "A B", sources=["z"]), past("bad", "A B", sources=["z", "y"])
    assert len(shared_candidates([good], holdout, 3)) == 1
    with pytest.raises(LeakError, match="--share 'bad' searched on source 'y'"):
        shared_candidates([good, bad], holdout, 3)


def test_shared_prompts_take_at_most_half_of_the_first_round(seeds):
    shared = [Candidate(Prompt(f"shared {i}: A or B"), "shared:a") for i in range(9)]
    for n, count in ((1, 1), (2, 1), (5, 3), (6, 3), (30, 9)):
        proposer = Numbered()
        found = Shared(proposer, shared).propose(three_seeds(seeds), n)
        assert found[:count] == shared[:count] and len(found) == n
        assert all(c.origin == "own" for c in found[count:])
        assert proposer.asked == ([(1, n - count)] if n > count else [])
    later = three_seeds(seeds, [scored_trial(3, 0.5, 1)])
    assert all(c.origin == "own" for c in Shared(Numbered(), shared).propose(later, 4))
    assert Shared(Numbered(), shared).name == "numbered"


def test_what_is_known_or_shared_already_is_not_tried_again():
    shared = [Candidate(Prompt(t), "shared:a") for t in ("Seed: A, B", "own 0 -- a or b", "z A B")]
    view = view_of([scored_trial(0, 0.5, 0, prompt=Prompt("seed a b"))])
    found = Shared(Numbered(), shared).propose(view, 6)
    assert [c.prompt.text for c in found[:2]] == ["own 0 -- a or b", "z A B"]
    assert [c.prompt.text for c in found[2:]] == [f"own {i}: A or B" for i in (1, 2, 3)]
