"""Verbs in processes forked from one that has imported everything, to be killed or left to their end. Linux alone."""

import contextlib
import io
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

KILLED = -signal.SIGKILL


def start(work: Callable[[], int], said: IO[bytes]) -> int:
    """The number of a process that does the work as `run_verb` has it, with its standard error in a file."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said.fileno(), 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        from opro.cli import run_verb

        code = run_verb(work)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def wait(process: int) -> int:
    """Its exit code, negative of a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def done(work: Callable[[], int]) -> tuple[int, str]:
    """(exit code, standard error) of work that is left to its end."""
    with tempfile.TemporaryFile(dir="/var/tmp") as said:
        code = wait(start(work, said))
        said.seek(0)
        return code, said.read().decode(errors="replace")


def children(process: int) -> list[int]:
    """Processes that it started and that are there, and theirs."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, todo = [], [process]
    while todo:
        todo += (own := parents.get(todo.pop(), []))
        found += own
    return found


def is_alive(process: int) -> bool:
    """Whether it runs still; what waits to be collected does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def dying_in_lock(number: int, work: Callable[[], int]) -> int:
    """Does the work, and kills this process while it holds a lock: the one that it takes as its `number`-th.

    Locks are those of files and, before and after what is written in them, the transactions of the score cache. Without
    a death their count is the last line of standard error.
    """
    import diskcache
    import filelock

    taken = 0

    def held() -> None:
        nonlocal taken
        taken += 1
        if taken == number:
            os.kill(os.getpid(), signal.SIGKILL)

    acquire, transact = filelock.BaseFileLock.acquire, diskcache.Cache.transact

    def acquiring(self: Any, *given: Any, **options: Any) -> Any:
        out = acquire(self, *given, **options)
        held()
        return out

    @contextlib.contextmanager
    def transacting(self: Any, *given: Any, **options: Any) -> Iterator[None]:
        with transact(self, *given, **options):
            held()
            yield
            held()

    filelock.BaseFileLock.acquire, diskcache.Cache.transact = acquiring, transacting
    code = work()
    print(f"\nlocks {taken}", file=sys.stderr)
    return code
