"""A model's folder: what is missing, torn, only a pointer, or quantized in a way that is not known here.

transformers draws weights at random that it does not find, and makes a tokenizer of no words without its file, each
with a warning at most. Here each is an error in one sentence. The checks read no more of weights than their headers;
what those cannot see, `read_model` and `read_processor` see when they load.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
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
TOKENIZERS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("tokenizer.model",),
    ("tekken.json",),
)  # any of them is enough
READ = (
    ".json",
    ".safetensors",
    ".txt",
    ".model",
    ".jinja",
)  # a pickle beside them may stay a pointer
SETTINGS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
AGAIN = "download the model again"
UNQUANTIZED = "give the unquantized weights, for 4 bits of them with --quantization nf4"


def check_model_folder(folder: Path, who: str) -> None:
    """Raises UserError for a folder that is no whole transformers model with its weights in safetensors.

    Args:
        folder: The folder.
        who: How a sentence names the model.
    """
    refuse_pointers(p for p in sorted(folder.iterdir()) if p.suffix in READ)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{who}: {str(folder)!r} holds no config.json; expected a transformers checkpoint"
        )
    read_object(folder / "config.json")
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{who}: {str(folder)!r} holds no safetensors file; convert it, pickled weights are not"
            " read"
        )
    for path, expected in shards(folder, who):
        lacking = sorted(expected - tensor_types(path).keys())
        if lacking:
            raise UserError(
                f"{str(path)!r} lacks tensor {lacking[0]!r}, which {INDEX} names; {AGAIN}"
            )


def refuse_quantized(folder: Path, who: str) -> None:
    """Raises UserError for weights of a whole folder that were stored in a quantized form."""
    config = read_object(folder / "config.json")
    parts = [config, *(p for name in PARTS if isinstance(p := config.get(name), dict))]
    for part in parts:
        about = part.get("quantization_config") or part.get("compression_config")
        if about:
            kind = about.get("quant_method", "unknown") if isinstance(about, dict) else about
            raise UserError(
                f"{who}: {str(folder / 'config.json')!r} tells of weights quantized by {kind}, which"
                f" are not known to score exactly; {UNQUANTIZED}"
            )
    for path, _ in shards(folder, who):
        for key, kind in tensor_types(path).items():
            if kind not in FLOATS and re.search(r"\.(weight|bias)$", key):
                raise UserError(
                    f"{str(path)!r}: tensor {key!r} is of type {kind}; expected one of"
                    f" {', '.join(FLOATS)}: {UNQUANTIZED}"
                )


def read_model(model_class: Any, folder: Path, **options: Any) -> Any:
    """A model by transformers' own loading, in which every weight comes from the folder.

    Args:
        model_class: The class of transformers.
        folder: It holds configuration and weights.
        options: Further arguments of `from_pretrained`.

    Raises:
        UserError: A weight is missing or has another shape.
    """
    model, about = model_class.from_pretrained(
        folder,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are named below
        output_loading_info=True,
        **options,
    )
    wrong = [*sorted(about["missing_keys"]), *sorted(str(k[0]) for k in about["mismatched_keys"])]
    if wrong:
        raise UserError(
            f"the weights in {str(folder)!r} are not those of its config.json: {wrong[0]!r}"
            + (f" and {len(wrong) - 1} more are" if len(wrong) > 1 else " is")
            + f" missing or of another shape; {AGAIN}"
        )
    return model


def read_processor(folder: Path, read: Callable[[Path], Any]) -> Any:
    """A tokenizer, or a processor with one, that `read` makes of a folder.

    Raises:
        UserError: Files are missing or torn, or a library that they need is.
    """
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise UserError(f"{str(folder)!r} holds no tokenizer.json; {AGAIN}")
    try:
        return read(folder)
    except UserError:
        raise
    except Exception as error:  # of many kinds; tokenizers raises Exception itself
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        lacking = [name for name in SETTINGS if not (folder / name).is_file()]
        raise UserError(
            f"tokenizer or processor in {str(folder)!r} cannot be read ({reason[:200]})"
            + (f"; it has no {', no '.join(lacking)}" if lacking else "")
            + f"; {AGAIN}, with all of its .json and .txt files"
        ) from error


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


def tensor_types(path: Path) -> dict[str, str]:
    """The type of each tensor of a safetensors file, as ``F32``. Reads the header alone.

    Raises:
        UserError: The file is torn or no safetensors file, or holds no tensor.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            types = {key: file.get_slice(key).get_dtype() for key in file.keys()}
            if not types:
                raise SafetensorError("no tensor in it")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{str(path)!r} is truncated or no safetensors file ({path.stat().st_size:,} bytes:"
            f" {error}); restore it"
        ) from None
    return types


def weight_count(folder: Path, who: str) -> int:
    """How many numbers the tensors of a model's folder hold. Reads the headers alone."""
    count = 0
    for path, _ in shards(folder, who):
        with safe_open(path, framework="numpy") as file:
            count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
    return count


def shards(folder: Path, who: str) -> Iterator[tuple[Path, frozenset[str]]]:
    """(File, tensors that the index places there) of the weights that transformers would load.

    Raises:
        UserError: A file is missing, or nothing tells which there are.
    """
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
