"""Questions whose options differ from clip to clip."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.cache import CachedEvaluator
from evaluators.choices import (
    ABSENT,
    Choices,
    chosen_by_turn,
    consistency,
    correctness,
    filled,
    in_orders,
)
from evaluators.clips import Clip
from evaluators.errors import PromptError, UserError
from evaluators.evaluator import ScoreTable, Uncached
from evaluators.fakes import FakeEvaluator
from evaluators.orders import evals_per_clip
from evaluators.prompts import Prompt

LABELS = "ABCDE"
FRAME = Prompt("{question}\n{options}\n\nAnswer:", tuple((v, (v,)) for v in LABELS), "")
WORDS = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=12)


def clip_of(number, options, question="What is it?", right="A"):
    digest = f"{number:064x}"
    return Clip(
        f"c{number}", None, right, "sound", 500.0, None, "x", f"s{number}", "dev", "CC0", digest,
        question=question, options=tuple(options),
    )  # fmt: skip


CLIPS = [
    clip_of(0, ("dog", "cat", "cow"), right="B"),
    clip_of(1, ("dog", "cat", "cow"), right="A"),
    clip_of(2, ("rain", "wind", "sea", "fire", "bell"), "What is heard?", right="E"),
    clip_of(3, ("yes", "no"), "Is it loud?", right="A"),
    clip_of(4, ("cat", "pig", "dog"), right="C"),  # the same question, other options
]


class FirstLetters(Uncached):
    """Likes the letter shown first by `lean` nats, and the option that holds `right` by 2."""

    fingerprint = "first"

    def __init__(self, lean, right=("cat", "dog", "bell", "yes", "dog")):
        self.lean, self.right = lean, right

    def score(self, prompts, clips):
        logp = np.zeros((len(prompts), len(clips), len(prompts[0].answers)), dtype=np.float32)
        for p, prompt in enumerate(prompts):
            for k, (_, words) in enumerate(prompt.answers):
                logp[p, :, k] += self.lean * (words[0] == "A")
                shown = next(x for x in prompt.text.split("\n") if x.startswith(f"{words[0]}) "))
                for c in range(len(clips)):
                    logp[p, c, k] += 2.0 * (shown[3:] == self.right[int(clips[c].clip_id[1:])])
        logp -= np.logaddexp.reduce(logp, axis=-1, keepdims=True)
        self.forwards += len(prompts) * len(clips)
        return ScoreTable(tuple(prompts), tuple(clips), logp, logp)


def test_a_frame_is_filled_with_the_clips_question_and_options():
    one = filled(FRAME, CLIPS[0])
    assert one.text == "What is it?\nA) dog\nB) cat\nC) cow\n\nAnswer:"
    assert one.answers == (("A", ("A",)), ("B", ("B",)), ("C", ("C",)))
    turned = filled(FRAME, CLIPS[0], 1)
    assert turned.text == "What is it?\nA) cat\nB) cow\nC) dog\n\nAnswer:"
    assert turned.answers == (("A", ("C",)), ("B", ("A",)), ("C", ("B",)))
    row = dataclasses.replace(FRAME, text="{question} Choose: {options}.")
    assert filled(row, CLIPS[3]).text == "Is it loud? Choose: A) yes B) no."


@given(st.lists(WORDS, min_size=2, max_size=5, unique=True), WORDS, st.integers(0, 4))
def test_what_a_clip_brings_is_put_in_once_whatever_it_holds(options, question, turn):
    frame = dataclasses.replace(FRAME, text="{question}\n{options}")
    clip = clip_of(0, [*options[:-1], options[-1] + "{question}{options}"], question)
    one = filled(frame, clip, turn)
    shown = one.text.removeprefix(question + "\n").split("\n")
    assert len(shown) == len(options)
    for k, (_, (letter,)) in enumerate(one.answers):
        assert shown["ABCDE".index(letter)] == f"{letter}) {clip.options[k]}"


def test_scores_are_by_option_and_a_clip_has_none_of_the_last_labels():
    evaluator = Choices(FirstLetters(lean=0.0))
    table = evaluator.score([FRAME], CLIPS)
    assert table.logp[0].argmax(-1).tolist() == [1, 0, 4, 0, 2]
    assert (table.logp[0, 3, 2:] == ABSENT).all() and (table.logp[0, 2] > ABSENT).all()
    assert np.allclose(np.exp(table.logp).sum(-1), 1, atol=1e-6)


def test_all_rotations_averaged_take_a_lean_towards_a_place_off():
    leaning = Choices(FirstLetters(lean=3.0))
    assert leaning.score([FRAME], CLIPS).logp[0].argmax(-1).tolist() == [0] * 5
    every = dataclasses.replace(FRAME, both_orders=True)
    assert leaning.score([every], CLIPS).logp[0].argmax(-1).tolist() == [1, 0, 4, 0, 2]
    assert evals_per_clip(every) == 5 and evals_per_clip(FRAME) == 1


def test_clips_one_by_one_cached_and_in_any_order_score_alike(tmp_path):
    prompts = [FRAME, dataclasses.replace(FRAME, text="{options} {question}", both_orders=True)]
    whole = in_orders(FakeEvaluator()).score(prompts, CLIPS)
    cached = in_orders(CachedEvaluator(FakeEvaluator(), tmp_path))
    assert cached.count_missing(prompts, CLIPS) == 5 + (3 + 3 + 5 + 2 + 3)
    for found in (cached.score(prompts, CLIPS), cached.score(prompts, CLIPS)):
        assert np.array_equal(found.logp, whole.logp)
    assert cached.count_missing(prompts, CLIPS) == 0
    assert cached.usage.forward == 21
    for i, clip in enumerate(CLIPS):
        assert np.array_equal(
            in_orders(FakeEvaluator()).score(prompts, [clip]).logp[:, 0], whole.logp[:, i]
        )
    turned = in_orders(FakeEvaluator()).score(prompts[::-1], CLIPS[::-1])
    assert np.array_equal(turned.logp[::-1, ::-1], whole.logp)


def test_clips_without_options_go_through_as_they_are():
    plain = [dataclasses.replace(c, options=(), question="") for c in CLIPS]
    prompt = dataclasses.replace(FRAME, text="A) x B) y {options}")
    expected = FakeEvaluator().score([prompt], plain)
    assert np.array_equal(Choices(FakeEvaluator()).score([prompt], plain).logp, expected.logp)


def test_what_does_not_fit_is_refused():
    with pytest.raises(PromptError, match=r"has no \{options\}"):
        Choices(FakeEvaluator()).score([dataclasses.replace(FRAME, text="A or B?")], CLIPS)
    with pytest.raises(PromptError, match="5 options"):
        Choices(FakeEvaluator()).score(
            [dataclasses.replace(FRAME, answers=FRAME.answers[:4])], CLIPS
        )
    with pytest.raises(UserError, match="'c9' has no options"):
        Choices(FakeEvaluator()).score([FRAME], [*CLIPS, clip_of(9, ())])


def test_rates_over_orders_are_those_of_the_paper():
    fair = chosen_by_turn(FirstLetters(lean=0.0), FRAME, CLIPS)
    assert [one.tolist() for one in fair] == [[1] * 3, [0] * 3, [4] * 5, [0] * 2, [2] * 3]
    leaning = chosen_by_turn(Choices(FirstLetters(lean=3.0)), FRAME, CLIPS)
    assert [one.tolist() for one in leaning] == [
        [0, 1, 2], [0, 1, 2], [0, 1, 2, 3, 4], [0, 1], [0, 1, 2]
    ]  # fmt: skip
    assert consistency(fair[0]) == 1 and consistency(leaning[0]) == 0
    mixed = np.array([0, 0, 1, 0])
    pairs = [mixed[i] == mixed[j] for i, j in itertools.combinations(range(4), 2)]
    assert consistency(mixed) == pytest.approx(np.mean(pairs))
    assert correctness(mixed, 0) == 0.75
