"""The factor table."""

from hypothesis import given, settings
from hypothesis import strategies as st
from searches import scored_trial

from evaluators.prompts import Prompt
from opro.proposers.factors import FEWEST, TOLD, factors, properties
from opro.search.objective import Profile

OTHER = (("SPEECH", ("B",)), ("NONSPEECH", ("A",)))


def test_properties_are_of_the_surface():
    text = "You are a listener. Is a faint voice there?\nA) nothing (only noise)\nB) a voice\nAnswer A or B."
    found = properties(Prompt(text, OTHER))
    assert found == {
        "SPEECH = B", "asks a question", "has several lines", "explains in brackets",
        "ends with a request to answer", "gives a role",
        '"listener" before the options', '"faint" before the options', '"voice" before the options',
        '"there" before the options', '"nothing" in or after the options', '"noise" in or after the options',
        '"only" in or after the options', '"voice" in or after the options', '"answer" in or after the options',
    } - {'"only" in or after the options'}  # fmt: skip
    short = properties(Prompt("yes or no: voice", (("SPEECH", ("yes",)), ("NONSPEECH", ("no",)))))
    assert short == {
        "SPEECH = yes", "SPEECH is offered first", "is shorter than 80 characters",
        "its answers are words", '"voice" before the options',
    }  # fmt: skip


def trials(rewards, texts, answers=None, profile=None):
    return [
        scored_trial(i, r, prompt=Prompt(t, *([answers[i]] if answers else [])), profile=profile)
        for i, (r, t) in enumerate(zip(rewards, texts, strict=True))
    ]


def test_the_factor_that_decides_comes_first_with_hits_and_false_alarms():
    rewards = [0.8, 0.82, 0.81, 0.5, 0.52, 0.51, 0.53]
    texts = [f"{'faint ' * (r > 0.6)}{'abcdefg'[i] * 3}: A or B" for i, r in enumerate(rewards)]
    first = factors(trials(rewards, texts, profile=Profile((0.9, 0.7), 0.9, 0.8))).split("\n")[0]
    assert first == (
        '- "faint" before the options: 81.0 (hits 90, false alarms 30) in 3 rows;'
        " else 51.5 (hits 90, false alarms 30) in 4 rows"
    )


def test_a_pair_that_acts_otherwise_together_is_told():
    rewards, texts, answers = [], [], []
    normal = (("SPEECH", ("A",)), ("NONSPEECH", ("B",)))
    for i in range(24):
        noise, swap = i % 2 == 0, i // 2 % 2 == 0
        rewards.append((0.24 if noise != swap else 0.76) + i / 1000)
        texts.append(f"{'noise ' if noise else 'voice '}{i}: A) x{i} B) y{i}")
        answers.append(OTHER if swap else normal)
    text = factors(trials(rewards, texts, answers))
    last = text.split("\n")[-1]
    assert last == (
        '- SPEECH = A, and "noise" before the options: both 25.2, the first alone 77.3,'
        " the second alone 77.0, neither 25.1"
    )


def test_a_few_rows_tell_nothing():
    assert factors([]) == "Too few rows so far."
    assert factors(trials([0.5] * 2, ["a", "b"])) == "Too few rows so far."


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.text(max_size=60)), max_size=20))
def test_any_history_has_a_table(rows):
    text = factors(trials([r for r, _ in rows], [t for _, t in rows]))
    assert text and "nan" not in text and text.count("\n") <= TOLD + 3
    assert all(f" in {n} rows" not in text for n in range(FEWEST))
