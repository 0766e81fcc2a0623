"""Which trial should be the finalist: python tests/bench_finalists.py --searches 300 (half an hour on one core)

With eleven sources of a class there is one finalist, so that which trial it is decides all. Trials are scored on the
same search clips; a search is drawn many times, the finalist is picked by each rule from what the search half says, and
decided on the holdout as `opro.search.select` does. Thresholds are those that the search half fits, whatever the rule.

- count: today's, balanced accuracy with the fitted threshold, counted on the clips that it was fitted on;
- auroc: the area under the ROC curve, which needs no threshold;
- mean: of the two;
- fay-herriot: the count drawn towards its regression on the area over the trials of the search, each as far as its
  sampling variance tells (Fay and Herriot 1979); fay-herriot 1/2: half way;
- near: balanced accuracy averaged over the thresholds within a tenth of the clips of the fitted one;
- smoothed: each clip counts Phi(margin / h), h being .9 sd / S^(1/5) of its class (smoothed error: Snapinn and Knoke
  1985; bolstered: Braga-Neto and Dougherty 2004), at the fitted threshold;
- normal: two normal distributions for the margins of the two classes, at their best threshold;
- cross: thresholds fitted on nine tenths of the sources, counted on the last tenth;
- normal posterior: trials have a normal prior whose covariance is how their margins go together, and the sampling
  covariance of the counts over sources: trials that answer alike borrow from one another;
- student: the gain over the baseline in standard errors;
- 2, 3 finalists: today's count, with Holm's correction; oracle: the truly best trial, which no rule can beat.

Searches are simulated as `opro.power` does, with margins (`Simulated`), or drawn from the answers of a checkpoint to a
bank of prompts (``--bank``, made on the first call): disjoint sets of the demo's sources are search half and holdout,
and the truth is all that the search did not hear. Seeds are prompts of the bank's middle, so that gains are small.
"""

import argparse
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

from evaluators.build import build_evaluator
from evaluators.classifier import log_odds
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.statistics.calibration import fit_bias
from evaluators.statistics.compare import ALPHA, step_down
from evaluators.statistics.metrics import balanced_weights
from evaluators.statistics.resampling import MIN_SOURCES, clusters
from evaluators.tasks import SPEECH_TASK
from opro.proposers.rewriter import Rewriter
from opro.search.power import SEEDS, SHARED
from opro.search.select import score_in_parts, winner_of

CANDIDATES, ACCURACY, SPREAD = 50, 0.8, 0.08
OTHERS = 5.8  # sources of the second class for each of the first, as in the demo
CLIPS = 9  # of a source, at most
FOLDS = 10
REWRITTEN = 60
SPLITS = ("dev", "test", "train")
RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Heard:
    """``[prompt, clip]`` log-odds of the first class, and the class and the source of each clip."""

    odds: np.ndarray
    truth: np.ndarray
    source: np.ndarray

    @property
    def sign(self):
        return np.where(self.truth == 0, 1.0, -1.0)

    @property
    def weight(self):
        return balanced_weights(self.truth)

    def right(self, bias):
        """``[prompt, clip]`` whether each prompt is right with its threshold."""
        return np.where(self.odds + bias[:, None] > 0, 0, 1) == self.truth

    def take(self, clips):
        return Heard(self.odds[:, clips], self.truth[clips], self.source[clips])


@dataclass(frozen=True, eq=False)
class Drawn:
    """Search half, holdout, all that is not the search half, and all that is neither.

    The first `SEEDS` prompts are the seeds.
    """

    search: Heard
    holdout: Heard
    rest: Heard
    outside: Heard


