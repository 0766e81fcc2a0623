"""Scoring some clips at a time, so that a person sees it move."""

from collections.abc import Callable, Sequence

import numpy as np

from evaluators.clips import ClipSet
from evaluators.errors import PromptError
from evaluators.evaluator import Evaluator, ScoreTable
from evaluators.prompts import Prompt

PART = 100  # clips between two signs of progress


def score_in_parts(
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    clips: ClipSet,
    advance: Callable[[int, int], None],
) -> ScoreTable:
    """`Evaluator.score`, some clips at a time, so that a person sees it move."""
    tables = []
    for begin in range(0, len(clips), PART):
        tables.append(evaluator.score(prompts, clips[begin : begin + PART]))
        advance(len(prompts) * len(tables[-1].clips), 0)
    return ScoreTable(
        tuple(prompts),
        tuple(clips),
        np.concatenate([t.logp for t in tables], axis=1),
        np.concatenate([t.logp_top for t in tables], axis=1),
    )


def score_those_that_can(
    evaluator: Evaluator,
    prompts: Sequence[Prompt],
    clips: ClipSet,
    advance: Callable[[int, int], None] = lambda scored, skipped: None,
) -> ScoreTable:
    """The scores of the first prompt, and of those others that the model can be asked with.

    Raises:
        PromptError: The first one cannot be scored.
    """
    try:
        return score_in_parts(evaluator, prompts, clips, advance)
    except PromptError:  # raised before anything is scored: find out which ones it was
        usable = [prompts[0], *(p for p in prompts[1:] if _can(evaluator, p, clips))]
        return score_in_parts(evaluator, usable, clips, advance)


def _can(evaluator: Evaluator, prompt: Prompt, clips: ClipSet) -> bool:
    try:
        evaluator.score([prompt], clips.first(1))
    except PromptError:
        return False
    return True
