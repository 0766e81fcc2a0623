"""Files of predictions: one row a clip, with what was right, what was decided and how sure."""

import csv
import dataclasses
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluators.classifier import among_labels, decide, log_odds, sigmoid
from evaluators.errors import UserError
from evaluators.files import csv_text, write_text
from evaluators.names import first_spellings, looks_key, name_key, spellings
from evaluators.targets import SLICES, Predictions, Targets
from opro.results.spellings import (
    MOST_LABELS,
    column_for,
    label_names,
    predicted_names,
    source_rule,
)

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("clip_id", "source_id", "label", "predicted", "score")
LOGP = "logp_"
LEAST = 1e4  # nats below zero that a file holds at most


@dataclass(eq=False)
class Table:
    """The rows of a file of predictions or of an evaluation's log, as text.

    Attributes:
        columns: Header -> column.
        places: ``[row]`` where each stands, as a sentence goes on after the file's name.
        names: Column -> what it is called in the file, or ``REGEX of COLUMN``, whose group is taken.
        guessed: What was guessed of columns and labels, in words.
        decimal_comma: As Excel writes numbers where it separates columns by semicolons.
    """

    path: Path
    columns: dict[str, list[str]]
    places: Sequence[str]
    names: dict[str, str]
    guessed: list[str] = field(default_factory=list)
    decimal_comma: bool = False

    def at(self, row: int) -> str:
        """Where a row stands: file, and line or sample."""
        return f"{self.path}{self.places[row]}"

    @property
    def _there(self) -> str:
        return f"there are {', '.join(self.columns)}"

    def column(self, name: str) -> list[str] | None:
        """A column's text, None where it is not there, was not named and cannot be guessed."""
        if name in self.names:
            return self._named(name, self.names[name])
        if name in self.columns:
            return self.columns[name]
        found = [h for h in column_for(name, self.columns) if h not in self.names.values()]
        if len(found) > 1 and name != "clip_id":  # any name of a clip does
            raise UserError(
                f"{self.path}: {name} may be {' or '.join(map(repr, found))}; say which with --map"
                f" {name}={found[0]!r}"
            )
        if not found:
            return None
        note = f"{name} is column {found[0]!r}"
        if note not in self.guessed:
            self.guessed.append(note)
        return self.columns[found[0]]

    def _named(self, name: str, asked: str) -> list[str]:
        """The column asked for by its header, or by ``REGEX of COLUMN``."""
        if asked in self.columns:
            return self.columns[asked]
        regex, of, header = asked.rpartition(" of ")
        if not of:
            raise UserError(f"{self.path}: no column {asked!r}; {self._there}")
        texts = self.columns.get(header) or self.column(header)
        if texts is None:
            raise UserError(
                f"{self.path}: --map {name}={asked!r}: no column {header!r}; {self._there}"
            )
        try:
            pattern = re.compile(regex)
        except re.error as error:
            raise UserError(
                f"--map {name}={asked!r}: {regex!r} is no regular expression ({error})"
            ) from None
        if pattern.groups != 1:
            raise UserError(
                f"--map {name}={asked!r}: {regex!r} has {pattern.groups} groups; expected one, as in"
                " '(.+)_[0-9]+', whose text is taken"
            )
        out = []
        for i, text in enumerate(texts):
            match = pattern.search(text)
            if match is None or not match[1]:
                raise UserError(
                    f"{self.at(i)}: --map {name}={asked!r} finds nothing in {header} {text!r};"
                    " expected a rule that fits every row"
                )
            out.append(match[1])
        return out

    def needed(self, name: str, what: str) -> list[str]:
        """A column that must be there."""
        found = self.column(name)
        if found is None:
            raise UserError(
                f"{self.path}: no column {name!r} ({what}); {self._there}; name it with --map"
                f" {name}=COLUMN"
            )
        return found

    def sources(self, clip_ids: Sequence[str] | None) -> list[str]:
        """The source of each clip. One that is only in the clips' names is asked for: it decides every interval."""
        if self.column("source_id") is None and clip_ids is not None:
            rule = source_rule(clip_ids)
            if rule is not None:
                raise UserError(
                    f"{self.path}: no column 'source_id' (the recording, speaker or upload of a clip,"
                    f" which intervals resample); {self._there}; if the names of clips begin with it, as"
                    f" {clip_ids[0]!r} may, --map source_id='{rule[0]} of clip_id' makes {rule[1]}"
                    f" sources of {len(clip_ids)} clips, else --map source_id=COLUMN, clip_id where every"
                    " clip has its own"
                )
        return self.needed(
            "source_id",
            "the recording, speaker or upload of a clip, which intervals resample; clip_id where every"
            " clip has its own",
        )


