"""The layers of Qwen2-Audio run exactly, without the stock forward's padding: audio tower, prefix, suffix step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Prefixes:
    """Keys and values of system message and audio for some clips: per layer ``[clip, head, position, channel]``."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor  # [clip], valid positions

    @property
    def bytes(self) -> int:
        """Memory they take."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))


class Transformer:
    """The language model's layers, run over a shared prefix. Calls the model's own modules, LoRA and 4-bit included."""

    def __init__(self, model: Any, compiled: bool = False) -> None:
        self.model = model
        self.lm = model.model.language_model
        config = model.config.text_config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.device, self.dtype = self.lm.embed_tokens.weight.device, self.lm.norm.weight.dtype
        self._layer: Callable[..., Any] = (
            torch.compile(self._eager, dynamic=False) if compiled else self._eager
        )

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[row, 1, position, channel]`` for integer positions ``[row, position]``."""
        cos, sin = self.lm.rotary_emb(
            torch.empty(0, device=self.device, dtype=self.dtype), positions
        )
        return cos[:, None], sin[:, None]

    def _eager(
        self,
        layer: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        before: tuple[Tensor, Tensor] | None,
        keep: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One decoder layer. `before`: keys and values of the prefix; `keep`: positions whose output is needed."""
        rows, length, _ = x.shape
        attention = layer.self_attn
        h = layer.input_layernorm(x)
        q = attention.q_proj(h).view(rows, length, self.heads, self.head_dim).transpose(1, 2)
        k = attention.k_proj(h).view(rows, length, self.kv_heads, self.head_dim).transpose(1, 2)
        v = attention.v_proj(h).view(rows, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        all_k, all_v = (
            (k, v)
            if before is None
            else (torch.cat([before[0], k], 2), torch.cat([before[1], v], 2))
        )
        if keep is not None:  # [row, read]: the last layer works on these positions only
            q = q.gather(2, keep[:, None, :, None].expand(-1, self.heads, -1, self.head_dim))
            x = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[-1]))
            mask = (
                None
                if mask is None
                else mask.gather(2, keep[:, None, :, None].expand(-1, -1, -1, mask.shape[-1]))
            )
        out = F.scaled_dot_product_attention(
            q,
            all_k,
            all_v,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.heads != self.kv_heads,
        )
        x = x + attention.o_proj(out.transpose(1, 2).reshape(rows, -1, self.heads * self.head_dim))
        return x + layer.mlp(layer.post_attention_layernorm(x)), k, v

    def prefix(self, embeddings: Tensor, lengths: Tensor) -> Prefixes:
        """Keys and values for right-padded embeddings ``[clip, position, channel]`` of the given valid lengths."""
        cos, sin = self.rotary(torch.arange(embeddings.shape[1], device=self.device)[None])
        x, keys, values = embeddings, [], []
        for layer in self.lm.layers:
            x, k, v = self._eager(layer, x, cos, sin, None, None, None)
            keys.append(k)
            values.append(v)
        return Prefixes(keys, values, lengths)

    def read(
        self,
        prefixes: Prefixes,
        clip: Tensor,
        ids: Tensor,
        lengths: Tensor,
        reads: int,
        wanted: Tensor,
    ) -> Tensor:
        """Log-probabilities ``[row, read, wanted]`` in nats at the last `reads` positions of each row.

        Args:
            prefixes: From `prefix`.
            clip: ``[row]``, index into the prefixes.
            ids: ``[row, position]``, right-padded suffix tokens.
            lengths: ``[row]``, valid suffix positions.
            reads: How many positions to read, counted from each row's end.
            wanted: ``[wanted]``, token ids to read.
        """
        rows, length = ids.shape
        pad = prefixes.keys[0].shape[2]
        valid = prefixes.lengths[clip]
        cos, sin = self.rotary(valid[:, None] + torch.arange(length, device=self.device)[None])
        seen = torch.arange(pad, device=self.device)[None] < valid[:, None]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        mask = torch.cat(
            [
                seen[:, None, None].expand(-1, 1, length, -1),
                causal[None, None].expand(rows, 1, -1, -1),
            ],
            3,
        )
        keep = (lengths[:, None] - reads + torch.arange(reads, device=self.device)[None]).clamp(
            min=0
        )
        x = self.lm.embed_tokens(ids)
        last = len(self.lm.layers) - 1
        for i, layer in enumerate(self.lm.layers):
            before = (prefixes.keys[i][clip], prefixes.values[i][clip])
            x, _, _ = self._layer(layer, x, cos, sin, mask, before, keep if i == last else None)
        logits = self.model.lm_head(self.lm.norm(x)).float()
        return logits[..., wanted] - logits.logsumexp(-1, keepdim=True)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864), halves convention."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


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
    for layer in tower.layers:
        x = layer(x, None)
    x = tower.layer_norm(tower.avg_pooler(x.transpose(1, 2)).transpose(1, 2))
    return model.model.multi_modal_projector(x)
