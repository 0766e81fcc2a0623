"""Fine-tunes a checkpoint on the train split with LoRA: python -m opro.finetune --checkpoint pocket-base

Writes a folder that every verb takes as --checkpoint: the adapter, the prompt and the sources it was trained with, its
losses and scores. The loss is taken at the answer alone; the epoch with the lowest loss on the search half of dev is
kept. The same command continues after an interruption. Several GPUs: accelerate launch -m opro.finetune ...
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluators.audio_lm.checkpoint import Checkpoint, open_checkpoint
from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.files import check_folder, disk_faults
from evaluators.finetuning.processes import agree, close, count, is_first
from evaluators.finetuning.recipe import OWN_KEYS, Recipe, adapter_rank, own_defaults
from evaluators.manifest import verify
from evaluators.prompts import Prompt
from evaluators.splits import check_trained_on, halves, trained_sources
from evaluators.tasks import Task
from evaluators.threads import use_threads
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.problem import Data, open_data, seeds_of
from opro.results.run_folder import open_run
from opro.settings import SEED_PROMPTS, DataSettings, ThreadSettings, clip_count, file_name

if TYPE_CHECKING:  # torch waits until the flags are read
    from evaluators.finetuning.train import Machine, Training


GENERIC_WAY = (
    (
        "path",
        "generic: the model's own forward, one sample at a time, without augmentation; the audio tower's activations"
        " are not in the estimate",
    ),
)


@dataclass(frozen=True)
class FinetuneSettings(ThreadSettings, DataSettings):
    """The training."""

    checkpoint: str = flag(
        "pocket-base",
        "shipped name, directory or hub id; a folder that finetune wrote is trained further",
    )
    adapter: Path | None = flag(None, "directory of an adapter to train further")
    quantization: Literal["none", "nf4"] = flag("none", "4-bit weights through bitsandbytes")
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto",
        "of the frozen weights; auto is bfloat16 on CUDA cards that have it, float32 elsewhere",
    )
    device: Literal["auto", "cpu", "cuda"] = flag(
        "auto", "of several cards CUDA_VISIBLE_DEVICES picks one"
    )
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
    epochs: int | None = flag(
        None,
        "how often each clip is shown (default: 3, or that of the base's finetune.yaml: pocket-base 1)",
        min=1,
        max=1_000,
    )
    lr: float | None = flag(
        None,
        "highest learning rate (default: 2e-4, or that of the base's finetune.yaml: pocket-base 1e-4)",
        min=0,
        max=1,
    )
    rank: int | None = flag(
        None,
        "rank of the adapter (default: 16, or that of the base's finetune.yaml: pocket-base 16)",
        min=1,
        max=4096,
    )
    batch: int = flag(16, "samples of an optimizer step", min=1, max=65_536)
    micro: int | None = flag(
        None, "samples at once (default: as many as memory allows)", min=1, max=65_536
    )
    study: int = flag(
        0,
        "instead of one training, search in N of them rate, rank and epochs, each unless its flag is given,"
        " and targets, --targets first",
        min=0,
        max=10_000,
    )
    seed: int = flag(0, "makes the training repeatable", min=0)
    out: Path | None = flag(
        None, "folder of the result (default: runs/lora-..., made from the settings)"
    )
    merge: Path | None = flag(
        None,
        "instead of training, write base and adapter of --checkpoint as one plain model into this new"
        " folder, which transformers loads without this project",
    )
    runs_dir: Path = flag(Path("runs"), "where the result and kept features lie by default")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(FinetuneSettings, argv, __doc__ or "", _add_dry_run)
    use_threads(settings.threads)
    if settings.merge is not None:
        check_folder(settings.merge, "--merge", new=True)
        return merge(settings, settings.merge)
    folder = settings.out or default_out(settings)
    check_folder(folder, "--out")
    check_folder(settings.runs_dir, "--runs-dir")
    training = prepare(settings)
    if space.dry_run:
        plan = [f"{n:11} {text}" for n, text in [("result", str(folder)), *describe(training)]]
        print("\n".join(plan))
        hand_over({"dry_run": True, "folder": str(folder), "plan": plan})
        return DONE
    return run(settings, training, folder)


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and what memory it takes, and stop"
    )


def config_of(settings: FinetuneSettings) -> dict[str, Any]:
    """The settings as plain data, as config.yaml holds them."""
    raw = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(settings).items()}
    return {k: v for k, v in raw.items() if k not in ("out", "runs_dir", "merge", "threads")}


def default_out(settings: FinetuneSettings) -> Path:
    """The result's folder, named after checkpoint, seed and a digest of the settings."""
    raw = json.dumps(config_of(settings), sort_keys=True)
    short = hashlib.sha256(raw.encode()).hexdigest()[:6]
    model = file_name(Path(settings.checkpoint).name)
    return settings.runs_dir / f"lora-{model}-s{settings.seed}-{short}"


