"""From a command to its first scores, phase by phase: python tests/bench_start.py [--shape 7b] [--nf4] [--whole]

Each column is a fresh process of the real command, on weights that lie in the page cache. ``first`` has nothing that
earlier ones remembered (digests, kernels), the others have; ``stock`` is loaded and read by transformers. Numbers are
seconds from the start of the process, begin-end, and in brackets what all threads together took. The floor is the time
of the weights' bytes alone, by threads from the page cache into pinned memory and from there to the card, as measured
here. ``--shape 7b`` writes 17 GB of random weights of the exact shape first (one GPU with 40 GB); ``--nf4`` adds 4-bit
weights, made and kept (bitsandbytes); ``--whole`` times whole default searches too;
``--runs 1`` takes `again` and `stock` once each. ``--disk 4`` times nothing else than reading 4 GB that lie on the
disk alone, by the reader of weights and by plain reads, three times.
"""

import argparse
import functools
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GB = 1e9
SLOW = (
    "torch transformers peft accelerate bitsandbytes sklearn sympy torch._dynamo scipy.special scipy.stats optuna"
    " pandas triton".split()
)


class Watch:
    """When phases began and ended, and what their calls took in all threads, in seconds from `start`."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.scores = ""  # digest of the first
        self.phases: dict[str, list[float]] = {}

    def note(self, name: str, begin: float, end: float) -> None:
        known = self.phases.setdefault(name, [begin, end, 0.0])
        known[:] = [min(known[0], begin), max(known[1], end), known[2] + end - begin]

    def once(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """As `over`, but for the first call alone."""
        first = self.over(name, work)
        return lambda *args: (work if name in self.phases else first)(*args)

    def now(self) -> float:
        return time.time() - self.start

    def over(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def timed(*args: Any, **more: Any) -> Any:
            begin = self.now()
            try:
                return work(*args, **more)
            finally:
                self.note(name, begin, self.now())

        return timed


def child(start: float, out: Path, whole: bool, how: str, flags: list[str]) -> None:
    """The command, watched; it ends with its first scores unless `whole`."""
    watch = Watch(start)
    from opro import optimize, problem

    watch.note("imports of the command", 0.0, watch.now())
    from evaluators import build

    build._audio_scorer = watch.over("imports of torch", build._audio_scorer)

    def opened(*args: Any, **more: Any) -> Any:
        made = plain_open(*args, **more)
        watch_scorer(watch, out, whole, how)
        return made

    plain_open, problem.build_evaluator = problem.build_evaluator, opened
    problem.verify = watch.over("clips verified", problem.verify)
    code = optimize.main(flags)
    watch.note("whole command", 0.0, watch.now())
    write(watch, out)
    assert code == 0


def write(watch: Watch, out: Path) -> None:
    """Writes the phases, which of the slow libraries were imported, and the digest of the first scores."""
    slow = [name for name in SLOW if name in sys.modules]
    about = {"imported": slow, "scores": watch.scores}
    out.write_text(json.dumps({**watch.phases, **about}))


def watch_scorer(watch: Watch, out: Path, whole: bool, how: str) -> None:
    """Watches what a scorer does."""
    from evaluators.audio_lm import (
        decoder,
        families,
        features,
        identity,
        kept_weights,
        plain_model,
        scorer,
        tower,
        weight_reader,
    )

    if how == "stock":
        kept_weights.can_read = lambda *_: False
        scorer.load_plain = scorer.fitting_model = lambda *_: None
        identity.plain_config = families.plain_config = families.plain_front = lambda _: None
    own = vars(scorer.AudioScorer)
    for name, phase in (
        ("config", "configuration, its class"),
        ("_known", "digest"),
        ("front", "tokenizer, extractor"),
    ):
        own[name].func = watch.over(phase, own[name].func)
    scorer.load_plain = watch.over("weights: load_plain", scorer.load_plain)
    plain_model.fitting_model = watch.over("weights: looked at", plain_model.fitting_model)
    loader = scorer.loader

    def watched_loader() -> Any:
        module = watch.over("imports of the loader", loader)()
        if not hasattr(module, "watched"):
            module.watched = True
            module.load_model = watch.over("weights: load_model", module.load_model)
            module.read_model = watch.over("weights: from_pretrained", module.read_model)
            module.keep = watch.over("weights: 4 bits kept", module.keep)
        return module

    scorer.loader = watched_loader
    reader = weight_reader.WeightReader
    reader.read = watch.over("weights: taken", reader.read)
    reader._copy = watch.over("weights: blocks", reader._copy)
    tower.AudioTower.embed = watch.once("first clips through the tower", tower.AudioTower.embed)
    decoder.Decoder.step = watch.once("first batch through the decoder", decoder.Decoder.step)
    store = features.FeatureStore
    store.decode = watch.over("audio decoded, or features read", store.decode)
    store.log_mel = watch.over("mel", store.log_mel)
    scorer.AudioScorer._load = watch.once(
        "weights: all, merged and fused", scorer.AudioScorer._load
    )
    scorer.AudioScorer._score_batch = watch.over("batches given", scorer.AudioScorer._score_batch)
    try:
        import triton

        for place in (triton.compiler, triton.compiler.compiler):
            place.compile = watch.over("kernels: compiled or fetched", place.compile)
    except (ImportError, AttributeError):
        pass
    score = scorer.AudioScorer.score

    def first_score(*args: Any) -> Any:
        table = score(*args)
        if "first scores" not in watch.phases:
            watch.note("first scores", 0.0, watch.now())
            watch.scores = hashlib.sha256(table.logp.tobytes()).hexdigest()[:8]
            if not whole:
                write(watch, out)
                os._exit(0)  # whatever is still under way
        return table

    scorer.AudioScorer.score = first_score


def seven(folder: Path) -> None:
    """Writes the exact 7B shape with random bf16 weights."""
    import torch

    from evaluators.audio_lm.stock import random_7b

    model, processor = random_7b(torch.device("cuda"))
    model.save_pretrained(folder, max_shard_size="4GB")
    processor.save_pretrained(folder)


def bare_start() -> float:
    """Seconds of a fresh process that imports torch and puts a number onto the card, the fastest of three."""
    code = "import torch; torch.zeros(1, device='cuda' if torch.cuda.is_available() else 'cpu')"
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def copy_speeds(folder: Path) -> None:
    """Prints GB/s from the page cache into pinned memory, from there to the card, and both at once."""
    import torch

    from evaluators.audio_lm.weight_reader import THREADS

    files = sorted(folder.glob("*.safetensors"))
    for count in (1, THREADS):
        print(f"page cache to memory, {count} threads: {read_blocks(files, count)}")
    if torch.cuda.is_available():
        piece = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        there = torch.empty(2**28, dtype=torch.uint8, device="cuda")
        there.copy_(piece)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(20):
            there.copy_(piece, non_blocking=True)
        torch.cuda.synchronize()
        print(
            f"pinned memory to the card: {20 * 2**28 / GB / (time.perf_counter() - begin):.1f} GB/s"
        )
    print(f"all weights by the reader alone, in a fresh process: {read_tensors(files)}")


def read_blocks(files: list[Path], count: int) -> str:
    """How fast threads read the blocks of files into one piece of memory each, pinned where there is a card."""
    import torch

    from evaluators.audio_lm.weight_reader import BLOCK, fill

    blocks = [(path, at) for path in files for at in range(0, path.stat().st_size - BLOCK, BLOCK)]
    opened = {path: os.open(path, os.O_RDONLY) for path in files}
    pinned = torch.cuda.is_available()
    pieces = [torch.empty(BLOCK, dtype=torch.uint8, pin_memory=pinned) for _ in range(count)]

    def lane(number: int) -> None:
        for path, at in blocks[number::count]:
            fill(opened[path], at, pieces[number])

    begin = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lane, range(count)))
    said = rate(len(blocks) * BLOCK, begin)
    for file in opened.values():
        os.close(file)
    return said


def read_tensors(files: list[Path]) -> str:
    """How fast the reader of weights takes the tensors of files to the card, or into memory where there is none."""
    import torch

    from evaluators.audio_lm.weight_reader import WeightReader

    begin = time.perf_counter()
    reader = WeightReader(files, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for _ in reader.all(reader.tensors):
        pass
    said = rate(sum(path.stat().st_size for path in files), begin)
    reader.close()
    return said


def rate(count: int, begin: float) -> str:
    seconds = time.perf_counter() - begin
    return f"{count / GB:.2f} GB in {seconds:.2f} s, {count / GB / seconds:.1f} GB/s"


def disk_speeds(folder: Path, size: int) -> None:
    """Prints GB/s from the disk, of files that the page cache does not hold."""
    import torch
    from safetensors.torch import save_file

    from evaluators.audio_lm.weight_reader import THREADS

    for number in range(size):
        tensors = {
            f"{number}.{i}": torch.randint(2**15, (2**12, 2**12), dtype=torch.int16)
            for i in range(30)
        }
        save_file(tensors, folder / f"{number}.safetensors")
    files = sorted(folder.glob("*.safetensors"))
    for _ in range(3):
        for name, work in (
            ("plain reads, 1 thread", functools.partial(read_blocks, files, 1)),
            (f"plain reads, {THREADS} threads", functools.partial(read_blocks, files, THREADS)),
            ("the reader of weights", functools.partial(read_tensors, files)),
        ):
            for path in files:
                file = os.open(path, os.O_RDONLY)
                os.fsync(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)
            print(f"from the disk, {name}: {work()}", flush=True)


def run_case(
    work: Path, name: str, flags: list[str], how: str, whole: bool = False
) -> dict[str, Any]:
    """The phases of a case; its processes have caches of their own."""
    out = work / "phases.json"
    out.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as runs:
        given = json.dumps([time.time(), str(out), whole, how, [*flags, "--runs-dir", runs]])
        done = subprocess.run(
            [sys.executable, __file__, "--child", given],
            env=os.environ | {
                "XDG_CACHE_HOME": str(work / "cache"),
                "TRITON_CACHE_DIR": str(work / "triton"),
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            },
            capture_output=True,
            text=True,
        )  # fmt: skip
    for line in done.stderr.splitlines():
        if "kept" in line or "hashed" in line:
            print(f"{name}: {line.strip()[:200]}")
    if not out.is_file():
        print(f"{name} failed: {done.stderr[-1500:]}", flush=True)
        return {}
    found = json.loads(out.read_text())
    print(f"{name}: imported {', '.join(found.pop('imported')) or 'nothing heavy'}")
    print(f"{name}: digest of the first scores {found.pop('scores')}")
    last = found.get("whole command", found["first scores"])[1]
    print(
        f"{name}: first scores after {found['first scores'][1]:.2f} s, all of it {last:.2f} s",
        flush=True,
    )
    return found


def time_without_watch(work: Path) -> None:
    """Prints what a small first run of the shipped checkpoint takes, and the same command once it has finished."""
    flags = ["--iterations", "0", "--clips", "40", "--runs-dir", str(work / "runs")]
    for what in ("a first run of 40 clips and the seeds alone", "the same command again"):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "opro.optimize", *flags, "--name", "shown"],
            env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(work / "cache")},
            check=True,
            capture_output=True,
        )
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{what}: {seconds:.2f} s, {used:.2f} of the processor", flush=True)


def show(found: dict[str, dict[str, Any]]) -> None:
    """Prints the table of phases."""
    names = list(dict.fromkeys(name for one in found.values() for name in one))
    names.sort(key=lambda name: min(one[name][1] for one in found.values() if name in one))
    print(f"\n| phase, s | {' | '.join(found)} |\n| --- |{' --- |' * len(found)}")
    for name in names:
        cells = [
            "-" if name not in one else "{:.2f}-{:.2f} ({:.2f})".format(*one[name])
            for one in found.values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=["pocket", "7b"], default="pocket")
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument(
        "--work", type=Path, help="a folder for weights and caches, kept afterwards"
    )
    parser.add_argument("--disk", type=int, metavar="GB", help="time reads from the disk alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=["seven", "speeds"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        start, out, whole, how, flags = json.loads(args.child)
        child(start, Path(out), whole, how, flags)
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(exist_ok=True, parents=True)
        if args.disk:
            disk_speeds(work, args.disk)
            return
        weights = ROOT / "data/pocket/base" if args.shape == "pocket" else work / "weights"
        if args.step:
            {"seven": seven, "speeds": copy_speeds}[args.step](weights)
            return
        again = [sys.executable, __file__, "--shape", args.shape, "--work", str(work), "--step"]
        if args.shape == "7b" and not (weights / "config.json").is_file():
            begin = time.time()
            subprocess.run([*again, "seven"], check=True)
            print(f"weights written in {time.time() - begin:.0f} s", flush=True)
        subprocess.run([*again, "speeds"], check=True)
        print(f"a process that imports torch and puts a number there: {bare_start():.2f} s")
        flags = ["--checkpoint", str(weights), "--iterations", "5"]
        four = [*flags, "--quantization", "nf4"]
        names = ["first", *["again", "stock"] * args.runs]
        groups = [[(f"{how}, run {i}", flags, how) for i, how in enumerate(names, 1)]]
        if args.nf4:
            groups.append([("nf4 first", four, "again"), ("nf4 kept", four, "again")])
        if args.whole:
            groups.append([("whole", flags, "again"), *[("whole nf4", four, "again")] * args.nf4])
        if args.shape == "pocket":
            time_without_watch(work)
        failed = False
        for group in groups:
            whole = group[0][0] == "whole"
            found = {name: run_case(work, name, given, how, whole) for name, given, how in group}
            failed |= not all(found.values())
            show(found)
        sys.exit(failed)


if __name__ == "__main__":
    main()
