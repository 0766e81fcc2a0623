"""Several checkpoints as one evaluator, to search one prompt that serves them all."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evaluators.clips import Clip
from evaluators.evaluator import ScoreTable
from evaluators.prompts import Prompt


class PerCheckpoint:
    """An Evaluator that scores each clip with the checkpoint the clip names: clips come from `ClipSet.repeat`.

    Args:
        evaluators: By checkpoint; each counts what it was asked for, as `CachedEvaluator` does.
    """

    def __init__(self, evaluators: Mapping[str, Any]) -> None:
        self.evaluators = dict(evaluators)

    @property
    def fingerprint(self) -> str:
        """See `Evaluator`."""
        raw = "|".join(f"{n} {e.fingerprint}" for n, e in self.evaluators.items())
        return hashlib.sha256(raw.encode()).hexdigest()

    @property
    def inner(self) -> Any:
        """The first of them, for whoever asks what computes."""
        return next(iter(self.evaluators.values()))

    @property
    def requested(self) -> int:
        """Pairs asked for."""
        return sum(e.requested for e in self.evaluators.values())

    @property
    def cached(self) -> int:
        """Pairs that came from the cache."""
        return sum(e.cached for e in self.evaluators.values())

    def count_missing(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> int:
        """Pairs that are not in the cache."""
        return sum(
            self.evaluators[name].count_missing(prompts, own) for name, _, own in self._parts(clips)
        )

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator`."""
        shape = (len(prompts), len(clips), len(prompts[0].answers))
        logp, top = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for name, index, own in self._parts(clips):
            table = self.evaluators[name].score(prompts, own)
            logp[:, index], top[:, index] = table.logp, table.logp_top
        return ScoreTable(tuple(prompts), tuple(clips), logp, top)

    def _parts(self, clips: Sequence[Clip]) -> list[tuple[str, list[int], list[Clip]]]:
        """(checkpoint, places of its clips, the clips by themselves)."""
        parts = []
        for name in self.evaluators:
            index = [i for i, c in enumerate(clips) if c.checkpoint == name]
            if index:
                parts.append((name, index, [replace(clips[i], checkpoint="") for i in index]))
        return parts
