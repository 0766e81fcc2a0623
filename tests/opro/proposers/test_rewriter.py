import random
import re
from dataclasses import replace

import pytest
from common import LABELS
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import scored_trial, view_of

from evaluators.errors import UserError
from evaluators.orders import find_options
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK, Task
from opro.proposers import rewriter as module
from opro.proposers.replies import check_proposal
from opro.proposers.rewriter import Parts, Rewriter, take_apart


def operated(name, parts, bank=None, mate=None, seed=0):
    """The parts after one edit."""
    rng = random.Random(seed)
    return module._OPERATORS[name](parts, mate or parts, bank or {}, rng, SPEECH_TASK)


def means(prompt):
    """Label -> the words of the option whose letter answers for it."""
    parts = take_apart(prompt)
    marked = {parts.letters[i]: words for i, (_, words) in enumerate(parts.options)}
    return {label: marked[words[0]] for label, words in prompt.answers}


PARTS = Parts(
    "Listen.", "Is it A or B?", (("SPEECH", "talk (a voice)"), ("NONSPEECH", "none (noise)")),
    "Reply A or B.",
)  # fmt: skip


@pytest.fixture
def trials(seeds):
    return [scored_trial(i, 0.6 + i / 10, 0, prompt=p) for i, p in enumerate(seeds)]


@pytest.fixture
def view(trials):
    return view_of(trials)


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


def test_proposals_are_new_valid_and_repeatable(view):
    first = Rewriter(SPEECH_TASK, seed=3).propose(view, 40)
    assert first == Rewriter(SPEECH_TASK, seed=3).propose(view, 40)
    assert first != Rewriter(SPEECH_TASK, seed=4).propose(view, 40)
    assert len({c.prompt.digest for c in first}) == 40
    known: set[str] = set()
    good = [
        c
        for c in first
        if isinstance(
            check_proposal(
                {"text": c.prompt.text, "answers": c.prompt.to_dict()["answers"]},
                SPEECH_TASK,
                known,
            ),
            Prompt,
        )
    ]
    assert len(good) >= 36  # the rest differ in punctuation only
    assert all(c.parents and c.origin.startswith("rewriter:") for c in first)


def test_the_bank_holds_fragments_not_prompts(view, seeds):
    bank = Rewriter(SPEECH_TASK, seed=0).bank
    assert not [
        q
        for q in bank["questions"] + bank["hints"] + bank["closings"]
        if take_apart(Prompt(q)) is not None
    ]


def test_random_paraphrases_start_from_the_seeds_alone(view, trials, seeds):
    found = Rewriter(SPEECH_TASK, seed=0, learn=False).propose(view, 30)
    tried = [scored_trial(9 + i, 0.99, 1, prompt=c.prompt) for i, c in enumerate(found)]
    later = Rewriter(SPEECH_TASK, seed=0, learn=False).propose(view_of([*trials, *tried]), 30)
    assert {p for c in found + later for p in c.parents} <= {p.prompt_id for p in seeds}


def test_a_task_without_fragments_gets_structural_edits(view):
    found = Rewriter(Task("other", LABELS, "x"), seed=0).propose(view, 5)
    assert found and all(
        set(c.origin.removeprefix("rewriter:").split("+")) <= {"swap", "shorten", "cross", "layout"}
        for c in found
    )


def test_other_letters_change_wherever_they_are_named_and_keep_their_meaning(view):
    rewriter = Rewriter(SPEECH_TASK, seed=1)
    parents = [t.prompt for t in view.trials]
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


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["{0}) {1}", "({0}) {1}", "{0}: {1}", "[{0}] {1}"]),
    st.sampled_from(["\n", " "]),
    st.sampled_from(["AB", "XY", "12"]),
    st.booleans(),
    st.sampled_from(["", "Reply with one."]),
    st.sampled_from(["", "Listen closely."]),
)
def test_whatever_a_prompt_looks_like_each_answer_keeps_its_meaning(
    mark, join, letters, swap, closing, hint
):
    options = (("SPEECH", "talk"), ("NONSPEECH", "no talk"))[:: -1 if swap else 1]
    parts = Parts(hint, "What is it?", options, closing, mark, join, letters)
    prompt = parts.prompt(Prompt("x", system="s"))
    assert means(prompt) == {"SPEECH": "talk", "NONSPEECH": "no talk"}
    assert [label for label, _ in prompt.answers] == list(LABELS) and prompt.system == "s"
    assert prompt.text.startswith(f"{hint} What is it?".strip())
    assert prompt.text.endswith(f"\n\n{closing}" if closing else options[1][1])
    again = take_apart(prompt)
    assert (again.options, again.closing, again.letters) == (options, closing, letters)
    assert again.join == join and again.question == f"{hint} What is it?".strip()


