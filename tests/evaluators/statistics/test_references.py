"""Every statistic against ten plain lines, on clips of good and of bad shape: one source, one class, ties, gaps."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_statistics import bounds as student_bounds
from plain_statistics import student
from scipy import stats

from evaluators.statistics import metrics
from evaluators.statistics.compare import compare, compare_pairs, holm, step_down
from evaluators.statistics.resampling import clusters, percentile_bounds
from evaluators.targets import Predictions, Targets

# ---- the references: arrays [clip] in, a number out; what is undefined is NaN


def accuracy(truth, decided):
    return np.mean(decided == truth)


def balanced_accuracy(truth, decided):
    return np.mean([np.mean(decided[truth == k] == k) for k in set(truth)])


def hit_rate(truth, decided):
    return np.mean(decided[truth == 0] == 0) if (truth == 0).any() else math.nan


def false_alarm_rate(truth, decided):
    return np.mean(decided[truth != 0] == 0) if (truth != 0).any() else math.nan


def auroc(truth, score):
    pairs = [(a > b) + (a == b) / 2 for a in score[truth == 0] for b in score[truth != 0]]
    return np.mean(pairs) if pairs else math.nan


def nll(truth, probability):
    return np.mean(-np.log(np.where(truth == 0, probability, 1 - probability)))


def brier(truth, probability):
    return np.mean((probability - (truth == 0)) ** 2)


def ece(truth, decided, probability, bins=15):
    """Guo et al. 2017: mean over clips of |confidence - share right| of their bin, bins closed above."""
    confidence, out = np.where(decided == 0, probability, 1 - probability), 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        inside |= (confidence == 0) & (b == 0)
        if inside.any():
            gap = np.mean(confidence[inside]) - np.mean((decided == truth)[inside])
            out += abs(gap) * np.mean(inside)
    return out


def balanced_nll(truth, logp):
    own = logp - np.log(np.exp(logp).sum(-1, keepdims=True))
    return np.mean([-np.mean(own[truth == k, k]) for k in set(truth)])


def cluster_bootstrap(statistic, weights, source, *arrays):
    """The statistic of the clips of the sources drawn, each as often as it was."""
    times = [[int(w[s]) for s in source] for w in weights]
    return np.array([statistic(*(np.repeat(a, t) for a in arrays)) for t in times])


def quantile(draws, share):
    draws = sorted(draws)
    at = share * (len(draws) - 1)
    below = math.floor(at)
    above = min(below + 1, len(draws) - 1)
    return draws[below] + (at - below) * (draws[above] - draws[below])


def bounds(draws, sources, alpha):
    """Hesterberg 2015: percentiles at Student's level, for the variance that so few show."""
    tail = stats.norm.cdf(stats.t.ppf(alpha, sources - 1) * math.sqrt(sources / (sources - 1)))
    return quantile(draws, tail), quantile(draws, 1 - tail)


def level_of_zero(draws, sources):
    """The smallest level at which the lower bound is not above zero, by trying."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        below = bounds(draws, sources, middle)[0] <= 0
        low, high = (middle, high) if below else (low, middle)
    return high


def level_of_bound(tail, sources):
    """The level whose bound is at this share of the draws."""
    return stats.t.cdf(stats.norm.ppf(tail) * math.sqrt((sources - 1) / sources), sources - 1)


def holm_by_hand(p):
    order, worst, out = np.argsort(p, kind="stable"), 0.0, np.zeros(len(p))
    for left, i in zip(range(len(p), 0, -1), order, strict=True):
        worst = max(worst, min(1.0, left * p[i]))
        out[i] = worst
    return list(out)


def mcnemar(right, other):
    """Exact, mid-p, one-sided (Fagerland et al. 2013): discordant clips fall on one side like tosses of a coin."""
    b, c = np.sum(right & ~other), np.sum(~right & other)
    return stats.binom.sf(b, b + c, 0.5) + stats.binom.pmf(b, b + c, 0.5) / 2


# ---- the clips


@st.composite
def clips(draw, labels=2, least=1):
    """(truth, source, decided, probability): often one source, one class, ties, or one large source."""
    count = draw(st.integers(least, 40))
    kind = st.sampled_from([0] if draw(st.integers(0, 5)) == 0 else list(range(labels)))
    most = draw(st.sampled_from([0, 1, 2, 5, 12]))
    source = st.one_of(st.just(0), st.integers(0, most))  # half of the clips lie in the first
    level = draw(st.sampled_from([1, 3, 100]))  # steps of probability: few are many ties
    rows = st.tuples(kind, source, st.integers(0, labels - 1), st.integers(0, level))
    truth, source, decided, step = map(
        np.array, zip(*draw(st.lists(rows, min_size=count, max_size=count)), strict=True)
    )
    if level == 3:  # edges of the bins of calibration
        return truth, source, decided, (step + 1) / 5
    return truth, source, decided, 0.01 + 0.98 * step / level


def said(truth, source, decided, probability=None, score=None, name="m"):
    ids = tuple(str(i) for i in range(len(truth)))
    targets = Targets(("x", "y"), ids, truth, source.astype(str))
    return Predictions(name, targets, decided, probability, score)


def drawn(truth, source, **more):
    """The resamples, and the references' number of each source."""
    c = clusters(truth, source.astype(str).tolist(), **{"resamples": 25, **more})
    return c, np.unique(source.astype(str), return_inverse=True)[1]


