"""The wire to an OpenAI-compatible server, for the proposer and the audio endpoint alike.

One request, read within a deadline and a size, in the shape that this server takes (`dialect`); a fault is one sentence
with the server's own words and nothing secret (`server_words`), and says whether trying again may help.
"""

import base64
import collections
import contextlib
import email.utils
import functools
import http.client
import io
import json
import logging
import os
import selectors
import socket
import ssl
import time
import urllib.parse
import urllib.request
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
        try:
            port = url.port
        except ValueError:
            port = None
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(
                f"the server's address is {redacted(base_url or '')!r}; expected one like http://127.0.0.1:8000/v1"
            )
        key = key.strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError("the key holds characters that no key has; copy it once more")
        self.address = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"  # for people
        self.root = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
        self._url, self._host, self._port = url, url.hostname, port
        self._timeout, self._hints = timeout, hints
        self._secrets = [url.password or "", "" if key == "none" else key]
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "User-Agent": "opro-audio",  # some gateways refuse requests without one
        }
        for name, header in (
            ("OPENAI_ORG_ID", "OpenAI-Organization"),
            ("OPENAI_PROJECT_ID", "OpenAI-Project"),
        ):
            if os.environ.get(name):
                self._headers[header] = os.environ[name]
        self._proxy = self._find_proxy()
        self._idle: collections.deque[http.client.HTTPConnection] = collections.deque(maxlen=64)
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
                return self._checked(self.post("/chat/completions", sent))
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
        deadline = time.monotonic() + self._timeout
        base = "" if path.startswith("//") else self._url.path.rstrip("/")
        path = base + path.replace("//", "/") + (f"?{self._url.query}" if self._url.query else "")
        connection, sent = self._connection(), False
        try:
            connection.timeout = min(CONNECT_S, self._timeout)
            if connection.sock is None:
                connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(self._timeout)
            sent = True  # from here on the server may have it
            target = self.root + path if self._proxy and self._url.scheme == "http" else path
            connection.request("POST", target, json.dumps(body).encode(), self._headers)
            connection.response_class = functools.partial(_TimedResponse, deadline)  # type: ignore[assignment]
            response = connection.getresponse()
            refused = response.status >= 300
            raw = self._read(response, LARGEST_REFUSAL if refused else LARGEST_BODY, deadline)
        except (OSError, http.client.HTTPException, ChatError) as error:
            connection.close()
            raise self._broken(error, sent) from None
        except BaseException:
            connection.close()
            raise
        whole = not response.will_close and (response.isclosed() or response.length == 0)
        response.close()
        if whole:
            self._idle.append(connection)
        else:
            connection.close()
        if refused:
            raise self._refusal(
                response.status, raw, {k.lower(): v for k, v in response.getheaders()}
            )
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:  # a 200 whose body is no JSON
            what = f"the reply is not readable as JSON ({type(error).__name__})"
            raise ChatError(what, passes=True, charged=True) from None

    def _read(self, response: http.client.HTTPResponse, most: int, deadline: float) -> bytes:
        body = bytearray()
        while part := response.read1(2**16):
            body += part
            if len(body) > most and response.status >= 300:
                return bytes(body)  # of a refusal the beginning is enough
            if len(body) > most:
                what = f"the reply is larger than {most >> 20} MiB"
                raise ChatError(what, passes=True, charged=True)
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:  # the line ended before the body
            raise http.client.IncompleteRead(b"")
        return bytes(body)

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

    def _broken(self, error: Exception, sent: bool) -> ChatError:
        """What a fault of the line says."""
        if isinstance(error, ChatError):
            return error
        if isinstance(error, ssl.SSLCertVerificationError):
            return ChatError(f"the server's certificate is not trusted ({error.verify_message})")
        if isinstance(error, TimeoutError) and sent:
            what = f"no whole reply within {self._timeout:g} s"
            return ChatError(what, passes=True, charged=True)
        if sent:
            what = f"the reply broke off ({type(error).__name__})"
            return ChatError(what, passes=True, charged=True)
        what = "no connection to the server"
        if None in self._hints:
            what += f": {self._hints[None]}"
        return ChatError(what, passes=True)

    def _connection(self) -> http.client.HTTPConnection:
        """A connection that is open and idle, or a new one."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if connection.sock is not None and not _readable(connection.sock):
                return connection
            connection.close()  # the server has hung up meanwhile
        host, port, headers = self._proxy or (self._host, self._port, {})
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port)
        secure = http.client.HTTPSConnection(host, port, context=_trusted())
        if self._proxy:
            secure.set_tunnel(self._host, self._port or 443, headers)
        return secure

    def _find_proxy(self) -> tuple[str, int, dict[str, str]] | None:
        """Host, port and headers of the proxy that the environment names for this server."""
        found = urllib.request.getproxies().get(self._url.scheme)
        if not found or urllib.request.proxy_bypass(self._host):
            return None
        proxy = urllib.parse.urlsplit(found if "//" in found else f"http://{found}")
        if not proxy.hostname:
            return None
        headers = {}
        if proxy.username:
            user = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
            headers["Proxy-Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
            self._secrets.append(proxy.password or "")
            if self._url.scheme == "http":
                self._headers |= headers
        return proxy.hostname, proxy.port or 80, headers


def backoff(error: ChatError, number: int, first_s: float = 2.0) -> float:
    """Seconds to wait after the try of that number: what the server asks for, else growing ones."""
    asked = first_s * 2.0 ** (number - 1) if error.wait_s is None else error.wait_s
    return min(LONGEST_WAIT_S, asked)


class _TimedResponse(http.client.HTTPResponse):
    """A response whose every byte must come before a deadline: a socket's own time-out starts anew with each."""

    def __init__(self, deadline: float, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp.close()
        self.fp = io.BufferedReader(_Timed(sock, deadline))


class _Timed(io.RawIOBase):
    """The bytes of a socket, until a deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _readable(sock: socket.socket) -> bool:
    """Whether something has come, of an idle connection its end."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(0))


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Certificates of the system, and of certifi where it is installed."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


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
