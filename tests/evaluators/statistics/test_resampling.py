"""Sources drawn again: what is drawn, the bounds, and the level at which a bound is zero."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluators.statistics import resampling
from evaluators.statistics.resampling import (
    MIN_SOURCES,
    Estimate,
    Statistic,
    clusters,
    fewest_sources,
    level_at_zero,
    percentile_bounds,
)

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 2, 300)
SOURCES = [f"{TRUTH[i]}-{i % 15}" for i in range(300)]


def uneven(clips=3):
    """12 sources of the first label, 100 of the second."""
    truth = np.repeat([0] * 12 + [1] * 100, clips)
    return truth, [f"s{i // clips}" for i in range(len(truth))]


def level_written_out(sources, alpha):
    """The share of draws below a one-sided bound: Student's quantile, widened for the variance that so few show."""
    return stats.norm.cdf(stats.t.ppf(alpha, sources - 1) * np.sqrt(sources / (sources - 1)))


def clips_of(draw, labels=2):
    """Labels and sources of a few clips; sources may carry several labels."""
    rows = draw(
        st.lists(st.tuples(st.integers(0, labels - 1), st.integers(0, 8)), min_size=2, max_size=40)
    )
    return np.array([t for t, _ in rows]), [f"s{s}" for _, s in rows]


@pytest.mark.parametrize("sources", [5, 12, 100])
@pytest.mark.parametrize("alpha", [0.025, 0.1])
def test_bounds_of_normal_draws_are_students_widened_for_few_sources(sources, alpha):
    draws = stats.norm.ppf((np.arange(40_000) + 0.5) / 40_000)
    reach = stats.t.ppf(1 - alpha, sources - 1) * np.sqrt(sources / (sources - 1))
    low, high = percentile_bounds(draws, sources, alpha)
    assert low == pytest.approx(-high, abs=1e-6)
    assert high == pytest.approx(min(reach, draws[-1]), rel=0.01)


def test_undefined_draws_are_left_out_and_one_source_bounds_nothing():
    draws = np.linspace(0, 1, 101)
    holed = np.concatenate([[np.nan], draws, [np.nan] * 30])
    assert percentile_bounds(holed, 20, 0.1) == percentile_bounds(draws, 20, 0.1)
    assert np.isnan(percentile_bounds(np.full(5, np.nan), 20, 0.1)).all()
    assert percentile_bounds(draws, 1, 0.1) == (-np.inf, np.inf)
    assert np.isfinite(percentile_bounds(draws, 2, 0.1)).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_resample_draws_as_many_sources_of_each_kind_as_there_are(data):
    truth, sources = clips_of(data.draw, labels=3)
    c = clusters(truth, sources, resamples=7, seed=data.draw(st.integers(0, 99)))
    names = sorted(set(sources))
    assert [names[i] for i in c.index] == sources and c.weights.shape == (7, len(names))
    carried = [
        frozenset(t for t, s in zip(truth, sources, strict=True) if s == name) for name in names
    ]
    for kind in set(carried):
        own = [i for i, held in enumerate(carried) if held == kind]
        assert (c.weights[:, own].sum(axis=1) == len(own)).all()
    assert (c.weights == np.round(c.weights)).all() and (c.weights >= 0).all()


def test_sources_are_drawn_with_replacement_equally_often_and_by_the_seed():
    truth, sources = uneven(1)
    c = clusters(truth, sources, seed=1)
    assert c.weights.mean(axis=0) == pytest.approx(np.ones(112), abs=0.08)
    assert c.weights.max() >= 4 and len(c.weights) >= 2000
    assert (c.weights == clusters(truth, sources, seed=1).weights).all()
    assert (c.weights != clusters(truth, sources, seed=2).weights).any()


def test_draws_are_small_and_the_same_numbers_however_they_are_cut_and_kept(monkeypatch):
    truth, sources = uneven()
    kept = clusters(truth, sources, resamples=50).weights
    assert kept.dtype == np.uint8 and not kept.flags.writeable
    monkeypatch.setattr(resampling, "AT_ONCE", 300)  # a few resamples at once
    monkeypatch.setattr(resampling, "KEPT_BY_ALL", 0)
    for _ in range(2):
        assert np.array_equal(clusters(truth, sources, resamples=50).weights, kept)
    assert resampling._kept_by_two.cache_info()[:2] == (1, 1)
    monkeypatch.setattr(resampling, "KEPT_BY_TWO", 0)
    assert np.array_equal(clusters(truth, sources, resamples=50).weights, kept)
    assert resampling._kept_by_two.cache_info()[:2] == (1, 1)


