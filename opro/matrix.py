"""Prompts x checkpoints x baselines on a split: python -m opro.matrix --checkpoint pocket-base pocket-lora --search

PROMPTS are prompt files (all of their prompts) and run folders (the chosen prompt). With --search every checkpoint is
searched first, by opro.optimize with its defaults, each trying the best prompts of those before it; a finished search
is taken as it is. Every prompt is scored on every checkpoint, with what silence and shuffled audio give; baselines are
tuned on the search half of dev, as are thresholds and calibration. Written to --out: matrix.json, .csv, .md, .tex and
per-clip predictions. What was scored before comes from the cache, so an interrupted matrix goes on.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluators.errors import UserError
from evaluators.files import resolve
from opro.cli import DONE, flag, parse, run_verb

if TYPE_CHECKING:
    from evaluators.clips import Clip
    from evaluators.prompts import Prompt, Task
    from evaluators.statistics.describe import Judgements

SEEDS = Path("prompts/seeds/baselines.yaml")
MASKED_ALL = 1000  # clips from which on a LoRA is the matrix' row B3


@dataclass(frozen=True)
class Settings:
    """Settings of a matrix."""

    split: Literal["train", "dev", "test"] = flag("test", "split to score on")
    manifest: Path = flag(Path("data/demo"), "manifest CSV, or the folder that holds manifest.csv")
    task: str = flag("speech", "what is decided about a clip")
    search: bool = flag(False, "search prompts for every checkpoint first, where no run is there")
    seed: int = flag(0, "seed of searches and resamples", min=0)
    quantization: Literal["none", "nf4"] = flag("none", "4-bit weights through bitsandbytes")
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "auto is bfloat16 on CUDA, float32 elsewhere"
    )
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps")
    heard: Literal["refuse", "allow"] = flag(
        "refuse", "clips of sources that a checkpoint was trained on; allow stands in its rows"
    )
    swap: bool = flag(False, "average both orders of a prompt's options")
    out: Path | None = flag(None, "folder for the results (default: RUNS_DIR/matrix-SPLIT)")
    runs_dir: Path = flag(Path("runs"), "where runs, the cache and the count of openings lie")
    format: Literal["table", "csv", "markdown", "latex", "json"] = flag("table", "how to print it")


@dataclass(frozen=True)
class Asked:
    """A prompt of the matrix. `searched_on`: the checkpoints whose search chose it."""

    prompt: "Prompt"
    name: str
    searched_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A checkpoint of the matrix, not loaded before it scores."""

    name: str
    evaluator: Any
    about: dict[str, Any]  # fine-tuning and data, in words
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One configuration: its judgements on the split, and what stands in its line besides."""

    model: str
    prompt: str
    judged: "Judgements"
    more: dict[str, Any]

    @property
    def name(self) -> str:
        """Model and prompt."""
        return f"{self.model}, {self.prompt}" if self.prompt else self.model


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""

    def extra(parser: Any) -> None:
        parser.add_argument(
            "--checkpoint",
            nargs="+",
            default=["pocket-base"],
            metavar="TEXT",
            help="shipped names, directories or hub ids (default: pocket-base)",
        )
        parser.add_argument(
            "--prompts",
            nargs="+",
            type=Path,
            default=[SEEDS],
            metavar="PATH",
            help=f"prompt files and run folders (default: {SEEDS})",
        )
        parser.add_argument(
            "--baselines",
            nargs="*",
            default=[],
            metavar="NAME",
            help="energy, webrtc, silero, whisper[:MODEL], pyannote[:MODEL]",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="print the plan and its cost; score nothing"
        )

    settings, space = parse(Settings, argv, __doc__ or "", extra, config=False)
    settings = dataclasses.replace(
        settings, out=settings.out or settings.runs_dir / f"matrix-{settings.split}"
    )
    for what, names in (("--checkpoint", space.checkpoint), ("--baselines", space.baselines)):
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise UserError(f"{what} {twice[0]!r} is given twice")
    return _run(settings, space.checkpoint, space.prompts, space.baselines, space.dry_run)


def _run(
    settings: Settings,
    checkpoints: Sequence[str],
    prompt_files: Sequence[Path],
    baselines: Sequence[str],
    dry_run: bool,
) -> int:
    from evaluators import clips as clipset
    from evaluators.detectors.detectors import open_detector
    from evaluators.prompts import TASKS
    from opro.results import run_folder

    if settings.task not in TASKS:
        raise UserError(f"--task is {settings.task!r}; expected one of {', '.join(TASKS)}")
    task, manifest = TASKS[settings.task], resolve(settings.manifest)
    clips = clipset.balanced_order(clipset.read_manifest(manifest, task.labels, settings.split))
    dev = clipset.read_manifest(manifest, task.labels, "dev")
    tune = clipset.balanced_order(clipset.halves(dev)[0])
    clipset.check_registry([*clips, *dev], clipset.read_registry(manifest))
    clipset.verify([*clips, *tune])
    models = [_model(name, settings, manifest, task, clips) for name in checkpoints]
    for name in baselines:
        open_detector(name)
    out = Path(str(settings.out))
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {str(out)!r} is a file; expected a folder")
    asked = _asked(prompt_files, task, settings)
    for line in _plan(settings, models, asked, baselines, clips, tune):
        print(line, file=sys.stdout if dry_run else sys.stderr)
    if dry_run:
        return DONE
    if settings.search:
        asked = _searched(asked, checkpoints, settings)
    for model in models:  # prompts that a model cannot score are found before the split is opened
        model.evaluator.score(
            [a.prompt for a in asked], [dataclasses.replace(tune[0], audio="silence")]
        )
    digest = clipset.manifest_digest(manifest)
    about = f"matrix, {len(models)} checkpoints, {len(asked)} prompts, {len(baselines)} baselines"
    openings = (
        run_folder.record_opening(settings.runs_dir, digest, "matrix", about)
        if settings.split == "test"
        else None
    )
    rows: list[Row] = []
    for model in models:
        _say(f"{model.name}: {len(asked)} prompts on {len(clips)} clips")
        rows += _rows(model, asked, clips, tune, task)
        model.evaluator.release()  # its memory is the next one's
    for name in baselines:
        _say(f"{name}: tuned on {len(tune)} dev clips, judged on {len(clips)}")
        rows.append(_baseline(name, clips, tune, task, manifest))
    result = _result(rows, settings, checkpoints, digest, openings)
    _write(out, result, rows, settings)
    _show(result, settings, out)
    return DONE


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _model(
    name: str, settings: Settings, manifest: Path, task: "Task", clips: Sequence["Clip"]
) -> Model:
    from evaluators import clips as clipset
    from evaluators.build import build_evaluator
    from opro.results import run_folder

    evaluator, heard = build_evaluator(
        name,
        quantization=settings.quantization,
        device=settings.device,
        dtype=settings.dtype,
        cache=settings.runs_dir / run_folder.CACHE,
        swap=settings.swap,
    )
    heard = clipset.heard_sources(name, heard, manifest, None, task.labels)
    warnings = clipset.check_unheard(clips, heard, name, settings.heard)
    return Model(name, evaluator, _training(evaluator.about().checkpoint), tuple(warnings))


def _training(checkpoint: Any) -> dict[str, Any]:
    """How a checkpoint was fine-tuned, as far as its folder tells."""
    from evaluators.audio_lm.checkpoint import OMNI

    if checkpoint is None or checkpoint.adapter is None:
        config = json.loads((checkpoint.base / "config.json").read_text()) if checkpoint else {}
        return {
            "finetuning": "none",
            "data": "",
            "loss": None,
            "clips": 0,
            "omni": config.get("model_type") in OMNI,
        }
    path = checkpoint.adapter / "training.json"
    raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    loss = (raw.get("recipe") or {}).get("loss")
    words = {"full": ", plain loss", "answer": ", masked loss"}.get(loss or "", "")
    clips = raw.get("clips") or 0
    return {
        "finetuning": f"LoRA{words}",
        "data": f"{clips:,} clips" if clips else "unknown",
        "loss": loss,
        "clips": clips,
    }


def _asked(files: Sequence[Path], task: "Task", settings: Settings) -> list[Asked]:
    """The prompts of files and finished runs, each once."""
    from evaluators.prompts import read_prompts

    found: dict[str, Asked] = {}
    for path in files:
        if (path / "trials.jsonl").is_file():
            _add_run(found, path)
            continue
        prompts = read_prompts(resolve(path), task.labels)
        for i, prompt in enumerate(prompts):
            name = f"{path.stem} {i + 1}" if len(prompts) > 1 else path.stem
            found.setdefault(prompt.digest, Asked(prompt, name))
    return list(found.values())


def _add_run(found: dict[str, Asked], folder: Path) -> None:
    from opro.results.run_folder import chosen_prompt

    prompt, checkpoint = chosen_prompt(folder)
    old = found.get(prompt.digest, Asked(prompt, f"searched on {Path(checkpoint).name}"))
    on = tuple(dict.fromkeys((*old.searched_on, checkpoint)))
    found[prompt.digest] = dataclasses.replace(old, searched_on=on)


def _searched(
    asked: Sequence[Asked], checkpoints: Sequence[str], settings: Settings
) -> list[Asked]:
    """The prompts with those that searches choose; searches that are not finished are run."""
    from opro import optimize

    found = {a.prompt.digest: a for a in asked}
    folders: list[Path] = []
    for name in checkpoints:
        search = optimize.Settings(
            checkpoint=name,
            share=",".join(map(str, folders)) or None,
            manifest=settings.manifest,
            quantization=settings.quantization,
            dtype=settings.dtype,
            device=settings.device,
            heard=settings.heard,
            swap=settings.swap,
            task=settings.task,
            seed=settings.seed,
            runs_dir=settings.runs_dir,
        )
        _say(f"{name}: search of {search.iterations} x {search.batch} prompts on dev")
        folders.append(optimize.run(search))
        _add_run(found, folders[-1])
    return list(found.values())


def _plan(
    settings: Settings,
    models: Sequence[Model],
    asked: Sequence[Asked],
    baselines: Sequence[str],
    clips: Sequence["Clip"],
    tune: Sequence["Clip"],
) -> Iterator[str]:
    """What will be scored, how much of it is in the cache, and how long it takes."""
    from opro.optimize import Settings as Search
    from opro.optimize import count_evals
    from opro.results.summary import estimate_seconds

    prompts = [a.prompt for a in asked]
    searched = len(models) if settings.search else 0
    more = f" and up to {searched} that searches choose" if searched else ""
    yield f"split       {settings.split}: {len(clips)} clips; {len(tune)} dev clips to tune on"
    yield f"prompts     {len(prompts)}{more}"
    yield f"baselines   {', '.join(baselines) or 'none'}"
    for model in models:
        # The split as it is, as silence and shuffled, and the search half of dev; searches halve dev alike.
        total = (len(prompts) + searched) * (3 * len(clips) + len(tune))
        total += count_evals(len(prompts), Search(), len(tune), len(tune)) if searched else 0
        cached = len(prompts) * len(clips) - model.evaluator.count_missing(prompts, clips)
        seconds = estimate_seconds(model.evaluator, total - cached)
        yield f"{model.name}: at most {total:,} evals, {cached:,} cached; about {seconds}"
        for line in model.evaluator.about().memory:
            yield f"memory      {line}"
        for text in model.warnings:
            yield f"warning     {text}"


def _rows(
    model: Model,
    asked: Sequence[Asked],
    clips: Sequence["Clip"],
    tune: Sequence["Clip"],
    task: "Task",
) -> Iterator[Row]:
    import numpy as np

    from evaluators import latency
    from evaluators.statistics import describe, metrics

    prompts = [a.prompt for a in asked]
    scored = model.evaluator.score(prompts, clips).logp
    fitted = model.evaluator.score(prompts, tune).logp
    heard = {
        audio: model.evaluator.score(
            prompts, [dataclasses.replace(c, audio=audio) for c in clips]
        ).logp
        for audio in ("silence", "shuffled")
    }
    truth, tune_truth = (
        np.array([task.labels.index(c.label) for c in some]) for some in (clips, tune)
    )
    dev = [
        metrics.balanced_accuracy(tune_truth, metrics.decide(logp) == tune_truth) for logp in fitted
    ]
    seeds = [
        i for i, a in enumerate(asked) if not a.searched_on or not a.name.startswith("searched")
    ]
    baseline = max(seeds, key=lambda i: dev[i]) if seeds else None
    took = latency.measure(model.evaluator, prompts[0], tune)
    for i, one in enumerate(asked):
        j = describe.from_scores(scored[i], clips, task.labels)
        own = model.name in one.searched_on
        yield Row(
            model.name,
            one.name,
            j,
            {
                "row": _code(model, i == baseline, own),
                "model": model.name,
                "finetuning": model.about["finetuning"],
                "data": model.about["data"],
                "prompt": one.name,
                "prompt_id": one.prompt.prompt_id,
                "text": one.prompt.text,
                "answers": one.prompt.to_dict()["answers"],
                "searched_on": list(one.searched_on),
                "baseline": i == baseline,
                "fingerprint": model.evaluator.fingerprint,
                "dev_score": dev[i],
                **_tuned(scored[i], fitted[i], clips, truth, tune_truth, j),
                "controls": {
                    audio: metrics.balanced_accuracy(truth, metrics.decide(logp[i]) == truth)
                    for audio, logp in heard.items()
                },
                "evals": len(clips),
                "latency": took.to_dict(),
                "warnings": list(model.warnings),
            },
        )


def _tuned(
    logp: Any, fitted: Any, clips: Sequence["Clip"], truth: Any, tune_truth: Any, j: "Judgements"
) -> dict[str, Any]:
    """What threshold and calibration fitted on dev change on the split."""
    import numpy as np

    from evaluators.statistics import calibration, describe, metrics

    margin, dev = metrics.margins(logp), metrics.margins(fitted)
    bias = metrics.fit_bias(tune_truth, dev)
    c = metrics.clusters(truth, [clip.source_id for clip in clips])
    decided = np.where(margin + bias > 0, 0, 1)
    out: dict[str, Any] = {
        "threshold_on_dev": describe.interval(c, metrics.rates(c, decided)["balanced_accuracy"])
    }
    try:
        fit = calibration.fit_calibration(tune_truth, dev)
    except UserError as error:
        return out | {"calibrated": None, "calibration_failed": str(error)}
    probability = fit.probability(margin)
    said = np.where(probability > 0.5, 0, 1)
    sure = np.maximum(probability, 1 - probability)
    found = metrics.describe(c, said, probability)
    return out | {
        "calibrated": {
            "temperature": fit.temperature,
            "bias": fit.bias,
            **{name: describe.interval(c, found[name]) for name in ("ece", "brier", "nll")},
            "reliability": [
                dataclasses.asdict(r) for r in calibration.reliability(sure, said == truth)
            ],
        },
        "reliability": [
            dataclasses.asdict(r)
            for r in calibration.reliability(
                np.where(j.decided == 0, j.probability, 1 - j.probability), j.decided == truth
            )
        ],
    }


def _code(model: Model, baseline: bool, searched: bool) -> str:
    """The row's name in the published matrix, where it has one; two where a search kept the baseline."""
    if model.about["finetuning"] == "none":
        names = ("", "C1") if model.about["omni"] else ("A1", "A2")
    elif model.about["loss"] == "answer" and model.about["clips"] >= MASKED_ALL:
        names = ("B3", "B4")
    else:
        names = ("B1" if model.about["loss"] == "full" else "B2", "")
    return " = ".join(
        n for n, is_it in zip(names, (baseline, searched), strict=True) if n and is_it
    )


