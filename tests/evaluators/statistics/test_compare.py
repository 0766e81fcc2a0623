"""The one comparison. Its p is the level at which its bound is zero, so the two never disagree."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_statistics import bounds as student_bounds
from scipy import stats

from evaluators.statistics import metrics
from evaluators.statistics.compare import (
    ALPHA,
    compare,
    compare_many,
    compare_pairs,
    compare_scores,
    difference,
    estimate,
    holm,
    mean_of,
    resample,
    resample_scores,
    step_down,
)
from evaluators.statistics.resampling import Statistic, clusters, level_at_zero, percentile_bounds
from evaluators.targets import Predictions, Scores, Targets

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 2, 300)
SOURCES = [f"{TRUTH[i]}-{i % 15}" for i in range(300)]


def targets(truth, sources):
    ids = tuple(f"c{i}" for i in range(len(truth)))
    return Targets(("x", "y"), ids, np.asarray(truth), np.asarray(sources))


def said(t, right, name="m"):
    """Predictions that are right where `right` is."""
    return Predictions(name, t, np.where(right, t.truth, 1 - t.truth))


def answers(share, t=None, seed=0):
    t = targets(TRUTH, SOURCES) if t is None else t
    return said(t, np.random.default_rng(seed).random(len(t)) < share, f"{share}")


def level_written_out(sources, alpha):
    """The share of draws below a one-sided bound: Student's quantile, widened for the variance that so few show."""
    return stats.norm.cdf(stats.t.ppf(alpha, sources - 1) * np.sqrt(sources / (sources - 1)))


def uneven(clips=3):
    """12 sources of the first label, 100 of the second."""
    truth = np.repeat([0] * 12 + [1] * 100, clips)
    return targets(truth, [f"s{i // clips}" for i in range(len(truth))])


# ---- one


def test_an_estimate_holds_the_value_and_narrows_with_sources():
    few, many = (
        estimate(answers(0.8, targets(TRUTH, [f"{TRUTH[i]}-{i % n}" for i in range(300)])))
        for n in (6, 60)
    )
    for e in (few, many):
        assert e.low < e.value < e.high and e.clips == 300 and e.p is None
    assert few.sources == 12 < many.sources
    one = answers(0.8)
    assert estimate(one).value == pytest.approx(metrics.balanced_accuracy(TRUTH, one.right))
    assert estimate(one, "accuracy").value == pytest.approx(one.right.mean())
    wide, narrow = (estimate(one, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert estimate(one, seed=1) == estimate(one, seed=1) != estimate(one, seed=2)


def test_what_ranks_nothing_has_no_auroc():
    with pytest.raises(ValueError, match=r"^0\.8: nothing ranks its clips"):
        estimate(answers(0.8), "auroc")


# ---- two


def test_equal_predictions_have_no_difference():
    one = answers(0.8)
    d = compare(one, one)
    assert (d.value, d.low, d.high, d.p) == (0, 0, 0, 1)


def test_a_difference_turns_its_sign_with_the_order():
    a, b = answers(0.8), answers(0.7, seed=1)
    ab, ba = compare(a, b), compare(b, a)
    assert ab.value == pytest.approx(-ba.value) and ab.low == pytest.approx(-ba.high, abs=1e-9)


def test_p_of_a_difference_is_that_of_its_direction():
    better, worse = answers(0.9), answers(0.6, seed=1)
    there, back = compare(better, worse), compare(worse, better)
    assert there.value > 0 and there.p < 0.01 and back.p > 0.99


def test_the_rule_is_one_sided_at_two_and_a_half_percent():
    a, b = answers(0.8), answers(0.7, seed=1)
    assert ALPHA == 0.025
    assert compare(a, b) == compare(a, b, alpha=0.025) != compare(a, b, alpha=0.05)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 999), st.floats(0.4, 0.95), st.floats(0.4, 0.95), st.sampled_from([ALPHA, 0.1])
)
def test_p_is_below_alpha_exactly_where_the_lower_bound_is_above_zero(seed, one, other, alpha):
    rng = np.random.default_rng(seed)
    truth = np.repeat([0, 1], 60)
    t = targets(truth, [f"s{i // 5}" for i in range(120)])
    a, b = (said(t, rng.random(120) < share) for share in (one, other))
    d = compare(a, b, alpha=alpha)
    if abs(d.low) > 1e-12 and abs(d.p - alpha) > 1e-9:
        assert (d.p < alpha) == (d.low > 0)


