import json

import pytest
from conftest import LABELS
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.prompts import SPEECH_TASK, Prompt
from opro.history import Candidate, History
from opro.lm import Ledger, Reply
from opro.propose import LMProposer, normal, parse, refuse, unwrap
from opro.reward import Reward

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
    from dataclasses import replace

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
    return history


def proposer(lm, ledger=None, record=lambda entry: None, **options):
    return LMProposer(lm, SPEECH_TASK, Reward(), ledger or Ledger(), record, **options)


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
