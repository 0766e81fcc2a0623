"""The decision on the pocket's real answers: python tests/bench_answers.py --checkpoint pocket-base --device cuda

Scores wordings on all clips of the demo whose sources the checkpoint was not trained on. Sources are drawn from them
anew as a fresh half of a search, many times, so that what a prompt truly gains is known: its gain over all sources.
Prompts are decided by thresholds that all clips fit, so that the fit is no part of the question. Three tables:

- tests: those of `bench_decision.py` on pairs of prompts. False wins are those of a gain of zero, which is made by
  taking the true gain off each source's total in proportion to its clips; gains found are those of pairs that truly
  gain about so much;
- several: one baseline and as many finalists as a half of that size decides among. Holm's correction against that of
  Romano and Wolf (2005): the share of resamples whose largest standardised gain of all finalists is as large;
- unlabelled: clips without labels, of five times as many sources, help by prediction-powered inference with the weight
  that leaves least variance (Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453): what a ridge logistic regression on
  the log-odds of all other prompts expects of each clip's gain. It is fitted on other sources. Widths of the 95 %
  interval over those without unlabelled clips, and how often each interval misses the true gain.
"""

import argparse
from pathlib import Path

import numpy as np
from bench_decision import TESTS, Half, Totals, all_p, table
from bench_wording import rewritten, stack
from scipy.special import ndtri, stdtr, stdtrit

from evaluators.build import build_evaluator
from evaluators.classifier import log_odds
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import SPLITS, read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import balanced_order
from evaluators.statistics import metrics
from evaluators.statistics.calibration import fit_bias
from evaluators.statistics.compare import ALPHA
from evaluators.statistics.resampling import clusters
from evaluators.tasks import SPEECH_TASK
from opro.search.budget import most_finalists

SENSIBLE = 0.6  # AUROC: prompts below it are no rivals
VOICES = (11, 22)
OTHERS = 6  # sources of the other label for each voice, as in the demo
BINS = ((0.01, 0.03), (0.03, 0.05), (0.05, 0.07), (0.07, 0.09), (0.09, 0.12))
RESAMPLES = 1999


class Population:
    """Answers of sensible prompts on all clips, and how the clips belong to sources."""

    def __init__(self, logp, truth, sources):
        odds = np.stack([log_odds(one) for one in logp.astype(float)])
        area = np.array([metrics.auroc(truth, one) for one in odds])
        self.odds, self.truth = odds[area > SENSIBLE], truth
        bias = np.array([fit_bias(truth, one) for one in self.odds])
        self.right = (self.odds + bias[:, None] > 0) == (truth == 0)
        names, self.source = np.unique(sources, return_inverse=True)
        self.kind = np.array([truth[self.source == i][0] for i in range(len(names))])
        self.clips = np.bincount(self.source)
        self.accuracy = np.mean([self.right[:, truth == k].mean(1) for k in (0, 1)], axis=0)

    def totals(self, value):
        """``[..., source]`` sums of ``[..., clip]``."""
        flat = np.reshape(value, (-1, len(self.truth))).astype(float)
        out = np.stack([np.bincount(self.source, row, len(self.kind)) for row in flat])
        return out.reshape(*np.shape(value)[:-1], -1)

    def drawn(self, voices, rng):
        """Indices of sources of a fresh half, with replacement: so each draw has the population's own truth."""
        return np.concatenate(
            [
                rng.choice(np.flatnonzero(self.kind == k), count)
                for k, count in ((0, voices), (1, OTHERS * voices))
            ]
        )

    def half(self, drawn):
        return Half(self.kind[drawn], self.clips[drawn])


def pairs_of(population, rng, count):
    """Pairs (better, worse) of prompts with their true gain."""
    a, b = rng.integers(len(population.right), size=(2, 8 * count))
    gain = population.accuracy[a] - population.accuracy[b]
    kept = np.flatnonzero((a != b) & (gain >= 0))[:count]
    return a[kept], b[kept], gain[kept]


def pair_tests(population, trials, seed=0):
    """Rows of the table of tests."""
    total = population.totals(population.right)
    for voices in VOICES:
        rng = np.random.default_rng([seed, voices])
        wrong, count = dict.fromkeys(TESTS, 0), 0
        found = [dict.fromkeys(TESTS, 0) for _ in BINS]
        many = np.zeros(len(BINS))
        while count < trials:
            drawn = population.drawn(voices, rng)
            half = population.half(drawn)
            a, b, gain = pairs_of(population, rng, 50)
            gained = total[a][:, drawn] - total[b][:, drawn]
            null = all_p(half, gained - gain[:, None] * half.clips, rng)
            real = all_p(half, gained, rng)
            count += len(a)
            for test in TESTS:
                wrong[test] += int((null[test] < ALPHA).sum())
                for i, (low, high) in enumerate(BINS):
                    own = (gain >= low) & (gain < high)
                    found[i][test] += int((real[test][own] < ALPHA).sum())
            many += [((gain >= low) & (gain < high)).sum() for low, high in BINS]
        yield f"{voices} voices, false wins", {t: n / count for t, n in wrong.items()}
        for (low, high), of, n in zip(BINS, found, many, strict=True):
            middle = f"{voices} voices, +{100 * low:.0f} to +{100 * high:.0f} points"
            yield middle, {t: hits / max(n, 1) for t, hits in of.items()}


