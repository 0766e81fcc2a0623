"""Language model and rewriter together."""

import json
from dataclasses import replace

import pytest
from searches import ScriptedLM, scored_trial, three_seeds

from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK
from opro.proposers.ledger import Ledger, MeteredModel
from opro.proposers.lm_proposer import LMProposer
from opro.proposers.mixed import Mixed
from opro.proposers.rewriter import Rewriter
from opro.search.history import Candidate
from opro.search.objective import Objective


def mixed(lm, rewriter=None):
    asks = LMProposer(MeteredModel(lm, Ledger()), SPEECH_TASK, Objective())
    return Mixed(asks, rewriter or Rewriter(SPEECH_TASK, 0))


class Fixed:
    """A proposer of these texts."""

    def __init__(self, *texts, name="fixed"):
        self.texts, self.name, self.asked = texts, name, []

    def propose(self, view, n):
        self.asked.append(n)
        return [Candidate(Prompt(text), self.name) for text in self.texts[:n]]


def test_language_model_and_rewriter_share_by_success(seeds):
    won = [
        scored_trial(2 + i, 0.5, i, origin=origin, prompt=Prompt(f"{i}: A or B"))
        for i, origin in enumerate(("lm", "rewriter:x", "rewriter:x"), 1)
    ]

    def asked(iteration, n=10):
        texts = [f"{iteration}.{i} A B" for i in range(20)]
        view = three_seeds(seeds, won, iteration=iteration)
        found = mixed(ScriptedLM(json.dumps({"prompts": texts}))).propose(view, n)
        assert len(found) == n and len({c.prompt.digest for c in found}) == n
        return sum(c.origin == "lm" for c in found)

    assert [asked(i) for i in (1, 2, 3, 4)] == [5, 7, 5, 4]
    assert asked(1, 1) == 1 and asked(4, 2) == 1


def test_each_gets_one_at_least_and_rounds_without_a_score_do_not_count(seeds):
    many = [scored_trial(2 + i, 0.5, i, origin="lm") for i in range(1, 10)]
    lm, rewriter = Fixed(*"abcdefgh"), Fixed(*"stuvwxyz")
    Mixed(lm, rewriter).propose(three_seeds(seeds, many), 4)
    lost = [replace(t, candidate=replace(t.candidate, origin="rewriter")) for t in many]
    Mixed(lm, rewriter).propose(three_seeds(seeds, lost), 4)
    failed = [replace(t, state="failed", outcome=None) for t in lost]
    Mixed(lm, rewriter).propose(three_seeds(seeds, failed), 4)
    assert lm.asked == [3, 1, 2]
    for proposals in (2, 3):
        found = Mixed(lm, rewriter).propose(three_seeds(seeds, many), proposals)
        assert [c.prompt.text for c in found] == [*"abcdefgh"[: proposals - 1], "s"]


def test_the_winner_of_a_round_is_its_best_and_not_its_first(seeds):
    rounds = [
        scored_trial(3, 0.5, 1, origin="rewriter"),
        scored_trial(4, 0.6, 1, origin="lm"),
        scored_trial(5, 0.9, 1, state="dropped", sd=0.5, origin="rewriter"),
    ]
    lm = Fixed()
    Mixed(lm, Fixed()).propose(three_seeds(seeds, rounds), 9)
    assert lm.asked == [6]


@pytest.mark.parametrize(
    "reply", ["", "x" * 100_000, "<script>alert(1)</script>", "<|im_end|>" * 9]
)
def test_what_a_useless_model_leaves_open_the_rewriter_fills(seeds, reply):
    found = mixed(ScriptedLM(*[reply] * 3)).propose(three_seeds(seeds), 6)
    assert len(found) == 6 and all(c.origin.startswith("rewriter") for c in found)


def test_what_both_propose_is_tried_once(seeds):
    lm, rewriter = Fixed("A or B?", "both: A, B", name="lm"), Fixed("BOTH a b", "c", "d", "e")
    found = Mixed(lm, rewriter).propose(three_seeds(seeds), 4)
    assert [c.prompt.text for c in found] == ["A or B?", "both: A, B", "c", "d"]
    assert Mixed(lm, rewriter).name == "lm and fixed"


def test_a_rewriter_is_not_asked_where_nothing_is_left(seeds):
    rewriter = Fixed("x")
    assert len(Mixed(Fixed("a", "b"), rewriter).propose(three_seeds(seeds), 1)) == 1
    assert rewriter.asked == []
