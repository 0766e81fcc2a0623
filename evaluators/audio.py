"""Audio files as numpy arrays: decoded, resampled, cut. 16 kHz mono float32 everywhere.

A header's length is a hint: where it tells none, or one that cannot be, the file is read to its end. Memory is taken
for what was decoded, never for what a header claims, and never for more than `MOST` samples: silence of days packs into
a small file.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from evaluators.errors import UserError
from evaluators.lengths import Mended, check_length, without_tag
from evaluators.names import missing

Wave = NDArray[np.float32]
RATE = 16_000  # samples a second: what Whisper-style front ends expect
RATES = (1_000, 1_000_000)  # of files: what a lower one claims would not fit into memory at 16 kHz
MOST = 1 << 29  # samples of a part, as they are and at 16 kHz: 2 GiB, 9 hours at 16 kHz
LOUDEST = (
    2.0**31
)  # a sample of the largest integers, written as floats; products of larger ones leave float32
BLOCK = 1 << 24  # samples times channels that are decoded at once: 64 MiB
POINTER = b"version https://git-lfs"  # what stands in a file that Git LFS has not fetched
# Versions of what decodes and resamples.
DECODERS = {"libsndfile": str(soundfile.__libsndfile_version__), "soxr": str(soxr.__version__)}


@dataclass(frozen=True)
class Header:
    """An audio file's header, read without decoding the samples where it tells their number."""

    samples: int  # per channel, at the file's own rate
    rate: int  # samples a second
    channels: int
    told: bool = True  # False: the header tells no length that can be; the samples were counted

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.samples / self.rate


@dataclass(frozen=True, eq=False)
class Sound:
    """A decoded recording, or a part of one.

    Attributes:
        wave: ``[samples]`` float32 at 16 kHz, channels averaged.
        header: Of the file; its samples are those of the part.
        channel_power: Mean square before the channels are averaged, over all of them.
        mono_power: Mean square after it; much less where channels cancel.
    """

    wave: Wave
    header: Header
    channel_power: float
    mono_power: float


def read_header(path: Path) -> Header:
    """The header of an audio file. A file whose header tells no length is decoded once, to count its samples.

    Raises:
        UserError: The file cannot be opened as audio, or holds no sample.
    """
    with _open(path) as (file, told):
        samples = told if told is not None else sum(map(len, _blocks(file, None)))
        rate, channels = file.samplerate, file.channels
    if samples <= 0:
        raise _empty(path)
    return Header(samples, rate, channels, told is not None)


def load(path: Path) -> Wave:
    """The recording as ``[samples]`` float32 at 16 kHz, channels averaged.

    Raises:
        UserError: The file cannot be decoded, is cut short or too long, holds no sample, or a sample that is no number
            or too large.
    """
    return load_part(path, 0.0, None)


def load_part(path: Path, start_s: float, end_s: float | None) -> Wave:
    """The part of a recording between two times in seconds, at 16 kHz mono; only the part is read.

    Equal to the same part of the whole recording but for the resampler's edges.

    Raises:
        UserError: As `load`.
    """
    return read_sound(path, start_s, end_s).wave


def read_sound(path: Path, start_s: float = 0.0, end_s: float | None = None) -> Sound:
    """The part of a recording between two times in seconds, and what its channels are like.

    Raises:
        UserError: As `load`.
    """
    mono: list[Wave] = []
    power = 0.0
    samples = 0
    with _open(path) as (file, told):
        rate, channels = file.samplerate, file.channels
        first = round(start_s * rate)
        last = None if end_s is None else round(end_s * rate)
        if told is not None:
            first, last = min(first, told), told if last is None else min(last, told)
        most = int(MOST * min(1.0, rate / RATE))
        if told is not None and last is not None and last - first > most:
            raise _too_long(path, most, rate)
        if first:
            file.seek(first)
        for block in _blocks(file, None if last is None else last - first):
            samples += len(block)
            if samples > most:
                raise _too_long(path, most, rate)
            check_samples(path, block)
            mono.append(block.mean(axis=1))
            power += float(np.vdot(block, block)) / channels
    if told is not None and last is not None and samples < last - first:
        raise UserError(
            f"audio file {str(path)!r} is cut short or damaged: {last - first} samples were"
            f" expected, {samples} could be read; fetch the file again"
        )
    if not samples:
        raise _empty(path)
    wave = mono[0] if len(mono) == 1 else np.concatenate(mono)
    mono_power = float(np.vdot(wave, wave)) / samples
    if rate != RATE:
        wave = soxr.resample(wave, rate, RATE)
    if not len(wave):
        raise UserError(
            f"audio file {str(path)!r} holds {samples} samples at {rate:,} Hz, less than one at"
            f" {RATE:,} Hz; expected at least one"
        )
    return Sound(
        np.ascontiguousarray(wave, dtype=np.float32),
        Header(samples, rate, channels, told is not None),
        power / samples,
        mono_power,
    )


