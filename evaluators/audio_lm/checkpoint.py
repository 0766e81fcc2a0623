"""Checkpoints: which weights, in which precision, with which adapter, and what they were trained on."""

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.audio_lm.adapter_kinds import CONFIG, WEIGHTS, check_adapter
from evaluators.audio_lm.generic_class import generic_class
from evaluators.audio_lm.identity import (
    adapter_digest,
    base_digest,
    file_version,
    old_digest,
    weights_digest,
)
from evaluators.audio_lm.model_folder import (
    check_model_folder,
    read_object,
    refuse_pointers,
    refuse_quantized,
)
from evaluators.errors import PauseError, UserError
from evaluators.files import shipped
from evaluators.prompts import Prompt, prompt_from

POCKET = shipped("data/pocket")
SHIPPED = {"pocket-base": POCKET / "base", "pocket-lora": POCKET / "lora"}
Quantization = Literal["none", "nf4"]
OMNI = ("qwen3_omni_moe", "qwen3_omni_moe_thinker")
PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
]  # what of a model on the hub is downloaded
DOUBLES = ["consolidated*"]  # Mistral's own form of the same weights
HUB_ID = r"[\w.-]+(/[\w.-]+)?"
# `model_type` in config.json of what the packed step scores; `families` has a family for each.
MODEL_TYPES = (
    "qwen2_audio",
    *OMNI,
    "qwen2_5_omni",
    "qwen2_5_omni_thinker",
    "audioflamingo3",
    "voxtral",
)


