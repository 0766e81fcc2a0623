"""Scores: what an evaluator returns for prompts and clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import Clip
from evaluators.prompts import Prompt

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ScoreTable:
    """Log-probabilities of the answers.

    Attributes:
        prompts: The prompts, in the order they were asked for.
        clips: The clips, likewise.
        logp: ``[prompt, clip, label]`` in nats over the full vocabulary, summed over the words of a label: the labels
            need not sum to one, the rest is `outside`. NaN means not scored.
        logp_top: The same shape: the single likeliest answer token (or token sequence) of each label, which is what
            constrained generation picks by.
    """

    prompts: tuple[Prompt, ...]
    clips: tuple[Clip, ...]
    logp: Array
    logp_top: Array

    @property
    def outside(self) -> Array:
        """``[prompt, clip]`` probability mass that goes to no answer."""
        return np.asarray(1 - np.exp(self.logp).sum(axis=-1), dtype=np.float32)


def engine(evaluator: Any) -> Any:
    """The evaluator that computes, below cache and averaging."""
    while hasattr(evaluator, "inner"):
        evaluator = evaluator.inner
    return evaluator


class Evaluator(Protocol):
    """Scores prompts on clips."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that can change a score, besides prompt and clip."""

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """Scores every prompt on every clip, in the given order; neither is changed.

        Deterministic: a pair's score does not depend on the other prompts and clips of the call, to 1e-5 nats in
        float32. Raises PromptError for a prompt that cannot be scored, UserError for a clip that cannot be read;
        anything else is a fault of the machine and must stop the run.
        """
