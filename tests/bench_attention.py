"""How fast the attention kernel is with other blocks, on one GPU: python tests/bench_attention.py

A batch of the suffix step: 89 rows of 46 tokens, each after a system message of 24 tokens and a clip. Chosen so are
`Heads.block` of short clips, `LONG_BLOCK` of those of hundreds of tokens, `kernels.WARPS` and `kernels.STAGES`.
"""

import itertools
import sys
import time
from dataclasses import replace

import torch

from evaluators.audio_lm.attention import Heads, KeysValues
from evaluators.audio_lm.device import has_kernels
from evaluators.audio_lm.packing import CacheSegment, PackedRows

ROWS, TOKENS, SYSTEM = 89, 46, 24
SHAPES = {  # (heads, tokens of a clip)
    "Qwen2-Audio 7B": (Heads(32, 32, 128), 12),
    "Qwen2.5-Omni 7B, Audio Flamingo 3": (Heads(28, 4, 128), 12),
    "Qwen2.5-Omni 3B": (Heads(16, 2, 128), 12),
    "Voxtral Mini 3B": (Heads(32, 8, 128), 375),
}


def batch(clip: int, device: torch.device) -> PackedRows:
    """The rows, each with a clip of its own in the cache."""

    def whole(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    start = whole([TOKENS * n for n in range(ROWS + 1)])
    begin = whole([SYSTEM + clip * n for n in range(ROWS)])
    branch = torch.zeros(ROWS * TOKENS, dtype=torch.int32, device=device)
    system = CacheSegment(0, SYSTEM)
    length = whole([clip] * ROWS)
    return PackedRows(start, start, branch, begin, length, system, TOKENS, TOKENS, False)


def main() -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not has_kernels(device):
        print("no GPU with Triton's kernels here")
        return 2
    from evaluators.audio_lm import kernels

    print("| shape | keys at once | warps | stages | us a layer |\n| --- | --- | --- | --- | --- |")
    for name, (heads, clip) in SHAPES.items():
        rows, count = batch(clip, device), ROWS * TOKENS
        some = {"dtype": torch.bfloat16, "device": device}
        q = torch.randn(count, heads.query_width, **some)
        new = KeysValues(*torch.randn(2, count, heads.key_width, **some))
        cached = KeysValues(*torch.randn(2, SYSTEM + clip * ROWS, heads.key_width, **some))
        for block, warps, stages in itertools.product((32, 64, 128), (4, 8), (2, 3)):
            kernels.WARPS, kernels.STAGES = warps, stages
            given = (q, new, cached, rows, replace(heads, block=block))
            try:
                micros = timed(lambda given=given: kernels.attend(*given))
            except Exception as error:  # more shared memory than there is
                print(f"| {name} | {block} | {warps} | {stages} | {type(error).__name__} |")
                continue
            print(f"| {name} | {block} | {warps} | {stages} | {micros:.1f} |", flush=True)
    return 0


def timed(work) -> float:
    """Microseconds of a call, over 50."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(50):
        work()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - begin) / 50


if __name__ == "__main__":
    sys.exit(main())
