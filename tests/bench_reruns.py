"""How often reruns on one holdout half replace a baseline by nothing: python tests/bench_reruns.py --chains 1000

Chains of searches with nothing to find, all decided on the same half, as `opro.power` simulates them: prompts of one
true accuracy, sources that differ, finalists by their score on the search half. Each rerun draws other prompts; the
clips, their difficulty and the sources' stay. Printed: the share of chains with a false "replaced" in the first n
decisions, each at 2.5 % as if it were the first, and at the level that the ledger leaves. Then what the ledger costs:
how often a prompt that is better is found in the n-th decision on a half.
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from scipy import stats
from scipy.special import ndtri

from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.splits import halves
from evaluators.statistics.compare import resamples_at, step_down
from evaluators.statistics.metrics import balanced_weights
from evaluators.statistics.resampling import clusters
from evaluators.tasks import SPEECH_TASK
from opro.search.budget import most_finalists
from opro.search.power import SEEDS, SHARED, Half
from opro.search.select import Turn, winner_of

SHOWN = (1, 2, 5, 10, 20)
CANDIDATES, ACCURACY, SPREAD = 50, 0.8, 0.08


def dev():
    """The halves of the shipped dev split."""
    found = halves(read_manifest(shipped("data/demo"), SPEECH_TASK.labels, "dev"))
    return tuple(Half.of(ClipSet(SPEECH_TASK, tuple(half))) for half in found)


class World:
    """One dev set: what belongs to its clips and sources stays from rerun to rerun."""

    def __init__(self, both, seed):
        self.both, self.rng = both, np.random.default_rng(seed)
        self.own = SPREAD / np.sqrt(2)
        self.sources = [self.rng.normal(0, self.own, int(h.source.max()) + 1) for h in both]
        self.clips = [np.sqrt(SHARED) * self.rng.normal(size=len(h.truth)) for h in both]

    def rerun(self, gain):
        """Per half, ``[prompt, clip]``: whether prompts are right; the first that is no seed is better by `gain`."""
        accuracy = np.full(SEEDS + CANDIDATES, ACCURACY)
        accuracy[SEEDS] += gain
        for half, source, clip in zip(self.both, self.sources, self.clips, strict=True):
            effect = source + self.rng.normal(0, self.own, (len(accuracy), len(source)))
            bound = ndtri(np.clip(accuracy[:, None] + effect, 0.01, 0.99))[:, half.source]
            noise = np.sqrt(1 - SHARED) * self.rng.normal(size=(len(accuracy), len(clip)))
            yield clip + noise < bound


def replaced(world, number, gain=0.0):
    """(prompt that replaces the baseline at 2.5 %, at the level of this decision) in one rerun; None: it stays."""
    search, holdout = world.both
    searched, heard = world.rerun(gain)
    score = searched @ balanced_weights(search.truth)
    baseline = int(score[:SEEDS].argmax())
    first, level = Turn(), Turn(number).level
    names = holdout.source.astype(str).tolist()
    out = []
    for alpha in (first.level, level):
        c = clusters(holdout.truth, names, resamples=resamples_at(alpha))
        order = [i for i in np.argsort(-score, kind="stable") if i >= SEEDS]
        finalists = [i for i in order if score[i] > score[baseline]][: most_finalists(c.fewest)]
        if not finalists:
            return None, None
        said = c.balanced(heard[[*finalists, baseline]].astype(float))
        gains = step_down(c, [said[i] - said[-1] for i in range(len(finalists))], alpha=alpha)
        best = winner_of(gains, c.fewest, alpha)
        out.append(None if best is None else int(finalists[best]))
        if min(gain.p for gain in gains) > 2 * first.level:  # nor at a lower level
            return None, None
    return tuple(out)


def chain(reruns, seed):
    """``[2, rerun]``: whether each rerun replaced the baseline, of no use, at both levels."""
    world = World(dev(), [1, seed])
    found = [replaced(world, n + 1) for n in range(reruns)]
    return np.array([[one[k] is not None for one in found] for k in range(2)])


def found(gain, number, seed):
    """Whether the better prompt replaces the baseline in the n-th decision on a half."""
    return replaced(World(dev(), [2, seed]), number, gain)[1] == SEEDS


def share(hits):
    """A share in percent with its upper bound, one-sided 95 % (Clopper and Pearson)."""
    k, n = int(np.sum(hits)), len(hits)
    top = 1.0 if k == n else stats.beta.ppf(0.95, k + 1, n - k)
    return f"{100 * k / n:5.1f} (<= {100 * top:.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=200)
    parser.add_argument("--reruns", type=int, default=20)
    parser.add_argument(
        "--searches", type=int, default=200, help="of each cell of the second table"
    )
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.processes) as pool:
        chains = np.array([*pool.map(partial(chain, args.reruns), range(args.chains), chunksize=4)])
        print(f"false 'replaced', percent of {args.chains} chains with nothing to find")
        print("reruns  each at 2.5 %        by the ledger        its bound")
        for n in (n for n in SHOWN if n <= args.reruns):
            ever = chains[:, :, :n].any(axis=2)
            bound = 100 * math.fsum(Turn(i + 1).level for i in range(n))
            print(f"{n:6}  {share(ever[:, 0]):20} {share(ever[:, 1]):20} {bound:.2f}")
        print(
            f"\nbetter prompt found, percent of {args.searches} searches, by its gain and the decision's number"
        )
        print("gain    " + "".join(f"{Turn(n).level:>9.5f}" for n in SHOWN))
        for points in (6, 10, 15):
            cells = []
            for n in SHOWN:
                hits = [
                    *pool.map(partial(found, points / 100, n), range(args.searches), chunksize=8)
                ]
                cells.append(f"{100 * np.mean(hits):9.0f}")
            print(f"{points:+4} pts" + "".join(cells))


if __name__ == "__main__":
    main()