def romano_wolf(draws, value, sources):
    """``[finalist]`` corrected p by step-down over ``[finalist, resample]`` draws, on the scale of one test alone.

    The share of resamples is widened for few sources as the single test's is.
    """
    spread = draws.std(-1) + 1e-12
    moved, seen = (value[:, None] - draws) / spread[:, None], value / spread
    order, out, least = np.argsort(-seen), np.ones(len(value)), 0.0
    for rank, i in enumerate(order):
        share = (1 + (moved[order[rank:]].max(0) >= seen[i]).sum()) / (draws.shape[1] + 1)
        p = stdtr(sources - 1, ndtri(share) * np.sqrt((sources - 1) / sources))
        out[i] = least = max(least, p)
    return out


def holm_of(p):
    order, out, least = np.argsort(p), np.ones(len(p)), 0.0
    for rank, i in enumerate(order):
        out[i] = least = max(least, min(1.0, (len(p) - rank) * p[i]))
    return out


def several(population, trials, seed=1):
    """Rows: false wins and gains found, by Holm and by Romano and Wolf, of several finalists."""
    total = population.totals(population.right)
    ranked = np.argsort(-population.accuracy)
    for voices in (22, 44):
        rng, many = np.random.default_rng([seed, voices]), most_finalists(voices)
        tally = {name: {"holm": 0, "romano wolf": 0} for name in ("false", *BINS)}
        counts = dict.fromkeys(tally, 0)
        for _ in range(trials):
            drawn = population.drawn(voices, rng)
            half = population.half(drawn)
            base = int(rng.choice(len(ranked)))
            better = ranked[population.accuracy[ranked] >= population.accuracy[base]]
            rivals = rng.choice(better, many, replace=len(better) < many)
            gain = population.accuracy[rivals] - population.accuracy[base]
            gained = total[rivals][:, drawn] - total[base][drawn]
            c = clusters(half.kind, [f"{i:04d}" for i in range(len(drawn))], resamples=RESAMPLES)
            for name, taken in (("false", gain), ("real", np.zeros(many))):
                moved = gained - taken[:, None] * half.clips
                value = Totals(half, moved).value
                draws = sum(
                    (moved[:, own] @ c.weights[:, own].T) / (c.weights[:, own] @ half.clips[own])
                    for own in (half.kind == 0, half.kind == 1)
                )
                draws = draws / 2
                single = np.array([c_p(one, voices) for one in draws])
                said = {"holm": holm_of(single), "romano wolf": romano_wolf(draws, value, voices)}
                top = gain.max()
                key = "false"
                if name == "real":
                    key = next((b for b in BINS if b[0] <= top < b[1]), None)
                if key is None:
                    continue
                counts[key] += 1
                for test, p in said.items():
                    tally[key][test] += int((p < ALPHA).any())
        for key, of in tally.items():
            name = key if key == "false" else f"+{100 * key[0]:.0f} to +{100 * key[1]:.0f}"
            n = max(counts[key], 1)
            yield f"{voices} voices, {many} finalists, {name}", {t: k / n for t, k in of.items()}


def c_p(draws, sources):
    """`level_at_zero` by counting: the share of resamples that are not above zero, widened for few sources."""
    share = (1 + (draws <= 0).sum()) / (len(draws) + 1)
    return float(stdtr(sources - 1, ndtri(min(share, 1)) * np.sqrt((sources - 1) / sources)))


