"""What a language model is to a proposer: a chat that answers, and a price."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Message:
    """One turn of a chat; role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Reply:
    """What came back. `cost` is in US dollars, None if unknown; `finish` the server's reason for stopping."""

    text: str
    tokens_in: int
    tokens_out: int
    cost: float | None
    model: str
    finish: str


class LanguageModel(Protocol):
    """Answers a chat. Raises PauseError when it cannot, after the retries that make sense.

    Attributes:
        prices: US dollars per million tokens in and out; None: unknown, or what a reply reports.
        on_loss: Called with (most tokens in, out, what happened) when a try failed that the server may charge. What it
            returns, if anything, is why there may be no further try.
    """

    name: str
    prices: tuple[float, float] | None
    on_loss: Callable[[int, int, str], str]

    def __call__(
        self, messages: Sequence[Message], *, temperature: float, max_tokens: int
    ) -> Reply:
        """One reply of at most so many tokens."""


def most_tokens(text: str) -> int:
    """What a text may cost at most: three ASCII characters a token in ordinary text, two tokens for any other one."""
    plain = sum(map(str.isascii, text))
    return plain // 3 + 1 + 2 * (len(text) - plain)


class SpentError(Exception):
    """Another try might cost more than is allowed."""
