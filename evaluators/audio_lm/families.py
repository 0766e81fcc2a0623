"""What differs between families of audio language models: chat template, front end, audio tower, classes.

Everything else is shared: the packed step runs any decoder of Qwen's or Llama's kind, dense or with experts. How a
family is added stands in evaluators/README.md.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from evaluators.audio_lm import templates
from evaluators.audio_lm.checkpoint import OMNI
from evaluators.audio_lm.features import ONE_WINDOW, FeatureStore, Windows
from evaluators.audio_lm.model_folder import read_config, read_object, read_processor
from evaluators.audio_lm.packed_tower import (
    LogMel,
    embed_qwen2_5_omni,
    embed_qwen2_audio,
    embed_qwen3_omni,
    embed_voxtral,
    omni_tokens,
    position_table,
    qwen2_audio_positions,
    tower_layer,
    voxtral_group,
    voxtral_positions,
    whisper_positions,
    window_frames,
)
from evaluators.audio_lm.plain_config import plain_config
from evaluators.audio_lm.plain_front import plain_front
from evaluators.audio_lm.templates import Template
from evaluators.errors import UserError

PLAIN_CLASS = "Qwen2AudioForConditionalGeneration"  # what `plain_model` holds


@dataclass(frozen=True)
class TowerEnds:
    """What stands before and after the layers of a tower of Whisper's kind.

    Attributes:
        front: (model, mel ``[clip, bin, frame]``, frames) -> ``[part, position, channel]`` of the parts of clips of one
            length that are heard alone: the whole windows if there are any, then what is left of each clip.
        back: (model, ``[clip, position, channel]`` after the layers) -> ``[clip, token, channel]``.
    """

    front: Callable[[Any, Tensor, int], list[Tensor]]
    back: Callable[[Any, Tensor], Tensor]

    def encode(self, model: Any, mel: Tensor, frames: int) -> Tensor:
        """See `Family.encode`."""
        parts = [_layers(model.model.audio_tower, x) for x in self.front(model, mel, frames)]
        return self.back(model, join_parts(parts))


def join_parts(parts: Sequence[Tensor]) -> Tensor:
    """``[clip, position, channel]`` of the parts of clips, as `TowerEnds.front` makes them."""
    *whole, last = parts
    return torch.cat([*(x.unflatten(0, (len(last), -1)).flatten(1, 2) for x in whole), last], 1)


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        model_class: The class in transformers.
        template: Its chat template.
        whole_window: The feature extractor pads every clip to its whole window. Otherwise it pads nothing, and takes
            clips of any length, but only their whole 10 ms frames.
        tokens: (config, frames) -> audio tokens.
        positions: (config, frames) -> places in the audio tower's line that a clip takes.
        positions_per_token: About as many of them become one token.
        embed: (model, clips, size) -> ``[token, channel]`` of each clip, for clips of any lengths in one line.
        encode: (model, mel ``[clip, bin, frame]``, frames) -> ``[clip, token, channel]``, for clips of one length:
            for training, since it can be differentiated and captured in a graph.
        ends: Of a tower of Whisper's kind; None: it is of another.
        processor: Folder -> something with `tokenizer` and `feature_extractor`.
        windows: What becomes of clips that are longer than the window.
        note: What a person must know of its scores, in one sentence; "": nothing.
    """

    model_class: str
    template: Template
    whole_window: bool
    tokens: Callable[[Any, int], int]
    positions: Callable[[Any, int], int]
    positions_per_token: int
    embed: Callable[[Any, Sequence[LogMel], int], list[Tensor]]
    encode: Callable[[Any, Tensor, int], Tensor]
    processor: Callable[[Path], Any]
    ends: TowerEnds | None = None
    windows: Windows = ONE_WINDOW
    note: str = ""

    def front(self, folder: Path) -> Any:
        """`tokenizer` and `feature_extractor` as scoring needs them: without transformers where that is known to do.

        Raises:
            UserError: As `processor`.
        """
        plain = plain_front(folder) if self.model_class == PLAIN_CLASS else None
        return (
            self.processor(folder) if plain is None else _check_tokens(plain, self.template, folder)
        )

    def feature_store(self, folder: Path | None, extractor: Any) -> FeatureStore:
        """Features of clips as the family takes them; kept in the folder, if one is given."""
        return FeatureStore(folder, extractor, self.whole_window, self.windows)


