"""The language model with LoRA on packed tokens: the layers' gradients written out, few kernels, few kept tensors.

Tokens of all samples lie one after another in a line, without padding. What all begin with (the system message) stands
in it once: no token before the audio depends on what follows. The residual stream is float32, which costs little and
takes away most of the rounding of bfloat16. Between the products of a layer stand kernels of one pass each; what they
need again in the backward pass is mostly computed again. The last layer goes on with the supervised places alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.audio_lm.attention import Heads
from evaluators.finetuning.products import (
    PRODUCTS,
    Beside,
    Dropping,
    Given,
    Product,
    cast_adapters,
    is_plain_lora,
    load_ops,
    new_dropping,
    only_lora_is_trained,
)


@dataclass(frozen=True, eq=False)
class Line:
    """Rows of tokens in one line: what all rows begin with, then the rest of each. Made by `in_line`."""

    ids: Tensor  # [token]
    position: Tensor  # [token] in its row
    index: Tensor  # [row, width] where each place of a row stands in the line; padding: at the first token
    first: (
        Tensor  # [token] its place in [row * width], that of the first row where several share it
    )
    shared: int  # tokens that all rows share


def in_line(rows: Sequence[Sequence[int]], most: int) -> Line:
    """The line of rows of token ids, of which up to the first `most` are shared where they are equal."""
    shared = 0
    least = min(most, *map(len, rows)) if len(rows) > 1 else 0
    while shared < least and len({row[shared] for row in rows}) == 1:
        shared += 1
    width = max(map(len, rows))
    index = np.zeros((len(rows), width), dtype=np.int64)
    index[:, :shared] = np.arange(shared)
    parts, end = [np.arange(shared)], shared
    for r, row in enumerate(rows):
        own = np.arange(end, end + len(row) - shared)
        index[r, shared : len(row)] = own
        parts.append(r * width + np.arange(shared, len(row)))
        end += len(own)
    first = np.concatenate(parts)
    ids = [*rows[0][:shared], *(token for row in rows for token in row[shared:])]
    return Line(
        torch.tensor(ids),
        torch.from_numpy(first % width),
        torch.from_numpy(index),
        torch.from_numpy(first),
        shared,
    )


class _Rows(torch.autograd.Function):
    """``[token, channel]`` of a line -> ``[row, width, channel]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, line: Line) -> Tensor:
        ctx.line = line
        return x[line.index]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), line = grads, ctx.line
        out = grad.flatten(0, 1)[line.first]
        if line.shared:
            out[: line.shared] = grad[:, : line.shared].float().sum(0)
        return out, None


