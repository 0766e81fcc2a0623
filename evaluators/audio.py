"""Audio files as numpy arrays: decoded, resampled, cut. 16 kHz mono float32 everywhere."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from evaluators.errors import UserError

Wave = NDArray[np.float32]
RATE = 16_000  # samples a second: what Whisper-style front ends expect
# Versions of what decodes and resamples.
DECODERS = {"libsndfile": str(soundfile.__libsndfile_version__), "soxr": str(soxr.__version__)}


@dataclass(frozen=True)
class Header:
    """An audio file's header, read without decoding the samples."""

    samples: int  # per channel, at the file's own rate
    rate: int  # samples a second
    channels: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.samples / self.rate


def read_header(path: Path) -> Header:
    """The header of an audio file.

    Raises:
        UserError: The file cannot be opened as audio, or holds no sample.
    """
    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from None
    if info.frames <= 0 or info.samplerate <= 0:
        raise UserError(f"audio file {str(path)!r} holds no sample; expected at least one")
    return Header(info.frames, info.samplerate, info.channels)


def load(path: Path) -> Wave:
    """The recording as ``[samples]`` float32 at 16 kHz, channels averaged.

    Raises:
        UserError: The file cannot be decoded, is cut short, holds no sample, or a sample that is no number.
    """
    return load_part(path, 0.0, None)


def load_part(path: Path, start_s: float, end_s: float | None) -> Wave:
    """The part of a recording between two times in seconds, at 16 kHz mono; only the part is read.

    Equal to the same part of the whole recording but for the resampler's edges.

    Raises:
        UserError: As `load`.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate, total = file.samplerate, file.frames
            first = min(round(start_s * rate), total)
            last = total if end_s is None else min(round(end_s * rate), total)
            if first:
                file.seek(first)
            wave = file.read(last - first, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from None
    if len(wave) < last - first:
        raise UserError(
            f"audio file {str(path)!r} is cut short: {last - first} samples were expected,"
            f" {len(wave)} could be read; fetch the file again"
        )
    if not len(wave):
        raise UserError(f"audio file {str(path)!r} holds no sample; expected at least one")
    mono = wave.mean(axis=1)
    if not np.isfinite(mono).all():
        raise UserError(
            f"audio file {str(path)!r} holds samples that are no numbers (NaN or infinite); write"
            " it again from its source"
        )
    if rate != RATE:
        mono = soxr.resample(mono, rate, RATE)
    return np.ascontiguousarray(mono, dtype=np.float32)


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().rstrip(".").removeprefix(f"Error opening {str(path)!r}: ")
    return UserError(
        f"audio file {str(path)!r} cannot be read ({reason}); expected a format that libsndfile"
        " decodes, such as WAV, FLAC, Ogg or MP3"
    )


def shuffle(wave: Wave, seed: int) -> Wave:
    """The same samples in random order, a control condition: equal level, no content."""
    return np.random.default_rng(seed).permutation(wave)
