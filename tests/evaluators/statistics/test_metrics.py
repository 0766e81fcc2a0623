"""Metrics: equal to other implementations, and every resample to a plain loop."""

import dataclasses
import itertools

import numpy as np
import pytest
from sklearn import metrics as reference

from evaluators.classifier import Classifier, decide
from evaluators.evaluator import predictions
from evaluators.prompts import Prompt
from evaluators.statistics import metrics
from evaluators.statistics.compare import estimate
from evaluators.statistics.metrics import auroc_statistic
from evaluators.statistics.resampling import clusters
from evaluators.targets import Predictions, Targets
from opro.search.objective import OBJECTIVES

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


def test_missing_labels_weigh_nothing_and_weights_sum_to_one():
    truth = np.array([0, 0, 0, 2, 2, 5])
    assert metrics.balanced_weights(truth) == pytest.approx([1 / 9] * 3 + [1 / 6] * 2 + [1 / 3])


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


@pytest.mark.parametrize("decimals", [0, 1, 12])
@pytest.mark.parametrize("at_once", [1, 10**6])
def test_ranking_by_clips_is_to_the_bit_the_one_by_sources(decimals, at_once, monkeypatch):
    """Ties, sources of both labels, a value first of all, and sources that a resample leaves out."""
    rng = np.random.default_rng(5)
    truth, score = rng.integers(0, 3, 300), np.round(rng.normal(size=300), decimals)
    c = clusters(truth, [f"s{rng.integers(40)}" for _ in range(300)], resamples=30)
    found = auroc_statistic(c, score, 1)
    monkeypatch.setattr(metrics, "AT_ONCE", at_once)
    monkeypatch.setattr(metrics, "PAIRS_A_CLIP", 0)
    monkeypatch.setattr(metrics, "_wins", None)  # it is not asked
    by_clips = auroc_statistic(c, score, 1)
    assert by_clips.value == found.value and np.array_equal(by_clips.draws, found.draws)


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
    assert set(metrics.METRICS) == set(OBJECTIVES)
    for name in ("balanced_accuracy", "accuracy", "auroc"):
        found = metrics.METRICS[name](c, one)
        assert found.value == pytest.approx(float(every[name].value)), name
        assert found.draws == pytest.approx(every[name].draws), name


FOUR = RNG.integers(0, 4, 400)
NATS = RNG.normal(0, 1.5, (400, 4)) + 1.5 * np.eye(4)[FOUR]
NATS -= np.logaddexp.reduce(NATS, axis=-1, keepdims=True)
NATS -= 0.3  # the labels need not sum to one
OWN_SOURCES = [f"{FOUR[i]}-{i % 20}" for i in range(400)]


def said_of_four(bias=(0.3, -0.3, 0.2, -0.2)):
    ids = tuple(map(str, range(400)))
    targets = Targets(("a", "b", "c", "d"), ids, FOUR, np.array(OWN_SOURCES))
    prompt = Prompt("?", tuple((v, (v,)) for v in targets.labels))
    return predictions("m", targets, Classifier(prompt, bias), NATS)


def test_metrics_of_four_labels_equal_scikit_learn():
    plain, biased = said_of_four(0.0), said_of_four()
    c = clusters(FOUR, OWN_SOURCES, resamples=20)
    found, shifted = metrics.statistics_of(c, plain), metrics.statistics_of(c, biased)
    shares = np.exp(NATS + 0.3)
    assert np.allclose(plain.distribution, shares)
    macro = reference.roc_auc_score(
        np.eye(4)[FOUR], NATS - np.log1p(-shares), average="macro", multi_class="ovr"
    )
    assert found["auroc"].value == pytest.approx(macro)
    assert shifted["auroc"].value == pytest.approx(macro)  # of what the model gives
    assert metrics.auroc_of(FOUR, NATS) == pytest.approx(macro)
    assert found["nll"].value == pytest.approx(reference.log_loss(FOUR, shares))
    assert found["brier"].value == pytest.approx(
        ((shares - np.eye(4)[FOUR]) ** 2).sum(-1).mean() / 2
    )
    assert found["balanced_accuracy"].value == pytest.approx(
        reference.balanced_accuracy_score(FOUR, shares.argmax(-1))
    )
    assert shifted["confidence"].value == pytest.approx(biased.distribution.max(-1).mean())
    assert np.array_equal(
        metrics.confusion(FOUR, biased.decided, 4),
        reference.confusion_matrix(FOUR, biased.decided),
    )


def test_auroc_of_four_labels_is_resampled_as_a_plain_loop_does():
    said, names = said_of_four(), np.array(OWN_SOURCES)
    c = clusters(FOUR, OWN_SOURCES, resamples=30)
    draws = metrics.METRICS["auroc"](c, said).draws
    for weights, drawn in zip(c.weights, draws, strict=True):
        rows = np.repeat(np.arange(400), weights[c.index].astype(int))
        assert drawn == pytest.approx(metrics.auroc_of(FOUR[rows], NATS[rows]))
    assert len(np.unique(names)) == c.sources


def test_places_among_options_are_no_classes_of_means_and_intervals():
    """One rare place with a single source neither widens an interval nor takes it away."""
    rng = np.random.default_rng(4)
    truth, ids = np.append(rng.integers(0, 3, 66), 3), tuple(map(str, range(67)))
    targets = Targets(tuple("ABCD"), ids, truth, np.array(ids), classes=False)
    decided = np.where(rng.uniform(size=67) < 0.5, truth, (truth + 1) % 4)
    said, right = Predictions("m", targets, decided), decided == truth
    found = estimate(said)
    plain = [right[rng.integers(0, 67, 67)].mean() for _ in range(5000)]
    assert found.value == pytest.approx(right.mean()) and targets.fewest_sources == 67
    assert (found.low, found.high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.03)
    assert estimate(said, "accuracy").low == pytest.approx(found.low)
    as_classes = estimate(Predictions("m", dataclasses.replace(targets, classes=True), decided))
    assert as_classes.low is None  # a class of one source has no interval
