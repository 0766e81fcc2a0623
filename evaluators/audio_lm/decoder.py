"""The language model, run on packed tokens over a KV cache: the packed step.

The step takes rows of tokens, one after another in a single line. Each row attends to two segments of the cache, which
are never copied: the system message, and its own clip. Matrix products see packed tokens alone, so no time goes into
padding. On CUDA Triton kernels compute everything between the products, elsewhere plain torch does.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluators.audio_lm.attention import Heads, KeysValues, PaddedAttention
from evaluators.audio_lm.batch_sizes import BatchSizes, equal_sizes, steps
from evaluators.audio_lm.device import has_kernels
from evaluators.audio_lm.packing import PackedBatch, PackedRows
from evaluators.errors import UserError

LONG = ("voxtral",)  # each clip of which is hundreds of tokens
LONG_BLOCK = 64  # keys that attention takes at once there


class FusedLinear:
    """One or several linear layers of the same input as one product, their weights side by side.

    Layers that are no plain `nn.Linear` (4-bit weights, LoRA beside the weight) are called as they are.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.fused = all(type(m) is nn.Linear for m in modules)
        if not self.fused:
            return
        linears: list[nn.Linear] = list(modules)  # type: ignore[arg-type]
        self.bias: Tensor | None
        if len(linears) == 1:
            self.weight, self.bias = linears[0].weight.data, linears[0].bias
            return
        self.weight = side_by_side([m.weight.data for m in linears])
        self.bias = biases(linears)
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


def biases(linears: Sequence[nn.Linear]) -> Tensor | None:
    """``[out]`` of layers side by side, zero where one has none; None where none has one."""
    known = [m.bias for m in linears if m.bias is not None]
    if not known:
        return None
    return torch.cat(
        [
            known[0].data.new_zeros(m.out_features) if m.bias is None else m.bias.data
            for m in linears
        ]
    )


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


