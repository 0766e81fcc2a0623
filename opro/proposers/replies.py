"""Replies of a language model: the proposals in a text, each checked before it is used. The text is untrusted."""

import itertools
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from evaluators.errors import UserError
from evaluators.prompts import SPECIAL, Prompt, prompt_from
from evaluators.tasks import Task

MAX_BRACKETS = 100  # brackets of a reply that are tried as the start of its JSON
MAX_CHARACTERS = 500  # of a proposed prompt
MOST_WRAPPED = 4 * MAX_CHARACTERS  # with what stands round it
TEXTS = ("text", "prompt", "instruction", "question")  # names under which a model writes a prompt
LISTS = "prompts|candidates|instructions|proposals"
THOUGHTS = "think|thinking|thought|reasoning"
_JSON = json.JSONDecoder(strict=False)  # a line end within a text is no fault
_TALK = re.compile(  # is about prompts, whatever else it says
    r"(?i)```|</?ins>|\b(new|improved|revised) (prompt|instruction)s?\b|\bscore:|\bprompts? above\b"
)
_CHATTER = re.compile(  # may begin a prompt as well: "Note that the clip is short."
    r"(?i)^(here (is|are)\b|sure\b|certainly\b|of course\b|i (can|will|would|am|have)\b|as an ai\b|note that\b)"
)


def check_proposal(raw: Any, task: Task, known: set[str], where: str = "reply") -> Prompt | str:
    """A checked prompt, or the reason why it is refused.

    Args:
        raw: A prompt's text, or a mapping with text and, if they differ from the default, answers.
        known: Normalised texts already tried or proposed.
    """
    entry = {"text": raw} if isinstance(raw, str) else raw
    found = _text_of(entry) if isinstance(entry, Mapping) else None
    if found is None:
        return "no text"
    if len(found) > MOST_WRAPPED:
        return f"longer than {MAX_CHARACTERS} characters ({len(found)})"
    text = unwrap(plain(found))
    if not text:
        return "empty"
    if len(text) > MAX_CHARACTERS:
        return f"longer than {MAX_CHARACTERS} characters ({len(text)})"
    token = SPECIAL.search(text)
    if token is not None:
        return f"control token {token.group(0)!r}"
    if not all(ch.isprintable() or ch == "\n" for ch in text):
        return "control characters"
    if _TALK.search(text):
        return "talk about prompts instead of a prompt"
    answers = _answers_of(entry.get("answers"), text, task)
    given = {} if answers is None else {"answers": answers}
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
                if _CHATTER.search(text):
                    return "talk about prompts instead of a prompt"
                return f"does not offer the answer {word!r} of {label}"
    key = dedup_key(prompt)
    if key in known:
        return "already tried or proposed"
    known.add(key)
    return prompt


def reply_schema(task: Task) -> dict[str, Any]:
    """JSON schema of a reply with prompts, for servers that hold a model to one."""
    texts = {"type": "string"}
    entry = {
        "from": {"type": ["integer", "null"]},
        "change": texts,
        "text": texts,
        "answers": _closed(dict.fromkeys(task.labels, texts)),
    }
    prompts = {"type": "array", "items": _closed(entry)}
    return _closed({"analysis": texts, "prompts": prompts})


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def dedup_key(prompt: Prompt) -> str:
    """Texts that differ only in case, spaces or punctuation are the same prompt, if the clip is given alike."""
    given = f"|{prompt.given}" if prompt.given else ""
    return (
        re.sub(r"[\W_]+", " ", prompt.text).strip().casefold() + "|" + repr(prompt.answers) + given
    )


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
    """The proposals in a reply, in whatever form a model gives them. Empty if there are none.

    What a model thinks aloud is left out. Then, the first of these that is there: the last list under a key such as
    ``prompts``, with every whole entry where it was cut; the last list of prompts without a key; objects with a text,
    one after another; ``<INS>`` tags; ``[text]``, the form of the paper; a numbered list.
    """
    reply = _said(plain(reply))
    for read in (_keyed, _bare_list, _objects, _tagged, _bracketed, _numbered):
        if found := read(reply):
            return found
    return []


def _said(reply: str) -> str:
    """The reply without what was thought aloud; of one that was cut while it was thinking, what came before."""
    kept: list[str] = []
    end, thinking = 0, False
    for tag in re.finditer(rf"(?i)<(/?)(?:{THOUGHTS})>", reply):
        if tag[1]:
            if not thinking:  # some servers leave the opening tag out: all before was thought
                kept.clear()
            thinking = False
        elif not thinking:
            kept.append(reply[end : tag.start()])
            thinking = True
        end = tag.end()
    return "".join(kept) + ("" if thinking else reply[end:])


