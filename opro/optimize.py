"""Searches prompts for a checkpoint on the dev split: python -m opro.optimize --iterations 5

With no other flag it runs offline, on a CPU, on the shipped clips and the shipped pocket checkpoint, with the built-in
rewriter. The same command resumes an interrupted run and shows a finished one again. The run's folder holds
leaderboard.csv, best.yaml, summary.json and the journal.
"""

import contextlib
import dataclasses
import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.evaluator import Evaluator
from evaluators.files import check_folder
from evaluators.orders import evals_per_clip
from evaluators.prompts import Prompt
from evaluators.statistics.compare import estimate
from evaluators.statistics.resampling import MIN_SOURCES
from evaluators.threads import use_threads
from opro.callable import make_callable
from opro.cli import DONE, ShownFormatter, check_names, hand_over, parse, run_verb
from opro.frames import Asked, classifiers_of, prompt_path
from opro.problem import (
    OWN,
    Problem,
    data_of,
    halve,
    open_data,
    open_evaluator,
    open_problem,
    open_seeds,
    problem_of,
)
from opro.proposers.factors import levels, surface
from opro.proposers.ledger import Ledger
from opro.proposers.open import OwnPlan, ProposerPlan, check_servers, open_proposer
from opro.proposers.profiled import is_profile, read_profile
from opro.proposers.shared import PastRun, shared_candidates
from opro.results.again import finished_run
from opro.results.decisions import comparison_id, record_decision
from opro.results.leaderboard import leaderboard_csv, leaderboard_rows
from opro.results.optuna_study import LiveStudy
from opro.results.progress import Displays, Progress
from opro.results.repeats import repeats_of
from opro.results.result import Result
from opro.results.run_folder import LOG, STUDY, RunFolder
from opro.results.shown import plan_lines, show_run
from opro.results.spending import MeteredEvaluator, Spending, Spent, read_spent
from opro.results.summary import Evals, LmUsage, Repeats, Seconds, Speed, Summary
from opro.results.trackers import Reported, open_trackers, tracker_names
from opro.search.budget import decision_pairs, fit_budget, planned_pairs
from opro.search.history import Candidate, History, Trial
from opro.search.lengths import TOKENS, Limit
from opro.search.loop import Clock, Search
from opro.search.objective import Objective
from opro.search.parts import score_in_parts
from opro.search.proposer import Proposer
from opro.search.repeats import best_of, journal_pool, pool, wins_of
from opro.search.select import Decision, Turn, decide
from opro.search.steering import read_requests
from opro.settings import OptimizeSettings, named_by_default

log = logging.getLogger(__name__)


class Options(TypedDict, total=False):
    """Flags of ``python -m opro.optimize`` that `optimize` takes: see `opro.settings` for what each does."""

    name: str
    runs_dir: str | Path
    iterations: int
    candidates: int
    strategy: str
    objective: str
    threshold: str
    swap: bool
    max_evals: int
    max_prompt_tokens: int
    brittleness: int
    seed: int
    repeats: int
    adapter: str | Path
    quantization: str
    device: str
    dtype: str
    lm_model: str
    lm_base_url: str
    max_cost: float
    max_tokens: int
    heard: str
    presentations: str | Path
    renderings: str


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
    folder = run(settings, space.dry_run)
    if not space.dry_run:
        hand_over(RunFolder.read(folder).document())
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


def run(
    settings: OptimizeSettings, dry_run: bool = False, beside: Sequence[Evaluator] = ()
) -> Path:
    """Searches, resumes, or shows a finished run. Returns its folder.

    Args:
        beside: See `open_problem`.
    """
    settings = settings.checked()
    again = None if dry_run else finished_run(settings)
    if again is not None:
        show_run(again)
        return settings.folder
    problem, plan = _opened(settings, beside)
    if dry_run:  # wrong use is found by now, and no folder is made
        lines = list(plan_lines(settings, problem))
        print("\n".join(lines))
        hand_over({"dry_run": True, "folder": str(settings.folder), "plan": lines})
        return settings.folder
    show_run(_decided(settings, problem, plan))
    problem.evaluator.release()
    return settings.folder


