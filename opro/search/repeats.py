"""Several searches that differ in their seed alone, pooled into one history that decides as any other does."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from opro.search.history import History, Trial

STATES = ("waiting", "failed", "dropped", "complete")  # the later, the more is known


@dataclass(frozen=True)
class Pooled:
    """A prompt of several searches, once: as the one of them knows it that scored it on most clips.

    Attributes:
        search: Which one that is, counted from 0.
        iteration: In the pooled history: 0 for seed prompts, then the rounds of the first search, of the second, ...
    """

    search: int
    iteration: int
    trial: Trial


def pool(searches: Sequence[Sequence[Trial]], rounds: int) -> list[Pooled]:
    """All prompts of several searches, each once, in the order in which they came.

    Args:
        searches: The trials of each.
        rounds: Of proposals, in each.
    """
    first: dict[str, int] = {}
    known: dict[str, tuple[int, Trial]] = {}
    for number, trials in enumerate(searches):
        for trial in trials:
            name = trial.prompt.prompt_id
            later = trial.iteration and number * rounds + trial.iteration
            first.setdefault(name, later)
            if name not in known or _knows(trial) > _knows(known[name][1]):
                known[name] = number, trial
    return [Pooled(number, first[name], trial) for name, (number, trial) in known.items()]


def _knows(trial: Trial) -> tuple[int, int]:
    return STATES.index(trial.state), trial.n_scored


def wins_of(searches: Iterable[Sequence[Trial]]) -> dict[str, int]:
    """By prompt id, in how many searches it was best on the search half, most first."""
    return dict(Counter(best_of(t).prompt.prompt_id for t in searches).most_common())


def journal_pool(history: History, pooled: Iterable[Pooled]) -> None:
    """Journals pooled trials as those of one run, from wherever a process that was killed left it."""
    for iteration, group in itertools.groupby(pooled, key=lambda one: one.iteration):
        trials = [one.trial for one in group]
        if iteration not in history.proposed:
            history.add(iteration, [t.candidate for t in trials])
        for mine, trial in zip(history.of(iteration), trials, strict=True):
            if mine.state == "waiting" and trial.state != "waiting":
                history.tell(replace(trial, number=mine.number, iteration=iteration))


def best_of(trials: Iterable[Trial]) -> Trial:
    """What a search would hand over by its search half alone: its best trial there, the baseline if none is above it.

    Args:
        trials: At least one is complete.
    """
    return max((t for t in trials if t.state == "complete"), key=lambda t: t.rank)
