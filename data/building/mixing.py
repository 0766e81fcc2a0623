"""Foreground plus noise at a signal-to-noise ratio (SNR), measured where the foreground is active."""

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import RATE, Wave

PEAK = 0.9 * 10 ** (-3 / 20)  # peak after normalisation: 0.9 with 3 dB of headroom
FRAME = 320  # samples, 20 ms: the step of the activity measure
ACTIVE_DB = 30.0  # a frame is active when it is less than this far below the loudest frame
SLOPES_DB = {"white": 0.0, "pink": -3.0}  # per octave, of the noises that are made here


def frame_power(wave: Wave) -> NDArray[np.float64]:
    """Mean power of each 20 ms frame; an incomplete last frame counts as one."""
    padded = np.pad(wave.astype(np.float64), (0, -len(wave) % FRAME))
    counts = np.full(len(padded) // FRAME, FRAME)
    counts[-1] -= len(padded) - len(wave)
    return np.asarray((padded.reshape(-1, FRAME) ** 2).sum(axis=1) / counts)


def power_where(wave: Wave, frames: NDArray[np.bool_]) -> float:
    """Mean power over the chosen 20 ms frames; an incomplete last frame is weighted by its samples."""
    power = frame_power(wave)
    rest = len(wave) % FRAME
    if not rest or not frames[-1]:
        return float(power[frames].mean())
    weight = np.ones(len(power))
    weight[-1] = rest / FRAME
    return float(np.average(power[frames], weights=weight[frames]))


def active_frames(wave: Wave) -> NDArray[np.bool_]:
    """True for each 20 ms frame within 30 dB of the loudest one."""
    power = frame_power(wave)
    return np.asarray(power >= power.max() * 10 ** (-ACTIVE_DB / 10))


def active_span(wave: Wave, range_db: float) -> tuple[int, int]:
    """First and last + 1 sample of the frames that lie within `range_db` of the loudest one."""
    power = frame_power(wave)
    loud = np.flatnonzero(power >= power.max() * 10 ** (-range_db / 10))
    return int(loud[0]) * FRAME, min(len(wave), (int(loud[-1]) + 1) * FRAME)


def rms(wave: Wave) -> float:
    """Root mean square of a wave, 1 is full scale."""
    return float(np.sqrt((wave.astype(np.float64) ** 2).mean()))


def coloured_noise(samples: int, slope_db: float, rng: np.random.Generator) -> Wave:
    """Gaussian noise of unit power whose spectrum falls by `slope_db` per octave: 0 is white, -3 pink."""
    # The gain is constant below 50 Hz: otherwise nearly all power of a falling spectrum would lie there.
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


def measured_snr(foreground: Wave, mixture: Wave) -> float:
    """SNR in dB of a written mixture: the foreground, at the mixture's gain, over everything else in it.

    Both are measured on the 20 ms frames where the foreground is active.
    """
    active = active_frames(foreground)
    rest = mixture.astype(np.float64) - foreground
    return float(
        10 * np.log10(power_where(foreground, active) / (power_where(rest, active) + 1e-20))
    )


def normalise(wave: Wave) -> Wave:
    """The wave at a peak of 0.9 with 3 dB of headroom. RMS would undo what the SNR does to the level."""
    return np.asarray(wave * (PEAK / np.abs(wave).max()), dtype=np.float32)
