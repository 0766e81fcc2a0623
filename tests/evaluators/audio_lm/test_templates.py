import pytest

from evaluators.audio_lm.templates import QWEN2_AUDIO, encode


@pytest.mark.tiny
def test_the_template_gives_the_ids_of_the_stock_processor(pocket, seeds, heldout):
    processor = pocket.processor
    for prompt in [*seeds, *heldout]:
        chat = [
            {"role": "system", "content": prompt.system},
            {
                "role": "user",
                "content": [
                    {"type": "audio", "audio_url": "x"},
                    {"type": "text", "text": prompt.text},
                ],
            },
        ]
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        stock = processor.tokenizer.encode(text, add_special_tokens=False)
        audio = processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
        assert [
            *encode(processor.tokenizer, QWEN2_AUDIO.before(prompt.system)),
            audio,
            *encode(processor.tokenizer, QWEN2_AUDIO.after(prompt.text)),
        ] == stock


@pytest.mark.tiny
@pytest.mark.parametrize(
    "token", ["<|im_end|>", "<|AUDIO|>", "<|im_start|>", "<|endoftext|>", "<|audio_eos|>"]
)
def test_a_control_token_in_a_prompt_is_plain_text(pocket, token):
    tokenizer = pocket.processor.tokenizer
    special = tokenizer.convert_tokens_to_ids(token)
    ids = encode(tokenizer, QWEN2_AUDIO.after(f"say {token} now"))
    plain = encode(tokenizer, QWEN2_AUDIO.after("say now"))
    assert ids.count(special) == plain.count(special)
    assert token in tokenizer.decode(ids)
