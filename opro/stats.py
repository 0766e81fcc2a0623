"""The statistics of this project for predictions made elsewhere: python -m opro.stats A.csv B.csv

A file has one row a clip. Columns: clip_id, source_id (the recording, speaker or upload it was cut from), label, and
predicted, score or log-probabilities (logp_SPEECH, logp_NONSPEECH, ...); duration_ms, snr_db, condition and category
are sliced by. Other names are mapped: --map label=ground_truth source_id=speaker. Intervals resample sources; several
files must hold the same clips and are compared pairwise.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluators.errors import UserError
from opro.flags import DONE, flag, parse, run_verb

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from evaluators.judgements import Judgements

COLUMNS = ("clip_id", "source_id", "label", "predicted", "score")
LOGP = "logp_"


@dataclass(frozen=True)
class Settings:
    """Settings of the statistics."""

    format: Literal["table", "csv", "markdown", "json"] = flag("table", "how to print them")
    positive: str = flag("SPEECH", "label that is to be detected: the one that hits are counted of")
    resamples: int = flag(10_000, "resamples of the sources", min=100)
    seed: int = flag(0, "seed of the resamples")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""

    def extra(parser: Any) -> None:
        parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="CSV files")
        parser.add_argument(
            "--map",
            nargs="+",
            action="extend",
            default=[],
            metavar="COLUMN=NAME",
            help="what a column is called in the files; source_id=clip_id counts each clip as a source",
        )
        parser.add_argument(
            "--slices",
            nargs="*",
            default=None,
            metavar="NAME",
            help="columns to slice by (default: duration_ms, snr_db, condition, category where there)",
        )

    settings, space = parse(Settings, argv, __doc__ or "", extra, config=False)
    names = _mapping(space.map)
    result = statistics(space.files, settings, names, space.slices)
    if settings.format == "json":
        print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))
    elif settings.format == "csv":
        from opro.runs import csv_text

        rows = _long(result)
        print(csv_text(rows, tuple(rows[0])), end="")
    elif settings.format == "markdown":
        print(_markdown(result))
    else:
        _print(result)
    return DONE


def statistics(
    files: Sequence[Path],
    settings: Settings,
    names: dict[str, str],
    slices: Sequence[str] | None = None,
) -> dict[str, Any]:
    """{"files": [...], "pairs": [...]}: see `evaluators.judgements.describe` and `compare`.

    Raises:
        UserError: A file is not as described, or the files do not hold the same clips.
    """
    from evaluators import judgements

    twice = sorted(str(p) for p in files if list(files).count(p) > 1)
    if twice:
        raise UserError(f"{twice[0]} is given twice")
    read = [(str(path), read_predictions(path, settings.positive, names, slices)) for path in files]
    for i in range(1, len(read)):
        read[i] = (read[i][0], _joined(read[0], read[i]))
    more = {"resamples": settings.resamples, "seed": settings.seed}
    return {
        "files": [
            {"file": name, "labels": list(j.labels), **judgements.describe(j, **more)}
            for name, j in read
        ],
        "pairs": judgements.compare(read, **more),
    }


def _mapping(given: Sequence[str]) -> dict[str, str]:
    """Column -> its name in the files."""
    from evaluators.judgements import SLICES

    out: dict[str, str] = {}
    for text in given:
        column, sign, name = text.partition("=")
        known = column in (*COLUMNS, *SLICES) or column.startswith(LOGP)
        if not sign or not name or not known or column in out:
            raise UserError(
                f"--map {text!r}: expected COLUMN=NAME, once a column, with COLUMN one of"
                f" {', '.join((*COLUMNS, *SLICES))}, {LOGP}LABEL"
            )
        out[column] = name
    return out


def read_predictions(
    path: Path, positive: str, names: dict[str, str], slices: Sequence[str] | None = None
) -> "Judgements":
    """The judgements in a file.

    Raises:
        UserError: With file, row and what was expected.
    """
    import numpy as np

    from evaluators import calibration
    from evaluators.judgements import SLICES, Judgements

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
        from evaluators import metrics

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


def _joined(first: tuple[str, "Judgements"], other: tuple[str, "Judgements"]) -> "Judgements":
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
    """Judgements as a file that this verb reads."""
    from opro.runs import csv_text, write_text

    rows: list[dict[str, Any]] = []
    for i, clip in enumerate(j.clip_ids):
        row: dict[str, Any] = {"clip_id": clip, "source_id": j.sources[i]}
        row |= {"label": j.labels[j.truth[i]], "predicted": j.labels[j.decided[i]]}
        if j.probability is not None:
            row["score"] = round(float(j.probability[i]), 6)
        rows.append(row | {name: _number_or_text(v[i]) for name, v in j.slices.items()})
    write_text(path, csv_text(rows, tuple(rows[0])))


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _long(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a number: for pandas and spreadsheets."""
    empty = dict.fromkeys(
        (
            "file",
            "slice",
            "level",
            "statistic",
            "value",
            "low",
            "high",
            "p",
            "p_holm",
            "rows",
            "sources",
        )
    )
    out = []
    for entry in result["files"]:
        parts: list[tuple[str, str | float, dict[str, Any]]] = [("", "", entry)]
        parts += [
            (name, _number_or_text(level), part)
            for name, levels in entry["slices"].items()
            for level, part in levels.items()
        ]
        for name, level, part in parts:
            for statistic, value in part.items():
                if isinstance(value, dict) and "low" in value:
                    out.append(
                        empty
                        | {"file": entry["file"], "slice": name, "level": level}
                        | {"statistic": statistic, "rows": part["rows"], "sources": part["sources"]}
                        | value
                    )
        for name, t in entry["thresholds"].items():
            out.append(
                empty
                | {"file": entry["file"], "statistic": name, "rows": entry["rows"]}
                | {
                    "sources": entry["sources"],
                    **{k: round(t[k], 3) for k in ("value", "low", "high")},
                }
            )
    for pair in result["pairs"]:
        out.append(
            empty
            | {"file": pair["a"], "statistic": f"balanced_accuracy - {pair['b']}"}
            | {"value": pair["difference"], **{k: pair[k] for k in ("low", "high", "p", "p_holm")}}
        )
    return out


