"""One self-contained page of a run, of several runs, or of a matrix: python -m opro.report runs/NAME

The winner with its threshold, to be copied; score history, all trials with their changes to the baseline, accuracy by
duration and SNR, psychometric curves, reliability before and after calibration, false alarms by category, cost,
provenance, and players with spectrograms for the clips that were decided worst. No network is needed to read it. Of a
run, everything but history and trials is measured on the holdout of dev, which the search never saw. A run that is not
finished has what there is; several runs stand beside each other, without what is drawn by clip.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.errors import UserError
from evaluators.files import check_file, check_folder, write_text
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.results.inspect_export import write_logs
from opro.results.page import page_of


@dataclass(frozen=True)
class ReportSettings:
    """The report."""

    out: Path | None = flag(
        None,
        "file to write (default: report.html in the folder; of several runs, beside the first one)",
    )
    inspect: Path | None = flag(
        None,
        "folder for logs of inspect_ai, too: one a prompt, with each clip's sound, answer and probabilities;"
        " inspect view --log-dir FOLDER shows them, opro.stats compares them",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        ReportSettings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument(
            "folders",
            nargs="+",
            type=Path,
            metavar="FOLDER",
            help="folder of a run, finished or not, of several runs, or of a matrix",
        ),
        config=False,
    )
    folders: list[Path] = space.folders
    several = len(folders) > 1
    out = settings.out or (folders[0].parent if several else folders[0]) / "report.html"
    if several and settings.inspect is not None:
        raise UserError(
            f"--inspect takes the logs of one folder, and {len(folders)} were given; give it once for each"
        )
    if folders[0].is_dir():  # what is no run is told as such
        check_file(out, "--out")
    if settings.inspect is not None:
        check_folder(settings.inspect, "--inspect")
    text = page_of(*folders)
    logs = None if settings.inspect is None else write_logs(folders[0], settings.inspect)
    write_text(out, text)
    size = len(text.encode())
    print(f"written to {out} ({size / 2**20:.1f} MB)")
    paths: dict[str, Any] = {"report": str(out)}
    if logs is not None:
        files, notes = logs
        paths["logs"] = [str(path) for path in files]
        print(f"{len(files)} logs in {settings.inspect}; inspect view --log-dir {settings.inspect}")
        print("".join(f"note: {note}\n" for note in notes), end="")
    hand_over({"bytes": size, "paths": paths})
    return DONE


if __name__ == "__main__":
    sys.exit(run_verb(main))
