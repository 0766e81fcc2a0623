"""The report's content: from a run's or a matrix' folder to one HTML page."""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from evaluators.audio import load
from evaluators.classifier import among_labels, bias_from, dump_classifiers, spell_bias
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.files import read_json, resolve
from evaluators.manifest import SPLITS
from evaluators.prompts import shown_text
from evaluators.renderings import read_all
from evaluators.statistics import calibration
from evaluators.statistics.describe import (
    AXES,
    DEFINITIONS,
    crossed,
    curves,
    describe,
    ordered,
    thresholds,
)
from evaluators.statistics.metrics import grouped
from evaluators.targets import Predictions
from evaluators.tasks import Task, task_named
from opro.results import figures
from opro.results.brittle_page import brittle_of
from opro.results.calibrated import calibration_of, decided_by
from opro.results.confusion import by_label, confusion_sheet
from opro.results.leaderboard import Row, leaderboard_rows, length_unit
from opro.results.looks import times
from opro.results.matrix_rows import judged_on, matrix_sheet
from opro.results.predictions import read_own
from opro.results.repeats import repeats_sheet, spread_line, wins_line
from opro.results.run_folder import JOURNAL, PROVENANCE, RunFolder
from opro.results.sheet import percent
from opro.results.summary import Summary
from opro.results.two_by_two import share_line, two_by_two_sheet, verdict_line
from opro.results.wording import Piece, word_changes
from opro.search.objective import NAMES
from opro.settings import REPEATS

WORST = 6  # misses and false alarms with a player, each
FIRST_ROWS = 10  # of a leaderboard that stand open; the others unfold
MAX_CURVES = 5
MOST_LABELS = 12  # whose table of mistakes is shown whole
Bins = list[dict[str, float]]


@dataclass(frozen=True)
class Drawn:
    """Predictions that the page draws. `reliability`: (name, bins) before and after calibration."""

    name: str
    said: Predictions
    reliability: tuple[tuple[str, Bins], ...] = ()


