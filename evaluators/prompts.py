"""Prompts and their YAML files."""

import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluators.errors import UserError
from evaluators.files import dump_yaml, read_yaml
from evaluators.plain_data import BIDI
from evaluators.presentation import AS_IS, LONGEST_MS, Presentation

SYSTEM = "You classify audio content."  # system message of the published study
SPECIAL = re.compile(r"<\|[^|>\s]{1,40}\|>")  # what ChatML-style tokenizers treat as control tokens


@dataclass(frozen=True)
class Prompt:
    """The words a model is asked with, and how it is given the clip.

    Attributes:
        text: The user's message, after the audio where `presentation` does not say otherwise.
        answers: Per label, in the task's order, the words that count as that answer.
        system: The system message, before the audio.
        both_orders: The options are scored in both orders and the probabilities averaged; of lettered options only.
        presentation: How the clip is given.
    """

    text: str
    answers: tuple[tuple[str, tuple[str, ...]], ...] = (("SPEECH", ("A",)), ("NONSPEECH", ("B",)))
    system: str = SYSTEM
    both_orders: bool = False
    presentation: Presentation = AS_IS

    def __repr__(self) -> str:
        """As a dataclass writes it; of a clip as it is as before there were presentations: runs are named by it."""
        names = ["text", "answers", "system", "both_orders"]
        names += ["presentation"] if self.presentation != AS_IS else []
        return f"Prompt({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over canonical JSON of everything that the model is shown, and its answers are read by."""
        parts: list[Any] = [self.text, self.answers, self.system]
        if self.both_orders:  # only then, so that older ids stay
            parts.append("both orders")
        if self.presentation != AS_IS:  # likewise
            parts.append(self.presentation.to_dict())
        raw = json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(raw.encode()).hexdigest()

    @property
    def prompt_id(self) -> str:
        """12 hex digits that name the prompt in every table."""
        return self.digest[:12]

    @property
    def shown(self) -> str:
        """The text as people are shown it: with how the clip is given, where that is not as it is."""
        return shown_text(self.text, self.given)

    @property
    def given(self) -> str:
        """How the clip is given, in words; "" for the clip as it is."""
        return "" if self.presentation == AS_IS else self.presentation.words

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in prompt files."""
        answers = {
            label: words[0] if len(words) == 1 else list(words) for label, words in self.answers
        }
        out: dict[str, Any] = {"text": self.text, "answers": answers, "system": self.system}
        if self.both_orders:
            out["both_orders"] = True
        if self.presentation != AS_IS:
            out["presentation"] = self.presentation.to_dict()
        return out


def shown_text(text: str, given: str) -> str:
    """A prompt's text behind how the clip is given, in words; "" of the clip as it is."""
    return f"[clip {given}] {text}" if given else text


QUESTION, OPTIONS = (
    "{question}",
    "{options}",
)  # where a clip's own are put, see `evaluators.choices`


def is_frame(prompt: Prompt) -> bool:
    """Whether the text has a place for options that each clip brings."""
    return OPTIONS in prompt.text


def exchanged(prompt: Prompt) -> Prompt | None:
    """The prompt with the answers of its two labels exchanged; None where it has more."""
    if len(prompt.answers) != 2:
        return None
    (first, own), (second, other) = prompt.answers
    return replace(prompt, answers=((first, other), (second, own)))


LONGEST_TEXT = 50_000  # characters of a prompt's words, and of its system message
MOST_WORDS = 1_000  # of a label's answers


def prompt_from(raw: Mapping[str, Any], labels: Sequence[str], where: str) -> Prompt:
    """A prompt from plain data; unknown keys, missing answers and values YAML took for something else are errors."""
    known = {"text", "answers", "system", "both_orders", "presentation"}
    unknown = sorted(set(raw) - known, key=str)
    if unknown:
        raise UserError(
            f"{where}: key {unknown[0]!r} is unknown; a prompt has text, answers and system"
        )
    both_orders = raw.get("both_orders", False)
    if not isinstance(both_orders, bool):
        raise UserError(f"{where}: both_orders is {both_orders!r}; expected true or false")
    text = raw.get("text")
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"{where}: text is {text!r}; expected the prompt's words as a quoted string"
        )
    if len(text) > LONGEST_TEXT or len(str(raw.get("system", ""))) > LONGEST_TEXT:
        raise UserError(
            f"{where}: the prompt has {len(text):,} characters; expected at most {LONGEST_TEXT:,}"
        )
    system = raw.get("system", SYSTEM)
    if not isinstance(system, str):
        raise UserError(f"{where}: system is {system!r}; expected a quoted string")
    given = raw.get("answers", dict(zip(labels, "ABCDEFGH", strict=False)))
    if not isinstance(given, Mapping) or set(given) != set(labels):
        raise UserError(
            f"{where}: answers are {given!r}; expected one entry for each of {', '.join(labels)}"
        )
    answers = []
    for label in labels:
        words = given[label] if isinstance(given[label], list) else [given[label]]
        if len(words) > MOST_WORDS:
            raise UserError(
                f"{where}: {label} has {len(words):,} answers; expected at most {MOST_WORDS:,}"
            )
        if not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise UserError(
                f"{where}: answer of {label} is {given[label]!r}; expected words in quotes "
                "(YAML reads a bare YES or NO as true or false)"
            )
        answers.append((label, tuple(words)))
    for ch in "".join([text, system, *(word for _, words in answers for word in words)]):
        if unicodedata.category(ch) == "Cs":
            raise UserError(
                f"{where}: the prompt holds a lone surrogate, which is no character; remove it"
            )
        if (unicodedata.category(ch) == "Cc" and ch not in "\n\t") or ch in BIDI:
            raise UserError(
                f"{where}: the prompt holds the control character U+{ord(ch):04X}, which could steer a terminal;"
                " remove it"
            )
    how = presentation_from(raw.get("presentation", {}), f"{where}: presentation")
    return Prompt(text, tuple(answers), system, both_orders, how)


