"""Clips as arrays, and what was said of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.clips import Clip
from evaluators.targets import SLICES, Predictions, Targets

LABELS = ("x", "y", "z")


def clip(i, label="x", source="s", **more):
    fields = {"category": "music", "duration_ms": 200.0, "snr_db": 5.0, "condition": "k"} | more
    return Clip(
        clip_id=f"c{i}", path=Path("a"), label=label, source_id=source, split="dev", licence="l",
        sha256="0", **fields,
    )  # fmt: skip


def some(count=6):
    clips = [clip(i, LABELS[i % 3], f"s{i % 4}", duration_ms=100.0 * i) for i in range(count)]
    return Targets.of(clips, LABELS)


def said(targets, **more):
    return Predictions("m", targets, np.zeros(len(targets), int), **more)


def test_targets_hold_truth_sources_and_slices_in_the_order_of_the_clips():
    clips = [
        clip(0, "y", "one", duration_ms=199.99999, snr_db=None),
        clip(1, "x", "two", duration_ms=1234567.0, snr_db=-0.0, category="speech"),
        clip(2, "z", "one", duration_ms=0.5, snr_db=-12.25, condition="dur0.5"),
    ]
    t = Targets.of(clips, list(LABELS))
    assert (t.labels, t.clip_ids, len(t)) == (LABELS, ("c0", "c1", "c2"), 3)
    assert t.truth.tolist() == [1, 0, 2] and t.truth.dtype == np.int64
    assert t.sources.tolist() == ["one", "two", "one"]
    assert set(t.slices) == set(SLICES)
    assert t.slices["snr_db"].tolist() == ["", "0", "-12.25"]  # no minus zero
    assert t.slices["duration_ms"].tolist() == ["200", "1.23457e+06", "0.5"]
    assert t.slices["category"].tolist() == ["music", "speech", "music"]
    assert t.slices["condition"].tolist() == ["k", "k", "dur0.5"]
    with pytest.raises(ValueError, match="not in"):
        Targets.of(clips, ("x", "y"))


def test_the_label_with_the_fewest_sources_is_counted():
    truth = np.array([0, 0, 0, 2, 2])
    sources = np.array(["a", "b", "a", "b", "b"])
    t = Targets(LABELS, tuple("12345"), truth, sources)
    assert t.fewest_sources == 1  # label 2; label 1 does not occur
    assert t.take(truth == 0).fewest_sources == 2


@given(st.lists(st.integers(0, 5), max_size=9))
def test_taking_keeps_what_belongs_together(index):
    t = some()
    p = Predictions("m", t, np.array([2, 1, 0, 2, 1, 0]), np.arange(6) / 10, np.arange(6) * -1.0)
    taken = p.take(np.array(index, dtype=int))
    assert taken.name == "m" and taken.targets.labels == LABELS
    assert list(taken.targets.clip_ids) == [f"c{i}" for i in index]
    assert taken.targets.truth.tolist() == [i % 3 for i in index]
    assert taken.targets.sources.tolist() == [f"s{i % 4}" for i in index]
    assert taken.targets.slices["duration_ms"].tolist() == [f"{100 * i}" for i in index]
    assert taken.decided.tolist() == [[2, 1, 0, 2, 1, 0][i] for i in index]
    assert taken.probability.tolist() == [i / 10 for i in index]
    assert taken.score.tolist() == [-i for i in index]
    assert taken.right.tolist() == [p.right[i] for i in index]
    assert t.clip_ids == tuple(f"c{i}" for i in range(6))  # what is taken from stays


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_mask_takes_what_its_indices_take(mask):
    p = said(some(), probability=np.arange(6) / 10)
    one, two = p.take(np.array(mask)), p.take(np.flatnonzero(mask))
    assert one.targets.clip_ids == two.targets.clip_ids and len(one.targets) == sum(mask)
    assert one.probability.tolist() == two.probability.tolist()
    assert one.score is None


def test_right_is_where_the_decision_is_the_truth():
    t = some()
    p = Predictions("m", t, np.array([0, 0, 2, 1, 1, 1]))
    assert p.right.tolist() == [True, False, True, False, True, False]
    assert p.right.dtype == bool


def test_the_score_ranks_else_the_probability_else_nothing():
    t, odds, probability = some(), np.arange(6.0), np.linspace(0, 1, 6)
    assert said(t).ranking is None
    assert said(t, probability=probability).ranking is probability
    assert said(t, probability=probability, score=odds).ranking is odds
    assert said(t, score=odds).ranking is odds
