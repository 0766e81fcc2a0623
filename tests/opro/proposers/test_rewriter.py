import random
import re
from dataclasses import replace

import pytest
from conftest import LABELS

from evaluators.orders import find_options
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK, Task
from opro.proposers.lm_proposer import refuse
from opro.proposers.rewriter import Rewriter, take_apart
from opro.search.history import Candidate, History


@pytest.fixture
def history(tmp_path, seeds):
    history = History(tmp_path / "t.jsonl", LABELS)
    for i, trial in enumerate(history.add(0, [Candidate(p, "seed") for p in seeds])):
        history.tell(replace(trial, state="complete", reward=0.6 + i / 10, nll=0.5, clips=9))
    return history


def test_prompts_come_apart_and_together(seeds):
    parts = [take_apart(p) for p in seeds]
    assert parts[0].options == (
        ("SPEECH", "SPEECH (human voice)"),
        ("NONSPEECH", "NONSPEECH (music/noise/silence/animals)"),
    )
    assert parts[0].question == "Choose one:" and parts[0].closing == "Answer with A or B ONLY."
    for prompt, part in zip(seeds, parts, strict=True):
        assert take_apart(part.prompt(prompt)) == part


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("(A) talk (B) no talk", ["talk", "no talk"]),
        ("A = talk, B = none", ["talk", "none"]),
        ("Speech?\nA: yes\nB: no\nReply A or B.", ["yes", "no"]),
        ("[A] talk [B] no talk", ["talk", "no talk"]),
        ("A. x\nB. y", ["x", "y"]),
        ("A - x B - y", ["x", "y"]),
    ],
)
def test_options_are_found_however_they_are_marked(text, options):
    assert [words for _, words in take_apart(Prompt(text)).options] == options


@pytest.mark.parametrize(
    "text",
    ["Reply A when a talker is audible and B when none is.", "Is it speech?", "A) only one option"],
)
def test_prompts_without_marked_options_are_left_alone(text):
    assert take_apart(Prompt(text)) is None


def test_swapping_keeps_what_each_answer_means(seeds):
    parts = take_apart(seeds[0])
    swapped = replace(parts, options=parts.options[::-1]).prompt(seeds[0])
    assert dict(swapped.answers) == {"SPEECH": ("B",), "NONSPEECH": ("A",)}
    assert "B) SPEECH (human voice)" in swapped.text
    assert take_apart(swapped).options == parts.options[::-1]


def test_proposals_are_new_valid_and_repeatable(history):
    first = Rewriter(SPEECH_TASK, seed=3).propose(history, 40, 1)
    assert first == Rewriter(SPEECH_TASK, seed=3).propose(history, 40, 1)
    assert first != Rewriter(SPEECH_TASK, seed=4).propose(history, 40, 1)
    assert len({c.prompt.digest for c in first}) == 40
    known: set[str] = set()
    good = [
        c
        for c in first
        if isinstance(
            refuse(
                {"text": c.prompt.text, "answers": c.prompt.to_dict()["answers"]},
                SPEECH_TASK,
                known,
            ),
            Prompt,
        )
    ]
    assert len(good) >= 36  # the rest differ in punctuation only
    assert all(c.parents and c.origin.startswith("rewriter:") for c in first)


def test_the_bank_holds_fragments_not_prompts(history, seeds):
    bank = Rewriter(SPEECH_TASK, seed=0).bank
    assert not [
        q
        for q in bank["questions"] + bank["hints"] + bank["closings"]
        if take_apart(Prompt(q)) is not None
    ]


def test_random_paraphrases_start_from_the_seeds_alone(history, seeds):
    found = Rewriter(SPEECH_TASK, seed=0, learn=False).propose(history, 30, 1)
    history.add(1, found)
    later = Rewriter(SPEECH_TASK, seed=0, learn=False).propose(history, 30, 2)
    assert {p for c in found + later for p in c.parents} <= {p.prompt_id for p in seeds}


def test_a_task_without_fragments_gets_structural_edits(history):
    found = Rewriter(Task("other", LABELS, "x"), seed=0).propose(history, 5, 1)
    assert found and all(
        set(c.origin.removeprefix("rewriter:").split("+")) <= {"swap", "shorten", "cross", "layout"}
        for c in found
    )


def test_other_letters_change_wherever_they_are_named_and_keep_their_meaning(history):
    rewriter = Rewriter(SPEECH_TASK, seed=1)
    parents = [t.candidate.prompt for t in history.trials]
    rng = random.Random(0)
    found = [c for c in (rewriter.rewrite(parents, rng, 1.0) for _ in range(300)) if c]
    found += [
        c for c in (rewriter.rewrite([f.prompt for f in found], rng) for _ in range(300)) if c
    ]
    seen = set()
    for prompt in (c.prompt for c in found):
        letters = {words[0] for _, words in prompt.answers}
        options = find_options(prompt)
        assert options is not None and {o.label for o in options} == set(SPEECH_TASK.labels)
        pairs = re.findall(r"(?<!\w)([ABXY12]) or ([ABXY12])(?!\w)", prompt.text)
        assert all(set(pair) == letters for pair in pairs)
        seen |= {frozenset(letters)} if pairs else set()
    assert seen == {frozenset("AB"), frozenset("12"), frozenset("XY")}
