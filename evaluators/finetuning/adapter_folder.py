"""The folder that a fine-tuning leaves: adapter, training.json, README.md. Every verb takes it as --checkpoint."""

import dataclasses
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import TrainerCallback

from evaluators.audio_lm import selftest
from evaluators.audio_lm.adapter_kinds import CONFIG, WEIGHTS
from evaluators.audio_lm.checkpoint import SHIPPED, Checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO, audio_config, family_of
from evaluators.audio_lm.generic import GenericScorer
from evaluators.audio_lm.identity import weights_digest
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.classifier import Classifier
from evaluators.clips import Clip
from evaluators.evaluator import Evaluator
from evaluators.files import copy_file, is_written, read_json, settle, write_text
from evaluators.finetuning.generic import GenericModel
from evaluators.finetuning.model import Adapted
from evaluators.finetuning.plain_code import plain_code, public_name
from evaluators.finetuning.train import Trained, Training, train
from evaluators.statistics.compare import estimate

CHECKPOINTS = ".checkpoints"  # in the folder, until its training has ended
RECORD, CARD = "training.json", "README.md"


def is_finished(folder: Path) -> bool:
    """Whether the folder holds the result of a training."""
    return is_written(folder / CONFIG)


def read_record(folder: Path) -> dict[str, Any]:
    """What training.json tells of a finished folder."""
    record: dict[str, Any] = read_json(folder / RECORD)
    return record


def write_adapter(
    training: Training, folder: Path, callbacks: Sequence[TrainerCallback] = ()
) -> float:
    """Trains and writes the result into `folder`; continues what was interrupted there.

    Returns:
        The validation loss of the adapter, in nats.
    Raises:
        UserError: The loss became NaN or infinite.
    """
    begin = time.time()
    trained = train(training, folder / CHECKPOINTS, callbacks)
    fresh = save_adapter(trained.model, training.checkpoint, folder)
    record = make_record(training, trained, begin)
    publish(fresh, folder, record, card(training, record, folder))
    return trained.best_loss


def make_record(training: Training, trained: Trained, begin: float) -> dict[str, Any]:
    """The content of training.json, in its order, but for the adapter's digest. Scores the validation clips.

    Args:
        training: What was trained.
        trained: The result. Its model cannot be trained any further afterwards.
        begin: When it began, in seconds since the epoch.
    """
    checkpoint, origin = training.checkpoint, training.origin
    count = trained.model.trainable()
    evaluator = _evaluator(training, trained.model)
    scores = _scores(evaluator, training)
    return {
        "prompt": training.prompts[0].to_dict(),
        "prompts": [prompt.to_dict() for prompt in training.prompts],
        "recipe": dataclasses.asdict(training.recipe),
        "quantisation": checkpoint.quantization,
        "base_weights": weights_digest(checkpoint.base),
        "trainable": count,
        "manifest": origin.digest,
        "clips": len(training.clips),
        "sources": sorted({clip.source_id for clip in training.clips} | origin.trained_sources),
        "versions": versions(),
        "steps": trained.steps,
        "best_step": trained.best_step,
        "dev_loss": trained.best_loss,
        "seconds": round(time.time() - begin, 1),
        "dev_search_half": scores,
        "self_test": {
            "dtype": str(evaluator.dtype).removeprefix("torch."),
            "logp": selftest.score_made_up(evaluator, training.prompts[0]),
        },
        "curve": list(trained.curve),
    }


def _evaluator(training: Training, model: Adapted) -> AudioScorer | GenericScorer:
    base = model.base
    base.eval().requires_grad_(False)
    device = str(next(base.parameters()).device)
    dtype = str(training.machine.dtype).removeprefix("torch.")
    if isinstance(model, GenericModel):
        return GenericScorer(training.checkpoint, device, dtype, loaded=model.restore())
    return AudioScorer(
        training.checkpoint,
        device,
        dtype,
        dequantize=training.plan.expand or None,
        loaded=(base, training.processor),
    )


def _scores(evaluator: Evaluator, training: Training) -> list[dict[str, Any]]:
    """Balanced accuracy of each prompt on the validation clips, with its 95 % interval over sources."""
    table = evaluator.score(training.prompts, training.validation)
    out = []
    for prompt in training.prompts:
        e = estimate(table.predict(Classifier(prompt)))
        out.append({"prompt_id": prompt.prompt_id, "value": e.value, "low": e.low, "high": e.high})
    return out


