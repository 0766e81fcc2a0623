"""What `opro.optimize` prints: the plan of a dry run, and a finished run with its decision."""

from collections.abc import Iterator, Mapping

from evaluators.classifier import spell_bias
from evaluators.clips import ClipSet
from evaluators.evaluator import Evaluator
from evaluators.orders import evals_per_clip
from evaluators.prompts import shown_text
from evaluators.renderings import renderings_path
from evaluators.tasks import Task
from opro.problem import Problem
from opro.results.brittle import brittle_lines
from opro.results.decisions import count_decisions
from opro.results.leaderboard import leaderboard_rows, leaderboard_sheet
from opro.results.progress import spelled
from opro.results.repeats import repeats_sheet, spread_line, wins_line
from opro.results.run_folder import RunFolder
from opro.results.sheet import render
from opro.results.summary import Scored, Summary
from opro.results.two_by_two import share_line, two_by_two_sheet, verdict_line
from opro.search.budget import edited_pairs, most_evals, orders
from opro.search.objective import NAMES
from opro.search.power import Half, Simulation, shown_by
from opro.search.presentations import effects
from opro.search.select import Turn
from opro.settings import STRATEGIES, OptimizeSettings

SHOWN = 10  # prompts of a finished run
CALL_TOKENS = 4000  # of a call to a language model, at most about
ORIGINS = {  # of what a trial's origin says, before its colon
    "seed": "hand (seeds)",
    "hand": "hand (steering)",
    "lm": "the language model",
    "rewriter": "the rewriter",
    "shared": "other runs",
    "presentation": "giving the clip in other ways",
}


def plan_lines(settings: OptimizeSettings, problem: Problem) -> Iterator[str]:
    """What a search would do, what of it is in the cache, and how long it takes."""
    search, holdout, evaluator = problem.search_clips, problem.holdout_clips, problem.evaluator
    seeds, most = problem.seed_prompts, most_evals(problem, settings)
    asked = sum(map(evals_per_clip, seeds)) * len(search)
    cached = max(0, asked - evaluator.count_missing(seeds, search))
    about = evaluator.about()
    yield f"run         {settings.folder}"
    yield (
        f"checkpoint  {', '.join(settings.checkpoints)}, quantization {settings.quantization}, fingerprint"
        f" {evaluator.fingerprint[:12]}"
    )
    yield (
        f"search      {len(seeds)} seeds + {settings.iterations} x {settings.candidates} candidates"
        f" on {_clips_of(search)}{_heard(settings.renderings)}, strategy {settings.strategy}"
    )
    if settings.repeats > 1:
        last = settings.seed + settings.repeats - 1
        yield (
            f"repeats     {settings.repeats} such searches, seeds {settings.seed} to {last}, and one decision over all"
        )
    if settings.presentations is not None:
        yield (
            f"clips       given as they are, and as {settings.presentations} says; each way takes a clip's audio"
            " through the model anew, which the time below leaves out"
        )
    turn = Turn(count_decisions(settings.runs_dir, holdout) + 1)
    yield f"selection   on {_clips_of(holdout)}{_heard(settings.renderings)}{turn.said()}"
    candidates = settings.repeats * settings.iterations * settings.candidates
    proposed = Simulation(candidates=max(1, candidates))
    manifest = holdout.manifest
    if settings.renderings == "1" and manifest and renderings_path(manifest).is_file():
        yield (
            "renderings  the set has further ones, more clips of the same sources: --renderings all hears them, and"
            " python -m opro.power says what they buy"
        )
    yield f"dev shows   {shown_by((Half.of(search), Half.of(holdout)), proposed, turn.level)}"
    yield f"evals       at most {most:,}; {cached:,} of the seeds' are cached"
    if edited := edited_pairs(problem, settings) * orders(problem, settings):
        yield f"brittle     {edited:,} of them at most are trivial edits of the finalists"
    yield f"time        {time_of(evaluator, most - cached, settings)}"
    for line in about.memory:
        yield f"memory      {line}"
    if settings.lm_model:
        each = settings.candidates if STRATEGIES[settings.strategy].lm_alone else 3
        calls = settings.repeats * settings.iterations * each
        tokens = f"{calls * CALL_TOKENS:,} for {calls} calls of {settings.lm_model}"
        yield f"tokens      at most about {tokens}"
    for text in problem.warnings:
        yield f"warning     {text}"


def _heard(renderings: str) -> str:
    """In how many renderings each source is heard; empty where the manifest alone is."""
    if renderings == "1":
        return ""
    count = "all" if renderings == "all" else f"the first {int(renderings)}"
    return f", each heard in {count} of its renderings"


def _clips_of(clips: ClipSet) -> str:
    return f"{len(clips)} clips of {len({c.source_id for c in clips})} sources"


RACED = (
    0.35  # share of the evals that a race asks for; 25 to 35 % were measured (tests/bench_race.py)
)


def time_of(evaluator: Evaluator, evals: int, settings: OptimizeSettings | None = None) -> str:
    """An estimate of the time for so many evals, in words.

    Args:
        settings: Of a search: a race asks for a third of them.
    """
    each = evaluator.about().seconds_per_eval
    if each is None:
        return "a few seconds"
    whole = max(1.0, evals * each)
    if settings is not None and STRATEGIES[settings.strategy].races and settings.max_evals is None:
        return f"about {spelled(max(1.0, RACED * whole))}, at most {spelled(whole)}"
    return f"about {spelled(whole)}"


