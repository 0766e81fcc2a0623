"""The few lines that load a result with transformers and peft alone, for its README.md."""

from pathlib import Path
from typing import Any

from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.stock import template_text
from evaluators.prompts import Prompt

NF4 = (
    "quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4',"
    " bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)"
)


def plain_code(
    prompt: Prompt, tokenizer: Any, dtype: str, base: str | None, packed: bool
) -> list[str]:
    """Lines of Python, run in the result's folder, that print log-probabilities in nats of the answers to one clip.

    Args:
        prompt: The prompt; the lines hold it in the chat template of Qwen2-Audio.
        tokenizer: Of the model.
        dtype: Precision, as in ``float32``.
        base: Hub id or folder of the base that the folder's adapter joins; None: the folder is a whole model.
        packed: The base is loaded in 4 bits.
    """
    text = template_text(prompt)
    groups = find_answers(tokenizer, prompt).sequences
    answers = {
        label: sorted({sequence[0] for sequence in group})
        for (label, _), group in zip(prompt.answers, groups, strict=True)
    }
    whole = all(len(sequence) == 1 for group in groups for sequence in group)
    options = f"dtype=torch.{dtype}" + (f", {NF4}" if packed else "")
    imports = "AutoProcessor, Qwen2AudioForConditionalGeneration" + (
        ", BitsAndBytesConfig" if packed else ""
    )
    return [
        "import soundfile, torch",
        *(["from peft import PeftModel"] if base else []),
        f"from transformers import {imports}",
        f"text = {text!r}",
        f"answers = {answers}  # token ids"
        + ("" if whole else " of the first tokens of each answer"),
        f"base = {base or '.'!r}",
        "processor = AutoProcessor.from_pretrained(base)",
        f"model = Qwen2AudioForConditionalGeneration.from_pretrained(base, {options}).eval()",
        *(["model = PeftModel.from_pretrained(model, '.').eval()  # this folder"] if base else []),
        "wave, rate = soundfile.read('clip.wav', dtype='float32')  # 16 kHz, one channel",
        "inputs = processor(text=text, audio=[wave], sampling_rate=rate, return_tensors='pt')",
        "with torch.inference_mode():",
        "    logits = model(**inputs.to(model.device, model.dtype)).logits[0, -1]",
        "logp = logits.float().log_softmax(-1)",
        "print({label: float(logp[ids].logsumexp(0)) for label, ids in answers.items()})",
    ]


def public_name(checkpoint: Checkpoint, folder: Path) -> str:
    """How transformers is told of a checkpoint's base from within a folder: by hub id, or as a path."""
    base: Path = checkpoint.base.resolve()
    if base.parent.name == "snapshots":
        return base.parent.parent.name.removeprefix("models--").replace("--", "/")
    if base.parent == folder.resolve().parent:
        return f"../{base.name}"
    return str(base)
