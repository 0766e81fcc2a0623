"""Answers with a promised error rate: split conformal prediction by class, for clips that come in sources.

Of new sources like those of the calibration clips, a clip of a class gets an answer that excludes its class at most as
often as the error rate says, averaged over sources (hierarchical conformal prediction: Lee, Barber and Willett, arXiv
2306.06342; by class: Vovk, arXiv 1209.2673).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.errors import UserError
from evaluators.statistics.metrics import Floats, Ints


@dataclass(frozen=True)
class Conformal:
    """What a probability of a label must reach, so that the label stays possible.

    Attributes:
        error_rate: Share of a class's clips, at most, whose class is excluded.
        least: ``[label]`` least probability at which a label is possible; 0: it always is.
        sources: ``[label]`` sources that it was learned from.
    """

    error_rate: float
    least: tuple[float, ...]
    sources: tuple[int, ...]

    def possible(self, probability: Floats) -> NDArray[np.bool_]:
        """``[..., label]`` whether a label is possible, from ``[..., label]`` probabilities."""
        return np.asarray(probability >= np.array(self.least))

    def sure(self, probability: Floats) -> NDArray[np.bool_]:
        """``[...]`` whether exactly one label is possible."""
        return np.asarray(self.possible(probability).sum(axis=-1) == 1)

    @property
    def promised(self) -> tuple[bool, ...]:
        """``[label]`` whether there are sources enough for a class to be excluded at all."""
        return tuple(least > 0 for least in self.least)


def fit_conformal(
    truth: Ints, sources: NDArray[np.str_], probability: Floats, error_rate: float
) -> Conformal:
    """The least probabilities, from clips that decided nothing about the classifier.

    Args:
        truth: ``[clip]`` index of the right label.
        sources: ``[clip]``.
        probability: ``[clip, label]`` of a classifier.
        error_rate: Between 0 and 1.
    Raises:
        UserError: The rate lies outside, or a class has no clip.
    """
    if not 0 < error_rate < 1:
        raise UserError(f"error rate {error_rate:g} is no rate; expected a number between 0 and 1")
    least, counts = [], []
    for k in range(probability.shape[1]):
        own = truth == k
        if not own.any():
            raise UserError(f"no clip of class {k + 1} to learn from what is sure; expected some")
        level, count = _least(probability[own, k], sources[own], error_rate)
        least.append(level)
        counts.append(count)
    return Conformal(error_rate, tuple(least), tuple(counts))


def _least(probability: Floats, sources: NDArray[np.str_], error_rate: float) -> tuple[float, int]:
    """The largest level below which no more than the rate lies, each source of equal weight and one more at 0."""
    _, place, clips = np.unique(sources, return_inverse=True, return_counts=True)
    weight = 1 / (clips[place] * (len(clips) + 1))
    order = np.argsort(probability, kind="stable")
    values, below = probability[order], 1 / (len(clips) + 1) + np.cumsum(weight[order])
    # A level excludes what lies below it: at a value, all smaller ones and the source that is not known yet.
    excluded = np.concatenate([[1 / (len(clips) + 1)], below[:-1]])
    first = np.searchsorted(
        values, values, side="left"
    )  # equal values are excluded together or not at all
    fits = excluded[first] <= error_rate + 1e-12
    return (float(values[fits].max()) if fits.any() else 0.0), len(clips)
