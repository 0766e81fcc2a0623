"""The proposer that asks a language model."""

import json
import time
from dataclasses import replace

import pytest
from searches import GOOD, ScriptedLM, right_about, scored_trial, three_seeds

from evaluators.errors import UserError
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK
from opro.proposers.language_model import Reply, SpentError, most_tokens
from opro.proposers.ledger import Ledger, MeteredModel
from opro.proposers.lm_proposer import REPLY_TOKENS, Calls, LMProposer
from opro.search.objective import Objective


def proposer(lm, ledger=None, record=lambda entry: None, paid=None, **options):
    model = MeteredModel(lm, ledger or Ledger(), record, paid or {})
    return LMProposer(model, SPEECH_TASK, Objective(), **options)


def test_the_model_sees_the_history_ascending_errors_and_reward(seeds):
    lm = ScriptedLM(json.dumps({"prompts": [GOOD]}))
    proposer(lm).propose(three_seeds(seeds), 1)
    meta = lm.asked[0]
    assert meta.index("#1 | 60.0") < meta.index("#2 | 65.0") < meta.index("#0 | 70.0")
    assert "right and sure" in meta and "balanced accuracy" in meta


def test_refusals_are_recorded_told_to_the_model_and_refilled(seeds):
    entries = []
    lm = ScriptedLM(
        json.dumps({"prompts": [seeds[0].text, "nothing offered", GOOD]}),
        json.dumps({"prompts": ["Voice?\nA) voice\nB) none"]}),
    )
    found = proposer(lm, record=entries.append).propose(three_seeds(seeds), 2)
    assert [c.prompt.text for c in found] == [GOOD, "Voice?\nA) voice\nB) none"] and found[
        0
    ].origin == "lm"
    assert [r["reason"] for r in entries[0]["refused"]] == [
        "already tried or proposed",
        "does not offer the answer 'A' of SPEECH",
    ]
    assert "does not offer the answer" in lm.asked[1]
    assert (
        f"These of yours are taken, as new prompts of this round:\n{json.dumps(GOOD)}"
        in lm.asked[1]
    )
    assert "are taken" not in lm.asked[0]


def test_hopeless_replies_end_the_iteration_not_the_run(seeds):
    entries = []
    assert (
        proposer(ScriptedLM("hm", "", "?"), record=entries.append).propose(three_seeds(seeds), 2)
        == []
    )
    assert (
        len(entries) == 3
        and entries[0]["refused"][0]["reason"] == "no proposals found in the reply"
    )


def test_spending_stops_before_the_limit(seeds):
    ledger, entries = Ledger(max_tokens=6000), []
    lm = ScriptedLM(*["hm"] * 3)
    proposer(lm, ledger, entries.append).propose(three_seeds(seeds), 2)
    assert ledger.tokens_in + ledger.tokens_out <= 6000 and len(lm.asked) == 3
    assert (
        proposer(ScriptedLM(), Ledger(max_tokens=600), entries.append).propose(
            three_seeds(seeds), 2
        )
        == []
    )
    assert "--max-tokens 600" in entries[-1]["stopped"]


def test_opro_asks_for_all_in_one_call_or_for_one_in_each(seeds):
    texts = [f"<INS>Question {i}: A) speech B) none</INS>" for i in range(3)]
    lm = ScriptedLM(" ".join(texts))
    assert len(proposer(lm, strategy="opro").propose(three_seeds(seeds), 3)) == 3
    assert len(lm.asked) == 1 and "Write 3 new instructions" in lm.asked[0]
    assert "A means SPEECH, B means NONSPEECH" in lm.asked[0]
    lm = ScriptedLM(*texts)
    assert (
        len(
            proposer(lm, strategy="opro", calls=Calls(separate=True)).propose(three_seeds(seeds), 3)
        )
        == 3
    )
    assert "<INS>" in lm.asked[0] and len(lm.asked) == 3


