"""The loop: propose, journal, race on the search half, tell; then select on fresh clips. All state is the history."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluators import metrics
from evaluators.clips import Clip
from evaluators.prompts import Prompt, Task
from evaluators.scores import Evaluator
from opro.history import Candidate, History, Trial
from opro.propose import Proposer
from opro.race import Result, race
from opro.reward import Reward, slices
from opro.select import Selection, select

log = logging.getLogger(__name__)


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
    """Everything a search needs. `search` and `fresh` are the halves of dev, in balanced order."""

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


def optimize(
    plan: Search,
    history: History,
    display: Display,
    clock: Clock,
    save: Callable[[Trial, Result], None] = lambda trial, result: None,
) -> Selection:
    """Runs a search to its end, from wherever its history stands.

    Iteration 0 scores the seeds on the whole search half. Every later one proposes candidates, journals them before
    they are scored, and scores them in a race against the best trial so far (strategy ``race``) or on everything.

    Args:
        save: Called with each scored trial and its log-probabilities.
    """
    truth = np.array([plan.task.labels.index(clip.label) for clip in plan.search])
    for number in range(plan.iterations + 1):
        display.iteration(number, "seeds" if number == 0 else "proposing")
        if number not in history.proposed:
            begin = time.perf_counter()
            candidates = (
                [Candidate(p, "seed") for p in plan.seeds]
                if number == 0
                else plan.proposer.propose(history, plan.candidates, number)
            )
            clock.proposing += time.perf_counter() - begin
            history.add(number, candidates)
            if not candidates:
                log.warning("iteration %d: no candidate could be made", number)
            if number > 0 and len(candidates) < plan.candidates:
                display.advance(0, (plan.candidates - len(candidates)) * len(plan.search))
        waiting = history.waiting(number)
        display.iteration(number, "scoring")
        begin = time.perf_counter()
        if waiting:
            _score(plan, history, waiting, truth, display, save)
        clock.scoring += time.perf_counter() - begin
    display.iteration(plan.iterations + 1, "selection on fresh clips")
    begin = time.perf_counter()
    selection = select(
        plan.evaluator, history.complete, plan.fresh, plan.task.labels, plan.reward, plan.seed
    )
    clock.scoring += time.perf_counter() - begin
    return selection


def _score(
    plan: Search,
    history: History,
    waiting: Sequence[Trial],
    truth: NDArray[np.int64],
    display: Display,
    save: Callable[[Trial, Result], None],
) -> None:
    # The incumbent is the best of earlier iterations, so that a resumed iteration races against the same prompt.
    incumbent = (
        next((t for t in history.complete if t.iteration < waiting[0].iteration), None)
        if plan.strategy == "race"
        else None
    )
    right = None
    if incumbent is not None:
        table = plan.evaluator.score([incumbent.candidate.prompt], plan.search)
        right = plan.reward.judge(table.logp[0], truth, plan.search).right
    # Each races against the incumbent alone, so it does not matter which of its siblings a killed process had told.
    results = race(
        plan.evaluator,
        [t.candidate.prompt for t in waiting],
        plan.search,
        truth,
        plan.reward,
        right,
        display.advance,
    )
    for trial, result in zip(waiting, results, strict=True):
        told = _outcome(trial, result, plan, truth)
        save(told, result)
        history.tell(told)
        best = history.complete[0] if history.complete else None
        log.info(
            "trial %d  %s  reward %s  best %s",
            told.number,
            told.state,
            _percent(told.reward),
            f"{_percent(best.reward)} (#{best.number})" if best else "-",
        )
        display.told(told, best)


def _outcome(trial: Trial, result: Result, plan: Search, truth: NDArray[np.int64]) -> Trial:
    if result.judged is None:
        return replace(trial, state="failed", error=result.error)
    seen = len(result.logp)
    clips, judged = plan.search[:seen], result.judged
    interval = metrics.estimate(
        truth[:seen], judged.right, [c.source_id for c in clips], seed=plan.seed
    )
    return replace(
        trial,
        state="dropped" if result.dropped else "complete",
        reward=judged.reward,
        score=interval.value,
        low=interval.low,
        high=interval.high,
        nll=judged.nll,
        bias=judged.bias,
        clips=seen,
        blocks=result.blocks,
        slices=slices(clips, truth[:seen], judged.right),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
