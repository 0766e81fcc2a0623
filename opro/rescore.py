"""Scores saved prompts on the test split: python -m opro.rescore runs/NAME --split test

PROMPTS are run folders (the baseline, the chosen prompt and the finalists, --top in all; written to test.json in the
folder) or prompt files (all of their prompts, the first one is the baseline; written to --out). Every look at the
test split is counted for the project and shown.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluators.errors import UserError
from evaluators.files import resolve
from opro.cli import DONE, flag, parse, run_verb

if TYPE_CHECKING:
    from evaluators.clips import Clip
    from evaluators.prompts import Prompt, Task


@dataclass(frozen=True)
class Settings:
    """Settings of a re-scoring. For a run folder, what is not given is taken from the run."""

    split: Literal["train", "dev", "test"] = flag("test", "split to score on")
    top: int = flag(
        5, "prompts of a run: chosen, finalists and the next best, beside the baseline", min=1
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
    quantization: Literal["none", "nf4"] | None = flag(None, "none or nf4 (default: the run's)")
    dtype: Literal["auto", "float32", "bfloat16"] | None = flag(
        None, "auto, float32 or bfloat16 (default: the run's)"
    )
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
    ray: str | None = flag(
        None,
        "score on a Ray cluster: auto (one that runs here, else one started for this run) or HOST:PORT",
    )
    ray_cpus: int = flag(1, "CPUs of a worker where the cluster has no GPU", min=1)
    runs_dir: Path = flag(Path("runs"), "where the cache and the count of test openings lie")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        Settings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument(
            "prompts", nargs="+", type=Path, metavar="PROMPTS", help="run folders or prompt files"
        ),
        config=False,
    )
    if settings.out is not None and (len(space.prompts) > 1 or space.prompts[0].is_dir()):
        raise UserError("--out goes with a single prompt file; a run folder gets its test.json")
    # Everything that can be wrong is found before the test split is opened.
    jobs = [_prepare(_job(settings, path)) for path in space.prompts]
    for job in jobs:
        _score(job)
    return DONE


@dataclass(frozen=True)
class Job:
    """What is to be scored on what. `prompts`: the baseline first; `biases`: thresholds fitted on the search half."""

    settings: Settings
    source: Path
    prompts: Sequence["Prompt"]
    biases: Mapping[str, float]
    out: Path
    task: "Task"
    fingerprint: str | None  # of the run, None for a prompt file
    clips: Sequence["Clip"] = ()
    evaluator: Any = None
    digest: str = ""
    warnings: tuple[str, ...] = ()


def _job(settings: Settings, path: Path) -> Job:
    """The prompts of a run folder or a prompt file, with what the flags leave open filled in."""
    from evaluators.files import read_yaml
    from evaluators.prompts import TASKS, read_prompts
    from opro.search.history import History

    if settings.task not in TASKS:
        raise UserError(f"--task is {settings.task!r}; expected one of {', '.join(TASKS)}")
    task = TASKS[settings.task]
    if not path.is_dir():
        filled = dataclasses.replace(
            settings,
            checkpoint=settings.checkpoint or "pocket-base",
            quantization=settings.quantization or "none",
            manifest=settings.manifest or Path("data/demo"),
        )
        out = settings.out or path.with_suffix(f".{settings.split}.json")
        return Job(filled, path, read_prompts(path, task.labels), {}, out, task, None)
    if not (path / "trials.jsonl").is_file():
        raise UserError(f"{str(path)!r} is no run folder: it holds no trials.jsonl")
    config = read_yaml(path / "config.yaml")
    history = History(path / "trials.jsonl", task.labels)
    if history.selection is None:
        raise UserError(
            f"run {path.name!r} is not finished; resume it first: its choice must not depend on the"
            " test split"
        )
    order = [
        history.selection["baseline"],
        history.selection["chosen"],
        *history.selection["finalists"],
        *(t.number for t in history.complete),
    ]
    trials = [history.trials[number] for number in dict.fromkeys(order)][: settings.top + 1]
    same = settings.checkpoint in (
        None,
        config["checkpoint"],
    )  # another checkpoint comes without the run's adapter
    filled = dataclasses.replace(
        settings,
        checkpoint=settings.checkpoint or config["checkpoint"],
        quantization=settings.quantization or config["quantization"],
        dtype=settings.dtype or config["dtype"],
        device=settings.device or config["device"],
        manifest=settings.manifest or Path(config["manifest"]),
        swap=settings.swap or config.get("swap", False),
        adapter=settings.adapter
        or (Path(config["adapter"]) if same and config["adapter"] else None),
        train_manifest=settings.train_manifest
        or (Path(config["train_manifest"]) if same and config["train_manifest"] else None),
    )
    biases = {t.candidate.prompt.prompt_id: t.bias for t in trials}
    prompts = [t.candidate.prompt for t in trials]
    # A search over several checkpoints has a fingerprint of all of them, which none of them has.
    fingerprint = "" if config.get("also") else (history.header or {}).get("fingerprint")
    return Job(filled, path, prompts, biases, path / f"{settings.split}.json", task, fingerprint)


def _prepare(job: Job) -> Job:
    """The job with its clips and evaluator; raises UserError for whatever would fail later."""
    from evaluators import clips as clipset
    from evaluators.build import build_evaluator
    from opro.results import run_folder

    settings = job.settings
    manifest = resolve(Path(str(settings.manifest)))
    registry = clipset.read_registry(manifest)
    clips = clipset.balanced_order(clipset.read_manifest(manifest, job.task.labels, settings.split))
    clipset.check_registry(clips, registry)
    clipset.verify(clips)
    evaluator, heard = build_evaluator(
        str(settings.checkpoint),
        adapter=settings.adapter,
        quantization=settings.quantization or "none",
        device=settings.device or "auto",
        dtype=settings.dtype or "auto",
        cache=settings.runs_dir / run_folder.CACHE,
        swap=bool(settings.swap),
        ray=settings.ray,
        ray_cpus=settings.ray_cpus,
    )
    heard = clipset.heard_sources(
        str(settings.checkpoint), heard, manifest, settings.train_manifest, job.task.labels
    )
    warnings = clipset.check_unheard(clips, heard, str(settings.checkpoint), settings.heard)
    if job.fingerprint not in (None, "", evaluator.fingerprint):
        warnings.append("the checkpoint or its precision is not the one of the run")
    if job.fingerprint is not None and settings.split == "dev":
        warnings.append(
            "half of these clips were searched on: the scores flatter the run's prompts"
        )
    if not os.access(job.out.parent, os.W_OK) or job.out.is_dir():
        raise UserError(f"{str(job.out)!r} cannot be written; give another --out")
    # Prompts that this model cannot score are found on silence, which is no look at the split.
    evaluator.score(job.prompts, [dataclasses.replace(clips[0], audio="silence")])
    digest = clipset.manifest_digest(manifest)
    run_folder.count_openings(settings.runs_dir, digest)
    return dataclasses.replace(
        job, clips=clips, evaluator=evaluator, digest=digest, warnings=tuple(warnings)
    )


def _score(job: Job) -> None:
    import numpy as np

    from evaluators.files import write_json
    from evaluators.statistics import metrics
    from opro.results import run_folder
    from opro.search.objective import slices

    settings, prompts, clips, task = job.settings, job.prompts, job.clips, job.task
    about = f"{job.source.name}, {len(prompts)} prompts"
    openings = (
        run_folder.record_opening(settings.runs_dir, job.digest, "rescore", about)
        if settings.split == "test"
        else run_folder.count_openings(settings.runs_dir, job.digest)
    )
    table = job.evaluator.score(prompts, clips)
    truth = np.array([task.labels.index(c.label) for c in clips])
    sources = [c.source_id for c in clips]
    right = [
        metrics.decide(table.logp[i], job.biases.get(p.prompt_id, 0.0)) == truth
        for i, p in enumerate(prompts)
    ]
    differences = [metrics.paired_difference(truth, r, right[0], sources) for r in right]
    holm = [1.0, *metrics.holm([d.p for d in differences[1:]])]
    rows: list[dict[str, Any]] = []
    for i, prompt in enumerate(prompts):
        e = metrics.estimate(truth, right[i], sources)
        d = differences[i]
        rows.append(
            {
                "prompt_id": prompt.prompt_id,
                "text": prompt.text,
                "answers": prompt.to_dict()["answers"],
                "baseline": i == 0,
                "score": e.value,
                "low": e.low,
                "high": e.high,
                "clips": e.clips,
                "sources": e.sources,
                "hit_rate": float(right[i][truth == 0].mean()),
                "false_alarm_rate": float(1 - right[i][truth != 0].mean()),
                "auroc": metrics.auroc(truth, metrics.margins(table.logp[i])),
                "outside": float(np.clip(table.outside[i], 0, 1).mean()),
                "slices": {
                    name: {"score": value, "clips": count}
                    for name, (value, count) in slices(clips, truth, right[i]).items()
                },
                "difference": {
                    "value": d.value,
                    "low": d.low,
                    "high": d.high,
                    "p": d.p,
                    "p_holm": holm[i],
                },
            }
        )
    result = {
        "split": settings.split,
        "checkpoint": settings.checkpoint,
        "fingerprint": job.evaluator.fingerprint,
        "manifest": job.digest,
        "test_openings": openings,
        "warnings": list(job.warnings),
        "prompts": rows,
    }
    write_json(job.out, result)
    _print(result, job.out)


def _print(result: dict[str, Any], out: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from opro.results.table import wide_console

    console = wide_console()
    first = result["prompts"][0]
    table = Table(
        title=Text(
            f"{result['checkpoint']} on {result['split']}: {first['clips']} clips of"
            f" {first['sources']} sources"
        ),
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name in (
        "balanced accuracy",
        "95 %",
        "hits",
        "false alarms",
        "AUROC",
        "against baseline",
        "p (Holm)",
        "prompt",
    ):
        table.add_column(
            name, no_wrap=name != "prompt", justify="left" if name == "prompt" else "right"
        )
    for row in result["prompts"]:
        d = row["difference"]
        against = (
            ("baseline", "")
            if row["baseline"]
            else (
                f"{100 * d['value']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]",
                f"{d['p_holm']:.3f}",
            )
        )
        table.add_row(
            f"{100 * row['score']:.1f}",
            f"{100 * row['low']:.1f}-{100 * row['high']:.1f}",
            f"{100 * row['hit_rate']:.0f}",
            f"{100 * row['false_alarm_rate']:.0f}",
            f"{row['auroc']:.3f}",
            *against,
            Text(" / ".join(row["text"].split("\n")), no_wrap=True, overflow="ellipsis"),
        )
    console.print(table)
    if result["split"] == "test":
        console.print(
            f"the test split of this manifest has been opened {result['test_openings']} times in"
            " this project"
            + (
                "; every look makes the next number less honest"
                if result["test_openings"] > 1
                else ""
            ),
            markup=False,
        )
    for text in result["warnings"]:
        console.print(f"warning: {text}", markup=False)
    console.print(f"written to {out}", markup=False)


if __name__ == "__main__":
    sys.exit(run_verb(main))