def page_of(*folders: Path) -> str:
    """The page of a matrix' folder, of a run's, finished or not, or of those of several runs.

    Raises:
        UserError: One is neither, or a matrix stands among several.
    """
    for folder in folders:
        is_matrix = (folder / "matrix.json").is_file()
        if not is_matrix and not (folder / JOURNAL).is_file():
            raise UserError(
                f"{str(folder)!r} holds no run and no matrix; expected trials.jsonl or matrix.json in it"
            )
        if is_matrix and len(folders) > 1:
            raise UserError(
                f"{str(folder)!r} is a matrix, which has a page of its own; expected runs beside each other"
            )
    if (folders[0] / "matrix.json").is_file():
        page = _matrix_page(folders[0])
    elif len(folders) > 1:
        page = _runs_page([RunFolder.read(folder) for folder in folders])
    else:
        page = _run_page(RunFolder.read(folders[0]))
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["times"] = times
    env.filters["percent"] = lambda v: "" if v is None else f"{100 * v:.1f}"
    script = (Path(__file__).parent / "templates" / "copy.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shared = {"script": Markup(script), "digest": digest, "first_rows": FIRST_ROWS}
    return env.get_template("report.html").render(page | shared)


def _runs_page(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Runs beside each other: what each decided, their histories on shared axes, their trials."""
    parts = [_run(run) for run in runs]
    for part in parts:  # scores of one kind share their range
        alike = [p["trials"] for p in parts if p["scores"] == part["scores"]]
        drawn = part["trials"], part["baseline_score"], part["scores"], figures.limits(alike)
        part["history"] = figures.history(*drawn)
    replaced = sum(p["kept"] is False for p in parts)
    return {
        "title": f"{len(runs)} runs",
        "runs": parts,
        "overview": [_overview(run) for run in runs],
        "overview_lead": f"{replaced} of {len(runs)} runs replaced their baseline. Scores of runs on other clips, or of"
        " another objective, cannot be compared; pictures of one objective share their axis.",
        "matrix": None,
        "where": "",
        **_by_clip([], {}),
        "notes": [f"{run.name}: {text}" for run in runs for text in _warnings(run)],
        "provenance": [],
    }


def _overview(run: RunFolder) -> dict[str, str]:
    """A row of the table of several runs."""
    summary = run.summary
    told = sum(t.state != "waiting" for t in run.history.trials)
    row = {"run": run.name, "checkpoint": run.checkpoint, "trials": str(told)}
    clips = f"{run.config['manifest']} [{str((run.history.header or {}).get('data', ''))[:8]}]"
    row["scores"] = f"{NAMES[_objective(run)]} on {clips}"
    if summary is None:
        return row | {"decision": "not finished", "baseline": "", "chosen": "", "gain": ""}
    gain = {"value": summary.gain.estimate, "low": summary.gain.low, "high": summary.gain.high}
    return row | {
        "decision": summary.reason.partition(":")[0],
        "baseline": f"{100 * summary.baseline.score:.1f}",
        "chosen": f"{100 * summary.chosen.score:.1f}",
        "gain": percent(gain, signed=True),
    }


def _run_page(run: RunFolder) -> dict[str, Any]:
    part, notes, drawn = _run(run), list[str](), list[Drawn]()
    part["history"] = figures.history(part["trials"], part["baseline_score"], part["scores"])
    if run.summary is not None:
        drawn = _drawn_of_run(run, notes)
    provenance = run.path / PROVENANCE
    clips = clips_of(run.config["manifest"], run.task, notes) if drawn else {}
    return {
        "title": f"Run {run.name}",
        "runs": [part],
        "overview": [],
        "overview_lead": "",
        "matrix": None,
        "where": "the holdout of dev",
        **_by_clip(drawn, clips),
        "notes": [*notes, *_warnings(run)],
        "provenance": _flat(_mapping(provenance)) if provenance.is_file() else [],
    }


def _warnings(run: RunFolder) -> Iterator[str]:
    """What is to be told of a run's numbers."""
    if unlisted := max((t.outcome.unlisted for t in run.history.trials if t.outcome), default=0.0):
        yield (
            f"up to {100 * unlisted:.0f} % of a prompt's answers are not among the tokens that the server lists: their"
            " scores are upper bounds"
        )
    if run.summary is not None:
        yield from run.summary.warnings


def _drawn_of_run(run: RunFolder, notes: list[str]) -> list[Drawn]:
    """Baseline and chosen prompt on the holdout."""
    summary = run.finished()
    baseline, chosen = summary.baseline, summary.chosen
    drawn = []
    for name, one in (("baseline", baseline), ("chosen prompt", chosen)):
        path = run.holdout(one.prompt_id)
        if not path.is_file():
            notes.append(f"{path.name} is missing: what is drawn by clip is left out")
        elif name == "baseline" or one.prompt_id != baseline.prompt_id:
            said = read_own(path, run.task.labels)
            drawn.append(Drawn(name, said, _calibrated(run, one.prompt_id, said, notes)))
    return drawn


def _objective(run: RunFolder) -> str:
    return str(run.config.get("objective", "balanced_accuracy"))


def _run(run: RunFolder) -> dict[str, Any]:
    """A run's part of a page, but for its history's picture: decision, winner, test scores, trials."""
    summary, scores = run.summary, NAMES[_objective(run)]
    seeds = [t for t in run.history.complete if t.iteration == 0]
    baseline = max(seeds, key=lambda t: t.rank, default=None)
    if summary is not None:
        number = int((run.history.selection or {})["baseline"])
        baseline = run.history.trials[number]
    text = baseline.prompt.text if baseline else ""
    test = run.path / "test.json"
    trials = [
        {
            "number": t.number,
            "score": t.outcome.score,
            "low": t.outcome.low,
            "high": t.outcome.high,
            "state": t.state,
        }
        for t in run.history.trials
        if t.outcome
    ]
    board = leaderboard_rows(run, summary)
    unit = length_unit(board)
    return {
        "name": run.name,
        "lead": summary.reason if summary else _unfinished(run),
        "kept": summary.baseline_kept if summary else None,
        "facts": list(_run_facts(summary, run.task) if summary else _facts(run)),
        "cells": _cells(summary) if summary else None,
        "repeats": _repeats(summary) if summary else None,
        "brittle": brittle_of(run, summary),
        "winner": _winner(run, text),
        "baseline": summary.baseline.model_dump() if summary else None,
        "test": read_json(test) if test.is_file() and summary else None,
        "trials": trials,
        "baseline_score": baseline.reward if baseline else None,
        "scores": scores,
        "unit": unit,
        "lengths": _lengths(board, baseline.prompt.prompt_id if baseline else "", scores),
        "board": [
            {
                **row,
                "long": row[unit],
                "diff": _changes(text, row["text"], row.get("presentation", "")),
            }
            for row in board
        ],
    }


def _lengths(board: Sequence[Row], baseline: str, scores: str) -> str:
    """The picture of score over length; "" without a trial that was scored on all clips."""
    unit = length_unit(board)
    rows = [
        {
            "length": row[unit],
            "score": row["score"],
            "mark": "chosen" if row["chosen"] else "baseline" * (row["prompt_id"] == baseline),
        }
        for row in board
        if row["state"] == "complete" and row[unit] is not None
    ]
    return figures.lengths(rows, unit, scores) if rows else ""


def _unfinished(run: RunFolder) -> str:
    trials, repeats = run.history.trials, int(run.config.get("repeats", 1))
    if repeats > 1:
        ended = sum(RunFolder.read(path).ended for path in run.repeats)
        return (
            f"Not finished: {ended} of {repeats} searches have ended, each in a folder of its own under"
            f" {run.path / REPEATS}, of which a page can be made. Nothing is decided yet: that is done on the holdout,"
            " once, at the end. The same command goes on from here."
        )
    told = sum(t.state != "waiting" for t in trials)
    rounds, last = (
        int(run.config.get("iterations", 0)),
        max((t.iteration for t in trials), default=0),
    )
    return (
        f"Not finished: {told} of {len(trials)} prompts so far are scored, in round {last} of {rounds}. Nothing is"
        " decided yet: that is done on the holdout, at the end. The same command goes on from here."
    )


def _facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    """What is known of a run that is not finished."""
    yield "checkpoint", run.checkpoint
    yield "scores", NAMES[_objective(run)]
    states: list[str] = [t.state for t in run.history.trials]
    told = {
        "complete": "on all clips",
        "dropped": "dropped early",
        "failed": "failed",
        "waiting": "waiting",
    }
    yield "trials", ", ".join(f"{n} {text}" for s, text in told.items() if (n := states.count(s)))


def _winner(run: RunFolder, baseline: str) -> dict[str, Any] | None:
    """What a run hands over, or what leads so far, with its threshold and what is to be copied."""
    summary, trial = run.summary, run.history.best
    if summary is not None:
        trial = run.history.trials[int((run.history.selection or {})["chosen"])]
    if trial is None or trial.outcome is None:
        return None
    one = summary.chosen if summary else trial.outcome
    kept = summary is not None and summary.baseline_kept
    where = "on the holdout" if summary else "on the search half, which flatters it"
    first, *others = run.task.labels
    bias = trial.classifier.bias
    threshold = "none: the likeliest answer is taken"
    if isinstance(bias, tuple):
        threshold = f"{spell_bias(bias, run.task.labels)}, added before the likeliest is taken"
    elif bias:
        odds = (
            f"ln P({first}) - ln P({others[0]})"
            if len(others) == 1
            else f"of {first}, its log-odds"
        )
        threshold = (
            f"{bias:+.2f} nats on {first}: it is answered where {odds} is above {-bias:+.2f}"
        )
    return {
        "title": "Kept" if kept else "Chosen" if summary else "Leads so far",
        "where": where,
        "text": trial.prompt.text,
        "diff": _changes(baseline, trial.prompt.text, trial.prompt.given),
        "given": trial.prompt.given,
        "score": one.score,
        "low": one.low,
        "high": one.high,
        "threshold": threshold,
        "yaml": dump_classifiers([trial.classifier]),
    }


def _changes(baseline: str, text: str, given: str) -> list[Piece]:
    """A prompt's text as it differs from the baseline's, and how the clip is given."""
    pieces = word_changes(baseline, text) if baseline else [("same", text)]
    return [("new", shown_text("", given)), *pieces] if given else pieces


def _cells(summary: Summary) -> dict[str, Any] | None:
    """The table of wording and threshold, and its sentence."""
    if summary.two_by_two is None:
        return None
    sheet = two_by_two_sheet(summary.two_by_two)
    return {
        "title": sheet.title,
        "head": [column.name for column in sheet.columns],
        "rows": sheet.rows,
        "line": "; ".join(filter(None, (share_line(summary.two_by_two), verdict_line(summary)))),
    }


def _repeats(summary: Summary) -> dict[str, Any] | None:
    """The table of several searches, and its sentences; None of one search."""
    if summary.repeats is None:
        return None
    sheet = repeats_sheet(summary.repeats)
    lines = (spread_line(summary.repeats), wins_line(summary.repeats))
    return {
        "title": sheet.title,
        "head": [column.name for column in sheet.columns],
        "rows": sheet.rows,
        "line": "; ".join(lines),
    }


def _run_facts(summary: Summary, task: Task) -> Iterator[tuple[str, str]]:
    gain, evals, lm = summary.gain, summary.evals, summary.lm
    yield "checkpoint", summary.checkpoint
    yield "scores", NAMES[summary.objective]
    bounds = (
        "[too few sources for an interval]"
        if gain.low is None or gain.high is None
        else f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    )
    yield (
        "gain on the holdout",
        f"{100 * gain.estimate:+.1f} points {bounds} on {gain.clips} clips of {gain.sources} sources",
    )
    yield "trials", f"{summary.trials} in {summary.iterations} iterations"
    yield (
        "cost",
        f"{evals.requested:,} evals, {evals.cached:,} from the cache,"
        f" {evals.forward:,} new; {summary.seconds.total:.0f} s",
    )
    if summary.speed:
        yield "speed", summary.speed.line()
    if lm.calls:
        cost = "cost unknown" if lm.cost is None else f"US$ {lm.cost:.2f}"
        tokens = f"{lm.tokens_in:,} tokens in, {lm.tokens_out:,} out"
        yield "language model", f"{lm.calls} calls, {tokens}, {cost}"
    control = summary.controls.get(summary.chosen.prompt_id)
    if control:
        yield (
            "without the sound",
            f"balanced accuracy {100 * control['silence']:.1f} % with silence, {100 * control['shuffled']:.1f} %"
            f" with shuffled samples; chance is {task.chance}",
        )


def _matrix_page(folder: Path) -> dict[str, Any]:
    path = folder / "matrix.json"
    try:
        result = read_json(path)
        rows, settings = result["rows"], result["provenance"]["settings"]
        task = task_named(settings["task"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); make the matrix again") from None
    reference = next(r for r in rows if r["reference"])
    uses = result["test_openings"]
    sheet = matrix_sheet(result)
    notes: list[str] = []
    clips = clips_of(settings["manifest"], task, notes)
    return {
        "title": f"Matrix on {judged_on(result)}",
        "runs": [],
        "overview": [],
        "overview_lead": f"{len(rows)} configurations on {result['clips']:,} clips of {result['sources']}"
        f" sources; differences are to {result['reference']}.",
        "matrix": {
            "forest": figures.forest(
                [_forest_row(r) for r in rows], reference["balanced_accuracy"]["value"]
            ),
            "opened": f"The test split was opened {times(uses)} in this project." if uses else "",
            "head": [c.name for c in sheet.columns],
            "rows": sheet.rows,
            "prompts": _texts(rows, task.labels),
        },
        "where": f"the {judged_on(result)}" + (" split" if judged_on(result) in SPLITS else ""),
        **_by_clip(_drawn_of_matrix(folder, rows, task.labels), clips),
        "notes": [
            *notes,
            *(
                f"Ceiling of {one['model']}: {one['sentence']}."
                for one in result.get("ceilings", ())
            ),
            *dict.fromkeys(w for r in rows for w in r["warnings"]),
        ],
        "provenance": _flat(result["provenance"]),
    }


def _forest_row(row: dict[str, Any]) -> tuple[str, float, float, float]:
    e = row["balanced_accuracy"]
    name = f"{row['row']}  {row['model']}, {row['prompt']}".strip()[:60]
    return name, e["value"], _or(e["low"], e["value"]), _or(e["high"], e["value"])


def _drawn_of_matrix(
    folder: Path, rows: Sequence[dict[str, Any]], labels: Sequence[str]
) -> list[Drawn]:
    """The best row, those of the published matrix, then the others, as far as a picture holds them."""
    coded = [r for r in rows if r["row"]] or rows
    best = max(rows, key=lambda r: r["balanced_accuracy"]["value"])
    wanted = [best, *(r for r in [*coded, *rows] if r is not best)][:MAX_CURVES]
    out = []
    for r in rows:
        if not any(r is w for w in wanted):
            continue
        bins = [("as it is", r.get("reliability") or [])]
        if r.get("calibrated"):
            bins.append(("calibrated on dev", r["calibrated"]["reliability"]))
        name = f"{r['row'] + ': ' if r['row'] else ''}{r['model']}, {r['prompt']}"
        said = read_own(folder / r["predictions"], labels)
        out.append(Drawn(name, said, tuple(bins)))
    return sorted(out, key=lambda d: not d.name.endswith(f"{best['model']}, {best['prompt']}"))


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _rule(row: dict[str, Any], labels: Sequence[str]) -> str:
    """A prompt's threshold, and how the clip is given where that is not as it is."""
    bias, given = bias_from(row.get("bias") or 0.0), row.get("presentation")
    nats = spell_bias(bias, labels) if isinstance(bias, tuple) else f"{bias:+.2f} nats"
    return nats + (f"; the clip is given {given}" if given else "")


def _texts(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[tuple[str, str, str]]:
    """(name, text, threshold) of each prompt, once."""
    return list(
        {
            r["prompt"]: (r["prompt"], r["text"], _rule(r, labels)) for r in rows if "text" in r
        }.values()
    )


def clips_of(manifest: str, task: Task, notes: list[str]) -> dict[str, Clip]:
    """Clips by id, to be played; none, and a note, where the manifest cannot be read any more."""
    try:
        return {c.clip_id: c for c in read_all(resolve(Path(manifest)), task)}
    except UserError as error:
        notes.append(f"no clip can be played: {error}")
        return {}


def _calibrated(
    run: RunFolder, prompt_id: str, holdout: Predictions, notes: list[str]
) -> tuple[tuple[str, Bins], ...]:
    """Reliability on the holdout before and after a calibration on the search half, both with the trial's bias."""

    def bins(shares: NDArray[np.floating]) -> Bins:
        """Of ``[clip, label]`` probabilities."""
        right = shares.argmax(axis=-1) == holdout.targets.truth
        return [dataclasses.asdict(r) for r in calibration.reliability(shares.max(-1), right)]

    trial = next(t for t in run.history.trials if t.prompt.prompt_id == prompt_id)
    nats = decided_by(holdout, trial.classifier.bias)
    out = [("as it is", bins(np.exp(among_labels(nats))))]
    try:
        fitted = calibration_of(run, trial.classifier)
    except UserError as error:
        notes.append(str(error))
    else:
        if fitted is not None:
            out.append(("calibrated on dev", bins(fitted.distribution(nats))))
    return tuple(out)


def _by_clip(drawn: Sequence[Drawn], clips: dict[str, Clip]) -> dict[str, Any]:
    """Everything that is drawn from per-clip results."""
    fitted = {d.name: curves(d.said) for d in drawn}
    pictures = []
    for name in AXES:
        some = [(d.name, fitted[d.name][name]) for d in drawn if name in fitted[d.name]]
        if some:
            pictures.append((name, figures.psychometric(name, some)))
    best = drawn[0] if drawn else None
    if len(drawn) == 2 and drawn[0].name == "baseline":
        best = drawn[1]
    return {
        "drawn": bool(drawn),
        "heat": [(d.name, _heat(d.said)) for d in drawn],
        "curves": pictures,
        "thresholds": [
            (d.name, [(k, t["text"]) for k, t in thresholds(d.said).items()]) for d in drawn
        ],
        "crossings": [(d.name, [(k, t.text()) for k, t in crossed(d.said).items()]) for d in drawn],
        "definitions": DEFINITIONS,
        "reliability": [
            (d.name, figures.reliability(d.reliability)) for d in drawn if d.reliability
        ],
        "alarms": _alarms(drawn),
        "confusions": [
            (d.name, _confusion(d.said)) for d in drawn if len(d.said.targets.labels) > 2
        ],
        "players_of": best.name if best else "",
        "players": _players(best.said, clips) if best else [],
    }


def _heat(said: Predictions) -> dict[str, Any] | None:
    """Balanced accuracy by duration and SNR; None where the clips have not both."""
    slices, truth = said.targets.slices, said.targets.truth
    if not {"duration_ms", "snr_db"} <= set(slices):
        return None
    durations, snrs = (grouped(slices[n]) for n in ("duration_ms", "snr_db"))
    body = []
    for d in ordered(durations):
        line = []
        for s in ordered(snrs):
            inside = (durations == d) & (snrs == s)
            parts = [said.right[inside & (truth == k)] for k in np.unique(truth)]
            parts = [p for p in parts if len(p)]
            score = float(np.mean([p.mean() for p in parts])) if parts else None
            line.append({"score": score, "clips": int(inside.sum()), "whole": len(parts) > 1})
        body.append((d, line))
    return {"snrs": ordered(snrs), "rows": body} if body and body[0][1] else None


def _confusion(said: Predictions) -> dict[str, Any]:
    """Who was taken for whom: the whole table of a few labels, else the labels of the lowest recall."""
    found = by_label(said)
    whole = len(found) <= MOST_LABELS
    return {
        "labels": list(found) if whole else [],
        "rows": [
            (label, one["clips"], one["recall"], list(one["taken_for"].values()))
            for label, one in found.items()
            if whole and one["clips"]
        ],
        "sheet": None if whole else confusion_sheet(found, "chosen"),
    }


def _alarms(drawn: Sequence[Drawn]) -> dict[str, Any] | None:
    """False alarms by category of the clips that hold no speech."""
    names: dict[str, dict[str, Any]] = {}
    for d in drawn:
        levels = describe(d.said, resamples=200)["slices"].get("category", {})
        for level, part in levels.items():
            if part["false_alarm_rate"] is not None:
                names.setdefault(level, {})[d.name] = part
    return {"columns": [d.name for d in drawn], "rows": sorted(names.items())} if names else None


def _players(said: Predictions, clips: dict[str, Clip]) -> list[dict[str, Any]]:
    """The surest mistakes: misses and false alarms by how far off the probability was; of more labels all alike."""
    targets, probability, sure = said.targets, said.probability, said.sure
    assert probability is not None and sure is not None
    out = []
    if len(targets.labels) > 2:
        wrong = np.flatnonzero(~said.right)
        for i in wrong[np.argsort(-sure[wrong], kind="stable")][: 2 * WORST]:
            clip = clips.get(targets.clip_ids[i].rpartition("|")[2])
            taken = targets.labels[said.decided[i]]
            if clip is not None:
                kind = f"{targets.labels[targets.truth[i]]} taken for {taken}"
                out.append(_player(kind, clip, float(sure[i]), taken))
        return out
    for kind, index in (("missed", 0), ("false alarm", 1)):
        wrong = np.flatnonzero(~said.right & ((targets.truth == 0) == (index == 0)))
        worst = wrong[
            np.argsort(-np.abs(probability[wrong] - (targets.truth[wrong] == 0)), kind="stable")
        ]
        for i in worst[:WORST]:
            clip = clips.get(targets.clip_ids[i].rpartition("|")[2])
            if clip is not None:
                out.append(_player(kind, clip, float(probability[i]), targets.labels[0]))
    return out


def _player(kind: str, clip: Clip, probability: float, label: str) -> dict[str, Any]:
    try:
        wave = load(clip.path)
        sound = {"wav": figures.wav(wave), "image": figures.spectrogram(wave), "silent": ""}
    except UserError as error:
        sound = {"wav": "", "image": "", "silent": str(error)}
    snr = "no SNR" if clip.snr_db is None else f"{clip.snr_db:+.0f} dB"
    return {
        "kind": kind,
        "id": clip.clip_id,
        "sure": 100 * probability,
        "label": label,
        "about": f"{clip.category}, {clip.duration_ms:.0f} ms, {snr}, {clip.source_id}",
        **sound,
    }


def _mapping(path: Path) -> dict[str, Any]:
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: no names with values; restore the file, or remove it")
    return raw


def _flat(raw: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            key,
            json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value),
        )
        for key, value in raw.items()
    ]
