"""The Triton kernels equal plain torch. Run by Triton's interpreter where there is no GPU."""

import os
import subprocess
import sys

import pytest
import torch
from common import ROOT

pytest.importorskip("triton", reason="Triton comes with the CUDA builds of torch")

CHECK = r"""
import sys
from dataclasses import replace
import torch
from evaluators.audio_lm import kernels
import numpy as np
from evaluators.audio_lm.attention import Heads, KeysValues, PaddedAttention, RowAttention
from evaluators.audio_lm.decoder import Decoder
from evaluators.audio_lm.packing import CacheSegment, PackedRows
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

torch.manual_seed(0)
device = sys.argv[1]
heads, tokens = Heads(int(sys.argv[2]), int(sys.argv[3]), dim=64), 48

def put(*values): return torch.tensor(values, dtype=torch.int32, device=device)

x = torch.randn(tokens, 96, device=device)
norm = Qwen2RMSNorm(96, 1e-6).to(device); norm.weight.data.normal_()
assert torch.allclose(kernels.rms_norm(x, norm.weight.data, 1e-6), norm(x), atol=1e-5)
more, x2 = torch.randn_like(x), x.clone()
assert torch.allclose(kernels.add_norm(x2, more, norm.weight.data, 1e-6), norm(x + more), atol=1e-5)
assert torch.allclose(x2, x + more)
both = torch.randn(tokens, 200, device=device)
gate, up = both.chunk(2, -1)
assert torch.allclose(kernels.gate_up(both), torch.nn.functional.silu(gate) * up, atol=1e-5)

class Model: pass
model = Model(); model.heads, model.kernels = heads, None
qkv = torch.randn(tokens, heads.query_width + 2 * heads.key_width, device=device)
cos, sin = torch.randn(2, tokens, heads.dim, device=device)
turned = qkv.clone()
kernels.rotate(turned, cos, sin, heads.queries + heads.keys, heads.dim)
plain = qkv.clone()
Decoder.rotate(model, plain, cos, sin)
assert torch.allclose(turned, plain, atol=1e-5)

q, *new = turned.split([heads.query_width, heads.key_width, heads.key_width], 1)
new, cached = KeysValues(*new), KeysValues(*torch.randn(2, 90, heads.key_width, device=device))
# Rows of 20, 1, 17 tokens (10 of padding); the third has two branches after 12 tokens.
branch = torch.zeros(tokens, dtype=torch.int32, device=device)
branch[33:36], branch[36:38] = 1, 2
start = put(0, 20, 21, 38)
all_rows = PackedRows(start, start, branch, put(5, 40, 0), put(35, 3, 0), CacheSegment(80, 7), 20, 20, True)
kept_rows = replace(all_rows, query_start=put(0, 1, 2, 8), longest_query=6, few_queries=True)
padded = PaddedAttention(all_rows, kept_rows, tokens, heads)
kept = torch.tensor([19, 20, *range(32, 38)], device=device)
for rows, queries in ((all_rows, q), (kept_rows, q[kept])):
    ours = kernels.attend(queries, new, cached, rows, heads)
    theirs = padded(queries, new, cached, rows)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=2e-5), float((ours - theirs).abs().max())

# Of a tower: rows of 1, 30, 7, 70 tokens in a line of 128, whose tokens see all of their row.
lengths, whole = np.array([1, 30, 7, 70]), Heads(4, 4, 64, block=64)
parts = torch.randn(3, 128, whole.query_width, device=device)
ours = RowAttention(lengths, 128, whole, parts.device, kernels)(*parts)
theirs = RowAttention(lengths, 128, whole, parts.device, None)(*parts)
assert torch.allclose(ours, theirs, atol=2e-5), float((ours - theirs).abs().max())
assert not theirs[108:].any() and theirs[:108].abs().sum(1).min() > 0

# Those of training.
from evaluators.finetuning import elementwise as plain
ours = kernels
def close(a, b): assert torch.allclose(a, b, atol=2e-5, rtol=2e-5), float((a - b).abs().max())
x, more, grad, into, norm = (torch.randn(5, 48, device=device) for _ in range(5))
for added in (None, more):
    for a, b in zip(ours.stream_norm(x, added, norm[0], 1e-6), plain.stream_norm(x, added, norm[0], 1e-6)):
        close(a, b)
both = into.clone(), into.clone()
for one, into in zip((ours, plain), both):
    one.stream_norm_backward(grad, x, norm[0], 1e-6, into)
close(*both)
wide, grad = torch.randn(5, 140, device=device), torch.randn(5, 70, device=device)
close(ours.gate_up_backward(grad, wide), plain.gate_up_backward(grad, wide))
ones, seed = torch.ones(90, 64, device=device), torch.tensor(2**31 - 3, device=device)
left = ours.dropped(ones, seed, 10, 0.25)  # more than 32 bits hold
assert abs(float((left == 0).float().mean()) - 0.25) < 0.03 and abs(float(left.max()) - 4 / 3) < 1e-6
assert torch.equal(left, ours.dropped(ones, seed, 10, 0.25))
assert not torch.equal(left, ours.dropped(ones, seed, 11, 0.25))
total = ones.clone()
ours.add_dropped(total, ones, seed, 10, 0.25)
close(total, ones + left)
print("equal")
"""


@pytest.mark.parametrize(("queries", "keys"), [(4, 2), (7, 1), (3, 3)])
def test_kernels_equal_torch(queries, keys):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if device == "cpu":
        env["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", CHECK, device, str(queries), str(keys)],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "equal", done.stderr
