"""The reward: what the search climbs, and the words that tell a proposer about it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import Clip
from evaluators.prompts import Task
from evaluators.statistics import metrics

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


@dataclass(frozen=True)
class Judged:
    """A prompt's scores on some clips. `right` is ``[clip]``; `bias` the shift of the first label's log-odds."""

    reward: float
    right: NDArray[np.bool_]
    bias: float
    nll: float


@dataclass(frozen=True)
class Reward:
    """Turns log-probabilities into the number the search climbs.

    Attributes:
        objective: A key of `OBJECTIVES`.
        threshold: ``argmax``, or ``dev``: each prompt's threshold is fitted on the clips it is judged on, which must
            be the search half.
    """

    objective: str = "balanced_accuracy"
    threshold: str = "argmax"

    @property
    def by_clip(self) -> bool:
        """Whether the reward is a weighted sum of hits, so that a race may stop early without loss."""
        return self.objective in ("balanced_accuracy", "accuracy") and self.threshold == "argmax"

    def weights(self, truth: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weight of each clip's hit, summing to one."""
        if self.objective == "accuracy":
            return np.full(len(truth), 1 / len(truth))
        return np.asarray(metrics.balanced_weights(truth), dtype=np.float64)

    def judge(
        self,
        logp: NDArray[np.float32],
        truth: NDArray[np.int64],
        clips: Sequence[Clip],
        bias: float | None = None,
    ) -> Judged:
        """Reward of ``[clip, label]`` log-probabilities.

        Args:
            logp: In nats.
            truth: Index of the right label of each clip.
            clips: The clips, for slices.
            bias: A shift that was fitted elsewhere; None fits or takes 0, as `threshold` says.
        """
        if bias is None:
            bias = (
                metrics.fit_bias(truth, metrics.margins(logp)) if self.threshold == "dev" else 0.0
            )
        right = metrics.decide(logp, bias) == truth
        loss = metrics.nll(truth, logp)
        if self.objective == "auroc":
            value = metrics.auroc(truth, metrics.margins(logp))
        elif self.objective == "nll":
            value = 1.0 - loss
        elif self.objective == "worst_slice":
            found = [
                score
                for name, (score, _) in slices(clips, truth, right).items()
                if name.endswith((" ms", " dB"))
            ]  # the first few clips may hold no slice with both classes
            value = min(found) if found else metrics.balanced_accuracy(truth, right)
        else:
            value = float((self.weights(truth) * right).sum())
        return Judged(value, right, bias, loss)

    def describe(self, task: Task) -> str:
        """What the score means, for the proposer; generated from the reward in force and nothing else."""
        text = (
            f"The score is {OBJECTIVES[self.objective]}. The classes are {', '.join(task.labels)}."
        )
        if self.threshold == "dev":
            text += (
                " The decision threshold is tuned for each prompt, so a prompt that only favours"
                " one answer gains nothing."
            )
        return text


def slices(
    clips: Sequence[Clip], truth: NDArray[np.int64], right: NDArray[np.bool_]
) -> dict[str, tuple[float, int]]:
    """Score and number of clips by duration, SNR and category, in a fixed order.

    Durations and SNRs: balanced accuracy, left out where only one class occurs. Categories: share answered right.
    """
    named: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        named.setdefault(f"{round(clip.duration_ms)} ms", []).append(i)
        if clip.snr_db is not None:
            named.setdefault(f"{round(clip.snr_db / 5) * 5:+d} dB", []).append(i)
        named.setdefault(clip.category, []).append(i)
    out = {}
    for name, index in sorted(
        named.items(),
        key=lambda item: (
            not item[0].endswith(" ms"),
            not item[0].endswith(" dB"),
            _leading(item[0]),
            item[0],
        ),
    ):
        if not name.endswith((" ms", " dB")):
            out[name] = (float(right[index].mean()), len(index))
        elif len(np.unique(truth[index])) > 1:
            out[name] = (metrics.balanced_accuracy(truth[index], right[index]), len(index))
    return out


def _leading(name: str) -> float:
    head = name.split()[0]
    return float(head) if head.lstrip("+-").isdigit() else 0.0
