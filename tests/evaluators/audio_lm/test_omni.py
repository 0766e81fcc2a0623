"""Qwen3-Omni's thinker behind the same evaluator: a tiny random model against the stock forward."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.families import QWEN3_OMNI
from evaluators.audio_lm.memory import plan_memory
from evaluators.audio_lm.packed_tower import LogMel, embed_qwen3_omni
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.templates import encode
from evaluators.clips import clip_wave
from evaluators.errors import UserError
from evaluators.splits import balanced_order

pytestmark = pytest.mark.tiny


def tiny_omni(tokenizer):
    """(model, processor) with windows of 2 s in the tower, grouped queries, norms of heads and eight experts."""
    from transformers import (
        Qwen3OmniMoeThinkerConfig,
        Qwen3OmniMoeThinkerForConditionalGeneration,
        WhisperFeatureExtractor,
    )

    tokenizer.add_special_tokens(
        {"extra_special_tokens": ["<|audio_start|>", "<|audio_pad|>", "<|audio_end|>"]}
    )
    token = tokenizer.convert_tokens_to_ids
    config = Qwen3OmniMoeThinkerConfig(
        audio_config={"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2,
                      "encoder_ffn_dim": 64, "num_mel_bins": 80, "downsample_hidden_size": 16,
                      "output_dim": 48, "n_window": 50, "n_window_infer": 200},
        text_config={"vocab_size": len(tokenizer) + 8, "hidden_size": 48, "intermediate_size": 64,
                     "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
                     "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2,
                     "moe_intermediate_size": 24, "norm_topk_prob": True,
                     "rope_scaling": {"mrope_section": [4, 2, 2], "mrope_interleaved": True}},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                       "out_hidden_size": 48, "deepstack_visual_indexes": [0]},
        audio_token_id=token("<|audio_pad|>"),
        vision_start_token_id=1,  # real configurations hold it; unused without pictures
        audio_start_token_id=token("<|audio_start|>"),
        audio_end_token_id=token("<|audio_end|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3OmniMoeThinkerForConditionalGeneration(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" not in name and "conv" not in name:
            weight.copy_(torch.randn_like(weight) * 0.3)
    extractor = WhisperFeatureExtractor(feature_size=80)
    return model, SimpleNamespace(tokenizer=tokenizer, feature_extractor=extractor)


@pytest.fixture(scope="module")
def omni():
    tokenizer = AudioScorer(open_checkpoint("pocket-base"), "cpu").processor.tokenizer
    loaded = tiny_omni(tokenizer)
    return AudioScorer(open_checkpoint("pocket-base"), "cpu", "float32", loaded=loaded)


@pytest.fixture(scope="module")
def clips(dev_clips):
    return balanced_order(dev_clips)[:12]


def stock_logp(evaluator, prompt, clip):
    """Log-probabilities at the answer by the model's own forward, inputs as its processor makes them."""
    tokenizer, model = evaluator.processor.tokenizer, evaluator.decoder.model
    heard = evaluator.processor.feature_extractor(
        clip_wave(clip),
        sampling_rate=16000,
        padding=True,
        truncation=False,
        return_attention_mask=True,
        return_tensors="pt",
    )
    frames = int(heard["attention_mask"].sum())
    count = QWEN3_OMNI.tokens(model.config, frames)
    pad = tokenizer.convert_tokens_to_ids("<|audio_pad|>")
    ids = encode(tokenizer, QWEN3_OMNI.template.before(prompt.system)) + [pad] * count
    ids = torch.tensor([ids + encode(tokenizer, QWEN3_OMNI.template.after(prompt.text))])
    with torch.inference_mode():
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            input_features=heard["input_features"],
            feature_attention_mask=heard["attention_mask"],
        ).logits
    return logits[0, -1].log_softmax(-1)


def apart(evaluator, prompts, clips):
    """Largest distance in nats to the stock forward."""
    table = evaluator.score(prompts, clips)
    worst = 0.0
    for p, prompt in enumerate(prompts):
        answers = find_answers(evaluator.processor.tokenizer, prompt)
        for c, clip in enumerate(clips):
            logp = stock_logp(evaluator, prompt, clip)
            for k, group in enumerate(answers.sequences):
                expected = float(logp[[s[0] for s in group]].logsumexp(0))
                worst = max(worst, abs(expected - float(table.logp[p, c, k])))
    return worst


def test_prefix_sharing_equals_the_stock_forward(omni, seeds, clips):
    assert apart(omni, seeds, clips) < 1e-4
    spread = omni.score(seeds, clips).logp[..., 0]
    assert np.ptp(spread, 0).min() > 1e-3 and np.ptp(spread, 1).min() > 1e-3  # both matter


@pytest.mark.parametrize("samples", [1600, 3307, 7999, 8000, 8161, 16000, 40_007, 480_000])
def test_odd_lengths_equal_the_stock_forward(omni, seeds, clips, tmp_path, samples):
    assert apart(omni, seeds[:1], [noise(tmp_path, clips[0], samples)]) < 1e-4


