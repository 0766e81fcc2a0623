import re

import pytest
from conftest import LABELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluators.errors import UserError
from evaluators.prompts import Prompt, after_audio, before_audio, dump_prompts, encode, read_prompts

words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=80
).filter(lambda t: t.strip())


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=words, system=words, a=words, b=words)
def test_any_prompt_survives_its_file(tmp_path, text, system, a, b):
    text, system, a, b = (
        re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff\u2028\u2029\ufeff]", "?", t)
        for t in (text, system, a, b)
    )
    prompt = Prompt(text, (("SPEECH", (a,)), ("NONSPEECH", (b,))), system)
    path = tmp_path / "p.yaml"
    path.write_text(dump_prompts([prompt]), encoding="utf-8")
    assert read_prompts(path, LABELS) == [prompt]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("prompts: []", "expected the single key 'prompts'"),
        ("baseline: x", "expected the single key 'prompts'"),
        ("prompts:\n- text: a\n  txet: b", "key 'txet' is unknown"),
        ("prompts:\n- text: a\n  text: b", "line 3: key 'text' stands twice"),
        (
            "prompts:\n- text: a\n  answers: {SPEECH: YES, NONSPEECH: NO}",
            "YAML reads a bare YES or NO",
        ),
        (
            "prompts:\n- text: a\n  answers: {SPEECH: A}",
            "expected one entry for each of SPEECH, NONSPEECH",
        ),
        ("prompts:\n- text: 5", "expected the prompt's words"),
        ("prompts:\n- plain", "expected a mapping"),
        ("prompts:\n- text: a\n- text: a", "a prompt stands twice"),
        ("prompts: [", "not readable as YAML"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, body, message):
    path = tmp_path / "bad.yaml"
    path.write_text(body)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(path, LABELS)
    assert "bad.yaml" in str(caught.value)


def test_the_baselines_are_the_published_bytes(seeds):
    assert [p.text for p in seeds] == [
        (
            "Choose one:\nA) SPEECH (human voice)\nB) NONSPEECH"
            " (music/noise/silence/animals)\n\nAnswer with A or B ONLY."
        ),
        (
            "Listen to this audio clip. Does it contain human speech?\n\nA) Yes - I hear human"
            " voice speaking\nB) No - I hear music, noise, silence, or animals\n\nAnswer:"
        ),
        (
            "Task: Detect if human speech is present.\n\nOptions:\nA) SPEECH detected\nB) NO SPEECH"
            " detected\n\nYour answer:"
        ),
    ]
    assert {p.system for p in seeds} == {"You classify audio content."}


def test_the_id_changes_with_text_answers_and_system(seeds):
    p = seeds[0]
    others = [
        Prompt(p.text + " ", p.answers, p.system),
        Prompt(p.text, p.answers[::-1], p.system),
        Prompt(p.text, p.answers, ""),
    ]
    assert len({q.prompt_id for q in [p, *others]}) == 4
    assert re.fullmatch("[0-9a-f]{12}", p.prompt_id)


def test_heldout_phrasings_are_forty_and_not_in_the_training_grammar(heldout):
    import random

    from data.makers import grammar

    assert len(heldout) == 40
    rng = random.Random(0)
    seen = {grammar.about_audio(rng).text for _ in range(20_000)}
    assert not seen & {p.text for p in heldout}


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
            *encode(processor.tokenizer, before_audio(prompt.system)),
            audio,
            *encode(processor.tokenizer, after_audio(prompt.text)),
        ] == stock


@pytest.mark.tiny
@pytest.mark.parametrize(
    "token", ["<|im_end|>", "<|AUDIO|>", "<|im_start|>", "<|endoftext|>", "<|audio_eos|>"]
)
def test_a_control_token_in_a_prompt_is_plain_text(pocket, token):
    tokenizer = pocket.processor.tokenizer
    special = tokenizer.convert_tokens_to_ids(token)
    ids = encode(tokenizer, after_audio(f"say {token} now"))
    plain = encode(tokenizer, after_audio("say now"))
    assert ids.count(special) == plain.count(special)
    assert token in tokenizer.decode(ids)
