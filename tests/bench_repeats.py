"""What a decision over several searches finds, and how often it errs: python tests/bench_repeats.py --searches 1000

``opro.optimize --repeats N`` searches N times from the same seed prompts and decides once. Compared are, on the same
simulated searches (as `opro.power` simulates them: prompts of one true accuracy, sources that differ):

one     one search alone, which the others have N times the evals of
union   the best k of all trials of all repeats, k as `opro.search.budget.most_finalists` says, Holm over k: ours
each    the best of each repeat, Holm over their number, at most N
often   as union, but first of all what is best in most repeats: with one repeat, as alone
ledger  N searches that decide by themselves, at the levels that the ledger of holdouts leaves

Where a prompt is better it is by the gain: in one of the repeats, in each of them as another wording, or in each of
them as the same. Prompts of no use are others in every repeat.
"""

import argparse
import functools
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from bench_reruns import ACCURACY, CANDIDATES, SPREAD, dev, share
from scipy.special import ndtri

from evaluators.statistics.compare import ALPHA, resamples_at, step_down
from evaluators.statistics.metrics import balanced_weights
from evaluators.statistics.resampling import clusters
from opro.search.budget import most_finalists
from opro.search.power import SEEDS, SHARED
from opro.search.select import Turn, winner_of

RULES = ("one", "union", "each", "often", "ledger")
WHERE = ("one repeat", "each, another wording", "each, the same")
GAINS = (2, 4, 6, 8, 10)


@functools.cache
def half_of(voices):
    """The halves of a dev set, and by level the resamples of its holdout."""
    both = dev()
    return both if voices == 11 else tuple(h.grown(voices // 11, 1) for h in both)


@functools.cache
def resampled(voices, alpha):
    """Resamples of a holdout for a decision at this level."""
    half = half_of(voices)[1]
    names = half.source.astype(str).tolist()
    return clusters(half.truth, names, resamples=resamples_at(alpha))


def groups(repeats, where, number):
    """(prompts of each repeat, which prompts are better), beside the seeds."""
    own = [SEEDS + r * CANDIDATES + np.arange(CANDIDATES) for r in range(repeats)]
    if where == WHERE[0]:
        return own, own[number % repeats][:1]
    if where == WHERE[1]:
        return own, np.array([o[0] for o in own])
    first = own[0][0]
    return [np.array([first, *o[1:]]) for o in own], own[0][:1]


def answers(half, accuracy, rng):
    """``[prompt, clip]``: whether prompts are right."""
    sources = int(half.source.max()) + 1
    own = SPREAD / np.sqrt(2)
    effect = rng.normal(0, own, sources) + rng.normal(0, own, (len(accuracy), sources))
    bound = ndtri(np.clip(accuracy[:, None] + effect, 0.01, 0.99))[:, half.source]
    z = np.sqrt(SHARED) * rng.normal(size=len(half.truth))
    return z + np.sqrt(1 - SHARED) * rng.normal(size=bound.shape) < bound


def decided(voices, repeats, where, gain, number):
    """By rule: 1 where a better prompt replaces the baseline, -1 where another one does, 0 where none does."""
    search, holdout = half_of(voices)
    rng = np.random.default_rng([3, number])
    own, better = groups(repeats, where, number)
    accuracy = np.full(SEEDS + repeats * CANDIDATES, ACCURACY)
    accuracy[better] += gain
    score = answers(search, accuracy, rng) @ balanced_weights(search.truth)
    heard = answers(holdout, accuracy, rng).astype(float)
    most = most_finalists(resampled(voices, ALPHA).fewest)
    baseline = int(score[:SEEDS].argmax())

    def best(prompts):
        ahead = [i for i in dict.fromkeys(prompts) if score[i] > score[baseline]]
        return sorted(ahead, key=lambda i: -score[i])

    def verdict(finalists, alpha=ALPHA):
        if not finalists:
            return 0
        c = resampled(voices, alpha)
        said = c.balanced(heard[[*finalists, baseline]])
        gains = step_down(c, [said[i] - said[-1] for i in range(len(finalists))], alpha=alpha)
        won = winner_of(gains, c.fewest, alpha)
        if won is None:
            return 0
        return 1 if gain and finalists[won] in better else -1

    firsts = [best(o)[:1] for o in own]
    won = [i for first in firsts for i in first]
    voted = sorted(best(np.concatenate(own)), key=lambda i: -won.count(i))
    turns = [verdict(best(o)[:most], Turn(n).level) for n, o in enumerate(own, 1)]
    return [
        verdict(best(own[0])[:most]),
        verdict(best(np.concatenate(own))[:most]),
        verdict(best(won)),
        verdict(voted[:most]),
        max(turns) if max(turns) > 0 else min(turns),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=400, help="of each cell with a gain")
    parser.add_argument("--null", type=int, default=1000, help="with nothing to find")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--voices", type=int, nargs="+", default=[11, 22])
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.processes) as pool:
        for voices in args.voices:
            head = "".join(f"{rule:>16}" for rule in RULES)
            print(f"\n{voices} voices, {args.repeats} repeats\n{'':32}{head}", flush=True)
            cells = [(WHERE[0], 0)] + [(where, g) for where in WHERE for g in GAINS]
            for where, gain in cells:
                count = args.searches if gain else args.null
                work = partial(decided, voices, args.repeats, where, gain / 100)
                found = np.array([*pool.map(work, range(count), chunksize=16)])
                hit = found > 0 if gain else found != 0
                what = f"{gain:+3} points, {where}" if gain else "false wins, nothing to find"
                print(f"{what:32}" + "".join(f"{share(h):>16}" for h in hit.T), flush=True)


if __name__ == "__main__":
    main()
