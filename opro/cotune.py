"""Searches prompts and fine-tunes in turns: python -m opro.cotune --checkpoint pocket-base --rounds 3

A search on the checkpoint; a LoRA trained on the prompts that lead, several at once; a search on that adapter, which
starts from them; the adapter trained further on the prompts that lead now; and so on. After each round the pair of
prompt and checkpoint that leads on the search half of dev is compared, on the holdout, with the pair before it; the
walk ends at the first round that the holdout does not confirm. Nothing but these comparisons hears the holdout. The
same command goes on after an interruption; a larger --rounds goes on from a walk that was confirmed to its end.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.classifier import Classifier, dump_classifiers
from evaluators.clips import ClipSet
from evaluators.files import check_folder, disk_faults, is_written, write_text
from evaluators.statistics.compare import compare_many, estimate
from evaluators.statistics.resampling import MIN_SOURCES
from evaluators.targets import Predictions
from evaluators.threads import use_threads
from opro import finetune
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.finetune import FinetuneSettings
from opro.optimize import search_only
from opro.problem import Data, Model, open_data, open_problem, open_seeds
from opro.proposers.evidence import front
from opro.results.cotuned import Cotuned, Pair, Round, cotuned_sheet, told, write_cotuned
from opro.results.decisions import count_decisions, record_decision
from opro.results.run_folder import RunFolder, open_run
from opro.results.sheet import render
from opro.results.shown import time_of
from opro.search.budget import most_evals
from opro.search.history import Trial
from opro.search.loop import REFERENCES
from opro.search.objective import NAMES
from opro.search.proposer import SearchView
from opro.search.select import Turn, points
from opro.settings import OptimizeSettings, SplitSettings
from opro.tuning import (
    Step,
    TuneSettings,
    is_trained,
    opened,
    said_by,
    say,
    step_of,
    time_left,
    train,
)


@dataclass(frozen=True)
class CotuneSettings(TuneSettings):
    """Searching and fine-tuning in turns."""

    rounds: int = flag(3, "trainings, each with a search after it, at most", min=1, max=100)
    front: int = flag(4, "prompts that a training takes turns with, at most", min=1, max=64)

    @property
    def config(self) -> dict[str, Any]:
        """Plain data, as config.yaml holds it: all that a walk depends on, however many rounds it has."""
        return self.config_without("rounds")

    @property
    def folder(self) -> Path:
        """The result's folder."""
        return self.folder_of("cotune", self.config)

    def adapter(self, number: int) -> Path:
        """The adapter that a round trains; of round 0 there is none."""
        return self.folder / f"lora-{number}"

    def checkpoint_of(self, number: int) -> str:
        """The checkpoint that a round searches on."""
        return str(self.adapter(number)) if number else self.checkpoint

    def prompts(self, number: int) -> Path:
        """The prompts that a round trains on."""
        return self.folder / f"front-{number}.yaml"

    def search(self, number: int, before: Sequence[str] = ()) -> OptimizeSettings:
        """The search of a round: the adapter's own prompts join the seeds, earlier searches share theirs."""
        spec = self.prompts(number) if number else None
        return self.search_on(self.checkpoint_of(number), spec, before)

    def training(self, number: int, prompts: Path | None) -> FinetuneSettings:
        """The training of a round: of the adapter before it, so that the steps of all rounds count."""
        return self.training_of(self.checkpoint_of(number - 1), prompts, self.adapter(number))


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(CotuneSettings, argv, __doc__ or "", _add_dry_run)
    use_threads(settings.threads)
    check_folder(settings.folder, "--out")
    check_folder(settings.runs_dir, "--runs-dir")
    data = open_data(settings)
    # Whatever would fail after the first search is found now.
    trained = is_trained(settings.adapter(1))
    first = [] if trained else finetune.describe(finetune.prepare(settings.training(1, None)))
    if space.dry_run:
        plan = list(_plan(settings, first))
        print("\n".join(plan))
        hand_over({"dry_run": True, "folder": str(settings.folder), "plan": plan})
        return DONE
    out = settings.folder
    with disk_faults(out), open_run(out, settings.config):
        walk = Walk(settings, data, *data.halves(SplitSettings()))
        found = walk.run()
        about = {
            "checkpoint": settings.checkpoint,
            "objective": NAMES[settings.objective],
            "manifest": data.digest,
            "clips": str(settings.manifest),
            "flags": settings.flags,
        }
        document = write_cotuned(out, found, about)
    print(render(cotuned_sheet(document)))
    print("\n".join(told(document)))
    paths = {"folder": str(out), "cotune": str(out / "cotune.json"), "best": str(out / "best.yaml")}
    hand_over({**document, "paths": paths})
    return DONE


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan and its cost; search and train nothing",
    )


