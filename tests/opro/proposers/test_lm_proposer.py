import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import LABELS
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK
from opro.proposers.evidence import Heard, draw_parent, front
from opro.proposers.lm_proposer import LMProposer, Mixed, normal, parse, refuse, unwrap
from opro.proposers.openai_model import Ledger, Reply, most_tokens
from opro.proposers.rewriter import Rewriter
from opro.search.history import Candidate, History
from opro.search.objective import Reward

CLIPS = [
    Clip(
        f"c{i}", Path("x.wav"), LABELS[i % 2], ("speech", "music")[i % 2], 200.0 + 100 * i, 5.0, "x", f"s{i}",
        "dev", "CC0", "0",
    )
    for i in range(9)
]  # fmt: skip
TRUTH = np.arange(9) % 2
GOOD = "Is it speech?\nA) Yes\nB) No"


class ScriptedLM:
    """Answers with the next reply of a list."""

    name = "scripted"

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def __call__(self, messages, *, temperature, max_tokens):
        self.asked.append(messages[-1].content)
        return Reply(self.replies.pop(0), 10, 5, 0.01, self.name, "stop")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "empty"),
        ("   ", "empty"),
        (5, "no text"),
        ({"txt": "x"}, "no text"),
        ("x" * 501, "longer than 500"),
        (GOOD + "<|im_end|>", "control token"),
        ("A or B <|AUDIO|>", "control token"),
        ("A <|fim_prefix|> B", "control token"),
        ("A or B \x1b[31m", "control characters"),
        ("A or B \x00", "control characters"),
        ("A or B \u202e", "control characters"),
        ("Here are 3 new prompts: A B", "talk about prompts"),
        ("Sure! A or B", "talk about prompts"),
        ("```json A B```", "talk about prompts"),
        ("An improved prompt is: A or B", "talk about prompts"),
        ("Is it speech?", "does not offer the answer 'A'"),
        ("Answer A if speech", "does not offer the answer 'B'"),
        ({"text": GOOD, "answers": {"SPEECH": "A"}}, "expected one entry for each"),
        (
            {"text": GOOD, "answers": {"SPEECH": "A", "NONSPEECH": "a"}},
            "one answer stands for two classes",
        ),
        ({"text": GOOD, "answers": {"SPEECH": True, "NONSPEECH": "B"}}, "expected words in quotes"),
    ],
)
def test_what_is_refused_and_why(raw, reason):
    assert reason in refuse(raw, SPEECH_TASK, set())


def test_near_duplicates_are_refused():
    known = {normal(Prompt(GOOD))}
    assert (
        refuse(GOOD.upper().replace("\n", "  ") + " !", SPEECH_TASK, known)
        == "already tried or proposed"
    )
    swapped = refuse(
        {"text": GOOD, "answers": {"SPEECH": "B", "NONSPEECH": "A"}}, SPEECH_TASK, known
    )
    assert isinstance(swapped, Prompt)


def test_good_ones_are_taken_with_their_answers():
    prompt = refuse(
        {
            "text": "Speech? Reply SPEECH or OTHER.",
            "answers": {"SPEECH": "SPEECH", "NONSPEECH": "OTHER."},
        },
        SPEECH_TASK,
        set(),
    )
    assert prompt == Prompt(
        "Speech? Reply SPEECH or OTHER.", (("SPEECH", ("SPEECH",)), ("NONSPEECH", ("OTHER",)))
    )


@pytest.mark.parametrize(
    "text",
    [
        f"Prompt: {GOOD}",
        f'"{GOOD}"',
        f"1. Prompt: {GOOD}",
        f"**Prompt 3:** {GOOD}",
        f"<INS>{GOOD}</INS>",
        f"well <INS>\n{GOOD}\n</INS> ok",
        f"“{GOOD}”",
        f'Instruction: "{GOOD}"',
    ],
)
def test_wrappers_come_off(text):
    assert unwrap(text) == GOOD