def test_the_model_sees_a_parent_its_errors_and_what_its_children_gained(seeds):
    parents = (seeds[0].prompt_id, seeds[1].prompt_id)
    child = scored_trial(3, 0.64, state="dropped", sd=0.02, prompt=Prompt(GOOD), parents=parents)
    seen = {}
    for seed in range(12):
        lm = ScriptedLM("", "", "")
        assert proposer(lm, seed=seed).propose(three_seeds(seeds, [child]), 1) == []
        assert len(lm.asked) == 3
        for meta in lm.asked:
            starts = [n for n in range(4) if f"Row #{n}, which scores" in meta]
            assert len(starts) == 1
            seen[starts[0]] = meta
    assert set(seen) == {0, 1, 2, 3}  # leaders, a forecast too
    for meta, gained in ((seen[0], "-6.0"), (seen[1], "+4.0")):
        assert f"- about {gained}: row #3\n" in meta and '"Is it speech?\\nA) Yes\\nB) No"' in meta
    assert "NONSPEECH called SPEECH: music 1/4" in seen[0] and "Edits of it" not in seen[2]
    assert "its errors are not known" in seen[3]


def test_a_round_is_asked_for_in_a_few_calls_at_once_each_from_its_own_parent(seeds):
    lm = ScriptedLM(
        *[json.dumps({"prompts": [f"{i}{j}: A or B" for j in range(5)]}) for i in range(2)]
    )
    found = proposer(lm, calls=Calls(concurrency=2)).propose(three_seeds(seeds), 10)
    assert len(found) == 10 and [o[2] for o in lm.options] == [REPLY_TOKENS * 7] * 2
    system = {meta.partition("Round 1")[0] for meta in lm.asked}
    assert len(system) == 1 and "SPEECH is the one to detect" in system.pop()


def test_replies_are_taken_in_the_order_of_their_calls_however_late_they_come(seeds):
    class Late(ScriptedLM):
        def __call__(self, messages, **options):
            number = len(self.asked)
            reply = super().__call__(messages, **options)
            time.sleep(0.05 * (number == 0))
            return reply

    texts = [json.dumps({"prompts": [f"{i}{j}: A or B" for j in range(5)]}) for i in range(4)]
    entries = []
    one = proposer(ScriptedLM(*texts)).propose(three_seeds(seeds), 20)
    late = proposer(Late(*texts), record=entries.append, calls=Calls(concurrency=4)).propose(
        three_seeds(seeds), 20
    )
    assert [c.prompt for c in late] == [c.prompt for c in one]
    assert [e["call"] for e in entries] == [0, 1, 2, 3]


def test_what_a_reply_says_it_changed_is_the_parent(seeds):
    rows = [{"from": 1, "text": "1: A or B"}, {"from": "#2", "text": "2: A or B"}]
    rows += [{"from": None, "text": "3: A or B"}, {"from": 99, "text": "4: A or B"}, "5: A or B"]
    found = proposer(ScriptedLM(json.dumps({"prompts": rows}))).propose(three_seeds(seeds), 5)
    parents = [c.parents for c in found]
    assert (
        parents[:4] == [(seeds[1].prompt_id,), (seeds[2].prompt_id,), (), ()]
        and len(parents[4]) == 1
    )


def test_a_reply_that_was_cut_is_told_with_what_was_saved(seeds, caplog):
    class Cut(ScriptedLM):
        def __call__(self, messages, **options):
            return replace(super().__call__(messages, **options), finish="length")

    entries = []
    lm = Cut('{"prompts": [{"text": "1: A or B"}, {"text": "2: A', "hm", "hm")
    assert len(proposer(lm, record=entries.append).propose(three_seeds(seeds), 2)) == 1
    assert "cut at its limit of tokens): 1 whole prompts of it are used" in caplog.text
    assert entries[1]["refused"][0]["reason"] == (
        "no proposals found in the reply (the reply was cut at its limit of tokens)"
    )


def test_a_reply_that_was_paid_for_is_not_asked_for_again(seeds):
    records = []
    lm = ScriptedLM("nothing", json.dumps({"prompts": [GOOD]}))
    ledger = Ledger()
    first = proposer(lm, ledger, records.append).propose(three_seeds(seeds), 1)
    paid = {
        (r["iteration"], r["call"], r["system"], r["meta_prompt"]): Reply(
            r["reply"], 10, 5, 0.01, "x", "stop"
        )
        for r in records
    }
    again = proposer(ScriptedLM(), ledger, records.append, paid=paid).propose(three_seeds(seeds), 1)
    assert again == first and len(records) == 2 and ledger.calls == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [("$what", "what"), ("costs 5 $", "placeholder"), ("$table\n=====\n", "table")],
)
def test_a_broken_meta_prompt_is_one_sentence(tmp_path, text, reason):
    (tmp_path / "propose.txt").write_text(text)
    with pytest.raises(
        UserError,
        match=f"meta-prompt cannot be used .*{reason}.*[$]task.*below the line of ===== also.*[$]table",
    ):
        proposer(ScriptedLM(), folder=tmp_path)


