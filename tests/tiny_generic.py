"""Folders of tiny models with random weights, of families that have no packed path: python tests/tiny_generic.py OUT"""

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from evaluators.audio_lm.checkpoint import POCKET

TEXT = {
    "vocab_size": 0,  # of the tokenizer; see `_text`
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
WHISPER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_mel_bins": 80,
    "max_source_positions": 200,
}
# What the chat templates of the families do, in their own control tokens: system message, audio, then the question.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'audio' %}AUDIO{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (  # no system role: its words begin the user's turn
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<start_of_turn>user\n{{ first }}{% for c in m['content'] %}"
    "{% if c['type'] == 'audio' %}AUDIO{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (  # takes strings alone
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GRANITE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] + '\n ASSISTANT:' }}"
    "{% else %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
)
TEXT_FIRST = (  # puts the audio last, wherever a message has it
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'audio' %}AUDIO{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(audio="<|AUDIO|>", **named):
    """The pocket's tokenizer with the control tokens of a family, by the names that its processor asks for."""
    from transformers import PreTrainedTokenizerFast

    extra = {"audio_token": audio, **named}
    return PreTrainedTokenizerFast(
        tokenizer_file=str(POCKET / "base" / "tokenizer.json"),
        pad_token="<|endoftext|>",
        extra_special_tokens=extra,
    )


def _text(words, model_type="qwen2", **more):
    return TEXT | {"vocab_size": len(words), "model_type": model_type} | more


def _id(words, token):
    return words.convert_tokens_to_ids(token)


def _whisper():
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=80, chunk_length=4)


def _gemma_tokens(**more):
    words = tokenizer(
        "<audio_soft_token>", boa_token="<start_of_audio>", eoa_token="<end_of_audio>",
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>",
        start="<start_of_turn>", end="<end_of_turn>", **more,
    )  # fmt: skip
    words.add_special_tokens({"bos_token": "<bos>"})
    return words


def glmasr():
    from transformers import GlmAsrConfig, GlmAsrForConditionalGeneration, GlmAsrProcessor

    words = tokenizer("<|pad|>")
    audio = {k: v for k, v in WHISPER.items() if k != "max_source_positions"}
    audio |= {"num_key_value_heads": 2, "max_position_embeddings": 200, "intermediate_size": 128}
    config = GlmAsrConfig(
        audio_config=audio, text_config=_text(words, "llama"), audio_token_id=_id(words, "<|pad|>")
    )
    processor = GlmAsrProcessor(_whisper(), words, chat_template=CHATML.replace("AUDIO", "<|pad|>"))
    return GlmAsrForConditionalGeneration(config), processor


def _flamingo(name, template=CHATML, **more):
    import transformers

    words = tokenizer("<sound>", audio_bos_token="<|sound_bos|>", audio_eos_token="<|sound_eos|>")
    config = getattr(transformers, f"{name}Config")(
        audio_config=WHISPER | {"model_type": "audioflamingo3_encoder"},
        text_config=_text(words),
        audio_token_id=_id(words, "<sound>"),
        **{k: _id(words, token) for k, token in more.items()},
    )
    kind = getattr(transformers, f"{name}Processor")
    processor = kind(_whisper(), words, chat_template=template.replace("AUDIO", "<sound>"))
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor


def audioflamingo3():
    return _flamingo("AudioFlamingo3")


def musicflamingo(template=CHATML):
    ends = {"audio_bos_token_id": "<|sound_bos|>", "audio_eos_token_id": "<|sound_eos|>"}
    return _flamingo("MusicFlamingo", template, **ends)


def text_first():
    """A folder whose template puts the question before the audio."""
    return musicflamingo(TEXT_FIRST)


def transcriber():
    """A folder whose template drops the question."""
    return musicflamingo("<|im_start|>user\nAUDIO<|im_end|>\n<|im_start|>assistant\n")


def moss_transcribe_diarize():
    from transformers import (
        MossTranscribeDiarizeConfig,
        MossTranscribeDiarizeFeatureExtractor,
        MossTranscribeDiarizeForConditionalGeneration,
        MossTranscribeDiarizeProcessor,
    )

    words = tokenizer("<|audio_pad|>")
    config = MossTranscribeDiarizeConfig(
        audio_config=dict(WHISPER),
        text_config=_text(words, "qwen3"),
        audio_token_id=_id(words, "<|audio_pad|>"),
        audio_chunk_size=64000,
    )
    template = CHATML.replace("AUDIO", "<|audio_pad|>")
    front = MossTranscribeDiarizeFeatureExtractor(feature_size=80, chunk_length=4)
    processor = MossTranscribeDiarizeProcessor(front, words, chat_template=template)
    return MossTranscribeDiarizeForConditionalGeneration(config), processor


