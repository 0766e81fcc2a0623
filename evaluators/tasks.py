"""Tasks: what is decided about a clip, and the files that say so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from evaluators.errors import UserError
from evaluators.files import dump_yaml, read_yaml, shipped
from evaluators.prompts import OPTIONS, Prompt, is_frame, prompt_from

FOLDER = shipped("prompts/tasks")
FRAGMENTS = (
    "questions",
    "things",
    "options",
    "explanations",
    "hints",
    "closings",
    "formats",
    "letters",
)
PER_LABEL = ("options", "explanations", "letters")  # fragments with an entry for each label
FORMATS = ("{0}) {1}", "({0}) {1}")  # of options, where a task has none of its own


@dataclass(frozen=True)
class Task:
    """What is decided about a clip.

    Attributes:
        labels: The classes. ``labels[0]`` is what is to be detected: hit rate and AUROC are its.
        description: What a proposing language model is told.
        column: Column of a manifest that tells the class.
        values: What stands there -> label; empty: the labels themselves. Clips of other values are left out.
        prompts: Seed prompts; empty: those of a file that is given.
        fragments: For the rewriter, by kind; empty: those that ship under the task's name, else layout alone changes.
        choices: Each clip brings its own question and options, and a label is an option's place among them.
    """

    name: str
    labels: tuple[str, ...]
    description: str
    column: str = "label"
    values: Mapping[str, str] = field(default_factory=dict, hash=False)
    prompts: tuple[Prompt, ...] = ()
    fragments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    choices: bool = False

    @property
    def chance(self) -> str:
        """Balanced accuracy of a guess in percent, in words."""
        if self.choices:
            return "100 over the number of options"
        return f"{100 / len(self.labels):.0f}"

    def label_of(self, value: str) -> str | None:
        """The label of what stands in `column`; None where the clip is of no class of the task.

        Raises:
            KeyError: The task names its labels alone, and this is none of them.
        """
        if self.values:
            return self.values.get(value)
        if value not in self.labels:
            raise KeyError(value)
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a task file holds it."""
        out: dict[str, Any] = {
            "name": self.name,
            "labels": list(self.labels),
            "description": self.description,
        }
        if self.column != "label":
            out["column"] = self.column
        if self.values:
            out["values"] = {
                label: [v for v, own in self.values.items() if own == label]
                for label in self.labels
            }
        if self.choices:
            out["choices"] = True
        if self.prompts:
            out["prompts"] = [p.to_dict() for p in self.prompts]
        if self.fragments:
            out["fragments"] = {kind: list(given) for kind, given in self.fragments.items()}
        return out

    def text(self) -> str:
        """A task file that `read_task` reads back equal."""
        return dump_yaml(self.to_dict())


SPEECH_TASK = Task(
    name="speech",
    labels=("SPEECH", "NONSPEECH"),
    description=(
        "Decide whether a very short, noisy audio clip (200-1000 ms) contains human speech. "
        "Clips without speech hold music, animals, environmental sound or noise."
    ),
)


