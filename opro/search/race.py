"""Racing: which clips a candidate hears next, and who leaves. A speed knob, never evidence.

All candidates of an iteration hear the same blocks of clips, each block as long as all before it. After a block every
candidate's reward on all clips is forecast (`forecast`); at most half of them stay, and none that cannot win.
After the first block, whose clips are balanced, the clips come next whose outcome is most in doubt.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evaluators.audio_lm.answer_tokens import PromptError
from evaluators.clips import Clip
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt
from evaluators.statistics import metrics
from opro.search.forecast import Basis, basis, draw_margins
from opro.search.objective import Judged, Reward

FIRST = 32  # clips of the first block
DROP_Z = 1.2816  # one-sided 10 %: so sure is a forecast when a candidate leaves for being worse
GAIN = 0.005  # a lead that is not worth a clip more


@dataclass(frozen=True)
class Result:
    """What a race left of a candidate.

    Attributes:
        seen: Indices of the clips it heard, in that order.
        logp: ``[seen, label]`` in nats.
        reward, sd: Its reward on all clips: exact and 0, or a forecast and its standard deviation.
        hits: ``[clip]`` whether it is right: 0 or 1 where heard, a chance elsewhere.
        blocks: `reward` after each block.
        judged: Its scores, once it has heard all.
        bias: Shift of the first label's log-odds in force, see `Reward`.
        error: Why it could not be scored, else empty.
    """

    seen: NDArray[np.int64]
    logp: NDArray[np.float32]
    reward: float = math.nan
    sd: float = 0.0
    hits: NDArray[np.float64] | None = None
    blocks: tuple[float, ...] = ()
    judged: Judged | None = None
    bias: float = 0.0
    error: str = ""


def race(
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    clips: Sequence[Clip],
    truth: NDArray[np.int64],
    reward: Reward,
    references: NDArray[np.float32] | None,
    on_block: Callable[[int, int], None] = lambda done, skipped: None,
    budget: float = math.inf,
    first: int = FIRST,
) -> list[Result]:
    """Scores prompts block by block on the same clips, dropping those that cannot win.

    A prompt leaves when even with all open clips right it would stay below the best reference (without loss); when
    its forecast is below that of the leader, or of the best reference, at one-sided 10 %; or when half of those that
    are left are forecast better.

    Args:
        clips: In balanced order.
        references: ``[reference, clip, label]`` of prompts that heard every clip, the best first; None scores all
            prompts on everything.
        first: Clips of the first block.
        on_block: Called with the pairs scored and the pairs that will never be asked for.
        budget: Evals that may be asked for: only as many go on, the best forecast first, as it covers.
    """
    count, labels = len(clips), len(prompts[0].answers) if prompts else 2
    field = [Result(np.zeros(0, np.int64), np.zeros((0, labels), np.float32)) for _ in prompts]
    alive = list(range(len(prompts)))
    best = None if references is None else reward.judge(references[0], truth, clips)
    known = None if references is None else basis(references, truth)
    waiting = np.arange(count)
    block = count if known is None else min(first, count)
    while alive and block:
        fits = int(min(budget / block, len(alive)))
        on_block(0, (len(alive) - fits) * len(waiting))
        alive = sorted(alive, key=lambda p: -_lead(field[p]))[:fits]
        index, waiting = waiting[:block], waiting[block:]
        budget -= len(alive) * block
        alive = _score(evaluator, prompts, clips, index, sorted(alive), field)
        for p in alive:
            field[p] = _judge(field[p], known, truth, clips, reward)
        keep = alive if known is None or not alive else _keep(field, alive, best, truth, reward)
        on_block(len(alive) * block, (len(alive) - len(keep)) * len(waiting))
        alive = keep
        if alive and len(waiting):
            hits = np.mean([field[p].hits for p in alive], axis=0)
            waiting = _doubtful_first(waiting, hits * (1 - hits), truth)
        heard = count - len(waiting)
        # What little would be left after a block is heard with it.
        block = len(waiting) if len(waiting) < 1.5 * heard else heard
    return field


def _lead(result: Result) -> float:
    return -math.inf if math.isnan(result.reward) else result.reward


def _score(
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    clips: Sequence[Clip],
    index: NDArray[np.int64],
    alive: list[int],
    field: list[Result],
) -> list[int]:
    """Scores those that are alive on a block; a prompt that this model cannot score is marked and left out."""
    part = [clips[i] for i in index]
    try:
        table = evaluator.score([prompts[p] for p in alive], part) if alive else None
    except PromptError:
        good = []
        for p in alive:  # find out which one it was
            try:
                evaluator.score([prompts[p]], part)
                good.append(p)
            except PromptError as fault:
                field[p] = replace(field[p], error=str(fault))
        return _score(evaluator, prompts, clips, index, good, field)
    for i, p in enumerate(alive):
        assert table is not None
        field[p] = replace(
            field[p],
            seen=np.concatenate([field[p].seen, index]),
            logp=np.concatenate([field[p].logp, table.logp[i]]),
        )
    return alive


def _judge(
    result: Result,
    known: Basis | None,
    truth: NDArray[np.int64],
    clips: Sequence[Clip],
    reward: Reward,
) -> Result:
    """With its reward on all clips: exact when it has heard all, else a forecast."""
    if len(result.seen) == len(clips):
        logp = np.empty_like(result.logp)
        logp[result.seen] = result.logp
        judged = reward.judge(logp, truth, clips)
        return replace(
            result,
            seen=np.arange(len(clips)),
            logp=logp,
            judged=judged,
            bias=judged.bias,
            reward=judged.reward,
            sd=0.0,
            hits=judged.right.astype(float),
            blocks=(*result.blocks, judged.reward),
        )
    assert known is not None
    drawn = draw_margins(known, result.seen, metrics.margins(result.logp.astype(np.float64)))
    outcomes = [
        reward.judge(np.stack([-np.logaddexp(0, -m), -np.logaddexp(0, m)], axis=-1), truth, clips)
        for m in drawn
    ]
    rewards = np.array([o.reward for o in outcomes])
    return replace(
        result,
        reward=float(rewards.mean()),
        sd=float(rewards.std()),
        hits=np.mean([o.right for o in outcomes], axis=0),
        bias=float(np.mean([o.bias for o in outcomes])),
        blocks=(*result.blocks, float(rewards.mean())),
    )


def _keep(
    field: Sequence[Result],
    alive: Sequence[int],
    best: Judged | None,
    truth: NDArray[np.int64],
    reward: Reward,
) -> list[int]:
    """Those that race on, of those that are alive."""
    ranked = sorted(alive, key=lambda p: -field[p].reward)
    leader = field[ranked[0]]
    out = []
    for p in ranked[: math.ceil(len(ranked) / 2)]:
        one = field[p]
        bar = leader.reward - (0 if one is leader else DROP_Z * math.hypot(one.sd, leader.sd))
        if best is not None:
            bar = max(bar, best.reward + GAIN - DROP_Z * one.sd)
        reachable = math.inf
        if best is not None and reward.by_clip:
            right = np.ones(len(truth))
            right[one.seen] = one.hits[one.seen]
            reachable = float(reward.weights(truth) @ right)
        if one.reward >= bar and (best is None or reachable >= best.reward - 1e-12):
            out.append(p)
    return sorted(out)


def _doubtful_first(
    clips: NDArray[np.int64], doubt: NDArray[np.float64], truth: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The clips whose outcome is most in doubt first, the labels in turns."""
    of_label = [clips[truth[clips] == k] for k in np.unique(truth[clips])]
    place = np.empty(len(doubt))
    for own in of_label:
        place[own[np.argsort(-doubt[own], kind="stable")]] = np.arange(len(own))
    return clips[np.argsort(place[clips], kind="stable")]