def qwen2_audio():
    """It has a packed path; the generic one must agree with it."""
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    model = Qwen2AudioForConditionalGeneration.from_pretrained(POCKET / "base")
    return model, AutoProcessor.from_pretrained(POCKET / "base")


def granite_hybrid():
    """Granite-speech on a decoder of which every other layer is recurrent."""
    return granite_speech(model_type="granitemoehybrid", num_local_experts=0, shared_intermediate_size=48,
                          mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1,
                          layer_types=["mamba", "attention"])  # fmt: skip


def granite_speech(model_type="granite", **more):
    from transformers import (
        GraniteSpeechConfig,
        GraniteSpeechFeatureExtractor,
        GraniteSpeechForConditionalGeneration,
        GraniteSpeechProcessor,
    )

    words = tokenizer("<|audio|>")
    config = GraniteSpeechConfig(
        encoder_config={"input_dim": 160, "num_layers": 2, "hidden_dim": 32, "feedforward_mult": 1, "num_heads": 2,
                        "dim_head": 16, "output_dim": 8, "context_size": 50, "max_pos_emb": 64, "dropout": 0.0},
        projector_config={"model_type": "blip_2_qformer", "hidden_size": 32, "num_hidden_layers": 1,
                          "num_attention_heads": 2, "intermediate_size": 32, "encoder_hidden_size": 32},
        text_config=_text(words, model_type, logits_scaling=2.0, embedding_multiplier=3.0, **more),
        audio_token_index=_id(words, "<|audio|>"), has_lora_adapter=False,
    )  # fmt: skip
    processor = GraniteSpeechProcessor(
        GraniteSpeechFeatureExtractor(), words, chat_template=GRANITE
    )
    return GraniteSpeechForConditionalGeneration(config), processor


def phi4_multimodal():
    from transformers import (
        Phi4MultimodalConfig,
        Phi4MultimodalFeatureExtractor,
        Phi4MultimodalForCausalLM,
        Phi4MultimodalImageProcessor,
        Phi4MultimodalProcessor,
    )

    words = tokenizer(
        "<|audio|>", image_token="<|image|>", end="<|end|>", user="<|user|>", system="<|system|>",
        assistant="<|assistant|>",
    )  # fmt: skip
    text = {k: v for k, v in _text(words).items() if k not in ("head_dim", "model_type")}
    config = Phi4MultimodalConfig(
        **text,
        sliding_window=24,
        audio_config={"hidden_size": 32, "intermediate_size": 32, "num_blocks": 1, "num_attention_heads": 2,
                      "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 8,
                      "audio_token_id": _id(words, "<|audio|>"), "feature_layer": -1},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 28, "crop_size": 28, "image_token_id": _id(words, "<|image|>")},
    )  # fmt: skip
    parts = Phi4MultimodalImageProcessor(), Phi4MultimodalFeatureExtractor()
    processor = Phi4MultimodalProcessor(*parts, words, chat_template=PHI)
    return Phi4MultimodalForCausalLM(config), processor


def gemma3n():
    from transformers import (
        Gemma3nAudioFeatureExtractor,
        Gemma3nConfig,
        Gemma3nForConditionalGeneration,
        Gemma3nProcessor,
        SiglipImageProcessor,
    )

    words = _gemma_tokens()
    ids = {f"{k}_token_id": _id(words, words._special_tokens_map[f"{k}_token"]) for k in
           ("boi", "eoi", "image", "boa", "eoa", "audio")}  # fmt: skip
    size = len(words)
    config = Gemma3nConfig(
        text_config=_text(words, "gemma3n_text", num_hidden_layers=6, num_kv_shared_layers=2, sliding_window=24,
                          vocab_size=size + 256, vocab_size_per_layer_input=size, hidden_size_per_layer_input=8,
                          laurel_rank=4, activation_sparsity_pattern=None,
                          layer_types=["sliding_attention", "full_attention"] * 3),
        audio_config={"vocab_offset": size + 128, "vocab_size": 128, "hidden_size": 32, "conf_num_attention_heads": 2,
                      "conf_num_hidden_layers": 1, "sscp_conv_channel_size": (8, 4)},
        vision_config={"architecture": "test_efficientnet", "hidden_size": 32, "vocab_offset": size, "vocab_size": 128},
        **ids,
    )  # fmt: skip
    processor = Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(), SiglipImageProcessor(), words,
        chat_template=GEMMA.replace("AUDIO", "<audio_soft_token>"),
    )  # fmt: skip
    return Gemma3nForConditionalGeneration(config), processor


def gemma4_bidirectional():
    """Gemma 4 whose tokens attend to those that follow them, too."""
    return gemma4(use_bidirectional_attention="all")


