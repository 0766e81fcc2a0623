"""The history of a run: candidates, trials, and the append-only journal that is its only state."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from evaluators.errors import UserError
from evaluators.files import append_line, cut_torn_line
from evaluators.prompts import Prompt, prompt_from

SCHEMA = 1
State = Literal["waiting", "complete", "dropped", "failed"]


@dataclass(frozen=True)
class Candidate:
    """A prompt not yet tried, where it came from (``seed``, ``lm``, a rewriter's operator) and its parents' ids."""

    prompt: Prompt
    origin: str
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """A candidate that was asked for, and what came of it.

    Attributes:
        number: Counts from 0 over the run; the seeds come first.
        iteration: 0 for the seeds.
        state: ``complete``: scored on all search clips; ``dropped`` by the race after `clips` of them; ``failed``:
            could not be scored, see `error`.
        reward: What the search climbs, on all search clips, higher is better. Of a dropped trial a forecast.
        sd: Standard deviation of that forecast, 0 of a complete trial.
        score, low, high: Balanced accuracy on all search clips with its 95 % interval over sources. Of a dropped
            trial a forecast; its interval is wider by the forecast's.
        nll: Balanced mean negative log-probability of the right label in nats: breaks ties.
        bias: Shift of the first label's log-odds in force (``--threshold dev``), else 0.
        clips: Clips scored.
        blocks: Reward or forecast after each block of clips.
        slices: Slice name -> (score, clips).
    """

    number: int
    iteration: int
    candidate: Candidate
    state: State = "waiting"
    reward: float | None = None
    sd: float = 0.0
    score: float | None = None
    low: float | None = None
    high: float | None = None
    nll: float | None = None
    bias: float = 0.0
    clips: int = 0
    blocks: tuple[float, ...] = ()
    slices: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    error: str = ""

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sort key, highest best: reward (a forecast less its sd), then smaller loss, then shorter text."""
        return (
            self.reward - self.sd if self.reward is not None else -1e9,
            -(self.nll if self.nll is not None else 1e9),
            -len(self.candidate.prompt.text),
        )


class History:
    """All trials so far. Every change is on disk, synced, before the method returns; a reader replays it.

    Args:
        path: The journal. An existing one is replayed; a last line cut short by a crash is left out.
        labels: The task's labels, to read prompts back.
        repair: Remove such a line from the file: only for the process that holds the run's lock.
    Attributes:
        heard: ``[clip, label]`` log-probabilities on the search clips of complete trials, by number, best first. Not
            journalled: the loop sets it before proposals are asked for.
    Raises:
        UserError: The journal is damaged before its last line, or of a newer schema.
    """

    def __init__(self, path: Path, labels: Sequence[str], repair: bool = False) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.trials: list[Trial] = []
        self.proposed: set[int] = set()  # iterations whose candidates are journalled
        self.best: Trial | None = None  # of all that were scored
        self.selection: dict[str, Any] | None = None
        self.heard: Mapping[int, Any] = {}
        self._labels = labels
        if path.exists():
            for number, event in enumerate(_read_journal(path, repair), 1):
                try:
                    if (event["event"] == "start") != (number == 1):
                        raise ValueError("the start stands elsewhere")
                    self._apply(event)
                except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
                    raise UserError(
                        f"{path}:{number}: damaged event ({type(error).__name__}: {error}); restore the file"
                        " or use another --name"
                    ) from None

    def start(self, header: Mapping[str, Any]) -> None:
        """Journals what the run is; the first event."""
        self._write({"event": "start", **header})

    def add(self, iteration: int, candidates: Sequence[Candidate]) -> list[Trial]:
        """Journals an iteration's candidates as waiting trials, before any of them is scored."""
        first = len(self.trials)
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
            }
        )
        return self.trials[first:]

    def tell(self, trial: Trial) -> None:
        """Journals a trial's outcome."""
        raw = {k: v for k, v in asdict(trial).items() if k not in ("candidate", "iteration")}
        self._write({"event": "tell", "prompt_id": trial.candidate.prompt.prompt_id, **raw})

    def select(self, selection: Mapping[str, Any]) -> None:
        """Journals the outcome of the selection; the last event."""
        self._write({"event": "select", **selection})

    @property
    def scored(self) -> list[Trial]:
        """Complete and dropped trials, best first."""
        return sorted(
            (t for t in self.trials if t.state in ("complete", "dropped")),
            key=lambda t: t.rank,
            reverse=True,
        )

    def waiting(self, iteration: int) -> list[Trial]:
        """Trials of an iteration that have no outcome yet."""
        return [t for t in self.trials if t.iteration == iteration and t.state == "waiting"]

    @property
    def complete(self) -> list[Trial]:
        """Trials scored on all search clips, best first."""
        return sorted(
            (t for t in self.trials if t.state == "complete"), key=lambda t: t.rank, reverse=True
        )

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps({"schema": SCHEMA, **_rounded(event)}, ensure_ascii=False) + "\n"
        append_line(self.path, line)
        self._apply(json.loads(line))

    def _apply(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if event.pop("schema") > SCHEMA:
            raise UserError(
                f"{self.path} was written by a newer version of this program; update it"
            )
        if kind == "start":
            self.header = event
        elif kind == "propose":
            self.proposed.add(event["iteration"])
            for raw in event["candidates"]:
                candidate = Candidate(
                    prompt_from(raw["prompt"], self._labels, str(self.path)),
                    raw["origin"],
                    tuple(raw["parents"]),
                )
                self.trials.append(Trial(raw["number"], event["iteration"], candidate))
        elif kind == "tell":
            event.pop("prompt_id")
            number = event.pop("number")
            event["blocks"] = tuple(event["blocks"])
            event["slices"] = {
                name: (value[0], value[1]) for name, value in event["slices"].items()
            }
            told = replace(self.trials[number], **event)
            self.trials[number] = told
            if told.state != "failed" and (self.best is None or told.rank > self.best.rank):
                self.best = told
        elif kind == "select":
            self.selection = event
        else:
            raise ValueError(f"unknown event {kind!r}")


def _rounded(value: Any) -> Any:
    """Floats to 6 places, so that a journal does not depend on the last bits of a sum; no NaN, which is no JSON."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def _read_journal(path: Path, repair: bool) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    whole, _, torn = raw.rpartition(b"\n")
    events = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not {"event", "schema"} <= set(event):
                raise ValueError("not an event")
        except ValueError as error:
            raise UserError(
                f"{path}:{number}: damaged line ({error}); restore the file or use another --name"
            ) from None
        events.append(event)
    if torn and repair:
        cut_torn_line(path)
    return events
