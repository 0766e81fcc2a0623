"""Times fine-tuning on the exact 7B shape against plain transformers and peft: python tests/bench_finetune.py

NF4 with random weights, LoRA, clips of 1 s, 16 samples a step. Plain: mels of 30 s, the tower frozen, rank 8 on the
language model's attention, features ready: the published trainers' recipe, and what else fits the card. Ours: the
default recipe through `finetuning.train`, 128 clips x 3 epochs: 24 steps with evaluations and checkpoints, as it would
run here, as it would run in 8 GB, and, where there are two cards, on both. Then how far each way's gradients lie from
those of plain transformers in float32, and with --profile which kernels a step runs, and what the host does in a step
through Trainer. Needs a GPU with 80 GB and bitsandbytes; --tiny runs the same on the pocket's model, to see that it
runs.
"""

import argparse
import functools
import gc
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from accelerate.utils import send_to_device
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from evaluators.audio_lm.adapters import merge
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.loading import load_model
from evaluators.audio_lm.memory import weight_counts
from evaluators.audio_lm.stock import StockModel, random_7b, to_nf4
from evaluators.bench import matrix_rate, prompts_of_length
from evaluators.clips import Clip
from evaluators.finetuning.memory import RowLength, TrainingPlan, plan_training
from evaluators.finetuning.model import adapted_model
from evaluators.finetuning.processes import close
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.samples import Collate, Samples, tokenize_prompts
from evaluators.finetuning.train import Machine, Training, train

STEPS, BATCH, SUFFIX = 24, 16, 45
LABELS = ("SPEECH", "NONSPEECH")
COMPARED = 4  # samples whose gradients are compared: what float32 has room for
PARTS = ("published", "plain", "small", "whole", "gradients", "profile", "cards")
OF_4_BITS = {"published", "plain", "small", "gradients"}  # parts of them; they need bitsandbytes
LENGTHS = (200, 300, 500, 1000)  # ms


@dataclass
class Bench:
    """What every part works on. `model` is taken apart and put together again on the way."""

    device: torch.device
    model: Any
    processor: Any
    clips: list[Clip]
    folder: Path
    rate: float  # FLOP/s of a lasting matrix product
    published: float = float("nan")  # seconds a step of the published recipe
    best: float = float("inf")  # and of the fastest plain way
    runs: int = 0  # trainings so far

    @property
    def stock(self) -> StockModel:
        """The model through its own classes."""
        self.model.__dict__.pop("forward", None)  # what an adapted model put there
        return StockModel(self.model, self.processor, self.device)

    @property
    def prompts(self) -> list[Any]:
        """One prompt."""
        return prompts_of_length(self.processor.tokenizer, 1, SUFFIX)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.lm_head.weight.dtype

    @property
    def flop(self) -> float:
        """Of a step's products, forward and backward by the inputs, all rows whole but for the answer."""
        decoder, _, _, tower = weight_counts(self.model.config)
        return 4.0 * BATCH * (decoder * (self.length - 1) + tower * 50)

    @functools.cached_property
    def length(self) -> int:
        """Tokens of a row: system message, audio, the prompt, the answer."""
        return self.samples(1)["ids"].shape[1]

    def training(self, **changes: Any) -> Training:
        """The default recipe on all clips."""
        fields = {
            "checkpoint": open_checkpoint("pocket-base"), "recipe": Recipe(epochs=3),
            "prompts": tuple(self.prompts), "labels": LABELS, "clips": self.clips,
            "validation": self.clips[:16], "processor": self.processor,
            "plan": TrainingPlan(False, BATCH, False, 0.0, None),
            "machine": Machine(self.device, self.dtype),
        }  # fmt: skip
        return Training(**{**fields, **changes})

    def samples(self, count: int, padded: bool = False) -> dict[str, Any]:
        """A batch of the first clips."""
        store = FeatureStore(None, self.processor.feature_extractor)
        wordings = tokenize_prompts(
            self.prompts, LABELS, self.processor.tokenizer, QWEN2_AUDIO, False
        )
        samples = Samples(self.clips[:count], wordings, LABELS, store)
        collate = Collate(QWEN2_AUDIO, self.model.config, "answer", padded)
        return send_to_device(collate([samples[i] for i in range(count)]), str(self.device))

    def stock_samples(self, count: int) -> dict[str, Any]:
        """The same as the model's own classes take it: mels of 30 s, the answer's token alone with a label."""
        inputs = self.stock.batch(self.prompts[0], self.clips[:count])
        wordings = tokenize_prompts(
            self.prompts, LABELS, self.processor.tokenizer, QWEN2_AUDIO, False
        )
        answers = [wordings[0].answers[LABELS.index(c.label)] for c in self.clips[:count]]
        last = torch.tensor(answers, device=self.device)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], last], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[:, -last.shape[1] :] = last
        return {**inputs, "labels": labels}

    def autocast(self) -> Any:
        """As Trainer computes."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )

    def wait(self) -> float:
        """The time when all that was launched is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak(self) -> float:
        """Largest memory since it was last asked for, in GiB."""
        if self.device.type != "cuda":
            return 0.0
        value = torch.cuda.max_memory_allocated() / 2**30
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return value