@pytest.mark.parametrize(
    ("reply", "count"),
    [
        (json.dumps({"prompts": [GOOD, {"text": GOOD}]}), 2),
        (f"Sure:\n```json\n{json.dumps({'prompts': [GOOD]})}\n```", 1),
        (json.dumps([GOOD, GOOD]), 2),
        (json.dumps({"text": GOOD}), 1),
        (f"<INS>{GOOD}</INS> and <ins>{GOOD}</ins>", 2),
        ("no idea", 0),
        ('{"prompts": [', 0),
        ("", 0),
        ("[1, 2]", 0),
        ("[" * 5000, 0),
    ],
)
def test_proposals_are_found_in_replies(reply, count):
    assert len(parse(reply)) == count


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=300),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4),
            max_leaves=12,
        ).map(json.dumps),
    )
)
def test_no_reply_breaks_the_parser(reply):
    for raw in parse(reply):
        assert isinstance(refuse(raw, SPEECH_TASK, set()), str | Prompt)


@pytest.fixture
def history(tmp_path, seeds):
    history = History(tmp_path / "t.jsonl", LABELS)
    for trial, reward in zip(
        history.add(0, [Candidate(p, "seed") for p in seeds]), (0.7, 0.6, 0.65), strict=True
    ):
        history.tell(
            replace(
                trial,
                state="complete",
                reward=reward,
                nll=0.5,
                clips=9,
                slices={"200 ms": (0.4, 5), "music": (0.9, 4)},
            )
        )
    history.heard = {
        0: heard_right(0, 1, 2, 3, 4, 5, 6),
        2: heard_right(3, 4, 5, 6),
        1: heard_right(8),
    }
    return history


def heard_right(*clips):
    """Log-probabilities of a trial that is right about these clips."""
    right = np.isin(np.arange(9), clips)
    first = (TRUTH == 0) == right
    return np.log(np.where(first[:, None], [0.8, 0.1], [0.1, 0.8])).astype(np.float32)


def proposer(lm, ledger=None, record=lambda entry: None, **options):
    return LMProposer(lm, SPEECH_TASK, Reward(), CLIPS, ledger or Ledger(), record, **options)


def test_the_model_sees_the_history_ascending_errors_and_reward(history):
    lm = ScriptedLM(json.dumps({"prompts": [GOOD]}))
    proposer(lm).propose(history, 1, 1)
    meta = lm.asked[0]
    assert meta.index("score:\n60") < meta.index("score:\n65") < meta.index("score:\n70")
    assert "200 ms (40 % of 5 clips)" in meta and "balanced accuracy" in meta


def test_refusals_are_recorded_told_to_the_model_and_refilled(history, seeds):
    entries = []
    lm = ScriptedLM(
        json.dumps({"prompts": [seeds[0].text, "nothing offered", GOOD]}),
        json.dumps({"prompts": ["Voice?\nA) voice\nB) none"]}),
    )
    found = proposer(lm, record=entries.append).propose(history, 2, 1)
    assert [c.prompt.text for c in found] == [GOOD, "Voice?\nA) voice\nB) none"] and found[
        0
    ].origin == "lm"
    assert [r["reason"] for r in entries[0]["refused"]] == [
        "already tried or proposed",
        "does not offer the answer 'A' of SPEECH",
    ]
    assert "does not offer the answer" in lm.asked[1]


def test_hopeless_replies_end_the_iteration_not_the_run(history):
    entries = []
    assert proposer(ScriptedLM("hm", "", "?"), record=entries.append).propose(history, 2, 1) == []
    assert (
        len(entries) == 3
        and entries[0]["refused"][0]["reason"] == "no proposals found in the reply"
    )


def test_spending_stops_before_the_limit(history):
    ledger, entries = Ledger(max_tokens=1500), []
    lm = ScriptedLM(*["hm"] * 3)
    proposer(lm, ledger, entries.append).propose(history, 2, 1)
    assert ledger.tokens_in + ledger.tokens_out <= 1500 and len(lm.asked) == 3
    assert (
        proposer(ScriptedLM(), Ledger(max_tokens=600), entries.append).propose(history, 2, 1) == []
    )
    assert "--max-tokens 600" in entries[-1]["stopped"]


def test_opro_asks_one_prompt_a_call(history):
    lm = ScriptedLM(*[f"<INS>Question {i}: A) speech B) none</INS>" for i in range(3)])
    assert len(proposer(lm, strategy="opro").propose(history, 3, 1)) == 3
    assert "<INS>" in lm.asked[0] and len(set(lm.asked)) == 1


def test_parents_come_from_the_front_and_dominated_prompts_do_not(history):
    heard = Heard(CLIPS, TRUTH, history.heard)
    leads = front(heard, history.trials)
    assert set(leads) == {0, 1}  # 2 is right only where 0 is
    assert leads[0] > leads[1]
    assert front(heard, history.trials[::-1]) == leads
    drawn = {draw_parent(heard, history.trials, random.Random(i)).number for i in range(100)}
    assert drawn == {0, 1}


