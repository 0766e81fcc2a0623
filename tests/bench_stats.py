"""How long the statistics of a published size take: python tests/bench_stats.py

21,340 predictions of 970 sources, five configurations, all pairs, 10,000 resamples of the sources; beside them one
resample at a time by a plain loop, over fewer resamples.
"""

import argparse
import itertools
import time

import numpy as np

from evaluators.statistics import metrics
from evaluators.statistics.compare import difference, holm
from evaluators.statistics.metrics import auroc_statistic
from evaluators.statistics.resampling import clusters


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=21_340)
    parser.add_argument("--sources", type=int, default=970)
    parser.add_argument("--resamples", type=int, default=10_000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    index = np.sort(rng.integers(0, args.sources, args.rows))
    truth = (index >= args.sources // 2).astype(int)
    sources = [str(i) for i in index]
    hard = rng.normal(0, 0.7, args.sources)[index] + rng.normal(0, 1, args.rows)
    margin = np.stack([np.where(truth == 0, m, -m) + hard for m in (0.6, 1.0, 1.4, 1.6, 1.8)])
    decided, probability = (margin < 0).astype(int), 1 / (1 + np.exp(-margin))
    pairs = list(itertools.combinations(range(5), 2))

    begin = time.perf_counter()
    c = clusters(truth, sources, resamples=args.resamples)
    rates = metrics.rates(c, decided)
    found = [c.estimate(rates[name][i]) for name in rates for i in range(5)]  # with the intervals
    balanced = rates["balanced_accuracy"]
    gains = [difference(c, balanced[a], balanced[b], two_sided=True) for a, b in pairs]
    holm([gain.p for gain in gains])
    found += gains
    family = time.perf_counter() - begin
    begin = time.perf_counter()
    areas = [auroc_statistic(c, m) for m in margin]
    found += [c.estimate(a) for a in areas]
    found += [difference(c, areas[a], areas[b], two_sided=True) for a, b in pairs]
    auc = time.perf_counter() - begin
    begin = time.perf_counter()
    sure, right = np.maximum(probability, 1 - probability), decided == truth
    found += [
        c.estimate(metrics.calibration_error(c, s, r)) for s, r in zip(sure, right, strict=True)
    ]
    ece = time.perf_counter() - begin

    begin, loops = time.perf_counter(), 5
    rows = [np.flatnonzero(index == i) for i in range(args.sources)]
    for _ in range(loops):
        drawn = np.concatenate([rows[i] for i in rng.integers(0, args.sources, args.sources)])
        for i in range(5):
            metrics.balanced_accuracy(truth[drawn], right[i][drawn])
            metrics.auroc(truth[drawn], margin[i][drawn])
    plain = (time.perf_counter() - begin) / loops * args.resamples
    print(f"{args.rows:,} rows, {args.sources} sources, 5 configurations, {len(pairs)} pairs,")
    print(f"{args.resamples:,} resamples: {len(found)} intervals")
    print(f"accuracy family with differences, p and Holm      {family:7.2f} s")
    print(f"AUC with differences                                   {auc:7.2f} s")
    print(f"ECE                                                    {ece:7.2f} s")
    print(f"plain loop, balanced accuracy and AUC, from {loops} resamples {plain:9.0f} s")


if __name__ == "__main__":
    main()
