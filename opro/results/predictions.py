"""Files of predictions: one row a clip, with what was right, what was decided and how sure."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.classifier import decide, log_odds, sigmoid
from evaluators.errors import UserError
from evaluators.files import csv_text, write_text
from evaluators.targets import SLICES, Predictions, Targets

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("clip_id", "source_id", "label", "predicted", "score")
LOGP = "logp_"


class _Table:
    """A CSV file of predictions, with the names that its columns go by."""

    def __init__(self, path: Path, names: dict[str, str]) -> None:
        self.path, self.names, self.frame = path, names, _read(path)

    def column(self, name: str) -> "pd.Series[str] | None":
        """A column's text, None where it is not there and was not named."""
        found = self.names.get(name, name)
        if found in self.frame:
            return self.frame[found].str.strip()
        if name in self.names:
            raise UserError(
                f"{self.path}: no column {found!r}; there are {', '.join(self.frame.columns)}"
            )
        return None

    def needed(self, name: str, what: str) -> "pd.Series[str]":
        """A column that must be there."""
        found = self.column(name)
        if found is None:
            raise UserError(
                f"{self.path}: no column {name!r} ({what}); there are {', '.join(self.frame.columns)}; name"
                f" it with --map {name}=COLUMN"
            )
        return found


def read_predictions(
    path: Path,
    positive: str,
    names: dict[str, str] | None = None,
    slices: Sequence[str] | None = None,
) -> Predictions:
    """The predictions in a file, named by its path.

    Args:
        positive: The label that is to be detected.
        names: Column -> what it is called in the file.
        slices: Columns to slice by; None: those of `SLICES` that are there.
    Raises:
        UserError: With file, row and what was expected.
    """
    table = _Table(path, names or {})
    targets = _targets(table, positive, slices)
    decided, probability, score = _said(table, targets.labels)
    return Predictions(str(path), targets, decided, probability, score)


def _targets(table: _Table, positive: str, slices: Sequence[str] | None) -> Targets:
    path = table.path
    truth = table.needed("label", "the right label")
    labels = _labels(path, truth, positive)
    sources = table.needed(
        "source_id",
        "the recording, speaker or upload of a clip, which intervals resample; clip_id where every"
        " clip has its own",
    )
    ids = table.column("clip_id")
    if ids is None:
        ids = table.frame.index.astype(str).to_series()
    for name, values in (("source_id", sources), ("clip_id", ids)):
        if (values == "").any():
            raise UserError(f"{path}:{_line(values == '')}: {name} is empty")
    if ids.duplicated().any():
        raise UserError(
            f"{path}:{_line(ids.duplicated())}: clip_id {ids[ids.duplicated()].iloc[0]!r} stands in"
            " two rows; each clip needs one"
        )
    found = {}
    for name in SLICES if slices is None else slices:
        values = table.column(name)
        if values is None and slices is not None:
            table.needed(name, "to slice by")
        if values is not None:
            found[name] = _plain(values)
    return Targets(
        labels,
        tuple(ids),
        np.array([labels.index(v) for v in truth]),
        np.array(list(sources), dtype=np.str_),
        found,
    )


def _said(table: _Table, labels: tuple[str, ...]) -> tuple[Any, Any, Any]:
    """(decided, probability, score) as far as the file tells them."""
    path, positive = table.path, labels[0]
    logp = {v: table.column(LOGP + v) for v in labels}
    score_text, predicted = table.column("score"), table.column("predicted")
    probability = score = decided = None
    if any(v is not None for v in logp.values()):
        missing = [v for v in labels if logp[v] is None]
        if missing:
            raise UserError(f"{path}: no column {LOGP + missing[0]!r}; each label needs one")
        values = [_numbers(path, LOGP + v, s) for v, s in logp.items() if s is not None]
        both = np.stack(values, axis=-1)
        score, decided = log_odds(both), decide(both)
        probability = sigmoid(score)
    elif score_text is not None:
        score = _numbers(path, "score", score_text)
        if ((score >= 0) & (score <= 1)).all():
            probability = score
            decided = np.where(score >= 0.5, 0, 1) if len(labels) == 2 else None
    if predicted is not None:
        strange = ~predicted.isin(labels)
        if strange.any():
            raise UserError(
                f"{path}:{_line(strange)}: predicted is {predicted[strange].iloc[0]!r}; expected"
                f" {' or '.join(labels)}. {int(strange.sum())} rows are so; an answer that could not"
                " be read is a wrong one: give it the other label, rows cannot be left out"
            )
        decided = np.array([labels.index(v) for v in predicted])
    if decided is None:
        raise UserError(
            f"{path}: no column says what was decided: give predicted, {LOGP}LABEL for each label, or"
            f" score as the probability of {positive} (0 to 1)"
        )
    return decided, probability, score


