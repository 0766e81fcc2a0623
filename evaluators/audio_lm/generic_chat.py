"""Questions about a clip by a model's own processor and chat template, whatever they are.

The template is rendered with words that stand for the system message and the question, to see where it puts them and
the audio. Tokens of a question are those of the whole rendered text, cut where the audio stands.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from evaluators.audio import RATE, Wave
from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.generic_class import ROUND, library_class
from evaluators.audio_lm.model_folder import read_processor
from evaluators.clips import Clip, clip_wave
from evaluators.errors import PromptError, UserError
from evaluators.prompts import Prompt

log = logging.getLogger(__name__)
END = RATE // 10  # samples by which it is seen whether the end of a clip is heard
SYSTEM, QUESTION = "Sys7tem stands here.", "Que5stion stands here?"
BY_TOKEN = frozenset(  # inputs with one entry for each token; all others belong to the audio
    ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
)
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A prompt's tokens with the first ones of an answer: what one row of a batch reads.

    Attributes:
        prompt: Its number in the call.
        before: Tokens before the audio.
        after: Those after it, up to where the answer begins.
        head: The first tokens of an answer of several.
        reads: (label, tokens of an answer), of which all but the last are a beginning of `head`.
    """

    prompt: int
    before: Ids
    after: Ids
    head: Ids
    reads: tuple[tuple[int, Ids], ...]


def extended(inputs: Mapping[str, Tensor], ids: Ids) -> dict[str, Tensor]:
    """A model's inputs with tokens of an answer at their end."""
    out = dict(inputs)
    if not ids:
        return out
    more = torch.tensor([ids], dtype=inputs["input_ids"].dtype)
    fill = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    for name in BY_TOKEN & inputs.keys():
        extra = fill.get(name, torch.zeros_like(more)).to(inputs[name].dtype)
        out[name] = torch.cat([inputs[name], extra], 1)
    return out


@dataclass(frozen=True)
class Chat:
    """How a processor is asked.

    Attributes:
        processor: The library's own.
        in_parts: Messages are lists of parts; otherwise strings with the audio's token in them.
        system_role: The template has a place for a system message; otherwise it begins the user's message.
        text_first: The template puts the question before the audio.
    """

    processor: Any
    in_parts: bool
    system_role: bool
    text_first: bool = False

    @property
    def template(self) -> str:
        """The chat template's text."""
        return str(_template_of(self.processor))

    @functools.cached_property
    def audio_id(self) -> int:
        """The token that stands for the audio."""
        return int(self.processor.tokenizer.convert_tokens_to_ids(self.processor.audio_token))

    @functools.cached_property
    def control(self) -> frozenset[str]:
        """Texts that the tokenizer takes for control tokens."""
        added = self.processor.tokenizer.added_tokens_decoder.values()
        return frozenset(token.content for token in added if token.special)

    def render(self, system: str, text: str) -> str:
        """The whole text, with one token that stands for the audio, up to where the answer begins."""
        audio = self.processor.audio_token
        before = "" if self.system_role or not system else system
        messages: list[dict[str, Any]] = []
        if self.in_parts:
            parts = [{"type": "text", "text": before}] if before else []
            parts += [{"type": "audio"}, {"type": "text", "text": text}]
            if system and not before:
                messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
            messages.append({"role": "user", "content": parts})
        else:
            if system and not before:
                messages.append({"role": "system", "content": system})
            start = f"{before}\n" if before else ""
            messages.append({"role": "user", "content": f"{start}{audio}{text}"})
        tokenizer = self.processor.tokenizer
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=self.template, add_generation_prompt=True, tokenize=False
            )
        )

    def rows(self, number: int, prompt: Prompt) -> Iterator[Row]:
        """The rows that read all answers of a prompt.

        Raises:
            PromptError: Its words hold a control token, or its answers cannot be told apart.
        """
        for word in sorted(self.control):
            if word in prompt.text or word in prompt.system:
                raise PromptError(
                    f"prompt {prompt.prompt_id} holds {word!r}, which is a control token of this model; use other words"
                )
        text = self.render(prompt.system, prompt.text)
        ids = self.processor.tokenizer(text, **self._options(text))["input_ids"]
        cut = ids.index(self.audio_id)
        before, after = tuple(ids[:cut]), tuple(ids[cut + 1 :])
        groups = find_answers(self.processor.tokenizer, prompt).sequences
        reads = [(label, s) for label, group in enumerate(groups) for s in group]
        heads = sorted({s[:-1] for _, s in reads if len(s) > 1}) or [()]
        for i, head in enumerate(heads):  # single tokens are read where the first row ends
            own = [(la, s) for la, s in reads if s[:-1] == head or (i == 0 and len(s) == 1)]
            yield Row(number, before, after, head, tuple(own))

    def inputs(self, prompt: Prompt, clip: Clip) -> dict[str, Tensor]:
        """All inputs of the model for one question about one clip, as the processor makes them.

        Raises:
            UserError: It refuses the clip.
        """
        wave = clip_wave(clip)
        try:
            return self.process(prompt, wave)
        except (ValueError, RuntimeError, IndexError, TypeError, ZeroDivisionError) as error:
            raise UserError(
                f"clip {clip.clip_id!r} ({clip.duration_ms:.0f} ms) is refused by the model's own"
                f" {type(self.processor).__name__} ({_reason(error)}); leave it out"
            ) from error

    def check_end(self, prompt: Prompt, clip: Clip, inputs: Mapping[str, Tensor]) -> None:
        """Raises UserError for a clip whose end is no part of its inputs: processors cut what is too long for them."""
        wave = clip_wave(clip).copy()
        end = wave[-END:]
        end += np.random.default_rng(0).normal(0, 0.3, len(end)).astype(np.float32)
        other = self.process(prompt, wave)
        if all(torch.equal(value, other[name]) for name, value in inputs.items()):
            raise UserError(
                f"clip {clip.clip_id!r} of {clip.duration_ms / 1e3:.1f} s is longer than the model's own"
                f" {type(self.processor).__name__} hears: its end changes nothing; cut it into shorter clips"
            )

    def process(self, prompt: Prompt, wave: Wave) -> dict[str, Tensor]:
        """The same for a wave at 16 kHz, with whatever the processor raises."""
        text, rate = self.render(prompt.system, prompt.text), self.rate
        if rate != RATE:
            wave = soxr.resample(wave, RATE, rate)
        made = self.processor(
            text=[text],
            audio=[wave],
            sampling_rate=rate,
            return_tensors="pt",
            **self._options(text),
        )
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    @property
    def rate(self) -> int:
        """Samples a second that the front end expects."""
        return int(getattr(_front_end(self.processor), "sampling_rate", None) or RATE)

    def _options(self, text: str) -> dict[str, bool]:
        """As the library's own chat: a template that begins with the first token gets no second one."""
        first = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if first and text.startswith(first) else {}


