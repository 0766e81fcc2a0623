"""Every statistic of some predictions as plain data."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.statistics import metrics
from evaluators.statistics.compare import resample
from evaluators.statistics.crossings import crossings
from evaluators.statistics.describe import (
    DEFINITIONS,
    RATES,
    SLICE_RESAMPLES,
    crossed,
    curves,
    describe,
    interval,
    ordered,
    thresholds,
)
from evaluators.statistics.metrics import GROUPS, MOST_LEVELS, grouped
from evaluators.statistics.resampling import Statistic
from evaluators.targets import Predictions, Targets

DURATIONS = ("100", "200", "300", "500", "1000")
RNG = np.random.default_rng(0)
COUNT = 400
TRUTH = np.arange(COUNT) % 2
ODDS = RNG.normal(0, 1, COUNT) + np.where(TRUTH == 0, 1.0, -1.0)
SLICES = {
    "duration_ms": np.array([DURATIONS[i // 2 % 5] for i in range(COUNT)]),
    "snr_db": np.array([("-5", "", "0")[i % 3] for i in range(COUNT)]),
    "condition": np.full(COUNT, "k"),
    "category": np.array([("speech", "music")[t] for t in TRUTH]),
}


def said(**more):
    ids = tuple(f"c{i}" for i in range(COUNT))
    sources = np.array([f"s{i % 40}" for i in range(COUNT)])
    t = Targets(("x", "y"), ids, TRUTH, sources, more.pop("slices", SLICES))
    return Predictions("m", t, np.where(ODDS > 0, 0, 1), **more)


WHOLE = said(probability=1 / (1 + np.exp(-ODDS)), score=ODDS)


def test_every_statistic_is_described_with_its_interval_and_fits_json():
    found = describe(WHOLE, resamples=300, seed=2)
    c = resample(WHOLE.targets, resamples=300, seed=2)
    every = metrics.statistics_of(c, WHOLE)
    for name, statistic in every.items():
        assert found[name] == c.estimate(statistic).to_dict(), name
        assert found[name]["low"] < found[name]["value"] < found[name]["high"], name
    assert found["rows"] == COUNT and found["sources"] == 40
    assert set(found) == {*every, "rows", "sources", "slices", "thresholds", "crossings"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_cannot_be_had_of_decisions_alone_is_none():
    found = describe(said(), resamples=50)
    assert {name for name, value in found.items() if value is None} == {"auroc", "ece", "brier"}
    assert "nll" not in found and found["balanced_accuracy"]["value"] > 0.7
    found = describe(said(score=ODDS), resamples=50)
    assert found["auroc"]["value"] > 0.8 and found["ece"] is None


def test_a_slice_holds_the_rates_of_its_own_clips():
    found = describe(WHOLE, resamples=50, seed=3)["slices"]
    assert list(found) == list(SLICES) and list(found["duration_ms"]) == list(DURATIONS)
    assert list(found["snr_db"]) == ["-5", "0"]  # by size; clips without an SNR are in none
    assert found["condition"] == {}  # all alike
    part = WHOLE.take(SLICES["duration_ms"] == "300")
    c = resample(part.targets, resamples=SLICE_RESAMPLES, seed=3)
    rates = metrics.rates(c, part.decided)
    assert found["duration_ms"]["300"] == {
        "rows": len(part.targets),
        "sources": c.sources,
        **{name: c.estimate(rates[name]).to_dict() for name in RATES},
    }
    assert sum(one["rows"] for one in found["duration_ms"].values()) == COUNT


def test_a_slice_of_one_class_has_no_balance_and_only_its_own_rate():
    found = describe(WHOLE, resamples=50)["slices"]["category"]
    assert list(found) == ["music", "speech"]
    speech, music = found["speech"], found["music"]
    assert speech["balanced_accuracy"] is music["balanced_accuracy"] is None
    assert speech["false_alarm_rate"] is None and music["hit_rate"] is None
    assert speech["hit_rate"]["value"] == speech["accuracy"]["value"]
    assert music["false_alarm_rate"]["value"] == pytest.approx(1 - music["accuracy"]["value"])


def test_an_undefined_statistic_has_no_interval():
    c = resample(WHOLE.targets, resamples=5)
    assert interval(c, Statistic(np.asarray(math.nan), np.full(5, math.nan))) is None
    assert interval(c, c.mean(WHOLE.right)) == c.estimate(c.mean(WHOLE.right)).to_dict()


# ---- values of a property


@given(st.lists(st.floats(-50, 5000), min_size=1, max_size=80))
def test_many_numbers_are_sliced_in_five_groups_that_hold_every_clip_once(numbers):
    values = np.array([f"{v:g}" for v in numbers] + [""])
    sizes = [float(v) for v in values if v]
    found = grouped(values)
    assert found[-1] == "" and all(found[:-1] != "")
    if len(set(sizes)) <= MOST_LEVELS:
        assert (found == values).all()
        return
    assert len(set(found[:-1])) <= GROUPS
    for size, group in zip(sizes, found[:-1], strict=True):
        low, high = map(float, group.split(" to "))
        assert low <= size <= high
    # Groups do not overlap: each begins at or above all clips of the ones before.
    names = ordered(found)
    ends = [[s for s, g in zip(sizes, found, strict=False) if g == name] for name in names]
    for one, other in itertools.pairwise(ends):
        assert max(one) <= min(other)


def test_groups_are_of_about_equal_size():
    values = np.array([str(i) for i in range(100)])
    _, counts = np.unique(grouped(values), return_counts=True)
    assert len(counts) == GROUPS and counts.min() >= 19 and counts.max() <= 21


def test_words_are_left_as_they_are_and_sorted_numbers_by_size():
    words = np.array([f"w{i}" for i in range(30)])
    assert (grouped(words) == words).all()
    assert ordered(np.array(["b", "a", "", "b"])) == ["a", "b"]
    assert ordered(np.array(["1000", "200", "-5"])) == ["-5", "200", "1000"]
    assert ordered(np.array(["100 to 200", "30 to 100", "200 to 1000"])) == [
        "30 to 100", "100 to 200", "200 to 1000",
    ]  # fmt: skip
    assert ordered(np.array(["a", "a"])) == [] and ordered(np.array(["", ""])) == []
    assert ordered(np.array(["a", ""])) == ["a"]


# ---- thresholds


def heard(**more):
    """Longer and louder clips of the first label are heard more often."""
    rng, sources = np.random.default_rng(1), 40
    level = np.tile(np.repeat([100, 200, 300, 500, 1000], 4), sources)
    snr = np.tile([-10, -5, 0, 5], sources * 5)
    truth = np.repeat([0, 1], len(level) // 2)
    share = 1 / (1 + np.exp(-2 * np.log2(level / 250) - snr / 4))
    says = np.where(truth == 0, share, 0.1)
    decided = (rng.random(len(level)) >= says).astype(int)
    t = Targets(
        ("x", "y"),
        tuple(map(str, range(len(level)))),
        truth,
        np.array([str(i // 20) for i in range(len(level))]),
        {"duration_ms": level.astype(str), "snr_db": snr.astype(str), **more},
    )
    return Predictions("m", t, decided)


def test_thresholds_are_told_by_name_with_their_end_signs():
    found = thresholds(heard())
    assert list(found) == ["DT50", "DT75", "DT90", "SNR75"]
    for name, t in found.items():
        assert set(t) == {"value", "low", "high", "censored", "text"}
        assert t["low"] <= t["value"] <= t["high"] and len(t["censored"]) == 3
        assert (" dB [" if name == "SNR75" else " ms [") in t["text"]
    assert found["DT50"]["value"] < found["DT75"]["value"]
    assert describe(heard(), resamples=20)["thresholds"] == found
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_published_thresholds_stand_beside_the_fitted_ones_for_levels_that_are_few():
    found = crossed(heard(), seed=2)
    assert list(found) == ["DT75", "DT90", "SNR75", "SNR90"]
    level = heard().targets.slices["duration_ms"].astype(float)
    assert found["DT75"] == crossings("ms", level, heard(), 0.75, seed=2)
    told = describe(heard(), resamples=20, seed=2)["crossings"]
    assert {name: one["text"] for name, one in told.items()} == {
        name: one.text() for name, one in found.items()
    }
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    many = heard(duration_ms=np.array([f"{100 + i}" for i in range(800)]))
    assert list(crossed(many)) == ["SNR75", "SNR90"]  # measured numbers are no levels
    assert set(DEFINITIONS) == {"thresholds", "crossings"}


def test_a_curve_needs_levels_and_numbers():
    assert list(curves(heard())) == ["duration_ms", "snr_db"]
    assert list(curves(heard(snr_db=np.full(800, "")))) == ["duration_ms"]
    assert list(curves(heard(snr_db=np.full(800, "loud")))) == ["duration_ms"]
    assert curves(said(slices={})) == {} and thresholds(said(slices={})) == {}
    p = curves(heard(), seed=4)["duration_ms"]
    assert (p.unit, p.levels.tolist()) == ("ms", [100, 200, 300, 500, 1000])
    assert p.thresholds == curves(heard(), seed=4)["duration_ms"].thresholds