def _plan(settings: CotuneSettings, training: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What would be done, and what it costs at most.

    Args:
        training: The plan of the first one; empty where it is finished.
    """
    first = settings.search(0)
    problem = open_problem(first)
    most, rounds = most_evals(problem, first), settings.rounds
    holdout = problem.holdout_clips
    turn = Turn(count_decisions(settings.runs_dir, holdout) + 1)
    yield f"result      {settings.folder}"
    yield f"walk        at most {rounds} rounds: {rounds + 1} searches and {rounds} trainings"
    yield f"a search    at most {most:,} evals; {time_of(problem.evaluator, most, first)}"
    for name, text in training:
        yield f"{name:11} {text}" if name != "prompts" else f"prompts     {settings.front} at most"
    yield (
        f"decisions   on {len(holdout)} holdout clips of {len({c.source_id for c in holdout})} sources, each round at"
        f" {turn.level:.2g}, and none after the first that is not confirmed{turn.said()}"
    )
    for text in (*problem.warnings, *_warnings(holdout)):
        yield f"warning     {text}"


def _warnings(holdout: ClipSet) -> Iterator[str]:
    few = holdout.targets.fewest_sources
    if few < MIN_SOURCES:
        yield (
            f"no round can be confirmed: the holdout has {few} sources of one label, {MIN_SOURCES} are needed; add"
            " recordings of other speakers and places, or give dev a larger share"
        )


@dataclass
class Walk:
    """A cotune under way. Every step is a folder: one that is finished is taken as it is.

    Pairs are picked, thresholds fitted and adapters chosen on the search half alone, so that all comparisons that the
    holdout may ever make are fixed before it is heard. They are made in their order, each at the whole level of the
    walk, and end with the first that fails: a fixed sequence, in which any error at all has that level (Maurer,
    Hothorn and Lehmacher 1995; Westfall and Krishen 2001, J. Stat. Plan. Inference 99). So a walk is one decision in
    the ledger of its holdout. Searched prompts as what changes fast and an adapter as what changes slowly are the
    idea of arXiv 2605.12484.
    """

    settings: CotuneSettings
    data: Data
    search_clips: ClipSet
    holdout: ClipSet
    steps: list[Step] = field(default_factory=list)
    searches: list[RunFolder] = field(default_factory=list)
    turn: Turn | None = None
    warnings: list[str] = field(default_factory=list)

    def run(self) -> Cotuned:
        """All rounds that are confirmed, and the one that is not."""
        self.warnings += _warnings(self.holdout)
        self._search(0)
        pairs = [self._leader(0)]
        rounds = [Round(0, self._by_hand(), "the checkpoint as it is, with its best seed prompt")]
        for number in range(1, self.settings.rounds + 1):
            self._train(number)
            self._search(number)
            pairs.append(self._leader(number))
            rounds.append(self._decided(number, pairs, rounds))
            say(f"round {number}: {rounds[-1].why}")
            if not rounds[-1].confirmed:
                break
        if any(r.said for r in rounds):  # it was compared with the first of them
            first = rounds[0].pair
            said = self._said(first.checkpoint, first.classifier, self.holdout)
            score = estimate(said, self.settings.objective)
            rounds[0] = dataclasses.replace(rounds[0], holdout=score, said=said)
        return Cotuned(
            rounds, [dataclasses.asdict(s) for s in self.steps], self.turn, self.warnings
        )

    def _search(self, number: int) -> None:
        search = self.settings.search(number, [str(run.path) for run in self.searches])
        self._announce(number, f"searching prompts on {search.checkpoint}")
        self.searches.append(search_only(search))
        self.steps.append(step_of(self.searches[-1], number))

    def _train(self, number: int) -> None:
        """An adapter for the prompts that lead; from the adapter before it, so that its steps are not lost."""
        path = self.settings.prompts(number)
        if not is_written(path):
            leading = self._front(number - 1)
            write_text(path, dump_classifiers([Classifier(t.prompt) for t in leading]))
        training = self.settings.training(number, path)
        self._announce(number, f"training {training.checkpoint} on the prompts in {path}")
        self.steps.append(train(training, self.settings.adapter(number), number))

    def _announce(self, number: int, what: str) -> None:
        """A step begins: which of how many, and how long all that is left may take."""
        most, taken = 2 * self.settings.rounds + 1, len(self.steps)
        trained = next((s.steps for s in self.steps if s.steps), 0)
        rest = [("train", trained) if i % 2 else ("search", 0) for i in range(taken, most)]
        left = time_left(self.steps, rest)
        say(f"step {taken + 1} of at most {most}, round {number}: {what}{left}")

    def _opened(self, *checkpoints: str) -> contextlib.AbstractContextManager[list[Model]]:
        return opened(self.settings, checkpoints, self.data, [self.search_clips, self.holdout])

    def _said(self, checkpoint: str, classifier: Classifier, clips: ClipSet) -> Predictions:
        return self._said_by_each([(checkpoint, classifier)], clips)[0]

    def _said_by_each(
        self, pairs: Sequence[tuple[str, Classifier]], clips: ClipSet
    ) -> list[Predictions]:
        """What classifiers say of clips, each with its checkpoint."""
        with self._opened(*dict.fromkeys(checkpoint for checkpoint, _ in pairs)) as models:
            for model in models:
                self.warnings += [text for text in model.warnings if text not in self.warnings]
            by_name = {model.name: model for model in models}
            return [said_by(by_name[checkpoint], one, clips) for checkpoint, one in pairs]

    def _pair(self, number: int, trial: Trial) -> Pair:
        """A prompt of a round's search, with its score on the whole search half."""
        checkpoint, run = self.settings.checkpoint_of(number), self.searches[number]
        said = self._said(checkpoint, trial.classifier, self.search_clips)
        score = estimate(said, self.settings.objective)
        return Pair(checkpoint, trial.classifier, run.name, score)

    def _leader(self, number: int) -> Pair:
        return self._pair(number, self.searches[number].history.complete[0])

    def _hand_written(self, number: int) -> Trial | None:
        """The best of the seed prompts in a round's search; None where no one was scored on all its clips."""
        by_hand = {p.prompt_id for p in open_seeds(self.settings.search(0), self.data.task)}
        complete = self.searches[number].history.complete
        return next((t for t in complete if t.prompt.prompt_id in by_hand), None)

    def _by_hand(self) -> Pair:
        trial = self._hand_written(0)
        assert trial is not None  # a search finishes its baseline
        return self._pair(0, trial)

    def _front(self, number: int) -> list[Trial]:
        """The prompts of a search to train on: the leader, then those that are right where others are not.

        Of the prompts that are at least as good as the best hand-written one, those that no other one dominates clip
        by clip, the ones that lead most clips first.
        """
        history = self.searches[number].history
        by_hand = self._hand_written(number)
        known = [
            t
            for t in history.complete[:REFERENCES]
            if by_hand is None or t.reward >= by_hand.reward
        ]
        with self._opened(self.settings.checkpoint_of(number)) as (model,):
            table = model.evaluator.score([t.prompt for t in known], self.search_clips)
        logp = {t.number: np.asarray(table.logp[i]) for i, t in enumerate(known)}
        leads = front(SearchView(0, known, self.search_clips, logp), known)
        rest = sorted((t for t in known[1:] if t.number in leads), key=lambda t: -leads[t.number])
        return [known[0], *rest][: self.settings.front]

    def _decided(self, number: int, pairs: Sequence[Pair], rounds: Sequence[Round]) -> Round:
        """What the holdout says of the pair that leads after a round, against the one that was confirmed last."""
        before = next((r for r in reversed(rounds) if r.confirmed), rounds[0])
        pair = max(pairs, key=lambda p: p.search.value)
        if pair.search.value <= before.pair.search.value:
            return Round(
                number, pair, "no new pair leads on the search half, so nothing is compared"
            )
        s, few = self.settings, self.holdout.targets.fewest_sources
        if few >= MIN_SOURCES and self.turn is None:
            self.turn = record_decision(s.runs_dir, self.holdout, s.folder.name, self._what())
        turn = self.turn or Turn()
        both = [(p.checkpoint, p.classifier) for p in (pair, before.pair)]
        said, old = self._said_by_each(both, self.holdout)
        (gain,) = compare_many([said], old, s.objective, seed=s.seed, alpha=turn.level)
        confirmed = few >= MIN_SOURCES and gain.p is not None and gain.p < turn.level
        against = f"gains {points(gain)} over round {before.number} on {gain.clips} holdout clips"
        why = f"confirmed: {against}, p {gain.p:.2g}"
        if few < MIN_SOURCES:
            why = f"no claim: the holdout has {few} sources of one label, {MIN_SOURCES} are needed ({against})"
        elif not confirmed:
            why = f"not {why}; a gain counts below {turn.level:.2g}"
        why += turn.said() if few >= MIN_SOURCES else ""
        return Round(number, pair, why, estimate(said, s.objective), gain, confirmed, said)

    def _what(self) -> str:
        """16 hex digits of the sequence of comparisons, whatever its length."""
        raw = json.dumps(["cotune", self.searches[0].history.header, self.settings.config])
        return hashlib.sha256(raw.encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(run_verb(main))
