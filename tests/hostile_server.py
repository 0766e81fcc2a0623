"""A server on the loopback that breaks the rules of HTTP, of compression and of JSON: each case is a way to do so."""

import contextlib
import gzip
import json
import socket
import socketserver
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from chat_server import completion

PAUSE_S = 0.02  # between the bits of what drips
ENDS_S = 6.0  # what never ends by itself ends here, so that no test hangs
EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"  # of deflate: a stored block without a byte
GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@dataclass
class Talk:
    """One request, and the line to who sent it."""

    line: socket.socket
    request: dict
    begun: float = field(default_factory=time.monotonic)

    def say(self, *parts: bytes) -> None:
        for part in parts:
            self.line.sendall(part)

    def for_ever(self, part: bytes, pause_s: float = 0.0) -> None:
        """Says the same again and again."""
        while time.monotonic() < self.begun + ENDS_S:
            self.line.sendall(part)
            time.sleep(pause_s)

    def wait(self) -> None:
        """Says nothing more, until the other one hangs up."""
        self.line.settimeout(ENDS_S)
        with contextlib.suppress(OSError):
            self.line.recv(1)

    def reset(self) -> None:
        self.line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.line.close()


Case = Callable[[Talk], None]


def body(raw: bytes | dict, status: bytes = b"200 OK", *headers: bytes) -> Case:
    """A whole answer."""
    raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    head = b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: %d\r\n" % len(raw)
    return lambda talk: talk.say(head, *(one + b"\r\n" for one in headers), b"\r\n", raw)


def gzipped(part: bytes, times: int) -> Case:
    """A compressed answer of a part that is repeated: 1 kB stands for 1 MiB."""

    def case(talk: Talk) -> None:
        press = zlib.compressobj(9, zlib.DEFLATED, -15)
        raw = press.compress(part) + press.flush(zlib.Z_FULL_FLUSH)
        talk.say(OK, b"content-encoding: gzip\r\n\r\n", GZIP_HEAD, *[raw] * times)

    return case


def cut(talk: Talk) -> None:
    talk.say(OK, b"content-length: 1000\r\n\r\n", b'{"choices": [')


def reset(talk: Talk) -> None:
    talk.say(OK, b"content-length: 1000\r\n\r\n", b'{"choices": [')
    time.sleep(PAUSE_S)
    talk.reset()


def stalled(talk: Talk) -> None:
    talk.say(OK, b"content-length: 1000\r\n\r\n", b'{"choices": [')
    talk.wait()


def silent(talk: Talk) -> None:
    talk.wait()


def body_drips(talk: Talk) -> None:
    talk.say(OK, b"content-length: 100000\r\n\r\n")
    talk.for_ever(b" ", PAUSE_S)


def header_drips(talk: Talk) -> None:
    talk.say(b"HTTP/1.1 200 OK\r\nx: ")
    talk.for_ever(b"y", PAUSE_S)


def headers_without_end(talk: Talk) -> None:
    talk.say(b"HTTP/1.1 200 OK\r\n")
    talk.for_ever(b"x: " + b"y" * 1000 + b"\r\n")


def informs_for_ever(talk: Talk) -> None:
    talk.for_ever(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10, PAUSE_S)


def body_without_end(talk: Talk) -> None:
    talk.say(OK, b"\r\n")
    talk.for_ever(b" " * 65536)


