"""What a check found, as every check says it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What a check found: a sentence each for what is seen with its likely cause, and for what to do about it.

    Attributes:
        level: ``broken`` where scores cannot be trusted, ``look`` where a person must judge.
        about: What was checked, in a word or two.
        text: What was found.
        fix: What to do; "" where nothing is.
    """

    level: Literal["ok", "look", "broken"]
    about: str
    text: str
    fix: str = ""