def prepare(settings: FinetuneSettings) -> "Training":
    """The training that the settings ask for. Loads no weights, writes nothing.

    Raises:
        UserError: Whatever would fail later.
    """
    from evaluators.finetuning.measure import Room, measure
    from evaluators.finetuning.train import Origin, Training

    data = open_data(settings)
    if data.task.choices:
        raise UserError(
            f"task {data.task.name!r} asks each clip its own question; fine-tuning asks all clips alike, and cannot yet"
        )
    clips, validation = read_clips(settings, data)
    checkpoint = open_checkpoint(settings.checkpoint, settings.adapter, settings.quantization)
    known = trained_sources(
        settings.checkpoint, checkpoint.trained_on, data.manifest, None, data.task.labels
    )
    check_trained_on(validation, known, settings.checkpoint)
    check_quantization(settings)
    prompts = read_wordings(settings, data.task)
    recipe = make_recipe(settings, checkpoint)
    if len(clips) * recipe.epochs < recipe.batch:
        raise UserError(
            f"{len(clips)} clips x {recipe.epochs} epochs are less than a batch of {recipe.batch};"
            " give more clips or epochs"
        )
    machine = pick_machine(settings)
    room = Room(machine.gib, settings.batch // machine.processes, settings.micro)
    measured = measure(checkpoint, recipe, clips, prompts, room)
    return Training(
        checkpoint=checkpoint,
        recipe=recipe,
        prompts=tuple(prompts),
        labels=data.task.labels,
        clips=clips,
        validation=validation,
        processor=measured.processor,
        plan=measured.plan,
        machine=machine,
        origin=Origin(settings.manifest, data.digest, known or frozenset()),
        chat=measured.chat,
    )


def read_clips(settings: FinetuneSettings, data: Data) -> tuple[ClipSet, ClipSet]:
    """(Train clips in balanced order, the search half of dev), with their files checked."""
    clips = data.split("train")
    clips = clips.first(clip_count(settings.clips, len(clips), "train"))
    if len({c.label for c in clips}) < len(data.task.labels):
        raise UserError(f"the {len(clips)} train clips lack a class; take more clips")
    validation = ClipSet(data.task, tuple(halves(data.split("dev").clips)[0]))
    verify([*clips, *validation])
    return clips, validation


def check_quantization(settings: FinetuneSettings) -> None:
    """Refuses 4-bit weights without bitsandbytes."""
    if settings.quantization == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "--quantization nf4 needs the package bitsandbytes: pip install bitsandbytes"
        )


def read_wordings(settings: FinetuneSettings, task: Task) -> list[Prompt]:
    """The prompts of --prompts, or the first baseline."""
    prompts = seeds_of(task, settings.prompts or SEED_PROMPTS)
    return prompts if settings.prompts is not None else prompts[:1]


def make_recipe(settings: FinetuneSettings, checkpoint: Checkpoint) -> Recipe:
    """Flags over the checkpoint's own defaults over the published ones; an adapter keeps its rank."""
    same = ("targets", "loss", "swap", "batch", "seed")
    values = own_defaults(checkpoint.base) | given(settings)
    values |= {name: getattr(settings, name) for name in same}
    values["augment"] = checkpoint.is_packed  # elsewhere it would have to know each front end
    if checkpoint.adapter is not None:
        values["rank"] = adapter_rank(checkpoint.adapter, settings.rank)
    return Recipe(**values)


def given(settings: FinetuneSettings) -> dict[str, Any]:
    """What flags say of the values for which a checkpoint may have its own defaults."""
    return {key: v for key in OWN_KEYS if (v := getattr(settings, key)) is not None}


def pick_machine(settings: FinetuneSettings) -> "Machine":
    """Device, precision and number of processes; of several cards each process takes its own."""
    from evaluators.audio_lm.device import pick_device, pick_training_dtype
    from evaluators.finetuning.train import Machine

    device = pick_device(settings.device)
    processes = count()
    if settings.study and processes > 1:
        raise UserError(
            f"--study: {processes} processes were started; a study trains in one, start it without"
            " accelerate launch"
        )
    if settings.batch % processes:
        raise UserError(
            f"--batch is {settings.batch}; expected a multiple of the {processes} processes"
        )
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
    dtype = pick_training_dtype(settings.dtype, device)
    return Machine(device, dtype, processes, settings.runs_dir / ".features")


