"""A model's folder: what is missing, torn, only a pointer, hostile, or quantized in a way that is not known here.

transformers draws weights at random that it does not find, and makes a tokenizer of no words without its file, each
with a warning at most; it runs code that a folder names, and takes whatever memory a configuration asks for. Here each
is an error in one sentence. The checks of files read no more of weights than their headers. What fits the model and
what does not is not told from names here, as transformers renames, merges and ties tensors: `check_weights` has its own
loader place them all on the meta device, where they take no memory.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from evaluators.errors import UserError
from evaluators.files import read_json

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
ADAPTER = "adapter_config.json"  # in a folder of weights, transformers would load another base and a pickle by it
READ_SETTINGS = re.compile(r"(.*_)?(config|map|tokens|template)\.json")  # what transformers reads
# Keys of settings, at any depth, by which transformers runs code that is not its own or reads other weights.
FOREIGN = ("auto_map", "transformers_weights", "audio_tokenizer_name_or_path")
ATTENTION = re.compile(r"_?(attn|experts)_implementation")  # with a slash: code on the hub
LAYERS = re.compile(r"(layers?|blocks|depth|experts|stages)$")  # of the name of a count of modules
FEW_LAYERS = 128  # may be told of a model that has fewer tensors, as max_window_layers is
LARGEST = 2**31 - 1  # of a number in config.json: sizes and token ids are 32-bit integers
BUFFERS = (
    2**28
)  # numbers that a model may make beside those of its files: tables of positions and masks
# What the front end is given, of which each clip takes as much memory: lowest and highest.
FRONT_END = {
    "chunk_length": (0, 3600),  # s
    "sampling_rate": (1_000, 1_000_000),
    "feature_size": (1, 4096),
    "n_fft": (1, 2**16),
    "hop_length": (1, 2**16),
}
INTEGERS = ("position_ids", "num_batches_tracked", "_index")  # tensors that are no weights
UNUSED = ("talker.", "token2wav.", "code2wav.")  # of Qwen's Omni models, which speak with them


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies: the bytes of a file from `begin` to `end`, of a type as ``BF16``, in rows."""

    path: Path
    begin: int
    end: int
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.end - self.begin


def check_model_folder(folder: Path, who: str) -> None:
    """Raises UserError for a folder that is no whole transformers model of its own, with its weights in safetensors.

    Args:
        folder: The folder.
        who: How a sentence names the model.
    """
    refuse_pointers(p for p in sorted(folder.iterdir()) if p.suffix in READ)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{who}: {str(folder)!r} holds no config.json; expected a transformers checkpoint"
        )
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"{who}: {str(folder)!r} holds {ADAPTER} beside a config.json, and is a base or an adapter; keep the base's"
            " files in a folder of their own"
        )
    refuse_foreign(folder, who)
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"{who}: {str(folder)!r} holds no safetensors file; convert it, pickled weights are not"
            " read"
        )
    count = 0
    for path, expected in shards(folder, who):
        found = tensor_types(path).keys()
        count += len(found)
        lacking = sorted(expected - found)
        if lacking:
            raise UserError(
                f"{str(path)!r} lacks tensor {lacking[0]!r}, which {INDEX} names; {AGAIN}"
            )
    _check_numbers(folder, count)


def refuse_foreign(folder: Path, who: str) -> None:
    """Raises UserError where a folder's settings name code, or weights elsewhere, that transformers would take."""
    for path in sorted(folder.glob("*.json")):
        if not READ_SETTINGS.fullmatch(path.name) or not path.is_file():
            continue
        for key, value in _values(read_json(path, finite=False)):
            code = ATTENTION.fullmatch(key) and isinstance(value, str) and "/" in value
            if value and (key in FOREIGN or code):
                raise UserError(
                    f"{who}: {str(path)!r} sets {key}, which names code or weights from elsewhere that are never run or"
                    f" read here; take {key} out where transformers itself has the model, or serve it yourself (vLLM,"
                    " for one) and name the server"
                )


def _check_numbers(folder: Path, tensors: int) -> None:
    """Raises UserError for numbers in a folder's settings that its weights cannot have, before memory is taken."""
    path = folder / "config.json"
    for key, value in _values(read_json(path, finite=False)):
        if not isinstance(value, int | float) or abs(value) < FEW_LAYERS:
            continue
        if abs(value) > LARGEST and isinstance(value, int):
            raise UserError(f"{str(path)!r}: {key} is {value:,}; expected at most {LARGEST:,}")
        if LAYERS.search(key) and value > max(tensors, FEW_LAYERS):
            raise UserError(
                f"{str(path)!r}: {key} is {value:,}, of a model that has {tensors:,} tensors; expected no more: {AGAIN}"
            )
    for path in (folder / name for name in SETTINGS if (folder / name).is_file()):
        for key, value in _values(read_json(path, finite=False)):
            low, high = FRONT_END.get(key, (-math.inf, math.inf))
            if isinstance(value, int | float) and not low <= value <= high:
                raise UserError(
                    f"{str(path)!r}: {key} is {value:,}; expected {low:,} to {high:,}: {AGAIN}"
                )


def _values(raw: Any) -> Iterator[tuple[str, Any]]:
    """(Key, value) of all mappings in plain data, whatever its depth."""
    waiting = [raw]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


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
            known = key.endswith(INTEGERS) or key.startswith(UNUSED)
            if kind not in FLOATS and (not known or key.endswith((".weight", ".bias"))):
                raise UserError(
                    f"{str(path)!r}: tensor {key!r} is of type {kind}; expected one of"
                    f" {', '.join(FLOATS)}: {UNQUANTIZED}"
                )


