"""The layers of Qwen2-Audio run exactly, without the stock forward's padding: audio tower, and the packed step.

The packed step runs rows of tokens, one after another in a single line of a fixed number of tokens, over cached keys
and values: a segment that all rows see (the system message) and one per row (its clip). What stands in the cache is
never copied. Matrix products see packed tokens and nothing else, so no time goes into padding; attention is the only
place that knows rows. On CUDA the parts between the products are Triton kernels, elsewhere plain torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Rows:
    """Rows of a batch of packed tokens. All tensors are on the device."""

    start: Tensor  # [row + 1], first token of each row
    query_start: Tensor  # [row + 1], first of each row's tokens that are kept to the end, among those of all rows
    branch: Tensor  # [token], 0: seen by all later tokens of its row, n: by tokens of branch n only
    begin: Tensor  # [row], first place of the row's segment in the cache
    length: Tensor  # [row], places in it
    shared: tuple[int, int]  # first place and length of the segment that all rows see
    longest: int  # tokens of the longest row
    longest_query: int  # kept tokens of the row that keeps most
    branches: bool


class Cache:
    """Keys and values of system message and audio: per layer ``[place, kv channel]``, grown by doubling."""

    def __init__(
        self, layers: int, channels: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = (layers, channels, dtype, device)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.capacity = 0
        self.used = 0

    @property
    def bytes_per_place(self) -> int:
        """Memory of one place over all layers."""
        layers, channels, dtype, _ = self._shape
        return 2 * layers * channels * dtype.itemsize

    def grow(self, places: int, most: int) -> None:
        """Makes room for `places` in all, by doubling up to `most`; the last place takes what is padding."""
        if places < self.capacity:
            return
        layers, channels, dtype, device = self._shape
        capacity = max(places + 1, min(max(1024, 2 * self.capacity), most))

        def moved(old: Tensor | None) -> Tensor:
            new = torch.zeros(capacity, channels, dtype=dtype, device=device)
            if old is not None:
                new[: self.used] = old[: self.used]
            return new

        for name in ("keys", "values"):
            old = getattr(self, name) or [None] * layers
            setattr(self, name, [])
            for i in range(layers):
                getattr(self, name).append(moved(old[i]))
                old[i] = None
        self.capacity = capacity


class Linear:
    """One or several linear layers of the same input as one product, their weights side by side.

    Layers that are no plain `nn.Linear` (4-bit weights, LoRA beside the weight) are called as they are.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.fused = all(type(m) is nn.Linear for m in modules)
        if not self.fused:
            return
        linears: list[nn.Linear] = list(modules)  # type: ignore[arg-type]
        if len(linears) == 1:
            self.weight, self.bias = linears[0].weight.data, linears[0].bias
            return
        self.weight = side_by_side([m.weight.data for m in linears])
        has_bias = [m.bias is not None for m in linears]
        assert all(has_bias) or not any(has_bias)
        self.bias = torch.cat([m.bias.data for m in linears]) if all(has_bias) else None
        first = 0
        for m in linears:  # the modules go on with views, so nothing is stored twice
            m.weight.data = self.weight[first : first + m.out_features]
            first += m.out_features

    def __call__(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``."""
        if self.fused:
            return F.linear(x, self.weight, self.bias)
        parts = [m(x) for m in self.modules]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """The weights as one tensor; without a copy when they are parts of one already."""
    first = weights[0]
    ends = first.data_ptr()
    for w in weights:
        same = w.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or w.data_ptr() != ends or not w.is_contiguous():
            return torch.cat(list(weights))
        ends += w.numel() * w.element_size()
    rows = sum(w.shape[0] for w in weights)
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))


class Block:
    """One decoder layer: its products and the weights of its norms."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = Linear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = Linear([attention.o_proj])
        self.q_norm = getattr(attention, "q_norm", None)  # Qwen3 normalises each head
        self.k_norm = getattr(attention, "k_norm", None)
        self.experts = None if hasattr(mlp, "gate_proj") else mlp  # run by the stock layer
        if self.experts is None:
            self.gate_up = Linear([mlp.gate_proj, mlp.up_proj])
            self.down = Linear([mlp.down_proj])
        self.norm_1, self.norm_2 = layer.input_layernorm, layer.post_attention_layernorm


class Transformer:
    """The language model of a checkpoint, dense or with experts, run on packed tokens."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lm = model.model.language_model
        config = model.config.text_config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.device, self.dtype = self.lm.embed_tokens.weight.device, self.lm.norm.weight.dtype
        self.blocks = [Block(layer) for layer in self.lm.layers]
        self.kernels = load_kernels(self.device)

    def new_cache(self) -> Cache:
        """An empty cache for this model."""
        return Cache(len(self.blocks), self.kv_heads * self.head_dim, self.dtype, self.device)

    def step(
        self,
        x: Tensor,
        positions: Tensor,
        rows: Rows,
        cache: Cache,
        write: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Runs all layers over packed tokens.

        Args:
            x: ``[token, channel]`` embeddings.
            positions: ``[token]``, positions in the whole sequence.
            rows: Which tokens belong together, and what they see in the cache.
            cache: Keys and values before these tokens.
            write: ``[token]``, the place in the cache that each token's keys and values go to.
            keep: ``[kept]``, tokens whose last hidden state is wanted: the end of each row. The last layer computes
                queries and feed-forward for these only. None: no hidden state is wanted, only what is written.

        Returns:
            ``[kept, channel]`` after the final norm; empty without `keep`.
        """
        cos, sin = self.lm.rotary_emb(x[None], positions[None])
        cos, sin = cos[0].contiguous(), sin[0].contiguous()
        q_width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attend = Dense(rows, x.shape[0], self) if self.kernels is None else None
        last = len(self.blocks) - 1
        h = self._norm(x, self.blocks[0].norm_1)
        for i, block in enumerate(self.blocks):
            qkv = block.qkv(h)
            self._norm_heads(qkv, block)
            self._rotate(qkv, cos, sin)
            q, k, v = qkv.split([q_width, kv_width, kv_width], 1)
            if write is not None:
                cache.keys[i].index_copy_(0, write, k)
                cache.values[i].index_copy_(0, write, v)
            if i == last and keep is None:
                return x[:0]
            ends = i == last and keep is not None
            if ends:
                q, x = q[keep], x[keep]
            if attend is not None:
                out = attend(q, k, v, cache.keys[i], cache.values[i], ends)
            else:
                out = self.kernels.attend(
                    q, k, v, cache.keys[i], cache.values[i],
                    rows.query_start if ends else rows.start, rows.start, rows.branch,
                    rows.begin, rows.length, rows.shared,
                    rows.longest_query if ends else rows.longest, ends, rows.branches,
                    self.heads, self.kv_heads, self.head_dim,
                )  # fmt: skip
            h = self._add_norm(x, block.out(out), block.norm_2)
            following = self.lm.norm if i == last else self.blocks[i + 1].norm_1
            h = self._add_norm(x, self._feed_forward(h, block), following)
        return h

    def read(self, hidden: Tensor, at: Tensor, token: Tensor) -> Tensor:
        """``[pair]`` log-probabilities in nats over the full vocabulary of pairs (kept state, token)."""
        logits = self.model.lm_head(hidden).float()
        return logits[at, token] - logits.logsumexp(-1)[at]

    def _feed_forward(self, h: Tensor, block: Block) -> Tensor:
        if block.experts is not None:
            return block.experts(h[None])[0]
        return block.down(self._gate(block.gate_up(h)))

    def _norm_heads(self, qkv: Tensor, block: Block) -> None:
        """Normalises each head of queries and keys in place, where the model does."""
        if block.q_norm is None:
            return
        first = 0
        for norm, heads in ((block.q_norm, self.heads), (block.k_norm, self.kv_heads)):
            end = first + heads * self.head_dim
            part = qkv[:, first:end].view(len(qkv), heads, self.head_dim)
            part.copy_(norm(part))
            first = end

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        if self.kernels is None:
            return norm(x)
        return self.kernels.rms_norm(x, norm.weight, norm.variance_epsilon)

    def _add_norm(self, x: Tensor, more: Tensor, norm: Any) -> Tensor:
        """Adds to the residual stream in place, and normalises it."""
        if self.kernels is None:
            return norm(x.add_(more))
        return self.kernels.add_norm(x, more, norm.weight, norm.variance_epsilon)

    def _rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        heads = self.heads + self.kv_heads
        if self.kernels is not None:
            self.kernels.rotate(qkv, cos, sin, heads, self.head_dim)
            return
        part = qkv[:, : heads * self.head_dim].view(len(qkv), heads, self.head_dim)
        half = self.head_dim // 2
        turned = torch.cat([-part[..., half:], part[..., :half]], -1)
        part.copy_(part * cos[:, None] + turned * sin[:, None])

    def _gate(self, both: Tensor) -> Tensor:
        if self.kernels is not None:
            return self.kernels.gate_up(both)
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up


def load_kernels(device: torch.device) -> Any:
    """The Triton kernels on CUDA, or None where torch does it."""
    if device.type != "cuda":
        return None
    try:
        from evaluators.audio_lm import kernels
    except ImportError:  # CUDA without Triton, as on Windows
        return None
    return kernels


class Dense:
    """Attention of packed rows by torch: rows are laid out with padding, attended, and packed again.

    Row lengths are padded to buckets, so that the shape a row is computed in depends on its own length and on buckets
    alone.
    """

    ROW, PLACE = 4, 48  # buckets

    def __init__(self, rows: Rows, tokens: int, model: Transformer) -> None:
        self.model = model
        device = rows.start.device
        count = len(rows.begin)
        width = -(-rows.longest // self.ROW) * self.ROW
        most = int(rows.length.max()) + rows.shared[1] if count else 0
        places = -(-most // self.PLACE) * self.PLACE
        ar = torch.arange
        lengths = rows.start[1:] - rows.start[:-1]
        within = ar(width, device=device)[None]
        self.token = (rows.start[:-1, None] + within).clamp(max=tokens - 1)  # [row, width]
        valid = within < lengths[:, None]
        place = ar(places, device=device)[None]
        own = place - rows.shared[1]
        self.place = torch.where(
            place < rows.shared[1], rows.shared[0] + place, rows.begin[:, None] + own
        )
        seen = own < rows.length[:, None]  # [row, place]
        self.place = torch.where(seen, self.place, torch.zeros_like(self.place))
        mask = valid[:, None, :] & torch.ones(width, width, dtype=torch.bool, device=device).tril()
        if rows.branches:
            branch = rows.branch[self.token]
            mask = mask & ((branch[:, None] == 0) | (branch[:, None] == branch[..., None]))
        mask = torch.cat([seen[:, None].expand(-1, width, -1), mask], 2)
        mask = mask | ~valid[..., None]  # padding attends to anything: no NaN
        self.mask = mask[:, None]
        row_of = torch.repeat_interleave(ar(count, device=device), lengths)
        self.flat = row_of * width + (ar(len(row_of), device=device) - rows.start[row_of])
        # The kept tokens: the last ones of each row.
        kept = rows.query_start[1:] - rows.query_start[:-1]
        longest = max(1, rows.longest_query)
        place_q = lengths[:, None] - kept[:, None] + ar(longest, device=device)[None]
        real = ar(longest, device=device)[None] < kept[:, None]
        self.query = (rows.query_start[:-1, None] + ar(longest, device=device)[None]) * real
        self.query_mask = self.mask.gather(
            2, place_q.clamp(0, width - 1)[:, None, :, None].expand(-1, 1, -1, self.mask.shape[-1])
        )
        kept_row = torch.repeat_interleave(ar(count, device=device), kept)
        self.query_flat = kept_row * longest + (
            ar(len(kept_row), device=device) - rows.query_start[kept_row]
        )

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, cached_k: Tensor, cached_v: Tensor, ends: bool
    ) -> Tensor:
        """``[query, heads * dim]``; `ends`: the queries are the kept tokens only."""
        m = self.model

        def heads(x: Tensor, index: Tensor, n: int) -> Tensor:
            return x[index].view(*index.shape, n, m.head_dim).transpose(1, 2)

        keys = torch.cat(
            [heads(cached_k, self.place, m.kv_heads), heads(k, self.token, m.kv_heads)], 2
        )
        values = torch.cat(
            [heads(cached_v, self.place, m.kv_heads), heads(v, self.token, m.kv_heads)], 2
        )
        found = F.scaled_dot_product_attention(
            heads(q, self.query if ends else self.token, m.heads),
            keys,
            values,
            attn_mask=self.query_mask if ends else self.mask,
            enable_gqa=m.heads != m.kv_heads,
        )
        packed = found.transpose(1, 2).reshape(-1, m.heads * m.head_dim)
        out = torch.zeros(len(q), packed.shape[1], dtype=q.dtype, device=q.device)
        flat = self.query_flat if ends else self.flat
        out[: len(flat)] = packed[flat]
        return out


def _encode(layer: Any, x: Tensor) -> Tensor:
    """One layer of the audio tower, its own modules called in its own order: a third of the host's time."""
    attention = layer.self_attn
    h = layer.self_attn_layer_norm(x)
    shape = (*h.shape[:2], attention.num_heads, attention.head_dim)
    q = (attention.q_proj(h) * attention.scaling).view(shape).transpose(1, 2)
    k = attention.k_proj(h).view(shape).transpose(1, 2)
    v = attention.v_proj(h).view(shape).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).reshape(h.shape)
    x = x + attention.out_proj(out)
    return x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))


def encode_audio(model: Any, mel: Tensor, frames: int) -> Tensor:
    """Audio embeddings ``[clip, token, channel]`` of clips of the same length.

    Args:
        model: A Qwen2AudioForConditionalGeneration.
        mel: ``[clip, mel bin, frame]``, at least ``2 * v + 2`` frames or the model's whole window.
        frames: Valid 10 ms frames; ``v = (frames - 1) // 2 + 1`` of them remain after the convolutions,
            ``v // 2`` tokens after pooling.
    """
    tower = model.model.audio_tower
    valid = (frames - 1) // 2 + 1
    x = mel[:, :, : 2 * valid + 2].to(tower.conv1.weight.dtype)
    x = F.gelu(tower.conv2(F.gelu(tower.conv1(x)))).transpose(1, 2)[:, :valid]
    x = x + tower.embed_positions.weight[:valid]
    again = torch.is_grad_enabled() and getattr(tower, "gradient_checkpointing", False)
    for layer in tower.layers:
        x = checkpoint(_encode, layer, x, use_reentrant=False) if again else _encode(layer, x)
    x = tower.layer_norm(tower.avg_pooler(x.transpose(1, 2)).transpose(1, 2))
    return model.model.multi_modal_projector(x)
