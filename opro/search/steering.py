"""Steering: what a person asks of a search under way. The loop takes it between rounds, and journals what it took.

The inbox is an append-only file in the run's folder. A round takes all that is new in it before it proposes; the
journal of the run says which round took what, with the whole request, so that a resumed run goes the same way.
"""

import getpass
import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import filelock

from evaluators.errors import UserError
from evaluators.files import append_line, cut_torn_line
from evaluators.plain_data import brief, inert, log_lines, parse_object
from evaluators.prompts import Prompt, prompt_from

log = logging.getLogger(__name__)
Kind = Literal["pause", "resume", "prompt", "forbid", "max_evals"]
HAND = "hand"  # origin of a prompt that a person added
MAX_WORDS = 200  # characters of what is forbidden


@dataclass(frozen=True)
class Request:
    """What a person asked for.

    Attributes:
        kind: ``pause`` ends the process before the next round (a later ``resume`` that the loop has not seen either
            calls it off), ``prompt`` adds one to the next round, ``forbid`` words in all later candidates,
            ``max_evals`` raises the budget.
        value: The prompt as plain data, the words, or the number; None of a pause.
        time: ISO 8601.
        who: Login name.
    """

    kind: Kind
    value: Any
    time: str
    who: str

    def to_dict(self) -> dict[str, Any]:
        """A line of the inbox, and of the journal."""
        return {"kind": self.kind, "value": self.value, "time": self.time, "who": self.who}


def ask(path: Path, kind: Kind, value: Any, labels: Sequence[str]) -> Request:
    """Adds a request to a run's inbox. Processes take turns.

    Raises:
        UserError: The value is no such thing.
        PauseError: The folder cannot be written.
    """
    raw = {
        "kind": kind,
        "value": value,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "who": _login(),
    }
    request = request_from(raw, labels, kind)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            cut_torn_line(path)  # of a page that was killed as it wrote
        append_line(path, json.dumps(request.to_dict(), ensure_ascii=False) + "\n")
    return request


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return "somebody"


def read_requests(path: Path, labels: Sequence[str]) -> list[Request]:
    """All requests of an inbox, oldest first; a last line that is being written is left for the next look.

    A damaged line is left out, with a warning: what it asked for can be asked for again.
    """
    out = []
    for where, line in log_lines(path):
        try:
            raw = parse_object(line, where, "what it asked for is left out, ask again")
            out.append(request_from(raw, labels, where))
        except UserError as error:
            log.warning("%s", error)
    return out


def request_from(raw: Any, labels: Sequence[str], where: str) -> Request:
    """A request from plain data.

    Raises:
        UserError: It is none; says what was expected.
    """
    if not isinstance(raw, Mapping) or set(raw) != {"kind", "value", "time", "who"}:
        raise UserError(f"{where}: {brief(raw)} is no request; expected kind, value, time and who")
    kind, value = raw["kind"], raw["value"]
    if kind not in get_args(Kind):
        raise UserError(
            f"{where}: kind {brief(kind)} is unknown; known are {', '.join(get_args(Kind))}"
        )
    if kind == "prompt":
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: prompt is {brief(value)}; expected text and answers")
        value = prompt_from(value, labels, where).to_dict()
    elif kind == "forbid":
        words = " ".join(value.split()) if isinstance(value, str) else ""
        if not words or len(words) > MAX_WORDS or not words.isprintable():
            raise UserError(
                f"{where}: what is forbidden is {brief(value)}; expected words, at most {MAX_WORDS} characters"
            )
        value = words
    elif kind == "max_evals":
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(
                f"{where}: max_evals is {brief(value)}; expected a whole number of evals"
            )
    else:
        value = None
    return Request(kind, value, *(inert(str(raw[name]), lines=False) for name in ("time", "who")))


@dataclass(frozen=True)
class Steering:
    """All that a run has taken, by round, oldest first."""

    taken: tuple[tuple[int, Request], ...] = ()

    def of(self, iteration: int) -> list[Request]:
        """What one round took."""
        return [request for number, request in self.taken if number == iteration]

    def prompts(self, iteration: int, labels: Sequence[str]) -> list[Prompt]:
        """Prompts that a person added to a round."""
        asked = [one for one in self.of(iteration) if one.kind == "prompt"]
        return [prompt_from(one.value, labels, "steering") for one in asked]

    @property
    def forbidden(self) -> tuple[str, ...]:
        """Words that no candidate may contain, in the order they were forbidden."""
        return tuple(dict.fromkeys(r.value for _, r in self.taken if r.kind == "forbid"))

    def max_evals(self, given: int | None) -> int | None:
        """The budget, of which only a raise counts; a run without a limit keeps none."""
        raised = [r.value for _, r in self.taken if r.kind == "max_evals"]
        return None if given is None else max([given, *raised])

    def told(self, given: int | None) -> list[str]:
        """What was steered, in sentences for the results."""
        out = []
        for number, one in self.taken:
            at = f"steered by {one.who} in round {number}"
            if one.kind == "prompt":
                out.append(f"{at}: added the prompt {one.value['text'][:80]!r}")
            elif one.kind == "forbid":
                out.append(f"{at}: forbade {one.value!r} in candidates from then on")
            elif one.kind == "max_evals" and given is not None:
                out.append(f"{at}: raised --max-evals from {given} to {self.max_evals(given)}")
        return list(dict.fromkeys(out))


def pauses(new: Iterable[Request]) -> Request | None:
    """The pause that new requests end in, if any: a resume after it calls it off."""
    last = None
    for one in new:
        if one.kind in ("pause", "resume"):
            last = one
    return last if last is not None and last.kind == "pause" else None


def forbidden_in(prompt: Prompt, words: Sequence[str]) -> str | None:
    """The forbidden words that a prompt contains, as whole words in any case and spacing; else None.

    >>> forbidden_in(Prompt("Is  Speech heard?"), ["is speech"]), forbidden_in(Prompt("speeches"), ["speech"])
    ('is speech', None)
    """
    text = " ".join([prompt.text, *(w for _, ws in prompt.answers for w in ws)]).casefold()
    text = " ".join(text.split())
    for one in words:
        if re.search(rf"(?<!\w){re.escape(one.casefold())}(?!\w)", text):
            return one
    return None
