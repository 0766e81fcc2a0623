"""Rows of tokens in one line, without padding between them, and attention within each row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluators.audio_lm.attention import Heads

BUCKET = 8  # where shapes are to come again, the width is rounded up to a multiple of it


@dataclass(frozen=True, eq=False)
class Line:
    """Rows of tokens in one line: what all rows begin with, then the rest of each. Made by `in_line`."""

    ids: Tensor  # [token]
    position: Tensor  # [token] in its row
    index: Tensor  # [row, width] where each place of a row stands in the line; padding: at the first token
    first: Tensor  # [token] its place in [row * width], in the first row where several share it
    shared: int  # tokens that all rows share


class Rows(Protocol):
    """What attention needs of a `Line`."""

    @property
    def index(self) -> Tensor:
        """See `Line`."""

    @property
    def first(self) -> Tensor:
        """See `Line`."""

    @property
    def shared(self) -> int:
        """See `Line`."""


def in_line(rows: Sequence[Sequence[int]], most: int = 0, padded: bool = False) -> Line:
    """The line of rows of token ids.

    Args:
        rows: The rows, none of them empty.
        most: Up to so many tokens at their beginning are shared, where they are equal in all rows.
        padded: Round up the width, and fill the line with one more row, of zeros, to a multiple of the width: so that
            few shapes come again and again.
    """
    shared = 0
    least = min(most, *map(len, rows)) if len(rows) > 1 else 0
    while shared < least and len({row[shared] for row in rows}) == 1:
        shared += 1
    width = max(map(len, rows))
    ids = [*rows[0][:shared], *(token for row in rows for token in row[shared:])]
    lengths = [len(row) for row in rows]
    if padded:
        width = -(-width // BUCKET) * BUCKET
        lengths += [-len(ids) % width] if len(ids) % width else []
    index = np.zeros((len(lengths), width), dtype=np.int64)
    index[: len(rows), :shared] = np.arange(shared)
    places, end = [np.arange(shared)], shared
    for r, length in enumerate(lengths):
        begin = shared if r < len(rows) else 0
        index[r, begin:length] = np.arange(end, end + length - begin)
        places.append(r * width + np.arange(begin, length))
        end += length - begin
    first = np.concatenate(places)
    ids += [0] * (end - len(ids))
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
    def forward(ctx: Any, x: Tensor, line: Rows) -> Tensor:
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
    def forward(ctx: Any, x: Tensor, line: Rows) -> Tensor:
        ctx.line, ctx.shape = line, x.shape
        return x.flatten(0, 1)[line.first]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        out = grad.new_zeros(ctx.shape[0] * ctx.shape[1], ctx.shape[2])
        out[ctx.line.first] = grad
        return out.view(ctx.shape), None


def attend(qkv: Tensor, line: Rows, heads: Heads, seen: Tensor | None = None) -> Tensor:
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
