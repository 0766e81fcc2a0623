"""Looks at recordings once: where clips can be cut, what voice activity says, what they hold. Bounded memory.

A long recording is looked at in parts of a minute, at most `MAX_PARTS` of them chosen by hash, so a file of two hours
costs no more memory than one of a minute.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import FRAME as POWER_FRAME
from evaluators.audio import RATE, Wave, coloured_noise, frame_power, load_part, read_header
from evaluators.errors import UserError

from .cues import cues
from .recipe import Design
from .recordings import Recording
from .voice import Voice

PART_S = 60.0  # seconds of a recording that are in memory at once
MAX_PARTS = 24  # parts looked at in one recording
SYNTHETIC_S = 2.0
RANGE_DB = 45.0  # the active part lies within this of the loudest frame
OFFSETS = (0, -1, 1, -2, 2, -3, 3)  # cuts beside the centre, in clip lengths


@dataclass(frozen=True, slots=True)
class Window:
    """A cut that may become a clip: seconds of the part that holds it, first sample within the part."""

    start_s: float
    end_s: float
    first: int
    duration_ms: int
    looks: tuple[float, ...]  # peak to RMS, bandwidth and tilt of the clean cut, for matching
    voiced: tuple[bool, ...]  # voice activity per frame of `frame` samples
    frame: int
    steady: bool  # no 20 ms of it are digital silence: fit to be mixed in as noise

    def voiced_share(self, duration_ms: int) -> float:
        """Share of the frames that its middle `duration_ms` touches that are speech."""
        return share(self.voiced, self.frame, self.duration_ms, duration_ms)


def share(voiced: Sequence[bool], frame: int, whole_ms: int, part_ms: int) -> float:
    """Share of speech among the frames that the middle `part_ms` of a cut of `whole_ms` touches."""
    samples, part = whole_ms * RATE // 1000, part_ms * RATE // 1000
    first = (samples - part) // 2
    touched = voiced[first // frame : -(-(first + part) // frame)]
    return float(np.mean(touched)) if len(touched) else 0.0


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found in one recording. `reason` says why it gives no window, and is empty otherwise."""

    windows: tuple[Window, ...]
    digest: str  # SHA-256 of the samples looked at, 16 bit at 16 kHz
    seconds: float
    reason: str


