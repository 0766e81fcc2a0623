"""From which level on speech is heard. Only the helpers `measured`, `fitted` and `fit` call what is tested."""

import numpy as np
import pytest
from scipy import optimize, special, stats

from evaluators.statistics import psychometrics
from evaluators.statistics.resampling import clusters
from evaluators.targets import Predictions, Targets

LEVELS = np.array([100.0, 200.0, 300.0, 500.0, 1000.0])
NOISE = np.array([-10.0, -5.0, 0.0, 5.0, 10.0])


def measured(unit, level, truth, decided, ids, **more):
    """The whole fit: curve, resamples and thresholds, or None."""
    names = tuple(str(i) for i in range(len(truth)))
    t = Targets(("x", "y"), names, np.asarray(truth), np.asarray(ids))
    return psychometrics.psychometric(unit, level, Predictions("m", t, decided), **more)


def fit(x, hits, trials, guess):
    """(location, scale, lapse, the curve itself) from counts."""
    c = psychometrics.fit(x, hits, trials, guess)
    return c.location, c.scale, c.lapse, c


def observer(rng, place, false=0.1, sources=20, clips=4, lapse=0.02, scale=0.5, unit="ms"):
    """Clips, and what an observer says whose detection beyond guessing is half where the level is `place`."""
    levels = LEVELS if unit == "ms" else NOISE
    level = np.tile(np.repeat(levels, clips), 2 * sources)
    truth = np.repeat([0, 1], sources * len(levels) * clips)
    ids = [str(i) for i in np.repeat(np.arange(2 * sources), len(levels) * clips)]
    x = np.log2(level) - np.log2(place) if unit == "ms" else level - place
    heard = (1 - lapse) * special.expit(x / scale)
    says = np.where(truth == 0, false + (1 - false) * heard, false)
    return level, truth, (rng.random(len(says)) >= says).astype(int), ids


def fitted(*args, unit="ms", seed=0, resamples=300, **more):
    rows = observer(np.random.default_rng(seed), *args, unit=unit, **more)
    return measured(unit, *rows, resamples=resamples)


def sharing(share, place, scale, lapse):
    """Where the observer's detection beyond guessing is `share`."""
    return 2 ** (np.log2(place) + scale * special.logit(share / (1 - lapse)))


# ---- the fit


@pytest.mark.parametrize("trials", [60.0, 6.0, 400.0])
def test_fit_is_the_minimum_that_scipy_finds(trials):
    """Likelihood times priors: location and scale normal in half the range, lapse Beta(1, 10) beside a weak normal."""
    rng = np.random.default_rng(1)
    x, count = np.log2(LEVELS), np.array([trials, trials, 0, trials, trials / 2])
    half = (x[-1] - x[0]) / 2
    z = (x - (x[0] + x[-1]) / 2) / half

    def loss(theta, hits, guess):
        f = special.expit((z - theta[0]) / np.exp(theta[1]))
        p = guess + (1 - guess) * f / (1 + np.exp(theta[2]))
        like = -(hits * np.log(p) + (count - hits) * np.log1p(-p)).sum()
        prior = [0.0, np.log(0.4), -4.0], [3.0, 2.0, 4.0]
        own = 0.5 * (((theta - prior[0]) / prior[1]) ** 2).sum()
        return like + 9 * np.logaddexp(0, theta[2]) + own

    guess = np.array([0.05, 0.3])
    for place, lapse in ((150, 0.0), (300, 0.1), (700, 0.0), (90, 0.05)):
        says = special.expit((x - np.log2(place)) / 0.4) * (1 - lapse)
        hits = rng.binomial(count.astype(int), guess[:, None] + (1 - guess[:, None]) * says)
        location, scale, lapses, _ = fit(x, hits.astype(float), np.tile(count, (2, 1)), guess)
        for i in range(2):
            found = optimize.minimize(
                loss, [0.0, -1.0, -4.0], (hits[i], guess[i]), method="Nelder-Mead",
                options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 10_000},
            ).x  # fmt: skip
            assert location[i] == pytest.approx((x[0] + x[-1]) / 2 + half * found[0], abs=2e-3)
            assert scale[i] == pytest.approx(half * np.exp(found[1]), rel=5e-3)
            assert lapses[i] == pytest.approx(special.expit(found[2]), abs=2e-3)


