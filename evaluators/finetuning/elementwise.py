"""What stands between the matrix products of a layer, forward and backward, by plain torch.

The residual stream is float32, what goes into a product has the precision of the weights. For CUDA
`evaluators.audio_lm.kernels` has the same functions, each as one kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def stream_norm(x: Tensor, more: Tensor | None, norm: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(``x + more`` in float32, its root mean square normalization in `norm`'s precision) of ``[token, channel]``."""
    total = x if more is None else x + more
    return total, (_unit(total, eps)[0] * norm).to(norm.dtype)


def stream_norm_backward(grad: Tensor, x: Tensor, norm: Tensor, eps: float, into: Tensor) -> None:
    """Adds to `into` the gradient by `x` of its normalization, from that by what came out."""
    unit, scale = _unit(x, eps)
    inner = grad.float() * norm
    into += scale * (inner - unit * (inner * unit).mean(-1, keepdim=True))


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * scale, scale


def gate_up(both: Tensor) -> Tensor:
    """``silu(gate) * up`` for ``[token, 2 * channel]`` that holds gate beside up."""
    gate, up = both.chunk(2, -1)
    return F.silu(gate) * up


def gate_up_backward(grad: Tensor, both: Tensor) -> Tensor:
    """The gradient by `both` of `gate_up`."""
    gate, up = both.float().chunk(2, -1)
    share = torch.sigmoid(gate)
    by_gate = grad * up * share * (1 + gate * (1 - share))
    return torch.cat([by_gate, grad * gate * share], -1).to(both.dtype)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, dim: int) -> None:
    """Rotary positions on the first `heads` heads of ``[token, channel]``, in place; with ``-sin`` its gradient."""
    part = qkv[:, : heads * dim].view(len(qkv), heads, dim)
    turned = torch.cat([-part[..., dim // 2 :], part[..., : dim // 2]], -1)
    part.copy_(part * cos[:, None] + turned * sin[:, None])


def dropped(x: Tensor, seed: Tensor, number: int, share: float) -> Tensor:
    """`x` with a random `share` set to zero and the rest scaled up; the places depend on ``seed + number`` alone."""
    return x * _mask(x, seed, number, share)


def add_dropped(into: Tensor, x: Tensor, seed: Tensor, number: int, share: float) -> None:
    """Adds ``dropped(x, seed, number, share)`` to `into`."""
    into += x * _mask(x, seed, number, share)


def _mask(x: Tensor, seed: Tensor, number: int, share: float) -> Tensor:
    source = torch.Generator(x.device).manual_seed(int(seed) + number)
    kept = torch.rand(x.shape, generator=source, device=x.device) >= share
    return kept.to(x.dtype) / (1 - share)