def test_a_source_that_is_drawn_more_often_than_a_byte_holds(monkeypatch):
    """No draw of equal chances gets there in anybody's lifetime."""

    class All:
        def multinomial(self, n, share, size):
            return np.eye(len(share), dtype=np.int64)[np.zeros(size, dtype=int)] * n

    monkeypatch.setattr(np.random, "default_rng", lambda seed: All())
    weights = resampling._drawn(np.zeros(300, dtype=np.intp).tobytes(), 3, 0)
    assert weights[:, 0].tolist() == [300] * 3 and weights[:, 1:].sum() == 0


def test_sums_of_resamples_are_those_of_one_product_of_matrices(monkeypatch):
    truth, sources = uneven()
    c = clusters(truth, sources, resamples=200)
    for totals in (RNG.integers(0, 9, c.sources), RNG.normal(size=(2, 3, c.sources))):
        whole = totals @ c.weights.T.astype(np.float64)
        monkeypatch.setattr(resampling, "AT_ONCE", 0)  # 64 resamples at once
        assert c.resampled(totals) == pytest.approx(whole, rel=1e-12, abs=1e-12)


def test_statistics_subtract_and_index_value_and_draws_together():
    one = Statistic(np.array([1.0, 5.0]), np.array([[1.0, 2.0], [5.0, 9.0]]))
    two = Statistic(np.array([0.5, 1.0]), np.array([[1.0, 1.0], [2.0, 2.0]]))
    gap = (one - two)[1]
    assert gap.value == 4.0 and gap.draws.tolist() == [3.0, 7.0]


def test_intervals_are_widened_by_the_label_with_the_fewest_sources():
    truth, sources = uneven()
    assert fewest_sources(truth, sources) == fewest_sources(1 - truth, sources) == 12
    c = clusters(truth, sources, seed=3)
    assert (c.fewest, c.sources) == (12, 112)
    balanced = c.balanced(RNG.random(len(truth)) < 0.7)
    for level in (0.95, 0.8):
        e = c.estimate(balanced, level)
        tail = level_written_out(12, (1 - level) / 2)
        low, high = np.quantile(balanced.draws, [tail, 1 - tail])
        assert (e.low, e.high) == pytest.approx((low, high))
        assert (e.clips, e.sources, e.p) == (len(truth), 112, None)


def test_one_source_gives_no_interval_and_no_number_that_json_lacks():
    c = clusters(TRUTH, ["a" if t else "b" for t in TRUTH])
    e = c.estimate(c.balanced(TRUTH == 0))
    assert (e.value, e.low, e.high) == (0.5, None, None)
    undefined = c.estimate(Statistic(np.asarray(np.nan), np.full(9, np.nan)))
    assert undefined.low is None and undefined.high is None
    assert json.loads(json.dumps(undefined.to_dict(), allow_nan=False)) == {
        "value": None, "low": None, "high": None,
    }  # fmt: skip
    assert Estimate(0.5, 0.4, None, 3, 2, 0.1).to_dict() == {"value": 0.5, "low": 0.4, "high": None}
    assert MIN_SOURCES == 10  # with fewer no claim is made


def test_value_and_bounds_equal_a_cluster_bootstrap_written_out():
    """Sources drawn within their label, by another generator: what differs is chance."""
    truth = np.repeat([0] * 14 + [1] * 30, 4)
    sources = np.array([f"s{i // 4}" for i in range(len(truth))])
    right = RNG.random(len(truth)) < np.repeat(RNG.uniform(0.4, 1.0, 44), 4)
    rng, kinds = np.random.default_rng(9), [np.arange(14), np.arange(14, 44)]
    rows = [np.flatnonzero(sources == f"s{i}") for i in range(44)]
    draws = []
    for _ in range(4000):
        drawn = [np.concatenate([rows[i] for i in rng.choice(k, len(k))]) for k in kinds]
        draws.append(np.mean([right[clips].mean() for clips in drawn]))
    c = clusters(truth, sources.tolist(), seed=1)
    e = c.estimate(c.balanced(right))
    tail = level_written_out(14, 0.025)
    low, high = np.quantile(draws, [tail, 1 - tail])
    assert e.value == pytest.approx((right[truth == 0].mean() + right[truth == 1].mean()) / 2)
    assert (e.low, e.high) == pytest.approx((low, high), abs=0.01)
    assert c.balanced(right).draws.std() == pytest.approx(np.std(draws), rel=0.06)


def test_few_clusters_keep_their_coverage():
    """The plain percentile interval covers about .88 at 7 clusters; the expanded one must do clearly better."""
    rng = np.random.default_rng(5)
    trials, covered = 120, 0
    for t in range(trials):
        level = rng.normal(0, 0.15, 14)
        truth = np.repeat(np.arange(14) % 2, 12)
        right = rng.random(14 * 12) < np.repeat(np.clip(0.7 + level, 0, 1), 12)
        c = clusters(truth, [str(s) for s in np.repeat(np.arange(14), 12)], seed=t)
        e = c.estimate(c.balanced(right))
        covered += e.low <= 0.7 <= e.high
    assert 0.91 <= covered / trials <= 1.0