def read_predictions(
    path: Path,
    positive: str,
    names: dict[str, str] | None = None,
    slices: Sequence[str] | None = None,
) -> Predictions:
    """The predictions in a file, named by its path; see `read_foreign`."""
    return read_foreign(path, positive, names, slices)[0]


def read_own(path: Path, labels: Sequence[str]) -> Predictions:
    """The predictions in a file of ours, by the labels of its task in their order, whether or not each occurs.

    Raises:
        UserError: The file is damaged, or of another task.
    """
    table = _open_csv(path, {})
    said = read_rows(table, labels[0], None, labels)[0]
    score = table.column("score")
    if said.logp is None or score is None:
        return said
    # nats of more than two labels are as the model gives them; the probability was decided by, with the bias
    probability = np.clip(_numbers(table, "score", score), 0.0, 1.0)
    return dataclasses.replace(said, probability=probability)


def read_foreign(
    path: Path,
    positive: str,
    names: dict[str, str] | None = None,
    slices: Sequence[str] | None = None,
) -> tuple[Predictions, tuple[str, ...]]:
    """The predictions in a file, named by its path, and what of columns and labels was guessed, in words.

    Args:
        positive: The label that is to be detected.
        names: Column -> what it is called in the file, or ``REGEX of COLUMN``, whose group is taken.
        slices: Columns to slice by; None: those of `SLICES` that are there.
    Raises:
        UserError: With file, row and what was expected.
    """
    return read_rows(_open_csv(path, names or {}), positive, slices)


def read_frame(name: str, given: "pd.DataFrame | str | Path", positive: str) -> Predictions:
    """The predictions in a data frame with the columns of a file, or in a file; see `read_foreign`.

    Raises:
        UserError: As `read_foreign`.
    """
    if isinstance(given, str | Path):
        return dataclasses.replace(read_predictions(Path(given), positive), name=name)
    columns = {
        str(header): [
            "" if value is None or value != value else str(value) for value in given[header]
        ]
        for header in given.columns
    }
    if given.empty:
        raise UserError(f"{name}: the data frame holds no rows")
    places = [f", row {index}" for index in given.index]
    return read_rows(Table(Path(name), columns, places, {}), positive)[0]


def read_rows(
    table: Table,
    positive: str,
    slices: Sequence[str] | None = None,
    known: Sequence[str] = (),
) -> tuple[Predictions, tuple[str, ...]]:
    """The predictions in the rows of a table; see `read_foreign`.

    Args:
        known: All labels in their order, where the table's own are not looked for.
    """
    targets, spelled = _targets(table, positive, slices, known)
    decided, probability, score, logp = _said(table, targets.labels, spelled)
    shares = None if logp is None else np.exp(among_labels(logp))
    said = Predictions(str(table.path), targets, decided, probability, score, logp, shares)
    return said, tuple(table.guessed)