def test_p_falls_when_the_gain_grows_and_its_spread_stays():
    t = uneven()
    c = resample(t)
    gain = c.balanced(answers(0.6, t, seed=1).right) - c.balanced(answers(0.5, t).right)
    more = [replace(gain, value=gain.value + x) for x in np.linspace(-0.2, 0.4, 13)]
    p = [c.p_of_gain(one) for one in more]
    assert p == sorted(p, reverse=True) and p[0] > 0.5 and p[-1] < 1e-6
    low = [c.bounds_of_gain(one, ALPHA)[0] for one in more]
    assert np.diff(low) == pytest.approx(0.05)
    assert compare(answers(0.5, t), answers(0.5, t)).p == 1


def test_two_sided_is_twice_the_smaller_one():
    c = clusters(TRUTH, SOURCES)
    for a, b in ((0.8, 0.7), (0.7, 0.8), (0.75, 0.75), (0.95, 0.5)):
        x, y = (c.balanced(answers(s, seed=i).right) for i, s in enumerate((a, b)))
        there, back = difference(c, x, y).p, difference(c, y, x).p
        both = difference(c, x, y, two_sided=True)
        assert both.p == pytest.approx(min(1.0, 2 * min(there, back)))
        assert both.p == pytest.approx(difference(c, y, x, two_sided=True).p)
        assert (both.low, both.high) == (difference(c, x, y).low, difference(c, x, y).high)
    same = difference(c, x, x, two_sided=True)
    assert (same.value, same.p) == (0, 1)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "accuracy", "auroc"])
def test_every_metric_is_compared_on_the_same_resamples(metric):
    t = uneven()
    rng = np.random.default_rng(1)
    a, b = (
        Predictions(n, t, rng.integers(0, 2, len(t)), score=rng.normal(s * (t.truth == 0)))
        for n, s in (("a", 1.0), ("b", 0.2))
    )
    c = resample(t, seed=4)
    one, other = (metrics.METRICS[metric](c, x) for x in (a, b))
    d = compare(a, b, metric, seed=4, alpha=0.1)
    assert d.value == pytest.approx(float(one.value - other.value))
    if metric == "auroc":  # no mean: percentiles of its resamples
        low, high = percentile_bounds(one.draws - other.draws, 12, 0.1)
        p = level_at_zero((one - other).draws, 12)
    else:
        gained = a.right * 1.0 - b.right
        balanced = [np.mean(t.truth == k) for k in (0, 1)] if metric == "accuracy" else [0.5, 0.5]
        low, high, p = student_bounds(t.truth, t.sources, gained, balanced, 0.1)
    assert (d.low, d.high, d.p) == pytest.approx((low, high, p))
    assert compare(a, a, metric).p == 1


# ---- many


def test_holm_is_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.001, 0.01, 0.02, 0.02, 0.3, 0.5, 0.9, 1.0]), max_size=7))
def test_holm_adjusts_to_the_smallest_level_at_which_the_step_down_rejects(p):
    def rejected(level):
        out = set()
        for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[i] * (len(p) - rank) > level + 1e-12:
                break
            out.add(i)
        return out

    adjusted = holm(p)
    assert len(adjusted) == len(p)
    for i, level in enumerate(adjusted):
        assert 0 <= level <= 1
        assert level == 1 or i in rejected(level)
        assert i not in rejected(level - 1e-9)


