"""Tuned detectors behind the Evaluator protocol: variant and threshold are chosen on dev, prompts are unused."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.clips import Clip, ClipSet, clip_wave
from evaluators.detectors.detectors import Detector, open_detector
from evaluators.errors import UserError
from evaluators.evaluator import ScoreTable, Uncached
from evaluators.prompts import Prompt
from evaluators.statistics.calibration import fit_bias, fit_calibration
from evaluators.statistics.metrics import balanced_accuracy


@dataclass
class TunedDetector(Uncached):
    """A detector with its rule: an Evaluator.

    Attributes:
        name: As in ``silero`` or ``whisper:MODEL``.
        variant: Index of the detector's variant that decides.
        threshold: In the detector's own unit; larger is the first label.
        temperature: By which the distance to the threshold becomes log-odds, fitted on dev.
        rule: In words.
    """

    name: str
    detector: Detector
    variant: int
    threshold: float
    temperature: float

    @property
    def rule(self) -> str:
        """As in ``20 ms, mode 3 above 0.4``."""
        return f"{self.detector.variants[self.variant]} above {self.threshold:.3g}"

    @property
    def fingerprint(self) -> str:
        """See `Evaluator.fingerprint`."""
        own = [self.name, self.detector.version, self.rule, self.threshold, self.temperature]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`; the same for every prompt. Two labels only."""
        raw = np.array([self.detector(clip_wave(clip))[self.variant] for clip in clips])
        margin = (raw - self.threshold) / self.temperature
        logp = -np.logaddexp(0, np.stack([-margin, margin], axis=-1))
        table = np.repeat(logp[None].astype(np.float32), len(prompts), axis=0)
        self.forwards += len(prompts) * len(clips)
        return ScoreTable(tuple(prompts), tuple(clips), table, table)


def check_detects(name: str, labels: Sequence[str]) -> None:
    """Raises UserError for a task that a detector cannot be a baseline of."""
    if len(labels) != 2:
        raise UserError(
            f"baseline {name!r} tells two labels apart, the task has {len(labels)}; leave it out"
        )


def tune_detector(
    name: str, clips: ClipSet, tick: Callable[[], None] = lambda: None
) -> TunedDetector:
    """A detector tuned on clips of dev, on which it must not be compared afterwards.

    Args:
        clips: Of a task with two labels; the first one is what the detector detects.
        tick: Called after every clip.
    """
    labels, truth = clips.task.labels, clips.targets.truth
    check_detects(name, labels)
    kind, detector = open_detector(name)
    rows = []
    for clip in clips:
        rows.append(detector(clip_wave(clip)))
        tick()
    raw = np.array(rows)

    def found(v: int) -> tuple[float, float]:
        bias = fit_bias(truth, raw[:, v])
        return balanced_accuracy(truth, np.where(raw[:, v] + bias > 0, 0, 1) == truth), bias

    scores = [found(v) for v in range(raw.shape[1])]
    best = max(range(len(scores)), key=lambda v: scores[v][0])  # of equal ones the first
    distance = raw[:, best] + scores[best][1]
    try:
        temperature = fit_calibration(truth, distance).temperature
    except UserError:  # a rule that is perfect or worthless on dev has no temperature
        temperature = max(float(np.std(distance)), 1e-6)
    asked = kind if ":" not in name else name
    return TunedDetector(asked, detector, best, -scores[best][1], temperature)
