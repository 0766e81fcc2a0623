"""Answers with a promised error rate."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.errors import UserError
from evaluators.statistics.conformal import fit_conformal


def drawn(rng, sources, clips, spread):
    """(truth, sources, [clip, label] probabilities) of a noisy detector whose sources differ."""
    truth = np.repeat(np.arange(2 * sources) % 2, clips)
    source = np.repeat(np.arange(2 * sources), clips)
    shift = rng.normal(0, spread, 2 * sources)[source]
    odds = np.where(truth == 0, 1.0, -1.0) + shift + rng.normal(0, 1, len(truth))
    first = 1 / (1 + np.exp(-odds))
    return truth, source.astype(str), np.stack([first, 1 - first], axis=-1)


@pytest.mark.parametrize(("rate", "sources"), [(0.1, 11), (0.1, 40), (0.3, 20)])
def test_of_new_sources_no_more_than_the_rate_is_ruled_out(rate, sources):
    """Over many calibration sets the class of a clip of a new source is excluded at most as often as promised."""
    rng = np.random.default_rng(1)
    missed = []
    for _ in range(400):
        fitted = fit_conformal(*drawn(rng, sources, 5, 1.0), rate)
        truth, _, shares = drawn(rng, 20, 1, 1.0)
        missed.append(~fitted.possible(shares)[np.arange(len(truth)), truth])
    share = np.mean(missed)
    error = np.std([m.mean() for m in missed]) / len(missed) ** 0.5
    assert share <= rate + 3 * error
    assert share > 0.4 * rate - 1 / (sources + 1)  # nor is it met by ruling nothing out


def test_too_few_sources_rule_nothing_out():
    """Nine sources can promise one in ten, eight cannot."""
    rng = np.random.default_rng(2)
    assert fit_conformal(*drawn(rng, 9, 3, 1.0), 0.1).promised == (True, True)
    few = fit_conformal(*drawn(rng, 8, 3, 1.0), 0.1)
    assert few.promised == (False, False) and few.sources == (8, 8)
    assert few.possible(np.array([[0.0, 1.0]])).all() and not few.sure(np.array([[0.0, 1.0]])).any()


def test_the_level_by_hand():
    """Nine sources of one clip each at .1 to .9: at a rate of .2, one clip and the unknown source may be left out."""
    first = np.arange(1, 10) / 10
    shares = np.concatenate([np.stack([first, 1 - first], -1)] * 2)
    truth = np.repeat([0, 1], 9)
    sources = np.arange(18).astype(str)
    shares[9:] = shares[9:, ::-1]
    fitted = fit_conformal(truth, sources, shares, 0.2)
    assert fitted.least == pytest.approx((0.2, 0.2))
    assert fitted.possible(np.array([[0.2, 0.8], [0.19, 0.81]])).tolist() == [
        [True, True],
        [False, True],
    ]
    assert fitted.sure(np.array([[0.2, 0.8], [0.19, 0.81]])).tolist() == [False, True]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.2, 0.5, 1.0])), min_size=1),
    st.floats(0.01, 0.99),
)
def test_of_the_clips_themselves_no_more_are_ruled_out(clips, rate):
    """Whatever ties and sources there are, sources weighing alike and one more at 0."""
    source = np.array([str(s) for s, _ in clips])
    own = np.array([p for _, p in clips])
    truth = np.concatenate([np.zeros(len(own), int), [1]])
    shares = np.stack([np.append(own, 0.5), 1 - np.append(own, 0.5)], -1)
    fitted = fit_conformal(truth, np.append(source, "x"), shares, rate)
    out = ~fitted.possible(shares)[: len(own), 0]
    kinds = np.unique(source)
    weight = sum(out[source == s].mean() for s in kinds) / (len(kinds) + 1)
    # An empty exclusion is always right; else the unknown source counts as excluded too.
    assert not out.any() or weight + 1 / (len(kinds) + 1) <= rate + 1e-9


def test_what_cannot_be_learned_is_refused():
    truth, sources, shares = drawn(np.random.default_rng(0), 4, 2, 1.0)
    with pytest.raises(UserError, match="error rate 1 "):
        fit_conformal(truth, sources, shares, 1.0)
    with pytest.raises(UserError, match="class 2"):
        fit_conformal(truth[truth == 0], sources[truth == 0], shares[truth == 0], 0.1)
