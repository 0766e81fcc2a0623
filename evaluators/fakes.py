"""Deterministic stand-ins, shipped so that a run without weights or network is a flag away."""

import hashlib
import time
from collections.abc import Sequence

import numpy as np

from evaluators.clips import Clip
from evaluators.evaluator import ScoreTable, Uncached
from evaluators.prompts import Prompt


def _unit(*parts: object) -> float:
    """A number in [0, 1) from a hash."""
    raw = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(raw[:8], "big") / 2**64


class FakeEvaluator(Uncached):
    """An Evaluator whose prompts have a skill drawn by hash, clips a difficulty, and pairs some noise.

    Args:
        delay: Seconds each pair takes.
    """

    presents = True

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.forwards = 0
        self.fingerprint = hashlib.sha256(b"fake evaluator, version 1").hexdigest()

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`."""
        logp = np.zeros((len(prompts), len(clips), len(prompts[0].answers)), dtype=np.float32)
        for p, prompt in enumerate(prompts):
            skill = 3.0 * _unit(prompt.digest, "skill")
            shift = _unit(prompt.digest, "shift") - 0.5
            for c, clip in enumerate(clips):
                audible = 1.0 if clip.audio == "recorded" else 0.0
                for k, (label, _) in enumerate(prompt.answers):
                    sign = 1.0 if label == clip.label else -1.0
                    noise = 4 * (_unit(prompt.digest, clip.sha256, clip.audio, label) - 0.5)
                    logp[p, c, k] = (
                        audible * sign * skill * _unit(clip.sha256, "ease")
                        + noise
                        + (shift if k == 0 else -shift)
                    )
        own = logp - np.logaddexp.reduce(logp, axis=-1, keepdims=True) - 0.01
        self.forwards += len(prompts) * len(clips)
        time.sleep(self.delay * len(prompts) * len(clips))
        return ScoreTable(
            tuple(prompts), tuple(clips), own.astype(np.float32), own.astype(np.float32)
        )