def agree(found, value, draws):
    np.testing.assert_allclose(found.value, value, atol=1e-9)
    np.testing.assert_allclose(found.draws, draws, atol=1e-9)


# ---- statistics, and the weighted cluster bootstrap of each


@settings(max_examples=60, deadline=None)
@given(clips(labels=3), st.integers(0, 99))
def test_rates_of_any_labels_are_the_references_in_every_resample(rows, seed):
    truth, source, decided, _ = rows
    c, index = drawn(truth, source, seed=seed)
    found = metrics.rates(c, decided)
    references = (accuracy, balanced_accuracy, hit_rate, false_alarm_rate)
    assert set(found) == {r.__name__ for r in references}
    for r in references:
        draws = cluster_bootstrap(r, c.weights, index, truth, decided)
        agree(found[r.__name__], r(truth, decided), draws)
    assert metrics.balanced_accuracy(truth, decided == truth) == pytest.approx(
        balanced_accuracy(truth, decided)
    )


@settings(max_examples=40, deadline=None)
@given(clips(), st.integers(0, 99))
def test_ranking_and_calibration_are_the_references_in_every_resample(rows, seed):
    truth, source, decided, probability = rows
    c, index = drawn(truth, source, seed=seed)
    found = metrics.statistics_of(c, said(truth, source, decided, probability))
    for r in (auroc, nll, brier):
        draws = cluster_bootstrap(r, c.weights, index, truth, probability)
        agree(found[r.__name__], r(truth, probability), draws)
    draws = cluster_bootstrap(ece, c.weights, index, truth, decided, probability)
    agree(found["ece"], ece(truth, decided, probability), draws)
    np.testing.assert_allclose(metrics.auroc(truth, probability), auroc(truth, probability))


@settings(max_examples=60, deadline=None)
@given(clips(labels=3), st.integers(0, 999))
def test_loss_is_the_reference(rows, seed):
    truth = rows[0]
    logp = np.log(np.random.default_rng(seed).dirichlet([1, 1, 1], len(truth))) - 0.3
    assert metrics.nll(truth, logp) == pytest.approx(balanced_nll(truth, logp))


# ---- comparisons


def stuck(draws):
    return np.ptp(draws) <= 1e-12


