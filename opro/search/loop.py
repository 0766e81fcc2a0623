"""The loop: propose, journal, race on the search half, tell; then select on fresh clips. All state is the history."""

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import Clip
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt, Task
from evaluators.statistics import metrics
from opro.proposers.lm_proposer import Proposer
from opro.search.history import Candidate, History, Trial
from opro.search.objective import Reward, slices
from opro.search.race import FIRST, Result, race
from opro.search.select import Selection, most_finalists, select

log = logging.getLogger(__name__)

REFERENCES = 24  # complete trials that forecasts are made from
COMPLETE = 8  # what a search can at least afford to score on all its clips
FEWEST_CLIPS = 64  # that a half is cut down to


class Display(Protocol):
    """What a person sees while the loop works."""

    def iteration(self, number: int, stage: str) -> None:
        """An iteration begins, or selection."""

    def advance(self, scored: int, skipped: int) -> None:
        """Pairs were scored, and pairs will never be asked for."""

    def told(self, trial: Trial, best: Trial | None) -> None:
        """A trial has its outcome."""


@dataclass
class Clock:
    """Seconds spent scoring and proposing."""

    scoring: float = 0.0
    proposing: float = 0.0


@dataclass(frozen=True)
class Search:
    """Everything a search needs. `search` and `fresh` are the halves of dev, in balanced order.

    `max_evals` limits the evals of search and selection (the controls beside the chosen prompt come on top).
    """

    evaluator: Evaluator
    proposer: Proposer
    task: Task
    seeds: Sequence[Prompt]
    search: Sequence[Clip]
    fresh: Sequence[Clip]
    reward: Reward
    iterations: int
    candidates: int
    strategy: str
    seed: int
    max_evals: int | None = None

    @functools.cached_property
    def truth(self) -> NDArray[np.int64]:
        """Index of the label of each search clip."""
        return np.array([self.task.labels.index(clip.label) for clip in self.search])

    @functools.cached_property
    def clusters(self) -> metrics.Clusters:
        """The search clips by source, for intervals."""
        return metrics.clusters(self.truth, [c.source_id for c in self.search], seed=self.seed)

    def room(self, history: History, before: int) -> float:
        """Evals that are left for the iteration `before`, selection set aside. Depends on earlier iterations alone."""
        if self.max_evals is None:
            return math.inf
        spent = sum(t.clips for t in history.trials if t.iteration < before)
        return self.max_evals - selection_evals(self.fresh, self.task) - spent


def selection_evals(fresh: Sequence[Clip], task: Task) -> int:
    """Evals of the selection at most: baseline and finalists on the fresh clips."""
    truth = np.array([task.labels.index(clip.label) for clip in fresh])
    fewest = metrics.fewest_sources(truth, [clip.source_id for clip in fresh])
    return (1 + most_finalists(fewest)) * len(fresh)


def affordable_clips(
    search: Sequence[Clip], fresh: Sequence[Clip], task: Task, max_evals: int | None
) -> tuple[Sequence[Clip], Sequence[Clip]]:
    """The clips of both halves that a search of so few evals is best made on: the first ones of each.

    The selection takes a fifth of the evals at most: with 1,000 on searches of known truth, 100 fresh clips of 200
    choose a better prompt, by 0.9 points. Of the search half as many as can be heard by a few prompts in full: prompts
    differ by more than a small sample errs (`tests/bench_search.py`).
    """
    if max_evals is None:
        return search, fresh
    each = max_evals // 5 * len(fresh) // selection_evals(fresh, task)
    fresh = fresh[: max(FEWEST_CLIPS, each - each % 2)]
    each = (max_evals - selection_evals(fresh, task)) // COMPLETE
    return search[: max(FEWEST_CLIPS, each - each % 2)], fresh


def least_evals(
    strategy: str, task: Task, seeds: int, search: Sequence[Clip], fresh: Sequence[Clip]
) -> int:
    """The smallest `max_evals` that a search can work with: seeds, selection, and one candidate."""
    racing = strategy == "race" and len(task.labels) == 2
    seeded = len(search) + (seeds - 1) * min(FIRST, len(search)) if racing else seeds * len(search)
    one = min(FIRST, len(search)) if racing else len(search)
    return selection_evals(fresh, task) + seeded + one


def optimize(
    plan: Search,
    history: History,
    display: Display,
    clock: Clock,
    save: Callable[[Trial, Result], None] = lambda trial, result: None,
) -> Selection:
    """Runs a search to its end, from wherever its history stands.

    Iteration 0 scores the seeds on the search half. Every later one proposes candidates, journals them before they
    are scored, and scores them in a race against the best trial so far (strategy ``race``) or on everything. It ends
    early when `max_evals` leaves no room for another iteration.

    Args:
        save: Called with each scored trial and its log-probabilities.
    """
    heard: dict[int, NDArray[np.float32]] = {}
    for number in range(plan.iterations + 1):
        display.iteration(number, "seeds" if number == 0 else "proposing")
        begin = time.perf_counter()
        references = _references(plan, history, number, heard)
        clock.scoring += time.perf_counter() - begin
        if number not in history.proposed:
            wanted = _affordable(plan, history, number)
            if wanted < 1:
                log.warning(
                    "iteration %d: --max-evals leaves no room for another candidate", number
                )
                break
            begin = time.perf_counter()
            history.heard = references
            candidates = (
                [Candidate(p, "seed") for p in plan.seeds]
                if number == 0
                else plan.proposer.propose(history, wanted, number)
            )
            clock.proposing += time.perf_counter() - begin
            history.add(number, candidates)
            if not candidates:
                log.warning("iteration %d: no candidate could be made", number)
            if number > 0 and len(candidates) < plan.candidates:
                display.advance(0, (plan.candidates - len(candidates)) * len(plan.search))
        display.iteration(number, "scoring")
        begin = time.perf_counter()
        if history.waiting(number):
            _score(plan, history, number, references, display, save, heard)
        clock.scoring += time.perf_counter() - begin
    display.iteration(plan.iterations + 1, "selection on fresh clips")
    begin = time.perf_counter()
    selection = select(
        plan.evaluator, history.scored, plan.fresh, plan.task.labels, plan.reward, plan.seed
    )
    clock.scoring += time.perf_counter() - begin
    return selection


