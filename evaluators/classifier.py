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
Bias = float | tuple[float, ...]  # nats on the first label, or on each


def log_odds(logp: Floats) -> Floats:
    """``[..., clip]`` log-odds of the first label against all others, from ``[..., clip, label]`` nats."""
    return np.asarray(logp[..., 0] - np.logaddexp.reduce(logp[..., 1:], axis=-1))


def sigmoid(log_odds: Floats) -> Floats:
    """Probability from log-odds in nats."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-np.asarray(log_odds, dtype=np.float64))))


def odds_of_each(logp: Floats) -> Floats:
    """``[..., clip, label]`` log-odds of each label against the others, from nats of the same shape."""
    columns = [
        log_odds(np.concatenate([logp[..., k : k + 1], np.delete(logp, k, axis=-1)], axis=-1))
        for k in range(logp.shape[-1])
    ]
    return np.stack(columns, axis=-1)


def among_labels(logp: Floats) -> Floats:
    """``[..., clip, label]`` nats, so that the labels' probabilities sum to one."""
    nats = np.asarray(logp, dtype=np.float64)
    return np.asarray(nats - np.logaddexp.reduce(nats, axis=-1, keepdims=True))


def shifted(logp: Floats, bias: Bias = 0.0) -> Floats:
    """``[..., clip, label]`` nats with a bias added: a number to the first label, or one to each."""
    out = np.array(logp, dtype=np.float64)
    if isinstance(bias, tuple):
        out += np.array(bias)
    else:
        out[..., 0] += bias
    return out


def decide(logp: Floats, bias: Bias = 0.0) -> Ints:
    """``[..., clip]`` index of the likeliest label, once `bias` is added.

    >>> decide(np.array([[-1.0, -2.0]])), decide(np.array([[-1.0, -2.0]]), bias=-3.0)
    (array([0]), array([1]))
    >>> decide(np.array([[-1.0, -2.0, -3.0]]), bias=(-1.0, -0.5, 1.5))
    array([2])
    """
    return np.asarray(shifted(logp, bias).argmax(axis=-1))


def spell_bias(bias: Bias, labels: Sequence[str]) -> str:
    """A bias as people read it.

    >>> spell_bias(-0.8, ["SPEECH", "NONSPEECH"]), spell_bias((0.5, -0.25, -0.25), ["A", "B", "C"])
    ('-0.80 nats on SPEECH', 'A +0.50, B -0.25, C -0.25 nats')
    """
    if not isinstance(bias, tuple):
        return f"{bias:+.2f} nats on {labels[0]}"
    return ", ".join(f"{v} {b:+.2f}" for v, b in zip(labels, bias, strict=True)) + " nats"


def bias_from(raw: Any) -> Bias:
    """A bias as JSON holds it: a number, or a list of them."""
    return tuple(map(float, raw)) if isinstance(raw, Sequence) else raw


@dataclass(frozen=True)
class Calibration:
    """Log-odds of the first label become ``log-odds / temperature + bias``, fitted on the search half.

    Of more than two labels the nats of each become ``nats / temperature + its bias`` (bias-corrected temperature
    scaling: Alexandari, Kundaje and Shrikumar 2020). It says how sure an answer is; it never changes the answer.
    """

    temperature: float = 1.0
    bias: Bias = 0.0

    def log_odds(self, log_odds: Floats) -> Floats:
        """Calibrated log-odds, of two labels."""
        assert not isinstance(self.bias, tuple), "of more than two labels see `distribution`"
        return np.asarray(log_odds / self.temperature + self.bias, dtype=np.float64)

    def probability(self, log_odds: Floats) -> Floats:
        """Calibrated probability of the first of two labels."""
        return sigmoid(self.log_odds(log_odds))

    def distribution(self, logp: Floats) -> Floats:
        """``[..., clip, label]`` calibrated probabilities that sum to one, from nats that hold the decision's bias."""
        return np.exp(among_labels(shifted(logp / self.temperature, self.bias)))


