"""The language model with LoRA on packed tokens: the layers' gradients written out, few kernels, few kept tensors.

Tokens of all samples lie one after another in a line, without padding. What all begin with (the system message) stands
in it once: no token before the audio depends on what follows. The residual stream is float32, which costs little and
takes away some of the rounding of bfloat16. Between the products of a layer stand kernels of one pass each; what they
need again in the backward pass is mostly computed again. The last layer goes on with the supervised places alone.
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evaluators.audio_lm.attention import Heads
from evaluators.finetuning.line import Line, attend
from evaluators.finetuning.products import (
    Given,
    Product,
    is_plain_lora,
    load_ops,
    only_lora_is_trained,
)
from evaluators.finetuning.stack import Stack, Step, new_seed


class _Kept(NamedTuple):
    """What the backward pass of a layer needs."""

    x: Tensor  # [token, channel] float32
    h_1: Tensor  # normalized
    low: tuple[list[Tensor], ...]  # of the adapters of each product
    turned: Tensor  # queries, keys and values, with the graph of the attention after them
    attended: Tensor
    out: Tensor  # the same of the places that are kept
    mid: Tensor  # [kept, channel] float32, after attention
    both: Tensor  # gate and up


class Layer:
    """One decoder layer.

    Args:
        layer: Of transformers, with peft's layers in it.
        heads: Its attention heads.
        number: Of the layer.
        is_last: Whether it goes on with the kept tokens alone.
        ops: `elementwise`, or its kernels.
    """

    def __init__(
        self, layer: Any, heads: Heads, number: int, is_last: bool, ops: ModuleType
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.number, self.is_last, self.ops = heads, number, is_last, ops
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = Product([attention.o_proj])
        self.gate_up = Product([mlp.gate_proj, mlp.up_proj])
        self.down = Product([mlp.down_proj])
        self.norm_1, self.norm_2 = layer.input_layernorm, layer.post_attention_layernorm

    @property
    def products(self) -> list[Product]:
        """All of them."""
        return [self.qkv, self.out, self.gate_up, self.down]

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, _Kept]:
        """(The residual stream after the layer, of the last one ``[kept, channel]``; what `backward` needs)."""
        assert step.cos is not None and step.sin is not None
        keep = step.keep if self.is_last else None
        ops, drop, beside = self.ops, *step.of_layer(self.number, self.ops)
        _, h_1 = ops.stream_norm(x, None, self.norm_1.weight, self.norm_1.variance_epsilon)
        turned, low_1 = self.qkv.forward(h_1, beside[0], drop[0])
        turning = self.heads.queries + self.heads.keys, self.heads.dim
        ops.rotate(turned, step.cos, step.sin, *turning)
        with torch.enable_grad():  # for `backward`
            turned = turned.requires_grad_(torch.is_grad_enabled())
            attended = attend(turned, step, self.heads)
        out = attended.detach() if keep is None else attended.detach()[keep]
        more, low_2 = self.out.forward(out, beside[1], drop[1])
        before = x if keep is None else x[keep]
        mid, h_2 = ops.stream_norm(before, more, self.norm_2.weight, self.norm_2.variance_epsilon)
        both, low_3 = self.gate_up.forward(h_2, beside[2], drop[2])
        more, low_4 = self.down.forward(ops.gate_up(both), beside[3], drop[3])
        low = low_1, low_2, low_3, low_4
        return mid + more, _Kept(x, h_1, low, turned, attended, out, mid, both)

    def backward(self, grad: Tensor, kept: _Kept, step: Step) -> tuple[Tensor, list[Tensor]]:
        """(Gradient by the layer's input, those by the `adapters`), from that by its result."""
        ops, drop, beside = self.ops, *step.of_layer(self.number, self.ops)
        assert step.cos is not None and step.sin is not None
        kind, keep = kept.h_1.dtype, step.keep if self.is_last else None
        stream = grad.float().clone(memory_format=torch.contiguous_format)
        x_4 = ops.gate_up(kept.both) if self.down.parts else None
        by_gate, lora_4 = self.down.backward(
            stream.to(kind), Given(x_4, kept.low[3]), beside[3], drop[3]
        )
        by_both = ops.gate_up_backward(by_gate, kept.both)
        norm = self.norm_2.weight, self.norm_2.variance_epsilon
        x_3 = ops.stream_norm(kept.mid, None, *norm)[1] if self.gate_up.parts else None
        by_h, lora_3 = self.gate_up.backward(by_both, Given(x_3, kept.low[2]), beside[2], drop[2])
        ops.stream_norm_backward(by_h, kept.mid, *norm, stream)
        by_out, lora_2 = self.out.backward(
            stream.to(kind), Given(kept.out, kept.low[1]), beside[1], drop[1]
        )
        if keep is not None:
            by_out = _spread(by_out, keep, len(kept.x))
            stream = _spread(stream, keep, len(kept.x))
        (by_qkv,) = torch.autograd.grad(kept.attended, kept.turned, by_out)
        turning = self.heads.queries + self.heads.keys, self.heads.dim
        ops.rotate(by_qkv, step.cos, -step.sin, *turning)
        by_h, lora_1 = self.qkv.backward(by_qkv, Given(kept.h_1, kept.low[0]), beside[0], drop[0])
        ops.stream_norm_backward(
            by_h, kept.x, self.norm_1.weight, self.norm_1.variance_epsilon, stream
        )
        return stream, [*lora_1, *lora_2, *lora_3, *lora_4]


def _spread(x: Tensor, places: Tensor, size: int) -> Tensor:
    """``[size, channel]`` with `x` at the places, and zeros."""
    out = x.new_zeros(size, x.shape[1])
    out[places] = x
    return out


class _Logits(torch.autograd.Function):
    """``hidden @ head.T`` in float32: bfloat16 would round a logit of 20 by as much as 0.06 nats."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor) -> Tensor:
        ctx.head = head
        if hidden.is_cuda and hidden.dtype != torch.float32:
            return torch.mm(hidden, head.T, out_dtype=torch.float32)
        return hidden.float() @ head.T.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.head.dtype) @ ctx.head, None


class PackedDecoder:
    """The language model of a family, with LoRA.

    Args:
        model: Of transformers, with peft's layers in it, on its device.
        share: Of the adapters' inputs that dropout leaves out in training.
        max_graphs: See `Stack`.
    """

    def __init__(self, model: Any, share: float, max_graphs: int) -> None:
        self.lm, self.head = model.model.language_model, model.lm_head.weight.data
        self.share, config = share, model.config.text_config
        count, ops = config.num_attention_heads, load_ops(self.head.device)
        dim = getattr(config, "head_dim", None) or config.hidden_size // count
        heads, last = Heads(count, config.num_key_value_heads, dim), len(self.lm.layers) - 1
        layers = [Layer(one, heads, i, i == last, ops) for i, one in enumerate(self.lm.layers)]
        self.stack = Stack(layers, self.head.dtype, max_graphs)

    def __call__(self, x: Tensor, line: Line, keep: Tensor) -> Tensor:
        """Logits ``[kept, vocabulary]`` in float32.

        Args:
            x: ``[token, channel]`` embeddings of the line's tokens, in the weights' precision.
            line: The tokens.
            keep: Those whose logits are asked for, each once.
        """
        lm, rows = self.lm, line.position[None]
        if hasattr(lm.rotary_emb, "mrope_section"):  # time, height, width: equal without pictures
            rows = rows.expand(3, 1, -1)
        cos, sin = (part[0].contiguous() for part in lm.rotary_emb(x[None], rows))
        share = self.share if lm.training else 0.0
        again = lm.training and getattr(lm, "gradient_checkpointing", False)
        step = Step(
            line.index, line.first, line.shared, new_seed(share, x.device), share, again,
            cos=cos, sin=sin, keep=keep,
        )  # fmt: skip
        x = self.stack(x.float(), step)
        unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + lm.norm.variance_epsilon)
        logits: Tensor = _Logits.apply((unit * lm.norm.weight).to(self.head.dtype), self.head)
        return logits


def is_packable(model: Any) -> bool:
    """Whether a language model is one that `PackedDecoder` computes.

    It is dense, of Qwen2's or Llama's kind, has plain LoRA or none at each layer, and no dropout of its own.
    """
    config, lm, head = model.config.text_config, model.model.language_model, model.lm_head
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if config.hidden_act != "silu" or rope in ("dynamic", "longrope"):
        return False
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return False
    if getattr(config, "attention_dropout", 0.0):
        return False
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    trained = lm.layers, lm.norm, head
    return all(map(only_lora_is_trained, trained)) and all(map(_is_plain, lm.layers))


def _is_plain(layer: Any) -> bool:
    """Whether a layer normalizes no heads and has no experts, and its products are plain."""
    attention, mlp = layer.self_attn, layer.mlp
    if hasattr(attention, "q_norm") or not hasattr(mlp, "gate_proj"):
        return False
    products = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return all(map(is_plain_lora, [*products, mlp.gate_proj, mlp.up_proj, mlp.down_proj]))