def _short(result: dict[str, Any], name: str) -> str:
    """A file's name without folders and ending, where that tells the files apart."""
    stems = [Path(f["file"]).stem for f in result["files"]]
    return Path(name).stem if len(set(stems)) == len(stems) else name


def _tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) of what is shown to people."""
    from opro.table import decimal, percent

    files = [{**f, "file": _short(result, f["file"])} for f in result["files"]]
    head = ["file", "clips", "sources", "balanced accuracy", "accuracy", "hits", "false alarms"]
    rows, sure = [], []
    for f in files:
        row = [f["file"], str(f["rows"]), str(f["sources"]), percent(f["balanced_accuracy"])]
        rows.append([*row, *(percent(f[k]) for k in ("accuracy", "hit_rate", "false_alarm_rate"))])
        if f["auroc"]:
            sure.append([f["file"], *(decimal(f[k]) for k in ("auroc", "ece", "brier"))])
            sure[-1] += [decimal(f.get(k)) for k in ("nll", "confidence_gap")]
    out = [("95 % intervals over sources", head, rows)]
    if sure:
        head = ["file", "AUROC", "ECE", "Brier", "NLL", "confidence right - wrong"]
        out.append(("ranking and calibration", head, sure))
    for name in dict.fromkeys(n for f in files for n, levels in f["slices"].items() if levels):
        body = []
        for f in files:
            for level, part in f["slices"].get(name, {}).items():
                row = [f["file"], level, str(part["rows"]), str(part["sources"])]
                row.append(percent(part["balanced_accuracy"]) or "one kind only")
                row += [percent(part[k]) for k in ("hit_rate", "false_alarm_rate")]
                body.append(row)
        head = ["file", name, "clips", "sources", "balanced accuracy", "hits", "false alarms"]
        out.append((f"by {name}", head, body))
    body = [[f["file"], name, t["text"]] for f in files for name, t in f["thresholds"].items()]
    if body:
        out.append(("thresholds of detection beyond guessing", ["file", "", ""], body))
    if result["pairs"]:
        body = [
            [
                _short(result, p["a"]),
                _short(result, p["b"]),
                percent({**p, "value": p["difference"]}, True),
                f"{p['p']:.4f}",
                f"{p['p_holm']:.4f}",
            ]
            for p in result["pairs"]
        ]
        head = ["a", "b", "balanced accuracy, a - b", "p", "p (Holm)"]
        out.append(("paired differences, sign flips of sources", head, body))
    return out


def _markdown(result: dict[str, Any]) -> str:
    from opro.table import markdown_table

    return "\n\n".join(
        f"**{title}**\n\n{markdown_table(head, rows)}" for title, head, rows in _tables(result)
    )


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from opro.table import wide_console

    console = wide_console()
    for title, head, rows in _tables(result):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in head:
            table.add_column(name, no_wrap=True)
        for row in rows:
            table.add_row(*(Text(v) for v in row))
        console.print(table)
        console.print()


if __name__ == "__main__":
    sys.exit(run_verb(main))
