"""What a run has spent, over all processes that worked on it: new evals, and seconds."""

import contextlib
import json
import operator
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path

from evaluators.clips import Clip
from evaluators.errors import PauseError, UserError
from evaluators.evaluator import Around, Evaluator, ScoreTable
from evaluators.files import append_line, cut_torn_line
from evaluators.plain_data import inert, json_lines
from evaluators.prompts import Prompt
from opro.search.loop import Clock

MEND = "restore the file, or delete it: what was spent before is then not counted"


@dataclass(frozen=True)
class Spent:
    """Evals that no cache had, wall time, and the part of it that went into scoring and proposing, in seconds."""

    forward: int = 0
    total: float = 0.0
    scoring: float = 0.0
    proposing: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(*map(operator.sub, astuple(self), astuple(other)))


def read_spent(path: Path, *, repair: bool = True) -> Spent:
    """The sum of a journal's lines; nothing for a run of version 0.1, which kept none. A torn last line is left out.

    Args:
        repair: Remove such a line from the file: only for the process that holds the run's lock.
    Raises:
        UserError: A line is damaged.
    """
    out = Spent()
    if not path.exists():
        return out
    if repair:
        cut_torn_line(path)
    for where, raw in json_lines(path, MEND):
        try:
            out += Spent(**raw)
        except (ValueError, TypeError) as error:
            reason = inert(str(error), lines=False)
            raise UserError(f"{where}: damaged line ({reason}); {MEND}") from None
    return out


@dataclass
class Spending:
    """What this process spends, journalled as it goes, on top of what earlier ones spent.

    Attributes:
        path: The journal, one line a note.
        evaluator: Whose evals count, all of which were made for this run.
        clock: Of the search.
        earlier: Of the processes before.
        before: New evals that this process made for other runs.
    """

    path: Path
    evaluator: Evaluator
    clock: Clock
    earlier: Spent
    begin: float = field(default_factory=time.perf_counter)
    before: int = 0
    _noted: Spent = Spent()

    @property
    def so_far(self) -> Spent:
        """Of this process."""
        seconds = time.perf_counter() - self.begin
        forward = self.evaluator.usage.forward - self.before
        return Spent(forward, seconds, **self.clock.so_far)

    def note(self) -> None:
        """Journals what was spent since the last note."""
        now = self.so_far
        line = {name: round(value, 6) for name, value in asdict(now - self._noted).items()}
        append_line(self.path, json.dumps(line) + "\n")
        self._noted = now

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Notes when the block ends, however it ends."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(PauseError):  # the first error is the one to be told
                self.note()
            raise
        self.note()

    @property
    def total(self) -> Spent:
        """Of all processes, up to the last note."""
        return self.earlier + self._noted


class MeteredEvaluator(Around):
    """An Evaluator that notes what was spent after every call, so that a killed process loses none of it."""

    def __init__(self, inner: Evaluator, spending: Spending) -> None:
        super().__init__(inner)
        self.spending = spending

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`."""
        with self.spending.noted():
            return self.inner.score(prompts, clips)
