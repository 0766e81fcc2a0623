"""Plain LoRA (Hu et al. 2021) without peft, whose import takes seconds: ``W + scale * B @ A``.

The sums are those of peft's own merge, in its order, so weights are the same bits; a test compares them. Whatever else
an adapter does to its base is peft's affair (`adapters`), and so is what is wrong with one that does not fit.
"""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from evaluators.audio_lm.adapter_kinds import CONFIG, RESIDUAL_INITS, WEIGHTS
from evaluators.audio_lm.adapter_names import PREFIX, new_name, old_name
from evaluators.audio_lm.model_folder import read_object, tensor_shapes

# Settings by which peft does more than the plain sum, or does it elsewhere than the names of modules say.
MORE = (
    "exclude_modules layers_to_transform layers_pattern rank_pattern alpha_pattern use_dora lora_bias modules_to_save"
    " fan_in_fan_out".split()
)


def plain_lora(folder: Path, model: nn.Module) -> dict[str, str] | None:
    """The layers that an adapter changes, and under which name its file has each; None where peft has to join it.

    Reads headers alone.

    Args:
        folder: Of the adapter, which `adapter_kinds` has seen.
        model: Its base, also on the meta device.
    """
    settings, shapes = read_object(folder / CONFIG), tensor_shapes(folder / WEIGHTS)
    targets, rank = settings.get("target_modules"), settings.get("r", 8)
    if not isinstance(targets, list) or any(settings.get(name) not in _unset() for name in MORE):
        return None
    if (
        settings.get("bias", "none") != "none"
        or settings.get("init_lora_weights") in RESIDUAL_INITS
    ):
        return None
    files = {new_name(key): key for key in shapes}
    in_old_layout = any(new != key for new, key in files.items())
    found, places = {}, {}
    for name, module in model.named_modules():
        known = old_name(name) if in_old_layout else name
        if not any(f".{known}".endswith(f".{target}") for target in targets):
            continue
        if type(module) is not nn.Linear:
            return None
        inside = f"{PREFIX}{name}."
        places[f"{inside}lora_A.weight"] = [rank, module.in_features]
        places[f"{inside}lora_B.weight"] = [module.out_features, rank]
        found[name] = files.get(f"{inside}lora_A.weight", "").removesuffix("lora_A.weight")
    if (
        not found
        or len(files) != len(shapes)
        or {new: shapes[key] for new, key in files.items()} != places
    ):
        return None
    return found


def _unset() -> tuple[Any, ...]:
    return (None, False, [], {}, "")


def merge_plain(model: nn.Module, folder: Path, dtype: torch.dtype) -> bool:
    """Merges an adapter into its base, in float32, rounded once; each changed layer gets a tensor of its own.

    Args:
        model: The base, with its weights.
        folder: Of the adapter.
        dtype: Of merged weights.

    Returns:
        False where peft has to do it; then nothing was changed.
    """
    layers = plain_lora(folder, model)
    if layers is None:
        return False
    settings, tensors = read_object(folder / CONFIG), load_file(folder / WEIGHTS)
    rank = settings.get("r", 8)
    scale = settings.get("lora_alpha", 8) / (
        math.sqrt(rank) if settings.get("use_rslora") else rank
    )
    with torch.no_grad():
        for name, stored in layers.items():
            layer: Any = model.get_submodule(name)
            a, b = (
                tensors[f"{stored}lora_{part}.weight"].float().to(layer.weight.device)
                for part in "AB"
            )
            exact = layer.weight.float()
            merged = (exact + b @ a * scale).to(dtype)
            layer.weight = nn.Parameter(merged, requires_grad=False)
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    return True
