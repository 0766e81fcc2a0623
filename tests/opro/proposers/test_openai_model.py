import pytest
from chat_server import serve

from evaluators.errors import PauseError, UserError
from opro.proposers import openai_model
from opro.proposers.openai_model import Ledger, Message, OpenAIModel, Reply, connect

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
