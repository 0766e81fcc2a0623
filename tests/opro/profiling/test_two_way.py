"""Two-way resamples: values as numpy gives them, and intervals that hold what wordings and sources might have been."""

import itertools

import numpy as np
import pytest

from evaluators.statistics import metrics
from evaluators.statistics.resampling import Statistic
from evaluators.targets import Targets
from opro.profiling.two_way import OUTCOMES, Answers, TwoWay, noise, summary


def made(rng, wordings=12, clips=60, labels=2):
    truth = np.arange(clips) % labels
    sources = np.array([f"{k}-{i}" for k, i in zip(truth, rng.integers(0, 12, clips), strict=True)])
    names = tuple("ABCDE"[:labels])
    targets = Targets(names, tuple(map(str, range(clips))), truth, sources)
    logp = rng.normal(size=(wordings, clips, labels)) + 1.5 * np.eye(labels)[truth]
    logp -= np.logaddexp.reduce(logp, axis=-1, keepdims=True)
    return targets, logp


@pytest.mark.parametrize("labels", [2, 3])
def test_outcomes_are_those_of_each_wording_alone(labels):
    targets, logp = made(np.random.default_rng(0), labels=labels)
    answers = Answers(targets, logp)
    t = TwoWay.of(targets, ["a"] * len(logp), resamples=50)
    found = answers.outcomes(t.sources)
    assert tuple(found) == OUTCOMES
    for i, one in enumerate(logp):
        said = one.argmax(-1)
        balanced = metrics.balanced_accuracy(targets.truth, said == targets.truth)
        assert found["balanced_accuracy"].value[i] == pytest.approx(balanced)
        assert found["auroc"].value[i] == pytest.approx(metrics.auroc_of(targets.truth, one))
        first = np.mean([(said[targets.truth == k] == 0).mean() for k in range(labels)])
        assert found["bias"].value[i] == pytest.approx(first - 1 / labels)
        assert answers.tuned[i] >= balanced - 1e-12
    assert all(s.draws.shape == (len(logp), 50) for s in found.values())


def test_a_resample_is_the_statistic_of_what_was_drawn():
    """Of each drawn set of wordings and clips, written out with as many copies."""
    rng = np.random.default_rng(1)
    targets, logp = made(rng)
    groups = ["a"] * 7 + ["b"] * 5
    t = TwoWay.of(targets, groups, resamples=8, seed=3)
    assert (t.times[:, :7].sum(1) == 7).all() and (t.times[:, 7:].sum(1) == 5).all()
    answers = Answers(targets, logp)
    outcomes = answers.outcomes(t.sources)
    rows = np.arange(7)
    found = summary(t, answers, outcomes, rows)
    for b in range(8):
        drawn = np.repeat(rows, t.times[b, rows])
        weight = t.sources.weights[b][t.sources.index].astype(int)
        clips = np.repeat(np.arange(len(targets)), weight)
        part = Answers(targets.take(clips), logp[drawn][:, clips])
        score = []
        for said in part.decided:
            score.append(metrics.balanced_accuracy(part.targets.truth, said == part.targets.truth))
        for q in (5, 50, 95):
            wanted = np.quantile(score, q / 100)
            assert found[f"balanced_accuracy_q{q}"].draws[b] == pytest.approx(wanted)
        assert found["balanced_accuracy_mean"].draws[b] == pytest.approx(np.mean(score))
        assert found["balanced_accuracy_sd"].draws[b] == pytest.approx(np.std(score))
        same = np.zeros(len(clips))
        pairs = [p for p in itertools.permutations(range(7), 2) if drawn[p[0]] != drawn[p[1]]]
        for i, j in pairs:
            same += part.decided[i] == part.decided[j]
        truth = part.targets.truth
        wanted = np.mean([(same / len(pairs))[truth == k].mean() for k in (0, 1)])
        assert found["consistency"].draws[b] == pytest.approx(wanted)


def test_equal_wordings_agree_and_do_not_spread():
    targets, logp = made(np.random.default_rng(2))
    same = np.repeat(logp[:1], 12, axis=0)
    answers, t = Answers(targets, same), TwoWay.of(targets, ["a"] * 12, resamples=100)
    outcomes, rows = answers.outcomes(t.sources), np.arange(12)
    found = summary(t, answers, outcomes, rows)
    assert t.interval(found["consistency"]) == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert t.interval(found["balanced_accuracy_sd"])["value"] == pytest.approx(0)
    assert noise(outcomes["balanced_accuracy"], rows) == pytest.approx(0)
    median = t.interval(found["balanced_accuracy_q50"])
    assert median["low"] < median["value"] < median["high"]  # other recordings still


def test_both_ways_of_drawing_widen_an_interval():
    """What differs by wording alone, and what differs by source alone."""
    rng = np.random.default_rng(3)
    targets, _ = made(rng, wordings=40)
    t = TwoWay.of(targets, ["a"] * 40, resamples=400)
    rows = np.arange(40)
    by_wording = rng.normal(size=40)
    one = Statistic(by_wording, np.repeat(by_wording[:, None], 400, axis=1))
    by_source = t.sources.mean(rng.normal(size=len(targets)))
    other = Statistic(np.full(40, by_source.value), np.tile(by_source.draws, (40, 1)))
    both = Statistic(one.value + other.value, one.draws + other.draws)
    sd = {name: t.mean(s, rows).draws.std() for name, s in (("w", one), ("s", other), ("b", both))}
    assert sd["w"] == pytest.approx(by_wording.std() / np.sqrt(40), rel=0.15)
    assert sd["s"] == pytest.approx(by_source.draws.std())
    assert sd["b"] == pytest.approx(np.hypot(sd["w"], sd["s"]), rel=0.1)


def test_what_is_undefined_has_no_interval():
    targets, _ = made(np.random.default_rng(4))
    t = TwoWay.of(targets, ["a"] * 12, resamples=20)
    nothing = {"value": None, "low": None, "high": None}
    assert t.interval(Statistic(np.array(np.nan), np.full(20, np.nan))) == nothing