def search_only(settings: OptimizeSettings) -> RunFolder:
    """Searches, or goes on, and decides nothing: the holdout is left alone. A run that has decided is as it was.

    The command of these settings decides later, if it is ever given.
    """
    settings = settings.checked()
    problem, plan = _opened(settings)
    try:
        with _begun(settings, problem, plan) as folder:
            if folder.summary is None:
                _note_origin(problem, folder)
                _warn(problem)
                with _working(settings, problem, folder) as work, work.spending.noted():
                    _find(settings, plan, work)
            return folder
    finally:
        problem.evaluator.release()  # its memory is the next one's


def _opened(
    settings: OptimizeSettings, beside: Sequence[Evaluator] = ()
) -> tuple[Problem, ProposerPlan]:
    """What is searched, and who proposes. Raises UserError for whatever would fail later."""
    check_folder(settings.runs_dir, "--runs-dir")
    tracker_names(settings.report_to)
    check_servers(settings)
    problem = _told(open_problem(settings, beside), settings)
    return problem, open_proposer(settings.searches()[0], problem, *_shared(settings, problem))


def optimize(
    evaluator: Evaluator | str | Path,
    seeds: "Path | Sequence[Asked] | Asked",
    clips: ClipSet | tuple[ClipSet, ClipSet] | str | Path,
    *,
    proposer: Proposer | None = None,
    **options: Unpack[Options],
) -> Result:
    """Searches prompts, or goes on where the same call was interrupted, and decides on clips that it has not seen.

    With names for evaluator, seeds and clips the run is the one of ``python -m opro.optimize`` with the same flags.

    Args:
        evaluator: Name, folder or hub id of a checkpoint, whose scores are kept; or an `Evaluator`.
        seeds: A prompt file, or texts (answered with A, B, ... in the order of the labels), prompts, or classifiers,
            whose thresholds are fitted anew.
        clips: A manifest, whose dev split is taken, or a clip set, both halved by source; or (search half, holdout).
        proposer: Where prompts come from; None: a language model where one is configured, else the built-in rewriter.
        options: The flags of the command that say how a search goes and where it is kept, such as ``iterations=5``.
    Raises:
        UserError: Something cannot be used; nothing is written then.
        PauseError: Something outside failed; the same call goes on.
    """
    check_names(options, Options)
    if proposer is not None and not isinstance(proposer, Proposer):
        raise UserError(
            f"proposer is a {type(proposer).__name__}; expected an object with `name` and `propose`, see"
            " opro/examples/proposer.py"
        )
    if proposer is not None and options.get("presentations") is not None:
        raise UserError(
            "presentations go with the built-in proposers; one of your own gives its prompts a presentation itself, or"
            " leave proposer out"
        )
    if proposer is not None and options.get("repeats", 1) != 1:
        raise UserError(
            "repeats change the seed of the built-in proposers, and one of your own has none; leave proposer out, or"
            " make runs with a name each"
        )
    settings, prompts, (search, holdout) = _asked(evaluator, seeds, clips, dict(options))
    if proposer is None:
        check_servers(settings)
    problem = _told(problem_of(evaluator, prompts, search, holdout, settings), settings)
    plan = open_proposer(settings.searches()[0], problem) if proposer is None else OwnPlan(proposer)
    _decided(settings, problem, plan)
    return Result(settings.folder)


def _asked(
    evaluator: Evaluator | str | Path,
    seeds: "Path | Sequence[Asked] | Asked",
    clips: ClipSet | tuple[ClipSet, ClipSet] | str | Path,
    options: dict[str, Any],
) -> tuple[OptimizeSettings, Sequence[Prompt], tuple[ClipSet, ClipSet]]:
    """(Settings, seed prompts, halves). What was given as an object stands in the settings as `OWN`."""
    if not isinstance(clips, str | Path | ClipSet) and not (
        isinstance(clips, tuple) and len(clips) == 2 and all(isinstance(c, ClipSet) for c in clips)
    ):
        raise UserError(
            f"clips is a {type(clips).__name__}; expected a manifest, a ClipSet as opro.load_clips gives it, or a pair"
            " of them: search half and holdout"
        )
    if not isinstance(clips, str | Path) and options.get("renderings", "1") != "1":
        raise UserError(
            f"renderings is {options['renderings']!r}, and clips are given as objects; give the manifest's path, or"
            " clip sets that hold the further clips, from evaluators.renderings.read_renderings"
        )
    options["runs_dir"] = Path(options.get("runs_dir", "runs"))
    for name in ("adapter", "presentations"):
        if options.get(name) is not None:
            options[name] = Path(options[name])
    path = prompt_path(seeds)
    named = isinstance(evaluator, str | Path)
    settings = OptimizeSettings(
        checkpoint=str(evaluator) if named else open_evaluator(evaluator)[0],
        seeds=path or Path(f"{OWN}{_digest(seeds)}"),
        manifest=Path(clips) if isinstance(clips, str | Path) else _manifest(clips),
        **options,
    ).checked()
    if isinstance(clips, str | Path):
        both = open_data(settings).halves(settings)
    else:
        both = halve(clips) if isinstance(clips, ClipSet) else clips
    task = both[0].task
    if path is not None:
        return settings, open_seeds(settings, task), both
    given = [c.prompt for c in classifiers_of(seeds, task.labels)]
    prompts = [dataclasses.replace(p, both_orders=p.both_orders or settings.swap) for p in given]
    return settings, prompts, both


