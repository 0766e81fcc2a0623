"""The table of a request."""

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from searches import scored_trial, view_of

from evaluators.prompts import Prompt
from opro.proposers.table import (
    CONTRASTS,
    FAILED,
    SHOWN,
    WORST,
    answers_in_words,
    shown_trials,
    table,
)
from opro.search.objective import Profile

HEAD = "row | score | hits | false alarms | AUROC | tuned | outside | clips | answers (SPEECH, NONSPEECH) | text"


def test_a_row_shows_what_a_score_hides():
    known = Profile((0.6, 0.96), 0.95, 0.885)
    text = Prompt('Say "A":\nA) yes B) no', answers=(("SPEECH", ("A", "a")), ("NONSPEECH", ("B",))))
    one = scored_trial(3, 0.78, prompt=text, profile=known, outside=0.024, n_scored=200)
    guess = replace(one.outcome, reward=0.18, sd=0.02, n_scored=32)
    dropped = replace(one, number=4, state="dropped", outcome=guess)
    assert table(view_of([one, dropped]), [dropped, one]).split("\n") == [
        HEAD,
        '#4 | ~18.0 | 60 | 4 | 0.950 | 88.5 | 2 | 32 | A/a, B | "Say \\"A\\":\\nA) yes B) no"',
        '#3 | 78.0 | 60 | 4 | 0.950 | 88.5 | 2 | 200 | A/a, B | "Say \\"A\\":\\nA) yes B) no"',
    ]


def test_what_an_older_journal_does_not_know_is_a_dash():
    old = scored_trial(0, 0.5, 0, prompt=Prompt("A or B"))
    assert (
        table(view_of([old]), [old])
        .split("\n")[1]
        .startswith("#0 | 50.0 | - | - | - | - | - | 9 |")
    )
    unknown = scored_trial(0, 0.5, 0, profile=Profile((0.5, 0.5), math.nan, 0.5))
    assert " | 50 | 50 | - | 50.0 | " in table(view_of([unknown]), [unknown])


def test_prompts_without_a_score_are_named_with_the_reason():
    failed = [
        replace(
            scored_trial(i, 0.5, prompt=Prompt(f"F{i}: A or B")),
            state="failed",
            outcome=None,
            error="its answer is two tokens" + "!" * 200,
        )
        for i in range(FAILED + 2)
    ]
    lines = table(view_of(failed), []).split("\n")
    assert lines[1].startswith("#2 could not be scored: its answer is two tokens!!!")
    assert "SPEECH=A NONSPEECH=B" in lines[1] and '"F2: A or B"' in lines[1]
    assert lines[-1] == "2 more could not be scored." and max(map(len, lines)) < 200


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=60))
def test_rows_stand_in_the_order_of_what_is_printed(rewards):
    trials = [
        scored_trial(
            i,
            r / 1000,
            state=("complete", "dropped")[r % 2],
            sd=r % 7 / 100,
            prompt=Prompt(f"{i} A B"),
        )
        for i, r in enumerate(rewards)
    ]
    view = view_of(trials)
    shown = shown_trials(view)
    printed = [
        float(line.split(" | ")[1].lstrip("~")) for line in table(view, shown).split("\n")[1:]
    ]
    assert printed == sorted(printed) and len(shown) == min(len(trials), SHOWN)
    assert len({t.number for t in shown}) == len(shown)
    leaders = {t.number for t in view.scored[: SHOWN - WORST - CONTRASTS]}
    assert leaders <= {t.number for t in shown}
    assert {t.number for t in view.scored[-WORST:]} <= {t.number for t in shown}


def test_of_many_rows_the_failure_that_is_nearest_to_a_leader_is_shown():
    leaders = [
        scored_trial(
            i, 0.9, 1, prompt=Prompt(f"Is a person number {i} speaking in this clip? A yes B no")
        )
        for i in range(SHOWN - WORST - CONTRASTS)
    ]
    far = [
        scored_trial(100 + i, 0.5, 2, prompt=Prompt(f"word{i} other{i} more{i} thing{i}: A, B"))
        for i in range(20)
    ]
    near = scored_trial(
        50, 0.5, 2, prompt=Prompt("Is a person number 3 speaking in this clip? A no B yes")
    )
    worst = [scored_trial(200 + i, 0.1, 2, prompt=Prompt(f"w{i} A B")) for i in range(WORST)]
    assert 50 in {t.number for t in shown_trials(view_of([*leaders, *far, near, *worst]))}


def test_answers_are_told_by_class():
    prompt = Prompt("x", answers=(("SPEECH", ("B",)), ("NONSPEECH", ("A", "a"))))
    assert answers_in_words(prompt) == "SPEECH=B NONSPEECH=A/a"