class Searched:
    """What the search half tells of its trials."""

    def __init__(self, heard):
        self.heard = h = heard
        self.index = np.unique(h.source, return_inverse=True)[1]
        self.sources = int(self.index.max()) + 1
        self.of = np.array([len(np.unique(h.source[h.truth == k])) for k in (0, 1)])
        self.bias = np.array([fit_bias(h.truth, row) for row in h.odds])
        self.margin = h.sign * (h.odds + self.bias[:, None])
        self.right = h.right(self.bias)
        self.count = self.right @ h.weight
        self.loss = np.logaddexp(0, -h.sign * h.odds) @ h.weight
        self.baseline = min(range(SEEDS), key=lambda i: (-round(self.count[i], 9), self.loss[i]))
        self.sd = np.stack([h.odds[:, h.truth == k].std(1) for k in (0, 1)])

    def influence(self, value):
        """``[prompt, source]`` parts of the balanced mean of ``[prompt, clip]``, whose squares sum to its variance."""
        out = np.zeros((len(value), self.sources))
        for k in (0, 1):
            own = self.heard.truth == k
            part = np.where(own, value - value[:, own].mean(1, keepdims=True), 0) / (2 * own.sum())
            sums = np.zeros((self.sources, len(value)))
            np.add.at(sums, self.index, part.T)
            out += sums.T * np.sqrt(self.of[k] / (self.of[k] - 1))
        return out


# ---- rules: from a search to a score of each trial


def placements(s):
    """``[prompt, clip]`` share of the other class that a clip is ranked right against; their mean is the area."""
    out, first = np.zeros_like(s.margin), s.heard.truth == 0
    for row, odds in zip(out, s.heard.odds, strict=True):
        a, b = np.sort(odds[first]), np.sort(odds[~first])
        below = (np.searchsorted(b, odds[first]) + np.searchsorted(b, odds[first], "right")) / 2
        above = (np.searchsorted(a, odds[~first]) + np.searchsorted(a, odds[~first], "right")) / 2
        row[first], row[~first] = below / len(b), 1 - above / len(a)
    return out


def area(s):
    return placements(s) @ s.heard.weight


def fay_herriot(s, weight=None):
    """The count, drawn towards its regression on the area over the better 60 % of the trials."""
    place = placements(s)
    x = np.column_stack([np.ones(len(s.count)), place @ s.heard.weight])
    rows = s.count >= np.quantile(s.count, 0.4)
    slope = np.linalg.lstsq(x[rows], s.count[rows], rcond=None)[0]
    slope[1] = max(slope[1], 0.0)
    line = x @ slope
    rest = s.count - line
    if weight is None:
        error = s.influence(s.right.astype(float)) - 2 * slope[1] * s.influence(place)
        sampling = ((error - error[rows].mean(0)) ** 2).sum(1)
        true = max(0.0, rest[rows].var(ddof=2) - sampling[rows].mean())
        weight = true / (true + sampling)
    return line + weight * rest


def near(s):
    out, h = [], s.heard
    for odds, bias in zip(h.odds, s.bias, strict=True):
        order = np.argsort(odds)
        step = np.where(h.truth == 1, h.weight, -h.weight)[order]
        score = 0.5 + np.concatenate(
            [[0], np.cumsum(step)]
        )  # by the number of clips below the threshold
        at, reach = np.searchsorted(odds[order], -bias), len(odds) // 10
        out.append(score[max(0, at - reach) : at + reach + 1].mean())
    return np.array(out)


def smoothed(s):
    width = 0.9 * s.sd * s.of[:, None] ** -0.2
    return ndtr(s.margin / width[s.heard.truth].T) @ s.heard.weight


def normal(s):
    h = s.heard
    mean = np.stack([h.odds[:, h.truth == k].mean(1) for k in (0, 1)])
    cut = mean[1] + np.linspace(0, 1, 41)[:, None] * (mean[0] - mean[1])
    return ((ndtr((mean[0] - cut) / s.sd[0]) + ndtr((cut - mean[1]) / s.sd[1])) / 2).max(0)


def cross(s):
    h, fold = s.heard, np.empty(s.sources, dtype=int)
    for k in (0, 1):
        own = np.unique(s.index[h.truth == k])
        fold[own] = np.arange(len(own)) % FOLDS
    fold, right = fold[s.index], np.empty_like(s.right)
    for k in range(FOLDS):
        rest = h.take(fold != k)
        bias = np.array([fit_bias(rest.truth, row) for row in rest.odds])
        right[:, fold == k] = h.take(fold == k).right(bias)
    return right @ h.weight


