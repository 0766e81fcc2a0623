"""Rooms and filters: reverberation by measured or synthetic impulse responses, zero-phase Butterworth bands."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from evaluators.audio import RATE, Wave, load
from evaluators.errors import UserError

T60_TOLERANCE = 0.10  # a response has a T60 level when its own lies within this share of it
MIN_STRAIGHTNESS = 0.95  # squared correlation of time and level that a decay must have
BANDS: dict[str, tuple[str, float | tuple[float, float]]] = {  # hertz, as in the published bank
    "bandpass": ("bandpass", (300.0, 3400.0)),
    "lowpass": ("lowpass", 3400.0),
    "highpass": ("highpass", 300.0),
}


def schroeder_t60(response: NDArray[np.floating]) -> float:
    """Reverberation time in seconds of an impulse response at 16 kHz.

    Backward integration (Schroeder 1965) from the direct sound on, a line through the decay from -5 to -25 dB
    (T20 of ISO 3382-1), extrapolated to 60 dB.

    Raises:
        UserError: The response does not decay by 25 dB, or not along a line.
    """
    power = np.asarray(response[np.abs(response).argmax() :], dtype=np.float64) ** 2
    # The noise floor of a recorded response would bend the curve: stop where the response reaches it.
    block = RATE // 100
    levels = power[: len(power) // block * block].reshape(-1, block).mean(axis=1)
    if len(levels) > 10:
        floor = levels[-max(1, len(levels) // 10) :].mean()
        loud = np.flatnonzero(levels > 4 * floor)
        if len(loud):
            power = power[: (loud[-1] + 1) * block]
    energy = power[::-1].cumsum()[::-1]
    decay = 10 * np.log10(energy / energy[0] + 1e-30)
    first, last = int((decay <= -5).argmax()), int((decay <= -25).argmax())
    if last - first < 8:
        raise UserError("impulse response does not decay by 25 dB; expected a room's response")
    time = np.arange(first, last) / RATE
    if np.corrcoef(time, decay[first:last])[0, 1] ** 2 < MIN_STRAIGHTNESS:
        raise UserError("impulse response does not decay along a line; expected a room's response")
    return float(-60 / np.polyfit(time, decay[first:last], 1)[0])


def synthetic_response(t60_s: float, rng: np.random.Generator) -> Wave:
    """Exponentially decaying Gaussian noise after a direct sound: a diffuse room (Polack 1988).

    The decay is corrected until the measured T60 lies within 1 % of `t60_s`.
    """
    samples = int(1.5 * t60_s * RATE)
    noise = rng.standard_normal(samples)
    time = np.arange(samples) / RATE
    decay_s = t60_s
    for _ in range(8):
        # Energy falls by 60 dB in t60: amplitude by exp(-3 ln 10 t / t60).
        response = noise * np.exp(-3 * np.log(10) * time / decay_s)
        response[0] = 1.2 * np.abs(response).max()  # the direct sound is the largest sample
        measured = schroeder_t60(response)
        if abs(measured / t60_s - 1) < 0.01:
            break
        decay_s *= t60_s / measured
    return np.asarray(response / np.sqrt((response**2).sum()), dtype=np.float32)


def find_responses(
    folders: Sequence[Path], levels_s: Sequence[float]
) -> dict[float, list[tuple[Path, float]]]:
    """Recorded responses for each T60 level: (file, measured T60 within 10 % of the level).

    Raises:
        UserError: A level has no matching response; names the nearest that was measured.
    """
    measured, failed = [], list[str]()
    for folder in folders:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".wav", ".flac"))
        if not files:
            raise UserError(f"responses {str(folder)!r} holds no .wav or .flac file")
        for path in files:
            try:
                measured.append((path, schroeder_t60(load(path))))
            except UserError as error:
                failed.append(f"{path.name}: {error}")  # no response of a room, perhaps
    out: dict[float, list[tuple[Path, float]]] = {}
    for level in levels_s:
        fits = [(p, t) for p, t in measured if abs(t / level - 1) <= T60_TOLERANCE]
        if not fits:
            near = min((t for _, t in measured), key=lambda t: abs(t - level), default=None)
            raise UserError(
                f"t60_s {level:g} has no impulse response within 10 %"
                + (f" (nearest {near:.2f} s)" if near is not None else "")
                + (f", {len(failed)} files gave none, such as {failed[0]}" if failed else "")
                + "; add recordings of such a room, or leave responses empty for synthetic ones"
            )
        out[level] = fits
    return out


def reverberate(wave: Wave, response: Wave) -> Wave:
    """The wave in the room of `response`: same length, direct sound in place, not normalised."""
    direct = int(np.abs(response).argmax())
    wet = scipy.signal.fftconvolve(wave.astype(np.float64), response.astype(np.float64))
    return np.asarray(wet[direct : direct + len(wave)], dtype=np.float32)


def band_limit(wave: Wave, name: str) -> Wave:
    """The wave after a Butterworth filter of order 4, run forwards and backwards: no phase shift, no delay.

    Args:
        wave: ``[samples]`` at 16 kHz.
        name: A key of `BANDS`: bandpass 300-3400 Hz, lowpass 3400 Hz, highpass 300 Hz.
    """
    kind, edges = BANDS[name]
    sections = scipy.signal.butter(4, edges, kind, fs=RATE, output="sos")
    pad = min(len(wave) - 1, 3 * (2 * len(sections) + 1))
    return np.asarray(
        scipy.signal.sosfiltfilt(sections, wave.astype(np.float64), padlen=pad), dtype=np.float32
    )
