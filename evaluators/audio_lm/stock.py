"""The model through its own classes, without any of the scorer's savings: for parity tests and the benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluators.audio import RATE
from evaluators.audio_lm.checkpoint import POCKET
from evaluators.audio_lm.families import AUDIO_FLAMINGO_3, VOXTRAL, Family
from evaluators.audio_lm.templates import QWEN2_AUDIO, Template, encode, parts_of
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


@dataclass(frozen=True)
class FamilyStock(StockModel):
    """A model of any family whose processor pads to whole windows, given what that processor would make.

    Token ids are those of the family's template; features are the extractor's own. The model itself raises where its
    audio embeddings are not as many as the audio tokens.
    """

    family: Family

    def inputs(self, prompt: Prompt, clip: Clip) -> dict[str, Tensor]:
        """See `StockModel.inputs`."""
        return self.batch(prompt, [clip])

    def batch(self, prompt: Prompt, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """See `StockModel.batch`."""
        tokenizer, template = self.processor.tokenizer, self.family.template
        before = encode(tokenizer, template.before(prompt.system))
        audio = encode(tokenizer, [(template.audio, True)])
        after = encode(tokenizer, template.after(prompt.text))
        waves = [clip_wave(clip) for clip in clips]
        hop = self.processor.feature_extractor.hop_length
        counts = [self.family.tokens(self.model.config, -(-len(wave) // hop)) for wave in waves]
        rows = [torch.tensor([*before, *audio * count, *after]) for count in counts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
        given = [torch.ones_like(row) for row in rows]
        mask = torch.nn.utils.rnn.pad_sequence(given, batch_first=True, padding_side="left")
        features = stock_features(self.family, self.processor.feature_extractor, waves)
        dtype = self.model.model.audio_tower.conv1.weight.dtype
        out = {"input_ids": ids, "attention_mask": mask, **features}
        return {
            k: (v.to(dtype) if v.is_floating_point() else v).to(self.device) for k, v in out.items()
        }


def stock_features(family: Family, extractor: Any, waves: Sequence[Any]) -> dict[str, Tensor]:
    """Features as the processor of the family in transformers takes them from its extractor."""
    given = {"sampling_rate": RATE, "return_tensors": "pt", "return_attention_mask": True}
    if family is VOXTRAL:  # VoxtralProcessor: padded to a multiple of the window, all of it heard
        given |= {"padding": True, "truncation": False, "pad_to_multiple_of": extractor.n_samples}
        made = [extractor(wave, **given)["input_features"][0] for wave in waves]
        width = extractor.nb_max_frames
        parts = [mel.reshape(len(mel), -1, width).transpose(0, 1) for mel in made]
        return {"input_features": torch.cat(parts)}
    if family is AUDIO_FLAMINGO_3:  # AudioFlamingo3Processor: each window by itself
        size = extractor.n_samples
        chunks = [wave[i : i + size] for wave in waves for i in range(0, len(wave), size)]
        made = extractor(chunks, **given)
        return {
            "input_features": made["input_features"],
            "input_features_mask": made["attention_mask"],
        }
    made = extractor(list(waves), padding="max_length", **given)  # Qwen2_5OmniProcessor
    return {
        "input_features": made["input_features"],
        "feature_attention_mask": made["attention_mask"],
    }


def template_text(prompt: Prompt, template: Template = QWEN2_AUDIO) -> str:
    """A prompt as the processor is given it, with one token that stands for the audio."""
    first, last = parts_of(prompt)
    before, after = template.before(prompt.system, first), template.after(last)
    pieces = (*before, (template.audio, True), *after)
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

    tokenizer = AutoProcessor.from_pretrained(POCKET / "base", trust_remote_code=False).tokenizer
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
