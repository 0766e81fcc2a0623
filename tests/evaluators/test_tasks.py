import dataclasses

import pytest

from evaluators.errors import UserError
from evaluators.tasks import SPEECH_TASK, TASKS, Task, task_named


def test_tasks_are_found_by_their_name_and_what_is_to_be_detected_comes_first():
    assert task_named("speech") is SPEECH_TASK is TASKS["speech"]
    assert SPEECH_TASK.labels == ("SPEECH", "NONSPEECH") and SPEECH_TASK.description
    assert all(name == task.name and len(task.labels) >= 2 for name, task in TASKS.items())


@pytest.mark.parametrize("name", ["", "music", "Speech"])
def test_an_unknown_task_is_one_sentence_that_lists_the_known_ones(name):
    with pytest.raises(UserError, match=f"^--task is {name!r}; expected one of speech$"):
        task_named(name)


def test_a_task_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEECH_TASK.name = "x"
    assert Task("a", ("x", "y"), "z") == Task("a", ("x", "y"), "z")