def make_clips(folder: Path, count: int, lengths: tuple[int, ...] = (1000,)) -> list[Clip]:
    """Noise of so many ms, in turns."""
    out = []
    for i in range(count):
        ms = lengths[i // 2 % len(lengths)]
        wave = np.random.default_rng(i).normal(0, 0.1, 16 * ms).astype(np.float32)
        path = folder / f"{i}-{ms}.wav"
        if not path.is_file():
            soundfile.write(path, wave, 16000, subtype="PCM_16")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        label = LABELS[i % 2]
        out.append(
            Clip(str(i), path, label, "x", float(ms), None, "x", f"s{i}", "train", "CC0", digest)
        )
    return out


def plain_step(bench: Bench, micro: int, checkpointing: bool, steps: int) -> float:
    """Seconds an optimizer step of plain transformers and peft, after one batch to warm up."""
    config = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.05,
        target_modules=r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj)",
    )  # fmt: skip
    inputs = bench.stock_samples(micro)
    peft = get_peft_model(bench.model, config).train()
    if checkpointing:
        bench.model.enable_input_require_grads()
        bench.model.gradient_checkpointing_enable({"use_reentrant": False})
    weights = [p for p in peft.parameters() if p.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, lr=2e-4, fused=bench.device.type == "cuda")

    def samples(times: int) -> None:
        for _ in range(times):
            with bench.autocast():
                loss = peft(**inputs).loss * micro / BATCH
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    samples(1)
    begin = bench.wait()
    for _ in range(steps):
        samples(BATCH // micro)
    seconds = (bench.wait() - begin) / steps
    if checkpointing:
        bench.model.gradient_checkpointing_disable()
        bench.model.disable_input_require_grads()
    bench.model = peft.unload().eval()
    return seconds


HEAD = (
    "| way | ms a step | best plain over it | of the floor | s for 24 steps, whole | published over it | peak GiB |"
    " loss |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def row(bench: Bench, name: str, step: float, whole: float | None, loss: str = "") -> None:
    """Prints a row of the table."""
    print(
        f"| {name} | {1e3 * step:.0f} | {bench.best / step:.2f} | {100 * bench.flop / bench.rate / step:.0f} % |"
        f" {f'{whole:.1f}' if whole else f'({STEPS * step:.1f})'} |"
        f" {STEPS * bench.published / (whole or STEPS * step):.1f} | {bench.peak():.1f} | {loss} |",
        flush=True,
    )


def plain(bench: Bench, ways: tuple[tuple[int, bool, int], ...] = ((BATCH, False, 3),)) -> None:
    """Rows of plain transformers and peft, of (samples at once, checkpointing, steps)."""
    for micro, checkpointing, steps in ways:
        seconds = plain_step(bench, micro, checkpointing, steps)
        if (micro, checkpointing) == (1, True):
            bench.published = seconds
        bench.best = min(bench.best, seconds)
        name = f"plain, {kind(bench)}, {micro} x {BATCH // micro}"
        row(bench, name + (", checkpointing" if checkpointing else ""), seconds, None)


def published(bench: Bench) -> None:
    """Rows of what published trainers do: few samples at once."""
    plain(bench, ((1, True, 1), (1, False, 1), (2, True, 1)))


def kind(bench: Bench) -> str:
    """How the weights lie in memory."""
    packed = hasattr(bench.model.model.language_model.layers[0].mlp.up_proj.weight, "quant_state")
    return "nf4" if packed else str(bench.dtype).removeprefix("torch.")


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


def ours(bench: Bench, training: Training, name: str) -> None:
    """Trains and prints a row."""
    watch = Losses()
    bench.runs += 1
    folder = bench.folder / f"{training.machine.processes}-{bench.runs}"
    trained = train(training, folder / "run", [watch], loaded=bench.model)
    bench.model = trained.model.peft.unload().eval()
    if os.environ.get("RANK", "0") == "0":
        seconds = trained.seconds * STEPS / trained.steps
        step = float(np.median(np.diff(watch.stamps)))
        loss = f"{watch.losses[0]:.2f} to {trained.best_loss:.2f}"
        row(bench, name, step, seconds, loss)


def planned(bench: Bench, gib: float | None) -> Training:
    """The training as it is planned for so much memory; None: that of the card."""
    if bench.device.type != "cuda":
        return bench.training()
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    quantization = "nf4" if kind(bench) == "nf4" else "none"
    plan = plan_training(
        bench.model.config,
        RowLength(bench.length, 25),
        gib or total,
        batch=BATCH,
        quantization=quantization,
    )
    assert plan is not None
    checkpoint = replace(open_checkpoint("pocket-base"), quantization=quantization)
    return bench.training(plan=plan, checkpoint=checkpoint)


def small(bench: Bench) -> None:
    """A row in 8 GB."""
    training = planned(bench, 8.0)
    if bench.device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(8.0 / total)
    ours(bench, training, f"ours, 8 GB: {training.plan.line()}")
    if bench.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)


def whole(bench: Bench) -> None:
    """Rows on the whole card; the second time kernels are compiled. Then without graphs; of clips of four lengths."""
    training = planned(bench, None)
    for again in ("", ", again"):
        ours(bench, training, f"ours{again}: {training.plan.line()}")
    machine = replace(training.machine, max_graphs=0)
    ours(bench, replace(training, machine=machine), "ours without graphs")
    clips = make_clips(bench.folder, len(bench.clips), LENGTHS)
    names = ", ".join(map(str, LENGTHS))
    ours(bench, replace(training, clips=clips, validation=clips[:16]), f"ours, clips of {names} ms")


def noisy(bench: Bench, **how: Any) -> Any:
    """The model with an adapter that is not zero: that would hide half of the gradients."""
    checkpoint = open_checkpoint("pocket-base")
    adapted = adapted_model(
        checkpoint, Recipe(dropout=0.0), bench.device, bench.dtype, loaded=bench.model, **how
    )
    for name, weight in adapted.peft.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            weight.data.copy_(0.01 * noise)
    adapted.peft.train()
    return adapted


def gradients_of(
    bench: Bench, adapted: Any, inputs: dict[str, Any], times: int = 1
) -> torch.Tensor:
    """``[weight]`` float32, on the CPU. Takes the adapter away again."""
    peft = adapted.peft
    for _ in range(times):
        peft.zero_grad(set_to_none=True)
        with bench.autocast():
            out = peft(**inputs)
        out["loss"].backward()
        value = float(out["loss"].detach())
        del out
    grads = [p.grad.float().flatten().cpu() for p in peft.parameters() if p.requires_grad]
    norms = [(n, p.grad.float().norm()) for n, p in peft.named_parameters() if p.requires_grad]
    assert all(norm > 0 for _, norm in norms), [n for n, norm in norms if not norm > 0][:3]
    print(f"  loss {value:.5f}", end="", flush=True)
    bench.model.gradient_checkpointing_disable()
    bench.model = peft.unload().eval()
    bench.model.__dict__.pop("forward", None)
    return torch.cat(grads)


def written_out(bench: Bench, checkpointing: bool) -> torch.Tensor:
    """Gradients of our way."""
    adapted = noisy(bench, packed=True)
    if checkpointing:
        bench.model.gradient_checkpointing_enable({"use_reentrant": False})
    return gradients_of(bench, adapted, bench.samples(COMPARED))


def by_graphs(bench: Bench, times: int) -> torch.Tensor:
    """The same of rows that fill the line: the first time as it comes, later by a graph."""
    adapted = noisy(bench, packed=True, max_graphs=1)
    return gradients_of(bench, adapted, bench.samples(COMPARED, padded=True), times)


def by_autograd(bench: Bench) -> torch.Tensor:
    """Those of the same loss by transformers' layers, cut to the clip."""
    return gradients_of(bench, noisy(bench, packed=False), bench.samples(COMPARED))


def by_stock(bench: Bench, count: int = COMPARED) -> torch.Tensor:
    """Those of plain transformers and peft, so many samples at once; with checkpointing, for its memory."""
    total = None
    clips = bench.clips
    for first in range(0, COMPARED, count):
        bench.clips = clips[first:]
        inputs = bench.stock_samples(count)
        adapted = noisy(bench, packed=False)
        bench.model.__dict__.pop("forward", None)
        bench.model.gradient_checkpointing_enable({"use_reentrant": False})
        part = gradients_of(bench, adapted, inputs) * count / COMPARED
        total = part if total is None else total + part
    bench.clips = clips
    return total


def compare(bench: Bench, kept: dict[str, torch.Tensor]) -> None:
    """Prints how far the gradients of each way lie from those of plain transformers in float32, and in bfloat16."""
    print("gradients of", COMPARED, "samples:")
    found = dict(kept)
    found["plain transformers"] = by_stock(bench)
    found["plain, one sample at a time"] = by_stock(bench, 1)
    found["transformers' layers cut to the clip"] = by_autograd(bench)
    found["ours"] = written_out(bench, False)
    found["ours, checkpointing"] = written_out(bench, True)
    if bench.device.type == "cuda":
        found["ours, line filled"] = by_graphs(bench, 1)
        found["ours, by graphs"] = by_graphs(bench, 3)
        found["ours, by graphs, again"] = by_graphs(bench, 3)
    bench.model = bench.model.float()
    bench.peak()
    exact = by_stock(bench)
    found["ours in float32"] = written_out(bench, False)
    print("\n| gradients | from float32 | from plain transformers | from ours, line filled |")
    print("| --- | --- | --- | --- |")
    near = exact, found["plain transformers"], found.get("ours, line filled", found["ours"])
    for name, grads in found.items():
        far = " | ".join(f"{float((grads - one).norm() / one.norm()):.1e}" for one in near)
        print(f"| {name} | {far} |", flush=True)


def profile(bench: Bench, count: int = BATCH) -> None:
    """Prints what a step of forward, backward and optimizer takes without Trainer, and its kernels."""
    checkpoint = open_checkpoint("pocket-base")
    adapted = adapted_model(
        checkpoint, Recipe(), bench.device, bench.dtype, loaded=bench.model,
        max_graphs=int(bench.device.type == "cuda"), packed=True,
    )  # fmt: skip
    peft, inputs = adapted.peft.train(), bench.samples(count, padded=True)
    weights = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-4, fused=bench.device.type == "cuda")

    def step() -> None:
        peft(**inputs)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):  # as it comes, by a new graph, by a graph
        step()
    begin = bench.wait()
    for _ in range(5):
        step()
    launched = (time.perf_counter() - begin) / 5
    seconds = (bench.wait() - begin) / 5
    print(
        f"{count} samples, a step without Trainer: {1e3 * seconds:.1f} ms, launched in {1e3 * launched:.1f} ms"
    )
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as seen:
        step()
        bench.wait()
    events = seen.key_averages()
    cuda = bench.device.type == "cuda"
    cost = lambda e: e.self_device_time_total if cuda else e.self_cpu_time_total  # noqa: E731
    total = sum(map(cost, events))
    print(f"| kernel | times | ms of {total / 1e3:.1f} | share |\n| --- | --- | --- | --- |")
    for event in sorted(events, key=cost, reverse=True)[:15]:
        name = event.key.replace("|", "/")[:110]
        print(
            f"| {name} | {event.count} | {cost(event) / 1e3:.2f} | {100 * cost(event) / total:.1f} % |"
        )
    sys.stdout.flush()
    bench.model = peft.unload().eval()


