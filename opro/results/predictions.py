"""Files of predictions: one row a clip, with what was right, what was decided and how sure."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.errors import UserError
from evaluators.files import csv_text, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd

    from evaluators.statistics.describe import Judgements

COLUMNS = ("clip_id", "source_id", "label", "predicted", "score")
LOGP = "logp_"


def read_predictions(
    path: Path, positive: str, names: dict[str, str], slices: "Sequence[str] | None" = None
) -> "Judgements":
    """The judgements in a file.

    Raises:
        UserError: With file, row and what was expected.
    """
    import numpy as np

    from evaluators.statistics import calibration
    from evaluators.statistics.describe import SLICES, Judgements

    frame = _read(path)

    def column(name: str) -> "pd.Series[str] | None":
        found = names.get(name, name)
        if found in frame:
            return frame[found].str.strip()
        if name in names:
            raise UserError(f"{path}: no column {found!r}; there are {', '.join(frame.columns)}")
        return None

    def needed(name: str, what: str) -> "pd.Series[str]":
        found = column(name)
        if found is None:
            raise UserError(
                f"{path}: no column {name!r} ({what}); there are {', '.join(frame.columns)}; name"
                f" it with --map {name}=COLUMN"
            )
        return found

    truth_text = needed("label", "the right label")
    labels = _labels(path, truth_text, positive)
    sources = needed(
        "source_id",
        "the recording, speaker or upload of a clip, which intervals resample; clip_id where every"
        " clip has its own",
    )
    ids = column("clip_id")
    if ids is None:
        ids = frame.index.astype(str).to_series()
    for name, values in (("source_id", sources), ("clip_id", ids)):
        if (values == "").any():
            raise UserError(f"{path}:{_line(values == '')}: {name} is empty")
    if ids.duplicated().any():
        raise UserError(
            f"{path}:{_line(ids.duplicated())}: clip_id {ids[ids.duplicated()].iloc[0]!r} stands in"
            " two rows; each clip needs one"
        )
    truth = np.array([labels.index(v) for v in truth_text])
    logp = {v: column(LOGP + v) for v in labels}
    score_text, predicted = column("score"), column("predicted")
    probability = score = decided = None
    if any(v is not None for v in logp.values()):
        missing = [v for v in labels if logp[v] is None]
        if missing:
            raise UserError(f"{path}: no column {LOGP + missing[0]!r}; each label needs one")
        table = np.stack([_numbers(path, LOGP + v, s) for v, s in logp.items()], axis=-1)  # type: ignore[arg-type]
        from evaluators.statistics import metrics

        score, decided = metrics.margins(table), metrics.decide(table)
        probability = calibration.probability(score)
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
    wanted = SLICES if slices is None else tuple(slices)
    found = {}
    for name in wanted:
        values = column(name)
        if values is None and slices is not None:
            needed(name, "to slice by")
        if values is not None:
            found[name] = _plain(values)
    return Judgements(labels, tuple(ids), tuple(sources), truth, decided, probability, score, found)


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


def _numbers(path: Path, name: str, text: "pd.Series[str]") -> "np.ndarray[Any, Any]":
    import numpy as np
    import pandas as pd

    out = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(out).all():
        at = int((~np.isfinite(out)).argmax())
        raise UserError(f"{path}:{at + 2}: {name} is {text.iloc[at]!r}; expected a number")
    return out


def _plain(values: "pd.Series[str]") -> "np.ndarray[Any, Any]":
    """Numbers written alike (200.0 as 200), so that equal values are one slice."""
    import numpy as np

    def one(text: str) -> str:
        try:
            return "" if text.lower() == "nan" else f"{float(text) + 0.0:g}"
        except ValueError:
            return text

    return np.array([one(v) for v in values])


def joined(first: tuple[str, "Judgements"], other: tuple[str, "Judgements"]) -> "Judgements":
    """The other file's judgements in the order of the first's clips."""
    import dataclasses

    import numpy as np

    (name_a, a), (name_b, b) = first, other
    place = {clip: i for i, clip in enumerate(b.clip_ids)}
    lacking = [clip for clip in a.clip_ids if clip not in place]
    extra = set(b.clip_ids) - set(a.clip_ids)
    if lacking or extra:
        raise UserError(
            f"{name_a} and {name_b} do not hold the same clips: {len(lacking)} are missing in the"
            f" second, {len(extra)} in the first, such as {[*lacking, *sorted(extra)][0]!r}; compare"
            " the same clips"
        )
    order = np.array([place[clip] for clip in a.clip_ids])
    for what, mine, theirs in (
        ("label", [a.labels[i] for i in a.truth], [b.labels[i] for i in b.truth[order]]),
        ("source_id", a.sources, [b.sources[i] for i in order]),
    ):
        for clip, x, y in zip(a.clip_ids, mine, theirs, strict=True):
            if x != y:
                raise UserError(f"clip {clip!r}: {what} is {x!r} in {name_a} and {y!r} in {name_b}")
    return dataclasses.replace(
        b,
        clip_ids=a.clip_ids,
        sources=a.sources,
        truth=b.truth[order],
        decided=b.decided[order],
        probability=None if b.probability is None else b.probability[order],
        score=None if b.score is None else b.score[order],
        slices={name: values[order] for name, values in b.slices.items()},
    )


def write_predictions(path: Path, j: "Judgements") -> None:
    """Judgements as a file that `read_predictions` reads."""
    rows: list[dict[str, Any]] = []
    for i, clip in enumerate(j.clip_ids):
        row: dict[str, Any] = {"clip_id": clip, "source_id": j.sources[i]}
        row |= {"label": j.labels[j.truth[i]], "predicted": j.labels[j.decided[i]]}
        if j.probability is not None:
            row["score"] = round(float(j.probability[i]), 6)
        rows.append(row | {name: number_or_text(v[i]) for name, v in j.slices.items()})
    write_text(path, csv_text(rows, tuple(rows[0])))


def number_or_text(text: str) -> float | str:
    """A number where the text is one."""
    try:
        return float(text)
    except ValueError:
        return text
