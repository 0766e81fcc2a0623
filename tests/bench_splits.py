"""How to halve dev: python tests/bench_splits.py --searches 4000 --processes 2

Searches are simulated as `opro.power` simulates them, with twice so many voices in dev, and decided in three ways:

- halves: search on one half, decide on the other, as `opro.optimize` does;
- third: search on a third of the sources, decide on two thirds;
- crossed: search on each half and decide on the other one, each at half of the level; of two that replace the baseline
  the one that gains more. It costs twice the evals, and leaves no clip that was never searched on.

Printed is how often the better prompt (at +0, any) replaced the baseline, and in brackets how often another one did.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from evaluators.statistics.compare import ALPHA, step_down
from evaluators.statistics.metrics import balanced_weights
from evaluators.statistics.resampling import clusters
from opro.search.budget import most_finalists
from opro.search.power import SEEDS, Half, Simulation, _answers
from opro.search.select import winner_of

VOICES, CLIPS, OTHERS = (11, 22, 44), (9, 36), 6
GAINS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)
WAYS = ("halves", "third", "crossed")
AT_ONCE = 100  # searches of a task


def part(voices, clips):
    """So many voices, and their other sources, with a sixth of the clips each."""
    sizes = [clips] * voices + [max(1, clips // OTHERS)] * (OTHERS * voices)
    kind = np.repeat([0, 1], [voices, OTHERS * voices])
    return Half(np.repeat(kind, sizes), np.repeat(np.arange(len(sizes)), sizes))


def decided(search, holdout, c, alpha):
    """(prompt, its gain) that replaces the baseline, or None; `search` and `holdout` are ``[prompt, clip]`` answers."""
    half, right = search
    score = right @ balanced_weights(half.truth)
    baseline = int(score[:SEEDS].argmax())
    order = [i for i in np.argsort(-score, kind="stable") if i >= SEEDS]
    finalists = [i for i in order if score[i] > score[baseline]][: most_finalists(c.fewest)]
    if not finalists:
        return None
    said = c.balanced(holdout[[*finalists, baseline]].astype(float))
    gains = [said[i] - said[len(finalists)] for i in range(len(finalists))]
    best = winner_of(step_down(c, gains, alpha=alpha), c.fewest, alpha)
    return None if best is None else (finalists[best], float(gains[best].value))


def drawn(half):
    return clusters(half.truth, half.source.astype(str).tolist(), resamples=2000)


def searches(task):
    """Way -> [found, wrong] of some searches."""
    voices, clips, gain, begin = task
    settings, out = Simulation(), {way: np.zeros(2) for way in WAYS}
    equal, few = part(voices, clips), max(1, round(2 * voices / 3))
    third, rest = part(few, clips), part(2 * voices - few, clips)
    c, of_rest = drawn(equal), drawn(rest)
    every = np.arange(SEEDS + settings.candidates)
    for number in range(begin, begin + AT_ONCE):
        rng = np.random.default_rng([voices, clips, number])
        right = _answers(gain, settings, rng)
        a, b = right(equal, every), right(equal, every)
        one = decided((equal, a), b, c, ALPHA)
        both = [decided((equal, a), b, c, ALPHA / 2), decided((equal, b), a, c, ALPHA / 2)]
        both = max((w for w in both if w), key=lambda w: w[1], default=None)
        small = decided((third, right(third, every)), right(rest, every), of_rest, ALPHA)
        for way, won in (("halves", one), ("third", small), ("crossed", both)):
            if won is not None:
                hit = gain > 0 and won[0] == SEEDS
                out[way] += [hit or gain == 0, not hit and gain > 0]
    return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--searches", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    print(f"| voices in a half, clips each, gain | {' | '.join(WAYS)} |\n| --- |{' --- |' * 3}")
    cells = [(v, n, g) for v in VOICES for n in CLIPS for g in GAINS]
    begins = range(0, args.searches, AT_ONCE)
    with ProcessPoolExecutor(args.processes) as pool:
        done = pool.map(searches, [(*cell, begin) for cell in cells for begin in begins])
        for voices, clips, gain in cells:
            parts = [next(done) for _ in begins]
            row = []
            for way in WAYS:
                found, wrong = 100 * sum(p[way] for p in parts) / (AT_ONCE * len(begins))
                row.append(f"{found:.1f} ({wrong:.1f})" if gain else f"{found:.1f}")
            print(f"| {voices}, {clips}, {100 * gain:+.0f} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
