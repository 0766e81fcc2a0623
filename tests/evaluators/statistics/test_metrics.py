import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from evaluators.classifier import log_odds
from evaluators.statistics import metrics
from evaluators.statistics.calibration import fit_bias
from evaluators.statistics.compare import holm
from evaluators.statistics.metrics import auroc_statistic
from evaluators.statistics.resampling import Statistic, clusters, fewest_sources, percentile_bounds

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 2, 300)
MARGIN = RNG.normal(0, 1, 300) + np.where(TRUTH == 0, 0.8, -0.4)
LOGP = np.stack([-np.logaddexp(0, -MARGIN), -np.logaddexp(0, MARGIN)], -1).astype(np.float32)
SOURCES = [f"{TRUTH[i]}-{i % 15}" for i in range(300)]


def test_metrics_equal_scikit_learn():
    right = metrics.decide(LOGP) == TRUTH
    assert metrics.balanced_accuracy(TRUTH, right) == pytest.approx(
        reference.balanced_accuracy_score(TRUTH, np.where(right, TRUTH, 1 - TRUTH))
    )
    assert metrics.auroc(TRUTH, MARGIN) == pytest.approx(
        reference.roc_auc_score(TRUTH == 0, MARGIN)
    )
    assert metrics.auroc(TRUTH, np.round(MARGIN)) == pytest.approx(
        reference.roc_auc_score(TRUTH == 0, np.round(MARGIN))
    )
    weight = metrics.balanced_weights(TRUTH)
    assert metrics.nll(TRUTH, LOGP) == pytest.approx(
        reference.log_loss(TRUTH, np.exp(LOGP.astype(float)), sample_weight=weight), rel=1e-5
    )


def test_a_missing_class_counts_for_nothing():
    truth = np.zeros(10, int)
    assert metrics.balanced_accuracy(truth, np.arange(10) < 7) == pytest.approx(0.7)
    assert np.isnan(metrics.auroc(truth, np.arange(10.0)))


def test_margins_are_log_odds_against_all_other_labels():
    three = np.log(np.array([[0.5, 0.3, 0.1]]))
    assert log_odds(three)[0] == pytest.approx(np.log(0.5 / 0.4))


def test_fitted_bias_is_the_best_of_all():
    bias = fit_bias(TRUTH, MARGIN)
    best = max(
        metrics.balanced_accuracy(TRUTH, (MARGIN + b > 0) == (TRUTH == 0))
        for b in np.linspace(-5, 5, 4001)
    )
    assert metrics.balanced_accuracy(TRUTH, metrics.decide(LOGP, bias) == TRUTH) >= best - 1e-9


def test_estimate_holds_the_value_and_narrows_with_sources():
    right = metrics.decide(LOGP) == TRUTH
    few, many = (
        metrics.estimate(TRUTH, right, [f"{TRUTH[i]}-{i % n}" for i in range(300)]) for n in (6, 60)
    )
    for e in (few, many):
        assert e.low < e.value < e.high and e.clips == 300
    assert few.sources == 12 < many.sources


def test_one_source_gives_no_interval():
    e = metrics.estimate(TRUTH, metrics.decide(LOGP) == TRUTH, ["a" if t else "b" for t in TRUTH])
    assert e.low == -np.inf and e.high == np.inf


@pytest.mark.parametrize("first", [12, 6, 18])
def test_sign_flip_equals_enumeration_with_labels_weighing_the_same(first):
    truth = np.array([0] * first + [1] * (24 - first))
    sources = [f"{t}-{i % 4}" for i, t in enumerate(truth)]
    gain = np.random.default_rng(first).integers(-1, 2, 24).astype(float)
    parts = {}
    for g, s, w in zip(gain, sources, metrics.balanced_weights(truth), strict=True):
        parts[s] = parts.get(s, 0.0) + g * w
    values = np.array([v for v in parts.values() if v])
    exact = np.mean(
        [
            np.dot(signs, values) >= values.sum() - 1e-12
            for signs in itertools.product((-1, 1), repeat=len(values))
        ]
    )
    c = clusters(truth, sources)
    assert metrics.sign_flip(c, gain) == pytest.approx(exact, abs=0.02)


