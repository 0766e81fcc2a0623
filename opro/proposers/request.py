"""The request: what a language model is asked, from the meta-prompts in prompts/meta and what is known of a search."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from evaluators.errors import UserError
from evaluators.files import shipped
from evaluators.tasks import Task
from opro.proposers.evidence import about_parent, edits, noise, standstill
from opro.proposers.factors import factors
from opro.proposers.replies import MAX_CHARACTERS
from opro.proposers.table import shown_trials, table
from opro.search.history import Trial
from opro.search.lengths import Limit
from opro.search.objective import Objective
from opro.search.proposer import SearchView

META = shipped("prompts/meta")  # what a language model is told, to edit
PARTED = "\n=====\n"  # between what never changes in a run and what does
EXPLORE = 0.4  # share of the prompts that are to test something new
STATIC = (
    "task",
    "classes",
    "first",
    "reward",
    "noise",
    "clips",
    "system",
    "longest",
    "example",
    "letters",
    "answers",
)
CHANGING = ("n", "exploit", "explore", "round", "rounds", "left", "progress", "tried", "table", "factors", "parent",
            "edits", "taken", "refused")  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What is asked: `system` is the same for all calls of a run, so that a server may keep it; `text` is not."""

    system: str
    text: str


@dataclass(frozen=True)
class Round:
    """A round of which some calls were answered.

    Attributes:
        batch: Prompts that it is to have.
        taken: Texts that were accepted.
        refused: Texts that were not, with the reasons.
    """

    batch: int
    taken: Sequence[str] = ()
    refused: Sequence[str] = ()


class MetaPrompt:
    """A meta-prompt file: what stands above its line of ``=====`` is the system message.

    Args:
        path: A text with ``$name`` for each of `STATIC` (in both parts) and `CHANGING` (below the line).
        told: What stands behind the system message in every request.
    Raises:
        UserError: It cannot be read or names something else.
    """

    def __init__(self, path: Path, task: Task, objective: Objective, told: str = "") -> None:
        self.task, self.objective, self.told = task, objective, told
        try:
            above, line, below = (
                path.read_text(encoding="utf-8").replace("\r\n", "\n").partition(PARTED)
            )
            self._system = Template(above if line else "")
            self._text = Template(below if line else above)
            self._fill(self._system, dict.fromkeys(STATIC, ""))
            self._fill(self._text, dict.fromkeys((*STATIC, *CHANGING), ""))
        except (OSError, UnicodeDecodeError, KeyError, ValueError) as error:
            raise UserError(
                f"{path}: the meta-prompt cannot be used ({type(error).__name__}: {error}); known names are"
                f" {', '.join('$' + n for n in STATIC)}, and below the line of ===== also"
                f" {', '.join('$' + n for n in CHANGING)}; a dollar sign is written $$"
            ) from None

    def request(self, view: SearchView, n: int, start: Trial | None, so_far: Round) -> Request:
        """What is asked for `n` prompts.

        Args:
            start: The prompt that is shown in detail.
        """
        static = self._static(view)
        shown = shown_trials(view)
        still, explore = standstill(view), round(EXPLORE * n)
        about: dict[str, Any] = {
            "n": n,
            "exploit": n - explore,
            "explore": explore,
            "round": view.iteration,
            "rounds": view.rounds or "?",
            "left": max(0, view.rounds - view.iteration) * so_far.batch,
            "progress": (
                f"For {still} rounds nothing has scored higher: try something quite different."
                if still > 1
                else ""
            ),
            "tried": len(view.trials),
            "table": table(view, shown),
            "factors": factors(view.trials),
            "parent": about_parent(view, start) if start else "",
            "edits": edits(view, start, shown) if start else "",
            "taken": _listed(
                "These of yours are taken, as new prompts of this round:", so_far.taken
            ),
            "refused": _listed(
                "These were refused just now; do not repeat the mistakes:", so_far.refused[-5:]
            ),
        }
        text = self._fill(self._text, static | about)
        if any(t.prompt.given for t in view.trials):
            text += (
                "\n\nBehind some texts stands how the clip was given with them, in brackets. That is searched beside"
                " your prompts: write words alone; a new prompt keeps the presentation of the row that it is made from."
            )
        if view.forbidden:
            words = ", ".join(map(json.dumps, view.forbidden))
            text += f"\n\nNo prompt may contain these words, which are refused in any case: {words}"
        if view.limit is not None:
            text += f"\n\n{_limited(view, view.limit)}"
        system = self._fill(self._system, static)
        return Request(f"{system}\n\n{self.told}".strip() if self.told else system, text)

    def _static(self, view: SearchView) -> dict[str, Any]:
        """What seed prompts, clips and task say: the same in every round."""
        seeds = [t.prompt for t in view.trials if t.iteration == 0]
        systems = list(dict.fromkeys(p.system for p in seeds))
        letters = "ABCDEFGH"[: len(self.task.labels)]
        example = dict(zip(self.task.labels, letters, strict=True))
        width = noise(view)
        return {
            "task": self.task.description,
            "classes": ", ".join(self.task.labels),
            "first": self.task.labels[0],
            "reward": self.objective.describe(self.task),
            "noise": "an unknown number of" if width is None else f"{max(1.0, width):.0f}",
            "clips": len(view.clips),
            "system": " or ".join(json.dumps(s, ensure_ascii=False) for s in systems[:3]),
            "longest": MAX_CHARACTERS,
            "example": json.dumps(example),
            "letters": ", ".join(f"{letter} means {label}" for label, letter in example.items()),
            "answers": " or ".join(letters),
        }

    @staticmethod
    def _fill(template: Template, values: Mapping[str, Any]) -> str:
        return re.sub(r"\n{3,}", "\n\n", template.substitute(values)).strip()


def _limited(view: SearchView, limit: Limit) -> str:
    """The longest that a prompt may be, and how long known ones are: a language model counts badly."""
    seeds = [t.prompt for t in view.trials if t.iteration == 0]
    known = [f"{limit.length(p)} for the seed prompt {json.dumps(p.text)}" for p in seeds[:1]]
    return (
        f"No prompt may be longer than {limit.most} {limit.unit}, its system message counted; a longer one is refused."
        + "".join(f" It is {one}." for one in known)
    )


def _listed(head: str, lines: Sequence[str]) -> str:
    return "\n".join([head, *lines]) if lines else ""