def test_letters_are_exchanged_in_answers_and_words_and_never_in_number():
    found = operated("letters", PARTS, {"letters": ["XY"]})
    assert (found.letters, found.question) == ("XY", "Is it X or Y?")
    assert found.closing == "Reply X or Y." and found.options == PARTS.options
    assert operated("letters", PARTS, {"letters": ["XYZ"]}) == PARTS


def test_words_of_the_bank_go_to_the_label_they_belong_to():
    swapped = replace(PARTS, options=PARTS.options[::-1])
    found = operated("options", swapped, {"options": [["voice", "silence"]]})
    assert found.options == (("NONSPEECH", "silence"), ("SPEECH", "voice"))
    found = operated("explain", swapped, {"explanations": [["people", "things"]]})
    assert found.options == (("NONSPEECH", "none (things)"), ("SPEECH", "talk (people)"))
    found = operated("question", PARTS, {"questions": ["Any {x} here?"], "things": ["voice"]})
    assert found.question == "Any voice here?"
    named = replace(PARTS, letters="XY")
    assert operated("closing", named, {"closings": ["Say A or B."]}).closing == "Say X or Y."
    assert operated("hint", PARTS, {"hints": ["Hear."]}) == replace(PARTS, hint="Hear.")


def test_swapping_twice_and_shortening_twice_change_no_more():
    assert operated("swap", PARTS).options == PARTS.options[::-1]
    assert operated("swap", operated("swap", PARTS)) == PARTS
    short = operated("shorten", PARTS)
    assert short.options == (("SPEECH", "talk"), ("NONSPEECH", "none")) and short.hint == ""
    closings = {operated("shorten", PARTS, seed=s).closing for s in range(20)}
    assert closings == {"", PARTS.closing}
    bare = replace(PARTS, options=(("SPEECH", "(voice)"), ("NONSPEECH", "(none)")))
    assert operated("shorten", bare).options == bare.options


def test_crossing_takes_one_part_of_the_other_in_ones_own_letters():
    mate = Parts(
        "", "Pick X or Y.", (("NONSPEECH", "b"), ("SPEECH", "a")), "X or Y!", "({0}) {1}", "\n", "XY"
    )  # fmt: skip
    found = {operated("cross", PARTS, mate=mate, seed=s) for s in range(40)}
    assert found == {
        replace(PARTS, question="Pick A or B."),
        replace(PARTS, options=mate.options),
        replace(PARTS, closing="A or B!", mark="({0}) {1}"),
    }


def test_proposals_are_new_and_as_many_as_wanted_and_depend_on_the_view_alone(view, trials):
    before = Rewriter(SPEECH_TASK, seed=5).propose(view, 6)
    assert len(before) == 6
    later = [scored_trial(9 + i, 0.99, 2, prompt=p.prompt) for i, p in enumerate(before[:3])]
    assert Rewriter(SPEECH_TASK, seed=5).propose(view_of([*trials, *later], 1), 6) == before
    known = {t.prompt.digest for t in [*trials, *later]}
    for learn in (True, False):
        found = Rewriter(SPEECH_TASK, seed=5, learn=learn).propose(view_of([*trials, *later]), 6)
        assert len({c.prompt.digest for c in found} - known) == 6
    assert found != before


@pytest.mark.parametrize("learn", [True, False])
def test_nothing_is_proposed_twice_however_little_there_is_to_change(seeds, learn):
    """The layout alone of one prompt: fewer are proposed than wanted."""
    rewriter = Rewriter(Task("other", LABELS, "x"), seed=0, learn=learn)
    trials = [scored_trial(0, 0.5, 0, prompt=seeds[0])]
    found = rewriter.propose(view_of(trials), 30)
    made = [c.prompt.digest for c in found]
    assert len({seeds[0].digest, *made}) == 1 + len(made) and 2 < len(made) < 30
    trials += [scored_trial(1 + i, 0.5, 0, prompt=c.prompt) for i, c in enumerate(found[1:])]
    more = rewriter.propose(view_of(trials), 3)
    assert not {c.prompt.digest for c in more} & {t.prompt.digest for t in trials}


