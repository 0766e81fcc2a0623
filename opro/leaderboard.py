"""Ranks prompts over one or many runs: python -m opro.leaderboard runs/speech-pocket-base-race-s0-1a2b3c

Scores are the objective that was searched for, on the search half of dev, with 95 % intervals over sources. The best of
many is flattered by having been picked, which is why a run decides on its holdout. Prompts that a race dropped early
were scored on fewer clips: their score is a forecast, marked with *, and they are listed after the others. Runs of
different data sets or objectives are shown in a table each: their scores cannot be ranked together.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.errors import UserError
from evaluators.files import json_text
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.results.leaderboard import (
    Row,
    leaderboard_csv,
    leaderboard_rows,
    leaderboard_sheet,
    spread_lines,
)
from opro.results.run_folder import RunFolder, find_runs
from opro.results.sheet import render

MAX_ROWS = 100  # of a table on a terminal


@dataclass(frozen=True)
class LeaderboardSettings:
    """The leaderboard."""

    format: Literal["table", "csv", "markdown", "json"] = flag("table", "how to print it")
    sort: Literal["score", "fresh_score", "length", "run"] = flag("score", "order")
    runs_dir: Path = flag(Path("runs"), "where run folders lie, if none are named")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        LeaderboardSettings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument(
            "runs", nargs="*", type=Path, metavar="RUN", help="run folders (default: all)"
        ),
        config=False,
    )
    folders = space.runs or find_runs(settings.runs_dir)
    if not folders:
        raise UserError(
            f"no run under {str(settings.runs_dir)!r}; make one with: python -m opro.optimize"
            " --iterations 5"
        )
    boards: dict[tuple[str, str], list[Row]] = {}
    for path in folders:
        try:
            run = RunFolder.read(path)
            boards.setdefault(_about(run), []).extend(leaderboard_rows(run))
        except UserError as error:
            if space.runs:
                raise
            print(f"left out: {error}", file=sys.stderr)
    boards = {about: _sorted(rows, settings.sort) for about, rows in boards.items()}
    everything = [row for rows in boards.values() for row in rows]
    hand_over(everything)
    if settings.format == "json":
        print(json_text(everything), end="")
    elif settings.format == "csv":
        print(leaderboard_csv(everything), end="")
    else:
        most = MAX_ROWS if settings.format == "table" else len(everything)
        sheets = [leaderboard_sheet(rows[:most], *about) for about, rows in boards.items()]
        titled = settings.format == "markdown" and len(boards) > 1
        print(
            "\n\n".join(
                (f"**{s.title}**\n\n" if titled else "") + render(s, settings.format)
                for s in sheets
            )
        )
        for line in spread_lines(everything):
            print(line)
        hidden = sum(max(0, len(rows) - most) for rows in boards.values())
        if hidden:
            print(f"and {hidden:,} more; --format csv, markdown or json shows all")
    return DONE


def _about(run: RunFolder) -> tuple[str, str]:
    """(data set, objective) of a run's scores: runs that differ in them are never ranked together."""
    config = run.config
    digest = str((run.history.header or {}).get("data", ""))[:8]
    manifest = f"{config['manifest']} [{digest}]" if digest else str(config["manifest"])
    about = f" of {run.task.name} on {manifest}, {config.get('split', 'dev')}"
    if config.get("clips", "all") != "all":
        about += f", {config['clips']} clips"
    return f"{about},", str(config.get("objective", "balanced_accuracy"))


def _sorted(rows: list[Row], by: str) -> list[Row]:
    if by == "run":
        return rows
    if by == "length":
        return sorted(rows, key=lambda r: r["length"])

    def key(row: Row) -> tuple[bool, Any]:
        return row["state"] == "complete", row[by] if row[by] is not None else -math.inf

    return sorted(rows, key=key, reverse=True)


if __name__ == "__main__":
    sys.exit(run_verb(main))
