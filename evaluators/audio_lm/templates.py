"""The chat templates that training, scoring and generation share, and how their text becomes tokens."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from evaluators.prompts import Prompt

# The template, as (text, is a control token) pieces. Between control tokens a tokenizer works on each piece alone,
# so encoding the pieces one by one gives the ids of the whole, and a prompt can never bring a control token along.
Piece = tuple[str, bool]


@dataclass(frozen=True)
class Template:
    """A ChatML-style template with one clip in the user's message.

    Attributes:
        user: The user's message up to the audio.
        audio_start: Control token before the audio tokens; "": none.
        audio_end: Control token after them; "": none.
        gap: What stands between the audio and the prompt.
        audio: Control token that stands for the audio in a text, and for each audio token in the stock model's input.
    """

    user: str
    audio_start: str
    audio_end: str
    gap: str
    audio: str = "<|AUDIO|>"

    def before(self, system: str, text: str = "") -> tuple[Piece, ...]:
        """Everything that stands before the audio tokens; with a text where the question comes first."""
        return _without_empty(
            ("<|im_start|>", True),
            (f"system\n{system}", False),
            ("<|im_end|>", True),
            ("\n", False),
            ("<|im_start|>", True),
            (f"user\n{text}{self.user}", False),
            (self.audio_start, True),
        )

    def after(self, text: str) -> tuple[Piece, ...]:
        """Everything from the end of the audio to the place where the answer starts; no text if it came first."""
        return _without_empty(
            (self.audio_end, True),
            (f"{self.gap}{text}", False),
            ("<|im_end|>", True),
            ("\n", False),
            ("<|im_start|>", True),
            ("assistant\n", False),
        )


def _without_empty(*pieces: Piece) -> tuple[Piece, ...]:
    return tuple(piece for piece in pieces if piece[0])


@dataclass(frozen=True)
class WithoutSystem(Template):
    """The template without a system message."""

    def before(self, system: str, text: str = "") -> tuple[Piece, ...]:
        """See `Template.before`."""
        return super().before(system, text)[4:]


@dataclass(frozen=True)
class WithDefaultSystem(Template):
    """The template with the system message that chat templates of this kind put where none is given."""

    def before(self, system: str, text: str = "") -> tuple[Piece, ...]:
        """See `Template.before`."""
        return super().before("You are a helpful assistant.", text)


@dataclass(frozen=True)
class WithoutRoles(Template):
    """Audio and text alone, as models are given them that were not trained to chat."""

    def before(self, system: str, text: str = "") -> tuple[Piece, ...]:
        """See `Template.before`."""
        return _without_empty((text, False), (self.audio_start, True))

    def after(self, text: str) -> tuple[Piece, ...]:
        """See `Template.after`."""
        return _without_empty((self.audio_end, True), (text, False))


@dataclass(frozen=True)
class Instruct(Template):
    """Mistral's template: of tokenizers of version 7, with the system message that version 13 allows beside audio."""

    def before(self, system: str, text: str = "") -> tuple[Piece, ...]:
        """See `Template.before`."""
        told = (("[SYSTEM_PROMPT]", True), (system, False), ("[/SYSTEM_PROMPT]", True))
        user = (f"{text}{self.user}", False)
        inside: tuple[Piece, ...] = (("[INST]", True), user, (self.audio_start, True))
        return _without_empty(("<s>", True), *(told if system else ()), *inside)

    def after(self, text: str) -> tuple[Piece, ...]:
        """See `Template.after`."""
        return _without_empty(
            (self.audio_end, True), (f"{self.gap}{text}", False), ("[/INST]", True)
        )


@dataclass(frozen=True)
class InstructWithoutSystem(Instruct):
    """The template without a system message: the only one that Voxtral's own tokenizer writes beside audio."""

    def before(self, system: str, text: str = "") -> tuple[Piece, ...]:
        """See `Template.before`."""
        return super().before("", text)


def parts_of(prompt: Prompt) -> tuple[str, str]:
    """(Text before the audio, text after it)."""
    return (prompt.text, "") if prompt.presentation.text_first else ("", prompt.text)


QWEN2_AUDIO = Template("Audio 1: ", "<|audio_bos|>", "<|audio_eos|>", "\n")
QWEN3_OMNI = Template("", "<|audio_start|>", "<|audio_end|>", "", "<|audio_pad|>")
# chat_template.json of Qwen/Qwen2.5-Omni-7B, without add_audio_id, which is off there.
QWEN2_5_OMNI = Template("", "<|audio_bos|>", "<|audio_eos|>", "")
# The processor's chat template in transformers' own conversion script of nvidia/audio-flamingo-3: the audio first.
AUDIO_FLAMINGO_3 = Template("", "", "", "", "<sound>")
# mistral-common's encode_chat_completion with a tokenizer of version 7, which Voxtral-Mini-3B-2507 comes with.
VOXTRAL = Instruct("", "[BEGIN_AUDIO]", "", "", "[AUDIO]")


def other_templates(template: Template, usual: Template) -> dict[str, Template]:
    """Templates that trainers use beside one, by how they differ from the family's usual one in words."""
    parts = usual.user, usual.audio_start, usual.audio_end, usual.gap, usual.audio
    if isinstance(usual, Instruct):
        instruct = {
            "with the usual chat template": usual,
            "without a system message": InstructWithoutSystem(*parts),
            "without any roles round audio and question": WithoutRoles(*parts),
        }
        return {name: other for name, other in instruct.items() if other != template}
    others = {
        "with the usual chat template": usual,
        "without a system message": WithoutSystem(*parts),
        "with the default system message": WithDefaultSystem(*parts),
        "without 'Audio 1: ' before the audio": replace(usual, user=""),
        "without a line break between audio and question": replace(usual, gap=""),
        "without any roles round audio and question": WithoutRoles(*parts),
    }
    return {name: other for name, other in others.items() if other != template}


def encode(tokenizer: Any, pieces: Iterable[Piece]) -> list[int]:
    """Token ids of template pieces; text is encoded as text even where it spells a control token."""
    ids: list[int] = []
    for text, control in pieces:
        if control:
            ids.append(tokenizer.convert_tokens_to_ids(text))
        else:
            ids += tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


def count_tokens(tokenizer: Any, texts: Iterable[str]) -> int:
    """Tokens of texts, each by itself, as they stand in a prompt."""
    return len(encode(tokenizer, [(text, False) for text in texts if text]))
