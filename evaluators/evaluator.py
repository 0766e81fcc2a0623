"""Scores: what an evaluator returns for prompts and clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import Classifier, log_odds
from evaluators.clips import Clip
from evaluators.prompts import Prompt
from evaluators.targets import Predictions, Targets

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

    @cached_property
    def targets(self) -> Targets:
        """What is right about the clips."""
        return Targets.of(self.clips, [label for label, _ in self.prompts[0].answers])

    def predict(self, classifier: Classifier, name: str = "") -> Predictions:
        """What a classifier says of the clips: the one way from scores to decisions, for every verb.

        Raises:
            KeyError: Its prompt was not scored.
        """
        try:
            logp = self.logp[self.prompts.index(classifier.prompt)]
        except ValueError:
            raise KeyError(f"prompt {classifier.prompt_id} was not scored") from None
        return Predictions(
            name or classifier.prompt_id,
            self.targets,
            classifier.decide(logp),
            classifier.probability(logp),
            log_odds(logp),
        )


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
