"""Reversed prompts are exchanged by the engine."""

from searches import scored_trial, three_seeds

from evaluators.prompts import Prompt, exchanged
from opro.proposers.exchange import Exchanging
from opro.search.history import Candidate
from opro.search.objective import Profile

FRONT = Prompt("speech? A or B")


def reversed_trial(number, auroc, prompt):
    return scored_trial(number, 0.2, prompt=prompt, profile=Profile((0.2, 0.2), auroc, 0.5))


class Fixed:
    name = "fixed"

    def __init__(self, *prompts):
        self.prompts, self.asked = prompts, []

    def propose(self, view, n):
        self.asked.append(n)
        return [Candidate(p, "fixed") for p in self.prompts[:n]]


def test_what_separates_the_wrong_way_round_comes_back_with_its_answers_exchanged(seeds):
    prompts = [Prompt(f"{i}: A or B") for i in range(4)]
    areas = (0.3, 0.1, 0.41, 0.2)
    tried = [reversed_trial(3 + i, areas[i], p) for i, p in enumerate(prompts)]
    view = three_seeds(seeds, tried)
    inner = Fixed(*[Prompt(f"new {i}: A or B") for i in range(9)])
    found = Exchanging(inner).propose(view, 9)
    assert [c.prompt.text for c in found[:2]] == ["1: A or B", "3: A or B"] and inner.asked == [7]
    assert [c.origin for c in found] == ["exchange"] * 2 + ["fixed"] * 7
    assert found[0].prompt.answers == (("SPEECH", ("B",)), ("NONSPEECH", ("A",)))
    assert found[0].parents == (prompts[1].prompt_id,)


def test_each_is_exchanged_once_and_never_back(seeds):
    other = exchanged(FRONT)
    view = three_seeds(seeds, [reversed_trial(3, 0.1, FRONT), reversed_trial(4, 0.2, other)])
    assert [c.origin for c in Exchanging(Fixed()).propose(view, 8)] == []
    assert exchanged(other) == FRONT


def test_a_round_of_one_and_what_others_propose_too(seeds):
    view = three_seeds(seeds, [reversed_trial(3, 0.1, FRONT)])
    assert [c.origin for c in Exchanging(Fixed(FRONT)).propose(view, 1)] == ["fixed"]
    same = Exchanging(Fixed(exchanged(FRONT), Prompt("x: A, B"))).propose(view, 3)
    assert [c.origin for c in same] == ["exchange", "fixed"]


def test_only_two_classes_can_be_exchanged():
    three = tuple((label, (label,)) for label in "abc")
    assert exchanged(Prompt("x", three)) is None
