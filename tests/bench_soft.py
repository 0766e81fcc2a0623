"""Times a soft prompt's optimizer step: the suffix alone over kept keys and values, against the whole sequence.

python tests/bench_soft.py                      # the pocket base on this CPU
python tests/bench_soft.py --device cuda        # the exact 7B shape with random weights, on a GPU with 40 GB
python tests/bench_soft.py --device cuda --nf4  # its 4-bit weights, kept at 4 bits; needs bitsandbytes

Clips of noise of 1 s, 16 a step, 45 tokens from the end of the audio to the answer. The gradients of both ways are held
against each other. Prints one Markdown table.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from bench_finetune import make_clips
from tiny_models import whole_sequence
from torch import Tensor

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.device import pick_device
from evaluators.audio_lm.loading import load_model
from evaluators.audio_lm.soft import SoftScorer, answer_logp
from evaluators.audio_lm.stock import random_7b, to_nf4
from evaluators.bench import prompts_of_length

BATCH, SUFFIX, KEPT = 16, 45, 64


def measured(
    device: torch.device, steps: int, step: Callable[[], Tensor], vectors: Tensor
) -> tuple[float, float, Tensor]:
    """(Milliseconds a step, peak GiB on the card, gradient)."""
    cuda = device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps + 2):
        vectors.grad = None
        begin = time.perf_counter()
        step().backward()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    assert vectors.grad is not None
    return 1e3 * sorted(times[2:])[steps // 2], peak, vectors.grad.clone()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    device = pick_device(args.device)
    checkpoint = open_checkpoint("pocket-base")
    if device.type == "cuda":
        model, processor = random_7b(device)
        if args.nf4:
            to_nf4(model.model)
            checkpoint = replace(checkpoint, quantization="nf4")
        loaded, dtype, name = (model, processor), "bfloat16", "7B shape, random weights"
    else:
        one = SoftScorer(checkpoint, None, "cpu", "float32")
        loaded = (load_model(checkpoint, one.family, device, torch.float32), one.processor)
        dtype, name = "float32", "pocket-base"
    scorer = SoftScorer(checkpoint, None, str(device), dtype, loaded=loaded, dequantize=False)
    prompt = prompts_of_length(scorer.processor.tokenizer, 1, SUFFIX, scorer.family.template)[0]
    vectors = scorer.words(prompt).vectors.to(device).requires_grad_()
    print(f"{name}{', NF4 kept' if args.nf4 else ''}, {device}, {BATCH} clips of 1 s a step\n")
    print("| way | ms a step | 1,000 clips x 5 epochs, s | peak GiB | gradient off by, relative |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        clips = make_clips(Path(folder), KEPT)
        batch = clips[:BATCH]
        audio = [one.clone() for one in scorer.embeddings(batch)]
        ways = {
            "whole sequence, stock layers": lambda: (
                -whole_sequence(scorer, prompt, vectors, audio).sum()
            ),
            "suffix over kept keys and values": lambda: (
                -answer_logp(scorer, prompt, vectors, batch).sum()
            ),
        }
        reference = None
        for way, step in ways.items():
            ms, gib, gradient = measured(device, args.steps, step, vectors)
            reference = gradient if reference is None else reference
            off = float((gradient - reference).norm() / reference.norm())
            print(f"| {way} | {ms:,.0f} | {ms * 5000 / BATCH / 1e3:,.0f} | {gib:.1f} | {off:.1e} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
