"""Requests under way at once: what is learned against every fixed number, on stand-in servers on the loopback.

python tests/bench_endpoint.py [--seconds 6]

Each server runs in a process of its own and answers with log-probabilities like an audio endpoint. `slots` works on so
many requests at once and lets the others wait; `busy` refuses those with 503; `rate` refuses with 429 what exceeds a
rate; `latency` takes its time whatever comes. Shown are answers per second, and what is reached of the best fixed one.
"""

import argparse
import json
import multiprocessing
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from common import ROOT  # noqa: F401  # the checkout's packages before installed ones

from evaluators.endpoint import Endpoint, _Call
from evaluators.throttle import Throttle

FIXED = (1, 2, 4, 8, 16, 32, 64)
KINDS = {
    "slots": "8 slots of 40 ms, the others wait",
    "busy": "8 slots of 40 ms, 503 beyond",
    "rate": "120 a second and bursts of 10, 20 ms, 429 beyond",
    "latency": "150 ms whatever comes",
}
ENTRIES = [{"token": t, "logprob": p, "bytes": None} for t, p in (("A", -0.3), ("B", -1.4))]
REPLY = {"choices": [{"message": {"content": "A"}, "finish_reason": "length"}]}
REPLY["choices"][0]["logprobs"] = {"content": [{**ENTRIES[0], "top_logprobs": ENTRIES}]}


class Fixed(Throttle):
    """A limit that stays."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._limit = float(most)

    def overloaded(self, begun: int) -> None:
        pass

    def _judge(self) -> None:
        pass


class Kind:
    """What a server does with a request: the status it answers with, after its time."""

    def __init__(self, name: str) -> None:
        self.name, self.slots = name, threading.Semaphore(8)
        self.lock, self.tokens, self.last = threading.Lock(), 10.0, time.monotonic()

    def __call__(self) -> int:
        if self.name == "latency":
            time.sleep(0.15)
        elif self.name == "rate":
            with self.lock:
                now = time.monotonic()
                self.tokens = min(10.0, self.tokens + 120 * (now - self.last))
                self.last = now
                if self.tokens < 1:
                    return 429
                self.tokens -= 1
            time.sleep(0.02)
        elif self.slots.acquire(blocking=self.name == "slots"):
            time.sleep(0.04)
            self.slots.release()
        else:
            return 503
        return 200


def stand_in(name: str, ports: multiprocessing.Queue) -> None:
    kind, body = Kind(name), json.dumps(REPLY).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

        def log_message(self, *about: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status = 404 if self.path == "/tokenize" else kind()
            sent = body if status == 200 else b"{}"
            self.wfile.write(
                b"HTTP/1.1 %d x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (status, len(sent), sent)
            )

    socketserver.TCPServer.request_queue_size = 128
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ports.put(server.server_port)
    server.serve_forever()


def rate(url: str, throttle: Throttle, seconds: float) -> tuple[float, int]:
    """Answers per second, and the limit at the end."""
    endpoint = Endpoint("m", url, retries=1000)
    endpoint._throttle = throttle
    call, request = _Call(), {"model": "m", "messages": [], "max_tokens": 1, "temperature": 0}
    end = time.perf_counter() + seconds
    done = 0

    def work(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            endpoint._ask(request, call)
            done += time.perf_counter() < end

    with ThreadPoolExecutor(64) as pool:
        for job in [pool.submit(work, i) for i in range(64)]:
            job.result()
    return done / seconds, throttle.limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    seconds = parser.parse_args().seconds
    print(
        "| server | "
        + " | ".join(map(str, FIXED))
        + " | learned | of the best | limit at the end |"
    )
    print("| --- |" + " --- |" * (len(FIXED) + 3))
    for name, about in KINDS.items():
        ports: multiprocessing.Queue = multiprocessing.Queue()
        server = multiprocessing.Process(target=stand_in, args=(name, ports), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{ports.get()}/v1"
        fixed = [rate(url, Fixed(n), seconds)[0] for n in FIXED]
        learned, limit = rate(url, Throttle(64), seconds)
        cells = [
            *(f"{r:.0f}" for r in fixed),
            f"{learned:.0f}",
            f"{100 * learned / max(fixed):.0f} %",
        ]
        print(f"| {name}: {about} | " + " | ".join([*cells, str(limit)]) + " |", flush=True)
        server.terminate()


if __name__ == "__main__":
    main()
