"""4-bit weights that an earlier load made, kept by content: the next load reads a quarter and quantizes nothing.

They lie in this user's cache folder as transformers saves and loads them, in safetensors, under a digest of all that
they are made of. Kept and made anew they are the same bits.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.identity import base_digest, cache_folder, versions
from evaluators.audio_lm.model_folder import shards
from evaluators.audio_lm.weight_reader import WeightReader, can_read

log = logging.getLogger(__name__)
LEAST = 10**9  # bytes of weights; smaller ones are quantized in no time
MADE = "made.json"  # sizes and times of the files as written, which a whole folder still has
SHARD = "4GB"


def open_reader(folder: Path, device: torch.device) -> WeightReader | None:
    """What reads a folder's weights onto a card; None where transformers reads them itself."""
    files = [path for path, _ in shards(folder, f"model {str(folder)!r}")]
    return WeightReader(files, device) if can_read(files, device) else None


def kept_folder(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Path | None:
    """Where the base's 4-bit weights are kept, or would be; None where they are not worth it, or there is no place."""
    if checkpoint.quantization != "nf4":
        return None
    files = shards(checkpoint.base, f"checkpoint {checkpoint.name!r}")
    if sum(path.stat().st_size for path, _ in files) < LEAST:
        return None
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = [
        base_digest(checkpoint.base),
        checkpoint.quantization,
        str(dtype),
        card,
        versions("bitsandbytes", "transformers", "torch"),
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    try:
        return cache_folder() / "nf4" / digest[:32]
    except RuntimeError:  # a user without a home
        return None


def keep(model: Any, folder: Path) -> None:
    """Keeps a quantized model and says where; where that fails, it says so, and the next load quantizes again."""
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        model.save_pretrained(scratch, max_shard_size=SHARD)
        (scratch / MADE).write_text(json.dumps(_state(scratch)), encoding="utf-8")
        if not is_whole(folder):  # else another process was faster
            shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        log.warning("4-bit weights are not kept in %s: %s", folder, error)
        return
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    log.warning(
        "4-bit weights are kept in %s (%.1f GB), for faster loading; remove it at any time",
        folder,
        size,
    )


def is_whole(folder: Path) -> bool:
    """Whether a folder holds kept weights as they were written."""
    try:
        return bool(json.loads((folder / MADE).read_text(encoding="utf-8")) == _state(folder))
    except (OSError, ValueError):
        return False


def _state(folder: Path) -> dict[str, list[int]]:
    files = [path for path in folder.iterdir() if path.name != MADE]
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
