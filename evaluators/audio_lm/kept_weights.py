"""4-bit weights that an earlier load made, kept by content: the next load reads a quarter and quantizes nothing.

They lie in this user's cache folder as transformers saves and loads them, in safetensors, under a digest of all that
they are made of. Kept and made anew they are the same bits, and so are the numbers that they stand for here and in
bitsandbytes.
"""

import contextlib
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.identity import base_digest, cache_folder, file_version, versions
from evaluators.audio_lm.model_folder import shards
from evaluators.audio_lm.weight_reader import WeightReader, can_read
from evaluators.files import replacing_folder

log = logging.getLogger(__name__)
LEAST = 10**9  # bytes of weights; smaller ones are quantized in no time
LOCK = "lock"  # of the one process that keeps weights, beside the folders
UNFINISHED = "?" * 32 + ".*"  # folders that killed processes left
MADE = "made.json"  # sizes and times of the files as written, which a whole folder still has
SHARD = "4GB"
STATE = "quant_state.bitsandbytes__nf4"  # the last of the tensors that say what a 4-bit weight stands for


def open_reader(folder: Path, device: torch.device) -> WeightReader | None:
    """What reads a folder's weights onto a card; None where transformers reads them itself."""
    files = [path for path, _ in shards(folder, f"model {str(folder)!r}")]
    return WeightReader(files, device) if can_read(files, device) else None


def stored_tensors(folder: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a folder's files and their names, each when it is taken; on a card where a reader is of use.

    What says how to read 4-bit weights comes before all weights.

    Raises:
        UserError: A file is torn.
    """
    reader = open_reader(folder, device)
    if reader is not None:
        with contextlib.closing(reader):
            yield from reader.all(sorted(reader.tensors, key=lambda name: ".weight." not in name))
        return
    files = [path for path, _ in shards(folder, f"model {str(folder)!r}")]
    for first in (True, False):  # a weight may lie in a file before what says how to read it
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in [name for name in file.keys() if (".weight." in name) == first]:
                    yield name, file.get_tensor(name)


def expanded(
    stored: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """The same tensors, 4-bit weights as the numbers that they stand for.

    4-bit NormalFloat with double quantization (Dettmers et al. 2023): two numbers a byte, each a place in a table,
    times the largest of its block, which is one byte in the same way, plus their mean.

    Args:
        stored: By name, all that says how to read a weight before it.
        dtype: Of these numbers, as they were before they were quantized.
    """
    about: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored:
        weight, inside, part = name.partition(".weight.")
        if inside:
            about.setdefault(weight, {})[part] = tensor
        elif name.endswith(".weight") and (weight := name.removesuffix(".weight")) in about:
            yield name, _numbers(tensor, about.pop(weight)).to(dtype)
        else:
            yield name, tensor


def _numbers(packed: Tensor, about: dict[str, Tensor]) -> Tensor:
    """``[out, in]`` in float32 that 4-bit numbers ``[pair, 1]`` stand for."""
    state = json.loads(about[STATE].cpu().numpy().tobytes())
    largest = about["nested_quant_map"][about["absmax"].int()]
    wide = about["nested_absmax"].repeat_interleave(state["nested_blocksize"])
    largest = largest * wide[: len(largest)] + state["nested_offset"]
    table, byte = about["quant_map"], torch.arange(256, device=packed.device)
    pairs = torch.stack([table[byte >> 4], table[byte & 15]], -1)
    numbers = pairs[packed.flatten().int()].flatten()
    scale = largest.repeat_interleave(state["blocksize"])[: len(numbers)]
    return (numbers * scale)[: math.prod(state["shape"])].reshape(state["shape"])


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
    """Keeps a quantized model and says where; where that fails, it says so, and the next load quantizes again.

    One process of a user keeps at a time, another does not wait for it. What killed ones were writing is removed.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(LOCK), timeout=0):
            if is_whole(folder):  # another process was faster
                return
            _remove(folder, *folder.parent.glob(UNFINISHED))
            with replacing_folder(folder) as fresh:
                model.save_pretrained(fresh, max_shard_size=SHARD)
                (fresh / MADE).write_text(json.dumps(_state(fresh)), encoding="utf-8")
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    except filelock.Timeout:
        log.info("4-bit weights are not kept in %s: another process keeps some", folder)
        return
    except (OSError, NotImplementedError, SafetensorError) as error:
        log.warning("4-bit weights are not kept in %s: %s", folder, error)
        return
    log.warning(
        "4-bit weights are kept in %s (%.1f GB), for faster loading; remove it at any time",
        folder,
        size,
    )


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds kept weights as they were written."""
    try:
        return bool(json.loads((folder / MADE).read_text(encoding="utf-8")) == _state(folder))
    except (OSError, ValueError):
        return False


def _state(folder: Path) -> dict[str, list[int]]:
    return {path.name: file_version(path)[1:] for path in folder.iterdir() if path.name != MADE}
