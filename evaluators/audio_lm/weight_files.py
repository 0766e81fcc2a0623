"""A model's folder as it lies on disk: what is missing, torn, only a pointer, or quantized in a way not known here.

Nothing is loaded: of weights the headers are read. What these checks cannot see, `read_model` sees when it loads.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from evaluators.errors import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = (
    b"version https://git-lfs.github.com/spec/"  # how a file of Git LFS begins that was not fetched
)
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names them
PARTS = (
    "text_config",
    "thinker_config",
    "audio_config",
)  # of a configuration, with their own settings
AGAIN = "download the model again"


def check_model_folder(folder: Path, who: str) -> None:
    """Raises UserError for a folder that is no whole transformers model with unquantized weights in safetensors.

    Args:
        folder: The folder.
        who: How a sentence names the model.
    """
    refuse_pointers(sorted(folder.iterdir()))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{who}: {str(folder)!r} holds no config.json; expected a transformers checkpoint"
        )
    _refuse_quantized(read_object(folder / "config.json"), folder, who)
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{who}: {str(folder)!r} holds no safetensors file; convert it, pickled weights are not"
            " read"
        )
    for path, expected in _shards(folder, who):
        _check_shard(path, expected)


def refuse_pointers(paths: Iterable[Path]) -> None:
    """Raises UserError for a file that is a Git LFS pointer in place of the content."""
    for path in paths:
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(POINTER):
            raise UserError(
                f"{str(path)!r} is a Git LFS pointer, not the file it stands for; run git lfs pull"
                f" in {str(path.parent)!r}, or download the folder again"
            )


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; an empty one for any other value.

    Raises:
        UserError: It is not readable as JSON.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    return raw if isinstance(raw, dict) else {}


def _refuse_quantized(config: dict[str, Any], folder: Path, who: str) -> None:
    parts = [config, *(p for name in PARTS if isinstance(p := config.get(name), dict))]
    for part in parts:
        about = part.get("quantization_config") or part.get("compression_config")
        if about:
            kind = about.get("quant_method", "unknown") if isinstance(about, dict) else about
            raise UserError(
                f"{who}: {str(folder / 'config.json')!r} tells of weights quantized by {kind}, which"
                " are not known to score exactly; give the unquantized weights, for 4 bits of them"
                " with --quantization nf4"
            )


def _shards(folder: Path, who: str) -> Iterator[tuple[Path, frozenset[str]]]:
    """(File, tensors that the index places there) of the weights that transformers would load."""
    if (folder / WHOLE).is_file():
        yield folder / WHOLE, frozenset()
        return
    index = folder / INDEX
    if not index.is_file():
        raise UserError(
            f"{who}: {str(folder)!r} holds neither {WHOLE} nor {INDEX}; {AGAIN}, or give its files"
            " these names"
        )
    placed = read_object(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(n, str) for n in placed.values()):
        raise UserError(f"{str(index)!r} has no weight_map of tensors to files; {AGAIN}")
    for name in sorted(set(placed.values())):
        if not (folder / name).is_file():
            raise UserError(
                f"{who}: {str(folder / name)!r} is missing, which {INDEX} names; {AGAIN}"
            )
        yield folder / name, frozenset(key for key, file in placed.items() if file == name)


def _check_shard(path: Path, expected: frozenset[str]) -> None:
    """Raises UserError for a file that is torn, lacks a tensor of the index, or holds weights that are no floats."""
    try:
        with safe_open(path, framework="numpy") as file:  # reads the header alone
            kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{str(path)!r} is truncated or no safetensors file ({path.stat().st_size:,} bytes:"
            f" {error}); {AGAIN}"
        ) from None
    lacking = sorted(expected - kinds.keys())
    if lacking:
        raise UserError(f"{str(path)!r} lacks tensor {lacking[0]!r}, which {INDEX} names; {AGAIN}")
    for key, kind in kinds.items():
        if kind not in FLOATS and re.search(r"\.(weight|bias)$", key):
            raise UserError(
                f"{str(path)!r}: tensor {key!r} is of type {kind}; expected one of"
                f" {', '.join(FLOATS)}: give the unquantized weights"
            )
