"""The statistics of this project for predictions made elsewhere: python -m opro.stats A.csv B.csv

A file has one row a clip. Columns: clip_id, source_id (the recording, speaker or upload it was cut from), label, and
predicted, score or log-probabilities (logp_SPEECH, logp_NONSPEECH, ...); duration_ms, snr_db, condition and category
are sliced by. Other names and spellings of labels are guessed where one reading is possible, and the guess is shown;
else they are mapped: --map label=annotator_2 source_id='(.+)_[0-9]+ of clip_id' (the group of a regular expression).
Intervals are over sources; several files must hold the same clips and are compared pairwise.

Logs of evaluations are read as they are: inspect_ai (.eval, .json), and the samples_*.jsonl that lm-evaluation-harness
and lmms-eval write with --log_samples. Compared are the mean scores of two logs of one task on the samples of both,
epochs averaged: difference, interval, p corrected by Holm, and the smallest difference that such samples would show.
--map score=NAME takes another score or filter, source_id=FIELD what samples share by their metadata or documents. Where
answers are labels with --positive among them, and right or wrong is their score, the log is one of predictions.
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
from evaluators.targets import SLICES, Predictions
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.results.logs.read import is_log, read_log
from opro.results.predictions import COLUMNS, LOGP, joined, number_or_text, read_foreign
from opro.results.scored import as_predictions, compare_logs, open_scored
from opro.results.sheet import Column, Sheet, decimal, percent, render


@dataclass(frozen=True)
class StatsSettings:
    """The statistics."""

    format: Literal["table", "csv", "markdown", "json"] = flag("table", "how to print them")
    positive: str = flag("SPEECH", "label that is to be detected: the one that hits are counted of")
    resamples: int = flag(10_000, "resamples of the sources", min=100, max=1_000_000)
    seed: int = flag(0, "seed of the resamples", min=0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""

    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "files", nargs="+", type=Path, metavar="FILE", help="CSV files, or logs"
        )
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
    hand_over(result)
    if settings.format == "json":
        print(json_text(result), end="")
    elif "logs" in result:
        _print_logs(result, settings.format)
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

    Of logs whose answers are no labels {"logs": [...], "pairs": [...]}: see `compare_logs`.

    Raises:
        UserError: A file is not as described, or the files do not hold the same clips.
    """
    twice = sorted(str(p) for p in files if list(files).count(p) > 1)
    if twice:
        raise UserError(f"{twice[0]} is given twice")
    if any(map(is_log, files)):
        opened = _open_logs(files, settings, names, slices)
        if isinstance(opened, dict):
            return opened
    else:
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


def _open_logs(
    files: Sequence[Path],
    settings: StatsSettings,
    names: dict[str, str],
    slices: Sequence[str] | None,
) -> list[tuple[Predictions, tuple[str, ...]]] | dict[str, Any]:
    """Files of which some are logs, as predictions where all can be; else the comparison of their scores."""
    logs = [read_log(path) for path in files if is_log(path)]
    groups = open_scored(logs, names)
    scored = {one.log.path: one for group in groups for one in group}
    read = {path: as_predictions(one, settings.positive, slices) for path, one in scored.items()}
    why = {path: text for path, text in read.items() if isinstance(text, str)}
    same = len(groups) == 1 and len({frozenset(one.first) for one in scored.values()}) == 1
    if not why and same:
        return [
            found
            if not isinstance(found := read.get(path, ""), str)
            else read_foreign(path, settings.positive, names, slices)
            for path in files
        ]
    reason = next((f"{p}: {t}" for p, t in why.items()), "they do not hold the same samples")
    tables = [path for path in files if path not in scored]
    if tables:
        raise UserError(
            f"{tables[0]} holds predictions, and of the logs only scores can be compared ({reason}); give files of"
            " one kind"
        )
    if slices is not None:
        raise UserError(f"--slices: only predictions are sliced, and these are scores ({reason})")
    if settings.positive != StatsSettings.positive:
        raise UserError(
            f"--positive {settings.positive}: the logs cannot be read as predictions ({reason})"
        )
    result = compare_logs(groups, resamples=settings.resamples, seed=settings.seed)
    labels = sorted({s.target for one in scored.values() for s in one.log.samples})
    if len(labels) == 2 and same:
        told = f"answers are {labels[0]} or {labels[1]}: --positive {labels[1]} gives hits, AUROC and the rest"
        if all(not isinstance(as_predictions(s, labels[1], None), str) for s in scored.values()):
            for one in result["logs"]:
                one["told"].append(told)
    return result


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
            "detectable",
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
            | {"detectable": pair["detectable"]}
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


PAIRED = (
    "p of the interval's own, two-sided; detectable: the smallest difference that 8 of 10 such sets would show by the p"
    " corrected"
)
FILE, CLIPS, SOURCES = Column("file", text=True), Column("clips", 3), Column("sources", 3)
BALANCED, HITS, ALARMS = Column("balanced accuracy"), Column("hits", 6), Column("false alarms", 6)


