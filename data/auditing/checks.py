"""The checks of a clip set, each a function that notes findings; data/audit.py is the command."""

import functools
import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from evaluators.audio import RATE, Wave, load
from evaluators.clips import Clip
from evaluators.errors import LeakError, UserError
from evaluators.manifest import SPLITS, manifest_path, read_manifest, verify
from evaluators.splits import check_trained_on, read_registry, trained_sources

from ..building.cues import LIMIT, shortcut_accuracy
from ..building.recordings import read_table
from ..building.voice import Silero

CLIPPED = 0.9995  # a sample this close to full scale is taken for clipped
ALIKE = 0.985  # cosine of two clips' spectra from which their samples are compared
SAME = 0.8  # correlation of samples at the best shift from which two clips are one sound
FREESOUND = re.compile(r"(?:^|[/_:])\d-(\d+)-[A-Z]-\d+(?:[._]|$)|freesound:(\d+)")
SHOWN = 5  # examples printed of each finding


@dataclass(frozen=True)
class Finding:
    """Something the audit saw. A fault makes the exit code 1; the rest is for the reader to judge."""

    fault: bool
    text: str
    clips: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measures:
    """What was measured on one clip."""

    clip: Clip
    seconds: float
    rate: int
    peak: float
    rms: float
    clipped: int  # samples
    pcm: str  # SHA-256 of the samples
    spectrum: NDArray[np.float32]  # for finding the same sound under another name
    voice: float | None  # share of frames that Silero calls speech


@dataclass
class Audit:
    """All findings and measures of a clip set."""

    manifest: Path
    clips: list[Clip]
    rows: list[dict[str, str]]  # of the manifest, one a clip
    findings: list[Finding] = field(default_factory=list)
    measures: list[Measures] = field(default_factory=list)
    shortcuts: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def add(self, fault: bool, text: str, clips: Iterable[str] = ()) -> None:
        """Notes a finding."""
        self.findings.append(Finding(fault, text, tuple(clips)))

    @property
    def faults(self) -> list[Finding]:
        """The findings that make the set unfit."""
        return [f for f in self.findings if f.fault]


def spectrum(wave: Wave) -> NDArray[np.float32]:
    """Mean and spread over time of 24 log bands, level taken out: alike for one sound, whatever its gain and shift."""
    size = 512
    padded = np.pad(wave, (0, max(0, size - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 2]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2 + 1e-9
    edges = np.geomspace(2, size // 2, 25).astype(int)
    bands = np.log(
        np.stack([power[:, a : max(b, a + 1)].mean(axis=1) for a, b in pairwise(edges)], 1)
    )
    mean = bands.mean(axis=0)
    out = np.concatenate([mean - mean.mean(), bands.std(axis=0)])
    return np.asarray(out / (np.linalg.norm(out) + 1e-9), dtype=np.float32)


def correlation(a: Wave, b: Wave) -> float:
    """Largest correlation of two waves over all shifts, 1 for the same sound at any gain."""
    size = 1 << (len(a) + len(b) - 1).bit_length()
    product = np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size).conj(), size)
    return float(np.abs(product).max() / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-12))


def measure(clip: Clip, voice: Silero | None) -> Measures:
    """Decodes a clip once and measures it."""
    wave = load(clip.path)
    info = soundfile.info(clip.path)
    samples = np.round(np.clip(wave, -1, 1) * 32767).astype("<i2")
    return Measures(
        clip=clip,
        seconds=info.frames / info.samplerate,
        rate=info.samplerate,
        peak=float(np.abs(wave).max()),
        rms=float(np.sqrt((wave.astype(np.float64) ** 2).mean())),
        clipped=int((np.abs(wave) >= CLIPPED).sum()),
        pcm=hashlib.sha256(samples.tobytes()).hexdigest(),
        spectrum=spectrum(wave),
        voice=float(voice(wave).mean()) if voice else None,
    )


