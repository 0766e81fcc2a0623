"""From log-probabilities to answers: label, calibrated probability, and whether it is sure enough."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import Classifier, log_odds
from evaluators.errors import UserError
from evaluators.statistics.calibration import fit_calibration
from evaluators.statistics.conformal import Conformal, fit_conformal
from opro.results.predictions import read_predictions
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
        odds = log_odds(logp) + self.classifier.bias
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
        odds = np.clip(log_odds(logp) + self.classifier.bias, -LARGEST, LARGEST)
        first = _probability(self.classifier, odds)
        rest = logp[..., 1:] - np.logaddexp.reduce(logp[..., 1:], axis=-1, keepdims=True)
        return np.concatenate([first[..., None], (1 - first)[..., None] * np.exp(rest)], axis=-1)


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
    searched = run.scores(classifier.prompt)
    if classifier.calibration is None and searched.is_file():
        said = read_predictions(searched, labels[0])
        assert said.score is not None, "scores hold log-probabilities"
        try:
            fitted = fit_calibration(said.targets.truth, said.score + classifier.bias)
            classifier = replace(classifier, calibration=fitted)
        except UserError as error:
            notes.append(f"probabilities are as the model gives them: {error}")
    held = run.holdout(classifier.prompt_id)
    if len(labels) != 2:
        notes.append("what is sure is told of two labels alone, and the task has more")
        return Answers(labels, classifier, notes=tuple(notes))
    if not held.is_file():
        notes.append(
            f"what is sure is not known: {str(held)!r} is not there, the predictions on clips that chose nothing"
        )
        return Answers(labels, classifier, notes=tuple(notes))
    said = read_predictions(held, labels[0])
    assert said.probability is not None, "a run's predictions hold it"
    own = np.clip(said.probability, 1e-6, 1 - 1e-6)
    first = _probability(classifier, np.log(own / (1 - own)))
    shares = np.stack([first, 1 - first], axis=-1)
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
