"""The sample of the grammar: balanced, sensible, repeatable, and its levels are in the words."""

from collections import Counter
from dataclasses import replace

import pytest

from evaluators.orders import find_options
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK, task_named
from opro.profiling.wordings import GRAMMAR, HAND, Grammar, has_grammar, sample, united


@pytest.fixture(scope="module")
def design():
    return sample(SPEECH_TASK, 300, 0)


@pytest.mark.parametrize("task", ["speech", "animal", "esc50-groups"])
def test_every_level_stands_as_often(task):
    found = sample(task_named(task), 300, 0)
    assert len({w.prompt.digest for w in found.wordings}) == len(found.wordings) == 300
    for factor in found.factors:
        counts = Counter(w.levels[factor.name] for w in found.wordings if factor.name in w.levels)
        assert set(counts) == set(factor.levels)
        if factor.name != "thing":  # which stands with the questions that name one
            # what turns out equal is drawn anew
            assert max(counts.values()) - min(counts.values()) <= 8


def test_the_levels_are_in_the_words(design):
    for w in design.wordings:
        options = find_options(w.prompt)
        assert options is not None
        assert options[0].label == w.levels["first option"]
        assert [text for _, (text,) in w.prompt.answers] != []
        letters = {text for _, (text,) in w.prompt.answers}
        assert letters == set(w.levels["letters"].split())
        assert w.levels["hint"] == "none" or w.prompt.text.startswith(w.levels["hint"])
        shown = dict(zip(SPEECH_TASK.labels, w.levels["option words"].split(" / "), strict=True))
        for o in options:
            assert w.prompt.text[o.start : o.end].startswith(shown[o.label])
        given = w.levels.get("thing")
        assert given is None or given in w.prompt.text


def test_what_makes_no_sense_is_not_asked(design):
    for w in design.wordings:
        yes = w.levels["option words"] in ("Yes / No", "Yes, speech / No, something else")
        assert not (yes and "{x}" not in w.levels["question"])
        digits = w.levels["letters"] == "1 2"
        assert not (digits and "letter" in w.levels["closing"])
        assert not (digits and " A or B" in w.prompt.text)


def test_the_seed_is_all_that_it_depends_on(design):
    assert sample(SPEECH_TASK, 300, 0) == design
    other = {w.prompt.digest for w in sample(SPEECH_TASK, 300, 1).wordings}
    assert len(other & {w.prompt.digest for w in design.wordings}) < 5


def test_a_small_grammar_is_asked_whole():
    small = {
        "questions": ["Is {x} there?", "Yes or no?"],
        "things": ["a dog"],
        "options": [["Yes", "No"]],
        "explanations": [["a", "b"]],
        "hints": [""],
        "closings": ["Answer:"],
        "formats": ["{0}) {1}"],
        "letters": ["AB"],
    }
    task = replace(SPEECH_TASK, name="dogs", fragments=small)
    found = sample(task, 300, 0)
    # definition or none, order, lines, closing or none; "Yes or no?" names nothing that yes could be about
    assert len(found.wordings) == 2 * 2 * 2 * 2
    assert {f.name for f in found.factors} == {"definition", "first option", "lines", "closing"}
    assert len(sample(task, 7, 0).wordings) == 7


def test_a_task_without_fragments_has_no_grammar():
    assert has_grammar(SPEECH_TASK) and has_grammar(task_named("animal"))
    assert not has_grammar(task_named("keywords")) and not has_grammar(task_named("choices"))


def test_each_prompt_stands_once(design):
    own = design.wordings[5].prompt
    found = united(design, [(HAND, [own, Prompt("Speech? A) yes B) no")])])
    assert len(found) == 301
    assert found[5].group == GRAMMAR and found[-1].group == HAND


def test_more_labels_are_named_in_any_order():
    grammar = Grammar(task_named("animal"))
    sizes = grammar.sizes()
    place = [f.name for f in grammar.factors].index("first option")
    row = [0] * len(sizes)
    for i in range(sizes[place]):
        row[place] = i
        made = grammar.wording(row)
        options = find_options(made.prompt)
        assert options[0].label == grammar.task.labels[i] and len(options) == 4
