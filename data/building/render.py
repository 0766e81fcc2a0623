"""Renders one clip: cut, room, filter, noise, level, file. Its manifest row is measured on what was written."""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from evaluators.audio import RATE, Wave, load

from .design import Cut, Job
from .mixing import PEAK, SLOPES_DB, add_noise, coloured_noise, measured_snr, rms
from .recipe import Design
from .rooms import band_limit, reverberate, schroeder_t60, synthetic_response
from .scan import read_part, stable_seed

RMS = 0.1  # level "rms": the first study's target, lowered where the peak would clip
FULL_SCALE = 0.999


@dataclass(frozen=True, slots=True)
class _Mix:
    """A clip before it is written: the mixture, its foreground at the same gain, and the T60 of its room."""

    wave: Wave
    foreground: Wave
    t60_s: float | None


def cut_wave(cut: Cut) -> Wave:
    """The samples of a window."""
    part = read_part(cut.recording, cut.window.start_s, cut.window.end_s)
    return part[cut.window.first : cut.window.first + cut.window.duration_ms * RATE // 1000]


def middle(wave: Wave, duration_ms: int) -> Wave:
    """The middle `duration_ms` of a wave."""
    samples = duration_ms * RATE // 1000
    first = (len(wave) - samples) // 2
    return wave[first : first + samples]


def gain_to_level(wave: Wave, level: str) -> float:
    """The factor that brings a wave to peak or RMS level; never into clipping."""
    peak = float(np.abs(wave).max())
    return PEAK / peak if level == "peak" else min(RMS / rms(wave), FULL_SCALE / peak)


def render_clip(job: Job, recipe: Design) -> tuple[bytes, dict[str, Any]]:
    """The clip's file and its manifest row.

    Every random number comes from a hash of (seed, recording, window, condition), so neither the order of the clips
    nor the number of processes can change a sample.
    """
    mix = _mix(job, recipe)
    encoded = encode(mix.wave, "flac")
    return encoded, _row(job, mix, encoded)


def _mix(job: Job, recipe: Design) -> _Mix:
    recording, condition, window = job.cut.recording, job.condition, job.cut.window
    wave = middle(cut_wave(job.cut), condition.duration_ms)
    own = recording.name, window.start_s, window.first, condition.name
    again = (job.rendering,) if job.rendering else ()
    rng = np.random.default_rng(stable_seed(recipe.seed, *own, *again))
    t60_s: float | None = None
    if job.response is not None:
        t60_s = job.response[1]
        wave = reverberate(wave, load(job.response[0]))
    elif condition.t60_s is not None:
        response = synthetic_response(condition.t60_s, rng)
        t60_s = schroeder_t60(response)
        wave = reverberate(wave, response)
    if condition.filter:
        wave = band_limit(wave, condition.filter)
    foreground = wave
    if job.noise:
        if job.noise_cut is not None:
            noise = middle(cut_wave(job.noise_cut), condition.duration_ms)
        else:
            noise = coloured_noise(len(wave), SLOPES_DB[job.noise], rng)
        assert condition.snr_db is not None
        wave, _ = add_noise(wave, noise, condition.snr_db)
    silent = recording.category == "silence"
    gain = np.float32(1.0 if silent else gain_to_level(wave, recipe.level))
    return _Mix(wave * gain, foreground * gain, t60_s)


def _row(job: Job, mix: _Mix, encoded: bytes) -> dict[str, Any]:
    """The manifest row; evaluators/clips.py says what each column means."""
    recording, condition, window = job.cut.recording, job.condition, job.cut.window
    written, _ = soundfile.read(io.BytesIO(encoded), dtype="float32")
    has_snr = bool(job.noise) and recording.category not in ("noise", "silence")
    shift = (window.duration_ms - condition.duration_ms) / 2000  # seconds from the window's start
    return {
        "clip_id": job.clip_id,
        "path": f"clips/{job.clip_id}.flac",
        "label": recording.label,
        "category": recording.category,
        "duration_ms": round(1000 * len(written) / RATE, 3),
        "snr_db": f"{measured_snr(mix.foreground, written):.3f}" if has_snr else "",
        "condition": condition.name,
        "source_id": recording.source_id,
        "split": job.split,
        "licence": recording.licence,
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "pcm_sha256": pcm_digest(encoded),
        "snr_target_db": f"{condition.snr_db:g}" if has_snr else "",
        "noise_slope_db": f"{SLOPES_DB[job.noise]:g}" if job.noise in SLOPES_DB else "",
        "vad_fraction": f"{window.voiced_share(condition.duration_ms):.2f}",
        "recording": recording.name,
        "source_package": recording.package,
        "language": recording.language,
        "start_s": f"{window.start_s + window.first / RATE + shift:.3f}",
        "noise": job.noise,
        "noise_source": job.noise_cut.recording.source_id if job.noise_cut else "",
        "t60_s": "" if mix.t60_s is None else f"{mix.t60_s:.3f}",
        "t60_target_s": "" if condition.t60_s is None else f"{condition.t60_s:g}",
        "filter": condition.filter,
        "rms": f"{rms(written):.5f}",
        "category_policy": recording.policy,
        **({"rendering": job.rendering} if job.rendering else {}),
    }


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
