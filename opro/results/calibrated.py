"""What a run's files say of a classifier's probabilities: its calibration, and the nats that it decided by."""

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import Bias, Calibration, Classifier, shifted
from evaluators.errors import UserError
from evaluators.statistics.calibration import fit_distribution
from evaluators.targets import Predictions
from opro.results.predictions import read_own
from opro.results.run_folder import RunFolder

Floats = NDArray[np.floating]
LEAST = 1e-6  # probabilities stand in files with six digits


def calibration_of(run: RunFolder, classifier: Classifier) -> Calibration | None:
    """Fitted on the search half; None where the run does not hold its scores.

    Raises:
        UserError: None fits.
    """
    path = run.scores(classifier.prompt)
    if not path.is_file():
        return None
    said = read_own(path, run.task.labels)
    assert said.score is not None, "scores hold log-probabilities"
    nats = _nats(said.score, said.logp, classifier.bias)
    return fit_distribution(said.targets.truth, nats)


def decided_by(held: Predictions, bias: Bias) -> Floats:
    """``[clip, label]`` nats, up to a constant a clip, that a file of predictions was decided by.

    Of two labels the file's probability holds the bias; of more its nats are as the model gives them.
    """
    if held.logp is not None:
        return _nats(None, held.logp, bias)
    if held.probability is None or len(held.targets.labels) > 2:
        raise UserError(
            f"{held.name}: holds no probability of each label; expected a run's predictions"
        )
    own = np.clip(held.probability, LEAST, 1 - LEAST)
    return _nats(np.log(own / (1 - own)), None, 0.0)


def _nats(odds: Floats | None, logp: Floats | None, bias: Bias) -> Floats:
    if logp is not None:
        return shifted(logp, bias)
    assert odds is not None and not isinstance(bias, tuple)
    return np.stack([(odds + bias) / 2, -(odds + bias) / 2], axis=-1)
