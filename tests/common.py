"""What many tests need: where the project lies, the labels of its task, two processes of one training."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluators.tasks import SPEECH_TASK

LABELS = SPEECH_TASK.labels
ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "data" / "demo"


def start_processes(*arguments: str) -> "list[subprocess.Popen[str]]":
    """Two Python processes that find each other, as torchrun starts them; `accelerate launch` starts one on a CPU."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
              "MASTER_ADDR": "localhost", "MASTER_PORT": port}  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]


@contextmanager
def little_room(more: int) -> Iterator[None]:
    """No more addresses than the process has, and `more` bytes."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
