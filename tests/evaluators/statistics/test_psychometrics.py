import numpy as np
import pytest
from scipy import optimize, special

from evaluators.statistics import psychometrics

LEVELS = np.array([100.0, 200.0, 300.0, 500.0, 1000.0])


def observer(rng, place, false=0.1, sources=20, clips=4, lapse=0.02, scale=0.5):
    level = np.tile(np.repeat(LEVELS, clips), 2 * sources)
    truth = np.repeat([0, 1], sources * len(LEVELS) * clips)
    ids = [str(i) for i in np.repeat(np.arange(2 * sources), len(LEVELS) * clips)]
    heard = (1 - lapse) * special.expit((np.log2(level) - np.log2(place)) / scale)
    says = np.where(truth == 0, false + (1 - false) * heard, false)
    return level, truth, (rng.random(len(says)) >= says).astype(int), ids


def fitted(*args, **more):
    return psychometrics.psychometric("ms", *observer(np.random.default_rng(0), *args, **more))


def test_fit_is_the_minimum_that_scipy_finds():
    rng = np.random.default_rng(1)
    x, trials = np.log2(LEVELS), np.full(5, 60.0)
    z = (x - (x[0] + x[-1]) / 2) / ((x[-1] - x[0]) / 2)

    def loss(theta, hits, guess):
        f = special.expit((z - theta[0]) / np.exp(theta[1]))
        p = guess + (1 - guess) * f / (1 + np.exp(theta[2]))
        fit = -(hits * np.log(p) + (trials - hits) * np.log1p(-p)).sum()
        prior = [0.0, np.log(0.4), -4.0], [3.0, 2.0, 4.0]
        own = 0.5 * (((theta - prior[0]) / prior[1]) ** 2).sum()
        return fit + 9 * np.logaddexp(0, theta[2]) + own

    for place in (150, 300, 700):
        guess = np.array([0.05, 0.3])
        says = guess[:, None] + (1 - guess[:, None]) * special.expit((x - np.log2(place)) / 0.4)
        hits = rng.binomial(60, says).astype(float)
        ours = psychometrics.fit(x, hits, np.tile(trials, (2, 1)), guess)
        for i in range(2):
            found = optimize.minimize(
                loss, [0.0, -1.0, -4.0], (hits[i], guess[i]), method="Nelder-Mead",
                options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 10_000},
            )  # fmt: skip
            theirs = (x[0] + x[-1]) / 2 + (x[-1] - x[0]) / 2 * found.x[0]
            assert ours.location[i] == pytest.approx(theirs, abs=2e-4)


def test_threshold_of_a_known_observer_lies_in_its_interval():
    t = fitted(300).thresholds
    truth = 2 ** (np.log2(300) + 0.5 * special.logit(0.75 / 0.98))
    assert t[0.75].low < truth < t[0.75].high and t[0.75].censored == ("", "", "")
    assert t[0.5].value < t[0.75].value < t[0.9].value


def test_guessing_is_taken_off():
    """An observer who says "speech" to half of everything needs no less sound than one who never guesses."""
    shy, bold = fitted(300, 0.0).thresholds[0.5], fitted(300, 0.5).thresholds[0.5]
    assert abs(np.log2(shy.value / bold.value)) < 0.3


@pytest.mark.parametrize(("place", "sign", "end"), [(20, "<=", 100), (20_000, ">=", 1000)])
def test_what_was_not_measured_is_censored(place, sign, end):
    t = fitted(place, 0.1).thresholds[0.75]
    assert t.censored[0] == sign and t.value == pytest.approx(end)
    assert t.text("ms").startswith(f"{sign} {end} ms")


def test_too_few_levels_or_one_kind_of_clips_give_no_curve():
    level, truth, decided, ids = observer(np.random.default_rng(0), 300)
    two = np.isin(level, LEVELS[:2])
    rows = (level[two], truth[two], decided[two], np.array(ids)[two])
    assert psychometrics.psychometric("ms", *rows) is None
    own = truth == 0
    rows = (level[own], truth[own], decided[own], np.array(ids)[own])
    assert psychometrics.psychometric("ms", *rows) is None


def test_order_of_clips_changes_nothing_and_unknown_levels_are_left_out():
    rows = [np.asarray(a) for a in observer(np.random.default_rng(0), 300)]
    order = np.random.default_rng(1).permutation(len(rows[0]))
    one = psychometrics.psychometric("ms", *rows)
    two = psychometrics.psychometric("ms", *[a[order] for a in rows])
    assert one.thresholds == two.thresholds
    more = [np.concatenate([a, a[:3]]) for a in rows]
    more[0][-3:] = np.nan
    assert psychometrics.psychometric("ms", *more).thresholds == one.thresholds


def test_band_holds_the_curve():
    p = fitted(300)
    low, high = p.band(LEVELS)
    rate = p.curve.hit_rate(p.axis(LEVELS))
    assert (low <= rate).all() and (rate <= high).all() and (high - low < 0.4).all()
