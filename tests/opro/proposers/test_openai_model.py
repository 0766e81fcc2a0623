import json
import math
from itertools import pairwise

import pytest
from chat_server import completion, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.errors import PauseError, UserError
from opro.proposers import openai_model
from opro.proposers.openai_model import Ledger, Message, OpenAIModel, Reply, connect, most_tokens

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


def test_tokens_and_cost_are_counted(monkeypatch):
    monkeypatch.setenv("OPRO_LM_PRICES", "1,2")
    with serve(lambda request: "fine") as server:
        model = connect("test", server.url, 0, None)
        reply = model([Message("user", "hello")], temperature=0.5, max_tokens=99)
    assert (reply.tokens_in, reply.tokens_out, reply.cost) == (100, 50, pytest.approx(200e-6))
    assert server.requests[0]["max_tokens"] == 99
    assert server.requests[0]["temperature"] == 0.5 and server.requests[0]["model"] == "test"


def test_no_try_is_made_that_the_limits_do_not_cover():
    with serve(lambda request: "fine", ["half"] * 9) as server:
        model = OpenAIModel("test", server.url, wait=lambda s: None)
        ledger = Ledger(max_tokens=350)

        def lose(tokens_in, tokens_out, why):
            ledger.lose(tokens_in, tokens_out)
            return ledger.spent(tokens_in, tokens_out)

        model.on_loss = lose
        with pytest.raises(openai_model.SpentError, match="--max-tokens 350 leaves no room"):
            model([Message("user", "hello")], temperature=1.0, max_tokens=99)
    assert len(server.requests) == 3 and ledger.tokens_in + ledger.tokens_out == 303


def test_wait_never_exceeds_a_minute():
    with serve(lambda request: "fine", [429] * 4) as server:
        waits = []
        ask(server, waits)
    assert waits == [2, 4, 8, 16] and max(waits) <= openai_model.LONGEST_WAIT_S


def test_what_is_configured(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="give --lm-model NAME"):
        connect(None, None, 0, None)
    with pytest.raises(UserError, match="--max-cost needs prices"):
        connect("m", None, 0, 1.0)
    monkeypatch.setenv("OPRO_LM_PRICES", "cheap")
    with pytest.raises(UserError, match="OPRO_LM_PRICES is 'cheap'; expected two numbers"):
        connect("m", None, 0, 1.0)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert connect(None, None, 0, None) is None
    with pytest.raises(UserError, match="no endpoint is configured"):
        connect("m", None, 0, None)
    with pytest.raises(UserError, match=r"directory without config\.json"):
        connect(str(tmp_path), None, 0, None)


def test_the_ledger_stops_before_its_limits():
    ledger = Ledger(max_tokens=5000, max_cost=1.0)
    assert ledger.spent(100, 2048) == ""
    ledger.add(Reply("", 2000, 2000, 0.2, "m", "stop"))
    assert "--max-tokens 5000" in ledger.spent(100, 2048)
    ledger = Ledger(max_cost=1.0)
    ledger.add(Reply("", 1, 1, 0.6, "m", "stop"))
    assert "--max-cost 1.0" in ledger.spent(1, 2048)


# The ledger, against sums that are written out.

counts = st.integers(0, 5000)
costs = st.none() | st.floats(0, 3, allow_nan=False)
calls = st.lists(st.tuples(st.sampled_from(["reply", "lost"]), counts, counts, costs), max_size=8)
prices = st.tuples(st.floats(0, 50), st.floats(0, 50))


def booked(ledger, entries):
    """What the ledger shows after each of the calls."""
    seen = [(0, 0, 0.0)]
    for kind, tokens_in, tokens_out, cost in entries:
        if kind == "reply":
            ledger.add(Reply("", tokens_in, tokens_out, cost, "m", "stop"))
        else:
            ledger.lose(tokens_in, tokens_out)
        seen.append((ledger.tokens_in, ledger.tokens_out, ledger.cost))
    return seen


@settings(deadline=None)
@given(calls, prices)
def test_tokens_and_cost_are_sums_that_never_fall_and_lost_calls_are_charged(entries, price):
    ledger = Ledger(prices=price)
    seen = booked(ledger, entries)
    assert all(a <= b for x, y in pairwise(seen) for a, b in zip(x, y, strict=True))
    assert ledger.tokens_in == sum(e[1] for e in entries)
    assert ledger.tokens_out == sum(e[2] for e in entries)
    worst = [(i * price[0] + o * price[1]) / 1e6 for _, i, o, _ in entries]
    expected = (w if e[0] == "lost" else e[3] or 0 for w, e in zip(worst, entries, strict=True))
    assert ledger.cost == pytest.approx(math.fsum(expected), abs=1e-9)
    assert (ledger.calls, ledger.lost) == tuple(
        sum(e[0] == kind for e in entries) for kind in ("reply", "lost")
    )


