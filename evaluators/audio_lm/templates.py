"""The chat templates that training, scoring and generation share, and how their text becomes tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# The template, as (text, is a control token) pieces. Between control tokens a tokenizer works on each piece alone,
# so encoding the pieces one by one gives the ids of the whole, and a prompt can never bring a control token along.
Piece = tuple[str, bool]


@dataclass(frozen=True)
class Template:
    """A ChatML-style template with one clip in the user's message.

    Attributes:
        user: The user's message up to the audio.
        audio_start: Control token before the audio tokens.
        audio_end: Control token after them.
        gap: What stands between the audio and the prompt.
    """

    user: str
    audio_start: str
    audio_end: str
    gap: str

    def before(self, system: str) -> tuple[Piece, ...]:
        """Everything that stands before the audio tokens."""
        return (
            ("<|im_start|>", True),
            (f"system\n{system}", False),
            ("<|im_end|>", True),
            ("\n", False),
            ("<|im_start|>", True),
            (f"user\n{self.user}", False),
            (self.audio_start, True),
        )

    def after(self, text: str) -> tuple[Piece, ...]:
        """Everything from the end of the audio to the place where the answer starts."""
        return (
            (self.audio_end, True),
            (f"{self.gap}{text}", False),
            ("<|im_end|>", True),
            ("\n", False),
            ("<|im_start|>", True),
            ("assistant\n", False),
        )


QWEN2_AUDIO = Template("Audio 1: ", "<|audio_bos|>", "<|audio_eos|>", "\n")
QWEN3_OMNI = Template("", "<|audio_start|>", "<|audio_end|>", "")


def encode(tokenizer: Any, pieces: Iterable[Piece]) -> list[int]:
    """Token ids of template pieces; text is encoded as text even where it spells a control token."""
    ids: list[int] = []
    for text, control in pieces:
        if control:
            ids.append(tokenizer.convert_tokens_to_ids(text))
        else:
            ids += tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids
