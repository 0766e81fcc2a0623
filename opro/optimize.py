"""Searches prompts for a checkpoint on the dev split: python -m opro.optimize --iterations 5

With no other flag it runs offline, on a CPU, on the shipped clips and the shipped pocket checkpoint, with the built-in
rewriter. The same command resumes an interrupted run and shows a finished one again. The run's folder holds
leaderboard.csv, best.yaml, summary.json and the journal.
"""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluators.orders import evals_per_clip
from evaluators.statistics.resampling import MIN_SOURCES
from evaluators.threads import use_threads
from opro.cli import DONE, parse, run_verb
from opro.problem import Problem, open_problem
from opro.proposers.open import ProposerPlan, open_proposer
from opro.proposers.shared import PastRun, shared_candidates
from opro.results.leaderboard import leaderboard_csv, leaderboard_rows
from opro.results.optuna_study import write_study
from opro.results.progress import Progress
from opro.results.run_folder import LOG, STUDY, RunFolder
from opro.results.shown import plan_lines, show_run
from opro.results.spending import MeteredEvaluator, Spending, Spent, read_spent
from opro.results.summary import Evals, LmUsage, Seconds, Summary
from opro.search.budget import fit_budget
from opro.search.history import Candidate
from opro.search.loop import Clock, Search
from opro.search.objective import Objective
from opro.search.select import decide
from opro.search.steering import read_requests
from opro.settings import OptimizeSettings, named_by_default

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        OptimizeSettings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument(
            "--dry-run",
            action="store_true",
            help="print the plan, the evals and an estimate of time and tokens; score nothing",
        ),
    )
    use_threads(settings.threads)
    if space.config is not None and "name" not in vars(space):
        settings = _renamed(settings, space.config)
    run(settings, space.dry_run)
    return DONE


def _renamed(settings: OptimizeSettings, config: Path) -> OptimizeSettings:
    """Without the name in a config file that was made from its settings, where flags have changed these."""
    fed_back, _ = parse(OptimizeSettings, ["--config", str(config)], "")
    same = settings.config == fed_back.config
    return (
        settings
        if same or not named_by_default(fed_back)
        else dataclasses.replace(settings, name=None)
    )


def run(settings: OptimizeSettings, dry_run: bool = False) -> Path:
    """Searches, resumes, or shows a finished run. Returns its folder."""
    settings = settings.checked()
    problem = fit_budget(open_problem(settings), settings)
    problem = _told_of_few_sources(_told_of_thresholds(problem, settings))
    plan = open_proposer(settings, problem, _shared(settings, problem))
    if dry_run:  # wrong use is found by now, and no folder is made
        print("\n".join(plan_lines(settings, problem)))
        return settings.folder
    with RunFolder.open(settings.folder, settings.config) as folder:
        _log_to(folder.path / LOG)
        identity = dict(problem.identity)
        seeds = identity.pop("seeds")
        identity |= {"proposer": plan.name, "seeds": seeds}
        folder.begin(identity, problem.evaluator.about().versions)
        if folder.summary is None:
            _search(settings, problem, plan, folder)
        show_run(folder)
    return settings.folder


def _told_of_thresholds(problem: Problem, settings: OptimizeSettings) -> Problem:
    """With a warning where ``--threshold dev`` fits none."""
    asked = settings.threshold == "dev" and settings.objective != "nll"
    if not asked or Objective(settings.objective, settings.threshold).fits(problem.search_clips):
        return problem
    few = problem.search_clips.targets.fewest_sources
    warning = f"no thresholds are fitted: the search half has only {few} sources of one label, {MIN_SOURCES} are needed"
    return dataclasses.replace(problem, warnings=(*problem.warnings, warning))


def _told_of_few_sources(problem: Problem) -> Problem:
    """With a warning where the holdout can decide nothing, before anything is spent on a search."""
    few = problem.holdout_clips.targets.fewest_sources
    if few >= MIN_SOURCES:
        return problem
    warning = (
        f"no prompt can replace the baseline, however good: the holdout has {few} sources of one label,"
        f" {MIN_SOURCES} are needed; add recordings of other speakers and places, or give dev a larger share"
    )
    return dataclasses.replace(problem, warnings=(*problem.warnings, warning))