def test_equal_prompts_have_no_difference():
    right = metrics.decide(LOGP) == TRUTH
    d = metrics.paired_difference(TRUTH, right, right, SOURCES)
    assert (d.value, d.low, d.high, d.p) == (0, 0, 0, 1)


def test_difference_turns_its_sign_with_the_order():
    a, b = metrics.decide(LOGP) == TRUTH, metrics.decide(LOGP, 1.0) == TRUTH
    ab, ba = (
        metrics.paired_difference(TRUTH, a, b, SOURCES),
        metrics.paired_difference(TRUTH, b, a, SOURCES),
    )
    assert ab.value == pytest.approx(-ba.value) and ab.low == pytest.approx(-ba.high, abs=1e-9)


def test_holm_is_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_few_clusters_keep_their_coverage():
    """The plain percentile interval covers about .88 at 7 clusters; the expanded one must do clearly better."""
    rng = np.random.default_rng(5)
    trials, covered = 120, 0
    for t in range(trials):
        level = rng.normal(0, 0.15, 14)
        truth = np.repeat(np.arange(14) % 2, 12)
        right = rng.random(14 * 12) < np.repeat(np.clip(0.7 + level, 0, 1), 12)
        e = metrics.estimate(truth, right, [str(s) for s in np.repeat(np.arange(14), 12)], seed=t)
        covered += e.low <= 0.7 <= e.high
    assert 0.91 <= covered / trials <= 1.0


def test_every_statistic_of_every_resample_equals_a_plain_loop():
    """One resample is the clips of the drawn sources, each as often as it was drawn."""
    score = np.round(MARGIN, 1)  # with ties
    c = clusters(TRUTH, SOURCES, resamples=20, seed=4)
    decided, probability = np.where(score > 0, 0, 1), 1 / (1 + np.exp(-score))
    found = metrics.describe(c, decided, probability, score)
    sure = np.maximum(probability, 1 - probability)
    for r in range(20):
        rows = np.repeat(np.arange(300), c.weights[r, c.index].astype(int))
        t, d, p, right = TRUTH[rows], decided[rows], probability[rows], (decided == TRUTH)[rows]
        own = np.where(t == 0, p, 1 - p)
        cell = np.clip(np.ceil(sure[rows] * 15).astype(int) - 1, 0, 14)
        expected = {
            "accuracy": right.mean(),
            "balanced_accuracy": reference.balanced_accuracy_score(t, d),
            "hit_rate": (d == 0)[t == 0].mean(),
            "false_alarm_rate": (d == 0)[t == 1].mean(),
            "auroc": reference.roc_auc_score(t == 0, score[rows]),
            "brier": reference.brier_score_loss(t == 0, p),
            "nll": -np.log(own).mean(),
            "ece": sum(
                abs((sure[rows] - right)[cell == b].sum()) / len(rows) for b in np.unique(cell)
            ),
            "confidence_gap": sure[rows][right].mean() - sure[rows][~right].mean(),
        }
        for name, value in expected.items():
            assert found[name].draws[r] == pytest.approx(value, abs=1e-9), name
    assert found["auroc"].value == pytest.approx(reference.roc_auc_score(TRUTH == 0, score))
    assert found["brier"].value == pytest.approx(
        reference.brier_score_loss(TRUTH == 0, probability)
    )


def test_sign_flip_of_single_clips_is_mcnemars_and_wilcoxons_test():
    truth = np.zeros(40, int)
    c = clusters(truth, [str(i) for i in range(40)])
    a, b = np.arange(40) % 3 > 0, np.arange(40) % 5 > 1
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    theirs = mcnemar(table, exact=True).pvalue
    gain = a.astype(float) - b
    assert metrics.sign_flip(c, gain, two_sided=True) == pytest.approx(theirs, abs=0.01)
    better = stats.binomtest(int((gain > 0).sum()), int((gain != 0).sum()), alternative="greater")
    assert metrics.sign_flip(c, gain) == pytest.approx(better.pvalue, abs=0.01)
    x = np.random.default_rng(2).normal(0.3, 1, 40)
    ranks = np.sign(x) * stats.rankdata(np.abs(x))
    exact = stats.wilcoxon(x, alternative="greater", method="exact").pvalue
    assert metrics.sign_flip(c, ranks) == pytest.approx(exact, abs=0.01)