def same_name(source: str) -> str:
    """A source id as people mean it: no spaces around, one case, one way to write accents."""
    return unicodedata.normalize("NFC", source).strip().casefold()


def _examples(items: Sequence[str]) -> str:
    return ", ".join(items[:SHOWN]) + (", ..." if len(items) > SHOWN else "")


def check_sources(audit: Audit) -> None:
    """Sources and uploads in two splits, and splits that differ from the registry's."""
    splits: dict[str, set[str]] = defaultdict(set)
    for clip in audit.clips:
        splits[same_name(clip.source_id)].add(clip.split)
    for source, found in sorted(splits.items()):
        if len(found) > 1:
            audit.add(
                True,
                f"leak: source {source!r} stands in {' and '.join(sorted(found))}",
                [c.clip_id for c in audit.clips if same_name(c.source_id) == source],
            )
    registry = read_registry(audit.manifest)
    if registry is not None:
        wrong = sorted(
            {
                f"{c.source_id} ({registry.splits[c.source_id]} there, {c.split} here)"
                for c in audit.clips
                if registry.splits.get(c.source_id, c.split) != c.split
            }
        )
        if wrong:
            audit.add(
                True, f"leak: {len(wrong)} sources differ from the registry: {_examples(wrong)}"
            )
    cut_from: dict[str, set[str]] = defaultdict(set)
    for clip, row in zip(audit.clips, audit.rows, strict=True):
        if row.get("recording"):
            cut_from[row["recording"]].add(clip.split)
        noise = same_name(row.get("noise_source") or "")
        if splits.get(noise, {clip.split}) != {clip.split}:
            text = f"leak: clip {clip.clip_id!r} in {clip.split} holds noise of source {noise!r}"
            audit.add(True, f"{text} in {' and '.join(sorted(splits[noise]))}", [clip.clip_id])
    for recording, found in sorted(cut_from.items()):
        if len(found) > 1:
            text = f"leak: recording {recording!r} stands in {' and '.join(sorted(found))}"
            audit.add(True, text)
    uploads: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for clip, row in zip(audit.clips, audit.rows, strict=True):
        for text in (clip.source_id, clip.path.name, row.get("recording") or ""):
            if match := FREESOUND.search(text):
                uploads[match.group(1) or match.group(2)].add((clip.source_id, clip.split))
    for upload, where in sorted(uploads.items()):
        if len({split for _, split in where}) > 1 and len({source for source, _ in where}) > 1:
            names = ", ".join(f"{source} in {split}" for source, split in sorted(where))
            audit.add(True, f"leak: Freesound upload {upload} stands in two splits: {names}")


def check_heard(audit: Audit, checkpoint: str) -> None:
    """Sources of dev and test that a checkpoint was trained on."""
    from evaluators.audio_lm.checkpoint import open_checkpoint

    stored = open_checkpoint(checkpoint).trained_on
    heard = trained_sources(checkpoint, stored, audit.manifest, None, ())
    judged = [c for c in audit.clips if c.split != "train"]
    try:
        for text in check_trained_on(judged, heard, checkpoint):
            audit.add(False, text)
    except LeakError as error:
        ids = [c.clip_id for c in judged if c.source_id in (heard or ())]
        audit.add(True, f"leak: {error}", ids)


def check_files(audit: Audit, voice: Silero | None) -> None:
    """Files that are missing, changed or cannot be decoded; measures the rest."""
    from rich.console import Console
    from rich.progress import track

    broken: list[str] = []
    for clip in track(audit.clips, "clips", console=Console(stderr=True)):
        try:
            verify([clip])
            audit.measures.append(measure(clip, voice))
        except UserError as error:
            broken.append(str(error))
    for text in broken[:SHOWN]:
        audit.add(True, text)
    if len(broken) > SHOWN:
        audit.add(True, f"{len(broken) - SHOWN} more files are missing, changed or broken")


