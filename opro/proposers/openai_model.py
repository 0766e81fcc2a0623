"""A language model behind an OpenAI-compatible endpoint."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluators.chat_client import ChatClient, ChatError, backoff
from evaluators.environment import language_server
from evaluators.server_words import shortened
from opro.proposers.language_model import (
    Message,
    Reply,
    SpentError,
    UnansweredError,
    most_tokens,
)

log = logging.getLogger(__name__)
TRIES = 5  # calls of one request before the run pauses
TIMEOUT_S = 300.0
LARGEST_REPLY = 200_000  # characters; more is no list of prompts
MOST_TOKENS = 2**24  # of one call that a server is believed: more than any model's context
MOST_COST = 1e4  # US dollars of one call that a server is believed
LONGEST_FINISH = 40  # characters of a reason for stopping
THOUGHT_ROOM = 16_384  # tokens of a reply that a model may think in first
HINTS = {
    None: "check --lm-base-url",
    401: "check OPENAI_API_KEY",
    403: "check that the key may use this model",
    404: "check --lm-model and --lm-base-url",
}


@dataclass(frozen=True)
class Thinking:
    """How much a model may think before it answers.

    Attributes:
        room: Tokens of a reply, its thoughts included; 0: what is asked for, and `THOUGHT_ROOM` once thoughts are seen.
        effort: Sent as ``reasoning_effort``; None: not sent.
    """

    room: int = 0
    effort: str | None = None


class OpenAIModel:
    """A model behind an OpenAI-compatible endpoint. Safe to use from several threads.

    The key comes from OPENAI_API_KEY (servers without keys take any), the base URL from the flag or OPENAI_BASE_URL.
    Time-outs, resets, 408, 429 (Retry-After honoured), 5xx and unreadable bodies are tried again with growing waits;
    a refused key, an unknown model or a rejected request are not, as trying again cannot help. A parameter that the
    server refuses by name is left out or renamed, see `ChatClient.chat`. A reply whose room was spent on thought is
    asked for once more, at once and with room for both.

    Args:
        name: Model name, as the server knows it.
        base_url: Base URL, or None for the environment's.
        prices: US dollars per million tokens in and out, if the server does not report its cost.
        wait: Called with seconds instead of sleeping, for tests.
        timeout: Seconds that a reply may take, from its request to its last byte.
    Attributes:
        thinking: Set it before the first call.
        on_loss: Called with (most tokens in, out, what happened) when a try failed that the server may charge. What it
            returns, if anything, is why there may be no further try.
        may_take: Called with (most tokens in, out) before a try with more room than was asked for. What it returns, if
            anything, is why there may be none.
    """

    def __init__(
        self,
        name: str,
        base_url: str | None = None,
        prices: tuple[float, float] | None = None,
        wait: Callable[[float], None] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        self.name = name
        self.prices = prices
        self.thinking = Thinking()
        self.on_loss: Callable[[int, int, str], str] = lambda tokens_in, tokens_out, why: ""
        self.may_take: Callable[[int, int], str] = lambda tokens_in, tokens_out: ""
        self._sleep = wait or time.sleep
        self._thinks = False  # thoughts were seen
        self._doubted: set[str] = set()  # numbers of the server that were told of
        self._client = ChatClient(language_server(base_url), timeout, HINTS)

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        temperature: float,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """See `LanguageModel`."""
        request = self._request(messages, temperature, schema)
        asked = sum(most_tokens(m.content) for m in messages)
        try:
            while True:
                room = self._room(max_tokens)
                if room > max_tokens and (why := self.may_take(asked, room)):
                    raise SpentError(why)
                reply = self._persist(request | {"max_tokens": room}, asked)
                if reply.text or reply.finish != "length":
                    return reply
                # All of the room went into thoughts.
                self._lost(reply.tokens_in, reply.tokens_out, f"{room} tokens of thoughts alone")
                if self._room(max_tokens) <= room:
                    raise ChatError(
                        f"all {room} tokens of a reply were thoughts; give more with --lm-reply-tokens N, or"
                        " --lm-effort low"
                    )
        except ChatError as error:
            raise UnansweredError(
                f"language model {self.name!r}: {error}", refused=not error.passes
            ) from None

    def _room(self, max_tokens: int) -> int:
        """Tokens of a reply, thoughts included."""
        if self.thinking.room:
            return self.thinking.room
        return max(max_tokens, THOUGHT_ROOM) if self._thinks else max_tokens

    def _request(
        self, messages: Sequence[Message], temperature: float, schema: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.name,
            "temperature": temperature,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
        }
        if self.thinking.effort is not None:
            request["reasoning_effort"] = self.thinking.effort
        if schema is not None:
            named = {"name": "reply", "strict": True, "schema": dict(schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": named}
        return request

    def _persist(self, request: Mapping[str, Any], asked: int) -> Reply:
        """A reply, which may be empty, after the tries that make sense."""
        import tenacity

        def failed(state: Any) -> None:
            error = state.outcome.exception()
            if isinstance(error, ChatError) and error.charged:
                self._lost(asked, request["max_tokens"], str(error))

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(TRIES),
            wait=_wait,
            sleep=self._sleep,
            reraise=True,
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, ChatError) and e.passes),
            after=failed,
            before_sleep=lambda state: log.warning(
                "language model: %s; trying again in %.0f s (%d of %d)",
                state.outcome.exception() if state.outcome else "",
                state.next_action.sleep if state.next_action else 0.0,
                state.attempt_number,
                TRIES,
            ),
        )
        return retrying(lambda: self._reply(self._client.chat(request), asked))

    def _lost(self, tokens_in: int, tokens_out: int, why: str) -> None:
        """Tells of a try that the server may charge.

        Raises:
            SpentError: There may be no further one.
        """
        if stop := self.on_loss(tokens_in, tokens_out, why):
            raise SpentError(stop)

    def _reply(self, raw: Mapping[str, Any], asked: int) -> Reply:
        try:
            choice = raw["choices"][0]
            finish, message = choice.get("finish_reason"), choice["message"]
            text = _text(message)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ChatError("the reply holds no choices", passes=True, charged=True) from None
        usage = self._usage(raw.get("usage"))
        cut, begun = finish == "length", (text or "").lstrip().startswith("<think>")
        if cut and (not (text or "").strip() or (begun and "</think>" not in str(text))):
            text = ""  # all of it were thoughts
        if not self._thinks and (begun or _thoughts(message, usage) or (cut and not text)):
            self._thinks = True
            log.info("language model: it thinks first; its replies have room for that from now on")
        if finish == "content_filter":
            text = ""
        if text is None:
            raise ChatError("the reply holds no text", passes=True, charged=True)
        tokens_in = _count(usage.get("prompt_tokens")) or asked
        tokens_out = _count(usage.get("completion_tokens")) or most_tokens(text)
        cost = _cost(usage.get("cost"))
        if cost is None and self.prices is not None:
            cost = (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6
        why = str(finish)[:LONGEST_FINISH]
        return Reply(text[:LARGEST_REPLY], tokens_in, tokens_out, cost, self.name, why)

    def _usage(self, told: Any) -> dict[str, Any]:
        """What a server tells of a call's tokens and cost, with a warning, once, where it cannot be."""
        usage: dict[str, Any] = told if isinstance(told, dict) else {}
        numbers = {n: usage.get(n) for n in ("prompt_tokens", "completion_tokens")}
        wrong = {n: v for n, v in numbers.items() if v not in (None, 0) and not _count(v)}
        cost = usage.get("cost")
        wrong |= {"cost": cost} if cost is not None and _cost(cost) is None else {}
        wrong |= {"usage": told} if told is not None and usage is not told else {}
        for name, value in wrong.items():
            if name not in self._doubted:
                self._doubted.add(name)
                log.warning(
                    "language model: the server tells %s %s, which cannot be; tokens count as the most that the texts"
                    " may take, and cost by OPRO_LM_PRICES",
                    name,
                    shortened(repr(value))[:60],
                )
        return usage