@settings(max_examples=20, deadline=None)
@given(clips(least=4), st.integers(0, 999), st.sampled_from([0.025, 0.1]))
def test_a_paired_comparison_is_the_reference(rows, seed, alpha):
    truth, source, decided, _ = rows
    other = np.where(np.random.default_rng(seed).random(len(truth)) < 0.3, 1 - decided, decided)
    a, b = said(truth, source, decided), said(truth, source, other)
    c, index = drawn(truth, source, resamples=4000, seed=seed)
    d = compare(a, b, seed=seed, alpha=alpha)

    def gain(truth, decided, other):
        return balanced_accuracy(truth, decided) - balanced_accuracy(truth, other)

    assert d.value == pytest.approx(gain(truth, decided, other), abs=1e-9)
    assert (d.clips, d.sources) == (len(truth), len(set(source)))
    if c.fewest < 2:
        assert d.low is d.high is None and d.p == 1
        return
    some = cluster_bootstrap(gain, c.weights[:40], index, truth, decided, other)
    draws = (c.balanced(a.right) - c.balanced(b.right)).draws
    np.testing.assert_allclose(draws[:40], some, atol=1e-9)
    assert not ((draws != 0) & (np.abs(draws) < 1e-9)).any()  # as many won as lost is no gain
    gained, kinds = (decided == truth) * 1.0 - (other == truth), np.unique(truth)
    weights = np.full(len(kinds), 1 / len(kinds))
    if stuck(draws) or not student(truth, source, gained, weights)[1] > 1e-9:  # test_edges.py
        return
    low, high, p = student_bounds(truth, source, gained, weights, alpha)
    assert (d.low, d.high) == pytest.approx((max(low, -1), min(high, 1)), abs=1e-6)
    assert d.p == pytest.approx(p, abs=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.01, 0.02, 0.02, 1.0])), max_size=8))
def test_holm_is_the_reference(p):
    assert holm(p) == pytest.approx(holm_by_hand(p))


@settings(max_examples=40, deadline=None)
@given(clips(least=8), st.integers(0, 99), st.integers(2, 4))
def test_a_family_is_the_reference_corrected_by_hand(rows, seed, rivals):
    truth, source, decided, _ = rows
    rng = np.random.default_rng(seed)
    c, _ = drawn(truth, source, resamples=400)
    if c.fewest < 2:
        return
    base = c.balanced(decided == truth)
    gains = [c.balanced(rng.random(len(truth)) < 0.8) - base for _ in range(rivals)]
    moved = [g for g in gains if not stuck(g.draws)]
    found = step_down(c, moved)
    p = [c.p_of_gain(g) for g in moved]
    assert [f.p for f in found] == pytest.approx(holm_by_hand(p) if p else [])
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        low, high = c.bounds_of_gain(moved[i], 0.025 / (len(p) - rank))
        assert (found[i].low, found[i].high) == (low, high)


@pytest.mark.parametrize("gained", [8, 12, 16, 20])
def test_where_each_clip_is_its_own_source_p_is_near_mcnemars(gained):
    """No test of McNemar is printed, for clips of a source are not independent. Where they are, ours says the same."""
    truth, source = np.repeat([0, 1], 200), np.arange(400)
    place = np.random.default_rng(gained).permutation(400)
    right, other = np.ones(400, bool), np.ones(400, bool)
    other[place[:gained]], right[place[gained : gained + 6]] = False, False
    a, b = (said(truth, source, np.where(ok, truth, 1 - truth)) for ok in (right, other))
    one_sided = compare(a, b, "accuracy").p
    assert one_sided == pytest.approx(mcnemar(right, other), rel=0.5, abs=0.01)
    (pair,) = compare_pairs([a, b])
    assert pair["p"] == pytest.approx(2 * mcnemar(right, other), rel=0.5, abs=0.02)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.integers(2, 60), st.floats(0.001, 0.5))  # fmt: skip
def test_bounds_are_the_reference(draws, sources, alpha):
    found = percentile_bounds(np.array(draws), sources, alpha)
    assert found == pytest.approx(bounds(draws, sources, alpha), abs=1e-9)


# ---- what is refused


@pytest.mark.parametrize("name", ["probability", "score"])
def test_a_number_that_is_none_is_refused_by_clip(name):
    values = np.array([0.5, np.nan, 0.2])
    with pytest.raises(ValueError, match=f"^m: {name} of clip '1' is NaN; expected a number$"):
        said(np.array([0, 1, 1]), np.arange(3), np.array([0, 1, 0]), **{name: values})


def test_probabilities_lie_between_0_and_1_and_there_is_one_a_clip():
    truth, source, decided = np.array([0, 1]), np.arange(2), np.array([0, 1])
    with pytest.raises(ValueError, match=r"^m: probability of clip '0' is 1\.5; expected 0 to 1$"):
        said(truth, source, decided, np.array([1.5, 0.2]))
    for wrong in (np.array([0]), np.zeros((2, 2), int)):
        with pytest.raises(ValueError, match=r"^m: decided has shape .*; expected \(2,\)"):
            said(truth, source, wrong)
    assert said(truth, source, decided, score=np.array([np.inf, -np.inf])).score is not None