class TaskFile(BaseModel):
    """The schema of a task file; it is closed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    labels: list[str]
    description: str
    positive: str | None = None
    column: str = "label"
    values: dict[str, list[str]] = {}
    choices: bool = False
    prompts: list[dict[str, Any]] = []
    fragments: dict[str, list[Any]] = {}


def shipped_tasks() -> list[str]:
    """Names of the tasks that ship."""
    return [SPEECH_TASK.name, *sorted(path.stem for path in FOLDER.glob("*.yaml"))]


def task_named(name: str) -> Task:
    """The task of that name, or of a task file.

    Raises:
        UserError: There is none, or the file is no task.
    """
    if name == SPEECH_TASK.name:
        return SPEECH_TASK
    if name.endswith((".yaml", ".yml")):
        return read_task(Path(name))
    if name not in shipped_tasks():
        raise UserError(
            f"--task is {name!r}; expected one of {', '.join(shipped_tasks())}, or a task file such as my_task.yaml"
        )
    return read_task(FOLDER / f"{name}.yaml")


def read_task(path: Path) -> Task:
    """A task from its file.

    Raises:
        UserError: It is not as `TaskFile` says; names key and value.
    """
    return task_from(read_yaml(path), path)


def task_from(raw: Any, path: Path) -> Task:
    """A task from plain data; errors begin with `path`."""
    try:
        found = TaskFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        known = (
            f"; known keys are {', '.join(TaskFile.model_fields)}"
            if first["type"] == "extra_forbidden"
            else ""
        )
        raise UserError(
            f"{path}: {place}: {first['msg'][0].lower()}{first['msg'][1:]}{known}"
        ) from None
    labels = _labels(found, path)
    values = {value: label for label, own in found.values.items() for value in own}
    if found.values and set(found.values) != set(labels):
        raise UserError(
            f"{path}: values has {', '.join(found.values)}; expected one entry for each of {', '.join(labels)}"
        )
    if len(values) < sum(map(len, found.values.values())):
        raise UserError(f"{path}: values: one value stands for two labels; each may stand once")
    prompts = tuple(
        prompt_from(one, labels, f"{path}: prompt {number}")
        for number, one in enumerate(found.prompts, 1)
    )
    if found.name == SPEECH_TASK.name and labels != SPEECH_TASK.labels:
        raise UserError(
            f"{path}: name is {found.name!r}, the shipped task that detects SPEECH and has the label NONSPEECH beside;"
            " give this one another name"
        )
    if found.choices and (values or found.positive):
        raise UserError(
            f"{path}: choices is true, so labels are the places of each clip's options; leave out values and positive"
        )
    for number, prompt in enumerate(prompts, 1):
        _check_answers(prompt, f"{path}: prompt {number}")
        if found.choices and not is_frame(prompt):
            raise UserError(
                f"{path}: prompt {number} has no {OPTIONS}, where each clip's own options are put"
            )
    fragments = found.fragments if found.choices else _fragments(found, labels, path)
    return Task(
        found.name,
        labels,
        found.description,
        found.column,
        values,
        prompts,
        fragments,
        found.choices,
    )


def _check_answers(prompt: Prompt, where: str) -> None:
    """Raises UserError for an answer of two labels."""
    taken: dict[str, str] = {}
    for label, words in prompt.answers:
        for word in words:
            if taken.setdefault(word, label) != label:
                raise UserError(
                    f"{where}: {word!r} is an answer of {taken[word]} and of {label}; each answer has one label"
                )


def _labels(found: TaskFile, path: Path) -> tuple[str, ...]:
    """The labels, what is to be detected first."""
    labels = found.labels
    seen = [label.strip().casefold() for label in labels]
    twice = next(
        (label for label, key in zip(labels, seen, strict=True) if seen.count(key) > 1), None
    )
    if len(labels) < 2 or twice is not None or not all(seen):
        why = f"{twice!r} stands twice" if twice else "expected at least two names"
        raise UserError(f"{path}: labels are {labels}: {why}")
    odd = next(
        (label for label in labels if not label.isprintable() or label != label.strip()), None
    )
    if odd is not None:
        raise UserError(
            f"{path}: label {odd!r} has a blank at its end, or a line break; expected printable text"
        )
    if not found.name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"{path}: name is {found.name!r}; expected letters, digits, - and _")
    if found.positive is None:
        return tuple(labels)
    if found.positive not in labels:
        raise UserError(
            f"{path}: positive is {found.positive!r}; expected one of the labels {', '.join(labels)}"
        )
    return (found.positive, *(label for label in labels if label != found.positive))


def _fragments(found: TaskFile, labels: Sequence[str], path: Path) -> dict[str, list[Any]]:
    """The rewriter's building blocks, in the order of `labels`; what is not given has one plain entry.

    Entries of ``letters`` are by place; those of options and explanations by label, in the order of the file.
    """
    given = found.fragments
    if not given:
        return {}
    unknown = sorted(set(given) - set(FRAGMENTS))
    if unknown:
        raise UserError(
            f"{path}: fragments: {unknown[0]!r} is unknown; known are {', '.join(FRAGMENTS)}"
        )
    for kind in PER_LABEL:
        for entry in given.get(kind, ()):
            fits = isinstance(entry, list | str) and len(entry) == len(labels)
            if not fits:
                raise UserError(
                    f"{path}: fragments: {kind} has {entry!r}; expected one entry for each of {', '.join(labels)}"
                )
    for kind, entries in given.items():
        for entry in entries:
            if wrong := _wrong_entry(kind, entry):
                raise UserError(f"{path}: fragments: {kind} has {entry!r}; expected {wrong}")
    order = [found.labels.index(label) for label in labels]
    given = {
        kind: [[entry[i] for i in order] for entry in own] if kind in PER_LABEL[:2] else own
        for kind, own in given.items()
    }
    plain: dict[str, list[Any]] = {
        "things": [", ".join(labels)],
        "options": [[label.lower() for label in labels]],
        "hints": [""],
        "closings": ["Answer:"],
        "formats": list(FORMATS),
        "letters": ["ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(labels)]],
    }
    out = {**plain, **{kind: own for kind, own in given.items() if own}}
    lacking = [kind for kind in FRAGMENTS if kind not in out]
    if lacking:
        raise UserError(f"{path}: fragments: {lacking[0]} is missing; expected a list")
    return out


def _wrong_entry(kind: str, entry: Any) -> str:
    """What was expected of a fragment that the rewriter cannot use; "" of one that it can."""
    if kind in PER_LABEL:
        words = [one.strip() if isinstance(one, str) else "" for one in entry]
        different = kind != "letters" or len(set(words)) == len(words)
        return "" if all(words) and different else "different words, in quotes"
    if not isinstance(entry, str):
        return "words in quotes"
    if kind == "questions":
        return "" if _fills(entry, x="") else "words that hold {x} alone in braces, or none"
    if kind == "formats":
        both = "{0}" in entry and "{1}" in entry
        return "" if both and _fills(entry, "", "") else "{0} for the letter and {1} for the option"
    return ""


def _fills(text: str, *places: str, **names: str) -> bool:
    """Whether a format string can be filled with these."""
    try:
        text.format(*places, **names)
    except (ValueError, LookupError, AttributeError):
        return False
    return True
