"""Replies of a language model: the proposals in a text, each checked before it is used. The text is untrusted."""

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from evaluators.errors import UserError
from evaluators.prompts import SPECIAL, Prompt, prompt_from
from evaluators.tasks import Task

MAX_BRACKETS = 100  # brackets of a reply that are tried as the start of its JSON
MAX_CHARACTERS = 500  # of a proposed prompt
_CHATTER = re.compile(
    r"(?i)^(here (is|are)\b|sure\b|certainly\b|of course\b|i (can|will|would|am|have)\b|as an"
    r" ai\b|note that\b)"
    r"|```|</?ins>|\b(new|improved|revised) (prompt|instruction)s?\b|\bscore:|\{\"|\bprompts?"
    r" above\b"
)


def check_proposal(raw: Any, task: Task, known: set[str], where: str = "reply") -> Prompt | str:
    """A checked prompt, or the reason why it is refused.

    Args:
        raw: A prompt's text, or a mapping with text and, if they differ from the default, answers.
        known: Normalised texts already tried or proposed.
    """
    entry = {"text": raw} if isinstance(raw, str) else raw
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str):
        return "no text"
    text = unwrap(entry["text"])
    if not text:
        return "empty"
    if len(text) > MAX_CHARACTERS:
        return f"longer than {MAX_CHARACTERS} characters ({len(text)})"
    token = SPECIAL.search(text)
    if token is not None:
        return f"control token {token.group(0)!r}"
    if not all(ch.isprintable() or ch == "\n" for ch in text):
        return "control characters"
    if _CHATTER.search(text):
        return "talk about prompts instead of a prompt"
    answers = entry.get("answers")
    given = {}
    if isinstance(answers, Mapping):
        given["answers"] = {
            k: v.strip(" .):") if isinstance(v, str) else v for k, v in answers.items()
        }
    try:
        prompt = prompt_from({"text": text, **given}, task.labels, where)
    except UserError as error:
        return str(error)
    if len({w.casefold() for _, words in prompt.answers for w in words}) < sum(
        len(words) for _, words in prompt.answers
    ):
        return "one answer stands for two classes"
    for label, words in prompt.answers:
        for word in words:
            if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text):
                return f"does not offer the answer {word!r} of {label}"
    key = dedup_key(prompt)
    if key in known:
        return "already tried or proposed"
    known.add(key)
    return prompt


def dedup_key(prompt: Prompt) -> str:
    """Texts that differ only in case, spaces or punctuation are the same prompt."""
    return re.sub(r"[\W_]+", " ", prompt.text).strip().casefold() + "|" + repr(prompt.answers)


def unwrap(text: str) -> str:
    """The prompt without the wrapping that models put round it: tags, quotes, a leading label or number."""
    text = text.strip()
    inner = re.search(r"<INS>(.*?)</INS>", text, re.DOTALL | re.IGNORECASE)
    text = inner.group(1).strip() if inner else text
    text = re.sub(
        r"^(?:\d+[.)]\s+|[-*]\s+)?(?:\*\*)?(?i:prompt|instruction|text)(?:"
        r" \d+)?(?:\*\*)?:(?:\*\*)?\s*",
        "",
        text,
    )
    while (
        len(text) > 1
        and not text.startswith("```")
        and (text[0], text[-1]) in {('"', '"'), ("'", "'"), ("`", "`"), ("“", "”")}
    ):
        text = text[1:-1].strip()
    return text


def parse(reply: str) -> list[Any]:
    """The proposals in a reply: a JSON object or list anywhere in it, or <INS> tags. Empty if there is none."""
    decoder = json.JSONDecoder()
    for match in itertools.islice(re.finditer(r"[\[{]", reply), MAX_BRACKETS):
        try:
            found, _ = decoder.raw_decode(reply, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            found = found.get("prompts", [found] if "text" in found else None)
        if isinstance(found, list) and found and all(isinstance(e, str | dict) for e in found):
            return found
    return re.findall(r"<INS>.*?</INS>", reply, re.DOTALL | re.IGNORECASE)
