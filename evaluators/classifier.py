"""A classifier: what is searched, journalled, handed over, rescored and shared. A prompt is only a part of it."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.errors import UserError
from evaluators.files import dump_yaml
from evaluators.prompts import Prompt, prompt_from, read_prompt_entries

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


def log_odds(logp: Floats) -> Floats:
    """``[..., clip]`` log-odds of the first label against all others, from ``[..., clip, label]`` nats."""
    return np.asarray(logp[..., 0] - np.logaddexp.reduce(logp[..., 1:], axis=-1))


def sigmoid(log_odds: Floats) -> Floats:
    """Probability from log-odds in nats."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-np.asarray(log_odds, dtype=np.float64))))


def decide(logp: Floats, bias: float = 0.0) -> Ints:
    """``[..., clip]`` index of the likeliest label, `bias` nats added to the first one.

    >>> decide(np.array([[-1.0, -2.0]])), decide(np.array([[-1.0, -2.0]]), bias=-3.0)
    (array([0]), array([1]))
    """
    shifted = np.array(logp, dtype=np.float64)
    shifted[..., 0] += bias
    return np.asarray(shifted.argmax(axis=-1))


@dataclass(frozen=True)
class Calibration:
    """Log-odds of the first label become ``log-odds / temperature + bias``, fitted on the search half.

    It says how sure an answer is; it never changes the answer.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def log_odds(self, log_odds: Floats) -> Floats:
        """Calibrated log-odds."""
        return np.asarray(log_odds / self.temperature + self.bias, dtype=np.float64)

    def probability(self, log_odds: Floats) -> Floats:
        """Calibrated probability of the first label."""
        return sigmoid(self.log_odds(log_odds))


@dataclass(frozen=True)
class Classifier:
    """A prompt with its decision rule.

    Attributes:
        prompt: The words, the system message and the order of options that the model is asked with.
        bias: Nats that are added to the first label's log-odds before the largest wins; 0 is argmax.
        calibration: Of the log-odds with the bias added; None: probabilities as the model gives them.
    """

    prompt: Prompt
    bias: float = 0.0
    calibration: Calibration | None = None

    @property
    def prompt_id(self) -> str:
        """12 hex digits that name its prompt in every table."""
        return self.prompt.prompt_id

    def decide(self, logp: Floats) -> Ints:
        """``[..., clip]`` index of the label decided on, from ``[..., clip, label]`` nats."""
        return decide(logp, self.bias)

    def probability(self, logp: Floats) -> Floats:
        """``[..., clip]`` probability of the first label, from ``[..., clip, label]`` nats."""
        odds = log_odds(logp) + self.bias
        return sigmoid(odds) if self.calibration is None else self.calibration.probability(odds)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in prompt files; what is argmax and not calibrated reads as a bare prompt."""
        out = self.prompt.to_dict()
        if self.bias:
            out["bias"] = self.bias
        if self.calibration is not None:
            out["calibration"] = {
                "temperature": self.calibration.temperature,
                "bias": self.calibration.bias,
            }
        return out


def classifier_from(raw: Mapping[str, Any], labels: Sequence[str], where: str) -> Classifier:
    """A classifier from plain data: a prompt, with ``bias`` and ``calibration`` where it has them.

    Raises:
        UserError: An unknown key or a value of the wrong kind; begins with `where`.
    """
    rest = dict(raw)
    bias = _number(rest.pop("bias", 0.0), f"{where}: bias", "nats, such as -0.8")
    fitted = rest.pop("calibration", None)
    calibration = None
    if fitted is not None:
        if not isinstance(fitted, Mapping) or set(fitted) != {"temperature", "bias"}:
            raise UserError(
                f"{where}: calibration is {fitted!r}; expected a mapping of temperature and bias"
            )
        calibration = Calibration(
            _number(fitted["temperature"], f"{where}: calibration temperature", "a number above 0"),
            _number(fitted["bias"], f"{where}: calibration bias", "nats, such as 0.3"),
        )
        if calibration.temperature <= 0:
            raise UserError(
                f"{where}: calibration temperature is {calibration.temperature:g}; expected a number above 0"
            )
    return Classifier(prompt_from(rest, labels, where), bias, calibration)


def _number(value: Any, where: str, expected: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= sys.float_info.max:
        raise UserError(f"{where} is {value!r:.40}; expected {expected}")
    return float(value)


def read_classifiers(path: Path, labels: Sequence[str]) -> list[Classifier]:
    """Classifiers of a prompt file: a mapping with the single key `prompts`, a list of entries.

    An entry has text, answers, system and both_orders, and optionally bias and calibration, as a run's best.yaml has.

    Raises:
        UserError: Unknown or repeated keys, no entry, the same prompt twice, or a value of the wrong type.
    """
    found = [classifier_from(entry, labels, where) for entry, where in read_prompt_entries(path)]
    if len({c.prompt.digest for c in found}) < len(found):
        raise UserError(f"{path}: a prompt stands twice; remove one of them")
    return found


def dump_classifiers(classifiers: Iterable[Classifier]) -> str:
    """A prompt file's text that `read_classifiers` reads back equal."""
    return dump_yaml({"prompts": [c.to_dict() for c in classifiers]})