def test_holms_step_down_is_what_is_written_out():
    """The strongest first, at alpha over as many as are left; p never below that of a stronger one."""
    c = clusters(TRUTH, SOURCES, seed=2)
    shares = (0.72, 0.9, 0.78, 0.6)
    reference = c.balanced(answers(0.65, seed=9).right)
    gains = [c.balanced(answers(s, seed=i).right) - reference for i, s in enumerate(shares)]
    plain = [c.p_of_gain(g) for g in gains]
    found = step_down(c, gains, alpha=0.05)
    order = sorted(range(4), key=lambda i: plain[i])
    assert order == [1, 2, 0, 3]  # by the shares' size
    least = 0.0
    for left, i in zip((4, 3, 2, 1), order, strict=True):
        least = max(least, min(1.0, left * plain[i]))
        assert found[i].p == pytest.approx(least)
        assert (found[i].low, found[i].high) == c.bounds_of_gain(gains[i], 0.05 / left)
        assert found[i].value == pytest.approx(float(gains[i].value))
    assert step_down(c, []) == []


def test_many_rivals_are_the_steps_down_from_one_reference_in_their_order():
    reference, rivals = answers(0.6, seed=9), [answers(s, seed=i) for i, s in enumerate((0.7, 0.9))]
    found = compare_many(rivals, reference, seed=3)
    c = resample(reference.targets, seed=3)
    base = c.balanced(reference.right)
    assert found == step_down(c, [c.balanced(r.right) - base for r in rivals])
    assert found[1].value > found[0].value and found[1].p <= found[0].p
    assert compare_many([], reference) == []
    (alone,) = compare_many(rivals[:1], reference, seed=3)
    assert alone == compare(rivals[0], reference, seed=3)
    many = compare_many(rivals, reference, "accuracy", seed=3, alpha=0.1)
    assert many[0].value == pytest.approx(rivals[0].right.mean() - reference.right.mean())
    assert many[1].low > compare_many(rivals, reference, "accuracy", seed=3)[1].low


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.lists(st.floats(0.5, 0.9), min_size=1, max_size=5))
def test_a_corrected_p_is_below_alpha_only_where_the_bound_shown_and_all_before_it_pass(
    seed, shares
):
    rng = np.random.default_rng(seed)
    truth = np.repeat([0, 1], 60)
    t = targets(truth, [f"s{i // 3}" for i in range(120)])
    reference = said(t, rng.random(120) < 0.6)
    found = compare_many([said(t, rng.random(120) < s) for s in shares], reference)
    for one in found:
        before = [other for other in found if other.p <= one.p]
        if one.p < ALPHA:
            assert all(other.low > 0 for other in before)


def test_without_a_difference_a_family_errs_in_at_most_two_and_a_half_percent():
    """Three rivals as good as the reference, sources that differ: whether any of them passes."""
    rng = np.random.default_rng(7)
    truth = np.repeat([0, 1], 72)
    t = targets(truth, [f"s{i // 6}" for i in range(144)])
    trials, errors = 300, 0
    for trial in range(trials):
        share = np.clip(0.75 + rng.normal(0, 0.12, (4, 24)), 0.02, 0.98)
        four = [said(t, rng.random(144) < np.repeat(s, 6)) for s in share]
        errors += any(d.p < ALPHA for d in compare_many(four[1:], four[0], seed=trial))
    assert errors <= stats.binom.ppf(0.99, trials, ALPHA), errors


def test_a_real_gain_is_seen():
    found = [
        compare(answers(0.85, seed=s), answers(0.65, seed=99 + s)).p < ALPHA for s in range(20)
    ]
    assert sum(found) >= 18


# ---- all pairs