class _InLine(torch.autograd.Function):
    """``[row, width, channel]`` -> ``[token, channel]`` of a line: what rows share is taken from the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, line: Line) -> Tensor:
        ctx.line, ctx.shape = line, x.shape
        return x.flatten(0, 1)[line.first]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        out = grad.new_zeros(ctx.shape[0] * ctx.shape[1], ctx.shape[2])
        out[ctx.line.first] = grad
        return out.view(ctx.shape), None


def attend(qkv: Tensor, line: Line, heads: Heads, seen: Tensor | None = None) -> Tensor:
    """Attention of each row of a line: ``[token, channel]`` of ``[token, queries, keys and values]``.

    Args:
        seen: ``[row, 1, 1, width]``, which places all of a row's tokens see; None: a token sees those up to its own.
    """
    rows = _Rows.apply(qkv, line)
    widths = [heads.query_width, heads.key_width, heads.key_width]
    q, k, v = (x.unflatten(2, (-1, heads.dim)).transpose(1, 2) for x in rows.split(widths, 2))
    out = F.scaled_dot_product_attention(
        q, k, v, seen, is_causal=seen is None, enable_gqa=heads.queries != heads.keys
    )
    line_out: Tensor = _InLine.apply(out.transpose(1, 2).flatten(2), line)
    return line_out


@dataclass(frozen=True)
class Step:
    """What all layers share in a step.

    Attributes:
        line: The tokens.
        cos, sin: ``[token, channel of a head]`` of their positions.
        beside: The adapters of each product, layer by layer.
        dropping: Of the first product of the first layer.
        again: Keep only the input of each layer, and compute it again in the backward pass.
    """

    line: Line
    cos: Tensor
    sin: Tensor
    beside: list[Beside | None]
    dropping: Dropping
    again: bool


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
        ops: `elementwise`, or its kernels.
    """

    def __init__(self, layer: Any, heads: Heads, number: int, ops: ModuleType) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.heads, self.number, self.ops = heads, number, ops
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = Product([attention.o_proj])
        self.gate_up = Product([mlp.gate_proj, mlp.up_proj])
        self.down = Product([mlp.down_proj])
        self.norm_1, self.norm_2 = layer.input_layernorm, layer.post_attention_layernorm

    @property
    def products(self) -> list[Product]:
        """All of them."""
        return [self.qkv, self.out, self.gate_up, self.down]

    @property
    def adapters(self) -> list[Tensor]:
        """All trained weights, product by product."""
        return [weight for product in self.products for weight in product.adapters]

    def forward(self, x: Tensor, step: Step, keep: Tensor | None) -> tuple[Tensor, _Kept]:
        """(The residual stream after the layer ``[kept, channel]``, what `backward` needs)."""
        ops, drop, beside = self.ops, step.dropping.of_layer(self.number), self._beside(step)
        _, h_1 = ops.add_norm(x, None, self.norm_1.weight, self.norm_1.variance_epsilon)
        turned, low_1 = self.qkv.forward(h_1, beside[0], drop[0])
        turning = self.heads.queries + self.heads.keys, self.heads.dim
        ops.rotate(turned, step.cos, step.sin, *turning)
        with torch.enable_grad():  # for `backward`
            turned = turned.requires_grad_(torch.is_grad_enabled())
            attended = attend(turned, step.line, self.heads)
        out = attended.detach() if keep is None else attended.detach()[keep]
        more, low_2 = self.out.forward(out, beside[1], drop[1])
        before = x if keep is None else x[keep]
        mid, h_2 = ops.add_norm(before, more, self.norm_2.weight, self.norm_2.variance_epsilon)
        both, low_3 = self.gate_up.forward(h_2, beside[2], drop[2])
        more, low_4 = self.down.forward(ops.gate_up(both), beside[3], drop[3])
        low = low_1, low_2, low_3, low_4
        return mid + more, _Kept(x, h_1, low, turned, attended, out, mid, both)

    def backward(
        self, grad: Tensor, kept: _Kept, step: Step, keep: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """(Gradient by the layer's input, those by the `adapters`), from that by its result."""
        ops, drop, beside = self.ops, step.dropping.of_layer(self.number), self._beside(step)
        kind = kept.h_1.dtype
        stream = grad.float().clone(memory_format=torch.contiguous_format)
        x_4 = ops.gate_up(kept.both) if self.down.parts else None
        by_gate, lora_4 = self.down.backward(
            stream.to(kind), Given(x_4, kept.low[3]), beside[3], drop[3]
        )
        by_both = ops.gate_up_backward(by_gate, kept.both)
        norm = self.norm_2.weight, self.norm_2.variance_epsilon
        x_3 = ops.add_norm(kept.mid, None, *norm)[1] if self.gate_up.parts else None
        by_h, lora_3 = self.gate_up.backward(by_both, Given(x_3, kept.low[2]), beside[2], drop[2])
        ops.norm_backward(by_h, kept.mid, *norm, stream)
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
        ops.norm_backward(by_h, kept.x, self.norm_1.weight, self.norm_1.variance_epsilon, stream)
        return stream, [*lora_1, *lora_2, *lora_3, *lora_4]

    def _beside(self, step: Step) -> list[Beside | None]:
        """The adapters of each product."""
        return step.beside[self.number * PRODUCTS : (self.number + 1) * PRODUCTS]


def _spread(x: Tensor, places: Tensor, size: int) -> Tensor:
    """``[size, channel]`` with `x` at the places, and zeros."""
    out = x.new_zeros(size, x.shape[1])
    out[places] = x
    return out


class _Apply(torch.autograd.Function):
    """A layer. Its adapters are arguments, so that autograd gives them their gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: Layer, step: Step, keep: Tensor | None, *adapters: Tensor
    ) -> Tensor:
        out, kept = layer.forward(x, step, keep)
        ctx.layer, ctx.step, ctx.keep = layer, step, keep
        ctx.kept = kept.x.to(kept.h_1.dtype) if step.again else kept
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layer, step, keep, kept = ctx.layer, ctx.step, ctx.keep, ctx.kept
        ctx.kept = None
        if step.again:
            _, kept = layer.forward(kept.float(), step, keep)
        by_x, adapters = layer.backward(grads[0], kept, step, keep)
        return by_x, None, None, None, *adapters


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
        share: Of the adapters' inputs that dropout takes away in training.
    """

    def __init__(self, model: Any, share: float) -> None:
        self.lm = model.model.language_model
        config = model.config.text_config
        count = config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // count
        heads = Heads(count, config.num_key_value_heads, dim)
        self.head = model.lm_head.weight.data
        self.share, self.ops = share, load_ops(self.lm.embed_tokens.weight.device)
        self.layers = [Layer(one, heads, i, self.ops) for i, one in enumerate(self.lm.layers)]

    def __call__(self, x: Tensor, line: Line, keep: Tensor) -> Tensor:
        """Logits ``[kept, vocabulary]`` in float32.

        Args:
            x: ``[token, channel]`` embeddings of the line's tokens, in the weights' precision.
            line: The tokens.
            keep: Those whose logits are asked for, each once.
        """
        rows = line.position[None]
        if hasattr(
            self.lm.rotary_emb, "mrope_section"
        ):  # time, height and width: equal without pictures
            rows = rows.expand(3, 1, -1)
        cos, sin = (part[0].contiguous() for part in self.lm.rotary_emb(x[None], rows))
        dropping = new_dropping(self.share if self.lm.training else 0.0, self.ops)
        again = self.lm.training and getattr(self.lm, "gradient_checkpointing", False)
        products = [product for layer in self.layers for product in layer.products]
        step = Step(line, cos, sin, cast_adapters(products, x.dtype), dropping, again)
        x = x.float()
        for layer in self.layers:
            last = keep if layer is self.layers[-1] else None
            if torch.is_grad_enabled():
                x = _Apply.apply(x, layer, step, last, *layer.adapters)
            else:
                x = layer.forward(x, step, last)[0]
        norm = self.lm.norm
        unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        logits: Tensor = _Logits.apply((unit * norm.weight).to(self.head.dtype), self.head)
        return logits


def is_packable(model: Any) -> bool:
    """Whether a language model is one that `PackedDecoder` computes.

    It is dense, of Qwen2's or Llama's kind, has plain LoRA or none at each layer, and no dropout of its own.
    """
    config = model.config.text_config
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    kinds = getattr(config, "layer_types", None) or ()
    if (
        config.hidden_act != "silu"
        or rope in ("dynamic", "longrope")
        or "sliding_attention" in kinds
    ):
        return False
    if getattr(config, "attention_dropout", 0.0):
        return False
    lm, head = model.model.language_model, model.lm_head
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    if not all(map(only_lora_is_trained, (lm.layers, lm.norm, head))):
        return False
    for layer in lm.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if (
            model.lm_head.bias is not None
            or hasattr(attention, "q_norm")
            or not hasattr(mlp, "gate_proj")
        ):
            return False
        names = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        if not all(map(is_plain_lora, [*names, mlp.gate_proj, mlp.up_proj, mlp.down_proj])):
            return False
    return True
