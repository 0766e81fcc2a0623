"""The ledger of holdouts: each decision on a half is noted before it is made, and the level is spent over them.

A half is known by the content of its clips and their labels, whatever files, manifests and runs are called. A decision
on a half that shares clips with another one counts on both. The clips of a half stand in the first line about it alone,
so that a decision reads the clips of as many halves as there are, and not of as many decisions.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from evaluators.clips import Clip, ClipSet
from opro.results.looks import alone, append_event, journal_lines
from opro.search.history import Trial
from opro.search.select import Turn

DECISIONS = "holdout_decisions.jsonl"  # in the runs folder, beside the uses of test splits


class Line(BaseModel):
    """A line of the ledger: what was compared on which half, whose clips are marked by content and label.

    None: its clips are those of an earlier line on this half.
    """

    model_config = ConfigDict(strict=True)
    half: str
    compared: str
    clips: list[str] | None = None


def comparison_id(fingerprint: str, objective: str, seed: int, trials: Sequence[Trial]) -> str:
    """16 hex digits of what a decision compares: the same comparison made again says nothing new.

    Args:
        fingerprint: Of the model.
        seed: Of the resamples.
        trials: The baseline, then the finalists.
    """
    raw = json.dumps([fingerprint, objective, seed, [t.classifier.to_dict() for t in trials]])
    return hashlib.sha256(raw.encode()).hexdigest()[:16]


def count_decisions(runs_dir: Path, clips: ClipSet) -> int:
    """How many decisions were made on halves that hold any of these clips."""
    return len(_decided(runs_dir, _marks(clips)).compared)


def record_decision(runs_dir: Path, clips: ClipSet, about: str, compared: str) -> Turn:
    """Notes that a decision is being made on a half, before its clips are scored. Returns which one it is.

    One that is made again, by a run that was killed, resumed or repeated, keeps its number. Processes take turns.

    Args:
        clips: The half.
        about: The run's name.
        compared: From `comparison_id`.
    """
    marks = _marks(clips)
    with alone(runs_dir / DECISIONS, "ledger of holdouts"):
        before = _decided(runs_dir, marks)
        if compared in before.compared:
            return Turn(before.compared.index(compared) + 1)
        event = {"half": _half(marks), "run": about, "compared": compared}
        append_event(runs_dir / DECISIONS, event if before.marked else event | {"clips": marks})
        return Turn(len(before.compared) + 1)


@dataclass(frozen=True)
class _Decided:
    """What the ledger holds of a half.

    Attributes:
        compared: What each decision on its clips compared, in order; None of a line that is damaged, or whose clips
            stood in one that is, which counts on any half.
        marked: Whether the half's own clips stand there.
    """

    compared: list[str | None]
    marked: bool


def _decided(runs_dir: Path, marks: Sequence[str]) -> _Decided:
    own, mine = set(marks), _half(marks)
    compared, marked, shares = list[str | None](), False, dict[str, bool]()
    for line in journal_lines(runs_dir / DECISIONS, Line, "one decision on this holdout"):
        if line is not None and line.clips is not None:
            marked = marked or line.half == mine
            shares[line.half] = shares.get(line.half, False) or not own.isdisjoint(line.clips)
        if line is None or line.half not in shares:
            compared.append(None)
        elif shares[line.half]:
            compared.append(line.compared)
    return _Decided(compared, marked)


def _half(marks: Sequence[str]) -> str:
    return hashlib.sha256("".join(marks).encode()).hexdigest()


def _marks(clips: Sequence[Clip]) -> list[str]:
    """Sorted marks of the clips, each once, whatever they are called and whose they are."""
    pairs = {json.dumps([c.sha256, c.label]) for c in clips}
    return sorted(hashlib.sha256(one.encode()).hexdigest()[:12] for one in pairs)