def _wait(state: Any) -> float:
    return backoff(state.outcome.exception(), state.attempt_number)


def _text(message: Mapping[str, Any]) -> str | None:
    """A message's content, or its text parts without thoughts; else a refusal, or what a tool is called with."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [p for p in content if isinstance(p, dict) and p.get("type") in ("text", None)]
        content = "".join(p["text"] for p in parts if isinstance(p.get("text"), str))
    if isinstance(content, str) and content.strip():
        return content
    if isinstance(message.get("refusal"), str):
        return str(message["refusal"])
    calls = message.get("tool_calls") or []
    given = [c["function"].get("arguments") for c in calls if isinstance(c.get("function"), dict)]
    if any(isinstance(one, str) for one in given):
        return "\n".join(one for one in given if isinstance(one, str))
    return content if isinstance(content, str) else None


def _thoughts(message: Mapping[str, Any], usage: Mapping[str, Any]) -> bool:
    """Whether a reply shows that its model thinks first."""
    details = usage.get("completion_tokens_details")
    counted = _count(details.get("reasoning_tokens")) if isinstance(details, dict) else 0
    return bool(counted or message.get("reasoning_content") or message.get("reasoning"))


def _count(value: Any) -> int:
    """Tokens that a server tells, or 0: it may tell anything."""
    return value if type(value) is int and 0 < value <= MOST_TOKENS else 0


def _cost(value: Any) -> float | None:
    """US dollars that a server tells, or None: it may tell Infinity, NaN, a text, or less than nothing."""
    return float(value) if type(value) in (int, float) and 0 <= value <= MOST_COST else None