def normal_posterior(s):
    """Its variances are those of the largest restricted likelihood."""
    h, count, parts = s.heard, len(s.count), []
    for k in (0, 1):
        odds = h.odds[:, h.truth == k]
        parts.append(
            (odds - odds.mean(1, keepdims=True)) / (s.sd[k][:, None] * np.sqrt(2 * odds.shape[1]))
        )
    alike = np.clip(sum(p @ p.T for p in parts), 0, 1)
    own = s.influence(s.right.astype(float))
    sampling, one, best = own @ own.T + 1e-6 * np.eye(count), np.ones(count), (-np.inf, s.count)
    for share in (0.2, 0.8):
        prior = share * alike + (1 - share) * np.eye(count)
        for sd in (0.005, 0.01, 0.02, 0.04, 0.08):
            inverse = np.linalg.inv(sd**2 * prior + sampling)
            total = one @ inverse @ one
            mean = (one @ inverse @ s.count) / total
            rest = s.count - mean
            likely = np.linalg.slogdet(inverse)[1] - rest @ inverse @ rest - np.log(total)
            if likely > best[0]:
                best = likely, mean + sd**2 * prior @ inverse @ rest
    return best[1]


def student(s):
    gain = s.right.astype(float) - s.right[s.baseline]
    return gain @ s.heard.weight / (0.01 + np.sqrt((s.influence(gain) ** 2).sum(1)))


RULES = {
    "count": lambda s: s.count,
    "auroc": area,
    "mean": lambda s: s.count + area(s),
    "fay-herriot": fay_herriot,
    "fay-herriot 1/2": lambda s: fay_herriot(s, 0.5),
    "near": near,
    "smoothed": smoothed,
    "normal": normal,
    "cross": cross,
    "normal posterior": normal_posterior,
    "student": student,
}


# ---- worlds


@dataclass(frozen=True)
class Simulated:
    """Searches as `opro.power` has them, with margins.

    Attributes:
        sources: Of the first class, in each half.
        clips: Of each of these.
        gains: ``one``: a single prompt is better by `gain`; ``spread``: a dozen families of near-alike prompts whose
            true accuracies differ; ``none``.
        margins: ``normal``; ``heavy``, t with three degrees of freedom; ``skewed``: those of the second class are
            stretched and those of the first pressed together.
    """

    name: str
    sources: int
    clips: int = CLIPS
    gains: str = "spread"
    margins: str = "normal"
    gain: float = 0.04
    beyond: int = 3000  # sources of each class, one clip each, that the truth is measured on

    def _shape(self, sources):
        second = round(OTHERS * sources)
        size = np.concatenate(
            [np.full(sources, self.clips), np.full(second, max(1, round(self.clips / OTHERS)))]
        )
        return np.repeat(np.repeat([0, 1], [sources, second]), size), np.repeat(
            np.arange(len(size)), size
        )

    def _noise(self, rng, size):
        return (
            rng.standard_t(3, size) / np.sqrt(3)
            if self.margins == "heavy"
            else rng.normal(size=size)
        )

    def draw(self, rng, sources=None):
        """One search; `sources` of the first class in search half and holdout."""
        count = SEEDS + CANDIDATES
        accuracy, family = np.full(count, ACCURACY), np.arange(count)
        if self.gains == "one":
            accuracy[SEEDS] += self.gain
        elif self.gains == "spread":
            family[SEEDS:] = SEEDS + rng.integers(0, 12, CANDIDATES)
            accuracy += rng.normal(-0.01, 0.7 * self.gain, count)[family] + rng.normal(
                0, self.gain / 2, count
            )
            accuracy[:SEEDS] = ACCURACY + rng.normal(0, 0.02, SEEDS)
        accuracy = np.clip(accuracy, 0.52, 0.97)
        scale, shift = np.exp(rng.normal(0, 0.5, count)), rng.normal(0, 1.5, count)
        own = SPREAD / np.sqrt(2)

        def hear(truth, source):
            n = int(source.max()) + 1
            effect = rng.normal(0, own, n) + rng.normal(0, own, (count, n))
            bound = ndtri(np.clip(accuracy[:, None] + effect, 0.01, 0.99))[:, source]
            among = (
                0.6 if self.gains == "spread" else 0.0
            )  # of a prompt's own errors, those of its family
            alike = np.sqrt(among) * self._noise(rng, (count, len(truth)))[family]
            alone = np.sqrt(1 - among) * self._noise(rng, (count, len(truth)))
            z = np.sqrt(SHARED) * self._noise(rng, len(truth)) + np.sqrt(1 - SHARED) * (
                alike + alone
            )
            margin = bound - z
            if self.margins == "skewed":
                pressed = np.where(margin > 0, np.tanh(margin), 1.5 * margin)
                stretched = np.where(margin > 0, np.sinh(1.2 * margin), margin)
                margin = np.where(truth == 0, pressed, stretched)
            odds = np.where(truth == 0, 1, -1) * margin * scale[:, None] + shift[:, None]
            return Heard(odds, truth, source)

        first, second = sources or (self.sources, self.sources)
        rest = np.repeat([0, 1], self.beyond), np.arange(2 * self.beyond)
        beyond = hear(*rest)
        return Drawn(hear(*self._shape(first)), hear(*self._shape(second)), beyond, beyond)