def _auto_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    read = functools.partial(AutoProcessor.from_pretrained, trust_remote_code=False)
    return _check_tokens(read_processor(folder, read), templates.QWEN2_AUDIO, folder)


def _tokenizer_and_extractor(template: Template, folder: Path) -> Any:
    """Both without the family's own processor, which may need the libraries for images and videos too."""
    from transformers import AutoFeatureExtractor, AutoTokenizer

    both = SimpleNamespace(
        tokenizer=read_processor(
            folder, functools.partial(AutoTokenizer.from_pretrained, trust_remote_code=False)
        ),
        feature_extractor=read_processor(
            folder, functools.partial(AutoFeatureExtractor.from_pretrained, trust_remote_code=False)
        ),
    )
    return _check_tokens(both, template, folder)


def _voxtral_processor(folder: Path) -> Any:
    """Both without mistral-common: transformers reads tekken.json itself, to the same tokens.

    Its own classes would take mistral-common's tokenizer where that is installed, which cannot encode text that spells
    a control token as text.
    """
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

    # Right in tekken.json; in a tokenizer.json of before transformers 5 the splitting of words may be wrong.
    read = functools.partial(
        PreTrainedTokenizerFast.from_pretrained, fix_mistral_regex=True, trust_remote_code=False
    )
    both = SimpleNamespace(
        tokenizer=read_processor(folder, read),
        feature_extractor=read_processor(
            folder,
            functools.partial(WhisperFeatureExtractor.from_pretrained, trust_remote_code=False),
        ),
    )
    return _check_tokens(both, templates.VOXTRAL, folder)


def _check_tokens(processor: Any, template: Template, folder: Path) -> Any:
    """The processor. Raises UserError where its tokenizer lacks a control token, or gives it another id than told."""
    known, told = processor.tokenizer.get_vocab(), _told_ids(folder)
    for text, control in (*template.before("told"), (template.audio, True), *template.after("")):
        if control and text not in known:
            raise UserError(
                f"the tokenizer in {str(folder)!r} does not know {text}, which the chat template"
                " needs; download the base model's own tokenizer"
            )
        if control and told.get(text, str(known[text])) != str(known[text]):
            raise UserError(
                f"the tokenizer in {str(folder)!r} makes {text} token {known[text]}, its other files tell"
                f" {told[text]}; download the base model's own tokenizer, with its tokenizer.json"
            )
    return processor


def _told_ids(folder: Path) -> dict[str, str]:
    """Ids of added tokens as a folder's files tell them beside its vocabulary, as far as they do."""
    listed, about = (folder / name for name in ("added_tokens.json", "tokenizer_config.json"))
    beside = read_object(listed) if listed.is_file() else {}
    told = {token: str(number) for token, number in beside.items()}
    entries = read_object(about).get("added_tokens_decoder") if about.is_file() else None
    for number, token in entries.items() if isinstance(entries, dict) else ():
        text = token.get("content") if isinstance(token, dict) else None
        told |= {text: number} if isinstance(text, str) else {}
    return told


def _omni_encode(model: Any, mel: Tensor, frames: int) -> Tensor:
    """Audio embeddings by the stock tower, which works on each clip alone and pads none of clips of one length."""
    tower = model.model.audio_tower
    flat = mel[:, :, :frames].to(tower.conv2d1.weight.dtype).transpose(0, 1).flatten(1)
    lengths = torch.full((len(mel),), frames, device=mel.device)
    out = tower(input_features=flat, feature_lens=lengths).last_hidden_state
    return out.view(len(mel), -1, out.shape[-1])