class Profiled(TrainerCallback):
    """Records the kernels and the host's calls of some steps between two validations."""

    STEPS = 4

    def __init__(self, cuda: bool, first: int) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] * cuda
        self.seen = torch.profiler.profile(activities=kinds)
        self.cuda, self.first, self.begin, self.seconds = cuda, first, 0.0, 0.0

    def on_step_begin(self, args, state, control, **kw) -> None:
        """Starts before the first of them."""
        if state.global_step == self.first:
            self.wait()
            self.seen.start()
            self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kw) -> None:
        """Stops after the last."""
        if state.global_step == self.first + self.STEPS:
            self.wait()
            self.seconds = time.perf_counter() - self.begin
            self.seen.stop()

    def wait(self) -> None:
        """Until all that was launched is done."""
        if self.cuda:
            torch.cuda.synchronize()


def trainer_profile(bench: Bench, training: Training) -> None:
    """Prints what a step through Trainer takes, how much of it the device works, and where the host's time goes."""
    watch, steps = Profiled(bench.device.type == "cuda", training.steps * 5 // 12), Profiled.STEPS
    bench.runs += 1
    trained = train(training, bench.folder / f"profile-{bench.runs}", [watch], loaded=bench.model)
    bench.model = trained.model.peft.unload().eval()
    if os.environ.get("RANK", "0") != "0":
        return
    events = watch.seen.key_averages()
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    device = sum(e.self_device_time_total for e in kernels) / steps / 1e3
    print(
        f"a step through Trainer under the profiler: {1e3 * watch.seconds / steps:.1f} ms, {device:.1f} ms of kernels"
    )
    print("| host | times a step | ms a step of its own |\n| --- | --- | --- |")
    for event in sorted(events, key=lambda e: e.self_cpu_time_total, reverse=True)[:25]:
        own = event.self_cpu_time_total / steps / 1e3
        print(f"| {event.key.replace('|', '/')[:80]} | {event.count / steps:g} | {own:.2f} |")
    names = [e for e in kernels if "nccl" in e.key.lower()]
    for event in names:
        print(
            f"{event.key[:80]}: {event.count / steps:g} a step, {event.self_device_time_total / steps / 1e3:.2f} ms"
        )
    sys.stdout.flush()


def cards(bench: Bench) -> None:
    """Rows of two processes, started beside this one, whose memory is given back."""
    if bench.device.type == "cuda" and torch.cuda.device_count() < 2:
        return
    bench.model.to("meta")
    bench.peak()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__]
    known = f"{bench.published},{bench.best},{bench.rate},{bench.folder}"
    tiny = ["--tiny"] if bench.device.type == "cpu" else []
    subprocess.run([*command, *tiny, "--known", known], check=True)