def versions() -> dict[str, str]:
    """Versions of the packages that decide about a training."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }


def save_adapter(model: Adapted, checkpoint: Checkpoint, folder: Path) -> Path:
    """Saves the adapter beside the checkpoints in `folder`, not yet as the result. Returns where."""
    fresh = folder / CHECKPOINTS / "written"
    shutil.rmtree(fresh, ignore_errors=True)
    config = model.peft.peft_config["default"]
    config.base_model_name_or_path = base_name(checkpoint, folder)
    config.inference_mode = True
    if isinstance(config.target_modules, set):  # its order would change from process to process
        config.target_modules = sorted(config.target_modules)
    model.peft.save_pretrained(fresh, save_embedding_layers=False)
    return fresh


def publish(fresh: Path, folder: Path, record: dict[str, Any], text: str) -> None:
    """Makes a saved adapter the result in `folder`, with its record and the `text` of its card.

    adapter_config.json comes last: without it the folder holds no result.
    """
    digest = hashlib.sha256((fresh / WEIGHTS).read_bytes()).hexdigest()
    about = json.dumps({**record, "adapter_sha256": digest}, indent=1, ensure_ascii=False)
    write_text(fresh / RECORD, about + "\n")
    write_text(fresh / CARD, text)
    for name in (WEIGHTS, RECORD, CARD, CONFIG):
        (fresh / name).chmod(0o644)  # safetensors writes for its owner alone
        settle(fresh / name, folder / name)
    shutil.rmtree(folder / CHECKPOINTS)


def copy_adapter(source: Path, folder: Path, checkpoint: Checkpoint) -> None:
    """Makes the result in `source` the result in `folder`, too."""
    config = read_json(source / CONFIG)
    config["base_model_name_or_path"] = base_name(checkpoint, folder)
    for name in (WEIGHTS, RECORD):
        copy_file(source / name, folder / name)
    told = (source / CARD).read_text(encoding="utf-8")
    there, here = public_name(checkpoint, source), public_name(checkpoint, folder)
    write_text(folder / CARD, told.replace(there, here))
    write_text(folder / CONFIG, json.dumps(config, indent=2))


def base_name(checkpoint: Checkpoint, folder: Path) -> str:
    """How an adapter's folder names its base: by hub id, by shipped name, or as a path."""
    shipped = {str(path.resolve()): name for name, path in SHIPPED.items()}
    public = public_name(checkpoint, folder)
    return shipped.get(public, public)


def card(training: Training, record: dict[str, Any], folder: Path) -> str:
    """README.md of the folder."""
    recipe, checkpoint = training.recipe, training.checkpoint
    score = record["dev_search_half"][0]
    listed = "unknown" if checkpoint.trained_on is None else "listed"
    packed = checkpoint.quantization if checkpoint.quantization != "none" else "unquantised"
    lines = [
        "---",
        "library_name: peft",
        "pipeline_tag: audio-text-to-text",
        "---",
        f"# LoRA for {checkpoint.name}",
        "",
        f"Trained on {len(training.clips)} clips, {recipe.epochs} epochs, rate {recipe.lr:g}, rank"
        f" {recipe.rank}, targets {recipe.targets}, loss at {recipe.loss}, seed {recipe.seed}; base"
        f" weights {packed}."
        f" {record['trainable']:,} trainable parameters, {record['steps']} steps, step"
        f" {record['best_step']} kept (dev loss {record['dev_loss']:.3f}).",
        "",
        "Balanced accuracy on the search half of dev, which chose the epoch:"
        f" {100 * score['value']:.1f} %.",
        "",
        f"Clips: the train split of `{training.origin.manifest}`, which lists sources and attribution."
        f" Their licences: {licences(training.clips)}.",
        f"`training.json` holds prompts, sources ({listed} for the base), losses and versions. Use this"
        " folder as",
        "`--checkpoint` of any verb.",
    ]
    if training.chat is None and family_of(audio_config(checkpoint.base)) is QWEN2_AUDIO:
        code = plain_code(
            training.prompts[0], training.processor.tokenizer,
            str(training.machine.dtype).removeprefix("torch."), public_name(checkpoint, folder),
            checkpoint.quantization != "none",
        )  # fmt: skip
        lines += [
            "",
            "With transformers and peft alone, in this folder:",
            "",
            "```python",
            *code,
            "```",
        ]
    return "\n".join(lines) + "\n"


def licences(clips: Sequence[Clip]) -> str:
    """Licences of the clips with the number of clips of each, in one line."""
    count = Counter(clip.licence or "not stated" for clip in clips)
    return ", ".join(f"{name} ({count[name]})" for name in sorted(count))
