"""What more workers bring, against one process in the same run: python tests/bench_ray.py

Needs `pip install -e '.[ray]'`. The fake evaluator, whose evals cost a fixed sleep, shows what handing out costs; with
--checkpoint or --shape a real one, with one GPU a worker where Ray sees GPUs. Clips and prompts are those of the demo.
After the table of a real one: where each process of a call spent its time, and when in the call it began and ended.
"""

import argparse
import functools
import gc
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from bench_wording import rewritten

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.bench import Stages
from evaluators.fakes import FakeEvaluator
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.ray_pool import RayPool
from evaluators.splits import balanced_order
from evaluators.tasks import SPEECH_TASK

LONG = 5.0  # seconds of a call, which is not repeated


class Told(AudioScorer):
    """One that writes a line a call to a file: its process, begin, end, stages. Set `told` to the file."""

    told: Path

    def score(self, prompts, clips):
        begin = time.time()
        with Stages(self.device) as stages:
            table = super().score(prompts, clips)
        line = {"pid": os.getpid(), "begin": begin, "end": time.time(), "clips": len(clips)}
        with self.told.open("a") as file:
            file.write(json.dumps(line | stages.seconds | {"tokens": stages.tokens}) + "\n")
        return table


def real(name, told):
    """The scorer of a checkpoint; of ``7b`` the exact shape with random weights, alike on every card."""
    if name == "7b":
        from evaluators.audio_lm.stock import random_7b

        loaded = random_7b(torch.device("cuda"))
        scorer = Told(open_checkpoint("pocket-base"), "cuda", loaded=loaded)
    else:
        scorer = Told(open_checkpoint(name))
    scorer.told = told
    return scorer


@dataclass(frozen=True)
class Case:
    """Work of a call; `kept`: what earlier calls computed of the clips is there, as in a search after its seeds."""

    clips: int
    prompts: int
    kept: bool

    def __str__(self):
        return f"{self.clips} x {self.prompts}{', clips kept' if self.kept else ''}"


def timed(evaluator, prompts, clips, kept):
    """(Seconds of the fastest of three calls, or of the first that takes long, scores, when it began)."""
    if not kept:  # else the same case was timed before
        evaluator.score(prompts, clips)  # kernels of these shapes
    best = float("inf"), 0.0
    for _ in range(3):
        if not kept and hasattr(evaluator.innermost, "forget"):
            evaluator.forget()
        at, begin = time.time(), time.perf_counter()
        table = evaluator.score(prompts, clips)
        best = min(best, (time.perf_counter() - begin, at))
        if best[0] > LONG:
            break
    return best[0], table.logp, best[1]


def parts(told, begin, seconds):
    """Lines of a call: what each chunk took where, in ms after the call's begin."""
    lines = map(json.loads, told.read_text().splitlines()) if told.exists() else ()
    own = [x for x in lines if begin - 0.001 <= x["begin"] <= begin + seconds]
    pids = sorted({x["pid"] for x in own})
    for x in own:
        stages = " ".join(f"{n} {1e3 * x[n]:.0f}" for n in (*Stages.NAMES, "rest"))
        tokens = " ".join(f"{n} {count}" for n, count in x["tokens"].items())
        yield (
            f"  process {pids.index(x['pid']) + 1}, {x['clips']} clips: {1e3 * (x['begin'] - begin):.0f} to"
            f" {1e3 * (x['end'] - begin):.0f} of {1e3 * seconds:.0f} ms; {stages}; tokens {tokens}"
        )


def cases_of(texts, kept):
    """Those of ``400x50``: clips and prompts; with `kept`, each also with the clips kept."""
    sizes = [tuple(map(int, text.split("x"))) for text in texts]
    return [Case(*size, known) for size in sizes for known in ((False, True) if kept else (False,))]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--delays", nargs="+", type=float, default=[1, 2, 5], help="ms an eval")
    parser.add_argument("--checkpoint", help="a real one instead of the fake")
    parser.add_argument("--shape", choices=["7b"], help="random weights instead of the fake")
    parser.add_argument(
        "--cases", nargs="+", default=["200x10"], help="clips x prompts, e.g. 400x50 32x10"
    )
    args = parser.parse_args()
    labels = SPEECH_TASK.labels
    cases = cases_of(args.cases, bool(args.shape or args.checkpoint))
    prompts = read_prompts(shipped("prompts/heldout.yaml"), labels)
    prompts += rewritten(prompts[:3], max(0, max(c.prompts for c in cases) - len(prompts)))
    clips = balanced_order(read_manifest(shipped("data/demo"), labels, "dev"))
    makers = {f"fake, {d:g} ms": functools.partial(FakeEvaluator, d / 1000) for d in args.delays}
    told = Path(tempfile.mkdtemp()) / "calls.jsonl"
    if name := args.shape or args.checkpoint:
        makers = {name: functools.partial(real, name, told)}
    alone, calls = {}, []
    for name, make in makers.items():  # before Ray's workers need the card's memory
        one = make()
        for case in cases:
            found = timed(one, prompts[: case.prompts], clips[: case.clips], case.kept)
            alone[name, case] = found[:2]
            calls.append((f"{name}, {case}, one process", found[2], found[0]))
        one.release()
        del one
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        print(torch.cuda.device_count(), torch.cuda.get_device_name())
    ray.init(address="local", log_to_driver=False, include_dashboard=False)
    if not ray.cluster_resources().get("GPU"):  # sleeping takes no processor
        ray.shutdown()
        ray.init(
            address="local",
            num_cpus=max(args.workers),
            log_to_driver=False,
            include_dashboard=False,
        )
    print(
        "| evaluator, clips x prompts | one process, s |"
        + "".join(f" {n} workers, s | times |" for n in args.workers)
    )
    print("| --- | --- |" + " --- | --- |" * len(args.workers))
    for name, make in makers.items():
        cells = {case: [] for case in cases}
        for count in args.workers:
            pool = RayPool(make, workers=count)
            while pool.usable < count:
                pool.score(prompts[:1], clips[:8])
            for case in cases:
                found = timed(pool, prompts[: case.prompts], clips[: case.clips], case.kept)
                seconds, logp, begin = found
                own, expected = alone[name, case]
                assert (logp == expected).all()
                calls.append((f"{name}, {case}, {count} workers", begin, seconds))
                cells[case].append(f" {seconds:.3f} | {own / seconds:.2f} |")
            pool.release()
        for case in cases:
            print(
                f"| {name}, {case} | {alone[name, case][0]:.3f} |" + "".join(cells[case]),
                flush=True,
            )
    for title, begin, seconds in calls:
        if lines := list(parts(told, begin, seconds)):
            print(title, *lines, sep="\n")


if __name__ == "__main__":
    main()
