"""Sound as numpy arrays: load, resample, cut, mix, normalise. 16 kHz mono float32 everywhere."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from evaluators.errors import UserError

Wave = NDArray[np.float32]
RATE = 16_000  # samples a second: what Whisper-style front ends expect
PEAK = 0.9 * 10 ** (-3 / 20)  # peak after normalisation: 0.9 with 3 dB of headroom
FRAME = 320  # 20 ms, the step of the activity measure
ACTIVE_DB = 30.0  # a frame is active when it is less than this far below the loudest one


@dataclass(frozen=True)
class Header:
    """What a file says of itself, read without decoding it."""

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


def frame_power(wave: Wave) -> NDArray[np.float64]:
    """Mean power of each 20 ms frame; a last part frame counts as one."""
    padded = np.pad(wave.astype(np.float64), (0, -len(wave) % FRAME))
    counts = np.full(len(padded) // FRAME, FRAME)
    counts[-1] -= len(padded) - len(wave)
    return np.asarray((padded.reshape(-1, FRAME) ** 2).sum(axis=1) / counts)


def power_where(wave: Wave, frames: NDArray[np.bool_]) -> float:
    """Mean power over some 20 ms frames; a last part frame counts by its samples."""
    power = frame_power(wave)
    rest = len(wave) % FRAME
    if not rest or not frames[-1]:
        return float(power[frames].mean())
    weight = np.ones(len(power))
    weight[-1] = rest / FRAME
    return float(np.average(power[frames], weights=weight[frames]))


def active_frames(wave: Wave) -> NDArray[np.bool_]:
    """Which 20 ms frames lie within 30 dB of the loudest one."""
    power = frame_power(wave)
    return np.asarray(power >= power.max() * 10 ** (-ACTIVE_DB / 10))


def coloured_noise(samples: int, slope_db: float, rng: np.random.Generator) -> Wave:
    """Gaussian noise of unit power whose spectrum falls by `slope_db` per octave: 0 is white, -3 pink."""
    # Frequencies below 50 Hz are levelled off: a falling spectrum would put all power into them.
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 50.0)
    gain = (frequency / 1000.0) ** (slope_db / (20 * np.log10(2)))
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * gain, samples)
    return np.asarray(noise / np.sqrt((noise**2).mean()), dtype=np.float32)


def add_noise(wave: Wave, noise: Wave, snr_db: float) -> tuple[Wave, float]:
    """Foreground plus noise at `snr_db`, both measured on the frames where the foreground is active.

    Returns:
        The mixture (not normalised, may exceed 1) and the SNR measured after mixing, in dB.
    """
    active = active_frames(wave)
    signal = power_where(wave, active)
    gain = np.sqrt(signal / 10 ** (snr_db / 10) / power_where(noise, active))
    scaled = (noise * gain).astype(np.float32)
    measured = 10 * np.log10(signal / power_where(scaled, active))
    return wave + scaled, float(measured)


def normalise(wave: Wave) -> Wave:
    """Scaled to a peak of 0.9 with 3 dB of headroom. Never by RMS, which would undo the SNR's mark on level."""
    return np.asarray(wave * (PEAK / np.abs(wave).max()), dtype=np.float32)


def shuffle(wave: Wave, seed: int) -> Wave:
    """The same samples in random order: equal level, no content. A control condition."""
    return np.random.default_rng(seed).permutation(wave)