def encode_qwen2_audio(model: Any, mel: Tensor, frames: int) -> Tensor:
    """Audio embeddings ``[clip, token, channel]`` of clips of the same length, exact and without padding.

    The stock model pads to its whole window (30 s) and masks the padding as keys in every layer, so valid positions
    never attend to it.

    Args:
        model: A Qwen2AudioForConditionalGeneration, or an AudioFlamingo3ForConditionalGeneration.
        mel: ``[clip, mel bin, frame]``, at least ``2 * v + 2`` frames or the model's whole window.
        frames: Valid 10 ms frames; ``v = (frames - 1) // 2 + 1`` of them remain after the convolutions,
            ``v // 2`` tokens after pooling.
    """
    return _QWEN2_AUDIO_ENDS.encode(model, mel, frames)


def _qwen2_audio_front(model: Any, mel: Tensor, frames: int) -> list[Tensor]:
    return _parts(model.model.audio_tower, mel, frames, window_frames(model.config))


def _qwen2_audio_back(model: Any, x: Tensor) -> Tensor:
    return model.model.multi_modal_projector(model.model.audio_tower.layer_norm(_pairs(x)))


def _qwen2_5_omni_front(model: Any, mel: Tensor, frames: int) -> list[Tensor]:
    """Of Qwen2.5-Omni, whose convolutions see zeros past a chunk's end."""
    tower = model.model.audio_tower
    return _parts(tower, mel[:, :, :frames], frames, 2 * tower.config.n_window)


def _qwen2_5_omni_back(model: Any, x: Tensor) -> Tensor:
    tower = model.model.audio_tower
    return tower.proj(tower.ln_post(_pairs(x)))


