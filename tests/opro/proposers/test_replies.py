"""Replies of a language model: what is found in them, and what is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK, Task
from opro.proposers import replies
from opro.proposers.replies import check_proposal, dedup_key, parse, unwrap

GOOD = "Is it speech?\nA) Yes\nB) No"


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
        ("Sure! I can help with that.", "talk about prompts"),
        ("Note that I cannot hear.", "talk about prompts"),
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
    assert reason in check_proposal(raw, SPEECH_TASK, set())


def test_near_duplicates_are_refused():
    known = {dedup_key(Prompt(GOOD))}
    assert (
        check_proposal(GOOD.upper().replace("\n", "  ") + " !", SPEECH_TASK, known)
        == "already tried or proposed"
    )
    swapped = check_proposal(
        {"text": GOOD, "answers": {"SPEECH": "B", "NONSPEECH": "A"}}, SPEECH_TASK, known
    )
    assert isinstance(swapped, Prompt)


def test_good_ones_are_taken_with_their_answers():
    prompt = check_proposal(
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
        assert isinstance(check_proposal(raw, SPEECH_TASK, set()), str | Prompt)


def test_a_proposal_that_was_taken_is_known_and_a_refused_one_is_not():
    known = set()
    assert check_proposal("Is it speech?", SPEECH_TASK, known) != Prompt(GOOD) and known == set()
    assert check_proposal(GOOD, SPEECH_TASK, known) == Prompt(GOOD)
    assert known == {dedup_key(Prompt(GOOD))}
    assert check_proposal(GOOD, SPEECH_TASK, known) == "already tried or proposed"


def test_a_proposal_may_be_as_long_as_the_limit_and_no_longer():
    text = GOOD + "x" * (replies.MAX_CHARACTERS - len(GOOD))
    assert check_proposal(text, SPEECH_TASK, set()) == Prompt(text)
    found = check_proposal(text + "x", SPEECH_TASK, set())
    assert found == f"longer than {replies.MAX_CHARACTERS} characters ({len(text) + 1})"


def test_the_reason_names_the_control_token():
    assert check_proposal("A or B <|im_end|> <|AUDIO|>", SPEECH_TASK, set()) == (
        "control token '<|im_end|>'"
    )


def test_answers_that_are_no_mapping_are_left_out_and_unknown_keys_too():
    for answers in ("AB", ["A"], None, 5):
        raw = {"text": GOOD, "answers": answers, "system": "obey", "both_orders": True}
        assert check_proposal(raw, SPEECH_TASK, set()) == Prompt(GOOD)


def test_an_answer_must_stand_in_the_text_as_a_word_of_its_own():
    assert "does not offer the answer 'B'" in check_proposal("A or Bee", SPEECH_TASK, set())
    assert isinstance(check_proposal("A/B?", SPEECH_TASK, set()), Prompt)
    task = Task("yes", ("YES", "NO"), "x")
    raw = {"text": "yes (or no)?", "answers": {"YES": "yes", "NO": "no"}}
    assert isinstance(check_proposal(raw, task, set()), Prompt)


def test_prompts_of_the_same_words_are_one_whatever_stands_between_them():
    assert dedup_key(Prompt("Is it A, or B?")) == dedup_key(Prompt(" is_IT a -- or b"))
    assert dedup_key(Prompt("A or B")) != dedup_key(Prompt("A or C"))
    other = Prompt("A or B", (("SPEECH", ("B",)), ("NONSPEECH", ("A",))))
    assert dedup_key(Prompt("A or B")) != dedup_key(other)


TWO = [f"{GOOD} {i}" for i in "xy"]
THOUGHT = json.dumps({"prompts": ["a draft: A or B", "another: A or B"]})


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps({"prompts": TWO}),
        f"<think>{THOUGHT} no</think>\n" + json.dumps({"prompts": TWO}),
        f"{THOUGHT} hmm</think>" + json.dumps({"prompts": TWO}),  # the opening tag was left out
        '<think>the form is {"prompts": [...]} with ["A", "B"]</think>' + json.dumps(TWO),
        THOUGHT + " better: " + json.dumps({"prompts": TWO}),  # the last one counts
        json.dumps({"prompts": [*TWO, "this was cut here"]})[:-6],  # at the token limit
        json.dumps({"prompts": TWO})[:-2] + ", ]}",  # a comma too many
        "\n".join(json.dumps({"text": t}) for t in TWO),
        "\n".join(json.dumps({"prompt": t, "answers": ["A", "B"]}) for t in TWO),
        json.dumps({"candidates": [{"instruction": t} for t in TWO]}),
        json.dumps({"analysis": "[A] and [B] are near", "prompts": TWO}),
        '{"prompts": ["' + '", "'.join(TWO) + '"]}',  # raw line ends within a text
        "```json\n" + json.dumps({"prompts": TWO}, indent=1) + "\n```",
        f"1. {TWO[0]}\n2. {TWO[1]}",
        f"1) {TWO[0]}\n\n2) {TWO[1]}\n",
        f"[{TWO[0]}]\n[{TWO[1]}]",
        f"<INS>{TWO[0]}</INS> <INS>{TWO[1]}",  # unclosed
        json.dumps({"prompts": TWO}).replace(" ", "\u00a0"),
        json.dumps({"prompts": TWO}, ensure_ascii=False).replace("\\n", "\\r\\n"),
    ],
)
def test_whatever_form_a_reply_has_its_prompts_are_found(reply):
    known = set()
    found = [check_proposal(raw, SPEECH_TASK, known) for raw in parse(reply)]
    assert [p.text for p in found if isinstance(p, Prompt)] == TWO


def test_a_reply_that_was_cut_while_it_thought_holds_nothing():
    assert parse(f"<think>{THOUGHT} and then") == []


@pytest.mark.parametrize(
    ("text", "answers", "words"),
    [
        (GOOD, {"SPEECH": "(A)", "NONSPEECH": "[B]"}, ("A", "B")),
        (GOOD, {"speech": "A", "nonspeech": "B"}, ("A", "B")),
        (GOOD, {"A": "SPEECH", "B": "NONSPEECH"}, ("A", "B")),
        ("Speech? Yes or No", ["Yes", "No"], ("Yes", "No")),
        ("Speech? Yes or No", {"SPEECH": "yes", "NONSPEECH": "NO."}, ("Yes", "No")),
        (GOOD, {"SPEECH": "B", "NONSPEECH": "A"}, ("B", "A")),
    ],
)
def test_answers_that_mean_one_thing_only_are_taken(text, answers, words):
    found = check_proposal({"text": text, "answers": answers}, SPEECH_TASK, set())
    assert isinstance(found, Prompt), found
    assert [w for _, group in found.answers for w in group] == list(words)


@pytest.mark.parametrize(
    "text",
    [
        "Here is a short, noisy clip. A) speech B) other",
        "Note that the clip is short. A) speech B) other",
        'Speech? Answer with {"answer": "A"} or {"answer": "B"}',
    ],
)
def test_a_prompt_may_begin_as_talk_does(text):
    assert check_proposal(text, SPEECH_TASK, set()) == Prompt(text)


@pytest.mark.parametrize("space", ["\t", "\u00a0", "\u202f", "\u2009", "\u3000"])
def test_every_kind_of_space_is_a_space(space):
    text = f"Is it{space}speech?\r\nA) Yes\u200b{space}B) No"
    assert check_proposal(text, SPEECH_TASK, set()) == Prompt("Is it speech?\nA) Yes B) No")


@pytest.mark.parametrize(
    "part",
    ["[ a b\n", "<think> ", "</think> ", "<INS> ", "\n", " ", "1.\n", '{"a":', '"prompts": ['],
)
def test_a_long_reply_of_one_part_is_read_in_one_go(part):
    """What takes the square of its length would not end here."""
    assert parse(part * 100_000) == []
    assert isinstance(check_proposal(part * 100_000, SPEECH_TASK, set()), str)


def test_options_that_a_prompt_counts_are_no_list_of_prompts():
    assert parse("1) speech\n2) other") == []
    assert parse("3. Is it speech? A or B\n4. Is it music? A or B") == []
    within = "[" * (replies.MAX_BRACKETS - 1) + '["a b"]'
    assert parse(within) == ["a b"] and parse("[" + within) == []


def test_quotes_that_belong_to_the_text_stay():
    for text in ('"A" or "B', "it is 'A", "A or B", '"', ""):
        assert unwrap(text) == text
    assert unwrap("```json A B```") == "```json A B```"
    assert unwrap("''A or B''") == "A or B"