def check_content(audit: Audit) -> None:
    """Equal or nearly equal sounds under two source ids; across splits it is a leak."""
    by_pcm: dict[str, list[Clip]] = defaultdict(list)
    for m in audit.measures:
        if m.peak > 0:
            by_pcm[m.pcm].append(m.clip)
    seen: set[tuple[str, str]] = set()
    noise = {r["clip_id"]: r.get("noise_source") or "" for r in audit.rows}

    def note(a: Clip, b: Clip, how: str) -> None:
        key = (min(a.source_id, b.source_id), max(a.source_id, b.source_id))
        if a.source_id == b.source_id or key in seen:
            return
        if noise[a.clip_id] and noise[a.clip_id] == noise[b.clip_id] and a.split == b.split:
            return  # what is alike is the noise that was mixed in
        seen.add(key)
        across = a.split != b.split
        audit.add(
            across,
            f"{'leak: ' if across else ''}clips {a.clip_id!r} ({a.source_id}, {a.split}) and"
            f" {b.clip_id!r} ({b.source_id}, {b.split}) {how}",
            (a.clip_id, b.clip_id),
        )

    for clips in by_pcm.values():
        for other in clips[1:]:
            note(clips[0], other, "hold the same samples")

    @functools.lru_cache(512)
    def wave(path: Path) -> Wave:
        return load(path)

    matrix = np.stack([m.spectrum for m in audit.measures]) if audit.measures else np.zeros((0, 1))
    source = np.array([m.clip.source_id for m in audit.measures])
    for first in range(0, len(matrix), 512):
        likeness = matrix[first : first + 512] @ matrix.T
        likeness[source[first : first + 512, None] == source[None]] = 0
        for i, row in enumerate(likeness, first):
            for j in np.argsort(-row)[:3]:
                if row[j] < ALIKE or j < i:
                    continue
                a, b = audit.measures[i].clip, audit.measures[j].clip
                r = correlation(wave(a.path), wave(b.path))
                if r >= SAME:
                    note(a, b, f"are nearly the same sound (correlation {r:.2f})")


def check_measures(audit: Audit) -> None:
    """Levels, clipping, rates, durations, and labels that voice activity contradicts."""
    ms = audit.measures

    def count(fault: bool, what: str, found: Sequence[Measures]) -> None:
        if found:
            ids = [m.clip.clip_id for m in found]
            audit.add(fault, f"{len(found)} clips {what}: {_examples(ids)}", ids)

    count(True, "are digital silence but not of category silence", [
        m for m in ms if m.peak == 0 and m.clip.category != "silence"
    ])  # fmt: skip
    count(True, "clip (3 samples or more at full scale)", [m for m in ms if m.clipped >= 3])
    count(False, "are quieter than -60 dBFS", [m for m in ms if 0 < m.rms < 1e-3])
    count(False, "are not at 16 kHz and will be resampled", [m for m in ms if m.rate != RATE])
    count(False, "last 5 % more or less than the manifest says", [
        m for m in ms if abs(1000 * m.seconds / max(m.clip.duration_ms, 1e-9) - 1) > 0.05
    ])  # fmt: skip
    # Silero needs some 100 ms to start: on shorter clips its silence says nothing about the label.
    clean = [
        m
        for m in ms
        if m.voice is not None
        and m.seconds >= 0.5
        and (m.clip.snr_db is None or m.clip.snr_db >= 9.5)
    ]
    speech = [m for m in clean if m.clip.label == "SPEECH"]
    other = [m for m in clean if m.clip.label != "SPEECH"]
    for what, found, of in (
        ("SPEECH clips hold under 10 % voice", [m for m in speech if m.voice < 0.1], speech),
        ("NONSPEECH clips hold over 50 % voice", [m for m in other if m.voice > 0.5], other),
    ):
        if of:
            ids = [m.clip.clip_id for m in found]
            audit.add(
                len(found) > 0.1 * len(of),
                f"{len(found)} of {len(of)} {what} by Silero, of 500 ms and 10 dB and above"
                + (f": {_examples(ids)}" if ids else "")
                + (" (label noise above 10 %)" if len(found) > 0.1 * len(of) else ""),
                ids,
            )


