"""What the backends share: a prompt with other words, and which clips it answers right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import Clip
from evaluators.errors import PromptError
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt


@dataclass(frozen=True)
class Answered:
    """What was said of some clips.

    Attributes:
        said: ``[clip]`` the likeliest label; "" where the prompt cannot be scored.
        probability: ``[clip]`` of the right label among the labels; 0 likewise.
        error: Why it cannot be scored, else empty.
    """

    said: tuple[str, ...]
    probability: NDArray[np.float64]
    error: str = ""


def answered(evaluator: Evaluator, like: Prompt, text: str, clips: Sequence[Clip]) -> Answered:
    """Scores a text in the place of a prompt's; what others propose may be anything, so that it never raises for it."""
    if not text.strip():
        return Answered(("",) * len(clips), np.zeros(len(clips)), "the prompt is empty")
    try:
        table = evaluator.score([replace(like, text=text)], clips)
    except PromptError as error:
        return Answered(("",) * len(clips), np.zeros(len(clips)), str(error))
    labels = [label for label, _ in like.answers]
    logp = table.logp[0].astype(np.float64)
    own = np.exp(logp - np.logaddexp.reduce(logp, axis=-1, keepdims=True))
    truth = [labels.index(c.label) for c in clips]
    said = tuple(labels[k] for k in logp.argmax(axis=-1))
    return Answered(said, own[np.arange(len(clips)), truth])