def test_fits_of_many_are_those_of_each():
    rng = np.random.default_rng(2)
    trials = rng.integers(1, 40, (2, 3, 5)).astype(float)
    hits, guess = np.floor(trials * rng.random((2, 3, 5))), rng.random((2, 3)) / 2
    together = fit(NOISE, hits, trials, guess)
    for i in range(2):
        for j in range(3):
            one = fit(NOISE, hits[i, j], trials[i, j], np.asarray(guess[i, j]))
            for a, b in zip(together[:3], one[:3], strict=True):
                assert a[i, j] == pytest.approx(float(b), abs=1e-4)
    assert (together[3].guess == guess).all()


def test_extreme_counts_end_in_finite_curves():
    for hits in (np.zeros(5), np.full(5, 50.0), np.array([50.0, 0, 50, 0, 50])):
        for guess in (0.0, 0.9, 1.0):
            found = fit(NOISE, hits, np.full(5, 50.0), np.asarray(guess))
            assert all(np.isfinite(a).all() for a in found[:3]) and found[1] > 0


def test_a_curve_is_the_logistic_above_guessing_and_below_lapses():
    curve = psychometrics.Curve(
        np.array([2.0, 0.0]), np.array([0.5, 3.0]), np.array([0.2, 0.0]), np.array([0.1, 0.3])
    )
    x = np.array([-500.0, 1.0, 2.0, 3.0, 500.0])
    for i, (m, s, g, lapse) in enumerate([(2, 0.5, 0.2, 0.1), (0, 3.0, 0.0, 0.3)]):
        beyond = (1 - lapse) * special.expit((x - m) / s)
        assert curve.detection(x)[i] == pytest.approx(beyond, abs=1e-9)
        assert curve.hit_rate(x)[i] == pytest.approx(g + (1 - g) * beyond, abs=1e-9)
        for share in (0.3, 0.5, 0.69):
            at = curve.threshold(share)[i]
            assert (1 - lapse) * special.expit((at - m) / s) == pytest.approx(share)
    assert np.isfinite(curve.threshold(0.8)).tolist() == [True, False]
    assert curve.threshold(0.95).tolist() == [np.inf, np.inf]
    assert curve.threshold(0.9)[0] == np.inf  # reached nowhere


# ---- observers with a known threshold


@pytest.mark.parametrize("place", [150.0, 300.0, 600.0])
def test_thresholds_of_known_observers_are_found(place):
    t = fitted(place, sources=80, resamples=50).thresholds
    for share in (0.5, 0.75):
        truth = sharing(share, place, 0.5, 0.02)
        assert abs(np.log2(t[share].value / truth)) < 0.2, share
    assert t[0.5].value < t[0.75].value


def test_thresholds_of_known_observers_lie_in_their_intervals():
    """Intervals of 95 %: 25 observers, of whom 2 may be missed."""
    inside = 0
    for seed in range(25):
        t = fitted(300.0, sources=12, seed=seed, resamples=60).thresholds[0.75]
        inside += t.low <= sharing(0.75, 300, 0.5, 0.02) <= t.high
    assert inside >= 23


def test_noise_levels_are_fitted_as_they_are():
    p = fitted(-2.0, unit="dB", sources=60, scale=2.0, lapse=0.0)
    assert p.unit == "dB" and p.axis(NOISE).tolist() == NOISE.tolist()
    t = p.thresholds[0.5]
    assert t.low < t.value < t.high and t.value == pytest.approx(-2, abs=0.7)
    assert t.censored == ("", "", "") and t.text("dB").startswith("-2 dB [")


def test_durations_are_fitted_by_their_logarithm():
    p = fitted(300.0)
    assert p.unit == "ms" and p.axis(LEVELS) == pytest.approx(np.log2(LEVELS))
    assert set(p.thresholds) == {0.5, 0.75, 0.9}
    assert p.thresholds[0.5].value == pytest.approx(2 ** float(p.curve.threshold(0.5)))


def test_guessing_is_taken_off():
    """An observer who says "speech" to half of everything needs no less sound than one who never guesses."""
    shy, bold = (fitted(300, g, sources=60).thresholds[0.5] for g in (0.0, 0.5))
    assert abs(np.log2(shy.value / bold.value)) < 0.3


def test_lapses_are_no_matter_of_duration():
    p = fitted(250, 0.0, lapse=0.25, scale=0.2, sources=60)
    assert float(p.curve.lapse) == pytest.approx(0.25, abs=0.05)
    assert p.thresholds[0.9].value == 1000 and p.thresholds[0.9].censored[0] == ">="


