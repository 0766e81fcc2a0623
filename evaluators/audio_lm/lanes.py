"""Batches beside each other on a processor's threads, where several threads would compute one batch after another."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

import torch

from evaluators.audio_lm.packing import CacheSegment, overlap

MOST_LANES = 4  # each holds the activations of a batch
AHEAD = 2  # batches of a lane: one at work, one that waits

T = TypeVar("T")


def lanes_of(threads: int) -> int:
    """Batches that so many processor threads compute at once: each on an equal share of them."""
    return max(n for n in range(1, MOST_LANES + 1) if threads % n == 0)


class Lanes(Generic[T]):
    """Works on batches at once, each on its own share of torch's threads, and gives results in the order of asking.

    Threads that share one small product wait for each other after each operation, and a thread that another program
    keeps from its core holds up the rest. Those of a batch of their own wait for nobody. The products are the same.

    A context manager; leaving it waits for all work, and restores torch's threads.

    Args:
        count: Batches at once. 1: each is computed where it is asked for, as on a device of its own.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        self._working: deque[tuple[Future[T], tuple[CacheSegment, ...]]] = deque()

    def __enter__(self) -> "Lanes[T]":
        if self._count > 1:
            torch.set_num_threads(self._threads // self._count)  # new threads begin with it
            self._pool = ThreadPoolExecutor(self._count)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=kind is not None)
            torch.set_num_threads(self._threads)

    def give(self, work: Callable[[], T], reads: Sequence[CacheSegment]) -> Iterator[T]:
        """Starts `work`, which reads these places of the cache. Yields what is done, and must be gone through."""
        if self._pool is None:
            yield work()
            return
        self._working.append((self._pool.submit(_inferring, work), tuple(reads)))
        while len(self._working) > AHEAD * self._count:
            yield self._first()

    def over(self, places: CacheSegment) -> Iterator[T]:
        """Yields results until no work reads any of these places, which are about to be overwritten."""
        while any(overlap(part, places) for _, reads in self._working for part in reads):
            yield self._first()

    def rest(self) -> Iterator[T]:
        """All other results."""
        while self._working:
            yield self._first()

    def _first(self) -> T:
        return self._working.popleft()[0].result()


def _inferring(work: Callable[[], T]) -> T:
    """What `work` gives, without gradients: torch asks for that in each thread."""
    with torch.inference_mode():
        return work()