def _read(path: Path) -> "pd.DataFrame":
    import pandas as pd

    if not path.is_file():
        raise UserError(f"{str(path)!r} is no file")
    try:
        frame = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as CSV in UTF-8 ({str(error).splitlines()[0]})"
        ) from None
    if frame.empty:
        raise UserError(f"{path}: holds no rows")
    if any(frame.columns.duplicated()):
        twice = frame.columns[frame.columns.duplicated()][0]
        raise UserError(f"{path}: column {twice!r} stands there twice")
    return frame


def _line(wrong: "pd.Series[bool]") -> int:
    """Line in the file of the first row that is so."""
    return int(wrong.to_numpy().argmax()) + 2


def _labels(path: Path, text: "pd.Series[str]", positive: str) -> tuple[str, ...]:
    """Labels that occur, the positive one first."""
    found = sorted(set(text))
    if "" in found:
        raise UserError(f"{path}:{_line(text == '')}: label is empty")
    if positive not in found:
        raise UserError(
            f"{path}: no clip has the label {positive!r}; there are {', '.join(found[:6])}; say with"
            " --positive which of them is to be detected"
        )
    if len(found) < 2:
        raise UserError(f"{path}: all clips have the label {positive!r}; two kinds are needed")
    if len(found) > 20:
        raise UserError(
            f"{path}: {len(found)} different labels, such as {', '.join(found[:4])}; is 'label' the"
            " right column? --map label=COLUMN"
        )
    return (positive, *(v for v in found if v != positive))


def _numbers(path: Path, name: str, text: "pd.Series[str]") -> np.ndarray[Any, Any]:
    import pandas as pd

    out = np.asarray(pd.to_numeric(text, errors="coerce"), dtype=np.float64)
    if not np.isfinite(out).all():
        at = int((~np.isfinite(out)).argmax())
        raise UserError(f"{path}:{at + 2}: {name} is {text.iloc[at]!r}; expected a number")
    return out


def _plain(values: "pd.Series[str]") -> np.ndarray[Any, Any]:
    """Numbers written alike (200.0 as 200), so that equal values are one slice."""

    def one(text: str) -> str:
        try:
            return "" if text.lower() == "nan" else f"{float(text) + 0.0:g}"
        except ValueError:
            return text

    return np.array([one(v) for v in values])


def joined(first: Predictions, other: Predictions) -> Predictions:
    """The other file's predictions in the order of the first's clips.

    Raises:
        UserError: They do not hold the same clips, or say different things of them.
    """
    a, b = first.targets, other.targets
    place = {clip: i for i, clip in enumerate(b.clip_ids)}
    lacking = [clip for clip in a.clip_ids if clip not in place]
    extra = set(b.clip_ids) - set(a.clip_ids)
    if lacking or extra:
        raise UserError(
            f"{first.name} and {other.name} do not hold the same clips: {len(lacking)} are missing in the"
            f" second, {len(extra)} in the first, such as {[*lacking, *sorted(extra)][0]!r}; compare"
            " the same clips"
        )
    found = other.take(np.array([place[clip] for clip in a.clip_ids]))
    b = found.targets
    for what, mine, theirs in (
        ("label", [a.labels[i] for i in a.truth], [b.labels[i] for i in b.truth]),
        ("source_id", a.sources.tolist(), b.sources.tolist()),
    ):
        for clip, x, y in zip(a.clip_ids, mine, theirs, strict=True):
            if x != y:
                raise UserError(
                    f"clip {clip!r}: {what} is {x!r} in {first.name} and {y!r} in {other.name}"
                )
    return dataclasses.replace(found, targets=dataclasses.replace(b, clip_ids=a.clip_ids))


def write_predictions(path: Path, said: Predictions) -> None:
    """Predictions as a file that `read_predictions` reads."""
    targets, rows = said.targets, []
    for i, clip in enumerate(targets.clip_ids):
        row: dict[str, Any] = {"clip_id": clip, "source_id": str(targets.sources[i])}
        row["label"] = targets.labels[targets.truth[i]]
        row["predicted"] = targets.labels[said.decided[i]]
        if said.probability is not None:
            row["score"] = round(float(said.probability[i]), 6)
        rows.append(row | {name: number_or_text(v[i]) for name, v in targets.slices.items()})
    write_text(path, csv_text(rows, tuple(rows[0])))


def number_or_text(text: str) -> float | str:
    """A number where the text is one."""
    try:
        return float(text)
    except ValueError:
        return str(text)