def test_pairs_are_two_sided_differences_with_holm_over_them():
    four = [answers(s, seed=i) for i, s in enumerate((0.6, 0.7, 0.8, 0.82))]
    found = compare_pairs(four, resamples=500, seed=3)
    assert [(f["a"], f["b"]) for f in found] == list(
        itertools.combinations([x.name for x in four], 2)
    )
    c = resample(four[0].targets, resamples=500, seed=3)
    balanced = [c.balanced(x.right) for x in four]
    for f, (a, b) in zip(found, itertools.combinations(range(4), 2), strict=True):
        d = difference(c, balanced[a], balanced[b], two_sided=True)
        assert f["difference"] == pytest.approx(d.value)
        assert (f["low"], f["high"], f["p"]) == pytest.approx((d.low, d.high, d.p))
        # Of a 95 % interval and a two-sided p: one without zero is significant at 5 %.
        assert (f["p"] < 0.05) == (f["low"] > 0 or f["high"] < 0)
    assert [f["p_holm"] for f in found] == pytest.approx(holm([f["p"] for f in found]))


def test_only_the_pairs_asked_for_are_corrected_for():
    three = [answers(s, seed=i) for i, s in enumerate((0.6, 0.7, 0.8))]
    whole = compare_pairs(three, resamples=200)
    some = compare_pairs(three, pairs=[(2, 0)], resamples=200)
    assert [(f["a"], f["b"]) for f in some] == [("0.8", "0.6")]
    assert some[0]["p_holm"] == some[0]["p"] == pytest.approx(whole[1]["p"])
    assert some[0]["difference"] == pytest.approx(-whole[1]["difference"])
    assert compare_pairs(three, pairs=[]) == compare_pairs(three[:1]) == []


def test_only_predictions_of_the_same_clips_are_compared():
    one, two = answers(0.6), answers(0.7)
    for order in (np.arange(300)[::-1], np.arange(299)):
        with pytest.raises(AssertionError):
            compare_pairs([one, two.take(order)])


def test_undefined_differences_claim_nothing():
    c = clusters(TRUTH, SOURCES, resamples=9)
    nothing = Statistic(np.asarray(np.nan), np.full(9, np.nan))
    d = difference(c, nothing, nothing)
    assert d.low is None and d.high is None and d.p == 1


def test_numbers_of_today_are_drawn_with_seed_0():
    """A default is a part of every published interval: another one moves them all."""
    t = targets(TRUTH, SOURCES)
    one, two = said(t, RNG.random(300) < 0.8), said(t, RNG.random(300) < 0.7)
    assert np.array_equal(resample(t).weights, resample(t, seed=0).weights)
    assert estimate(one) == estimate(one, seed=0) != estimate(one, seed=1)
    assert compare(one, two) == compare(one, two, seed=1)  # of means nothing is drawn
    by = RNG.normal(size=(2, 300))
    one, two = (
        Predictions("x", t, x.decided, score=y) for x, y in zip((one, two), by, strict=True)
    )
    for function, a in ((compare, one), (compare_many, [one])):
        found = [function(a, two, "auroc", **seed) for seed in ({}, {"seed": 0}, {"seed": 1})]
        assert found[0] == found[1] != found[2]


# ---- scores of samples


def scores(value, sources=None, name="m"):
    ids = tuple(f"s{i}" for i in range(len(value)))
    return Scores(
        name, ids, np.asarray(ids if sources is None else sources), np.asarray(value, float)
    )


def test_the_interval_of_scores_is_that_of_their_mean_and_grows_with_clusters():
    value = RNG.normal(3, 2, 400)
    a, b = scores(value), scores(value - RNG.normal(0.3, 1, 400), name="b")
    (pair,) = compare_scores([(a, b)], resamples=4000)
    gap = a.value - b.value
    assert pair["difference"] == pytest.approx(gap.mean()) and (pair["a"], pair["b"]) == ("m", "b")
    half = stats.t.ppf(0.975, 399) * gap.std(ddof=1) / 20
    assert pair["low"] == pytest.approx(gap.mean() - half, abs=0.01)
    assert pair["high"] == pytest.approx(gap.mean() + half, abs=0.01)
    expected = (stats.t.ppf(0.975, 399) + stats.t.ppf(0.8, 399)) * gap.std(ddof=1) / 20
    assert pair["detectable"] == pytest.approx(expected, rel=0.05)
    each = [
        np.repeat(one.value, 4) for one in (a, b)
    ]  # four copies of every sample, under its source
    groups = np.repeat(a.sources, 4)
    (copied,) = compare_scores([tuple(scores(v, groups) for v in each)], resamples=4000)
    for key in ("difference", "low", "high", "p", "detectable"):
        assert copied[key] == pytest.approx(pair[key]), key


