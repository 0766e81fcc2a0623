import json
import math

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
        ("reset", "the reply broke off \\(ConnectionResetError\\)"),
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
