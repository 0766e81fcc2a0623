"""What handing over the less brittle of finalists that tie costs and saves: python tests/bench_brittle.py

Simulated finalists on a search half and a holdout of so many sources a label, 8 clips each. True gains over the
baseline are drawn evenly from 0 to 15 points. Trivial edits lose what a half-normal with a scale of the finalist's own
gives, and the scales are drawn evenly from 0 to 10 points, or are all 3. Lengths have nothing to do with either.
Decided by the corrected test, then by the largest gain alone, by the shorter of those that tie, and by the less brittle
of them. The true floor is what nine of ten of all edits reach. One Markdown table.
"""

import argparse

import numpy as np
from scipy.special import ndtri

from evaluators.statistics.compare import compare, compare_many
from evaluators.targets import Predictions, Targets
from opro.search.brittleness import CLIPS as MOST_CLIPS
from opro.search.brittleness import FLOOR, steadiest
from opro.search.budget import most_finalists
from opro.search.select import shorter_tie, tied_with, winner_of

CLIPS, BASE, MOST, SPREAD = 8, 0.70, 0.15, 0.05  # a source; baseline; true gain; sd of a source
RULES = ("largest gain", "the shorter", "the less brittle")


def half(per_label):
    truth = np.repeat(np.arange(2 * per_label) % 2, CLIPS)
    source = np.repeat(np.arange(2 * per_label), CLIPS)
    ids = tuple(str(i) for i in range(len(truth)))
    return Targets(("SPEECH", "NONSPEECH"), ids, truth, source.astype(str)), truth, source


def right(rng, share, z, source):
    """Whether each clip is right, at such a share in the long run, with an effect of each source."""
    own = rng.normal(0, SPREAD, source.max() + 1)[source]
    return z < ndtri(np.clip(share + own, 0.01, 0.99))


def floor_seen(rng, share, losses, per_label):
    """What nine of ten of the drawn edits reach on the first clips of a search half; edits of a prompt are alike."""
    _, truth, source = half(per_label)
    keep = rng.permutation(len(truth))[:MOST_CLIPS]
    z, own = rng.normal(size=len(truth)), rng.normal(0, SPREAD, source.max() + 1)[source]
    found = []
    for loss in losses:
        mixed = np.sqrt(0.9) * z + np.sqrt(0.1) * rng.normal(size=len(truth))
        hit = mixed < ndtri(np.clip(share - loss + own, 0.01, 0.99))
        found.append(np.mean([hit[keep][truth[keep] == k].mean() for k in (0, 1)]))
    return float(np.quantile(found, FLOOR))


def one(rng, per_label, scales, edits):
    """[rule, (true gain, true floor over the baseline, tokens)]; None where nothing replaces."""
    targets, truth, source = half(per_label)
    count = most_finalists(per_label)
    true, tokens = rng.uniform(0, MOST, count), rng.integers(20, 60, count)
    shared = rng.normal(size=len(truth))
    said = []
    for gain in (0.0, *true):
        z = np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.normal(size=len(truth))
        hit = right(rng, BASE + gain, z, source)
        said.append(Predictions("", targets, np.where(hit, truth, 1 - truth)))
    gains = compare_many(said[1:], said[0])
    best = winner_of(gains, per_label)
    if best is None:
        return None
    scale = scales(rng, count)
    losses = np.abs(rng.normal(size=(count, edits))) * scale[:, None]
    floors = [
        floor_seen(rng, BASE + g, own, per_label) for g, own in zip(true, losses, strict=True)
    ]

    def ahead(i):
        return compare(said[1 + best], said[1 + i])

    tied = tied_with(best, gains, ahead)
    taken = [
        best,
        shorter_tie(best, gains, list(tokens), ahead),
        steadiest(tied, floors, list(tokens), gains),
    ]
    lost = scale * ndtri(1 - FLOOR / 2)  # the half-normal's quantile
    return [(true[i], true[i] - lost[i], tokens[i], i != best) for i in taken]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--device", help="taken and not needed: nothing is scored")
    given = parser.parse_args()
    head = ["sources a label", "scales of edits", "replaced", "rule", "another one taken"]
    head += ["true gain", "true floor over the baseline", "tokens"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    kinds = {
        "0 to 10 points": lambda rng, n: rng.uniform(0, 0.10, n),
        "3 points": lambda rng, n: np.full(n, 0.03),
    }
    for per_label in (20, 40, 100):
        for name, scales in kinds.items():
            rng = np.random.default_rng(per_label)
            found = [one(rng, per_label, scales, given.edits) for _ in range(given.searches)]
            some = np.array([f for f in found if f is not None], dtype=float)
            for i, rule in enumerate(RULES):
                gain, floor, tokens, other = some[:, i].mean(axis=0)
                print(
                    f"| {per_label} | {name} | {100 * len(some) / given.searches:.0f} % | {rule} | {100 * other:.0f} %"
                    f" | {100 * gain:+.1f} | {100 * floor:+.1f} | {tokens:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
