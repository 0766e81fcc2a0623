"""Trivial edits and phrases: no meaning changes, and what names the answers stays."""

import itertools
import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from evaluators.orders import find_options, swapped
from evaluators.prompts import OPTIONS, QUESTION, Prompt, is_frame, read_prompts
from evaluators.tasks import SPEECH_TASK, task_named
from opro.proposers.rewriter import Rewriter
from opro.search.edits import answers_kept, trivial_edits
from opro.search.phrases import SYSTEM_MESSAGE, phrases
from opro.settings import MOST_EDITS, SEED_PROMPTS

SEEDS = read_prompts(SEED_PROMPTS, SPEECH_TASK.labels)
YES = (("SPEECH", ("yes",)), ("NONSPEECH", ("no",)))
WORDS = Prompt("If you hear a voice, even faint, answer yes; otherwise answer no.", YES)
FRAME = task_named("choices").prompts[0]


def made():
    """Seeds, prompts of other tasks, and some of the rewriter's."""
    rng, rewriter = random.Random(0), Rewriter(SPEECH_TASK, 0)
    more = [rewriter.rewrite(SEEDS, rng, 0.5) for _ in range(12)]
    tasks = [p for t in ("keywords", "choices", "esc50-groups") for p in task_named(t).prompts]
    return [*SEEDS, WORDS, *tasks, *(c.prompt for c in more if c)]


PROMPTS = made()


def letters(text):
    return re.sub(r"[\W_]", "", text)


def said(prompt):
    """What each label's option says, whatever its marks."""
    options = find_options(prompt) or ()
    return {o.label: letters(prompt.text[o.start : o.end]).casefold() for o in options}


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: p.prompt_id)
def test_no_edit_changes_what_is_said(prompt):
    edits = trivial_edits(prompt)
    assert len({e.prompt.digest for e in edits} | {prompt.digest}) == len(edits) + 1
    assert len(edits) == MOST_EDITS or is_frame(prompt) or len(edits) > 35
    for edit in edits:
        one = edit.prompt
        assert answers_kept(prompt, one), edit.name
        assert (one.both_orders, one.presentation) == (prompt.both_orders, prompt.presentation)
        if edit.kind == "system":
            assert letters(one.system).casefold() == letters(prompt.system).casefold()
            assert one.text == prompt.text
            continue
        assert one.system == prompt.system
        if edit.kind in ("blanks", "lines"):
            assert "".join(one.text.split()) == "".join(prompt.text.split())
        if edit.kind == "punctuation":
            assert letters(one.text) == letters(prompt.text)
        if edit.kind == "case":
            assert one.text.casefold() == prompt.text.casefold()
        if edit.kind in ("order", "marks"):
            assert Counter(re.findall(r"\w+", one.text)) == Counter(re.findall(r"\w+", prompt.text))
        if edit.kind == "typo":
            changed = Counter(one.text.split()) - Counter(prompt.text.split())
            assert sum(changed.values()) == 1
        if edit.kind in ("blanks", "case", "order", "marks"):
            assert said(one) == said(prompt), edit.name
        if edit.kind != "order":
            assert one.answers == prompt.answers


def test_fewer_edits_are_the_first_and_of_all_kinds():
    for prompt in SEEDS:
        every = trivial_edits(prompt)
        assert trivial_edits(prompt, 9) == every[:9] and trivial_edits(prompt, 0) == ()
        assert len({e.kind for e in every[:9]}) >= 7
        kinds = {"blanks", "lines", "punctuation", "case", "order", "marks", "typo"}
        assert {e.kind for e in every} >= kinds


def test_the_order_of_options_goes_with_their_answers():
    one = next(e.prompt for e in trivial_edits(SEEDS[0]) if "opposite order" in e.name)
    assert one == swapped(SEEDS[0]) and one.answers != SEEDS[0].answers


