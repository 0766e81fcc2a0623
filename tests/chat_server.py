"""A server on the loopback that speaks the OpenAI wire format over real HTTP, with faults on demand."""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text: str, finish: str = "stop") -> dict:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "test",
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        ],
    }


class Server:
    """Answers each request with the next fault of the script, then with `reply(request)` for ever."""

    def __init__(self, reply: Callable[[dict], str], script: list) -> None:
        self.reply, self.script = reply, list(script)
        self.requests: list[dict] = []
        self.keys: list[str] = []  # each request's Authorization header
        self.clients: set[tuple] = set()  # addresses that connections came from
        self.tokens: Callable[[str], list[int]] | None = (
            None  # what /tokenize answers, where there is one
        )
        self.url = ""


@contextmanager
def serve(reply: Callable[[dict], str], script: list = ()) -> Iterator[Server]:
    state = Server(reply, script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # 40 ms a reply otherwise

        def log_message(self, *args):
            pass

        def send(self, status: int, body: bytes, headers: dict | None = None) -> None:
            self.send_response(status)
            for name, value in {
                "content-type": "application/json",
                "content-length": str(len(body)),
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/tokenize":
                found = state.tokens and {"tokens": state.tokens(request["prompt"])}
                self.send(200 if found else 404, json.dumps(found or {"detail": "none"}).encode())
                return
            state.requests.append(request)
            state.clients.add(self.client_address)
            state.keys.append(self.headers.get("authorization", ""))
            fault = state.script.pop(0) if state.script else None
            if fault is None:
                answer = state.reply(request)  # a reply's text, a whole body, or a refusal
                if isinstance(answer, tuple):
                    self.send(answer[0], json.dumps({"error": {"message": answer[1]}}).encode())
                    return
                body = answer if isinstance(answer, dict) else completion(answer)
                self.send(200, json.dumps(body).encode())
            elif isinstance(fault, tuple):  # status, body, and perhaps headers
                self.send(*fault)
            elif isinstance(fault, int):
                self.send(
                    fault,
                    json.dumps(
                        {"error": {"message": "pretended", "type": "x", "code": fault}}
                    ).encode(),
                )
            elif fault == "retry-after":
                self.send(429, b'{"error": {"message": "slow down"}}', {"retry-after": "7"})
            elif fault == "half":
                self.send(200, json.dumps(completion("x")).encode()[:40])
            elif fault == "schema":
                self.send(200, b'{"hello": "world"}')
            elif fault == "list":
                self.send(200, b"[1, 2]")
            elif fault == "html":
                self.send(200, b"<html>busy</html>", {"content-type": "text/html"})
            elif fault == "empty":
                self.send(200, json.dumps({**completion("x"), "choices": []}).encode())
            elif fault == "null":
                self.send(200, json.dumps(completion(None)).encode())
            elif fault == "filter":
                self.send(200, json.dumps(completion("", "content_filter")).encode())
            elif fault == "huge":
                self.send(200, json.dumps(completion("x" * 3_000_000)).encode())
            elif fault == "slow":
                time.sleep(2.5)
                self.send(200, json.dumps(completion(state.reply(request))).encode())
            elif fault == "drip":  # a byte now and then, for ever
                self.send_response(200)
                self.send_header("content-length", "1000000")
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(600):
                        self.wfile.write(b" ")
                        time.sleep(0.1)
            elif fault == "drip header":
                with contextlib.suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
                    for _ in range(100):
                        self.wfile.write(b"y")
                        time.sleep(0.1)
                self.close_connection = True
            elif fault in ("cut", "stall"):  # the body ends, or stops, before its length
                self.send_response(200)
                self.send_header("content-length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.wfile.flush()
                time.sleep(2.5 if fault == "stall" else 0)
                self.close_connection = True
            elif fault == "reset":
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.connection.close()
                self.close_connection = True
            else:  # a reply's text
                self.send(200, json.dumps(completion(fault)).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *about: None  # a client that hung up
    # A short poll: the server stops at once, and not up to half a second later.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
