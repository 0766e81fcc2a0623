"""The wire to an OpenAI-compatible server, for the proposer and the audio endpoint alike.

One request, read within a deadline and a size, in the shape that this server takes (`dialect`); a fault is one sentence
with the server's own words and nothing secret (`server_words`), and says whether trying again may help.
"""

import contextlib
import email.utils
import json
import logging
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evaluators.dialect import LEAST_ROOM, TOO_LONG, Dialect, room_left
from evaluators.errors import UserError
from evaluators.server_words import own_words, redacted, shortened

log = logging.getLogger(__name__)

LARGEST_BODY = 32 * 2**20  # bytes of a reply that are read at all
LARGEST_REFUSAL = 64 * 2**10  # bytes of a refusal
LONGEST_WAIT_S = 60.0  # between two tries, whatever Retry-After asks for
CONNECT_S = 20.0
PASSING = (408, 409, 425, 429)  # with 5xx: what may be otherwise at the next try
OPENAI_URL = "https://api.openai.com/v1"
_SAID = {
    400: "the request was rejected (400)",
    401: "the key was refused (401)",
    403: "access is forbidden (403)",
    404: "the model or the address is unknown (404)",
    413: "the request is too large (413)",
    429: "too many requests or no credit left (429)",
}


@dataclass(eq=False)
class ChatError(Exception):
    """A request without a usable reply.

    Attributes:
        what: What went wrong, in words of ours.
        told: The server's own words, redacted and whole; may be empty.
        named: The parameter that the server names beside them.
        status: HTTP status, or the code of an error within a 200; None: no answer, or none that can be read.
        passes: Trying again may help.
        charged: The server had the request and did not refuse it: it may charge it.
        wait_s: Seconds that the server asks to wait before another try.
    """

    what: str
    told: str = ""
    named: str = ""
    status: int | None = None
    passes: bool = False
    charged: bool = False
    wait_s: float | None = None

    def __str__(self) -> str:
        return self.what + (f'; it says "{shortened(self.told)}"' if self.told else "")


