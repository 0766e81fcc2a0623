"""An adapter for GEPA (arXiv 2507.19457), whose component ``prompt`` is the prompt's text.

    gepa.optimize({"prompt": seed.text}, list(train), list(val), adapter=GepaBackend(evaluator, seed), ...)

GEPA takes the mean of the scores, so that it climbs accuracy, not balanced accuracy. Its validation clips choose
the prompt, so that its score on them is no estimate: decide with `opro.score` and `opro.compare` on other sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gepa.core.adapter import EvaluationBatch

from evaluators.clips import Clip
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt
from opro.backends.scoring import answered


@dataclass(frozen=True)
class GepaBackend:
    """A ``gepa.GEPAAdapter`` whose examples are clips.

    Attributes:
        like: Gives the system message and the answers' words; a text must keep these.
    """

    evaluator: Evaluator
    like: Prompt
    propose_new_texts = None  # GEPA's own

    def evaluate(
        self, batch: Sequence[Clip], candidate: Mapping[str, str], capture_traces: bool = False
    ) -> Any:
        """Scores all clips of the batch at once: 1 where the likeliest label is right, else 0."""
        found = answered(self.evaluator, self.like, candidate["prompt"], batch)
        scores = [float(s == c.label) for s, c in zip(found.said, batch, strict=True)]
        traces = [
            {"clip": clip, "said": said, "probability": float(p), "error": found.error}
            for clip, said, p in zip(batch, found.said, found.probability, strict=True)
        ]
        return EvaluationBatch(
            outputs=list(found.said), scores=scores, trajectories=traces if capture_traces else None
        )

    def make_reflective_dataset(
        self, candidate: Mapping[str, str], eval_batch: Any, components_to_update: Sequence[str]
    ) -> dict[str, list[dict[str, str]]]:
        """What a language model is told of each clip: its kind, length and noise, what was said and what is right."""
        rows = [_told(trace) for trace in eval_batch.trajectories]
        return {name: rows for name in components_to_update}


def _told(trace: Mapping[str, Any]) -> dict[str, str]:
    clip = trace["clip"]
    noise = "" if clip.snr_db is None else f", SNR {clip.snr_db:+.0f} dB"
    right = f"right is {clip.label}, which got a probability of {trace['probability']:.2f}"
    return {
        "Inputs": f"a clip of {clip.duration_ms:.0f} ms, {clip.category}{noise}",
        "Generated Outputs": trace["said"] or "nothing",
        "Feedback": trace["error"] or right,
    }