def test_sign_flips_of_many_gains_are_those_of_each():
    rng = np.random.default_rng(6)
    c = clusters(TRUTH, SOURCES)
    gains = rng.integers(-1, 2, (4, 300)).astype(float)
    together = metrics.sign_flip(c, gains, two_sided=True)
    for gain, p in zip(gains, together, strict=True):
        assert metrics.sign_flip(c, gain, two_sided=True) == pytest.approx(p, abs=0.01)


def test_holm_equals_statsmodels():
    p = np.random.default_rng(1).uniform(0, 0.2, 12)
    assert holm(list(p)) == pytest.approx(multipletests(p, method="holm")[1])


def test_statistics_do_not_depend_on_the_order_of_clips():
    order = np.random.default_rng(8).permutation(300)
    names = np.array(SOURCES)
    one, two = (
        metrics.describe(
            clusters(TRUTH[i], names[i], resamples=50), metrics.decide(LOGP[i]),
            np.exp(LOGP[i, 0]), MARGIN[i],
        )
        for i in (np.arange(300), order)
    )  # fmt: skip
    for name in one:
        assert one[name].draws == pytest.approx(two[name].draws, abs=1e-9), name


def test_a_rate_without_clips_is_undefined_not_zero():
    c = clusters(np.zeros(20, int), [str(i % 5) for i in range(20)])
    found = metrics.rates(c, np.arange(20) % 2)
    assert np.isnan(found["false_alarm_rate"].value) and found["hit_rate"].value == 0.5


# ---- against plain references


def level_written_out(sources, alpha):
    """The share of draws below a one-sided bound: Student's quantile, widened for the variance that so few show."""
    return stats.norm.cdf(stats.t.ppf(alpha, sources - 1) * np.sqrt(sources / (sources - 1)))


def uneven(clips=3):
    """12 sources of the first label, 100 of the second."""
    truth = np.repeat([0] * 12 + [1] * 100, clips)
    return truth, [f"s{i // clips}" for i in range(len(truth))]


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


def test_intervals_are_widened_by_the_label_with_the_fewest_sources():
    truth, sources = uneven()
    assert fewest_sources(truth, sources) == 12
    assert fewest_sources(1 - truth, sources) == 12
    c = clusters(truth, sources, seed=3)
    assert (c.fewest, c.sources) == (12, 112)
    right = RNG.random(len(truth)) < 0.7
    for level in (0.95, 0.8):
        e = metrics.estimate(truth, right, sources, level=level, seed=3)
        tail = level_written_out(12, (1 - level) / 2)
        low, high = np.quantile(c.balanced(right).draws, [tail, 1 - tail])
        assert (e.low, e.high) == pytest.approx((low, high))
        assert (e.clips, e.sources) == (len(truth), 112)


def test_each_bound_of_a_difference_is_one_sided_at_alpha():
    truth, sources = uneven()
    a, b = RNG.random(len(truth)) < 0.8, RNG.random(len(truth)) < 0.6
    c = clusters(truth, sources, seed=5)
    for alpha in (0.025, 0.0125, 0.2):
        d = metrics.paired_difference(truth, a, b, sources, alpha=alpha, seed=5)
        per = [c.weights[:, c.index] * (truth == k) for k in (0, 1)]
        drawn = np.mean([(w @ (a.astype(float) - b)) / w.sum(1) for w in per], axis=0)
        tail = level_written_out(12, alpha)
        assert (d.low, d.high) == pytest.approx(tuple(np.quantile(drawn, [tail, 1 - tail])))
        assert d.value == pytest.approx(
            metrics.balanced_accuracy(truth, a) - metrics.balanced_accuracy(truth, b)
        )
        assert (d.clips, d.sources) == (len(truth), 112)
    assert metrics.paired_difference(truth, a, b, sources, seed=5) == metrics.paired_difference(
        truth, a, b, sources, alpha=0.025, seed=5
    )


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