def describe(training: "Training") -> list[tuple[str, str]]:
    """The plan as lines of (name, text)."""
    recipe, checkpoint, clips = training.recipe, training.checkpoint, training.clips
    flop = 6 * training.active_weights * training.plan.row.tokens * len(clips) * recipe.epochs
    return [
        ("checkpoint", f"{checkpoint.name}, quantization {checkpoint.quantization}"),
        (
            "clips",
            f"{len(clips):,} of {len({c.source_id for c in clips})} train sources,"
            f" validated on {len(training.validation)} of the search half of dev",
        ),
        ("prompts", f"{len(training.prompts)}{', both orders' if recipe.swap else ''}"),
        (
            "recipe",
            f"{recipe.epochs} epochs, rate {recipe.lr:g}, rank {recipe.rank}, {recipe.targets},"
            f" loss at {recipe.loss}, {training.steps} steps of {recipe.batch}",
        ),
        *GENERIC_WAY[: training.chat is not None],
        ("memory", training.plan.line()),
        (
            "work",
            f"about {flop / 1e12:,.1f} TFLOP, rows of up to {training.plan.row.tokens} tokens",
        ),
    ]


def run(settings: FinetuneSettings, training: "Training", folder: Path) -> int:
    """Trains, or continues, or shows what is finished."""
    from evaluators.finetuning.adapter_folder import CHECKPOINTS, is_finished, write_adapter
    from evaluators.finetuning.train import Progress, train

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with disk_faults(folder), contextlib.ExitStack() as opened:

        def begin() -> bool:
            if is_finished(folder) and not (folder / "config.yaml").is_file():
                raise UserError(f"{str(folder)!r} holds an adapter that is not of this command")
            opened.enter_context(open_run(folder, config_of(settings)))
            return not is_finished(folder)

        to_train = agree(begin, training.machine.device.type == "cpu")
        if not is_first():  # the first process writes the result
            if to_train:
                train(training, folder / CHECKPOINTS)
            return DONE
        if to_train and settings.study:
            from evaluators.finetuning.study import search_recipe  # optuna

            search_recipe(training, folder, settings.study, tell, fixed=set(given(settings)))
        elif to_train:
            write_adapter(training, folder, [Progress(tell)])
        show(folder)
    return DONE


def merge(settings: FinetuneSettings, folder: Path) -> int:
    """Writes the checkpoint and its adapter as one plain model."""
    from evaluators.finetuning.merged_folder import write_merged

    checkpoint = open_checkpoint(settings.checkpoint, settings.adapter, settings.quantization)
    checkpoint.need_packed("merging", "merge it with peft (merge_and_unload, then save_pretrained)")
    prompt = checkpoint.prompt or read_wordings(settings, open_data(settings).task)[0]
    with disk_faults(folder):
        apart, dtype = write_merged(checkpoint, folder, prompt, settings.device, settings.dtype)
    print(f"merged      {folder}, {dtype}")
    print(f"self-test   scores of made-up clips differ by {apart:.1e} nats at most")
    hand_over({"dtype": dtype, "selftest_nats": apart, "paths": {"folder": str(folder)}})
    return DONE


def show(folder: Path) -> None:
    """Prints what a finished folder holds."""
    from evaluators.finetuning.adapter_folder import read_record

    record = read_record(folder)
    score, recipe = record["dev_search_half"][0], record["recipe"]
    low, high = score["low"], score["high"]
    interval = "" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    print(f"adapter     {folder}, {record['trainable']:,} trainable parameters")
    print(
        f"trained     {record['clips']} clips x {recipe['epochs']} epochs, {record['steps']} steps,"
        f" {record['seconds']:.0f} s; step {record['best_step']} kept"
    )
    print(
        f"dev         loss {record['dev_loss']:.4f}, balanced accuracy"
        f" {100 * score['value']:.1f}{interval} on the search half, which chose the epoch"
    )
    print(f"next        python -m opro.optimize --checkpoint {folder}")
    hand_over({**record, "paths": {"folder": str(folder)}})


if __name__ == "__main__":
    code = run_verb(main)
    close()
    sys.exit(code)
