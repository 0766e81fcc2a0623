"""What columns and labels are called elsewhere: guessed where one reading is possible, else left open."""

import pytest

from opro.results.spellings import (
    HEADERS,
    column_for,
    folded,
    label_names,
    predicted_names,
    source_rule,
)

TABLE = {
    "File Name": ["a_1.wav", "a_2.wav", "b_1.wav"],
    "Ground Truth": ["speech", "noise", "speech"],
    "y_pred": ["speech", "speech", "speech"],
    "P(speech)": ["0.5", "0.9", "nan"],
    "Speaker": ["a", "a", "b"],
}


@pytest.mark.parametrize(("name", "header"), [
    ("clip_id", "File Name"), ("label", "Ground Truth"), ("predicted", "y_pred"),
    ("score", "P(speech)"), ("source_id", "Speaker"),
])  # fmt: skip
def test_headers_of_other_projects_are_known(name, header):
    assert column_for(name, TABLE) == [header]
    assert column_for("snr_db", TABLE) == []


@pytest.mark.parametrize(("name", "column"), [
    ("clip_id", ["a", "a"]), ("label", ["a", ""]), ("score", ["high", "0.1"]),
    ("predicted", [f"It is {i}" for i in range(30)]),
])  # fmt: skip
def test_a_header_whose_values_are_of_another_kind_is_no_guess(name, column):
    header = HEADERS[name].split()[0]
    assert column_for(name, {header: column}) == []


def test_no_header_stands_for_two_columns():
    known = [h for names in HEADERS.values() for h in names.split()]
    assert len(set(known)) == len(known) and all(folded(h) == h for h in known)


@pytest.mark.parametrize(("values", "expected"), [
    (["SPEECH", "NONSPEECH"], {"SPEECH": "SPEECH", "NONSPEECH": "NONSPEECH"}),
    (["Speech", "non-speech", "Non Speech"],
     {"Speech": "SPEECH", "non-speech": "NONSPEECH", "Non Speech": "NONSPEECH"}),
    (["1", "0"], {"1": "SPEECH", "0": "NONSPEECH"}),
    (["Yes", "NO", "no"], {"Yes": "SPEECH", "NO": "NONSPEECH", "no": "NONSPEECH"}),
    (["SPEECH", "music", "music", "Music"], {"SPEECH": "SPEECH", "music": "music", "Music": "music"}),
    # Left as they are: nothing says which of them is speech.
    (["1", "2"], {"1": "1", "2": "2"}),
    (["1", "-1"], {"1": "1", "-1": "-1"}),
    (["1", "0", "2"], {"1": "1", "0": "0", "2": "2"}),
    (["a", "b"], {"a": "a", "b": "b"}),
    (["yes", "maybe"], {"yes": "yes", "maybe": "maybe"}),
])  # fmt: skip
def test_labels_are_named_where_one_reading_is_possible(values, expected):
    assert label_names(values, "SPEECH") == expected


def test_a_positive_label_that_was_named_is_taken_as_it_is():
    assert label_names(["1", "0"], "1") == {"1": "1", "0": "0"}
    assert label_names(["1", "0"], "0") == {"1": "1", "0": "0"}
    assert label_names(["cat", "dog"], "dog") == {"cat": "cat", "dog": "dog"}


WORDS = {"SPEECH": "SPEECH", "NONSPEECH": "NONSPEECH"}
DIGITS = {"1": "SPEECH", "0": "NONSPEECH"}


@pytest.mark.parametrize(("value", "names", "expected"), [
    ("speech", WORDS, "SPEECH"), ("Non-Speech", WORDS, "NONSPEECH"), ("yes", WORDS, "SPEECH"),
    ("False", WORDS, "NONSPEECH"),
    ("1", WORDS, None), ("0", WORDS, None),  # an index of classes may be either
    ("1", DIGITS, "SPEECH"), ("0.0", DIGITS, "NONSPEECH"), ("2", DIGITS, None),
    ("SPEECH", DIGITS, "SPEECH"), ("ERROR", WORDS, None), ("", WORDS, None),
])  # fmt: skip
def test_predictions_are_read_as_labels_where_one_reading_is_possible(value, names, expected):
    assert predicted_names([value], names, "SPEECH").get(value) == expected


def test_of_a_positive_zero_no_word_is_read():
    assert predicted_names(["yes", "0", "1"], {"1": "1", "0": "0"}, "0") == {"0": "0", "1": "1"}


def test_a_rule_for_sources_is_the_longest_part_that_clips_share():
    clips = [f"spk{i % 4}_day{i % 2}_{i:03}.wav" for i in range(40)]
    assert source_rule(clips) == ("(.+)_[^_]*", 4)
    assert source_rule(["a/1", "a/2", "b/1", "b/2"]) == ("(.+)/[^/]*", 2)
    for none in (["a", "b"], ["a_1", "b_1"], ["a_1", "a_2"], ["a_1", "a_2", "b"]):
        assert source_rule(none) is None
