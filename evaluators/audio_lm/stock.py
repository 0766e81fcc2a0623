"""The model through its own classes, without any of the scorer's savings: for parity tests and the benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluators.audio import RATE
from evaluators.audio_lm.checkpoint import POCKET
from evaluators.audio_lm.templates import QWEN2_AUDIO, Template, parts_of
from evaluators.clips import Clip, clip_wave
from evaluators.prompts import Prompt

TEXT_7B = {
    "model_type": "qwen2",
    "vocab_size": 156032,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


@dataclass(frozen=True)
class StockModel:
    """A Qwen2-Audio model with its processor, which pads every clip to the whole window (30 s of mel)."""

    model: Any
    processor: Any
    device: torch.device

    def inputs(self, prompt: Prompt, clip: Clip) -> dict[str, Tensor]:
        """Model inputs of one clip, as the processor makes them."""
        return self._process(
            text=template_text(prompt), audio=[clip_wave(clip, prompt.presentation)]
        )

    def batch(self, prompt: Prompt, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Model inputs of several clips, padded on the left by the processor."""
        self.processor.tokenizer.padding_side = "left"
        texts = [template_text(prompt)] * len(clips)
        waves = [clip_wave(clip, prompt.presentation) for clip in clips]
        return self._process(text=texts, audio=waves, padding=True)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """``[clip, vocabulary]`` log-probabilities in nats at the answer."""
        with torch.inference_mode():
            return self.model(**inputs, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)

    def logp(self, prompt: Prompt, clip: Clip) -> Tensor:
        """``[vocabulary]`` log-probabilities in nats at the answer."""
        return self.forward(self.inputs(prompt, clip))[0]

    def generate(self, prompt: Prompt, clip: Clip, allowed: Sequence[int]) -> int:
        """The token that constrained greedy generation picks: the published loop."""
        with torch.inference_mode():
            inputs = self.inputs(prompt, clip)
            out = self.model.generate(
                **inputs,
                max_new_tokens=1,
                do_sample=False,
                prefix_allowed_tokens_fn=lambda _, __: list(allowed),
                pad_token_id=0,
            )
        return int(out[0, inputs["input_ids"].shape[1]])

    def _process(self, **given: Any) -> dict[str, Tensor]:
        """What the processor returns, on the device and in the model's precision."""
        out = self.processor(**given, sampling_rate=RATE, return_tensors="pt")
        dtype = self.model.model.audio_tower.conv1.weight.dtype
        return {
            k: (v.to(dtype) if v.is_floating_point() else v).to(self.device) for k, v in out.items()
        }


def template_text(prompt: Prompt, template: Template = QWEN2_AUDIO) -> str:
    """A prompt as the processor is given it, with one token that stands for the audio."""
    first, last = parts_of(prompt)
    before, after = template.before(prompt.system, first), template.after(last)
    pieces = (*before, ("<|AUDIO|>", True), *after)
    return "".join(piece for piece, _ in pieces)


def config_7b() -> Any:
    """The configuration of Qwen2-Audio-7B."""
    from transformers import Qwen2AudioConfig

    return Qwen2AudioConfig(text_config=dict(TEXT_7B))


def random_7b(device: torch.device) -> tuple[Any, Any]:
    """(model, processor): the exact 7B shape with random bf16 weights; the pocket's tokenizer, whose ids fit it."""
    from transformers import (
        AutoProcessor,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = AutoProcessor.from_pretrained(POCKET / "base").tokenizer
    config = config_7b()
    config.audio_token_index = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = Qwen2AudioForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    extractor = WhisperFeatureExtractor(feature_size=128)
    return model.eval().requires_grad_(False), Qwen2AudioProcessor(extractor, tokenizer)


def to_nf4(module: Any) -> None:
    """Replaces every linear layer but the head by 4-bit NormalFloat, doubly quantized, as bitsandbytes loads them."""
    import bitsandbytes as bnb

    for name, child in list(module.named_children()):
        if not isinstance(child, torch.nn.Linear) or name == "lm_head":
            to_nf4(child)
            continue
        layer = bnb.nn.Linear4bit(
            child.in_features,
            child.out_features,
            bias=child.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            compress_statistics=True,
            device="meta",
        )
        layer.weight = bnb.nn.Params4bit(
            child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to(child.weight.device)
        if child.bias is not None:
            layer.bias = torch.nn.Parameter(child.bias.data, requires_grad=False)
        setattr(module, name, layer)
