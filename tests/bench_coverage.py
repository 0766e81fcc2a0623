"""How often the selection's bound and test err when no prompt is better: python tests/bench_coverage.py

Draws paired gains with no true difference on a fresh half like the demo's (speech sources few, other sources many),
with effects that belong to the source, and counts how often the one-sided 2.5 % bound lies above zero and the
sign-flip p below 2.5 %; beside them the plain percentile bound.
"""

import argparse

import numpy as np

from evaluators import metrics


def simulate(rng, speech, other, spread):
    """(truth, sources, a, b): right or not under two prompts that are equally good on average."""
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
    return np.array(truth), sources, np.array(a), np.array(b)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    print(
        "| speech sources | source effect | bound above zero | plain percentile bound | sign-flip p <= .025 |"
    )
    print("| --- | --- | --- | --- | --- |")
    for speech in (7, 11, 14, 40):
        for spread in (0.0, 0.15):
            rng = np.random.default_rng([speech, int(100 * spread)])
            bound = plain = flip = 0
            for trial in range(args.trials):
                truth, sources, a, b = simulate(rng, speech, 64, spread)
                d = metrics.paired_difference(truth, a, b, sources, alpha=0.025, seed=trial)
                draws = metrics._resample(truth, a.astype(float) - b, sources, trial)
                bound += d.low > 0
                plain += np.quantile(draws, 0.025) > 0
                flip += d.p <= 0.025
            n = args.trials
            print(
                f"| {speech} | {spread} | {100 * bound / n:.1f} % | {100 * plain / n:.1f} % |"
                f" {100 * flip / n:.1f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
