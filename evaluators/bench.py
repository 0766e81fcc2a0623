"""Times the evaluator against the hardware and the published loop: python -m evaluators.bench

    python -m evaluators.bench                        the pocket checkpoint, on this machine
    python -m evaluators.bench --shape 7b --nf4       the exact 7B shape with random weights (speed does not depend on
                                                      their values), bf16 and NF4, on one GPU with 40 GB or more
    python -m evaluators.bench --shape 7b --scaling   also: cost as clips go to 3,000 and prompts to 50
    python -m evaluators.bench --shape 7b --meta      parameter counts only, in seconds, without weights
    python -m evaluators.bench --shape voxtral-mini-3b         another family's exact shape, likewise on one GPU
    python -m evaluators.bench --shape voxtral-mini-3b --tiny  the same command with a small model, on a CPU

Work: 200 dev clips of 200, 300, 500 and 1000 ms, 10 prompts of 46 suffix tokens.
Floor: the language model's matrix products for the suffix tokens at the rate of a large product on the same device,
over a moment and over 2 s: a card that is limited by power is slower when it lasts.
Rows "all": decoding, features, audio tower, prefixes and suffixes. Rows "suffix step": the same prompts again, when the
clips' keys and values are there, as in a search. Below the table: what the stages of "all" take.
"""

import argparse
import functools
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from evaluators.audio_lm.batch_sizes import BatchSizes
from evaluators.audio_lm.checkpoint import Checkpoint, open_checkpoint
from evaluators.audio_lm.decoder import Decoder
from evaluators.audio_lm.device import matrix_rate, one_thread, pick_device, pick_dtype
from evaluators.audio_lm.families import family_of
from evaluators.audio_lm.loading import stock_model
from evaluators.audio_lm.memory import Shape, weight_counts
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.shapes import SHAPES, random_model, tiny
from evaluators.audio_lm.stock import FamilyStock, StockModel, config_7b, random_7b, to_nf4
from evaluators.audio_lm.templates import QWEN2_AUDIO, Template, encode
from evaluators.audio_lm.tower import AudioTower, ClipReader
from evaluators.clips import Clip
from evaluators.evaluator import ScoreTable
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import Prompt
from evaluators.splits import balanced_order
from evaluators.tasks import SPEECH_TASK

