"""Scans each recording once for the windows that may become clips. Memory is bounded.

A long recording is read in parts of a minute, at most `MAX_PARTS` of them chosen by hash, so a file of two hours needs
no more memory than one of a minute.
"""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import RATE, Wave, load_part, read_header, read_sound
from evaluators.errors import UserError
from evaluators.levels import TOO_LOUD, Levels, measure_levels, without_offset

from .cues import cues
from .mixing import SLOPES_DB, active_span, coloured_noise, frame_power
from .recipe import Made
from .recordings import Recording
from .voice import VoiceActivity

PART_S = 60.0  # seconds of a recording that are in memory at once
MAX_PARTS = 24  # parts read of one recording
SYNTHETIC_S = 2.0
RANGE_DB = 45.0  # the active part lies within this of the loudest frame
SILENT = "digital silence"
CANCELLED = "its channels cancel when they are averaged"
NOTES: tuple[tuple[str, Callable[[Levels], bool]], ...] = (  # completes "3 recordings ..."
    (
        "had an offset (DC) above a tenth of their RMS, which was taken off",
        lambda v: bool(v.offset),
    ),
    (
        "have a header that does not tell their length, and were read to their end",
        lambda v: not v.told,
    ),
    (
        "hold samples far above full scale, floats in the range of integers",
        lambda v: v.peak >= TOO_LOUD,
    ),
    ("clip (3 samples or more at full scale)", lambda v: v.clipped >= 3),
)
OFFSETS = (0, -1, 1, -2, 2, -3, 3)  # windows beside the centre, in clip lengths


@dataclass(frozen=True, slots=True)
class Window:
    """A cut that may become a clip: seconds of the part that holds it, first sample within the part."""

    start_s: float
    end_s: float
    first: int
    duration_ms: int
    match_features: tuple[float, ...]  # peak to RMS, bandwidth and tilt of the clean cut
    voiced: tuple[bool, ...]  # voice activity per frame of `frame` samples
    frame: int
    steady: bool  # no 20 ms of it are digital silence: it can be mixed in as noise

    def voiced_share(self, duration_ms: int) -> float:
        """Share of speech among the frames that the middle `duration_ms` touches."""
        samples, middle = self.duration_ms * RATE // 1000, duration_ms * RATE // 1000
        first = (samples - middle) // 2
        touched = self.voiced[first // self.frame : -(-(first + middle) // self.frame)]
        return float(np.mean(touched)) if touched else 0.0


@dataclass(frozen=True, slots=True)
class Scan:
    """The windows of one recording. `reason` says why there is none, and is empty otherwise."""

    windows: tuple[Window, ...]
    digest: str  # SHA-256 of the samples read, 16 bit at 16 kHz; empty where none could be
    seconds: float
    reason: str
    notes: tuple[str, ...] = ()  # what of it was mended or is strange, from `NOTES`

    def to_json(self) -> dict[str, Any]:
        """Plain data for the journal of a build."""
        windows = [list(astuple(w)) for w in self.windows]
        return asdict(self) | {"windows": windows}

    @staticmethod
    def from_json(raw: dict[str, Any]) -> "Scan":
        """The inverse of `to_json`."""
        windows = (Window(*w[:4], tuple(w[4]), tuple(w[5]), *w[6:]) for w in raw["windows"])
        notes = tuple(raw.get("notes", ()))
        return Scan(tuple(windows), raw["digest"], raw["seconds"], raw["reason"], notes)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a recording in memory, with its voice activity per frame of `frame` samples."""

    start_s: float
    end_s: float
    wave: Wave
    speech: NDArray[np.bool_]
    frame: int

    @property
    def level(self) -> Wave:
        """The samples without any offset, for power."""
        return np.asarray(self.wave - self.wave.mean(dtype=np.float64), dtype=np.float32)

    def speech_power(self) -> float | None:
        """Mean power of the samples in speech frames, or None without any."""
        inside = np.repeat(self.speech, self.frame)[: len(self.wave)]
        return float((self.level.astype(np.float64)[inside] ** 2).mean()) if inside.any() else None

    def window(self, first: int, duration_ms: int) -> Window:
        """The window of `duration_ms` from a sample on, its sound not measured yet."""
        last = first + duration_ms * RATE // 1000
        voiced = tuple(self.speech[first // self.frame : -(-last // self.frame)].tolist())
        return Window(
            self.start_s, self.end_s, first, duration_ms, (), voiced, self.frame, steady=False
        )


def stable_seed(*parts: object) -> int:
    """A seed from a hash of its arguments, equal on every machine and in every process."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big")


def part_times(recording: Recording, shortest_s: float = 0.001) -> list[tuple[float, float]]:
    """The parts of a recording to read, in seconds: at most a minute each, at most `MAX_PARTS`.

    Raises:
        UserError: A speaker turn starts after the end of the audio, or the file cannot be opened.
    """
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
        out = sorted(sorted(out, key=lambda p: stable_seed(recording.name, *p))[:MAX_PARTS])
    return out


def read_part(recording: Recording, start_s: float, end_s: float) -> Wave:
    """The samples of a part at 16 kHz, without a steady offset; synthetic sounds are generated from their name."""
    if recording.path is not None:
        return without_offset(load_part(recording.path, start_s, end_s))
    return _synthetic(recording, start_s, end_s)


def _synthetic(recording: Recording, start_s: float, end_s: float) -> Wave:
    samples = round((end_s - start_s) * RATE)
    if recording.kind == "silence":
        return np.zeros(samples, dtype=np.float32)
    rng = np.random.default_rng(stable_seed(recording.name))
    return 0.1 * coloured_noise(samples, SLOPES_DB[recording.kind], rng)


