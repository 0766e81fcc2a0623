"""The limit on requests under way, on servers whose time is counted and not waited for."""

import heapq
import itertools

import pytest

from evaluators import throttle as module
from evaluators.throttle import FIRST, Throttle


class World:
    """A server and its clients on one thread, with a clock of their own.

    Args:
        slots: Requests worked on at once; the others wait.
        refuses: Beyond so many under way the next is refused at once.
    """

    def __init__(self, monkeypatch, slots=10**9, refuses=10**9, latency=1.0):
        self.now, self.slots, self.refuses, self.latency = 0.0, slots, refuses, latency
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)
        self.free = [0.0] * min(slots, 10_000)

    def run(self, throttle, requests):
        """Answers per unit of time, refusals, and the limit after each answer."""
        under_way, count, begin, refused, limits = [], itertools.count(), self.now, 0, []
        answered = 0
        while answered < requests:
            while throttle._under_way < throttle.limit:
                slot = throttle.slot()
                begun = slot.__enter__()
                if len(under_way) >= self.refuses:
                    refused += 1
                    slot.__exit__(OSError, OSError(), None)
                    throttle.overloaded(begun)
                    break
                start = max(self.now, heapq.heappop(self.free))
                heapq.heappush(self.free, start + self.latency)
                heapq.heappush(under_way, (start + self.latency, next(count), slot))
            self.now, _, slot = heapq.heappop(under_way)
            throttle._waiting = 1  # there is always more to send
            slot.__exit__(None, None, None)
            throttle._waiting = 0
            answered += 1
            limits.append(throttle.limit)
        return answered / (self.now - begin), refused, limits


@pytest.fixture(autouse=True)
def errors_pass(monkeypatch):
    """A context manager that is left with an error raises it again."""
    original = Throttle.slot

    class Slot:
        def __init__(self, throttle):
            self.inner = original(throttle)

        def __enter__(self):
            return self.inner.__enter__()

        def __exit__(self, *error):
            try:
                return self.inner.__exit__(*error)
            except OSError:
                return True

    monkeypatch.setattr(Throttle, "slot", lambda self: Slot(self))


def test_it_grows_to_its_own_limit_where_the_server_takes_everything(monkeypatch):
    rate, _, limits = World(monkeypatch).run(Throttle(64), 4000)
    assert limits[-1] == 64 and rate > 0.9 * 64


@pytest.mark.parametrize("slots", [1, 3, 8, 24, 50])
def test_it_fills_the_slots_of_a_server_and_no_multiple_of_them(monkeypatch, slots):
    rate, _, limits = World(monkeypatch, slots).run(Throttle(64), 6000)
    assert rate > 0.9 * slots and max(limits[-500:]) <= 4 * max(slots, FIRST)


@pytest.mark.parametrize("refuses", [2, 5, 8, 24, 50])
def test_it_stays_where_the_server_begins_to_refuse(monkeypatch, refuses):
    world = World(monkeypatch, refuses=refuses)
    rate, refused, limits = world.run(Throttle(64), 6000)
    assert rate > 0.85 * refuses and refused < 600 and max(limits[-500:]) <= refuses + 16


def test_what_was_under_way_together_cuts_once():
    throttle = Throttle(64)
    throttle._doubling, throttle._limit = False, 20.0
    slots = [throttle.slot() for _ in range(20)]
    begun = [slot.__enter__() for slot in slots]
    for slot, one in zip(slots, begun, strict=True):
        slot.__exit__(OSError, OSError(), None)
        throttle.overloaded(one)
    assert throttle.limit == 17


def test_one_request_may_always_be_under_way():
    throttle = Throttle(64)
    for _ in range(99):
        slot = throttle.slot()
        begun = slot.__enter__()
        slot.__exit__(OSError, OSError(), None)
        throttle.overloaded(begun)
    assert throttle.limit == 1


def test_too_little_to_send_says_nothing_of_the_server(monkeypatch):
    throttle = Throttle(64)
    now = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(now)))
    with throttle.slot():  # one that takes long, and another beside it
        for _ in range(199):
            with throttle.slot():
                pass
    assert throttle.limit == FIRST and throttle.answered == 200
