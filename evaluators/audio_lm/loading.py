"""Loads a checkpoint onto a device: precision, 4-bit weights, adapter. Safetensors only, no remote code.

Importing it imports transformers and peft: `AudioScorer` does so when weights are needed.
"""

import warnings
from typing import Any, Protocol

import torch
import transformers
from transformers.utils import logging as hf_logging

from evaluators.audio_lm.adapters import attach, beside, merge
from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.model_folder import check_weights, read_model

__all__ = ["beside", "load_model", "merge"]  # all that a scorer needs of what is heavy


class OfClass(Protocol):
    """A kind of model with a class in transformers."""

    @property
    def model_class(self) -> str:
        """The class' name."""


def check_load(checkpoint: Checkpoint, family: OfClass) -> None:
    """Loads a checkpoint onto the meta device, which takes no memory and reads headers alone, and drops it.

    So that whatever does not fit is found before anything is scored, kept or written.

    Raises:
        UserError: A tensor of base or adapter is missing, left over or of another shape, or one of their configurations
            cannot be used.
    """
    hf_logging.disable_progress_bar()
    model = check_weights(getattr(transformers, family.model_class), checkpoint.base)
    if checkpoint.adapter is not None:
        with torch.device("meta"):
            attach(model, checkpoint.adapter)


def load_model(
    checkpoint: Checkpoint, family: OfClass, device: torch.device, dtype: torch.dtype
) -> Any:
    """The model with its adapter in place, through the ordinary classes; safetensors only, no remote code.

    Raises:
        UserError: As `check_load`, before memory is taken.
    """
    check_load(checkpoint, family)
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
