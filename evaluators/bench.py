"""Times the evaluator against the hardware and the published loop: python -m evaluators.bench

    python -m evaluators.bench                        the pocket checkpoint, on this machine
    python -m evaluators.bench --shape 7b --nf4       the exact 7B shape with random weights (speed does not depend on
                                                      their values), bf16 and NF4, on one GPU with 40 GB or more
    python -m evaluators.bench --shape 7b --scaling   also: cost as clips go to 3,000 and prompts to 50
    python -m evaluators.bench --shape 7b --start-up  also: from 17 GB of weights on disk to the first scores
    python -m evaluators.bench --shape 7b --meta      parameter counts only, in seconds, without weights

Work: 200 dev clips of 200, 300, 500 and 1000 ms, 10 prompts of 46 suffix tokens.
Floor: the language model's matrix products for the suffix tokens at the rate of a large product on the same device,
over a moment and over 2 s: a card that is limited by power is slower when it lasts.
Rows "all": decoding, features, audio tower, prefixes and suffixes. Rows "suffix step": the same prompts again, when the
clips' keys and values are there, as in a search.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from evaluators.audio import RATE
from evaluators.audio_lm.checkpoint import POCKET, open_checkpoint
from evaluators.audio_lm.loading import pick_device, pick_dtype
from evaluators.audio_lm.memory import Shape
from evaluators.audio_lm.scorer import QwenAudio
from evaluators.clips import Clip, clip_wave
from evaluators.evaluator import ScoreTable
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import Prompt, after_audio, before_audio, encode
from evaluators.splits import balanced_order
from evaluators.tasks import SPEECH_TASK

DEMO = shipped("data/demo")
SMALL = Shape(2048, 96, 1024)  # for a card of 10 or 12 GB
SUFFIX = 46  # tokens after the audio, template included
TEXT_7B = {
    "model_type": "qwen2",
    "vocab_size": 156032,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


def config_7b() -> Any:
    """The configuration of Qwen2-Audio-7B."""
    from transformers import Qwen2AudioConfig

    return Qwen2AudioConfig(text_config=dict(TEXT_7B))


def count_parameters() -> tuple[int, int]:
    """(all parameters, trainable LoRA parameters at rank 16 on q, k, v, o) of the 7B shape; needs no weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2AudioForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2AudioForConditionalGeneration(config_7b())
        total = sum(p.numel() for p in model.parameters())
        peft = get_peft_model(
            model,
            LoraConfig(
                r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
            ),
        )
        return total, sum(p.numel() for p in peft.parameters() if p.requires_grad)


def prompts_of_length(tokenizer: Any, count: int, tokens: int) -> list[Prompt]:
    """Different prompts whose suffix has exactly `tokens` tokens."""
    out = []
    for i in range(count):
        text = f"Choose one ({i}):\nA) speech B) noise\n"
        while len(encode(tokenizer, after_audio(text))) < tokens:
            text += " a"
        out.append(Prompt(text))
    assert all(len(encode(tokenizer, after_audio(p.text))) == tokens for p in out)
    return out


def build_7b(device: torch.device) -> tuple[Any, Any]:
    """(model, processor): the exact shape with random bf16 weights; the pocket's tokenizer, whose ids fit it."""
    from transformers import (
        AutoProcessor,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = AutoProcessor.from_pretrained(POCKET / "base").tokenizer
    config = config_7b()
    config.audio_token_index = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = Qwen2AudioForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False), Qwen2AudioProcessor(
        WhisperFeatureExtractor(feature_size=128), tokenizer
    )


def to_nf4(module: Any) -> None:
    """Replaces every linear layer but the head by 4-bit NormalFloat, doubly quantised, as bitsandbytes loads them."""
    import bitsandbytes as bnb

    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.Linear) and name != "lm_head":
            layer = bnb.nn.Linear4bit(
                child.in_features,
                child.out_features,
                bias=child.bias is not None,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                compress_statistics=True,
                device="meta",
            )
            layer.weight = bnb.nn.Params4bit(
                child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            ).to(child.weight.device)
            if child.bias is not None:
                layer.bias = torch.nn.Parameter(child.bias.data, requires_grad=False)
            setattr(module, name, layer)
        else:
            to_nf4(child)


