"""The layers of an audio tower of Whisper's kind with LoRA, their gradients written out, as in `packed`."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

from evaluators.audio_lm.attention import Heads
from evaluators.finetuning.line import attend, in_line
from evaluators.finetuning.products import (
    Given,
    Product,
    is_plain_lora,
    load_ops,
    only_lora_is_trained,
)
from evaluators.finetuning.stack import Stack, Step, new_seed
from evaluators.finetuning.transfer import sent

GELU = (nn.GELU, GELUActivation)


class _Norm:
    """A layer normalization of the float32 stream, whose result has the weights' precision."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.kind, self.eps, self.shape = norm.weight.dtype, norm.eps, norm.normalized_shape
        self.weight, self.bias = norm.weight.data.float(), norm.bias.data.float()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(Normalized, mean and inverse deviation for `backward`) of ``[token, channel]``."""
        out, mean, scale = torch.native_layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return out.to(self.kind), mean, scale

    def backward(self, grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """The gradient by `x`."""
        given = grad.float(), x, self.shape, mean, scale, self.weight, self.bias
        return torch.ops.aten.native_layer_norm_backward(*given, [True, False, False])[0]


class _Kept(NamedTuple):
    """What the backward pass of a layer needs."""

    x: Tensor  # [token, channel] float32
    norm_1: tuple[Tensor, Tensor, Tensor]
    low: tuple[list[Tensor], ...]  # of the adapters of each product
    qkv: Tensor  # with the graph of the attention after them
    attended: Tensor
    mid: Tensor  # float32, after attention
    norm_2: tuple[Tensor, Tensor, Tensor]
    wide: Tensor  # before the activation


class TowerLayer:
    """One layer.

    Args:
        layer: Of transformers, with peft's layers in it.
        number: Of the layer.
        ops: `elementwise`, or its kernels.
    """

    def __init__(self, layer: Any, number: int, ops: ModuleType) -> None:
        attention = layer.self_attn
        count, self.number, self.ops = attention.num_heads, number, ops
        self.heads = Heads(count, count, attention.q_proj.out_features // count)
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = Product([attention.out_proj])
        self.wide, self.narrow = Product([layer.fc1]), Product([layer.fc2])
        self.norm_1, self.norm_2 = _Norm(layer.self_attn_layer_norm), _Norm(layer.final_layer_norm)

    @property
    def products(self) -> list[Product]:
        """All of them."""
        return [self.qkv, self.out, self.wide, self.narrow]

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, _Kept]:
        """(``[position, channel]`` of all rows, one after another; what `backward` needs)."""
        drop, beside = step.of_layer(self.number, self.ops)
        norm_1 = self.norm_1.forward(x)
        qkv, low_1 = self.qkv.forward(norm_1[0], beside[0], drop[0])
        with torch.enable_grad():  # for `backward`
            qkv = qkv.requires_grad_()
            attended = self._attend(qkv, step)
        more, low_2 = self.out.forward(attended.detach(), beside[1], drop[1])
        mid = x + more
        norm_2 = self.norm_2.forward(mid)
        wide, low_3 = self.wide.forward(norm_2[0], beside[2], drop[2])
        more, low_4 = self.narrow.forward(F.gelu(wide), beside[3], drop[3])
        low = low_1, low_2, low_3, low_4
        return mid + more, _Kept(x, norm_1, low, qkv, attended, mid, norm_2, wide)

    def backward(self, grad: Tensor, kept: _Kept, step: Step) -> tuple[Tensor, list[Tensor]]:
        """(Gradient by the layer's input, those by the `adapters`), from that by its result."""
        drop, beside = step.of_layer(self.number, self.ops)
        (h_1, *about_1), (h_2, *about_2) = kept.norm_1, kept.norm_2
        kind = h_1.dtype
        x_4 = F.gelu(kept.wide) if self.narrow.parts else None
        by_act, lora_4 = self.narrow.backward(
            grad.to(kind), Given(x_4, kept.low[3]), beside[3], drop[3]
        )
        by_wide = torch.ops.aten.gelu_backward(by_act, kept.wide)
        by_h, lora_3 = self.wide.backward(by_wide, Given(h_2, kept.low[2]), beside[2], drop[2])
        stream = grad + self.norm_2.backward(by_h, kept.mid, *about_2)
        attended = kept.attended.detach()
        by_out, lora_2 = self.out.backward(
            stream.to(kind), Given(attended, kept.low[1]), beside[1], drop[1]
        )
        (by_qkv,) = torch.autograd.grad(kept.attended, kept.qkv, by_out)
        by_h, lora_1 = self.qkv.backward(by_qkv, Given(h_1, kept.low[0]), beside[0], drop[0])
        stream = stream + self.norm_1.backward(by_h, kept.x, *about_1)
        return stream, [*lora_1, *lora_2, *lora_3, *lora_4]

    def _attend(self, qkv: Tensor, step: Step) -> Tensor:
        """Attention of each row's positions to each other."""
        if step.seen is not None:
            return attend(qkv, step, self.heads, step.seen)
        rows = qkv.view(*step.index.shape, 3, self.heads.queries, self.heads.dim)
        q, k, v = (x.transpose(1, 2) for x in rows.unbind(2))
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(len(qkv), -1)


class TowerLayers:
    """All layers of a tower.

    Args:
        tower: Of transformers, with peft's layers in it, on its device.
        share: Of the adapters' inputs that dropout leaves out in training.
        max_graphs: See `Stack`.
    """

    def __init__(self, tower: Any, share: float, max_graphs: int) -> None:
        self.tower, self.share, self.padded = tower, share, max_graphs > 0
        like = tower.layers[0].final_layer_norm.weight
        ops = load_ops(like.device)
        layers = [TowerLayer(layer, i, ops) for i, layer in enumerate(tower.layers)]
        self.stack = Stack(layers, like.dtype, max_graphs)

    def __call__(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """``[part, position, channel]`` after the layers, of several such before them, all in one line."""
        lengths, device = [x.shape[1] for x in parts for _ in x], parts[0].device
        same = len(set(lengths)) == 1
        line = in_line([range(length) for length in lengths], padded=self.padded and not same)
        stream = torch.cat([x.flatten(0, 1) for x in parts]).float()
        more = len(line.first) - len(stream)
        stream, places = F.pad(stream, (0, 0, 0, more)), {"index": line.index, "first": line.first}
        if not same:
            ends = torch.tensor([*lengths, more][: len(line.index)])[:, None]
            places["seen"] = (torch.arange(line.index.shape[1]) < ends)[:, None, None]
        share = self.share if self.tower.training else 0.0
        again = self.tower.training and getattr(self.tower, "gradient_checkpointing", False)
        seed = new_seed(share, device)
        step = Step(shared=0, seed=seed, share=share, again=again, **sent(places, device))
        done = self.stack(stream, step)[: len(stream) - more].to(parts[0].dtype)
        pieces = done.split([x.shape[0] * x.shape[1] for x in parts])
        return [x.view(like.shape) for x, like in zip(pieces, parts, strict=True)]


def has_plain_layers(tower: Any) -> bool:
    """Whether a tower is one whose layers `TowerLayers` computes: of Whisper's kind, with plain LoRA or none."""
    if not only_lora_is_trained(tower.layers):
        return False
    for layer in tower.layers:
        attention = getattr(layer, "self_attn", None)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        if not all(hasattr(attention, name) for name in names) or not hasattr(layer, "fc2"):
            return False
        modules = [*(getattr(attention, name) for name in names), layer.fc1, layer.fc2]
        if not all(map(is_plain_lora, modules)) or not isinstance(layer.activation_fn, GELU):
            return False
    return True