def read_config(folder: Path) -> Any:
    """A folder's configuration as transformers fills it in.

    Raises:
        UserError: It cannot be one.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a class makes of what it is given
        raise _unusable(folder, error) from error


def check_weights(model_class: Any, folder: Path) -> Any:
    """The model on the meta device, without memory: every tensor of the folder has its place in it, and none is left.

    It is made by transformers' own loading, which knows what is renamed, merged and tied. It reads headers alone.

    Args:
        model_class: The class of transformers.
        folder: It holds configuration and weights; `check_model_folder` has seen it.

    Raises:
        UserError: A tensor is missing, left over or of another shape, or the configuration makes no such model.
    """
    try:
        model = read_model(model_class, folder, device_map="meta")
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"the model in {str(folder)!r} needs a library that is not installed ({reason_of(error)}); install it with"
            " pip"
        ) from error
    except Exception as error:  # whatever a class makes of what it is given
        raise _unusable(folder, error) from error
    made = sum(buffer.numel() for buffer in model.buffers())
    if made > BUFFERS + sum(weight.numel() for weight in model.parameters()):
        raise UserError(
            f"{str(folder / 'config.json')!r} makes tables of {made:,} numbers beside the weights; expected at most"
            f" {BUFFERS:,}: {AGAIN}"
        )
    return model


def _unusable(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{str(folder / 'config.json')!r} cannot be used ({reason_of(error)}); {AGAIN}, or try another version of"
        " transformers"
    )


def reason_of(error: Exception) -> str:
    """What an error says, in a line. transformers says first where, then what."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return (said.partition(". ")[0].rstrip(".") or type(error).__name__)[:200]


def read_model(
    model_class: Any, folder: Path, tensors: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """A model by transformers' own loading, in which every weight comes from the folder. No remote code is run.

    Args:
        model_class: The class of transformers.
        folder: It holds configuration and weights.
        tensors: The folder's tensors by name, as they are or as slices that are read when they are asked for; None:
            transformers reads them itself.
        options: Further arguments of `from_pretrained`.

    Raises:
        UserError: A tensor is missing, left over or of another shape.
    """
    from transformers.utils import logging as hf_logging

    source: Path | None = folder
    if tensors is not None:  # then it takes no folder
        config = model_class.config_class.from_pretrained(folder, trust_remote_code=False)
        source, options = None, options | {"config": config, "state_dict": tensors}
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its table of tensors says over many lines what is said below
    try:
        model, about = model_class.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
            **options,
        )
    finally:
        hf_logging.set_verbosity(level)
    wrong = [*sorted(about["missing_keys"]), *sorted(str(k[0]) for k in about["mismatched_keys"])]
    extra = sorted(about["unexpected_keys"])
    parts = [
        f"{_first(names)} {verb}"
        for names, verb in ((wrong, "missing or of another shape"), (extra, "left over"))
        if names
    ]
    if parts:
        raise UserError(
            f"the weights in {str(folder)!r} are not those of its config.json:"
            f" {' and '.join(parts)}; {AGAIN}"
        )
    if tensors is not None:
        model.name_or_path = model.config.name_or_path = str(folder)
    return model


def _first(names: list[str]) -> str:
    return f"{names[0]!r} " + (f"and {len(names) - 1} more are" if len(names) > 1 else "is")


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
        reason = reason_of(error)
        lacking = [name for name in SETTINGS if not (folder / name).is_file()]
        raise UserError(
            f"tokenizer or processor in {str(folder)!r} cannot be read ({reason})"
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
    raw = read_json(path, finite=False)
    return raw if isinstance(raw, dict) else {}


def tensor_types(path: Path) -> dict[str, str]:
    """The type of each tensor of a safetensors file, as ``F32``. Reads the header alone.

    Raises:
        UserError: The file is torn, may not be read, is no safetensors file, or holds no tensor.
    """
    try:
        path.open("rb").close()  # of one that may not be read safetensors says that it is not there
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({error.strerror}); restore it, or the right to read it"
        ) from None
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


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a safetensors file that `tensor_types` does not refuse. Reads the header alone."""
    with safe_open(path, framework="numpy") as file:
        return {key: file.get_slice(key).get_shape() for key in file.keys()}


def tensor_places(path: Path) -> dict[str, TensorPlace]:
    """Where each tensor of a safetensors file lies. Reads the header alone.

    Raises:
        UserError: The file is torn or no safetensors file, or holds no tensor.
    """
    tensor_types(path)  # refuses a header that does not fit the file
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    places = {}
    for name, about in header.items():
        begin, end = (8 + length + offset for offset in about["data_offsets"])
        places[name] = TensorPlace(path, begin, end, about["dtype"], tuple(about["shape"]))
    return places


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
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise UserError(
                f"{who}: {str(index)!r} names {name!r}; expected a .safetensors beside it: pickled weights and those"
                " elsewhere are not read"
            )
        if not (folder / name).is_file():
            raise UserError(
                f"{who}: {str(folder / name)!r} is missing, which {INDEX} names; {AGAIN}"
            )
        yield folder / name, frozenset(key for key, file in placed.items() if file == name)
