"""Qwen2-Audio's weights in a tree of torch's own modules, for scoring without transformers, whose import takes seconds.

The packed step and the packed tower call single layers. So a model need only hold them under transformers' names: the
tree has no forward pass of its own. A checkpoint is held here where every tensor has its place and no place is empty,
its configuration is known (`plain_config`), its adapter is plain LoRA (`plain_lora`) and no layer stays 4-bit. All
others are transformers' affair, and so is the sentence that says what is wrong with one. Scores are the same bits
either way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.kept_weights import expanded, is_whole, kept_folder, stored_tensors
from evaluators.audio_lm.model_folder import shards, tensor_shapes
from evaluators.audio_lm.plain_config import PlainConfig, plain_config
from evaluators.audio_lm.plain_lora import merge_plain, plain_lora

# (In a file, in the tree): where the parts lie in files, as transformers 4 and 5 write them.
PARTS = (
    ("language_model.model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("audio_tower.", "model.audio_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich 2019), in float32, as Qwen2 rounds it."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device="meta"), requires_grad=False)
        self.variance_epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """``[..., channel]``, each row over its root mean square, times the weight."""
        wide = x.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (wide * scale).to(x.dtype)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021)."""

    def __init__(self, dim: int, base: float) -> None:
        super().__init__()
        # On the processor, as transformers has it: powers of a card may be other bits.
        places = torch.arange(0, dim, 2, dtype=torch.float, device="cpu")
        self.register_buffer("inv_freq", 1.0 / (base ** (places / dim)), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[row, token, dim]`` of positions ``[row, token]``, in the precision of `x`."""
        angles = positions[..., None].float() * self.inv_freq  # type: ignore[operator]
        both = torch.cat([angles, angles], dim=-1)
        return both.cos().to(x.dtype), both.sin().to(x.dtype)


class Projector(nn.Module):
    """From the audio tower's channels to the language model's."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = _linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., channel]`` of the language model."""
        return self.linear(x)


class Gelu(nn.Module):
    """Gaussian error linear unit, exact."""

    def forward(self, x: Tensor) -> Tensor:
        """Of each number."""
        return F.gelu(x)


def _bare(kind: type[nn.Module], shape: Sequence[int], bias: bool, **about: Any) -> Any:
    """A layer of torch's own without memory and without first weights, drawing which imports the compiler of torch.

    Args:
        kind: Its class.
        shape: Of its weight; the first number is the bias' length.
        bias: Whether it has one.
        about: What else its class keeps as attributes.
    """
    layer: Any = kind.__new__(kind)
    nn.Module.__init__(layer)
    layer.weight = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
    layer.bias = None
    if bias:
        layer.bias = nn.Parameter(torch.empty(shape[:1], device="meta"), requires_grad=False)
    for name, value in about.items():
        setattr(layer, name, value)
    return layer


def _linear(width: int, out: int, bias: bool = True) -> Any:
    return _bare(nn.Linear, (out, width), bias, in_features=width, out_features=out)


def _layer_norm(width: int) -> Any:
    about = {"normalized_shape": (width,), "eps": 1e-5, "elementwise_affine": True}
    return _bare(nn.LayerNorm, (width,), True, **about)


def _embedding(count: int, width: int) -> Any:
    about = {"num_embeddings": count, "embedding_dim": width, "padding_idx": None, "max_norm": None}
    more = {"norm_type": 2.0, "scale_grad_by_freq": False, "sparse": False}
    return _bare(nn.Embedding, (count, width), False, **about, **more)


def _convolution(width: int, out: int) -> Any:
    """Three places wide; the packed tower takes its weights alone."""
    return _bare(nn.Conv1d, (out, width, 3), True)


def _tree(**parts: Any) -> nn.Module:
    """A module of these parts; those that are no modules are plain attributes."""
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def _tower(config: PlainConfig) -> nn.Module:
    """The audio tower."""
    width, wide, heads = config.d_model, config.encoder_ffn_dim, config.encoder_attention_heads

    def layer() -> nn.Module:
        attention = _tree(
            k_proj=_linear(width, width, bias=False),
            v_proj=_linear(width, width),
            q_proj=_linear(width, width),
            out_proj=_linear(width, width),
            num_heads=heads,
            head_dim=width // heads,
        )
        return _tree(
            self_attn=attention,
            self_attn_layer_norm=_layer_norm(width),
            activation_fn=Gelu(),
            fc1=_linear(width, wide),
            fc2=_linear(wide, width),
            final_layer_norm=_layer_norm(width),
        )

    return _tree(
        config=config,
        conv1=_convolution(config.num_mel_bins, width),
        conv2=_convolution(width, width),
        embed_positions=_embedding(config.max_source_positions, width),
        layers=nn.ModuleList([layer() for _ in range(config.encoder_layers)]),
        layer_norm=_layer_norm(width),
    )


def _language_model(config: PlainConfig) -> nn.Module:
    """The language model without its head."""
    width, wide = config.hidden_size, config.intermediate_size
    dim = width // config.num_attention_heads
    queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim

    def layer() -> nn.Module:
        attention = _tree(
            q_proj=_linear(width, queries),
            k_proj=_linear(width, keys),
            v_proj=_linear(width, keys),
            o_proj=_linear(queries, width, bias=False),
        )
        mlp = _tree(
            gate_proj=_linear(width, wide, bias=False),
            up_proj=_linear(width, wide, bias=False),
            down_proj=_linear(wide, width, bias=False),
        )
        return _tree(
            self_attn=attention,
            mlp=mlp,
            input_layernorm=RMSNorm(width, config.rms_norm_eps),
            post_attention_layernorm=RMSNorm(width, config.rms_norm_eps),
        )

    return _tree(
        config=config,
        embed_tokens=_embedding(config.vocab_size, width),
        layers=nn.ModuleList([layer() for _ in range(config.num_hidden_layers)]),
        norm=RMSNorm(width, config.rms_norm_eps),
        rotary_emb=Rotary(dim, config.rope_parameters["rope_theta"]),
    )


class PlainModel(nn.Module):
    """A Qwen2-Audio model as a container of weights, under the names of `Qwen2AudioForConditionalGeneration`.

    Made on the meta device: its weights are put in place by `load_plain`.

    Attributes:
        config: Its configuration.
    """

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text_config
        self.model: Any = _tree(
            audio_tower=_tower(config.audio_config),
            multi_modal_projector=Projector(config.audio_config.d_model, text.hidden_size),
            language_model=_language_model(text),
        )
        self.lm_head = _linear(text.hidden_size, text.vocab_size, bias=False)


def _name(stored: str) -> str:
    """A tensor's name in the tree, of its name in a file."""
    for old, new in PARTS:
        if stored.startswith(old):
            return new + stored.removeprefix(old)
    return stored


def fitting_model(checkpoint: Checkpoint) -> PlainModel | None:
    """The tree on the meta device, if all of the checkpoint has its place in it. Reads headers alone.

    Raises:
        UserError: A file is torn.
    """
    config = plain_config(checkpoint.base)
    if config is None:
        return None
    model = PlainModel(config)
    who = f"checkpoint {checkpoint.name!r}"
    shapes = [
        (_name(name), shape)
        for path, _ in shards(checkpoint.base, who)
        for name, shape in tensor_shapes(path).items()
    ]
    places = {name: list(weight.shape) for name, weight in model.named_parameters()}
    if len(shapes) != len(places) or dict(shapes) != places:
        return None
    if checkpoint.adapter is not None and plain_lora(checkpoint.adapter, model) is None:
        return None
    return model


def load_plain(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, dequantize: bool
) -> Any:
    """The model with its adapter merged into it; None where transformers has to load it.

    Args:
        checkpoint: What to load.
        device: Where to.
        dtype: Precision of the weights.
        dequantize: Whether 4-bit weights become the numbers that they stand for. They must have been kept by an earlier
            load: their library, which makes them, takes longer to import than transformers.

    Raises:
        UserError: A file is torn.
    """
    folder: Path | None = checkpoint.base
    if checkpoint.quantization != "none":
        folder = kept_folder(checkpoint, dtype, device) if dequantize else None
    if folder is None or (folder != checkpoint.base and not is_whole(folder)):
        return None
    model = fitting_model(checkpoint)
    if model is None:
        return None
    for stored, tensor in expanded(stored_tensors(folder, device), dtype):
        module, _, weight = _name(stored).rpartition(".")
        values = tensor.to(device=device, dtype=dtype)
        setattr(model.get_submodule(module), weight, nn.Parameter(values, requires_grad=False))
    rotary = model.model.language_model.rotary_emb
    rotary.inv_freq = rotary.inv_freq.to(device)
    if checkpoint.adapter is not None:
        merge_plain(model, checkpoint.adapter, dtype)
    return model.eval().requires_grad_(False)
