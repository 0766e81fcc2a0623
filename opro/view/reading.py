"""What the page reads of runs. Nothing is written, and a run that is under way is not disturbed."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.errors import UserError
from evaluators.plain_data import json_lines
from opro.results.run_folder import JOURNAL, SUMMARY, USAGE, RunFolder, find_runs, is_open
from opro.results.spending import Spent, read_spent
from opro.results.summary import Summary
from opro.search.history import Trial
from opro.settings import REPEATS

RUNNING, PAUSED, STOPPED, DONE = "running", "paused", "interrupted", "finished"


@dataclass(frozen=True)
class Seen:
    """A run as it stands.

    Attributes:
        open: Whether a process works on it.
        spent: New evals and seconds, of all its processes.
        calls: Of a language model, as journalled; newest last.
    """

    run: RunFolder
    summary: Summary | None
    open: bool
    spent: Spent
    calls: tuple[dict[str, Any], ...]

    @property
    def state(self) -> str:
        """In a word."""
        if self.summary is not None:
            return DONE
        if self.open:
            return RUNNING
        taken = self.run.history.steering.taken
        paused = any(number > self.round and one.kind == "pause" for number, one in taken)
        return PAUSED if paused else STOPPED

    @property
    def rounds(self) -> int:
        """Rounds of proposals that it has; those of all its searches once they are pooled."""
        searches = int(self.run.config.get("repeats", 1))
        return searches * int(self.run.config.get("iterations", 0))

    @property
    def round(self) -> int:
        """The last round that began."""
        return max(self.run.history.proposed, default=0)

    @property
    def told(self) -> int:
        """Prompts that have an outcome."""
        return sum(t.state != "waiting" for t in self.run.history.trials)

    @property
    def planned(self) -> int:
        """Prompts that it comes to, unless a budget ends it before."""
        done = sum(t.iteration <= self.round for t in self.run.history.trials)
        return done + (self.rounds - self.round) * int(self.run.config.get("candidates") or 0)

    @property
    def share(self) -> float:
        """How much of it is done, by prompts."""
        return 1.0 if self.summary else self.told / max(1, self.planned)

    @property
    def objective(self) -> str:
        """What its scores are."""
        return str(self.run.config.get("objective", "balanced_accuracy"))

    @property
    def best_seed(self) -> Trial | None:
        """The seed prompt that is best on the search half so far."""
        return next((t for t in self.run.history.scored if t.iteration == 0), None)

    @property
    def best(self) -> Trial | None:
        """What is handed over, or before that the trial that is best on the search half so far."""
        made = self.run.history.selection
        return self.run.history.trials[int(made["chosen"])] if made else self.run.history.best

    def trial(self, number: int) -> Trial:
        """A trial by its number. Raises UserError where there is none."""
        trials = self.run.history.trials
        if not 0 <= number < len(trials):
            raise UserError(f"run {self.run.name!r} has no prompt #{number}")
        return trials[number]


def names(runs_dir: Path) -> list[str]:
    """Names of all runs, newest first."""
    return [path.name for path in reversed(find_runs(runs_dir))]


def see(runs_dir: Path, name: str) -> Seen:
    """A run by its name; while ``--repeats`` searches several times, the search under way, which can be steered.

    Raises:
        UserError: There is none of that name, or its files are damaged.
    """
    folder = runs_dir / name
    # The name comes from a browser: it must lead nowhere else.
    if name in ("", "..") or Path(name).name != name or not (folder / JOURNAL).is_file():
        raise UserError(f"there is no run {name!r} under {str(runs_dir)!r}; choose one of the list")
    finished = (folder / SUMMARY).is_file()
    opened = not finished and is_open(folder)
    if not finished and (folder / REPEATS).is_dir():  # the search that is under way, or was last
        folder = (RunFolder.read(folder).repeats or [folder])[-1]
    return _read(folder, _stamp(folder), opened)


def _stamp(folder: Path) -> tuple[tuple[int, int], ...]:
    """When a run's journals last changed."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".jsonl", ".json", ".yaml"):
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size))
    return tuple(found)


@functools.lru_cache(maxsize=512)  # runs, as they last stood
def _read(folder: Path, stamp: object, is_open: bool) -> Seen:
    run = RunFolder.read(folder)
    paths = [run.usage, *(one / USAGE for one in run.repeats)]
    spent = sum((read_spent(path, repair=False) for path in paths), Spent())
    return Seen(run, run.summary, is_open, spent, tuple(_calls(run.proposals)))


def _calls(path: Path) -> list[dict[str, Any]]:
    """Lines of the journal of proposals; a last one that is being written is left out."""
    return [entry for _, entry in json_lines(path, "restore the file")]
