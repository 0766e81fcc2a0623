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
import transformers
from accelerate.utils import send_to_device
from transformers import TrainerCallback

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.stock import StockModel, random_7b, to_nf4
from evaluators.bench import prompts_of_length
from evaluators.clips import Clip
from evaluators.finetuning.memory import RowLength, TrainingPlan, plan_training
from evaluators.finetuning.model import Graphs, adapted_model
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.samples import Collate, Samples, tokenize_prompts
from evaluators.finetuning.train import Machine, Training, train

DEVICE = torch.device("cuda")
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


class Losses(TrainerCallback):
    """Losses of the steps, and when they were logged."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.stamps: list[float] = []

    def on_log(self, args, state, control, *, logs=None, **kw) -> None:
        """Notes the loss of a step."""
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])
            self.stamps.append(time.perf_counter())


def ours(training: Training, model, folder: Path, theirs: float, gib: float | None):
    """Trains on `gib` GiB (None: all there is) and prints a row. Returns the base model."""
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    row = RowLength(14 + 25 + SUFFIX + 1, 25)  # system, audio, the prompt, the answer
    plan = plan_training(model.config, row, gib or total, batch=BATCH, quantization="nf4")
    torch.cuda.set_per_process_memory_fraction(min(1.0, (gib or total) / total))
    training = replace(training, plan=plan)
    if gib is not None:
        recipe = replace(training.recipe, epochs=1)
        training = replace(training, clips=training.clips[:64], recipe=recipe)
    graphs = training.machine.max_graphs
    watch = Losses()
    trained = train(training, folder / f"run{gib}{graphs}", [watch], loaded=model)
    seconds = trained.seconds * STEPS / trained.steps
    step = float(np.median(np.diff(watch.stamps)))
    name = plan.line() + (", CUDA graphs" if graphs else "")
    print(
        f"| {name} | {seconds:.1f} | {peak():.1f} | {theirs / seconds:.1f} | {1e3 * step:.0f} |"
        f" {theirs / STEPS / step:.1f} | {watch.losses[0]:.2f} to {trained.best_loss:.2f} |",
        flush=True,
    )
    return trained.model.peft.unload()


def noisy_adapter(training: Training, model, max_graphs: int):
    """A model whose adapter is not zero: that would hide half of the gradients."""
    adapted = adapted_model(
        training.checkpoint, Recipe(dropout=0.0), DEVICE, torch.bfloat16, loaded=model,
        graphs=Graphs(max_graphs),
    )  # fmt: skip
    for name, weight in adapted.peft.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            weight.data.copy_(0.01 * noise)
    return adapted.peft.train()


def compare(training: Training, model) -> None:
    """Prints how far the gradients by CUDA graphs lie from those without, and those by another library's products."""
    processor, labels = training.processor, training.labels
    wordings = tokenize_prompts(training.prompts, labels, processor.tokenizer, QWEN2_AUDIO, False)
    store = FeatureStore(None, processor.feature_extractor)
    samples = Samples(training.clips[:8], wordings, labels, store)
    collate = Collate(QWEN2_AUDIO, model.config, "answer")
    batch = send_to_device(collate([samples[i] for i in range(8)]), "cuda")
    found = []
    for max_graphs, library in ((0, "cublas"), (0, "cublaslt"), (3, "cublas")):
        torch.backends.cuda.preferred_blas_library(library)
        peft = noisy_adapter(training, model, max_graphs)
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
    print("transformers", transformers.__version__, torch.cuda.get_device_name())
    model, processor = random_7b(DEVICE)
    to_nf4(model.model)
    peak()
    checkpoint = replace(open_checkpoint("pocket-base"), quantization="nf4")
    prompts = prompts_of_length(processor.tokenizer, 1, SUFFIX)
    stock = StockModel(model, processor, DEVICE)
    plain_forward = model.forward
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = make_clips(folder, 128)
        adapted = adapted_model(checkpoint, Recipe(), DEVICE, torch.bfloat16, loaded=model)
        print(f"{adapted.trainable():,} trainable parameters")
        model.forward = plain_forward
        theirs = published(adapted.peft, stock, prompts[0], clips, args.steps) * STEPS
        print(
            "| way | s for 24 steps, all | peak GiB | times faster | ms a step | times faster | loss |"
            "\n| --- | --- | --- | --- | --- | --- | --- |"
        )
        print(
            f"| published, over {args.steps} steps | {theirs:.1f} | {peak():.1f} | |"
            f" {1e3 * theirs / STEPS:.0f} | | |",
            flush=True,
        )
        model = adapted.peft.unload()
        training = Training(
            checkpoint=checkpoint, recipe=Recipe(epochs=3), prompts=tuple(prompts),
            labels=("SPEECH", "NONSPEECH"), clips=clips, validation=clips[:16],
            processor=processor, plan=TrainingPlan(False, BATCH, False, 0.0, None),
            machine=Machine(DEVICE, torch.bfloat16),
        )  # fmt: skip
        for gib, graphs in ((8.0, 0), (None, 0), (None, 3)):
            machine = replace(training.machine, max_graphs=graphs)
            model = ours(replace(training, machine=machine), model, folder, theirs, gib)
        compare(training, model)
    return 0


if __name__ == "__main__":
    sys.exit(main())
