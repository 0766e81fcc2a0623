"""Triton kernels for everything between the matrix products of the packed step. Imported on CUDA only.

The last ones are those of training, forward and backward.

They work on packed tokens ``[token, ...]`` without padding between rows. Each row of the result is computed from its
own row's inputs alone, in an order that does not depend on its neighbours.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from evaluators.audio_lm.attention import Heads, KeysValues
from evaluators.audio_lm.packing import PackedRows

VERSION = f"triton {triton.__version__}"
ELEMENTS = 2048  # that a program of training takes, where it takes no whole row
WARPS, STAGES = 4, 2  # of the attention kernel, as timed on an H100 with blocks of 32 keys


@triton.jit
def _norm(x, weight, out, width, eps, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + token * width + columns, inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    # The stock layer rounds before it multiplies with the weight.
    value = (value * scale).to(out.dtype.element_ty).to(tl.float32)
    value *= tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + token * width + columns, value.to(out.dtype.element_ty), inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square normalization of ``[token, channel]``."""
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _norm[(x.shape[0],)](x, weight, out, x.shape[1], eps, BLOCK=block, num_warps=8)
    return out


@triton.jit
def _add_norm(x, more, weight, total, out, width, eps, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = token * width + columns
    kind = out.dtype.element_ty
    value = tl.load(x + at, inside, other=0.0).to(tl.float32)
    value += tl.load(more + at, inside, other=0.0).to(tl.float32)
    rounded = value.to(kind)
    tl.store(total + at, rounded, inside)
    value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    value = (value * scale).to(kind).to(tl.float32)
    value *= tl.load(weight + columns, inside, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(kind), inside)


def add_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The normalized sum of `x` and `more`; `x` becomes the sum, in place."""
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _add_norm[(x.shape[0],)](x, more, weight, x, out, x.shape[1], eps, BLOCK=block, num_warps=8)
    return out


@triton.jit
def _rotate(qkv, cos, sin, stride, HEADS: tl.constexpr, HALF: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    columns = tl.arange(0, HALF)[None]
    at = qkv + token * stride + heads * (2 * HALF) + columns
    low, high = tl.load(at).to(tl.float32), tl.load(at + HALF).to(tl.float32)
    angle = token * (2 * HALF) + columns
    cos_low, cos_high = (
        tl.load(cos + angle).to(tl.float32),
        tl.load(cos + angle + HALF).to(tl.float32),
    )
    sin_low, sin_high = (
        tl.load(sin + angle).to(tl.float32),
        tl.load(sin + angle + HALF).to(tl.float32),
    )
    kind = qkv.dtype.element_ty
    # Each product is rounded before the sum, as the stock layer does.
    a, b = (low * cos_low).to(kind).to(tl.float32), (high * sin_low).to(kind).to(tl.float32)
    tl.store(at, (a - b).to(kind))
    a, b = (high * cos_high).to(kind).to(tl.float32), (low * sin_high).to(kind).to(tl.float32)
    tl.store(at + HALF, (a + b).to(kind))


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, head_dim: int) -> None:
    """Rotary positions on the first `heads` heads of ``[token, channel]``, in place."""
    step = 1 << ((heads & -heads).bit_length() - 1)  # largest power of two that divides the heads
    grid = (qkv.shape[0], heads // step)
    _rotate[grid](qkv, cos, sin, qkv.stride(0), HEADS=step, HALF=head_dim // 2)


@triton.jit
def _gate(both, out, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(both + token * 2 * width + columns, inside, other=0.0).to(tl.float32)
    up = tl.load(both + token * 2 * width + width + columns, inside, other=0.0)
    kind = out.dtype.element_ty
    gate = (gate * tl.sigmoid(gate)).to(kind)  # rounded before the product, as the stock layer does
    tl.store(out + token * width + columns, (gate * up).to(kind), inside)


def gate_up(both: Tensor) -> Tensor:
    """``silu(gate) * up`` for ``[token, 2 * channel]`` that holds gate beside up."""
    width = both.shape[1] // 2
    out = torch.empty(both.shape[0], width, dtype=both.dtype, device=both.device)
    _gate[(both.shape[0], triton.cdiv(width, 2048))](both, out, width, BLOCK=2048, num_warps=8)
    return out


@triton.jit
def _block(
    acc, total, top, q, k, v, k_stride, v_stride, seen, scale, columns, BLOCK_N: tl.constexpr
):
    """The running softmax with one more block of keys and values (arXiv 1805.02867)."""
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    here = tl.max(seen.to(tl.int32), 0) > 0
    keys = tl.load(k + n[:, None] * k_stride + columns[None], here[:, None], other=0.0)
    values = tl.load(v + n[:, None] * v_stride + columns[None], here[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    safe = tl.where(new_top == float("-inf"), 0.0, new_top)
    share = tl.exp(scores - safe[:, None])
    shrink = tl.exp(top - safe)
    total = total * shrink + tl.sum(share, 1)
    acc = acc * shrink[:, None] + tl.dot(share.to(values.dtype), values, input_precision="ieee")
    return acc, total, new_top


@triton.jit
def _attend(
    q, k, v, cached_k, cached_v, out,
    q_start, k_start, branch, begin, length, shared_begin, shared_length,
    q_stride, k_stride, v_stride, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BRANCHES: tl.constexpr,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, kv_head = tl.program_id(0), tl.program_id(1)
    first_q, last_q = tl.load(q_start + row), tl.load(q_start + row + 1)
    first_k, last_k = tl.load(k_start + row), tl.load(k_start + row + 1)
    count_q, count_k = last_q - first_q, last_k - first_k
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    if tl.program_id(2) * BLOCK_M < count_q * GROUP:
        columns = tl.arange(0, DIM)
        # The heads that share keys lie in one block: each block of keys is read once for all of them.
        token, head = m // GROUP, kv_head * GROUP + m % GROUP
        at = (first_q + token).to(tl.int64)
        valid = token < count_q
        query = tl.load(
            q + (at * q_stride + head * DIM)[:, None] + columns[None], valid[:, None], other=0.0
        )
        index = count_k - count_q + token  # place of the query among the row's keys
        own = tl.load(branch + first_k + index, valid, other=0)
        acc = tl.zeros((BLOCK_M, DIM), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        n = tl.arange(0, BLOCK_N)
        stride: tl.constexpr = (HEADS // GROUP) * DIM
        for segment in tl.static_range(2):
            where = shared_begin if segment == 0 else tl.load(begin + row)
            many = shared_length if segment == 0 else tl.load(length + row)
            for block in range(0, many, BLOCK_N):
                base = (where + block).to(tl.int64) * stride + kv_head * DIM
                seen = valid[:, None] & (block + n < many)[None]
                acc, total, top = _block(
                    acc, total, top, query, cached_k + base, cached_v + base, stride, stride, seen,
                    scale, columns, BLOCK_N,
                )  # fmt: skip
        for block in range(0, count_k, BLOCK_N):
            place = block + n
            seen = valid[:, None] & (place < count_k)[None]
            if CAUSAL:
                seen = seen & (place[None] <= index[:, None])
            if BRANCHES:
                other = tl.load(branch + first_k + place, place < count_k, other=0)
                seen = seen & ((other[None] == 0) | (other[None] == own[:, None]))
            base_k = (first_k + block).to(tl.int64) * k_stride + kv_head * DIM
            base_v = (first_k + block).to(tl.int64) * v_stride + kv_head * DIM
            acc, total, top = _block(
                acc, total, top, query, k + base_k, v + base_v, k_stride, v_stride, seen,
                scale, columns, BLOCK_N,
            )  # fmt: skip
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        place = out + (at * (HEADS * DIM) + head * DIM)[:, None] + columns[None]
        tl.store(place, acc.to(out.dtype.element_ty), valid[:, None])


def attend(
    q: Tensor,
    new: KeysValues,
    cached: KeysValues,
    rows: PackedRows,
    heads: Heads,
    causal: bool = True,
) -> Tensor:
    """Attention of packed queries over two cached segments and the row's own keys (after arXiv 2205.14135).

    Args:
        q: ``[query, query heads * dim]``, any row stride.
        new: Keys and values of the batch's tokens, any row stride.
        cached: Those in the cache, contiguous.
        rows: Which tokens belong together, and what they attend to in the cache.
        heads: The attention heads; `dim` is a power of two, 16 or more.
        causal: Whether a token attends to no later token of its row.

    Returns:
        ``[query, query heads * dim]``; zero where no row has a query.
    """
    out = torch.zeros(q.shape[0], heads.query_width, dtype=q.dtype, device=q.device)
    block_m = 16 if rows.few_queries else 64
    group = heads.queries // heads.keys
    grid = (len(rows.begin), heads.keys, triton.cdiv(rows.longest_query * group, block_m))
    _attend[grid](
        q, new.keys, new.values, cached.keys, cached.values, out,
        rows.query_start, rows.start, rows.branch, rows.begin, rows.length,
        rows.system.begin, rows.system.length,
        q.stride(0), new.keys.stride(0), new.values.stride(0), heads.dim**-0.5,
        HEADS=heads.queries, GROUP=group, DIM=heads.dim,
        BRANCHES=rows.has_branches, CAUSAL=causal,
        BLOCK_M=block_m, BLOCK_N=heads.block, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return out


@triton.jit
def _stream_norm(x, more, norm, total, out, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
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


def stream_norm(x: Tensor, more: Tensor | None, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `evaluators.finetuning.elementwise.stream_norm`."""
    tokens, width = x.shape
    out = torch.empty(tokens, width, dtype=norm.dtype, device=x.device)
    total = x if more is None else torch.empty_like(x)
    block = triton.next_power_of_2(width)
    _stream_norm[(tokens,)](
        x, x if more is None else more, norm, total, out, width, eps,
        ADD=more is not None, BLOCK=block, num_warps=8,
    )  # fmt: skip
    return total, out


@triton.jit
def _stream_norm_backward(grad, x, norm, into, width, eps, BLOCK: tl.constexpr):
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


def stream_norm_backward(grad: Tensor, x: Tensor, norm: Tensor, eps: float, into: Tensor) -> None:
    """See `evaluators.finetuning.elementwise.stream_norm_backward`."""
    tokens, width = x.shape
    block = triton.next_power_of_2(width)
    _stream_norm_backward[(tokens,)](grad, x, norm, into, width, eps, BLOCK=block, num_warps=8)


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
    """See `evaluators.finetuning.elementwise.gate_up_backward`."""
    tokens, width = grad.shape
    out = torch.empty_like(both)
    grid = (tokens, triton.cdiv(width, ELEMENTS))
    _gate_up_backward[grid](grad, both, out, width, BLOCK=ELEMENTS, num_warps=8)
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
    """See `evaluators.finetuning.elementwise.dropped`; the places are others."""
    out = torch.empty_like(x)
    _dropped[(triton.cdiv(x.numel(), ELEMENTS),)](
        x, out, x.numel(), seed, number, share, ADD=False, BLOCK=ELEMENTS, num_warps=8
    )
    return out


def add_dropped(into: Tensor, x: Tensor, seed: Tensor, number: int, share: float) -> None:
    """See `evaluators.finetuning.elementwise.add_dropped`."""
    _dropped[(triton.cdiv(x.numel(), ELEMENTS),)](
        x, into, x.numel(), seed, number, share, ADD=True, BLOCK=ELEMENTS, num_warps=8
    )
