"""How often intervals, bounds and tests err: python tests/bench_coverage.py

Draws paired gains with no true difference on a fresh half like the demo's (speech sources few, other sources many),
with effects that belong to the source, and counts how often the one-sided 2.5 % bound lies above zero, which is where p
is below 2.5 %; beside it the plain percentile bound. Then how often the 95 % intervals of balanced
accuracy and of DT75 hold the truth, for simulated observers whose sources differ.
"""

import argparse

import numpy as np
from scipy import optimize, special

from evaluators.statistics.compare import compare, estimate, resample
from evaluators.statistics.crossings import crossings
from evaluators.statistics.psychometrics import psychometric
from evaluators.targets import Predictions, Targets
from opro import power


def targets(truth, sources):
    """Clips as arrays."""
    ids = tuple(str(i) for i in range(len(truth)))
    return Targets(("SPEECH", "NONSPEECH"), ids, np.asarray(truth), np.asarray(sources))


def said(name, clips, right):
    """Predictions that are right where `right` is."""
    return Predictions(name, clips, np.where(right, clips.truth, 1 - clips.truth))


def simulate(rng, speech, other, spread):
    """What two prompts say that are equally good on average."""
    counts = [max(1, int(rng.poisson(100 / speech))) for _ in range(speech)]
    counts += [max(1, int(rng.poisson(100 / other))) for _ in range(other)]
    truth, sources, a, b = [], [], [], []
    for i, n in enumerate(counts):
        shift = rng.normal(0, spread)
        pa, pb = np.clip(0.8 + shift, 0.02, 0.98), np.clip(0.8 - shift, 0.02, 0.98)
        truth += [0 if i < speech else 1] * n
        sources += [str(i)] * n
        a += list(rng.random(n) < pa)
        b += list(rng.random(n) < pb)
    clips = targets(truth, sources)
    return said("a", clips, np.array(a)), said("b", clips, np.array(b))


LEVELS = np.array([100.0, 200.0, 300.0, 500.0, 1000.0])
PLACE, SCALE, LAPSE, GUESS = np.log2(300.0), 0.5, 0.03, 0.1  # of the observers, x in log2 ms
SPREAD = 0.4  # of a source's own place, in octaves; its false-alarm rate spreads by 0.05


def hit_rates(place):
    """``[..., level]`` hit rates of sources with their own place."""
    u = (np.log2(LEVELS) - place[..., None]) / SCALE
    return GUESS + (1 - GUESS) * (1 - LAPSE) * special.expit(u)


def true_threshold(share):
    """log2 ms at which the mean observer detects `share` beyond guessing."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def missing(x):
        u = (x - PLACE - SPREAD * nodes) / SCALE
        return (1 - LAPSE) * weights @ special.expit(u) - share

    return optimize.brentq(missing, 0.0, 20.0)


def covered(sources, trials, clips=2):
    """Shares of 95 % intervals that hold balanced accuracy, DT75 fitted and DT75 as published.

    `sources` a class, `clips` a level of each; of the published one, those of curves that cross once.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    hits = weights / weights.sum() @ hit_rates(PLACE + SPREAD * nodes)
    accuracy, dt75 = (hits.mean() + 1 - GUESS) / 2, 2 ** true_threshold(0.75)
    level = np.tile(np.repeat(LEVELS, clips), 2 * sources)
    truth = np.repeat([0, 1], sources * len(LEVELS) * clips)
    ids = [str(i) for i in np.repeat(np.arange(2 * sources), len(LEVELS) * clips)]
    by_level = (hits + 1 - GUESS) / 2
    place = np.interp(0.75, by_level, np.log2(LEVELS))  # it rises
    found, crossed = np.zeros(2), []
    for trial in range(trials):
        rng = np.random.default_rng([sources, trial])
        heard = np.repeat(hit_rates(rng.normal(PLACE, SPREAD, sources)), clips, axis=1)
        false = np.clip(rng.normal(GUESS, 0.05, sources), 0, 1)
        says = np.concatenate([heard.ravel(), np.repeat(false, len(LEVELS) * clips)])
        decided = (rng.random(len(says)) >= says).astype(int)
        one = Predictions("observer", targets(truth, ids), decided)
        e = estimate(one, seed=trial)
        t = psychometric("ms", level, one, resamples=1000, seed=trial).thresholds[0.75]
        found += (e.low <= accuracy <= e.high, t.low <= dt75 <= t.high)
        published = crossings("ms", level, one, 0.75, seed=trial)
        if published.low is not None:
            crossed.append(published.low <= 2**place <= published.high)
    return *(found / trials), np.mean(crossed)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    print("| speech sources | source effect | bound above zero | plain percentile bound |")
    print("| --- | --- | --- | --- |")
    for speech in (7, 11, 14, 40):
        for spread in (0.0, 0.15):
            rng = np.random.default_rng([speech, int(100 * spread)])
            bound = plain = 0
            for trial in range(args.trials):
                a, b = simulate(rng, speech, 64, spread)
                d = compare(a, b, alpha=0.025, seed=trial)
                assert (d.p < 0.025) == (d.low > 0)
                c = resample(a.targets, seed=trial)
                gain = c.balanced(a.right) - c.balanced(b.right)
                bound += d.low > 0
                plain += np.quantile(gain.draws, 0.025) > 0
            n = args.trials
            print(
                f"| {speech} | {spread} | {100 * bound / n:.1f} % | {100 * plain / n:.1f} % |",
                flush=True,
            )
    print(
        "\n| sources a class | balanced accuracy, 95 % interval holds it | DT75 | DT75, published |"
        "\n| --- | --- | --- | --- |"
    )
    for sources in (15, 30, 100):
        shares = (f"{100 * share:.1f} %" for share in covered(sources, args.trials))
        print(f"| {sources} | {' | '.join(shares)} |", flush=True)
    equal = power.PowerSettings(candidates=200, searches=args.trials)
    cell = power.simulate("demo", power.read_dev(equal).grown()["as it is"], 0.0, equal)
    print(
        f"\n{args.trials} searches over 200 prompts as good as the seeds, on the demo's dev set of"
        f" {cell.clips} clips and {cell.sources} sources: baseline kept in"
        f" {100 * (1 - cell.wrong):.1f} %"
    )


if __name__ == "__main__":
    main()