def _baseline(
    name: str, clips: Sequence["Clip"], tune: Sequence["Clip"], task: "Task", manifest: Path
) -> Row:
    import numpy as np

    from evaluators import latency
    from evaluators.detectors import tuned
    from evaluators.prompts import Prompt
    from evaluators.statistics import calibration, describe, metrics

    fitted = tuned.fit(name, tune, task.labels)
    nothing = Prompt("", tuple((label, ("",)) for label in task.labels), "")
    logp = fitted.score([nothing], clips).logp[0]
    j = describe.from_scores(logp, clips, task.labels)
    truth = np.array([task.labels.index(c.label) for c in clips])
    sure = np.where(j.decided == 0, j.probability, 1 - np.asarray(j.probability))
    header = manifest / "manifest.csv" if manifest.is_dir() else manifest
    columns = header.open(encoding="utf-8").readline().strip().split(",")
    warnings = []
    if name == "silero" and "vad_fraction" in columns:
        warnings.append(
            "silero judges clips that were selected by their voice activity (column vad_fraction),"
            " by Silero unless the recipe said otherwise: its score is flattered"
        )
    return Row(
        name,
        "",
        j,
        {
            "row": "",
            "model": name,
            "finetuning": "",
            "data": "",
            "prompt": fitted.rule,
            "baseline": False,
            "fingerprint": fitted.fingerprint,
            "reliability": [
                dataclasses.asdict(r) for r in calibration.reliability(sure, j.decided == truth)
            ],
            "controls": {
                audio: metrics.balanced_accuracy(
                    truth,
                    metrics.decide(
                        fitted.score(
                            [nothing], [dataclasses.replace(c, audio=audio) for c in clips]
                        ).logp[0]
                    )
                    == truth,
                )
                for audio in ("silence", "shuffled")
            },
            "evals": len(clips),
            "latency": latency.measure(fitted, nothing, tune).to_dict(),
            "warnings": warnings,
        },
    )