def test_the_one_sided_sign_flip_test_keeps_its_level_and_sees_a_gain():
    """Symmetric gains of whole sources: at a level of 5 % it errs 5 % of the time, for either side."""
    truth = np.repeat([0, 1], 36)
    c = clusters(truth, [str(i // 3) for i in range(72)])
    rng = np.random.default_rng(0)
    gains = np.repeat(rng.normal(size=(300, 24)), 3, axis=1)
    p = metrics.sign_flip(c, gains)
    for level in (0.05, 0.2):
        errors = (p <= level).sum(), (p >= 1 - level).sum()
        low, high = stats.binom.ppf([0.005, 0.995], 300, level)
        assert all(low <= e <= high for e in errors), (level, errors)
    two = metrics.sign_flip(c, gains, two_sided=True)
    assert two == pytest.approx(np.minimum(1, 2 * np.minimum(p, 1 - p)), abs=0.02)
    assert metrics.sign_flip(c, np.ones(72)) < 1e-4 and metrics.sign_flip(c, -np.ones(72)) == 1
    assert metrics.sign_flip(c, np.ones(72)) > 0 and metrics.sign_flip(c, np.zeros(72)) == 1


def test_p_of_a_difference_is_that_of_its_direction():
    better, worse = RNG.random(300) < 0.9, RNG.random(300) < 0.6
    there = metrics.paired_difference(TRUTH, better, worse, SOURCES)
    back = metrics.paired_difference(TRUTH, worse, better, SOURCES)
    assert there.value > 0 and there.p < 0.01 and back.p > 0.99


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


def test_decisions_are_the_likeliest_label_with_the_first_shifted():
    logp = np.log(np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0.3, 0.3, 0.4], [0.5, 0.5, 0.0001]]))
    assert metrics.decide(logp).tolist() == [1, 0, 2, 0]
    assert metrics.decide(logp, np.log(3)).tolist() == [0, 0, 0, 0]
    assert metrics.decide(logp, -np.log(2)).tolist() == [1, 1, 2, 1]
    assert metrics.decide(logp[None], 9.0).shape == (1, 4)
    assert logp[0, 0] == np.log(0.2)  # what is given stays as it is


def fitted_by_trying(truth, margin):
    """Cuts half-way between neighbours, one beyond each end; the middle of the longest run of equally good ones."""
    values = sorted(set(margin))
    inner = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    cuts = [values[0] - 1, *inner, values[-1] + 1]
    right = [
        metrics.balanced_accuracy(truth, np.where(margin > cut, 0, 1) == truth) for cut in cuts
    ]
    runs, run = [], []
    for cut, share in zip(cuts, right, strict=True):
        if share > max(right) - 1e-9:
            run.append(cut)
        elif run:
            runs, run = [*runs, run], []
    runs += [run] if run else []
    widest = max(r[-1] - r[0] for r in runs)
    found = [r for r in runs if r[-1] - r[0] > widest - 1e-9]
    return min(found, key=lambda r: abs(np.mean(r))), found


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-6, 6)), min_size=1, max_size=14))
def test_fitted_bias_is_the_middle_of_the_widest_best_stretch(rows):
    truth = np.array([t for t, _ in rows])
    margin = np.array([float(m) for _, m in rows])
    nearest, equal = fitted_by_trying(truth, margin)
    bias = fit_bias(truth, margin)
    middles = [-(r[0] + r[-1]) / 2 for r in equal]
    assert min(abs(bias - m) for m in middles) < 1e-9
    distance = [abs(np.mean(r)) for r in equal]
    if len(equal) == 1 or min(distance) < sorted(distance)[1] - 1e-9:
        assert bias == pytest.approx(-(nearest[0] + nearest[-1]) / 2)


def test_missing_labels_weigh_nothing_and_weights_sum_to_one():
    truth = np.array([0, 0, 0, 2, 2, 5])
    assert metrics.balanced_weights(truth) == pytest.approx([1 / 9] * 3 + [1 / 6] * 2 + [1 / 3])


def test_loss_is_among_the_labels_even_when_they_do_not_sum_to_one():
    logp = np.log(np.array([[0.2, 0.2], [0.1, 0.3], [0.4, 0.1]]))
    expected = -(np.log(0.5) / 2 + (np.log(0.75) + np.log(0.2)) / 4)
    assert metrics.nll(np.array([0, 1, 1]), logp) == pytest.approx(expected)