def noise(folder, clip, samples):
    path = folder / f"{samples}.wav"
    wave = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    soundfile.write(path, wave, 16000, subtype="FLOAT")
    return replace(clip, path=path, sha256=f"omni {samples}", clip_id=f"{samples} samples")


def test_any_lengths_together_equal_the_stock_forward(omni, seeds, clips, tmp_path):
    """One frame and little more, whole chunks of a second and their rests, several windows of attention."""
    lengths = [201, 319, 320, 480, 1280, 1440, 3333, 15_999, 16_000, 16_160, 17_600, 150_000]
    made = [noise(tmp_path, clips[0], n) for n in lengths]
    assert apart(omni, seeds[:1], made) < 1e-4
    whole = omni.score(seeds[:1], made).logp
    omni.forget()
    assert np.abs(omni.score(seeds[:1], made[::-1]).logp[:, ::-1] - whole).max() < 1e-5


@torch.inference_mode()
def test_embeddings_of_a_line_of_clips_are_the_stock_towers_of_each_alone(omni):
    """With convolutions that hear something, and whose biases make something of nothing."""
    model = copy.deepcopy(omni.decoder.model)
    tower, random = model.model.audio_tower, np.random.default_rng(0)
    torch.manual_seed(1)
    for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
        convolution.weight.normal_(0, 0.3)
        convolution.bias.normal_(0, 0.5)
    frames = [1, 2, 3, 8, 9, 50, 99, 100, 101, 110, 200, 201, 399, 400, 401, 950]
    mels = [random.normal(0, 1, (80, n)).astype(np.float32) for n in frames]
    clips = [LogMel(mel, n) for mel, n in zip(mels, frames, strict=True)]
    stock = [
        tower(
            input_features=torch.from_numpy(mel), feature_lens=torch.tensor([n])
        ).last_hidden_state
        for mel, n in zip(mels, frames, strict=True)
    ]
    for order in (slice(None), slice(None, None, -1), slice(3, 6)):
        embedded = embed_qwen3_omni(model, clips[order], 600)
        for ours, theirs, n in zip(embedded, stock[order], frames[order], strict=True):
            assert ours.shape == theirs.shape == (QWEN3_OMNI.tokens(model.config, n), 48)
            assert torch.allclose(ours, theirs, atol=2e-5), n
    assert min(float(s.std()) for s in stock) > 0.1


@pytest.mark.parametrize("samples", [1, 160, 200])
def test_a_clip_too_short_for_any_feature_is_one_sentence(omni, seeds, clips, tmp_path, samples):
    with pytest.raises(UserError) as caught:
        omni.score(seeds[:1], [clips[0], noise(tmp_path, clips[0], samples)])
    assert str(caught.value) == (
        f"clip '{samples} samples' lasts {samples / 16:.2f} ms, the model's features need 12.56 ms at least; leave it"
        " out, or cut it longer"
    )


def test_scores_do_not_depend_on_their_company(omni, seeds, clips):
    whole = omni.score(seeds, clips).logp
    order = np.random.default_rng(0).permutation(len(clips))
    omni.forget()
    turned = omni.score(seeds[::-1], [clips[i] for i in order]).logp
    assert np.abs(turned[::-1] - whole[:, order]).max() < 1e-5
    omni.forget()
    assert np.abs(omni.score(seeds[1:2], clips[3:4]).logp[0, 0] - whole[1, 3]).max() < 1e-5


def test_a_folder_on_disk_is_scored_by_name_and_four_bits_are_refused(omni, seeds, clips, tmp_path):
    model, processor = omni.decoder.model, omni.processor
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    processor.feature_extractor.save_pretrained(tmp_path)
    found = AudioScorer(open_checkpoint(str(tmp_path)), "cpu", "float32")
    whole = omni.score(seeds, clips).logp
    assert np.abs(found.score(seeds, clips).logp - whole).max() < 1e-5
    with pytest.raises(UserError, match="does not reach the experts"):
        open_checkpoint(str(tmp_path), quantization="nf4")


def test_other_kinds_of_models_are_refused_by_name(tmp_path):
    about = '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'
    (tmp_path / "config.json").write_text(about)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match="of type 'llama' and class 'LlamaForCausalLM', which does not answer"
    ):
        open_checkpoint(str(tmp_path))


def test_memory_of_the_30b_model_is_planned_from_its_configuration():
    from transformers import Qwen3OmniMoeThinkerConfig

    config = Qwen3OmniMoeThinkerConfig(
        text_config={"vocab_size": 152064, "hidden_size": 2048, "num_hidden_layers": 48,
                     "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
                     "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
    )  # fmt: skip
    plan = plan_memory(config, "none", 80)
    assert 55 < plan.weights_gib < 60 and plan.fits
    assert not plan_memory(config, "none", 24).fits