def presentation_from(raw: Any, where: str) -> Presentation:
    """A presentation from plain data, as `Presentation.to_dict` gives it; an empty mapping is the clip as it is.

    Raises:
        UserError: An unknown key, a value that cannot be, or a level or a padding that nothing uses.
    """
    allowed: dict[str, tuple[Callable[[Any], bool], str]] = {
        "repeat_to_ms": (_milliseconds, f"a whole number of ms from 1 to {LONGEST_MS}"),
        "gain": (lambda v: v in ("peak", "rms"), "peak or rms"),
        "level_dbfs": (_level, "dB below full scale, a number from -80 to 0"),
        "pad_to_ms": (_milliseconds, f"a whole number of ms from 1 to {LONGEST_MS}"),
        "pad": (lambda v: v in ("silence", "noise"), "silence or noise"),
        "text_first": (lambda v: isinstance(v, bool), "true or false"),
    }
    if not isinstance(raw, Mapping) or not set(raw) <= set(allowed):
        raise UserError(f"{where} is {raw!r:.80}; expected a mapping of {', '.join(allowed)}")
    for name, value in raw.items():
        right, expected = allowed[name]
        if not right(value):
            raise UserError(f"{where}: {name} is {value!r:.40}; expected {expected}")
    if ("gain" in raw) != ("level_dbfs" in raw):
        raise UserError(f"{where} is {dict(raw)!r}; expected gain and level_dbfs together")
    if "pad" in raw and "pad_to_ms" not in raw:
        raise UserError(f"{where} is {dict(raw)!r}; expected pad_to_ms beside pad")
    level = float(raw.get("level_dbfs", 0.0)) + 0.0  # so that -20 and -20.0 are one, and 0 and -0.0
    return Presentation(**{**raw, "level_dbfs": level})


def _milliseconds(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LONGEST_MS


def _level(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -80 <= value <= 0


def read_presentations(path: Path) -> list[Presentation]:
    """The presentations of a file with the single key `presentations`, each once; the clip as it is need not stand.

    Raises:
        UserError: It is no such file, holds none, or one twice.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict) or set(raw) != {"presentations"} or not raw["presentations"]:
        raise UserError(
            f"{path}: expected the single key 'presentations' with a list of presentations"
        )
    entries = raw["presentations"]
    if not isinstance(entries, list):
        raise UserError(f"{path}: presentations are {entries!r:.40}; expected a list of mappings")
    found = [
        presentation_from(entry, f"{path}: presentation {number}")
        for number, entry in enumerate(entries, 1)
    ]
    if len(set(found)) < len(found):
        raise UserError(f"{path}: a presentation stands twice; remove one of them")
    return found


def read_prompt_entries(path: Path) -> list[tuple[dict[str, Any], str]]:
    """The entries of a prompt file, each with its place in words.

    Raises:
        UserError: It is no mapping with the single key `prompts`, or an entry is no mapping.
    """
    raw = read_yaml(path)
    if (
        not isinstance(raw, dict)
        or set(raw) != {"prompts"}
        or not isinstance(raw["prompts"], list)
        or not raw["prompts"]
    ):
        raise UserError(f"{path}: expected the single key 'prompts' with a list of prompts")
    for number, entry in enumerate(raw["prompts"], 1):
        if not isinstance(entry, dict):
            raise UserError(
                f"{path}: prompt {number} is {entry!r}; expected a mapping with the key text"
            )
    return [(entry, f"{path}: prompt {n}") for n, entry in enumerate(raw["prompts"], 1)]


def read_prompts(path: Path, labels: Sequence[str]) -> list[Prompt]:
    """Prompts of a prompt file, without decision rules: `evaluators.classifier.read_classifiers` reads those too.

    Raises:
        UserError: Unknown or repeated keys, no prompt, the same prompt twice, or a value of the wrong type.
    """
    rules = ("bias", "calibration")
    prompts = [
        prompt_from({k: v for k, v in entry.items() if k not in rules}, labels, where)
        for entry, where in read_prompt_entries(path)
    ]
    if len({p.digest for p in prompts}) < len(prompts):
        raise UserError(f"{path}: a prompt stands twice; remove one of them")
    return prompts


def dump_prompts(prompts: Iterable[Prompt]) -> str:
    """A prompt file's text."""
    return dump_yaml({"prompts": [p.to_dict() for p in prompts]})
