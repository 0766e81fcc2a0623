"""Fine-tunes a checkpoint on the train split with LoRA: python -m opro.finetune --checkpoint pocket-base

Writes a folder that every verb takes as --checkpoint: the adapter, the prompt it was trained with, the sources it has
heard, its losses and scores. The loss is taken at the answer alone; the epoch with the lowest loss on the search half
of dev is kept. The same command goes on after an interruption. Several GPUs: accelerate launch -m opro.finetune ...
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluators.errors import UserError
from evaluators.files import resolve
from opro.cli import DONE, flag, parse, run_verb

if TYPE_CHECKING:
    from evaluators.audio_lm.checkpoint import Checkpoint
    from evaluators.audio_lm.memory import TrainingPlan
    from evaluators.clips import Clip
    from evaluators.finetuning.train import Recipe, Trained
    from evaluators.prompts import Prompt
    from evaluators.tasks import Task

DEFAULTS = "finetune.yaml"  # beside the weights of a checkpoint that wants others


@dataclass(frozen=True)
class Settings:
    """Settings of a fine-tuning; each is a flag and a key of config.yaml."""

    checkpoint: str = flag(
        "pocket-base",
        "shipped name, directory or hub id; a folder that finetune wrote is trained further",
    )
    adapter: Path | None = flag(None, "directory of an adapter to train further")
    quantization: Literal["none", "nf4"] = flag("none", "4-bit weights through bitsandbytes")
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "of the frozen weights; auto is bfloat16 on CUDA, float32 elsewhere"
    )
    device: Literal["auto", "cpu", "cuda"] = flag(
        "auto", "of several cards CUDA_VISIBLE_DEVICES picks one"
    )
    task: str = flag("speech", "what is decided about a clip")
    manifest: Path = flag(Path("data/demo"), "manifest CSV, or the folder that holds manifest.csv")
    clips: str = flag(
        "all", "how many clips of the train split: all, or the first N in a fixed balanced order"
    )
    prompts: Path | None = flag(
        None, "prompt file whose wordings clips take turns with (default: the first baseline)"
    )
    swap: bool = flag(False, "train on both orders of the prompts' options")
    targets: Literal["attention", "attention+mlp", "llm-only"] = flag(
        "attention",
        "layers that are adapted: attention of language model and audio tower, the language model's"
        " feed-forward too, or its attention alone (audio is then computed once, without"
        " augmentation)",
    )
    loss: Literal["answer", "full"] = flag(
        "answer", "where the loss is taken; full, at every word of the prompt, is for comparison"
    )
    epochs: int | None = flag(None, "how often each clip is shown (default: 3)", min=1)
    lr: float | None = flag(None, "highest learning rate (default: 2e-4)", min=0)
    rank: int | None = flag(None, "rank of the adapter (default: 16)", min=1)
    batch: int = flag(16, "samples of an optimizer step", min=1)
    micro: int | None = flag(None, "samples at once (default: as many as memory allows)", min=1)
    study: int = flag(
        0, "instead of one training, search rate, rank, epochs and targets in N of them", min=0
    )
    seed: int = flag(0, "makes the training repeatable", min=0)
    out: Path | None = flag(
        None, "folder of the result (default: runs/lora-..., made from the settings)"
    )
    runs_dir: Path = flag(Path("runs"), "where the result and kept features lie by default")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        Settings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument(
            "--dry-run",
            action="store_true",
            help="print the plan and what memory it takes, and stop",
        ),
    )
    settings = dataclasses.replace(settings, out=settings.out or _default_out(settings))
    job = prepare(settings)
    if space.dry_run:
        for name, text in job.describe():
            print(f"{name:11} {text}")
        return DONE
    return run(job)


def config_of(settings: Settings) -> dict[str, Any]:
    """The settings as plain data, as config.yaml holds them."""
    raw = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(settings).items()}
    return {k: v for k, v in raw.items() if k not in ("out", "runs_dir")}


def _default_out(settings: Settings) -> Path:
    raw = json.dumps(config_of(settings), sort_keys=True)
    short = hashlib.sha256(raw.encode()).hexdigest()[:6]
    model = "".join(
        ch if ch.isalnum() or ch in "-_" else "-" for ch in Path(settings.checkpoint).name
    )
    return settings.runs_dir / f"lora-{model}-s{settings.seed}-{short}"


@dataclass(frozen=True)
class Job:
    """A fine-tuning whose inputs are checked."""

    settings: Settings
    task: "Task"
    checkpoint: "Checkpoint"
    recipe: "Recipe"
    prompts: Sequence["Prompt"]
    clips: Sequence["Clip"]
    judge: Sequence["Clip"]
    processor: Any
    config: Any
    plan: "TrainingPlan"
    tokens: int
    manifest_digest: str
    heard: frozenset[str]

    @property
    def folder(self) -> Path:
        """Of the result."""
        return Path(str(self.settings.out))

    def describe(self) -> list[tuple[str, str]]:
        """The plan as lines of (name, text)."""
        from evaluators.audio_lm.memory import weight_counts

        recipe = self.recipe
        samples = len(self.clips) * recipe.epochs
        met = weight_counts(self.config)[1]
        flop = 6 * met * self.tokens * samples
        return [
            ("result", str(self.folder)),
            ("checkpoint", f"{self.checkpoint.name}, quantization {self.checkpoint.quantization}"),
            (
                "clips",
                f"{len(self.clips):,} of {len({c.source_id for c in self.clips})} train sources,"
                f" judged on {len(self.judge)} of the search half of dev",
            ),
            ("prompts", f"{len(self.prompts)}{', both orders' if recipe.swap else ''}"),
            (
                "recipe",
                f"{recipe.epochs} epochs, rate {recipe.lr:g}, rank {recipe.rank}, {recipe.targets},"
                f" loss at {recipe.loss}, {samples // recipe.batch} steps of {recipe.batch}",
            ),
            ("memory", self.plan.line()),
            ("work", f"about {flop / 1e12:,.1f} TFLOP, rows of up to {self.tokens} tokens"),
        ]


def prepare(settings: Settings) -> Job:
    """Checks everything that can be wrong; loads no weights."""
    from evaluators.audio_lm.checkpoint import open_checkpoint
    from evaluators.audio_lm.families import audio_config, family_of
    from evaluators.audio_lm.features import FeatureStore
    from evaluators.audio_lm.loading import card_gib, pick_device
    from evaluators.audio_lm.memory import plan_training
    from evaluators.finetuning.samples import wordings
    from evaluators.finetuning.train import Recipe
    from evaluators.manifest import manifest_digest, read_manifest, verify
    from evaluators.prompts import read_prompts
    from evaluators.splits import (
        balanced_order,
        check_registry,
        check_trained_on,
        halves,
        read_registry,
        trained_sources,
    )
    from evaluators.tasks import TASKS

    if settings.task not in TASKS:
        raise UserError(f"--task is {settings.task!r}; expected one of {', '.join(TASKS)}")
    task = TASKS[settings.task]
    manifest = resolve(settings.manifest)
    clips = balanced_order(read_manifest(manifest, task.labels, "train"))
    if settings.clips != "all":
        if not settings.clips.isdecimal() or not 0 < int(settings.clips) <= len(clips):
            raise UserError(
                f"--clips is {settings.clips!r}; expected all, or a number up to {len(clips)}, the"
                " clips of the train split"
            )
        clips = clips[: int(settings.clips)]
    if len({c.label for c in clips}) < len(task.labels):
        raise UserError(f"the {len(clips)} train clips lack a class; take more clips")
    judge = halves(read_manifest(manifest, task.labels, "dev"))[0]
    registry = read_registry(manifest)
    check_registry([*clips, *judge], registry)
    verify([*clips, *judge])
    checkpoint = open_checkpoint(settings.checkpoint, settings.adapter, settings.quantization)
    heard = trained_sources(settings.checkpoint, checkpoint.trained_on, manifest, None, task.labels)
    check_trained_on(judge, heard, settings.checkpoint)
    if settings.quantization == "nf4":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise UserError(
                "--quantization nf4 needs the package bitsandbytes: pip install bitsandbytes"
            ) from None
    path = settings.prompts or Path("prompts/seeds/baselines.yaml")
    prompts = read_prompts(resolve(path), task.labels)
    if settings.prompts is None:
        prompts = prompts[:1]
    recipe = _recipe(settings, checkpoint.base, Recipe())
    if checkpoint.adapter is not None:
        recipe = _of_adapter(recipe, settings, checkpoint.adapter)
    if len(clips) * recipe.epochs < recipe.batch:
        raise UserError(
            f"{len(clips)} clips x {recipe.epochs} epochs are less than a batch of {recipe.batch};"
            " give more clips or epochs"
        )
    config = audio_config(checkpoint.base)
    family = family_of(config)
    if recipe.targets == "attention+mlp" and getattr(config.text_config, "num_experts", 0):
        raise UserError(
            "--targets attention+mlp: the feed-forward of this model is made of experts, which have"
            " no adapters; use attention"
        )
    processor = family.processor(checkpoint.base)
    asked = wordings(prompts, task.labels, processor.tokenizer, family, recipe.swap)
    store = FeatureStore(None, processor.feature_extractor, family.whole_window)
    longest = max(clips, key=lambda c: c.duration_ms)
    audio = family.tokens(config, store.decode(longest).frames)
    tokens = audio + max(len(w.before) + len(w.after) + len(w.answers[0]) for w in asked)
    device = pick_device(settings.device)
    gib = card_gib(device)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.batch % processes:
        raise UserError(
            f"--batch is {settings.batch}; expected a multiple of the {processes} processes"
        )
    plan = plan_training(
        config,
        settings.quantization if device.type == "cuda" else "none",
        gib,
        tokens,
        audio,
        settings.batch // processes,
        recipe.loss,
        settings.micro,
    )
    if plan is None:
        raise UserError(
            f"{settings.checkpoint!r} cannot be trained in {gib:.1f} GiB"
            + ("" if settings.quantization == "nf4" else "; try --quantization nf4")
        )
    return Job(
        settings, task, checkpoint, recipe, prompts, clips, judge, processor, config, plan, tokens,
        manifest_digest(manifest), heard or frozenset(),
    )  # fmt: skip


def _recipe(settings: Settings, base: Path, recipe: "Recipe") -> "Recipe":
    """The recipe: flags over what the checkpoint asks for over the published defaults."""
    from evaluators.files import read_yaml

    own = read_yaml(base / DEFAULTS) if (base / DEFAULTS).is_file() else {}
    given = {
        name: value
        for name in ("epochs", "lr", "rank")
        if (value := getattr(settings, name)) is not None
    }
    wrong = set(own) - {"epochs", "lr", "rank"}
    if wrong:
        raise UserError(f"{base / DEFAULTS}: key {sorted(wrong)[0]!r} is unknown")
    return dataclasses.replace(
        recipe,
        **{**own, **given},
        targets=settings.targets,
        loss=settings.loss,
        swap=settings.swap,
        batch=settings.batch,
        seed=settings.seed,
    )


def _of_adapter(recipe: "Recipe", settings: Settings, adapter: Path) -> "Recipe":
    """An adapter that is trained further keeps its rank."""
    rank = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("r")
    if settings.rank not in (None, rank):
        raise UserError(
            f"--rank is {settings.rank}; the adapter that is trained further has rank {rank}"
        )
    return dataclasses.replace(recipe, rank=rank)


def run(job: Job) -> int:
    """Trains, or goes on, or shows what is finished."""
    from opro.results import run_folder

    if not _is_main():
        _train(job, job.recipe, job.folder)
        return DONE
    if (job.folder / "adapter_config.json").is_file() and not (
        job.folder / "config.yaml"
    ).is_file():
        raise UserError(f"{str(job.folder)!r} holds an adapter that is not of this command")
    with run_folder.open_run(job.folder, config_of(job.settings)):
        if not (job.folder / "adapter_config.json").is_file():
            if job.settings.study:
                _study(job)
            else:
                _write(job, job.recipe, job.folder)
        _print(job)
    return DONE


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _train(
    job: Job, recipe: "Recipe", folder: Path, watch: Sequence[Any] = (), name: str = ""
) -> "tuple[Any, Trained]":
    from evaluators.audio_lm.loading import pick_device, pick_dtype
    from evaluators.finetuning.train import CHECKPOINTS, train

    def tell(entry: dict[str, float]) -> None:
        kind = "dev loss" if "eval_loss" in entry else "loss"
        value = entry.get("eval_loss", entry.get("loss"))
        if value is None:
            return
        left = entry["left"]
        shown = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
        print(
            f"{name}step {entry['step']:.0f}/{entry['of']:.0f}  {kind} {value:.4f}  {shown} left",
            file=sys.stderr,
            flush=True,
        )

    device = pick_device(job.settings.device)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
    return train(
        job.checkpoint, recipe, job.processor, job.prompts, job.task.labels, job.clips, job.judge,
        folder / CHECKPOINTS, job.plan, device, pick_dtype(job.settings.dtype, device),
        job.settings.runs_dir / ".features", tell, watch,
    )  # fmt: skip


def _write(
    job: Job, recipe: "Recipe", folder: Path, watch: Sequence[Any] = (), name: str = ""
) -> float:
    """Trains into `folder`; returns the dev loss."""
    import numpy as np

    from evaluators.audio_lm import selftest
    from evaluators.audio_lm.checkpoint import folder_digest
    from evaluators.audio_lm.scorer import AudioScorer
    from evaluators.finetuning.train import publish, save_adapter, versions
    from evaluators.statistics import metrics

    begin = time.time()
    peft, trained = _train(job, recipe, folder, watch, name)
    fresh = save_adapter(peft, job.checkpoint, folder)
    count = sum(p.numel() for p in peft.parameters() if p.requires_grad)
    model = peft.get_base_model()
    model.eval().requires_grad_(False)
    device = str(next(model.parameters()).device)
    evaluator = AudioScorer(
        job.checkpoint, device, job.settings.dtype, dequantize=job.plan.expand or None,
        loaded=(model, job.processor),
    )  # fmt: skip
    table = evaluator.score(job.prompts, job.judge)
    truth = np.array([job.task.labels.index(c.label) for c in job.judge])
    sources = [c.source_id for c in job.judge]
    scores = []
    for prompt, logp in zip(job.prompts, table.logp, strict=True):
        e = metrics.estimate(truth, metrics.decide(logp) == truth, sources)
        scores.append(
            {"prompt_id": prompt.prompt_id, "value": e.value, "low": e.low, "high": e.high}
        )
    about = {
        "prompt": job.prompts[0].to_dict(),
        "prompts": [p.to_dict() for p in job.prompts],
        "recipe": dataclasses.asdict(recipe),
        "quantisation": job.checkpoint.quantization,
        "base_digest": folder_digest(job.checkpoint.base),
        "trainable": count,
        "manifest": job.manifest_digest,
        "clips": len(job.clips),
        "sources": sorted({c.source_id for c in job.clips} | job.heard),
        "versions": versions(),
        "steps": trained.steps,
        "best_step": trained.best_step,
        "dev_loss": trained.best_loss,
        "seconds": round(time.time() - begin, 1),
        "dev_search_half": scores,
        "self_test": {
            "dtype": str(evaluator.dtype).removeprefix("torch."),
            "logp": selftest.score_made_up(evaluator, job.prompts[0]),
        },
        "curve": list(trained.curve),
    }
    publish(fresh, folder, about, _card(job, recipe, about))
    return trained.best_loss


def _card(job: Job, recipe: "Recipe", about: dict[str, Any]) -> str:
    """README.md of the folder."""
    score = about["dev_search_half"][0]
    heard = "unknown" if job.checkpoint.trained_on is None else "listed"
    lines = [
        "---",
        "library_name: peft",
        "pipeline_tag: audio-text-to-text",
        "---",
        f"# LoRA for {job.checkpoint.name}",
        "",
        f"Trained on {len(job.clips)} clips, {recipe.epochs} epochs, rate {recipe.lr:g}, rank"
        f" {recipe.rank}, targets {recipe.targets}, loss at {recipe.loss}, seed {recipe.seed}; base"
        f" weights {job.checkpoint.quantization if job.checkpoint.quantization != 'none' else 'unquantised'}."
        f" {about['trainable']:,} trainable parameters, {about['steps']} steps, step"
        f" {about['best_step']} kept (dev loss {about['dev_loss']:.3f}).",
        "",
        "Balanced accuracy on the search half of dev, which chose the epoch:"
        f" {100 * score['value']:.1f} %.",
        "",
        f"Clips: the train split of `{job.settings.manifest}`, which lists sources and attribution."
        f" Their licences: {licences(job.clips)}.",
        f"`training.json` holds prompts, sources ({heard} for the base), losses and versions. Use this"
        " folder as",
        "`--checkpoint` of any verb.",
    ]
    return "\n".join(lines) + "\n"


def licences(clips: "Sequence[Clip]") -> str:
    """Licences of the clips with the number of clips of each, in one line."""
    count = Counter(clip.licence or "not stated" for clip in clips)
    return ", ".join(f"{name} ({count[name]})" for name in sorted(count))


def _study(job: Job) -> None:
    """Searches the recipe by dev loss; the best adapter becomes the result."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
    from transformers import TrainerCallback

    class Report(TrainerCallback):  # type: ignore[misc]
        """Tells the study of each epoch's dev loss, and ends a training that falls behind."""

        def __init__(self, trial: optuna.Trial) -> None:
            self.trial = trial

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **kw: Any
        ) -> None:
            self.trial.report(metrics["eval_loss"], state.global_step)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--study runs in one process; start it without accelerate launch")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(job.folder / "optuna.log"))),
        study_name=job.folder.name,
        direction="minimize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=job.settings.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=0),
    )
    for torn in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(torn.number, state=TrialState.FAIL)
        study.enqueue_trial(torn.params)
    if not study.trials:  # the recipe that was asked for comes first
        first = job.recipe
        study.enqueue_trial(
            {"lr": first.lr, "rank": first.rank, "epochs": first.epochs, "targets": first.targets}
        )
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    while len(study.get_trials(states=done)) < job.settings.study:
        trial = study.ask()
        recipe = dataclasses.replace(
            job.recipe,
            lr=trial.suggest_float("lr", job.recipe.lr / 10, job.recipe.lr * 5, log=True),
            rank=trial.suggest_categorical("rank", sorted({4, 8, 16, 32, job.recipe.rank})),
            epochs=trial.suggest_int("epochs", 1, max(4, job.recipe.epochs)),
            targets=trial.suggest_categorical(
                "targets", sorted({"attention", "llm-only", job.recipe.targets})
            ),
        )
        key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]
        folder = job.folder / "trials" / key
        trial.set_user_attr("folder", str(folder.relative_to(job.folder)))

        try:
            if (folder / "adapter_config.json").is_file():  # done, but not told
                loss = json.loads((folder / "training.json").read_text())["dev_loss"]
            else:
                folder.mkdir(parents=True, exist_ok=True)
                loss = _write(job, recipe, folder, (Report(trial),), f"trial {trial.number}  ")
            study.tell(trial, loss)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            shutil.rmtree(folder)
        print(
            f"trial {trial.number}  {trial.params}  {study.trials[trial.number].state.name.lower()}"
            f"  best dev loss {study.best_value:.4f}",
            file=sys.stderr,
        )
    best = job.folder / study.best_trial.user_attrs["folder"]
    from evaluators.finetuning.train import base_name

    config = json.loads((best / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name(job.checkpoint, job.folder)
    for name in ("adapter_model.safetensors", "training.json", "README.md"):
        shutil.copy(best / name, job.folder / name)
    fresh = job.folder / "adapter_config.json.new"
    fresh.write_text(json.dumps(config, indent=2), encoding="utf-8")
    fresh.replace(job.folder / "adapter_config.json")


def _print(job: Job) -> None:
    about = json.loads((job.folder / "training.json").read_text(encoding="utf-8"))
    score = about["dev_search_half"][0]
    recipe = about["recipe"]
    interval = (
        "" if score["low"] is None else f" [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
    )
    print(f"adapter     {job.folder}, {about['trainable']:,} trainable parameters")
    print(
        f"trained     {about['clips']} clips x {recipe['epochs']} epochs, {about['steps']} steps,"
        f" {about['seconds']:.0f} s; step {about['best_step']} kept"
    )
    print(
        f"dev         loss {about['dev_loss']:.4f}, balanced accuracy"
        f" {100 * score['value']:.1f}{interval} on the search half, which chose the epoch"
    )
    print(f"next        python -m opro.optimize --checkpoint {job.folder}")


if __name__ == "__main__":
    sys.exit(run_verb(main))
