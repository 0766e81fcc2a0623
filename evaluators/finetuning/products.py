"""Frozen matrix products with LoRA beside them, forward and backward.

The adapter's dropout is one for all layers of the same input, where peft draws one for each: which inputs are left out
is random either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.audio_lm.decoder import FusedLinear, biases, load_kernels
from evaluators.finetuning import elementwise


@dataclass(frozen=True)
class Dropping:
    """Dropout of the adapters' inputs.

    Attributes:
        seed: ``[]`` of the step.
        number: Of the product, which is added to the seed.
        share: Of the inputs; 0: none.
        ops: `elementwise`, or the kernels of the same functions.
    """

    seed: Tensor
    number: int
    share: float
    ops: ModuleType

    def __call__(self, x: Tensor) -> Tensor:
        """`x` without the share."""
        return self.ops.dropped(x, self.seed, self.number, self.share) if self.share else x

    def add(self, into: Tensor, x: Tensor) -> None:
        """Adds to `into` what is left of `x`."""
        if self.share:
            self.ops.add_dropped(into, x, self.seed, self.number, self.share)
        else:
            into += x


def load_ops(device: torch.device) -> ModuleType:
    """`elementwise`, or, where Triton's kernels run, those."""
    ops: ModuleType = load_kernels(device) or elementwise
    return ops


@dataclass(frozen=True)
class _Part:
    """LoRA beside some rows of a product's weight."""

    rows: slice  # of the weight, so columns of what comes out
    lora: Any  # peft's layer

    @property
    def scale(self) -> float:
        """Of what the adapter adds."""
        return float(self.lora.scaling["default"])


def base_of(module: nn.Module) -> Any:
    """The frozen layer in a layer of peft; any other as it is."""
    adapted: Any = module
    return adapted.get_base_layer() if hasattr(adapted, "lora_A") else module


class Product:
    """One or several linear layers of the same input as one product, with the adapters of those that have one.

    Args:
        modules: Linear layers, plain or of 4 bits, or peft's round them.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.bases: list[Any] = [base_of(module) for module in modules]
        self.fused = FusedLinear(self.bases)
        ends = [0]
        self.parts: list[_Part] = []
        for module, base in zip(modules, self.bases, strict=True):
            ends.append(ends[-1] + base.out_features)
            if hasattr(module, "lora_A"):
                rows = slice(ends[-2], ends[-1])
                self.parts.append(_Part(rows, module))
        self.width = ends[-1]

    @property
    def adapters(self) -> list[Tensor]:
        """The trained weights: of each part ``[rank, in]``, then of each ``[out, rank]``."""
        both = (part.lora.lora_A for part in self.parts), (part.lora.lora_B for part in self.parts)
        return [one["default"].weight for every in both for one in every]

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
            if data.is_cuda:
                bnb.functional.dequantize_4bit(data, state, out=rows)
            else:  # where it cannot write into a part
                rows.copy_(bnb.functional.dequantize_4bit(data, state))
            first += len(rows)
        return out

    @property
    def bias(self) -> Tensor | None:
        """``[out]``, zero where a layer has none; None where none has one."""
        if self.fused.fused:
            return self.fused.bias
        return biases(self.bases)

    def forward(
        self, x: Tensor, beside: "Beside | None", dropping: Dropping
    ) -> tuple[Tensor, list[Tensor]]:
        """(``[token, out]``; what the first matrix of each adapter made of `x`, ``[token, rank]``).

        Args:
            x: ``[token, in]`` in the weights' precision.
            beside: The adapters; None where there are none.
            dropping: Of their input.
        """
        y = F.linear(x, self.weight(), self.bias)
        if beside is None:
            return y, []
        low = (dropping(x) @ beside.first.T).split(beside.ranks, 1)
        for part, inner, outer in zip(self.parts, low, beside.second, strict=True):
            y[:, part.rows].addmm_(inner, outer.T, alpha=part.scale)
        return y, list(low)

    def backward(
        self, grad: Tensor, given: "Given", beside: "Beside | None", dropping: Dropping
    ) -> tuple[Tensor, list[Tensor]]:
        """(Gradient by the input, those by the `adapters`), of what `forward` made.

        Args:
            grad: ``[token, out]``, by what came out.
            given: What went in.
            beside, dropping: The same as there.
        """
        by_x = grad @ self.weight()
        if beside is None or given.x is None:
            return by_x, []
        by_low, by_second = [], []
        for part, outer, inner in zip(self.parts, beside.second, given.low, strict=True):
            come = grad[:, part.rows]
            by_low.append(_times(come, outer, part.scale))
            by_second.append(_times(come.T, inner, part.scale).float())
        low = torch.cat(by_low, 1) if len(by_low) > 1 else by_low[0]
        by_first = (low.T @ dropping(given.x)).float().split(beside.ranks)
        dropping.add(by_x, low @ beside.first)
        return by_x, [*by_first, *by_second]


class Given(NamedTuple):
    """What a product was given, as far as its `backward` needs it."""

    x: Tensor | None  # [token, in]; None where it has no adapters
    low: list[Tensor]  # [token, rank] of each adapter


class Beside(NamedTuple):
    """The adapters beside a product, in the weights' precision."""

    first: Tensor  # [ranks, in], their first matrices one above the other
    second: list[Tensor]  # [out, rank] of each
    ranks: list[int]


def cast_adapters(products: Sequence[Product], dtype: torch.dtype) -> list[Beside | None]:
    """The adapters of all products as they are now, in a precision: cast together."""
    every = [product.adapters for product in products]
    flat = [weight.reshape(-1) for weights in every for weight in weights]
    pieces = torch.cat(flat).to(dtype) if flat else torch.empty(0)
    out: list[Beside | None] = []
    end = 0
    for weights in every:
        if not weights:
            out.append(None)
            continue
        count = len(weights) // 2
        ranks, width = [len(weight) for weight in weights[:count]], weights[0].shape[1]
        begin, end = end, end + sum(ranks) * width
        first, second = pieces[begin:end].view(sum(ranks), width), []
        for weight in weights[count:]:
            begin, end = end, end + weight.numel()
            second.append(pieces[begin:end].view(weight.shape))
        out.append(Beside(first, second, ranks))
    return out


def _times(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale * a @ b`` as one product."""
    return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def only_lora_is_trained(module: nn.Module) -> bool:
    """Whether a module's trained weights are those of LoRA alone; an adapter may train a norm whole."""
    return all(
        "lora_A" in name or "lora_B" in name
        for name, weight in module.named_parameters()
        if weight.requires_grad
    )


def is_plain_lora(module: nn.Module) -> bool:
    """Whether a linear layer is one that a `Product` computes: plain or of 4 bits, with plain LoRA or none."""
    if hasattr(module, "lora_A"):
        lora: Any = module
        if list(lora.lora_A) != ["default"] or lora.lora_variant or any(lora.lora_bias.values()):
            return False
    base = base_of(module)
    return type(base) is nn.Linear or hasattr(getattr(base, "weight", None), "quant_state")