def _affordable(plan: Search, history: History, number: int) -> int:
    """Candidates of this iteration: as many as asked for, or as the evals that are left can judge."""
    room = plan.room(history, number)
    if number == 0 or math.isinf(room):
        return plan.candidates
    # A race halves the field again and again: two blocks a candidate.
    each = 2 * _first_block(plan, room) if plan.strategy == "race" else len(plan.search)
    return min(plan.candidates, int(room // each))


def _first_block(plan: Search, room: float) -> int:
    """Clips of a race's first block: half as many when the evals that are left make few races."""
    return FIRST if room >= 2 * 2 * FIRST * plan.candidates else FIRST // 2


def _references(
    plan: Search, history: History, before: int, heard: dict[int, NDArray[np.float32]]
) -> dict[int, NDArray[np.float32]]:
    """``[clip, label]`` of the best complete trials of earlier iterations, by number, best first."""
    trials = [t for t in history.complete if t.iteration < before][:REFERENCES]
    missing = [t for t in trials if t.number not in heard]  # of a run that was interrupted
    if missing:
        table = plan.evaluator.score([t.candidate.prompt for t in missing], plan.search)
        heard.update({t.number: table.logp[i] for i, t in enumerate(missing)})
    return {t.number: heard[t.number] for t in trials}


def _score(
    plan: Search,
    history: History,
    number: int,
    references: Mapping[int, NDArray[np.float32]],
    display: Display,
    save: Callable[[Trial, Result], None],
    heard: dict[int, NDArray[np.float32]],
) -> None:
    # All trials of the iteration race, told or not, so that a resumed race runs as the interrupted one did.
    trials = [t for t in history.trials if t.iteration == number]
    truth, room = plan.truth, plan.room(history, number)

    def run(
        prompts: Sequence[Prompt], known: Sequence[NDArray[np.float32]], left: float
    ) -> list[Result]:
        return race(
            plan.evaluator,
            prompts,
            plan.search,
            truth,
            plan.reward,
            np.stack(known) if known else None,
            display.advance,
            left,
            _first_block(plan, room),
        )

    prompts = [t.candidate.prompt for t in trials]
    racing = plan.strategy == "race" and len(plan.task.labels) == 2
    if number == 0 and racing and len(prompts) * len(plan.search) > room / 3:
        # Too dear to score every seed on everything: the first is, the others race against it.
        results = run(prompts[:1], [], room)
        first = results[0].logp
        if not results[0].error:
            left = room - len(plan.search)
            least = (len(prompts) - 1) * min(_first_block(plan, room), len(plan.search))
            results += run(prompts[1:], [first], max(least, left / 2))
    else:
        results = run(prompts, list(references.values()) if racing else [], room)
    for trial, result in zip(trials, results, strict=True):
        if result.judged:
            heard[trial.number] = result.logp
        if trial.state != "waiting":
            continue
        told = _outcome(trial, result, plan)
        save(told, result)
        history.tell(told)
        best = history.best
        log.info(
            "trial %d  %s  reward %s  best %s",
            told.number,
            told.state,
            _percent(told.reward),
            f"{_percent(best.reward)} (#{best.number})" if best else "-",
        )
        display.told(told, best)


def _outcome(trial: Trial, result: Result, plan: Search) -> Trial:
    if result.error or not len(result.seen):
        error = result.error or "--max-evals left nothing to score it with"
        return replace(trial, state="failed", error=error)
    truth, judged = plan.truth, result.judged
    told = replace(
        trial,
        state="complete" if judged else "dropped",
        reward=result.reward,
        sd=result.sd,
        clips=len(result.seen),
        bias=result.bias,
        blocks=result.blocks,
    )
    clusters = plan.clusters
    if judged is None:
        assert result.hits is not None
        guess = clusters.estimate(clusters.balanced(result.hits))
        if guess.low is None or guess.high is None:
            return replace(told, score=guess.value)
        # The forecast errs beside the sources.
        low = guess.value - math.hypot(guess.value - guess.low, 1.96 * result.sd)
        high = guess.value + math.hypot(guess.high - guess.value, 1.96 * result.sd)
        return replace(told, score=guess.value, low=max(0.0, low), high=min(1.0, high))
    interval = clusters.estimate(clusters.balanced(judged.right))
    return replace(
        told,
        score=interval.value,
        low=interval.low,
        high=interval.high,
        nll=judged.nll,
        slices=slices(plan.search, truth, judged.right),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
