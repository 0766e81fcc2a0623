"""A language model in this process."""

import json

import pytest

from opro import optimize
from opro.proposers import lm_proposer
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
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
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


def saying(folder, noise, words=slice(None)):
    """The model with so much noise for its last layer, and only where it says these words."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    head = model.lm_head.weight.data
    drawn = noise * torch.randn(head.shape)
    head.zero_()[words] = drawn[words]
    model.save_pretrained(folder)
    return LocalModel(folder)


@pytest.mark.tiny
def test_the_colder_the_surer(tiny_chat_model):
    model, ask = saying(tiny_chat_model, 0.2), [Message("user", "Write.")]
    surest, nearly, free = (model(ask, temperature=t, max_tokens=12).text for t in (0.0, 1e-4, 1.0))
    assert surest == nearly != free


@pytest.mark.tiny
def test_other_questions_are_other_draws_where_every_word_is_as_likely(tiny_chat_model):
    model = saying(tiny_chat_model, 0.0)
    asks = [[Message("user", f"Write {i}.")] for i in range(4)]
    texts = [model(ask, temperature=1.0, max_tokens=12).text for ask in asks]
    assert len(set(texts)) == 4
    assert texts == [model(ask, temperature=1.0, max_tokens=12).text for ask in asks]


@pytest.mark.tiny
def test_marks_of_a_chat_are_no_words_of_a_reply(tiny_chat_model):
    from transformers import AutoTokenizer

    marks = AutoTokenizer.from_pretrained(tiny_chat_model).all_special_ids
    reply = saying(tiny_chat_model, 1.0, marks)(
        [Message("user", "Hm.")], temperature=0.0, max_tokens=5
    )
    assert reply.text == "" and 0 < reply.tokens_out <= 5


@pytest.mark.tiny
def test_a_search_with_a_local_model_that_talks_nonsense_ends(
    tiny_chat_model, tmp_path, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(lm_proposer, "REPLY_TOKENS", 10)  # nonsense is no better for being long
    monkeypatch.setattr(lm_proposer, "FRAGMENTS_TOKENS", 40)
    flags = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "2", "--clips", "80"]
    flags += ["--lm-model", str(tiny_chat_model), "--runs-dir", str(tmp_path), "--name", "local"]
    assert optimize.main(flags) == 0
    lines = (tmp_path / "local" / "proposals.jsonl").read_text().splitlines()
    assert len(lines) == 4 and all(json.loads(line)["refused"] for line in lines)
