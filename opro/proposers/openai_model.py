"""Language models that propose prompts: an OpenAI-compatible endpoint, or a transformers model in this process."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evaluators.errors import PauseError, UserError

log = logging.getLogger(__name__)
TRIES = 5  # calls of one request before the run pauses
LONGEST_WAIT_S = 60.0  # between two tries, whatever Retry-After asks for
TIMEOUT_S = 300.0
LARGEST_REPLY = 200_000  # characters; more is no list of prompts
LARGEST_BODY = 32 * 2**20  # bytes of a reply that are read at all


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
    """Answers a chat. Raises PauseError when it cannot, after the retries that make sense."""

    name: str

    def __call__(
        self, messages: Sequence[Message], *, temperature: float, max_tokens: int
    ) -> Reply:
        """One reply of at most so many tokens."""


@dataclass
class Ledger:
    """Calls, tokens and cost of a run, with the limits on them. Restored from the run's proposals on resume."""

    max_tokens: int | None = None
    max_cost: float | None = None
    prices: tuple[float, float] | None = None  # US dollars per million tokens in and out
    refused: int = 0  # proposals that could not be used
    lost: int = 0  # calls that may have been charged though no reply came
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def add(self, reply: Reply) -> None:
        """Counts a reply."""
        self.calls += 1
        self.tokens_in += reply.tokens_in
        self.tokens_out += reply.tokens_out
        self.cost += reply.cost or 0.0

    def lose(self, tokens_in: int, tokens_out: int) -> float:
        """Counts a call whose reply never came, at its worst case, since the server may charge it. Returns its cost."""
        cost = self._cost(tokens_in, tokens_out)
        self.lost += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.cost += cost
        return cost

    def spent(self, tokens_in: int, tokens_out: int) -> str:
        """Why no further call may be made, or an empty string. Assumes that the next one costs so much."""
        total = self.tokens_in + self.tokens_out
        if self.max_tokens is not None and total + tokens_in + tokens_out > self.max_tokens:
            return f"--max-tokens {self.max_tokens} leaves no room for another call ({total} spent)"
        worst = self._cost(tokens_in, tokens_out)
        if self.max_cost is not None and (
            self.cost >= self.max_cost or self.cost + worst > self.max_cost
        ):
            return f"--max-cost {self.max_cost} leaves no room for another call ({self.cost:.4f} spent)"
        return ""

    def _cost(self, tokens_in: int, tokens_out: int) -> float:
        if self.prices is not None:
            return (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6
        return 2 * self.cost / self.calls if self.calls else 0.0


def most_tokens(text: str) -> int:
    """What a text may cost at most: three ASCII characters a token in ordinary text, two tokens for any other one."""
    plain = sum(map(str.isascii, text))
    return plain // 3 + 1 + 2 * (len(text) - plain)


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
                self._sentence(state.outcome.exception()),
                state.next_action.sleep,
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
        cost = usage.get("cost")
        if not isinstance(cost, int | float) or not cost >= 0:
            cost = (
                (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6
                if self.prices
                else None
            )
        return Reply(text[:LARGEST_REPLY], tokens_in, tokens_out, cost, self.name, str(finish))

    def _body(self, messages: Sequence[Message], temperature: float, max_tokens: int) -> Any:
        """The reply as plain data, read bit by bit: the client's own time-out starts anew with every byte."""
        end = time.monotonic() + self._timeout
        body = bytearray()
        with self._client.chat.completions.with_streaming_response.create(
            model=self.name,
            temperature=temperature,
            max_tokens=max_tokens,
            messages=[{"role": m.role, "content": m.content} for m in messages],
        ) as response:  # type: ignore[misc]
            for part in response.iter_bytes():
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
        asked = getattr(getattr(error, "response", None), "headers", {}).get("retry-after")
        try:
            return min(LONGEST_WAIT_S, max(0.0, float(asked)))
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


class SpentError(Exception):
    """Another try might cost more than is allowed."""


class _BadReplyError(Exception):
    """A reply that is no chat completion."""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


class LocalModel:
    """A transformers chat model in this process: a directory with its weights in safetensors."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.name = str(folder)
        self._folder = folder
        self._seed = seed
        self._loaded: Any = None

    def __call__(
        self, messages: Sequence[Message], *, temperature: float, max_tokens: int
    ) -> Reply:
        """See `LanguageModel`. Sampling is seeded by the conversation, so a resumed run gets the same reply."""
        import hashlib

        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if self._loaded is None:
            model = AutoModelForCausalLM.from_pretrained(self._folder, use_safetensors=True)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self._loaded = AutoTokenizer.from_pretrained(self._folder), model.to(device).eval()
        tokenizer, model = self._loaded
        chat = [{"role": m.role, "content": m.content} for m in messages]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        digest = hashlib.sha256(f"{self._seed}|{messages!r}|{temperature}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:4], "big"))
        with torch.inference_mode():
            out = model.generate(
                **ids,
                max_new_tokens=max_tokens,
                do_sample=temperature > 0,
                temperature=temperature or None,
            )
        new = out[0, ids["input_ids"].shape[1] :]
        return Reply(
            tokenizer.decode(new, skip_special_tokens=True),
            int(ids["input_ids"].shape[1]),
            len(new),
            0.0,
            self.name,
            "stop",
        )


def connect(
    model: str | None, base_url: str | None, seed: int, max_cost: float | None
) -> LanguageModel | None:
    """The language model that flags and environment ask for, or None when none is configured.

    Raises:
        UserError: An endpoint without a model name, or `max_cost` without a way to know the cost.
    """
    if model and Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise UserError(
                f"--lm-model {model!r} is a directory without config.json; expected a transformers"
                " model or a model name"
            )
        return LocalModel(Path(model), seed)
    url = base_url or os.environ.get("OPENAI_BASE_URL")
    if not url and not os.environ.get("OPENAI_API_KEY"):
        if model:
            raise UserError(
                f"--lm-model {model!r} is no directory and no endpoint is configured; set"
                " OPENAI_API_KEY, or give --lm-base-url"
            )
        return None
    if not model:
        raise UserError(
            "an endpoint is configured but no model; give --lm-model NAME, or --proposer rewriter"
            " to do without"
        )
    prices = _prices()
    if max_cost is not None and prices is None and "openrouter" not in (url or ""):
        raise UserError(
            "--max-cost needs prices: set OPRO_LM_PRICES=IN,OUT (US dollars per million tokens), or"
            " use --max-tokens"
        )
    return OpenAIModel(model, url, prices)


def _prices() -> tuple[float, float] | None:
    text = os.environ.get("OPRO_LM_PRICES")
    if not text:
        return None
    try:
        price_in, price_out = (float(part) for part in text.split(","))
        if not (0 <= price_in < math.inf and 0 <= price_out < math.inf):
            raise ValueError
    except ValueError:
        raise UserError(
            f"OPRO_LM_PRICES is {text!r}; expected two numbers, US dollars per million tokens in"
            " and out, like 0.15,0.60"
        ) from None
    return price_in, price_out