def one_of_two(bench: Bench) -> None:
    """A process of `cards`."""
    for again in ("", ", again"):
        machine = replace(bench.training().machine, processes=2)
        plan = TrainingPlan(False, BATCH // 2, False, 0.0, None)
        ours(bench, bench.training(plan=plan, machine=machine), f"ours, two cards{again}")
    trainer_profile(bench, bench.training(plan=plan, machine=machine))
    close()


def open_bench(args: argparse.Namespace, folder: Path) -> Bench:
    """The model and what it is trained on."""
    local = os.environ.get("LOCAL_RANK", "0")
    device = torch.device("cpu" if args.tiny else f"cuda:{local}")
    if args.tiny:
        checkpoint = open_checkpoint("pocket-base")
        model = load_model(checkpoint, QWEN2_AUDIO, device, torch.float32)
        processor = QWEN2_AUDIO.processor(checkpoint.base)
    else:
        torch.cuda.set_device(device)
        model, processor = random_7b(device)
    count = 32 if args.tiny else 128
    if args.known:
        *numbers, shared = args.known.split(",")
        published, best, rate = map(float, numbers)
        clips = make_clips(Path(shared), count)
        return Bench(device, model, processor, clips, Path(shared), rate, published, best)
    clips = make_clips(folder, count)
    rate = matrix_rate(device, torch.float32 if args.tiny else torch.bfloat16, 1.0)
    return Bench(device, model, processor, clips, folder, rate)


FAILED: list[str] = []  # parts


def run_part(name: str, work: Callable[[], Any]) -> Any:
    """What the part returns. What goes wrong in it is told, and the others go on; the command then ends with 1."""
    begin = time.perf_counter()
    try:
        return work()
    except Exception:
        traceback.print_exc()
        print(f"{name} failed", flush=True)
        FAILED.append(name)
    finally:
        print(f"({name}: {time.perf_counter() - begin:.0f} s)", file=sys.stderr, flush=True)
    return None


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="the pocket's model on the CPU")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if part != "profile"]
    )
    parser.add_argument("--profile", action="store_true", help="the kernels of a step, too")
    parser.add_argument("--known", help=argparse.SUPPRESS)  # of a process of `cards`
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = open_bench(args, Path(name))
        if args.known:
            one_of_two(bench)
            return 0
        card = "CPU" if args.tiny else torch.cuda.get_device_name()
        print(
            f"transformers {transformers.__version__}, torch {torch.__version__}, {card}: {bench.rate / 1e12:.1f}"
            f" TFLOP/s over 1 s; {bench.flop / 1e12:.1f} TFLOP a step, floor {1e3 * bench.flop / bench.rate:.1f} ms"
        )
        parts = [*args.parts, *(["profile"] if args.profile else [])]
        if not args.tiny and OF_4_BITS & set(parts):
            to_nf4(bench.model.model)
        bench.peak()
        print(HEAD, flush=True)
        if "published" in parts and not args.tiny:
            run_part("published", functools.partial(published, bench))
        if "plain" in parts:
            run_part("plain", functools.partial(plain, bench))
        if "small" in parts:
            run_part("small", functools.partial(small, bench))
        kept = {}
        if "gradients" in parts and not args.tiny:
            grads = run_part("4 bits", functools.partial(written_out, bench, True))
            kept = {} if grads is None else {"ours, 4 bits, checkpointing": grads}
        merge(bench.model, bench.dtype, True)
        bench.peak()
        if "plain" in parts and not args.tiny:
            run_part("plain", functools.partial(plain, bench))
        if "whole" in parts:
            run_part("whole", functools.partial(whole, bench))
        if "profile" in parts:
            for count in (BATCH, BATCH // 2):
                run_part("profile", functools.partial(profile, bench, count))
            run_part("profile", functools.partial(trainer_profile, bench, planned(bench, None)))
        if "gradients" in parts:
            run_part("gradients", functools.partial(compare, bench, kept))
        if "cards" in parts:
            run_part("cards", functools.partial(cards, bench))
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
