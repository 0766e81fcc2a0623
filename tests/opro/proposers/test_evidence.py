"""Evidence: what a language model is shown of a search."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import NINE, clip, clip_set, logp_of, right_about, scored_trial, three_seeds, view_of

from evaluators.prompts import Prompt
from opro.proposers.evidence import (
    CHILDREN,
    LEADERS,
    about_parent,
    decided,
    draw_parent,
    edits,
    front,
    noise,
    standstill,
)

TRUTH = NINE.targets.truth


def test_half_of_the_parents_are_of_the_front_and_half_are_leaders(seeds):
    view = three_seeds(seeds)
    leads = front(view, view.trials)
    assert set(leads) == {0, 1}  # 2 is right only where 0 is
    assert leads[0] > leads[1]
    assert front(view, view.trials[::-1]) == leads
    drawn = [draw_parent(view, random.Random(i)).number for i in range(600)]
    share = leads[1] / sum(leads.values())
    assert drawn.count(2) / 600 == pytest.approx(0.5 * 2 / 7, abs=0.06)  # second of three leaders
    assert drawn.count(1) / 600 == pytest.approx(0.5 * share + 0.5 / 7, abs=0.06)


def test_a_forecast_that_leads_may_be_a_parent_and_the_last_of_many_may_not(seeds):
    more = [
        scored_trial(3 + i, 0.9 - i / 100, state="dropped", sd=0.01, prompt=Prompt(f"{i}: A or B"))
        for i in range(LEADERS + 2)
    ]
    view = three_seeds(seeds, more, logp={})
    drawn = {draw_parent(view, random.Random(i)).number for i in range(400)}
    assert drawn == set(range(3, 3 + LEADERS))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sets(st.integers(0, 8)), min_size=1, max_size=6))
def test_the_front_against_its_definition(right):
    """Who is right about the same clips as an earlier one adds nothing; a clip's lead is shared."""
    trials = [scored_trial(i, 0.5, 0) for i in range(len(right))]
    view = view_of(trials, clips=NINE, logp={i: right_about(*r) for i, r in enumerate(right)})
    kept = [
        i
        for i, own in enumerate(right)
        if not any(own < other or (own == other and j < i) for j, other in enumerate(right))
    ]
    leads = front(view, trials)
    assert list(leads) == kept
    for i in kept:
        shares = [1 / sum(c in right[j] for j in kept) for c in right[i]]
        assert leads[i] == pytest.approx(sum(shares) / 9)
    assert draw_parent(view, random.Random(0)).number in kept  # also where nobody is right


def test_without_a_score_there_is_no_parent():
    assert draw_parent(view_of([]), random.Random(0)) is None


def test_what_is_decided_counts_the_fitted_threshold():
    odds = np.linspace(-4, 4, 9)
    trial = scored_trial(0, 0.5, 0, bias=2.5)
    view = view_of([trial], clips=NINE, logp={0: logp_of(odds)})
    assert (decided(view, trial) == np.where(odds + 2.5 > 0, 0, 1)).all()