def timed(device: torch.device, work: Callable[[], Any], repeats: int = 1) -> float:
    """Median seconds of `work`, the device idle before and after."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds = []
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.0) -> float:
    """FLOP/s of a large matrix product of random numbers: 20 of them, or as many as take about so many seconds.

    A card that is limited by power is fast for a moment and then slower: a search runs at the second rate.
    """
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        a @ b

    count = 20 * round(max(1.0, seconds / 0.03))

    def products() -> None:
        for _ in range(count):
            a @ b

    products()
    return count * 2 * size**3 / timed(device, products)


@dataclass(frozen=True)
class Stock:
    """The model through its own classes: processor, 30 s (whole window) of mel, one call a clip."""

    model: Any
    processor: Any
    device: torch.device

    def inputs(self, prompt: Prompt, clip: Clip) -> dict[str, Any]:
        """Model inputs as the processor makes them."""
        text = "".join(
            piece
            for piece, _ in (
                *before_audio(prompt.system),
                ("<|AUDIO|>", True),
                *after_audio(prompt.text),
            )
        )
        out = self.processor(
            text=text, audio=[clip_wave(clip)], sampling_rate=RATE, return_tensors="pt"
        )
        dtype = self.model.model.audio_tower.conv1.weight.dtype
        return {
            k: (v.to(dtype) if v.is_floating_point() else v).to(self.device) for k, v in out.items()
        }

    def batch(self, prompt: Prompt, clips: Sequence[Clip]) -> dict[str, Any]:
        """Inputs of several clips, padded on the left by the processor."""
        text = "".join(
            piece
            for piece, _ in (
                *before_audio(prompt.system),
                ("<|AUDIO|>", True),
                *after_audio(prompt.text),
            )
        )
        self.processor.tokenizer.padding_side = "left"
        out = self.processor(
            text=[text] * len(clips),
            audio=[clip_wave(c) for c in clips],
            sampling_rate=RATE,
            return_tensors="pt",
            padding=True,
        )
        dtype = self.model.model.audio_tower.conv1.weight.dtype
        return {
            k: (v.to(dtype) if v.is_floating_point() else v).to(self.device) for k, v in out.items()
        }

    def forward(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Log-probabilities at the answer for a batch."""
        with torch.inference_mode():
            return self.model(**inputs, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)

    def logp(self, prompt: Prompt, clip: Clip) -> torch.Tensor:
        """Log-probabilities over the vocabulary at the answer."""
        with torch.inference_mode():
            return self.model(**self.inputs(prompt, clip)).logits[0, -1].float().log_softmax(-1)

    def generate(self, prompt: Prompt, clip: Clip, allowed: Sequence[int]) -> int:
        """The token that constrained greedy generation picks: the published loop."""
        with torch.inference_mode():
            inputs = self.inputs(prompt, clip)
            out = self.model.generate(
                **inputs,
                max_new_tokens=1,
                do_sample=False,
                prefix_allowed_tokens_fn=lambda _, __: list(allowed),
                pad_token_id=0,
            )
        return int(out[0, inputs["input_ids"].shape[1]])


def suffix_flop(config: Any) -> float:
    """Operations of the language model's matrix products for one suffix."""
    c = config.text_config
    head = c.hidden_size // c.num_attention_heads
    attention = 2 * c.hidden_size**2 + 2 * c.hidden_size * head * c.num_key_value_heads
    return float(
        2 * c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size) * SUFFIX
    )


@dataclass(frozen=True)
class Floor:
    """Least seconds of an eval, by the matrix rate of a moment and by the lasting one."""

    moment: float
    lasting: float

    def shares(self, seconds: float) -> str:
        """How much of `seconds` each floor is, for a table."""
        return f"{100 * self.moment / seconds:.1f} / {100 * self.lasting / seconds:.1f} %"


