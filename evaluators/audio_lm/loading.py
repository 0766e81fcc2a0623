"""Loads a checkpoint onto a device: precision, 4-bit weights, adapter. Safetensors only, no remote code."""

import warnings
from typing import Any

import torch

from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.families import Family
from evaluators.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU."""
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]}); expected auto, cpu,"
            " cuda or mps"
        ) from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA, float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def card_gib(device: torch.device) -> float | None:
    """Memory of a CUDA card in GiB; None for any other device."""
    if device.type != "cuda":
        return None
    return float(torch.cuda.get_device_properties(device).total_memory / 2**30)


def merge_to_linear(module: Any, dtype: torch.dtype, dequantize: bool) -> None:
    """Merges LoRA layers (and, with `dequantize`, 4-bit ones) into equivalent `nn.Linear` layers, in place.

    4-bit weights become the numbers that bitsandbytes dequantizes them to for every batch. LoRA is added in float32 and
    rounded once; where weights stay 4-bit it cannot be added, and stays beside them.
    """
    for name, child in list(module.named_children()):
        adapted = hasattr(child, "lora_A")  # peft's; not imported without need
        base = child.get_base_layer() if adapted else child
        if not isinstance(base, torch.nn.Linear):
            merge_to_linear(child, dtype, dequantize)
            continue
        packed = hasattr(base.weight, "quant_state")
        if (packed and not dequantize) or type(child) is torch.nn.Linear:
            continue
        weight = base.weight.data
        if packed:
            import bitsandbytes as bnb

            weight = bnb.functional.dequantize_4bit(weight, base.weight.quant_state)  # type: ignore[attr-defined]
        if adapted:
            delta = sum(child.get_delta_weight(a).float() for a in child.active_adapters)
            weight = weight.float() + delta
        plain = torch.nn.Linear(
            base.in_features, base.out_features, base.bias is not None, device="meta"
        )
        plain.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
        if base.bias is not None:
            plain.bias = torch.nn.Parameter(base.bias.data.to(dtype), requires_grad=False)
        setattr(module, name, plain)


def load_model(
    checkpoint: Checkpoint, family: Family, device: torch.device, dtype: torch.dtype
) -> Any:
    """The model with its adapter in place, through the ordinary classes; safetensors only, no remote code."""
    import transformers
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # Weights go from the file straight to the card.
    options: dict[str, Any] = {} if device.type == "mps" else {"device_map": {"": device}}
    if checkpoint.quantization == "nf4":
        options |= {
            "quantization_config": transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            ),
        }
    model = getattr(transformers, family.model_class).from_pretrained(
        checkpoint.base, dtype=dtype, use_safetensors=True, **options
    )
    if device.type == "mps":
        model = model.to(device)
    if checkpoint.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(
            model, str(checkpoint.adapter), use_safetensors=True
        ).get_base_model()
    return model.eval().requires_grad_(False)