def _rates(files: Sequence[dict[str, Any]]) -> Sheet:
    columns = [FILE, CLIPS, SOURCES, BALANCED, Column("accuracy", 4), HITS, ALARMS]
    names = ("balanced_accuracy", "accuracy", "hit_rate", "false_alarm_rate")
    body = [
        [f["file"], str(f["rows"]), str(f["sources"]), *(percent(f[k]) for k in names)]
        for f in files
    ]
    labels = list(dict.fromkeys(label for f in files for label in f["labels"]))
    title = f"95 % intervals over sources; labels {', '.join(labels)}"
    if len(labels) > 2:
        title += (
            f"; hits and false alarms are of {labels[0]}, AUROC is the mean over each label against the rest"
            f" where there are {LOGP}LABEL columns, else that of {labels[0]}"
        )
    return Sheet(title, columns, body)


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
            "" if p["detectable"] is None else f"{100 * p['detectable']:.1f}",
        ]
        for p in result["pairs"]
    ]
    columns = [Column("a", text=True), Column("b", text=True), Column("balanced accuracy, a - b")]
    columns += [Column("p", 6), Column("p (Holm)"), Column("detectable", 5)]
    return Sheet(f"paired differences; {PAIRED}", columns, body)


# ---- logs of evaluations


def _print_logs(result: dict[str, Any], form: str) -> None:
    told = _told(result)
    if form == "csv":
        rows = _long_logs(result)
        print(csv_text(rows, tuple(rows[0])), end="")
        print("\n".join(told), file=sys.stderr)
        return
    sheets = _log_sheets(result)
    if form == "markdown":
        parts = [f"**{s.title}**\n\n{render(s, 'markdown')}" for s in sheets]
        parts.append("\n".join(f"- {text}" for text in told))
    else:
        parts = [*map(render, sheets), "\n".join(told)]
    print("\n\n".join(filter(None, parts)))


def _told(result: dict[str, Any]) -> list[str]:
    """The sentences beside the tables; what is said of several logs stands once."""
    letter = {one["file"]: one["name"] for one in result["logs"]}
    of: dict[str, list[str]] = {}
    for one in result["logs"]:
        for text in one["told"]:
            of.setdefault(text, []).append(one["name"])
    for p in result["pairs"]:
        for text in p["told"]:
            of.setdefault(text, []).append(f"{letter[p['a']]} - {letter[p['b']]}")
    return [f"{', '.join(names)}: {text}" for text, names in of.items()]


def _long_logs(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a number: for pandas and spreadsheets."""
    names = ("file", "task", "model", "statistic", "value", "low", "high", "p", "p_holm")
    empty = dict.fromkeys((*names, "detectable", "samples", "sources"))
    out = [
        empty
        | {k: one[k] for k in ("file", "task", "model", "samples", "sources")}
        | {"statistic": one["score"], **one["mean"]}
        for one in result["logs"]
    ]
    kept = ("low", "high", "p", "p_holm", "detectable", "samples", "sources")
    for p in result["pairs"]:
        about = {"file": p["a"], "statistic": f"{p['score']} - {p['b']}", "value": p["difference"]}
        out.append(empty | about | {k: p[k] for k in kept})
    return out


def _log_sheets(result: dict[str, Any]) -> list[Sheet]:
    logs = result["logs"]
    share = all(one["share"] for one in logs)
    said, unit = (percent, 100) if share else (decimal, 1)
    columns = [Column("log", text=True), FILE, Column("model", 5, text=True)]
    columns += [Column("task", 4, text=True), Column("score", 6, text=True), Column("mean")]
    columns += [Column("samples", 3), SOURCES, Column("epochs", 2), Column("unscored", 7)]
    counts = ("samples", "sources", "epochs", "unscored")
    body = [
        [
            *(one["name"], _short({"files": logs}, one["file"])),
            *(one["model"], one["task"], one["score"], said(one["mean"])),
            *(str(one[k]) for k in counts),
        ]
        for one in logs
    ]
    kinds = ", ".join(dict.fromkeys(one["kind"] for one in logs))
    out = [Sheet(f"logs of {kinds}; 95 % intervals over sources", columns, body)]
    if result["pairs"]:
        columns = [Column("pair", text=True), Column("mean difference"), Column("p", 6)]
        columns += [Column("p (Holm)"), Column("better", text=True), Column("detectable", 5)]
        columns += [Column("samples", 3), SOURCES]
        letter = {one["file"]: one["name"] for one in logs}
        body = [_pair_row(letter, p, unit) for p in result["pairs"]]
        out.append(Sheet(f"paired differences on the samples of both; {PAIRED}", columns, body))
    return out


def _pair_row(letter: dict[str, str], p: dict[str, Any], unit: int) -> list[str]:
    gain = {**p, "value": p["difference"]}
    digits = 1 if unit > 1 else 3
    return [
        f"{letter[p['a']]} - {letter[p['b']]}",
        percent(gain, True) if unit > 1 else decimal(gain),
        *(f"{p[k]:.4f}" for k in ("p", "p_holm")),
        "not shown" if p["better"] is None else letter[p[p["better"]]],
        "" if p["detectable"] is None else f"{unit * p['detectable']:.{digits}f}",
        *(str(p[k]) for k in ("samples", "sources")),
    ]


if __name__ == "__main__":
    sys.exit(run_verb(main))
