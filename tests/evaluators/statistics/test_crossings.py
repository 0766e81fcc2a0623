"""Where balanced accuracy by level crosses a share: the published thresholds."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.statistics.crossings import CURVE_RESAMPLES, crossings
from evaluators.statistics.resampling import clusters, percentile_bounds
from evaluators.targets import Predictions, Targets

LEVELS = (100.0, 200.0, 400.0, 800.0)


def measured(unit, levels, rates, share, sources=10, count=20, **more):
    """Clips of both labels, `rates` of them right at each level, spread over sources."""
    level = np.tile(np.repeat(levels, count), 2)
    truth = np.repeat([0, 1], len(levels) * count)
    right = np.concatenate([np.arange(count) < round(r * count) for r in rates] * 2)
    ids = np.array([f"{t}-{i % sources}" for i, t in enumerate(truth)])
    names = tuple(map(str, range(len(truth))))
    t = Targets(("x", "y"), names, truth, ids)
    said = Predictions("m", t, np.where(right, truth, 1 - truth))
    return crossings(unit, level, said, share, **more)


def test_it_is_linear_in_the_logarithm_of_duration_and_in_db():
    """From 60 % at 100 ms to 80 % at 200: 75 % is three quarters of an octave on."""
    found = measured("ms", LEVELS, (0.6, 0.8, 0.9, 0.9), 0.75)
    assert found.value == pytest.approx(100 * 2**0.75) and found.upwards == (True,)
    assert found.text().startswith("168 ms [")
    found = measured("dB", (-10.0, 0.0, 10.0), (0.5, 0.7, 0.85), 0.75)
    assert found.value == pytest.approx(10 / 3) and found.text().startswith("3 dB [")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=6), st.sampled_from([0.75, 0.9]))
def test_every_crossing_is_where_numpy_interpolates_the_share(hits, share):
    levels = np.geomspace(50, 1600, len(hits))
    rates = np.array(hits) / 20
    found = measured("ms", levels, rates, share)
    steps = np.sum((rates[1:] >= share) != (rates[:-1] >= share))
    assert len(found.at) == len(found.upwards) == steps and list(found.at) == sorted(found.at)
    for place in found.at:
        at = np.interp(math.log(place), np.log(levels), rates)
        assert at == pytest.approx(share, abs=1e-9)
    pairs = [(a >= share, b >= share) for a, b in itertools.pairwise(rates)]
    ways = [bool(after) for before, after in pairs if before != after]
    assert list(found.upwards) == ways
    assert (found.value is None) == (found.upwards != (True,))


@pytest.mark.parametrize(("rates", "words"), [
    ((0.5, 0.6, 0.6, 0.7), "never crossed: below at every level from 100 to 800 ms"),
    ((0.75, 0.8, 0.9, 1.0), "never crossed: above at every level from 100 to 800 ms"),
    ((0.5, 1.0, 0.5, 1.0), "crossed 3 times: up at 141, down at 283, up at 566 ms"),
    ((1.0, 1.0, 0.5, 0.5), "crossed once: down at 283 ms"),
])  # fmt: skip
def test_what_is_crossed_never_or_more_than_once_is_said_so(rates, words):
    found = measured("ms", LEVELS, rates, 0.75)
    assert found.text() == words
    assert found.value is found.low is found.high is None


def test_the_interval_is_the_percentiles_of_the_first_rise_in_each_resample():
    found = measured("ms", LEVELS, (0.6, 0.7, 0.8, 0.95), 0.75, seed=3)
    level, truth = np.tile(np.repeat(LEVELS, 20), 2), np.repeat([0, 1], 80)
    ids = [f"{t}-{i % 10}" for i, t in enumerate(truth)]
    right = np.concatenate([np.arange(20) < round(r * 20) for r in (0.6, 0.7, 0.8, 0.95)] * 2)
    c, rises = clusters(truth, ids, resamples=CURVE_RESAMPLES, seed=3), []
    for w in c.weights[:, c.index]:
        y = [
            np.mean([np.average(right[own], weights=w[own]) for own in ((level == v) & (truth == k) for k in (0, 1))])
            for v in LEVELS
        ]  # fmt: skip
        places = np.geomspace(100, 800, 20_001)
        above = np.interp(np.log(places), np.log(LEVELS), y) >= 0.75
        rises.append(math.log2(places[above.argmax()] if above.any() else 800))
    low, high = percentile_bounds(np.array(rises), 10, 0.025)
    assert (found.low, found.high) == pytest.approx((2**low, 2**high), rel=1e-3)
    assert found.low < found.value < found.high


def test_an_interval_ends_where_was_measured():
    found = measured("ms", LEVELS, (0.7, 0.7, 0.7, 0.75), 0.75, sources=4)
    assert found.censored == ("<=", ">=") and (found.low, found.high) == pytest.approx((100, 800))
    assert found.text() == "800 ms [<= 100, >= 800]"


def test_one_source_has_a_value_and_no_interval():
    found = measured("ms", LEVELS, (0.6, 0.8, 0.9, 0.9), 0.75, sources=1)
    assert found.low is None and found.text() == "168 ms [?, ?]"


def test_levels_that_lack_a_label_and_clips_without_a_level_are_left_out():
    truth = np.array([0, 1, 0, 1, 0, 1, 0])
    level = np.array([100, 100, 200, 200, 400, np.nan, np.nan])
    t = Targets(("x", "y"), tuple("abcdefg"), truth, np.array(list("abcdefg")))
    said = Predictions("m", t, np.array([1, 1, 0, 1, 1, 0, 1]))
    assert crossings("ms", level, said, 0.75).value == pytest.approx(100 * 2**0.5)
    assert crossings("ms", np.full(7, np.nan), said, 0.75) is None
    assert crossings("ms", np.where(level == 200, np.nan, level), said, 0.75) is None
    assert crossings("ms", level[truth == 0], said.take(truth == 0), 0.75) is None
