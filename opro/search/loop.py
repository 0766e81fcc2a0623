"""The loop: propose, journal, race on the search half, tell. All state is the history."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import Classifier
from evaluators.errors import PauseError, UserError
from evaluators.evaluator import predictions, prompt_tokens
from evaluators.prompts import OPTIONS, is_frame
from evaluators.statistics.compare import resample
from evaluators.statistics.metrics import METRICS
from evaluators.statistics.resampling import Clusters
from opro.problem import Problem
from opro.search.budget import Budget
from opro.search.history import Candidate, History, Outcome, Trial, best_first
from opro.search.lengths import Limit
from opro.search.objective import Objective, slice_scores
from opro.search.proposer import Proposer, SearchView
from opro.search.race import Entry, Race
from opro.search.select import pick_finalists
from opro.search.steering import HAND, Request, pauses
from opro.settings import SearchSettings

log = logging.getLogger(__name__)

REFERENCES = 24  # complete trials that forecasts are made from
Logp = NDArray[np.float32]  # [clip, label] nats on the search clips


class Display(Protocol):
    """What a person sees while the loop works."""

    def stage(self, iteration: int, name: str) -> None:
        """An iteration's stage begins."""

    def advance(self, scored: int, skipped: int) -> None:
        """Pairs were scored, and pairs will never be asked for."""

    def told(self, trial: Trial, best: Trial | None) -> None:
        """A trial has its outcome."""


