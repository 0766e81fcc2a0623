"""The wire to an OpenAI-compatible server, for the proposer and the audio endpoint alike.

One request, read within a deadline and a size, in the shape that this server takes (`dialect`); a fault is one sentence
with the server's own words and nothing secret (`server_words`), and says whether trying again may help.
"""

import asyncio
import email.utils
import functools
import json
import logging
import re
import threading
import time
import urllib.parse
import weakref
import zlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from evaluators.dialect import LEAST_ROOM, TOO_LONG, Dialect, room_left
from evaluators.environment import Server, is_secret, secrets
from evaluators.errors import UserError
from evaluators.server_words import own_words, parsed_body, redacted, shortened

log = logging.getLogger(__name__)

LARGEST_BODY = 4 * 2**20  # bytes of a reply that are read at all, packed or unpacked
LARGEST_REFUSAL = 64 * 2**10  # bytes of a refusal
LONGEST_WAIT_S = 60.0  # between two tries, whatever Retry-After asks for
CONNECT_S = 20.0
PASSING = (408, 409, 425, 429)  # with 5xx: what may be otherwise at the next try
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

    Proxies of the environment are used, redirects are not followed: the key would go to another place.

    Args:
        server: Where requests go, and with which key.
        timeout: Seconds that a request may take, from looking up the server's name to the last byte of its reply.
        hints: By status what a person may check; None: when the server cannot be reached.
    Raises:
        UserError: What the environment says of proxies and certificates cannot be used.
    """

    def __init__(self, server: Server, timeout: float, hints: Mapping[int | None, str]) -> None:
        import httpx2

        url = urllib.parse.urlsplit(server.url)
        self.root = f"{url.scheme}://{url.netloc}"
        self.address = f"{self.root}{url.path}"  # for people
        self._chat_url = f"{self.address.rstrip('/')}/chat/completions" + (
            f"?{url.query}" if url.query else ""
        )
        self._timeout, self._hints = timeout, hints
        self._secrets = secrets() + ([server.key] if is_secret(server.key) else [])
        headers = {
            "authorization": f"Bearer {server.key}",
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "identity",  # what is compressed may unpack to anything
        }
        try:
            httpx2.URL(self._chat_url)
            self._http = httpx2.AsyncClient(
                headers=headers,
                follow_redirects=False,
                timeout=httpx2.Timeout(None, connect=min(CONNECT_S, timeout)),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
            )
        except (httpx2.InvalidURL, ValueError, ImportError, OSError) as error:
            raise UserError(
                f"no connection to {self.address} can be set up ({type(error).__name__}); check the address, and"
                " HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, no_proxy, SSL_CERT_FILE and SSL_CERT_DIR in the environment"
            ) from None
        weakref.finalize(self, _closed, self._http)
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
                return self._checked(self._sent(self._chat_url, sent))
            except ChatError as error:
                if error.status in (None, 401, 403, *PASSING) or not error.told:
                    raise
                if self._dialect.learn(error.told, error.named, request, sent):
                    continue
                fits, room = room_left(error.told), request.get("max_tokens", 0)
                if lowered or fits is None or not LEAST_ROOM <= fits < room:
                    raise
                log.info("the server's words: %r; this reply has %d tokens", error.told[:200], fits)
                request["max_tokens"], lowered = fits, True

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that comes back for JSON, from a path below the server's root.

        Raises:
            ChatError: One try failed.
        """
        return self._sent(self.root + path, body)

    def _sent(self, url: str, body: Mapping[str, Any]) -> Any:
        """The JSON of a reply, whatever goes wrong on its way.

        Raises:
            ChatError: There is none.
        """
        answer, fault = _Answer(), None
        try:
            _wait(self._exchange(url, json.dumps(body).encode(), answer))
        except Exception as error:  # whatever transport, compression or event loop raise
            fault = error
        if answer.status is not None and not 200 <= answer.status < 300:
            raise self._refusal(answer.status, bytes(answer.raw), answer.headers)
        if fault is not None:
            raise self._broken(fault, answer.left) from None
        try:
            return parsed_body(bytes(answer.raw), self._secrets)
        except ValueError as error:  # a 200 whose body is no JSON
            what = f"the reply is not readable as JSON ({type(error).__name__})"
            raise ChatError(what, passes=True, charged=True) from None

    async def _exchange(self, url: str, content: bytes, answer: "_Answer") -> None:
        """Sends a request and reads the answer, within the deadline and the limits on its size."""
        ask = self._http.stream("POST", url, content=content, extensions={"trace": answer.trace})
        async with asyncio.timeout(self._timeout), ask as response:
            answer.headers = {k.lower(): v for k, v in response.headers.items()}
            answer.status = response.status_code
            limit = LARGEST_BODY if response.is_success else LARGEST_REFUSAL
            unpack = _unpacker(answer.headers.get("content-encoding", ""))
            received = 0
            async for part in response.aiter_raw():
                received += len(part)
                answer.raw += unpack(part, limit + 1 - len(answer.raw))
                if max(received, len(answer.raw)) > limit:
                    del answer.raw[limit:]
                    raise _UnreadError(f"the reply is larger than {LARGEST_BODY >> 20} MiB")

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
        code = str(error.get("code")) if isinstance(error, dict) else ""
        if re.fullmatch("[45][0-9]{2}", code):
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
            parsed = parsed_body(body, self._secrets)
        except ValueError:
            parsed = None
        spent = b"insufficient_quota" in body
        too_long = bool(TOO_LONG.search(told)) or b"exceed_context_size" in body
        passes = (status in PASSING and not spent) or (status >= 500 and not too_long)
        named, wait_s = _named(parsed), _retry_after(headers)
        return ChatError(what, told, named, status, passes, wait_s=wait_s)

    def _broken(self, fault: Exception, left: bool) -> ChatError:
        """What a fault of the line says. What never left cannot be charged."""
        kind = type(fault).__name__
        if "CERTIFICATE_VERIFY_FAILED" in str(fault):
            return ChatError("the server's certificate is not trusted")
        if isinstance(fault, _UnreadError):
            what = str(fault)
        elif not left:
            hint = f": {self._hints[None]}" if None in self._hints else ""
            what = f"no connection to the server{hint}"
        elif isinstance(fault, TimeoutError) or kind.endswith("Timeout"):
            what = f"no whole reply within {self._timeout:g} s"
        else:
            what = f"the reply broke off ({kind})"
        return ChatError(what, passes=True, charged=left)