def check_samples(path: Path, block: NDArray[np.float32]) -> None:
    """Raises UserError for samples that are no numbers, or too large to compute with."""
    loudest = float(max(block.max(initial=0), -block.min(initial=0)))
    if not np.isfinite(loudest):
        raise UserError(
            f"audio file {str(path)!r} holds samples that are no numbers (NaN or infinite); write"
            " it again from its source"
        )
    if loudest > LOUDEST:
        raise UserError(
            f"audio file {str(path)!r} holds a sample of {loudest:.3g}, where 1 is full scale; expected at most"
            f" {LOUDEST:,.0f}: write it again from its source"
        )


def read_blocks(path: Path) -> Iterator[tuple[NDArray[np.float32], int]]:
    """(``[sample, channel]``, samples a second) of a recording, about a minute at a time.

    Raises:
        UserError: The file cannot be decoded, or is cut short.
    """
    with _open(path) as (file, told):
        count = 0
        for block in _blocks(file, None):
            count += len(block)
            yield block, file.samplerate
        if told is not None and count < told:
            raise UserError(
                f"audio file {str(path)!r} is cut short or damaged: {told} samples were expected,"
                f" {count} could be read; fetch the file again"
            )


@contextmanager
def _open(path: Path) -> Iterator[tuple[soundfile.SoundFile, int | None]]:
    """The opened file, and its samples per channel where the header tells a number that can be."""
    with ExitStack() as stack:
        try:
            file = _enter(stack, without_tag(path))
            told, mended = check_length(path, file)
            file = file if mended is None else _enter(stack, mended)
        # A TypeError is soundfile's word for a file whose name says that it is bare samples.
        except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from None
        low, high = RATES
        if not low <= file.samplerate <= high:
            raise UserError(
                f"audio file {str(path)!r} has a rate of {file.samplerate:,} samples a second;"
                f" expected {low:,} to {high:,}"
            )
        try:
            yield file, file.frames if told else None
        except (soundfile.SoundFileError, OSError) as error:
            raise _unreadable(path, error) from None


def _enter(stack: ExitStack, source: Path | Mended) -> soundfile.SoundFile:
    """A file opened by libsndfile, closed by the stack."""
    if isinstance(source, Mended):
        stack.enter_context(source)
    return stack.enter_context(soundfile.SoundFile(source))


def _blocks(file: soundfile.SoundFile, samples: int | None) -> Iterator[NDArray[np.float32]]:
    """``[samples, channels]`` from the file's position on, at most `samples`; None: to the end of the data."""
    left, most = (file.frames, BLOCK // 16) if samples is None else (samples, BLOCK)
    while left > 0:
        # NaN marks what was not read: after the last sample of a file that is shorter than its header claims, soundfile
        # fails, though the samples were handed over, and their number is lost.
        size = min(left, max(1, most // file.channels))
        block = np.full((size, file.channels), np.nan, dtype=np.float32)
        try:
            block = file.read(out=block)
        except soundfile.SoundFileError:
            block = block[: np.append(np.isnan(block[:, 0]), True).argmax()]
            left = len(block)
        if not len(block):
            return
        yield block
        left -= len(block)


def _too_long(path: Path, most: int, rate: int) -> UserError:
    return UserError(
        f"audio file {str(path)!r} holds more than {most:,} samples at {rate:,} Hz ({most / rate / 3600:.1f} hours);"
        " expected shorter ones: cut it into parts"
    )


def _empty(path: Path) -> UserError:
    return UserError(f"audio file {str(path)!r} holds no sample; expected at least one")


def _unreadable(path: Path, error: Exception) -> UserError:
    if not path.is_file():
        return UserError(f"audio file {str(path)!r} {missing(path)}")
    reason = str(error).strip().rstrip(".").removeprefix(f"Error opening {str(path)!r}: ")
    if isinstance(error, TypeError):
        reason = "its name says bare samples, without a header"
    if reason.startswith(
        "File does not exist"
    ):  # libsndfile's word for an MP3 without a whole frame
        reason = "it is cut short or damaged"
    expected = "a format that libsndfile decodes, such as WAV, FLAC, Ogg or MP3"
    with suppress(OSError):
        with path.open("rb") as file:
            start = file.read(len(POINTER))
        if not start:
            reason = "it is empty"
        if start == POINTER:
            reason, expected = "a pointer of Git LFS", "the file itself, by: git lfs pull"
    return UserError(f"audio file {str(path)!r} cannot be read ({reason}); expected {expected}")


def shuffle(wave: Wave, seed: int) -> Wave:
    """The same samples in random order, a control condition: equal level, no content."""
    return np.random.default_rng(seed).permutation(wave)