def _result(
    rows: Sequence[Row],
    settings: Settings,
    checkpoints: Sequence[str],
    digest: str,
    openings: int | None,
) -> dict[str, Any]:
    """The matrix as plain data. The reference is the first checkpoint's baseline prompt."""
    from evaluators.statistics import describe

    reference = next(
        (i for i, r in enumerate(rows) if r.more["baseline"] and r.model == checkpoints[0]), 0
    )
    pairs = [(i, reference) for i in range(len(rows)) if i != reference]
    against = {
        pairs[k][0]: pair
        for k, pair in enumerate(
            describe.compare([(r.name, r.judged) for r in rows], pairs=pairs, seed=settings.seed)
        )
    }
    out = []
    for i, row in enumerate(rows):
        pair = against.get(i)
        out.append(
            {
                **row.more,
                **describe.describe(row.judged, seed=settings.seed),
                "reference": i == reference,
                "difference": None
                if pair is None
                else {
                    "value": pair["difference"],
                    **{k: pair[k] for k in ("low", "high", "p", "p_holm")},
                },
            }
        )
    return {
        "split": settings.split,
        "manifest": digest,
        "test_openings": openings,
        "seed": settings.seed,
        "clips": len(rows[0].judged.truth),
        "sources": len(set(rows[0].judged.sources)),
        "reference": rows[reference].name,
        "rows": out,
    }