def _entries(reply: str, start: int) -> list[Any]:
    """The whole entries of a JSON list from `start` on, however it ends."""
    out: list[Any] = []
    while True:
        gap = re.compile(r"[\s,]*").match(reply, start)
        try:
            entry, start = _JSON.raw_decode(reply, gap.end() if gap else start)
        except (ValueError, RecursionError):
            return out
        out.append(entry)


def _keyed(reply: str) -> list[Any]:
    keys = re.finditer(rf'"(?:{LISTS})"\s*:\s*\[', reply)
    lists = [_usable(_entries(reply, m.end())) for m in itertools.islice(keys, MAX_BRACKETS)]
    return next((one for one in reversed(lists) if one), [])


def _bare_list(reply: str) -> list[Any]:
    found: list[Any] = []
    end = 0
    for match in itertools.islice(re.finditer(r"\[", reply), MAX_BRACKETS):
        if match.start() < end:
            continue  # within the last one, such as a list of answer words
        try:
            whole, stop = _JSON.raw_decode(reply, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(whole, list) and len(_usable(whole)) == len(whole) > 0:
            found, end = whole, stop
    return found


def _objects(reply: str) -> list[Any]:
    return _usable(objects(reply))


def objects(reply: str) -> list[Any]:
    """The whole JSON objects of a text that lie within no other one, in their order."""
    out: list[Any] = []
    end = 0
    for match in itertools.islice(re.finditer(r"\{", reply), MAX_BRACKETS):
        if match.start() < end:
            continue
        try:
            one, end = _JSON.raw_decode(reply, match.start())
        except (ValueError, RecursionError):
            continue
        out.append(one)
    return out


def _tagged(reply: str) -> list[Any]:
    parts = re.findall(r"(?is)<INS>(.*?)(?=</INS>|<INS>|\Z)", reply)
    return [part.strip() for part in parts if part.strip()]


def _bracketed(reply: str) -> list[Any]:
    out: list[Any] = []
    lines: list[str] = []  # of the brackets that are open
    for line in map(str.strip, reply.split("\n")):
        if lines or re.match(r"\[(?![\[{\"\d])", line):
            lines.append(line)
            if line.endswith("]"):
                out.append("\n".join(lines)[1:-1].strip())
                lines = []
    return [text for text in out if " " in text]


def _numbered(reply: str) -> list[Any]:
    """Entries counted from 1, each a line or more; options that a prompt counts are no list of prompts."""
    parts = re.split(r"(?m)^[ \t]*(?:\*\*)?(\d{1,2})[.)](?:\*\*)?\s+", reply)
    numbers, texts = parts[1::2], [text.strip() for text in parts[2::2]]
    counted = numbers == [str(n) for n in range(1, len(numbers) + 1)]
    return texts if counted and texts and all(" " in text for text in texts) else []


def _usable(entries: list[Any]) -> list[Any]:
    """Of entries those that may hold a prompt: texts of several words, and objects with a text."""
    return [
        e
        for e in entries
        if (isinstance(e, str) and " " in e.strip())
        or (isinstance(e, dict) and _text_of(e) is not None)
    ]


def _text_of(entry: Mapping[str, Any]) -> str | None:
    """The prompt of an object, under whichever name."""
    return next((entry[k] for k in TEXTS if isinstance(entry.get(k), str)), None)


def plain(text: str) -> str:
    """With plain blanks and line ends, whichever kind of space a model writes."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\u200b\u2060\ufeff]", "", text)
    return "".join(" " if ch == "\t" or unicodedata.category(ch) == "Zs" else ch for ch in text)


def _answers_of(raw: Any, text: str, task: Task) -> Any:
    """Answers by label, from whatever means one thing only; else `raw` as it is, for its sentence.

    A list goes by the labels' order; labels may be in small letters; words and labels may be exchanged; brackets and
    dots come off; a word takes the case that it has in the text.
    """
    if isinstance(raw, list) and len(raw) == len(task.labels):
        raw = dict(zip(task.labels, raw, strict=True))
    if not isinstance(raw, Mapping):
        return None
    label_of = {label.casefold(): label for label in task.labels}
    keys = {str(k).strip().casefold() for k in raw}
    values = {v.strip().casefold() for v in raw.values() if isinstance(v, str)}
    if keys != set(label_of) and values == set(label_of):
        raw = {v: k for k, v in raw.items()}
    return {
        label_of.get(str(k).strip().casefold(), k): _word_of(v, text) if isinstance(v, str) else v
        for k, v in raw.items()
    }


def _word_of(answer: str, text: str) -> str:
    word = answer.strip(" .,:;()[]{}\"'`*")
    if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text):
        return word
    other = re.search(rf"(?i)(?<!\w){re.escape(word)}(?!\w)", text) if word else None
    return other.group(0) if other else word
