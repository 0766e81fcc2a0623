"""A card is started beside torch's import: the one that is meant, and nothing where there is none."""

import ctypes
import threading

import pytest

from evaluators import wake


class Driver:
    """Stands in for the driver's library."""

    def __init__(self, cards):
        self.cards, self.calls = cards, []

    def __getattr__(self, name):
        def call(*given):
            if name == "cuDeviceGet":
                given[0]._obj.value = 70 + given[1]
            self.calls.append((name, getattr(given[-1], "value", given[-1])))
            if name == "cuDevicePrimaryCtxRetain":
                return 0
            return 0 if self.cards and given[-1] < self.cards else 100

        return call


def calls(monkeypatch, device, cards):
    driver = Driver(cards)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    before = set(threading.enumerate())
    wake.wake_card(device)
    for thread in set(threading.enumerate()) - before:
        thread.join()
    return driver.calls


@pytest.mark.parametrize(("device", "card"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_card_that_is_meant_is_started(monkeypatch, device, card):
    found = calls(monkeypatch, device, 2)
    assert found == [
        ("cuInit", 0),
        ("cuDeviceGet", card),
        ("cuDevicePrimaryCtxRetain", 70 + card),
    ]


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda:x", "xpu"])
def test_nothing_is_started_for_another_device(monkeypatch, device):
    assert calls(monkeypatch, device, 2) == []


def test_without_a_card_or_a_driver_nothing_happens(monkeypatch):
    assert calls(monkeypatch, "auto", 0) == [("cuInit", 0)]
    assert [name for name, _ in calls(monkeypatch, "cuda:3", 2)] == ["cuInit", "cuDeviceGet"]

    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    wake._wake(0)
