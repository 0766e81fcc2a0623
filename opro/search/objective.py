"""The objective: what a search climbs, and the words that tell a proposer about it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import Bias, Classifier, decide
from evaluators.clips import Clip, ClipSet
from evaluators.errors import UserError
from evaluators.evaluator import predictions
from evaluators.prompts import Prompt
from evaluators.statistics import metrics
from evaluators.statistics.calibration import fit_shift
from evaluators.statistics.compare import resample
from evaluators.statistics.resampling import MIN_SOURCES, Clusters, Statistic
from evaluators.targets import Predictions, Targets
from evaluators.tasks import Task

OBJECTIVES = {
    "balanced_accuracy": (
        "balanced accuracy in percent: the mean over the classes of the share of clips answered"
        " right"
    ),
    "accuracy": "accuracy in percent: the share of clips answered right",
    "auroc": (
        "area under the ROC curve in percent: how well the probability of the first answer ranks"
        " the clips"
    ),
    "nll": "100 minus 100 times the mean negative log-likelihood of the right answer in nats",
    "worst_slice": "balanced accuracy in percent on the duration or noise level where it is worst",
}


class Names(dict[str, str]):
    """Of metrics; one that is not known here, as of a run made from Python, goes by its own."""

    def __missing__(self, name: str) -> str:
        return name


NAMES = Names(  # of a score in a table or a sentence
    balanced_accuracy="balanced accuracy",
    accuracy="accuracy",
    auroc="AUROC",
    nll="100 - 100 x nats of the right answer",
    worst_slice="balanced accuracy of the worst duration or SNR",
)
ADDED: set[str] = set()  # metrics of one's own, see `add_metric`
Metric = Callable[[Clusters, Predictions], Statistic]


def add_metric(name: str, metric: Metric, about: str) -> None:
    """Adds a metric that a search may climb (``objective=name``), and that predictions are compared in.

    Args:
        metric: From the resamples of a clip set and predictions of its clips to a statistic, higher is better; made
            from the methods of `evaluators.statistics.resampling.Clusters`, such as ``c.share(hits, of)``.
        about: What a proposing language model is told it is, as in ``F1 of speech in percent``.
    Raises:
        UserError: There is a metric of this name.
    """
    if not name.isidentifier() or not callable(metric):
        raise UserError(
            f"metric {name!r} is no name, or no function was given; expected letters, digits and _, and a function"
        )
    if name in metrics.METRICS:
        raise UserError(f"metric {name!r} is there already; give another name")
    metrics.METRICS[name] = metric
    OBJECTIVES[name], NAMES[name] = about, name
    ADDED.add(name)


@functools.lru_cache(maxsize=4)  # the search half, and what it is raced on
def one_resample(targets: Targets) -> Clusters:
    """The clips as they are, for a value without its interval."""
    return resample(targets, resamples=1)


@dataclass(frozen=True)
class Measured:
    """A prompt on some clips.

    Attributes:
        reward: The objective's value, higher is better.
        right: ``[clip]`` whether the right label is decided on.
        bias: Of the classifier, see `evaluators.classifier.Classifier`.
        fitted: The bias with the best balanced accuracy on these clips, whether or not it is used.
        loss: Balanced mean negative log-probability of the right label in nats.
        profile: What a proposer is told beside the reward.
    """

    reward: float
    right: NDArray[np.bool_]
    bias: Bias
    fitted: Bias
    loss: float
    profile: "Profile"


@dataclass(frozen=True)
class Profile:
    """How a prompt's answers behave, whatever the objective.

    Attributes:
        recalls: Share decided right of each label's clips, in the task's order; 0 where a label has none.
        auroc: Area under the ROC curve of the first label, of more than two labels the mean over each against the rest;
            NaN where a class is missing.
        tuned: Balanced accuracy with the threshold that is best on these clips.
    """

    recalls: tuple[float, ...]
    auroc: float
    tuned: float


@dataclass(frozen=True)
class Objective:
    """Turns log-probabilities into the number that the search climbs.

    Attributes:
        name: A key of `OBJECTIVES`.
        threshold: ``argmax``, or ``dev``: each prompt's bias is fitted on the clips it is measured on, which must be
            the search half. A likelihood (``nll``) is that of the probabilities as they are, without a bias.
    """

    name: str = "balanced_accuracy"
    threshold: str = "argmax"

    @property
    def sums_hits(self) -> bool:
        """Whether the reward is a weighted sum of hits, so that a race may stop early without loss."""
        return self.name in ("balanced_accuracy", "accuracy") and self.threshold == "argmax"

    def fits(self, clips: ClipSet) -> bool:
        """Whether thresholds are fitted on these clips.

        Not on so few sources that no claim is made on them either, and not where labels are places among options.
        """
        enough = clips.targets.fewest_sources >= MIN_SOURCES and clips.targets.classes
        return self.threshold == "dev" and self.name != "nll" and enough

    def weights(self, kinds: NDArray[np.integer]) -> NDArray[np.float64]:
        """``[clip]`` weight of each clip's hit, summing to one."""
        if self.name == "accuracy":
            return np.full(len(kinds), 1 / len(kinds))
        return np.asarray(metrics.balanced_weights(kinds), dtype=np.float64)

    def measure(
        self,
        logp: NDArray[np.floating],
        clips: ClipSet,
        bias: Bias | None = None,
        fitted: Bias | None = None,
    ) -> Measured:
        """Reward of ``[clip, label]`` log-probabilities in nats.

        Args:
            bias: Fitted elsewhere; None takes `fitted` or 0, as `threshold` says.
            fitted: The best bias, where it is known; None fits it.
        """
        truth = clips.targets.truth
        if fitted is None:
            fitted = fit_shift(truth, logp) if bias is None else bias
        if bias is None:
            bias = fitted if self.fits(clips) else 0.0
        right = decide(logp, bias) == truth
        loss = metrics.nll(truth, logp)
        profile = _profile(logp, truth, right, fitted)
        if self.name == "auroc":
            value = profile.auroc
        elif self.name == "nll":
            value = 1.0 - loss
        elif self.name == "worst_slice":  # the first few clips may hold no level with both classes
            masks = metrics.levels(clips.targets).values() or [np.ones(len(truth), dtype=bool)]
            kinds = clips.targets.kinds
            value = min(metrics.balanced_accuracy(kinds[m], right[m]) for m in masks)
        elif self.name in ADDED:
            said = predictions("", clips.targets, Classifier(Prompt(""), bias), logp)
            value = float(metrics.METRICS[self.name](one_resample(clips.targets), said).value)
        else:
            value = float((self.weights(clips.targets.kinds) * right).sum())
        return Measured(value, right, bias, fitted, loss, profile)

    def describe(self, task: Task) -> str:
        """What the score means, for the proposer; made from the objective in force and nothing else."""
        text = f"The score is {OBJECTIVES[self.name]}. The classes are {', '.join(task.labels)}."
        if self.threshold == "dev" and self.name != "nll":
            text += (
                " The decision threshold is tuned for each prompt, so a prompt that only favours"
                " one answer gains nothing."
            )
        return text