@dataclass(frozen=True)
class SelfTest:
    """Log-probabilities ``[clip][label]`` in nats that made-up clips had when the adapter was written, and how."""

    prompt: Prompt
    dtype: str
    logp: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be scored.

    Attributes:
        name: What the person called it: a shipped name, a directory or a hub id.
        base: Directory of the base weights.
        adapter: Directory of a LoRA adapter, or None.
        quantization: ``none``, or ``nf4``: 4-bit NormalFloat with double quantization.
        trained_on: Source ids that weights or adapter were trained on; None if unknown.
        prompt: The prompt an adapter was trained with; None if there is no adapter or it is unknown.
    """

    name: str
    base: Path
    adapter: Path | None
    quantization: Quantization
    trained_on: frozenset[str] | None
    prompt: Prompt | None
    base_weights: str | None = None  # digest of the tensors that the adapter was trained on
    base_digest: str | None = (
        None  # the same in adapters of version 0.1: of files, or the hub's commit
    )
    self_test: SelfTest | None = None  # scores that a load must reproduce

    @property
    def digest(self) -> str:
        """SHA-256 over base, adapter and quantization: any changed weight gives another one, no other name does.

        It is of the files as they are now, in this process: another machine finds out for itself.

        Raises:
            UserError: The adapter was trained on other base weights.
        """
        self._check_base_weights()
        parts = [
            base_digest(self.base),
            adapter_digest(self.adapter) if self.adapter else "",
            self.quantization,
        ]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    @property
    def files(self) -> list[Path]:
        """The files of base and adapter."""
        folders = [folder for folder in (self.base, self.adapter) if folder is not None]
        return [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]

    @property
    def is_packed(self) -> bool:
        """Whether its kind of model has a packed path; all others go the generic way."""
        return _model_type(self.base) in MODEL_TYPES

    def need_packed(self, what: str, mend: str) -> None:
        """Raises UserError, with a way round, where something is asked that models of the generic way do not have."""
        if not self.is_packed:
            raise UserError(
                f"{what} is made for models of type {', '.join(MODEL_TYPES)}, not for {_model_type(self.base)!r} of"
                f" checkpoint {self.name!r}, which is scored the generic way; {mend}"
            )

    def _check_base_weights(self) -> None:
        trained, rule = self.base_weights, weights_digest
        if trained is None:
            trained, rule = self.base_digest, old_digest
        if trained is not None and (here := rule(self.base)) != trained:
            raise UserError(
                f"adapter {str(self.adapter)!r} was trained on other base weights than those in"
                f" {str(self.base)!r}: their digests are {trained[:12]} and {here[:12]}; give the base"
                " it was trained on"
            )


@dataclass(frozen=True)
class Known:
    """What a checkpoint was when its files were looked at.

    Attributes:
        digest: The checkpoint's.
        files: Versions of its files, by which a write to one is seen at once.
    """

    digest: str
    files: list[list[Any]]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Known":
        """A checkpoint as it is now. Raises UserError as its digest."""
        files = _versions(checkpoint)
        return cls(checkpoint.digest, files)

    def again(self, checkpoint: Checkpoint) -> "Known":
        """The checkpoint as it is now, which has the same digest.

        A folder that was removed counts as it was: who has its files open keeps them.

        Raises:
            PauseError: It has another one, or files of it are missing or cannot be read.
            UserError: As its digest.
        """
        try:
            files = _versions(checkpoint)
            left = {Path(str(name)).parent for name, *_ in files}
            if files == [one for one in self.files if Path(str(one[0])).parent in left]:
                return self
            now = Known.of(checkpoint)
        except OSError as error:
            why = f" ({error.filename}: {error.strerror})"
        else:
            if now.digest == self.digest:
                return now
            why = ""
        raise PauseError(
            f"the files of checkpoint {checkpoint.name!r} were changed while they were in use{why}; when they"
            " are as they shall be, give the same command again"
        )


def _versions(checkpoint: Checkpoint) -> list[list[Any]]:
    """Of the files that are there; one that goes at this moment is not."""
    found = []
    for folder in (checkpoint.base, checkpoint.adapter):
        if folder is not None and folder.is_dir():
            for path in sorted(folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):
                    found += [file_version(path)] if path.is_file() else []
    return found


def open_checkpoint(
    name: str, adapter: Path | None = None, quantization: Quantization = "none"
) -> Checkpoint:
    """The checkpoint for a shipped name, a directory (base or adapter) or a hub id. Loads no weights.

    Raises:
        UserError: No such checkpoint, its files are not whole, or it is of a kind that is not scored exactly.
    """
    base, adapter = _find_folders(name, adapter)
    _check_base(base, name, quantization)
    if adapter is not None:
        check_adapter(adapter, quantization)
    parts = [_trained_on(part) for part in (base, adapter) if part is not None]
    known = [sources for sources in parts if sources is not None]
    record = read_object(adapter / "training.json") if adapter and _has_training(adapter) else {}
    prompt = self_test = None
    if record.get("prompt"):
        where = f"{adapter}/training.json"
        prompt = prompt_from(record["prompt"], tuple(record["prompt"]["answers"]), where)
    if adapter is not None:
        _check_record(adapter, record, quantization)
    if prompt is not None and record.get("self_test"):
        self_test = _self_test(prompt, record["self_test"], f"{adapter}/training.json")
    return Checkpoint(
        name,
        base,
        adapter,
        quantization,
        frozenset().union(*known) if known else None,
        prompt,
        record.get("base_weights"),
        record.get("base_digest"),
        self_test,
    )


def _self_test(prompt: Prompt, raw: Any, where: str) -> SelfTest:
    """The scores that a record tells of. Raises UserError where they are none."""
    try:
        logp = tuple(tuple(map(float, row)) for row in raw["logp"])
        if not logp or {len(row) for row in logp} != {len(prompt.answers)}:
            raise ValueError
        return SelfTest(prompt, str(raw["dtype"]), logp)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{where}: 'self_test' is no table of log-probabilities with its dtype; restore the file, or remove it,"
            " which makes it an adapter of unknown origin"
        ) from None


def _find_folders(name: str, adapter: Path | None) -> tuple[Path, Path | None]:
    """(base, adapter) of a name; downloads what is a hub id."""
    folder = SHIPPED.get(name) or Path(name)
    if not folder.is_dir():
        folder = _download(name)
    if not (folder / CONFIG).is_file():
        return folder, adapter
    if adapter is not None:
        raise UserError(
            f"checkpoint {name!r} carries an adapter already; give --adapter only with base weights"
        )
    return _find_base(folder, name), folder


def _find_base(adapter: Path, name: str) -> Path:
    """The base that an adapter's folder names."""
    refuse_pointers([adapter / CONFIG])
    config = read_object(adapter / CONFIG)
    raw, revision = config.get("base_model_name_or_path"), config.get("revision")
    mend = f"give it by --checkpoint BASE --adapter {adapter}"
    if not isinstance(raw, str) or not raw.strip():
        raise UserError(f"adapter {name!r} does not name its base model ({raw!r}); {mend}")
    # Shipped adapters name their base by its folder beside them, others by directory or hub id.
    for place in (adapter / raw, SHIPPED.get(raw), Path(raw)):
        if place is not None and place.is_dir():
            return place
    if not re.fullmatch(HUB_ID, raw):
        raise UserError(f"adapter {name!r} has its base in {raw!r}, which is not here; {mend}")
    try:
        return _download(raw, revision)
    except UserError as error:
        raise UserError(f"the base of adapter {name!r} is not here: {error}; or {mend}") from None