def test_the_model_sees_the_parent_its_errors_and_what_its_children_gained(history, seeds):
    child = Candidate(Prompt(GOOD), "lm", (seeds[0].prompt_id, seeds[1].prompt_id))
    trial = history.add(1, [child])[0]
    history.tell(replace(trial, state="dropped", reward=0.64, sd=0.02, clips=4))
    seen = {}
    for seed in range(12):
        lm = ScriptedLM("", "", "")
        assert proposer(lm, seed=seed).propose(history, 1, 2) == []
        assert len(lm.asked) == 3
        for meta in lm.asked:
            starts = [
                n for n in range(3) if f"which scored {(70, 60, 65)[n]}:\n\n{seeds[n].text}" in meta
            ]
            assert len(starts) == 1 and meta.count("Start from this prompt") == 1
            seen[starts[0]] = meta
    assert set(seen) == {0, 1}  # the front; 2 is dominated
    for meta, gained, missed in ((seen[0], "about -6.0", (1, 1)), (seen[1], "about +4.0", (4, 4))):
        assert f"{gained}: Is it speech? / A) Yes / B) No" in meta
        assert f"It gets {missed[0]} of 5 clips of SPEECH wrong." in meta
        assert f"It gets {missed[1]} of 4 clips of NONSPEECH wrong." in meta
        assert "It does worst on: 200 ms (40 % of 5 clips), music (90 % of 4 clips)." in meta
    assert "clip of 900 ms, 5 dB above its noise, kind: music; it is NONSPEECH" in seen[0]
    assert seen[0].count("the answer was SPEECH (89 % sure)") == 1
    assert seen[0].count("the answer was NONSPEECH (89 % sure)") == 1


def test_opro_shows_three_misjudged_clips_and_the_same_words_to_every_call(history):
    lm = ScriptedLM(*[f"<INS>Is it speech {i}? A) yes B) no</INS>" for i in range(8)])
    found = proposer(lm, strategy="opro").propose(history, 8, 1)
    assert len(found) == 8 and len(set(lm.asked)) == 1
    assert lm.asked[0].count("<INS>\nclip:") == 2  # the best one misjudges two
    history.heard = {1: history.heard[1]}
    lm = ScriptedLM("")
    proposer(lm, strategy="opro").propose(history, 1, 1)
    assert lm.asked[0].count("<INS>\nclip:") == 3


def test_a_reply_that_was_paid_for_is_not_asked_for_again(history):
    records = []
    lm = ScriptedLM("nothing", json.dumps({"prompts": [GOOD]}))
    ledger = Ledger()
    first = proposer(lm, ledger, records.append).propose(history, 1, 1)
    paid = {
        (r["iteration"], r["call"], r["meta_prompt"]): Reply(r["reply"], 10, 5, 0.01, "x", "stop")
        for r in records
    }
    again = proposer(ScriptedLM(), ledger, records.append, paid=paid).propose(history, 1, 1)
    assert again == first and len(records) == 2 and ledger.calls == 2


@pytest.mark.parametrize(("text", "reason"), [("$what", "what"), ("costs 5 $", "placeholder")])
def test_a_broken_meta_prompt_is_one_sentence(tmp_path, text, reason):
    (tmp_path / "propose.txt").write_text(text)
    with pytest.raises(UserError, match=f"meta-prompt cannot be used .*{reason}.*[$]history"):
        proposer(ScriptedLM(), folder=tmp_path)


def test_language_model_and_rewriter_share_by_success(history):
    rewriter = Rewriter(SPEECH_TASK, 0)
    for iteration, origin in enumerate(("lm", "rewriter:x", "rewriter:x"), 1):
        trial = history.add(iteration, [Candidate(Prompt(f"{iteration}: A or B"), origin)])[0]
        history.tell(replace(trial, state="complete", reward=0.5, clips=9))

    def asked(iteration, n=10):
        lm = ScriptedLM(*[json.dumps({"prompts": [f"{iteration}.{i} A B" for i in range(20)]})])
        found = Mixed(proposer(lm), rewriter).propose(history, n, iteration)
        assert len(found) == n and len({c.prompt.digest for c in found}) == n
        return sum(c.origin == "lm" for c in found)

    assert [asked(i) for i in (1, 2, 3, 4)] == [5, 7, 5, 4]
    assert asked(1, 1) == 1 and asked(4, 2) == 1