def unlabelled(population, trials, more=5, seed=2):
    """Rows: width of intervals with unlabelled clips over those without, and how often each misses."""
    scaled = population.odds / population.odds.std(1, keepdims=True)
    for voices in VOICES:
        rng = np.random.default_rng([seed, voices])
        widths, misses, count = [], np.zeros(2), 0
        for _ in range(trials // 10):
            fitted_on = rng.random(len(population.kind)) < 0.5  # sources of the regression
            own = fitted_on[population.source]
            weights = stack(scaled[:, own], population.truth[own])
            chance = 1 / (1 + np.exp(-(weights[:-1] @ scaled + weights[-1])))
            rest = np.flatnonzero(~fitted_on)
            for _ in range(10):
                a, b, _ = (one[0] for one in pairs_of(population, rng, 4))
                d = population.right[a] * 1.0 - population.right[b]
                flip = np.where(population.truth == 0, 1.0, -1.0)
                said = d * flip  # what d would be were the clip of the first label
                expected = said * (2 * chance - 1)
                both = population.totals(np.stack([d, expected]))
                sizes = voices, OTHERS * voices
                kinds = [rest[population.kind[rest] == k] for k in (0, 1)]
                truth = np.mean([both[0, i].sum() / population.clips[i].sum() for i in kinds])
                draw = [rng.choice(i, n) for i, n in zip(kinds, sizes, strict=True)]
                pool = [rng.choice(i, more * n) for i, n in zip(kinds, sizes, strict=True)]
                classic = interval(both[0], draw, population.clips)
                helped = powered(both, draw, pool, population.clips)
                widths.append(helped[1] / classic[1])
                for i, (middle, reach) in enumerate((classic, helped)):
                    misses[i] += abs(middle - truth) > reach
                count += 1
        yield voices, np.median(widths), np.quantile(widths, 0.1), misses / count, count


def parts_of(total, sources, clips):
    """(mean, ``[source]`` residuals over the number of clips) of a class."""
    n = clips[sources]
    mean = total[sources].sum() / n.sum()
    return mean, (total[sources] - mean * n) / n.sum()


def interval(total, draw, clips):
    """(value, half width) at 95 %: Welch's over sources."""
    found = [parts_of(total, one, clips) for one in draw]
    spread = np.array([(r**2).sum() * len(r) / (len(r) - 1) for _, r in found]) / 4
    degrees = spread.sum() ** 2 / (spread**2 / [len(r) - 1 for _, r in found]).sum()
    return np.mean([m for m, _ in found]), stdtrit(degrees, 0.975) * np.sqrt(spread.sum())


def powered(both, draw, pool, clips):
    """As `interval`, with what is expected of unlabelled sources, at the best weight of it."""
    value, spread, degrees = 0.0, [], []
    for own, more in zip(draw, pool, strict=True):
        (d, rd), (f, rf), (g, rg) = (
            parts_of(both[0], own, clips),
            parts_of(both[1], own, clips),
            parts_of(both[1], more, clips),
        )
        weight = (rd @ rf) / ((rf**2).sum() + (rg**2).sum() + 1e-15)
        value += (d + weight * (g - f)) / 2
        few = len(own) / (len(own) - 2)  # the weight is fitted, too
        spread += [((rd - weight * rf) ** 2).sum() * few / 4, weight**2 * (rg**2).sum() / 4]
        degrees += [len(own) - 2, len(more) - 1]
    spread = np.array(spread)
    df = spread.sum() ** 2 / (spread**2 / degrees).sum()
    return value, stdtrit(df, 0.975) * np.sqrt(spread.sum())


def answers(args):
    """``[prompt, clip, label]`` nats, index of labels, sources."""
    evaluator, trained = build_evaluator(
        args.checkpoint, cache=args.runs_dir / ".cache", device=args.device
    )
    clips = []
    for split in SPLITS:
        found = balanced_order(read_manifest(shipped("data/demo"), SPEECH_TASK.labels, split))
        clips += [c for c in found if c.source_id not in (trained or ())]
    seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), SPEECH_TASK.labels)
    heldout = read_prompts(shipped("prompts/heldout.yaml"), SPEECH_TASK.labels)
    prompts = [*seeds, *heldout, *rewritten(seeds, args.rewritten)]
    clips = ClipSet(SPEECH_TASK, tuple(clips))
    logp = evaluator.score(prompts, clips).logp
    return logp, clips.targets.truth, clips.targets.sources


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="pocket-base")
    parser.add_argument("--rewritten", type=int, default=100)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/bench_answers"))
    parser.add_argument("--part", choices=("tests", "several", "unlabelled"))
    args = parser.parse_args()
    population = Population(*answers(args))
    sizes = [int((population.kind == k).sum()) for k in (0, 1)]
    print(
        f"{args.checkpoint}: {len(population.right)} sensible prompts, {len(population.truth)} clips of"
        f" {sizes[0]} voices and {sizes[1]} other sources"
    )
    if args.part in (None, "tests"):
        table("tests, % of pairs", pair_tests(population, args.trials))
    if args.part in (None, "several"):
        print("\n| several finalists, % of decisions | holm | romano wolf |\n| --- | --- | --- |")
        for name, of in several(population, args.trials // 4):
            print(
                f"| {name} | {100 * of['holm']:.1f} | {100 * of['romano wolf']:.1f} |", flush=True
            )
    if args.part in (None, "unlabelled"):
        print("\n| voices | median width | best tenth | misses without | with | pairs |")
        print("| --- | --- | --- | --- | --- | --- |")
        for voices, middle, tenth, misses, count in unlabelled(population, args.trials // 4):
            a, b = (f"{100 * m:.1f} %" for m in misses)
            print(f"| {voices} | {middle:.3f} | {tenth:.3f} | {a} | {b} | {count} |", flush=True)


if __name__ == "__main__":
    main()