def _check_base(base: Path, name: str, quantization: str) -> None:
    """Raises UserError for a folder whose weights cannot be scored."""
    who = f"checkpoint {name!r}"
    check_model_folder(base, who)
    kind = _model_type(base)
    if kind not in MODEL_TYPES:
        generic_class(base, who)
    refuse_quantized(base, who)
    if kind not in MODEL_TYPES and quantization != "none":
        raise UserError(
            f"--quantization {quantization} is not known to reach all weights of {who}, a model of type {kind!r} that"
            " is scored the generic way; use none"
        )
    if kind in OMNI and quantization != "none":
        raise UserError(
            f"--quantization {quantization} does not reach the experts of {name!r}, which hold most"
            " of its weights; use none"
        )


def _model_type(base: Path) -> Any:
    return read_object(base / "config.json").get("model_type")


def _has_training(folder: Path) -> bool:
    return (folder / "training.json").is_file()


def _check_record(adapter: Path, record: dict[str, Any], quantization: str) -> None:
    """Raises UserError for weights that were changed since training, or trained with another quantization."""
    weights = adapter / WEIGHTS
    written = record.get("adapter_sha256")
    if written and hashlib.sha256(weights.read_bytes()).hexdigest() != written:
        raise UserError(
            f"adapter file {str(weights)!r} is not the one that training.json tells of; restore it,"
            " or remove training.json, which makes it an adapter of unknown origin"
        )
    for key in ("base_weights", "base_digest"):
        if not isinstance(record.get(key), str | None):
            raise UserError(
                f"{adapter}/training.json: {key!r} is {str(record[key])[:60]!r}; expected a digest: restore the file,"
                " or remove it, which makes it an adapter of unknown origin"
            )
    trained = record.get("quantisation")
    if trained is not None and trained != quantization:
        raise UserError(
            f"adapter {str(adapter)!r} was trained on weights with quantization {trained}, not"
            f" {quantization}; give --quantization {trained}"
        )


def _download(name: str, revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=PATTERNS, ignore_patterns=DOUBLES
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        said = [line for line in str(error).splitlines() if line.strip()]
        reason = "; ".join(line.partition(". ")[0] for line in said[:2])  # "401 ...", and why
        raise UserError(
            f"checkpoint {name!r} is neither one of {', '.join(SHIPPED)}, nor a directory, "
            f"nor a hub id that can be loaded ({reason}); connect to download it once, or give the"
            " directory it lies in"
        ) from None


def _trained_on(folder: Path) -> frozenset[str] | None:
    path = folder / "training.json"
    if not path.is_file():
        return None
    sources = read_object(path).get("sources")
    if not isinstance(sources, list) or not all(isinstance(s, str) for s in sources):
        raise UserError(f"{path}: 'sources' is no list of source ids; restore the file")
    return frozenset(sources)
