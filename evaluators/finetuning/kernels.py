"""Triton kernels of `evaluators.finetuning.elementwise`, which says what they compute. Imported on CUDA only."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from evaluators.audio_lm.kernels import gate_up, rotate

__all__ = [
    "add_dropped", "add_norm", "dropped", "gate_up", "gate_up_backward", "norm_backward", "rotate",
]  # fmt: skip
BLOCK = 2048  # elements of a program, where there are no rows


@triton.jit
def _add_norm(x, more, norm, total, out, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = token * width + columns
    value = tl.load(x + at, inside, other=0.0)
    if ADD:
        value += tl.load(more + at, inside, other=0.0).to(tl.float32)
        tl.store(total + at, value, inside)
    value *= tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    value *= tl.load(norm + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


def add_norm(x: Tensor, more: Tensor | None, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `elementwise.add_norm`."""
    tokens, width = x.shape
    out = torch.empty(tokens, width, dtype=norm.dtype, device=x.device)
    total = x if more is None else torch.empty_like(x)
    block = triton.next_power_of_2(width)
    _add_norm[(tokens,)](
        x, x if more is None else more, norm, total, out, width, eps,
        ADD=more is not None, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return total, out


@triton.jit
def _norm_backward(grad, x, norm, into, width, eps, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = token * width + columns
    value = tl.load(x + at, inside, other=0.0)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    unit = value * scale
    inner = tl.load(grad + at, inside, other=0.0).to(tl.float32)
    inner *= tl.load(norm + columns, inside, other=0.0).to(tl.float32)
    mean = tl.sum(inner * unit, 0) / width
    before = tl.load(into + at, inside, other=0.0)
    tl.store(into + at, before + scale * (inner - unit * mean), inside)


def norm_backward(grad: Tensor, x: Tensor, norm: Tensor, eps: float, into: Tensor) -> None:
    """See `elementwise.norm_backward`."""
    tokens, width = x.shape
    block = triton.next_power_of_2(width)
    _norm_backward[(tokens,)](grad, x, norm, into, width, eps, BLOCK=block, num_warps=8)


@triton.jit
def _gate_up_backward(grad, both, out, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    at = token * 2 * width + columns
    gate = tl.load(both + at, inside, other=0.0).to(tl.float32)
    up = tl.load(both + at + width, inside, other=0.0).to(tl.float32)
    come = tl.load(grad + token * width + columns, inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    kind = out.dtype.element_ty
    tl.store(out + at, (come * up * share * (1 + gate * (1 - share))).to(kind), inside)
    tl.store(out + at + width, (come * gate * share).to(kind), inside)


def gate_up_backward(grad: Tensor, both: Tensor) -> Tensor:
    """See `elementwise.gate_up_backward`."""
    tokens, width = grad.shape
    out = torch.empty_like(both)
    grid = (tokens, triton.cdiv(width, BLOCK))
    _gate_up_backward[grid](grad, both, out, width, BLOCK=BLOCK, num_warps=8)
    return out


@triton.jit(do_not_specialize=["number"])
def _dropped(x, out, count, seed, number, share, ADD: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(x + at, inside, other=0.0).to(tl.float32)
    drawn = tl.rand(tl.load(seed) + number, at)
    value = tl.where(drawn >= share, value / (1 - share), 0.0)
    if ADD:
        value += tl.load(out + at, inside, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


def dropped(x: Tensor, seed: Tensor, number: int, share: float) -> Tensor:
    """See `elementwise.dropped`; the places are others."""
    out = torch.empty_like(x)
    _dropped[(triton.cdiv(x.numel(), BLOCK),)](
        x, out, x.numel(), seed, number, share, ADD=False, BLOCK=BLOCK, num_warps=8
    )
    return out


def add_dropped(into: Tensor, x: Tensor, seed: Tensor, number: int, share: float) -> None:
    """See `elementwise.add_dropped`."""
    _dropped[(triton.cdiv(x.numel(), BLOCK),)](
        x, into, x.numel(), seed, number, share, ADD=True, BLOCK=BLOCK, num_warps=8
    )