def test_words_that_are_answers_are_never_touched():
    shouted = next(e.prompt.text for e in trivial_edits(WORDS) if e.name == "all in capitals")
    assert shouted == "IF YOU HEAR A VOICE, EVEN FAINT, ANSWER yes; OTHERWISE ANSWER no."
    for edit in trivial_edits(FRAME):
        assert edit.prompt.text.count(QUESTION) == edit.prompt.text.count(OPTIONS) == 1


def test_a_prompt_that_lost_an_answer_is_known():
    assert not answers_kept(WORDS, Prompt("If you hear a voice answer yes.", YES))
    assert not answers_kept(FRAME, Prompt("{question}", FRAME.answers))
    assert not answers_kept(SEEDS[0], Prompt("Choose one:\nA) SPEECH", SEEDS[0].answers))
    assert not answers_kept(SEEDS[0], Prompt("Choose one:\nA) SPEECH\nB) ", SEEDS[0].answers))
    assert answers_kept(Prompt("Speech?", YES), Prompt("speech?", YES))  # it never named them


# ---- phrases


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda p: p.prompt_id)
def test_phrases_hold_each_word_once_and_go_without_leaving_any(prompt):
    found = phrases(prompt)
    fine = [p for p in found if not p.whole and p.kind != SYSTEM_MESSAGE]
    assert [p.start for p in fine] == sorted(p.start for p in fine)
    assert all(a.end <= b.start for a, b in itertools.pairwise(fine))
    marks = [(o.mark, o.start) for o in find_options(prompt) or ()]
    for i, ch in enumerate(prompt.text):
        inside = sum(p.start <= i < p.end for p in fine)
        assert inside <= 1
        if ch.isalnum() and not any(a <= i < b for a, b in marks):
            assert inside == 1, prompt.text[i:]
    for one in found:
        assert (one.without is None) == bool(one.why_not)
        if one.kind == SYSTEM_MESSAGE:
            assert one.without.system == "" and one.without.text == prompt.text
            continue
        assert one.text == prompt.text[one.start : one.end] == one.text.strip()
        if one.without is not None:
            assert answers_kept(prompt, one.without) and one.without.answers == prompt.answers
            left = Counter(re.findall(r"\w+", one.without.text))
            whole = Counter(re.findall(r"\w+", prompt.text))
            assert whole - left == Counter(re.findall(r"\w+", one.text)) and not left - whole
            assert not re.search(r"  |\n\n\n|\A\s|\s\Z", one.without.text)


def test_what_a_prompt_cannot_do_without():
    why = {p.text: p.why_not for p in phrases(WORDS) if p.why_not}
    assert why == {
        WORDS.text: "it is the whole text",
        "answer yes;": "it alone names the answer 'yes'",
        "otherwise answer no.": "it alone names the answer 'no'",
    }
    why = {p.text: p.why_not for p in phrases(SEEDS[2]) if p.why_not}
    assert set(why) == {"SPEECH detected", "NO SPEECH detected"}
    assert set(why.values()) == {"it is all that an option says"}
    why = [p.why_not for p in phrases(FRAME)]
    assert why[:2] == [f"it is the place of each clip's own {w}" for w in ("question", "options")]


def test_brackets_clauses_and_whole_sentences_are_phrases():
    kinds = [(p.kind, p.text) for p in phrases(SEEDS[0])]
    assert kinds == [
        ("sentence", "Choose one:"),
        ("option", "SPEECH"),
        ("explanation", "(human voice)"),
        ("option", "NONSPEECH"),
        ("explanation", "(music/noise/silence/animals)"),
        ("sentence", "Answer with A or B ONLY."),
        (SYSTEM_MESSAGE, "You classify audio content."),
    ]
    brackets = replace(SEEDS[0], text="Choose:\nA) speech (a voice, however faint)\nB) other")
    texts = [p.text for p in phrases(brackets)]
    assert texts[1:3] == ["speech", "(a voice, however faint)"]
    first = phrases(SEEDS[2])[0]
    assert first.whole and first.without.text.startswith("Options:\n")
    rest = next(p.without for p in phrases(WORDS) if p.text == "even faint,")
    assert rest.text == "If you hear a voice, answer yes; otherwise answer no."
