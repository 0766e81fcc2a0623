"""A checkpoint and its adapter as one plain model, which transformers loads without this project."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluators.audio_lm import selftest
from evaluators.audio_lm.adapters import merge
from evaluators.audio_lm.checkpoint import Checkpoint, open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO, audio_config, family_of
from evaluators.audio_lm.loading import load_model
from evaluators.audio_lm.model_folder import tensor_types
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError
from evaluators.files import replacing_folder
from evaluators.finetuning.plain_code import plain_code
from evaluators.prompts import Prompt

STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float32}
KEPT = (
    ".json",
    ".txt",
    ".model",
    ".jinja",
)  # files of the base that belong to the merged model, too
ROUNDED = selftest.Tolerance(0.05, 0.1)  # weights were rounded once more than beside the adapter
OWN = ("config.json", "training.json", "model.safetensors.index.json")  # but for these


def write_merged(
    checkpoint: Checkpoint, folder: Path, prompt: Prompt, device: str, dtype: str
) -> tuple[float, str]:
    """Writes base and adapter as one model, in the precision that the base's files have.

    LoRA is added in float32 and rounded once. The folder appears when it is whole and has passed its test: made-up
    clips have the scores that they have with the adapter beside the base.

    Args:
        checkpoint: Base and adapter.
        folder: Where to; it must not exist.
        prompt: For the test, and for the lines in its README.md.
        device: See `AudioScorer`; of the test.
        dtype: See `AudioScorer`; of the test.

    Returns:
        (Largest difference of a log-probability in nats, the precision of the files).

    Raises:
        UserError: There is no adapter, weights are 4-bit, the folder exists, or the scores differ.
    """
    _check(checkpoint, folder)
    family = family_of(audio_config(checkpoint.base))
    stored = stored_dtype(checkpoint.base)
    model = load_model(checkpoint, family, torch.device("cpu"), stored)
    merge(model, stored, False)
    _refuse_new_parameters(model)
    with replacing_folder(folder) as fresh:
        model.save_pretrained(fresh)
        del model
        for path in fresh.glob("*.safetensors"):
            path.chmod(0o644)  # safetensors writes for its owner alone
        for path in checkpoint.base.iterdir():
            if path.suffix in KEPT and path.name not in OWN:
                shutil.copyfile(path, fresh / path.name)
        if checkpoint.trained_on is not None:
            sources = {"sources": sorted(checkpoint.trained_on)}
            (fresh / "training.json").write_text(json.dumps(sources, ensure_ascii=False))
        beside = AudioScorer(checkpoint, device, dtype)
        name = str(stored).removeprefix("torch.")
        lines = [f"# {checkpoint.name}, merged", "", f"Base and adapter as one model in {name}."]
        if family is QWEN2_AUDIO:
            code = plain_code(prompt, beside.processor.tokenizer, name, None, False)
            lines += ["With transformers alone, in this folder:", "", "```python", *code, "```"]
        (fresh / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        apart = _compare(beside, AudioScorer(open_checkpoint(str(fresh)), device, dtype), prompt)
    return apart, name


def stored_dtype(base: Path) -> torch.dtype:
    """The precision that most tensors of a folder have."""
    types = [kind for path in base.glob("*.safetensors") for kind in tensor_types(path).values()]
    return STORED[Counter(types).most_common(1)[0][0]]


def _check(checkpoint: Checkpoint, folder: Path) -> None:
    if checkpoint.adapter is None:
        raise UserError(f"--merge: checkpoint {checkpoint.name!r} has no adapter to merge")
    if checkpoint.quantization != "none":
        raise UserError(
            f"--merge: {checkpoint.name!r} was trained on 4-bit weights and would score otherwise on"
            " full ones; give its folder as --checkpoint, with --quantization"
            f" {checkpoint.quantization}"
        )
    if folder.exists():
        raise UserError(f"--merge: {str(folder)!r} exists; give a folder that does not")


def _refuse_new_parameters(model: Any) -> None:
    """Raises UserError for a model with parameters that its class does not have."""
    with torch.device("meta"):
        own = type(model)(model.config).state_dict()
    new = sorted(model.state_dict().keys() - own.keys())
    if new:
        raise UserError(
            f"--merge: the adapter adds {new[0]!r}, which this kind of model does not have, so that no"
            " plain model has its scores; use base and adapter as they are"
        )


def _compare(beside: AudioScorer, merged: AudioScorer, prompt: Prompt) -> float:
    """The largest difference in nats. Raises UserError where rounding cannot explain it."""
    before = np.array(selftest.score_made_up(beside, prompt))
    after = np.array(selftest.score_made_up(merged, prompt))
    selftest.compare(before, after, ROUNDED, "the merged model")
    return float(np.abs(after - before).max())
