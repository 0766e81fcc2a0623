"""The Triton kernels equal plain torch. Run by Triton's interpreter where there is no GPU."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

pytest.importorskip("triton", reason="Triton comes with the CUDA builds of torch")

CHECK = r"""
import sys
import numpy as np, torch
from evaluators import kernels
from evaluators.layers import Dense, Rows
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

torch.manual_seed(0)
device = sys.argv[1]
heads, kv_heads, dim, tokens = 4, 2, 64, 48

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
model = Model(); model.heads, model.kv_heads, model.head_dim, model.kernels = heads, kv_heads, dim, None
qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device=device)
cos, sin = torch.randn(2, tokens, dim, device=device)
turned = qkv.clone()
kernels.rotate(turned, cos, sin, heads + kv_heads, dim)
from evaluators.layers import Transformer
plain = qkv.clone()
Transformer._rotate(model, plain, cos, sin)
assert torch.allclose(turned, plain, atol=1e-5)

q, k, v = turned.split([heads * dim, kv_heads * dim, kv_heads * dim], 1)
cached_k, cached_v = torch.randn(2, 90, kv_heads * dim, device=device)
# Rows of 20, 1, 17 tokens (10 of padding); the third has two branches after 12 tokens.
branch = torch.zeros(tokens, dtype=torch.int32, device=device)
branch[33:36], branch[36:38] = 1, 2
rows = Rows(put(0, 20, 21, 38), put(0, 1, 2, 8), branch, put(5, 40, 0), put(35, 3, 0), (80, 7), 20, 6, True)
dense = Dense(rows, tokens, model)
for ends in (False, True):
    keep = torch.tensor([19, 20, *range(32, 38)], device=device) if ends else torch.arange(tokens, device=device)
    ours = kernels.attend(q[keep], k, v, cached_k, cached_v, rows.query_start if ends else rows.start,
        rows.start, rows.branch, rows.begin, rows.length, rows.shared,
        rows.longest_query if ends else rows.longest, ends, True, heads, kv_heads, dim)
    theirs = dense(q[keep], k, v, cached_k, cached_v, ends)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=2e-5), (ends, float((ours - theirs).abs().max()))
print("equal")
"""


def test_kernels_equal_torch():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    if device == "cpu":
        env["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", CHECK, device], env=env, capture_output=True, text=True
    )
    assert done.stdout.strip() == "equal", done.stderr