def _write(out: Path, result: dict[str, Any], rows: Sequence[Row], settings: Settings) -> None:
    from evaluators.files import write_json, write_text
    from opro.results import run_folder
    from opro.results.predictions import write_predictions

    for number, row in enumerate(rows, 1):
        name = "".join(ch if ch.isalnum() else "-" for ch in row.name)[:80]
        path = Path("predictions") / f"{number:02d}-{name}.csv"
        write_predictions(out / path, row.judged)
        result["rows"][number - 1]["predictions"] = str(path)
    result["provenance"] = run_folder.provenance(
        {"settings": {k: str(v) for k, v in vars(settings).items()}}
    )
    write_json(out / "matrix.json", result)
    for name, form in (("matrix.csv", "csv"), ("matrix.md", "markdown"), ("matrix.tex", "latex")):
        write_text(out / name, _text(result, form))


def _text(result: dict[str, Any], form: str) -> str:
    from evaluators.files import csv_text
    from opro.results.matrix_rows import HEAD, cells
    from opro.results.table import markdown_table

    if form == "json":
        return json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if form == "csv":
        rows = [_flat(row) for row in result["rows"]]
        return csv_text(rows, tuple(dict.fromkeys(k for row in rows for k in row)))
    body = cells(result)
    if form == "markdown":
        return markdown_table(list(HEAD), body) + "\n"
    import pandas as pd

    return str(pd.DataFrame(body, columns=list(HEAD)).to_latex(index=False, escape=True))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One line of numbers: estimates become NAME, NAME_low, NAME_high."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and "low" in value:
            out |= {f"{key}{'' if k == 'value' else '_' + k}": v for k, v in value.items()}
        elif key in ("controls", "latency", "answers"):
            out |= {f"{key}_{k}": v for k, v in value.items()}
        elif key == "thresholds":
            out |= {name: t["text"] for name, t in value.items()}
        elif not isinstance(value, dict | list) and value is not None:
            out[key] = value
    return out


