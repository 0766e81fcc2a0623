import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from evaluators.classifier import log_odds
from evaluators.statistics import metrics
from evaluators.statistics.calibration import fit_bias
from evaluators.statistics.compare import holm
from evaluators.statistics.resampling import clusters

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


def test_sign_flip_equals_enumeration():
    truth = np.array([0] * 12 + [1] * 12)
    sources = [f"{t}-{i % 4}" for i, t in enumerate(truth)]
    gain = RNG.integers(-1, 2, 24).astype(float)
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
    trials, covered = 300, 0
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