def test_equal_scores_have_no_difference_and_shares_that_are_alike_have_a_width():
    a = scores(RNG.random(30))
    (same,) = compare_scores([(a, a)], resamples=200)
    assert [same[k] for k in ("difference", "low", "high", "p")] == [0, 0, 0, 1]
    assert same["detectable"] is None
    (gap,) = compare_scores([(scores(np.ones(25)), scores(np.zeros(25)))], resamples=200)
    assert gap["difference"] == 1 and gap["low"] < 0.95 and gap["detectable"] is None
    c = resample_scores(a, resamples=200)
    assert (
        mean_of(c, np.ones(30)).unmoved.weight.any()
        and mean_of(c, np.full(30, 7.0)).unmoved is None
    )


def test_pairs_of_different_samples_share_one_correction():
    value = RNG.normal(0.3, 1, (4, 60))
    pairs = [(scores(value[0]), scores(value[1])), (scores(value[2][:30]), scores(value[3][:30]))]
    both = compare_scores(pairs, resamples=400)
    alone = [compare_scores([pair], resamples=400)[0] for pair in pairs]
    assert [p["p"] for p in both] == [p["p"] for p in alone]
    assert [p["p_holm"] for p in both] == holm([p["p"] for p in alone])
    assert all(p["detectable"] > q["detectable"] for p, q in zip(both, alone, strict=True))
    assert compare_scores([]) == []


def test_a_true_difference_of_the_size_called_detectable_is_found_in_eight_of_ten_sets():
    rng, found, size = np.random.default_rng(1), 0, 0.42
    told = []
    for _ in range(300):
        noise = rng.normal(0, 1, 20)[np.repeat(np.arange(20), 3)] * 0.5 + rng.normal(0, 0.5, 60)
        groups = np.repeat(np.arange(20), 3).astype(str)
        pair = (scores(noise + size, groups), scores(np.zeros(60), groups))
        (one,) = compare_scores([pair], resamples=400)
        found += one["p"] < 0.05
        told.append(one["detectable"])
    power = found / 300
    error = np.sqrt(0.8 * 0.2 / 300)
    expected = stats.norm.cdf(size / np.mean(told) * 2.92 - 2.09)  # its own power at this size
    assert abs(power - expected) < 3.5 * error
    assert 0.3 < np.mean(told) < 0.5


def test_few_sources_have_no_detectable_difference():
    one = scores([1.0, 0.0, 1.0], ["a", "a", "a"])
    (pair,) = compare_scores([(one, scores([0.0, 0.0, 1.0], ["a", "a", "a"]))], resamples=200)
    assert pair["low"] is None and pair["detectable"] is None and pair["p"] == 1


def test_scores_are_put_in_the_order_of_ids():
    a = scores([1.0, 2.0, 3.0], ["x", "y", "z"]).of(("s2", "s0"))
    assert (a.ids, a.sources.tolist(), a.value.tolist()) == (("s2", "s0"), ["z", "x"], [3.0, 1.0])


def test_predictions_have_a_detectable_difference_too():
    a, b = (said(targets(TRUTH, SOURCES), RNG.random(300) < p) for p in (0.7, 0.8))
    (pair,) = compare_pairs([a, b], resamples=1000)
    width = pair["high"] - pair["low"]
    assert pair["detectable"] == pytest.approx(width / 2 * 3.0 / 2.14, rel=0.1)
