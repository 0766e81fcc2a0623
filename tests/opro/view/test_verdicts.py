"""Agreement of listeners, and the ceiling that the labels' noise leaves."""

import numpy as np
import pytest
from common import LABELS
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import clip

pytest.importorskip("krippendorff", reason="pip install 'opro-audio[view]'")

from opro.view.verdicts import UNSURE, Verdict, alpha, ceiling, playlist, read_verdicts, record

SAID = (*LABELS, UNSURE)


def verdicts(table):
    """Of ``{listener: [verdict of each clip or None]}``."""
    return [
        Verdict("m", str(i), who, said, "")
        for who, row in table.items()
        for i, said in enumerate(row)
        if said is not None
    ]


def by_hand(table):
    """Nominal alpha from its definition: 1 - observed / expected disagreement over pairs within a clip."""
    clips = [
        [r[i] for r in table.values() if r[i] in LABELS]
        for i in range(len(next(iter(table.values()))))
    ]
    clips = [c for c in clips if len(c) > 1]
    every = [v for c in clips for v in c]
    n = len(every)
    observed = sum(
        sum(a != b for j, a in enumerate(c) for k, b in enumerate(c) if j != k) / (len(c) - 1) for c in clips
    ) / n  # fmt: skip
    expected = sum(a != b for j, a in enumerate(every) for k, b in enumerate(every) if j != k) / (
        n * (n - 1)
    )
    return 1 - observed / expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([*SAID, None]), min_size=6, max_size=6), min_size=1, max_size=4
    )
)
def test_alpha_is_that_of_its_definition_or_unknown(rows):
    table = {f"p{i}": row for i, row in enumerate(rows)}
    found = alpha(verdicts(table), LABELS)
    paired = [[r[i] for r in rows if r[i] in LABELS] for i in range(6)]
    values = {v for c in paired if len(c) > 1 for v in c}
    if len(values) < 2:
        assert found is None
    else:
        assert found == pytest.approx(by_hand(table), abs=1e-9)


def test_the_ceiling_is_the_balanced_accuracy_of_the_majority():
    clips = {str(i): clip(i, i % 2, source=f"s{i}") for i in range(24)}
    right = [LABELS[i % 2] for i in range(24)]
    wrong = [LABELS[0] if i == 1 else v for i, v in enumerate(right)]
    found = ceiling(verdicts({"a": right, "b": wrong, "c": wrong}), clips, LABELS)
    assert found.estimate.value == pytest.approx((1 + 11 / 12) / 2) and found.differ == ("1",)
    assert found.estimate.low is not None and (found.clips, found.undecided) == (24, 0)


def test_ties_and_unsure_clips_are_left_out_and_counted():
    clips = {str(i): clip(i, i % 2) for i in range(4)}
    table = {
        "a": [LABELS[0], LABELS[1], UNSURE, LABELS[0]],
        "b": [LABELS[0], LABELS[0], UNSURE, UNSURE],
    }
    found = ceiling(verdicts(table), clips, LABELS)
    assert (found.clips, found.undecided) == (2, 2)
    assert ceiling(verdicts({"a": [LABELS[0]]}), clips, LABELS).estimate is None
    assert ceiling([], clips, LABELS).estimate is None


def test_the_last_verdict_on_a_clip_counts_and_other_clip_sets_do_not(tmp_path, caplog):
    path = tmp_path / "listening.jsonl"
    record(path, "m", "1", "a", "SPEECH")
    last = record(path, "m", "1", "a", "unsure")
    record(path, "other", "1", "a", "SPEECH")
    with path.open("a") as file:
        file.write('{"torn')
    assert read_verdicts(path, "m") == [last]
    record(path, "m", "2", "a", "SPEECH")
    assert len(read_verdicts(path, "m")) == 2
    whole = path.read_text()
    path.write_text("[]\n" + whole)
    assert len(read_verdicts(path, "m")) == 2
    assert "listening.jsonl:1: damaged line" in caplog.text


def test_everybody_hears_the_same_clips_in_an_order_of_their_own():
    clips = [clip(i, i % 2) for i in range(200)]
    ann, bob = playlist(clips, "ann"), playlist(clips, "bob")
    assert ann != bob and set(ann) == set(bob) and len(ann) == 100
    assert playlist(clips, "ann") == ann
    assert np.mean([c.label == LABELS[0] for c in ann]) == 0.5
