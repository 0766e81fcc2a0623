"""Tasks: what is decided about a clip."""

from dataclasses import dataclass

from evaluators.errors import UserError


@dataclass(frozen=True)
class Task:
    """What is decided about a clip.

    Attributes:
        labels: The classes. ``labels[0]`` is what is to be detected: hit rate and AUROC are its.
        description: What a proposing language model is told.
    """

    name: str
    labels: tuple[str, ...]
    description: str


SPEECH_TASK = Task(
    name="speech",
    labels=("SPEECH", "NONSPEECH"),
    description=(
        "Decide whether a very short, noisy audio clip (200-1000 ms) contains human speech. "
        "Clips without speech hold music, animals, environmental sound or noise."
    ),
)
TASKS = {SPEECH_TASK.name: SPEECH_TASK}


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: There is none.
    """
    if name not in TASKS:
        raise UserError(f"--task is {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]
