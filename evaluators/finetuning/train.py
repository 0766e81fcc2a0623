"""One training from its inputs to the best epoch's adapter, through transformers' Trainer; resumable.

Trainer brings what is not special here: optimizer, schedule, resuming, logging, several GPUs.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.decoder import load_kernels
from evaluators.audio_lm.device import card_gib
from evaluators.audio_lm.families import audio_config
from evaluators.audio_lm.generic_chat import Chat
from evaluators.audio_lm.memory import weight_counts
from evaluators.audio_lm.model_folder import weight_count
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.files import replacing_folder, sync, write_text
from evaluators.finetuning.generic import CollateOne, GenericSamples, generic_model
from evaluators.finetuning.memory import TrainingPlan
from evaluators.finetuning.model import Adapted, AdaptedModel, adapted_model, embed_clips
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.samples import (
    ALL_WORDINGS,
    Collate,
    Samples,
    Schedule,
    in_orders,
    tokenize_prompts,
)
from evaluators.finetuning.steps import StepTrainer
from evaluators.finetuning.transfer import Later, sent
from evaluators.prompts import Prompt

SAVE_SECONDS = 10.0  # between checkpoints, at least
SAVE_SHARE = 0.05  # of the time, at most, goes into writing checkpoints
PATIENCE = 2  # epochs without a lower validation loss before the training ends
DONE_MARKER = "complete"  # a file in checkpoints that were written to their end


@dataclass(frozen=True)
class Machine:
    """What a training runs on."""

    device: torch.device
    dtype: torch.dtype  # of the frozen weights
    processes: int = 1
    features: Path | None = None  # folder that keeps features of clips
    max_graphs: int = 8  # CUDA graphs that may be kept, of language model and audio tower each

    @property
    def gib(self) -> float | None:
        """Memory of a CUDA card; None for any other device."""
        return card_gib(self.device)


@dataclass(frozen=True)
class Origin:
    """Where the clips come from, for the record of the result."""

    manifest: Path = Path()
    digest: str = ""  # of the manifest
    trained_sources: frozenset[str] = (
        frozenset()
    )  # source ids that the checkpoint was trained on before


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that a training depends on.

    Attributes:
        checkpoint: What is trained; its own adapter, if it has one, is trained further.
        recipe: How.
        prompts: Clips take turns with them; the first one is the result's prompt.
        labels: The task's labels.
        clips: The train split.
        validation: Clips whose loss decides which epoch is kept.
        processor: The checkpoint's tokenizer and feature extractor.
        plan: How it lies in memory.
        machine: Where.
        origin: Where the clips come from.

    Raises:
        UserError: The batch cannot be divided among the processes.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    prompts: tuple[Prompt, ...]
    labels: tuple[str, ...]
    clips: Sequence[Clip]
    validation: Sequence[Clip]
    processor: Any
    plan: TrainingPlan
    machine: Machine
    origin: Origin = Origin()
    chat: Chat | None = None  # how a model is asked that has no packed path

    def __post_init__(self) -> None:
        processes, at_once = self.machine.processes, self.plan.micro_batch_size
        if self.recipe.batch % (at_once * processes):
            raise UserError(
                f"a batch of {self.recipe.batch} cannot be shared by {processes} processes with"
                f" {at_once} samples at once"
            )

    @property
    def active_weights(self) -> int:
        """Weights that a token meets."""
        if self.chat is not None:
            return weight_count(self.checkpoint.base, f"checkpoint {self.checkpoint.name!r}")
        return weight_counts(audio_config(self.checkpoint.base))[1]

    @property
    def steps(self) -> int:
        """Optimizer steps of all epochs."""
        return len(self.clips) * self.recipe.epochs // self.recipe.batch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps from one validation to the next."""
        return min(self.steps, max(1, round(len(self.clips) / self.recipe.batch)))


@dataclass(frozen=True)
class Trained:
    """Result of a training run. `curve` has entries of step, epoch, and loss or eval_loss."""

    model: Adapted  # with the adapter of the best epoch
    steps: int
    best_step: int
    best_loss: float  # on the validation clips
    seconds: float
    curve: tuple[dict[str, float], ...]


def train(
    training: Training,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    *,
    loaded: Any = None,
) -> Trained:
    """Trains an adapter, or continues a training that was interrupted. Keeps the epoch of the lowest validation loss.

    Args:
        training: What, on what, and where.
        folder: For checkpoints; what it holds already is continued.
        callbacks: Further callbacks of Trainer.
        loaded: A base model in memory, instead of the checkpoint's files.

    Raises:
        UserError: The loss became NaN or infinite.
    """
    model, (samples, validation), batch = open_parts(training, loaded)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder.parent / "tensorboard"))
    begin = time.perf_counter()
    keeper = KeepBest(folder)
    trainer = StepTrainer(
        model=model.peft,
        args=trainer_arguments(training, folder),
        train_dataset=samples,
        eval_dataset=validation,
        data_collator=lambda items: sent(batch(items), training.machine.device),
        callbacks=[keeper, Checkpoints(folder), StopAtNan(), *callbacks],
    )
    silence(trainer)
    trainer.accelerator.wait_for_everyone()
    resume = last_complete(folder)
    trainer.accelerator.wait_for_everyone()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trainer.accelerator.wait_for_everyone()
    best = keeper.load_into(model.peft)
    seconds = time.perf_counter() - begin
    state = trainer.state
    return Trained(model, state.global_step, best["step"], best["loss"], seconds, loss_curve(state))


