"""Tokenizer and feature extractor of a Qwen2-Audio checkpoint without transformers, whose import takes seconds.

The tokenizer is the `tokenizers` library's own, of tokenizer.json; transformers builds the same from the parts of that
file. The extractor is what `features` reads of transformers' `WhisperFeatureExtractor`. A folder whose files say more
than is known here is left to transformers.
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
LOWEST_LOG_HZ, LOWEST_LOG_MEL = 1000.0, 15.0


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
        """``[frequency, mel bin]``: see `mel_filters`."""
        return mel_filters(self.n_fft // 2 + 1, self.feature_size, self.sampling_rate)

    def to_dict(self) -> dict[str, Any]:
        """As transformers' extractor gives them, by which stored features are found."""
        more = {
            "n_samples": self.n_samples,
            "nb_max_frames": self.n_samples // self.hop_length,
            "feature_extractor_type": "WhisperFeatureExtractor",
        }
        return asdict(self) | more


def mel_filters(frequencies: int, bins: int, rate: int) -> NDArray[np.float64]:
    """``[frequency, mel bin]``: triangles of equal area on the mel scale of Slaney's Auditory Toolbox, 0 to 8 kHz.

    Below 1 kHz a mel is 200/3 Hz, above it 27 mel are a factor of 6.4.
    """
    step = np.log(6.4) / 27.0
    top = LOWEST_LOG_MEL + np.log(8000.0 / LOWEST_LOG_HZ) * (27.0 / np.log(6.4))
    mels = np.linspace(0.0, top, bins + 2)
    edges = 200.0 * mels / 3.0
    high = mels >= LOWEST_LOG_MEL
    edges[high] = LOWEST_LOG_HZ * np.exp(step * (mels[high] - LOWEST_LOG_MEL))
    widths, distances = np.diff(edges), edges - np.linspace(0, rate // 2, frequencies)[:, None]
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (edges[2:] - edges[:-2]))


def plain_front(folder: Path) -> SimpleNamespace | None:
    """`tokenizer` and `feature_extractor` of a folder; None where transformers has to read them."""
    try:
        extractor = _extractor(folder)
        if extractor is None or not _is_qwen2(folder):
            return None
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except (
        Exception
    ):  # tokenizers raises no other; transformers meets it again, and a sentence says so
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
    try:
        made = PlainExtractor(**{name: raw[name] for name in fields if name in raw})
        types = all(type(getattr(made, f)) is type(default) for f, default in fields.items())
        known = made.to_dict() | {"processor_class": raw.get("processor_class")}
    except (TypeError, ZeroDivisionError):
        return None
    usual = made.sampling_rate == PlainExtractor.sampling_rate and made.padding_side == "right"
    return made if types and usual and raw.items() <= known.items() else None


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
    if (raw.get("decoder") or {}).get("type") != "ByteLevel":
        return False
    added = {token.get("content"): token for token in raw.get("added_tokens") or ()}
    special = {text for text, token in added.items() if SPECIAL.items() <= token.items()}
    return added.keys() == special and all(
        token in special for token in _told_tokens(folder, settings)
    )


def _told_tokens(folder: Path, settings: dict[str, Any]) -> Iterator[Any]:
    """Tokens that other files than tokenizer.json tell of."""
    told = [settings, *(read_object(folder / n) for n in OTHERS[1:] if (folder / n).is_file())]
    for about in told:
        values = [about[name] for name in NAMED if about.get(name)]
        for name in LISTED:
            listed = about.get(name) or []
            values += listed.values() if isinstance(listed, dict) else listed
        values += (about.get("added_tokens_decoder") or {}).values()
        yield from (v.get("content") if isinstance(v, dict) else v for v in values)
    if (folder / OTHERS[0]).is_file():
        yield from read_object(folder / OTHERS[0])
