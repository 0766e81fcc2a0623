"""Language model and rewriter together."""

import json
import random
from dataclasses import replace

import pytest
from searches import ScriptedLM, scored_trial, three_seeds

from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK
from opro.proposers.language_model import Reply
from opro.proposers.ledger import Ledger, MeteredModel
from opro.proposers.lm_proposer import LMProposer
from opro.proposers.mixed import Mixed, lm_share
from opro.proposers.rewriter import Rewriter
from opro.search.history import Candidate
from opro.search.objective import Objective


def mixed(lm, rewriter=None):
    asks = LMProposer(MeteredModel(lm, Ledger()), SPEECH_TASK, Objective())
    return Mixed(asks, rewriter or Rewriter(SPEECH_TASK, 0))


class Fixed:
    """A proposer of these texts."""

    def __init__(self, *texts, name="fixed"):
        self.texts, self.name, self.asked, self.got = texts, name, [], []

    def propose(self, view, n):
        self.asked.append(n)
        return [Candidate(Prompt(text), self.name) for text in self.texts[:n]]

    def enriched(self, more):
        self.got.append(more)
        return self


def round_of(origins, iteration=1, first=3):
    """Trials of a round, the best first."""
    return [
        scored_trial(
            first + i, 0.9 - i / 100, iteration, origin=o, prompt=Prompt(f"{first + i}: A B")
        )
        for i, o in enumerate(origins)
    ]


@pytest.mark.parametrize(
    ("origins", "share"),
    [
        ([], 1 / 2),
        (["lm", "rewriter:x"], (2 / 3) / (2 / 3 + 1 / 3)),
        (["rewriter:x", "lm"], (1 / 3) / (1 / 3 + 2 / 3)),
        # three of eight by the model, two of them in the better half: no more than it has earned
        (["lm", "rewriter", "lm", "rewriter", "rewriter", "lm", "rewriter", "rewriter"], (3 / 5) / (3 / 5 + 3 / 7)),
        (["lm"], (2 / 3) / (2 / 3 + 1 / 2)),
        (["seed", "shared:x", "exchange", "lm"], (2 / 3) / (2 / 3 + 1 / 2)),
    ],
)  # fmt: skip
def test_credit_is_by_candidate(seeds, origins, share):
    assert lm_share(three_seeds(seeds, round_of(origins))) == pytest.approx(share)


def test_equal_authors_share_alike_however_the_first_rounds_went(seeds):
    """Winner takes all drifts to 2 or 8 of 10 by chance; rates do not."""
    ends = []
    for seed in range(40):
        rng, trials = random.Random(seed), []
        for iteration in range(1, 21):
            n = round(10 * lm_share(three_seeds(seeds, trials, iteration=iteration)))
            origins = ["lm"] * n + ["rewriter"] * (10 - n)
            rng.shuffle(origins)
            trials += round_of(origins, iteration, first=10 * iteration)
        ends.append(lm_share(three_seeds(seeds, trials)))
    assert all(0.38 < share < 0.62 for share in ends)


def test_each_gets_one_at_least_and_failures_do_not_count(seeds):
    many = [t for i in range(1, 10) for t in round_of(["lm", "rewriter"], i, 10 * i)]
    lm, rewriter = Fixed(*"abcdefgh"), Fixed(*"stuvwxyz")
    Mixed(lm, rewriter).propose(three_seeds(seeds, many), 4)
    origin = {"lm": "rewriter", "rewriter": "lm"}
    lost = [
        replace(t, candidate=replace(t.candidate, origin=origin[t.candidate.origin])) for t in many
    ]
    Mixed(lm, rewriter).propose(three_seeds(seeds, lost), 4)
    failed = [replace(t, state="failed", outcome=None) for t in lost]
    Mixed(lm, rewriter).propose(three_seeds(seeds, failed), 4)
    assert lm.asked == [3, 1, 2]
    assert Mixed(lm, rewriter).propose(three_seeds(seeds), 1)[0].prompt.text == "a"


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
    assert rewriter.asked == rewriter.got == []


FRAGMENTS = {
    "questions": ["Gibt es {x}?"],
    "things": ["Sprache"],
    "options": [["Sprache", "anderes"]],
    "explanations": [["jemand redet", "Musik"]],
    "hints": ["Es rauscht."],
    "closings": ["Antwort:"],
    "answers": [["ja", "nein"]],
}


def test_the_rewriter_builds_with_fragments_of_the_language_model(seeds):
    """Asked for once a run, and answered from the journal after a resume."""
    records = []

    def proposed(lm, paid):
        model = MeteredModel(lm, Ledger(), records.append, paid)
        asks = LMProposer(model, SPEECH_TASK, Objective())
        both = Mixed(asks, Rewriter(SPEECH_TASK, 0), asks.fragments)
        return both.propose(three_seeds(seeds), 10), asks.fragments(three_seeds(seeds))

    found, fragments = proposed(ScriptedLM("", "", "", f"Sure! {json.dumps(FRAGMENTS)}"), {})
    assert len(found) == 10 and "Sprache" in " ".join(c.prompt.text for c in found)
    assert records[3]["call"] == -1 and records[3]["accepted"] == 7 and len(records) == 4
    assert fragments["hints"] == ["Es rauscht."]
    paid = {
        (r["iteration"], r["call"], r["system"], r["meta_prompt"]): Reply(
            r["reply"], 1, 1, 0.0, "m", "stop"
        )
        for r in records
    }
    assert proposed(ScriptedLM(), paid) == (found, fragments) and len(records) == 4