def test_a_parent_is_shown_with_its_errors_by_clip():
    """Eight clips of speech at two durations and two levels, four of music, four of animals."""
    clips = clip_set(
        [clip(f"s{i}", 0, (200.0, 1000.0)[i // 4], (-2.0, 10.0)[i % 2], "speech") for i in range(8)]
        + [clip(f"n{i}", 1, 500.0, None, ("music", "animal")[i // 4]) for i in range(8)]
    )
    odds = np.array([-3, 1, -1, 3, 3, 3, 3, 3, -3, -3, -1, 3, -3, -3, -3, 1], float)
    parent = scored_trial(4, 0.775, 0, prompt=Prompt("Speech?\nA or B"))
    text = about_parent(view_of([parent], clips=clips, logp={4: logp_of(odds)}), parent)
    assert text.split("\n") == [
        "Row #4, which scores 77.5:",
        "",
        "Speech?",
        "A or B",
        "",
        "SPEECH, 8 clips: 5 right and sure, 1 right but near, 1 wrong but near, 1 wrong and sure.",
        "NONSPEECH, 8 clips: 5 right and sure, 1 right but near, 1 wrong but near, 1 wrong and sure.",
        "SPEECH missed of clips, by duration and SNR:",
        "- 200 ms: 0 dB 2/2, 10 dB 0/2",
        "- 1000 ms: 0 dB 0/2, 10 dB 0/2",
        "NONSPEECH called SPEECH: animal 1/4, music 1/4",
    ]


def test_errors_count_the_fitted_threshold_and_clips_without_noise(seeds):
    clips = clip_set([clip(0, 0, 200.0), clip(1, 1, 200.0)])
    parent = scored_trial(0, 0.5, 0, prompt=seeds[0], bias=-2.0)
    text = about_parent(view_of([parent], clips=clips, logp={0: logp_of([1.0, 1.0])}), parent)
    assert "SPEECH, 1 clips: 0 right and sure, 0 right but near, 1 wrong but near" in text
    assert "- 200 ms: no noise 1/1" in text and "called SPEECH" not in text


def test_many_durations_are_told_in_quarters_and_no_clip_is_left_out():
    clips = clip_set([clip(i, 0, 200.0 + 7 * i, 0.0) for i in range(100)])
    parent = scored_trial(0, 0.5, 0, prompt=Prompt("A or B"))
    odds = np.where(np.arange(100) < 10, -1.0, 1.0)
    text = about_parent(view_of([parent], clips=clips, logp={0: logp_of(odds)}), parent)
    rows = [line for line in text.split("\n") if line.startswith("- ")]
    assert (
        len(rows) == 4
        and rows[0].startswith("- 200 to 3")
        and rows[-1].endswith(" to 893 ms: 0 dB 0/26")
    )
    counts = [row.rpartition(" ")[2].split("/") for row in rows]
    assert sum(int(missed) for missed, _ in counts) == 10 and sum(int(n) for _, n in counts) == 100


def test_of_a_forecast_it_is_said_that_errors_are_unknown(seeds):
    parent = scored_trial(3, 0.9, state="dropped", prompt=Prompt("Q: A or B"), n_scored=4)
    text = about_parent(three_seeds(seeds, [parent]), parent)
    assert "It heard 4 of 9 clips: its errors are not known." in text and "missed" not in text


def test_the_best_and_the_worst_edits_are_shown_with_what_they_gained(seeds):
    parent = seeds[0].prompt_id
    gains = [i / 100 for i in range(-5, 5)]
    children = [
        scored_trial(
            3 + i,
            0.7 + gain,
            1,
            state="dropped" if i % 2 else "complete",
            parents=("x", parent),
            prompt=Prompt(f"Child {i}:\nA or B"),
        )
        for i, gain in enumerate(gains)
    ]
    unscored = replace(children[0], number=20, state="failed", outcome=None)
    view = three_seeds(seeds, [*children, unscored])
    head, *lines = edits(view, view.trials[0], [view.trials[3]]).split("\n")
    assert head == "Edits of it, with the points they gained:" and len(lines) == 2 * CHILDREN
    assert lines[0] == "- -5.0: row #3"  # its text stands in the table
    assert lines[1] == '- about -4.0: row #4: "Child 1:\\nA or B"'
    assert lines[-1] == '- about +4.0: row #12: "Child 9:\\nA or B"'
    assert edits(view, view.trials[1], []) == ""


def test_noise_is_half_of_a_seed_prompts_interval(seeds):
    widths = (0.10, 0.20, 0.12)
    trials = [
        scored_trial(i, 0.5, 0, low=0.5 - w / 2, high=0.5 + w / 2) for i, w in enumerate(widths)
    ]
    made = scored_trial(3, 0.9, 1, low=0.0, high=1.0)
    assert noise(view_of([*trials, made])) == pytest.approx(6.0)
    assert noise(view_of([scored_trial(0, 0.5, 0)])) is None


def test_a_standstill_counts_iterations_since_the_best_was_found(seeds):
    assert standstill(view_of([])) == 0 and standstill(three_seeds(seeds)) == 0
    trials = []
    for iteration, reward in ((1, 0.6), (2, 0.9), (3, 0.8), (4, 0.1)):
        trials.append(scored_trial(2 + iteration, reward, iteration))
        found = standstill(three_seeds(seeds, trials))
        assert found == {1: 1, 2: 0, 3: 1, 4: 2}[iteration]
    unsure = scored_trial(9, 0.99, 5, state="dropped", sd=0.5)
    assert standstill(three_seeds(seeds, [*trials, unsure])) == 3
    nobody = replace(scored_trial(0, 0.5, 0), state="failed", outcome=None)
    assert standstill(view_of([nobody], 4)) == 0