def error_without_end(status: bytes) -> Case:
    def case(talk: Talk) -> None:
        talk.say(b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\n\r\n")
        talk.say(b'{"error": {"message": "pretended ')
        talk.for_ever(b"x" * 65536)

    return case


def error_stalls(status: bytes) -> Case:
    def case(talk: Talk) -> None:
        talk.say(b"HTTP/1.1 " + status + b"\r\ncontent-length: 1000\r\n\r\n", b'{"error": ')
        talk.wait()

    return case


def gzip_yields_nothing(talk: Talk) -> None:
    talk.say(OK, b"content-encoding: gzip\r\n\r\n", GZIP_HEAD)
    talk.for_ever(EMPTY_BLOCK, PAUSE_S)


def gzip_is_cut(talk: Talk) -> None:
    raw = gzip.compress(json.dumps(completion("fine")).encode())[:-20]
    body(raw, b"200 OK", b"content-encoding: gzip")(talk)


def chunk_is_cut(talk: Talk) -> None:
    talk.say(OK, b"transfer-encoding: chunked\r\n\r\n", b'ff\r\n{"choices"')


def chunk_is_none(talk: Talk) -> None:
    talk.say(OK, b"transfer-encoding: chunked\r\n\r\n", b"zz\r\n{}\r\n0\r\n\r\n")


def hangs_up(talk: Talk) -> None:
    talk.line.close()


CASES: dict[str, Case] = {
    "cut": cut,
    "reset": reset,
    "stalled": stalled,
    "silent": silent,
    "hangs up": hangs_up,
    "body drips": body_drips,
    "header drips": header_drips,
    "headers without end": headers_without_end,
    "1xx for ever": informs_for_ever,
    "body without end": body_without_end,
    "chunk cut": chunk_is_cut,
    "chunk that is none": chunk_is_none,
    "gzip cut": gzip_is_cut,
    "gzip that is none": body(b"no gzip at all", b"200 OK", b"content-encoding: gzip"),
    "gzip that yields nothing": gzip_yields_nothing,
    "gzip bomb": gzipped(b" " * 2**20, 1024),
    "encoding that is none": body(b"\x00\x01", b"200 OK", b"content-encoding: br, zstd"),
    "no HTTP": lambda talk: talk.say(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "101": lambda talk: talk.say(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    "204": lambda talk: talk.say(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"),
    "deep JSON": body(b"[" * 200_000),
    "deep objects": body(b'{"error":' * 900 + b"1" + b"}" * 900),
    "deep choices": body(b'{"choices":[{"message":{"content":' + b"[" * 500 + b"]" * 500 + b"}}]}"),
    "500, deep": body(b'{"error":' * 900 + b"1" + b"}" * 900, b"500 No"),
    "number of 5000 digits": body(b'{"choices": ' + b"9" * 5000 + b"}"),
    "error of code \u00b2": body({"error": {"code": "\u00b2", "message": "pretended"}}),
    "500 without end": error_without_end(b"500 No"),
    "500 stalls": error_stalls(b"500 No"),
}
REFUSALS: dict[str, Case] = {
    "400 without end": error_without_end(b"400 No"),
    "400 stalls": error_stalls(b"400 No"),
    "400, deep": body(b'{"error":' * 900 + b"1" + b"}" * 900, b"400 No"),
    "400, limit of 5000 digits": body(
        {"error": {"message": "maximum context length is " + "9" * 5000 + " (5 in the messages"}},
        b"400 No",
    ),
    "400 of <script": body(b"<script" * 9000, b"400 No"),
    "400 of sk-": body(b"sk-" * 21_000, b"400 No"),
    "400 of api_key": body(b"api_key " * 8000, b"400 No"),
}


class Hostile:
    """What came to the server."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.requests: list[dict] = []
        self.heads: list[str] = []
        self.url = ""


@contextmanager
def hostile(case: Case) -> Iterator[Hostile]:
    """Answers every request with the case, which may change meanwhile."""
    state = Hostile(case)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                raw = self.request.makefile("rb")
                head = b"".join(iter(lambda: raw.readline() or b"\r\n", b"\r\n")).decode("latin-1")
                lines = dict(x.lower().split(": ", 1) for x in head.splitlines() if ": " in x)
                request = json.loads(raw.read(int(lines.get("content-length", 0))) or b"{}")
                if "/tokenize" in head.splitlines()[0]:
                    body(b"{}", b"404 No")(Talk(self.request, request))
                    return
                state.heads.append(head)
                state.requests.append(request)
                state.case(Talk(self.request, request))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close, request_queue_size = True, False, 64

    with Server(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *about: None
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield state
        finally:
            server.shutdown()
