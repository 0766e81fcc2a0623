"""Scoring without transformers: the same bits as with it, or its own way and its own sentences."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapters import BASE, EXACT, in_old_layout, lora, make_adapter
from common import DEMO, LABELS
from transformers import AutoProcessor, WhisperFeatureExtractor

from evaluators.audio_lm import kept_weights
from evaluators.audio_lm import plain_front as fronts
from evaluators.audio_lm import scorer as scoring
from evaluators.audio_lm.adapters import merge
from evaluators.audio_lm.checkpoint import POCKET, open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.identity import _deciding
from evaluators.audio_lm.loading import load_model
from evaluators.audio_lm.model_folder import read_config
from evaluators.audio_lm.plain_config import plain_config
from evaluators.audio_lm.plain_front import MODEL, PARTS, SPECIAL, PlainExtractor, plain_front
from evaluators.audio_lm.plain_lora import plain_lora
from evaluators.audio_lm.plain_model import PlainModel, fitting_model, load_plain
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError

CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda")] * torch.cuda.is_available())]
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
TEXTS = [
    "Is it speech?",
    " A",
    "e\u0301 \u00e9 \u4f60\u597d \U0001f600",
    "<|im_end|>\n\n  x",
    "",
    "\u00a0 1234's",
]


def weights(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("name", ["pocket-base", "pocket-lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_weights_are_transformers_own_to_the_bit(name, dtype, device):
    checkpoint = open_checkpoint(name)
    theirs = load_model(checkpoint, QWEN2_AUDIO, device, dtype)
    merge(theirs, dtype, False)
    theirs, ours = weights(theirs), weights(load_plain(checkpoint, device, dtype, False))
    left = theirs.keys() - ours.keys()
    assert ours.keys() <= theirs.keys()
    assert left == {"model.language_model.rotary_emb.original_inv_freq"}
    for key, weight in ours.items():
        assert weight.dtype == theirs[key].dtype, key
        assert torch.equal(weight, theirs[key]), key


@pytest.mark.parametrize("name", ["pocket-base", "pocket-lora"])
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_kept_4_bit_weights_are_bitsandbytes_numbers_to_the_bit(
    name, device, monkeypatch, tmp_path
):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept_weights, "LEAST", 0)
    checkpoint = replace(open_checkpoint(name), quantization="nf4")
    dtype = torch.bfloat16
    assert load_plain(checkpoint, device, dtype, True) is None  # nothing is kept yet
    theirs = load_model(checkpoint, QWEN2_AUDIO, device, dtype)
    merge(theirs, dtype, True)
    assert load_plain(checkpoint, device, dtype, False) is None  # of layers that stay 4-bit
    theirs, ours = weights(theirs), weights(load_plain(checkpoint, device, dtype, True))
    assert all(torch.equal(weight, theirs[key]) for key, weight in ours.items())
    whole = weights(load_plain(open_checkpoint(name), device, dtype, False))
    changed = [key for key, weight in ours.items() if not torch.equal(weight, whole[key])]
    assert any("audio_tower" in key for key in changed) and "lm_head.weight" not in changed


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
    theirs, ours = weights(theirs), weights(load_plain(checkpoint, CPU, torch.bfloat16, False))
    assert all(torch.equal(weight, theirs[key]) for key, weight in ours.items())
    base = weights(load_plain(open_checkpoint(str(BASE)), CPU, torch.bfloat16, False))
    assert any(not torch.equal(weight, base[key]) for key, weight in ours.items())


@pytest.mark.parametrize("device", map(str, DEVICES))
def test_scores_and_keys_are_those_of_transformers_model(monkeypatch, seeds, dev_clips, device):
    made = []
    for plain in (True, False):
        for name in ("pocket-base", "pocket-lora"):
            scorer = AudioScorer(open_checkpoint(name), device)
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
    for text in TEXTS:
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


ODD = [None, 0, 1.5, True, "x", [1], [[]], [None], {"a": 1}, {"a": []}, [{"content": []}]]


def small_folder(folder, **changes):
    """The files that tell of a front end, with the smallest vocabulary; `changes` by file, then by key."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    made = {
        "tokenizer.json": {
            **PARTS,
            "model": {**MODEL, "vocab": {"a": 0, "<e>": 1}, "merges": []},
            "decoder": byte_level,
            "post_processor": byte_level,
            "added_tokens": [{"id": 1, "content": "<e>", **SPECIAL}],
        },
        "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<e>"},
        "preprocessor_config.json": {"feature_extractor_type": "WhisperFeatureExtractor"},
        "special_tokens_map.json": {"eos_token": {"content": "<e>"}},
    }
    for name, values in made.items():
        (folder / name).write_text(json.dumps(values | changes.get(name.partition(".")[0], {})))
    return folder


