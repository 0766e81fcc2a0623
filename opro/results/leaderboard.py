"""Rows of a leaderboard, from journals alone, and the sheet that shows them."""

from collections.abc import Sequence
from typing import Any

from evaluators.files import csv_text
from evaluators.prompts import shown_text
from opro.results.run_folder import RunFolder
from opro.results.sheet import Column, Sheet
from opro.results.summary import Repeats, Summary
from opro.search.lengths import TOKENS, WORDS, words
from opro.search.objective import NAMES

COLUMNS = (
    "run",
    "checkpoint",
    "prompt_id",
    "score",
    "low",
    "high",
    "clips",
    "state",
    "fresh_score",
    "chosen",
    "origin",
    "length",
    "tokens",
    "words",
    "text",
    "slices",
)
Row = dict[str, Any]


def leaderboard_rows(run: RunFolder, summary: Summary | None = None) -> list[Row]:
    """Rows of one run, best first. Reads the journal only: no model, no clips.

    `score`, `low` and `high` are the objective on `clips` search clips; `fresh_score` that on the holdout, for
    finalists and the baseline of a finished run, else None; `state` is complete, dropped or failed. `unlisted`,
    where there are any, is the share of the answers that a server did not list: their scores are upper bounds;
    `presentation`, likewise, says in words how the clip is given. `length` counts characters, `tokens` those of system
    message and text by the checkpoint's own tokenizer, None where it was not at hand; `words` always. Of a run of
    several searches `repeats` is their number, `won` those in which the prompt was best on the search half, and
    `spread` the standard deviation of these best scores.
    """
    summary = summary or run.summary
    holdout: dict[str, float] = {}
    if summary is not None:
        holdout = {s.prompt_id: s.score for s in (summary.baseline, *summary.finalists)}
    chosen = summary.chosen.prompt_id if summary is not None else None
    repeats = summary.repeats if summary is not None else None
    told = [t for t in run.history.trials if t.state != "waiting"]
    told.sort(key=lambda t: (t.state == "complete", t.state == "dropped", t.rank), reverse=True)
    rows = []
    for t in told:
        one = t.outcome
        rows.append(
            {
                "run": run.name,
                "checkpoint": run.checkpoint,
                "prompt_id": t.prompt.prompt_id,
                "text": t.prompt.text,
                "score": one.score if one else None,
                "low": one.low if one else None,
                "high": one.high if one else None,
                "clips": one.n_scored if one else 0,
                "origin": t.candidate.origin,
                "state": t.state,
                "fresh_score": holdout.get(t.prompt.prompt_id),
                "chosen": t.prompt.prompt_id == chosen,
                "length": len(t.prompt.text),
                "tokens": one.tokens if one else None,
                "words": words(t.prompt),
                "slices": {name: value[0] for name, value in one.slices.items()} if one else {},
                **({"presentation": t.prompt.given} if t.prompt.given else {}),
                **({"unlisted": one.unlisted} if one and one.unlisted else {}),
                **(_of_repeats(repeats, t.prompt.prompt_id) if repeats else {}),
            }
        )
    return rows


def _of_repeats(repeats: Repeats, prompt_id: str) -> Row:
    count, won = len(repeats.each), repeats.wins.get(prompt_id, 0)
    return {"repeats": count, "won": won, "spread": repeats.search.sd}


def spread_lines(rows: Sequence[Row]) -> list[str]:
    """A sentence for each run of several searches: how many, and how far apart their best prompts are."""
    found = {
        row[
            "run"
        ]: f"{row['run']}: {row['repeats']} searches by seed, whose best prompts differ by sd"
        f" {100 * row['spread']:.1f} points on the search half"
        for row in rows
        if "repeats" in row
    }
    return list(found.values())


def length_unit(rows: Sequence[Row]) -> str:
    """What the lengths of these rows are told in: ``tokens``, or ``words`` where none has any."""
    return WORDS if all(row.get("tokens") is None for row in rows) else TOKENS


def leaderboard_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV."""
    given = ["presentation"] if any(row.get("presentation") for row in rows) else []
    repeated = ["repeats", "won", "spread"] if _repeated(rows) else []
    return csv_text(rows, (*COLUMNS, *given, *_marks(rows), *repeated))


def _repeated(rows: Sequence[Row]) -> bool:
    return any("repeats" in row for row in rows)


def _marks(rows: Sequence[Row]) -> list[str]:
    """The column for answers that a server did not list, where there are any."""
    return ["unlisted"] if any(row.get("unlisted") for row in rows) else []


def leaderboard_sheet(
    rows: Sequence[Row], about: str = "", objective: str = "balanced_accuracy"
) -> Sheet:
    """The rows as people read them, one line a prompt.

    Args:
        about: What is ranked: data set.
        objective: What the scores are.
    """
    runs = {row["run"] for row in rows}
    several, unit = len(runs) > 1, length_unit(rows)
    title = "" if several else "".join(f"run {run}: " for run in runs)
    title += (
        f"{NAMES.get(objective, objective)}{about} on the search half; * dropped early, a forecast from"
        " fewer clips"
    )
    columns = [
        *([Column("run", 6, text=True), Column("checkpoint", 7, text=True)] if several else []),
        Column("score"),
        Column("95 %", 5),
        Column("clips", 2),
        Column("holdout"),
        Column(unit, 4),
        *(Column(name, 8) for name in _marks(rows)),
        *([Column("won", 6)] if _repeated(rows) else []),
        Column("origin", 1, text=True),
        Column("prompt", text=True),
    ]
    body = []
    for row in rows:
        mark = {"dropped": "*", "failed": "!"}.get(row["state"], " ")
        interval = "" if row["low"] is None else f"{100 * row['low']:.0f}-{100 * row['high']:.0f}"
        body.append(
            [
                *([row["run"], row["checkpoint"]] if several else []),
                _percent(row["score"]) + mark,
                interval,
                str(row["clips"]),
                _percent(row["fresh_score"]),
                "" if row.get(unit) is None else str(row[unit]),
                *(f"{100 * row.get(name, 0.0):.0f} %" for name in _marks(rows)),
                *([_won(row)] if _repeated(rows) else []),
                row["origin"],
                ("-> " if row["chosen"] else "")
                + shown_text(row["text"], row.get("presentation", "")),
            ]
        )
    return Sheet(title, columns, body)


def _won(row: Row) -> str:
    return f"{row['won']} of {row['repeats']}" if "repeats" in row else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