# ---- counts


def test_counts_are_those_of_the_clips():
    rows = observer(np.random.default_rng(3), 300, 0.2, sources=6)
    level, truth, decided, _ = rows
    p = measured("ms", *rows, resamples=20)
    own = truth == 0
    for i, one in enumerate(LEVELS):
        assert p.trials[i] == (own & (level == one)).sum() == 24
        assert p.hits[i] == (own & (level == one) & (decided == 0)).sum()
    assert p.levels.tolist() == LEVELS.tolist() and p.sources == 6
    assert float(p.curve.guess) == pytest.approx((decided[~own] == 0).mean())


def test_every_resample_is_the_fit_to_its_sources_with_its_own_false_alarms():
    rows = observer(np.random.default_rng(3), 300, 0.2, sources=6)
    level, truth, decided, ids = rows
    p = measured("ms", *rows, resamples=4, seed=7)
    c = clusters(truth, ids, resamples=4, seed=7)
    for r in range(4):
        weight = c.weights[r, c.index]
        count = [
            [(weight * (truth == 0) * (level == one) * ok).sum() for one in LEVELS]
            for ok in (decided == 0, np.ones(len(level)))
        ]
        false = (weight * (truth != 0) * (decided == 0)).sum() / (weight * (truth != 0)).sum()
        theirs = fit(np.log2(LEVELS), *map(np.array, count), np.asarray(false))
        assert p.draws.location[r] == pytest.approx(float(theirs[0]), abs=1e-5)
        assert p.draws.guess[r] == pytest.approx(false)


def test_the_rarest_label_decides_how_wide_intervals_are():
    level, truth, decided, ids = observer(np.random.default_rng(0), 300)
    few = [f"few{int(i) % 5}" if t else i for i, t in zip(ids, truth, strict=True)]
    one, two = (measured("ms", level, truth, decided, i, resamples=50) for i in (ids, few))
    assert (one.sources, two.sources) == (20, 5)


# ---- intervals


def interval_written_out(p, share, x, sources):
    """Student's, on the scale of `x`, centred where the resamples' bias is taken off; the value always inside.

    Resamples far outside the levels count as half a range beyond them.
    """
    beyond = (x[-1] - x[0]) / 2
    held = np.clip(p.draws.threshold(share), x[0] - beyond, x[-1] + beyond)
    value = float(p.curve.threshold(share))
    at = np.clip(value, x[0] - beyond, x[-1] + beyond)
    reach = stats.t.ppf(0.975, sources - 1) * held.std() * np.sqrt(sources / (sources - 1))
    centre = at - (held.mean() - at)
    return value, min(at, centre - reach), max(at, centre + reach)


@pytest.mark.parametrize("unit", ["ms", "dB"])
@pytest.mark.parametrize(("place", "sources"), [(0.3, 4), (0.5, 12), (0.9, 6), (-0.1, 6), (1.2, 2)])
def test_intervals_are_students_and_end_where_was_measured(unit, place, sources):
    levels = LEVELS if unit == "ms" else NOISE
    x = np.log2(levels) if unit == "ms" else levels
    middle = x[0] + place * (x[-1] - x[0])
    p = fitted(
        2**middle if unit == "ms" else middle, unit=unit, sources=sources, clips=2,
        scale=0.15 * (x[-1] - x[0]), resamples=60,
    )  # fmt: skip
    for share, t in p.thresholds.items():
        for number, sign, exact in zip(
            (t.value, t.low, t.high), t.censored, interval_written_out(p, share, x, sources), strict=True
        ):  # fmt: skip
            ends = "<=" if exact <= x[0] else ">=" if exact >= x[-1] else ""
            held = float(np.clip(exact, x[0], x[-1]))
            assert sign == ends
            assert number == pytest.approx(2**held if unit == "ms" else held)


@pytest.mark.parametrize(("place", "sign", "end"), [(20, "<=", 100), (20_000, ">=", 1000)])
def test_what_was_not_measured_is_censored(place, sign, end):
    t = fitted(place, 0.1).thresholds[0.75]
    assert t.censored[0] == sign and t.value == pytest.approx(end)
    assert t.text("ms").startswith(f"{sign} {end} ms")


def test_one_source_bounds_nothing():
    t = fitted(300, sources=1, clips=40, resamples=20).thresholds[0.5]
    assert t.censored == ("", "<=", ">=") and (t.low, t.high) == pytest.approx((100, 1000))
    assert t.text("ms").endswith(" ms [<= 100, >= 1000]")


