"""What a checkpoint is, wherever it lies: digests of its tensors and of the files that decide a score.

A base is known by its tensors and its configuration. A hub snapshot, a local copy and a copy in other shards are one;
names of folders, commits and weight files say nothing. Tensors of a large file are hashed once for each version of the
file (path, size, times): the digests are remembered in this user's cache folder, for all processes of the machine.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from evaluators.audio_lm.adapter_kinds import APPLIED, CONFIG, WEIGHTS
from evaluators.audio_lm.model_folder import (
    SETTINGS,
    TOKENIZERS,
    read_config,
    read_object,
    shards,
    tensor_places,
)
from evaluators.audio_lm.plain_config import plain_config
from evaluators.errors import PauseError, UserError
from evaluators.files import write_text

log = logging.getLogger(__name__)
SMALL = 64 * 2**20  # bytes; smaller files are hashed in less time than it takes to notice
TOLD = 1.0  # gigabytes; of larger files it is said that they are hashed, which takes seconds
PATIENCE = 2.0  # seconds that another process may hash before it is said that this one waits
BLOCK = 4 * 2**20  # bytes that a thread holds
THREADS = 8  # at most; more do not make a disk faster
# Of a configuration: where it came from, how its files are stored (each tensor has its own type here, and is loaded in
# the precision that is asked for), how weights are drawn at first, and what training alone does. All else counts.
UNDECIDING = frozenset(
    "_name_or_path transformers_version architectures dtype torch_dtype use_cache initializer_range init_std"
    " attention_dropout activation_dropout dropout encoder_layerdrop output_attentions output_hidden_states"
    " return_dict".split()
)
# What turns texts into tokens and waves into features. Chat templates are not read: `templates` has its own.
FRONT_FILES = (
    *(name for names in TOKENIZERS for name in names),
    *SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
)
COMMIT = "[0-9a-f]{40}"

Tensor = tuple[str, str, list[int], str]  # name, type, shape, SHA-256 of its bytes


def base_digest(folder: Path) -> str:
    """SHA-256 over all of a model's folder that decides what it computes: tensors, configuration, tokenizer, features.

    The configuration is compared as transformers fills it in, so that its short form on the hub and the long one of
    `save_pretrained` are one. Of the other files the bytes count: a tokenizer that was saved anew is another one.
    Where all of this is as it was, the digest is known from memory, and transformers is not imported for it.
    """
    front = [n for n in FRONT_FILES if (folder / n).is_file()]
    weights = [path for path, _ in shards(folder, f"model {str(folder)!r}")]

    def made() -> list[str]:
        parts = {
            "tensors": weights_digest(folder),
            "configuration": _configuration(folder),
            "files": {n: _sha256(folder / n) for n in front},
        }
        return [_digest(parts)]

    paths = [folder / "config.json", *(folder / n for n in front), *weights]
    (digest,) = recalled(paths, ["base", versions("transformers")], made)
    return str(digest)


def weights_digest(folder: Path) -> str:
    """SHA-256 over the tensors of a model's folder: name, type, shape and bytes of each, in whatever files they lie."""
    return _tensors_digest(path for path, _ in shards(folder, f"model {str(folder)!r}"))


def adapter_digest(folder: Path) -> str:
    """SHA-256 over an adapter's tensors and the settings that peft applies; how it names its base does not count."""
    settings = {
        key: sorted(value, key=str) if isinstance(value, list) else value
        for key, value in read_object(folder / CONFIG).items()
        if key in APPLIED and value  # another version of peft writes more fields that are not set
    }
    return _digest({"tensors": _tensors_digest([folder / WEIGHTS]), "settings": settings})


def old_digest(folder: Path) -> str:
    """The digest that adapters trained with version 0.1 hold of their base: by the hub's commit, else by its files."""
    in_hub = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    if in_hub and re.fullmatch(COMMIT, folder.name):
        return folder.name
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        kind = path.suffix in (".safetensors", ".json", ".txt", ".model")
        if kind and path.name != "training.json":
            (digest,) = _remembered(path, "file", lambda path: [_sha256(path)])
            whole.update(f"{path.name}:{digest};".encode())
    return whole.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of packages, without importing them; ``none`` of one that is not there."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _configuration(folder: Path) -> Any:
    """What of config.json decides, with transformers' defaults filled in; of Qwen3-Omni the thinker's part."""
    config: Any = plain_config(folder) or read_config(folder)
    return _deciding(getattr(config, "thinker_config", config).to_dict())


def _deciding(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _deciding(v) for k, v in value.items() if k not in UNDECIDING}
    return value


