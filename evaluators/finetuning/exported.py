"""What other programs need of a checkpoint to ask a prompt as it is asked here: weights, template, token ids."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from evaluators.audio_lm.adapter_kinds import CONFIG, WEIGHTS
from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.checkpoint import Checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO, audio_config, family_of
from evaluators.audio_lm.stock import template_text
from evaluators.audio_lm.templates import Instruct, Template
from evaluators.errors import UserError
from evaluators.finetuning.adapter_folder import copy_adapter
from evaluators.finetuning.merged_folder import stored_dtype, write_merged
from evaluators.finetuning.plain_code import public_name
from evaluators.orders import orders_of
from evaluators.prompts import Prompt

LANGUAGE_MODEL = {"language_model", "lm_head"}  # what servers apply adapters to


@dataclass(frozen=True)
class Facts:
    """How a prompt is asked.

    Attributes:
        base: Hub id or folder of the base.
        model_class: Of transformers.
        dtype: Of the base's files.
        plain: Whether the processor of transformers alone makes a model's inputs.
        chat_template: Jinja; the prompt stands in it where a message brings no text.
        asked: For each order of the options the whole text, and the token sequences of each label's answers.
        ids: For each order the answers' tokens; none where one takes several.
    """

    base: str
    model_class: str
    dtype: str
    plain: bool
    chat_template: str
    asked: Sequence[Mapping[str, Any]]
    ids: Sequence[Sequence[int]]


def facts_of(checkpoint: Checkpoint, prompt: Prompt, folder: Path) -> Facts:
    """The facts, as seen from a folder. Loads a tokenizer, no weights."""
    family = family_of(audio_config(checkpoint.base))
    tokenizer = family.processor(checkpoint.base).tokenizer
    asked, ids = [], []
    for one in orders_of(prompt):
        groups = find_answers(tokenizer, one).sequences
        answers = {label: own for (label, _), own in zip(one.answers, groups, strict=True)}
        asked.append({"text": template_text(one, family.template), "answers": answers})
        single = all(len(sequence) == 1 for own in groups for sequence in own)
        ids.append([sequence[0] for own in groups for sequence in own] if single else [])
    return Facts(
        public_name(checkpoint, folder),
        family.model_class,
        str(stored_dtype(checkpoint.base)).removeprefix("torch."),
        family is QWEN2_AUDIO,
        chat_template(family.template, prompt),
        asked,
        ids,
    )


def chat_template(template: Template, prompt: Prompt) -> str:
    """A chat template in Jinja for messages with one clip: a system message and text are the prompt's where missing.

    Rendered for ``[{"role": "user", "content": [{"type": "audio"}]}]`` it is `template_text`.
    """
    audio = (
        f"{template.user}{template.audio_start}{template.audio}{template.audio_end}{template.gap}"
    )
    system, text, audio = (_quoted(one) for one in (prompt.system, prompt.text, audio))
    if isinstance(template, Instruct):
        if prompt.presentation.text_first:
            raise UserError(
                "the prompt puts its text before the audio, which an exported template of Mistral's kind cannot;"
                " search without text first"
            )
        return _instruct_template(system, text, audio)
    asked = "{%- if message.role == 'user' and not told.text -%}{{- " + text + " -}}{%- endif -%}\n"
    first, last = "", asked
    if prompt.presentation.text_first:
        looked = (
            "{%- for part in message.content if part.type == 'text' -%}"
            "{%- set told.text = true -%}{%- endfor -%}\n"
        )
        first, last = looked + asked, ""
    return (
        "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\\n' + "
        f"{system}"
        " + '<|im_end|>\\n' -}}{%- endif -%}\n"
        "{%- for message in messages -%}\n"
        "{{- '<|im_start|>' + message.role + '\\n' -}}\n"
        "{%- if message.content is string -%}{{- message.content -}}\n"
        "{%- else -%}\n"
        "{%- set told = namespace(text=false) -%}\n"
        f"{first}"
        "{%- for part in message.content -%}\n"
        "{%- if part.type == 'text' -%}{%- set told.text = true -%}{{- part.text -}}\n"
        "{%- else -%}{{- "
        f"{audio}"
        " -}}{%- endif -%}\n"
        "{%- endfor -%}\n"
        f"{last}"
        "{%- endif -%}\n"
        "{{- '<|im_end|>\\n' -}}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}\n"
    )


def _instruct_template(system: str, text: str, audio: str) -> str:
    """The same of Mistral's kind."""
    return (
        "{{- '<s>' -}}\n"
        f"{{%- set system = messages[0].content if messages[0].role == 'system' else {system} -%}}\n"
        "{%- if system -%}{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' -}}{%- endif -%}\n"
        "{%- for message in messages if message.role != 'system' -%}\n"
        "{%- if message.role == 'assistant' -%}{{- message.content + '</s>' -}}\n"
        "{%- else -%}\n"
        "{{- '[INST]' -}}\n"
        "{%- if message.content is string -%}{{- message.content -}}\n"
        "{%- else -%}\n"
        "{%- set told = namespace(text=false) -%}\n"
        "{%- for part in message.content -%}\n"
        "{%- if part.type == 'text' -%}{%- set told.text = true -%}{{- part.text -}}\n"
        f"{{%- else -%}}{{{{- {audio} -}}}}{{%- endif -%}}\n"
        "{%- endfor -%}\n"
        f"{{%- if not told.text -%}}{{{{- {text} -}}}}{{%- endif -%}}\n"
        "{%- endif -%}\n"
        "{{- '[/INST]' -}}\n"
        "{%- endif -%}\n"
        "{%- endfor -%}\n"
    )


def _quoted(text: str) -> str:
    """A text as a string of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def write_weights(
    checkpoint: Checkpoint, prompt: Prompt, fresh: Path, folder: Path, merge: bool
) -> Iterator[str]:
    """Copies the adapter, or writes base and adapter as one model. Yields what is to be known of it.

    Args:
        fresh: Folder that is being written.
        folder: Where it will stand.
        merge: Also where the adapter could be kept.
    Raises:
        UserError: As `write_merged`.
    """
    if checkpoint.adapter is None:
        yield f"the weights are the base's own: {public_name(checkpoint, folder)}"
        return
    outside = beyond_language_model(checkpoint.adapter)
    if outside and not merge and checkpoint.quantization == "none":
        yield f"the adapter changes {outside}, which servers such as vLLM do not take: it is merged"
        merge = True
    if merge:
        apart, dtype = write_merged(checkpoint, fresh / "model", prompt, "cpu", "float32")
        yield f"merged in {dtype}; log-probabilities of made-up clips moved by {apart:.1e} nats at most"
        return
    target = fresh / "adapter"
    target.mkdir()
    if (checkpoint.adapter / "training.json").is_file():
        copy_adapter(checkpoint.adapter, target, checkpoint)
    else:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(checkpoint.adapter / name, target / name)
    yield f"the adapter joins the base {public_name(checkpoint, folder)}"
    if outside:
        yield f"the adapter changes {outside}, which servers such as vLLM do not take, and 4-bit weights do not merge"


def beyond_language_model(adapter: Path) -> str:
    """The part of the model that an adapter changes besides the language model; "" where there is none."""
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        names = list(file.keys())
    for name in names:
        if LANGUAGE_MODEL.isdisjoint(name.split(".")):
            parts = [p for p in name.split(".") if p not in ("base_model", "model")]
            return str(parts[0])
    return ""
