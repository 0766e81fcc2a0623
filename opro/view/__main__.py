"""One local page over all runs: python -m opro.view

Runs with their state as they go on, leaderboards, two prompts side by side with the clips whose verdict changed, what
the proposer was asked and said, steering of a run, a playground and blind listening. The page is served to this machine
alone and asks no other one for anything. It needs the extra: pip install 'opro-audio[view]'.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluators.errors import UserError
from opro.cli import DONE, flag, parse, run_verb

NEEDED = ("gradio", "krippendorff")


@dataclass(frozen=True)
class ViewSettings:
    """The page."""

    runs_dir: Path = flag(Path("runs"), "where run folders lie")
    port: int = flag(7860, "port on this machine, 127.0.0.1", min=1, max=65_535)
    checkpoint: str | None = flag(
        None, "a checkpoint for the playground, beside the shipped ones and those of the runs"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, _ = parse(ViewSettings, argv, __doc__ or "", config=False)
    if settings.port > 65535:
        raise UserError(f"--port is {settings.port}; expected 1 to 65535")
    if not settings.runs_dir.is_dir():
        raise UserError(
            f"--runs-dir {str(settings.runs_dir)!r} is no folder; make a run with: python -m"
            " opro.optimize --iterations 5"
        )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"opro.view needs the package {missing[0]}: pip install 'opro-audio[view]'")
    app = importlib.import_module("opro.view.app")  # Gradio takes seconds: --help does not wait
    app.serve(settings.runs_dir, settings.port, settings.checkpoint)
    return DONE


if __name__ == "__main__":
    sys.exit(run_verb(main))