def test_rates_of_many_configurations_are_those_of_each():
    c = clusters(TRUTH, SOURCES, resamples=8)
    value, under = RNG.normal(size=(2, 3, 300)), RNG.random((2, 3, 300)) < 0.5
    ratio, mean, balanced = c.ratio(value, under), c.mean(value), c.balanced(value)
    for i in range(2):
        for j in range(3):
            for many, one in (
                (ratio, c.ratio(value[i, j], under[i, j])),
                (mean, c.mean(value[i, j])),
                (balanced, c.balanced(value[i, j])),
            ):
                assert many[i][j].value == pytest.approx(float(one.value))
                assert many[i][j].draws == pytest.approx(one.draws)
    for r in range(8):
        weight = c.weights[r, c.index]
        assert mean.draws[0, 0, r] == pytest.approx(np.average(value[0, 0], weights=weight))
        parts = [np.average(value[0, 0], weights=weight * (TRUTH == k)) for k in (0, 1)]
        assert balanced.draws[0, 0, r] == pytest.approx(np.mean(parts))


def test_totals_are_sums_over_the_clips_of_each_source():
    c = clusters(TRUTH, SOURCES, resamples=8)
    value = RNG.normal(size=300)
    names = sorted(set(SOURCES))
    sums = [value[[s == name for s in SOURCES]].sum() for name in names]
    assert c.totals(value) == pytest.approx(np.array(sums))
    assert c.totals(np.stack([value, -value]))[1] == pytest.approx(-np.array(sums))


# ---- the level at which the bound is zero: the one p


def smallest_level(draws, sources):
    """Of so many draws: a share of one among them."""
    tail = stats.norm.ppf(1 / (len(draws) + 1)) * np.sqrt((sources - 1) / sources)
    return stats.t.cdf(tail, sources - 1)


some_draws = st.one_of(
    st.lists(st.floats(-1, 1), min_size=1, max_size=60),
    st.lists(st.integers(-3, 6).map(float), min_size=1, max_size=60),  # with ties, as few clips have
    st.builds(
        lambda seed, shift: list(np.random.default_rng(seed).normal(shift, 1, 400)),
        st.integers(0, 99), st.floats(-1, 4),
    ),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(some_draws, st.integers(2, 60), st.floats(1e-6, 0.6))
def test_p_is_below_a_level_exactly_where_the_bound_at_that_level_is_above_zero(
    draws, sources, alpha
):
    draws = np.array(draws)
    p = level_at_zero(draws, sources)
    low, _ = percentile_bounds(draws, sources, alpha)
    assert 0 < p <= 1
    if abs(p - alpha) < 1e-7 * alpha or abs(low) < 1e-12:
        return  # equal but for rounding
    if p < alpha:
        assert low > 0
    elif alpha > smallest_level(draws, sources) * (1 + 1e-7):
        assert low <= 0


@settings(max_examples=200, deadline=None)
@given(some_draws, st.integers(2, 60), st.floats(0, 2))
def test_p_falls_when_the_gain_grows(draws, sources, more):
    draws = np.array(draws)
    assert level_at_zero(draws + more, sources) <= level_at_zero(draws, sources) + 1e-12


def test_p_grows_when_sources_are_fewer_and_is_students_for_normal_draws():
    draws = stats.norm.ppf((np.arange(40_000) + 0.5) / 40_000)
    for sources in (3, 12, 100):
        for z in (0.0, 1.0, 2.5):
            expected = stats.t.sf(z * np.sqrt((sources - 1) / sources), sources - 1)
            assert level_at_zero(draws + z, sources) == pytest.approx(expected, rel=0.02)
    levels = [level_at_zero(draws + 2, sources) for sources in (2, 3, 5, 20, 500)]
    assert levels == sorted(levels, reverse=True)


def test_no_gain_has_a_p_of_one_and_resamples_tell_no_smaller_share_than_one_of_them():
    assert level_at_zero(np.zeros(50), 20) == level_at_zero(-np.ones(50), 20) == 1
    assert level_at_zero(np.ones(50), 1) == 1  # one source claims nothing
    assert level_at_zero(np.full(50, np.nan), 20) == 1
    for count in (10, 4000):
        found = level_at_zero(np.ones(count), 20)
        assert found == pytest.approx(smallest_level(np.ones(count), 20)) and found > 0
    # One draw of many below zero, however far above the next is, tells no smaller share either.
    draws = np.concatenate([[-1e-9], np.ones(999)])
    assert level_at_zero(draws, 20) == pytest.approx(smallest_level(draws, 20))


def test_undefined_draws_say_nothing_about_p_and_their_order_neither():
    draws = np.random.default_rng(2).normal(1, 1, 500)
    holed = np.concatenate([[np.nan] * 9, draws[::-1]])
    assert level_at_zero(holed, 20) == level_at_zero(draws, 20)