@dataclass(frozen=True)
class Classifier:
    """A prompt with its decision rule.

    Attributes:
        prompt: The words, the system message and the order of options that the model is asked with.
        bias: Nats that are added to the first label before the largest wins, of more than two labels to each (their
            mean is 0); 0 is argmax.
        calibration: Of the log-odds with the bias added; None: probabilities as the model gives them.
    """

    prompt: Prompt
    bias: Bias = 0.0
    calibration: Calibration | None = None

    @property
    def prompt_id(self) -> str:
        """12 hex digits that name its prompt in every table."""
        return self.prompt.prompt_id

    @property
    def bias_of_each(self) -> tuple[float, ...]:
        """``[label]`` nats, in the task's order."""
        if isinstance(self.bias, tuple):
            return self.bias
        return (self.bias, *[0.0] * (len(self.prompt.answers) - 1))

    def decide(self, logp: Floats) -> Ints:
        """``[..., clip]`` index of the label decided on, from ``[..., clip, label]`` nats."""
        return decide(logp, self.bias)

    def probability(self, logp: Floats) -> Floats:
        """``[..., clip]`` probability of the first label, from ``[..., clip, label]`` nats."""
        return np.asarray(self.distribution(logp)[..., 0])

    def log_odds(self, logp: Floats) -> Floats:
        """``[..., clip]`` log-odds of the first label with the bias, from ``[..., clip, label]`` nats."""
        if isinstance(self.bias, tuple):
            return log_odds(shifted(logp, self.bias))
        return np.asarray(log_odds(logp) + self.bias)

    def distribution(self, logp: Floats) -> Floats:
        """``[..., clip, label]`` probabilities that sum to one, calibrated where there is a calibration."""
        if logp.shape[-1] == 2:
            odds, fitted = self.log_odds(logp), self.calibration
            first = sigmoid(odds) if fitted is None else fitted.probability(odds)
            return np.stack([first, 1 - first], axis=-1)
        return (self.calibration or Calibration()).distribution(shifted(logp, self.bias))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in prompt files; what is argmax and not calibrated reads as a bare prompt."""
        out = self.prompt.to_dict()
        if self.bias:
            out["bias"] = self._by_label(self.bias)
        if self.calibration is not None:
            out["calibration"] = {
                "temperature": self.calibration.temperature,
                "bias": self._by_label(self.calibration.bias),
            }
        return out

    def _by_label(self, bias: Bias) -> float | dict[str, float]:
        """A bias as people read it."""
        if not isinstance(bias, tuple):
            return bias
        return {label: b for (label, _), b in zip(self.prompt.answers, bias, strict=True)}


def classifier_from(raw: Mapping[str, Any], labels: Sequence[str], where: str) -> Classifier:
    """A classifier from plain data: a prompt, with ``bias`` and ``calibration`` where it has them.

    Raises:
        UserError: An unknown key or a value of the wrong kind; begins with `where`.
    """
    rest = dict(raw)
    bias = _bias(rest.pop("bias", 0.0), labels, f"{where}: bias", "nats, such as -0.8")
    fitted = rest.pop("calibration", None)
    calibration = None
    if fitted is not None:
        if not isinstance(fitted, Mapping) or set(fitted) != {"temperature", "bias"}:
            raise UserError(
                f"{where}: calibration is {fitted!r}; expected a mapping of temperature and bias"
            )
        calibration = Calibration(
            _number(fitted["temperature"], f"{where}: calibration temperature", "a number above 0"),
            _bias(fitted["bias"], labels, f"{where}: calibration bias", "nats, such as 0.3"),
        )
        if calibration.temperature <= 0:
            raise UserError(
                f"{where}: calibration temperature is {calibration.temperature:g}; expected a number above 0"
            )
    return Classifier(prompt_from(rest, labels, where), bias, calibration)


def _bias(value: Any, labels: Sequence[str], where: str, expected: str) -> Bias:
    """A number, or of more than two labels a mapping of each to its number."""
    if not isinstance(value, Mapping) or len(labels) == 2:
        return _number(value, where, expected)
    if set(value) != set(labels):
        raise UserError(
            f"{where} has {', '.join(map(str, value))}; expected a number for each of {', '.join(labels)}"
        )
    return tuple(_number(value[label], f"{where} of {label}", expected) for label in labels)


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