def _show(result: dict[str, Any], settings: Settings, out: Path) -> None:
    if settings.format != "table":
        print(_text(result, settings.format), end="")
        return
    from rich.table import Table
    from rich.text import Text

    from opro.results.matrix_rows import HEAD, cells
    from opro.results.table import wide_console

    console = wide_console()
    table = Table(
        title=f"{settings.split}: {result['clips']} clips of {result['sources']} sources, 95 %"
        " intervals over sources",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    left_out = ("fine-tuning", "data", "AUROC", "ECE, calibrated", "ms single")
    shown = [i for i, name in enumerate(HEAD) if name not in left_out]
    for i in shown:
        names = HEAD[i] in ("model", "prompt")
        table.add_column(HEAD[i], no_wrap=not names, overflow="fold", ratio=1 if names else None)
    for row in cells(result):
        table.add_row(*(Text(row[i]) for i in shown))
    console.print(table)
    for text in dict.fromkeys(w for r in result["rows"] for w in r["warnings"]):
        console.print(f"warning: {text}", markup=False)
    if result["test_openings"] is not None:
        console.print(
            f"the test split of this manifest has been opened {result['test_openings']} times in"
            " this project",
            markup=False,
        )
    console.print(f"written to {out}; python -m opro.report {out}", markup=False)


if __name__ == "__main__":
    sys.exit(run_verb(main))
