"""A recording as it is read: blocks at 16 kHz, in memory that does not grow with its length.

libsndfile reads most files. Containers of phones and the web (.m4a, .mp4, .webm, ...) are read by PyAV, where it is
installed.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from evaluators.audio import RATE, Wave, check_samples, read_blocks, read_header
from evaluators.errors import UserError

CONTAINERS = frozenset({"aac", "m4a", "mp4", "mov", "webm", "wma", "mka", "mkv", "amr", "3gp"})
INSTALL = "pip install 'opro-audio[recordings]'"


def read_by_av(path: Path) -> bool:
    """Whether a file is a container that libsndfile does not read."""
    return path.suffix[1:].lower() in CONTAINERS


def has_av() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def seconds_of(path: Path) -> float:
    """What the header tells; 0 where it tells nothing.

    Raises:
        UserError: It cannot be opened.
    """
    if not read_by_av(path):
        return read_header(path).seconds
    av = _av(path)
    try:
        with av.open(str(path)) as container:
            return float((container.duration or 0) / av.time_base)
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from None


def blocks(path: Path) -> Iterator[Wave]:
    """A recording in blocks at 16 kHz, channels averaged.

    Raises:
        UserError: It cannot be decoded, is cut short, or holds a sample that is no number or too large.
    """
    resample, rate = None, 0
    for block, of in _from_av(path) if read_by_av(path) else read_blocks(path):
        check_samples(path, block)
        mono = block.mean(axis=1)
        if of == RATE:
            yield mono
            continue
        if resample is None:
            resample, rate = soxr.ResampleStream(of, RATE, 1, dtype="float32"), of
        if of != rate:
            raise UserError(
                f"audio file {str(path)!r} changes its rate from {rate:,} to {of:,}; convert it first"
            )
        yield resample.resample_chunk(mono)
    if resample is not None:
        yield resample.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _from_av(path: Path) -> Iterator[tuple[Any, int]]:
    """(``[sample, channel]``, samples a second) of each frame."""
    av = _av(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UserError(
                    f"audio file {str(path)!r} holds no sound; expected at least one track"
                )
            stream = container.streams.audio[0]
            as_float = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                for part in as_float.resample(frame):
                    yield part.to_ndarray().T, int(part.sample_rate)
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from None


def _av(path: Path) -> Any:
    if not has_av():
        raise UserError(
            f"audio file {str(path)!r}: .{path.suffix[1:].lower()} needs the package av: {INSTALL}"
        )
    return importlib.import_module("av")


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"audio file {str(path)!r} cannot be read ({reason}); fetch it again or convert it"
    )