def _targets(
    table: Table, positive: str, slices: Sequence[str] | None, known: Sequence[str]
) -> tuple[Targets, dict[str, str]]:
    truth = table.needed("label", "the right label")
    if "" in truth:
        raise UserError(f"{table.at(truth.index(''))}: label is empty")
    if known:
        spelled, labels = {v: v for v in known}, tuple(known)
        other = next((i for i, v in enumerate(truth) if v not in spelled), None)
        if other is not None:
            raise UserError(
                f"{table.at(other)}: label is {truth[other]!r}; expected one of {', '.join(known)}"
            )
    else:
        spelled = label_names(truth, positive)
        table.guessed += _renamed("label", spelled)
        labels = _labels(table, [spelled[v] for v in truth], positive)
    ids = table.column("clip_id")
    sources = table.sources(ids)
    if ids is None:
        ids = [str(i) for i in range(len(truth))]
    for name, held in (("source_id", sources), ("clip_id", ids)):
        if "" in held:
            raise UserError(f"{table.at(held.index(''))}: {name} is empty")
    if told := spellings(sources, "sources", looks_key):
        table.guessed.append(f"{told}; each counts as one")
        first_of = first_spellings(sources, looks_key)
        sources = [first_of[name] for name in sources]
    if len(set(ids)) < len(ids):
        first = {clip: i for i, clip in reversed(list(enumerate(ids)))}
        at = next(i for i, clip in enumerate(ids) if first[clip] < i)
        raise UserError(
            f"{table.at(at)}: clip_id {ids[at]!r} stands in two rows; each clip needs one"
        )
    found = {}
    for name in SLICES if slices is None else slices:
        values = table.column(name) if slices is None else table.needed(name, "to slice by")
        if values is not None:
            found[name] = _plain(table, values)
    truths = np.array([labels.index(spelled[v]) for v in truth])
    return Targets(labels, tuple(ids), truths, np.array(sources, dtype=np.str_), found), spelled


def _renamed(column: str, names: dict[str, str]) -> list[str]:
    return [f"{column} {a!r} is {b}" for a, b in sorted(names.items()) if a != b]


def _said(
    table: Table, labels: tuple[str, ...], spelled: dict[str, str]
) -> tuple[Any, Any, Any, Any]:
    """(decided, probability, score, nats of more than two labels) as far as the file tells them."""
    path, positive = table.path, labels[0]
    logp = {v: table.column(LOGP + v) for v in labels}
    score_text, predicted = table.column("score"), table.column("predicted")
    probability = score = decided = each = None
    if any(v is not None for v in logp.values()):
        both = _log_probabilities(table, labels, logp)
        score, decided = log_odds(both), decide(both)
        probability = sigmoid(score)
        each = both if len(labels) > 2 else None
    elif score_text is not None:
        score = _numbers(table, "score", score_text)
        if ((score >= 0) & (score <= 1)).all():
            probability = score
            decided = np.where(score >= 0.5, 0, 1) if len(labels) == 2 else None
    if predicted is not None:
        names = predicted_names(predicted, spelled, positive)
        strange = [v not in names for v in predicted]
        if any(strange):
            raise UserError(
                f"{table.at(strange.index(True))}: predicted is {predicted[strange.index(True)]!r};"
                f" expected {' or '.join(labels)}. {sum(strange)} rows are so; an answer that could not"
                " be read is a wrong one: give it the other label, rows cannot be left out"
            )
        table.guessed += _renamed("predicted", names)
        decided = np.array([labels.index(names[v]) for v in predicted])
    if decided is None:
        raise UserError(
            f"{path}: no column says what was decided: give predicted, {LOGP}LABEL for each label, or"
            f" score as the probability of {positive} (0 to 1)"
        )
    return decided, probability, score, each


