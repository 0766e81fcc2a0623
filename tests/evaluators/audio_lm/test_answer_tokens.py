"""Answer words as tokens, against a tokenizer that is written out here, and the shipped one."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evaluators.audio_lm.answer_tokens import PromptError, find_answers, reading_of
from evaluators.prompts import Prompt

START, CONTROL = 0, 1
LETTERS = "abc "


class Pieces:
    """Cuts text into the longest pieces it knows; puts a start token first and reads control tokens unless told not."""

    def __init__(self, pieces):
        self.pieces = ["<s>", "<|x|>", *dict.fromkeys([*"abcABC |x<>", *pieces])]

    def encode(self, text, add_special_tokens=True, split_special_tokens=False):
        ids = [START] if add_special_tokens else []
        while text:
            first = 2 if split_special_tokens else 1
            known = [i for i in range(first, len(self.pieces)) if text.startswith(self.pieces[i])]
            ids.append(max(known, key=lambda i: len(self.pieces[i])))
            text = text[len(self.pieces[ids[-1]]) :]
        return ids

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids)


def read(tokenizer, *groups):
    """Per label the token sequences of its words."""
    labels = [f"LABEL{k}" for k in range(len(groups))]
    return find_answers(tokenizer, Prompt("?", tuple(zip(labels, groups, strict=True)))).sequences


def reference(tokenizer, words):
    """What a label's words spell: each word as an answer starts, and after a space where that is one token."""
    out = []
    for word in words:
        plain, spaced = (tokenizer.encode(w, False, True) for w in (word, " " + word))
        out += [tuple(plain)] + [tuple(spaced)] * (len(spaced) == 1)
    return set(out)


def told_apart(sequences):
    """Whether no sequence begins another one."""
    return not any(
        i != j and b[: len(a)] == a
        for i, a in enumerate(sequences)
        for j, b in enumerate(sequences)
    )


words = st.text("abc", min_size=1, max_size=4)
groups_of_words = st.lists(
    st.lists(words, min_size=1, max_size=3).map(tuple), min_size=2, max_size=4
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(LETTERS, min_size=2, max_size=4), max_size=8), groups_of_words)
def test_every_word_is_read_as_its_single_tokens_or_as_one_sequence_or_refused(pieces, groups):
    tokenizer = Pieces(pieces)
    expected = [reference(tokenizer, group) for group in groups]
    if told_apart([s for group in expected for s in group]):
        found = read(tokenizer, *groups)
        assert [set(group) for group in found] == expected
        assert [len(group) for group in found] == list(map(len, expected))  # none twice
    else:
        with pytest.raises(PromptError, match="begin with the same tokens"):
            read(tokenizer, *groups)


@settings(max_examples=50, deadline=None)
@given(groups_of_words)
def test_constrained_generation_may_choose_the_first_token_of_every_answer(groups):
    tokenizer = Pieces(["ab", " a", " c"])
    try:
        prompt = Prompt("?", tuple((f"L{k}", group) for k, group in enumerate(groups)))
        answers = find_answers(tokenizer, prompt)
    except PromptError:
        assume(False)
    firsts = {s[0] for group in groups for s in reference(tokenizer, group)}
    assert answers.allowed == tuple(sorted(firsts))


def test_a_letter_counts_with_and_without_its_space_when_both_are_tokens():
    tokenizer = Pieces([" a"])
    a, spaced = tokenizer.pieces.index("a"), tokenizer.pieces.index(" a")
    assert read(tokenizer, ("a",), ("b",))[0] == ((a,), (spaced,))
    assert read(tokenizer, ("a",), ("b",))[1] == ((tokenizer.pieces.index("b"),),)


def test_a_word_that_is_one_token_only_after_a_space_is_read_without_it_too():
    """As after the template's newline a model that was trained on it says it."""
    tokenizer = Pieces([" abc"])
    a, b, c, spaced = map(tokenizer.pieces.index, ("a", "b", "c", " abc"))
    assert read(tokenizer, ("abc",), ("c",))[0] == ((a, b, c), (spaced,))


def test_only_prompts_that_are_read_otherwise_than_once_have_another_key():
    tokenizer = Pieces([" abc", " ab", "ab", " b"])

    def key(*words):
        return reading_of(Prompt("?", (("L0", words[:1]), ("L1", words[1:]))), lambda: tokenizer)

    assert key("abc", "b") == key("b", "c", "abc") == "|unspaced too"
    assert key("ab", "bca") == key("ca", "b") == ""

    def never():
        raise AssertionError("letters need no tokenizer")

    assert reading_of(Prompt("A) yes B) no"), never) == ""


def test_a_word_of_several_tokens_is_one_sequence_without_a_space():
    tokenizer = Pieces(["ab"])
    ab, c = tokenizer.pieces.index("ab"), tokenizer.pieces.index("c")
    assert read(tokenizer, ("abc",), ("b",))[0] == ((ab, c),)


def test_a_word_that_is_named_twice_counts_once():
    assert read(Pieces([]), ("a", "a"), ("b",)) == read(Pieces([]), ("a",), ("b",))


def test_a_word_that_spells_a_control_token_is_read_as_text():
    sequence = read(Pieces([]), ("<|x|>",), ("b",))[0][0]
    assert CONTROL not in sequence and len(sequence) == 5


@pytest.mark.parametrize(
    "groups",
    [
        (("a",), ("a",)),
        (("ab",), ("abc",)),
        (("abc",), ("ab",)),
        (("b",), ("c",), ("cb", "b")),
        (("a",), ("c", "cb")),  # one label: its two answers would be counted twice
    ],
)
def test_answers_that_begin_alike_name_their_labels_and_are_refused(groups):
    with pytest.raises(PromptError, match=r"LABEL\d.* and one of LABEL\d.*use other answer words"):
        read(Pieces([]), *groups)


def test_answers_that_share_a_start_but_part_later_are_told_apart():
    assert [len(group[0]) for group in read(Pieces([]), ("ab",), ("ac",))] == [2, 2]


@pytest.mark.tiny
def test_the_shipped_tokenizer_has_each_letter_in_two_forms(pocket):
    tokenizer = pocket.processor.tokenizer
    for letter, group in zip("AB", read(tokenizer, ("A",), ("B",)), strict=True):
        assert sorted(tokenizer.decode(list(s)) for s in group) == [f" {letter}", letter]
        assert all(len(s) == 1 for s in group)
