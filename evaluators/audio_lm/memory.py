"""What fits into a card's memory: batch shapes, dequantized 4-bit weights, keys and values of how many clips."""

from dataclasses import dataclass
from typing import Any

CARDS_GIB = (8, 12, 24, 80)
CONTEXT_GIB = 0.6  # of CUDA itself
NF4_BYTES = 0.516  # per weight: 4 bits, and the doubly quantized scales
# Shares of the lasting matrix rate that were measured on an H100 (README): bf16 or dequantized, and 4-bit weights.
REACHED = {"bf16": 0.85, "4-bit": 0.6}
SUFFIX_TOKENS = 46
EMBEDDINGS_SHARE = (
    1 / 16
)  # of what is kept: audio embeddings, which are much smaller than keys and values


@dataclass(frozen=True)
class Shape:
    """The fixed shapes that everything is computed in. They are part of a bf16 score's identity."""

    tokens: int  # of a batch of suffixes
    kept: int  # tokens of a batch whose hidden states are read
    prefix: int  # tokens of a batch of audio prefixes

    def halved(self) -> "Shape":
        """The shape that is tried when memory runs out."""
        return Shape(self.tokens // 2, self.kept // 2, max(256, self.prefix // 2))


def shape_for(gib: float | None) -> Shape:
    """The shape for a card of so many GiB, or for a CPU (None): by its size alone, so that kept scores stay valid."""
    if gib is None:
        return Shape(768, 48, 256)  # what fits a CPU's caches, with little to fill up
    if gib > 30:
        return Shape(4096, 192, 1024)
    return Shape(2048, 96, 1024) if gib > 15 else Shape(1024, 64, 512)


def should_dequantize(config: Any, gib: float) -> bool:
    """True if bf16 weights and one batch fit into 75 % of the card's memory."""
    weights = weight_counts(config)
    plain = 2 * (sum(weights) - weights[1]) + batch_bytes(config, shape_for(gib))
    return plain / 2**30 + CONTEXT_GIB < 0.75 * gib


def weight_counts(config: Any) -> tuple[int, int, int, int]:
    """Parameter counts: decoder layers, those of them active per token, embeddings and head, audio tower."""
    text, audio = config.text_config, config.audio_config
    kv = _kv_width(text)
    attention = (
        2 * text.hidden_size * (kv + kv * text.num_attention_heads // text.num_key_value_heads)
    )
    width, experts, met = text.intermediate_size, 1, 1
    if getattr(text, "num_experts", 0):
        width, experts, met = text.moe_intermediate_size, text.num_experts, text.num_experts_per_tok
    expert = 3 * text.hidden_size * width
    tower = audio.encoder_layers * (
        4 * audio.d_model**2 + 2 * audio.d_model * audio.encoder_ffn_dim
    )
    layers = text.num_hidden_layers
    return (
        layers * (attention + experts * expert),
        layers * (attention + met * expert),
        2 * text.vocab_size * text.hidden_size,
        tower,
    )


def batch_bytes(config: Any, shape: Shape) -> float:
    """Memory of a batch of prompts between the layers and at the head."""
    text = config.text_config
    wide = max(2 * text.intermediate_size, text.hidden_size + 2 * _kv_width(text))
    return (
        shape.tokens * (3 * text.hidden_size + 1.5 * wide) * 2
        + shape.kept * text.vocab_size * 10  # logits in bf16 and float32, and their logarithms
    )


def _kv_width(text: Any) -> int:
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(text.num_key_value_heads * head)


def _clip_tokens(config: Any) -> int:
    """Audio tokens of a clip of 500 ms: 12 of Qwen2-Audio, 375 of Voxtral, which hears whole windows."""
    from evaluators.audio_lm.families import (
        FAMILIES,
    )  # here: it needs the decoder, which needs this

    family = FAMILIES.get(config.model_type)
    return 12 if family is None else family.tokens(config, 50)


def cache_bytes(total: float, free: float) -> float:
    """Bytes that embeddings, keys and values may take on a card."""
    return min(0.3 * total, 0.5 * max(free, 0.0))


@dataclass(frozen=True)
class MemoryPlan:
    """How a checkpoint and its batches fit into a card's memory; sizes in GiB."""

    card: float
    weights: str
    weights_gib: float
    batch_gib: float
    cache_gib: float
    clips: int  # of 500 ms whose keys and values are kept at once
    shape: Shape
    evals_per_100_tflops: float  # evals a second for each 100 TFLOP/s of lasting matrix rate

    @property
    def fits(self) -> bool:
        """Whether it can run at all."""
        return self.clips > 0

    def line(self) -> str:
        """The plan as a line of text."""
        if not self.fits:
            return f"{self.card:.0f} GB  does not fit: weights ({self.weights}) take {self.weights_gib:.1f} GiB"
        return (
            f"{self.card:.0f} GB  weights {self.weights} {self.weights_gib:.1f} GiB, batch of"
            f" {self.shape.tokens} tokens {self.batch_gib:.1f}, keys and values {self.cache_gib:.1f}"
            f" ({self.clips:,} clips of 500 ms kept, others computed anew),"
            f" {self.evals_per_100_tflops:.0f} evals/s for each 100 TFLOP/s"
        )


def plan_memory(config: Any, quantization: str, gib: float) -> MemoryPlan:
    """The plan for a card of `gib` GiB.

    Args:
        config: A configuration as `evaluators.audio_lm.families.audio_config` gives it.
        quantization: ``none`` or ``nf4``.
        gib: Memory of the card.
    """
    text = config.text_config
    products, met, plain, tower = weight_counts(config)
    packed = quantization != "none"
    once = packed and should_dequantize(config, gib)  # dequantized once, not for every batch
    weights = plain * 2 + (products + tower) * (2 if once or not packed else NF4_BYTES)
    shape = shape_for(gib)
    batch = batch_bytes(config, shape)
    if packed and not once:
        batch += (
            2 * text.hidden_size * text.intermediate_size * 2
        )  # one product's weights, dequantized
    total = gib * 2**30
    free = total - CONTEXT_GIB * 2**30 - weights - batch
    cache = cache_bytes(total, free)
    place = 2 * text.num_hidden_layers * _kv_width(text) * 2
    share = REACHED["4-bit" if packed and not once else "bf16"]
    return MemoryPlan(
        gib,
        "bf16" if not packed else "nf4, expanded to bf16" if once else "nf4",
        weights / 2**30,
        batch / 2**30,
        cache / 2**30,
        max(0, int((1 - EMBEDDINGS_SHARE) * cache / place / _clip_tokens(config))),
        shape,
        share * 100e12 / (2 * met * SUFFIX_TOKENS),
    )


def can_share(config: Any, quantization: str, gib: float, own_gib: float) -> bool:
    """True if the base, the matrices that an adapter has for itself, and one batch fit into 75 % of the card's memory.

    Args:
        config: As for `plan_memory`.
        quantization: ``none`` or ``nf4``.
        gib: Memory of the card.
        own_gib: Memory of those matrices.
    """
    plan = plan_memory(config, quantization, gib)
    return plan.weights_gib + own_gib + plan.batch_gib + CONTEXT_GIB < 0.75 * gib


def memory_lines(config: Any, quantization: str, gib: float | None, shape: Shape) -> list[str]:
    """What fits the card at hand, in words; without one, for large checkpoints, what would fit which card.

    Args:
        config: As for `plan_memory`.
        quantization: ``none`` or ``nf4``.
        gib: Memory of the card; None for a CPU.
        shape: Sizes of the batches on the CPU.
    """
    if gib is not None:
        return [plan_memory(config, quantization, gib).line()]
    plans = [plan_memory(config, quantization, card) for card in CARDS_GIB]
    if plans[0].weights_gib < 1:
        return [f"{shape.tokens} tokens a batch on the CPU"]
    return ["on the CPU here; on a card of", *(p.line() for p in plans)]
