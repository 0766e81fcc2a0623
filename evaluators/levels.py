"""What can be wrong with the level of a sound, by name: silence, offset, channels that cancel, clipping, wrong range.

Power is that of the sound without its offset (DC), which is no signal, yet may be most of a cheap sound card's power.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluators.audio import RATE, Sound, Wave

OFFSET = (
    0.1  # of the RMS, from which a mean counts as an offset: less changes a level by under 0.05 dB
)
LARGE_OFFSET = 0.5  # of the RMS: changes a level by 1 dB
STEADY = 0.5  # of the mean, that each quarter of a wave has at least: a slow swing does not
CLIPPED = 0.9995  # samples from here to full scale count as clipped
QUIET = 1e-3  # RMS: -60 dBFS
TOO_LOUD = 2.0  # a peak that no sound at full scale reaches
CANCELLED = 0.1  # of the power that averaging leaves of unrelated channels


def offset_of(wave: Wave) -> float:
    """The steady offset of a wave, 0 where it has none above a tenth of its RMS.

    >>> offset_of(np.array([0.6, 0.4] * 4)), offset_of(np.array([0.6, -0.4] * 4, dtype=np.float32))
    (0.5, 0.0)
    """
    mean = float(wave.mean(dtype=np.float64))
    if len(wave) < 4 or abs(mean) <= OFFSET * float(wave.std(dtype=np.float64)):
        return 0.0
    quarters = [float(part.mean(dtype=np.float64)) / mean for part in np.array_split(wave, 4)]
    return mean if min(quarters) >= STEADY else 0.0


def without_offset(wave: Wave) -> Wave:
    """The wave without its steady offset; the very same one where it has none, so that its bytes do not change."""
    offset = offset_of(wave)
    return np.asarray(wave - offset, dtype=np.float32) if offset else wave


@dataclass(frozen=True)
class Levels:
    """Levels of a sound; 1 is full scale.

    Attributes:
        peak: Largest absolute sample.
        rms: Root mean square without the offset.
        offset: See `offset_of`.
        clipped: Samples at full scale.
        silent: All samples are equal.
        cancelled: The average of the channels is far quieter than they are.
        told: The file's header tells its length.
        rate: Of the file, samples a second.
    """

    peak: float
    rms: float
    offset: float
    clipped: int
    silent: bool
    cancelled: bool
    told: bool
    rate: int


def measure_levels(sound: Sound) -> Levels:
    """The levels of a sound."""
    wave, header = sound.wave, sound.header
    offset = offset_of(wave)
    peak = float(np.abs(wave).max())
    return Levels(
        peak=peak,
        rms=float(np.sqrt(((wave.astype(np.float64) - offset) ** 2).mean())),
        offset=offset,
        clipped=int((np.abs(wave) >= CLIPPED).sum()) if peak < TOO_LOUD else 0,
        silent=bool(np.ptp(wave) == 0),
        cancelled=sound.mono_power < CANCELLED * sound.channel_power / header.channels,
        told=header.told,
        rate=header.rate,
    )


@dataclass(frozen=True)
class Trouble:
    """What is wrong with some sounds. `what` completes "3 clips ...", `fix` says what to do about it.

    A fault makes numbers untrue; other troubles are for the reader to judge.
    """

    fault: bool
    what: str
    fix: str


SILENT = Trouble(
    True,
    "are digital silence but not of category silence",
    "record or cut them again, or leave them out",
)
LEVEL_TROUBLES: tuple[tuple[Trouble, Callable[[Levels], bool]], ...] = (
    (
        Trouble(
            True,
            "have channels that cancel: what both hold is gone once they are averaged",
            "take one channel, or turn one over: ffmpeg -i IN -af 'pan=mono|c0=c0' OUT",
        ),
        lambda v: v.cancelled,
    ),
    (SILENT, lambda v: v.silent and not v.cancelled),
    (
        Trouble(
            True,
            "hold samples far above full scale, floats in the range of integers",
            "divide 16-bit values by 32,768 before they are written as floats",
        ),
        lambda v: v.peak >= TOO_LOUD,
    ),
    (
        Trouble(
            True,
            "have an offset (DC) above half of their RMS: as power it moves levels and SNR by over 1 dB",
            "subtract the mean, then measure SNR and levels anew",
        ),
        lambda v: not v.silent and abs(v.offset) > LARGE_OFFSET * v.rms,
    ),
    (
        Trouble(
            False,
            "have an offset (DC) above a tenth of their RMS",
            "subtract the mean, then measure SNR and levels anew",
        ),
        lambda v: not v.silent and 0 < abs(v.offset) <= LARGE_OFFSET * v.rms,
    ),
    (
        Trouble(
            True,
            "clip (3 samples or more at full scale)",
            "record or normalise them lower, from their source",
        ),
        lambda v: v.clipped >= 3,
    ),
    (
        Trouble(False, "are quieter than -60 dBFS", "normalise their peaks, from their source"),
        lambda v: 0 < v.rms < QUIET and not v.cancelled,
    ),
    (
        Trouble(
            False,
            "have a header that does not tell their length, and were read to their end",
            "write them again: ffmpeg -i IN OUT",
        ),
        lambda v: not v.told,
    ),
    (
        Trouble(False, "are not at 16 kHz and will be resampled", ""),
        lambda v: v.rate != RATE,
    ),
)