@settings(deadline=None)
@given(calls, prices, counts, counts, st.floats(0, 1), st.integers(0, 40_000))
def test_a_call_is_allowed_only_if_its_worst_case_fits_both_limits(
    entries, price, tokens_in, tokens_out, max_cost, max_tokens
):
    ledger = Ledger(max_tokens, max_cost, price)
    booked(ledger, entries)
    worst = (tokens_in * price[0] + tokens_out * price[1]) / 1e6
    after = ledger.tokens_in + ledger.tokens_out + tokens_in + tokens_out
    why = ledger.spent(tokens_in, tokens_out)
    if after > max_tokens:
        assert f"--max-tokens {max_tokens}" in why
    elif ledger.cost + worst > max_cost or ledger.cost >= max_cost:
        assert f"--max-cost {max_cost}" in why
    else:
        assert why == ""
    unlimited = Ledger(prices=price)
    booked(unlimited, entries)
    assert unlimited.spent(tokens_in, tokens_out) == ""


def test_a_limit_may_be_reached_exactly_and_nothing_is_free_beyond_it():
    assert Ledger(max_tokens=100).spent(60, 40) == "" != Ledger(max_tokens=100).spent(60, 41)
    ledger = Ledger(max_cost=1.0, prices=(1e6, 1e5))
    assert ledger.spent(0, 10) == ledger.spent(1, 0) == "" != ledger.spent(1, 1)
    ledger.add(Reply("", 1, 0, 1.0, "m", "stop"))
    assert "(1.0000 spent)" in ledger.spent(0, 0)
    with_tokens = Ledger(max_tokens=9)
    with_tokens.add(Reply("", 3, 4, None, "m", "stop"))
    assert "(7 spent)" in with_tokens.spent(1, 2)
    assert Ledger(max_cost=0.0).spent(0, 0) != ""


def test_without_prices_a_call_is_taken_to_cost_twice_the_mean_so_far():
    ledger = Ledger(max_cost=1.0)
    assert ledger.spent(10**9, 10**9) == "" and ledger.lose(10, 10) == 0
    for cost in (0.1, 0.3):
        ledger.add(Reply("", 1, 1, cost, "m", "stop"))
    assert ledger.lose(5, 7) == pytest.approx(0.4) and ledger.cost == pytest.approx(0.8)
    assert "(0.8000 spent)" in ledger.spent(1, 1)
    assert Ledger().cost == 0 == Ledger().calls == Ledger().lost == Ledger().refused


@settings(deadline=None)
@given(st.text(max_size=60), st.text("ab é日", max_size=60))
def test_the_most_tokens_of_a_text_are_a_third_of_its_letters_and_two_for_any_other_sign(a, b):
    for text in (a, b):
        other = sum(ord(ch) > 127 for ch in text)
        assert most_tokens(text) == (len(text) - other) // 3 + 1 + 2 * other
    assert most_tokens(a + b) <= most_tokens(a) + most_tokens(b)


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


@pytest.mark.parametrize("cost", [-1, -0.001, math.nan, -math.inf, None, "free", "1", [1]])
def test_a_cost_that_is_none_is_not_believed_and_the_prices_decide(cost):
    body = with_usage({**TOKENS, "cost": cost})
    assert reply_to(body, (1.0, 4.0)).cost == pytest.approx(300e-6)
    assert reply_to(body).cost is None


@pytest.mark.xfail(strict=True, reason="an infinite cost is believed")
def test_an_infinite_cost_is_not_believed():
    assert reply_to(with_usage({**TOKENS, "cost": math.inf})).cost is None


@pytest.mark.parametrize("cost", [0, 0.25, 2])
def test_a_cost_that_the_server_tells_goes_before_the_prices(cost):
    assert reply_to(with_usage({**TOKENS, "cost": cost}), (1.0, 4.0)).cost == cost


@pytest.mark.parametrize("usage", [None, 5, [], {}, {"prompt_tokens": -3, "completion_tokens": 0},
                                   {"prompt_tokens": "9", "completion_tokens": 1.5}])  # fmt: skip
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


@pytest.mark.parametrize("fault", ["half", "schema", "list", "html", "empty", "null", "reset"])
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
        ("reset", "no connection to the server"),
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
        with pytest.raises(openai_model.SpentError, match="enough"):
            model([Message("user", "hello")], temperature=1.0, max_tokens=99)
    assert [(i, o, why) for i, o, why in lost] == [(2, 99, "no reply in time")]


def test_a_body_is_read_up_to_its_limit_and_no_farther(monkeypatch):
    size = len(json.dumps(completion("fine")))
    with serve(lambda request: "fine") as server:
        monkeypatch.setattr(openai_model, "LARGEST_BODY", size)
        assert ask(server, []).text == "fine"
        monkeypatch.setattr(openai_model, "LARGEST_BODY", size - 1)
        with pytest.raises(PauseError, match="is larger than"):
            ask(server, [])


