"""Which way of training is fastest and fits into memory: samples at once, 4-bit weights, gradient checkpointing."""

import itertools
from dataclasses import dataclass
from typing import Any

from evaluators.audio_lm.memory import CONTEXT_GIB, NF4_BYTES, weight_counts

SHARE = 0.9  # of a card's memory that the estimated peak may take
LORA_SHARE = 0.003  # LoRA weights per adapted weight, rank 16
ADAPTER_BYTES = 16  # weight, gradient and two moments in float32
PASSES, PASSES_RECOMPUTED = 3, 4  # forward and backward through the layers; with checkpointing
NF4_SLOWDOWN = 1.3  # of products that expand 4-bit weights each time


@dataclass(frozen=True)
class RowLength:
    """Tokens of the longest row, how many of them are audio, and about how many positions of the tower one takes."""

    tokens: int
    audio: int
    positions: int = 2


@dataclass(frozen=True)
class TrainingPlan:
    """How a LoRA training lies in memory."""

    expand: bool  # expand 4-bit weights once, instead of in every product
    micro_batch_size: int  # samples at once; gradients are summed up to a whole batch
    checkpointing: bool  # compute activations again in the backward pass
    gib: float  # estimated peak
    room: float | None  # memory of the card in GiB; None on a CPU
    row: RowLength = RowLength(0, 0)  # what the estimate is for

    def line(self) -> str:
        """The plan as a line of text."""
        return (
            f"about {self.gib:.1f} GiB"
            + (f" of {self.room:.1f}" if self.room is not None else "")
            + f": {self.micro_batch_size} samples at once"
            + (", 4-bit weights expanded" if self.expand else "")
            + (", gradient checkpointing" if self.checkpointing else "")
        )


def plan_training(
    config: Any,
    row: RowLength,
    gib: float | None,
    *,
    batch: int,
    quantization: str = "none",
    loss: str = "answer",
    micro_batch_size: int | None = None,
) -> TrainingPlan | None:
    """The fastest way to train that fits, or None if none does.

    Args:
        config: As `evaluators.audio_lm.families.audio_config` gives it.
        row: Length of the longest row.
        gib: Memory of the card; None for a CPU, where everything fits.
        batch: Samples of an optimizer step on this device.
        quantization: ``none`` or ``nf4``.
        loss: ``full`` keeps logits at every token.
        micro_batch_size: Samples at once, if that is decided already.
    """
    packed = quantization != "none"
    divisors = [n for n in range(batch, 0, -1) if batch % n == 0]
    sizes = [micro_batch_size] if micro_batch_size else divisors
    fitting = []
    for checkpointing, expand, size in itertools.product(
        (False, True), (True, False) if packed else (False,), sizes
    ):
        bits = NF4_BYTES if packed and not expand else 2
        needed = weight_bytes(config, bits)
        needed += size * sample_bytes(config, row, checkpointing, loss)
        if packed:  # one product's weights, expanded
            needed += 2 * config.text_config.hidden_size * config.text_config.intermediate_size
        total = needed / 2**30 + CONTEXT_GIB
        if gib is None or total < SHARE * gib:
            # Short rows cost the host's launches, not the card's products: passes through the layers count.
            passes = batch / size * (PASSES_RECOMPUTED if checkpointing else PASSES)
            time = passes * (NF4_SLOWDOWN if packed and not expand else 1.0)
            plan = TrainingPlan(expand, size, checkpointing, total, gib, row)
            fitting.append((time, total, plan))
    return min(fitting, key=lambda f: f[:2])[2] if fitting else None


def plan_generic(config: Any, weights: int, tokens: int, gib: float | None) -> TrainingPlan | None:
    """How to train a model that has no packed path, one sample at a time; None if it does not fit.

    What one layer keeps is estimated as for the packed families, by the sizes of the language model; of the audio tower
    only the weights are counted.

    Args:
        config: The whole model's, as transformers has it.
        weights: Of the whole model.
        tokens: Of the longest row.
        gib: Memory of the card; None for a CPU, where everything fits.
    """
    text = config.get_text_config()
    layer = 40 * text.hidden_size + 6 * text.intermediate_size
    fixed = weights * (2 + ADAPTER_BYTES * LORA_SHARE)
    fixed += tokens * layer + 2 * text.vocab_size * 12
    for checkpointing in (False, True):
        kept = tokens * text.num_hidden_layers * (2 * text.hidden_size if checkpointing else layer)
        total = (fixed + kept) / 2**30 + CONTEXT_GIB
        if gib is None or total < SHARE * gib:
            return TrainingPlan(False, 1, checkpointing, total, gib, RowLength(tokens, 0))
    return None


def weight_bytes(config: Any, bytes_per_weight: float) -> float:
    """Bytes of base weights and adapter; embeddings and head stay in 16 bits."""
    layers, _, embeddings, tower = weight_counts(config)
    adapter = ADAPTER_BYTES * LORA_SHARE * (layers + tower)
    return embeddings * 2 + (layers + tower) * bytes_per_weight + adapter


def sample_bytes(config: Any, row: RowLength, checkpointing: bool, loss: str) -> float:
    """Bytes that one sample keeps for its backward pass, with the work space of one layer and the logits."""
    text, sound = config.text_config, config.audio_config
    # Per token and layer, as measured with stock layers and LoRA.
    layer = 40 * text.hidden_size + 6 * text.intermediate_size
    tower_layer = row.positions * (40 * sound.d_model + 6 * sound.encoder_ffn_dim)
    kept = row.tokens * text.num_hidden_layers * (2 * text.hidden_size if checkpointing else layer)
    kept += (
        row.audio
        * sound.encoder_layers
        * (2 * row.positions * sound.d_model if checkpointing else tower_layer)
    )
    work = row.tokens * layer + row.audio * tower_layer
    logits = (row.tokens if loss == "full" else 2) * text.vocab_size * 12
    return float(kept + work + logits)
