"""Loads a checkpoint onto a device: precision, 4-bit weights, adapter. Safetensors only, no remote code.

Onto a card by `weight_reader`, elsewhere by transformers' own reading; names, types and places are its affair in both.

Importing it imports transformers: `AudioScorer` does so where `plain_model` cannot hold a checkpoint.
"""

import contextlib
import warnings
from typing import Any, Protocol

import torch
import transformers
from transformers.utils import logging as hf_logging

from evaluators.audio_lm.adapters import attach
from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.identity import check_once, versions
from evaluators.audio_lm.kept_weights import is_whole, keep, kept_folder, open_reader
from evaluators.audio_lm.model_folder import check_weights, read_model
from evaluators.audio_lm.plain_model import PlainModel


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
    checkpoint: Checkpoint,
    family: OfClass,
    device: torch.device,
    dtype: torch.dtype,
    *,
    by_itself: bool = False,
) -> Any:
    """The model with its adapter in place, through the ordinary classes; safetensors only, no remote code.

    Args:
        checkpoint: What to load.
        family: Its kind.
        device: Where to.
        dtype: Of weights that are not 4-bit.
        by_itself: Whether transformers reads the checkpoint's own files, as slowly as it does, and nothing of ours is
            on the way of a weight.

    Raises:
        UserError: As `check_load`, before memory is taken.
    """
    about = ["load", family.model_class, versions("transformers", "peft")]
    check_once(checkpoint.files, about, lambda: check_load(checkpoint, family))
    hf_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    options: dict[str, Any] = {"dtype": dtype}
    if device.type != "mps":
        options["device_map"] = {"": device}  # weights go from the file straight to the card
    kept = None if by_itself else kept_folder(checkpoint, dtype, device)
    folder = kept if kept is not None and is_whole(kept) else checkpoint.base
    if checkpoint.quantization == "nf4" and folder == checkpoint.base:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model_class = getattr(transformers, family.model_class)
    reader = None if by_itself else open_reader(folder, device)
    if reader is None:
        model = read_model(model_class, folder, **options)
    else:
        with contextlib.closing(reader):
            model = read_model(model_class, folder, reader.tensors, **options)
    if device.type == "mps":
        model = model.to(device)
    # The base may have been changed since it got that name.
    if (
        kept is not None
        and folder == checkpoint.base
        and kept == kept_folder(checkpoint, dtype, device)
    ):
        keep(model, kept)
    if checkpoint.adapter is not None:
        model = attach(model, checkpoint.adapter).get_base_model()
    return model.eval().requires_grad_(False)


def stock_model(model: Any) -> Any:
    """A scorer's model as one of transformers', over the same weights: for what needs a forward pass of its own."""
    if not isinstance(model, PlainModel):
        return model
    stock_class: Any = transformers.Qwen2AudioForConditionalGeneration
    with torch.inference_mode(False), torch.device("meta"):
        stock = stock_class(stock_class.config_class.from_dict(model.config.to_dict()))
        stock.requires_grad_(
            False
        )  # first: weights that were made in inference mode must not be asked for it
        stock.load_state_dict(model.state_dict(), assign=True)
    rotary, own = stock.model.language_model.rotary_emb, model.model.language_model.rotary_emb
    rotary.inv_freq = rotary.original_inv_freq = own.inv_freq
    for part in ("text_config", "audio_config"):
        spread = getattr(model.config, part).initializer_range
        getattr(stock.config, part).initializer_range = spread
    return stock.eval()