@dataclass(frozen=True, eq=False)
class Banked:
    """Searches over a bank of prompts whose answers to all clips are known.

    Attributes:
        sources: Of the first class, in each half.
        clips: Of a source in a half, at most.
    """

    name: str
    bank: Heard
    sources: int
    clips: int = CLIPS

    def __post_init__(self):
        bank = self.bank
        bias = np.array([fit_bias(bank.truth, row) for row in bank.odds])
        score = bank.right(bias) @ bank.weight
        low, high = np.quantile(score, [0.4, 0.7])
        object.__setattr__(self, "middle", np.flatnonzero((score >= low) & (score <= high)))

    def draw(self, rng, sources=None):
        bank = self.bank
        sizes = sources or (self.sources, self.sources)
        part = np.full(len(bank.truth), -1)
        for k in (0, 1):
            names = rng.permutation(np.unique(bank.source[bank.truth == k]))
            each = len(names) // 3 if k else max(sizes)
            begin = 0
            for half, size in enumerate(sizes):
                own = names[begin : begin + (min(round(OTHERS * size), each) if k else size)]
                part[np.isin(bank.source, own)] = half
                begin += len(own)
        order, seen, kept = rng.permutation(len(part)), {}, part.copy()
        for i in order:  # no more than so many clips of a source
            seen[bank.source[i]] = seen.get(bank.source[i], 0) + 1
            kept[i] = -1 if seen[bank.source[i]] > self.clips else part[i]
        seeds = rng.choice(self.middle, SEEDS, replace=False)
        others = np.setdiff1d(np.arange(len(bank.odds)), seeds)
        prompts = np.concatenate([seeds, rng.choice(others, CANDIDATES, replace=False)])
        asked = Heard(bank.odds[prompts], bank.truth, bank.source)
        parts = kept == 0, kept == 1, part != 0, part < 0
        return Drawn(*(asked.take(own) for own in parts))


SIMULATED = tuple(
    Simulated(
        f"simulated, {n} sources x {clips} clips, {gains}, {margins}", n, clips, gains, margins
    )
    for n, clips, gains, margins in (
        (11, 9, "spread", "normal"),
        (11, 9, "spread", "skewed"),
        (11, 9, "spread", "heavy"),
        (11, 9, "one", "normal"),
        (11, 9, "none", "normal"),
        (22, 9, "spread", "normal"),
        (22, 9, "spread", "skewed"),
        (11, 36, "spread", "normal"),
        (11, 36, "one", "normal"),
        (11, 36, "none", "normal"),
    )
)


def grown(parents, known, count):
    """Prompts that the rewriter makes from some, none that is known."""
    rewriter, rng, out = Rewriter(SPEECH_TASK, 0), random.Random(0), {}
    while len(out) < count:
        made = rewriter.rewrite(parents, rng, redraw_share=1.0)
        if made is not None and made.prompt.digest not in known:
            out[made.prompt.digest] = made.prompt
    return list(out.values())


