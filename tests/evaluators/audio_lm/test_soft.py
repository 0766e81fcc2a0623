"""Soft prompts: words as vectors are the words, and the gradient is that of the scores."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_omni import tiny_omni
from tiny_models import evaluator_with, noise, whole_sequence
from tiny_models import random_model as qwen2_audio

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.shapes import SHAPES, random_model, tiny
from evaluators.audio_lm.soft import (
    SoftPrompt,
    SoftScorer,
    answer_logp,
    load_soft,
    save_soft,
    soft_places,
)
from evaluators.audio_lm.templates import encode
from evaluators.errors import UserError
from evaluators.presentation import Presentation
from evaluators.prompts import Prompt

pytestmark = pytest.mark.tiny
SECONDS = 2
LETTERS = Prompt("A voice? A) yes B) no")
WORDS = Prompt(  # sequences of several tokens, two of one label
    "\nIs there speech?",
    (("SPEECH", ("certainly there is", "Yes")), ("NONSPEECH", ("nothing of the kind",))),
)
FAMILIES = ["qwen2-audio", "qwen2.5-omni-7b", "audio-flamingo-3", "voxtral-mini-3b", "qwen3-omni"]


def soft_scorer(loaded, **options):
    return SoftScorer(
        open_checkpoint("pocket-base"), None, "cpu", "float32", loaded=loaded, **options
    )


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request):
    if request.param == "qwen2-audio":
        return qwen2_audio(SECONDS)
    if request.param == "qwen3-omni":
        return tiny_omni(AudioScorer(open_checkpoint("pocket-base"), "cpu").processor.tokenizer)
    shape = tiny(SHAPES[request.param], SECONDS)
    model, processor = random_model(shape, torch.device("cpu"), torch.float32)
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(0, 0.2)
    return model, processor


@pytest.fixture(scope="module")
def clips(dev_clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    return [noise(folder, dev_clips[0], n, n) for n in (1600, 8000, 3307, 20_000)]


@pytest.mark.parametrize("prompt", [LETTERS, WORDS], ids=["letters", "words"])
def test_words_as_vectors_are_the_words(loaded, clips, prompt):
    model, processor = loaded
    plain = evaluator_with(deepcopy(model), processor).score([prompt], clips).logp[0]
    scorer = soft_scorer(loaded)
    scorer.soft = scorer.words(prompt)
    assert np.abs(scorer.score([prompt], clips).logp[0] - plain).max() < 1e-5
    found = answer_logp(scorer, prompt, scorer.soft.vectors, clips)
    assert np.abs(found.numpy() - plain).max() < 1e-4


def test_the_gradient_is_that_of_the_whole_sequence(loaded, clips):
    scorer = soft_scorer(loaded)
    vectors = scorer.words(LETTERS).vectors.requires_grad_()
    for clip in clips[:3]:
        audio = [one.clone() for one in scorer.embeddings([clip])]
        gradients = []
        for logp in (
            answer_logp(scorer, LETTERS, vectors, [clip]),
            whole_sequence(scorer, LETTERS, vectors, audio),
        ):
            (gradient,) = torch.autograd.grad((logp * torch.tensor([1.0, -0.5])).sum(), vectors)
            gradients.append(gradient)
        assert gradients[1].norm() > 0
        assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


def test_the_gradient_of_answers_of_several_tokens_is_how_the_scores_move(clips):
    scorer = soft_scorer(qwen2_audio(SECONDS))
    vectors = scorer.words(WORDS).vectors.requires_grad_()
    weights = torch.tensor([[1.0, -0.5], [0.25, 2.0], [-1.0, 1.0], [0.5, 0.5]])
    (answer_logp(scorer, WORDS, vectors, clips) * weights).sum().backward()
    torch.manual_seed(2)
    way, step, sides = torch.randn_like(vectors), 1e-3, []
    for sign in (1, -1):
        scorer.soft = SoftPrompt(WORDS, vectors.detach() + sign * step * way)
        sides.append(scorer.score([WORDS], clips).logp[0])
    moved = ((sides[0] - sides[1]) * weights.numpy()).sum() / (2 * step)
    assert moved == pytest.approx(float((vectors.grad * way).sum()), rel=0.03, abs=0.03)


def test_only_the_soft_prompt_is_soft_and_a_call_may_mix(clips):
    loaded = qwen2_audio(SECONDS)
    scorer, other = soft_scorer(loaded), Prompt("Speech? A) no B) yes")
    plain = evaluator_with(*loaded)
    before = scorer.fingerprint
    scorer.soft = SoftPrompt(LETTERS, scorer.words(LETTERS).vectors + 0.5)
    assert scorer.fingerprint not in (before, plain.fingerprint) and before == plain.fingerprint
    alone = scorer.score([LETTERS], clips).logp[0]
    mixed = scorer.score([other, LETTERS, WORDS], clips).logp
    assert np.abs(mixed[1] - alone).max() < 1e-5
    expected = plain.score([other, LETTERS, WORDS], clips).logp
    assert np.abs(mixed[[0, 2]] - expected[[0, 2]]).max() < 1e-5
    assert np.abs(mixed[1] - expected[1]).max() > 0.01


def test_other_vectors_are_another_fingerprint(clips):
    scorer, seen = soft_scorer(qwen2_audio(SECONDS)), set()
    for step in range(3):
        scorer.soft = SoftPrompt(LETTERS, scorer.words(LETTERS).vectors + step)
        seen.add(scorer.fingerprint)
    assert len(seen) == 3


def test_a_store_that_holds_little_changes_nothing(clips):
    loaded = qwen2_audio(SECONDS)
    roomy, tight = soft_scorer(loaded), soft_scorer(loaded, store_bytes=1)
    vectors = roomy.words(LETTERS).vectors
    a, b = (answer_logp(one, LETTERS, vectors, [*clips, clips[0]]) for one in (roomy, tight))
    assert torch.allclose(a, b, atol=1e-5) and torch.allclose(a[0], a[4], atol=1e-6)


def test_the_self_test_of_an_adapter_asks_in_words(dev_clips):
    checkpoint = open_checkpoint("pocket-lora")
    prompt = checkpoint.prompt
    assert checkpoint.self_test is not None and checkpoint.self_test.prompt == prompt
    scorer = SoftScorer(checkpoint, None, "cpu", "float32")
    width = scorer.config.text_config.hidden_size
    scorer.soft = SoftPrompt(prompt, torch.zeros(len(scorer.places(prompt)), width))
    assert np.isfinite(scorer.score([prompt], dev_clips[:2]).logp).all()  # and it is no other model
    assert all(not p.is_inference() for p in scorer.decoder.model.parameters())


def test_places_are_the_words_alone(seeds):
    scorer = soft_scorer(qwen2_audio(SECONDS))
    tokenizer, template = scorer.processor.tokenizer, scorer.family.template
    for prompt in (*seeds, LETTERS, WORDS):
        places = soft_places(tokenizer, template, prompt)
        ids = encode(tokenizer, template.after(prompt.text))
        assert tokenizer.decode([ids[p] for p in places]).strip() == prompt.text.strip()
        assert (np.diff(places) == 1).all()
        bare = encode(tokenizer, template.after(""))
        assert ids[places[-1] + 1 :] == bare[len(bare) - (len(ids) - places[-1] - 1) :]
    for prompt, message in (
        (replace(LETTERS, both_orders=True), "wants both orders"),
        (replace(LETTERS, presentation=Presentation(repeat_to_ms=900)), "wants the clip"),
        (Prompt(""), "has no words"),
    ):
        with pytest.raises(UserError, match=message):
            soft_places(tokenizer, template, prompt)


def test_a_file_is_what_its_record_tells_of(tmp_path):
    soft = SoftPrompt(LETTERS, torch.arange(6.0).reshape(2, 3))
    path = tmp_path / "soft.safetensors"
    save_soft(path, soft)
    assert (load_soft(path, LETTERS, soft.digest).vectors == soft.vectors).all()
    with pytest.raises(UserError, match="is not the soft prompt that its record tells of"):
        load_soft(path, WORDS, soft.digest)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no soft prompt"):
        load_soft(path, LETTERS, soft.digest)