def test_later_iterations_keep_more_of_their_parents(view):
    """At first parts are drawn anew, and nothing that keeps them is done; then ever more edits."""
    kept = {"cross", "letters", "shorten"}
    shares = []
    for iteration in (1, 2, 8):
        found = Rewriter(SPEECH_TASK, seed=0).propose(replace(view, iteration=iteration), 40)
        done = [c.origin.removeprefix("rewriter:").split("+") for c in found]
        shares.append(sum(bool(kept & set(d)) for d in done) / len(done))
    assert shares[0] == 0 and sorted(set(shares)) == shares


def test_without_a_scored_prompt_nothing_is_proposed(trials):
    failed = [replace(t, state="failed", outcome=None) for t in trials]
    for nothing in ([], failed):
        assert Rewriter(SPEECH_TASK, seed=0).propose(view_of(nothing, 1), 3) == []


def test_a_long_search_learns_from_the_best_and_some_others(trials, monkeypatch):
    """An iteration must not grow with all that was tried."""
    seen = []
    monkeypatch.setattr(
        module.surrogate, "pick", lambda past, pool, count, rng: seen.append(past) or range(count)
    )
    many = [
        scored_trial(9 + i, i / 1000 + 4e-4, 1, prompt=Prompt(f"{i}: A) x B) y"), sd=0.01)
        for i in range(900)
    ]
    Rewriter(SPEECH_TASK, seed=0).propose(view_of([*trials, *many]), 2)
    (past,) = seen
    best = sorted([*trials, *many], key=lambda t: -t.reward + t.outcome.sd)
    told = [(t.prompt, t.reward, t.outcome.sd) for t in best]
    assert len(past) <= module.MAX_PAST
    assert past[: module.MAX_PAST // 2] == told[: module.MAX_PAST // 2]
    assert set(past) <= set(told) and len(past) > module.MAX_PAST // 2


def test_parents_in_both_orders_have_children_in_both_orders(trials):
    both = [replace(p.prompt, both_orders=True) for p in trials]
    view = view_of([scored_trial(i, 0.5, 0, prompt=p) for i, p in enumerate(both)])
    assert all(c.prompt.both_orders for c in Rewriter(SPEECH_TASK, seed=0).propose(view, 8))


def test_the_better_a_prompt_the_more_often_it_is_rewritten_unless_nothing_is_learnt(seeds):
    parents = [replace(seeds[0], system=str(i)) for i in range(3)]
    counts = {}
    for learn in (True, False):
        rewriter, rng = Rewriter(SPEECH_TASK, seed=0, learn=learn), random.Random(1)
        found = [c for c in (rewriter.rewrite(parents, rng) for _ in range(900)) if c]
        counts[learn] = [sum(c.prompt.system == str(i) for c in found) for i in range(3)]
    assert counts[True][0] > 1.5 * counts[True][1] > 2 * counts[True][2]
    assert max(counts[False]) < 1.3 * min(counts[False])


def test_origin_and_parents_tell_what_was_done(seeds):
    rewriter, rng = Rewriter(SPEECH_TASK, seed=0), random.Random(2)
    found = [c for c in (rewriter.rewrite(seeds, rng) for _ in range(300)) if c]
    ids = {p.prompt_id for p in seeds}
    for c in found:
        done = c.origin.removeprefix("rewriter:").split("+")
        assert 1 <= len(done) <= 3 and set(c.parents) <= ids
        assert len(c.parents) == 1 + done.count("cross")
        assert all(other != c.parents[0] for other in c.parents[1:])
    assert {len(c.origin.split("+")) for c in found} == {1, 2, 3}
    assert "cross" in "".join(c.origin for c in found)


def test_a_hint_is_replaced_not_added(seeds):
    rewriter = Rewriter(SPEECH_TASK, seed=0)
    hint = rewriter.bank["hints"][0]
    parts = take_apart(seeds[0])
    told = replace(parts, hint=hint).prompt(seeds[0])
    rng = random.Random(0)
    found = [c for c in (rewriter.rewrite([told], rng) for _ in range(200)) if c]
    for c in (c for c in found if "hint" in c.origin and "shorten" not in c.origin):
        assert sum(h in c.prompt.text for h in rewriter.bank["hints"] if h) <= 1


def test_a_bank_with_unknown_or_missing_parts_is_refused(tmp_path):
    (tmp_path / "speech.yaml").write_text("questions: []\nriddles: []\n")
    with pytest.raises(UserError, match=r"riddles.*unknown or missing"):
        Rewriter(SPEECH_TASK, seed=0, folder=tmp_path)