def _log_probabilities(
    table: Table, labels: tuple[str, ...], logp: dict[str, list[str] | None]
) -> np.ndarray[Any, Any]:
    """``[clip, label]``."""
    missing = [v for v in labels if logp[v] is None]
    if missing:
        raise UserError(f"{table.path}: no column {LOGP + missing[0]!r}; each label needs one")
    columns = []
    for label, text in logp.items():
        values = _numbers(table, LOGP + label, text or [])
        if (values > 0).any():
            at = int((values > 0).argmax())
            raise UserError(
                f"{table.at(at)}: {LOGP + label} is {values[at]:g}; expected a log-probability,"
                " which is never above 0 (probabilities go into a column score)"
            )
        columns.append(values)
    return np.stack(columns, axis=-1)


def _open_csv(path: Path, names: dict[str, str]) -> Table:
    if not path.is_file():
        raise UserError(f"{str(path)!r} is no file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise UserError(
                f"{path}:{text[: text.index(chr(0))].count(chr(10)) + 1}: holds a NUL byte; expected text in UTF-8"
                " (UTF-16, or a file that was not written to its end?)"
            )
        first = text.partition("\n")[0]
        separator = max(",;\t", key=first.count)
        rows, lines = _rows(text, separator)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as CSV in UTF-8 ({str(error).splitlines()[0]})"
        ) from None
    if len(rows) < 2:
        raise UserError(f"{path}: holds no rows")
    header = rows[0]
    _check_widths(path, rows, lines)
    columns = zip(*rows[1:], strict=True)
    texts = {h: list(c) for h, c in zip(header, columns, strict=True)}
    places = [f":{line}" for line in lines[1:]]
    table = Table(path, texts, places, names, decimal_comma=separator == ";")
    if separator != ",":
        table.guessed.append(f"columns are separated by {separator!r}")
    return table


def _rows(text: str, separator: str) -> tuple[list[list[str]], list[int]]:
    """Cells of each row that is not empty, and the line that it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, lines, line = list[list[str]](), list[int](), 1
    for row in reader:
        if row:
            rows.append([visible(cell) for cell in row])
            lines.append(line)
        line = reader.line_num + 1
    return rows, lines


def _check_widths(path: Path, rows: Sequence[Sequence[str]], lines: Sequence[int]) -> None:
    """Each header once, and as many cells in every row."""
    header = [name.casefold() for name in rows[0]]
    twice = [name for i, name in enumerate(rows[0]) if header[i] in header[:i]]
    if twice:
        raise UserError(f"{path}: column {twice[0]!r} stands there twice")
    for line, row in zip(lines[1:], rows[1:], strict=True):
        if len(row) != len(header):
            raise UserError(
                f"{path}:{line}: {len(row)} fields, the header has {len(header)}; expected as many (a"
                " decimal comma? a comma without quotes? a file that was cut?)"
            )
        if [cell.casefold() for cell in row] == header:
            raise UserError(
                f"{path}:{line}: the header stands there again; expected a clip (two files in one?)"
            )


def visible(text: str) -> str:
    """A cell without what would steer a terminal, one text however its accents are coded: it may be shown."""
    text = unicodedata.normalize("NFC", text.strip())
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def _labels(table: Table, text: Sequence[str], positive: str) -> tuple[str, ...]:
    """Labels that occur, the positive one first."""
    path, found = table.path, sorted(set(text))
    if positive not in found:
        raise UserError(
            f"{path}: no clip has the label {positive!r}; there are {', '.join(found[:6])}; say with"
            " --positive which of them is to be detected"
        )
    if len(found) < 2:
        raise UserError(f"{path}: all clips have the label {positive!r}; two kinds are needed")
    if len(found) > MOST_LABELS:
        raise UserError(
            f"{path}: {len(found)} different labels, such as {', '.join(found[:4])}; is 'label' the"
            " right column? --map label=COLUMN"
        )
    last = text[-1]
    if list(text).count(last) == 1 and any(v != last and v.startswith(last) for v in found):
        raise UserError(
            f"{table.at(len(text) - 1)}: label is {last!r}, in the last row alone; expected"
            f" {' or '.join(v for v in found if v != last)}: the file was cut"
        )
    return (positive, *(v for v in found if v != positive))


def _numbers(table: Table, name: str, text: Sequence[str]) -> np.ndarray[Any, Any]:
    out = np.zeros(len(text))
    for i, value in enumerate(text):
        try:
            out[i] = _number(table, value)
        except ValueError:
            out[i] = np.nan
        if not np.isfinite(out[i]):
            raise UserError(f"{table.at(i)}: {name} is {value!r}; expected a number")
    return out


def _number(table: Table, text: str) -> float:
    """The number that a cell holds; Python's own reader would take 1_0 and digits of other scripts as well."""
    text = text.replace(",", ".") if table.decimal_comma else text
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return float(text)