def test_a_long_reply_is_cut_at_its_limit(monkeypatch):
    monkeypatch.setattr(openai_model, "LARGEST_REPLY", 3)
    with serve(lambda request: "fine") as server:
        assert ask(server, []).text == "fin"


# What is configured.


@pytest.mark.parametrize("text", ["-1,2", "1,-2", "inf,1", "1,inf", "nan,1", "1,2,3", "1", "1;2"])
def test_prices_that_are_none_are_refused(monkeypatch, text):
    monkeypatch.setenv("OPRO_LM_PRICES", text)
    with pytest.raises(UserError, match="expected two numbers"):
        connect("m", None, 0, None)


def test_prices_and_limits_that_go_together_are_taken(monkeypatch):
    assert connect("m", None, 0, None).prices is None
    assert connect("m", "https://openrouter.ai/api/v1", 0, 1.0).name == "m"
    monkeypatch.setenv("OPRO_LM_PRICES", "0,0")
    assert connect("m", None, 0, 1.0).prices == (0, 0)
    monkeypatch.setenv("OPRO_LM_PRICES", "0.15, 0.60")
    assert connect("m", "http://127.0.0.1:9/v1", 0, 1.0).prices == (0.15, 0.6)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert connect("m", "http://127.0.0.1:9/v1", 0, None).name == "m"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert connect("m", None, 0, None).name == "m"
    with pytest.raises(UserError, match="no model; give --lm-model NAME"):
        connect(None, None, 0, None)


def test_a_slow_drip_ends_in_time_and_lost_calls_are_counted():
    waits, lost = [], []
    with serve(lambda request: "fine", ["drip", "half", 503]) as server:
        model = OpenAIModel("test", server.url, wait=waits.append, timeout=1.0)
        model.on_loss = lambda *about: lost.append(about) or ""
        reply = model([Message("user", "hello")], temperature=1.0, max_tokens=99)
    assert reply.text == "fine" and len(waits) == 3
    # A refusal (503) costs nothing; the others may have been charged.
    assert [(i, o) for i, o, _ in lost] == [(2, 99), (2, 99)]
    assert "not complete after 1 s" in lost[0][2]


@pytest.fixture
def tiny_chat_model(tmp_path):
    """A random two-layer model with a tokenizer and a chat template: its words are noise, its interface is real."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from evaluators.audio_lm.checkpoint import POCKET

    tokenizer = AutoTokenizer.from_pretrained(POCKET / "base")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    )
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    folder = tmp_path / "chat"
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.tiny
def test_a_local_model_answers_the_same_question_the_same_way(tiny_chat_model):
    ask = [Message("user", "Write a prompt.")]
    first, second = (
        connect(str(tiny_chat_model), None, seed, None)(ask, temperature=1.0, max_tokens=12)
        for seed in (0, 0)
    )
    other = connect(str(tiny_chat_model), None, 1, None)(ask, temperature=1.0, max_tokens=12)
    assert first == second and first.text != other.text
    assert first.tokens_out <= 12 and first.tokens_in > 3 and first.cost == 0


@pytest.mark.tiny
def test_a_local_model_counts_its_tokens_and_without_temperature_draws_nothing(tiny_chat_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_chat_model)
    chat = [Message("system", "Be brief."), Message("user", "Write.")]
    shown = tokenizer.encode("system: Be brief.\nuser: Write.\nassistant: ")
    replies = [
        connect(str(tiny_chat_model), None, seed, None)(chat, temperature=0.0, max_tokens=5)
        for seed in (0, 1)
    ]
    assert replies[0] == replies[1]
    assert replies[0].tokens_in == len(shown) and 0 < replies[0].tokens_out <= 5
    assert (replies[0].cost, replies[0].finish) == (0.0, "stop")
    assert replies[0].model == str(tiny_chat_model) and "assistant:" not in replies[0].text
    model = connect(str(tiny_chat_model), None, 0, None)
    texts = {model(chat, temperature=1.0, max_tokens=n).tokens_out for n in (1, 4)}
    assert max(texts) <= 4 and 1 in texts
    other = [Message("system", "Be brief."), Message("user", "Write!")]
    assert model(chat, temperature=1.0, max_tokens=9) != model(other, temperature=1.0, max_tokens=9)


@pytest.mark.tiny
def test_a_search_with_a_local_model_that_talks_nonsense_ends(
    tiny_chat_model, tmp_path, monkeypatch
):
    import json

    from opro import optimize

    monkeypatch.delenv("OPENAI_API_KEY")
    flags = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "2", "--clips", "80"]
    flags += ["--lm-model", str(tiny_chat_model), "--runs-dir", str(tmp_path), "--name", "local"]
    assert optimize.main(flags) == 0
    lines = (tmp_path / "local" / "proposals.jsonl").read_text().splitlines()
    assert len(lines) == 3 and all(json.loads(line)["refused"] for line in lines)
