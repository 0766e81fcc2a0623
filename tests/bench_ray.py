"""What more workers bring, against one process in the same run: python tests/bench_ray.py

Needs `pip install -e '.[ray]'`. The fake evaluator, whose evals cost a fixed sleep, shows what handing out costs; with
--checkpoint a real one, with one GPU a worker where Ray sees GPUs.
"""

import argparse
import functools
import time

import ray

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.fakes import FakeEvaluator
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.ray_pool import RayPool
from evaluators.splits import balanced_order
from evaluators.tasks import SPEECH_TASK


def timed(evaluator, prompts, clips, ready):
    """Seconds of one call, once `ready` says that all workers have started."""
    while not ready():
        evaluator.score(prompts[:1], clips)
    if evaluator.about().checkpoint is not None and evaluator.innermost is evaluator:
        evaluator.forget()
    begin = time.perf_counter()
    table = evaluator.score(prompts, clips)
    return time.perf_counter() - begin, table.logp


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--delays", nargs="+", type=float, default=[1, 2, 5], help="ms an eval")
    parser.add_argument("--checkpoint", help="a real one instead of the fake")
    parser.add_argument("--clips", type=int, default=200)
    args = parser.parse_args()
    labels = SPEECH_TASK.labels
    prompts = read_prompts(shipped("prompts/heldout.yaml"), labels)[:10]
    clips = balanced_order(read_manifest(shipped("data/demo"), labels, "dev"))[: args.clips]
    makers = {f"fake, {d:g} ms": functools.partial(FakeEvaluator, d / 1000) for d in args.delays}
    if args.checkpoint:
        from evaluators.audio_lm.scorer import AudioScorer

        makers = {args.checkpoint: functools.partial(AudioScorer, open_checkpoint(args.checkpoint))}
    ray.init(address="local", log_to_driver=False, include_dashboard=False)
    if not ray.cluster_resources().get("GPU"):  # sleeping takes no processor
        ray.shutdown()
        ray.init(
            address="local",
            num_cpus=max(args.workers),
            log_to_driver=False,
            include_dashboard=False,
        )
    print(f"{len(prompts)} prompts x {len(clips)} clips")
    print(
        "| evaluator | one process, s |"
        + "".join(f" {n} workers, s | times |" for n in args.workers)
    )
    print("| --- | --- |" + " --- | --- |" * len(args.workers))
    for name, make in makers.items():
        alone, expected = timed(make(), prompts, clips, iter([False, True]).__next__)
        cells = []
        for count in args.workers:
            pool = RayPool(make, workers=count)
            seconds, logp = timed(pool, prompts, clips, lambda p=pool, n=count: p.usable == n)
            assert abs(logp - expected).max() < 1e-5
            cells.append(f" {seconds:.2f} | {alone / seconds:.2f} |")
            del pool
        print(f"| {name} | {alone:.2f} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