def test_text_tells_which_end_is_open():
    t = psychometrics.Threshold(310.4, 239.6, 1000.0, ("", "", ">="))
    assert t.text("ms") == "310 ms [240, >= 1000]"


def test_band_is_the_interval_of_the_hit_rate_at_each_level():
    p = fitted(300, sources=8)
    low, high = p.band(LEVELS)
    rate = p.draws.hit_rate(np.log2(LEVELS))
    tail = stats.norm.cdf(stats.t.ppf(0.025, 7) * np.sqrt(8 / 7))
    assert low == pytest.approx(np.quantile(rate, tail, axis=0))
    assert high == pytest.approx(np.quantile(rate, 1 - tail, axis=0))
    own = p.curve.hit_rate(p.axis(LEVELS))
    assert (low <= own).all() and (own <= high).all()
    narrow = p.band(LEVELS, alpha=0.2)
    assert (narrow[0] > low).all() and (narrow[1] < high).all()


# ---- what gives no curve


def test_too_few_levels_or_one_kind_of_clips_give_no_curve():
    level, truth, decided, ids = observer(np.random.default_rng(0), 300)

    def some(rows):
        return measured(
            "ms", level[rows], truth[rows], decided[rows], np.array(ids)[rows], resamples=5
        )

    two, three = (np.isin(level, LEVELS[:n]) for n in (2, 3))
    assert some(two) is None and some(three) is not None
    assert some(two | (truth != 0)) is None  # levels of other clips do not count
    assert some(truth == 0) is None


@pytest.mark.parametrize(("wrong", "told"), [(18, True), (19, False)])
def test_an_observer_who_says_speech_to_more_than_nine_tenths_of_all_has_no_curve(wrong, told):
    level = np.concatenate([np.repeat(LEVELS, 4), np.full(20, 300.0)])
    truth = np.repeat([0, 1], 20)
    decided = np.concatenate([np.zeros(20, int), (np.arange(20) >= wrong).astype(int)])
    found = measured("ms", level, truth, decided, [str(i) for i in range(40)], resamples=5)
    assert (found is not None) == told


def test_order_of_clips_changes_nothing_and_unknown_levels_are_left_out():
    rows = [np.asarray(a) for a in observer(np.random.default_rng(0), 300)]
    order = np.random.default_rng(1).permutation(len(rows[0]))
    one = measured("ms", *rows, resamples=50)
    two = measured("ms", *[a[order] for a in rows], resamples=50)
    assert one.thresholds == two.thresholds
    more = [np.concatenate([a, a[:3]]) for a in rows]
    more[0][-3:] = np.nan
    assert measured("ms", *more, resamples=50).thresholds == one.thresholds


def test_clips_without_a_level_say_nothing_about_guessing():
    level, truth, decided, ids = observer(np.random.default_rng(0), 300, 0.1)
    unknown = (truth == 1) & (np.arange(len(level)) % 2 == 0)
    level, decided = np.where(unknown, np.nan, level), np.where(unknown, 0, decided)
    p = measured("ms", level, truth, decided, ids, resamples=20)
    assert float(p.curve.guess) == (decided[(truth == 1) & ~unknown] == 0).mean()


def test_the_seed_decides_the_resamples_alone():
    rows = observer(np.random.default_rng(0), 300)
    a, b, c = (measured("ms", *rows, resamples=40, seed=s) for s in (1, 1, 2))
    assert a.thresholds == b.thresholds != c.thresholds
    assert float(a.curve.location) == float(c.curve.location) and len(a.draws.location) == 40
    few = measured("ms", *rows, resamples=20, shares=(0.6,))
    assert list(few.thresholds) == [0.6]


def test_guesses_above_98_percent_are_fitted_as_98():
    """A model that always says speech leaves no room above its guesses; the fit keeps a little."""
    x, trials = np.log2(LEVELS), np.full((1, 5), 20.0)
    hits = np.array([[20.0, 20.0, 20.0, 20.0, 20.0]])
    always, nearly = (psychometrics.fit(x, hits, trials, np.array([g])) for g in (1.0, 0.98))
    assert np.array_equal(always.location, nearly.location)
    assert np.array_equal(always.lapse, nearly.lapse)
    assert not np.array_equal(
        nearly.location, psychometrics.fit(x, hits, trials, np.array([0.9])).location
    )
