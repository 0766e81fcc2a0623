"""What handing over the shorter of finalists that tie costs and saves: python tests/bench_length.py

Simulated finalists whose true gains over the baseline are drawn evenly from 0 to 15 points, or are all zero, and whose
lengths have nothing to do with it, on holdouts of so many sources a label, 8 clips each, with effects of the source
that belong to a prompt. Decided by the corrected test, then by the largest gain alone, and as the search does.
"""

import argparse

import numpy as np
from scipy.special import ndtri

from evaluators.statistics.compare import compare, compare_many
from evaluators.targets import Predictions, Targets
from opro.search.budget import most_finalists
from opro.search.select import shorter_tie, winner_of

CLIPS, BASE, MOST, SPREAD = (
    8,
    0.75,
    0.15,
    0.05,
)  # a source; the baseline's accuracy; true gain; sd of a source


def one(rng, per_label, most):
    """(true gain by the largest gain, by the tie rule, tokens by each), None where nothing replaces."""
    truth = np.repeat(np.arange(2 * per_label) % 2, CLIPS)
    source = np.repeat(np.arange(2 * per_label), CLIPS)
    ids = tuple(str(i) for i in range(len(truth)))
    targets = Targets(("SPEECH", "NONSPEECH"), ids, truth, source.astype(str))
    count = most_finalists(per_label)
    true = rng.uniform(0, most, count)
    shared, tokens = rng.normal(size=len(truth)), rng.integers(20, 60, count)
    said = []
    for gain in (0.0, *true):
        own = rng.normal(0, SPREAD, 2 * per_label)[source]
        bound = np.clip(BASE + gain + own, 0.01, 0.99)
        z = np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.normal(size=len(truth))
        right = z < ndtri(bound)
        said.append(Predictions("", targets, np.where(right, truth, 1 - truth)))
    gains = compare_many(said[1:], said[0])
    best = winner_of(gains, per_label)
    if best is None:
        return None
    taken = shorter_tie(best, gains, list(tokens), lambda i: compare(said[1 + best], said[1 + i]))
    return true[best], true[taken], tokens[best], tokens[taken]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=200)
    count = parser.parse_args().searches
    print(
        "sources  true gains   replaced  of these shorter  true gain: best  as decided  tokens: best  as decided"
    )
    for per_label in (20, 40, 100):
        for most in (MOST, 0.0):
            rng = np.random.default_rng(per_label)
            found = [one(rng, per_label, most) for _ in range(count)]
            some = np.array([f for f in found if f is not None], dtype=float).reshape(-1, 4)
            if not len(some):
                some = np.full((1, 4), np.nan)
            replaced = sum(f is not None for f in found) / count
            other = np.mean(some[:, 2] != some[:, 3])
            a, b, c, d = some.mean(axis=0)
            print(
                f"{per_label:7d}  0 to {100 * most:2.0f}      {100 * replaced:6.1f} %  {100 * other:14.0f} %"
                f"  {100 * a:15.1f}  {100 * b:10.1f}  {c:12.1f}  {d:10.1f}"
            )


if __name__ == "__main__":
    main()
