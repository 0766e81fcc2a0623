"""LoRA and QLoRA of a checkpoint: the loss at the answer alone, through transformers' Trainer and peft.

The model is the evaluator's: the same template, the audio tower cut to the clip, hidden states put through the head
only where something is supervised. Trainer brings what is not special here: optimizer, schedule, resuming, logging,
several GPUs.
"""

import functools
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from evaluators.audio_lm.checkpoint import SHIPPED, Checkpoint
from evaluators.audio_lm.families import Family, audio_config, family_of
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.loading import load_model, merge_to_linear
from evaluators.audio_lm.memory import TrainingPlan
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.finetuning.samples import Collate, Loss, Samples, wordings
from evaluators.prompts import Prompt

log = logging.getLogger(__name__)
Targets = Literal["attention", "attention+mlp", "llm-only"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SAVE_SECONDS, SAVE_SHARE = (
    10.0,
    0.05,
)  # between checkpoints at least, and the share of time they may take
PATIENCE = 2  # epochs without a better dev loss before it ends
CHECKPOINTS = ".checkpoints"  # in the folder of a training
COMPLETE = "complete"  # marks a checkpoint that was written to its end


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained. Defaults are the published ones."""

    epochs: int = 3
    lr: float = 2e-4
    rank: int = 16
    targets: Targets = "attention"
    loss: Loss = "answer"
    swap: bool = False
    batch: int = 16  # samples of an optimizer step, over all devices
    dropout: float = 0.05
    warmup: float = 0.1  # part of the steps
    seed: int = 0
    augment: bool = True


@dataclass(frozen=True)
class Trained:
    """What a training came to. `curve`: entries of step, epoch, loss or eval_loss."""

    steps: int
    best_step: int
    best_loss: float
    seconds: float
    curve: tuple[dict[str, float], ...]


class _Decoder(torch.nn.Module):
    """Embeddings ``[sample, token, channel]`` -> last hidden states."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lm(inputs_embeds=x, use_cache=False).last_hidden_state
        return out


class _Tower(torch.nn.Module):
    """Features ``[sample, bin, frame]`` of clips of one length -> audio embeddings."""

    def __init__(self, model: Any, family: Family, frames: int) -> None:
        super().__init__()
        self.tower = model.model.audio_tower  # its parameters are the graph's
        self.encode = functools.partial(family.encode, model)
        self.frames = frames

    def forward(self, mel: Tensor) -> Tensor:
        return self.encode(mel, self.frames)


class Graphs:
    """CUDA graphs of decoder and audio tower, forward and backward, for shapes that come again.

    The layers of a LoRA step are thousands of small kernels: launched one by one they keep the card waiting for the
    host. Only without gradient accumulation, since a graph's gradients lie in memory that the next replay overwrites.

    Args:
        most: Graphs that are kept; each holds the activations of its shape.
    """

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self._seen: dict[Any, int] = {}
        self._graphs: dict[Any, Any] = {}

    def run(self, key: Any, make: Callable[[], torch.nn.Module], x: Tensor) -> Tensor:
        """``make()(x)``, by a graph once the shape was seen before."""
        key = (key, tuple(x.shape))
        if not self.most or not torch.is_grad_enabled():
            return make()(x)  # type: ignore[no-any-return]
        self._seen[key] = self._seen.get(key, 0) + 1
        if key not in self._graphs:
            if self._seen[key] < 2 or len(self._graphs) >= self.most:
                return make()(x)  # type: ignore[no-any-return]
            sample = torch.zeros_like(x).requires_grad_(x.requires_grad)
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                module = make().train()
                self._graphs[key] = torch.cuda.make_graphed_callables(module, (sample,))
        return self._graphs[key](x)  # type: ignore[no-any-return]


def answer_loss(
    model: Any,
    family: Family,
    graphs: Graphs,
    ids: Tensor,
    groups: Sequence[dict[str, Any]],
    target_row: Tensor,
    target_place: Tensor,
    target_id: Tensor,
    target_weight: Tensor,
) -> dict[str, Tensor]:
    """The weighted loss at the supervised tokens, and their log-probabilities in nats. For the batch see `Collate`."""
    lm = model.model.language_model
    x = lm.embed_tokens(ids)
    for group in groups:
        audio = group.get("audio")
        if audio is None:
            frames = group["frames"]
            tower = functools.partial(_Tower, model, family, frames)
            audio = graphs.run(("tower", frames), tower, group["mel"])
        place = group["place"][:, None] + torch.arange(audio.shape[1], device=ids.device)
        x = x.index_put((group["row"][:, None], place), audio.to(x.dtype))
    hidden = graphs.run("decoder", functools.partial(_Decoder, lm), x)
    logits = model.lm_head(hidden[target_row, target_place]).float()
    logp = -F.cross_entropy(logits, target_id, reduction="none")
    return {"loss": -(target_weight * logp).sum(), "logp": logp.detach()}


def adapted(
    checkpoint: Checkpoint,
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    expand: bool,
    loaded: Any = None,
    graphs: Graphs | None = None,
) -> Any:
    """The base weights with a fresh LoRA adapter, or the checkpoint's own to go on with, ready for Trainer.

    Args:
        checkpoint: What is trained.
        recipe: How.
        device: Where.
        dtype: Of the frozen weights; the adapter is float32.
        expand: 4-bit weights become what every product would expand them to.
        loaded: A base model in memory, instead of the checkpoint's files.
        graphs: CUDA graphs of its parts. None: every kernel is launched by itself.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    family = family_of(loaded.config if loaded is not None else audio_config(checkpoint.base))
    model = loaded
    if model is None:
        model = load_model(replace(checkpoint, adapter=None), family, device, dtype)
    if expand:
        merge_to_linear(model.model, dtype, True)
    model.requires_grad_(False)
    if checkpoint.adapter is not None:
        peft = PeftModel.from_pretrained(
            model, str(checkpoint.adapter), is_trainable=True, use_safetensors=True
        )
    else:
        torch.manual_seed(recipe.seed)
        targets: Any = {
            "attention": ATTENTION,
            "attention+mlp": [*ATTENTION, "gate_proj", "up_proj", "down_proj"],
            "llm-only": rf".*language_model\..*\.({'|'.join(ATTENTION)})",
        }[recipe.targets]
        peft = get_peft_model(
            model,
            LoraConfig(
                r=recipe.rank,
                lora_alpha=2 * recipe.rank,
                lora_dropout=recipe.dropout,
                target_modules=targets,
            ),
        )
    for weight in peft.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    model.forward = functools.partial(answer_loss, model, family, graphs or Graphs())
    model.accepts_loss_kwargs = False
    return peft


def embed_clips(
    model: Any, family: Family, store: FeatureStore, clips: Sequence[Clip], device: torch.device
) -> dict[str, Tensor]:
    """Audio embeddings ``[token, channel]`` by clip id, of a tower that is not trained."""
    by_frames: dict[int, list[tuple[str, Any]]] = {}
    for clip in clips:
        heard = store.decode(clip)
        mel = heard.mel if heard.mel is not None else store.log_mel([heard.wave])[0]
        by_frames.setdefault(heard.frames, []).append((clip.clip_id, mel))
    out = {}
    with torch.no_grad():
        for frames, part in by_frames.items():
            for i in range(0, len(part), 16):
                some = part[i : i + 16]
                mel = torch.stack([torch.from_numpy(m) for _, m in some]).to(device)
                for (name, _), audio in zip(some, family.encode(model, mel, frames), strict=True):
                    out[name] = audio.clone()
    return out


class _Watch(TrainerCallback):
    """Keeps the best adapter, ends a training that no longer gains, marks complete checkpoints, tells of progress."""

    def __init__(self, folder: Path, tell: Callable[[dict[str, float]], None]) -> None:
        self.folder, self.tell = folder, tell
        self.begin = time.perf_counter()
        self.first_step: int | None = None
        self.saved = self.begin  # when the last checkpoint was written
        self.saving = 0.0  # seconds that it took

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Notes where it starts; forgets a best that lies after that, which will be found again."""
        self.first_step = state.global_step
        best = self.best()
        if best is not None and best["step"] > state.global_step and state.is_world_process_zero:
            shutil.rmtree(self.folder / "best")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
        """Stops at a loss that is no number; tells of step, loss and seconds left."""
        entry = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
        for name in ("loss", "eval_loss"):
            if name in entry and not math.isfinite(entry[name]):
                raise UserError(
                    f"the {name} is {entry[name]} at step {state.global_step}: lower --lr, or train"
                    " in another --dtype"
                )
        if state.is_world_process_zero:
            done = state.global_step - (self.first_step or 0)
            seconds = time.perf_counter() - self.begin
            left = seconds / max(1, done) * (state.max_steps - state.global_step)
            self.tell({**entry, "step": state.global_step, "of": state.max_steps, "left": left})

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kw: Any
    ) -> None:
        """Keeps the adapter of the lowest dev loss; ends after some epochs without a lower one."""
        loss = float(metrics["eval_loss"])
        best = self.best()
        if best is None or loss < best["loss"] or best["step"] == state.global_step:
            if state.is_world_process_zero:
                fresh = self.folder / "best.new"
                shutil.rmtree(fresh, ignore_errors=True)
                kw["model"].save_pretrained(fresh, save_embedding_layers=False)
                about = {"step": state.global_step, "loss": loss}
                (fresh / "best.json").write_text(json.dumps(about))
                shutil.rmtree(self.folder / "best", ignore_errors=True)
                fresh.rename(self.folder / "best")
        elif state.global_step - best["step"] >= PATIENCE * args.eval_steps:
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Asks for a checkpoint when one is due; all processes do so at the same step."""
        waited = time.perf_counter() - self.saved
        due = waited > max(SAVE_SECONDS, self.saving / SAVE_SHARE)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            flag = torch.tensor([float(due)], device=args.device)
            torch.distributed.broadcast(flag, 0)
            due = bool(flag)
        if due and state.global_step < state.max_steps:
            control.should_save = True
            self.saved = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Marks the checkpoint that was just written as whole."""
        now = time.perf_counter()
        self.saved, self.saving = now, now - self.saved
        if state.is_world_process_zero:
            (self.folder / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def best(self) -> dict[str, Any] | None:
        """Step and loss of the best adapter so far."""
        path = self.folder / "best" / "best.json"
        return json.loads(path.read_text()) if path.is_file() else None


def last_complete(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end; later ones, torn by a crash, are removed."""
    found = sorted(
        folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True
    )
    for path in found:
        if (path / COMPLETE).is_file():
            return path
        shutil.rmtree(path)
    return None


def train(
    checkpoint: Checkpoint,
    recipe: Recipe,
    processor: Any,
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    clips: Sequence[Clip],
    judge: Sequence[Clip],
    folder: Path,
    plan: TrainingPlan,
    device: torch.device,
    dtype: torch.dtype,
    features: Path | None = None,
    tell: Callable[[dict[str, float]], None] = lambda entry: None,
    watch: Sequence[TrainerCallback] = (),
    loaded: Any = None,
    most_graphs: int = 3,
) -> tuple[Any, Trained]:
    """Trains an adapter, or goes on with a training that was interrupted.

    Args:
        checkpoint: What is trained; its own adapter, if it has one, is trained further.
        recipe: How.
        processor: The checkpoint's tokenizer and feature extractor.
        prompts: The wordings; clips take turns with them.
        labels: The task's labels.
        clips: What is learnt from.
        judge: Clips whose loss decides which epoch is kept.
        folder: For checkpoints; its content resumes an interrupted training.
        plan: Samples at once, expansion, checkpointing.
        device: Where.
        dtype: Of the frozen weights.
        features: Folder that keeps features of clips.
        tell: Called with every log entry and the seconds left.
        watch: Further callbacks of Trainer.
        loaded: A base model in memory, instead of the checkpoint's files.
        most_graphs: CUDA graphs that may be kept.

    Returns:
        (the peft model with the best epoch's adapter, what came of it).

    Raises:
        UserError: A loss that is no number.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    simple = device.type == "cuda" and plan.micro == recipe.batch and not plan.checkpointing
    graphs = Graphs(most_graphs if simple and dtype == torch.bfloat16 else 0)
    peft = adapted(checkpoint, recipe, device, dtype, plan.expand, loaded, graphs)
    model = peft.get_base_model()
    family, config = family_of(model.config), model.config
    store = FeatureStore(features, processor.feature_extractor, family.whole_window)
    asked = wordings(prompts, labels, processor.tokenizer, family, recipe.swap)
    audio = None
    if recipe.targets == "llm-only":
        audio = embed_clips(model.to(device), family, store, [*clips, *judge], device)
    samples = Samples(
        clips, asked, labels, store, epochs=recipe.epochs, multiple=recipe.batch,
        seed=recipe.seed, augment=recipe.augment and audio is None, audio=audio,
    )  # fmt: skip
    steps = len(samples) // recipe.batch
    epoch = min(steps, max(1, round(len(clips) / recipe.batch)))
    if recipe.batch % (plan.micro * processes):
        raise UserError(
            f"a batch of {recipe.batch} cannot be shared by {processes} processes with {plan.micro}"
            " samples at once"
        )
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=plan.micro,
        per_device_eval_batch_size=plan.micro,
        gradient_accumulation_steps=recipe.batch // (plan.micro * processes),
        num_train_epochs=1,
        learning_rate=recipe.lr,
        warmup_steps=math.ceil(recipe.warmup * steps),
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=dtype == torch.bfloat16 and device.type == "cuda",
        use_cpu=device.type == "cpu",
        gradient_checkpointing=plan.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if plan.checkpointing else None,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        label_names=["target_id"],
        prediction_loss_only=True,
        eval_strategy="steps",
        eval_steps=epoch,
        save_strategy="no",  # `_Watch` decides, by the time it takes
        save_total_limit=2,
        logging_steps=max(1, steps // 50),
        logging_first_step=True,
        report_to="all",
        disable_tqdm=True,
        dataloader_pin_memory=False,  # it would disturb the capture of a graph
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several cards are for `accelerate launch`
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder.parent / "tensorboard"))
    watcher = _Watch(folder, tell)
    trainer = Trainer(
        model=peft,
        args=arguments,
        train_dataset=samples,
        eval_dataset=Samples(judge, asked[:1], labels, store, audio=audio),
        data_collator=Collate(family, config, recipe.loss),
        callbacks=[watcher, *watch],
    )
    for printer in ("PrinterCallback", "ProgressCallback"):
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__ == printer:
                trainer.remove_callback(callback)
    trainer.accelerator.wait_for_everyone()
    resume = last_complete(folder)
    trainer.accelerator.wait_for_everyone()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trainer.accelerator.wait_for_everyone()
    best = watcher.best()
    assert best is not None  # the last step ends an epoch, or the one before it did
    _load_adapter(peft, folder / "best")
    curve = tuple(
        {k: float(v) for k, v in entry.items() if isinstance(v, int | float)}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    )
    seconds = time.perf_counter() - watcher.begin
    return peft, Trained(trainer.state.global_step, best["step"], best["loss"], seconds, curve)


def _load_adapter(peft: Any, folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(peft, load_file(folder / "adapter_model.safetensors"))


def save_adapter(peft: Any, checkpoint: Checkpoint, folder: Path) -> Path:
    """Saves the adapter beside the checkpoints of the training in `folder`, not yet as its result. Returns where."""
    fresh = folder / CHECKPOINTS / "written"
    shutil.rmtree(fresh, ignore_errors=True)
    config = peft.peft_config["default"]
    config.base_model_name_or_path = base_name(checkpoint, folder)
    config.inference_mode = True
    peft.save_pretrained(fresh, save_embedding_layers=False)
    return fresh


def publish(fresh: Path, folder: Path, about: dict[str, Any], card: str) -> None:
    """Makes a saved adapter the result in `folder`. adapter_config.json comes last: without it the folder is none."""
    digest = hashlib.sha256((fresh / "adapter_model.safetensors").read_bytes()).hexdigest()
    text = json.dumps({**about, "adapter_sha256": digest}, indent=1, ensure_ascii=False)
    (fresh / "training.json").write_text(text + "\n", encoding="utf-8")
    (fresh / "README.md").write_text(card, encoding="utf-8")
    for name in ("adapter_model.safetensors", "training.json", "README.md", "adapter_config.json"):
        (fresh / name).chmod(0o644)  # safetensors writes for its owner alone
        os.replace(fresh / name, folder / name)
    shutil.rmtree(folder / CHECKPOINTS)


def base_name(checkpoint: Checkpoint, folder: Path) -> str:
    """How an adapter's folder names its base: by hub id, by shipped name, or as a path."""
    base = checkpoint.base.resolve()
    if base.parent.name == "snapshots":
        return base.parent.parent.name.removeprefix("models--").replace("--", "/")
    if base.parent == folder.resolve().parent:
        return f"../{base.name}"
    shipped = {path.resolve(): name for name, path in SHIPPED.items()}
    return shipped.get(base, str(base))


def versions() -> dict[str, str]:
    """Versions of what decides about a training."""
    import peft
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