def _manifest(clips: ClipSet | tuple[ClipSet, ClipSet]) -> Path:
    """How a run's settings name clips: by their manifest where they are its whole dev split, else by a digest."""
    if isinstance(clips, ClipSet) and clips.manifest is not None:
        if data_of(clips.task, clips.manifest).split("dev").clips == clips.clips:
            return clips.manifest
    return Path(f"{OWN}{_digest(clips)}")


def _digest(given: object) -> str:
    """Of objects, whose `repr` is all that they are."""
    return hashlib.sha256(repr(given).encode()).hexdigest()[:12]


def _told(problem: Problem, settings: OptimizeSettings) -> Problem:
    """Fitted to the budget, with warnings of what its clips cannot show."""
    problem = _told_of_length(_fitted(problem, settings), settings)
    return _told_of_few_sources(_told_of_thresholds(problem, settings))


def _decided(
    settings: OptimizeSettings,
    problem: Problem,
    plan: ProposerPlan | OwnPlan,
) -> RunFolder:
    """The run's folder, with its search ended and its decision made."""
    with _begun(settings, problem, plan) as folder:
        if folder.summary is None:
            if isinstance(plan, ProposerPlan) and settings.repeats > 1:
                _search_repeatedly(settings, problem, plan, folder)
            else:
                _search(settings, problem, plan, folder)
        return folder


@contextlib.contextmanager
def _begun(
    settings: OptimizeSettings, problem: Problem, plan: ProposerPlan | OwnPlan
) -> Iterator[RunFolder]:
    """The run's folder, which says what the run is, alone until the block ends."""
    with (
        RunFolder.open(settings.folder, settings.config, problem.task) as folder,
        _logged(folder.path / LOG),
    ):
        identity = dict(problem.identity)
        seeds = identity.pop("seeds")
        identity |= {"proposer": plan.name, "seeds": seeds}
        folder.begin(identity, problem.evaluator.about().versions)
        yield folder


def _fitted(problem: Problem, settings: OptimizeSettings) -> Problem:
    """Fitted to the budget of each search, with a warning where several share one."""
    one, count = settings.searches()[0], settings.repeats
    if count == 1:
        return fit_budget(problem, settings)
    try:
        problem = fit_budget(problem, one)
    except UserError as error:
        raise UserError(f"a search's share of {count} repeats: {error}") from None
    limits = [
        f"--{name} {whole} is for all {count} repeats, {part:g} for each"
        for name, whole, part in (
            ("max-evals", settings.max_evals, one.max_evals),
            ("max-cost", settings.max_cost, one.max_cost),
            ("max-tokens", settings.max_tokens, one.max_tokens),
        )
        if part is not None
    ]
    return dataclasses.replace(problem, warnings=(*problem.warnings, *limits))


def _told_of_length(problem: Problem, settings: OptimizeSettings) -> Problem:
    """With a warning where ``--max-prompt-tokens`` counts words.

    Raises:
        UserError: A seed prompt is longer: what candidates are compared with would break the limit itself.
    """
    if settings.max_prompt_tokens is None:
        return problem
    seeds = problem.seed_prompts
    limit = Limit.of(problem.evaluator, settings.max_prompt_tokens, seeds[0])
    longest = max(seeds, key=limit.length)
    if limit.why_not(longest):
        count = sum(bool(limit.why_not(p)) for p in seeds)
        raise UserError(
            f"--max-prompt-tokens is {limit.most}, and {count} of {len(seeds)} seed prompts are longer, up to"
            f" {limit.length(longest)} {limit.unit} with the system message ({longest.text[:60]!r}); give at least"
            f" {limit.length(longest)}, or shorter ones with --seeds FILE"
        )
    if limit.unit == TOKENS:
        return problem
    warning = (
        f"--max-prompt-tokens {limit.most} counts words, for this checkpoint has no tokenizer here"
    )
    return dataclasses.replace(problem, warnings=(*problem.warnings, warning))


