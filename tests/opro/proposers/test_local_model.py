"""A language model in this process."""

import json

import pytest

from opro import optimize
from opro.proposers.language_model import Message
from opro.proposers.local_model import LocalModel


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
        LocalModel(tiny_chat_model, seed)(ask, temperature=1.0, max_tokens=12) for seed in (0, 0)
    )
    other = LocalModel(tiny_chat_model, 1)(ask, temperature=1.0, max_tokens=12)
    assert first == second and first.text != other.text
    assert first.tokens_out <= 12 and first.tokens_in > 3 and first.cost == 0


@pytest.mark.tiny
def test_a_local_model_counts_its_tokens_and_without_temperature_draws_nothing(tiny_chat_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_chat_model)
    chat = [Message("system", "Be brief."), Message("user", "Write.")]
    shown = tokenizer.encode("system: Be brief.\nuser: Write.\nassistant: ")
    replies = [
        LocalModel(tiny_chat_model, seed)(chat, temperature=0.0, max_tokens=5) for seed in (0, 1)
    ]
    assert replies[0] == replies[1]
    assert replies[0].tokens_in == len(shown) and 0 < replies[0].tokens_out <= 5
    assert (replies[0].cost, replies[0].finish) == (0.0, "stop")
    assert replies[0].model == str(tiny_chat_model) and "assistant:" not in replies[0].text
    model = LocalModel(tiny_chat_model)
    texts = {model(chat, temperature=1.0, max_tokens=n).tokens_out for n in (1, 4)}
    assert max(texts) <= 4 and 1 in texts
    other = [Message("system", "Be brief."), Message("user", "Write!")]
    assert model(chat, temperature=1.0, max_tokens=9) != model(other, temperature=1.0, max_tokens=9)


@pytest.mark.tiny
def test_a_search_with_a_local_model_that_talks_nonsense_ends(
    tiny_chat_model, tmp_path, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    flags = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "2", "--clips", "80"]
    flags += ["--lm-model", str(tiny_chat_model), "--runs-dir", str(tmp_path), "--name", "local"]
    assert optimize.main(flags) == 0
    lines = (tmp_path / "local" / "proposals.jsonl").read_text().splitlines()
    assert len(lines) == 3 and all(json.loads(line)["refused"] for line in lines)
