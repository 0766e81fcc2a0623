"""What servers refuse, in their own words, and how a request is changed for it."""

import logging

import pytest

from evaluators.dialect import Dialect, room_left

USER = {"role": "user", "content": "hello"}
REQUEST = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be brief."}, USER],
    "max_tokens": 16_000,
    "temperature": 0.7,
    "top_logprobs": 20,
    "logprob_token_ids": [3, 4],
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {}},
}
MERGED = {"messages": [{"role": "user", "content": "Be brief.\n\nhello"}]}
RENAMED = {"max_tokens": None, "max_completion_tokens": 16_000}
NO_FORMAT, NO_EFFORT, NO_WARMTH = (
    {name: None} for name in ("response_format", "reasoning_effort", "temperature")
)

SENTENCES = [  # who says it, what, the parameter named beside it, what changes
    ("OpenAI", "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'"
     " instead.", "max_tokens", RENAMED),
    ("Azure", "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'"
     " instead.", "", RENAMED),
    ("OpenAI", "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is"
     " supported.", "temperature", NO_WARMTH),
    ("Anthropic", "`temperature` is deprecated for this model.", "", NO_WARMTH),
    ("OpenAI", "Unsupported value: 'messages[0].role' does not support 'system' with this model.", "messages[0].role",
     MERGED),
    ("vLLM", "System role not supported", "", MERGED),
    ("vLLM", "Conversation roles must alternate user/assistant/user/assistant/...", "", MERGED),
    ("llama.cpp", "Only user, assistant and tool roles are supported, got system.", "", MERGED),
    ("Gemini", "Developer instruction is not enabled for models/gemma-3-27b-it", "", MERGED),
    ("OpenAI", "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.", "",
     NO_FORMAT),
    ("OpenAI", "Invalid schema for response_format 'reply': In context=(), 'additionalProperties' is required",
     "response_format", NO_FORMAT),
    ("Volcengine", "The parameter `response_format.type` specified in the request are not valid: invalid value:"
     " `json_schema`, supported values are: `json_object` and `text`", "response_format.type", NO_FORMAT),
    ("LM Studio", "'response_format.type' must be 'json_schema' or 'text'", "", NO_FORMAT),
    ("others", "Failed to compile the grammar: unsupported JSON schema", "", NO_FORMAT),
    ("OpenAI", "Unrecognized request argument supplied: reasoning_effort", "", NO_EFFORT),
    ("others", "reasoning_effort: Extra inputs are not permitted", "", NO_EFFORT),
    ("Ollama", '"llama3" does not support thinking', "", NO_EFFORT),
    ("others", "logprob_token_ids: Extra inputs are not permitted", "", {"logprob_token_ids": None}),
    ("vLLM", "Requested sample logprobs of 20, which is greater than max allowed: 5", "", {"top_logprobs": 5}),
    ("others", "top_logprobs must be between 0 and 8", "", {"top_logprobs": 8}),
    ("OpenAI", "max_tokens is too large: 16000. This model supports at most 4096 completion tokens, whereas you"
     " provided 16000.", "max_tokens", {"max_tokens": 4096}),
    ("Anthropic", "max_tokens: 16000 > 8192, which is the maximum allowed number of output tokens for m", "",
     {"max_tokens": 8192}),
    ("DeepSeek", "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", "", {"max_tokens": 8192}),
    ("Groq", "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less than the"
     " `context_window` for this model", "", {"max_tokens": 8192}),
    ("Volcengine", "The parameter `max_tokens` specified in the request are not valid: integer above maximum value,"
     " expected a value <= 12288, but got 16000 instead.", "max_tokens", {"max_tokens": 12288}),
    ("Gemini", "Unable to submit request because it has a maxOutputTokens value of 16000 but the supported range is"
     " from 1 (inclusive) to 8193 (exclusive).", "", {"max_tokens": 8192}),
]  # fmt: skip


@pytest.mark.parametrize(("who", "told", "named", "change"), SENTENCES, ids=lambda x: str(x)[:40])
def test_what_a_server_refuses_is_changed_remembered_and_logged_once(
    caplog, who, told, named, change
):
    dialect = Dialect()
    sent = dialect.shape(REQUEST)
    assert sent == REQUEST
    with caplog.at_level(logging.INFO):
        assert dialect.learn(told, named, REQUEST, sent)
    expected = {k: v for k, v in (REQUEST | change).items() if v is not None}
    for _ in range(2):
        assert dialect.shape(REQUEST) == expected
    assert len(caplog.records) == 1 and "from now on" in caplog.text
    assert dialect.learn(told, named, REQUEST, sent)  # of another thread, whose request was older
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "told",
    [
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
        "the request exceeds the available context size. try increasing the context size",
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context"
        " length of only 4096 tokens",
        "This model's maximum context length is 9000 tokens. However, you requested 17000 tokens (1000 in the messages,"
        " 16000 in the completion).",  # is for this request alone
        "This model does not support logprobs",
        "Invalid audio",
        "",
    ],
)
def test_what_nothing_can_be_changed_for_is_not_sent_again(told):
    dialect = Dialect()
    assert not dialect.learn(told, "", REQUEST, dialect.shape(REQUEST))
    assert dialect.shape(REQUEST) == REQUEST


def test_neither_name_of_the_room_ends_it():
    dialect = Dialect()
    assert dialect.learn("Unsupported parameter: 'max_tokens'", "", REQUEST, dialect.shape(REQUEST))
    sent = dialect.shape(REQUEST)
    assert not dialect.learn("Unsupported parameter: 'max_completion_tokens'", "", REQUEST, sent)


@pytest.mark.parametrize(
    ("told", "room"),
    [
        ("This model's maximum context length is 16384 tokens. However, you requested 122946 tokens (12946 in the"
         " messages, 10000 in the completion). Please reduce the length of the messages or completion.", 3438),
        ("'max_tokens' or 'max_completion_tokens' is too large: 64000. This model's maximum context length is 64001"
         " tokens and your request has 24235 input tokens (64000 > 64001 - 24235).", 39766),
        ("This model's maximum context length is 4096 tokens. However, you requested 2000 output tokens and your prompt"
         " contains at least 2097 input tokens, for a total of at least 4097 tokens.", 1999),
        ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. Given: 6204 `inputs` tokens and"
         " 2047 `max_new_tokens`", 1988),
        ("input length and `max_tokens` exceed context limit: 190000 + 16384 > 200000, decrease input length", 10000),
        ("Invalid audio of 300 tokens", None),
    ],
)  # fmt: skip
def test_the_room_that_a_sentence_leaves(told, room):
    assert room_left(told) == room


def test_a_system_message_joins_a_user_message_of_parts():
    dialect = Dialect()
    audio = {"type": "input_audio"}
    request = {"messages": [REQUEST["messages"][0], {"role": "user", "content": [audio]}]}
    assert dialect.learn("System role not supported", "", request, dialect.shape(request))
    assert dialect.shape(request) == {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Be brief."}, audio]}]
    }