def _told_of_thresholds(problem: Problem, settings: OptimizeSettings) -> Problem:
    """With a warning where ``--threshold dev`` fits none."""
    asked = settings.threshold == "dev" and settings.objective != "nll"
    if not asked or Objective(settings.objective, settings.threshold).fits(problem.search_clips):
        return problem
    few = problem.search_clips.targets.fewest_sources
    warning = f"no threshold is used: the search half has only {few} sources of one label, {MIN_SOURCES} are needed"
    if problem.task.choices:
        warning = "no threshold is used: a place among a clip's own options is no class"
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


@dataclass(frozen=True)
class Work:
    """What is under way in a run's folder: its problem, whose evals are counted, and who follows it."""

    problem: Problem
    folder: RunFolder
    spending: Spending
    display: Displays
    reported: Reported

    @property
    def clock(self) -> Clock:
        """Of the seconds spent."""
        return self.spending.clock


@contextlib.contextmanager
def _working(
    settings: OptimizeSettings, problem: Problem, folder: RunFolder, before: int = 0
) -> Iterator[Work]:
    """The work on a run until the block ends.

    Args:
        before: New evals that this process made for other runs.
    """
    clock, history = Clock(), folder.history
    spent = read_spent(folder.usage)
    spending = Spending(folder.usage, problem.evaluator, clock, spent, before=before)
    problem = dataclasses.replace(problem, evaluator=MeteredEvaluator(problem.evaluator, spending))
    most = history.steering.max_evals(settings.max_evals)
    with (
        Progress(problem, dataclasses.replace(settings, max_evals=most)) as display,
        _study_kept(folder) as study,
        _reported(settings, folder) as reported,
    ):
        displays = Displays((display, study, reported))
        yield Work(problem, folder, spending, displays, reported)


def _note_origin(problem: Problem, folder: RunFolder) -> None:
    """Where and how the run began."""
    found = problem.evaluator.about()
    about = {"warnings": list(problem.warnings), "device": found.device}
    libraries: dict[str, Any] = {"scored_with": dict(found.versions)}
    if found.checkpoint is not None:
        libraries["weights"] = found.checkpoint.digest
    folder.save_provenance({**(folder.history.header or {}), **about, **libraries})


def _warn(problem: Problem) -> None:
    """What is to be told of a run before it searches."""
    for text in problem.warnings:
        log.warning(text)


def _search(
    settings: OptimizeSettings,
    problem: Problem,
    plan: ProposerPlan | OwnPlan,
    folder: RunFolder,
) -> None:
    """Runs what is left of a search, decides, and writes the results."""
    _note_origin(problem, folder)
    _warn(problem)
    with _working(settings, problem, folder) as work:
        with work.spending.noted():
            _find(settings, plan, work)
            decision, asked = _judge(settings, work)
        # What an interrupted process asked for and this one asked for again is one request.
        requested = _requested(folder.history) + asked
        costs = _costs(requested, work.spending.total, [plan.ledger])
        _conclude(settings, work, decision, costs)


def _find(settings: OptimizeSettings, plan: ProposerPlan | OwnPlan, work: Work) -> None:
    """Searches, from wherever the journal stands."""
    problem, folder = work.problem, work.folder
    search = Search(
        problem,
        settings,
        plan.resume(folder.proposals),
        folder.history,
        work.display,
        clock=work.clock,
        save=lambda trial, entry: folder.save_scores(
            trial, problem.search_clips.take(entry.scored.tolist()), entry.logp
        ),
        inbox=lambda: read_requests(folder.steering, folder.task.labels),
    )
    search.run()
    search.finish_finalists()


def _judge(settings: OptimizeSettings, work: Work) -> tuple[Decision, int]:
    """(The decision, evals asked for)."""
    problem = work.problem
    work.display.stage(settings.iterations + 1, "selection on the holdout")
    before = problem.evaluator.usage.requested
    with work.clock.stage("scoring"):
        decision = decide(
            problem,
            settings,
            work.folder.history,
            work.display.advance,
            lambda compared: _turn(settings, problem, work.folder, compared),
        )
    return decision, problem.evaluator.usage.requested - before


