"""Evidence: what a language model is shown of a search."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import NINE, clip, logp_of, right_about, scored_trial, three_seeds, view_of

from evaluators.prompts import Prompt
from opro.proposers.evidence import (
    about_clip,
    about_parent,
    decided,
    draw_parent,
    front,
    misjudged,
    standstill,
)

TRUTH = NINE.targets.truth


def test_parents_come_from_the_front_and_dominated_prompts_do_not(seeds):
    view = three_seeds(seeds)
    leads = front(view, view.trials)
    assert set(leads) == {0, 1}  # 2 is right only where 0 is
    assert leads[0] > leads[1]
    assert front(view, view.trials[::-1]) == leads
    drawn = [draw_parent(view, random.Random(i)).number for i in range(300)]
    assert set(drawn) == {0, 1}
    assert drawn.count(1) / 300 == pytest.approx(leads[1] / sum(leads.values()), abs=0.08)


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


def test_only_a_trial_whose_scores_are_known_is_a_parent(seeds):
    view = three_seeds(seeds, logp={2: right_about(1)})
    assert {draw_parent(view, random.Random(i)).number for i in range(9)} == {2}
    assert draw_parent(three_seeds(seeds, logp={}), random.Random(0)) is None
    assert draw_parent(view_of([]), random.Random(0)) is None


def test_what_is_decided_counts_the_fitted_threshold():
    odds = np.linspace(-4, 4, 9)
    trial = scored_trial(0, 0.5, 0, bias=2.5)
    view = view_of([trial], clips=NINE, logp={0: logp_of(odds)})
    assert (decided(view, trial) == np.where(odds + 2.5 > 0, 0, 1)).all()


def test_a_parent_is_shown_with_its_errors(seeds):
    view = three_seeds(seeds)
    text = about_parent(view, view.trials[0], random.Random(0))
    assert text.startswith(f"Start from this prompt, which scored 70:\n\n{seeds[0].text}\n")
    assert "It does worst on: 200 ms (40 % of 5 clips), music (90 % of 4 clips)." in text
    assert "It gets 1 of 5 clips of SPEECH wrong." in text
    assert "It gets 1 of 4 clips of NONSPEECH wrong." in text
    assert "Some clips it gets wrong:" in text and "Changes tried" not in text
    right = replace(view, logp={0: right_about(*range(9))})
    assert "Some clips" not in about_parent(right, view.trials[0], random.Random(0))


def test_the_four_worst_slices_are_named_the_worst_first(seeds):
    slices = {f"{i} ms": (share, 7) for i, share in enumerate((0.9, 0.3, 0.5, 0.1, 0.8))}
    trial = scored_trial(0, 0.5, 0, slices=slices)
    text = about_parent(
        view_of([trial], clips=NINE, logp={0: right_about()}), trial, random.Random(0)
    )
    named = (
        "3 ms (10 % of 7 clips), 1 ms (30 % of 7 clips), 2 ms (50 % of 7 clips), 4 ms (80 % of 7"
    )
    assert f"It does worst on: {named} clips)." in text


def test_the_best_six_children_are_shown_ascending_with_what_they_gained(seeds):
    parent = seeds[0].prompt_id
    children = [
        scored_trial(
            3 + i,
            0.7 + gain,
            1,
            state="dropped" if i % 2 else "complete",
            parents=("x", parent),
            prompt=Prompt(f"Child {i}:\nA or B"),
        )
        for i, gain in enumerate((0.05, -0.2, 0.1, 0.02, -0.05, 0.15, 0.01))
    ]
    waiting = replace(children[0], number=10, state="failed", outcome=None)
    view = three_seeds(seeds, [*children, waiting])
    shown = about_parent(view, view.trials[0], random.Random(0)).split("they gained:\n")[1]
    assert shown.split("\n") == [
        "-5.0: Child 4: / A or B",
        "+1.0: Child 6: / A or B",
        "about +2.0: Child 3: / A or B",
        "+5.0: Child 0: / A or B",
        "+10.0: Child 2: / A or B",
        "about +15.0: Child 5: / A or B",
    ]
    assert "Changes tried" not in about_parent(view, view.trials[1], random.Random(0))


@pytest.mark.parametrize("state", ["waiting", "failed"])
def test_a_child_without_a_score_is_not_shown(seeds, state):
    about = {"parents": (seeds[0].prompt_id,), "prompt": Prompt("Child: A or B")}
    child = replace(scored_trial(3, 0.5, 1, **about), state=state, outcome=None)
    view = three_seeds(seeds, [child])
    assert "Child" not in about_parent(view, view.trials[0], random.Random(0))


def test_a_misjudged_clip_is_told_in_words_with_the_answer_given():
    odds = np.where(TRUTH == 0, 3.0, -3.0)
    odds[[1, 4]] = [1.0, -2.0]
    trial = scored_trial(0, 0.5, 0, bias=-0.5)
    view = view_of([trial], clips=NINE, logp={0: logp_of(odds)})
    first = "a clip of 300 ms, 5 dB above its noise, kind: music; it is NONSPEECH, the answer was SPEECH"
    second = "a clip of 600 ms, 5 dB above its noise, kind: speech; it is SPEECH, the answer was"
    assert misjudged(view, trial, 9, random.Random(0)) == [
        f"{first} (62 % sure)",  # sigmoid of 0.5
        f"{second} NONSPEECH (92 % sure)",  # sigmoid of 2.5
    ]
    one = {tuple(misjudged(view, trial, 1, random.Random(i))) for i in range(20)}
    assert len(one) == 2 and all(len(o) == 1 for o in one)
    assert misjudged(view, trial, 0, random.Random(0)) == []


def test_a_clip_without_noise_is_told_without_it():
    assert about_clip(clip(1, duration=249.6)) == "a clip of 250 ms, kind: x"
    assert about_clip(clip(1, snr=-2.4)) == "a clip of 500 ms, -2 dB above its noise, kind: x"


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