def show_run(folder: RunFolder) -> None:
    """The leaderboard, the decision in words, and where everything lies, on stdout."""
    print("\n".join(run_lines(folder)))


def run_lines(folder: RunFolder) -> Iterator[str]:
    """What a finished run prints."""
    summary = folder.finished()
    rows = leaderboard_rows(folder, summary)[:SHOWN]
    yield render(leaderboard_sheet(rows, objective=summary.objective))
    yield ""
    if summary.two_by_two:
        yield render(two_by_two_sheet(summary.two_by_two))
        yield ""
    if summary.repeats:
        yield render(repeats_sheet(summary.repeats))
        yield ""
    for name, text in decision_lines(folder, summary):
        yield f"{name:10}{text}"


def decision_lines(folder: RunFolder, summary: Summary) -> Iterator[tuple[str, str]]:
    """(name, text) of what a finished run says."""
    chosen, baseline, first = summary.chosen, summary.baseline, summary.gain_to_first_seed
    verdict, _, why = summary.reason.partition(":")
    yield "decision", f"{verdict.upper()}:{why}"
    if summary.objective != "balanced_accuracy":
        yield "scores", f"{NAMES[summary.objective]} (gain, baseline, chosen)"
    if str(folder.config.get("renderings", "1")) != "1":
        yield (
            "heard",
            f"each source in {folder.config['renderings']} of its renderings; it counts as one source all the same",
        )
    if summary.two_by_two:
        yield "of which", share_line(summary.two_by_two)
    if verdict_on_wording := verdict_line(summary):
        yield "", verdict_on_wording
    yield (
        "baseline",
        f"{_interval(baseline)} on the holdout  {_shown(shown_text(baseline.text, baseline.presentation))}",
    )
    yield "chosen", f"{_interval(chosen)} on the holdout  {_shown(chosen.text)}"
    bounds = (
        ""
        if first.low is None or first.high is None
        else (f" [{100 * first.low:+.1f}, {100 * first.high:+.1f}]")
    )
    yield "", f"{100 * first.estimate:+.1f} points{bounds} against the first seed prompt"
    yield from _presented(folder)
    yield from zip(("brittle", ""), brittle_lines(summary), strict=False)
    if chosen.presentation:
        yield "clip", f"{chosen.presentation}, as best.yaml says"
    if chosen.bias:
        told = (
            spell_bias(chosen.bias, folder.task.labels)
            if isinstance(chosen.bias, tuple)
            else f"{chosen.bias:+.2f} nats on the first label"
        )
        yield "threshold", f"{told}, in best.yaml"
    if summary.repeats:
        yield "repeats", spread_line(summary.repeats)
        yield "", wins_line(summary.repeats)
    yield "controls", _controls(summary.controls[chosen.prompt_id], folder.task)
    yield "cost", _cost(summary)
    if summary.speed:
        yield "", summary.speed.line()
    made = ", ".join(f"{n} by {ORIGINS.get(k, k)}" for k, n in summary.proposed.items())
    if summary.refused:
        made += (
            f"; {summary.refused} of the language model's were refused (proposals.jsonl says why)"
        )
    yield "prompts", made
    if summary.checkpoint.startswith("pocket-"):
        yield (
            "note",
            "the pocket checkpoints are small stand-ins: their numbers say nothing about"
            " Qwen2-Audio-7B",
        )
    for text in summary.warnings:
        yield "warning", text
    yield "saved", str(folder.path / "best.yaml")
    yield "next", f"python -m opro.rescore {folder.path} --split test"
    if not summary.brittleness:
        yield "", f"python -m opro.brittle {folder.path}"


def _presented(folder: RunFolder) -> Iterator[tuple[str, str]]:
    """What each way to give the clip has changed, where others than as it is were searched."""
    name = "presented"
    for how, gains in effects(folder.history.scored).items():
        gain = f"{100 * sum(gains) / len(gains):+.1f} points on the search half"
        count = f"{len(gains)} wording{'s' if len(gains) > 1 else ''}"
        yield (
            name,
            f"{how.words}: {gain}, {count} (forecasts among them), against the clip as it is",
        )
        name = ""


def _controls(control: Mapping[str, float], task: Task) -> str:
    labels = task.labels
    share = 100 * control["silence_first_label"]
    return (
        f"balanced accuracy with silence {100 * control['silence']:.1f}, with shuffled audio"
        f" {100 * control['shuffled']:.1f}; chance is {task.chance}; on silence it answers"
        f" {labels[0]} for {share:.0f} % of the clips"
    )


def _cost(summary: Summary) -> str:
    evals, lm = summary.evals, summary.lm
    text = (
        f"{evals.requested:,} evals asked for, {evals.forward:,} of them new,"
        f" {summary.seconds.total:.0f} s"
    )
    if lm.calls:
        text += f"; {lm.calls} calls, {lm.tokens_in + lm.tokens_out:,} tokens"
    return text


def _interval(about: Scored) -> str:
    if about.low is None or about.high is None:
        return f"{100 * about.score:.1f} [too few sources for an interval]"
    return f"{100 * about.score:.1f} [{100 * about.low:.1f}, {100 * about.high:.1f}]"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