def _conclude(
    settings: OptimizeSettings, work: Work, decision: Decision, costs: Mapping[str, Any]
) -> None:
    """Writes the results."""
    folder, problem = work.folder, work.problem
    steered = folder.history.steering.told(settings.max_evals)
    problem = dataclasses.replace(problem, warnings=(*problem.warnings, *steered))
    speed = Speed.of(problem.evaluator.about().work)
    summary = Summary.of(settings, problem, folder.history, decision, {**costs, "speed": speed})
    rows = leaderboard_rows(folder, summary)
    folder.save_results(decision, summary, leaderboard_csv(rows))
    work.reported.finish(summary)


def _search_repeatedly(
    settings: OptimizeSettings, problem: Problem, plan: ProposerPlan, folder: RunFolder
) -> None:
    """Runs what is left of several searches, pools them, decides once over all, and writes the results.

    The pool is a history like any other, so that number of finalists, test and level are those of a single search, and
    Holm pays for the finalists that are heard. First of these is what most searches found best: more trials make more
    that lead by luck, and each search's luck is its own. `tests/bench_repeats.py` compares it with other rules.
    """
    _note_origin(problem, folder)
    _warn(problem)
    made, ledgers = list[RunFolder](), list[Ledger]()
    each = settings.searches()
    for number, one in enumerate(each):
        print(f"search {number + 1} of {len(each)}, seed {one.seed}", file=sys.stderr)
        # Who proposes has been said once.
        said = dataclasses.replace(one, proposer="rewriter") if number and not plan.lm else one
        own = open_proposer(said, problem, plan.shared)
        made.append(_one_of_several(one, problem, own))
        ledgers.append(own.ledger)
    pooled = pool([search.history.trials for search in made], settings.iterations)
    for known in pooled:
        folder.take_scores(made[known.search], known.trial)
    journal_pool(folder.history, pooled)
    folder.history.wins = wins_of(search.history.trials for search in made)
    steered = [
        f"seed {one.seed}: {text}"
        for one, search in zip(each, made, strict=True)
        for text in search.history.steering.told(one.max_evals)
    ]
    problem = dataclasses.replace(problem, warnings=(*problem.warnings, *steered))
    spent = sum((read_spent(search.usage) for search in made), Spent())
    with _working(settings, problem, folder, problem.evaluator.usage.forward) as work:
        for trial in folder.history.trials:
            work.reported.told(trial, folder.history.best)
        searched = planned_pairs(problem, settings) - decision_pairs(problem, settings)
        work.display.advance(0, searched)
        with work.spending.noted():
            decision, asked = _judge(settings, work)
            repeats, heard = _described(settings, work, made)
        requested = sum(_requested(search.history) for search in made) + asked + heard
        costs = _costs(requested, spent + work.spending.total, ledgers)
        _conclude(settings, work, decision, costs | {"repeats": repeats})


def _one_of_several(settings: OptimizeSettings, problem: Problem, plan: ProposerPlan) -> RunFolder:
    """The folder of a search that leaves the decision to the run that it is a part of, ended."""
    identity = {**problem.identity, "seed": settings.seed}
    problem = dataclasses.replace(problem, identity=identity)
    with _begun(settings, problem, plan) as folder:
        if folder.ended:
            plan.resume(folder.proposals)  # what it has spent
            return folder
        _note_origin(problem, folder)
        with _working(settings, problem, folder, problem.evaluator.usage.forward) as work:
            with work.spending.noted():
                _find(settings, plan, work)
            work.display.advance(0, decision_pairs(problem, settings))
        folder.end(leaderboard_csv(leaderboard_rows(folder)))
        return folder


def _described(
    settings: OptimizeSettings, work: Work, made: Sequence[RunFolder]
) -> tuple[Repeats, int]:
    """(What the searches came to, evals asked for): the best prompt of each is scored on the holdout, and described."""
    problem, best = work.problem, [best_of(search.history.trials) for search in made]
    before = problem.evaluator.usage.requested
    with work.clock.stage("scoring"):
        prompts = list(dict.fromkeys(one.prompt for one in best))
        table = score_in_parts(
            problem.evaluator, prompts, problem.holdout_clips, work.display.advance
        )
    heard = [
        estimate(table.predict(one.classifier), settings.objective, seed=settings.seed).value
        for one in best
    ]
    seeds = [one.seed for one in settings.searches()]
    asked = problem.evaluator.usage.requested - before
    return repeats_of(seeds, [search.history.trials for search in made], heard), asked