def test_a_meta_prompt_without_a_line_is_all_question(tmp_path, seeds):
    (tmp_path / "propose.txt").write_text("$n for $task")
    entries = []
    proposer(ScriptedLM("", "", ""), record=entries.append, folder=tmp_path).propose(
        three_seeds(seeds), 1
    )
    assert entries[0]["system"] == "" and entries[0]["meta_prompt"].startswith(
        "1 for Decide whether"
    )


def test_a_call_asks_for_no_more_than_is_wanted(seeds):
    lm = ScriptedLM(json.dumps({"prompts": [GOOD, "Voice?\nA) voice\nB) none"]}), "", "")
    assert len(proposer(lm).propose(three_seeds(seeds), 3)) == 2
    assert lm.options == [(2, 1.0, 1000), (2, 1.0, 600), (2, 1.0, 600)]
    lm = ScriptedLM("", "")
    proposer(lm, strategy="opro", calls=Calls(separate=True)).propose(three_seeds(seeds), 2)
    assert lm.options == [(2, 1.0, 600)] * 2


def test_no_call_is_made_whose_worst_case_the_ledger_does_not_cover(seeds):
    lm = ScriptedLM(*["hm"] * 3)
    proposer(lm).propose(three_seeds(seeds), 1)
    worst = most_tokens(lm.asked[0]) * 1.0 + 600 * 2.0
    for limit, calls in ((worst / 1e6, 1), (worst / 1e6 - 1e-9, 0)):
        entries, lm = [], ScriptedLM("hm")
        ledger = Ledger(max_cost=limit, prices=(1.0, 2.0))
        proposer(lm, ledger, entries.append).propose(three_seeds(seeds), 1)
        assert len(lm.asked) == calls and "--max-cost" in entries[-1]["stopped"]


def test_every_call_is_booked_and_recorded_with_what_it_cost(seeds):
    ledger, entries = Ledger(), []
    lm = ScriptedLM(json.dumps({"prompts": [GOOD, "no answers here", GOOD]}), "hm", "")
    found = proposer(lm, ledger, entries.append).propose(three_seeds(seeds), 2)
    assert [c.prompt.text for c in found] == [GOOD]
    assert (ledger.calls, ledger.tokens_in, ledger.tokens_out) == (3, 30, 15)
    assert ledger.cost == pytest.approx(0.03) and ledger.refused == 4
    assert [(e["iteration"], e["call"], e["accepted"]) for e in entries] == [
        (1, 0, 1), (1, 1, 0), (1, 2, 0)
    ]  # fmt: skip
    for entry, meta in zip(entries, lm.asked, strict=True):
        about = ("model", "tokens_in", "tokens_out", "cost", "finish")
        assert [entry[name] for name in about] == ["scripted", 10, 5, 0.01, "stop"]
        assert entry["system"] + entry["meta_prompt"] == meta and entry["system"]
    assert [r["reason"] for r in entries[0]["refused"]] == [
        "does not offer the answer 'A' of SPEECH", "already tried or proposed"
    ]  # fmt: skip


def test_more_prompts_than_were_asked_for_are_no_mistake(seeds):
    entries = []
    lm = ScriptedLM(json.dumps({"prompts": [GOOD, "Voice?\nA) voice\nB) none"]}))
    assert len(proposer(lm, record=entries.append).propose(three_seeds(seeds), 1)) == 1
    assert entries[0]["refused"] == [] and "Voice?" in entries[0]["reply"]


def test_without_any_scores_of_clips_there_is_no_parent_and_no_exemplar(seeds):
    for strategy in ("race", "opro"):
        lm = ScriptedLM("", "", "")
        proposer(lm, strategy=strategy).propose(three_seeds(seeds, logp={}), 1)
        assert "Start from" not in lm.asked[0] and "clip: " not in lm.asked[0]


def test_what_the_next_iteration_asks_shows_what_this_one_found(seeds):
    lm, later = ScriptedLM("", "", ""), ScriptedLM("", "", "")
    proposer(lm).propose(three_seeds(seeds), 1)
    found = scored_trial(3, 0.9, prompt=Prompt(GOOD))
    proposer(later).propose(three_seeds(seeds, [found]), 1)
    assert later.asked[0] != lm.asked[0] and "#3 | 90.0 | " in later.asked[0]


