"""Frozen matrix products with LoRA beside them, forward and backward.

The adapter's dropout is one for all layers of the same input, where peft draws one for each: which inputs are left out
is random either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.audio_lm.decoder import FusedLinear, biases, load_kernels
from evaluators.finetuning import elementwise

PRODUCTS = 4  # of a layer
SEEDS = 2**31  # of a step's dropout


@dataclass(frozen=True)
class Dropping:
    """Dropout of the adapters' inputs.

    Attributes:
        seed: Of this product, in this step.
        share: Of the inputs; 0: none.
        ops: `elementwise`, or the kernels of the same functions.
    """

    seed: int = 0
    share: float = 0.0
    ops: ModuleType = elementwise

    def __call__(self, x: Tensor) -> Tensor:
        """`x` without the share."""
        return self.ops.dropped(x, self.seed, self.share) if self.share else x

    def add(self, into: Tensor, x: Tensor) -> None:
        """Adds to `into` what is left of `x`."""
        if self.share:
            self.ops.add_dropped(into, x, self.seed, self.share)
        else:
            into += x

    def of_layer(self, number: int) -> list["Dropping"]:
        """Of each product of a layer, where this one is the first layer's first."""
        first = self.seed + number * PRODUCTS
        return [replace(self, seed=first + i) for i in range(PRODUCTS)]


def new_dropping(share: float, ops: ModuleType) -> Dropping:
    """Of a step. Its seed comes from the CPU's random numbers, which a resumed training goes on with."""
    return Dropping(int(torch.randint(SEEDS, ())) if share else 0, share, ops)


def load_ops(device: torch.device) -> ModuleType:
    """`elementwise`, or, where Triton's kernels run, those."""
    if load_kernels(device) is None:
        return elementwise
    from evaluators.finetuning import kernels  # Triton's, which CUDA alone has

    return kernels


@dataclass(frozen=True)
class _Part:
    """LoRA beside some rows of a product's weight."""

    rows: slice  # of the weight, so columns of what comes out
    lora: Any  # peft's layer
    scale: float


class Product:
    """One or several linear layers of the same input as one product, with the adapters of those that have one.

    Args:
        modules: Linear layers, plain or of 4 bits, or peft's round them.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.bases: list[Any] = [
            m.get_base_layer() if hasattr(m, "lora_A") else m for m in modules
        ]
        self.fused = FusedLinear(self.bases)
        ends = [0]
        self.parts: list[_Part] = []
        for module, base in zip(modules, self.bases, strict=True):
            ends.append(ends[-1] + base.out_features)
            if hasattr(module, "lora_A"):
                rows = slice(ends[-2], ends[-1])
                self.parts.append(_Part(rows, module, float(module.scaling["default"])))
        self.width = ends[-1]

    @property
    def adapters(self) -> list[Tensor]:
        """The trained weights: of each part ``[rank, in]`` and ``[out, rank]``."""
        return [
            m["default"].weight for part in self.parts for m in (part.lora.lora_A, part.lora.lora_B)
        ]

    def weight(self) -> Tensor:
        """``[out, in]``; 4-bit weights are expanded each time."""
        if self.fused.fused:
            return self.fused.weight
        import bitsandbytes as bnb  # there are 4-bit weights, so it is there

        packed = [(base.weight.data, base.weight.quant_state) for base in self.bases]
        if len(packed) == 1:
            return bnb.functional.dequantize_4bit(*packed[0])
        kind, width = packed[0][1].dtype, self.bases[0].in_features
        out = torch.empty(self.width, width, dtype=kind, device=packed[0][0].device)
        first = 0
        for data, state in packed:
            rows = out[first : first + state.shape[0]]
            bnb.functional.dequantize_4bit(data, state, out=rows)
            first += len(rows)
        return out

    @property
    def bias(self) -> Tensor | None:
        """``[out]``, zero where a layer has none; None where none has one."""
        if self.fused.fused:
            return self.fused.bias
        return biases(self.bases)

    def forward(self, x: Tensor, dropping: Dropping) -> tuple[Tensor, "Beside | None"]:
        """(``[token, out]``, what `backward` needs of the adapters).

        Args:
            x: ``[token, in]`` in the weights' precision.
            dropping: Of the adapters' input.
        """
        y = F.linear(x, self.weight(), self.bias)
        if not self.parts:
            return y, None
        weights = self.adapters
        first = torch.cat(weights[::2]).to(x.dtype)
        low = (dropping(x) @ first.T).split([len(weight) for weight in weights[::2]], 1)
        second = [weight.to(x.dtype) for weight in weights[1::2]]
        for part, inner, outer in zip(self.parts, low, second, strict=True):
            y[:, part.rows].addmm_(inner, outer.T, alpha=part.scale)
        return y, Beside(first, second, low)

    def backward(
        self, grad: Tensor, x: Tensor | None, beside: "Beside | None", dropping: Dropping
    ) -> tuple[Tensor, list[Tensor]]:
        """(Gradient by the input, those by the `adapters`), of what `forward` made of `x`.

        Args:
            grad: ``[token, out]``, by what came out.
            x: The input; None where there are no adapters.
            beside: As `forward` gave it.
            dropping: The same as there.
        """
        by_x = grad @ self.weight()
        if x is None or beside is None:
            return by_x, []
        by_low, by_second = [], []
        for part, outer, inner in zip(self.parts, beside.second, beside.low, strict=True):
            come = grad[:, part.rows]
            by_low.append(_times(come, outer, part.scale))
            by_second.append(_times(come.T, inner, part.scale).float())
        low = torch.cat(by_low, 1)
        by_first = (low.T @ dropping(x)).float().split([inner.shape[1] for inner in beside.low])
        dropping.add(by_x, low @ beside.first)
        pairs = zip(by_first, by_second, strict=True)
        return by_x, [grad for pair in pairs for grad in pair]


class Beside(NamedTuple):
    """Of the adapters beside a product."""

    first: Tensor  # [ranks, in], their first matrices one above the other, in the weights' precision
    second: Sequence[Tensor]  # [out, rank] of each
    low: Sequence[Tensor]  # [token, rank] of each, after the first matrix


def _times(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale * a @ b`` as one product."""
    return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def is_plain_lora(module: nn.Module) -> bool:
    """Whether a linear layer is one that a `Product` computes: plain or of 4 bits, with LoRA of the plain kind or none."""
    base: Any = module
    if hasattr(module, "lora_A"):
        lora: Any = module
        if list(lora.lora_A) != ["default"] or lora.lora_variant or any(lora.lora_bias.values()):
            return False
        base = lora.get_base_layer()
    return type(base) is nn.Linear or hasattr(base.weight, "quant_state")