def _voxtral_front(model: Any, mel: Tensor, frames: int) -> list[Tensor]:
    """Of Voxtral, which hears the silence to the end of the last window."""
    width = window_frames(model.config)
    windows = -(-frames // width)
    mel = F.pad(mel, (0, windows * width - mel.shape[2]), mode="replicate")
    return _parts(model.model.audio_tower, mel, windows * width, width)


def _voxtral_back(model: Any, x: Tensor) -> Tensor:
    x, group = model.model.audio_tower.layer_norm(x), voxtral_group(model.config)
    return model.model.multi_modal_projector(x.unflatten(1, (-1, group)).flatten(2))


_QWEN2_AUDIO_ENDS = TowerEnds(_qwen2_audio_front, _qwen2_audio_back)
_QWEN2_5_OMNI_ENDS = TowerEnds(_qwen2_5_omni_front, _qwen2_5_omni_back)
_VOXTRAL_ENDS = TowerEnds(_voxtral_front, _voxtral_back)


def _parts(tower: Any, mel: Tensor, frames: int, width: int) -> list[Tensor]:
    """Of clips in parts of `width` frames, each heard alone: see `TowerEnds.front`."""
    last = (frames - 1) // width * width
    parts = [_part(tower, mel[:, :, last:], frames - last)]
    if last:
        whole = mel[:, :, :last].unflatten(2, (-1, width)).transpose(1, 2).flatten(0, 1)
        parts.insert(0, _part(tower, whole, width))
    return parts


def _part(tower: Any, mel: Tensor, frames: int) -> Tensor:
    """``[part, position, channel]`` before the layers of a tower of Whisper's kind."""
    valid = (frames - 1) // 2 + 1
    x = mel[:, :, : 2 * valid + 2].to(tower.conv1.weight.dtype)
    x = F.gelu(tower.conv2(F.gelu(tower.conv1(x)))).transpose(1, 2)[:, :valid]
    return (x + position_table(tower)[:valid]).to(x.dtype)


def _layers(tower: Any, x: Tensor) -> Tensor:
    """``[part, position, channel]`` after the layers, of the same before them."""
    again = torch.is_grad_enabled() and getattr(tower, "gradient_checkpointing", False)
    attend = functools.partial(_attend_all, tower.layers[0].self_attn.num_heads)
    for layer in tower.layers:
        run = tower_layer
        x = (
            checkpoint(run, layer, x, attend, use_reentrant=False)
            if again
            else run(layer, x, attend)
        )
    return x


def _pairs(x: Tensor) -> Tensor:
    """Means of each two positions; none of a clip of 20 ms."""
    tokens = x.shape[1] // 2
    return x[:, : 2 * tokens].unflatten(1, (tokens, 2)).mean(2)


def _attend_all(heads: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each clip's tokens to each other; ``[clip, token, channel]``."""
    scaled = q * (q.shape[2] // heads) ** -0.5  # before the product, as the stock layer does
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (scaled, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)


QWEN2_AUDIO = Family(
    model_class="Qwen2AudioForConditionalGeneration",
    template=templates.QWEN2_AUDIO,
    whole_window=True,
    tokens=lambda config, frames: qwen2_audio_positions(frames) // 2,
    positions=lambda config, frames: qwen2_audio_positions(frames),
    positions_per_token=2,
    embed=embed_qwen2_audio,
    encode=encode_qwen2_audio,
    ends=_QWEN2_AUDIO_ENDS,
    processor=_auto_processor,
)
QWEN3_OMNI = Family(
    model_class="Qwen3OmniMoeThinkerForConditionalGeneration",
    template=templates.QWEN3_OMNI,
    whole_window=False,
    tokens=omni_tokens,
    positions=omni_tokens,
    positions_per_token=1,
    embed=embed_qwen3_omni,
    encode=_omni_encode,
    processor=functools.partial(_tokenizer_and_extractor, templates.QWEN3_OMNI),
)
# A chunk of 2 s has an even number of positions, so that the tokens of a clip are those of Qwen2-Audio.
QWEN2_5_OMNI = Family(
    model_class="Qwen2_5OmniThinkerForConditionalGeneration",
    template=templates.QWEN2_5_OMNI,
    whole_window=True,
    tokens=lambda config, frames: qwen2_audio_positions(frames) // 2,
    positions=lambda config, frames: qwen2_audio_positions(frames),
    positions_per_token=2,
    embed=embed_qwen2_5_omni,
    encode=_QWEN2_5_OMNI_ENDS.encode,
    ends=_QWEN2_5_OMNI_ENDS,
    processor=functools.partial(_tokenizer_and_extractor, templates.QWEN2_5_OMNI),
)
AUDIO_FLAMINGO_3 = Family(
    model_class="AudioFlamingo3ForConditionalGeneration",
    template=templates.AUDIO_FLAMINGO_3,
    whole_window=True,
    tokens=lambda config, frames: whisper_positions(config, frames) // 2,
    positions=whisper_positions,
    positions_per_token=2,
    embed=embed_qwen2_audio,
    encode=encode_qwen2_audio,
    ends=_QWEN2_AUDIO_ENDS,
    processor=functools.partial(_tokenizer_and_extractor, templates.AUDIO_FLAMINGO_3),
    windows=Windows(20, apart=True),  # max_audio_len of AudioFlamingo3Processor: 600 s
)
VOXTRAL = Family(
    model_class="VoxtralForConditionalGeneration",
    template=templates.VOXTRAL,
    whole_window=True,
    tokens=lambda config, frames: voxtral_positions(config, frames) // voxtral_group(config),
    positions=voxtral_positions,
    positions_per_token=4,
    embed=embed_voxtral,
    encode=_VOXTRAL_ENDS.encode,
    ends=_VOXTRAL_ENDS,
    processor=_voxtral_processor,
    windows=Windows(
        80
    ),  # 40 minutes: what the card of Voxtral-Mini-3B-2507 says that it understands
    note="Voxtral's own tokenizer refuses a system message beside audio: a prompt's stands in [SYSTEM_PROMPT] before"
    " it, as in later tokenizers of Mistral; an empty one is left out",
)
FAMILIES = {  # by `model_type`; those of `checkpoint.MODEL_TYPES`
    "qwen2_audio": QWEN2_AUDIO,
    **dict.fromkeys(OMNI, QWEN3_OMNI),
    "qwen2_5_omni": QWEN2_5_OMNI,
    "qwen2_5_omni_thinker": QWEN2_5_OMNI,
    "audioflamingo3": AUDIO_FLAMINGO_3,
    "voxtral": VOXTRAL,
}


def family_of(config: Any) -> Family:
    """The family of a configuration; `open_checkpoint` refuses what has none."""
    return FAMILIES[config.model_type]


def audio_config(folder: Any) -> Any:
    """The configuration of a checkpoint's audio language model; reads no weights, and transformers where it must."""
    config: Any = plain_config(folder) or read_config(folder)
    return getattr(config, "thinker_config", config)
