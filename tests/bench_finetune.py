"""Times fine-tuning on the exact 7B shape against the published configuration: python tests/bench_finetune.py

NF4 with random weights, LoRA rank 16 on q, k, v, o, 128 clips of 1 s x 3 epochs, 16 samples a step: 24 steps.
Published: mels of 30 s, batch 2 x 8, gradient checkpointing, logits at every position; timed over a few steps. Ours:
the same training through `finetuning.train`, evaluation and checkpoints included, as it would run here, and
as it would run in 8 GB. Needs a GPU with 40 GB and bitsandbytes.
"""

import argparse
import gc
import hashlib
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from accelerate.utils import send_to_device

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.memory import plan_training
from evaluators.audio_lm.stock import StockModel, random_7b, to_nf4
from evaluators.bench import prompts_of_length
from evaluators.clips import Clip
from evaluators.finetuning.samples import Collate, Samples, wordings
from evaluators.finetuning.train import Graphs, Recipe, adapted, train

STEPS, BATCH, SUFFIX = 24, 16, 45


def make_clips(folder: Path, count: int) -> list[Clip]:
    """Noise of 1 s."""
    out = []
    for i in range(count):
        wave = np.random.default_rng(i).normal(0, 0.1, 16000).astype(np.float32)
        path = folder / f"{i}.wav"
        soundfile.write(path, wave, 16000, subtype="PCM_16")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        label = ("SPEECH", "NONSPEECH")[i % 2]
        out.append(
            Clip(str(i), path, label, "x", 1000.0, None, "x", f"s{i}", "train", "CC0", digest)
        )
    return out


def published(peft, stock: StockModel, prompt, clips, steps: int) -> float:
    """Seconds an optimizer step of the published configuration, features ready."""
    model = peft.get_base_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    peft.train()
    weights = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-4)
    inputs = stock.batch(prompt, clips[:2])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -1] = inputs["input_ids"][:, -1]

    def step() -> None:
        for _ in range(8):
            with torch.autocast("cuda", torch.bfloat16):
                loss = peft(**inputs, labels=labels).loss / 8
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    model.gradient_checkpointing_disable()
    return (time.perf_counter() - begin) / steps


def ours(
    checkpoint, recipe, model, processor, prompts, clips, folder, gib, graphs, theirs
):  # fmt: skip
    """Trains on `gib` GiB (None: all there is) and prints a row. Returns the base model."""
    device, labels = torch.device("cuda"), ("SPEECH", "NONSPEECH")
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    tokens = 14 + 25 + SUFFIX + 1  # system, audio, the prompt, the answer
    plan = plan_training(model.config, "nf4", gib or total, tokens, 25, BATCH)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (gib or total) / total))
    if gib is not None:
        clips, recipe = clips[:64], replace(recipe, epochs=1)
    losses, stamps = [], []

    def tell(entry: dict[str, float]) -> None:
        if "loss" in entry:
            losses.append(entry["loss"])
            stamps.append(time.perf_counter())

    peft, trained = train(
        checkpoint, recipe, processor, prompts, labels, clips, clips[:16],
        folder / f"run{gib}{graphs}", plan, device, torch.bfloat16, tell=tell, loaded=model,
        most_graphs=graphs,
    )  # fmt: skip
    seconds = trained.seconds * STEPS / trained.steps
    step = float(np.median(np.diff(stamps)))
    name = plan.line() + (", CUDA graphs" if graphs else "")
    print(
        f"| {name} | {seconds:.1f} | {peak():.1f} | {theirs / seconds:.1f} | {1e3 * step:.0f} |"
        f" {theirs / STEPS / step:.1f} | {losses[0]:.2f} to {trained.best_loss:.2f} |",
        flush=True,
    )
    return peft.unload()


def compare(checkpoint, model, processor, prompts, clips) -> None:
    """Prints how far the gradients by CUDA graphs lie from those without, and those by another library's products."""
    labels = ("SPEECH", "NONSPEECH")
    store = FeatureStore(None, processor.feature_extractor)
    asked = wordings(prompts, labels, processor.tokenizer, QWEN2_AUDIO, False)
    samples = Samples(clips[:8], asked, labels, store)
    collate = Collate(QWEN2_AUDIO, model.config, "answer")
    found = []
    recipe = Recipe(dropout=0.0)
    batch = send_to_device(collate([samples[i] for i in range(8)]), "cuda")
    for most, library in ((0, "cublas"), (0, "cublaslt"), (3, "cublas")):
        torch.backends.cuda.preferred_blas_library(library)
        peft = adapted(
            checkpoint, recipe, torch.device("cuda"), torch.bfloat16, False, model, Graphs(most)
        ).train()
        for name, weight in peft.named_parameters():
            if "lora_B" in name:  # zero at first, which would hide the other half
                weight.data.copy_(
                    0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
                )
        for _ in range(3):
            peft.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                loss = peft(**batch)["loss"]
            loss.backward()
            value = float(loss.detach())
            del loss  # a graph is captured only where nothing of the step before is alive
        grads = [p.grad.float().flatten() for p in peft.parameters() if p.requires_grad]
        found.append((value, torch.cat(grads)))
        model = peft.unload()
    (loss, plain), *others = found
    for name, (value, grads) in zip(("products by cuBLASLt", "CUDA graphs"), others, strict=True):
        print(
            f"plain against {name}: loss {loss:.5f} and {value:.5f}; gradients differ by"
            f" {float((plain - grads).norm() / plain.norm()):.2e} of their norm",
            flush=True,
        )


def peak() -> float:
    """Largest memory since it was last asked for, in GiB."""
    value = torch.cuda.max_memory_allocated() / 2**30
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return value


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2, help="steps of the published timed")
    args = parser.parse_args()
    import transformers

    print("transformers", transformers.__version__, torch.cuda.get_device_name())
    device = torch.device("cuda")
    model, processor = random_7b(device)
    to_nf4(model.model)
    peak()
    checkpoint = replace(open_checkpoint("pocket-base"), quantization="nf4")
    prompts = prompts_of_length(processor.tokenizer, 1, SUFFIX)
    recipe = Recipe(epochs=3)
    stock = StockModel(model, processor, device)
    plain_forward = model.forward
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = make_clips(folder, 128)
        peft = adapted(checkpoint, recipe, device, torch.bfloat16, False, loaded=model)
        count = sum(p.numel() for p in peft.parameters() if p.requires_grad)
        print(f"{count:,} trainable parameters")
        model.forward = plain_forward
        theirs = published(peft, stock, prompts[0], clips, args.steps) * STEPS
        print(
            "| way | s for 24 steps, all | peak GiB | times faster | ms a step | times faster | loss |"
            "\n| --- | --- | --- | --- | --- | --- | --- |"
        )
        print(
            f"| published, over {args.steps} steps | {theirs:.1f} | {peak():.1f} | |"
            f" {1e3 * theirs / STEPS:.0f} | | |",
            flush=True,
        )
        model = peft.unload()
        for gib, graphs in ((8.0, 0), (None, 0), (None, 3)):
            model = ours(
                checkpoint, recipe, model, processor, prompts, clips, folder, gib, graphs, theirs
            )
        compare(checkpoint, model, processor, prompts, clips)
    return 0


if __name__ == "__main__":
    sys.exit(main())
