"""Metrics: equal to other implementations, and every resample to a plain loop."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as reference

from evaluators.classifier import decide
from evaluators.statistics import metrics
from evaluators.statistics.metrics import auroc_statistic
from evaluators.statistics.resampling import clusters
from evaluators.targets import Predictions, Targets

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 2, 300)
MARGIN = RNG.normal(0, 1, 300) + np.where(TRUTH == 0, 0.8, -0.4)
LOGP = np.stack([-np.logaddexp(0, -MARGIN), -np.logaddexp(0, MARGIN)], -1).astype(np.float32)
SOURCES = [f"{TRUTH[i]}-{i % 15}" for i in range(300)]


def said(truth, sources, decided, probability=None, score=None):
    ids = tuple(str(i) for i in range(len(truth)))
    t = Targets(("x", "y"), ids, np.asarray(truth), np.asarray(sources))
    return Predictions("m", t, np.asarray(decided), probability, score)


def found_of(c, sources, *numbers, **more):
    """Every statistic of some predictions on the clips of `c`."""
    return metrics.statistics_of(c, said(c.truth, sources, *numbers, **more))


def test_metrics_equal_scikit_learn():
    right = decide(LOGP) == TRUTH
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


def test_every_statistic_of_every_resample_equals_a_plain_loop():
    """One resample is the clips of the drawn sources, each as often as it was drawn."""
    score = np.round(MARGIN, 1)  # with ties
    c = clusters(TRUTH, SOURCES, resamples=20, seed=4)
    decided, probability = np.where(score > 0, 0, 1), 1 / (1 + np.exp(-score))
    found = found_of(c, SOURCES, decided, probability, score)
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


def test_statistics_do_not_depend_on_the_order_of_clips():
    order = np.random.default_rng(8).permutation(300)
    names = np.array(SOURCES)
    one, two = (
        found_of(
            clusters(TRUTH[i], names[i], resamples=50), names[i], decide(LOGP[i]),
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
    decided, p = decide(LOGP), 1 / (1 + np.exp(-MARGIN))
    rates = {"accuracy", "balanced_accuracy", "hit_rate", "false_alarm_rate"}
    assert set(found_of(c, SOURCES, decided)) == rates
    assert set(found_of(c, SOURCES, decided, score=MARGIN)) == {*rates, "auroc"}
    found = found_of(c, SOURCES, decided, p)
    sure, right = np.maximum(p, 1 - p), decided == TRUTH
    assert found["confidence"].value == pytest.approx(sure.mean())
    assert found["confidence_right"].value == pytest.approx(sure[right].mean())
    assert found["confidence_wrong"].value == pytest.approx(sure[~right].mean())
    gap = sure[right].mean() - sure[~right].mean()
    assert found["confidence_gap"].value == pytest.approx(gap)
    assert found["auroc"].value == pytest.approx(reference.roc_auc_score(TRUTH == 0, p))
    ranking = found_of(c, SOURCES, decided, p, -MARGIN)["auroc"].value
    assert ranking == pytest.approx(1 - found["auroc"].value)


def test_certainty_of_the_wrong_answer_costs_much_but_not_everything():
    c = clusters(np.array([0, 1]), ["a", "b"], resamples=5)
    loss = found_of(c, ["a", "b"], [1, 1], np.array([0.0, 0.0]))["nll"].value
    assert 300 < loss < 400


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


def test_each_metric_by_name_is_its_statistic():
    c = clusters(TRUTH, SOURCES, resamples=20)
    one = said(TRUTH, SOURCES, decide(LOGP), np.exp(LOGP[:, 0]), MARGIN)
    every = metrics.statistics_of(c, one)
    assert set(metrics.METRICS) == {"balanced_accuracy", "accuracy", "auroc"}
    for name, metric in metrics.METRICS.items():
        found = metric(c, one)
        assert found.value == pytest.approx(float(every[name].value)), name
        assert found.draws == pytest.approx(every[name].draws), name


def test_an_auroc_without_one_of_the_classes_is_undefined():
    for truth in (np.zeros(8, int), np.ones(8, int)):
        c = clusters(truth, [str(i % 4) for i in range(8)], resamples=5)
        found = auroc_statistic(c, np.arange(8.0))
        assert np.isnan(found.value) and np.isnan(found.draws).all()
        e = c.estimate(found)
        assert e.low is None and e.high is None
