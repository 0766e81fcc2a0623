"""Which test should decide: python tests/bench_decision.py --trials 4000 (a quarter of an hour on one core)

Draws what a baseline and some finalists say on a fresh half, many times, and counts how often each test replaces the
baseline: by a prompt that is no better (false wins), and by one that is. Finalists, their number and Holm's correction
are those of the decision. Differences are drawn as `opro.power` draws them: errors of two prompts on a clip go
together, and accuracies differ between sources, half of that shared by the prompts.

Every test sees totals of sources. With T right answers gained of n clips in each source, a class gains D = sum T / sum
n, and a source's residual is u = T - D n; the value is the mean of D over the classes. The tests:

- fewest: the percentile bound, expanded as if each class had as many sources as the one with the fewest;
- pooled: the same, expanded by the degrees of freedom of Satterthwaite (1946), where a class counts by its part of the
  variance and by its effective number of sources (Kish 1965);
- welch: t, a class's variance being S / (S - 1) sum u^2 / N^2, degrees of freedom by Satterthwaite (1946);
- cr2: u^2 / (1 - n / N) for u^2 and the degrees of freedom of Bell and McCaffrey (2002), clips taken as independent;
- cr2 welch: the same variances, and Satterthwaite's sum over the classes' own degrees of freedom by Bell and
  McCaffrey, where clips of a source are taken as wholly alike (Imbens and Kolesar 2016 take them so in part);
- hall: `cr2 welch` with the skewness of the value taken off by the transformation of Hall (1992), where that makes a
  gain less certain;
- flip: studentised sign flips of T (Hemerik, Goeman and Finos 2020);
- wild: wild cluster bootstrap-t, signs of restricted residuals (Cameron, Gelbach and Miller 2008).
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtr

from evaluators.statistics.compare import ALPHA
from evaluators.statistics.resampling import ALIKE, clusters
from opro.search.budget import most_finalists
from opro.search.power import SHARED

ACCURACY, SPREAD = 0.8, 0.08  # the defaults of opro.power
DRAWS = 1999  # resamples, or draws of signs
TESTS = ("fewest", "pooled", "welch", "cr2", "cr2 welch", "hall", "flip", "wild")
AT_ONCE = 4_000_000  # answers drawn at once


@dataclass(frozen=True)
class Shape:
    """A fresh half, and how prompts differ on it.

    Attributes:
        sources: Of each class.
        clips: Of a source of each class, on average.
        unequal: Spread of the logarithm of clips a source.
        effects: Of sources: ``normal``; ``heavy`` tails, t with 2.5 degrees of freedom; ``skewed``: the finalists gain
            5 points on most sources and lose 20 on a fifth of them.
        opposed: The finalists gain so much in the first class and lose it in the last one.
    """

    name: str
    sources: tuple[int, ...]
    clips: tuple[float, ...]
    unequal: float = 0.0
    effects: str = "normal"
    opposed: float = 0.0


NULLS = (
    Shape("10, 10 sources, 1 clip each", (10, 10), (1, 1)),
    Shape("10, 10 sources, 9 clips", (10, 10), (9, 9)),
    Shape("10, 10 sources, 40 clips", (10, 10), (40, 40)),
    Shape("11, 64 sources, 9, 1.5 clips (the demo)", (11, 64), (9, 1.5), unequal=0.5),
    Shape("11, 64 sources, 36, 6 clips", (11, 64), (36, 6)),
    Shape("10, 200 sources, 40, 2 clips", (10, 200), (40, 2)),
    Shape("22, 22 sources, 9 clips", (22, 22), (9, 9)),
    Shape("44, 44 sources, 18 clips", (44, 44), (18, 18)),
    Shape("200, 200 sources, 1 clip", (200, 200), (1, 1)),
    Shape("200, 200 sources, 10 clips", (200, 200), (10, 10)),
    Shape("11, 64 sources, 18, 3 clips, very unequal", (11, 64), (18, 3), unequal=1.2),
    Shape("22, 22 sources, 18 clips, very unequal", (22, 22), (18, 18), unequal=1.2),
    Shape("11, 64 sources, 18, 3 clips, heavy tails", (11, 64), (18, 3), effects="heavy"),
    Shape("44, 44 sources, 9 clips, heavy tails", (44, 44), (9, 9), effects="heavy"),
    Shape("11, 64 sources, 18, 3 clips, opposed classes", (11, 64), (18, 3), opposed=0.1),
    Shape("10, 10, 10 sources, 9 clips", (10, 10, 10), (9, 9, 9)),
    Shape("11, 22, 44 sources, 18, 9, 4 clips, unequal", (11, 22, 44), (18, 9, 4), unequal=0.7),
    Shape("11, 64 sources, 36, 6 clips, skewed", (11, 64), (36, 6), effects="skewed"),
    Shape("44, 44 sources, 9 clips, skewed", (44, 44), (9, 9), effects="skewed"),
)
POWERS = tuple(
    Shape(f"{s}, {6 * s} sources, {n}, {n / 6:g} clips", (s, 6 * s), (n, n / 6))
    for s in (11, 22, 44)
    for n in (9, 18, 36)
)
GAINS = (0.02, 0.04, 0.06, 0.08, 0.10)


@dataclass(frozen=True, eq=False)
class Half:
    """Class and number of clips of each source."""

    kind: np.ndarray
    clips: np.ndarray

    @property
    def kinds(self):
        return range(int(self.kind.max()) + 1)


def drawn_half(shape, rng):
    """The clips of each source of a shape: at least one."""
    kind = np.repeat(np.arange(len(shape.sources)), shape.sources)
    mean = np.asarray(shape.clips)[kind]
    size = mean * np.exp(rng.normal(0, shape.unequal, len(kind)) - shape.unequal**2 / 2)
    exact = np.floor(size) + (rng.random(len(kind)) < size - np.floor(size))
    return Half(kind, np.maximum(exact, 1).astype(int))


def effects(shape, rng, size):
    """``[..., source]`` how far a prompt's accuracy lies from its mean in each source."""
    own = SPREAD / np.sqrt(2)
    if shape.effects == "heavy":
        return own * np.clip(rng.standard_t(2.5, size), -8, 8)
    return rng.normal(0, own, size)


