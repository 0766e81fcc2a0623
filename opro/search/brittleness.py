"""Brittleness: how far a classifier's score moves with trivial edits of its prompt, on clips of the search half."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.classifier import Bias, Classifier
from evaluators.clips import ClipSet
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt
from evaluators.statistics.compare import difference, resample
from evaluators.statistics.metrics import METRICS
from evaluators.statistics.resampling import Estimate, Statistic
from opro.search.edits import Edit, trivial_edits
from opro.search.objective import Objective
from opro.search.parts import score_those_that_can

CLIPS = 200  # of the search half, at most: the first ones in balanced order
FLOOR = 0.1  # share of the edits that may fall below the floor
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
MARGIN = 0.01  # floors that differ by no more than a point are alike


@dataclass(frozen=True)
class Brittleness:
    """A classifier and what trivial edits of its prompt make of it; each keeps its threshold.

    Attributes:
        classifier: As it is.
        score: Its value of the metric on these clips.
        edits, scores: The edits that could be scored, and the value of each.
        anew: The value of each with a threshold fitted anew to it on the same clips; empty where none is fitted.
        loss: Its score less the mean over the edits, with bounds over sources.
        refused: Edits that the model cannot be asked with.
    """

    classifier: Classifier
    score: float
    edits: tuple[Edit, ...]
    scores: tuple[float, ...]
    loss: Estimate
    anew: tuple[float, ...] = ()
    refused: int = 0

    @property
    def floor(self) -> float:
        """What nine of ten edits reach; the score itself where there is no edit."""
        return self.quantiles[FLOOR]

    @property
    def floor_anew(self) -> float | None:
        """The same with a threshold fitted anew to each edit: what is lost beyond it is the wording's."""
        return float(np.quantile(self.anew, FLOOR)) if self.anew else None

    @property
    def quantiles(self) -> Mapping[float, float]:
        """Share of the edits -> what they do not exceed."""
        scores = self.scores or (self.score,)
        return {q: float(np.quantile(scores, q)) for q in QUANTILES}


@dataclass(frozen=True)
class How:
    """How brittleness is measured.

    Attributes:
        edits: Of a prompt, at most.
        objective: Whose metric the scores are, and whether thresholds are fitted.
        seed: Of the resamples.
    """

    edits: int
    objective: Objective = Objective()
    seed: int = 0


def brittleness(
    evaluator: Evaluator,
    classifiers: Sequence[Classifier],
    clips: ClipSet,
    how: How,
    advance: Callable[[int, int], None] = lambda scored, skipped: None,
) -> list[Brittleness]:
    """Scores trivial edits of some classifiers on the first `CLIPS` of the clips.

    Args:
        advance: Called with the pairs scored, and those skipped.
    """
    return [_of_one(evaluator, one, clips.first(CLIPS), how, advance) for one in classifiers]


def _of_one(
    evaluator: Evaluator,
    classifier: Classifier,
    clips: ClipSet,
    how: How,
    advance: Callable[[int, int], None],
) -> Brittleness:
    asked = trivial_edits(classifier.prompt, how.edits)
    prompts = [classifier.prompt, *(edit.prompt for edit in asked)]
    table = score_those_that_can(evaluator, prompts, clips, advance)
    edits = tuple(e for e in asked if e.prompt in table.prompts)
    c, metric = resample(clips.targets, seed=how.seed), METRICS[how.objective.name]

    def value(prompt: Prompt, bias: Bias | None = None) -> Statistic:
        bias = classifier.bias if bias is None else bias
        return metric(c, table.predict(Classifier(prompt, bias)))

    def fitted(prompt: Prompt) -> float:
        row = table.logp[table.prompts.index(prompt)]
        return float(value(prompt, how.objective.measure(row, clips).bias).value)

    own, edited = value(classifier.prompt), [value(e.prompt) for e in edits]
    loss = difference(c, own, _mean(edited or [own]))
    scores = tuple(float(one.value) for one in edited)
    anew = tuple(fitted(e.prompt) for e in edits) if fits_anew(how.objective, clips) else ()
    refused = len(asked) - len(edits)
    return Brittleness(classifier, float(own.value), edits, scores, loss, anew, refused)


def fits_anew(objective: Objective, clips: ClipSet) -> bool:
    """Whether a threshold fitted anew can change a score: not where none is fitted, nor that of a ranking."""
    return objective.fits(clips) and objective.name != "auroc"


def _mean(some: Sequence[Statistic]) -> Statistic:
    """The mean of statistics of the same clips: a statistic, too, and of means a mean."""
    residuals = [one.residuals for one in some if one.residuals is not None]
    return Statistic(
        np.mean([one.value for one in some], axis=0),
        np.mean([one.draws for one in some], axis=0),
        residuals=np.mean(residuals, axis=0) if len(residuals) == len(some) else None,
    )


def steadiest(
    tied: Sequence[int], floors: Sequence[float], lengths: Sequence[int], gains: Sequence[Estimate]
) -> int:
    """Of finalists that tie, the index of the one that trivial edits harm least; of those alike in this, the shortest.

    Floors are alike within `MARGIN` of the highest one. No test is made of them: among finalists that each replace the
    baseline by the corrected test, which one is taken does not raise its error, by whatever rule.

    Args:
        tied: Indices.
        floors, lengths, gains: Of all finalists.
    """
    top = max(floors[i] for i in tied)
    alike = [i for i in tied if floors[i] >= top - MARGIN]
    return min(alike, key=lambda i: (lengths[i], -gains[i].value))
