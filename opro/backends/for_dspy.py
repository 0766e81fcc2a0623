"""A DSPy module whose instructions are the prompt, so that DSPy's optimisers search it.

    program = DspyBackend(evaluator, seed, clips)
    better = dspy.COPRO(prompt_model=lm, metric=right).compile(program, trainset=program.examples(), eval_kwargs={})

The audio model is ours and never called through DSPy: only ``predict.signature.instructions`` is read.
"""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import dspy

from evaluators.clips import Clip, ClipSet
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt
from opro.backends.scoring import Answered, answered


class DspyBackend(dspy.Module):  # type: ignore[misc]  # DSPy has no types
    """Answers clips with the label that the audio model gives.

    Args:
        evaluator: Scores.
        like: Its text is the first instruction; it gives the system message and the answers' words, too.
        clips: Whichever are asked about: all are scored at once when new instructions meet the first of them.
    """

    def __init__(self, evaluator: Evaluator, like: Prompt, clips: ClipSet) -> None:
        super().__init__()
        signature = dspy.Signature("clip_id: str -> label: str", like.text)
        self.predict = dspy.Predict(signature)
        self._scoring = _Scoring(evaluator, like, clips)

    @property
    def prompt(self) -> str:
        """The text that is asked now."""
        return str(self.predict.signature.instructions)

    def forward(self, clip_id: str) -> Any:
        """The label and the probability of the right one."""
        found = self._scoring.of(self.prompt)
        place = self._scoring.places[clip_id]
        return dspy.Prediction(
            label=found.said[place], probability=float(found.probability[place]), error=found.error
        )

    def examples(self, clips: Sequence[Clip] | None = None) -> list[Any]:
        """DSPy's examples of clips: their id, and the right label."""
        return [
            dspy.Example(clip_id=c.name, label=c.label).with_inputs("clip_id")
            for c in (self._scoring.clips if clips is None else clips)
        ]


class _Scoring:
    """Scores by text; not copied with the module, which DSPy does for every candidate."""

    def __init__(self, evaluator: Evaluator, like: Prompt, clips: ClipSet) -> None:
        self.evaluator, self.like, self.clips = evaluator, like, clips
        self.places = {c.name: i for i, c in enumerate(clips)}
        self._known: dict[str, Answered] = {}
        self._lock = Lock()

    def __deepcopy__(self, memo: object) -> "_Scoring":
        return self

    def of(self, text: str) -> Answered:
        """What all clips are answered; scored once."""
        with self._lock:
            if text not in self._known:
                self._known[text] = answered(self.evaluator, self.like, text, self.clips)
            return self._known[text]


def right(example: Any, prediction: Any, trace: object = None) -> bool:
    """DSPy's metric: whether the label is right. Its mean is accuracy, not balanced accuracy."""
    return bool(example.label == prediction.label)
