"""The configuration of a Qwen2-Audio checkpoint, read from its file alone: transformers is imported for all others.

Names and defaults are those of transformers' `Qwen2AudioConfig`; a test compares them. A file that says anything that
is not known here, or of another kind than is known, is left to transformers, which then fills it in, or says why not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.audio_lm.model_folder import read_object

LABELS = {  # what every configuration of transformers holds beside its own
    "chunk_size_feed_forward": 0,
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "problem_type": None,
}
AUDIO: dict[str, Any] = {
    "model_type": "qwen2_audio_encoder",
    "num_mel_bins": 128,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "d_model": 1280,
    "activation_function": "gelu",
    "scale_embedding": False,
    "max_source_positions": 1500,
}
TEXT: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 28,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
WHOLE: dict[str, Any] = {"model_type": "qwen2_audio", "audio_token_index": 151646}
ONLY = {  # what decides which sums are done: no other value is known here
    "model_type": None,  # of each part its own
    "activation_function": "gelu",
    "hidden_act": "silu",
    "scale_embedding": False,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
# May stand in a file, and neither a score nor a digest of the configuration depends on it (`identity.UNDECIDING`).
PASSED_OVER: dict[str, type | tuple[type, ...]] = {
    "_name_or_path": str,
    "transformers_version": str,
    "architectures": list,
    "dtype": str,
    "torch_dtype": str,
    "use_cache": bool,
    "initializer_range": float,
    "attention_dropout": (int, float),
    "activation_dropout": (int, float),
    "dropout": (int, float),
    "encoder_layerdrop": (int, float),
}
INITIALIZER_RANGE = 0.02
LARGEST_SIZE = 2**31 - 1


@dataclass(frozen=True)
class PlainConfig:
    """A configuration, or a part of one. Its values are attributes, under transformers' names.

    Attributes:
        values: All that scores and digests depend on, with parts as `PlainConfig`.
        initializer_range: Deviation of weights as they are drawn before training.
    """

    values: Mapping[str, Any]
    initializer_range: float = INITIALIZER_RANGE

    def __getattr__(self, name: str) -> Any:
        try:
            return vars(self)["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with what every configuration of transformers holds, but for what decides nothing."""
        values = {
            k: v.to_dict() if isinstance(v, PlainConfig) else v for k, v in self.values.items()
        }
        return LABELS | values


def plain_config(folder: Path) -> PlainConfig | None:
    """The configuration of a folder's model; None where it has to be read by transformers.

    Raises:
        UserError: config.json is not readable as JSON.
    """
    raw = dict(read_object(folder / "config.json"))
    if raw.get("model_type") != WHOLE["model_type"]:
        return None
    audio = _part(raw.pop("audio_config", {}), AUDIO)
    text = _text(raw.pop("text_config", {}))
    whole = _part(raw, WHOLE)
    if audio is None or text is None or whole is None:
        return None
    return PlainConfig({**whole.values, "audio_config": audio, "text_config": text})


def _part(raw: Any, known: Mapping[str, Any]) -> PlainConfig | None:
    """A part with its defaults; None where it holds what is not known, or of another type."""
    if not isinstance(raw, dict):
        return None
    for name, value in raw.items():
        if name in known:
            fits = _fits(name, value, known[name])
        else:
            fits = name in PASSED_OVER and _is(value, PASSED_OVER[name])
        if not fits:
            return None
    values = {name: raw.get(name, default) for name, default in known.items()}
    return PlainConfig(values, raw.get("initializer_range", INITIALIZER_RANGE))


def _fits(name: str, value: Any, default: Any) -> bool:
    """Whether a value is one that is known here."""
    if name in ONLY:
        return type(value) is type(default) and value == default
    if name == "rope_parameters":
        return (
            isinstance(value, dict)
            and value.keys() == default.keys()
            and value["rope_type"] == "default"
            and _is(value["rope_theta"], (int, float))
            and 0 < value["rope_theta"] < math.inf
        )
    if name in ("sliding_window", "pad_token_id", "bos_token_id", "eos_token_id"):
        return value is None or (_is(value, int) and name != "sliding_window")
    if isinstance(default, float):
        return _is(value, float) and 0 <= value < math.inf
    return (
        _is(value, int) and 0 < value <= LARGEST_SIZE
        if name != "audio_token_index"
        else _is(value, int)
    )


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value is of a type; a truth value is no number."""
    return isinstance(value, kind) and (not isinstance(value, bool) or kind is bool)


def _text(raw: Any) -> PlainConfig | None:
    """The language model's part."""
    if not isinstance(raw, dict):
        return None
    rest = dict(raw)
    layers = rest.pop("layer_types", None)
    part = _part(rest, TEXT)
    if part is None:
        return None
    full = ["full_attention"] * part.num_hidden_layers
    if layers not in (None, full) or part.hidden_size % part.num_attention_heads:
        return None
    return PlainConfig({**part.values, "layer_types": full}, part.initializer_range)
