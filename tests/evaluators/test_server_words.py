"""What is shown of a server's own words, and what never is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.server_words import own_words, redacted, shortened

KEY = "sk-proj-abcdEFGH1234ijklMNOP"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no such model", "code": 404}}, "no such model"),
        ({"error": "'response_format.type' must be 'json_schema' or 'text'"},
         "'response_format.type' must be 'json_schema' or 'text'"),
        ({"object": "error", "message": "System role not supported", "code": 400},
         "System role not supported"),
        ([{"error": {"code": 400, "message": 'Unknown name "reasoning": Cannot find field.'}}],
         'Unknown name "reasoning": Cannot find field.'),
        ({"object": "error", "message": {"detail": [{"type": "extra_forbidden", "msg": "Extra inputs are not permitted",
          "loc": ["body", "max_completion_tokens"], "input": 32000}]}},
         "max_completion_tokens: Extra inputs are not permitted"),
        ({"detail": [{"loc": ["body", "messages", 0], "msg": "bad", "input": "the whole request"}]},
         "messages.0: bad"),
        ({"message": json.dumps({"detail": [{"loc": ["body", "frequency_penalty"], "msg": "no"}]})},
         "frequency_penalty: no"),
        ({"error": {"code": 400, "message": json.dumps({"error": {"message": "inner"}})}}, "inner"),
        ("<html><head><style>x{}</style><title>502 Bad Gateway</title></head></html>",
         "502 Bad Gateway"),
        ("upstream\n\n  timed\tout", "upstream timed out"),
        ({"error": None, "hello": 1}, ""),
        ("", ""),
    ],
    ids=str,
)  # fmt: skip
def test_a_servers_words_are_found_in_every_shape(body, words):
    raw = body if isinstance(body, str) else json.dumps(body)
    assert own_words(raw.encode()) == words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Incorrect API key provided: {KEY}. You can find it", "Incorrect API key provided: ***. You can find it"),
        ("Incorrect API key provided: sk-abcd****wxyz1.", "Incorrect API key provided: ***."),
        ("Authorization: Bearer abc.def-123", "Authorization: *** ***"),
        ("got header Bearer eyJhbGciOi", "got header Bearer ***"),
        ("cannot reach https://me:pass@host:8000/v1", "cannot reach https://***@host:8000/v1"),
        ("api_key=hunter2, model=m", "api_key=***, model=m"),
        ("data UklGRiQAAABXQVZFZm10IBAAAAABAAEA is no audio", "data *** is no audio"),
        ("model 'mistralai/Mistral-Small-3.2-24B-Instruct-2506' not found",
         "model 'mistralai/Mistral-Small-3.2-24B-Instruct-2506' not found"),
        ("Use 'max_completion_tokens' instead", "Use 'max_completion_tokens' instead"),
        ("id 123e4567-e89b-12d3-a456-426614174000", "id 123e4567-e89b-12d3-a456-426614174000"),
        ("my own secret", "my own ***"),
        ("\x1b[31mred\u202e", "?[31mred?"),
    ],
)  # fmt: skip
def test_keys_passwords_and_base64_are_hidden_and_names_are_not(text, shown):
    assert redacted(text, ["secret", "", KEY]) == shown


def test_what_is_hidden_is_hidden_before_the_text_is_cut():
    text = redacted("x y " * 48 + KEY, [KEY])
    assert KEY[:6] not in shortened(text) and len(shortened("ab " * 200)) == 200


json_like = st.recursive(
    st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.sampled_from(
        ["error", "message", "detail", "msg", "loc", "code"]), x), max_leaves=12)  # fmt: skip


@given(json_like | st.binary())
def test_any_body_gives_one_printable_line_without_the_key(body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    words = own_words(raw + KEY.encode(), [KEY])
    assert (words.isprintable() or not words) and KEY not in words
