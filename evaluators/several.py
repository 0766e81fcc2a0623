"""Several checkpoints as one evaluator, to search one prompt that serves them all."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from evaluators.clips import Clip
from evaluators.evaluator import About, Evaluator, ScoreTable, Usage, Work
from evaluators.prompts import Prompt


class PerCheckpoint:
    """An Evaluator that scores each clip with the checkpoint the clip names: clips come from `ClipSet.repeat`.

    Args:
        evaluators: By name of the checkpoint.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        self.evaluators = dict(evaluators)

    @property
    def fingerprint(self) -> str:
        """See `Evaluator`."""
        raw = "|".join(f"{n} {e.fingerprint}" for n, e in self.evaluators.items())
        return hashlib.sha256(raw.encode()).hexdigest()

    @property
    def usage(self) -> Usage:
        """The sum over the checkpoints."""
        return sum((e.usage for e in self.evaluators.values()), Usage())

    @property
    def innermost(self) -> Evaluator:
        """The first checkpoint's."""
        return next(iter(self.evaluators.values())).innermost

    def reading(self, prompt: Prompt) -> str:
        """See `Evaluator.reading`."""
        return self.innermost.reading(prompt)

    def about(self) -> About:
        """The first checkpoint's, with the libraries and the work of all."""
        every = [evaluator.about() for evaluator in self.evaluators.values()]
        libraries = {name: version for one in every for name, version in one.versions.items()}
        counted = [one.work for one in every if one.work is not None]
        work = functools.reduce(Work.after, counted) if counted else None
        return replace(every[0], versions=libraries, work=work)

    def release(self) -> None:
        """Releases all of them."""
        for evaluator in self.evaluators.values():
            evaluator.release()

    def count_missing(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> int:
        """See `Evaluator.count_missing`."""
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
        """(checkpoint, places of its clips, the clips by themselves).

        Raises:
            ValueError: A clip names none of the checkpoints.
        """
        strange = {clip.checkpoint for clip in clips} - set(self.evaluators)
        if strange:
            raise ValueError(f"clips of {sorted(strange)}, none of {sorted(self.evaluators)}")
        parts = []
        for name in self.evaluators:
            index = [i for i, c in enumerate(clips) if c.checkpoint == name]
            if index:
                parts.append((name, index, [replace(clips[i], checkpoint="") for i in index]))
        return parts