def open_parts(
    training: Training, loaded: Any = None
) -> tuple[Adapted, tuple[Dataset[Any], Dataset[Any]], Callable[..., dict[str, Any]]]:
    """(The model; samples of training and of validation; what makes a batch of samples), of packed or generic path."""
    machine, recipe = training.machine, training.recipe
    if training.chat is not None:
        model = generic_model(training.checkpoint, recipe, machine.device, machine.dtype)
        one = CollateOne(training.chat.audio_id, recipe.loss)
        return model, make_generic_samples(training, training.chat), one
    max_graphs = graphs_for(training)
    packed = adapted_model(
        training.checkpoint, recipe, machine.device, machine.dtype,
        expand=training.plan.expand, loaded=loaded, max_graphs=max_graphs,
    )  # fmt: skip
    batch = Collate(packed.family, packed.base.config, recipe.loss, max_graphs > 0)
    return packed, make_samples(training, packed), batch


def make_generic_samples(training: Training, chat: Chat) -> tuple[GenericSamples, GenericSamples]:
    """As `make_samples`, for a model without a packed path."""
    recipe, labels = training.recipe, training.labels
    prompts = in_orders(training.prompts, recipe.swap)
    schedule = Schedule(recipe.epochs, recipe.batch, recipe.seed, shuffle=True)
    return (
        GenericSamples(training.clips, prompts, labels, chat, schedule=schedule),
        GenericSamples(training.validation, prompts, labels, chat, schedule=ALL_WORDINGS),
    )


def graphs_for(training: Training) -> int:
    """CUDA graphs that may be kept: none without Triton's kernels, none with checkpointing, where memory is short."""
    possible = load_kernels(training.machine.device) is not None and not training.plan.checkpointing
    return training.machine.max_graphs if possible else 0


def make_samples(training: Training, model: AdaptedModel) -> tuple[Samples, Samples]:
    """(Samples of the whole training, samples of a validation: every clip in every wording that is trained on)."""
    recipe, processor, labels = training.recipe, training.processor, training.labels
    store = model.family.feature_store(training.machine.features, processor.feature_extractor)
    wordings = tokenize_prompts(
        training.prompts, labels, processor.tokenizer, model.family, recipe.swap
    )
    audio = None
    if recipe.targets == "llm-only":
        every = [*training.clips, *training.validation]
        audio = embed_clips(model, store, every, training.machine.device)
    augment = recipe.augment and audio is None
    schedule = Schedule(recipe.epochs, recipe.batch, recipe.seed, shuffle=True, augment=augment)
    return (
        Samples(training.clips, wordings, labels, store, schedule=schedule, audio=audio),
        Samples(training.validation, wordings, labels, store, schedule=ALL_WORDINGS, audio=audio),
    )


