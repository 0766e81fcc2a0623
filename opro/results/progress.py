"""Progress on stderr: a live line in a terminal, one line a trial elsewhere."""

from evaluators.evaluator import Evaluator
from opro.search.history import Trial


class Progress:
    """Best so far, evals done, share from the cache, time left.

    Args:
        total: Pairs that may be scored at most.
        evaluator: The one that scores, for its usage.
        iterations: For the title.
    """

    def __init__(self, total: int, evaluator: Evaluator, iterations: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console(stderr=True, highlight=False)
        self._evaluator = evaluator
        self._iterations = iterations
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(None),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} evals"),
            TextColumn("{task.fields[cached]} cached"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("best {task.fields[best]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=total, cached="-", best="-")

    def __enter__(self) -> "Progress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def iteration(self, number: int, stage: str) -> None:
        """See `Display`."""
        name = (
            stage
            if number in (0, self._iterations + 1)
            else f"iteration {number}/{self._iterations} {stage}"
        )
        self._progress.update(self._task, description=name)

    def advance(self, scored: int, skipped: int) -> None:
        """See `Display`."""
        task = self._progress.tasks[0]
        usage = self._evaluator.usage
        share = usage.cached / usage.requested if usage.requested else 0.0
        self._progress.update(
            self._task,
            advance=scored,
            total=max(0.0, (task.total or 0) - skipped),
            cached=f"{100 * share:.0f} %",
        )

    def told(self, trial: Trial, best: Trial | None) -> None:
        """See `Display`."""
        if best is not None and best.reward is not None:
            self._progress.update(self._task, best=f"{100 * best.reward:.1f} (#{best.number})")
        if self._console.is_terminal and best is not trial:
            return
        reward = (
            "failed"
            if trial.reward is None
            else f"{100 * trial.reward:.1f}{' *' if trial.state == 'dropped' else ''}"
        )
        usage = self._evaluator.usage
        share = usage.cached / usage.requested if usage.requested else 0.0
        shown = "-" if best is None else f"{100 * (best.reward or 0):.1f} (#{best.number})"
        self._console.print(
            f"trial {trial.number:3d}  reward {reward:7}  best {shown}  {trial.clips} clips "
            f" {100 * share:.0f} % cached",
            markup=False,
        )
