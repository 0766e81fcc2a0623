"""Clips that need no file, to see whether a checkpoint loads as the model it was when it was written."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from evaluators.audio import RATE
from evaluators.audio_lm.checkpoint import SelfTest
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt


@dataclass(frozen=True)
class Tolerance:
    """How far scores may lie apart.

    Attributes:
        probability: Of P(answer).
        nats: Of log-probabilities, for each nat that they lie below -1: how improbable an answer is that is all but
            impossible, is decided by rounding.
    """

    probability: float
    nats: float


EXACT = Tolerance(1e-3, 1e-3)  # both in float32
ROUGH = Tolerance(0.1, 0.5)  # any other precision: cards round each in its own way


def score_made_up(evaluator: Evaluator, prompt: Prompt) -> tuple[tuple[float, ...], ...]:
    """Log-probabilities ``[clip][label]`` in nats of clips that are made from a formula."""
    with tempfile.TemporaryDirectory() as folder:
        logp = evaluator.score([prompt], made_up_clips(Path(folder), prompt.answers[0][0])).logp[0]
    return tuple(tuple(round(float(v), 6) for v in row) for row in logp)


def check(evaluator: Evaluator, test: SelfTest, dtype: str, name: str) -> None:
    """Compares a loaded checkpoint with what was stored when it was written.

    Raises:
        UserError: It gives other log-probabilities than rounding explains.
    """
    now = np.array(score_made_up(evaluator, test.prompt))
    allowed = EXACT if dtype == test.dtype == "float32" else ROUGH
    compare(np.array(test.logp), now, allowed, f"checkpoint {name!r}")


def compare(
    then: NDArray[np.floating], now: NDArray[np.floating], allowed: Tolerance, name: str
) -> None:
    """Compares log-probabilities ``[clip, label]`` in nats of made-up clips before and after.

    Raises:
        UserError: They differ by more than is allowed.
    """
    apart = float(np.abs(np.exp(now) - np.exp(then)).max())
    nats = float((np.abs(now - then) / np.maximum(1, np.abs(then))).max())
    if not (apart <= allowed.probability and nats <= allowed.nats):
        raise UserError(
            f"{name} does not load as the model that was trained: its answers to made-up clips"
            f" differ by {apart:.2g} in probability and {nats:.2g} nats a nat,"
            f" {allowed.probability:g} and {allowed.nats:g} are allowed; base weights, adapter or"
            " library versions have changed"
        )


def made_up_clips(folder: Path, label: str) -> Sequence[Clip]:
    """A tone that glides and noise, 400 and 250 ms."""
    clips = []
    for number, samples in enumerate((6400, 4000)):
        time = np.arange(samples) / RATE
        tone = np.sin(2 * np.pi * (150 + 400 * time) * time) * (1 - number)
        noise = np.random.default_rng(number).normal(0, 0.1, samples)
        wave = (0.3 * tone + noise).astype(np.float32)
        path = folder / f"{number}.wav"
        soundfile.write(path, wave, RATE, subtype="FLOAT")
        digest = hashlib.sha256(wave.tobytes()).hexdigest()
        clips.append(
            Clip(
                clip_id=f"made-up {number}",
                path=path,
                label=label,
                category="made up",
                duration_ms=1e3 * samples / RATE,
                snr_db=None,
                condition="made up",
                source_id="made up",
                split="train",
                licence="CC0",
                sha256=digest,
            )
        )
    return clips
