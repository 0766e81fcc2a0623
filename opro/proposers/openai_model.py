"""A language model behind an OpenAI-compatible endpoint."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from evaluators.errors import PauseError
from opro.proposers.language_model import Message, Reply, SpentError, most_tokens

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

log = logging.getLogger(__name__)
TRIES = 5  # calls of one request before the run pauses
LONGEST_WAIT_S = 60.0  # between two tries, whatever Retry-After asks for
TIMEOUT_S = 300.0
LARGEST_REPLY = 200_000  # characters; more is no list of prompts
LARGEST_BODY = 32 * 2**20  # bytes of a reply that are read at all
MOST_TOLD = 1e9  # tokens or US dollars of one call that a server is believed


class OpenAIModel:
    """A model behind an OpenAI-compatible endpoint.

    The key comes from OPENAI_API_KEY (servers without keys take any), the base URL from the flag or OPENAI_BASE_URL.
    Time-outs, resets, 408, 429 (Retry-After honoured), 5xx and unreadable bodies are tried again with growing waits;
    a refused key, an unknown model or a rejected request are not, as trying again cannot help.

    Args:
        name: Model name, as the server knows it.
        base_url: Base URL, or None for the environment's.
        prices: US dollars per million tokens in and out, if the server does not report its cost.
        wait: Called with seconds instead of sleeping, for tests.
        timeout: Seconds that a reply may take, from its request to its last byte.
    Attributes:
        on_loss: Called with (most tokens in, out, what happened) when a try failed that the server may charge. What it
            returns, if anything, is why there may be no further try.
    """

    def __init__(
        self,
        name: str,
        base_url: str | None = None,
        prices: tuple[float, float] | None = None,
        wait: Callable[[float], None] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        import openai

        self.name = name
        self.prices = prices
        self._openai = openai
        self._sleep = wait or time.sleep
        self._timeout = timeout
        self.on_loss: Callable[[int, int, str], str] = lambda tokens_in, tokens_out, why: ""
        self._client = openai.OpenAI(
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            base_url=base_url,
            timeout=timeout,
            max_retries=0,
        )

    def __call__(
        self, messages: Sequence[Message], *, temperature: float, max_tokens: int
    ) -> Reply:
        """See `LanguageModel`."""
        import tenacity

        asked = sum(most_tokens(m.content) for m in messages)

        def failed(state: Any) -> None:
            error = state.outcome.exception()
            if self._charged(error):
                why = self.on_loss(asked, max_tokens, self._sentence(error))
                if why:
                    raise SpentError(why)

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(TRIES),
            wait=self._wait,
            sleep=self._sleep,
            reraise=True,
            retry=tenacity.retry_if_exception(self._passing),
            after=failed,
            before_sleep=lambda state: log.warning(
                "language model: %s; trying again in %.0f s (%d of %d)",
                self._sentence(state.outcome.exception() if state.outcome else None),
                state.next_action.sleep if state.next_action else 0.0,
                state.attempt_number,
                TRIES,
            ),
        )
        try:
            return retrying(self._once, messages, temperature, max_tokens)
        except (self._openai.OpenAIError, _BadReplyError) as error:
            raise PauseError(
                f"language model {self.name!r}: {self._sentence(error)}; the same command goes on"
                " from here"
            ) from None

    def _once(self, messages: Sequence[Message], temperature: float, max_tokens: int) -> Reply:
        raw = self._body(messages, temperature, max_tokens)
        try:
            choice = raw["choices"][0]
            finish, text = choice.get("finish_reason"), choice["message"]["content"]
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _BadReplyError("the reply holds no choices") from None
        if finish == "content_filter":
            text = ""
        elif not isinstance(text, str):
            raise _BadReplyError("the reply holds no text")
        usage = raw.get("usage") if isinstance(raw.get("usage"), dict) else {}
        tokens_in = _count(usage.get("prompt_tokens")) or sum(
            most_tokens(m.content) for m in messages
        )
        tokens_out = _count(usage.get("completion_tokens")) or most_tokens(text)
        cost = _cost(usage.get("cost"))
        if cost is None and self.prices is not None:
            cost = (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6
        return Reply(text[:LARGEST_REPLY], tokens_in, tokens_out, cost, self.name, str(finish))

    def _body(self, messages: Sequence[Message], temperature: float, max_tokens: int) -> Any:
        """The reply as plain data, read bit by bit: the client's own time-out starts anew with every byte."""
        end = time.monotonic() + self._timeout
        body = bytearray()
        with self._client.chat.completions.with_streaming_response.create(
            model=self.name,
            temperature=temperature,
            max_tokens=max_tokens,
            messages=[
                cast("ChatCompletionMessageParam", {"role": m.role, "content": m.content})
                for m in messages
            ],
        ) as response:
            for part in _received(response.iter_bytes()):
                body += part
                if len(body) > LARGEST_BODY:
                    raise _BadReplyError(f"the reply is larger than {LARGEST_BODY >> 20} MiB")
                if time.monotonic() > end:
                    raise _BadReplyError(f"the reply was not complete after {self._timeout:.0f} s")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:  # a 200 whose body is no JSON
            raise _BadReplyError(
                f"the reply is not readable as JSON ({type(error).__name__})"
            ) from None

    def _charged(self, error: BaseException) -> bool:
        """Whether the server may charge a try that failed so: it had the request and did not refuse it."""
        if isinstance(error, _BadReplyError):
            return True
        connected = not type(error.__cause__).__name__.startswith("Connect")
        return isinstance(error, self._openai.APIConnectionError) and connected

    def _passing(self, error: BaseException) -> bool:
        status = getattr(error, "status_code", None)
        return isinstance(
            error,
            self._openai.APIConnectionError | _BadReplyError,
        ) or (isinstance(status, int) and (status in (408, 409, 425, 429) or status >= 500))

    def _wait(self, state: Any) -> float:
        error = state.outcome.exception()
        headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
        try:
            return min(LONGEST_WAIT_S, max(0.0, float(headers.get("retry-after", ""))))
        except (TypeError, ValueError):
            return float(min(LONGEST_WAIT_S, 2.0**state.attempt_number))

    def _sentence(self, error: BaseException | None) -> str:
        """What went wrong, without anything secret: never the request, its headers or the key."""
        status = getattr(error, "status_code", None)
        known = {
            400: "the request was rejected (400)",
            401: "the key was refused (401): check OPENAI_API_KEY",
            403: "access is forbidden (403): check that the key may use this model",
            404: "the model or the address is unknown (404): check --lm-model and --lm-base-url",
            429: "too many requests or no credit left (429)",
        }
        if status in known:
            return known[status]
        if status is not None:
            return f"the server answered {status}"
        if isinstance(error, self._openai.APITimeoutError):
            return "no reply in time"
        if isinstance(error, self._openai.APIConnectionError):
            return "no connection to the server: check --lm-base-url"
        return str(error) if isinstance(error, _BadReplyError) else type(error).__name__


class _BadReplyError(Exception):
    """A reply that is no chat completion."""


def _received(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The parts of a body. What its transport raises within it, the client does not translate."""
    try:
        yield from parts
    except Exception as error:
        raise _BadReplyError(f"the reply broke off ({type(error).__name__})") from None


def _count(value: Any) -> int:
    """Tokens that a server tells, or 0: it may tell anything."""
    return value if type(value) is int and 0 < value < MOST_TOLD else 0


def _cost(value: Any) -> float | None:
    """US dollars that a server tells, or None: it may tell Infinity, NaN, a text, or less than nothing."""
    return float(value) if type(value) in (int, float) and 0 <= value < MOST_TOLD else None
