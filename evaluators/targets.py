"""A clip set as arrays, and what was said of it: all that statistics may know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from evaluators.clips import Clip

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Strings = NDArray[np.str_]

SLICES = ("duration_ms", "snr_db", "condition", "category")  # properties that clips are sliced by


@dataclass(frozen=True, eq=False)
class Targets:
    """What is right about each clip, and which clips belong together.

    Attributes:
        labels: The classes; the first one is what is to be detected.
        clip_ids: One a clip, unique.
        truth: ``[clip]`` index of the right label.
        sources: ``[clip]`` speaker, session or upload: the cluster of every interval.
        slices: Property -> ``[clip]`` value as text, "" where a clip has none.
        classes: Whether labels are classes; else places of each clip's own options, which sources are not counted by.
    """

    labels: tuple[str, ...]
    clip_ids: tuple[str, ...]
    truth: Ints
    sources: Strings
    slices: Mapping[str, Strings] = field(default_factory=dict)
    classes: bool = True

    @classmethod
    def of(cls, clips: "Sequence[Clip]", labels: Sequence[str]) -> "Targets":
        """The targets of clips, in their order."""
        return cls(
            tuple(labels),
            tuple(c.name for c in clips),
            np.array([labels.index(c.label) for c in clips], dtype=np.int64),
            np.array([c.source_id for c in clips], dtype=np.str_),
            {name: np.array([_text(getattr(c, name)) for c in clips]) for name in SLICES},
            not any(c.options for c in clips),
        )

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def kinds(self) -> Ints:
        """``[clip]`` what means are balanced over: the right label, or one for all where labels are no classes."""
        return self.truth if self.classes else np.zeros_like(self.truth)

    @cached_property
    def fewest_sources(self) -> int:
        """Number of sources of the label that has the fewest; of all where labels are no classes."""
        return min(len(np.unique(self.sources[self.kinds == k])) for k in np.unique(self.kinds))

    def take(self, index: Ints | NDArray[np.bool_]) -> "Targets":
        """The targets of some clips, in the order of `index`."""
        return replace(
            self,
            clip_ids=tuple(np.array(self.clip_ids, dtype=object)[index]),
            truth=self.truth[index],
            sources=self.sources[index],
            slices={name: values[index] for name, values in self.slices.items()},
        )


def _text(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value + 0.0:g}"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one classifier, detector or outside file said of a clip set.

    Attributes:
        name: Of whoever said it, as tables show it.
        targets: The clips.
        decided: ``[clip]`` index of the label decided on.
        probability: ``[clip]`` of the first label, NaN-free; None where only decisions are known.
        score: ``[clip]`` ranks the first label, in any unit; None where it is the probability, or unknown.
        logp: ``[clip, label]`` nats of each label as the model gives them, where there are more than two; else None.
        distribution: ``[clip, label]`` probabilities that sum to one, as decided by; likewise.
    Raises:
        ValueError: A number is missing, NaN, or no probability; names the clip.
    """

    name: str
    targets: Targets
    decided: Ints
    probability: Floats | None = None
    score: Floats | None = None
    logp: Floats | None = None
    distribution: Floats | None = None

    def __post_init__(self) -> None:
        for name in ("decided", "probability", "score"):
            values, count = getattr(self, name), len(self.targets)
            if values is None:
                continue
            if np.shape(values) != (count,):
                raise ValueError(
                    f"{self.name}: {name} has shape {np.shape(values)}; expected ({count},)"
                )
            wrong, expected = np.isnan(values), "a number"
            if name == "probability" and not wrong.any():
                wrong, expected = (values < 0) | (values > 1), "0 to 1"
            if wrong.any():
                at = int(wrong.argmax())
                found = "NaN" if np.isnan(values[at]) else f"{values[at]:g}"
                raise ValueError(
                    f"{self.name}: {name} of clip {self.targets.clip_ids[at]!r} is {found};"
                    f" expected {expected}"
                )

    @property
    def right(self) -> NDArray[np.bool_]:
        """``[clip]`` whether the right label was decided on."""
        return np.asarray(self.decided == self.targets.truth)

    @property
    def ranking(self) -> Floats | None:
        """``[clip]`` what ranks the first label: `score`, else `probability`, else None."""
        return self.probability if self.score is None else self.score

    @property
    def sure(self) -> Floats | None:
        """``[clip]`` probability of the label decided on; None where no probability is known."""
        if self.distribution is not None:
            return np.asarray(self.distribution[np.arange(len(self.targets)), self.decided])
        if self.probability is None:
            return None
        return np.where(self.decided == 0, self.probability, 1 - self.probability)

    def take(self, index: Ints | NDArray[np.bool_]) -> "Predictions":
        """The predictions of some clips, in the order of `index`."""
        return replace(
            self,
            targets=self.targets.take(index),
            decided=self.decided[index],
            probability=None if self.probability is None else self.probability[index],
            score=None if self.score is None else self.score[index],
            logp=None if self.logp is None else self.logp[index],
            distribution=None if self.distribution is None else self.distribution[index],
        )


@dataclass(frozen=True, eq=False)
class Scores:
    """One number a sample, such as whether it was right or how a judge graded it, of one model on one task.

    Attributes:
        name: Of whoever was scored, as tables show it.
        ids: One a sample, unique.
        sources: ``[sample]`` what samples share, such as a speaker or a passage: the cluster of every interval.
        value: ``[sample]`` finite.
    """

    name: str
    ids: tuple[str, ...]
    sources: Strings
    value: Floats

    def __len__(self) -> int:
        return len(self.value)

    def of(self, ids: Sequence[str]) -> "Scores":
        """The scores of some samples, in the order of `ids`."""
        place = {name: i for i, name in enumerate(self.ids)}
        index = np.array([place[name] for name in ids], dtype=np.int64)
        return replace(self, ids=tuple(ids), sources=self.sources[index], value=self.value[index])
