"""Loads a checkpoint onto a device: precision, 4-bit weights, adapter. Safetensors only, no remote code."""

import warnings
from typing import Any

import torch

from evaluators.audio_lm.adapters import attach
from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.families import Family
from evaluators.audio_lm.model_folder import read_model
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
    model_class = getattr(transformers, family.model_class)
    model = read_model(model_class, checkpoint.base, dtype=dtype, **options)
    if device.type == "mps":
        model = model.to(device)
    if checkpoint.adapter is not None:
        model = attach(model, checkpoint.adapter).get_base_model()
    return model.eval().requires_grad_(False)
