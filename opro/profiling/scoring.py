"""Wordings through an evaluator, in parts that the cache keeps, with the time that is left."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import ClipSet
from evaluators.errors import PromptError
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt
from opro.results.progress import spelled

TOGETHER = 25  # wordings of a call: what an interruption costs at most
LINES = 10  # of progress for a checkpoint

Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Scored:
    """What came of scoring wordings.

    Attributes:
        logp: ``[wording, clip, label]`` nats; NaN of those that could not be scored.
        failed: Index of each of these -> why.
        unlisted: Largest share of a wording's answers that a server did not list, whose scores are upper bounds.
    """

    logp: Floats
    failed: dict[int, str]
    unlisted: float


def score(
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    clips: ClipSet,
    told: Callable[[int, float | None], None] = lambda done, left: None,
) -> Scored:
    """Scores every prompt on every clip; what was scored before comes from the cache.

    Args:
        told: Is given how many prompts are done, and the seconds left once they can be told.
    Raises:
        UserError, PauseError: As `Evaluator.score`; the same call goes on.
    """
    logp = np.full((len(prompts), len(clips), len(clips.task.labels)), np.nan, dtype=np.float32)
    failed: dict[int, str] = {}
    unlisted, missing = 0.0, evaluator.count_missing(prompts, clips)
    begin, before = None, evaluator.usage.forward
    for first in range(0, len(prompts), TOGETHER):
        part = range(first, min(first + TOGETHER, len(prompts)))
        try:
            table = evaluator.score([prompts[i] for i in part], clips)
            logp[part.start : part.stop] = table.logp
            unlisted = max(unlisted, float(table.unlisted.mean(axis=-1).max()))
        except PromptError:
            for i in part:
                try:
                    logp[i] = evaluator.score([prompts[i]], clips).logp[0]
                except PromptError as error:
                    failed[i] = str(error)
        spent, left = evaluator.usage.forward - before, None
        if begin is None:  # the first part came with loading the model
            begin, since = time.monotonic(), spent
        elif spent > since:
            left = max(0, missing - spent) * (time.monotonic() - begin) / (spent - since)
        told(part.stop, left)
    return Scored(logp, failed, unlisted)


def telling(name: str, total: int) -> Callable[[int, float | None], None]:
    """Lines of progress on standard error, at each tenth of the way.

    Args:
        name: Of the checkpoint.
        total: Wordings.
    """
    shown = 0

    def told(done: int, left: float | None) -> None:
        nonlocal shown
        if done * LINES // total > shown or done == total:
            shown = done * LINES // total
            more = "" if left is None or done == total else f", {spelled(left)} left"
            print(f"{name}: {done} of {total} wordings{more}", file=sys.stderr, flush=True)

    return told
