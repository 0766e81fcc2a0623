"""The sentence of a ceiling follows from paired differences, and never claims more than they show."""

import json

import numpy as np
import pytest
from common import LABELS

from evaluators.errors import UserError
from evaluators.statistics.compare import compare_pairs
from evaluators.targets import Predictions, Targets
from opro.results.ceilings import RESULT, Reached, beyond, ceiling_of, read_soft_folder

CLIPS = 400
TRUTH = np.arange(CLIPS) % 2
TARGETS = Targets(
    LABELS,
    tuple(map(str, range(CLIPS))),
    TRUTH,
    np.array([f"{i % 2}-{i // 10}" for i in range(CLIPS)]),
)


def said(share, seed=0):
    """Right about this share of each label, spread over the sources."""
    wrong = np.zeros(CLIPS, dtype=bool)
    for label in (0, 1):
        own = np.flatnonzero(label == TRUTH)
        order = np.random.default_rng([seed, label]).permutation(len(own))
        wrong[own[order[: round((1 - share) * len(own))]]] = True
    return Predictions(f"{share}", TARGETS, np.where(wrong, 1 - TRUTH, TRUTH))


def test_differences_are_those_of_the_one_comparison():
    three = [said(0.6), said(0.9, 1), said(0.8, 2)]
    found = ceiling_of(Reached(three[0], three[1], three[2]))
    pairs = compare_pairs(three, pairs=[(1, 0), (2, 0), (1, 2)])
    for name, pair in zip(("room", "found", "left"), pairs, strict=True):
        assert found[name]["value"] == pair["difference"]
        assert {k: found[name][k] for k in ("low", "high", "p", "p_holm")} == {
            k: pair[k] for k in ("low", "high", "p", "p_holm")
        }
    assert found["room"]["value"] == pytest.approx(0.3)
    assert found["scores"]["soft"]["value"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("hand", "soft", "searched", "expected", "never"),
    [
        (0.6, 0.95, 0.7, ("at most about +35.0", "+10.0", "is shown: search on, or train"), "stop"),
        (0.6, 0.81, 0.80, ("+21.0", "+20.0", "not shown by these clips: stop searching"), "bounds"),
        (
            0.6,
            0.70,
            0.80,
            ("more than the soft prompt, which has +10.0", "bounds nothing"),
            "at most",
        ),
        (0.8, 0.801, 0.80, ("which these clips do not show", "stop searching"), "bounds"),
        (0.6, 0.80, 0.81, ("at most about +20.0", "the search has +21.0", "stop"), "of them"),
        (0.6, 0.95, None, ("can gain at most about +35.0",), "search"),
        (0.8, 0.80, None, ("no room is shown",), "at most"),
    ],
)
def test_the_sentence_says_what_is_shown(hand, soft, searched, expected, never):
    other = None if searched is None else said(searched, 2)
    text = ceiling_of(Reached(said(hand), said(soft, 1), other))["sentence"]
    assert all(part in text for part in expected) and never not in text


def test_what_fine_tuning_has_beyond_it():
    soft, tuned = said(0.8), said(0.9, 1)
    (pair,) = compare_pairs([soft, tuned], pairs=[(1, 0)])
    found = beyond(soft, {"lora": tuned})
    assert list(found) == ["lora"] and found["lora"]["value"] == pair["difference"]
    assert found["lora"]["low"] == pair["low"] and beyond(soft, {}) == {}


def test_where_the_search_kept_the_hand_written_prompt_it_has_nothing():
    hand = said(0.6)
    found = ceiling_of(Reached(hand, said(0.9, 1), hand))
    assert found["found"]["value"] == 0 and found["left"] == found["room"]
    assert found["room"] == ceiling_of(Reached(hand, said(0.9, 1)))["room"]
    assert "the search has +0.0" in found["sentence"]


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="give a folder of opro"):
        read_soft_folder(tmp_path, LABELS)
    (tmp_path / RESULT).write_text(json.dumps({"checkpoint": "x"}))
    with pytest.raises(UserError, match="is damaged"):
        read_soft_folder(tmp_path, LABELS)
