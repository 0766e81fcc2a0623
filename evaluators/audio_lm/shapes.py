"""Models of published shapes with random weights, for timing, which does not depend on the numbers; and tiny ones.

What a shape does not give is transformers' default, which is the published one. Qwen2.5-Omni's encoder of pictures,
which no score runs, is made small.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from evaluators.audio_lm import families
from evaluators.audio_lm.checkpoint import POCKET
from evaluators.audio_lm.families import Family


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model.

    Attributes:
        family: Its family.
        config_class: Of transformers.
        audio: Of the audio tower.
        text: Of the language model.
        more: Of the configuration round both.
        seconds: Window of the feature extractor. (The 300 s of Qwen2.5-Omni's own only cost the stock model time.)
    """

    family: Family
    config_class: str
    audio: Mapping[str, Any]
    text: Mapping[str, Any]
    more: Mapping[str, Any]
    seconds: int = 30


SMALL_PICTURES = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 32,
}
OMNI_TEXT_3B = {  # thinker_config.text_config of Qwen/Qwen2.5-Omni-3B
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
}
FLAMINGO_TEXT = {  # transformers' own conversion script of nvidia/audio-flamingo-3
    "vocab_size": 151672,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
_OMNI = ModelShape(
    families.QWEN2_5_OMNI,
    "Qwen2_5OmniThinkerConfig",
    {},
    {"tie_word_embeddings": False},
    {"vision_config": SMALL_PICTURES, "vision_start_token_id": 151652},
)
SHAPES = {
    "qwen2.5-omni-7b": _OMNI,
    "qwen2.5-omni-3b": replace(
        _OMNI, audio={"output_dim": 2048}, text={**_OMNI.text, **OMNI_TEXT_3B}
    ),
    "audio-flamingo-3": ModelShape(
        families.AUDIO_FLAMINGO_3, "AudioFlamingo3Config", {}, FLAMINGO_TEXT, {}
    ),
    "voxtral-mini-3b": ModelShape(families.VOXTRAL, "VoxtralConfig", {}, {}, {}),
}


def tiny(shape: ModelShape, seconds: int = 30) -> ModelShape:
    """A shape of the same kind that a CPU runs at once: grouped queries, heads of a size of their own, few layers.

    Args:
        shape: Whose family it is.
        seconds: Of the audio tower's window.
    """
    text: dict[str, Any] = dict(shape.text) | {
        "vocab_size": 2048,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    audio: dict[str, Any] = {"num_mel_bins": 80, "max_source_positions": 50 * seconds}
    if shape.family is families.QWEN2_5_OMNI:
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]}
        text |= {"rope_parameters": rope}
        audio |= {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2}
        audio |= {"encoder_ffn_dim": 64, "output_dim": 48}
    else:
        text |= {"head_dim": 16} if shape.family is families.VOXTRAL else {}
        audio |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        audio |= {"intermediate_size": 128}
    return replace(shape, audio=audio, text=text, seconds=seconds)


def random_model(shape: ModelShape, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """(Model, processor) with random weights; the pocket's tokenizer with the control tokens of the family.

    Args:
        shape: Its sizes; the vocabulary has at least 2,048 tokens.
        device: Where the weights are drawn.
        dtype: Of the weights.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(POCKET / "base", trust_remote_code=False)
    template = shape.family.template
    pieces = (*template.before("told"), (template.audio, True), *template.after(""))
    known = tokenizer.get_vocab()
    controls = [text for text, control in pieces if control and text not in known]
    tokenizer.add_special_tokens({"extra_special_tokens": controls})
    config = getattr(transformers, shape.config_class)(
        audio_config=dict(shape.audio), text_config=dict(shape.text), **shape.more
    )
    config.audio_token_id = tokenizer.convert_tokens_to_ids(template.audio)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = getattr(transformers, shape.family.model_class)(config)
    finally:
        torch.set_default_dtype(torch.float32)
    _name_parts(model)
    bins = config.audio_config.num_mel_bins
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=bins, chunk_length=shape.seconds, return_attention_mask=True
    )
    both = SimpleNamespace(tokenizer=tokenizer, feature_extractor=extractor)
    return model.eval().requires_grad_(False), both


def _name_parts(model: Any) -> None:
    """Lets the parts of Qwen2.5-Omni be found where transformers has them from 5.21 on, also in 5.17.

    Outside of the modules' own list of parts, so that none is there twice.
    """
    if not hasattr(model.model, "language_model"):
        vars(model.model).update(language_model=model.model, audio_tower=model.audio_tower)