class ChatClient:
    """A server that speaks the chat completions protocol. Safe to use from several threads.

    Proxies of the environment are used, redirects are not followed.

    Args:
        base_url: As in ``http://127.0.0.1:8000/v1``; None: OpenAI's.
        key: Sent as a bearer token.
        timeout: Seconds that a reply may take, from its request to its last byte.
        hints: By status what a person may check; None: when the server cannot be reached.
    """

    def __init__(
        self, base_url: str | None, key: str, timeout: float, hints: Mapping[int | None, str]
    ) -> None:
        url = urllib.parse.urlsplit(base_url or OPENAI_URL)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(
                f"the server's address is {redacted(base_url or '')!r}; expected one like http://127.0.0.1:8000/v1"
            )
        key = key.strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError("the key holds characters that no key has; copy it once more")
        import openai

        self.root = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
        self.address = f"{self.root}{url.path}"  # for people
        self._openai = openai
        self._timeout, self._hints = timeout, hints
        self._secrets = [url.password or "", "" if key == "none" else key]
        self._client = openai.OpenAI(
            api_key=key,
            base_url=self.address + (f"?{url.query}" if url.query else ""),
            timeout=openai.Timeout(timeout, connect=min(CONNECT_S, timeout)),
            max_retries=0,
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        self._dialect = Dialect()

    def chat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A chat completion as the server sent it. Its room for the reply is called `max_tokens`.

        A parameter that the server refuses by name is left out or renamed from then on. A reply that would not fit
        the model's context is made shorter once, where the refusal gives the numbers.

        Raises:
            ChatError: One try failed.
        """
        request, lowered = dict(request), False
        while True:
            sent = self._dialect.shape(request)
            try:
                return self._checked(self._completion(sent))
            except ChatError as error:
                if error.status in (None, 401, 403, *PASSING) or not error.told:
                    raise
                if self._dialect.learn(error.told, error.named, request, sent):
                    continue
                fits, room = room_left(error.told), request.get("max_tokens", 0)
                if lowered or fits is None or not LEAST_ROOM <= fits < room:
                    raise
                log.info("the server's words: %r; this reply has %d tokens", error.told, fits)
                request["max_tokens"], lowered = fits, True

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that comes back for JSON, from a path below the base URL; ``/`` twice: from the server's root.

        Raises:
            ChatError: One try failed.
        """
        path = self.root + path[1:] if path.startswith("//") else path
        with self._faults():
            return self._client.post(path, body=dict(body), cast_to=object)

    def _completion(self, body: Mapping[str, Any]) -> Any:
        """A chat completion, read bit by bit: the client's own time-out starts anew with every byte."""
        end, raw = time.monotonic() + self._timeout, bytearray()
        rest = {k: v for k, v in body.items() if k not in ("model", "messages")}
        create = self._client.chat.completions.with_streaming_response.create
        with (
            self._faults(),
            create(model=body["model"], messages=body["messages"], extra_body=rest) as response,
        ):
            for part in _received(response.iter_bytes()):
                raw += part
                if len(raw) > LARGEST_BODY:
                    what = f"the reply is larger than {LARGEST_BODY >> 20} MiB"
                    raise ChatError(what, passes=True, charged=True)
                if time.monotonic() > end:
                    raise _BrokenError from TimeoutError()
        return _parsed(bytes(raw))

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Raises ChatError for whatever the client raises."""
        refused = None
        try:
            yield
        except self._openai.APIStatusError as error:
            refused = error.response
        except (self._openai.APIConnectionError, _BrokenError) as error:
            raise self._broken(error.__cause__ or error) from None
        if refused is not None:
            headers = {k.lower(): v for k, v in refused.headers.items()}
            raise self._refusal(refused.status_code, refused.content[:LARGEST_REFUSAL], headers)

    def _checked(self, raw: Any) -> dict[str, Any]:
        """A reply that is an object and no error."""
        if not isinstance(raw, dict):
            raise ChatError("the reply is no JSON object", passes=True, charged=True)
        choices = raw.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        error = raw.get("error") or (first.get("error") if isinstance(first, dict) else None)
        if not error:
            return raw
        told = own_words(json.dumps({"error": error}).encode(), self._secrets)
        code = error.get("code") if isinstance(error, dict) else None
        if isinstance(code, int | str) and str(code).isdigit() and 400 <= int(code) < 600:
            raise self._refusal(int(code), json.dumps({"error": error}).encode(), {})
        what = "the reply is an error"
        raise ChatError(what, told, _named({"error": error}), 200, passes=True, charged=True)

    def _refusal(self, status: int, body: bytes, headers: Mapping[str, str]) -> ChatError:
        """What a status says, with the server's own words."""
        what = _SAID.get(status, f"the server answered {status}")
        if status in self._hints:
            what += f": {self._hints[status]}"
        told = own_words(body, self._secrets)
        if status < 400:
            told = redacted(f"go to {headers.get('location', '')}", self._secrets)
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            parsed = None
        spent = b"insufficient_quota" in body
        too_long = bool(TOO_LONG.search(told)) or b"exceed_context_size" in body
        passes = (status in PASSING and not spent) or (status >= 500 and not too_long)
        named, wait_s = _named(parsed), _retry_after(headers)
        return ChatError(what, told, named, status, passes, wait_s=wait_s)

    def _broken(self, cause: BaseException) -> ChatError:
        """What a fault of the line says."""
        kind = type(cause).__name__  # the transport's module has another name in each version
        if kind in ("ConnectError", "ConnectTimeout", "ProxyError"):
            if "CERTIFICATE_VERIFY_FAILED" in str(cause):
                return ChatError("the server's certificate is not trusted")
            hint = f": {self._hints[None]}" if None in self._hints else ""
            return ChatError(f"no connection to the server{hint}", passes=True)
        if kind.endswith(("Timeout", "TimeoutError")):
            what = f"no whole reply within {self._timeout:g} s"
        else:
            what = f"the reply broke off ({kind})"
        return ChatError(what, passes=True, charged=True)


def backoff(error: ChatError, number: int, first_s: float = 2.0) -> float:
    """Seconds to wait after the try of that number: what the server asks for, else growing ones."""
    asked = first_s * 2.0 ** (number - 1) if error.wait_s is None else error.wait_s
    return min(LONGEST_WAIT_S, asked)


class _BrokenError(Exception):
    """A body broke off; its cause says why."""


def _received(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The parts of a body. What the transport raises within it, the client does not translate."""
    try:
        yield from parts
    except Exception as error:
        raise _BrokenError from error


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:  # a 200 whose body is no JSON
        what = f"the reply is not readable as JSON ({type(error).__name__})"
        raise ChatError(what, passes=True, charged=True) from None


def _named(raw: Any) -> str:
    """The parameter that an error's body names."""
    for one in _objects(raw):
        for key in ("param", "parameter"):
            if isinstance(one.get(key), str):
                return str(one[key])
    return ""


def _objects(raw: Any) -> Iterator[dict[str, Any]]:
    """An error's object, and what it holds."""
    if isinstance(raw, list) and raw:
        yield from _objects(raw[0])
    if isinstance(raw, dict):
        yield raw
        yield from _objects(raw.get("error"))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: a number, or a date."""
    asked = headers.get("retry-after")
    if not asked:
        return None
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(LONGEST_WAIT_S, max(0.0, seconds)) if seconds == seconds else None
