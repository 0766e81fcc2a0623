"""How many requests may be under way at once: learned from what the server does with them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

FIRST = 8  # requests under way at the beginning
GROWTH = 1.15  # of throughput by twice as many: below it the server has no more to give
STEP, LEAST_STEP = (
    0.25,
    0.05,
)  # later on so many more are tried, half as many each time it brings nothing
WORTH = 0.3  # of a step, in throughput, is worth it
CUT = 0.85  # of the limit, when the server is overloaded


class Throttle:
    """A limit on requests under way that finds where the server's throughput ends. Safe to use from several threads.

    It doubles while throughput grows. From there on a larger limit is tried now and then, less often and less far each
    time that it brings nothing. When the server is overloaded (429, 5xx, time-outs) the limit is cut, once for all the
    requests that were under way, and creeps back to where that happened.

    Args:
        most: The limit's own limit.
    """

    def __init__(self, most: int) -> None:
        self._most, self._limit = most, float(min(FIRST, most))
        self._changed = threading.Condition()
        self._under_way = self._waiting = 0
        self._doubling, self._before, self._rate = True, self._limit, 0.0
        self._probing, self._target = False, 0.0  # what it creeps back to
        self._pause, self._clean = 2, 0  # epochs until the next probe, epochs since the last one
        self._step = STEP
        self._epoch, self._begin, self._done, self._starved = 0, 0.0, 0, False
        self._cut = 0  # the epoch of the last cut
        self.answered = 0  # requests, so far

    @property
    def limit(self) -> int:
        """Requests that may be under way now."""
        return max(1, int(self._limit))

    @contextmanager
    def slot(self) -> Iterator[int]:
        """Waits until a request may be sent; it is under way until the block ends. An error is no answer.

        Yields:
            When it was, for `overloaded`.
        """
        with self._changed:
            self._waiting += 1
            while self._under_way >= self.limit:
                self._changed.wait()
            self._waiting -= 1
            if not self._under_way:  # the time between two calls is nobody's
                self._restart()
            self._under_way += 1
            epoch = self._epoch
        answered = False
        try:
            yield epoch
            answered = True
        finally:
            with self._changed:
                self._under_way -= 1
                self._starved |= not self._waiting and self._under_way + 1 < self.limit
                self.answered += answered
                self._done += answered
                if self._done >= max(self.limit, FIRST) * (1 if self._doubling else 2):
                    self._judge()
                self._changed.notify(max(1, self.limit - self._under_way))

    def overloaded(self, begun: int) -> None:
        """The server could not take a request that began then."""
        with self._changed:
            if begun < self._cut:  # the limit was cut since, for requests of the same time
                return
            if self._doubling or self._probing:
                self._limit = self._before
                self._probe_less()
            else:
                self._target = max(1.0, 0.95 * self._limit)
                self._limit = max(1.0, CUT * self._limit)
            self._doubling = self._probing = False
            self._clean, self._rate = 0, 0.0
            self._restart()
            self._cut = self._epoch

    def _probe_less(self) -> None:
        """The last probe brought nothing: the next one comes later and goes less far."""
        self._pause, self._step = min(64, 2 * self._pause), max(LEAST_STEP, self._step / 2)

    def _restart(self) -> None:
        self._begin, self._done, self._starved = time.perf_counter(), 0, False
        self._epoch += 1

    def _judge(self) -> None:
        """Sets the limit by the throughput since the epoch began."""
        rate = self._done / max(1e-9, time.perf_counter() - self._begin)
        starved = self._starved
        self._restart()
        if starved:  # there was too little to send
            return
        if self._doubling:
            if self._rate and rate < GROWTH * self._rate:
                self._doubling, self._limit = False, self._before
            else:
                self._before, self._rate = self._limit, rate
                self._limit = min(float(self._most), 2 * self._limit)
        elif self._probing:
            self._probing = False
            if rate >= (1 + WORTH * self._step) * self._rate:
                self._rate, self._pause, self._step = rate, 2, STEP
            else:
                self._limit = self._before
                self._probe_less()
        elif self._limit < self._target:
            self._limit = min(self._target, self._limit + 1)
        else:
            self._rate = rate if not self._rate else 0.5 * (self._rate + rate)
            self._clean += 1
            if self._clean >= self._pause and self._limit < self._most:
                self._clean, self._probing, self._before = 0, True, self._limit
                self._limit = min(
                    float(self._most), max(self._limit + 1, (1 + self._step) * self._limit)
                )