class DecoderLayer:
    """The products of one decoder layer and the weights of its norms."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = FusedLinear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = FusedLinear([attention.o_proj])
        self.q_norm: Any = getattr(attention, "q_norm", None)  # Qwen3 normalizes each head
        self.k_norm: Any = getattr(attention, "k_norm", None)
        self.experts = None if hasattr(mlp, "gate_proj") else mlp  # run by the stock layer
        if self.experts is None:
            self.gate_up = FusedLinear([mlp.gate_proj, mlp.up_proj])
            self.down = FusedLinear([mlp.down_proj])
        self.norm_1, self.norm_2 = layer.input_layernorm, layer.post_attention_layernorm


class Decoder:
    """The language model of a checkpoint, dense or with experts."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._lm = model.model.language_model
        config = model.config.text_config
        _refuse_other_kinds(config)
        heads = config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        block = LONG_BLOCK if model.config.model_type in LONG else Heads.block
        self.heads = Heads(heads, config.num_key_value_heads, dim, block)
        self.device, self.dtype = self._lm.embed_tokens.weight.device, self._lm.norm.weight.dtype
        self.layers = [DecoderLayer(layer) for layer in self._lm.layers]
        self.kernels = load_kernels(self.device)
        self._sizes: dict[tuple[int, int], BatchSizes] = {}

    def sizes(self, own: int, most: int) -> BatchSizes:
        """Tokens that a batch may have where scores are those of batches of `own` tokens; `most` of them at most.

        They are tried at the first call, on one layer of the model (`equal_sizes`). With experts there is `own` alone:
        how many rows an expert gets depends on the batch. So it is where there is no memory to try others.
        """
        key = own, max(own, most)
        if key not in self._sizes:
            self._sizes[key] = BatchSizes((own,))
            if self.layers[0].experts is None:
                with contextlib.suppress(torch.OutOfMemoryError):
                    self._sizes[key] = self._try_sizes(own, steps(*key))
        return self._sizes[key]

    def _try_sizes(self, own: int, tried: Sequence[int]) -> BatchSizes:
        rows = own * -(-max((own, *tried)) // own)
        random = torch.Generator(self.device).manual_seed(0)
        width = self._lm.norm.weight.shape[0]
        example = torch.randn(rows, width, device=self.device, generator=random)
        return equal_sizes(self._alone, example.to(self.dtype), own, tried)

    def _alone(self, x: Tensor) -> Tensor:
        """All that a layer computes of tokens but attention: what may depend on their number.

        Args:
            x: ``[token, channel]``; overwritten.

        Returns:
            ``[token, channels of queries, keys, values, residual stream and its norm]``.
        """
        layer = self.layers[0]
        qkv = layer.qkv(self._norm(x, layer.norm_1))
        self._norm_heads(qkv, layer)
        self.rotate(
            qkv, *self._angles(x, torch.ones(len(x), dtype=torch.int64, device=self.device))
        )
        out = layer.out(qkv[:, : self.heads.query_width].contiguous())
        h = self._add_norm(x, out, layer.norm_2)
        h = self._add_norm(x, self._feed_forward(h, layer), layer.norm_1)
        return torch.cat([qkv, x, h], 1)

    @property
    def bytes_per_place(self) -> int:
        """Memory that the keys and values of one token take over all layers."""
        return 2 * len(self.layers) * self.heads.key_width * int(self.dtype.itemsize)

    def step(self, batch: PackedBatch, cache: Sequence[KeysValues]) -> Tensor:
        """Runs all layers over a batch.

        The last layer computes queries and feed-forward for the kept tokens only.

        Args:
            batch: Packed tokens, and what they attend to in the cache.
            cache: Of each layer ``[place, key heads * dim]``; written where the batch says so.

        Returns:
            ``[kept, channel]`` after the final norm; empty if the batch keeps no token.
        """
        x = batch.tokens if batch.tokens.dim() == 2 else self._lm.embed_tokens(batch.tokens)
        cos, sin = self._angles(x, batch.positions)
        widths = [self.heads.query_width, self.heads.key_width, self.heads.key_width]
        rows, last = batch.rows, len(self.layers) - 1
        padded = None
        if self.kernels is None:
            padded = PaddedAttention(rows, batch.kept_rows, len(x), self.heads)
        h = self._norm(x, self.layers[0].norm_1)
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(h)
            self._norm_heads(qkv, layer)
            self.rotate(qkv, cos, sin)
            q, *new = qkv.split(widths, 1)
            if batch.write is not None:
                for into, part in zip(cache[i], new, strict=True):
                    into.index_copy_(0, batch.write, part)
            if i == last:
                if batch.keep is None or batch.kept_rows is None:
                    return x[:0]
                q, x, rows = q[batch.keep], x[batch.keep], batch.kept_rows
            out = self._attend(q, KeysValues(*new), cache[i], rows, padded)
            h = self._add_norm(x, layer.out(out), layer.norm_2)
            following = self._lm.norm if i == last else self.layers[i + 1].norm_1
            h = self._add_norm(x, self._feed_forward(h, layer), following)
        return h

    def read(self, hidden: Tensor, state: Tensor, token: Tensor) -> Tensor:
        """``[read]`` log-probabilities in nats over the full vocabulary, of pairs of a kept state and a token."""
        logits = self.model.lm_head(hidden).float()
        return logits[state, token] - logits.logsumexp(-1)[state]

    def rotate(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Rotates queries and keys of ``[token, channel]`` to their positions, in place."""
        heads = self.heads.queries + self.heads.keys
        if self.kernels is not None:
            self.kernels.rotate(qkv, cos, sin, heads, self.heads.dim)
            return
        part = qkv[:, : heads * self.heads.dim].view(len(qkv), heads, self.heads.dim)
        half = self.heads.dim // 2
        turned = torch.cat([-part[..., half:], part[..., :half]], -1)
        part.copy_(part * cos[:, None] + turned * sin[:, None])

    def _angles(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions, each ``[token, dim]`` in the precision of `x`."""
        cos, sin = self._lm.rotary_emb(x[None], self.rotary_rows(positions))
        return cos[0].contiguous(), sin[0].contiguous()

    def rotary_rows(self, positions: Tensor) -> Tensor:
        """Positions as the rotary embedding takes them: ``[1, token]``, or the same for time, height and width.

        Without pictures the three are equal (`get_rope_index` of Qwen2.5-Omni; a test holds it).
        """
        rows = positions[None]
        return rows.expand(3, 1, -1) if hasattr(self._lm.rotary_emb, "mrope_section") else rows

    def _attend(
        self, q: Tensor, new: KeysValues, cached: KeysValues, rows: PackedRows, padded: Any
    ) -> Tensor:
        if self.kernels is None:
            return padded(q, new, cached, rows)
        return self.kernels.attend(q, new, cached, rows, self.heads)

    def _feed_forward(self, h: Tensor, layer: DecoderLayer) -> Tensor:
        if layer.experts is not None:
            return layer.experts(h[None])[0]
        return layer.down(self._gate(layer.gate_up(h)))

    def _norm_heads(self, qkv: Tensor, layer: DecoderLayer) -> None:
        """Normalizes each head of queries and keys in place, where the model does."""
        if layer.q_norm is None:
            return
        first = 0
        for norm, heads in ((layer.q_norm, self.heads.queries), (layer.k_norm, self.heads.keys)):
            end = first + heads * self.heads.dim
            part = qkv[:, first:end].view(len(qkv), heads, self.heads.dim)
            part.copy_(norm(part))
            first = end

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        if self.kernels is None:
            return norm(x)
        return self.kernels.rms_norm(x, norm.weight, norm.variance_epsilon)

    def _add_norm(self, x: Tensor, more: Tensor, norm: Any) -> Tensor:
        """The normalized residual stream after `more` is added to it, in place."""
        if self.kernels is None:
            return norm(x.add_(more))
        return self.kernels.add_norm(x, more, norm.weight, norm.variance_epsilon)

    def _gate(self, both: Tensor) -> Tensor:
        """``silu(gate) * up`` of ``[token, gate and up]``."""
        if self.kernels is not None:
            return self.kernels.gate_up(both)
        gate, up = both.chunk(2, -1)
        return F.silu(gate).mul_(up)


def _refuse_other_kinds(config: Any) -> None:
    """Raises UserError for a language model that is of the kind by its modules, but computes something else."""
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    layers = getattr(config, "layer_types", None) or ()
    for name, value, known in (
        ("hidden_act", config.hidden_act, config.hidden_act == "silu"),
        # Their angles depend on the longest text of a batch.
        ("rope_type", rope, rope not in ("dynamic", "longrope")),
        ("layer_types", "sliding_attention", "sliding_attention" not in layers),
    ):
        if not known:
            raise UserError(
                f"the language model has {name} {value!r}, which is not known to be scored exactly; give a"
                " checkpoint of the released model, without it"
            )


def load_kernels(device: torch.device) -> Any:
    """The module of Triton kernels on CUDA; None where torch computes everything."""
    if not has_kernels(device):
        return None
    try:
        from evaluators.audio_lm import kernels
    except ImportError:  # CUDA without Triton, as on Windows
        return None
    return kernels
