"""A server's own words about a fault: found in whatever body it sends, without anything secret, fit for one line."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

LONGEST = 200  # characters that are shown
MOST_WORDS = 4000  # characters of a refusal that are looked through
DEEPEST = 40  # lists and objects within one another
HIDDEN = "***"
_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',;]+"), r"\1 " + HIDDEN),
    (re.compile(r"(?<=://)[^/\s@]+@"), HIDDEN + "@"),  # user:password@ of an address
    (
        re.compile(r"(?i)\b(api[-_ ]?key|password|passwd|secret|authorization)([\"']?\s*[:=]\s*[\"']?)[^\s\"',;}]+"),
        r"\1\2" + HIDDEN,
    ),
    (re.compile(r"\b(?:sk|pk|rk|hf|gsk|xai|ghp|nvapi|AIza|AKIA)[-_]?[\w*-]*[\d*][\w*-]{3,}"), HIDDEN),
)  # fmt: skip
_ESCAPED = re.compile(r"\\u([0-9A-Fa-f]{4})")  # in JSON that was cut, and so is text
_RUN = re.compile(r"[A-Za-z0-9+/_=-]{20,}")


def own_words(body: bytes, secrets: Sequence[str] = ()) -> str:
    """What the body of a refusal says, as printable text on one line; empty where it says nothing.

    Args:
        body: JSON in any of the shapes that servers use, or text, or HTML.
        secrets: Texts that must not be shown, such as the key.
    """
    try:
        text = " ".join(_sentences(parsed_body(body, secrets)))
    except ValueError:
        text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), body.decode("utf-8", "replace"))
        text = _hidden(text, _longest_first(secrets))[:MOST_WORDS]
        text = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<[^>]{0,500}>", " ", text)
    return redacted(text, secrets)


def parsed_body(body: bytes, secrets: Sequence[str] = ()) -> Any:
    """JSON of a server as plain data, with three stars for each secret in its texts.

    Args:
        body: Bounded by who has read it.
    Raises:
        ValueError: It is no JSON, or nested more than `DEEPEST` deep.
    """
    try:
        return _clean(json.loads(body), _longest_first(secrets), DEEPEST)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None


def _clean(raw: Any, secrets: Sequence[str], deepest: int) -> Any:
    """Plain data without the secrets; its lists are changed, for a copy would double what they take."""
    if isinstance(raw, str):
        return _hidden(raw, secrets)
    if isinstance(raw, list | dict) and not deepest:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if isinstance(raw, list):
        for i, one in enumerate(raw):
            raw[i] = _clean(one, secrets, deepest - 1)
        return raw
    if isinstance(raw, dict):
        return {_hidden(k, secrets): _clean(v, secrets, deepest - 1) for k, v in raw.items()}
    return raw


def _longest_first(secrets: Sequence[str]) -> list[str]:
    """A secret that holds another one must go before it."""
    return sorted(filter(None, secrets), key=len, reverse=True)


def _hidden(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def redacted(text: str, secrets: Sequence[str] = ()) -> str:
    """A text on one line of printable characters, with three stars for each key, password or long run of base64.

    At most `MOST_WORDS` characters of it: in a longer one the searches would take minutes.
    """
    text = _hidden(text, _longest_first(secrets))[:MOST_WORDS]
    text = "".join(ch if ch.isprintable() else "?" for ch in " ".join(text.split()))
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return _RUN.sub(_hidden_if_random, text)


def shortened(text: str) -> str:
    """At most `LONGEST` characters of a text."""
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _hidden_if_random(found: re.Match[str]) -> str:
    """Names of models are made of short words; keys and base64 hold a long mixed piece."""
    for piece in re.split(r"[-_/]", found[0]):
        mixed = any(map(str.isdigit, piece)) and any(map(str.isalpha, piece))
        if len(piece) >= (16 if mixed else 40):
            return HIDDEN
    return found[0]


def _sentences(raw: Any, depth: int = 0) -> Iterator[str]:
    """The messages in a body: under ``error``, ``message``, ``detail`` and ``msg``, nested or in lists."""
    if depth > 6:
        return
    if isinstance(raw, str):
        try:  # Mistral and gateways send JSON in a text
            inner = parsed_body(raw.encode()) if raw.lstrip()[:1] in ("{", "[") else None
        except ValueError:
            inner = None
        if isinstance(inner, dict | list) and (found := list(_sentences(inner, depth + 1))):
            yield from found
        elif raw.strip():
            yield raw
    elif isinstance(raw, list):
        for one in raw[:5]:
            yield from _sentences(one, depth + 1)
    elif isinstance(raw, dict):
        where = raw.get("loc")  # of pydantic: the parameter that a message is about
        place = ".".join(str(part) for part in where[1:]) if isinstance(where, list) else ""
        for key in ("error", "message", "detail", "msg"):
            found = list(_sentences(raw.get(key), depth + 1))
            if found:
                yield from (f"{place}: {one}" if place else one for one in found)
                return
