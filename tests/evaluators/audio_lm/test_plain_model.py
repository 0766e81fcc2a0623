"""Scoring without transformers: the same bits as with it, or its own way and its own sentences."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from adapters import BASE, EXACT, in_old_layout, lora, make_adapter
from common import DEMO, LABELS
from transformers import AutoProcessor, WhisperFeatureExtractor

from evaluators.audio_lm import scorer as scoring
from evaluators.audio_lm.adapters import merge
from evaluators.audio_lm.checkpoint import POCKET, open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.identity import _deciding
from evaluators.audio_lm.loading import load_model
from evaluators.audio_lm.model_folder import read_config
from evaluators.audio_lm.plain_config import plain_config
from evaluators.audio_lm.plain_front import PlainExtractor, plain_front
from evaluators.audio_lm.plain_lora import plain_lora
from evaluators.audio_lm.plain_model import PlainModel, fitting_model, load_plain
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError

CPU = torch.device("cpu")
HEAVY = "transformers", "peft", "sklearn", "torch._dynamo", "accelerate"
# Imported after the first scores:
LATER = "optuna", "scipy.special", "numpy.f2py", "pandas", "httpx2"
HUB = {  # as short as the hub's files are
    "model_type": "qwen2_audio",
    "audio_config": {"model_type": "qwen2_audio_encoder", "dtype": "bfloat16"},
    "text_config": {
        "model_type": "qwen2",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "intermediate_size": 11008,
        "rms_norm_eps": 1e-5,
        "vocab_size": 156032,
        "torch_dtype": "bfloat16",
    },
    "torch_dtype": "bfloat16",
    "audio_token_index": 151646,
}


def weights(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("name", ["pocket-base", "pocket-lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_transformers_own_to_the_bit(name, dtype):
    checkpoint = open_checkpoint(name)
    theirs = load_model(checkpoint, QWEN2_AUDIO, CPU, dtype)
    merge(theirs, dtype, False)
    theirs, ours = weights(theirs), weights(load_plain(checkpoint, CPU, dtype))
    left = theirs.keys() - ours.keys()
    assert ours.keys() <= theirs.keys()
    assert left == {"model.language_model.rotary_emb.original_inv_freq"}
    for key, weight in ours.items():
        assert weight.dtype == theirs[key].dtype, key
        assert torch.equal(weight, theirs[key]), key


@pytest.mark.parametrize(
    ("kind", "old"),
    [("LoRA, bfloat16 file", False), ("rsLoRA", True), ("full names", True), ("unnamed", False)],
)
def test_plain_lora_is_pefts_merge_to_the_bit(tmp_path, kind, old):
    made = EXACT.get(kind, lora(r=8))
    folder = make_adapter(made, tmp_path / "new")
    if old:
        folder = in_old_layout(made, folder, tmp_path / "old")
    if kind == "unnamed":  # rank and scale are peft's own then
        path = folder / "adapter_config.json"
        named = json.loads(path.read_text())
        path.write_text(
            json.dumps({k: v for k, v in named.items() if k not in ("r", "lora_alpha")})
        )
    checkpoint = open_checkpoint(str(folder))
    assert fitting_model(checkpoint) is not None
    theirs = load_model(checkpoint, QWEN2_AUDIO, CPU, torch.bfloat16)
    merge(theirs, torch.bfloat16, False)
    theirs, ours = weights(theirs), weights(load_plain(checkpoint, CPU, torch.bfloat16))
    assert all(torch.equal(weight, theirs[key]) for key, weight in ours.items())
    base = weights(load_plain(open_checkpoint(str(BASE)), CPU, torch.bfloat16))
    assert any(not torch.equal(weight, base[key]) for key, weight in ours.items())


def test_scores_and_keys_are_those_of_transformers_model(monkeypatch, seeds, dev_clips):
    made = []
    for plain in (True, False):
        for name in ("pocket-base", "pocket-lora"):
            scorer = AudioScorer(open_checkpoint(name), "cpu")
            table = scorer.score(seeds[:2], dev_clips[:4])
            made.append(
                (table.logp, table.logp_top, scorer.fingerprint, scorer.feature_store._about)
            )
            assert hasattr(scorer.decoder.model, "generate") != plain
        monkeypatch.setattr(scoring, "load_plain", lambda *_: None)
        monkeypatch.setattr(scoring, "audio_config", read_config)
        monkeypatch.setattr("evaluators.audio_lm.identity.plain_config", lambda _: None)
        monkeypatch.setattr("evaluators.audio_lm.families.plain_front", lambda _: None)
    for ours, theirs in zip(made[:2], made[2:], strict=True):
        assert np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[1], theirs[1])
        assert ours[2:] == theirs[2:]
    assert not np.array_equal(made[0][0], made[1][0])


def test_scoring_imports_nothing_heavy(tmp_path):
    """Nor does the search until its first scores."""
    code = f"""
