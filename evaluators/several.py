"""Several checkpoints as one evaluator, to search one prompt that serves them all.

A clip stands once for each checkpoint, under the same source. So balanced accuracy over all of them is the mean over
the checkpoints, and every interval and test over sources holds for that mean.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from evaluators.clips import Clip
from evaluators.evaluator import About, Evaluator, ScoreTable, Usage
from evaluators.prompts import Prompt

MARK = "|"  # between checkpoint and clip in a clip's id


def spread(clips: Sequence[Clip], names: Sequence[str]) -> list[Clip]:
    """Each clip once for every checkpoint, in turns."""
    return [replace(c, clip_id=f"{name}{MARK}{c.clip_id}") for c in clips for name in names]


def clip_name(clip_id: str) -> str:
    """The clip's own id, without a checkpoint's name."""
    return clip_id.rpartition(MARK)[2]


class PerCheckpoint:
    """An Evaluator of clips from `spread`: each is scored by the evaluator of its checkpoint.

    Args:
        evaluators: By name of the checkpoint.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        self.evaluators = dict(evaluators)

    @property
    def fingerprint(self) -> str:
        """See `Evaluator`."""
        raw = MARK.join(f"{n} {e.fingerprint}" for n, e in self.evaluators.items())
        return hashlib.sha256(raw.encode()).hexdigest()

    @property
    def usage(self) -> Usage:
        """The sum over the checkpoints."""
        return sum((e.usage for e in self.evaluators.values()), Usage())

    @property
    def innermost(self) -> Evaluator:
        """The first checkpoint's."""
        return next(iter(self.evaluators.values())).innermost

    def about(self) -> About:
        """The first checkpoint's."""
        return next(iter(self.evaluators.values())).about()

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
        """(checkpoint, places of its clips, the clips under their own ids)."""
        parts = []
        for name in self.evaluators:
            index = [i for i, c in enumerate(clips) if c.clip_id.rpartition(MARK)[0] == name]
            if index:
                own = [replace(clips[i], clip_id=clip_name(clips[i].clip_id)) for i in index]
                parts.append((name, index, own))
        return parts