def gemma4(**more):
    from transformers import (
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ForConditionalGeneration,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4VideoProcessor,
    )

    words = _gemma_tokens()
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(), Gemma4ImageProcessor(), words, Gemma4VideoProcessor(),
        chat_template=GEMMA.replace("AUDIO", "<audio_soft_token>"),
    )  # fmt: skip
    config = Gemma4Config(
        text_config=_text(words, "gemma4_text", num_hidden_layers=4, num_kv_shared_layers=1, sliding_window=24,
                          vocab_size_per_layer_input=len(words), hidden_size_per_layer_input=8, global_head_dim=16,
                          **more, layer_types=["sliding_attention", "full_attention"] * 2),
        audio_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                      "subsampling_conv_channels": (128, 4), "output_proj_dims": 24, "use_clipped_linears": False},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 64},
        boi_token_id=_id(words, "<start_of_image>"), eoi_token_id=_id(words, "<end_of_image>"),
        image_token_id=_id(words, "<image_soft_token>"), video_token_id=processor.video_token_id,
        boa_token_id=_id(words, "<start_of_audio>"), eoa_token_index=_id(words, "<end_of_audio>"),
        audio_token_id=_id(words, "<audio_soft_token>"),
    )  # fmt: skip
    return Gemma4ForConditionalGeneration(config), processor


def qwen2_5_omni_thinker():
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    words = tokenizer(
        "<|audio_pad|>", image_token="<|image_pad|>", video_token="<|video_pad|>", audio_bos_token="<|audio_start|>",
        audio_eos_token="<|audio_end|>", vision_bos_token="<|vision_start|>", vision_eos_token="<|vision_end|>",
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = Qwen2_5OmniThinkerConfig(
        audio_config={"num_mel_bins": 80, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
                      "d_model": 32, "max_source_positions": 200, "n_window": 10, "output_dim": 32},
        text_config=_text(words, "qwen2_5_omni_text", rope_parameters=rope),
        vision_config={"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 32},
        vision_start_token_id=_id(words, "<|vision_start|>"),
        audio_token_index=_id(words, "<|audio_pad|>"), image_token_index=_id(words, "<|image_pad|>"),
        video_token_index=_id(words, "<|video_pad|>"), audio_start_token_id=_id(words, "<|audio_start|>"),
        audio_end_token_id=_id(words, "<|audio_end|>"),
    )  # fmt: skip
    processor = Qwen2_5OmniProcessor(
        Qwen2VLImageProcessor(), Qwen2VLVideoProcessor(), WhisperFeatureExtractor(feature_size=80, chunk_length=4),
        words, chat_template=CHATML.replace("AUDIO", "<|audio_start|><|audio_pad|><|audio_end|>"),
    )  # fmt: skip
    return Qwen2_5OmniThinkerForConditionalGeneration(config), processor


# (how its folder is made, libraries that its processor or its image tower needs beside transformers)
FAMILIES = {
    "glmasr": (glmasr, ()),
    "audioflamingo3": (audioflamingo3, ()),
    "musicflamingo": (musicflamingo, ()),
    "moss_transcribe_diarize": (
        moss_transcribe_diarize,
        ("transformers.MossTranscribeDiarizeConfig",),
    ),
    "qwen2_audio": (qwen2_audio, ()),
    "text_first": (text_first, ()),
    "qwen2_5_omni_thinker": (qwen2_5_omni_thinker, ("torchvision",)),
    "granite_speech": (granite_speech, ("torchaudio",)),
    "phi4_multimodal": (phi4_multimodal, ("torchvision",)),
    "gemma4": (gemma4, ("torchvision",)),
    "granite_hybrid": (granite_hybrid, ("torchaudio",)),
    "gemma4_bidirectional": (gemma4_bidirectional, ("torchvision",)),
    "gemma3n": (gemma3n, ("torchvision", "timm")),
}


def lacking(name):
    """Libraries that a family needs and that are not installed, or classes that an older one does not have."""

    def there(need):
        module, _, member = need.partition(".")
        found = find_spec(module) is not None
        return found and (not member or hasattr(import_module(module), member))

    return [need for need in FAMILIES[name][1] if not there(need)]


def write_folder(out: Path, make) -> Path:
    """A folder as `save_pretrained` writes it, of random weights that let answers differ."""
    torch.manual_seed(0)
    model, processor = make()
    if make is not qwen2_audio:
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed_tokens" not in name:
                torch.nn.init.normal_(weight.data, std=0.15)
    model.eval().save_pretrained(out)
    processor.save_pretrained(out)
    record = {"sources": []}
    (out / "training.json").write_text(json.dumps(record), encoding="utf-8")
    return out


if __name__ == "__main__":
    for family, (maker, _) in FAMILIES.items():
        if lacking(family):
            print(family, "needs", ", ".join(lacking(family)))
        else:
            print(write_folder(Path(sys.argv[1]) / family, maker))
