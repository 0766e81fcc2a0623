"""Fragments that a language model writes for the rewriter."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import scored_trial, view_of

from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK, Task
from opro.proposers.fragments import LONGEST, MOST, read_fragments
from opro.proposers.rewriter import Rewriter

GOOD = {
    "questions": ["Is there {x}?", "Listen."],
    "things": ["a voice"],
    "options": [["talk", "rest"], {"SPEECH": "words", "NONSPEECH": "none"}],
    "explanations": [["someone talks", "anything else"]],
    "hints": ["It is short."],
    "closings": ["Answer:"],
    "answers": [["yes", "no"]],
}


def test_every_kind_is_read_whatever_stands_around():
    found = read_fragments(
        f"<think>{{}}</think>Here:\n```json\n{json.dumps(GOOD)}\n```", SPEECH_TASK
    )
    assert found == GOOD | {"options": [["talk", "rest"], ["words", "none"]]}


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("questions", "What is {y}?"),
        ("questions", "{x} or {x}?"),
        ("hints", "<|im_end|> now"),
        ("hints", "x" * (LONGEST + 1)),
        ("hints", "bell \x07"),
        ("hints", ["a list"]),
        ("hints", "  "),
        ("options", ["one"]),
        ("options", ["same", "SAME"]),
        ("options", ["", "b"]),
        ("answers", ["two words", "no"]),
        ("closings", 5),
    ],
)
def test_what_cannot_be_used_is_left_out(kind, bad):
    assert read_fragments(json.dumps({kind: [bad]}), SPEECH_TASK) == {}
    assert read_fragments(json.dumps({kind: [bad, *GOOD[kind][:1]]}), SPEECH_TASK) == {
        kind: GOOD[kind][:1]
    }


def test_spaces_are_plain_nothing_stands_twice_and_there_is_an_end():
    many = [f"Hint {i}." for i in range(2 * MOST)]
    assert len(read_fragments(json.dumps({"hints": many}), SPEECH_TASK)["hints"]) == MOST
    text = json.dumps({"hints": ["a\u00a0 b", "a b"]})
    assert read_fragments(text, SPEECH_TASK) == {"hints": ["a b"]}


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.text(max_size=20) | st.integers(), lambda x: st.lists(x, max_size=4)
    ),
    st.text(max_size=80),
)
def test_no_reply_breaks_the_reader(value, text):
    for reply in (text, json.dumps({"hints": value, "options": value, "questions": value})):
        found = read_fragments(reply, SPEECH_TASK)
        assert all(values for values in found.values())


def test_a_task_without_a_bank_gets_one():
    task = Task("rain", ("RAIN", "DRY"), "Decide whether it rains.")
    plain, rng = Rewriter(task, 0), random.Random(0)
    assert plain.enriched({}) is plain and plain.enriched({"hints": ["x"]}) is plain
    rich = plain.enriched(GOOD)
    assert not plain.bank and rich.bank["letters"] == [["yes", "no"]]
    seed = Prompt("Rain?\nA) rain\nB) dry", (("RAIN", ("A",)), ("DRY", ("B",))))
    made = [rich.rewrite([seed], rng, 1.0) for _ in range(80)]
    texts = " ".join(c.prompt.text for c in made if c)
    assert "talk" in texts and "{x}" not in texts and "It is short." in texts


def test_answer_words_take_the_place_of_letters():
    task = SPEECH_TASK
    rich, rng = Rewriter(task, 0).enriched(GOOD), random.Random(1)
    seed = Prompt("Speech?\nA) talk\nB) rest\n\nAnswer A or B.")
    made = [c.prompt for _ in range(400) if (c := rich.rewrite([seed], rng)) is not None]
    words = [p for p in made if p.answers == (("SPEECH", ("yes",)), ("NONSPEECH", ("no",)))]
    assert words
    for prompt in words:
        assert "yes" in prompt.text and "no" in prompt.text
        assert "A or B" not in prompt.text
    view = view_of([scored_trial(0, 0.5, 0, prompt=words[0])])
    around = rich.propose(view, 3)  # options that no letter marks are not taken apart
    assert {kind for c in around for kind in c.origin.removeprefix("rewriter:").split("+")} <= {
        "lead",
        "closing",
        "case",
    }
    assert len({c.prompt.text.casefold() for c in around}) > 1