def bank_of(checkpoint, folder):
    """(answers, split of each clip): the demo's 1,800 clips x hand-written, held-out and rewritten prompts, 103 in all.

    They are kept in the folder: 185,400 evals take ten minutes on one core.
    """
    path = folder / f"{checkpoint}.npz"
    if not path.is_file():
        labels = SPEECH_TASK.labels
        clips = [c for s in SPLITS for c in read_manifest(shipped("data/demo"), labels, s)]
        seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), labels)
        prompts = [*seeds, *read_prompts(shipped("prompts/heldout.yaml"), labels)]
        prompts += grown(seeds, {p.digest for p in prompts}, REWRITTEN)
        evaluator, _ = build_evaluator(checkpoint, cache=folder / ".cache")
        asked = ClipSet(SPEECH_TASK, tuple(clips))
        found = score_in_parts(evaluator, prompts, asked, lambda scored, skipped: None)
        np.savez(
            path,
            logp=found.logp,
            truth=asked.targets.truth,
            sources=asked.targets.sources,
            split=np.array([c.split for c in clips]),
        )
    held = np.load(path)
    odds = log_odds(held["logp"].astype(np.float64))
    return Heard(odds, held["truth"], held["sources"]), held["split"]


# ---- one search


def picked(s, score, count=1):
    """The best trials by a score that are counted above the baseline; of equal ones the smaller loss."""
    above = [i for i in range(SEEDS, len(s.count)) if s.count[i] > s.count[s.baseline]]
    return sorted(above, key=lambda i: (-round(score[i], 9), s.loss[i]))[:count]


def resampled(heard):
    return clusters(heard.truth, heard.source.astype(str).tolist(), resamples=RESAMPLES)


def replaced(c, right, finalists, baseline, alpha=ALPHA):
    """The finalist that replaces the baseline on a holdout, or None, and the p of the best gain."""
    if not finalists or c.fewest < MIN_SOURCES:
        return None, 1.0
    said = c.balanced(right[[*finalists, baseline]].astype(float))
    gains = step_down(
        c, [said[i] - said[len(finalists)] for i in range(len(finalists))], alpha=alpha
    )
    best = winner_of(gains, c.fewest, alpha)
    return (None if best is None else finalists[best]), min(g.p for g in gains)


def one(world, seed):
    """Rule -> (regret, best picked, best three, replaced, by one no better, true gain of what is handed over)."""
    drawn = world.draw(np.random.default_rng(seed))
    s = Searched(drawn.search)
    true = drawn.rest.right(s.bias) @ drawn.rest.weight
    said, c = drawn.holdout.right(s.bias), resampled(drawn.holdout)
    order = SEEDS + np.argsort(-true[SEEDS:])
    scores = {name: rule(s) for name, rule in RULES.items()} | {"oracle": true}
    finalists = {name: picked(s, score) for name, score in scores.items()}
    finalists |= {f"{n} finalists": picked(s, s.count, n) for n in (2, 3)}
    out, known = {}, {}
    for name, found in finalists.items():
        key = tuple(found)
        if key not in known:
            known[key] = replaced(c, said, found, s.baseline)[0]
        won = known[key]
        gain = 0.0 if won is None else true[won] - true[s.baseline]
        first = found[0] if found else s.baseline
        out[name] = (
            true[order[0]] - true[first],
            first == order[0],
            first in order[:3],
            won is not None,
            won is not None and gain <= 1e-9,
            gain,
        )
    return out


