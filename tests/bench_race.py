"""What racing saves, what it costs, and how often noise wins: python tests/bench_race.py

On an evaluator of known truth with the shipped dev clips' sources: searches of 5 x 10 random prompts, raced and scored
exhaustively, the same prompts both times; then searches on labels that mean nothing, in which every replaced baseline
is a false win.
"""

import argparse
import functools
import math
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from known_truth import KnownTruth
from scipy import stats
from searches import Silent

from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import halves
from evaluators.tasks import SPEECH_TASK
from opro.problem import Problem
from opro.proposers.rewriter import Rewriter
from opro.search.history import History
from opro.search.loop import Clock, Search
from opro.search.select import decide
from opro.settings import SearchSettings

LABELS = SPEECH_TASK.labels


def run(evaluator, halves_of_dev, seed, strategy, learn=False):
    """(decision, history) of one search."""
    seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), LABELS)
    problem = Problem(SPEECH_TASK, tuple(seeds), *halves_of_dev, evaluator, {})
    settings = SearchSettings(iterations=5, candidates=10, strategy=strategy, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "trials.jsonl", LABELS)
        history.begin({})
        proposer = Rewriter(SPEECH_TASK, seed, learn=learn)
        search = Search(problem, settings, proposer, history, Silent(), Clock(), lambda *_: None)
        search.run()
        return decide(problem, settings, history), history


def interval(values):
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{np.mean(values):.2f} [{np.mean(values) - half:.2f}, {np.mean(values) + half:.2f}]"


def dev():
    """The halves of the shipped dev split."""
    found = halves(read_manifest(shipped("data/demo"), LABELS, "dev"))
    return [ClipSet(SPEECH_TASK, tuple(half)) for half in found]


def compared(noise, world):
    """(true accuracy of the search half's best, of the chosen prompt, evals): raced less, or per, exhaustive."""
    found = {}
    for strategy in ("race", "opro"):
        evaluator = KnownTruth(world, noise)
        decision, history = run(evaluator, dev(), world, strategy)
        found[strategy] = [
            100 * evaluator.true_accuracy(t.prompt) for t in (history.scored[0], decision.chosen)
        ] + [sum(t.n_scored for t in history.trials)]
    raced, whole = found["race"], found["opro"]
    return raced[0] - whole[0], raced[1] - whole[1], 100 * raced[2] / whole[2]


def fooled(world):
    """Whether a search on labels that mean nothing replaced its baseline."""
    return run(KnownTruth(world, deaf=True), dev(), world, "race", learn=True)[0].winner is not None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=500)
    parser.add_argument("--shuffled", type=int, default=400)
    parser.add_argument("--noise", nargs="*", type=float, default=[0.2, 0.4, 1.0])
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    args = parser.parse_args()
    print(
        "| noise | search half's best: true accuracy, raced minus exhaustive, points |"
        " chosen: the same | evals, share of exhaustive |\n| --- | --- | --- | --- |"
    )
    with ProcessPoolExecutor(args.jobs) as pool:
        for noise in args.noise:
            rows = pool.map(functools.partial(compared, noise), range(args.searches))
            best, chosen, share = zip(*rows, strict=True)
            print(
                f"| {noise} | {interval(best)} | {interval(chosen)} | {interval(share)} % |",
                flush=True,
            )
        replaced = sum(pool.map(fooled, range(args.shuffled)))
    high = stats.beta.ppf(0.95, replaced + 1, args.shuffled - replaced)
    print(
        f"\nlabels that mean nothing: {replaced} of {args.shuffled} searches replaced the baseline,"
        f" {100 * replaced / args.shuffled:.1f} %, upper 95 % bound {100 * high:.1f} %"
    )


if __name__ == "__main__":
    main()
