"""How long prompts are: the limit on candidates, and the front of score against length."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluators.evaluator import Evaluator, prompt_tokens
from evaluators.prompts import Prompt

TOKENS, WORDS = "tokens", "words"
_WIDE = "\u2e80-\U0003ffff"  # scripts that are written without spaces, by and large


def words(prompt: Prompt) -> int:
    """Words of system message and text; of scripts without spaces each character is one.

    >>> words(Prompt("Is it speech?")), words(Prompt("\u6709\u4eba\u5728\u8bf4\u8bdd\u5417"))
    (3, 6)
    """
    return len(re.findall(rf"[{_WIDE}]|[^\s{_WIDE}]+", f"{prompt.system} {prompt.text}"))


def length_of(evaluator: Evaluator, prompt: Prompt) -> int:
    """Tokens of a prompt by the checkpoint's own tokenizer, words where it has none here."""
    tokens = prompt_tokens(evaluator, prompt)
    return words(prompt) if tokens is None else tokens


def unit_of(evaluator: Evaluator, prompt: Prompt) -> str:
    """What `length_of` counts."""
    return WORDS if prompt_tokens(evaluator, prompt) is None else TOKENS


@dataclass(frozen=True)
class Limit:
    """The longest that a candidate may be.

    Attributes:
        most: Tokens or words, whichever `unit` says.
        length: Of a prompt, with its system message.
    """

    most: int
    unit: str
    length: Callable[[Prompt], int]

    @classmethod
    def of(cls, evaluator: Evaluator, most: int, like: Prompt) -> "Limit":
        """The limit by an evaluator's tokenizer. `like` is any prompt."""
        return cls(most, unit_of(evaluator, like), lambda prompt: length_of(evaluator, prompt))

    def why_not(self, prompt: Prompt) -> str:
        """Why a prompt is no candidate; "" where it is."""
        length = self.length(prompt)
        if length <= self.most:
            return ""
        return f"has {length} {self.unit} with its system message, {self.most} are allowed"


def front(points: Sequence[tuple[int, float]]) -> list[int]:
    """Places of those (length, score) that no other one beats: as short and higher, or as good and shorter.

    Returns:
        The shortest first; of equal ones the first.
    """
    out: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not out or points[i][1] > points[out[-1]][1]:
            out.append(i)
    return out
