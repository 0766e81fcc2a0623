"""What a finished run leaves: summary.json, best.yaml, leaderboard.csv, per-clip scores, and the closing words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.clips import Clip
from evaluators.evaluator import Evaluator
from evaluators.files import csv_text, write_json, write_text
from evaluators.prompts import Task, dump_prompts
from evaluators.statistics import describe
from evaluators.statistics.metrics import Difference
from opro.proposers.openai_model import Ledger
from opro.results.predictions import write_predictions
from opro.results.table import COLUMNS, checkpoints_of, print_table, rows_of, wide_console
from opro.search.history import History, Trial
from opro.search.loop import Clock
from opro.search.select import Selection

NAMES = {  # of what a trial's origin says, before its colon
    "seed": "hand (seeds)",
    "lm": "the language model",
    "rewriter": "the rewriter",
    "shared": "other runs",
}
FRESH = Path("scores") / "fresh"  # of a run's folder: per-clip results of baseline and finalists


def save_scores(folder: Path, trial: Trial, clips: Sequence[Clip], logp: Any, task: Task) -> None:
    """scores/<prompt_id>.csv: per clip the log-probability of each label in nats, and the mass outside all answers."""
    import numpy as np

    columns = [
        "clip_id",
        "source_id",
        "label",
        "duration_ms",
        "snr_db",
        "category",
        *(f"logp_{label}" for label in task.labels),
        "outside",
    ]
    rows = [
        {
            "clip_id": c.clip_id,
            "source_id": c.source_id,
            "label": c.label,
            "duration_ms": c.duration_ms,
            "snr_db": c.snr_db,
            "category": c.category,
            **{
                f"logp_{label}": round(float(value), 6)
                for label, value in zip(task.labels, values, strict=True)
            },
            "outside": round(max(0.0, 1 - float(np.exp(values).sum())), 6),
        }
        for c, values in zip(clips, logp, strict=False)
    ]
    write_text(
        folder / "scores" / f"{trial.candidate.prompt.prompt_id}.csv", csv_text(rows, columns)
    )


def finish(
    config: Mapping[str, Any],
    folder: Path,
    task: Task,
    history: History,
    selection: Selection,
    evaluator: Any,
    ledger: Ledger,
    clock: Clock,
    seconds: float,
    warnings: Sequence[str],
    fresh: Sequence[Clip],
) -> None:
    """Writes the results and prints them."""
    for trial in {
        t.number: t for t in [selection.baseline, *(f.trial for f in selection.finals)]
    }.values():
        name = trial.candidate.prompt.prompt_id
        judged = describe.from_scores(selection.logp[name], fresh, task.labels, trial.bias)
        write_predictions(folder / FRESH / f"{name}.csv", judged)
    chosen = selection.chosen.trial if selection.chosen else selection.baseline
    chosen_score = selection.chosen.score if selection.chosen else selection.baseline_score
    none = Difference(
        0.0, 0.0, 0.0, 1.0, selection.baseline_score.clips, selection.baseline_score.sources
    )
    gain = selection.chosen.difference if selection.chosen else none

    def about(trial: Trial, score: Any) -> dict[str, Any]:
        return {
            "prompt_id": trial.candidate.prompt.prompt_id,
            "text": trial.candidate.prompt.text,
            "score": score.value,
            "low": score.low,
            "high": score.high,
            "search_score": trial.score,
        }

    summary: dict[str, Any] = {
        "status": "complete",
        "checkpoint": checkpoints_of(config),
        "fingerprint": evaluator.fingerprint,
        "task": task.name,
        "seed": config["seed"],
        "iterations": config["iterations"],
        "trials": len(history.trials),
        "proposer": config["proposer"],
        "strategy": config["strategy"],
        "baseline": about(selection.baseline, selection.baseline_score),
        "chosen": about(chosen, chosen_score),
        "baseline_kept": selection.chosen is None,
        "reason": selection.reason,
        "gain": {
            "estimate": gain.value,
            "low": gain.low,
            "high": gain.high,
            "clips": gain.clips,
            "sources": gain.sources,
        },
        "gain_to_first_seed": {
            "estimate": selection.to_first_seed.value,
            "low": selection.to_first_seed.low,
            "high": selection.to_first_seed.high,
        },
        "finalists": [
            {
                **about(f.trial, f.score),
                "difference": f.difference.value,
                "difference_low": f.difference.low,
                "difference_high": f.difference.high,
                "p_holm": f.p_holm,
            }
            for f in selection.finals
        ],
        "controls": selection.controls,
        "evals": {
            "requested": evaluator.usage.requested,
            "cached": evaluator.usage.cached,
            "forward": evaluator.usage.forward,
        },
        "seconds": {
            "total": round(seconds, 2),
            "scoring": round(clock.scoring, 2),
            "proposing": round(clock.proposing, 2),
        },
        "proposed": Counter(t.candidate.origin.partition(":")[0] for t in history.trials),
        "refused": ledger.refused,
        "lost": ledger.lost,
        "lm": {
            "calls": ledger.calls,
            "tokens_in": ledger.tokens_in,
            "tokens_out": ledger.tokens_out,
            "cost": ledger.cost,
        },
        "warnings": list(warnings),
    }
    write_text(folder / "best.yaml", dump_prompts([chosen.candidate.prompt]))
    if history.selection is None:
        history.select(
            {
                "chosen": chosen.number,
                "baseline": selection.baseline.number,
                "reason": selection.reason,
                "finalists": [f.trial.number for f in selection.finals],
            }
        )
    rows = rows_of(folder, summary)
    write_text(folder / "leaderboard.csv", csv_text(rows, COLUMNS))
    write_json(folder / "summary.json", summary)  # last: with it the run counts as finished
    print_summary(folder, summary)


def print_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """The leaderboard, the decision in words, and where everything lies, on stdout."""
    console = wide_console()
    print_table(rows_of(folder)[:10], console)
    chosen, baseline = summary["chosen"], summary["baseline"]
    first = summary["gain_to_first_seed"]

    def line(name: str, text: str) -> None:
        console.print(f"{name:10}{text}", markup=False, soft_wrap=True)

    console.print()
    line("decision", summary["reason"])
    line("baseline", f"{_interval(baseline)} on fresh clips  {_shown(baseline['text'])}")
    line("chosen", f"{_interval(chosen)} on fresh clips  {_shown(chosen['text'])}")
    line(
        "",
        f"{100 * first['estimate']:+.1f} points"
        + (
            ""
            if first["low"] is None
            else f" [{100 * first['low']:+.1f}, {100 * first['high']:+.1f}]"
        )
        + " against the first seed prompt",
    )
    control = summary["controls"][chosen["prompt_id"]]
    line(
        "controls",
        f"chosen prompt with silence {100 * control['silence']:.1f}, with shuffled audio"
        f" {100 * control['shuffled']:.1f} (50 is what the text alone can give); answers"
        f" {_label_share(control)} with silence",
    )
    evals, seconds = summary["evals"], summary["seconds"]
    line(
        "cost",
        f"{evals['requested']:,} evals asked for, {evals['forward']:,} through the model,"
        f" {seconds['total']:.0f} s"
        + (
            f"; {summary['lm']['calls']} calls,"
            f" {summary['lm']['tokens_in'] + summary['lm']['tokens_out']:,} tokens"
            if summary["lm"]["calls"]
            else ""
        ),
    )
    made = ", ".join(f"{n} by {NAMES.get(k, k)}" for k, n in summary["proposed"].items())
    refused = summary["refused"]
    if refused:
        made += f"; {refused} of the language model's were refused (proposals.jsonl says why)"
    line("prompts", made)
    if summary["checkpoint"].startswith("pocket-"):
        line(
            "note",
            "the pocket checkpoints are small stand-ins: their numbers say nothing about"
            " Qwen2-Audio-7B",
        )
    for text in summary["warnings"]:
        line("warning", text)
    line("run", str(folder))
    line("next", f"python -m opro.rescore {folder} --split test")


def _label_share(control: Mapping[str, float]) -> str:
    return f"{100 * control['silence_first_label']:.0f} % with the first class"


def _interval(about: Mapping[str, Any]) -> str:
    if about["low"] is None:
        return f"{100 * about['score']:.1f} [too few sources for an interval]"
    return f"{100 * about['score']:.1f} [{100 * about['low']:.1f}, {100 * about['high']:.1f}]"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")


def estimate_seconds(evaluator: Evaluator, pairs: int) -> str:
    """An estimate of the time for so many evals, in words."""
    each = evaluator.about().seconds_per_eval
    if each is None:
        return "a few seconds"
    seconds = pairs * each
    return f"{seconds / 60:.0f} min" if seconds > 120 else f"{max(1, seconds):.0f} s"
