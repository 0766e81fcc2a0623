"""The statistics of this project for predictions made elsewhere: python -m opro.stats A.csv B.csv

A file has one row a clip. Columns: clip_id, source_id (the recording, speaker or upload it was cut from), label, and
predicted, score or log-probabilities (logp_SPEECH, logp_NONSPEECH, ...); duration_ms, snr_db, condition and category
are sliced by. Other names and spellings of labels are guessed where one reading is possible, and the guess is shown;
else they are mapped: --map label=annotator_2 source_id='(.+)_[0-9]+ of clip_id' (the group of a regular expression).
Intervals resample sources; several files must hold the same clips and are compared pairwise.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.errors import UserError
from evaluators.files import csv_text, json_text
from evaluators.statistics.compare import compare_pairs
from evaluators.statistics.describe import DEFINITIONS, describe
from evaluators.targets import SLICES
from opro.cli import DONE, flag, parse, run_verb
from opro.results.predictions import COLUMNS, LOGP, joined, number_or_text, read_foreign
from opro.results.sheet import Column, Sheet, decimal, percent, render


@dataclass(frozen=True)
class StatsSettings:
    """The statistics."""

    format: Literal["table", "csv", "markdown", "json"] = flag("table", "how to print them")
    positive: str = flag("SPEECH", "label that is to be detected: the one that hits are counted of")
    resamples: int = flag(10_000, "resamples of the sources", min=100)
    seed: int = flag(0, "seed of the resamples")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""

    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="CSV files")
        parser.add_argument(
            "--map",
            nargs="+",
            action="extend",
            default=[],
            metavar="COLUMN=NAME",
            help="what a column is called in the files, or 'REGEX of COLUMN', whose group is taken;"
            " source_id=clip_id counts each clip as a source",
        )
        parser.add_argument(
            "--slices",
            nargs="*",
            default=None,
            metavar="NAME",
            help="columns to slice by (default: duration_ms, snr_db, condition, category where there)",
        )

    settings, space = parse(StatsSettings, argv, __doc__ or "", extra, config=False)
    names = _mapping(space.map)
    result = statistics(space.files, settings, names, space.slices)
    if settings.format == "json":
        print(json_text(result), end="")
    elif settings.format == "csv":
        rows = _long(result)
        print(csv_text(rows, tuple(rows[0])), end="")
        for entry in result["files"]:
            for text in entry["guessed"]:
                print(f"{entry['file']}: guessed: {text}", file=sys.stderr)
    elif settings.format == "markdown":
        sheets = statistics_sheets(result)
        print("\n\n".join(f"**{s.title}**\n\n{render(s, 'markdown')}" for s in sheets))
    else:
        print("\n\n".join(render(s) for s in statistics_sheets(result)))
    return DONE


def statistics(
    files: Sequence[Path],
    settings: StatsSettings,
    names: dict[str, str],
    slices: Sequence[str] | None = None,
) -> dict[str, Any]:
    """{"files": [...], "pairs": [...]}: see `evaluators.statistics`, `describe` and `compare_pairs`.

    Raises:
        UserError: A file is not as described, or the files do not hold the same clips.
    """
    twice = sorted(str(p) for p in files if list(files).count(p) > 1)
    if twice:
        raise UserError(f"{twice[0]} is given twice")
    opened = [read_foreign(path, settings.positive, names, slices) for path in files]
    first = opened[0][0]
    read = [first, *(joined(first, other) for other, _ in opened[1:])]
    described = []
    for said, (_, guessed) in zip(read, opened, strict=True):
        found = describe(said, resamples=settings.resamples, seed=settings.seed)
        about = {"file": said.name, "labels": list(said.targets.labels), "guessed": list(guessed)}
        described.append({**about, **found})
    compared = compare_pairs(read, resamples=settings.resamples, seed=settings.seed)
    return {"files": described, "pairs": compared}


def _mapping(given: Sequence[str]) -> dict[str, str]:
    """Column -> its name in the files."""
    out: dict[str, str] = {}
    for text in given:
        column, sign, name = text.partition("=")
        known = column in (*COLUMNS, *SLICES) or column.startswith(LOGP)
        if not sign or not name or not known or column in out:
            raise UserError(
                f"--map {text!r}: expected COLUMN=NAME or COLUMN='REGEX of NAME', once a column, with COLUMN one of"
                f" {', '.join((*COLUMNS, *SLICES))}, {LOGP}LABEL"
            )
        out[column] = name
    return out


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
        for name, t in entry["crossings"].items():
            out.append(
                empty
                | {"file": entry["file"], "statistic": f"{name} of balanced accuracy, published"}
                | {"rows": entry["rows"], "sources": entry["sources"]}
                | {k: t[k] and round(t[k], 3) for k in ("value", "low", "high")}
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


def statistics_sheets(result: dict[str, Any]) -> list[Sheet]:
    """What people read: rates, ranking and calibration, slices, thresholds, pairs."""
    files = [{**f, "file": _short(result, f["file"])} for f in result["files"]]
    out = [_rates(files)]
    guessed = [[f["file"], text] for f in files for text in f["guessed"]]
    if guessed:
        columns = [Column("file", text=True), Column("read as", text=True)]
        out.insert(0, Sheet("guessed; --map says otherwise", columns, guessed))
    if any(f["auroc"] for f in files):
        out.append(_ranking(files))
    for name in dict.fromkeys(n for f in files for n, levels in f["slices"].items() if levels):
        out.append(_slices(files, name))
    for kind, definition in DEFINITIONS.items():
        body = [[f["file"], name, t["text"]] for f in files for name, t in f[kind].items()]
        if body:
            columns = [Column("file", text=True), Column("threshold", text=True), Column("")]
            out.append(Sheet(f"thresholds, {definition}", columns, body))
    if result["pairs"]:
        out.append(_pairs(result))
    return out


FILE, CLIPS, SOURCES = Column("file", text=True), Column("clips", 3), Column("sources", 3)
BALANCED, HITS, ALARMS = Column("balanced accuracy"), Column("hits", 6), Column("false alarms", 6)


def _rates(files: Sequence[dict[str, Any]]) -> Sheet:
    columns = [FILE, CLIPS, SOURCES, BALANCED, Column("accuracy", 4), HITS, ALARMS]
    names = ("balanced_accuracy", "accuracy", "hit_rate", "false_alarm_rate")
    body = [
        [f["file"], str(f["rows"]), str(f["sources"]), *(percent(f[k]) for k in names)]
        for f in files
    ]
    labels = ", ".join(dict.fromkeys(label for f in files for label in f["labels"]))
    return Sheet(f"95 % intervals over sources; labels {labels}", columns, body)


def _ranking(files: Sequence[dict[str, Any]]) -> Sheet:
    columns = [FILE, Column("AUROC"), Column("ECE", 6), Column("Brier", 5), Column("NLL", 4)]
    columns.append(Column("confidence right - wrong", 3))
    names = ("auroc", "ece", "brier", "nll", "confidence_gap")
    body = [[f["file"], *(decimal(f.get(k)) for k in names)] for f in files if f["auroc"]]
    return Sheet("ranking and calibration", columns, body)


def _slices(files: Sequence[dict[str, Any]], name: str) -> Sheet:
    body = []
    for f in files:
        for level, part in f["slices"].get(name, {}).items():
            row = [f["file"], level, str(part["rows"]), str(part["sources"])]
            row.append(percent(part["balanced_accuracy"]) or "one kind only")
            body.append([*row, *(percent(part[k]) for k in ("hit_rate", "false_alarm_rate"))])
    columns = [FILE, Column(name, text=True), CLIPS, SOURCES, BALANCED, HITS, ALARMS]
    return Sheet(f"by {name}", columns, body)


def _pairs(result: dict[str, Any]) -> Sheet:
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
    columns = [Column("a", text=True), Column("b", text=True), Column("balanced accuracy, a - b")]
    columns += [Column("p", 6), Column("p (Holm)")]
    return Sheet("paired differences; p of the interval's own, two-sided", columns, body)


if __name__ == "__main__":
    sys.exit(run_verb(main))
