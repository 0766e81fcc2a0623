"""Attention of packed rows: by plain torch, where there are no Triton kernels."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluators.audio_lm.packing import NOTHING, Ints, PackedRows, to_device

ROW_BUCKET, PLACE_BUCKET = 4, 48  # lengths of rows and cached segments are rounded up to these
TOWER_BUCKET = 8  # and those of the audio tower's rows to this


@dataclass(frozen=True)
class Heads:
    """Attention heads of a decoder or an audio tower."""

    queries: int
    keys: int
    dim: int  # channels of a head
    block: int = 32  # keys that a GPU takes at once: by the kind of model alone, since scores may depend on it

    @property
    def query_width(self) -> int:
        """Channels of all query heads."""
        return self.queries * self.dim

    @property
    def key_width(self) -> int:
        """Channels of all key heads."""
        return self.keys * self.dim


class KeysValues(NamedTuple):
    """Keys and values of one layer, each ``[token or place, key heads * dim]``."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class _Queries:
    """Where the queries of a batch lie in ``[row, width]``, padded, and what they attend to."""

    index: Tensor  # [row, width], number of the query
    mask: Tensor  # [row, 1, width, place]
    flat: Tensor  # [query], its number in [row * width]


class PaddedAttention:
    """Attention that lays rows out with padding, attends, and packs them again.

    Row lengths are padded to buckets, so that the shape a row is computed in depends on its own length alone.

    Args:
        rows: The rows, all tokens being queries.
        kept_rows: The same with the kept tokens as queries; None where none are kept.
        tokens: Tokens of the batch.
        heads: Heads of the decoder.
    """

    def __init__(
        self, rows: PackedRows, kept_rows: PackedRows | None, tokens: int, heads: Heads
    ) -> None:
        self.heads = heads
        device = rows.start.device
        width = -(-rows.longest // ROW_BUCKET) * ROW_BUCKET
        lengths = rows.start[1:] - rows.start[:-1]
        within = torch.arange(width, device=device)[None]
        self._token = (rows.start[:-1, None] + within).clamp(max=tokens - 1)  # [row, width]
        valid = within < lengths[:, None]
        self._place, cached = _cached_places(rows)
        mask = valid[:, None, :] & torch.ones(width, width, dtype=torch.bool, device=device).tril()
        if rows.has_branches:
            branch = rows.branch[self._token]
            mask = mask & ((branch[:, None] == 0) | (branch[:, None] == branch[..., None]))
        mask = torch.cat([cached[:, None].expand(-1, width, -1), mask], 2)
        mask = (mask | ~valid[..., None])[:, None]  # padding attends to anything: no NaN
        self._all = _Queries(self._token, mask, _flat(rows.start, width))
        self._kept = None if kept_rows is None else _kept_queries(kept_rows, mask)

    def __call__(self, q: Tensor, new: KeysValues, cached: KeysValues, rows: PackedRows) -> Tensor:
        """``[query, query heads * dim]``; zero where no row has a query.

        Args:
            q: ``[query, query heads * dim]``.
            new: Keys and values of the batch's tokens.
            cached: Those in the cache.
            rows: One of those given to the constructor.
        """
        queries = self._kept if rows.few_queries else self._all
        assert queries is not None
        keys, values = (
            torch.cat(
                [
                    self._split(old, self._place, self.heads.keys),
                    self._split(own, self._token, self.heads.keys),
                ],
                2,
            )
            for old, own in zip(cached, new, strict=True)
        )
        attended = F.scaled_dot_product_attention(
            self._split(q, queries.index, self.heads.queries),
            keys,
            values,
            attn_mask=queries.mask,
            enable_gqa=self.heads.queries != self.heads.keys,
        )
        padded = attended.transpose(1, 2).reshape(-1, self.heads.query_width)
        out = torch.zeros(len(q), padded.shape[1], dtype=q.dtype, device=q.device)
        out[: len(queries.flat)] = padded[queries.flat]
        return out

    def _split(self, x: Tensor, index: Tensor, count: int) -> Tensor:
        """``[row, head, width, dim]`` of the tokens at `index`."""
        rows = x.index_select(0, index.flatten())  # on a CPU five times as fast as x[index]
        return rows.view(*index.shape, count, self.heads.dim).transpose(1, 2)


def _cached_places(rows: PackedRows) -> tuple[Tensor, Tensor]:
    """``[row, place]``: places in the cache that each row attends to, the system message first; and which are real."""
    most = int(rows.length.max()) + rows.system.length
    places = -(-most // PLACE_BUCKET) * PLACE_BUCKET
    number = torch.arange(places, device=rows.start.device)[None]
    own = number - rows.system.length
    place = torch.where(own < 0, rows.system.begin + number, rows.begin[:, None] + own)
    real = own < rows.length[:, None]
    return torch.where(real, place, torch.zeros_like(place)), real


def _kept_queries(rows: PackedRows, mask: Tensor) -> _Queries:
    """The kept tokens as queries: the last tokens of each row."""
    device = rows.start.device
    lengths = rows.start[1:] - rows.start[:-1]
    kept = rows.query_start[1:] - rows.query_start[:-1]
    width = max(1, rows.longest_query)
    within = torch.arange(width, device=device)[None]
    place = (lengths[:, None] - kept[:, None] + within).clamp(0, mask.shape[2] - 1)
    index = (rows.query_start[:-1, None] + within) * (within < kept[:, None])
    wide = place[:, None, :, None].expand(-1, 1, -1, mask.shape[-1])
    return _Queries(index, mask.gather(2, wide), _flat(rows.query_start, width))


def _flat(start: Tensor, width: int) -> Tensor:
    """``[token]``: where each packed token lies in ``[row * width]``."""
    lengths = start[1:] - start[:-1]
    row = torch.repeat_interleave(torch.arange(len(lengths), device=start.device), lengths)
    return row * width + (torch.arange(len(row), device=start.device) - start[row])


@dataclass(frozen=True)
class _Group:
    """Rows of a line that are padded to one width."""

    index: Tensor  # [row, width], number of the token
    mask: Tensor  # [row, 1, 1, width], which of them are the row's
    token: Tensor  # [token], the rows' tokens, one row after another
    flat: Tensor  # [token], where they lie in [row * width]

    @classmethod
    def of(cls, start: Ints, lengths: Ints, width: int, device: torch.device) -> "_Group":
        """The rows that begin at `start`."""
        within = np.arange(width)
        real = within < lengths[:, None]
        index = start[:, None] + np.where(real, within, 0)  # padding: any token that exists
        put = (index, real[:, None, None], index[real], np.flatnonzero(real))
        return cls(*(to_device(part, device) for part in put))


class RowAttention:
    """Attention of each token to all tokens of its own row, earlier and later: as in an audio tower.

    Rows lie one after another in a line. By plain torch the rows of a length bucket are attended together, padded to
    it, so that the shape a row is computed in depends on its own length alone.

    Args:
        lengths: ``[row]`` tokens, at least one each.
        size: Tokens of the line; those after the rows belong to none.
        heads: The attention heads, as many of keys as of queries.
        device: Where the line is.
        kernels: The module of Triton kernels; None: plain torch.
    """

    def __init__(
        self, lengths: Ints, size: int, heads: Heads, device: torch.device, kernels: Any
    ) -> None:
        self._heads = heads
        dim = heads.dim
        self._kernels = kernels if dim >= 16 and dim & (dim - 1) == 0 else None
        start = np.concatenate([[0], np.cumsum(lengths)])
        if self._kernels is not None:
            on_device = to_device(start.astype(np.int32), device)
            none = torch.zeros(size, dtype=torch.int32, device=device)
            longest = int(lengths.max())
            self._rows = PackedRows(
                start=on_device,
                query_start=on_device,
                branch=none,
                begin=none[: len(lengths)],
                length=none[: len(lengths)],
                system=NOTHING,
                longest=longest,
                longest_query=longest,
                has_branches=False,
            )
            return
        widths = -(-lengths // TOWER_BUCKET) * TOWER_BUCKET
        self._groups = [
            _Group.of(start[:-1][widths == w], lengths[widths == w], int(w), device)
            for w in np.unique(widths)
        ]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[token, heads * dim]`` of three of that shape; zero where there is no row."""
        if self._kernels is not None:
            new = KeysValues(k, v)
            return self._kernels.attend(q, new, new, self._rows, self._heads, causal=False)
        out = torch.zeros_like(q)
        for group in self._groups:
            shape = (*group.index.shape, self._heads.queries, self._heads.dim)
            flat = group.index.flatten()
            query, key, value = (
                x.index_select(0, flat).view(shape).transpose(1, 2) for x in (q, k, v)
            )
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
            padded = attended.transpose(1, 2).reshape(-1, q.shape[1])
            out[group.token] = padded[group.flat]
        return out