@dataclass
class Clock:
    """Seconds spent by stage: ``scoring`` and ``proposing``."""

    seconds: dict[str, float] = field(default_factory=lambda: {"scoring": 0.0, "proposing": 0.0})
    _running: tuple[str, float] | None = None  # stage, when it began

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds what the block takes."""
        begin = time.perf_counter()
        self._running = name, begin
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin
            self._running = None

    @property
    def so_far(self) -> dict[str, float]:
        """`seconds` with what the stage that runs has taken."""
        name, begin = self._running or ("scoring", time.perf_counter())
        return self.seconds | {name: self.seconds[name] + time.perf_counter() - begin}


@dataclass(frozen=True)
class Search:
    """A search under way: everything that its iterations share.

    Attributes:
        save: Called with each scored trial and its entry in the race.
        logp: Of the best complete trials, and of the round's, by number; what an interrupted run has scored is scored
            again, from the cache.
        inbox: All that a person has asked for so far, see `opro.search.steering`; looked at between rounds.
    """

    problem: Problem
    settings: SearchSettings
    proposer: Proposer
    history: History
    display: Display
    clock: Clock
    save: Callable[[Trial, Entry], None]
    logp: dict[int, Logp] = field(default_factory=dict)
    inbox: Callable[[], Sequence[Request]] = lambda: ()

    @property
    def budget(self) -> Budget:
        """What it may ask for, with all that was steered so far."""
        most = self.history.steering.max_evals(self.settings.max_evals)
        return Budget.of(self.problem, replace(self.settings, max_evals=most))

    @property
    def objective(self) -> Objective:
        """What it climbs."""
        return Objective(self.settings.objective, self.settings.threshold)

    @cached_property
    def clusters(self) -> Clusters:
        """Resamples of the search clips, drawn after the first scores."""
        return resample(self.problem.search_clips.targets, seed=self.settings.seed)

    @property
    def limit(self) -> Limit | None:
        """The longest that its candidates may be."""
        most = self.settings.max_prompt_tokens
        seed = self.problem.seed_prompts[0]
        return None if most is None else Limit.of(self.problem.evaluator, most, seed)

    def run(self) -> None:
        """Runs all iterations, from wherever the history stands.

        Iteration 0 scores the seed prompts. Every later one proposes candidates, journals them before they are scored,
        and races them against the best trials so far, or scores them on everything. It ends early when the budget
        leaves nothing for another iteration.

        Raises:
            PauseError: A person asked for a pause.
        """
        for number in range(self.settings.iterations + 1):
            if number > 0 and number not in self.history.proposed:
                self._take(number)
            view = self._view(number)
            left = self.budget.left(view.trials)
            if number not in self.history.proposed:
                wanted = self.budget.candidates(left, len(self.problem.search_clips))
                if number > 0 and wanted < 1:
                    log.warning(
                        "iteration %d: --max-evals leaves nothing for another candidate", number
                    )
                    rounds = self.settings.iterations + 1 - number
                    self._skip(rounds * self.settings.candidates)
                    break
                self._propose(view, wanted)
            trials = self.history.of(number)
            if number > 0:
                self._skip(max(0, self.settings.candidates - len(trials)))
            self.display.stage(number, "scoring")
            if any(t.state == "waiting" for t in trials):
                self._score(view, left)
            else:  # of a run that was interrupted
                self._skip(len(trials))
            if number == 0:
                self._require_a_seed()

    def _take(self, number: int) -> None:
        """Journals what was asked for since the last round: this one and all later ones depend on it."""
        new = self.inbox()[len(self.history.steering.taken) :]
        if not new:
            return
        self.history.steer(number, new)
        for one in new:
            log.info(
                "round %d takes what %s asked for: %s %r", number, one.who, one.kind, one.value
            )
        if asked := pauses(new):
            raise PauseError(
                f"before round {number}, as {asked.who} asked at {asked.time}; the same command goes on"
            )

    def _require_a_seed(self) -> None:
        """Raises UserError when no seed prompt could be scored: there is no baseline, and all would fare alike."""
        seeds = self.history.of(0)
        if seeds and not any(t.scored for t in seeds):
            raise UserError(
                f"no seed prompt could be scored by this model ({seeds[0].error}); --seeds needs one that can"
            )

    def finish_finalists(self) -> None:
        """Scores whatever the selection would pick on a forecast on all search clips, as far as the budget goes.

        What cannot be paid for is left to its forecast, and the selection passes it over.
        """
        clips, passed = self.problem.search_clips, set[int]()
        fewest = self.problem.holdout_clips.targets.fewest_sources
        while True:
            scored = [t for t in self.history.scored if t.number not in passed]
            if not any(t.iteration == 0 for t in scored):
                return
            baseline, rivals = pick_finalists(scored, fewest)
            trial = next((t for t in (baseline, *rivals) if t.state == "dropped"), None)
            if trial is None:
                return
            left = self.budget.left(self.history.trials) + len(clips)  # set aside for this
            twice = sum(t.asked_twice for t in self.history.trials)
            if left - twice < len(clips):
                passed.add(trial.number)
                continue
            with self.clock.stage("scoring"):  # what it was scored on is in the cache
                (entry,) = Race(self.problem.evaluator, clips, self.objective).run([trial.prompt])
            self._tell(trial, entry)

    def _view(self, number: int) -> SearchView:
        """What the iteration may know, with the scores of the best complete trials."""
        self.display.stage(number, "seeds" if number == 0 else "proposing")
        trials = self.history.before(number)
        best = best_first(t for t in trials if t.state == "complete")[:REFERENCES]
        missing = [t for t in best if t.number not in self.logp]  # of a run that was interrupted
        if missing:
            with self.clock.stage("scoring"):
                table = self.problem.evaluator.score(
                    [t.prompt for t in missing], self.problem.search_clips
                )
            self.logp.update({t.number: table.logp[i] for i, t in enumerate(missing)})
        logp = {t.number: self.logp[t.number] for t in best}
        for passed in self.logp.keys() - logp.keys():  # no later round has it among the best
            del self.logp[passed]
        rounds = max(number, self.settings.iterations)
        forbidden, clips = self.history.steering.forbidden, self.problem.search_clips
        return SearchView(number, trials, clips, logp, rounds, forbidden, self.limit)

    def _propose(self, view: SearchView, wanted: int) -> None:
        """Journals the iteration's candidates."""
        if view.iteration == 0:
            self.history.add(0, [Candidate(p, "seed") for p in self.problem.seed_prompts])
            return
        added = self._by_hand(view)
        candidates = list(added)
        if wanted > len(added):
            with self.clock.stage("proposing"):
                candidates += self.proposer.propose(view, wanted - len(added))
        candidates, refused = self._allowed(view, candidates)
        self.history.add(view.iteration, candidates, refused)
        if not candidates:
            log.warning("iteration %d: no candidate could be made", view.iteration)

    def _by_hand(self, view: SearchView) -> list[Candidate]:
        """Prompts that a person added to the round: they take places of the proposer's, however many they are."""
        steering, labels = self.history.steering, self.problem.task.labels
        prompts = steering.prompts(view.iteration, labels)
        return [Candidate(replace(p, both_orders=self.settings.swap), HAND) for p in prompts]

    def _allowed(
        self, view: SearchView, candidates: Sequence[Candidate]
    ) -> tuple[list[Candidate], list[dict[str, str]]]:
        """Candidates that may be tried, and those that may not with the reason: without steering and limit none."""
        choices = self.problem.task.choices
        if not self.history.steering.taken and not choices and view.limit is None:
            return list(candidates), []
        known = {t.prompt.prompt_id for t in view.trials}
        allowed, refused = list[Candidate](), list[dict[str, str]]()
        for one in candidates:
            why = "already tried or proposed" if one.prompt.prompt_id in known else ""
            why = view.why_not(one.prompt) or why
            if choices and not is_frame(one.prompt):
                why = f"has no {OPTIONS}, where each clip's own options are put"
            known.add(one.prompt.prompt_id)
            if why:
                log.info("refused (%s): %r", why, one.prompt.text)
                refused.append({"text": one.prompt.text, "reason": why})
            else:
                allowed.append(one)
        return allowed, refused

    def _skip(self, prompts: int) -> None:
        """So many prompts will not be asked for on any clip."""
        self.display.advance(0, prompts * len(self.problem.search_clips))

    def _score(self, view: SearchView, left: float) -> None:
        """Races all trials of the iteration, told or not, so that a resumed race runs as the interrupted one did."""
        trials = self.history.of(view.iteration)
        with self.clock.stage("scoring"):
            entries = self._race(view.logp, trials, left)
        for trial, entry in zip(trials, entries, strict=True):
            if entry.measured:
                self.logp[trial.number] = entry.logp
            if trial.state != "waiting":
                continue
            self._tell(trial, entry)

    def _tell(self, trial: Trial, entry: Entry) -> None:
        """Saves, journals and shows a trial's outcome."""
        told = self._told(trial, entry)
        self.save(told, entry)
        self.history.tell(told)
        best = self.history.best
        log.info(
            "trial %d  %s  reward %s  best %s",
            told.number,
            told.state,
            f"{100 * told.reward:.1f}" if told.scored else "-",
            f"{100 * best.reward:.1f} (#{best.number})" if best else "-",
        )
        self.display.told(told, best)

    def _race(self, known: Mapping[int, Logp], trials: list[Trial], left: float) -> list[Entry]:
        prompts, budget, clips = [t.prompt for t in trials], self.budget, self.problem.search_clips
        block = budget.first_block(left)
        race = Race(
            self.problem.evaluator,
            clips,
            self.objective,
            np.stack(list(known.values())) if known and budget.races else None,
            block,
            self.display.advance,
        )
        dear = not known and budget.races and len(prompts) * len(clips) > left / 3
        if not dear:
            return race.run(prompts, left)
        # Scoring all seed prompts in full would cost too much: score the first in full, race the others against it.
        entries: list[Entry] = []
        while len(entries) < len(prompts):
            entries += race.run([prompts[len(entries)]], left)
            if entries[-1].measured:
                break  # those before cannot be scored
        rest, left = prompts[len(entries) :], left - len(clips)
        least = len(rest) * min(block, len(clips))
        against = replace(race, references=np.stack([entries[-1].logp]))
        return [*entries, *against.run(rest, min(left, max(least, left / 2)))] if rest else entries

    def _told(self, trial: Trial, entry: Entry) -> Trial:
        """The trial with its outcome."""
        error = entry.error
        if not error and not len(entry.scored):
            error = "--max-evals left nothing to score it with"
        if not error and not math.isfinite(entry.reward):
            error = "its objective is no finite number"
        if error:
            return replace(trial, state="failed", error=error, failed_after=len(entry.scored))
        clips, exact = self.problem.search_clips, entry.measured
        low, high = self._interval(trial, entry)
        outcome = Outcome(
            reward=entry.reward,
            sd=entry.sd,
            score=entry.reward,
            low=low,
            high=high,
            loss=exact.loss if exact else None,
            bias=entry.bias,
            fitted=exact.fitted if exact else None,
            n_scored=len(entry.scored),
            blocks=entry.blocks,
            slices=slice_scores(clips, clips.targets.truth, exact.right) if exact else {},
            profile=entry.profile,
            outside=max(0.0, 1.0 - float(np.exp(entry.logp).sum(axis=-1).mean())),
            unlisted=entry.unlisted / len(entry.scored),
            tokens=prompt_tokens(self.problem.evaluator, trial.prompt),
        )
        return replace(trial, state="complete" if exact else "dropped", outcome=outcome)

    def _interval(self, trial: Trial, entry: Entry) -> tuple[float | None, float | None]:
        """Bounds of a reward, 95 %, over sources; those of a forecast are wider by its own error."""
        targets = self.problem.search_clips.targets
        said = predictions("", targets, Classifier(trial.prompt, entry.bias), entry.expected)
        said = replace(said, score=np.asarray(said.score, dtype=np.float64))
        own = self.clusters.estimate(METRICS[self.settings.objective](self.clusters, said))
        if own.low is None or own.high is None:
            return None, None
        error = 1.96 * entry.sd
        low = entry.reward - math.hypot(own.value - own.low, error)
        high = entry.reward + math.hypot(own.high - own.value, error)
        share = self.settings.objective != "nll"
        return (max(0.0, low), min(1.0, high)) if share else (low, high)
