"""What more workers bring, against one process in the same run: python tests/bench_ray.py

Needs `pip install -e '.[ray]'`. The fake evaluator, whose evals cost a fixed sleep, shows what handing out costs; with
--checkpoint or --shape a real one, with one GPU a worker where Ray sees GPUs. Clips and prompts are those of the demo.
"""

import argparse
import functools
import gc
import time

import ray
import torch
from bench_wording import rewritten

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.fakes import FakeEvaluator
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.ray_pool import RayPool
from evaluators.splits import balanced_order
from evaluators.tasks import SPEECH_TASK


def timed(evaluator, prompts, clips, ready, repeats=3):
    """(Seconds of the fastest call that keeps nothing of an earlier one, scores), once `ready` says that all work."""
    while not ready():
        evaluator.score(prompts[:1], clips)
    evaluator.score(prompts, clips)  # kernels of these shapes
    best = float("inf")
    for _ in range(repeats):
        if hasattr(evaluator.innermost, "forget"):
            evaluator.forget()
        begin = time.perf_counter()
        table = evaluator.score(prompts, clips)
        best = min(best, time.perf_counter() - begin)
    return best, table.logp


def seven():
    """The exact 7B shape with random weights, alike on every card."""
    from evaluators.audio_lm.scorer import AudioScorer
    from evaluators.audio_lm.stock import random_7b

    loaded = random_7b(torch.device("cuda"))
    return AudioScorer(open_checkpoint("pocket-base"), "cuda", loaded=loaded)


def sized(text):
    """(Clips, prompts) of ``400x50``."""
    clips, prompts = text.split("x")
    return int(clips), int(prompts)


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
    cases = [sized(text) for text in args.cases]
    prompts = read_prompts(shipped("prompts/heldout.yaml"), labels)
    prompts += rewritten(prompts[:3], max(0, max(p for _, p in cases) - len(prompts)))
    clips = balanced_order(read_manifest(shipped("data/demo"), labels, "dev"))
    makers = {f"fake, {d:g} ms": functools.partial(FakeEvaluator, d / 1000) for d in args.delays}
    if args.checkpoint:
        from evaluators.audio_lm.scorer import AudioScorer

        makers = {args.checkpoint: functools.partial(AudioScorer, open_checkpoint(args.checkpoint))}
    if args.shape:
        makers = {"7B shape": seven}
    alone = {}
    for name, make in makers.items():  # before Ray's workers need the card's memory
        one = make()
        for case in cases:
            alone[name, case] = timed(one, prompts[: case[1]], clips[: case[0]], lambda: True)
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
            for case in cases:
                used, heard = prompts[: case[1]], clips[: case[0]]
                seconds, logp = timed(pool, used, heard, lambda p=pool, n=count: p.usable == n)
                own, expected = alone[name, case]
                assert abs(logp - expected).max() < 1e-5
                cells[case].append(f" {seconds:.3f} | {own / seconds:.2f} |")
            pool.release()
        for case in cases:
            title = f"{name}, {case[0]} x {case[1]}"
            print(f"| {title} | {alone[name, case][0]:.3f} |" + "".join(cells[case]), flush=True)


if __name__ == "__main__":
    main()