def test_a_fault_in_reading_settings_is_not_taken_for_a_folder_of_another_kind(
    tmp_path, monkeypatch
):
    assert plain_front(small_folder(tmp_path)) is not None
    for part in ("_extractor", "_is_qwen2"):
        with monkeypatch.context() as patch:
            patch.setattr(fronts, part, lambda folder: {}["ours"])
            with pytest.raises(KeyError, match="ours"):
                plain_front(tmp_path)


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("tokenizer", ["decoder", "added_tokens", "model", "normalizer", "post_processor"]),
        ("tokenizer_config", ["eos_token", "extra_special_tokens", "added_tokens_decoder"]),
        ("special_tokens_map", ["eos_token", "additional_special_tokens"]),
        ("preprocessor_config", ["feature_size", "hop_length", "chunk_length", "n_fft"]),
    ],
)
def test_settings_of_any_type_are_known_or_left_to_transformers(tmp_path, file, keys):
    assert plain_front(small_folder(tmp_path)) is not None
    for key in keys:
        found = [plain_front(small_folder(tmp_path, **{file: {key: value}})) for value in ODD]
        assert None in found, key


def in_parts(folder, words, control):
    """Two folders of the pocket's front end, ids in this order: with tokenizer.json, with the hub's own files."""
    whole, parts = folder / "whole", folder / "parts"
    shutil.copytree(BASE, whole, ignore=shutil.ignore_patterns("*.safetensors"))
    ids = {word: number for number, word in enumerate([*words, *control])}
    raw = json.loads((BASE / "tokenizer.json").read_text())
    raw["added_tokens"] = [{**token, "id": ids[token["content"]]} for token in raw["added_tokens"]]
    raw["model"]["vocab"] = {word: ids[word] for word in words}
    (whole / "tokenizer.json").write_text(json.dumps(raw))
    shutil.copytree(whole, parts, ignore=shutil.ignore_patterns("tokenizer.json"))
    (parts / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in raw["model"]["merges"]]
    (parts / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return whole, parts


def tell_of(tokens, folder, told_in):
    """Writes (token -> id) beside a vocabulary."""
    if told_in == "tokenizer_config.json":
        decoder = {number: {**SPECIAL, "content": token} for token, number in tokens.items()}
        about = json.loads((folder / told_in).read_text())
        tokens = about | {"added_tokens_decoder": decoder}
    (folder / told_in).write_text(json.dumps(tokens))


@pytest.fixture(scope="module")
def vocabulary():
    """(Words, control tokens) of the pocket."""
    raw = json.loads((BASE / "tokenizer.json").read_text())
    control = [token["content"] for token in raw["added_tokens"]]
    return [word for word in raw["model"]["vocab"] if word not in control], control


@pytest.mark.parametrize("told_in", ["added_tokens.json", "tokenizer_config.json"])
def test_a_vocabulary_in_the_hubs_own_files_is_read_by_transformers_to_the_same_ids(
    tmp_path, vocabulary, told_in
):
    """Control tokens come after the words, as in Qwen2-Audio-7B, and stand in neither vocab.json nor merges.txt."""
    whole, parts = in_parts(tmp_path, *vocabulary)
    first = len(vocabulary[0])
    tell_of({token: first + i for i, token in enumerate(vocabulary[1])}, parts, told_in)
    assert plain_front(whole) is not None and plain_front(parts) is None
    ours, theirs = (QWEN2_AUDIO.front(folder).tokenizer for folder in (whole, parts))
    assert ours.get_vocab() == theirs.get_vocab()
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text) == ids


@pytest.mark.parametrize("told_in", ["added_tokens.json", "tokenizer_config.json"])
def test_a_control_token_with_another_id_than_told_is_one_sentence(tmp_path, vocabulary, told_in):
    """As transformers gives them, in silence, where they should come before the words."""
    folders = in_parts(tmp_path, *vocabulary)
    for folder in folders:
        tell_of({token: i for i, token in enumerate(vocabulary[1])}, folder, told_in)
        with pytest.raises(
            UserError, match=r"makes <\|im_start\|> token 19\d\d, its other files tell 1;"
        ):
            QWEN2_AUDIO.front(folder)
