import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_server import completion, serve

from evaluators import chat_client
from evaluators.errors import PauseError
from opro.proposers import openai_model
from opro.proposers.language_model import Message, Reply, SpentError
from opro.proposers.ledger import Ledger
from opro.proposers.openai_model import OpenAIModel

SECRET = "sk-marked-secret-key"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in ("OPENAI_BASE_URL", "OPRO_LM_PRICES"):
        monkeypatch.delenv(name, raising=False)


def ask(server, waits, timeout=1.0):
    model = OpenAIModel("test", server.url, wait=waits.append, timeout=timeout)
    return model([Message("user", "hello")], temperature=1.0, max_tokens=99)


@pytest.mark.parametrize(
    "fault",
    [
        "retry-after",
        408,
        429,
        500,
        502,
        503,
        "half",
        "schema",
        "list",
        "html",
        "empty",
        "null",
        "reset",
        "slow",
        "cut",
        "stall",
    ],
)
def test_passing_faults_are_tried_again(fault):
    waits = []
    with serve(lambda request: "fine", [fault, fault]) as server:
        assert ask(server, waits).text == "fine"
    assert len(waits) == 2
    assert waits[0] == (7.0 if fault == "retry-after" else 2.0)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (401, "the key was refused \\(401\\): check OPENAI_API_KEY"),
        (403, "access is forbidden \\(403\\)"),
        (404, "the model or the address is unknown \\(404\\): check --lm-model"),
        (400, "the request was rejected \\(400\\)"),
    ],
)
def test_lasting_faults_pause_at_once(fault, sentence):
    waits = []
    with (
        serve(lambda request: "fine", [fault]) as server,
        pytest.raises(PauseError, match=sentence) as caught,
    ):
        ask(server, waits)
    assert waits == [] and len(server.requests) == 1
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("fault", [503, "half", "reset"])
def test_a_fault_that_stays_pauses_after_five_tries(fault):
    waits = []
    with (
        serve(lambda request: "fine", [fault] * 9) as server,
        pytest.raises(PauseError, match="the same command goes on from here"),
    ):
        ask(server, waits)
    assert len(waits) == 4


def test_no_server_is_one_sentence():
    with pytest.raises(PauseError, match="no connection to the server: check --lm-base-url"):
        OpenAIModel("test", "http://127.0.0.1:9/v1", wait=lambda s: None, timeout=0.5)(
            [Message("user", "x")], temperature=1, max_tokens=9
        )


def test_filtered_and_huge_replies_are_replies():
    with serve(lambda request: "fine", ["filter", "huge"]) as server:
        assert ask(server, []).text == ""
        assert len(ask(server, [], timeout=20).text) == openai_model.LARGEST_REPLY


def test_tokens_and_cost_are_counted():
    with serve(lambda request: "fine") as server:
        model = OpenAIModel("test", server.url, (1.0, 2.0))
        reply = model([Message("user", "hello")], temperature=0.5, max_tokens=99)
    assert (reply.tokens_in, reply.tokens_out, reply.cost) == (100, 50, pytest.approx(200e-6))
    assert server.requests[0]["max_tokens"] == 99
    assert server.requests[0]["temperature"] == 0.5 and server.requests[0]["model"] == "test"


def test_no_try_is_made_that_the_limits_do_not_cover():
    with serve(lambda request: "fine", ["half"] * 9) as server:
        model = OpenAIModel("test", server.url, wait=lambda s: None)
        ledger = Ledger(max_tokens=350)

        def lose(tokens_in, tokens_out, why):
            ledger.charge_unanswered(tokens_in, tokens_out)
            return ledger.why_stop(tokens_in, tokens_out)

        model.on_loss = lose
        with pytest.raises(SpentError, match="--max-tokens 350 leaves no room"):
            model([Message("user", "hello")], temperature=1.0, max_tokens=99)
    assert len(server.requests) == 3 and ledger.tokens_in + ledger.tokens_out == 303


def test_wait_never_exceeds_a_minute():
    with serve(lambda request: "fine", [429] * 4) as server:
        waits = []
        ask(server, waits)
    assert waits == [2, 4, 8, 16] and max(waits) <= chat_client.LONGEST_WAIT_S


