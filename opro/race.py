"""Racing: which clips a candidate sees next, and who is dropped. A speed knob, never evidence."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.answers import PromptError
from evaluators.clips import Clip
from evaluators.prompts import Prompt
from evaluators.scores import Evaluator
from opro.reward import Judged, Reward

BLOCKS = 5  # stretches that the search clips are cut into
DROP_Z = 1.2816  # one-sided 10 %: a paired difference this far below zero ends a candidate's race


@dataclass(frozen=True)
class Result:
    """What a race left of a candidate: log-probabilities of the first clips ``[clip, label]``, or why it failed."""

    logp: NDArray[np.float32]
    dropped: bool
    blocks: tuple[float, ...]
    judged: Judged | None
    error: str = ""


def blocks_of(count: int) -> list[slice]:
    """The clips in about equal blocks. In balanced order every block holds every cell."""
    edges = np.linspace(0, count, min(BLOCKS, count) + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]


def race(
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    clips: Sequence[Clip],
    truth: NDArray[np.int64],
    reward: Reward,
    incumbent: NDArray[np.bool_] | None,
    on_block: Callable[[int, int], None] = lambda done, skipped: None,
) -> list[Result]:
    """Scores all prompts block by block on the same clips, dropping those that cannot win.

    A prompt leaves when even with all open clips right it would stay below the incumbent (without loss), or when its
    paired difference to the incumbent on the clips so far is below zero at one-sided 10 %. Without an incumbent, or
    with a reward that is no sum over clips, all are scored on everything.

    Args:
        clips: In balanced order.
        incumbent: Which of the clips the incumbent decides right, or None.
        on_block: Called with the pairs scored and the pairs that will never be asked for.
    """
    labels = len(prompts[0].answers) if prompts else 0
    logp = [np.zeros((0, labels), np.float32) for _ in prompts]
    history: list[list[float]] = [[] for _ in prompts]
    error = [""] * len(prompts)
    alive = list(range(len(prompts)))
    weight = reward.weights(truth)
    for block in blocks_of(len(clips)):
        part = clips[block]
        alive = _score_block(evaluator, prompts, part, alive, logp, error)
        seen = block.stop
        keep = []
        for p in alive:
            judged = reward.judge(logp[p], truth[:seen], clips[:seen])
            history[p].append(judged.reward)
            if (
                incumbent is None
                or not reward.by_clip
                or not _beaten(judged.right, incumbent, weight, seen)
            ):
                keep.append(p)
        on_block(len(alive) * len(part), (len(alive) - len(keep)) * (len(clips) - seen))
        alive = keep
    return [
        Result(
            logp[p],
            not error[p] and len(logp[p]) < len(clips),
            tuple(history[p]),
            (
                None
                if error[p]
                else reward.judge(logp[p], truth[: len(logp[p])], clips[: len(logp[p])])
            ),
            error[p],
        )
        for p in range(len(prompts))
    ]


def _score_block(
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    part: Sequence[Clip],
    alive: list[int],
    logp: list[NDArray[np.float32]],
    error: list[str],
) -> list[int]:
    """Scores the prompts that are alive on a block; a prompt that this model cannot score is marked and left out."""
    try:
        table = evaluator.score([prompts[p] for p in alive], part) if alive else None
    except PromptError:
        good = []
        for p in alive:  # find out which one it was
            try:
                evaluator.score([prompts[p]], part)
                good.append(p)
            except PromptError as fault:
                error[p] = str(fault)
        return _score_block(evaluator, prompts, part, good, logp, error)
    for i, p in enumerate(alive):
        assert table is not None
        logp[p] = np.concatenate([logp[p], table.logp[i]])
    return alive


def _beaten(
    right: NDArray[np.bool_], incumbent: NDArray[np.bool_], weight: NDArray[np.float64], seen: int
) -> bool:
    reachable = (weight[:seen] * right).sum() + weight[seen:].sum()
    if reachable < (weight * incumbent).sum() - 1e-12:
        return True
    if seen == len(weight):
        return False
    gain = weight[:seen] * (right.astype(float) - incumbent[:seen])
    spread = gain.std(ddof=1) * math.sqrt(seen) if seen > 1 else math.inf
    return bool(gain.sum() + DROP_Z * spread < 0)
