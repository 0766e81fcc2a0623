"""The history of a run: candidates, trials, and the append-only journal that is its only state."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from evaluators.classifier import Bias, Classifier, bias_from
from evaluators.errors import UserError
from evaluators.files import append_line, cut_torn_line
from evaluators.plain_data import brief, inert, json_lines
from evaluators.prompts import Prompt, prompt_from
from opro.search.events import ProfileLine, Propose, Select, Start, Steer, Tell, event_from
from opro.search.objective import Profile
from opro.search.steering import Request, Steering, request_from

SCHEMA = 1
MEND = "restore the file, or use another --name"
State = Literal["waiting", "complete", "dropped", "failed"]


@dataclass(frozen=True)
class Candidate:
    """A prompt not yet tried, where it came from (``seed``, ``lm``, a rewriter's operator) and its parents' ids."""

    prompt: Prompt
    origin: str
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What scoring a candidate gave.

    Attributes:
        reward: The objective on all search clips, higher is better. Of a dropped trial a forecast.
        sd: Standard deviation of that forecast, 0 of a complete trial.
        score, low, high: `reward` with its 95 % interval over sources. Of a dropped trial a forecast; its interval is
            wider by the forecast's. Version 0.1 showed balanced accuracy here, whatever the objective.
        loss: Balanced mean negative log-probability of the right label in nats: breaks ties. None where forecast.
        bias: Of the classifier (``--threshold dev``), else 0; see `evaluators.classifier.Classifier`.
        fitted: The bias that is best on the search half, used or not; None where forecast, and in older journals.
        n_scored: Search clips scored.
        blocks: Reward or forecast after each block of clips.
        slices: Slice name -> (score, clips).
        profile: How its answers behave, of a dropped trial a forecast; None in older journals.
        outside: Mean probability that goes to no answer, over the clips scored; None in older journals.
        unlisted: Share of the answers that a server did not list; their scores are upper bounds.
        tokens: Of system message and text, by the checkpoint's own tokenizer; None where it has none here, and in older
            journals.
    """

    reward: float
    sd: float
    score: float
    low: float | None = None
    high: float | None = None
    loss: float | None = None
    bias: Bias = 0.0
    fitted: Bias | None = None
    n_scored: int = 0
    blocks: tuple[float, ...] = ()
    slices: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    profile: Profile | None = None
    outside: float | None = None
    unlisted: float = 0.0
    tokens: int | None = None


@dataclass(frozen=True)
class Trial:
    """A candidate that was asked for, and its outcome.

    Attributes:
        number: Counts from 0 over the run; the seed prompts come first.
        iteration: 0 for the seed prompts.
        state: ``complete``: scored on all search clips; ``dropped`` by the race after some of them; ``failed``: it
            could not be scored, see `error`.
        failed_after: Clips that a failed one was scored on before.
        asked_twice: Clips that its forecast was made from, once it was scored on all: they were asked for again.
    """

    number: int
    iteration: int
    candidate: Candidate
    state: State = "waiting"
    outcome: Outcome | None = None
    error: str = ""
    failed_after: int = 0
    asked_twice: int = 0

    @property
    def prompt(self) -> Prompt:
        """The candidate's prompt."""
        return self.candidate.prompt

    @property
    def classifier(self) -> Classifier:
        """The prompt with the decision rule that was fitted on the search half."""
        return Classifier(self.prompt, self.outcome.bias if self.outcome else 0.0)

    @property
    def scored(self) -> bool:
        """Whether it has an outcome."""
        return self.state in ("complete", "dropped")

    @property
    def n_scored(self) -> int:
        """Search clips it was scored on, whatever came of it."""
        return self.outcome.n_scored if self.outcome else self.failed_after

    @property
    def reward(self) -> float:
        """The outcome's reward; minus infinity without one."""
        return self.outcome.reward if self.outcome else -math.inf

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sort key, highest best: reward (a forecast less its sd), then smaller loss, then shorter text."""
        one = self.outcome
        return (
            one.reward - one.sd if one else -1e9,
            -one.loss if one and one.loss is not None else -1e9,
            -len(self.prompt.text),
        )


class History:
    """All trials so far. Every change is on disk, synced, before the method returns; a reader replays it.

    Args:
        path: The journal. An existing one is replayed; a last line cut short by a crash is left out.
        labels: The task's labels, to read prompts back.
        repair: Remove such a line from the file: only for the process that holds the run's lock.
        both_orders: Of runs with ``--swap`` from before prompts carried it: set it on all prompts.
    Raises:
        UserError: The journal is damaged before its last line, or of a newer schema.
    """

    def __init__(
        self,
        path: Path,
        labels: Sequence[str],
        *,
        repair: bool = False,
        both_orders: bool = False,
    ) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.trials: list[Trial] = []
        self.proposed: set[int] = set()  # iterations whose candidates are journalled
        self.best: Trial | None = None  # of all that were scored
        self.selection: dict[str, Any] | None = None
        self.steering = Steering()
        self.refused: dict[int, list[dict[str, str]]] = {}  # by iteration, as text and reason
        self.wins: dict[str, int] = {}  # of a pool of searches, see `opro.search.repeats.wins_of`
        self._labels = labels
        self._both_orders = both_orders
        if path.exists():
            if repair:
                cut_torn_line(path)
            for where, line in json_lines(path, MEND):
                try:
                    self._apply(line, where)
                except ValueError as error:
                    raise UserError(f"{where}: damaged event ({error}); {MEND}") from None

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Journals what the run is, or checks that it is still the same.

        Raises:
            UserError: It was begun with something else; names what changed.
        """
        if self.header is None:
            self._write({"event": "start", **identity})
        elif self.header != identity:
            changed = next(
                k for k in [*identity, *self.header] if self.header.get(k) != identity.get(k)
            )
            raise UserError(
                f"run {self.path.parent.name!r} was made with another {changed} (weights, device, precision,"
                " clips, seeds or language model changed); give another --name"
            )

    def steer(self, iteration: int, requests: Sequence[Request]) -> None:
        """Journals what a person asked for and an iteration takes, before it proposes."""
        taken = [one.to_dict() for one in requests]
        self._write({"event": "steer", "iteration": iteration, "requests": taken})

    def add(
        self,
        iteration: int,
        candidates: Sequence[Candidate],
        refused: Sequence[dict[str, str]] = (),
    ) -> list[Trial]:
        """Journals an iteration's candidates as waiting trials, before any of them is scored.

        Args:
            refused: Candidates that may not be tried, as text and reason.
        """
        first = len(self.trials)
        told = [{name: inert(text) for name, text in one.items()} for one in refused]
        marked = {"refused": told} if refused else {}
        self._write(
            {
                "event": "propose",
                "iteration": iteration,
                "candidates": [
                    {
                        "number": first + i,
                        "prompt": c.prompt.to_dict(),
                        "origin": c.origin,
                        "parents": list(c.parents),
                    }
                    for i, c in enumerate(candidates)
                ],
                **marked,
            }
        )
        return self.trials[first:]

    def tell(self, trial: Trial) -> None:
        """Journals a trial's outcome."""
        one = trial.outcome
        marked: dict[str, Any] = {"unlisted": one.unlisted} if one and one.unlisted else {}
        marked |= {"tokens": one.tokens} if one and one.tokens is not None else {}
        self._write(
            {
                "event": "tell",
                "prompt_id": trial.prompt.prompt_id,
                "number": trial.number,
                "state": trial.state,
                "reward": one.reward if one else None,
                "sd": one.sd if one else 0.0,
                "score": one.score if one else None,
                "low": one.low if one else None,
                "high": one.high if one else None,
                "nll": one.loss if one else None,
                "bias": one.bias if one else 0.0,
                "fitted": one.fitted if one else None,
                "clips": trial.n_scored,
                "blocks": one.blocks if one else (),
                "slices": one.slices if one else {},
                "profile": dataclasses.asdict(one.profile) if one and one.profile else None,
                "outside": one.outside if one else None,
                "error": inert(trial.error),
                **marked,
            }
        )

    def close(self, selection: Mapping[str, Any]) -> None:
        """Journals the outcome of the selection; the last event."""
        if self.selection is None:
            self._write({"event": "select", **selection})

    def before(self, iteration: int) -> tuple[Trial, ...]:
        """Trials of earlier iterations: all that an iteration may depend on, so that a resume goes the same way."""
        return tuple(t for t in self.trials if t.iteration < iteration)

    def of(self, iteration: int) -> list[Trial]:
        """Trials of one iteration."""
        return [t for t in self.trials if t.iteration == iteration]

    @property
    def scored(self) -> list[Trial]:
        """Complete and dropped trials, best first."""
        return best_first(t for t in self.trials if t.scored)

    @property
    def complete(self) -> list[Trial]:
        """Trials scored on all search clips, best first."""
        return best_first(t for t in self.trials if t.state == "complete")

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps({"schema": SCHEMA, **_rounded(event)}, ensure_ascii=False) + "\n"
        event_from(_rounded(event))  # what could not be read back is not written
        append_line(self.path, line)
        self._apply(json.loads(line), str(self.path))

    def _apply(self, line: dict[str, Any], where: str) -> None:
        """Adds what a line of the journal tells, which stands at "file:line".

        Raises:
            ValueError: It is no event, or cannot follow those before it.
        """
        schema = line.pop("schema", None)
        if type(schema) is not int:
            raise ValueError(f"schema is {brief(schema)}; expected {SCHEMA}")
        if schema > SCHEMA:
            raise UserError(
                f"{self.path} was written by a newer version of this program; update it"
            )
        event = event_from(line)
        if isinstance(event, Start) != (self.header is None):
            raise ValueError("the start stands elsewhere")
        match event:
            case Start():
                self.header = {name: value for name, value in line.items() if name != "event"}
            case Propose():
                self._propose(event, where)
            case Steer():
                new = [
                    (event.iteration, request_from(r, self._labels, where)) for r in event.requests
                ]
                self.steering = Steering((*self.steering.taken, *new))
            case Tell():
                self._tell(event)
            case Select():
                known = range(len(self.trials))
                for number in (event.chosen, event.baseline, *event.finalists):
                    if number not in known:
                        raise ValueError(f"trial {number} was not proposed")
                self.selection = {n: v for n, v in event.model_dump().items() if n != "event"}

    def _propose(self, event: Propose, where: str) -> None:
        if event.iteration in self.proposed:
            raise ValueError(f"iteration {event.iteration} was proposed before")
        new = []
        for number, raw in enumerate(event.candidates, len(self.trials)):
            if raw.number != number:
                raise ValueError(f"trial {raw.number} stands where {number} is expected")
            prompt = prompt_from(raw.prompt, self._labels, where)
            if self._both_orders:
                prompt = replace(prompt, both_orders=True)
            candidate = Candidate(prompt, raw.origin, tuple(raw.parents))
            new.append(Trial(number, event.iteration, candidate))
        self.proposed.add(event.iteration)
        self.refused[event.iteration] = [one.model_dump() for one in event.refused]
        self.trials += new

    def _tell(self, event: Tell) -> None:
        if event.number >= len(self.trials):
            raise ValueError(f"trial {event.number} was not proposed")
        before = self.trials[event.number]
        if before.state not in ("waiting", "dropped"):
            raise ValueError(f"trial {event.number} was told before")
        told, again = _told(before, event), before.scored
        if again:  # its forecast made way for its score
            told = replace(told, asked_twice=before.n_scored)
        self.trials[event.number] = told
        if again:
            self.best = max(self.scored, key=lambda t: t.rank, default=None)
        elif told.scored and (self.best is None or told.rank > self.best.rank):
            self.best = told


def best_first(trials: Any) -> list[Trial]:
    """Trials by rank."""
    return sorted(trials, key=lambda t: t.rank, reverse=True)


def _told(trial: Trial, event: Tell) -> Trial:
    """The trial with the outcome that an event tells."""
    if event.reward is None:
        return replace(
            trial, state=event.state, outcome=None, error=event.error, failed_after=event.clips
        )
    outcome = Outcome(
        reward=event.reward,
        sd=event.sd,
        score=math.nan if event.score is None else event.score,
        low=event.low,
        high=event.high,
        loss=event.nll,
        bias=bias_from(event.bias),
        fitted=bias_from(event.fitted),
        n_scored=event.clips,
        blocks=tuple(event.blocks),
        slices={n: (math.nan if v is None else v, clips) for n, (v, clips) in event.slices.items()},
        profile=_profile(event.profile),
        outside=event.outside,
        unlisted=event.unlisted,
        tokens=event.tokens,
    )
    return replace(trial, state=event.state, outcome=outcome, error=event.error)


def _profile(raw: ProfileLine | None) -> Profile | None:
    if raw is None:
        return None
    return Profile(tuple(raw.recalls), math.nan if raw.auroc is None else raw.auroc, raw.tuned)


def _rounded(value: Any) -> Any:
    """Floats to 6 places, so that a journal does not depend on the last bits of a sum; no NaN, which is no JSON."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value
