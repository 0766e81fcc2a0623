"""How a server wants its requests: what it refuses is left out or renamed, remembered, and logged once."""

import logging
import re
import threading
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

LEAST_ROOM = 200  # tokens of a reply below which it is not worth asking for
ROOM = ("max_tokens", "max_completion_tokens")
NAMES = {  # parameter -> how servers' sentences call it
    "max_tokens": "max_tokens|max_new_tokens",
    "max_completion_tokens": "max_completion_tokens",
    "temperature": "temperature",
    "response_format": "response_format|json[_ ]schema|json_object|structured output|guided|grammar",
    "reasoning_effort": "reasoning[_ .]effort|support thinking|support reasoning",
    "top_logprobs": "top_logprobs|max_logprobs|sample logprobs|logprobs",
    "logprob_token_ids": "logprob_token_ids",
}
SYSTEM = re.compile(
    r"(?i)system role|support (?:the )?['\"]?system|roles? must alternate|got ['\"]?system|developer instruction"
)
TOO_LONG = re.compile(
    r"(?i)context (?:length|size|window|limit)|context the overflows|exceed_context_size|prompt is too long"
    r"|too many tokens|input is too long|`inputs` tokens"
)
_FITS = [  # sentences that say how long a reply may be: the limit, and what the messages take of it
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"maximum context length is (?P<limit>\d+).*?\((?P<input>\d+) in the messages",
        r"maximum context length is (?P<limit>\d+).*?(?:request has|contains at least|contains) (?P<input>\d+) input",
        r"max_new_tokens` must be <= (?P<limit>\d+)\. Given: (?P<input>\d+) `?inputs",
        r"exceed context limit: (?P<input>\d+) \+ \d+ > (?P<limit>\d+)",
        r"supports at most (?P<limit>\d+) completion",
        r"max_(?:completion_)?tokens: \d+ > (?P<limit>\d+)",
        r"valid range of max_tokens is \[1, (?P<limit>\d+)\]",
        r"tokens\S* .*expected a value <= (?P<limit>\d+)",
        r"tokens\S* must be (?:less than or equal to|<=) `?(?P<limit>\d+)",
        r"OutputTokens .*to (?P<below>\d+) \(exclusive\)",
    )
]


class Dialect:
    """What one server takes of a request. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused: set[str] = set()
        self._no_system = False
        self._most: dict[str, int] = {}  # tokens of a reply, tokens listed

    def shape(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request as this server takes it; its room for the reply is called `max_tokens`."""
        with self._lock:
            out = {k: v for k, v in request.items() if k not in self._refused or k in ROOM}
            for name, most in self._most.items():
                if name in out:
                    out[name] = min(out[name], most)
            if "max_tokens" in out and "max_tokens" in self._refused:
                out["max_completion_tokens"] = out.pop("max_tokens")
            if self._no_system:
                out["messages"] = _without_system(out["messages"])
            return out

    def learn(
        self, told: str, named: str, request: Mapping[str, Any], sent: Mapping[str, Any]
    ) -> bool:
        """Whether the request is worth sending once more, in another shape than the one that was refused.

        Args:
            told: The server's words.
            named: The parameter that it names beside them, or an empty text.
            request, sent: The request, and its shape that was refused.
        """  # fmt: skip
        if self.shape(request) != sent:  # another thread has learned it meanwhile
            return True
        change = self._change(told, named, sent)
        if not change:
            return False
        log.info("the server's words: %r; %s from now on", told[:200], change)
        return True

    def _change(self, told: str, named: str, sent: Mapping[str, Any]) -> str:
        """What is changed, in words; empty where nothing can be."""
        with self._lock:
            has_system = any(m.get("role") == "system" for m in sent.get("messages", ()))
            if has_system and not self._no_system and SYSTEM.search(told):
                self._no_system = True
                return "the system message stands at the beginning of the user's"
            room = next((name for name in ROOM if name in sent), None)
            most = room_left(told)
            if room and most and not _input(told) and LEAST_ROOM <= most < sent[room]:
                self._most["max_tokens"] = most
                return f"a reply has {most} tokens at most"
            name = refused_parameter(told, named, sent)
            if name == "top_logprobs":  # without them there is nothing to score
                fewer = _fewer(told, sent[name])
                self._most |= {name: fewer} if fewer else {}
                return f"{fewer} tokens are listed" if fewer else ""
            if not name or name == "max_completion_tokens" or TOO_LONG.search(told):
                return ""  # of the two names for the room the other one has been tried
            self._refused.add(name)
            return "max_completion_tokens is sent for it" if name in ROOM else f"{name} is left out"


def refused_parameter(told: str, named: str, sent: Mapping[str, Any]) -> str:
    """The parameter of a request that a refusal is about, or an empty text."""
    for name in NAMES:
        if name in sent and re.match(rf"(?:body\.)?{name}\b", named):
            return name
    found = [
        (match.start(), name)
        for name, words in NAMES.items()
        if name in sent and (match := re.search(rf"(?<![A-Za-z_])(?:{words})(?![A-Za-z_])", told))
    ]
    return min(found)[1] if found else ""


def room_left(told: str) -> int | None:
    """Tokens that a reply may have by a server's sentence; None where it gives no numbers."""
    for pattern in _FITS:
        if match := pattern.search(told):
            found = match.groupdict()
            if found.get("below"):
                return int(found["below"]) - 1
            return int(found["limit"]) - int(found.get("input") or 0)
    return None


def _input(told: str) -> bool:
    """Whether the room is what this request's messages leave, and not the model's own limit."""
    first = next((m for p in _FITS if (m := p.search(told))), None)
    return first is not None and "input" in first.groupdict()


def _fewer(told: str, asked: int) -> int:
    """The largest number in a sentence that is below what was asked for, or 0."""
    return max((n for n in map(int, re.findall(r"\d{1,4}", told)) if 0 < n < asked), default=0)


def _without_system(messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same conversation, with what the system messages say at the beginning of the first user message."""
    system = "\n\n".join(str(m["content"]) for m in messages if m["role"] == "system")
    rest = [m for m in messages if m["role"] != "system"]
    first = next((m for m in rest if m["role"] == "user"), None)
    if not system.strip() or first is None:
        return rest
    content = first["content"]
    if isinstance(content, str):
        joined: Any = f"{system}\n\n{content}"
    else:
        joined = [{"type": "text", "text": system}, *content]
    return [{**m, "content": joined} if m is first else m for m in rest]
