"""Thresholds, and log-odds that mean what they say. Only the helper `fitted` calls the fit."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from evaluators.classifier import Calibration, among_labels, decide, sigmoid
from evaluators.errors import UserError
from evaluators.statistics import calibration, metrics
from evaluators.statistics.calibration import fit_bias, fit_distribution, fit_shift
from evaluators.statistics.resampling import clusters

RNG = np.random.default_rng(3)
TRUTH = RNG.integers(0, 2, 2000)
MARGIN = RNG.normal(0, 1, 2000) + np.where(TRUTH == 0, 1.0, -1.0)  # true log-odds: 2 x this


def fitted(truth, margin):
    """(temperature, bias, the calibration itself)."""
    c = calibration.fit_calibration(truth, margin)
    return c.temperature, c.bias, c


def loss(truth, margin, temperature, bias):
    z = np.where(truth == 0, 1, -1) * (margin / temperature + bias)
    return np.logaddexp(0, -z).mean()


@pytest.mark.parametrize(("stretch", "shift"), [(4.0, -3.0), (0.5, 2.0), (30.0, 60.0), (1.0, 0.0)])
def test_what_distorted_the_true_log_odds_is_found_again(stretch, shift):
    """Scores ``stretch x + shift`` of ``x`` whose true log-odds are ``2 x``."""
    temperature, bias, found = fitted(TRUTH, stretch * MARGIN + shift)
    assert isinstance(found, Calibration)
    assert temperature == pytest.approx(stretch / 2, rel=0.1)
    assert bias == pytest.approx(-2 * shift / stretch, abs=0.2)


@pytest.mark.parametrize(("stretch", "shift"), [(4.0, -3.0), (0.2, 1.0), (50.0, 0.0)])
def test_fit_equals_logistic_regression(stretch, shift):
    distorted = stretch * MARGIN + shift
    temperature, bias, _ = fitted(TRUTH, distorted)
    other = LogisticRegression(C=1e9, tol=1e-9).fit(distorted[:, None], TRUTH == 0)
    assert 1 / temperature == pytest.approx(float(other.coef_[0, 0]), rel=1e-3)
    assert bias == pytest.approx(float(other.intercept_[0]), abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(-4, 4), st.floats(0.1, 5))
def test_no_other_temperature_or_bias_has_a_lower_loss(seed, shift, stretch):
    rng = np.random.default_rng(seed)
    truth = np.arange(60) % 3 // 2  # twice as many of the first label
    margin = stretch * (rng.normal(size=60) + np.where(truth == 0, 1.0, -1.0)) + shift
    try:
        temperature, bias, _ = fitted(truth, margin)
    except UserError:  # the scores part the clips, or rank them the wrong way round: none fits
        assume(False)
    best = loss(truth, margin, temperature, bias)
    for t in temperature * np.array([0.9, 0.99, 1.0, 1.01, 1.1, 3.0]):
        for b in bias + np.array([-1.0, -0.05, 0.0, 0.05, 1.0]):
            assert loss(truth, margin, t, b) >= best - 1e-9
    assert loss(truth, margin, temperature * 1.1, bias) > best


def test_overconfident_and_shifted_scores_lose_their_error_on_other_clips():
    distorted = 6 * MARGIN - 5
    _, bias, c = fitted(TRUTH[:1000], distorted[:1000])
    assert bias > 1
    clips = clusters(TRUTH[1000:], [str(i) for i in range(1000)], resamples=10)

    def error(probability):
        right = np.where(probability > 0.5, 0, 1) == TRUTH[1000:]
        sure = np.maximum(probability, 1 - probability)
        return metrics.calibration_error(clips, sure, right).value

    before, after = (
        error(p) for p in (sigmoid(distorted[1000:]), c.probability(distorted[1000:]))
    )  # fmt: skip
    assert after < 0.04 < 0.1 < before


@pytest.mark.parametrize("margin", [np.where(TRUTH == 0, 3.0, -3.0), -MARGIN, 150 * MARGIN])
def test_a_bound_is_an_error_not_a_result(margin):
    with pytest.raises(UserError, match="none fits"):
        fitted(TRUTH, margin)


@pytest.mark.parametrize("wanted", [0.01, 0.019, 0.022, 45.0, 55.0])
def test_temperatures_from_a_fiftieth_to_fifty_are_found_and_others_refused(wanted):
    margin = MARGIN * wanted / fitted(TRUTH, MARGIN)[0]
    if 0.02 < wanted < 50:
        assert fitted(TRUTH, margin)[0] == pytest.approx(wanted, rel=1e-4)
    else:
        with pytest.raises(UserError, match="none fits"):
            fitted(TRUTH, margin)


@pytest.mark.parametrize(("truth", "margin"), [
    ([0, 0, 1, 1], [3.0, 2.0, 1.0, -1.0]),  # parted
    ([0, 0, 1, 1], [3.0, 1.0, 1.0, -1.0]),  # they touch
])  # fmt: skip
def test_scores_that_part_the_classes_cannot_be_calibrated(truth, margin):
    with pytest.raises(UserError, match="none fits"):
        fitted(np.array(truth), np.array(margin))


def test_scores_that_overlap_a_little_can():
    temperature, bias, _ = fitted(np.array([0, 0, 0, 1, 1, 1]), np.array([3, 2, 0.9, 1, 0, -1.0]))
    assert 0.02 < temperature < 1 and bias == pytest.approx(-0.95 / temperature, rel=0.3)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_cannot_be_calibrated(label):
    with pytest.raises(UserError, match="both classes"):
        fitted(np.full(5, label), np.arange(5.0))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 16), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([2, 4, 8]),
)
def test_reliability_bins_are_of_equal_width_closed_above_and_hold_every_clip_once(rows, bins):
    confidence, right = np.array([n / 16 for n, _ in rows]), np.array([r for _, r in rows])
    expected = []
    for b in range(bins):
        inside = (confidence <= (b + 1) / bins) & ((confidence > b / bins) | (b == 0))
        if inside.any():
            expected.append((confidence[inside].mean(), right[inside].mean(), inside.sum()))
    found = calibration.reliability(confidence, right, bins)
    assert [(r.confidence, r.right, r.clips) for r in found] == [pytest.approx(e) for e in expected]


def test_a_reliability_diagram_has_ten_bins_unless_told_otherwise():
    confidence = (np.arange(1000) + 0.5) / 1000
    assert [r.clips for r in calibration.reliability(confidence, confidence > 0.5)] == [100] * 10


# ---- thresholds


def test_a_fitted_bias_is_the_best_of_all():
    truth, margin = TRUTH[:300], MARGIN[:300] + 0.7
    logp = np.stack([-np.logaddexp(0, -margin), -np.logaddexp(0, margin)], -1)
    bias = fit_bias(truth, margin)
    best = max(
        metrics.balanced_accuracy(truth, (margin + b > 0) == (truth == 0))
        for b in np.linspace(-5, 5, 4001)
    )
    assert metrics.balanced_accuracy(truth, decide(logp, bias) == truth) >= best - 1e-9
    assert best > metrics.balanced_accuracy(truth, decide(logp) == truth)


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


def balanced(truth, logp, bias):
    return metrics.balanced_accuracy(truth, decide(logp, bias) == truth)


def test_a_shift_of_two_labels_is_the_best_that_decide_can_be_given():
    rng = np.random.default_rng(2)
    for _ in range(20):
        truth = rng.integers(0, 2, 60)
        logp = rng.normal(0, 1, (60, 2)) + (np.arange(2) == truth[:, None])
        logp[:, 0] += rng.normal(0, 2)
        best = max(balanced(truth, logp, b) for b in np.linspace(-12, 12, 2401))
        assert balanced(truth, logp, fit_shift(truth, logp)) >= best - 1e-12


def leaning(labels, clips, seed):
    """(truth, nats) of clips, with a lean towards some labels that a bias takes off again."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(clips) % labels)
    nats = 2 * rng.normal(size=(clips, labels)) + 4 * np.eye(labels)[truth]
    lean = 1.5 * np.random.default_rng(seed // 2).normal(size=labels)
    return truth, among_labels(nats + lean)


@pytest.mark.parametrize(("labels", "clips"), [(4, 200), (10, 200), (50, 400)])
def test_a_bias_per_label_gains_on_other_clips_what_it_gains_on_its_own(labels, clips):
    gains = []
    for seed in range(0, 12, 2):
        truth, logp = leaning(labels, clips, seed)
        bias = fit_shift(truth, logp)
        assert isinstance(bias, tuple) and len(bias) == labels
        assert np.mean(bias) == pytest.approx(0, abs=1e-9)
        on_own = balanced(truth, logp, bias) - balanced(truth, logp, 0.0)
        fresh, other = leaning(labels, clips, seed + 1)
        gains.append((on_own, balanced(fresh, other, bias) - balanced(fresh, other, 0.0)))
    on_own, on_fresh = np.mean(gains, axis=0)
    assert on_own > 0.04 and on_fresh > 0.04
    assert on_own - on_fresh < 0.04


def test_a_label_without_a_clip_is_given_no_bias_to_win_by():
    truth, logp = leaning(4, 200, 0)
    nats = np.concatenate([logp, np.full((200, 2), -30.0)], axis=1)
    bias = fit_shift(truth, nats)
    assert bias[4:] == pytest.approx((0, 0)) and np.ptp(bias[:4]) < 10
    assert decide(nats, bias).max() < 4


def test_a_bias_per_label_never_makes_its_own_clips_worse():
    rng = np.random.default_rng(0)
    for labels in (3, 5):
        truth = rng.integers(0, labels, 60)
        logp = among_labels(rng.normal(0, 1, (60, labels)) + np.eye(labels)[truth])
        assert balanced(truth, logp, fit_shift(truth, logp)) >= balanced(truth, logp, 0.0)


def test_a_distribution_of_three_labels_is_found_again_after_it_was_distorted():
    """Labels drawn from softmax(x); x stretched and shifted is mapped back."""
    rng = np.random.default_rng(5)
    x = among_labels(rng.normal(0, 1.5, (6000, 3)))
    truth = (rng.uniform(size=(6000, 1)) > np.exp(x).cumsum(-1)).sum(-1)
    shift = np.array([0.7, -0.2, -0.5])
    found = fit_distribution(truth, 3 * x + shift)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert np.abs(found.distribution(3 * x + shift) - np.exp(x)).max() < 0.06
    assert np.allclose(found.distribution(3 * x + shift).sum(-1), 1)


def test_a_distribution_that_cannot_be_fitted_says_why():
    truth = np.array([0, 1, 2] * 10)
    with pytest.raises(UserError, match="none fits"):
        fit_distribution(truth, 50 * np.eye(3)[truth])
    with pytest.raises(UserError, match="all classes"):
        fit_distribution(np.zeros(9, int), np.zeros((9, 3)))