# What is read from a reply.


def with_usage(usage, text="fine", finish="stop"):
    body = completion(text, finish)
    if usage is None:
        del body["usage"]
    else:
        body["usage"] = usage
    return body


def reply_to(body, prices=None, words="hello"):
    with serve(lambda request: body) as server:
        model = OpenAIModel("test", server.url, prices, wait=lambda s: None)
        return model([Message("user", words)], temperature=1.0, max_tokens=99)


TOKENS = {"prompt_tokens": 100, "completion_tokens": 50}


@pytest.mark.parametrize(
    "cost",
    [-1, -0.001, math.inf, math.nan, -math.inf, 1e300, 10**400, True, None, "free", "1", [1]],
    ids=lambda cost: str(cost)[:9],
)
def test_a_cost_that_is_none_is_not_believed_and_the_prices_decide(cost):
    """Python writes Infinity and NaN, which are no JSON, and reads them; so do servers."""
    body = with_usage({**TOKENS, "cost": cost})
    assert reply_to(body, (1.0, 4.0)).cost == pytest.approx(300e-6)
    assert reply_to(body).cost is None


def test_a_cost_that_is_not_believed_leaves_the_ledger_at_what_can_be_known():
    ledger = Ledger(max_cost=1.0)
    for cost in (math.inf, math.nan, -5):
        ledger.add(reply_to(with_usage({**TOKENS, "cost": cost}), (1.0, 4.0)))
    assert ledger.cost == pytest.approx(900e-6) and ledger.why_stop(1, 1) == ""


@pytest.mark.parametrize("cost", [0, 0.25, 2])
def test_a_cost_that_the_server_tells_goes_before_the_prices(cost):
    assert reply_to(with_usage({**TOKENS, "cost": cost}), (1.0, 4.0)).cost == cost


@pytest.mark.parametrize("usage", [None, 5, [], {}, {"prompt_tokens": -3, "completion_tokens": 0},
                                   {"prompt_tokens": "9", "completion_tokens": 1.5},
                                   {"prompt_tokens": 10**400, "completion_tokens": True}],
                         ids=lambda usage: str(usage)[:40])  # fmt: skip