def _plain(table: Table, values: Sequence[str]) -> np.ndarray[Any, Any]:
    """Numbers written alike (200.0 as 200), so that equal values are one slice."""

    def one(text: str) -> str:
        try:
            return "" if text.lower() == "nan" else f"{_number(table, text) + 0.0:g}"
        except ValueError:
            return text

    return np.array([one(v) for v in values])


def joined(first: Predictions, other: Predictions) -> Predictions:
    """The other file's predictions in the order of the first's clips.

    Raises:
        UserError: They do not hold the same clips, or say different things of them.
    """
    a, b = first.targets, other.targets
    mine, theirs = list(a.clip_ids), list(b.clip_ids)
    if set(mine) != set(theirs):  # one file may spell them otherwise
        keys, others = list(map(name_key, mine)), list(map(name_key, theirs))
        if len(set(keys)) == len(keys) and len(set(others)) == len(others):
            mine, theirs = keys, others
    place, known = {clip: i for i, clip in enumerate(theirs)}, set(mine)
    lacking = [clip for clip, one in zip(a.clip_ids, mine, strict=True) if one not in place]
    extra = [clip for clip, one in zip(b.clip_ids, theirs, strict=True) if one not in known]
    if lacking or extra:
        raise UserError(
            f"{first.name} and {other.name} do not hold the same clips: {len(lacking)} are missing in the"
            f" second, {len(extra)} in the first, such as {[*lacking, *sorted(extra)][0]!r}; compare"
            " the same clips"
        )
    found = other.take(np.array([place[one] for one in mine]))
    b = found.targets
    for what, here, there in (
        ("label", [a.labels[i] for i in a.truth], [b.labels[i] for i in b.truth]),
        ("source_id", a.sources.tolist(), b.sources.tolist()),
    ):
        for clip, x, y in zip(a.clip_ids, here, there, strict=True):
            if x != y and (what == "label" or name_key(x) != name_key(y)):
                raise UserError(
                    f"clip {clip!r}: {what} is {x!r} in {first.name} and {y!r} in {other.name}"
                )
    same = dataclasses.replace(b, clip_ids=a.clip_ids, sources=a.sources)
    return dataclasses.replace(found, targets=same)


def write_predictions(path: Path, said: Predictions) -> None:
    """Predictions as a file that `read_predictions` reads."""
    targets, rows = said.targets, []
    for i, clip in enumerate(targets.clip_ids):
        row: dict[str, Any] = {"clip_id": clip, "source_id": str(targets.sources[i])}
        row["label"] = targets.labels[targets.truth[i]]
        row["predicted"] = targets.labels[said.decided[i]]
        if said.probability is not None:
            row["score"] = round(float(said.probability[i]), 6)
        if said.logp is not None:
            row |= {
                f"{LOGP}{label}": round(float(np.clip(p, -LEAST, 0.0)), 6)
                for label, p in zip(targets.labels, said.logp[i], strict=True)
            }
        rows.append(row | {name: number_or_text(v[i]) for name, v in targets.slices.items()})
    write_text(path, csv_text(rows, tuple(rows[0])))


def number_or_text(text: str) -> float | str:
    """A number where the text is one."""
    try:
        return float(text)
    except ValueError:
        return str(text)
