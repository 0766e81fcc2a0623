"""Tokenizer and feature extractor of a Qwen2-Audio checkpoint without transformers, whose import takes seconds.

The tokenizer is the `tokenizers` library's own, of tokenizer.json; transformers builds the same from the parts of that
file. The extractor is what `features` reads of transformers' `WhisperFeatureExtractor`. A folder whose files say more
than is known here, or whose vocabulary lies in vocab.json and merges.txt, is left to transformers.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from evaluators.audio_lm.model_folder import read_object
from evaluators.errors import UserError
from evaluators.mel import mel_filters

PATTERN = (  # by which Qwen2's tokenizer splits text into words
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PARTS: dict[
    str, Any
] = {  # of tokenizer.json, as transformers builds them for Qwen2Tokenizer whatever the file says
    "truncation": None,
    "padding": None,
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": PATTERN},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
        ],
    },
}
MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
SPECIAL = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
NAMED = "bos_token eos_token pad_token unk_token".split()
LISTED = "extra_special_tokens additional_special_tokens".split()
SETTINGS = frozenset(
    "add_prefix_space added_tokens_decoder additional_special_tokens backend bos_token chat_template"
    " clean_up_tokenization_spaces eos_token errors extra_special_tokens is_local local_files_only model_max_length"
    " pad_token processor_class split_special_tokens tokenizer_class unk_token".split()
)
OTHERS = "added_tokens.json", "special_tokens_map.json"  # may say more of tokens


class PlainTokenizer:
    """A tokenizer with the calls that scoring needs, under the names of transformers'."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True  # text is text, also where it spells a control token
        self._tokenizer = tokenizer

    def encode(
        self, text: str, *, add_special_tokens: bool = False, split_special_tokens: bool = True
    ) -> list[int]:
        """Token ids of a text, without any that it does not spell."""
        assert split_special_tokens and not add_special_tokens
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of a token that is known."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise KeyError(token)
        return int(found)

    def decode(self, ids: Sequence[int]) -> str:
        """The text that tokens spell."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))


@dataclass(frozen=True)
class PlainExtractor:
    """Settings of a Whisper feature extractor, under the names and with the defaults of transformers'."""

    feature_size: int = 80
    sampling_rate: int = 16000
    hop_length: int = 160
    chunk_length: int = 30
    n_fft: int = 400
    padding_value: float = 0.0
    dither: float = 0.0
    return_attention_mask: bool = False
    padding_side: str = "right"

    @property
    def n_samples(self) -> int:
        """Samples of a whole window."""
        return self.chunk_length * self.sampling_rate

    @functools.cached_property
    def mel_filters(self) -> NDArray[np.float64]:
        """``[frequency, mel bin]``: see `evaluators.mel`."""
        return mel_filters(self.n_fft // 2 + 1, self.feature_size, self.sampling_rate)

    def to_dict(self) -> dict[str, Any]:
        """As transformers' extractor gives them, by which stored features are found."""
        more = {
            "n_samples": self.n_samples,
            "nb_max_frames": self.n_samples // self.hop_length,
            "feature_extractor_type": "WhisperFeatureExtractor",
        }
        return asdict(self) | more


def plain_front(folder: Path) -> SimpleNamespace | None:
    """`tokenizer` and `feature_extractor` of a folder; None where transformers has to read them."""
    try:
        extractor = _extractor(folder)
        known = extractor is not None and _is_qwen2(folder)
    except UserError:  # a file is torn: transformers meets it again, and a sentence says so
        return None
    if not known:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # tokenizers raises no other; this, too, transformers meets again
        return None
    return SimpleNamespace(tokenizer=PlainTokenizer(tokenizer), feature_extractor=extractor)


def _extractor(folder: Path) -> PlainExtractor | None:
    own, whole = (folder / name for name in ("preprocessor_config.json", "processor_config.json"))
    inside = read_object(whole).get("feature_extractor") if whole.is_file() else None
    if own.is_file() == (inside is not None):
        return None
    raw = dict(read_object(own)) if own.is_file() else inside
    if not isinstance(raw, dict) or raw.get("feature_extractor_type") != "WhisperFeatureExtractor":
        return None
    fields = {f: v for f, v in vars(PlainExtractor).items() if f in PlainExtractor.__annotations__}
    made = PlainExtractor(**{name: raw[name] for name in fields if name in raw})
    if any(type(getattr(made, f)) is not type(default) for f, default in fields.items()):
        return None
    usual = made.sampling_rate == PlainExtractor.sampling_rate and made.padding_side == "right"
    if not usual or made.hop_length == 0:
        return None
    known = made.to_dict() | {"processor_class": raw.get("processor_class")}
    return made if raw.items() <= known.items() else None


def _is_qwen2(folder: Path) -> bool:
    """Whether a folder's tokenizer is one that `tokenizers` makes of tokenizer.json as transformers does."""
    path, about = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file() or not about.is_file():
        return False
    raw, settings = read_object(path), read_object(about)
    model = raw.get("model")
    if settings.get("tokenizer_class") not in CLASSES or not settings.keys() <= SETTINGS:
        return False
    if settings.get("add_prefix_space") or settings.get("split_special_tokens"):
        return False
    if not isinstance(model, dict) or any(raw.get(name) != part for name, part in PARTS.items()):
        return False
    if any(model.get(name, usual) != usual for name, usual in MODEL.items()):
        return False
    decoder, added = raw.get("decoder"), raw.get("added_tokens") or []
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        return False
    if not isinstance(added, list) or not all(map(_is_special, added)):
        return False
    special = {token["content"] for token in added}
    told = _told_tokens(folder, settings)
    return all(isinstance(token, str) and token in special for token in told)


def _is_special(token: Any) -> bool:
    """Whether an entry of tokenizer.json is a control token as transformers would add it."""
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        return False
    return SPECIAL.items() <= token.items()


def _told_tokens(folder: Path, settings: dict[str, Any]) -> Iterator[Any]:
    """Tokens that other files than tokenizer.json tell of; whatever else stands in their place, too."""
    told = [settings, *(read_object(folder / n) for n in OTHERS[1:] if (folder / n).is_file())]
    for about in told:
        values = [about[name] for name in NAMED if about.get(name)]
        for name in (*LISTED, "added_tokens_decoder"):
            listed = about.get(name) or []
            listed = list(listed.values()) if isinstance(listed, dict) else listed
            values += listed if isinstance(listed, list) else [listed]  # which is no token
        yield from (v.get("content") if isinstance(v, dict) else v for v in values)
    if (folder / OTHERS[0]).is_file():
        yield from read_object(folder / OTHERS[0])
