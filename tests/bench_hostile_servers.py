"""Memory and time of every hostile server: python tests/bench_hostile_servers.py [--timeout 2]

Each case of tests/hostile_server.py stands in a process of its own, and is asked in another one, once as a language
model and once as an audio server, with one try. Shown are what is said, seconds until then, and by how much the largest
resident memory of the asking process has grown.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection

import hostile_server
from common import DEMO, LABELS

from evaluators import endpoint
from evaluators.endpoint import Endpoint
from evaluators.errors import PauseError, UserError
from evaluators.manifest import read_manifest
from evaluators.prompts import Prompt
from opro.proposers import openai_model
from opro.proposers.language_model import Message
from opro.proposers.openai_model import OpenAIModel
from opro.proposers.replies import parse

TEXTS = {
    "reply of 40,000 <INS>": "<INS>" * 40_000,
    "reply of 199,000 [": "[" * 199_000,
    "reply of 16,000 lists that do not end": '"prompts": [' * 16_000,
    "reply of 3 MB": "x" * 3_000_000,
}
OTHERS = {
    name: hostile_server.body(hostile_server.completion(text)) for name, text in TEXTS.items()
}
OTHERS["4 MB of empty lists"] = hostile_server.body(b"[" + b"[]," * 1_390_000 + b"0]")
ALL = hostile_server.CASES | hostile_server.REFUSALS | OTHERS


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stand(name: str, line: Connection) -> None:
    """Serves a case until it is told to end."""
    hostile_server.ENDS_S = 60.0
    with hostile_server.hostile(ALL[name]) as server:
        line.send(server.url)
        line.recv()


def ask(kind: str, url: str, timeout: float, line: Connection) -> None:
    """Asks a server once; sends (what came of it, seconds, MiB)."""
    openai_model.TRIES, endpoint.TIMEOUT_S = 1, timeout
    clip = read_manifest(DEMO, LABELS, "dev")[0]
    before, begun = peak_mib(), time.perf_counter()
    try:
        if kind == "language model":
            model = OpenAIModel("m", url, timeout=timeout)
            reply = model([Message("user", "hello")], temperature=1.0, max_tokens=99)
            said = (
                f"a reply of {len(reply.text)} characters, {len(parse(reply.text))} prompts in it"
            )
        else:
            Endpoint("m", url, retries=0).score([Prompt("Speech? A or B")], [clip])
            said = "a score"
    except (PauseError, UserError) as error:
        said = str(error)
    line.send((said, time.perf_counter() - begun, peak_mib() - before))


def measured(kind: str, name: str, timeout: float) -> tuple[str, float, float]:
    there, here = multiprocessing.Pipe()
    server = multiprocessing.Process(target=stand, args=(name, there), daemon=True)
    server.start()
    out, back = multiprocessing.Pipe()
    asking = multiprocessing.Process(
        target=ask, args=(kind, here.recv(), timeout, out), daemon=True
    )
    asking.start()
    found = back.recv() if back.poll(120) else ("nothing within 120 s", 120.0, float("nan"))
    for process in (asking, server):
        process.terminate()
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds that a reply may take")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    given = parser.parse_args()
    timeout = given.timeout
    print("| server | asked as | seconds | MiB | what is said |\n| --- | --- | --- | --- | --- |")
    most = [0.0, 0.0]
    for name in (n for n in ALL if given.only in n):
        for kind in ("language model", "audio"):
            said, seconds, size = measured(kind, name, timeout)
            most = [max(most[0], seconds), max(most[1], size)]
            print(f"| {name} | {kind} | {seconds:.2f} | {size:.0f} | {said[:90]} |", flush=True)
    print(f"\nat most {most[0]:.2f} s and {most[1]:.0f} MiB, with a time-out of {timeout:g} s")


if __name__ == "__main__":
    sys.exit(main())