def _search(
    settings: OptimizeSettings, problem: Problem, plan: ProposerPlan, folder: RunFolder
) -> None:
    """Runs what is left of a search, decides, and writes the results."""
    found = problem.evaluator.about()
    about = {"warnings": list(problem.warnings), "device": found.device}
    libraries = {"scored_with": dict(found.versions)}
    folder.save_provenance({**(folder.history.header or {}), **about, **libraries})
    for text in problem.warnings:
        log.warning(text)
    clock, history = Clock(), folder.history
    spending = Spending(folder.usage, problem.evaluator, clock, read_spent(folder.usage))
    problem = dataclasses.replace(problem, evaluator=MeteredEvaluator(problem.evaluator, spending))
    most = history.steering.max_evals(settings.max_evals)
    with Progress(problem, dataclasses.replace(settings, max_evals=most)) as display:
        search = Search(
            problem,
            settings,
            plan.resume(folder.proposals),
            history,
            display,
            clock=clock,
            save=lambda trial, entry: folder.save_scores(
                trial, problem.search_clips.take(entry.scored.tolist()), entry.logp
            ),
            inbox=lambda: read_requests(folder.steering, folder.task.labels),
        )
        with _study_kept(folder), spending.noted():
            search.run()
            search.finish_finalists()
            display.stage(settings.iterations + 1, "selection on the holdout")
            before = problem.evaluator.usage.requested
            with clock.stage("scoring"):
                decision = decide(problem, settings, history, display.advance)
    # What an interrupted process asked for and this one asked for again is one request.
    requested = sum(t.n_scored * evals_per_clip(t.prompt) for t in history.trials)
    requested += problem.evaluator.usage.requested - before
    costs = _costs(requested, spending.total, plan)
    steered = history.steering.told(settings.max_evals)
    problem = dataclasses.replace(problem, warnings=(*problem.warnings, *steered))
    summary = Summary.of(settings, problem, history, decision, costs)
    rows = leaderboard_rows(folder, summary)
    folder.save_results(decision, summary, leaderboard_csv(rows))


@contextlib.contextmanager
def _study_kept(folder: RunFolder) -> Iterator[None]:
    """Writes the trials so far as an Optuna study when the block ends, however it ends."""

    def write() -> None:
        if folder.history.trials:
            write_study(folder.history, folder.path / STUDY, folder.name)

    try:
        yield
    except BaseException:
        try:
            write()
        except Exception as second:  # the first error is the one to be told
            log.warning("%s could not be written: %s", STUDY, second)
        raise
    write()


def _costs(requested: int, spent: Spent, plan: ProposerPlan) -> dict[str, Any]:
    """Evals, seconds, tokens and money of all processes that worked on the run."""
    ledger = plan.ledger
    cached = max(0, requested - spent.forward)  # below it where a cache was deleted in between
    return {
        "evals": Evals(requested=requested, cached=cached, forward=spent.forward),
        "seconds": Seconds(
            total=round(spent.total, 2),
            scoring=round(spent.scoring, 2),
            proposing=round(spent.proposing, 2),
        ),
        "refused": ledger.refused,
        "lost": ledger.lost,
        "lm": LmUsage(
            calls=ledger.calls,
            tokens_in=ledger.tokens_in,
            tokens_out=ledger.tokens_out,
            cost=ledger.cost,
        ),
    }


def _shared(settings: OptimizeSettings, problem: Problem) -> list[Candidate]:
    """What ``--share`` brings from other runs."""
    runs = []
    for name in settings.share.split(",") if settings.share else []:
        folder = RunFolder.read(Path(name.strip()), flag="--share ")
        trials = folder.history.scored[: settings.candidates]
        runs.append(PastRun(folder.name, trials, folder.searched_sources(trials)))
    found = shared_candidates(runs, problem.holdout_clips, settings.candidates)
    return [  # in the orders of this run, whatever the other one scored
        dataclasses.replace(c, prompt=dataclasses.replace(c.prompt, both_orders=settings.swap))
        for c in found
    ]


def _log_to(path: Path) -> None:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen = logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    screen.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.raiseExceptions = False  # a full disk is reported once, by the journal
    root = logging.getLogger()
    root.handlers = [handler, screen]
    root.setLevel(logging.INFO)
    for noisy in ("httpx", "httpcore", "openai", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(run_verb(main))
