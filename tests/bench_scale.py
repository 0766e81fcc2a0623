"""Clips of any duration, and many clips in bounded memory: python tests/bench_scale.py PART

    python tests/bench_scale.py durations                                 pocket, on this machine
    python tests/bench_scale.py durations --shape 7b                      7B shape, one GPU of 40 GB or more: 1 minute
    python tests/bench_scale.py store --shape 7b --budget 80              7B shape, one GPU of 80 GB: 5 minutes
    python tests/bench_scale.py store --shape 7b --budget 8               the same with an eighth of the store, or so
    python tests/bench_scale.py memory                                    pocket, 100,000 clips: an hour on one core

durations: what clips of 200 to 1000 ms, all lengths alike, cost against as many of 200, 400, 800 and 1000 ms, whose
mean is the same: the audio tower alone, and everything from the files on. On a CPU in seconds of the processor, so
that other work on the machine does not count. store: clips x prompts, which share four system messages, in one call;
`--budget` is what embeddings, keys and values may take in GB, less where the card has less to spare; weights and
batches lie beside it. memory: the resident memory of the process as clips go by in one call. The 7B shape has random
weights: neither cost nor memory depends on their values. Clips are noise from 200 files, each taken for another clip
where its name is another one.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.device import pick_device
from evaluators.audio_lm.packed_tower import LogMel
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.stock import random_7b
from evaluators.audio_lm.tower import AudioTower, ClipKey, clip_key
from evaluators.bench import SUFFIX, prompts_of_length
from evaluators.clips import Clip
from evaluators.prompts import Prompt

FILES = 200
FOUR_MS = (200, 400, 800, 1000)
SYSTEMS = (
    "You are a helpful assistant.",
    "You classify audio content.",
    "Listen to the clip and decide whether somebody speaks in it.",
    "You are an expert for short sounds. Answer with a single letter.",
)
CLIPS = {"durations": 400, "store": 20_000, "memory": 100_000}
PROMPTS = {"durations": 10, "store": 10, "memory": 1}


def make_clips(folder: Path, name: str, milliseconds: Sequence[float], count: int) -> list[Clip]:
    """So many clips of these durations, in turns; those of one file differ by name alone."""
    out: list[Clip] = []
    random = np.random.default_rng(0)
    for i in range(count):
        if i < len(milliseconds):
            samples = max(1, round(16 * milliseconds[i]))
            path = folder / f"{name}-{i}.wav"
            wave = random.normal(0, 0.05, samples).astype(np.float32)
            soundfile.write(path, wave, 16_000, subtype="PCM_16")
            ms = samples / 16
            out.append(
                Clip(
                    clip_id=path.stem, path=path, label="SPEECH", category="noise", duration_ms=ms,
                    snr_db=None, condition="none", source_id=path.stem, split="dev", licence="CC0",
                    sha256=path.stem,
                )
            )  # fmt: skip
        else:
            same = out[i % len(milliseconds)]
            out.append(replace(same, clip_id=f"{same.clip_id} {i}", sha256=f"{same.sha256} {i}"))
    return out


def uniform_ms(count: int) -> list[float]:
    """Durations of 200 to 1000 ms, evenly spread, in random order."""
    return list(np.random.default_rng(1).permutation(np.linspace(200, 1000, count)))


class Heard:
    """Features that are there already, in place of a reader."""

    def __init__(self, evaluator: AudioScorer, clips: Sequence[Clip]) -> None:
        store = evaluator.feature_store
        self.known: dict[ClipKey, LogMel] = {}
        for clip in clips:
            decoded = store.decode(clip)
            assert decoded.wave is not None
            self.known[clip_key(clip)] = LogMel(store.log_mel([decoded.wave])[0], decoded.frames)

    def frames(self, key: ClipKey) -> int:
        return self.known[key].frames

    def take(self, keys: Sequence[ClipKey]) -> list[LogMel]:
        return [self.known[key] for key in keys]


def tower_of(evaluator: AudioScorer) -> AudioTower:
    decoder = evaluator.decoder
    return AudioTower(decoder.model, evaluator.family, evaluator.feature_store, decoder.dtype)


def durations(evaluator: AudioScorer, args: argparse.Namespace, folder: Path) -> None:
    """Prints what distinct durations cost against four."""
    count = args.clips
    sets = {
        "four durations": make_clips(folder, "four", FOUR_MS * (count // 4), count),
        "200 to 1000 ms": make_clips(folder, "any", uniform_ms(count), count),
    }
    prompts = prompts_of_length(evaluator.processor.tokenizer, args.prompts, SUFFIX)
    tower = tower_of(evaluator)
    heard = {name: Heard(evaluator, clips) for name, clips in sets.items()}

    def embed(name: str) -> None:
        with torch.inference_mode():
            keys = [clip_key(clip) for clip in sets[name]]
            tower.embed(keys, heard[name], evaluator.shape.prefix)  # type: ignore[arg-type]

    def score(name: str, some: Sequence[Prompt]) -> None:
        evaluator.forget()
        evaluator.score(some, sets[name])

    rows: dict[str, Callable[[str], None]] = {
        "audio tower": embed,
        "everything, 1 prompt": lambda name: score(name, prompts[:1]),
        f"everything, {len(prompts)} prompts": lambda name: score(name, prompts),
    }
    on_gpu = evaluator.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    audio = [sum(c.duration_ms for c in clips) / 1e3 for clips in sets.values()]
    print(f"{count} clips each; {audio[0]:.0f} and {audio[1]:.0f} s of audio\n")
    print(f"| ms a clip{'' if on_gpu else ' of the processor'} | {' | '.join(sets)} | ratio |")
    print("| --- | --- | --- | --- |")
    for row, work in rows.items():
        seconds: dict[str, list[float]] = {name: [] for name in sets}
        for turn in range(args.rounds + 1):
            for name in sets:
                wait(evaluator)
                begin = clock()
                work(name)
                wait(evaluator)
                if turn:  # the first loads, compiles, fills the allocator
                    seconds[name].append(clock() - begin)
        four, distinct = (1e3 * float(np.median(s)) / count for s in seconds.values())
        print(f"| {row} | {four:.3f} | {distinct:.3f} | {distinct / four:.3f} |", flush=True)


def wait(evaluator: AudioScorer) -> None:
    if evaluator.device.type == "cuda":
        torch.cuda.synchronize(evaluator.device)


def store(evaluator: AudioScorer, args: argparse.Namespace, folder: Path) -> None:
    """Prints speed and memory of many clips under several system messages."""
    clips = make_clips(folder, "any", uniform_ms(FILES), args.clips)
    found = prompts_of_length(evaluator.processor.tokenizer, args.prompts, SUFFIX)
    prompts = [replace(p, system=SYSTEMS[i % len(SYSTEMS)]) for i, p in enumerate(found)]
    evaluator.score(prompts, clips[:100])  # loads and compiles
    evaluator.forget()
    device, on_gpu = evaluator.device, evaluator.device.type == "cuda"
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    budget, rss = evaluator.prefixes.budget(), resident()
    most = [0]
    with progress(evaluator, len(clips), most) as lines:
        begin = time.perf_counter()
        evaluator.score(prompts, clips)
        wait(evaluator)
        seconds = time.perf_counter() - begin
    pairs = len(prompts) * len(clips)
    print(
        f"\n{len(clips):,} clips x {len(prompts)} prompts, {len(SYSTEMS)} system messages, budget of the store"
        f" {budget / 1e9:.2f} GB\n{pairs / seconds:,.0f} evals/s, {seconds:.0f} s; the store took"
        f" {most[0] / 1e9:.2f} GB at most; host memory {rss:.0f} MiB before, {max(lines):.0f} at most"
    )
    if on_gpu:
        peak, kept = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        print(
            f"device: {before / 1e9:.2f} GB weights, {(peak - before) / 1e9:.2f} GB beside them at most,"
            f" {kept / 1e9:.2f} GB in all with what the allocator keeps"
        )


def memory(evaluator: AudioScorer, args: argparse.Namespace, folder: Path) -> None:
    """Prints the resident memory as clips go by."""
    clips = make_clips(folder, "any", uniform_ms(FILES), args.clips)
    prompts = prompts_of_length(evaluator.processor.tokenizer, args.prompts, SUFFIX)
    evaluator.score(prompts, clips[:100])
    print(f"{resident():.0f} MiB with {len(clips):,} clips listed, before any but 100 is scored")
    most = [0]
    begin = time.perf_counter()
    with progress(evaluator, len(clips), most) as lines:
        evaluator.score(prompts, clips)
    later = np.array(lines[1:])
    slope = np.polyfit(np.arange(len(later)), later, 1)[0] if len(later) > 1 else float("nan")
    print(
        f"{len(clips):,} clips in {time.perf_counter() - begin:.0f} s; the store took {most[0] / 1e6:.0f} MB at most;"
        f" after the first tenth memory grew by {slope * 10:.1f} MiB for as many clips again"
    )


@contextmanager
def progress(evaluator: AudioScorer, count: int, most: list[int]) -> Iterator[list[float]]:
    """Prints and collects resident memory in MiB each time a tenth of the clips was heard; `most`: of the store."""
    prefixes, lines, seen = evaluator.prefixes, [], 0
    embed = prefixes._tower.embed
    begin = time.perf_counter()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], prefixes.bytes)

    def noted(keys: Sequence[ClipKey], *rest: object) -> object:
        nonlocal seen
        seen += len(keys)
        if seen * 10 // count > len(lines):
            lines.append(resident())
            seconds = time.perf_counter() - begin
            print(f"  {seen:,} clips heard, {seconds:.0f} s, {lines[-1]:.0f} MiB", flush=True)
        return embed(keys, *rest)  # type: ignore[arg-type]

    prefixes._tower.embed = noted  # type: ignore[method-assign, assignment]
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lines
    finally:
        done.set()
        thread.join()
        prefixes._tower.embed = embed  # type: ignore[method-assign]
        lines.append(resident())


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=["durations", "store", "memory"])
    add("--shape", choices=["pocket", "7b"], default="pocket")
    add("--device", default="auto")
    add("--clips", type=int, help=f"default: {CLIPS}")
    add("--prompts", type=int, help=f"default: {PROMPTS}")
    add("--budget", type=float, help="GB of the store; default: what the device has to spare")
    add("--rounds", type=int, default=5, help="of durations; medians over them")
    args = parser.parse_args()
    args.clips = args.clips or CLIPS[args.part]
    args.prompts = args.prompts or PROMPTS[args.part]
    device = pick_device(args.device)
    loaded = random_7b(device) if args.shape == "7b" else None
    budget = None if args.budget is None else 1e9 * args.budget
    checkpoint = open_checkpoint("pocket-base")
    evaluator = AudioScorer(checkpoint, str(device), loaded=loaded, store_bytes=budget)
    cpu = f"{torch.get_num_threads()} CPU threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    print(f"{args.part}, {args.shape}; {name}; torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        {"durations": durations, "store": store, "memory": memory}[args.part](
            evaluator, args, Path(folder)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
