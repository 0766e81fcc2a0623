"""What further renderings of the holdout buy, and when to look at them: python tests/bench_renderings.py [--searches N]

First table: whole searches, as opro.power simulates them, with so many voices in the holdout (and six times as many
other sources) and so many clips of each voice in it; the search half has nine, or as many. Nine clips are what a set
without renderings has, 18 and 36 are two and four renderings.

Second table: decisions alone, of `most_finalists` finalists of which one is better by so much, or none, over four
renderings of nine clips. Looks:

- first: once, at rendering 0, as without further renderings;
- all: once, at all four;
- spent: at one, two, three and four renderings; each look has what a spending function in the manner of O'Brien and
  Fleming adds (Lan and DeMets 1983, Biometrika 70), and looks are added up as if they were apart (Bonferroni);
- joint: the same function, and levels that take into account how the looks go together, by the resamples of the
  sources, which all looks share.

Shown are false wins in percent, power, and the share of the clips that were heard until the decision.
"""

import argparse
import functools
import time
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr, ndtri

from evaluators.statistics.compare import ALPHA, holm
from evaluators.statistics.resampling import Clusters, clusters
from opro.search.budget import most_finalists
from opro.search.power import SEEDS, Half, Simulation, _answers, simulate

VOICES, GAINS = (11, 22, 44), (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)
OTHERS = 6  # other sources a voice, each with a sixth of its clips
LOOKS = 4
RULES = ("first", "all", "spent", "joint")


def shape(voices: int, clips: int) -> Half:
    """So many voices with so many clips each, and as many clips of six times as many other sources."""
    others = voices * OTHERS
    source = np.concatenate(
        [np.repeat(np.arange(voices), clips), voices + np.arange(voices * clips) % others]
    )
    return Half((np.arange(len(source)) >= voices * clips).astype(int), source)


def spending(looks: int) -> np.ndarray:
    """``[look]`` level that each look adds, one-sided.

    >>> [round(float(a), 5) for a in spending(2)]
    [0.00153, 0.02347]
    """
    share = np.arange(1, looks + 1) / looks
    spent = 2 * (1 - ndtr(-ndtri(ALPHA / 2) / np.sqrt(share)))
    return np.diff(spent, prepend=0.0)


def joint_levels(draws: np.ndarray, added: np.ndarray) -> list[float]:
    """Nominal level of each look, so that all looks up to it together err with what was spent.

    Args:
        draws: ``[look, resample]`` of one gain.
        added: From `spending`.
    """
    count = draws.shape[1]
    rank = (draws.argsort(axis=1).argsort(axis=1) + 0.5) / count  # an error is a gain that is high
    rank, free, out = 1 - rank, np.ones(count, dtype=bool), list[float]()
    for own, alpha in zip(rank, added, strict=True):
        left = np.sort(own[free])
        level = float(left[min(int(alpha * count), len(left) - 1)])
        out.append(max(level, float(alpha)))
        free &= own > out[-1]
    return out


@dataclass(frozen=True)
class Found:
    """Of a rule: whether it replaced, by the better one, and the share of the clips that it heard."""

    replaced: bool
    right: bool
    heard: float


@functools.cache
def resampled(voices: int, look: int) -> Clusters:
    """The resamples of so many renderings; of all looks the same."""
    half = shape(voices, 9).grown(1, look)
    return clusters(half.truth, half.source.astype(str).tolist())


def decisions(voices: int, gain: float, number: int) -> dict[str, Found]:
    """What each rule decides on one set of answers."""
    finalists = most_finalists(voices)
    rng = np.random.default_rng([voices, number])
    whole = shape(voices, 9).grown(1, LOOKS)
    # The first candidate is the one with the gain, the last row is the baseline.
    asked = np.array([*range(SEEDS, SEEDS + finalists), 0])
    right = _answers(gain, Simulation(candidates=finalists), rng)(whole, asked).astype(float)
    rendering = np.arange(len(whole.truth)) % LOOKS
    p, value, draws = [], [], []
    for look in range(1, LOOKS + 1):
        c = resampled(voices, look)
        said = c.balanced(right[:, rendering < look])
        gains = [said[i] - said[finalists] for i in range(finalists)]
        p.append(holm([c.p_of_gain(one) for one in gains]))
        value.append([float(one.value) for one in gains])
        draws.append(gains[int(np.argmin(p[-1]))].draws)
    added = spending(LOOKS)
    levels = {
        "first": [ALPHA, 0, 0, 0],
        "all": [0, 0, 0, ALPHA],
        "spent": list(added),
        "joint": joint_levels(np.stack(draws), added),
    }
    heard = {"first": [1] * LOOKS, "all": [LOOKS] * LOOKS}
    out = {}
    for rule in RULES:
        found = Found(False, False, heard.get(rule, [LOOKS])[-1] / LOOKS)
        for look in range(LOOKS):
            real = [i for i in range(finalists) if p[look][i] < levels[rule][look]]
            if real:
                best = max(real, key=lambda i: value[look][i])
                count = heard.get(rule, range(1, LOOKS + 1))[look]
                found = Found(True, best == 0, count / LOOKS)
                break
        out[rule] = found
    return out


def searches_table(settings: Simulation) -> None:
    """Whole searches: 9, 18 and 36 clips a voice in the holdout, and in the search half 9 or as many."""
    print(
        "| voices | clips, search | holdout | false |"
        + "".join(f" +{100 * g:.0f} |" for g in GAINS[1:])
    )
    print("| --- | --- | --- | --- |" + " --- |" * len(GAINS[1:]))
    for voices in VOICES:
        for search, clips in ((9, 9), (18, 18), (36, 36), (9, 18), (9, 36)):
            both = shape(voices, search), shape(voices, clips)
            cells = []
            for gain in GAINS:
                own = settings if gain else replace(settings, searches=4 * settings.searches)
                cells.append(simulate("", both, gain, own).replaced)
            print(
                f"| {voices} | {search} | {clips} |"
                + "".join(f" {100 * one:.1f} |" for one in cells),
                flush=True,
            )


def looks_table(count: int) -> None:
    """Decisions alone, looked at in four ways."""
    print("\n| voices | looks | false |" + "".join(f" +{100 * g:.0f} | heard |" for g in GAINS[1:]))
    print("| --- | --- | --- |" + " --- | --- |" * len(GAINS[1:]))
    for voices in VOICES:
        found: dict[str, list[str]] = {rule: [] for rule in RULES}
        for gain in GAINS:
            number = count if gain else 4 * count
            made = [decisions(voices, gain, i) for i in range(number)]
            for rule in RULES:
                own = [one[rule] for one in made]
                wins = np.mean([o.right if gain else o.replaced for o in own])
                found[rule].append(f" {100 * wins:.1f} |")
                if gain:
                    found[rule].append(f" {100 * np.mean([o.heard for o in own]):.0f} % |")
        for rule in RULES:
            print(f"| {voices} | {rule} |" + "".join(found[rule]), flush=True)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--searches", type=int, default=500, help="of a cell; four times of false wins"
    )
    parser.add_argument("--table", choices=("searches", "looks", "both"), default="both")
    args = parser.parse_args()
    begin = time.time()
    if args.table != "looks":
        searches_table(Simulation(searches=args.searches))
    if args.table != "searches":
        looks_table(args.searches)
    print(f"\n{time.time() - begin:.0f} s")


if __name__ == "__main__":
    main()
