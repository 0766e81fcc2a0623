"""Ranks prompts over one or many runs: python -m opro.leaderboard runs/speech-pocket-base-race-s0-1a2b3c

Scores are balanced accuracy on the search half of dev with 95 % intervals over sources; the best of many is
flattered by having been picked, which is why a run chooses on fresh clips. Prompts that a race dropped early
were scored on fewer clips: their score is a forecast, marked with *, and they are listed after the others.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluators.errors import UserError
from opro.cli import DONE, flag, parse, run_verb

SHOWN = 100  # rows of a table on a terminal


@dataclass(frozen=True)
class Settings:
    """Settings of the leaderboard."""

    format: Literal["table", "csv", "markdown", "json"] = flag("table", "how to print it")
    sort: Literal["score", "fresh_score", "length", "run"] = flag("score", "order")
    runs_dir: Path = flag(Path("runs"), "where run folders lie, if none are named")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        Settings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument(
            "runs", nargs="*", type=Path, metavar="RUN", help="run folders (default: all)"
        ),
        config=False,
    )
    from evaluators.files import csv_text
    from opro.results import run_folder
    from opro.results.table import COLUMNS, markdown, print_table, rows_of, wide_console

    folders = space.runs or run_folder.find_runs(settings.runs_dir)
    if not folders:
        raise UserError(
            f"no run under {str(settings.runs_dir)!r}; make one with: python -m opro.optimize"
            " --iterations 5"
        )
    rows = []
    for folder in folders:
        try:
            rows += rows_of(folder)
        except UserError as error:
            if space.runs:
                raise
            print(f"left out: {error}", file=sys.stderr)
    if settings.sort == "run":
        pass
    elif settings.sort == "length":
        rows.sort(key=lambda r: r["length"])
    else:
        rows.sort(
            key=lambda r: (
                r["state"] == "complete",
                r[settings.sort] if r[settings.sort] is not None else -1.0,
            ),
            reverse=True,
        )
    if settings.format == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif settings.format == "csv":
        print(csv_text(rows, COLUMNS), end="")
    elif settings.format == "markdown":
        print(markdown(rows))
    else:
        print_table(rows[:SHOWN], wide_console())
        if len(rows) > SHOWN:
            print(f"and {len(rows) - SHOWN:,} more; --format csv, markdown or json shows all")
    return DONE


if __name__ == "__main__":
    sys.exit(run_verb(main))