def scan_recording(recording: Recording, recipe: Made, activity: VoiceActivity) -> Scan:
    """All windows of a recording that pass the recipe's checks.

    Where shorter clips are cut from the middle of a window, those pass them too.

    Raises:
        UserError: A file cannot be decoded; names it, and the table's line that lists it.
    """
    heard = _Heard()
    shortest = min(recipe.cut_ms)
    try:
        for start_s, end_s in part_times(recording, shortest / 1000):
            wave = heard.read(recording, start_s, end_s)
            if recording.category == "silence":
                heard.windows += _silent_windows(start_s, end_s, len(wave), recipe)
                heard.reasons.append("")
                continue
            part = Part(start_s, end_s, wave, activity(wave), activity.frame)
            heard.measure(part)
            found, reason = _windows(part, recording.label, recipe)
            heard.windows += found
            heard.reasons.append(reason)
    except UserError as error:
        raise UserError(f"{recording.where}: {error}" if recording.where else str(error)) from None
    windows, reasons, reason = heard.windows, heard.reasons, ""
    if recording.label == "SPEECH" and windows:
        snr = recording.est_snr_db
        snr = heard.snr_db(pooled=bool(recording.parts)) if snr is None else snr
        if snr is not None and snr < recipe.min_source_snr_db:
            windows = []
            reason = f"its own SNR is {snr:.0f} dB, below {recipe.min_source_snr_db:g}"
    if not windows and not reason:
        reason = max(reasons, key=reasons.count) if reasons else f"shorter than {shortest} ms"
        reason = CANCELLED if heard.cancelled else reason
    notes = tuple(dict.fromkeys(heard.notes))
    return Scan(tuple(windows), heard.digest.hexdigest(), heard.seconds, reason, notes)


@dataclass
class _Heard:
    """What is gathered of a recording, part by part."""

    digest: Any = field(default_factory=hashlib.sha256)
    seconds: float = 0.0
    windows: list[Window] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cancelled: bool = False  # in some part
    _floors: list[float] = field(default_factory=list)
    _frames: list[NDArray[np.float64]] = field(default_factory=list)
    _speech: list[float] = field(default_factory=list)

    def read(self, recording: Recording, start_s: float, end_s: float) -> Wave:
        """The samples of a part, as `read_part` gives them."""
        if recording.path is None:
            wave = _synthetic(recording, start_s, end_s)
        else:
            sound = read_sound(recording.path, start_s, end_s)
            wave, levels = without_offset(sound.wave), measure_levels(sound)
            self.notes += [what for what, test in NOTES if test(levels)]
            self.cancelled |= levels.cancelled
        self.seconds += len(wave) / RATE
        self.digest.update(np.round(np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes())
        return wave

    def measure(self, part: Part) -> None:
        """Adds a part's power in speech, and its frames."""
        power = part.speech_power()
        self._speech += [] if power is None else [power]
        frames = frame_power(part.level)
        self._floors.append(float(np.percentile(frames, 5)))
        self._frames.append(frames)

    def snr_db(self, pooled: bool) -> float | None:
        """Speech over the quietest frames: of each part in the mean, or of all together where parts may lack pauses."""
        if not self._speech:
            return None
        floor = np.percentile(np.concatenate(self._frames), 5) if pooled else np.mean(self._floors)
        return float(10 * np.log10(np.mean(self._speech) / (floor + 1e-12)))


def _silent_windows(start_s: float, end_s: float, samples: int, recipe: Made) -> list[Window]:
    return [
        Window(start_s, end_s, 0, d, (0.0,) * 4, (), 1, False)
        for d in recipe.cut_ms
        if d * RATE // 1000 <= samples
    ]


def _windows(part: Part, label: str, recipe: Made) -> tuple[list[Window], str]:
    """Windows from the centre of the active part outwards, and why there is none."""
    if not np.abs(part.wave).max() > 0:
        return [], SILENT
    first, last = active_span(part.wave, RANGE_DB)
    out: list[Window] = []
    reason = f"shorter than {min(recipe.cut_ms)} ms"
    for duration in recipe.cut_ms:
        samples = duration * RATE // 1000
        centre = (first + last - samples) // 2
        for start in (centre + side * samples for side in OFFSETS):
            if start < first or start + samples > last:
                continue
            window = part.window(start, duration)
            cut = part.wave[start : start + samples]
            shorter = [d for d in recipe.durations_ms if d < duration and len(recipe.cut_ms) == 1]
            faults = (_fault(cut, window, d, label, recipe) for d in (duration, *shorter))
            fault = next(filter(None, faults), "")
            if fault:
                reason = fault
            else:
                features = tuple(round(float(x), 4) for x in cues(cut)[1:])
                steady = bool(frame_power(cut).min() > 1e-9)
                out.append(replace(window, match_features=features, steady=steady))
    return out, "" if out else reason


def _fault(cut: Wave, window: Window, duration_ms: int, label: str, recipe: Made) -> str:
    """Why the middle `duration_ms` of a window may not become a clip; empty if it may."""
    samples = duration_ms * RATE // 1000
    first = (len(cut) - samples) // 2
    power = frame_power(cut[first : first + samples])
    level = 10 * np.log10(np.sort(power)[len(power) // 2 :].mean() + 1e-12)
    voiced = window.voiced_share(duration_ms)
    if label == "SPEECH" and voiced < recipe.vad_speech:
        return f"voice activity {voiced:.2f}, below {recipe.vad_speech:g}"
    if label != "SPEECH" and voiced > recipe.vad_nonspeech:
        return f"voice activity {voiced:.2f}, above {recipe.vad_nonspeech:g}"
    if level < recipe.min_active_dbfs:
        return f"level {level:.0f} dBFS, below {recipe.min_active_dbfs:g}"
    return "holds digital silence" if (power < 1e-9).mean() >= 0.1 else ""