def test_ranking_over_more_sources_than_are_counted_at_once_equals_a_plain_loop():
    rng = np.random.default_rng(4)
    truth, score = rng.integers(0, 2, 700), np.round(rng.normal(size=700), 1)
    sources = [f"s{rng.integers(150)}" for _ in range(700)]  # most carry both labels
    c = clusters(truth, sources, resamples=5)
    found = auroc_statistic(c, score)
    assert found.value == pytest.approx(reference.roc_auc_score(truth == 0, score))
    for r in range(5):
        weight = c.weights[r, c.index]
        theirs = reference.roc_auc_score(truth == 0, score, sample_weight=weight)
        assert found.draws[r] == pytest.approx(theirs)


def test_calibration_error_bins_are_closed_above():
    confidence = np.array([0.0, 0.125, 0.25, 0.25, 0.375, 0.5, 0.75, 0.875, 1.0, 1.0])
    right = np.array([1, 0, 1, 0, 1, 0, 1, 1, 0, 1], bool)
    c = clusters(np.arange(10) % 2, [str(i) for i in range(10)], resamples=10)
    expected = 0.0
    for b in range(4):
        low = -1 if b == 0 else b / 4
        inside = (confidence > low) & (confidence <= (b + 1) / 4)
        expected += abs(confidence[inside].sum() - right[inside].sum()) / 10
    found = metrics.calibration_error(c, confidence, right, bins=4)
    assert found.value == pytest.approx(expected)


def test_a_description_holds_what_the_given_numbers_allow_and_what_was_sure_when_right_and_wrong():
    c = clusters(TRUTH, SOURCES, resamples=20)
    decided, p = metrics.decide(LOGP), 1 / (1 + np.exp(-MARGIN))
    rates = {"accuracy", "balanced_accuracy", "hit_rate", "false_alarm_rate"}
    assert set(metrics.describe(c, decided)) == rates
    assert set(metrics.describe(c, decided, score=MARGIN)) == {*rates, "auroc"}
    found = metrics.describe(c, decided, p)
    sure, right = np.maximum(p, 1 - p), decided == TRUTH
    assert found["confidence"].value == pytest.approx(sure.mean())
    assert found["confidence_right"].value == pytest.approx(sure[right].mean())
    assert found["confidence_wrong"].value == pytest.approx(sure[~right].mean())
    gap = sure[right].mean() - sure[~right].mean()
    assert found["confidence_gap"].value == pytest.approx(gap)
    assert found["auroc"].value == pytest.approx(reference.roc_auc_score(TRUTH == 0, p))
    ranking = metrics.describe(c, decided, p, -MARGIN)["auroc"].value
    assert ranking == pytest.approx(1 - found["auroc"].value)


def test_certainty_of_the_wrong_answer_costs_much_but_not_everything():
    c = clusters(np.array([0, 1]), ["a", "b"], resamples=5)
    loss = metrics.describe(c, np.array([1, 1]), np.array([0.0, 0.0]))["nll"].value
    assert 300 < loss < 400


def test_statistics_subtract_and_index_value_and_draws_together():
    one = Statistic(np.array([1.0, 5.0]), np.array([[1.0, 2.0], [5.0, 9.0]]))
    two = Statistic(np.array([0.5, 1.0]), np.array([[1.0, 1.0], [2.0, 2.0]]))
    gap = (one - two)[1]
    assert gap.value == 4.0 and gap.draws.tolist() == [3.0, 7.0]


def test_totals_of_sources_and_rates_of_many_configurations_are_those_of_each():
    c = clusters(TRUTH, SOURCES, resamples=8)
    decided = RNG.integers(0, 2, (2, 3, 300))
    together = metrics.rates(c, decided)
    for i, j in itertools.product(range(2), range(3)):
        for name, one in metrics.rates(c, decided[i, j]).items():
            assert together[name].value[i, j] == pytest.approx(one.value)
            assert together[name].draws[i, j] == pytest.approx(one.draws)
    names = sorted(set(SOURCES))
    sums = [MARGIN[[s == name for s in SOURCES]].sum() for name in names]
    assert c.totals(MARGIN) == pytest.approx(sums)