@pytest.mark.parametrize(
    "reply", ["", "x" * 100_000, "<script>alert(1)</script>", "<|im_end|>" * 9]
)
def test_what_a_useless_model_leaves_open_the_rewriter_fills(history, reply):
    found = Mixed(proposer(ScriptedLM(*[reply] * 3)), Rewriter(SPEECH_TASK, 0)).propose(
        history, 6, 1
    )
    assert len(found) == 6 and all(c.origin.startswith("rewriter") for c in found)


class Counting(ScriptedLM):
    """Also keeps what else it was asked with."""

    def __call__(self, messages, *, temperature, max_tokens):
        self.options = [*getattr(self, "options", []), (len(messages), temperature, max_tokens)]
        return super().__call__(messages, temperature=temperature, max_tokens=max_tokens)


def test_a_call_asks_for_no_more_than_is_wanted_at_the_temperature_that_is_set(history):
    lm = Counting(json.dumps({"prompts": [GOOD, "Voice?\nA) voice\nB) none"]}), "", "")
    assert len(proposer(lm, temperature=0.7).propose(history, 3, 1)) == 2
    assert lm.options == [(1, 0.7, 800), (1, 0.7, 400), (1, 0.7, 400)]
    lm = Counting("", "")
    proposer(lm, strategy="opro").propose(history, 2, 1)
    assert lm.options == [(1, 1.0, 400)] * 2


def test_no_call_is_made_whose_worst_case_the_ledger_does_not_cover(history):
    lm = Counting(*["hm"] * 3)
    proposer(lm).propose(history, 1, 1)
    worst = most_tokens(lm.asked[0]) * 1.0 + 400 * 2.0
    for limit, calls in ((worst / 1e6, 1), (worst / 1e6 - 1e-9, 0)):
        entries, lm = [], ScriptedLM("hm")
        ledger = Ledger(max_cost=limit, prices=(1.0, 2.0))
        proposer(lm, ledger, entries.append).propose(history, 1, 1)
        assert len(lm.asked) == calls and "--max-cost" in entries[-1]["stopped"]


def test_every_call_is_booked_and_recorded_with_what_it_cost(history):
    ledger, entries = Ledger(), []
    lm = ScriptedLM(json.dumps({"prompts": [GOOD, "no answers here", GOOD]}), "hm", "")
    found = proposer(lm, ledger, entries.append).propose(history, 2, 1)
    assert [c.prompt.text for c in found] == [GOOD]
    assert (ledger.calls, ledger.tokens_in, ledger.tokens_out) == (3, 30, 15)
    assert ledger.cost == pytest.approx(0.03) and ledger.refused == 4
    assert [(e["iteration"], e["call"], e["accepted"]) for e in entries] == [
        (1, 0, 1), (1, 1, 0), (1, 2, 0)
    ]  # fmt: skip
    for entry, meta in zip(entries, lm.asked, strict=True):
        about = ("model", "tokens_in", "tokens_out", "cost", "finish", "meta_prompt")
        assert [entry[name] for name in about] == ["scripted", 10, 5, 0.01, "stop", meta]
    assert [r["reason"] for r in entries[0]["refused"]] == [
        "does not offer the answer 'A' of SPEECH", "already tried or proposed"
    ]  # fmt: skip


def test_more_prompts_than_were_asked_for_are_refused_as_that(history):
    entries = []
    lm = ScriptedLM(json.dumps({"prompts": [GOOD, "Voice?\nA) voice\nB) none"]}))
    assert len(proposer(lm, record=entries.append).propose(history, 1, 1)) == 1
    assert [r["reason"] for r in entries[0]["refused"]] == ["more than were asked for"]


def test_what_later_iterations_found_does_not_change_what_an_earlier_one_asks(history):
    lm = ScriptedLM("", "", "")
    proposer(lm).propose(history, 1, 1)
    trial = history.add(1, [Candidate(Prompt(GOOD), "lm")])[0]
    history.tell(replace(trial, state="complete", reward=0.9, nll=0.1, clips=9))
    again = ScriptedLM("", "", "")
    proposer(again).propose(history, 1, 1)
    assert again.asked == lm.asked
    later = ScriptedLM("", "", "")
    proposer(later).propose(history, 1, 2)
    assert later.asked[0] != lm.asked[0] and "score:\n90" in later.asked[0]
