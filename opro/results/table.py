"""The rows of a leaderboard, from journals alone, and how they are shown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

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
    "text",
    "slices",
)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """summary.json of a run that has ended, else None.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / "summary.json"
    if not path.is_file():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"status", "baseline", "chosen", "finalists", "controls", "reason"} <= set(summary):
            raise ValueError("keys are missing")
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); delete it and give the run's command again"
        ) from None
    return summary if summary["status"] == "complete" else None


def rows_of(folder: Path, summary: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Rows of one run, best first. Reads the journal only: no model, no clips.

    `score`, `low` and `high` are balanced accuracy on `clips` search clips; `fresh_score` that on the fresh half,
    for finalists and the baseline of a finished run, else None; `state` is complete, dropped or failed.
    """
    from evaluators.files import read_yaml
    from evaluators.prompts import TASKS
    from opro.search.history import History

    if not (folder / "trials.jsonl").is_file():
        raise UserError(f"{str(folder)!r} is no run folder: it holds no trials.jsonl")
    config = read_yaml(folder / "config.yaml")
    if (
        not isinstance(config, dict)
        or config.get("task") not in TASKS
        or "checkpoint" not in config
    ):
        raise UserError(f"{folder / 'config.yaml'}: no settings of a run; restore the file")
    history = History(folder / "trials.jsonl", TASKS[config["task"]].labels)
    fresh: dict[str, float] = {}
    summary = summary or read_summary(folder)
    if summary is not None:
        fresh = {
            about["prompt_id"]: about["score"]
            for about in [summary["baseline"], *summary["finalists"]]
        }
    chosen = (history.selection or {}).get("chosen")
    told = [t for t in history.trials if t.state in ("complete", "dropped", "failed")]
    told.sort(key=lambda t: (t.state == "complete", t.state == "dropped", t.rank), reverse=True)
    return [
        {
            "run": folder.name,
            "checkpoint": checkpoints_of(config),
            "prompt_id": t.candidate.prompt.prompt_id,
            "text": t.candidate.prompt.text,
            "score": t.score,
            "low": t.low,
            "high": t.high,
            "clips": t.clips,
            "origin": t.candidate.origin,
            "state": t.state,
            "fresh_score": fresh.get(t.candidate.prompt.prompt_id),
            "chosen": t.number == chosen,
            "length": len(t.candidate.prompt.text),
            "slices": {name: value[0] for name, value in t.slices.items()},
        }
        for t in told
    ]


def checkpoints_of(config: Mapping[str, Any]) -> str:
    """The checkpoint a run searched on, or all that its prompt is to serve."""
    also = config.get("also")
    return str(config["checkpoint"]) + (f", {also}" if also else "")


def wide_console() -> "Console":
    """Standard output; where it is no terminal, wide enough for whole lines."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def print_table(rows: Sequence[dict[str, Any]], console: "Console") -> None:
    """The rows as a terminal table, one line a prompt."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="balanced accuracy on the search half of dev; * dropped early, a forecast from fewer clips",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name, justify in (
        ("score", "right"),
        ("95 %", "left"),
        ("clips", "right"),
        ("fresh", "right"),
        ("origin", "left"),
        ("prompt", "left"),
    ):
        table.add_column(
            name,
            justify=justify,
            no_wrap=name != "prompt",
            overflow="ellipsis",
            max_width=22 if name == "origin" else None,
        )  # type: ignore[arg-type]
    several = len({row["run"] for row in rows}) > 1
    for row in rows:
        mark = "*" if row["state"] == "dropped" else "!" if row["state"] == "failed" else " "
        interval = "" if row["low"] is None else f"{100 * row['low']:.0f}-{100 * row['high']:.0f}"
        text = (
            ("-> " if row["chosen"] else "")
            + (f"[{row['checkpoint']}] " if several else "")
            + " / ".join(row["text"].split("\n"))
        )
        table.add_row(
            _percent(row["score"]) + mark,
            interval,
            str(row["clips"]),
            _percent(row["fresh_score"]),
            row["origin"],
            Text(text, no_wrap=True, overflow="ellipsis"),
        )
    console.print(table)


def percent(value: dict[str, Any] | None, signed: bool = False) -> str:
    """As in ``88.1 [86.8, 89.3]``."""
    if value is None:
        return ""
    sign = "+" if signed else ""
    low, high = (
        "?" if value[k] is None else f"{100 * value[k]:{sign}.1f}" for k in ("low", "high")
    )
    return f"{100 * value['value']:{sign}.1f} [{low}, {high}]"


def decimal(value: dict[str, Any] | None) -> str:
    """As in ``0.934 [0.910, 0.951]``."""
    if value is None:
        return ""
    low, high = ("?" if value[k] is None else f"{value[k]:.3f}" for k in ("low", "high"))
    return f"{value['value']:.3f} [{low}, {high}]"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; text in cells is escaped, so that a prompt cannot leave its cell."""

    def cell(text: str) -> str:
        text = text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")
        return text.replace("<", "&lt;").replace("\n", "<br>")

    lines = [head, ["---"] * len(head), *([cell(v) for v in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    head = ["run", "checkpoint", "score", "95 %", "clips", "fresh", "origin", "prompt"]
    body = []
    for row in rows:
        mark = "*" if row["state"] == "dropped" else ""
        interval = (
            "" if row["low"] is None else f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        )
        body.append(
            [
                row["run"],
                row["checkpoint"],
                _percent(row["score"]) + mark,
                interval,
                str(row["clips"]),
                _percent(row["fresh_score"]),
                row["origin"],
                row["text"],
            ]
        )
    return markdown_table(head, body)
