"""What differs between families of audio language models: chat template, front end, audio tower, classes.

Everything else is shared: the packed step runs any decoder of Qwen's kind, dense or with experts.
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
from evaluators.audio_lm.model_folder import read_processor
from evaluators.audio_lm.packed_tower import (
    LogMel,
    embed_qwen2_audio,
    embed_qwen3_omni,
    omni_tokens,
    qwen2_audio_positions,
    tower_layer,
)
from evaluators.audio_lm.templates import Template
from evaluators.errors import UserError


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
        processor: Folder -> something with `tokenizer` and `feature_extractor`.
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


def _auto_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    return _check_tokens(
        read_processor(folder, AutoProcessor.from_pretrained), templates.QWEN2_AUDIO, folder
    )


def _tokenizer_and_extractor(folder: Path) -> Any:
    """Both without Qwen3-Omni's own processor, which needs the libraries for images and videos too."""
    from transformers import AutoFeatureExtractor, AutoTokenizer

    both = SimpleNamespace(
        tokenizer=read_processor(folder, AutoTokenizer.from_pretrained),
        feature_extractor=read_processor(folder, AutoFeatureExtractor.from_pretrained),
    )
    return _check_tokens(both, templates.QWEN3_OMNI, folder)


def _check_tokens(processor: Any, template: Template, folder: Path) -> Any:
    """The processor. Raises UserError where its tokenizer lacks a control token of the template."""
    known = processor.tokenizer.get_vocab()
    for text, control in (*template.before(""), *template.after("")):
        if control and text not in known:
            raise UserError(
                f"the tokenizer in {str(folder)!r} does not know {text}, which the chat template"
                " needs; download the base model's own tokenizer"
            )
    return processor


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
        model: A Qwen2AudioForConditionalGeneration.
        mel: ``[clip, mel bin, frame]``, at least ``2 * v + 2`` frames or the model's whole window.
        frames: Valid 10 ms frames; ``v = (frames - 1) // 2 + 1`` of them remain after the convolutions,
            ``v // 2`` tokens after pooling.
    """
    tower = model.model.audio_tower
    valid = (frames - 1) // 2 + 1
    x = mel[:, :, : 2 * valid + 2].to(tower.conv1.weight.dtype)
    x = F.gelu(tower.conv2(F.gelu(tower.conv1(x)))).transpose(1, 2)[:, :valid]
    x = x + tower.embed_positions.weight[:valid]
    again = torch.is_grad_enabled() and getattr(tower, "gradient_checkpointing", False)
    attend = functools.partial(_attend_all, tower.layers[0].self_attn.num_heads)
    for layer in tower.layers:
        run = tower_layer
        x = (
            checkpoint(run, layer, x, attend, use_reentrant=False)
            if again
            else run(layer, x, attend)
        )
    tokens = valid // 2  # none of a clip of 20 ms
    x = tower.layer_norm(x[:, : 2 * tokens].unflatten(1, (tokens, 2)).mean(2))
    return model.model.multi_modal_projector(x)


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
    processor=_tokenizer_and_extractor,
)


def family_of(config: Any) -> Family:
    """The family of a configuration; `open_checkpoint` refuses what has none."""
    return QWEN3_OMNI if config.model_type in OMNI else QWEN2_AUDIO


def audio_config(folder: Any) -> Any:
    """The configuration of a checkpoint's audio language model; reads no weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    return getattr(config, "thinker_config", config)
