"""From log-probabilities to answers: label, calibrated probability, and whether it is sure enough."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import Calibration, Classifier
from evaluators.errors import UserError
from evaluators.statistics.conformal import Conformal, fit_conformal
from opro.results.calibrated import calibration_of, decided_by
from opro.results.predictions import read_own
from opro.results.run_folder import RunFolder

Floats = NDArray[np.floating]
UNSURE = "unsure"
LARGEST = math.log(1e6)  # log-odds beyond which predictions in files are all alike


@dataclass(frozen=True)
class Answers:
    """A classifier with what its run knows of it.

    Attributes:
        labels: Of the task.
        classifier: With a calibration, where one could be fitted.
        conformal: What is sure; None where nothing is known of other clips.
        sure_share: Share of the calibration clips that get an answer; None likewise.
        notes: What could not be had, a sentence each.
    """

    labels: tuple[str, ...]
    classifier: Classifier
    conformal: Conformal | None = None
    sure_share: float | None = None
    notes: tuple[str, ...] = ()

    def rows(self, logp: Floats) -> list[dict[str, Any]]:
        """What is said of each clip, from ``[clip, label]`` nats."""
        decided = self.classifier.decide(logp)
        odds = self.classifier.log_odds(logp)
        shares = self.shares(logp)
        possible = None if self.conformal is None else self.conformal.possible(shares)
        out = []
        for i, k in enumerate(decided):
            row: dict[str, Any] = {"label": self.labels[k]}
            if possible is not None:
                row["answer"] = self.labels[k] if _only(possible[i], int(k)) else UNSURE
            row["log_odds"] = round(float(odds[i]), 6)
            row |= {
                f"p_{v}": round(float(p), 6) for v, p in zip(self.labels, shares[i], strict=True)
            }
            if possible is not None:
                row["kept"] = bool(possible[i, 0])
            out.append(row)
        return out

    def shares(self, logp: Floats) -> Floats:
        """``[clip, label]`` probabilities that sum to one, calibrated where that could be fitted."""
        if len(self.labels) > 2:
            return self.classifier.distribution(logp)
        odds = np.clip(self.classifier.log_odds(logp), -LARGEST, LARGEST)
        first = _probability(self.classifier, odds)
        return np.stack([first, 1 - first], axis=-1)


def _only(possible: NDArray[np.bool_], label: int) -> bool:
    return bool(possible[label]) and int(possible.sum()) == 1


def _probability(classifier: Classifier, odds: Floats) -> Floats:
    """Of the first label, from log-odds that hold the bias."""
    if classifier.calibration is not None:
        return classifier.calibration.probability(odds)
    return np.asarray(1 / (1 + np.exp(-odds)))


def answers_of_run(run: RunFolder, classifier: Classifier, error_rate: float) -> Answers:
    """The answers of a run's classifier: calibrated on its search half, sure by its holdout.

    Raises:
        UserError: The files of the run are damaged, or the rate is none.
    """
    labels, notes = run.task.labels, []
    if run.task.choices:
        raise UserError(
            f"run {run.name!r} asks each clip its own question; recordings bring none: opro.rescore scores a manifest"
            " with its prompt"
        )
    if classifier.calibration is None:
        try:
            classifier = replace(classifier, calibration=calibration_of(run, classifier))
        except UserError as error:
            notes.append(f"probabilities are as the model gives them: {error}")
    held = run.holdout(classifier.prompt_id)
    if not held.is_file():
        notes.append(
            f"what is sure is not known: {str(held)!r} is not there, the predictions on clips that chose nothing"
        )
        return Answers(labels, classifier, notes=tuple(notes))
    said = read_own(held, labels)
    nats = decided_by(said, classifier.bias)
    shares = (classifier.calibration or Calibration()).distribution(nats)
    conformal = fit_conformal(said.targets.truth, said.targets.sources, shares, error_rate)
    for label, promised, sources in zip(labels, conformal.promised, conformal.sources, strict=True):
        if not promised:
            notes.append(
                f"{sources} sources of {label} on the holdout are too few to promise an error rate of {error_rate:g}:"
                f" {label} is never ruled out; the least rate they allow is {1 / (sources + 1):.2f}"
            )
    return Answers(
        labels, classifier, conformal, float(conformal.sure(shares).mean()), tuple(notes)
    )