def table(world, searches):
    begin = time.time()
    found = [one(world, [1, i]) for i in range(searches)]
    print(f"\n{world.name}: {searches} searches ({time.time() - begin:.0f} s)\n")
    print(
        "| rule | points lost | less today's | best | of best 3 | replaced | less today's | wrongly | handed over gains"
        " | less today's |"
    )
    print("| --- |" + " --- |" * 9)
    rows = {name: 100 * np.array([f[name] for f in found], dtype=float) for name in found[0]}

    def less(name, column):
        d = rows[name][:, column] - rows["count"][:, column]
        return f"{d.mean():+.2f} +- {d.std() / np.sqrt(len(d)):.2f}"

    for name, row in rows.items():
        mean = row.mean(0)
        print(
            f"| {name} | {mean[0]:.2f} | {less(name, 0)} | {mean[1]:.0f} | {mean[2]:.0f} | {mean[3]:.1f}"
            f" | {less(name, 3)} | {mean[4]:.1f} | {mean[5]:.2f} | {less(name, 5)} |",
            flush=True,
        )


# ---- how dev is split


def both_ways(drawn, rule):
    """(prompt, true gain) that a search on either half finds and the other one confirms, each at half the level."""
    found = []
    for search, holdout in ((drawn.search, drawn.holdout), (drawn.holdout, drawn.search)):
        s = Searched(search)
        won, p = replaced(
            resampled(holdout), holdout.right(s.bias), picked(s, rule(s)), s.baseline, ALPHA / 2
        )
        if won is not None:
            true = drawn.outside.right(s.bias) @ drawn.outside.weight
            found.append((p, true[won] - true[s.baseline]))
    return min(found)[1] if found else None


def one_way(drawn, rule):
    s = Searched(drawn.search)
    right = drawn.holdout.right(s.bias)
    won, _ = replaced(resampled(drawn.holdout), right, picked(s, rule(s)), s.baseline)
    true = drawn.outside.right(s.bias) @ drawn.outside.weight
    return None if won is None else true[won] - true[s.baseline]


def splits(world, searches, rule):
    """Prints how often each way to split dev replaces the baseline, wrongly, and the true gain of what is handed over.

    In brackets the standard error of the difference to halves.
    """
    if isinstance(world, Simulated):
        world = replace(world, beyond=500)  # its noise is not that of what is picked
    n = world.sources
    third = round(2 * n / 3)
    ways = {
        "halves": (one_way, (n, n)),
        "1/3 searched": (one_way, (third, 2 * n - third)),
        "2/3 searched": (one_way, (2 * n - third, third)),
        "both ways": (both_ways, (n, n)),
    }
    cells, first = [], None
    for way, sizes in ways.values():
        found = [
            way(world.draw(np.random.default_rng([2, i]), sizes), rule) for i in range(searches)
        ]
        rows = 100 * np.array(
            [[f is not None, f is not None and f <= 1e-9, f or 0.0] for f in found]
        )
        mean, first = rows.mean(0), rows if first is None else first
        off = (rows - first).std(0) / np.sqrt(searches)
        cells.append(f"{mean[0]:.1f} ({off[0]:.1f}) / {mean[1]:.1f} / {mean[2]:.2f} ({off[2]:.2f})")
    print(f"| {world.name} | " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--bank", nargs="*", default=[], help="checkpoints")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_finalists"))
    parser.add_argument("--only", default="", help="worlds whose name holds this")
    parser.add_argument("--unheard", action="store_true", help="of the bank, dev and test alone")
    parser.add_argument(
        "--splits", action="store_true", help="the second table in place of the first"
    )
    parser.add_argument("--rule", default="count", choices=list(RULES), help="of the second table")
    args = parser.parse_args()
    worlds = [] if args.bank else list(SIMULATED)
    for name in args.bank:
        args.folder.mkdir(parents=True, exist_ok=True)
        bank, split = bank_of(name, args.folder)
        bank = bank.take(split != "train") if args.unheard else bank
        voices = len(np.unique(bank.source[bank.truth == 0]))
        worlds += [Banked(f"{name}, {n} voices", bank, n) for n in (11, 22) if 3 * n <= voices]
    if args.splits:
        print(
            "| replaced / wrongly / true gain handed over | halves | 1/3 searched | 2/3 searched | both ways |"
        )
        print("| --- | --- | --- | --- | --- |")
    for world in worlds:
        if args.only in world.name:
            splits(world, args.searches, RULES[args.rule]) if args.splits else table(
                world, args.searches
            )


if __name__ == "__main__":
    main()
