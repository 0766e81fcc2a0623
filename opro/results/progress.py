"""Progress on stderr: a live line in a terminal, one line a trial elsewhere."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from opro.problem import Problem
from opro.search.budget import most_evals, orders, planned_pairs
from opro.search.history import Trial
from opro.search.loop import Display
from opro.settings import OptimizeSettings


class TimeLeft(ProgressColumn):
    """Time left at the mean rate since the first scores came, so that loading the model does not count."""

    def render(self, task: Task) -> Text:
        """The time left in words, once there is a rate."""
        begin = task.fields["first_scored"]
        done = task.completed - task.fields["skipped_by_then"]
        if begin is None or task.elapsed is None or done <= 0 or not task.total:
            return Text("-")
        rate = done / max(1e-3, task.elapsed - begin)
        return Text(spelled((task.total - task.completed) / rate))


def spelled(seconds: float) -> str:
    """A duration in words.

    >>> spelled(40), spelled(300), spelled(9000)
    ('40 s', '5 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Best so far, evals done, share from the cache, time left. A `opro.search.loop.Display`.

    Args:
        problem, settings: What is searched. The total is what may be asked for at most, and falls with what is skipped.
    """

    def __init__(self, problem: Problem, settings: OptimizeSettings) -> None:
        self._console = Console(stderr=True, highlight=False, force_jupyter=False)
        self._evaluator = problem.evaluator
        self._iterations = settings.iterations
        self._orders = orders(problem, settings)
        self._most = most_evals(problem, settings)
        self._planned = planned_pairs(problem, settings) * self._orders
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} evals"),
            TextColumn("{task.fields[cached]} cached"),
            TimeElapsedColumn(),
            TimeLeft(),
            TextColumn("left"),
            TextColumn("best {task.fields[best]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            "starting", total=self._most, cached="-", best="-", first_scored=None, skipped_by_then=0
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def stage(self, iteration: int, name: str) -> None:
        """See `Display`."""
        alone = iteration in (0, self._iterations + 1)
        text = name if alone else f"iteration {iteration}/{self._iterations} {name}"
        self._bar.update(self._task, description=text)

    def advance(self, scored: int, skipped: int) -> None:
        """See `Display`."""
        task = self._bar.tasks[0]
        self._planned -= skipped * self._orders
        if scored and task.fields["first_scored"] is None:  # the first block came with loading
            self._bar.update(
                self._task, first_scored=task.elapsed, skipped_by_then=scored * self._orders
            )
        self._bar.update(
            self._task,
            advance=scored * self._orders,
            total=min(self._planned, self._most),
            cached=self._cached,
        )

    def told(self, trial: Trial, best: Trial | None) -> None:
        """See `Display`."""
        shown = "-" if best is None else f"{100 * best.reward:.1f} (#{best.number})"
        self._bar.update(self._task, best=shown)
        new_best = best is not None and best.number == trial.number  # the history's is a copy
        if self._console.is_terminal and not new_best:
            return
        reward = (
            f"{100 * trial.reward:.1f}{' *' if trial.state == 'dropped' else ''}"
            if trial.scored
            else "failed"
        )
        clips = trial.outcome.n_scored if trial.outcome else 0
        self._console.print(
            f"trial {trial.number:3d}  reward {reward:7}  best {shown}  {clips} clips "
            f" {self._cached} cached",
            markup=False,
        )

    @property
    def _cached(self) -> str:
        usage = self._evaluator.usage
        return f"{100 * usage.cached / usage.requested:.0f} %" if usage.requested else "-"


@dataclass(frozen=True)
class Displays:
    """Several displays as one. A `opro.search.loop.Display`."""

    each: Sequence[Display]

    def stage(self, iteration: int, name: str) -> None:
        """See `Display`."""
        for one in self.each:
            one.stage(iteration, name)

    def advance(self, scored: int, skipped: int) -> None:
        """See `Display`."""
        for one in self.each:
            one.advance(scored, skipped)

    def told(self, trial: Trial, best: Trial | None) -> None:
        """See `Display`."""
        for one in self.each:
            one.told(trial, best)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A live line that counts to `total` in a terminal, and is silent elsewhere. Yields a function of the step."""
    console = Console(stderr=True, highlight=False, force_jupyter=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
