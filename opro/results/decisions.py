"""The ledger of holdouts: each decision on a half is noted before it is made, and the level is spent over them.

A half is known by the content of its clips and their labels, whatever files, manifests and runs are called. A decision
on a half that shares clips with another one counts on both.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from evaluators.clips import Clip, ClipSet
from opro.results.looks import alone, append_event, journal_lines
from opro.search.history import Trial
from opro.search.select import Turn

DECISIONS = "holdout_decisions.jsonl"  # in the runs folder, beside the uses of test splits


class Line(BaseModel):
    """A line of the ledger: what was compared on which half, whose clips are marked by content and label."""

    model_config = ConfigDict(strict=True)
    half: str
    compared: str
    clips: list[str]


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
    return len(_compared(runs_dir, set(_marks(clips))))


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
        before = _compared(runs_dir, set(marks))
        if compared in before:
            return Turn(before.index(compared) + 1)
        half = hashlib.sha256("".join(marks).encode()).hexdigest()
        event = {"half": half, "run": about, "compared": compared, "clips": marks}
        append_event(runs_dir / DECISIONS, event)
        return Turn(len(before) + 1)


def _compared(runs_dir: Path, marks: set[str]) -> list[str | None]:
    """What each decision on these clips compared, in order; None of a damaged line, which counts on any half."""
    lines = journal_lines(runs_dir / DECISIONS, Line, "one decision on this holdout")
    return [
        line.compared if line else None
        for line in lines
        if line is None or not marks.isdisjoint(line.clips)
    ]


def _marks(clips: Sequence[Clip]) -> list[str]:
    """Sorted marks of the clips, each once, whatever they are called and whose they are."""
    pairs = {json.dumps([c.sha256, c.label]) for c in clips}
    return sorted(hashlib.sha256(one.encode()).hexdigest()[:12] for one in pairs)
