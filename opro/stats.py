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
from typing import Any, Literal

from evaluators.errors import UserError
from opro.cli import DONE, flag, parse, run_verb


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
        from evaluators.files import csv_text

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
    """{"files": [...], "pairs": [...]}: see `evaluators.statistics.describe.describe` and `compare`.

    Raises:
        UserError: A file is not as described, or the files do not hold the same clips.
    """
    from evaluators.statistics import describe
    from opro.results.predictions import joined, read_predictions

    twice = sorted(str(p) for p in files if list(files).count(p) > 1)
    if twice:
        raise UserError(f"{twice[0]} is given twice")
    read = [(str(path), read_predictions(path, settings.positive, names, slices)) for path in files]
    for i in range(1, len(read)):
        read[i] = (read[i][0], joined(read[0], read[i]))
    more = {"resamples": settings.resamples, "seed": settings.seed}
    return {
        "files": [
            {"file": name, "labels": list(j.labels), **describe.describe(j, **more)}
            for name, j in read
        ],
        "pairs": describe.compare(read, **more),
    }


def _mapping(given: Sequence[str]) -> dict[str, str]:
    """Column -> its name in the files."""
    from evaluators.statistics.describe import SLICES
    from opro.results.predictions import COLUMNS, LOGP

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


def _long(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a number: for pandas and spreadsheets."""
    from opro.results.predictions import number_or_text

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
            (name, number_or_text(level), part)
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
    from opro.results.table import decimal, percent

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
    from opro.results.table import markdown_table

    return "\n\n".join(
        f"**{title}**\n\n{markdown_table(head, rows)}" for title, head, rows in _tables(result)
    )


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from opro.results.table import wide_console

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