def trainer_arguments(training: Training, folder: Path) -> TrainingArguments:
    """What Trainer is told. Its one epoch is the whole training, since `Samples` holds all of ours."""
    recipe, plan, machine = training.recipe, training.plan, training.machine
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=plan.micro_batch_size,
        per_device_eval_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=recipe.batch // (plan.micro_batch_size * machine.processes),
        num_train_epochs=1,
        learning_rate=recipe.lr,
        warmup_steps=math.ceil(recipe.warmup * training.steps),
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=machine.dtype == torch.bfloat16 and machine.device.type == "cuda",
        use_cpu=machine.device.type == "cpu",
        gradient_checkpointing=plan.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if plan.checkpointing else None,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        label_names=["target_id"],
        prediction_loss_only=True,
        eval_strategy="steps",
        eval_steps=training.steps_per_epoch,
        save_strategy="no",  # `Checkpoints` decides, by the time it takes
        save_total_limit=2,
        logging_steps=max(1, training.steps // 50),
        logging_first_step=True,
        report_to="all",
        disable_tqdm=True,
        dataloader_pin_memory=False,  # it would disturb the capture of a graph
        ddp_find_unused_parameters=False,  # every adapted layer is in every step
        ddp_broadcast_buffers=False,  # they are constants
        logging_nan_inf_filter=False,  # `StopAtNan` is to see them, and the host would wait for each step
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several cards are for `accelerate launch`
    return arguments


def silence(trainer: StepTrainer) -> None:
    """Removes Trainer's own printing."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)


def last_complete(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end, or None. Removes later ones, which a crash cut short."""
    newest_first = sorted(
        folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True
    )
    for path in newest_first:
        if (path / DONE_MARKER).is_file():
            return path
        shutil.rmtree(path)
    return None


def loss_curve(state: Any) -> tuple[dict[str, float], ...]:
    """The logged losses of a Trainer's state, with what else was logged beside them."""
    return tuple(
        {k: float(v) for k, v in entry.items() if isinstance(v, int | float)}
        for entry in state.log_history
        if "loss" in entry or "eval_loss" in entry
    )


class KeepBest(TrainerCallback):
    """Keeps the adapter of the lowest validation loss; ends a training that no longer gains."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "best"

    def best(self) -> dict[str, Any] | None:
        """Step and loss of the best adapter so far."""
        path = self.path / "best.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def load_into(self, peft: Any) -> dict[str, Any]:
        """Loads the best adapter into a model. Returns its step and loss."""
        best = self.best()
        assert best is not None  # the last step ends an epoch, or the one before it did
        set_peft_model_state_dict(peft, load_file(self.path / "adapter_model.safetensors"))
        return best

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Forgets a best adapter of a later step, which the resumed training will find again."""
        best = self.best()
        if best is not None and best["step"] > state.global_step and state.is_world_process_zero:
            shutil.rmtree(self.path)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, metrics: Any = None, **kw: Any
    ) -> None:
        """Keeps the adapter if its loss is the lowest; ends after `PATIENCE` epochs without a lower one."""
        loss = float(metrics["eval_loss"])
        best = self.best()
        if best is None or loss < best["loss"] or best["step"] == state.global_step:
            if state.is_world_process_zero:
                with replacing_folder(self.path) as fresh:
                    kw["model"].save_pretrained(fresh, save_embedding_layers=False)
                    (fresh / "best.json").write_text(
                        json.dumps({"step": state.global_step, "loss": loss})
                    )
                    shutil.rmtree(self.path, ignore_errors=True)
        elif state.global_step - best["step"] >= PATIENCE * args.eval_steps:
            control.should_training_stop = True


class Checkpoints(TrainerCallback):
    """Writes checkpoints as often as `SAVE_SECONDS` and `SAVE_SHARE` allow, and marks those that are complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved = time.perf_counter()  # when the last one was written
        self.saving = 0.0  # seconds that it took
        self.asked: Later | None = None  # what the first of several processes decided a step ago

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Asks for a checkpoint when one is due. All processes do so at the same step."""
        waited = time.perf_counter() - self.saved
        due = waited > max(SAVE_SECONDS, self.saving / SAVE_SHARE)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            decision = torch.full((), float(due), device=args.device)
            torch.distributed.broadcast(decision, 0)
            before, self.asked = self.asked, Later(decision)
            due = before is not None and bool(before.read())
        if due and state.global_step < state.max_steps:
            control.should_save, self.asked = True, None
            self.saved = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Marks the checkpoint that was just written as complete."""
        now = time.perf_counter()
        self.saved, self.saving = now, now - self.saved
        if state.is_world_process_zero:
            sync(self.folder / f"checkpoint-{state.global_step}")
            write_text(self.folder / f"checkpoint-{state.global_step}" / DONE_MARKER, "")


class StopAtNan(TrainerCallback):
    """Ends a training whose loss is NaN or infinite.

    Raises:
        UserError: From within `Trainer.train`.
    """

    def on_log(self, args: Any, state: Any, control: Any, *, logs: Any = None, **kw: Any) -> None:
        """Checks each loss that is logged."""
        for name in ("loss", "eval_loss"):
            value = (logs or {}).get(name)
            if isinstance(value, int | float) and not math.isfinite(value):
                raise UserError(
                    f"the {name} is {value} at step {state.global_step}: lower --lr, or train in"
                    " another --dtype"
                )


class Progress(TrainerCallback):
    """Passes a line of text to `tell` for each loss that is logged, with the time left."""

    def __init__(self, tell: Callable[[str], None], name: str = "") -> None:
        self.tell, self.name = tell, name
        self.begin, self.first_step = time.perf_counter(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Notes when and at which step it starts."""
        self.begin, self.first_step = time.perf_counter(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, *, logs: Any = None, **kw: Any) -> None:
        """Tells of step, loss and time left."""
        kind = "eval_loss" if "eval_loss" in (logs or {}) else "loss"
        if kind not in (logs or {}) or not state.is_world_process_zero:
            return
        done, seconds = state.global_step - self.first_step, time.perf_counter() - self.begin
        left = seconds / max(1, done) * (state.max_steps - state.global_step)
        shown = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
        what = "dev loss" if kind == "eval_loss" else "loss"
        step = f"{self.name}step {state.global_step}/{state.max_steps}"
        self.tell(f"{step}  {what} {float(logs[kind]):.4f}  {shown} left")
