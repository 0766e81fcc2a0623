"""A checkpoint that a profile predicts instead of scoring it: from the others' scores and a few evals of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import log_odds
from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt
from opro.profiling.forecast import (
    Block,
    Forecast,
    Leaderboard,
    likeliest,
    seen_of,
    spread,
)
from opro.profiling.measured import BEST

SHARE = 0.02  # of its evals, about
FEWEST = 2  # checkpoints that are scored


def check(names: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> None:
    """Refuses what nothing can be predicted from.

    Raises:
        UserError: Too few checkpoints are scored, a predicted one is among them or given twice, or the task has more
            than two labels.
    """
    if not predicted:
        return
    if len(names) < FEWEST:
        raise UserError(
            f"--predict needs the scores of {FEWEST} checkpoints at least, and --checkpoint names {len(names)}; name"
            " relatives of the new one"
        )
    if len(labels) != 2:
        raise UserError(
            f"--predict works for tasks of two labels; this one has {len(labels)}: score it, with --checkpoint"
        )
    twice = [n for i, n in enumerate(predicted) if n in names or n in predicted[:i]]
    if twice:
        raise UserError(f"--predict {twice[0]!r} is named twice, or scored by --checkpoint already")


def predicted(
    evaluator: Evaluator,
    bank: Sequence[NDArray[np.floating]],
    asked: tuple[Sequence[Prompt], ClipSet],
    seed: int,
) -> dict[str, Any]:
    """What a document says of a new checkpoint's wordings: `wordings`, in order, and the `best`.

    Half of its evals are spread evenly, the others go to the wordings that may be best by the first half.

    Args:
        bank: ``[prompt, clip, label]`` nats of each scored checkpoint.
        asked: The prompts and the clips.
    Raises:
        UserError, PauseError: As `Evaluator.score`; what was scored before comes from the cache.
    """
    (prompts, clips), rng = asked, np.random.default_rng([seed, len(asked[0])])
    truth, pairs = clips.targets.truth, len(prompts) * len(clips)
    known = np.stack([log_odds(logp).astype(np.float64) for logp in bank])
    forecast, blocks = Forecast(known, truth), spread(SHARE / 2, truth, len(prompts), rng)

    def hear(block: Block) -> NDArray[np.float64]:
        some = ClipSet(clips.task, tuple(clips.clips[i] for i in block[1]))
        table = evaluator.score([prompts[i] for i in block[0]], some)
        return log_odds(table.logp).astype(np.float64)

    odds = [hear(block) for block in blocks]
    first = forecast.boards(seen_of(blocks, odds), seed).tuned
    more = round(SHARE * pairs) - sum(o.size for o in odds)
    blocks.append(likeliest(first, blocks, more, truth, rng))
    odds.append(hear(blocks[-1]))
    boards = forecast.boards(seen_of(blocks, odds), seed)
    numbers = [_numbers(boards, i) for i in range(len(prompts))]
    order = sorted(range(len(numbers)), key=lambda i: (-numbers[i]["tuned"]["value"], i))
    return {
        "evals": sum(o.size for o in odds),
        "of": pairs,
        "wordings": [
            {"prompt_id": prompt.prompt_id, **number}
            for prompt, number in zip(prompts, numbers, strict=True)
        ],
        "best": [prompts[i].to_dict() for i in order[:BEST]],
    }


def _numbers(boards: Leaderboard, i: int) -> dict[str, dict[str, float]]:
    """Means and 95 % intervals of a wording's accuracies on these clips."""
    out = {}
    for name, draws in (("balanced_accuracy", boards.plain[:, i]), ("tuned", boards.tuned[:, i])):
        value, (low, high) = float(draws.mean()), np.quantile(draws, [0.025, 0.975])
        out[name] = {"value": value, "low": min(value, float(low)), "high": max(value, float(high))}
    return out