@dataclass
class _Answer:
    """What has come back so far.

    Attributes:
        left: The request has begun to leave this process, to the server or a proxy that passes it on.
    """

    left: bool = False
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytearray = field(default_factory=bytearray)

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Hears from the transport what it does."""
        if event.endswith("send_request_headers.started"):
            self.left |= info["request"].method != b"CONNECT"  # asks a proxy for a tunnel


class _UnreadError(Exception):
    """A reply that is not read to its end; says why."""


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
    """What takes a part of a body and the most bytes that it may become."""
    if encoding.strip().lower() in ("", "identity"):
        return lambda part, most: part
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        shown = redacted(encoding)[:40]
        raise _UnreadError(f"the reply is encoded as {shown!r}, which was not asked for")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # knows both by their beginning

    def unpack(part: bytes, most: int) -> bytes:
        try:
            return inflate.decompress(part, max(1, most))
        except zlib.error:
            raise _UnreadError("the reply broke off: its compression is damaged") from None

    return unpack


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all clients, in a thread of its own: a deadline there covers all that a request waits for."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="requests", daemon=True).start()
    return loop


def _wait(work: Coroutine[Any, Any, None]) -> None:
    """Waits for work of the loop, which ends when its caller is interrupted."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        future.result()
    finally:
        future.cancel()


def _closed(client: Any) -> None:
    asyncio.run_coroutine_threadsafe(client.aclose(), _loop())


def backoff(error: ChatError, number: int, first_s: float = 2.0) -> float:
    """Seconds to wait after the try of that number: what the server asks for, else growing ones."""
    asked = first_s * 2.0 ** (number - 1) if error.wait_s is None else error.wait_s
    return min(LONGEST_WAIT_S, asked)


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
    asked = headers.get("retry-after", "")[:100]
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
