"""Adapters of every kind on the pocket base, in the layouts of transformers 4 and 5, and how plain peft scores them."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.checkpoint import POCKET
from evaluators.audio_lm.stock import StockModel
from evaluators.clips import Clip
from evaluators.prompts import Prompt

BASE = POCKET / "base"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# As in evaluators/audio_lm/adapters.py, written out anew: (transformers 4, transformers 5).
NAMES = (
    ("language_model.lm_head", "lm_head"),
    ("language_model.model.", "model.language_model."),
    ("audio_tower.", "model.audio_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


@dataclass(frozen=True)
class Kind:
    """Settings of LoraConfig; `old` are those that transformers 4 had under other names."""

    settings: Mapping[str, Any]
    old: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32  # of the file


def lora(
    dtype: torch.dtype = torch.float32, old: Mapping[str, Any] | None = None, **more: Any
) -> Kind:
    return Kind(
        {"r": 4, "lora_alpha": 8, "target_modules": list(ATTENTION), **more}, old or {}, dtype
    )


LLM, TOWER = r"model\.language_model\..*\.(q|o)_proj", r"model\.audio_tower\..*\.(v|out)_proj"
EXACT = {
    "LoRA": lora(),
    "LoRA, float16 file": lora(torch.float16),
    "LoRA, bfloat16 file": lora(torch.bfloat16),
    "rsLoRA": lora(use_rslora=True),
    "DoRA": lora(use_dora=True),
    "DoRA, bfloat16 file": lora(torch.bfloat16, use_dora=True),
    "lora_bias": lora(lora_bias=True),
    "bias of all layers": lora(bias="all"),
    "bias of adapted layers": lora(bias="lora_only"),
    "all-linear": lora(target_modules="all-linear"),
    "regular expression": lora(
        target_modules=f"{LLM}|{TOWER}",
        old={"target_modules": r"language_model\.model\..*\.(q|o)_proj|audio_tower\..*\.(v|out)_proj"},
    ),
    "full names": lora(
        target_modules=["model.language_model.layers.1.self_attn.q_proj", "model.audio_tower.layers.0.fc1"],
        old={"target_modules": ["language_model.model.layers.1.self_attn.q_proj", "audio_tower.layers.0.fc1"]},
    ),
    "some layers, some left out": lora(layers_to_transform=[0, 2], exclude_modules=["v_proj"]),
    "rank and alpha patterns": lora(
        rank_pattern={"q_proj": 2, r"model\.language_model\.layers\.1\.self_attn\.k_proj": 6},
        alpha_pattern={"v_proj": 3, r"model\.audio_tower\.layers\.0\.self_attn\.k_proj": 20},
        old={
            "rank_pattern": {"q_proj": 2, r"language_model\.model\.layers\.1\.self_attn\.k_proj": 6},
            "alpha_pattern": {"v_proj": 3, r"audio_tower\.layers\.0\.self_attn\.k_proj": 20},
        },
    ),
    "projector trained whole": lora(modules_to_save=["multi_modal_projector"]),
    "head trained whole": lora(modules_to_save=["lm_head"]),
    "embeddings trained whole": lora(modules_to_save=["embed_tokens"]),
    "all three, by full name": lora(
        modules_to_save=["model.multi_modal_projector", "lm_head", "model.language_model.embed_tokens"],
        old={"modules_to_save": ["multi_modal_projector", "language_model.lm_head",
                                 "language_model.model.embed_tokens"]},
    ),
    "LoRA on head and embeddings": lora(target_modules=[*ATTENTION, "lm_head", "embed_tokens"]),
    "DoRA everywhere": lora(
        target_modules=[*ATTENTION, "fc1", "down_proj", "linear", "embed_tokens"], use_dora=True
    ),
    "PiSSA": lora(init_lora_weights="pissa"),
    "OLoRA": lora(init_lora_weights="olora"),
    "orthogonal": lora(init_lora_weights="orthogonal"),
}  # fmt: skip


def base_model() -> Any:
    return Qwen2AudioForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)


def make_adapter(kind: Kind, folder: Path, seed: int = 0) -> Path:
    """An adapter with random weights, none of them zero, as peft saves it beside transformers 5."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base_model(), LoraConfig(**kind.settings))
    noise = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            size = 0.05 if "lora_" in name and "magnitude" not in name else 0.1 * weight.std()
            weight.data += size * torch.randn(weight.shape, generator=noise)
    model.save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    tensors = {k: v.to(kind.dtype).contiguous() for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def old_key(key: str) -> str:
    inner = key.removeprefix("base_model.model.")
    for old, new in NAMES:
        if inner.startswith(new):
            return f"base_model.model.{old}{inner.removeprefix(new)}"
    raise AssertionError(key)


def in_old_layout(kind: Kind, source: Path, folder: Path) -> Path:
    """The same adapter as a trainer with transformers 4 would have written it."""
    folder.mkdir(parents=True)
    tensors = load_file(source / "adapter_model.safetensors")
    renamed = {old_key(key): value for key, value in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "adapter_config.json").read_text()) | dict(kind.old)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def plain_scores(model: Any, prompt: Prompt, clips: Sequence[Clip]) -> np.ndarray:
    """``[clip, label]`` in nats by the stock forward."""
    stock = StockModel(model.eval(), AutoProcessor.from_pretrained(BASE), torch.device("cpu"))
    groups = find_answers(stock.processor.tokenizer, prompt).sequences
    ids = [[sequence[0] for sequence in group] for group in groups]
    logp = [stock.logp(prompt, clip) for clip in clips]
    return np.array([[float(row[part].logsumexp(0)) for part in ids] for row in logp])


def plain_peft(folder: Path) -> Any:
    """Base and adapter by transformers and peft alone, nothing merged."""
    return PeftModel.from_pretrained(base_model(), str(folder)).get_base_model()