def _requested(history: History) -> int:
    """Evals that a search asked for."""
    return sum(t.n_scored * evals_per_clip(t.prompt) for t in history.trials)


def _turn(
    settings: OptimizeSettings, problem: Problem, folder: RunFolder, compared: Sequence[Trial]
) -> Turn:
    """Which decision on its half a run makes: as its journal has it, else as the ledger of all runs says."""
    made = folder.history.selection
    if made is not None:  # its results were lost, and are written again as they were
        return Turn(made["turn"])
    fingerprint = problem.evaluator.fingerprint
    what = comparison_id(fingerprint, settings.objective, settings.seed, compared)
    return record_decision(settings.runs_dir, problem.holdout_clips, folder.name, what)


@contextlib.contextmanager
def _study_kept(folder: RunFolder) -> Iterator[LiveStudy]:
    """The Optuna study of the run, with all that was told before the block and in it, however it ends.

    A new run's is opened by the first trial that is told: Optuna's import would delay the first scores. One where
    trials were told is opened at once, since they may be told anew.
    """
    study = LiveStudy(folder.history, folder.path / STUDY, levels(folder.task.labels), surface)
    study.catch_up()
    try:
        yield study
    finally:
        study.catch_up()


@contextlib.contextmanager
def _reported(settings: OptimizeSettings, folder: RunFolder) -> Iterator[Reported]:
    """What reports to ``--report-to``; an interrupted search is ended there as interrupted."""
    reported = open_trackers(tracker_names(settings.report_to), folder)
    try:
        yield reported
    finally:
        reported.finish(None)


def _costs(requested: int, spent: Spent, ledgers: Sequence[Ledger]) -> dict[str, Any]:
    """Evals, seconds, tokens and money of all processes that worked on the run."""
    cached = max(0, requested - spent.forward)  # below it where a cache was deleted in between
    return {
        "evals": Evals(requested=requested, cached=cached, forward=spent.forward),
        "seconds": Seconds(
            total=round(spent.total, 2),
            scoring=round(spent.scoring, 2),
            proposing=round(spent.proposing, 2),
        ),
        "refused": sum(one.refused for one in ledgers),
        "lost": sum(one.lost for one in ledgers),
        "lm": LmUsage(
            calls=sum(one.calls for one in ledgers),
            tokens_in=sum(one.tokens_in for one in ledgers),
            tokens_out=sum(one.tokens_out for one in ledgers),
            cost=sum(one.cost for one in ledgers),
        ),
    }


def _shared(settings: OptimizeSettings, problem: Problem) -> tuple[list[Candidate], str]:
    """What ``--share`` brings from other runs and profiles: candidates, and what profiles tell a language model."""
    runs, told = list[PastRun](), list[str]()
    for path in (Path(p.strip()) for p in (settings.share or "").split(",") if settings.share):
        if is_profile(path):
            profiled = read_profile(path, problem.task, settings.checkpoint)
            runs.append(profiled.run)
            told.append(profiled.table)
            continue
        folder = RunFolder.read(path, flag="--share ")
        trials = folder.history.scored[: settings.candidates]
        runs.append(PastRun(folder.name, trials, folder.searched_sources(trials)))
    found = shared_candidates(runs, problem.holdout_clips, settings.candidates)
    candidates = [  # in the orders of this run, whatever the other one scored
        dataclasses.replace(c, prompt=dataclasses.replace(c.prompt, both_orders=settings.swap))
        for c in found
    ]
    return candidates, "\n\n".join(filter(None, told))


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Logs into a file, and warnings to stderr, until the block ends."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(ShownFormatter("%(asctime)s %(levelname)s %(message)s"))
    screen = logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    screen.setFormatter(ShownFormatter("%(levelname)s %(message)s"))
    logging.raiseExceptions = False  # a full disk is reported once, by the journal
    root = logging.getLogger()
    before = root.handlers, root.level
    root.handlers = [handler, screen]
    root.setLevel(logging.INFO)
    for noisy in ("httpx", "httpcore", "httpx2", "httpcore2", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers, root.level = before
        with contextlib.suppress(OSError):  # of a full disk, as above
            handler.close()


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_verb(main))
