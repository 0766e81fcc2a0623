"""What differs between the audio language models that are scored: template, front end, audio tower, classes.

Everything else is shared: the packed step runs any decoder of Qwen's kind, dense or with experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from evaluators.audio_lm.checkpoint import OMNI
from evaluators.audio_lm.decoder import encode_audio
from evaluators.prompts import Piece, after_audio, before_audio


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        model_class: The class in transformers.
        before: System message -> template pieces before the audio.
        after: Prompt text -> template pieces from the end of the audio to the answer.
        placeholder: The token that stands for the audio in the model's own inputs.
        whole_window: The feature extractor pads every clip to its whole window; otherwise it pads nothing, hears
            clips of any length, and takes whole 10 ms frames only.
        tokens: (config, frames) -> audio tokens.
        encode: (model, mel ``[clip, bin, frame]``, frames) -> ``[clip, token, channel]``, for clips of one length.
        processor: Folder -> something with `tokenizer` and `feature_extractor`.
    """

    model_class: str
    before: Callable[[str], tuple[Piece, ...]]
    after: Callable[[str], tuple[Piece, ...]]
    placeholder: str
    whole_window: bool
    tokens: Callable[[Any, int], int]
    encode: Callable[[Any, Tensor, int], Tensor]
    processor: Callable[[Any], Any]


def _auto_processor(folder: Any) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder)


def _tokenizer_and_extractor(folder: Any) -> Any:
    """Qwen3-Omni's own processor wants the libraries for images and videos too."""
    from transformers import AutoFeatureExtractor, AutoTokenizer

    return SimpleNamespace(
        tokenizer=AutoTokenizer.from_pretrained(folder),
        feature_extractor=AutoFeatureExtractor.from_pretrained(folder),
    )


def _omni_before(system: str) -> tuple[Piece, ...]:
    return (
        ("<|im_start|>", True),
        (f"system\n{system}", False),
        ("<|im_end|>", True),
        ("\n", False),
        ("<|im_start|>", True),
        ("user\n", False),
        ("<|audio_start|>", True),
    )


def _omni_after(text: str) -> tuple[Piece, ...]:
    return (
        ("<|audio_end|>", True),
        (text, False),
        ("<|im_end|>", True),
        ("\n", False),
        ("<|im_start|>", True),
        ("assistant\n", False),
    )


def _omni_tokens(config: Any, frames: int) -> int:
    """Three convolutions of stride 2 over windows of ``2 * n_window`` frames, each window for itself."""
    window = 2 * config.audio_config.n_window

    def halved(n: int) -> int:
        return (n + 1) // 2

    whole, rest = divmod(frames, window)
    return whole * halved(halved(halved(window))) + halved(halved(halved(rest)))


def _omni_encode(model: Any, mel: Tensor, frames: int) -> Tensor:
    """The stock tower takes clips side by side and works on each alone; of one length none is padded by another."""
    import torch

    tower = model.model.audio_tower
    flat = mel[:, :, :frames].to(tower.conv2d1.weight.dtype).transpose(0, 1).flatten(1)
    lengths = torch.full((len(mel),), frames, device=mel.device)
    out = tower(input_features=flat, feature_lens=lengths).last_hidden_state
    return out.view(len(mel), -1, out.shape[-1])


QWEN2_AUDIO = Family(
    model_class="Qwen2AudioForConditionalGeneration",
    before=before_audio,
    after=after_audio,
    placeholder="<|AUDIO|>",
    whole_window=True,
    tokens=lambda config, frames: ((frames - 1) // 2 + 1) // 2,
    encode=encode_audio,
    processor=_auto_processor,
)
QWEN3_OMNI = Family(
    model_class="Qwen3OmniMoeThinkerForConditionalGeneration",
    before=_omni_before,
    after=_omni_after,
    placeholder="<|audio_pad|>",
    whole_window=False,
    tokens=_omni_tokens,
    encode=_omni_encode,
    processor=_tokenizer_and_extractor,
)


def family_of(config: Any) -> Family:
    """The family of a configuration; `open_checkpoint` refuses what has none."""
    return QWEN3_OMNI if config.model_type in OMNI else QWEN2_AUDIO


def audio_config(folder: Any) -> Any:
    """The configuration of a checkpoint's part that hears and answers; reads no weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    return getattr(config, "thinker_config", config)
