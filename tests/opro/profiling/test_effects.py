"""The linear model: effects that were put in come out, and nothing comes out where nothing was put in."""

from dataclasses import replace

import numpy as np
import pytest

from evaluators.statistics.resampling import Statistic
from evaluators.targets import Targets
from evaluators.tasks import SPEECH_TASK
from opro.profiling.effects import Coding, can_tell, confounded, effects, explained, slope
from opro.profiling.two_way import TwoWay
from opro.profiling.wordings import sample

RESAMPLES = 200


@pytest.fixture(scope="module")
def design():
    return sample(SPEECH_TASK, 300, 0)


@pytest.fixture(scope="module")
def two_way(design):
    truth = np.arange(80) % 2
    sources = np.array([f"{k}-{i}" for i, k in enumerate(truth)])
    targets = Targets(("A", "B"), tuple(sources), truth, sources)
    return TwoWay.of(targets, ["g"] * len(design.wordings), resamples=RESAMPLES)


def outcome(value, rng, sd=0.0):
    draws = value[:, None] + sd * rng.normal(
        size=(1, RESAMPLES)
    )  # of sources: alike for all wordings
    return Statistic(value, draws)


def has(design, factor, level):
    return np.array([w.levels.get(factor) == level for w in design.wordings])


def test_what_was_put_in_comes_out(design, two_way):
    rng = np.random.default_rng(0)
    told = has(design, "hint", "When in doubt, answer speech.")
    value = 0.5 + 0.3 * told - 0.1 * has(design, "lines", "one line")
    value += 0.2 * has(design, "thing", "speech") + 0.01 * rng.normal(size=len(told))
    rows = np.arange(len(value))
    found = {
        (e.factor, e.level): e
        for e in effects(design, two_way, rows, {"y": outcome(value, rng, 0.05)})
    }
    hints = len(next(f for f in design.factors if f.name == "hint").levels)
    expected = {
        ("hint", "When in doubt, answer speech."): 0.3 * (1 - 1 / hints),
        ("hint", "Speech may be faint."): -0.3 / hints,
        ("lines", "one line"): -0.05,
        ("lines", "several lines"): 0.05,
        ("thing", "speech"): 0.2 * 5 / 6,
        ("letters", "A B"): 0.0,
    }
    for name, wanted in expected.items():
        got = found[name].moved["y"]
        assert got["value"] == pytest.approx(wanted, abs=0.006)
        assert got["low"] <= wanted <= got["high"]
        assert found[name].clear == (wanted != 0)
    assert found["hint", "When in doubt, answer speech."].count == told.sum()
    share = explained(design, value)
    assert share["all"] > 0.98 and share["hint"] > 0.4 > share["lines"] > 0.02 > share["mark"]


def test_effects_of_a_factor_add_to_nothing_and_agree_with_least_squares(design, two_way):
    rng = np.random.default_rng(1)
    value, rows = rng.normal(size=len(design.wordings)), np.arange(len(design.wordings))
    found = effects(design, two_way, rows, {"y": outcome(value, rng)})
    coding = Coding.of(design)
    fitted = coding.x @ np.linalg.lstsq(coding.x, value, rcond=None)[0]
    total = np.full(len(value), np.linalg.lstsq(coding.x, value, rcond=None)[0][0])
    for factor in design.factors:
        own = {e.level: e.moved["y"]["value"] for e in found if e.factor == factor.name}
        assert sum(own.values()) == pytest.approx(0, abs=1e-9)
        total += [own.get(w.levels.get(factor.name), 0.0) for w in design.wordings]
    assert total == pytest.approx(fitted)


def test_nothing_is_shown_of_noise(design, two_way):
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(4):
        value = rng.normal(size=len(design.wordings))
        rows = np.arange(len(value))
        wrong += any(e.clear for e in effects(design, two_way, rows, {"y": outcome(value, rng)}))
        assert max(explained(design, value).values()) < 0.15
    assert wrong <= 1


def test_few_sources_show_nothing(design):
    truth = np.arange(36) % 2
    targets = Targets(
        ("A", "B"), tuple(map(str, range(36))), truth, (np.arange(36) % 18).astype(str)
    )
    t = TwoWay.of(targets, ["g"] * len(design.wordings), resamples=RESAMPLES)
    assert t.sources.fewest == 9
    value = 0.5 * has(design, "lines", "one line")
    found = effects(
        design, t, np.arange(len(value)), {"y": outcome(value, np.random.default_rng(0))}
    )
    assert not any(e.clear for e in found)


def test_few_wordings_tell_no_parts(design):
    few = sample(SPEECH_TASK, 50, 0)
    assert "give --wordings 162 or more" in can_tell(few)
    assert can_tell(design) == ""
    twice = replace(
        design,
        wordings=tuple(
            replace(w, levels={**w.levels, "lines": w.levels["first option"]})
            for w in design.wordings
        ),
        factors=tuple(
            replace(f, levels=SPEECH_TASK.labels) if f.name == "lines" else f
            for f in design.factors
        ),
    )
    assert "always change together" in can_tell(twice)


def test_what_is_confounded_is_said(design):
    lengths = np.array([len(w.prompt.text) for w in design.wordings], dtype=float)
    said = " ".join(confounded(design, lengths, "characters"))
    assert "length is the sum of the other parts" in said and "questions that name it" in said


def test_the_slope_is_that_of_a_line(two_way):
    rng = np.random.default_rng(3)
    x = rng.integers(20, 60, 300).astype(float)
    value = 0.02 * x / 10 + rng.normal(size=300) * 0.05
    rows = np.arange(250)
    found = slope(x, two_way, rows, outcome(value, rng))
    assert found.value == pytest.approx(np.polyfit(x[rows] / 10, value[rows], 1)[0])
    assert two_way.interval(found)["low"] < found.value < two_way.interval(found)["high"]
    assert np.isnan(slope(np.ones(300), two_way, rows, outcome(value, rng)).value)