DEMO = shipped("data/demo")
SMALL = Shape(2048, 96, 1024)  # for a card of 10 or 12 GB
SUFFIX = 46  # tokens after the audio, template included
HEADER = (
    "| path | ms per eval | of the floor, moment / lasting | evals per s | peak memory | first call, s |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def count_parameters() -> tuple[int, int]:
    """(all parameters, trainable LoRA parameters at rank 16 on q, k, v, o) of the 7B shape; needs no weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2AudioForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2AudioForConditionalGeneration(config_7b())
        total = sum(p.numel() for p in model.parameters())
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        peft = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
        return total, sum(p.numel() for p in peft.parameters() if p.requires_grad)


def prompts_of_length(
    tokenizer: Any, count: int, tokens: int, template: Template = QWEN2_AUDIO
) -> list[Prompt]:
    """Different prompts whose suffix has exactly `tokens` tokens."""
    out = []
    for i in range(count):
        text = f"Choose one ({i}):\nA) speech B) noise\n"
        while len(encode(tokenizer, template.after(text))) < tokens:
            text += " a"
        out.append(Prompt(text))
    assert all(len(encode(tokenizer, template.after(p.text))) == tokens for p in out)
    return out


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


def suffix_flop(config: Any) -> float:
    """Operations of the language model's matrix products for one suffix."""
    return float(2 * weight_counts(config)[1] * SUFFIX)


def multiply_adds(work: Callable[[], Any]) -> float:
    """Multiply-adds of the matrix products, convolutions and attentions that `work` runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 2


@dataclass(frozen=True)
class Floor:
    """Least seconds of an eval, by the matrix rate of a moment and by the lasting one."""

    moment: float
    lasting: float

    def shares(self, seconds: float) -> str:
        """How much of `seconds` each floor is, for a table."""
        return f"{100 * self.moment / seconds:.1f} / {100 * self.lasting / seconds:.1f} %"


@dataclass(frozen=True)
class Bench:
    """What all measurements share: the work, the model as transformers runs it, and the floor."""

    checkpoint: Checkpoint
    stock: StockModel
    prompts: Sequence[Prompt]
    clips: Sequence[Clip]
    floor: Floor
    notes: list[str] = field(default_factory=list)  # printed after the table

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return self.stock.device

    def scorer(self, **options: Any) -> AudioScorer:
        """A scorer of the loaded model."""
        loaded = (self.stock.model, self.stock.processor)
        return AudioScorer(self.checkpoint, str(self.device), loaded=loaded, **options)

    def row(self, name: str, seconds: float, peak: str = "-", first: str = "-") -> None:
        """Prints a row of the table."""
        print(
            f"| {name} | {1e3 * seconds:.3f} | {self.floor.shares(seconds)} | {1 / seconds:,.0f} |"
            f" {peak} | {first} |",
            flush=True,
        )


class Stages:
    """What the stages of a scorer's calls take, while it is entered: on a card by the card's own clock.

    A context manager. Nothing waits for it, so that the host runs ahead of the card as ever. What a card does within a
    stage is its; `rest` is when it had nothing to do but wait for the host, as for decoded audio and features.
    On a CPU, where batches are computed beside each other, it is processor time of the thread that runs a stage, and
    `rest` that of all others.
    """

    NAMES = ("tower", "prefix", "suffix")

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(self.NAMES, 0.0)
        self.tokens = dict.fromkeys(
            self.NAMES, 0
        )  # of batches, with padding; of the tower its embeddings
        self._spans: list[tuple[str, Any, Any, int]] = []
        self._open: Any = None

    def __enter__(self) -> "Stages":
        self._stock = Decoder.step, AudioTower.embed, ClipReader.take
        step, embed, take = self._stock

        def timed_step(decoder: Decoder, batch: Any, cache: Any) -> Any:
            begin, name = self._now(), "suffix" if batch.write is None else "prefix"
            out = step(decoder, batch, cache)
            self._close(name, begin, len(batch.positions))
            return out

        def timed_take(reader: ClipReader, keys: Any) -> Any:
            self._close_tower(0)
            out = take(reader, keys)
            self._open = self._now()
            return out

        def timed_embed(tower: AudioTower, *args: Any) -> Any:
            out = embed(tower, *args)
            self._close_tower(sum(map(len, out.values())))
            return out

        Decoder.step, AudioTower.embed, ClipReader.take = timed_step, timed_embed, timed_take  # type: ignore[assignment, method-assign]
        self._begin = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        Decoder.step, AudioTower.embed, ClipReader.take = self._stock  # type: ignore[method-assign]
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self.device)
        self.whole = self._clock() - self._begin
        for name, begin, end, tokens in self._spans:
            self.seconds[name] += begin.elapsed_time(end) / 1e3 if cuda else end - begin
            self.tokens[name] += tokens
        self.seconds["rest"] = self.whole - sum(self.seconds.values())

    def _clock(self) -> float:
        return time.process_time() if self.device.type == "cpu" else time.perf_counter()

    def _now(self) -> Any:
        if self.device.type == "cpu":
            return time.thread_time()
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _close(self, name: str, begin: Any, tokens: int) -> None:
        self._spans.append((name, begin, self._now(), tokens))

    def _close_tower(self, tokens: int) -> None:
        if self._open is not None:
            self._close("tower", self._open, tokens)
        self._open = None


def time_scorer(bench: Bench, evaluator: AudioScorer, name: str, repeats: int) -> float:
    """Times everything and the suffix step alone, and prints their rows. Returns seconds an eval of everything."""
    on_gpu = bench.device.type == "cuda"
    begin = time.perf_counter()
    evaluator.score(bench.prompts, bench.clips)  # loads, compiles, fills the allocator
    first = time.perf_counter() - begin
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    pairs = len(bench.prompts) * len(bench.clips)

    def everything() -> None:
        evaluator.forget()
        evaluator.score(bench.prompts, bench.clips)

    def again() -> None:
        evaluator.score(bench.prompts, bench.clips)

    whole = timed(bench.device, everything, repeats) / pairs
    step = timed(bench.device, again, repeats) / pairs
    peak = f"{torch.cuda.max_memory_allocated(bench.device) / 2**30:.1f} GiB" if on_gpu else "-"
    bench.row(f"{name}, all", whole, peak, f"{first:.1f}")
    bench.row(f"{name}, suffix step", step)
    with Stages(bench.device) as stages:
        everything()
    parts = ", ".join(f"{part} {1e3 * s / pairs:.3f}" for part, s in stages.seconds.items())
    tokens = ", ".join(f"{part} {count:,}" for part, count in stages.tokens.items())
    unit = "ms of a processor" if bench.device.type == "cpu" else "ms"
    bench.notes.append(f"{name}, all, {unit} an eval: {parts}; tokens: {tokens}")
    return whole


def time_stock(bench: Bench, name: str) -> float:
    """Times the published loop, one constrained generate per clip, and the stock forward in batches.

    Returns:
        Seconds an eval of the stock forward in batches.
    """
    stock, prompt = bench.stock, bench.prompts[0]
    allowed = [stock.processor.tokenizer.convert_tokens_to_ids(t) for t in ("A", "B")]
    stock.generate(prompt, bench.clips[0], allowed)
    few = bench.clips[:12]

    def loop() -> None:
        for clip in few:
            stock.generate(prompt, clip, allowed)

    bench.row(f"constrained generate, one clip a call, {name}", timed(stock.device, loop, 3) / 12)
    size = 64 if stock.device.type == "cuda" else 16
    inputs = stock.batch(prompt, bench.clips[:size])
    seconds = timed(stock.device, lambda: stock.forward(inputs), 3) / size
    bench.row(f"stock forward, batch of {size}, features ready, {name}", seconds)
    return seconds


def compare_work(bench: Bench, evaluator: AudioScorer, ours: float, theirs: float) -> None:
    """Prints how much less is multiplied than by the stock forward in batches, and how much of that became speed.

    Args:
        bench: The work.
        evaluator: This evaluator.
        ours: Its seconds an eval, everything included.
        theirs: Seconds an eval of the stock forward in batches.
    """
    size = min(16, len(bench.clips))
    inputs = bench.stock.batch(bench.prompts[0], bench.clips[:size])
    plain = multiply_adds(lambda: bench.stock.forward(inputs)) / size
    evaluator.forget()
    pairs = len(bench.prompts) * len(bench.clips)
    with one_thread():  # the counter sees the thread that asks, which then computes all
        needed = multiply_adds(lambda: evaluator.score(bench.prompts, bench.clips)) / pairs
    rate = suffix_flop(bench.stock.model.config) / bench.floor.lasting
    bound = 2 * needed / rate
    print(
        f"all multiply-adds at the matrix rate: {1e3 * bound:.3f} ms an eval; this evaluator, all, takes"
        f" {ours / bound:.2f} times as long"
    )
    print(
        f"multiply-adds an eval: stock batch {plain / 1e6:.0f} M, this evaluator, all,"
        f" {needed / 1e6:.0f} M: {plain / needed:.2f} times fewer; {theirs / ours:.2f} times faster,"
        f" {100 * theirs / ours * needed / plain:.0f} % of that ratio"
    )


def compare_sizes(bench: Bench, evaluator: AudioScorer) -> None:
    """Prints the sizes that batches may have, and times whole batches alone, which must give the same bits."""
    shape, decoder = evaluator.shape, evaluator.decoder
    whole = bench.scorer()
    whole.decoder.sizes = lambda own, most: BatchSizes((own,))  # type: ignore[method-assign]
    time_scorer(bench, whole, "the same in whole batches only", 3)
    evaluator.forget()
    tables = [one.score(bench.prompts, bench.clips) for one in (evaluator, whole)]
    same = np.array_equal(tables[0].logp, tables[1].logp)
    tokens = decoder.sizes(shape.tokens, shape.tokens).equal
    prefix = decoder.sizes(shape.prefix, shape.tokens).equal
    bench.notes.append(
        f"tokens of a batch with the bits of {shape.tokens}: {tokens}; of audio, with those of {shape.prefix}: {prefix}"
        f" (multiples up to {shape.tokens}); scores equal to the bit in whole batches: {same}"
    )


def first_share(table: ScoreTable) -> np.ndarray:
    """``[prompt, clip]`` P(first label) among the answers."""
    logp = table.logp
    return np.asarray(np.exp(logp - np.logaddexp.reduce(logp, axis=-1, keepdims=True))[..., 0])


def _apart(a: torch.Tensor, b: torch.Tensor) -> str:
    d = (a - b).abs()
    return f"{d.mean():.2g} mean, {d.max():.2g} largest"


def noise(bench: Bench, evaluator: AudioScorer, truth: bool) -> str:
    """How far apart P(first label) lies over 80 pairs, in words.

    This evaluator against the stock model; the stock model against itself in a batch of 4 equal clips, and in one of
    20 different clips as its processor pads them; and with `truth` all of them against the stock model in float32,
    whose weights hold the same numbers.
    """
    stock, prompts, clips = bench.stock, bench.prompts[:4], bench.clips[:20]
    ids = [
        [stock.processor.tokenizer.encode(form, add_special_tokens=False)[0] for form in forms]
        for forms in (("A", " A"), ("B", " B"))
    ]

    def share(logp: torch.Tensor) -> torch.Tensor:
        groups = torch.stack([logp[..., g].logsumexp(-1) for g in ids], -1)
        return groups.softmax(-1)[..., 0].cpu()

    def in_a_batch_of_4(prompt: Prompt, clip: Clip) -> torch.Tensor:
        inputs = {k: v.expand(4, *v.shape[1:]) for k, v in stock.inputs(prompt, clip).items()}
        return share(stock.forward(inputs)[0])

    pairs = [(p, c) for p in prompts for c in clips]
    ours = torch.tensor(first_share(evaluator.score(prompts, clips))).reshape(-1)
    alone = torch.stack([share(stock.logp(p, c)) for p, c in pairs])
    four = torch.stack([in_a_batch_of_4(p, c) for p, c in pairs])
    padded = torch.cat([share(stock.forward(stock.batch(p, clips))) for p in prompts])
    text = (
        f"P(A) over {len(pairs)} pairs: this evaluator to stock {_apart(ours, alone)}; stock to itself"
        f" in a batch of 4 {_apart(four, alone)}, in a padded batch of 20 {_apart(padded, alone)}"
    )
    if truth:
        kind = stock.model.model.language_model.norm.weight.dtype
        stock.model.float()
        exact = torch.stack([share(stock.logp(p, c)) for p, c in pairs])
        stock.model.to(kind)
        text += (
            f"\nto the same weights in float32: this evaluator {_apart(ours, exact)}; stock, one clip"
            f" {_apart(alone, exact)}; stock, batch of 4 {_apart(four, exact)}; stock, padded batch of 20"
            f" {_apart(padded, exact)}"
        )
    return text


def check_neighbours(bench: Bench, evaluator: AudioScorer) -> None:
    """Prints whether scores depend on company, order and chunking, and how far other batch shapes move them."""

    def share(e: AudioScorer, ps: Sequence[Prompt], cs: Sequence[Clip]) -> np.ndarray:
        e.forget()
        return first_share(e.score(ps, cs))

    prompts, part = bench.prompts, list(bench.clips[:40])
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
    moved = np.abs(share(bench.scorer(shape=other), prompts, part) - whole).max()
    print(
        f"same bits alone, in other company, in another order, in two chunks: {all(same)}; P(A) in"
        f" batches of {other.tokens} instead of {evaluator.shape.tokens} tokens: {moved:.2g}"
    )


def many_clips(count: int) -> list[Clip]:
    """Clips of all splits, then the same with their samples shuffled: only for timing."""
    found = balanced_order(read_manifest(DEMO, SPEECH_TASK.labels))
    return [*found, *(replace(c, audio="shuffled") for c in found)][:count]


def scaling(bench: Bench, evaluator: AudioScorer) -> None:
    """Prints cost per eval against the number of clips and prompts, from nothing but weights in memory."""
    print(
        "\n| clips | prompts | ms per eval | of the floor, moment / lasting | seconds |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for clips, prompts in (
        (100, 10), (200, 10), (400, 10), (1000, 10), (3000, 10), (400, 1), (400, 5), (400, 50)
    ):  # fmt: skip
        tokenizer = bench.stock.processor.tokenizer
        ps = prompts_of_length(tokenizer, prompts, SUFFIX, evaluator.family.template)
        cs = many_clips(clips)
        evaluator.forget()
        seconds = timed(bench.device, functools.partial(evaluator.score, ps, cs))
        each = seconds / (len(cs) * len(ps))
        shares = bench.floor.shares(each)
        print(
            f"| {len(cs)} | {len(ps)} | {1e3 * each:.3f} | {shares} | {seconds:.2f} |", flush=True
        )


def open_bench(args: argparse.Namespace) -> Bench:
    """The work that the flags ask for; loads the model, measures the floor and prints both."""
    device = pick_device(args.device)
    dtype = pick_dtype("auto", device)
    clips = balanced_order(read_manifest(DEMO, SPEECH_TASK.labels, "dev"))[: args.clips]
    checkpoint = open_checkpoint(args.checkpoint)
    checkpoint.need_packed(
        "this bench", "see the table of the generic path in evaluators/README.md"
    )
    if args.shape == "7b":
        loaded = random_7b(device)
        checkpoint = replace(checkpoint, name="7b shape, random weights")
    elif args.shape in SHAPES:
        shape = tiny(SHAPES[args.shape]) if args.tiny else SHAPES[args.shape]
        loaded = random_model(shape, device, dtype)
        size = "tiny" if args.tiny else "exact"
        checkpoint = replace(checkpoint, name=f"{args.shape}, {size} shape, random weights")
    else:
        plain = AudioScorer(checkpoint, args.device)
        loaded = stock_model(plain.decoder.model), plain.processor
    family = family_of(loaded[0].config)
    prompts = prompts_of_length(loaded[1].tokenizer, args.prompts, SUFFIX, family.template)
    rate = matrix_rate(device, dtype, 0.03)
    lasting = matrix_rate(device, dtype, 2.0)
    flop = suffix_flop(loaded[0].config)
    floor = Floor(flop / rate, flop / lasting)
    cpu = f"{torch.get_num_threads()} CPU threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    print(
        f"{checkpoint.name}; {name}; torch {torch.__version__}; {len(clips)} clips x {len(prompts)}"
        f" prompts of {SUFFIX} tokens"
    )
    print(
        f"matrix product {rate / 1e12:.3g} TFLOP/s over 0.03 s, {lasting / 1e12:.3g} over 2 s;"
        f" floors {1e3 * floor.moment:.3f} and {1e3 * floor.lasting:.3f} ms an eval\n"
    )
    stock = StockModel(*loaded, device)
    if args.shape in SHAPES:
        stock = FamilyStock(*loaded, device, family)
    return Bench(checkpoint, stock, prompts, clips, floor)


def free(device: torch.device) -> None:
    """Returns memory that nothing uses to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def time_nf4(bench: Bench) -> None:
    """Times 4-bit weights, kept and dequantized once. Turns the loaded model into a 4-bit one."""
    to_nf4(bench.stock.model.model)
    free(bench.device)
    bench = replace(bench, checkpoint=replace(bench.checkpoint, quantization="nf4"))
    print(f"\n{HEADER}")
    time_stock(bench, "NF4")
    small = bench.scorer(shape=SMALL, dequantize=False)
    time_scorer(bench, small, f"this evaluator, NF4 kept, {SMALL.tokens} tokens", 2)
    kept = bench.scorer(dequantize=False)
    time_scorer(bench, kept, "this evaluator, NF4 kept", 2)
    text = noise(bench, kept, False)
    before = first_share(kept.score(bench.prompts, bench.clips[:40]))
    del small, kept
    once = bench.scorer(dequantize=True)
    time_scorer(bench, once, "this evaluator, NF4 expanded", 2)
    apart = np.abs(first_share(once.score(bench.prompts, bench.clips[:40])) - before)
    print(f"\nNF4: {text}")
    print(
        f"NF4 expanded to NF4 kept: difference of P(A) {apart.mean():.2g} mean, {apart.max():.2g}"
        " largest"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=["pocket", "7b", *SHAPES], default="pocket")
    add("--tiny", action="store_true", help="a small model of the shape's family, for a CPU")
    pocket = "what --shape pocket times (default: %(default)s)"
    add("--checkpoint", default="pocket-base", help=pocket)
    add("--device", default="auto")
    add("--nf4", action="store_true", help="time 4-bit weights too (needs bitsandbytes)")
    add("--scaling", action="store_true", help="time other numbers of clips too")
    add("--meta", action="store_true", help="print parameter counts of the 7B shape and stop")
    add("--clips", type=int, default=200)
    add("--prompts", type=int, default=10)
    args = parser.parse_args(argv)
    if args.tiny and args.shape not in SHAPES:
        parser.error(f"--tiny is given with --shape {args.shape}; give one of {', '.join(SHAPES)}")
    if args.meta:
        total, trainable = count_parameters()
        print(f"{total:,} parameters, {trainable:,} trainable with LoRA rank 16 on q, k, v, o")
        return 0
    bench = open_bench(args)
    dtype = pick_dtype("auto", bench.device)
    label = str(dtype).removeprefix("torch.")
    print(HEADER)
    theirs = time_stock(bench, label)
    ours = bench.scorer()
    seconds = time_scorer(bench, ours, f"this evaluator, {label}", 3)
    compare_sizes(bench, ours)
    print(*bench.notes, sep="\n", flush=True)
    if bench.device.type != "cuda":
        compare_work(bench, ours, seconds, theirs)
    check_neighbours(bench, ours)
    if args.scaling:
        scaling(bench, ours)
    print(f"\n{label}: {noise(bench, ours, dtype != torch.float32)}", flush=True)
    if args.nf4:
        del ours
        time_nf4(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
