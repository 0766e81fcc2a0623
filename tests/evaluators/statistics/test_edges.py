"""Shares that are alike in all sources, which no resample moves: their bounds are Clopper and Pearson's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from evaluators.statistics import metrics
from evaluators.statistics.compare import compare, compare_pairs, estimate, resample
from evaluators.statistics.describe import describe
from evaluators.statistics.resampling import (
    clusters,
    effective_sources,
    exact_bounds,
    percentile_bounds,
)
from evaluators.targets import Predictions, Targets


def said(truth, sources, decided, slices=None, **more):
    ids = tuple(map(str, range(len(truth))))
    t = Targets(("x", "y"), ids, np.asarray(truth), np.asarray(sources), slices or {})
    return Predictions("m", t, np.asarray(decided), **more)


def own_sources(count):
    return [f"s{i}" for i in range(count)]


# ---- the textbook


@pytest.mark.parametrize("alpha", [0.025, 0.05, 0.2])
@pytest.mark.parametrize("trials", [1, 2, 10, 25, 400])
def test_bounds_of_a_share_are_those_of_statsmodels(trials, alpha):
    right = np.arange(trials + 1)
    low, high = exact_bounds(right / trials, np.full(trials + 1, float(trials)), alpha)
    theirs = proportion_confint(right, trials, 2 * alpha, method="beta")
    assert low == pytest.approx(theirs[0], abs=1e-9)
    assert high == pytest.approx(theirs[1], abs=1e-9)


def test_none_of_25_independent_clips_is_0_to_13_7_percent():
    """Of each kind 25 clips, each of its own source: no miss, no false alarm."""
    truth = np.repeat([0, 1], 25)
    one = describe(said(truth, own_sources(50), truth), resamples=500)
    assert one["false_alarm_rate"]["value"] == one["false_alarm_rate"]["low"] == 0
    assert one["false_alarm_rate"]["high"] == pytest.approx(0.1372, abs=5e-5)
    assert one["hit_rate"]["low"] == pytest.approx(1 - 0.1372, abs=5e-5)
    assert one["hit_rate"]["value"] == one["hit_rate"]["high"] == 1
    # Of all 50 clips none is wrong; balanced accuracy is the mean of two shares of 25.
    assert one["accuracy"]["low"] == pytest.approx(0.025 ** (1 / 50))
    below = (1 - 0.025 ** (1 / 25)) / np.sqrt(2)
    assert one["balanced_accuracy"]["low"] == pytest.approx(1 - below)
    assert one["accuracy"]["high"] == one["balanced_accuracy"]["high"] == 1


def test_clips_of_a_source_count_once_and_a_large_source_stands_for_few():
    truth = np.repeat([0, 1], 100)
    even = said(truth, [f"s{i // 4}" for i in range(200)], truth)
    low = estimate(even, "accuracy").low
    assert low == pytest.approx(0.025 ** (1 / 50))
    large = said(truth, [f"s{max(i % 100 - 60, 0)}-{i // 100}" for i in range(200)], truth)
    c = resample(large.targets)
    assert c.sources == 80  # two of 61 clips, 78 of one
    count = 100**2 / (61**2 + 39)
    assert effective_sources(np.array([61.0] + [1.0] * 39)) == pytest.approx(count)
    found = c.estimate(metrics.rates(c, large.decided)["hit_rate"])
    assert found.low == pytest.approx(0.025 ** (1 / count)) and found.high == 1


# ---- parts of a statistic


def half_wrong(clips=100, sources=25):
    """The first label always right; of the second one source in three always wrong."""
    truth = np.repeat([0, 1], clips)
    ids = [f"{truth[i]}-{i % sources}" for i in range(2 * clips)]
    wrong = (truth == 1) & (np.arange(2 * clips) % sources % 3 == 0)
    return said(truth, ids, np.where(wrong, 1 - truth, truth))


def test_of_two_labels_the_one_that_is_all_right_adds_its_reach_to_the_percentiles_of_the_other():
    one = half_wrong()
    c = resample(one.targets)
    found = c.estimate(c.balanced(one.right))
    low, high = percentile_bounds(c.balanced(one.right).draws, 25, 0.025)
    reach = (1 - 0.025 ** (1 / 25)) / 2
    assert found.low == pytest.approx(found.value - np.hypot(found.value - low, reach))
    assert found.high == high  # above all right there is nothing
    accuracy = c.estimate(c.accuracy(one.right))
    assert accuracy.low == pytest.approx(found.low)  # as many clips of each label
    rates = metrics.rates(c, one.decided)
    alarms = rates["false_alarm_rate"]
    assert c.bounds(alarms, 0.025) == percentile_bounds(alarms.draws, 25, 0.025)


def test_one_answer_for_everything_is_50_with_a_width():
    truth = np.repeat([0, 1], 25)
    one = said(truth, own_sources(50), np.zeros(50, int))
    found = estimate(one)
    reach = (1 - 0.025 ** (1 / 25)) / 2
    assert (found.low, found.high) == pytest.approx((0.5 - reach, 0.5 + reach))
    accuracy = estimate(one, "accuracy")  # of all 50 half are right, in every resample
    assert (accuracy.low, accuracy.high) == pytest.approx(
        proportion_confint(25, 50, 0.05, method="beta")
    )


def test_a_share_that_is_alike_in_all_sources_has_a_width_too():
    """One of two clips right in each of ten sources: no resample moves it, and it is no edge."""
    truth, ids = np.repeat([0, 1], 20), [f"s{i // 2}" for i in range(40)]
    one = said(truth, ids, np.where(np.arange(40) % 2 == 0, truth, 1 - truth))
    found = describe(one, resamples=200)
    exact = proportion_confint(5, 10, 0.05, method="beta")
    for name in ("hit_rate", "false_alarm_rate"):
        assert (found[name]["low"], found[name]["high"]) == pytest.approx(exact)


def test_ranking_without_a_mistake_counts_pairs_that_share_no_source():
    truth = np.repeat([0, 1], [12, 40])
    one = said(truth, own_sources(52), truth, score=1.0 - truth)
    found = estimate(one, "auroc")
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / 12))


def test_certainty_that_is_always_right_has_a_calibration_error_with_a_width():
    truth = np.repeat([0, 1], 25)
    found = describe(said(truth, own_sources(50), truth, probability=1.0 - truth), resamples=200)
    for name in ("ece", "brier"):
        assert found[name]["low"] == found[name]["value"] == 0
        assert found[name]["high"] == pytest.approx(1 - 0.025 ** (1 / 50))
    assert found["confidence"]["low"] == pytest.approx(0.025 ** (1 / 50))
    # A mean that is the same for every clip is no count: it keeps its percentiles.
    even = describe(said(truth, own_sources(50), truth, probability=np.full(50, 0.5)), resamples=99)
    assert even["brier"] == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_no_slice_has_an_interval_of_no_width():
    rng = np.random.default_rng(1)
    truth, ids = np.repeat([0, 1], 120), [f"s{i // 6}" for i in range(240)]
    level = np.array([("100", "500", "1000")[i % 3] for i in range(240)])
    right = (level != "100") | (rng.random(240) < 0.7)
    one = said(truth, ids, np.where(right, truth, 1 - truth), {"duration_ms": level})
    slices = describe(one, resamples=200)["slices"]["duration_ms"]
    for name, part in slices.items():
        for rate in ("accuracy", "balanced_accuracy", "hit_rate", "false_alarm_rate"):
            assert part[rate]["low"] < part[rate]["high"], (name, rate)
    assert slices["500"]["hit_rate"]["low"] == pytest.approx(0.025 ** (1 / 20))


def test_one_source_still_bounds_nothing():
    truth = np.repeat([0, 1], [5, 50])
    found = describe(said(truth, ["a"] * 5 + own_sources(50), truth), resamples=100)
    assert found["hit_rate"] == {"value": 1.0, "low": None, "high": None}


# ---- differences


def test_a_difference_that_no_resample_moves_has_a_width_and_two_that_decide_alike_have_none():
    truth = np.repeat([0, 1], 25)
    ids = own_sources(50)
    right, always = said(truth, ids, truth), said(truth, ids, np.zeros(50, int))
    d = compare(right, always)
    reach = (1 - 0.025 ** (1 / 25)) / 2  # of each label where `right` is right, and of `always`
    assert (d.value, d.high) == (0.5, pytest.approx(0.5 + reach))  # `always` may be worse still
    assert d.low == pytest.approx(0.5 - np.sqrt(3) * reach) and d.p < 0.002
    same = compare(right, right)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    (pair,) = compare_pairs([always, right])
    assert pair["low"] == pytest.approx(-d.high) and pair["high"] == pytest.approx(-d.low)


@pytest.mark.parametrize("sources", range(2, 12))
def test_p_of_such_a_difference_goes_with_its_bound(sources):
    truth = np.repeat([0, 1], sources)
    ids = own_sources(2 * sources)
    a, b = said(truth, ids, truth), said(truth, ids, np.zeros(2 * sources, int))
    p = compare(a, b).p
    if p > 0.01:
        assert compare(a, b, alpha=p * 1.01).low > 0 >= compare(a, b, alpha=p / 3).low - 1e-9
    assert p < 0.025 or compare(a, b, alpha=0.01).low < 0.5


# ---- what holds for all


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([0.3, 0.7, 0.95, 1.0]), st.integers(2, 12))
def test_bounds_are_the_percentiles_wherever_resamples_move_every_part(seed, share, sources):
    rng = np.random.default_rng(seed)
    truth = np.repeat([0, 1], 4 * sources)
    ids = [f"s{i // 4}" for i in range(len(truth))]
    decided = np.where(rng.random(len(truth)) < share, truth, 1 - truth)
    c = clusters(truth, ids, resamples=200)
    rates = metrics.rates(c, decided)
    moved = {n: np.ptp(rates[n].draws) > 1e-12 for n in ("hit_rate", "false_alarm_rate")}
    for name, statistic in rates.items():
        low, high = c.bounds(statistic, 0.025)
        plain = percentile_bounds(statistic.draws, sources, 0.025)
        if moved.get(name, all(moved.values())):
            assert (low, high) == plain
        assert low < high and low <= plain[0] and high >= plain[1]
        assert -1e-12 <= low <= statistic.value <= high <= 1 + 1e-12


@pytest.mark.parametrize("within", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("rate", [0.9, 0.95, 0.98, 0.99, 1.0])
def test_intervals_hold_rates_near_one(rate, within):
    """25 sources of 4 clips a label, whose own rates correlate by `within`; 400 draws of each."""
    rng, draws, sources = np.random.default_rng([int(1000 * rate), int(10 * within)]), 400, 25
    truth = np.repeat([0, 1], sources * 4)
    c = clusters(truth, [f"s{i // 4}" for i in range(len(truth))], resamples=1000)
    own = np.full((draws, 2 * sources), rate)
    if within == 1:
        own = (rng.random(own.shape) < rate) * 1.0
    elif within and rate < 1:
        spread = (1 - within) / within
        own = rng.beta(rate * spread, (1 - rate) * spread, own.shape)
    right = rng.random((draws, len(truth))) < np.repeat(own, 4, axis=1)
    statistics = {
        "hits": c.share(right & (truth == 0), truth == 0),
        "balanced": c.balanced(right),
        "accuracy": c.accuracy(right),
    }
    # Where sources err that correlate, percentiles are what is left, and hold skewed rates in 91 to 92 % of draws.
    skewed = within == 0.3 and rate < 0.98
    least = stats.binom.ppf(0.005, draws, 0.91 if skewed else 0.95)
    for name, many in statistics.items():
        found = [c.bounds(many[i], 0.025) for i in range(draws)]
        held = sum(low <= rate <= high for low, high in found)
        assert held >= least, (name, held)
        assert all(low < high for low, high in found)
    if rate == 0.99:  # what percentiles alone would hold
        many = [percentile_bounds(row, 25, 0.025) for row in statistics["hits"].draws]
        assert sum(low <= rate <= high for low, high in many) < 0.7 * draws
