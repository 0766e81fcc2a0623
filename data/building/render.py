"""Makes one clip: cut, room, filter, noise, level, file. What was done is measured afterwards and becomes its row."""

import hashlib
import io
from typing import Any

import numpy as np
import soundfile

from evaluators.audio import (
    PEAK,
    RATE,
    Wave,
    active_frames,
    add_noise,
    coloured_noise,
    load,
    power_where,
)

from .design import Cut, Job
from .recipe import Design
from .rooms import band_limit, reverberate, schroeder_t60, synthetic_response
from .scan import read_part, stable

RMS = 0.1  # level "rms": the first study's target, lowered where the peak would clip
FULL_SCALE = 0.999


def cut_wave(cut: Cut) -> Wave:
    """The samples of a window."""
    part = read_part(cut.recording, cut.window.start_s, cut.window.end_s)
    return part[cut.window.first : cut.window.first + cut.window.duration_ms * RATE // 1000]


def centre(wave: Wave, duration_ms: int) -> Wave:
    """The middle `duration_ms` of a wave."""
    samples = duration_ms * RATE // 1000
    first = (len(wave) - samples) // 2
    return wave[first : first + samples]


def measured_snr(foreground: Wave, mixture: Wave) -> float:
    """SNR in dB of what was written: the foreground as it stands in the mixture over all that is not it.

    Both on the 20 ms frames where the foreground is active.
    """
    active = active_frames(foreground)
    rest = mixture.astype(np.float64) - foreground
    return float(
        10 * np.log10(power_where(foreground, active) / (power_where(rest, active) + 1e-20))
    )


def gain_to_level(wave: Wave, level: str) -> float:
    """The factor that brings a wave to peak or RMS level; never into clipping."""
    peak = float(np.abs(wave).max())
    if level == "peak":
        return PEAK / peak
    rms = float(np.sqrt((wave.astype(np.float64) ** 2).mean()))
    return min(RMS / rms, FULL_SCALE / peak)


def make(job: Job, recipe: Design) -> tuple[bytes, dict[str, Any]]:
    """The clip's file and its manifest row.

    Every random number comes from a hash of (seed, recording, window, condition), so neither the order of the clips
    nor the number of processes can change a sample.
    """
    recording, condition = job.cut.recording, job.condition
    wave = centre(cut_wave(job.cut), condition.duration_ms)
    window = job.cut.window
    shift = (window.duration_ms - condition.duration_ms) / 2000  # seconds from the window's start
    rng = np.random.default_rng(
        stable(recipe.seed, recording.name, window.start_s, window.first, condition.name)
    )
    t60: float | None = None
    if condition.t60_s is not None:
        if job.response is not None:
            response, t60 = load(job.response[0]), job.response[1]
        else:
            response = synthetic_response(condition.t60_s, rng)
            t60 = schroeder_t60(response)
        wave = reverberate(wave, response)
    if condition.filter:
        wave = band_limit(wave, condition.filter)
    silent = recording.category == "silence"
    foreground = wave
    if job.noise:
        if job.noise_cut is not None:
            added = centre(cut_wave(job.noise_cut), condition.duration_ms)
        else:
            slope = -3.0 if job.noise == "pink" else 0.0
            added = coloured_noise(len(wave), slope, rng)
        assert condition.snr_db is not None
        wave, _ = add_noise(wave, added, condition.snr_db)
    gain = 1.0 if silent else gain_to_level(wave, recipe.level)
    foreground, wave = foreground * np.float32(gain), wave * np.float32(gain)
    encoded = encode(wave, "flac")
    written, _ = soundfile.read(io.BytesIO(encoded), dtype="float32")
    has_snr = bool(job.noise) and recording.category not in ("noise", "silence")
    noise_cut = job.noise_cut
    row = {
        "clip_id": job.clip_id,
        "path": f"clips/{job.clip_id}.flac",
        "label": recording.label,
        "category": recording.category,
        "duration_ms": round(1000 * len(written) / RATE, 3),
        "snr_db": f"{measured_snr(foreground, written):.3f}" if has_snr else "",
        "condition": condition.name,
        "source_id": recording.source_id,
        "split": job.split,
        "licence": recording.licence,
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "pcm_sha256": pcm_digest(encoded),
        "snr_target_db": f"{condition.snr_db:g}" if has_snr else "",
        "noise_slope_db": {"white": "0", "pink": "-3"}.get(job.noise, ""),
        "vad_fraction": f"{window.voiced_share(condition.duration_ms):.2f}",
        "recording": recording.name,
        "source_package": recording.package,
        "language": recording.language,
        "start_s": f"{window.start_s + window.first / RATE + shift:.3f}",
        "noise": job.noise,
        "noise_source": noise_cut.recording.source_id if noise_cut else "",
        "t60_s": "" if t60 is None else f"{t60:.3f}",
        "t60_target_s": "" if condition.t60_s is None else f"{condition.t60_s:g}",
        "filter": condition.filter,
        "rms": f"{np.sqrt((written.astype(np.float64) ** 2).mean()):.5f}",
        "category_policy": recording.policy,
    }
    return encoded, row


def encode(wave: Wave, kind: str) -> bytes:
    """The clip as 16-bit FLAC or Ogg/Opus."""
    buffer = io.BytesIO()
    if kind == "flac":
        soundfile.write(buffer, wave, RATE, format="FLAC", subtype="PCM_16")
    else:
        soundfile.write(buffer, wave, RATE, format="OGG", subtype="OPUS")
    return buffer.getvalue()


def pcm_digest(encoded: bytes) -> str:
    """SHA-256 of the decoded samples at 16 bit. The container's random serial number does not touch it."""
    wave, _ = soundfile.read(io.BytesIO(encoded), dtype="int16")
    return hashlib.sha256(wave.astype("<i2").tobytes()).hexdigest()
