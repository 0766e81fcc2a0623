"""A prompt's scores: as a process holds them, and as bytes that show whether they were damaged."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Array = NDArray[np.float32]

KEY_BYTES = 16  # of a clip
SUM_BYTES = 16  # of a segment's checksum
SEGMENT = 1024  # clips of a segment; one that has as many is never written again


class Row:
    """A prompt's scores in memory, by numbers that clips have in this process, the same for all prompts.

    Attributes:
        known: ``[number]`` whether there are scores.
        values: ``[number, 2, label]`` nats: summed over the words of a label, and of its likeliest answer.
        whole: Leading segments on disk that are full and stand here.
        last: The segment after these as it was last read or written; empty where there is none.
        counted: Slots that its owner has counted.
    """

    def __init__(self, labels: int) -> None:
        self.known = np.zeros(0, dtype=bool)
        self.values = np.zeros((0, 2, labels), dtype=np.float32)
        self.whole = 0
        self.last = b""
        self.counted = 0

    @property
    def slots(self) -> int:
        """Clips that it has room for: what it takes of the memory."""
        return len(self.known)

    def take(self, numbers: Numbers) -> tuple[NDArray[np.bool_], Array]:
        """(``[clip]`` whether there are scores, ``[clip, 2, label]`` of them)."""
        known = np.zeros(len(numbers), dtype=bool)
        values = np.full((len(numbers), *self.values.shape[1:]), np.nan, dtype=np.float32)
        inside = numbers < self.slots
        known[inside] = self.known[numbers[inside]]
        values[inside] = self.values[numbers[inside]]
        return known, values

    def put(self, numbers: Numbers, values: Array) -> None:
        """Keeps ``[clip, 2, label]`` scores."""
        if not len(numbers):
            return
        if (needed := int(numbers.max()) + 1) > self.slots:
            more = max(needed, 2 * self.slots) - self.slots
            self.known = np.pad(self.known, (0, more))
            self.values = np.pad(self.values, ((0, more), (0, 0), (0, 0)))
        self.known[numbers] = True
        self.values[numbers] = values

    def note(self, number: int, raw: bytes, clips: int) -> None:
        """Remembers a segment that stands on disk and here; `clips`: how many it holds."""
        if number != self.whole:
            return
        self.whole, self.last = (number + 1, b"") if clips >= SEGMENT else (number, raw)


def packed(clips: Sequence[bytes], values: Array) -> bytes:
    """Entries of clips, known by 16 bytes each, with their ``[clip, 2, label]`` scores."""
    out = np.zeros(len(clips), dtype=_entry(values.shape[-1]))
    out["clip"] = np.frombuffer(b"".join(clips), dtype=f"V{KEY_BYTES}")
    out["values"] = values
    return out.tobytes()


def unpacked(entries: bytes, labels: int) -> tuple[list[bytes], Array]:
    """The clips and scores of `packed`."""
    table = np.frombuffer(entries, dtype=_entry(labels))
    return table["clip"].tolist(), table["values"]


def entry_bytes(labels: int) -> int:
    """Bytes of a clip in `packed`."""
    return int(_entry(labels).itemsize)


def sealed(name: str, entries: bytes) -> bytes:
    """Entries with a checksum over the name that they are stored under, and them."""
    return entries + _checksum(name, entries)


def unsealed(name: str, raw: bytes | None, labels: int) -> bytes | None:
    """The entries; None where they are not what was written under that name."""
    if raw is None:
        return None
    entries, told = raw[:-SUM_BYTES], raw[-SUM_BYTES:]
    if told != _checksum(name, entries) or len(entries) % entry_bytes(labels):
        return None
    return entries


def _entry(labels: int) -> Any:
    return np.dtype([("clip", f"V{KEY_BYTES}"), ("values", "<f4", (2, labels))])


def _checksum(name: str, entries: bytes) -> bytes:
    return hashlib.sha256(name.encode() + entries).digest()[:SUM_BYTES]