def test_tokens_that_are_not_told_are_counted_at_their_most(usage):
    reply = reply_to(with_usage(usage, text="six ébc"), (3.0, 5.0), words="hello é")
    assert (reply.tokens_in, reply.tokens_out) == (6 // 3 + 1 + 2, 6 // 3 + 1 + 2)
    assert reply.cost == pytest.approx(40e-6)


def test_one_token_is_one_token_and_a_reply_tells_its_model_and_why_it_stopped():
    body = with_usage({"prompt_tokens": 1, "completion_tokens": 1}, "fine", "length")
    assert reply_to(body) == Reply("fine", 1, 1, None, "test", "length")
    assert reply_to(with_usage(TOKENS, None, "content_filter")).text == ""


def test_a_request_holds_the_whole_conversation_and_nothing_else(environment):
    chat = [Message("system", " Be brief.\n"), Message("user", "hällo "), Message("user", "?")]
    with serve(lambda request: " fine\n") as server:
        reply = OpenAIModel("test", server.url)(chat, temperature=0.0, max_tokens=7)
    assert reply.text == " fine\n" and server.keys == [f"Bearer {SECRET}"]
    assert server.requests == [
        {
            "model": "test",
            "temperature": 0.0,
            "max_tokens": 7,
            "messages": [{"role": m.role, "content": m.content} for m in chat],
        }
    ]


# Tries.


@pytest.mark.parametrize(
    ("status", "tries"),
    [(400, 1), (401, 1), (402, 1), (403, 1), (404, 1), (408, 2), (409, 2), (418, 1), (422, 1),
     (425, 2), (429, 2), (499, 1), (500, 2), (501, 2), (599, 2)],
)  # fmt: skip
def test_only_faults_that_may_pass_are_tried_again_and_none_of_them_is_charged(status, tries):
    lost = []
    with serve(lambda request: "fine", [status]) as server:
        model = OpenAIModel("test", server.url, wait=lambda s: None)
        model.on_loss = lambda *about: lost.append(about) or "no more"
        if tries == 1:
            with pytest.raises(PauseError):
                model([Message("user", "hello")], temperature=1.0, max_tokens=99)
        else:
            assert model([Message("user", "hello")], temperature=1, max_tokens=9).text == "fine"
    assert len(server.requests) == tries and lost == []


@pytest.mark.parametrize(
    "fault", ["half", "schema", "list", "html", "empty", "null", "reset", "cut"]
)
def test_a_call_that_may_have_been_charged_is_told_at_its_worst_case(fault):
    lost = []
    with serve(lambda request: "fine", [fault]) as server:
        model = OpenAIModel("test", server.url, wait=lambda s: None)
        model.on_loss = lambda *about: lost.append(about) or ""
        chat = [Message("system", "é"), Message("user", "hello")]
        assert model(chat, temperature=1.0, max_tokens=77).text == "fine"
    assert [(i, o) for i, o, _ in lost] == [(1 + 2 + 5 // 3 + 1, 77)]
    assert lost[0][2] and SECRET not in lost[0][2]


def test_a_server_that_was_never_reached_charges_nothing():
    lost = []
    with serve(lambda request: "fine") as server:
        gone = server.url
    model = OpenAIModel("test", gone, wait=lambda s: None)
    model.on_loss = lambda *about: lost.append(about) or ""
    with pytest.raises(PauseError, match="no connection to the server"):
        model([Message("user", "hello")], temperature=1.0, max_tokens=9)
    assert lost == []


@pytest.mark.parametrize(
    ("asked", "waited"), [("7", 7), ("0", 0), ("3600", 60), ("-5", 0), ("soon", 2), ("0.5", 0.5)]
)
def test_the_server_says_how_long_to_wait_but_never_more_than_a_minute(asked, waited):
    waits = []
    fault = (429, b"{}", {"retry-after": asked})
    with serve(lambda request: "fine", [fault]) as server:
        ask(server, waits)
    assert waits == [waited]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (429, "too many requests or no credit left"),
        (503, "the server answered 503"),
        ("half", "not readable as JSON"),
        ("empty", "holds no choices"),
        ("null", "holds no text"),
        ("reset", "the reply broke off \\(\\w+\\)"),
        ("cut", "the reply broke off"),
    ],
)
def test_a_fault_that_stays_is_named_after_the_fifth_try(fault, sentence):
    with (
        serve(lambda request: "fine", [fault] * 9) as server,
        pytest.raises(PauseError, match=sentence),
    ):
        ask(server, [])
    assert len(server.requests) == 5


def test_no_reply_in_time_is_named_and_may_have_been_charged():
    lost = []
    with serve(lambda request: "fine", ["slow"] * 5) as server:
        model = OpenAIModel("test", server.url, wait=lambda s: None, timeout=0.1)
        model.on_loss = lambda *about: lost.append(about) or "enough"
        with pytest.raises(SpentError, match="enough"):
            model([Message("user", "hello")], temperature=1.0, max_tokens=99)
    assert [(i, o, why) for i, o, why in lost] == [(2, 99, "no whole reply within 0.1 s")]


def test_a_body_is_read_up_to_its_limit_and_no_farther(monkeypatch):
    size = len(json.dumps(completion("fine")))
    with serve(lambda request: "fine") as server:
        monkeypatch.setattr(chat_client, "LARGEST_BODY", size)
        assert ask(server, []).text == "fine"
        monkeypatch.setattr(chat_client, "LARGEST_BODY", size - 1)
        with pytest.raises(PauseError, match="is larger than"):
            ask(server, [])


def test_a_long_reply_is_cut_at_its_limit(monkeypatch):
    monkeypatch.setattr(openai_model, "LARGEST_REPLY", 3)
    with serve(lambda request: "fine") as server:
        assert ask(server, []).text == "fin"


# What a server wants otherwise, and what it says.


def strict(request):
    """A reasoning model behind OpenAI's API, as it refuses what it does not take, one thing at a time."""
    if "max_tokens" in request:
        return 400, (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
    if "temperature" in request:
        return 400, (
            "Unsupported value: 'temperature' does not support 1.0 with this model. Only the default (1) value is"
            " supported."
        )
    if "response_format" in request:
        return 400, (
            "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
        )
    if request["messages"][0]["role"] == "system":
        return (
            400,
            "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
        )
    return "fine"


def test_a_request_is_adapted_to_the_server_and_stays_so():
    waits, lost = [], []
    chat = [Message("system", "Be brief."), Message("user", "hello")]
    with serve(strict) as server:
        model = OpenAIModel("test", server.url, wait=waits.append)
        model.on_loss = lambda *about: lost.append(about) or ""
        for _ in range(2):
            reply = model(chat, temperature=1.0, max_tokens=99, schema={"type": "object"})
            assert reply.text == "fine"
    assert len(server.requests) == 6 and waits == lost == []
    assert server.requests[-1] == {
        "model": "test",
        "messages": [{"role": "user", "content": "Be brief.\n\nhello"}],
        "max_completion_tokens": 99,
    }


def test_a_schema_is_sent_where_the_server_takes_it():
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    with serve(lambda request: "fine") as server:
        model = OpenAIModel("test", server.url)
        model([Message("user", "hello")], temperature=1.0, max_tokens=99, schema=schema)
    sent = server.requests[0]["response_format"]
    assert sent["type"] == "json_schema" and sent["json_schema"]["schema"] == schema


def test_a_context_that_is_too_long_is_told_in_the_servers_words_and_not_asked_again():
    told = (
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens. Please"
        " reduce the length of the messages."
    )
    with (
        serve(lambda request: (400, told)) as server,
        pytest.raises(
            PauseError, match=r"rejected \(400\); it says \"This model's maximum context"
        ),
    ):
        ask(server, [])
    assert len(server.requests) == 1


def test_a_reply_is_made_shorter_once_where_the_refusal_gives_the_numbers():
    def small(request):
        if request["max_tokens"] > 3000:
            return 400, (
                "This model's maximum context length is 8192 tokens. However, you requested 9192 tokens (5192 in the"
                " messages, 4000 in the completion)."
            )
        return "fine"

    with serve(small) as server:
        model = OpenAIModel("test", server.url)
        for _ in range(2):
            model([Message("user", "hello")], temperature=1.0, max_tokens=4000)
    assert [r["max_tokens"] for r in server.requests] == [4000, 3000, 4000, 3000]


@pytest.mark.parametrize(
    ("fault", "status", "tries"),
    [
        ({"error": {"message": "no such model", "code": 404}}, 404, 1),
        ({"error": {"message": "quota of sk-marked-secret-key", "code": "429"}}, 429, 5),
        ({"error": {"message": "Unexpected endpoint", "code": "x"}}, None, 5),
        ({"error": "Unexpected endpoint"}, None, 5),
        ({"choices": [{"error": {"message": "provider is down", "code": 502}}]}, 502, 5),
    ],
    ids=str,
)
def test_an_error_within_a_200_is_told_and_goes_by_its_code(fault, status, tries):
    waits = []
    with serve(lambda request: fault) as server, pytest.raises(PauseError) as caught:
        ask(server, waits)
    assert len(server.requests) == tries
    words = {404: "no such model", 429: "quota of ***", 502: "provider is down"}
    assert f'it says "{words.get(status, "Unexpected endpoint")}"' in str(caught.value)
    assert SECRET not in str(caught.value) and caught.value.refused == (tries == 1)


@pytest.mark.parametrize(
    ("status", "body", "tries"),
    [
        (413, {"error": {"message": "too large"}}, 1),
        (429, {"error": {"message": "no credit", "code": "insufficient_quota"}}, 1),
        (500, {"error": {"message": "x", "type": "exceed_context_size_error"}}, 1),
        (500, {"error": {"message": "the request exceeds the available context size"}}, 1),
        (307, {}, 1),
    ],
)
def test_what_stays_as_it_is_is_not_tried_again(status, body, tries):
    with serve(lambda r: "fine", [(status, json.dumps(body).encode())] * 9) as server:
        with pytest.raises(PauseError):
            ask(server, [])
    assert len(server.requests) == tries


@pytest.mark.parametrize(
    "told", ["Too many tokens, please wait", "tokens per min: lower max_tokens or temperature"]
)
def test_a_server_that_is_busy_refuses_no_parameter(told):
    body = json.dumps({"error": {"message": told}}).encode()
    with serve(lambda r: "fine", [(429, body)] * 2) as server:
        assert ask(server, []).text == "fine"
    assert all("max_tokens" in r and "temperature" in r for r in server.requests)


def test_a_pause_shows_the_servers_words_without_the_key_or_anything_like_one():
    told = (
        f"Incorrect API key provided: {SECRET}, Bearer abcdef, http://me:pw@host\x1b[2J "
        + "y " * 400
    )
    body = json.dumps({"error": {"message": told}}).encode()
    with serve(lambda r: "fine", [(401, body)]) as server, pytest.raises(PauseError) as caught:
        ask(server, [])
    text = str(caught.value)
    assert 'it says "Incorrect API key provided: ***, Bearer ***, http://***@host?[2J' in text
    assert "marked" not in text and "pw" not in text and len(text) < 400 and text.isprintable()


def test_a_refusal_without_end_is_read_to_its_limit_and_no_farther(monkeypatch):
    monkeypatch.setattr(chat_client, "LARGEST_REFUSAL", 50)
    with (
        serve(lambda r: "fine", [(400, b'{"error": {"message": "no"}}' + b" " * 10**7)]) as server,
        pytest.raises(PauseError, match="rejected"),
    ):
        ask(server, [])


def test_a_header_that_drips_ends_in_time():
    """A socket's own time-out starts anew with every byte."""
    with serve(lambda request: "fine", ["drip header"] * 9) as server:
        model = OpenAIModel("test", server.url, wait=lambda s: None, timeout=0.3)
        model.on_loss = lambda *about: "enough"
        with pytest.raises(SpentError, match="enough"):
            model([Message("user", "hello")], temperature=1.0, max_tokens=99)
    assert len(server.requests) == 1


def test_a_wait_may_be_asked_for_as_a_date():
    waits = []
    fault = (429, b"{}", {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})
    with serve(lambda request: "fine", [fault]) as server:
        ask(server, waits)
    assert waits == [0]


# Models that think first.


def thinker(needs):
    """A model that spends so many tokens on thought before it says a word."""

    def reply(request):
        room = request.get("max_tokens") or request["max_completion_tokens"]
        body = completion("fine" if room > needs else None, "stop" if room > needs else "length")
        details = {"reasoning_tokens": min(room, needs)}
        body["usage"] = {"prompt_tokens": 9, "completion_tokens": min(room, needs + 3)}
        body["usage"]["completion_tokens_details"] = details
        return body

    return reply


def call(model, max_tokens=400):
    return model([Message("user", "hello")], temperature=1.0, max_tokens=max_tokens)


def test_thoughts_get_room_at_once_and_from_then_on():
    waits, lost, held = [], [], []
    with serve(thinker(3000)) as server:
        model = OpenAIModel("test", server.url, wait=waits.append)
        model.on_loss = lambda *about: lost.append(about) or ""
        model.may_take = lambda *about: held.append(about) or ""
        assert call(model).text == call(model).text == "fine"
    assert [r["max_tokens"] for r in server.requests] == [400, 16_384, 16_384]
    assert waits == [] and lost == [(9, 400, "400 tokens of thoughts alone")]
    assert held == [(2, 16_384)] * 2


def test_thoughts_without_end_are_not_asked_for_again_at_the_same_room():
    lost = []
    with serve(thinker(10**6)) as server:
        model = OpenAIModel("test", server.url, wait=lambda s: None)
        model.on_loss = lambda *about: lost.append(about) or ""
        with pytest.raises(
            PauseError, match=r"all 16384 tokens .*--lm-reply-tokens N, or --lm-eff"
        ):
            call(model)
        assert [r["max_tokens"] for r in server.requests] == [400, 16_384]
        assert sum(tokens_out for _, tokens_out, _ in lost) == 16_784


@pytest.mark.parametrize(
    "message",
    [
        {"content": "so so", "reasoning_content": "hm"},
        {"content": "so so", "reasoning": "hm"},
        {"content": "<think>hm</think> so so"},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so so"}],
         "reasoning_content": "hm"},
    ],
)  # fmt: skip
def test_thoughts_are_seen_in_every_form(message):
    body = completion("")
    body["choices"][0]["message"] |= message
    with serve(lambda request: body) as server:
        model = OpenAIModel("test", server.url)
        assert call(model).text.endswith("so so") and call(model)
    assert [r["max_tokens"] for r in server.requests] == [400, 16_384]


@pytest.mark.parametrize("text", ["", None, " \n", "<think>hm, what if"])
def test_a_reply_that_is_cut_within_its_thoughts_is_asked_for_with_more_room(text):
    def reply(request):
        return completion(text, "length") if request["max_tokens"] < 9000 else completion("fine")

    with serve(reply) as server:
        assert call(OpenAIModel("test", server.url, wait=lambda s: None)).text == "fine"
    assert len(server.requests) == 2


def test_what_is_cut_within_its_prompts_is_a_reply():
    with serve(lambda request: completion('{"prompts": ["A or', "length")) as server:
        assert call(OpenAIModel("test", server.url)).finish == "length"
    assert len(server.requests) == 1


def test_a_person_says_how_much_a_model_may_think():
    with serve(thinker(3000)) as server:
        model = OpenAIModel("test", server.url)
        model.thinking = openai_model.Thinking(room=5000, effort="low")
        assert call(model).text == "fine"
        assert server.requests[-1]["reasoning_effort"] == "low"
        model.thinking = openai_model.Thinking(room=2000)
        with pytest.raises(PauseError, match="all 2000 tokens"):
            call(model)
    assert [r["max_tokens"] for r in server.requests] == [5000, 2000]
    assert "reasoning_effort" not in server.requests[-1]


def test_room_for_thoughts_that_the_limits_do_not_cover_is_not_taken():
    with serve(thinker(3000)) as server:
        model = OpenAIModel("test", server.url)
        ledger = Ledger(max_tokens=9000)
        model.may_take = ledger.hold
        with pytest.raises(SpentError, match="--max-tokens 9000 leaves no room"):
            call(model)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]},
                      {"type": "text", "text": "b"}]}, "b"),
        ({"content": None, "refusal": "I cannot do that."}, "I cannot do that."),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"prompts": []}'}}]},
         '{"prompts": []}'),
        ({"content": "", "tool_calls": None}, ""),
    ],
)  # fmt: skip
def test_a_message_is_read_in_every_form(message, text):
    body = completion("x")
    body["choices"][0]["message"] = {"role": "assistant", **message}
    assert reply_to(body).text == text


def test_many_threads_learn_together_and_each_gets_its_reply():
    def echo(request):
        refused = strict(request)
        return refused if isinstance(refused, tuple) else request["messages"][-1]["content"]

    with serve(echo) as server, ThreadPoolExecutor(8) as pool:
        model = OpenAIModel("test", server.url)
        texts = [f"text {i}" for i in range(40)]
        jobs = [
            pool.submit(model, [Message("user", t)], temperature=1.0, max_tokens=9) for t in texts
        ]
        assert [job.result().text for job in jobs] == texts


def test_a_slow_drip_ends_in_time_and_lost_calls_are_counted():
    waits, lost = [], []
    with serve(lambda request: "fine", ["drip", "half", 503]) as server:
        model = OpenAIModel("test", server.url, wait=waits.append, timeout=1.0)
        model.on_loss = lambda *about: lost.append(about) or ""
        reply = model([Message("user", "hello")], temperature=1.0, max_tokens=99)
    assert reply.text == "fine" and len(waits) == 3
    # A refusal (503) costs nothing; the others may have been charged.
    assert [(i, o) for i, o, _ in lost] == [(2, 99), (2, 99)]
    assert "no whole reply within 1 s" in lost[0][2]
