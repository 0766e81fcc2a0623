"""Whether an audio file's header tells its length, and the file as libsndfile reads it to its end where it does not.

A recorder that was killed leaves a WAV with size 0, a stream one with the largest size, a download that broke off one
with more than there is; an MP3 without a Xing header tells nothing at all.
"""

import io
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from soundfile import SoundFile

AU_HEADER = 24  # bytes, at least
LARGEST = b"\xff" * 4  # a size that libsndfile reads as "to the end of the file"
MOST_CHUNKS = 1_000  # of a WAV, before its audio
MOST_PER_BYTE = 8_192  # samples: FLAC packs 65,535 of silence into some 12 bytes; a header that claims more is wrong
PADDING = 63  # times the size of an MP3: one of variable rate is up to 20 times as long as its first frame tells
TAG = 4_096  # bytes at a file's end in which a tag is looked for


class Mended(io.RawIOBase):
    """A file from `start` on with some bytes replaced, or one that seems longer than it is. Nothing is copied.

    Args:
        path: Of the file.
        start: First byte; what stands before it is left out.
        changes: Place, counted from `start`, of each replacement.
        padding: Bytes that it seems to be longer.
    """

    def __init__(
        self, path: Path, start: int = 0, changes: dict[int, bytes] | None = None, padding: int = 0
    ) -> None:
        self._file = path.open("rb")
        self._start, self._size = start, path.stat().st_size - start
        self._changes, self._end, self._at = changes or {}, self._size + padding, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See `io.RawIOBase`. Of what is not there, only the end can be read, as zeros: it holds no tag."""
        self._file.seek(self._start + min(self._at, self._size))
        raw = bytearray(self._file.read(len(buffer)))
        if self._at >= self._end - TAG:
            raw += bytes(max(0, min(len(buffer), self._end - self._at) - len(raw)))
        for place, new in self._changes.items():
            for at, byte in enumerate(new, place - self._at):
                if 0 <= at < len(raw):
                    raw[at] = byte
        buffer[: len(raw)] = raw
        self._at += len(raw)
        return len(raw)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def without_tag(path: Path) -> Path | Mended:
    """The file; a WAV without the ID3 tag in front of it, with which libsndfile loses the end."""
    with path.open("rb") as file:
        start = file.seek(_after_tag(file))
        kind = file.read(4) if start else b""
    return Mended(path, start) if kind in (b"RIFF", b"RIFX", b"RF64") else path


def check_length(path: Path, file: SoundFile) -> tuple[bool, Mended | None]:
    """Whether the header tells the length, and the file to be opened instead where libsndfile would not read all.

    Args:
        path: Of the file.
        file: As libsndfile has opened it.
    """
    size = path.stat().st_size
    if file.format in ("WAV", "WAVEX", "RF64"):
        data = _wave_data(path)
        if file.frames or not data.there:
            return data.claimed <= data.there, None
        changes = {data.place - 4: LARGEST}
        if data.kind == b"RF64":  # whose own sizes come before this one
            changes[0] = b"RIFF"
        return False, Mended(path, data.start, changes)
    if file.format == "AU" and not file.frames and size > AU_HEADER:
        return False, Mended(path, 0, {8: LARGEST})
    if file.format == "MP3" and not _tells_frames(path):
        # libsndfile guesses: by the first frame and the file's size, and reads no further than that.
        return False, Mended(path, padding=PADDING * size)
    return file.frames <= MOST_PER_BYTE * size, None


class _Data(NamedTuple):
    """The audio of a WAV. `claimed` and `there`: bytes that its header claims, and that the file holds."""

    start: int  # of the WAV in the file
    kind: bytes
    place: int = 0  # of the samples, from there
    claimed: int = 0
    there: int = 0


def _wave_data(path: Path) -> _Data:
    """Where a WAV's audio is."""
    size, long_size = path.stat().st_size, 0
    with path.open("rb") as file:
        start = file.seek(_after_tag(file))
        kind = file.read(12)[:4]
        layout = ">4sI" if kind == b"RIFX" else "<4sI"
        for _ in range(MOST_CHUNKS):
            name, claimed = struct.unpack(layout, file.read(8).ljust(8, b"\0"))
            place = file.tell()
            if name == b"ds64":
                long_size = int.from_bytes(file.read(16)[8:], "little")
            elif name == b"data":
                there = size - place
                claimed = long_size if kind == b"RF64" else claimed
                name, length = struct.unpack(layout, file.read(8).ljust(8, b"\0"))
                if not claimed and name.isascii() and name.decode("ascii").isprintable():
                    there = there if length > there else 0  # empty: the next chunk follows
                return _Data(start, kind, place - start, claimed, there)
            if place >= size:
                break
            file.seek(place + claimed + claimed % 2)
    return _Data(start, kind)


def _tells_frames(path: Path) -> bool:
    """Whether an MP3 begins with a frame that tells how many follow."""
    with path.open("rb") as file:
        file.seek(_after_tag(file))
        first = file.read(4096)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


def _after_tag(file: BinaryIO) -> int:
    """Where an ID3 tag at the beginning ends; 0 without one."""
    head = file.read(10)
    if not head.startswith(b"ID3") or len(head) < 10:
        return 0
    return 10 + sum(byte % 128 << 7 * place for place, byte in enumerate(reversed(head[6:])))
