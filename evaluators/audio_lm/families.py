"""What differs between families of audio language models: chat template, front end, audio tower, classes.

Everything else is shared: the packed step runs any decoder of Qwen's kind, dense or with experts.
"""

from collections.abc import Callable
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
        encode: (model, mel ``[clip, bin, frame]``, frames) -> ``[clip, token, channel]``, for clips of one length.
        processor: Folder -> something with `tokenizer` and `feature_extractor`.
    """

    model_class: str
    template: Template
    whole_window: bool
    tokens: Callable[[Any, int], int]
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


def _omni_tokens(config: Any, frames: int) -> int:
    """Audio tokens: three convolutions of stride 2 over windows of ``2 * n_window`` frames, each window alone."""
    window = 2 * config.audio_config.n_window

    def halved(n: int) -> int:
        return (n + 1) // 2

    whole, rest = divmod(frames, window)
    return whole * halved(halved(halved(window))) + halved(halved(halved(rest)))


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
    for layer in tower.layers:
        run = _qwen2_tower_layer
        x = checkpoint(run, layer, x, use_reentrant=False) if again else run(layer, x)
    x = tower.layer_norm(tower.avg_pooler(x.transpose(1, 2)).transpose(1, 2))
    return model.model.multi_modal_projector(x)


def _qwen2_tower_layer(layer: Any, x: Tensor) -> Tensor:
    """One layer's output, its own modules called in its own order: a third of the stock layer's time on the host."""
    attention = layer.self_attn
    h = layer.self_attn_layer_norm(x)
    shape = (*h.shape[:2], attention.num_heads, attention.head_dim)
    q = (attention.q_proj(h) * attention.scaling).view(shape).transpose(1, 2)
    k = attention.k_proj(h).view(shape).transpose(1, 2)
    v = attention.v_proj(h).view(shape).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).reshape(h.shape)
    x = x + attention.out_proj(out)
    x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
    if x.dtype == torch.float16:  # as the stock layer does: its range is small
        most = torch.finfo(x.dtype).max - 1000
        x = x.clamp(-most, most)
    return x


QWEN2_AUDIO = Family(
    model_class="Qwen2AudioForConditionalGeneration",
    template=templates.QWEN2_AUDIO,
    whole_window=True,
    tokens=lambda config, frames: ((frames - 1) // 2 + 1) // 2,
    encode=encode_qwen2_audio,
    processor=_auto_processor,
)
QWEN3_OMNI = Family(
    model_class="Qwen3OmniMoeThinkerForConditionalGeneration",
    template=templates.QWEN3_OMNI,
    whole_window=False,
    tokens=_omni_tokens,
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
