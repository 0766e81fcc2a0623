"""The sealed card: one file that says which prompt and set-up made a number, and lets anyone make it again."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from evaluators.classifier import Classifier, classifier_from
from evaluators.clips import Clip, ClipSet
from evaluators.errors import UserError
from evaluators.evaluator import ScoreTable
from evaluators.files import csv_text, dump_yaml, read_yaml
from evaluators.targets import Predictions
from evaluators.tasks import Task, task_from
from opro.results.summary import Interval

COLUMNS = (
    "clip_id",
    "sha256",
    "label",
    "source_id",
    "chosen",
    "p_chosen",
    "baseline",
    "p_baseline",
)
WHO = ("chosen", "baseline")


class Part(BaseModel):
    """A part of the card. The schema is closed: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CardModel(Part):
    """What was scored: `digest` is of weights, adapter and quantization, whatever they are called."""

    name: str
    digest: str
    adapter: str | None = None
    quantization: Literal["none", "nf4"] = "none"
    dtype: str
    device: str
    versions: dict[str, str]


class CardRule(Part):
    """How it was chosen and decided, and how often the clips were looked at.

    Attributes:
        objective, threshold, seed: Of the search.
        trials: Prompts that the search scored on its half.
        finalists: Of them, compared with the baseline on the holdout.
        decisions: Runs of the project that decided on the same holdout by the time of sealing.
        test_uses: Uses of the test split of the same manifest, likewise.
    """

    objective: str
    threshold: str
    seed: int
    trials: int
    finalists: int
    text: str
    decisions: int
    test_uses: int


class CardScore(Part):
    """On the holdout, with 95 % intervals over sources; `reason` is the run's own sentence."""

    metric: str
    chosen: Interval
    baseline: Interval
    gain: Interval
    p: float | None
    clips: int
    sources: int
    reason: str


class CardClips(Part):
    """The holdout's clips as CSV: what is right, what was decided and P(first label), of both prompts."""

    manifest: str
    manifest_sha256: str
    split: str
    rows: str


class Card(Part):
    """A sealed card. `digest` is SHA-256 over everything else."""

    card: Literal[1] = 1
    run: str
    sealed: str
    task: dict[str, Any]
    labels: tuple[str, ...]
    chosen: dict[str, Any]
    baseline: dict[str, Any]
    model: CardModel
    rule: CardRule
    holdout: CardScore
    clips: CardClips
    warnings: tuple[str, ...]
    digest: str = ""

    def sealed_digest(self) -> str:
        """What `digest` must be."""
        raw = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """The file."""
        about = "A sealed card: python -m opro.verify FILE scores it again. A change by hand breaks its digest."
        return f"# {about}\n{dump_yaml(self.model_dump(mode='json'))}"

    @property
    def decides(self) -> Task:
        """The task."""
        return task_from(self.task, Path("the card's task"))

    @property
    def rows(self) -> list[dict[str, str]]:
        """Of its clips."""
        return list(csv.DictReader(io.StringIO(self.clips.rows)))

    def classifier(self, who: str) -> Classifier:
        """``chosen`` or ``baseline``."""
        raw = self.chosen if who == "chosen" else self.baseline
        return classifier_from(raw, self.labels, f"{who} prompt of the card")


def read_card(path: Path) -> Card:
    """A sealed card.

    Raises:
        UserError: It is none, or was changed since it was sealed.
    """
    raw = read_yaml(path)
    try:
        card = Card.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: no sealed card ({place}: {first['msg']}); expected a file that opro.seal wrote"
        ) from None
    if card.sealed_digest() != card.digest:
        raise UserError(
            f"{path}: was changed since it was sealed: its digest is {card.digest[:12]}..., its content has"
            f" {card.sealed_digest()[:12]}...; take the file as it was"
        )
    card.classifier("chosen"), card.classifier("baseline"), card.decides
    if tuple(card.rows[0] if card.rows else ()) != COLUMNS:
        raise UserError(f"{path}: clips.rows has no columns {', '.join(COLUMNS)}")
    return card


def rows_text(clips: Sequence[Clip], said: Mapping[str, Predictions]) -> str:
    """`CardClips.rows` of what was said of clips, by ``chosen`` and ``baseline``."""
    rows = []
    for i, clip in enumerate(clips):
        row: dict[str, Any] = {
            "clip_id": clip.clip_id,
            "sha256": clip.sha256,
            "label": clip.label,
            "source_id": clip.source_id,
        }
        for who, one in said.items():
            assert one.probability is not None, "a classifier gives it"
            row[who] = one.targets.labels[one.decided[i]]
            row[f"p_{who}"] = f"{one.probability[i]:.6f}"
        rows.append(row)
    return csv_text(rows, COLUMNS)


def clips_of(card: Card, clips: ClipSet) -> ClipSet:
    """The card's clips among those of a manifest, by content, in its order.

    Raises:
        UserError: One is not there, or is labelled otherwise.
    """
    place = {clip.clip_id: i for i, clip in enumerate(clips)}
    found = []
    for row in card.rows:
        index = place.get(row["clip_id"])
        if index is None:
            raise UserError(
                f"clip {row['clip_id']!r} of the card is not in the {card.clips.split} split of the manifest;"
                " give --manifest with the clips that were sealed"
            )
        clip = clips[index]
        for what in ("sha256", "label", "source_id"):
            here = {"sha256": clip.sha256, "label": clip.label, "source_id": clip.source_id}[what]
            if here != row[what]:
                raise UserError(
                    f"clip {clip.clip_id!r} has {what} {here[:12]!r}, the card says {row[what][:12]!r}; give"
                    " --manifest with the clips that were sealed"
                )
        found.append(index)
    return clips.take(found)


def sealed_predictions(card: Card, who: str, clips: ClipSet) -> Predictions:
    """What the card says of its clips."""
    rows = card.rows
    decided = np.array([card.labels.index(row[who]) for row in rows], dtype=np.int64)
    p = np.array([float(row[f"p_{who}"]) for row in rows])
    return Predictions(f"{who}, sealed", clips.targets, decided, p)


@dataclass(frozen=True)
class Agreement:
    """How new scores of a card's clips agree with the sealed ones.

    Attributes:
        other_labels: Ids of clips whose label is another one, by ``chosen`` and ``baseline``.
        largest: Largest difference of a probability.
    """

    other_labels: Mapping[str, Sequence[str]]
    largest: float

    @property
    def same_labels(self) -> bool:
        """Whether all are equal."""
        return not any(self.other_labels.values())


def agreement(card: Card, table: ScoreTable, clips: ClipSet) -> Agreement:
    """Compares scores of the card's prompts on its clips with the sealed ones."""
    other, largest = {}, 0.0
    for who in WHO:
        sealed, new = sealed_predictions(card, who, clips), table.predict(card.classifier(who))
        assert sealed.probability is not None and new.probability is not None
        index = np.flatnonzero(sealed.decided != new.decided)
        other[who] = [clips[int(i)].clip_id for i in index]
        largest = max(largest, float(np.abs(sealed.probability - new.probability).max()))
    return Agreement(other, largest)