def stable(*parts: object) -> int:
    """A seed from a hash, equal on every machine and in every process."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big")


def parts_of(recording: Recording, shortest_s: float = 0.001) -> list[tuple[float, float]]:
    """The parts of a recording to look at, in seconds: at most a minute each, at most `MAX_PARTS`."""
    if recording.path is None:
        return [(0.0, SYNTHETIC_S)]
    seconds = read_header(recording.path).seconds
    for start, _ in recording.parts:
        if start >= seconds:
            raise UserError(
                f"{recording.where}: a turn starts at {start:.2f} s, but"
                f" {str(recording.path)!r} ends at {seconds:.2f} s; the two do not belong together"
            )
    out = []
    for start, end in recording.parts or ((0.0, seconds),):
        end = min(end, seconds)
        if end - start < shortest_s:
            continue  # a turn too short for any clip
        count = max(1, int(np.ceil((end - start) / PART_S)))
        edges = np.linspace(start, end, count + 1)
        out += [(round(float(a), 4), round(float(b), 4)) for a, b in itertools.pairwise(edges)]
    if len(out) > MAX_PARTS:
        # Longest first would favour monologues: a hash is fair, and does not move when parts are added.
        out = sorted(sorted(out, key=lambda p: stable(recording.name, *p))[:MAX_PARTS])
    return out


def read_part(recording: Recording, start_s: float, end_s: float) -> Wave:
    """The samples of a part at 16 kHz; synthetic sounds are made from their name."""
    if recording.path is not None:
        return load_part(recording.path, start_s, end_s)
    samples = round((end_s - start_s) * RATE)
    if recording.kind == "silence":
        return np.zeros(samples, dtype=np.float32)
    rng = np.random.default_rng(stable(recording.name))
    return 0.1 * coloured_noise(samples, -3.0 if recording.kind == "pink" else 0.0, rng)


def scan(recording: Recording, recipe: Design, durations_ms: Sequence[int], voice: Voice) -> Scan:
    """All windows of a recording that pass the recipe's hygiene; where shorter clips are cut from the middle of one,
    those pass it too.

    Raises:
        UserError: A file cannot be decoded; names it, and the table's line that lists it.
    """
    digest = hashlib.sha256()
    windows: list[Window] = []
    reasons: list[str] = []
    seconds = 0.0
    noise_floor: list[float] = []
    speech_power: list[float] = []
    try:
        for start_s, end_s in parts_of(recording, min(durations_ms) / 1000):
            wave = read_part(recording, start_s, end_s)
            seconds += len(wave) / RATE
            digest.update(np.round(np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes())
            if recording.category == "silence":
                found, why = _silent(wave, start_s, end_s, durations_ms), ""
            else:
                speech = voice(wave)
                power = frame_power(wave)
                noise_floor.append(float(np.percentile(power, 5)))
                heard = np.repeat(speech, voice.frame)[: len(wave)]
                if heard.any():
                    speech_power.append(float((wave.astype(np.float64)[heard] ** 2).mean()))
                found, why = _windows(
                    wave, speech, voice.frame, recording, start_s, end_s, recipe, durations_ms
                )
            windows += found
            reasons.append(why)
    except UserError as error:
        raise UserError(f"{recording.where}: {error}" if recording.where else str(error)) from None
    reason = ""
    if recording.label == "SPEECH" and windows:
        est = recording.est_snr_db
        if est is None and speech_power and not recording.parts:
            est = 10 * np.log10(np.mean(speech_power) / (np.mean(noise_floor) + 1e-12))
        if est is not None and est < recipe.min_source_snr_db:
            windows, reason = (
                [],
                f"its own SNR is {est:.0f} dB, below {recipe.min_source_snr_db:g}",
            )
    if not windows and not reason:
        reason = (
            max(reasons, key=reasons.count) if reasons else f"shorter than {min(durations_ms)} ms"
        )
    return Scan(tuple(windows), digest.hexdigest(), seconds, reason)


def _silent(wave: Wave, start_s: float, end_s: float, durations_ms: Sequence[int]) -> list[Window]:
    return [
        Window(start_s, end_s, 0, d, (0.0,) * 4, (), 1, False)
        for d in durations_ms
        if d * RATE // 1000 <= len(wave)
    ]


def _windows(
    wave: Wave,
    speech: NDArray[np.bool_],
    frame: int,
    recording: Recording,
    start_s: float,
    end_s: float,
    recipe: Design,
    durations_ms: Sequence[int],
) -> tuple[list[Window], str]:
    """Cuts from the centre of the active part outwards, and why there are none."""
    power = frame_power(wave)
    if not power.max() > 0:
        return [], "digital silence"
    loud = np.flatnonzero(power >= power.max() * 10 ** (-RANGE_DB / 10))
    first, last = int(loud[0]) * POWER_FRAME, min(len(wave), (int(loud[-1]) + 1) * POWER_FRAME)
    out: list[Window] = []
    why = f"shorter than {min(durations_ms)} ms"
    for duration in durations_ms:
        samples = duration * RATE // 1000
        centre = (first + last - samples) // 2
        for start in (centre + side * samples for side in OFFSETS):
            if start < first or start + samples > last:
                continue
            voiced = tuple(bool(x) for x in speech[start // frame : -(-(start + samples) // frame)])
            cut = wave[start : start + samples]
            inner = (
                [d for d in recipe.durations_ms if d < duration] if len(durations_ms) == 1 else []
            )
            for part in (duration, *inner):
                why_not = _unfit(cut, voiced, frame, duration, part, recording.label, recipe)
                if why_not:
                    why = why_not
                    break
            else:
                looks = tuple(round(float(x), 4) for x in cues(cut)[1:])
                steady = bool(frame_power(cut).min() > 1e-9)
                out.append(
                    Window(start_s, end_s, int(start), duration, looks, voiced, frame, steady)
                )
    return out, "" if out else why


def _unfit(
    cut: Wave,
    voiced: Sequence[bool],
    frame: int,
    whole_ms: int,
    part_ms: int,
    label: str,
    recipe: Design,
) -> str:
    """Why the middle `part_ms` of a cut may not become a clip; empty if it may."""
    samples = part_ms * RATE // 1000
    first = (len(cut) - samples) // 2
    power = frame_power(cut[first : first + samples])
    level = 10 * np.log10(np.sort(power)[len(power) // 2 :].mean() + 1e-12)
    fraction = share(voiced, frame, whole_ms, part_ms)
    if label == "SPEECH" and fraction < recipe.vad_speech:
        return f"voice activity {fraction:.2f}, below {recipe.vad_speech:g}"
    if label != "SPEECH" and fraction > recipe.vad_nonspeech:
        return f"voice activity {fraction:.2f}, above {recipe.vad_nonspeech:g}"
    if level < recipe.min_active_dbfs:
        return f"level {level:.0f} dBFS, below {recipe.min_active_dbfs:g}"
    return "holds digital silence" if (power < 1e-9).mean() >= 0.1 else ""


def to_json(found: Scan) -> dict[str, object]:
    """Plain data for the state of an unfinished build."""
    return dataclasses.asdict(found) | {
        "windows": [list(dataclasses.astuple(w)) for w in found.windows]
    }


def from_json(raw: dict[str, object]) -> Scan:
    """The inverse of `to_json`."""
    windows = tuple(
        Window(*w[:4], tuple(w[4]), tuple(w[5]), *w[6:])
        for w in raw["windows"]  # type: ignore[attr-defined]
    )
    return Scan(windows, str(raw["digest"]), float(raw["seconds"]), str(raw["reason"]))  # type: ignore[arg-type]