@pytest.mark.parametrize("strategy", ["race", "opro"])
def test_from_the_second_round_without_a_better_prompt_on_another_way_is_asked_for(seeds, strategy):
    """After one round nothing is said: most rounds find nothing better."""
    told = {}
    for rounds in range(1, 5):
        more = [scored_trial(2 + i, 0.5, i) for i in range(1, rounds + 1)]
        lm = ScriptedLM("", "", "")
        proposer(lm, strategy=strategy).propose(three_seeds(seeds, more), 1)
        told[rounds] = [
            n for n in range(9) if f"For {n} rounds nothing has scored higher" in lm.asked[0]
        ]
        assert ("try something quite different" in lm.asked[0]) == bool(told[rounds])
    expected = {1: [], 2: [2], 3: [3], 4: [4]}
    assert told == (expected if strategy == "race" else {rounds: [] for rounds in expected})
    better = [scored_trial(3, 0.5, 1), scored_trial(4, 0.9, 2), scored_trial(5, 0.5, 3)]
    lm = ScriptedLM("", "", "")
    proposer(lm, strategy=strategy).propose(three_seeds(seeds, better), 1)
    assert "nothing has scored higher" not in lm.asked[0]


def test_parents_are_what_was_shown_to_start_from(seeds):
    lm = ScriptedLM(json.dumps({"prompts": [GOOD]}))
    (found,) = proposer(lm).propose(three_seeds(seeds, logp={2: right_about(1)}), 1)
    assert found.parents == (seeds[2].prompt_id,)
    lm = ScriptedLM(f"<INS>{GOOD}</INS>")
    (found,) = proposer(lm, strategy="opro").propose(three_seeds(seeds), 1)
    assert found.parents == tuple(seeds[i].prompt_id for i in (1, 2, 0))


@pytest.mark.parametrize("strategy", ["race", "opro"])
@pytest.mark.parametrize("logp", [None, {}], ids=["with clips", "without"])
def test_a_proposal_carries_the_system_message_of_its_parent(seeds, strategy, logp):
    own = [replace(p, system=f"You are listener {i}.") for i, p in enumerate(seeds)]
    system = {p.prompt_id: p.system for p in own}
    for seed in range(8):
        replies = [f"<INS>{GOOD}</INS>", f"<INS>{GOOD} now</INS>", ""]
        view = three_seeds(own, logp=logp)
        made = proposer(ScriptedLM(*replies), strategy=strategy, seed=seed).propose(view, 2)
        assert len(made) == 2
        # Of several parents the last one is the best.
        assert all(c.prompt.system == system[c.parents[-1]] for c in made)


@pytest.mark.parametrize("both_orders", [False, True])
def test_proposals_are_asked_in_the_orders_of_the_run(seeds, both_orders):
    lm = ScriptedLM(json.dumps({"prompts": [GOOD]}))
    view = three_seeds([replace(p, both_orders=both_orders) for p in seeds])
    (found,) = proposer(lm, both_orders=both_orders).propose(view, 1)
    assert found.prompt == Prompt(GOOD, both_orders=both_orders)
    known = scored_trial(3, 0.5, prompt=found.prompt)
    lm = ScriptedLM(json.dumps({"prompts": [GOOD]}), "", "")
    assert proposer(lm, both_orders=both_orders).propose(three_seeds(seeds, [known]), 1) == []


def test_a_model_that_may_not_be_tried_again_ends_the_iteration(seeds):
    class Lost(ScriptedLM):
        def __call__(self, messages, **options):
            if self.asked:
                raise SpentError("enough is lost")
            return super().__call__(messages, **options)

    entries = []
    lm = Lost(json.dumps({"prompts": [GOOD]}))
    assert len(proposer(lm, record=entries.append).propose(three_seeds(seeds), 3)) == 1
    assert entries[1] == {"iteration": 1, "call": 1, "stopped": "enough is lost"}
    assert len(entries) == 2


def test_of_many_refusals_the_last_five_are_told(seeds):
    texts = [f"refused {i}" for i in range(8)]
    lm = ScriptedLM(json.dumps({"prompts": texts}), "", "")
    proposer(lm).propose(three_seeds(seeds), 7)
    assert [f"refused {i}'" in lm.asked[1] for i in range(8)] == [False] * 3 + [True] * 5
    assert "do not repeat the mistakes" in lm.asked[1]
    assert "do not repeat the mistakes" not in lm.asked[0]