def _profile(
    logp: NDArray[np.floating], truth: NDArray[np.integer], right: NDArray[np.bool_], fitted: Bias
) -> Profile:
    labels = logp.shape[1]
    counts, hits = np.bincount(truth, minlength=labels), np.bincount(truth, right, labels)
    recalls = tuple((hits / np.maximum(counts, 1)).tolist())
    tuned = metrics.balanced_accuracy(truth, decide(logp, fitted) == truth)
    return Profile(recalls, metrics.auroc_of(truth, logp), tuned)


def slice_scores(
    clips: Sequence[Clip], truth: NDArray[np.integer], right: NDArray[np.bool_]
) -> dict[str, tuple[float, int]]:
    """Score and number of clips by duration, SNR and category, in a fixed order.

    Durations and SNRs: balanced accuracy, left out where only one class occurs. Categories: share answered right.
    Of many durations, as clips from life have, groups.
    """
    named: dict[str, list[int]] = {}
    durations = metrics.grouped(np.array([str(round(clip.duration_ms)) for clip in clips]))
    for i, clip in enumerate(clips):
        named.setdefault(f"{durations[i]} ms", []).append(i)
        if clip.snr_db is not None:
            named.setdefault(f"{round(clip.snr_db / 5) * 5:+d} dB", []).append(i)
        named.setdefault(clip.category, []).append(i)
    out = {}
    for name, index in sorted(named.items(), key=lambda item: _place(item[0])):
        if not name.endswith((" ms", " dB")):
            out[name] = (float(right[index].mean()), len(index))
        elif len(np.unique(truth[index])) > 1:
            out[name] = (metrics.balanced_accuracy(truth[index], right[index]), len(index))
    return out


def _place(name: str) -> tuple[bool, bool, float, str]:
    """Durations first, then SNRs, each by size; then categories by name."""
    head = name.split()[0]
    size = float(head) if head.lstrip("+-").isdigit() else 0.0
    return not name.endswith(" ms"), not name.endswith(" dB"), size, name