def read_chat(folder: Path, who: str) -> Chat:
    """How the model of a folder is asked. Reads no weights, runs no code of the folder.

    Raises:
        UserError: There is no processor for audio, a library that it needs is missing, or the chat template has no
            place for audio and question.
    """
    processor = read_processor(folder, lambda path: _read(path, who))
    if getattr(processor, "audio_token", None) is None or _front_end(processor) is None:
        raise UserError(
            f"{who} has no processor that takes audio beside text ({type(processor).__name__}); give an audio language"
            f" model, {ROUND}"
        )
    if _template_of(processor) is None:
        raise UserError(
            f"{who} has no chat template; download chat_template.jinja of an instruction-tuned version, {ROUND}"
        )
    for in_parts in (True, False):
        for system_role in (True, False):
            chat = _tried(Chat(processor, in_parts, system_role))
            if chat is not None:
                return chat
    raise UserError(
        f"the chat template of {who} has no place for one clip and one question, as those of pure transcribers; give a"
        f" model that answers questions, {ROUND}"
    )


def _tried(chat: Chat) -> Chat | None:
    """The way of asking, with what the template makes of it; None where it loses audio, question or system message."""
    try:
        text = chat.render(SYSTEM, QUESTION)
    except Exception:  # a template is the folder's own program, and raises what it likes at a form it does not take
        return None
    wanted = SYSTEM, QUESTION, chat.processor.audio_token
    if any(text.count(one) != 1 for one in wanted):
        return None
    first = text.index(QUESTION) < text.index(chat.processor.audio_token)
    return Chat(chat.processor, chat.in_parts, chat.system_role, first)


def _read(folder: Path, who: str) -> Any:
    try:
        return library_class("AutoProcessor").from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:
        raise UserError(
            f"the processor of {who} needs a library that is not installed ({_reason(error)}); install it with pip"
        ) from None


def _template_of(processor: Any) -> Any:
    """The chat template: the processor's, else its tokenizer's; of several the default one."""
    found = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    return found.get("default") if isinstance(found, Mapping) else found


def _front_end(processor: Any) -> Any:
    """What makes features of a wave."""
    return getattr(processor, "audio_processor", getattr(processor, "feature_extractor", None))


def _reason(error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    return said.splitlines()[0].partition(". ")[0][:200]