def check_targets(audit: Audit) -> None:
    """SNR and T60 as measured against what was asked for."""

    def number(row: dict[str, str], name: str) -> float:
        try:
            return float(row.get(name) or "nan")
        except ValueError:
            return float("nan")

    for kind, target, unit, limit in (
        ("snr_db", "snr_target_db", "dB", 1.0),
        ("t60_s", "t60_target_s", "s", 0.25),
    ):
        off = {r["clip_id"]: abs(number(r, kind) - number(r, target)) for r in audit.rows}
        off = {clip: value for clip, value in off.items() if np.isfinite(value)}
        if off:
            worst = max(off, key=lambda clip: off[clip])
            audit.add(
                off[worst] > limit,
                f"{kind} of {len(off)} clips lies at most {off[worst]:.3f} {unit} off what was asked"
                f" for ({worst})",
                [worst],
            )


def check_cells(audit: Audit) -> None:
    """Cells with one class only, and too few sources for a claim."""
    cells: dict[tuple[str, int, str], set[str]] = defaultdict(set)
    for c in audit.clips:
        if c.category not in ("noise", "silence"):
            snr = "none" if c.snr_db is None else f"{round(c.snr_db / 5) * 5:+d} dB"
            cells[c.split, round(c.duration_ms), snr].add(c.label)
    lonely = [
        f"{s} {d} ms {snr}" for (s, d, snr), labels in sorted(cells.items()) if len(labels) < 2
    ]
    if lonely:
        audit.add(
            False, f"{len(lonely)} cells hold one class: {_examples(lonely)}; no accuracy there"
        )
    for split in ("dev", "test"):
        for label in sorted({c.label for c in audit.clips if c.split == split}):
            n = len({c.source_id for c in audit.clips if (c.split, c.label) == (split, label)})
            if n < (20 if split == "dev" else 10):
                audit.add(
                    False,
                    f"{split} has {n} {label} sources; a claim needs 10 (dev: in each half)",
                )


def check_shortcuts(audit: Audit) -> None:
    """The linear model on level, bandwidth and tilt, per split and for all."""
    parts = {s: [c for c in audit.clips if c.split == s] for s in SPLITS} | {"all": audit.clips}
    for name, part in parts.items():
        sources = [
            len({c.source_id for c in part if c.label == label})
            for label in {c.label for c in part}
        ]
        if len(sources) < 2 or min(sources) < 5:
            continue
        mean, low, high = audit.shortcuts[name] = shortcut_accuracy(part)
        if name == "all" or mean > LIMIT:
            audit.add(
                mean > LIMIT and low > 0.5,  # few clips give any mean by chance
                f"shortcut, {name}: level, bandwidth and tilt alone give {100 * mean:.1f} %"
                f" [{100 * low:.1f}, {100 * high:.1f}] balanced accuracy, limit {100 * LIMIT:.0f} %",
            )


def audit_clips(
    manifest: Path, labels: Sequence[str], checkpoint: str | None = None, with_voice: bool = True
) -> Audit:
    """All checks of a clip set.

    Raises:
        UserError: The manifest cannot be read.
    """
    clips = read_manifest(manifest, labels, leaks=True)
    audit = Audit(manifest, clips, [row for _, row in read_table(manifest_path(manifest), ())])
    check_sources(audit)
    if checkpoint is not None:
        check_heard(audit, checkpoint)
    voice = None
    if with_voice:
        try:
            voice = Silero()
        except UserError as error:
            audit.add(False, f"labels not checked by voice activity: {error}")
    check_files(audit, voice)
    check_content(audit)
    check_measures(audit)
    check_targets(audit)
    check_cells(audit)
    if len(audit.measures) == len(audit.clips):
        check_shortcuts(audit)
    return audit
