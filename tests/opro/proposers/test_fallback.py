"""A search goes on where its language model does not answer."""

from dataclasses import replace

import pytest
from searches import scored_trial, view_of

from evaluators.errors import PauseError
from evaluators.prompts import Prompt
from opro.proposers.fallback import OrNothing
from opro.proposers.language_model import UnansweredError
from opro.search.history import Candidate

VIEW = view_of([scored_trial(0, 0.5, 0)])


class Asks:
    """Proposes, or raises, what a script says."""

    name = "language model m"

    def __init__(self, *script):
        self.script, self.asked = list(script), 0

    def propose(self, view, n):
        self.asked += 1
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


FOUND = [Candidate(Prompt("A or B"), "lm")]


def test_what_is_proposed_passes():
    records = []
    proposer = OrNothing(Asks(FOUND), records.append)
    assert proposer.propose(VIEW, 1) == FOUND and proposer.name == "language model m"
    assert records == []


def test_a_server_that_was_not_reached_is_asked_again_in_the_next_round_and_told_of_once(caplog):
    records = []
    asks = Asks(UnansweredError("no connection"), UnansweredError("no connection"), FOUND)
    proposer = OrNothing(asks, records.append)
    views = [replace(VIEW, iteration=number) for number in (1, 1, 2, 3)]
    assert [proposer.propose(view, 1) for view in views] == [[], [], [], FOUND]
    assert asks.asked == 3
    assert records == [
        {"iteration": 1, "unanswered": "the rewriter goes on without it: no connection"}
    ]
    assert caplog.text.count("the rewriter goes on without it: no connection") == 1


def test_a_server_that_refuses_is_not_asked_again():
    records = []
    asks = Asks(UnansweredError("the key was refused", refused=True))
    proposer = OrNothing(asks, records.append)
    assert [proposer.propose(VIEW, 1) for _ in range(3)] == [[], [], []]
    assert asks.asked == 1 and len(records) == 1


def test_any_other_pause_pauses():
    with pytest.raises(PauseError, match="disk is full"):
        OrNothing(Asks(PauseError("the disk is full")), print).propose(VIEW, 1)


def test_fragments_are_forgiven_like_prompts():
    class Silent(Asks):
        def fragments(self, view):
            return self.propose(view, 0)

    asks = Silent({"hints": ["x"]}, UnansweredError("no connection"))
    proposer = OrNothing(asks, [].append)
    assert [proposer.fragments(VIEW) for _ in range(3)] == [{"hints": ["x"]}, {}, {}]
    assert asks.asked == 2 and proposer.propose(VIEW, 1) == []
