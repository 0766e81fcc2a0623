"""A recording cut into overlapping windows as it is read, in memory that does not grow with its length."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluators.audio import RATE, Wave
from evaluators.errors import UserError
from opro.recordings.blocks import blocks


@dataclass(frozen=True)
class Cut:
    """How recordings are cut, in samples at 16 kHz."""

    window: int
    hop: int

    @classmethod
    def of_ms(cls, window_ms: int, hop_ms: int) -> "Cut":
        """From milliseconds.

        Raises:
            UserError: The windows would leave something out.
        """
        if hop_ms > window_ms:
            raise UserError(
                f"--hop-ms {hop_ms} is more than --window-ms {window_ms}: what lies between the windows would not be"
                " heard; give a smaller one"
            )
        return cls(window_ms * RATE // 1000, hop_ms * RATE // 1000)

    def count(self, samples: int) -> int:
        """Windows of a recording of so many samples."""
        return 1 + max(0, math.ceil((samples - self.window) / self.hop))


@dataclass(frozen=True)
class Window:
    """A piece of a recording: its first sample, and the samples, 16 kHz mono."""

    first: int
    wave: Wave

    @property
    def start_s(self) -> float:
        """Where it begins, in seconds."""
        return self.first / RATE

    @property
    def end_s(self) -> float:
        """Where it ends, in seconds."""
        return (self.first + len(self.wave)) / RATE


def windows(path: Path, cut: Cut) -> Iterator[Window]:
    """The windows of a recording, each a hop after the one before it.

    The last one ends with the recording, a part of a hop after the one before it. A recording shorter than a window is
    one window as it is.

    Raises:
        UserError: It cannot be decoded.
    """
    held = np.zeros(0, dtype=np.float32)
    begin = 0  # of what is held
    first = 0  # of the next window
    for block in blocks(path):
        held = np.concatenate([held, block])
        # One sample more than a window, so that the last window is known to be the last.
        while first + cut.window < begin + len(held):
            yield Window(first, held[first - begin : first - begin + cut.window].copy())
            first += cut.hop
        drop = max(0, first - begin - cut.window)  # the last window may begin up to a hop earlier
        held, begin = held[drop:], begin + drop
    end = begin + len(held)
    if not end:
        raise UserError(f"audio file {str(path)!r} holds no sample; expected at least one")
    first = max(0, end - cut.window)
    yield Window(first, held[first - begin :].copy())