HEADER = (
    "| path | ms per eval | of the floor, moment / lasting | evals per s | peak memory | first call, s |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def peak_memory(device: torch.device) -> str:
    """The largest memory since it was last reset, for a table."""
    if device.type != "cuda":
        return "-"
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"


def row(name: str, seconds: float, floor: Floor, peak: str = "-", first: str = "-") -> None:
    """Prints a row of the table."""
    print(
        f"| {name} | {1e3 * seconds:.3f} | {floor.shares(seconds)} | {1 / seconds:,.0f} |"
        f" {peak} | {first} |",
        flush=True,
    )


def multiply_adds(work: Callable[[], Any]) -> float:
    """Multiply-adds of the matrix products, convolutions and attentions that `work` runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def run(
    evaluator: QwenAudio,
    prompts: Sequence[Prompt],
    clips: Sequence[Clip],
    floor: Floor,
    name: str,
    repeats: int,
) -> float:
    """Times one evaluator, everything and the suffix step alone, and prints its rows. Returns seconds an eval, all."""
    device = evaluator.device
    begin = time.perf_counter()
    evaluator.score(prompts, clips)  # loads, compiles, fills the allocator
    first = time.perf_counter() - begin
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pairs = len(prompts) * len(clips)

    def everything() -> None:
        evaluator.forget()
        evaluator.score(prompts, clips)

    whole = timed(device, everything, repeats) / pairs
    step = timed(device, lambda: evaluator.score(prompts, clips), repeats) / pairs
    row(f"{name}, all", whole, floor, peak_memory(device), f"{first:.1f}")
    row(f"{name}, suffix step", step, floor)
    return whole


def run_stock(
    stock: Stock, prompts: Sequence[Prompt], clips: Sequence[Clip], floor: Floor, name: str
) -> float:
    """Times the published loop, one constrained generate per clip, and the stock forward in batches.

    Returns:
        Seconds an eval of the stock forward in batches.
    """
    allowed = [stock.processor.tokenizer.convert_tokens_to_ids(t) for t in ("A", "B")]
    stock.generate(prompts[0], clips[0], allowed)
    few = clips[:12]

    def loop() -> None:
        for clip in few:
            stock.generate(prompts[0], clip, allowed)

    row(f"constrained generate, one clip a call, {name}", timed(stock.device, loop, 3) / 12, floor)
    size = 64 if stock.device.type == "cuda" else 16
    inputs = stock.batch(prompts[0], clips[:size])
    seconds = timed(stock.device, lambda: stock.forward(inputs), 3) / size
    row(f"stock forward, batch of {size}, features ready, {name}", seconds, floor)
    return seconds


def compare_work(
    evaluator: QwenAudio, stock: Stock, prompts: Sequence[Prompt], clips: Sequence[Clip],
    ours: float, theirs: float,
) -> None:  # fmt: skip
    """Prints how much less is multiplied than by the stock forward in batches, and how much of that became speed.

    Args:
        evaluator: This evaluator.
        stock: The stock model.
        prompts: What was timed.
        clips: Likewise.
        ours: Seconds an eval, everything included.
        theirs: Seconds an eval of the stock forward in batches.
    """
    size = min(16, len(clips))
    inputs = stock.batch(prompts[0], clips[:size])
    plain = multiply_adds(lambda: stock.forward(inputs)) / size
    evaluator.forget()
    needed = multiply_adds(lambda: evaluator.score(prompts, clips)) / (len(prompts) * len(clips))
    print(
        f"multiply-adds an eval: stock batch {plain / 1e6:.0f} M, this evaluator, all,"
        f" {needed / 1e6:.0f} M: {plain / needed:.2f} times fewer; {theirs / ours:.2f} times faster,"
        f" {100 * theirs / ours * needed / plain:.0f} % of that ratio"
    )


def first_share(table: ScoreTable) -> np.ndarray:
    """P(first label) among the answers."""
    logp = table.logp
    return np.asarray(np.exp(logp - np.logaddexp.reduce(logp, axis=-1, keepdims=True))[..., 0])


def noise(
    evaluator: QwenAudio,
    stock: Stock,
    prompts: Sequence[Prompt],
    clips: Sequence[Clip],
    truth: bool,
) -> str:
    """How far apart P(first label) lies over 80 pairs, in words.

    This evaluator against the stock model; the stock model against itself in a batch of 4 equal clips, and in one of
    20 different clips as its processor pads them; and with `truth` all of them against the stock model in float32,
    whose weights hold the same numbers.
    """
    ids = [
        [stock.processor.tokenizer.encode(form, add_special_tokens=False)[0] for form in forms]
        for forms in (("A", " A"), ("B", " B"))
    ]

    def share(logp: torch.Tensor) -> torch.Tensor:
        groups = torch.stack([logp[..., g].logsumexp(-1) for g in ids], -1)
        return groups.softmax(-1)[..., 0].cpu()

    pairs = [(p, c) for p in prompts[:4] for c in clips[:20]]
    ours = torch.tensor(first_share(evaluator.score(prompts[:4], clips[:20]))).reshape(-1)
    alone = torch.stack([share(stock.logp(p, c)) for p, c in pairs])
    doubled = []
    with torch.inference_mode():
        for p, c in pairs:
            inputs = {k: v.expand(4, *v.shape[1:]) for k, v in stock.inputs(p, c).items()}
            doubled.append(share(stock.model(**inputs).logits[0, -1].float().log_softmax(-1)))

    def apart(a: torch.Tensor, b: torch.Tensor) -> str:
        d = (a - b).abs()
        return f"{d.mean():.2g} mean, {d.max():.2g} largest"

    four = torch.stack(doubled)
    padded = torch.cat([share(stock.forward(stock.batch(p, clips[:20]))) for p in prompts[:4]])
    text = (
        f"P(A) over {len(pairs)} pairs: this evaluator to stock {apart(ours, alone)}; stock to itself"
        f" in a batch of 4 {apart(four, alone)}, in a padded batch of 20 {apart(padded, alone)}"
    )
    if truth:
        kind = stock.model.model.language_model.norm.weight.dtype
        stock.model.float()
        exact = torch.stack([share(stock.logp(p, c)) for p, c in pairs])
        stock.model.to(kind)
        text += (
            f"\nto the same weights in float32: this evaluator {apart(ours, exact)}; stock, one clip"
            f" {apart(alone, exact)}; stock, batch of 4 {apart(four, exact)}; stock, padded batch of 20"
            f" {apart(padded, exact)}"
        )
    return text


def check_neighbours(
    evaluator: QwenAudio, prompts: Sequence[Prompt], clips: Sequence[Clip]
) -> None:
    """Prints whether scores depend on company, order and chunking, and how far other batch shapes move them."""

    def share(e: QwenAudio, ps: Sequence[Prompt], cs: Sequence[Clip]) -> np.ndarray:
        e.forget()
        return first_share(e.score(ps, cs))

    part = list(clips[:40])
    whole = share(evaluator, prompts, part)
    order = np.random.default_rng(0).permutation(len(part))
    turned = share(evaluator, prompts[::-1], [part[i] for i in order])[::-1]
    same = [np.array_equal(turned, whole[:, order])]
    for p, c in ((0, 0), (3, 17), (9, 39)):
        alone = share(evaluator, [prompts[p % len(prompts)]], [part[c % len(part)]])
        same.append(alone[0, 0] == whole[p % len(prompts), c % len(part)])
    halves = np.concatenate([share(evaluator, prompts, part[k::2]) for k in (0, 1)], 1)
    same.append(np.array_equal(halves, np.concatenate([whole[:, 0::2], whole[:, 1::2]], 1)))
    other = replace(evaluator.shape, tokens=evaluator.shape.tokens // 2)
    loaded = (evaluator.transformer.model, evaluator.processor)
    smaller = QwenAudio(evaluator.checkpoint, str(evaluator.device), shape=other, loaded=loaded)
    moved = np.abs(share(smaller, prompts, part) - whole).max()
    print(
        f"same bits alone, in other company, in another order, in two chunks: {all(same)}; P(A) in"
        f" batches of {other.tokens} instead of {evaluator.shape.tokens} tokens: {moved:.2g}"
    )


def many_clips(count: int) -> list[Clip]:
    """Clips of all splits, then the same with their samples shuffled: only for timing."""
    found = balanced_order(read_manifest(DEMO, SPEECH_TASK.labels))
    return [*found, *(replace(c, audio="shuffled") for c in found)][:count]


def scaling(evaluator: QwenAudio, tokenizer: Any, floor: Floor) -> None:
    """Cost per eval against the number of clips and prompts, from nothing but weights in memory."""
    device = evaluator.device
    print(
        "\n| clips | prompts | ms per eval | of the floor, moment / lasting | seconds |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for clips, prompts in (
        (100, 10), (200, 10), (400, 10), (1000, 10), (3000, 10), (400, 1), (400, 5), (400, 50)
    ):  # fmt: skip
        ps, cs = prompts_of_length(tokenizer, prompts, SUFFIX), many_clips(clips)
        evaluator.forget()
        seconds = timed(device, lambda p=ps, c=cs: evaluator.score(p, c))
        each = seconds / (len(cs) * len(ps))
        print(
            f"| {len(cs)} | {len(ps)} | {1e3 * each:.3f} | {floor.shares(each)} | {seconds:.2f} |",
            flush=True,
        )


def start_up(model: Any, processor: Any) -> None:
    """Writes the weights to disk and times a fresh process from its start to the first score."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="4GB")
        processor.save_pretrained(folder)
        code = (
            "import sys, time; begin = time.perf_counter()\n"
            "from evaluators.audio_lm.checkpoint import Checkpoint\n"
            "from pathlib import Path\n"
            "from evaluators.bench import *\n"
            "c = Checkpoint('disk', Path(sys.argv[1]), None, 'none', frozenset(), None)\n"
            "e = QwenAudio(c, 'cuda')\n"
            "ps = prompts_of_length(e.processor.tokenizer, 1, SUFFIX)\n"
            "e.transformer; loaded = time.perf_counter()\n"
            "e.score(ps, many_clips(100)); print(f'{loaded - begin:.1f} {time.perf_counter() - loaded:.1f}')"
        )
        for name in ("first process", "second process"):
            out = subprocess.run(
                [sys.executable, "-c", code, folder], capture_output=True, text=True
            )
            if out.returncode:
                print(out.stderr[-2000:])
                return
            load, score = out.stdout.split()[-2:]
            print(f"{name}: {load} s to weights on the card, {score} s more to 100 scores")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["pocket", "7b"], default="pocket")
    parser.add_argument(
        "--checkpoint",
        default="pocket-base",
        help="what --shape pocket times (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--nf4", action="store_true", help="time 4-bit weights too (needs bitsandbytes)"
    )
    parser.add_argument("--scaling", action="store_true", help="time other numbers of clips too")
    parser.add_argument("--start-up", action="store_true", help="time loading from disk too")
    parser.add_argument(
        "--meta", action="store_true", help="print parameter counts of the 7B shape and stop"
    )
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=10)
    args = parser.parse_args(argv)
    if args.meta:
        total, trainable = count_parameters()
        print(f"{total:,} parameters, {trainable:,} trainable with LoRA rank 16 on q, k, v, o")
        return 0
    device = pick_device(args.device)
    dtype = pick_dtype("auto", device)
    clips = balanced_order(read_manifest(DEMO, SPEECH_TASK.labels, "dev"))[: args.clips]
    checkpoint = open_checkpoint(args.checkpoint)
    if args.shape == "7b":
        loaded = build_7b(device)
        checkpoint = replace(checkpoint, name="7b shape, random weights")
    else:
        plain = QwenAudio(checkpoint, args.device)
        loaded = plain.transformer.model, plain.processor
    prompts = prompts_of_length(loaded[1].tokenizer, args.prompts, SUFFIX)
    rate = matrix_rate(device, dtype)
    lasting = matrix_rate(device, dtype, 2.0) if device.type == "cuda" else rate
    flop = suffix_flop(loaded[0].config)
    floor = Floor(flop / rate, flop / lasting)
    card = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if card else f"{torch.get_num_threads()} CPU threads"
    print(
        f"{checkpoint.name}; {name}; torch {torch.__version__}; {len(clips)} clips x {len(prompts)}"
        f" prompts of {SUFFIX} tokens"
    )
    print(
        f"matrix product {rate / 1e12:.1f} TFLOP/s over 20 products, {lasting / 1e12:.1f} over 2 s;"
        f" floors {1e3 * floor.moment:.3f} and {1e3 * floor.lasting:.3f} ms an eval\n"
    )
    label = str(dtype).removeprefix("torch.")
    stock = Stock(*loaded, device)
    print(HEADER)
    theirs = run_stock(stock, prompts, clips, floor, label)
    ours = QwenAudio(checkpoint, args.device, loaded=loaded)
    seconds = run(ours, prompts, clips, floor, f"this evaluator, {label}", 3)
    if not card:
        compare_work(ours, stock, prompts, clips, seconds, theirs)
    check_neighbours(ours, prompts, clips)
    if args.scaling:
        scaling(ours, loaded[1].tokenizer, floor)
    if args.start_up:
        ours.forget()
        gc.collect()
        torch.cuda.empty_cache()
        start_up(*loaded)
    truth = dtype != torch.float32
    print(f"\n{label}: {noise(ours, stock, prompts, clips, truth)}", flush=True)
    if args.nf4:
        del ours
        nf4 = replace(checkpoint, quantisation="nf4")
        to_nf4(loaded[0].model)
        gc.collect()
        if card:
            torch.cuda.empty_cache()
        print(f"\n{HEADER}")
        run_stock(stock, prompts, clips, floor, "NF4")
        small = QwenAudio(nf4, args.device, shape=SMALL, dequantise=False, loaded=loaded)
        run(small, prompts, clips, floor, f"this evaluator, NF4 kept, {SMALL.tokens} tokens", 2)
        kept = QwenAudio(nf4, args.device, dequantise=False, loaded=loaded)
        run(kept, prompts, clips, floor, "this evaluator, NF4 kept", 2)
        text = noise(kept, stock, prompts, clips, False)
        before = first_share(kept.score(prompts, clips[:40]))
        del small, kept
        expanded = QwenAudio(nf4, args.device, dequantise=True, loaded=loaded)
        run(expanded, prompts, clips, floor, "this evaluator, NF4 expanded", 2)
        after = first_share(expanded.score(prompts, clips[:40]))
        print(f"\nNF4: {text}")
        apart = np.abs(after - before)
        print(
            f"NF4 expanded to NF4 kept: difference of P(A) {apart.mean():.2g} mean, {apart.max():.2g}"
            " largest"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