def _tensors_digest(files: Iterable[Path]) -> str:
    tensors = [tensor for path in files for tensor in _remembered(path, "tensors", _tensors)]
    return hashlib.sha256("\n".join(sorted(set(map(json.dumps, tensors)))).encode()).hexdigest()


def _tensors(path: Path) -> list[Tensor]:
    """All tensors of a safetensors file. Reads blocks, in threads, largest tensors first.

    Raises:
        UserError: The file is torn.
    """
    places = tensor_places(path)
    names = sorted(places, key=lambda name: places[name].begin - places[name].end)
    size = path.stat().st_size / 1e9
    if size > TOLD:
        log.warning("%s: %.1f GB are hashed, once for this version of the file", path.name, size)
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        parts = ((path, places[name].begin, places[name].end) for name in names)
        digests = list(pool.map(lambda part: _hash_part(*part), parts))
    return [
        (name, places[name].kind, list(places[name].shape), digest)
        for name, digest in zip(names, digests, strict=True)
    ]


def _hash_part(path: Path, begin: int, end: int) -> str:
    """SHA-256 of a file's bytes from `begin` to `end`."""
    whole, block = hashlib.sha256(), memoryview(bytearray(min(BLOCK, end - begin)))
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while begin < end:
            count = file.readinto(block[: end - begin])
            if not count:
                raise UserError(f"{str(path)!r} became shorter while it was read; restore it")
            whole.update(block[:count])
            begin += count
    return whole.hexdigest()


def _remembered(path: Path, kind: str, make: Callable[[Path], list[Any]]) -> list[Any]:
    """What `make` says of a file: of a large one from memory, as long as the file is the same.

    Processes take turns, so that one hashes and the others wait for it. What is remembered is of no use where it is
    damaged, cannot be read, or is of another version of the file: then it is made anew.
    """
    path = path.resolve()  # of the hub's links the file itself
    if path.stat().st_size < SMALL:
        return make(path)
    name = hashlib.sha256(f"{kind} {path}".encode()).hexdigest()[:32]
    try:
        record = _memory() / f"{name}.json"
    except RuntimeError:  # a user without a home
        return make(path)
    with _alone(record):
        before = file_version(path)
        known = _read(record, before)
        if known is not None:
            return known
        made = make(path)
        if file_version(path) == before:
            _remember(record, {"file": before, "found": made})
    return made


def check_once(paths: Iterable[Path], about: Any, check: Callable[[], object]) -> None:
    """Runs a check of files, unless it has passed on the same version of each, as this user's cache folder remembers.

    Args:
        paths: The files.
        about: Plain data: what else the check depends on.
        check: It raises where they do not pass.
    """

    def passed() -> list[Any]:
        check()
        return []

    recalled(paths, about, passed)


def recalled(paths: Iterable[Path], about: Any, make: Callable[[], list[Any]]) -> list[Any]:
    """What `make` says of files, unless it said so of the same version of each, as this user's cache folder remembers.

    Args:
        paths: The files.
        about: Plain data: what else it depends on.
        make: Gives plain data.
    """
    paths = list(paths)

    def seen() -> list[Any]:
        return [[file_version(path.resolve()) for path in paths], about]

    state = seen()
    try:
        record = _memory() / f"{_digest(state)[:32]}.json"
    except RuntimeError:  # a user without a home
        return make()
    found = _read(record, state)
    if found is None:
        found = make()
        if seen() == state:  # a link may lead elsewhere by now
            _remember(record, {"file": state, "found": found})
    return found


def _remember(record: Path, about: dict[str, Any]) -> None:
    try:
        write_text(record, json.dumps(about | {"check": _digest(about)}))
    except PauseError as error:  # costs time, not results
        log.info("digests are not remembered: %s", error)


def cache_folder() -> Path:
    """This user's cache folder. Raises RuntimeError for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "opro-audio"


def _memory() -> Path:
    """Where digests are remembered."""
    return cache_folder() / "digests"


def file_version(path: Path) -> list[Any]:
    """Path, size and times of a file. Tools may set the first of its times back, the system alone sets the second."""
    about = path.stat()
    return [str(path), about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def _read(record: Path, version: list[Any]) -> list[Any] | None:
    try:
        about = json.loads(record.read_text(encoding="utf-8"))
        check = about.pop("check")
        whole = about["file"] == version and check == _digest(about)
        return list(about["found"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@contextlib.contextmanager
def _alone(record: Path) -> Iterator[None]:
    """No other process of this user works on the record until the block ends, where the folder can be written."""
    lock = filelock.FileLock(record.with_suffix(".lock"))
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except filelock.Timeout:
            log.warning("another process hashes the same weights; this one waits for it")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        log.info("digests are not remembered: %s", error)
    try:
        yield
    finally:
        lock.release()