import os, sys
from pathlib import Path
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), {LABELS})
clips = read_manifest(Path({str(DEMO)!r}), {LABELS}, "dev")
for name in ("pocket-base", "pocket-lora"):  # with nothing remembered
    scorer = AudioScorer(open_checkpoint(name), "cpu")
    assert scorer.fingerprint and scorer.score(seeds[:1], clips[:2]).logp.shape[:2] == (1, 2)
from opro import optimize
score = AudioScorer.score
def first_scores(*given):
    assert score(*given).logp.size
    print([name for name in {HEAVY + LATER} if name in sys.modules], flush=True)
    os._exit(0)
AudioScorer.score = first_scores
optimize.main(["--iterations", "0", "--clips", "40", "--runs-dir", {str(tmp_path)!r}])
"""
    places = os.pathsep.join(sys.path)
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": places}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True).strip() == "[]"


@pytest.mark.parametrize(
    "raw",
    [json.loads((BASE / "config.json").read_text()), HUB, {"model_type": "qwen2_audio"}],
    ids=["pocket", "hub", "empty"],
)
def test_a_configuration_is_filled_in_as_by_transformers(tmp_path, raw):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ours, theirs = plain_config(tmp_path), read_config(tmp_path)
    assert _deciding(ours.to_dict()) == _deciding(theirs.to_dict())
    for part in ("audio_config", "text_config"):
        ours_part, theirs_part = getattr(ours, part), getattr(theirs, part)
        assert ours_part.initializer_range == theirs_part.initializer_range
        for name, value in ours_part.values.items():
            assert getattr(theirs_part, name) == value, name
    assert ours.model_type == theirs.model_type


def edited(tmp_path, part, **settings):
    raw = json.loads((BASE / "config.json").read_text())
    (raw[part] if part else raw).update(settings)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return plain_config(tmp_path)


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("", {"model_type": "voxtral"}),
        ("", {"tie_word_embeddings": True}),
        ("", {"quantization_config": {"quant_method": "gptq"}}),
        ("text_config", {"tie_word_embeddings": True}),
        (
            "text_config",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
        ),
        ("text_config", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("text_config", {"hidden_act": "gelu"}),
        ("text_config", {"use_sliding_window": True, "sliding_window": 64}),
        ("text_config", {"layer_types": ["sliding_attention"] * 5}),
        ("text_config", {"hidden_size": "256"}),
        ("text_config", {"hidden_size": True}),
        ("text_config", {"head_dim": 32}),
        ("text_config", {"model_type": "llama"}),
        ("audio_config", {"activation_function": "relu"}),
        ("audio_config", {"d_model": -192}),
        ("audio_config", {"not_known": 1}),
    ],
)
def test_what_is_not_known_is_left_to_transformers(tmp_path, part, settings):
    assert edited(tmp_path, part) is not None
    assert edited(tmp_path, part, **settings) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 2}},
        {"layers_to_transform": [0]},
        {"target_modules": r".*\.q_proj"},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "pissa"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_adapters_are_left_to_peft(tmp_path, settings):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((POCKET / "lora" / name).read_bytes())
    model, path = PlainModel(plain_config(BASE)), tmp_path / "adapter_config.json"
    assert len(plain_lora(tmp_path, model)) > 20
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert plain_lora(tmp_path, model) is None


def test_the_tokenizer_gives_transformers_tokens():
    ours, theirs = plain_front(BASE).tokenizer, AutoProcessor.from_pretrained(BASE).tokenizer
    assert ours.get_vocab() == theirs.get_vocab()
    texts = [
        "Is it speech?",
        " A",
        "e\u0301 \u00e9 \u4f60\u597d \U0001f600",
        "<|im_end|>\n\n  x",
        "",
        "\u00a0 1234's",
    ]
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.convert_tokens_to_ids("<|AUDIO|>") == theirs.convert_tokens_to_ids("<|AUDIO|>")


@pytest.mark.parametrize("bins", [80, 128])
def test_the_extractor_has_transformers_filters_to_the_bit(bins):
    ours, theirs = PlainExtractor(feature_size=bins), WhisperFeatureExtractor(feature_size=bins)
    assert np.array_equal(ours.mel_filters, theirs.mel_filters)
    assert ours.to_dict() == theirs.to_dict()


def test_another_tokenizer_is_left_to_transformers(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (tmp_path / name).write_bytes((BASE / name).read_bytes())
    assert plain_front(tmp_path) is not None
    raw = json.loads((BASE / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"normalizer": {"type": "NFKC"}}))
    assert plain_front(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw)[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        QWEN2_AUDIO.front(tmp_path)
