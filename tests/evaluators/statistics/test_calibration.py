import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from evaluators.classifier import sigmoid
from evaluators.errors import UserError
from evaluators.statistics import calibration, metrics
from evaluators.statistics.resampling import clusters

RNG = np.random.default_rng(3)
TRUTH = RNG.integers(0, 2, 2000)
MARGIN = RNG.normal(0, 1, 2000) + np.where(TRUTH == 0, 1.0, -1.0)


def test_fit_equals_logistic_regression():
    distorted = 4.0 * MARGIN - 3.0
    found = calibration.fit_calibration(TRUTH, distorted)
    other = LogisticRegression(C=1e9, tol=1e-9).fit(distorted[:, None], TRUTH == 0)
    assert 1 / found.temperature == pytest.approx(float(other.coef_[0, 0]), rel=1e-3)
    assert found.bias == pytest.approx(float(other.intercept_[0]), abs=1e-3)


def test_overconfident_scores_lose_their_error():
    truth, margin, fresh = TRUTH[:1000], 6 * MARGIN[:1000], 6 * MARGIN[1000:]
    fitted = calibration.fit_calibration(truth, margin)
    c = clusters(TRUTH[1000:], [str(i) for i in range(1000)])

    def error(probability):
        decided = np.where(probability > 0.5, 0, 1)
        return metrics.describe(c, decided, probability)["ece"].value

    before, after = error(sigmoid(fresh)), error(fitted.probability(fresh))
    assert after < 0.04 < before
    assert ((fitted.margin(margin) > 0) == (margin / fitted.temperature > -fitted.bias)).all()


@pytest.mark.parametrize("margin", [np.where(TRUTH == 0, 3.0, -3.0), -MARGIN])
def test_a_bound_is_an_error_not_a_result(margin):
    with pytest.raises(UserError, match="none fits"):
        calibration.fit_calibration(TRUTH, margin)


def test_one_class_cannot_be_calibrated():
    with pytest.raises(UserError, match="both classes"):
        calibration.fit_calibration(np.zeros(5, int), np.arange(5.0))


def test_reliability_counts_every_clip_once():
    confidence = np.array([0.5, 0.55, 0.95, 1.0, 0.91])
    rows = calibration.reliability(confidence, np.array([True, False, True, True, False]))
    assert sum(r.clips for r in rows) == 5
    assert rows[-1] == calibration.Reliability(
        pytest.approx((0.95 + 1.0 + 0.91) / 3), pytest.approx(2 / 3), 3
    )
