"""What a language model is to a proposer: a chat that answers, and a price."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evaluators.errors import PauseError


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
    """Answers a chat, also to several threads. Raises UnansweredError when it cannot, after the tries that make sense.

    Attributes:
        prices: US dollars per million tokens in and out; None: unknown, or what a reply reports.
        on_loss: Called with (most tokens in, out, what happened) when a try failed that the server may charge. What it
            returns, if anything, is why there may be no further try.
        may_take: Called with (most tokens in, out) before a try with more room than was asked for. What it returns, if
            anything, is why there may be none.
    """

    name: str
    prices: tuple[float, float] | None
    on_loss: Callable[[int, int, str], str]
    may_take: Callable[[int, int], str]

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        temperature: float,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """One reply of at most so many tokens, which a model that thinks first may exceed.

        Args:
            schema: JSON schema that the reply is to follow, where the server can hold it to one.
        """


def most_tokens(text: str) -> int:
    """What a text may cost at most: three ASCII characters a token in ordinary text, two tokens for any other one."""
    plain = sum(map(str.isascii, text))
    return plain // 3 + 1 + 2 * (len(text) - plain)


class UnansweredError(PauseError):
    """A language model that gave no answer.

    Attributes:
        sentence: Why.
        refused: Asking again cannot help before something is mended.
    """

    def __init__(self, sentence: str, refused: bool = False) -> None:
        super().__init__(f"{sentence}; the same command goes on from here")
        self.sentence, self.refused = sentence, refused


class SpentError(Exception):
    """Another try might cost more than is allowed."""