def gained(shape, half, gain, finalists, trials, rng):
    """``[trial, finalist, source]`` right answers gained over the baseline; the first finalist is better by `gain`."""
    sources, index = len(half.kind), np.repeat(np.arange(len(half.kind)), half.clips)
    accuracy = np.full((1 + finalists, sources), ACCURACY)
    accuracy[1] += gain
    accuracy[1:] += shape.opposed * ((half.kind == 0) * 1.0 - (half.kind == half.kind.max()))
    if shape.opposed:  # what is clipped must not make a gain
        accuracy -= 0.1
    out = np.empty((trials, finalists, sources))
    step = max(1, AT_ONCE // (len(index) * (1 + finalists)))
    begins = np.concatenate([[0], half.clips.cumsum()[:-1]])
    for begin in range(0, trials, step):
        n = min(step, trials - begin)
        shared = effects(shape, rng, (n, 1, sources))
        bound = accuracy + shared + effects(shape, rng, (n, 1 + finalists, sources))
        if shape.effects == "skewed":
            bound = np.broadcast_to(accuracy, bound.shape) - 0.05
            rare = rng.random((n, finalists, sources)) < 0.2
            bound = np.concatenate([bound[:, :1], bound[:, 1:] + np.where(rare, -0.2, 0.05)], 1)
        bound = ndtri(np.clip(bound, 0.01, 0.99)).astype(np.float32)
        z = np.sqrt(1 - SHARED) * rng.standard_normal((n, 1 + finalists, len(index)), np.float32)
        z += np.sqrt(SHARED) * rng.standard_normal((n, 1, len(index)), np.float32)
        right = (z < bound[:, :, index]).astype(np.int16)
        right = np.add.reduceat(right, begins, axis=-1)
        out[begin : begin + n] = right[:, 1:] - right[:, :1]
    return out


class Totals:
    """Source totals of many differences: ``[difference, source]``."""

    def __init__(self, half, total):
        self.half, self.total, count = half, total, len(half.kinds)
        self.per = [half.kind == k for k in half.kinds]
        self.n = np.array([half.clips[own].sum() for own in self.per])
        self.s = np.array([own.sum() for own in self.per])
        self.mean = np.stack([total[:, own].sum(-1) for own in self.per], -1) / self.n
        self.value = self.mean.mean(-1)
        self.residual = total - self.mean[:, half.kind] * half.clips
        self.share = half.clips / self.n[half.kind]
        self.scale = count * self.n  # a class's total over this is its part of the value

    def variances(self, squares):
        """``[difference, class]`` parts of the variance of the value."""
        return np.stack([squares[:, own].sum(-1) for own in self.per], -1) / self.scale**2


def p_of_t(t, variance, degrees):
    """One-sided p; without any spread there is no evidence."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p = stdtr(degrees, -t.value / np.sqrt(variance))
    return np.where(variance > ALIKE, p, 1.0)


def satterthwaite(parts, degrees):
    """Degrees of freedom of a sum of variances."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return parts.sum(-1) ** 2 / (parts**2 / degrees).sum(-1)


def welch(t):
    parts = t.variances(t.residual**2) * t.s / (t.s - 1)
    return p_of_t(t, parts.sum(-1), satterthwaite(parts, t.s - 1))


def moments(t, k, alike):
    """Mean and half the variance of the CR2 variance of class `k`'s part, where a source's total varies by 1 a clip."""
    own = t.per[k]
    n, share = t.half.clips[own], t.share[own]
    var = n**2.0 if alike else n * 1.0
    # u = (I - share 1') T, so its covariance is that of T seen through it
    through = np.eye(len(n)) - share[:, None]
    weight = 1 / (1 - share) / t.scale[k] ** 2
    m = weight[:, None] * ((through * var) @ through.T)
    return np.trace(m), (m * m.T).sum()


def cr2(t):
    parts = t.variances(t.residual**2 / (1 - t.share))
    found = np.array([moments(t, k, False) for k in t.half.kinds])
    return p_of_t(t, parts.sum(-1), found[:, 0].sum() ** 2 / found[:, 1].sum())


def cr2_welch(t, skewed=False):
    """`skewed` takes skewness off where it speaks against a gain."""
    scaled = t.residual / np.sqrt(1 - t.share)
    parts = t.variances(scaled**2)
    found = np.array([moments(t, k, True) for k in t.half.kinds])
    variance, degrees = parts.sum(-1), satterthwaite(parts, found[:, 0] ** 2 / found[:, 1])
    if not skewed:
        return p_of_t(t, variance, degrees)
    third = sum((scaled[:, own] ** 3).sum(-1) / t.scale[k] ** 3 for k, own in enumerate(t.per))
    with np.errstate(invalid="ignore", divide="ignore"):
        skew, x = np.minimum(third / variance**1.5, 0), t.value / np.sqrt(variance)
        x = x + skew / 3 * x**2 + skew**2 / 27 * x**3 + skew / 6
    return np.where(variance > ALIKE, stdtr(degrees, -x), 1.0)


def expanded(t, rng):
    """`level_at_zero` of many gains at once, ways to expand it by name."""
    sources = [str(i) for i in range(len(t.half.kind))]
    c = clusters(t.half.kind, sources, resamples=DRAWS, seed=int(rng.integers(2**31)))
    order = np.argsort(sources)  # `clusters` sorts names
    weights = np.empty_like(c.weights)
    weights[:, order] = c.weights
    draws = 0.0
    for own in t.per:
        w = weights[:, own]
        draws = draws + (t.total[:, own] @ w.T) / (w @ t.half.clips[own])
    draws = draws / len(t.per)
    draws[np.abs(draws) <= ALIKE] = 0.0
    draws.sort(axis=-1)
    below = (draws <= 0).sum(-1)
    row, at = np.arange(len(draws)), np.clip(below, 1, DRAWS - 1)
    step = draws[row, at] - draws[row, at - 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        tail = (below - 1 - draws[row, at - 1] / step) / (DRAWS - 1)
    tail = np.maximum(np.where(below > 0, tail, 0.0), 1 / (DRAWS + 1))
    nothing, z = (below == DRAWS) | (np.ptp(draws, -1) <= ALIKE), ndtri(np.minimum(tail, 1))
    parts = t.variances(t.residual**2)
    kish = np.array(
        [t.half.clips[own].sum() ** 2 / (t.half.clips[own] ** 2).sum() for own in t.per]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        widened = (parts * kish / (kish - 1)).sum(-1) / parts.sum(-1)
    few = t.s.min() - 1
    p = {
        "fewest": stdtr(few, z * np.sqrt(few / (few + 1))),
        "pooled": stdtr(satterthwaite(parts, kish - 1), z / np.sqrt(widened)),
    }
    return {name: np.where(nothing, 1.0, one) for name, one in p.items()}


def by_signs(t, moved, rng):
    """Share of draws of signs in which the studentised value of ``[difference, source]`` totals is as large."""
    sign = rng.choice([-1.0, 1.0], (DRAWS, moved.shape[1]))
    value = variance = 0.0
    for k, own in enumerate(t.per):
        n, s, of = t.half.clips[own], sign[:, own].T, moved[:, own]
        total, weighed, size = of @ s, (of * n) @ s, t.n[k]
        spread = (of**2).sum(-1)[:, None] - 2 / size * total * weighed
        spread = spread + (n**2.0).sum() / size**2 * total**2
        value = value + total / t.scale[k]
        variance = variance + np.maximum(spread, 0) / t.scale[k] ** 2 * t.s[k] / (t.s[k] - 1)
    parts = t.variances(t.residual**2) * t.s / (t.s - 1)
    spread = parts.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = t.value / np.sqrt(spread)
        as_large = value / np.sqrt(variance) >= seen[:, None] - 1e-9
    as_large |= (variance <= ALIKE) & (value > ALIKE)
    p = (1 + as_large.sum(-1)) / (DRAWS + 1)
    return np.where(spread > ALIKE, p, 1.0)


def restricted(t):
    """Totals less what the classes gain by least squares under the constraint that they gain nothing together."""
    inverse = 1 / t.n
    mean = t.mean - t.value[:, None] * len(t.n) * inverse / inverse.sum()
    return t.total - mean[:, t.half.kind] * t.half.clips


def all_p(half, total, rng):
    """Test -> ``[difference]`` one-sided p."""
    t = Totals(half, total)
    return {
        **expanded(t, rng),
        "welch": welch(t),
        "cr2": cr2(t),
        "cr2 welch": cr2_welch(t),
        "hall": cr2_welch(t, skewed=True),
        "flip": by_signs(t, t.total, rng),
        "wild": by_signs(t, restricted(t), rng),
    }


def winners(p, value, alpha=ALPHA):
    """``[trial]`` index of the finalist that Holm lets win with the largest value, or -1."""
    order = np.argsort(p, axis=-1, kind="stable")
    count = p.shape[1]
    ranked = np.take_along_axis(p, order, -1) * (count - np.arange(count))
    passed = np.empty(p.shape, dtype=bool)
    np.put_along_axis(passed, order, np.maximum.accumulate(ranked, -1) < alpha, -1)
    best = np.where(passed, value, -np.inf)
    return np.where(passed.any(-1), best.argmax(-1), -1)


def replaced(shape, gain, trials, seed=0, level=None):
    """Test -> share of decisions in which the better finalist (at gain 0, any) replaced the baseline.

    Args:
        level: Test -> one-sided level; `ALPHA` for all.
    """
    rng = np.random.default_rng([seed, *shape.sources, int(100 * gain)])
    finalists = most_finalists(min(shape.sources))
    found, parts = dict.fromkeys(TESTS, 0), 20  # each with its own sizes of sources and draws
    for _ in range(parts):
        half, n = drawn_half(shape, rng), max(1, trials // parts)
        total = gained(shape, half, gain, finalists, n, rng)
        flat = total.reshape(-1, total.shape[-1])
        value = Totals(half, flat).value.reshape(n, finalists)
        for name, p in all_p(half, flat, rng).items():
            won = winners(p.reshape(n, finalists), value, (level or {}).get(name, ALPHA))
            found[name] += int((won >= 0).sum() if gain == 0 else (won == 0).sum())
    return {name: count / (parts * n) for name, count in found.items()}


def levels(shape, trials, seed=1):
    """Test -> the level at which it errs in exactly `ALPHA` of decisions on a shape."""
    rng = np.random.default_rng([seed, *shape.sources])
    finalists, found, parts = most_finalists(min(shape.sources)), {t: [] for t in TESTS}, 20
    for _ in range(parts):
        half = drawn_half(shape, rng)
        total = gained(shape, half, 0.0, finalists, max(1, trials // parts), rng)
        for name, p in all_p(half, total.reshape(-1, total.shape[-1]), rng).items():
            found[name] += list(finalists * p.reshape(-1, finalists).min(-1))
    return {name: float(np.quantile(p, ALPHA)) for name, p in found.items()}


def table(title, rows):
    print(f"\n| {title} | {' | '.join(TESTS)} |\n| --- |{' --- |' * len(TESTS)}")
    for name, found in rows:
        shares = " | ".join(f"{100 * found[test]:.1f}" for test in TESTS)
        print(f"| {name} | {shares} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--part", choices=("nulls", "gains", "equal"), help="one table alone")
    args = parser.parse_args()
    begin = time.perf_counter()
    if args.part in (None, "nulls"):
        rows = ((s.name, replaced(s, 0.0, args.trials)) for s in NULLS)
        table("false wins, % of decisions", rows)
    few = max(20, args.trials // 4)
    for part, title in (("gains", "found, %"), ("equal", "found at equal false wins, %")):
        if args.part in (None, part):
            table(title, gains(few, at_equal=part == "equal"))
    print(f"\n{args.trials} decisions a shape ({few} a gain), {time.perf_counter() - begin:.0f} s")


def gains(trials, at_equal):
    """Rows: a shape and a gain, how often it is found."""
    for shape in POWERS:
        level = levels(shape, 4 * trials) if at_equal else None
        for gain in GAINS:
            name = f"{shape.name}, {100 * gain:+.0f} points"
            yield name, replaced(shape, gain, trials, level=level)


if __name__ == "__main__":
    main()
