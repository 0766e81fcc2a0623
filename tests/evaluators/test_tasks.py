"""Task files: a closed schema, one sentence a mistake, and clips whose class stands in any column."""

import csv
import logging
import random

import pytest
import yaml

from evaluators.errors import UserError
from evaluators.files import shipped
from evaluators.manifest import _warn, read_manifest
from evaluators.tasks import SPEECH_TASK, Task, read_task, shipped_tasks, task_from, task_named
from opro.proposers.rewriter import Rewriter, take_apart

DEMO = shipped("data/demo")
SMALL = {"name": "t", "labels": ["B", "A"], "description": "d", "positive": "A"}


def written(path, **changes):
    path.write_text(yaml.safe_dump({**SMALL, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", shipped_tasks())
def test_shipped_tasks_are_read_and_written_back_equal(name, tmp_path):
    task = task_named(name)
    assert task.name == name and len(task.labels) > 1
    (tmp_path / "t.yaml").write_text(task.text(), encoding="utf-8")
    assert read_task(tmp_path / "t.yaml") == task == task_from(task.to_dict(), tmp_path)
    assert all(p.answers and [v for v, _ in p.answers] == list(task.labels) for p in task.prompts)


def test_what_is_to_be_detected_comes_first(tmp_path):
    given = {
        "questions": ["Which?"],
        "options": [["b", "a"]],
        "explanations": [["of b", "of a"]],
        "letters": ["XY"],
    }
    task = read_task(written(tmp_path / "t.yaml", fragments=given))
    assert task.labels == ("A", "B")
    assert task.fragments["options"] == [["a", "b"]] and task.fragments["letters"] == ["XY"]
    assert task.fragments["explanations"] == [["of a", "of b"]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": ["A"]}, "label: extra inputs are not permitted; known keys are name, labels"),
        ({"labels": "A"}, "labels: "),
        ({"labels": ["A"]}, "expected at least two names"),
        ({"labels": ["A", "A"]}, "'A' stands twice"),
        ({"name": "a/b"}, "name is 'a/b'; expected letters"),
        ({"positive": "C"}, "positive is 'C'; expected one of the labels B, A"),
        ({"values": {"A": ["a"]}}, "values has A; expected one entry for each of A, B"),
        ({"values": {"A": ["x"], "B": ["x"]}}, "one value stands for two labels"),
        ({"prompts": [{"text": ""}]}, "prompt 1: text is ''"),
        (
            {"prompts": [{"text": "x", "answers": {"A": "a"}}]},
            "expected one entry for each of A, B",
        ),
        (
            {"fragments": {"question": ["x"]}},
            "fragments: 'question' is unknown; known are questions",
        ),
        ({"fragments": {"questions": ["x"]}}, "fragments: explanations is missing"),
        ({"fragments": {"options": [["a"]]}}, "options has ['a']; expected one entry for each"),
        ({"fragments": {"options": [[1, 2]]}}, "options has [1, 2]; expected different words, in"),
        ({"fragments": {"letters": ["AA"]}}, "letters has 'AA'; expected different words, in"),
        ({"fragments": {"letters": [["a", ""]]}}, "letters has ['a', '']; expected different"),
        ({"fragments": {"questions": [3]}}, "questions has 3; expected words in quotes"),
        ({"fragments": {"hints": [None]}}, "hints has None; expected words in quotes"),
        (
            {"fragments": {"questions": ["a {y}"]}},
            "questions has 'a {y}'; expected words that hold",
        ),
        (
            {"fragments": {"questions": ["a {"]}},
            "questions has 'a {'; expected words that hold {x}",
        ),
        ({"fragments": {"formats": ["{0}"]}}, "formats has '{0}'; expected {0} for the letter and"),
        ({"fragments": {"formats": ["{0}{1}{2}"]}}, "formats has '{0}{1}{2}'; expected {0} for"),
        ({"name": "speech"}, "name is 'speech', the shipped task that detects SPEECH"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, changes, said):
    with pytest.raises(UserError) as error:
        read_task(written(tmp_path / "t.yaml", **changes))
    assert said in str(error.value) and str(error.value).startswith(str(tmp_path / "t.yaml"))
    assert "\n" not in str(error.value)


def test_an_unknown_task_lists_what_ships():
    with pytest.raises(
        UserError,
        match="one of speech, animal, choices, esc50, esc50-groups, keywords, or a task file",
    ):
        task_named("anmial")


def test_classes_stand_in_any_column_and_others_are_left_out_with_a_word(caplog):
    _warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        clips = read_manifest(DEMO, task_named("animal"), "dev")
    with (DEMO / "manifest.csv").open(newline="") as file:
        rows = {row["clip_id"]: row for row in csv.DictReader(file)}
    assert {c.label for c in clips} == {"ANIMAL", "MUSIC", "ENVIRONMENT", "SPEECH"}
    assert all(c.label.lower() == rows[c.clip_id]["category"] for c in clips)
    left = sum(row["category"] in ("noise", "silence") for row in rows.values())
    assert f"{left} clips are of no class of task 'animal' and left out: noise" in caplog.text


def test_a_class_that_the_task_does_not_know_is_an_error_where_it_names_labels_alone():
    with pytest.raises(UserError, match=r"manifest\.csv:2: label 'SPEECH' is not one of YES, NO"):
        read_manifest(DEMO, Task("t", ("YES", "NO"), "d"))
    with pytest.raises(UserError, match="task 't' reads column 'kind', which is missing"):
        read_manifest(DEMO, Task("t", ("YES", "NO"), "d", column="kind"))


def test_the_rewriter_works_from_the_fragments_of_a_task():
    task = task_named("animal")
    rewriter, rng = Rewriter(task, 0), random.Random(0)
    made = [rewriter.rewrite(task.prompts, rng, 0.5) for _ in range(200)]
    texts = {c.prompt.text for c in made if c}
    assert len(texts) > 50
    for candidate in filter(None, made):
        parts = take_apart(candidate.prompt)
        if parts is None:
            continue
        words = dict(parts.options)
        letters = dict(candidate.prompt.answers)
        for label, text in words.items():  # each letter marks its own option
            assert f"{letters[label][0]}" in candidate.prompt.text and text in candidate.prompt.text
    speech = Rewriter(SPEECH_TASK, 0)
    assert speech.bank and speech.bank != rewriter.bank


def test_no_clip_of_a_task_names_what_the_column_holds():
    values = {"A": ["a"], "B": ["b"]}
    task = task_from(
        {
            "name": "t",
            "labels": ["A", "B"],
            "description": "d",
            "column": "category",
            "values": values,
        },
        shipped("t.yaml"),
    )
    with pytest.raises(
        UserError, match=r"no clip is of a class of task 't': column 'category' holds .*speech"
    ):
        read_manifest(shipped("data/demo"), task, "dev")


def test_twelve_options_are_rewritten_with_letters_of_their_own():
    labels = [f"L{i}" for i in range(12)]
    letters = "ABCDEFGHIJKL"
    shown = "\n".join(f"{a}) {b}" for a, b in zip(letters, labels, strict=True))
    given = {"questions": ["Which?"], "explanations": [labels], "closings": ["Answer A or L."]}
    given["letters"] = [letters, [str(i) for i in range(10, 22)]]
    raw = {"name": "t", "labels": labels, "description": "d", "fragments": given}
    raw["prompts"] = [{"text": shown, "answers": dict(zip(labels, letters, strict=True))}]
    task = task_from(raw, shipped("t.yaml"))
    rewriter, rng = Rewriter(task, 0), random.Random(0)
    made = [c for _ in range(200) if (c := rewriter.rewrite(task.prompts, rng, 0.5))]
    closing = [c for c in made if "Answer" in c.prompt.text]
    assert closing
    for candidate in closing:
        parts = take_apart(candidate.prompt)
        if parts is not None:
            assert f"Answer {parts.letters[0]} or {parts.letters[11]}." in candidate.prompt.text


@pytest.mark.parametrize(
    ("labels", "answers", "said"),
    [
        ("[a, A]", "{a: X, A: Y}", "stands twice"),
        ('[a, " a"]', '{a: X, " a": Y}', "stands twice"),
        ('[a, "b "]', '{a: X, "b ": Y}', "a blank at its end"),
        ('[a, "b\\nc"]', '{a: X, "b\\nc": Y}', "a line break"),
        ("[a, b]", "{a: X, b: X}", "'X' is an answer of a and of b"),
    ],
)
def test_labels_and_answers_that_cannot_be_told_apart_are_refused(tmp_path, labels, answers, said):
    file = tmp_path / "t.yaml"
    file.write_text(
        f"name: t\nlabels: {labels}\ndescription: x\nprompts:\n- {{text: 'X or Y?', answers: {answers}}}\n"
    )
    with pytest.raises(UserError, match=said):
        task_named(str(file))
