"""Scores saved prompts on the test split: python -m opro.rescore runs/NAME --split test

PROMPTS are run folders (the baseline, the chosen prompt and the finalists, --top in all, on all checkpoints of the run
together and on each of them; written to test.json in the folder) or prompt files (all of their prompts, the first one
is the baseline; written to --out). A prompt is scored with its decision threshold, where it has one. Every use of the
test split is counted for the project and shown; to show the same numbers again is no further use.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluators.classifier import Classifier, read_classifiers
from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.evaluator import ScoreTable
from evaluators.files import check_file, check_folder, write_json
from evaluators.manifest import verify
from evaluators.prompts import shown_text
from evaluators.statistics.compare import compare_many, estimate, resample
from evaluators.statistics.metrics import auroc, auroc_of, rates
from evaluators.statistics.resampling import Estimate
from evaluators.targets import Predictions
from evaluators.tasks import task_named
from evaluators.threads import use_threads
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.problem import Data, Model, open_data, open_joint_model
from opro.results.confusion import by_label, confusion_sheet
from opro.results.looks import count_uses, look_id, record_use, said_of_uses
from opro.results.matrix_rows import rates_cells
from opro.results.provenance import version_changes
from opro.results.question_kinds import by_kind, kinds_sheet, orders_line, over_orders
from opro.results.run_folder import RunFolder
from opro.results.sheet import Column, Sheet, percent, render
from opro.results.summary import FourCells
from opro.results.two_by_two import share_line, two_by_two_sheet
from opro.search.history import Trial
from opro.search.objective import slice_scores
from opro.search.select import p_text, two_by_two
from opro.settings import (
    DataSettings,
    Dtype,
    MachineSettings,
    ModelSettings,
    Quantization,
    model_settings,
)


@dataclass(frozen=True)
class RescoreSettings(MachineSettings):
    """The model and the clips: for a run folder, what is not given is taken from the run."""

    split: Literal["train", "dev", "test"] = flag("test", "split to score on")
    top: int = flag(
        5,
        "prompts of a run: chosen, finalists and the next best, beside the baseline",
        min=1,
        max=1_000,
    )
    checkpoint: str | None = flag(None, "checkpoint (default: the run's, else pocket-base)")
    adapter: Path | None = flag(None, "directory of a LoRA adapter made elsewhere")
    train_manifest: Path | None = flag(
        None, "manifest the adapter was trained on; its sources may not be scored"
    )
    heard: Literal["refuse", "allow"] = flag(
        "refuse",
        "clips of sources that the checkpoint was trained on; allow stands in every result",
    )
    quantization: Quantization | None = flag(None, "none or nf4 (default: the run's)")
    dtype: Dtype | None = flag(None, "auto, float32, bfloat16 or float16 (default: the run's)")
    device: str | None = flag(None, "auto, cpu, cuda, cuda:1, mps (default: the run's)")
    swap: bool | None = flag(
        None, "average both orders of a prompt's options, as the run did if this is not given"
    )
    task: str = flag("speech", "what is decided about a clip")
    manifest: Path | None = flag(
        None, "manifest CSV or its folder (default: the run's, else data/demo)"
    )
    out: Path | None = flag(
        None, "where the result of a prompt file goes (default: beside it, NAME.test.json)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        RescoreSettings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument(
            "prompts", nargs="+", type=Path, metavar="PROMPTS", help="run folders or prompt files"
        ),
        config=False,
    )
    use_threads(settings.threads)
    if settings.out is not None and (len(space.prompts) > 1 or space.prompts[0].is_dir()):
        raise UserError("--out goes with a single prompt file; a run folder gets its test.json")
    check_folder(settings.runs_dir, "--runs-dir")
    # Everything that can be wrong is found before the test split is used.
    jobs = [_open(_asked(settings, path), settings) for path in space.prompts]
    results = []
    for job in jobs:
        result = _rescore(job, settings)
        write_json(job.asked.out, result)
        _show(result, job.asked.out)
        results.append(result | {"path": str(job.asked.out)})
    hand_over({"results": results})
    return DONE


@dataclass(frozen=True)
class Asked:
    """What is to be scored, with what: the flags, filled up from a run where it is one.

    Attributes:
        classifiers: The baseline first.
        checkpoints: That they are to serve, the first is the model's: several where the run was made with ``--also``.
        scored_with: Versions of the libraries that the run was scored with, where it recorded them.
        fingerprint: Of the run that chose them; "" where only one of its checkpoints was asked for; None for a prompt
            file.
        pair: Of a run: its best seed prompt, and the prompt it found, where the run told wording and threshold apart.
    """

    source: Path
    classifiers: Sequence[Classifier]
    out: Path
    model: ModelSettings
    checkpoints: Sequence[str]
    data: DataSettings
    fingerprint: str | None = None
    scored_with: Mapping[str, str] | None = None
    pair: tuple[Trial, Trial | None] | None = None
    objective: str = "balanced_accuracy"


@dataclass(frozen=True)
class Job:
    """What was asked, with its clips and its model open."""

    asked: Asked
    data: Data
    clips: ClipSet
    model: Model
    warnings: tuple[str, ...]


def _asked(settings: RescoreSettings, path: Path) -> Asked:
    """The classifiers of a run folder or a prompt file, with what the flags leave open filled in."""
    task = task_named(settings.task)
    if path.is_dir():
        return _asked_of_run(settings, RunFolder.read(path))
    classifiers = [_in_both_orders(c, settings) for c in read_classifiers(path, task.labels)]
    model = model_settings(settings, {})
    return Asked(
        path,
        classifiers,
        settings.out or path.with_suffix(f".{settings.split}.json"),
        model,
        [model.checkpoint],
        DataSettings(settings.task, settings.manifest or Path("data/demo")),
    )


def _asked_of_run(settings: RescoreSettings, run: RunFolder) -> Asked:
    trials = run.ranking()[: settings.top + 1]
    config = dict(run.config)
    if settings.checkpoint not in (None, config["checkpoint"]):
        config["adapter"] = config["train_manifest"] = None  # they are of the run's checkpoint
    manifest = settings.manifest or Path(config["manifest"])
    whole = settings.checkpoint is None or len(run.checkpoints) == 1
    return Asked(
        run.path,
        [_in_both_orders(t.classifier, settings) for t in trials],
        run.path / f"{settings.split}.json",
        model_settings(settings, config),
        run.checkpoints if settings.checkpoint is None else [settings.checkpoint],
        DataSettings(run.task_flag, manifest),
        str((run.history.header or {}).get("fingerprint")) if whole else "",
        run.scored_with,
        _pair(run, trials) if not settings.swap else None,
        str(config.get("objective", "balanced_accuracy")),
    )


def _pair(run: RunFolder, trials: Sequence[Trial]) -> tuple[Trial, Trial | None] | None:
    """The best seed prompt and the prompt found, if that is among those that are scored."""
    cells = run.finished().two_by_two
    if cells is None:
        return None
    return trials[0], next((t for t in trials if t.prompt.prompt_id == cells.found), None)


def _in_both_orders(classifier: Classifier, settings: RescoreSettings) -> Classifier:
    if not settings.swap:
        return classifier
    prompt = dataclasses.replace(classifier.prompt, both_orders=True)
    return dataclasses.replace(classifier, prompt=prompt)


def _open(asked: Asked, settings: RescoreSettings) -> Job:
    """The job with its clips and model; raises UserError for whatever would fail later."""
    check_file(asked.out, "--out")
    data = open_data(asked.data)
    clips = data.split(settings.split)
    verify(clips)
    names = asked.checkpoints
    model = open_joint_model(asked.model, names, data, [clips], machine=settings)
    clips = clips.repeat(names) if len(names) > 1 else clips
    warnings = list(model.warnings)
    if asked.fingerprint and asked.fingerprint.removesuffix("-swap") != model.evaluator.fingerprint:
        here = model.evaluator.about().versions
        changes = "" if asked.scored_with is None else version_changes(asked.scored_with, here)
        warnings.append(
            f"the run was scored with {changes}"
            if changes
            else "the checkpoint, its precision or a library is not the one of the run"
        )
    if asked.fingerprint is not None and settings.split == "dev":
        warnings.append(
            "half of these clips were searched on: the scores flatter the run's prompts"
        )
    # Prompts that this model cannot score are found on silence, which is no use of the split.
    model.evaluator.score(
        [c.prompt for c in asked.classifiers], clips.first(len(names)).as_control("silence")
    )
    return Job(asked, data, clips, model, tuple(warnings))


def _rescore(job: Job, settings: RescoreSettings) -> dict[str, Any]:
    """Scores a job. The result as test.json holds it."""
    asked, digest = job.asked, job.data.digest
    about = f"{asked.source.name}, {len(asked.classifiers)} prompts"
    shows = [look_id("rescore", job.model.evaluator.fingerprint, c) for c in asked.classifiers]
    uses = (
        record_use(settings.runs_dir, digest, "rescore", about, shows)
        if settings.split == "test"
        else count_uses(settings.runs_dir, digest)
    )
    table = job.model.evaluator.score([c.prompt for c in asked.classifiers], job.clips)
    rows = list(_rows(asked.classifiers, table, job.clips))
    if job.clips.task.choices:
        for row, classifier in zip(rows, asked.classifiers, strict=True):
            row["orders"] = over_orders(job.model.evaluator, classifier.prompt, job.clips)
    result = {
        "split": settings.split,
        "checkpoint": job.model.name,
        "fingerprint": job.model.evaluator.fingerprint,
        "manifest": digest,
        "test_openings": uses,
        "warnings": list(job.warnings),
        "prompts": rows,
    }
    if asked.pair and (cells := two_by_two(table, *asked.pair, asked.objective)):
        result["two_by_two"] = FourCells.of(cells).model_dump()
    if len(asked.checkpoints) > 1:
        result["each"] = {
            name: list(_rows(asked.classifiers, *_of_checkpoint(name, table, job.clips)))
            for name in asked.checkpoints
        }
    return result


def _of_checkpoint(name: str, table: ScoreTable, clips: ClipSet) -> tuple[ScoreTable, ClipSet]:
    """The scores that one of several checkpoints gave, and its clips."""
    index = [i for i, clip in enumerate(clips) if clip.checkpoint == name]
    own = clips.take(index)
    logp, top = table.logp[:, index], table.logp_top[:, index]
    return ScoreTable(table.prompts, own.clips, logp, top), own


def _rows(
    classifiers: Sequence[Classifier], table: ScoreTable, clips: ClipSet
) -> Iterator[dict[str, Any]]:
    """One row a classifier: its score, and its gain over the first one."""
    said = [table.predict(c) for c in classifiers]
    choices = clips.task.choices
    metric = (
        "accuracy" if choices else "balanced_accuracy"
    )  # places of the right option are no classes
    # Bounds are of one comparison each; p is told as it is and corrected.
    singles = [compare_many([one], said[0], metric)[0] for one in said[1:]]
    corrected = compare_many(said[1:], said[0], metric)
    none = Estimate(0.0, 0.0, 0.0, len(clips), 0, 1.0)
    for i, (classifier, one) in enumerate(zip(classifiers, said, strict=True)):
        score = estimate(one, metric)
        single, holm = (singles[i - 1], corrected[i - 1].p) if i else (none, 1.0)
        yield {
            "prompt_id": classifier.prompt_id,
            "text": classifier.prompt.text,
            **({"presentation": given} if (given := classifier.prompt.given) else {}),
            "answers": classifier.prompt.to_dict()["answers"],
            "bias": classifier.bias,
            "both_orders": classifier.prompt.both_orders,
            "baseline": i == 0,
            "score": score.value,
            "low": score.low,
            "high": score.high,
            "clips": score.clips,
            "sources": score.sources,
            **({} if choices else _detected(one)),
            **({"kinds": by_kind(one, clips)} if choices else {}),
            **({"labels": labels} if (labels := by_label(one)) and not choices else {}),
            "outside": float(np.clip(table.outside[i], 0, 1).mean()),
            **({"unlisted": unlisted} if (unlisted := float(table.unlisted[i].mean())) else {}),
            "slices": {
                name: {"score": value, "clips": count}
                for name, (value, count) in slice_scores(
                    clips, one.targets.truth, one.right
                ).items()
            },
            "difference": {
                "value": single.value,
                "low": single.low,
                "high": single.high,
                "p": single.p,
                "p_holm": holm,
            },
        }


def _detected(said: Predictions) -> dict[str, float]:
    """Hits and false alarms of the first label, and AUROC."""
    rate = rates(resample(said.targets, resamples=1), said.decided)
    names = "hit_rate", "false_alarm_rate"
    return {name: float(rate[name].value) for name in names} | {"auroc": _auroc(said)}


def _auroc(said: Predictions) -> float:
    if said.logp is not None:
        return auroc_of(said.targets.truth, said.logp)
    return auroc(said.targets.truth, np.asarray(said.ranking))


COLUMNS = (
    Column("balanced accuracy"),
    Column("95 %", 8),
    Column("hits", 7),
    Column("false alarms", 7),
    Column("AUROC", 5),
    Column("against baseline"),
    Column("p (Holm)", 6),
    Column("prompt", text=True),
)


def result_sheet(result: dict[str, Any]) -> Sheet:
    """The rows of test.json as people read them."""
    first, body = result["prompts"][0], []
    several, choices = "labels" in first, "kinds" in first
    marked = any(row.get("unlisted") for row in result["prompts"])
    for row in result["prompts"]:
        gain = row["difference"]
        against = (
            ("baseline", "")
            if row["baseline"]
            else (percent(gain, signed=True), p_text(gain["p_holm"]))
        )
        bounds = "" if row["low"] is None else f"{100 * row['low']:.1f}-{100 * row['high']:.1f}"
        body.append(
            [
                f"{100 * row['score']:.1f}",
                bounds,
                *([] if choices else [*rates_cells(row), f"{row['auroc']:.3f}"]),
                *([f"{100 * row.get('unlisted', 0.0):.0f} %"] if marked else []),
                *against,
                shown_text(row["text"], row.get("presentation", "")),
            ]
        )
    title = (
        f"{result['checkpoint']} on {result['split']}: {first['clips']} clips of"
        f" {first['sources']} sources"
    )
    mark = [Column("unlisted", 8)] if marked else []  # answers that a server did not list
    rates = [Column("lowest recall", 7)] if several else COLUMNS[2:4]
    columns = [*COLUMNS[:2], *rates, COLUMNS[4], *mark, *COLUMNS[5:]]
    if choices:  # a place is no class: no hits, no AUROC
        columns = [Column("accuracy"), COLUMNS[1], *mark, *COLUMNS[5:]]
    return Sheet(title, columns, body)


def _show(result: dict[str, Any], out: Path) -> None:
    print(render(result_sheet(result)))
    if "two_by_two" in result:
        cells = FourCells.model_validate(result["two_by_two"])
        print(f"\n{render(two_by_two_sheet(cells, result['split']))}\n{share_line(cells)}\n")
    best = max(result["prompts"], key=lambda row: row["score"])
    if "labels" in best:
        print(render(confusion_sheet(best["labels"], f"best prompt here ({best['prompt_id']})")))
    if "kinds" in best:
        who = f"best prompt here ({best['prompt_id']})"
        print(f"\n{render(kinds_sheet(best['kinds'], who))}")
        print(f"{who}, {orders_line(best['orders'], list(best['answers']))}")
    for name, rows in result.get("each", {}).items():
        print(render(result_sheet(result | {"checkpoint": name, "prompts": rows})))
    if result["split"] == "test":
        print(said_of_uses(result["test_openings"]))
    for text in result["warnings"]:
        print(f"warning: {text}")
    print(f"written to {out}")


if __name__ == "__main__":
    sys.exit(run_verb(main))
