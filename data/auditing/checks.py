"""The checks of a clip set: each is a function that adds findings to an `Audit`."""

import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import Wave, load, read_sound
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.clip_checks import MAX_EXAMPLES, MeasuredClip, find_troubles, sentence
from evaluators.clips import Clip
from evaluators.errors import LeakError, UserError
from evaluators.files import read_table
from evaluators.levels import measure_levels
from evaluators.manifest import (
    COLUMNS,
    NEEDED,
    SPLITS,
    manifest_path,
    read_manifest,
    spelling_notes,
    verify,
)
from evaluators.names import name_key, spellings
from evaluators.renderings import read_renderings, renderings_path
from evaluators.splits import check_trained_on, read_registry, trained_sources
from evaluators.tasks import SPEECH_TASK, Task

from ..building.cues import MAX_ACCURACY, shortcut_accuracy
from ..building.voice import SileroActivity

MIN_COSINE = 0.985  # of two clips' spectra, for a comparison of their samples
MIN_CORRELATION = 0.8  # of two clips' samples at the best shift, to call them one sound
FREESOUND = re.compile(r"(?:^|[/_:])\d-(\d+)-[A-Z]-\d+(?:[._]|$)|freesound:(\d+)")


@dataclass(frozen=True)
class Finding:
    """One result of a check. A fault makes the exit code 1; a note is for the reader to judge."""

    fault: bool
    text: str
    clips: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Measures:
    """The measurements of one clip."""

    known: MeasuredClip
    pcm: str  # SHA-256 of the samples
    spectrum: NDArray[np.float32]  # finds the same sound under another name
    voice: float | None  # share of frames that Silero calls speech

    @property
    def clip(self) -> Clip:
        """The clip."""
        return self.known.clip


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
        """Adds a finding."""
        self.findings.append(Finding(fault, text, tuple(clips)))

    @property
    def faults(self) -> list[Finding]:
        """The findings that make the set unfit."""
        return [f for f in self.findings if f.fault]

    def groups(self) -> Iterator[tuple[str, str, list[Clip]]]:
        """(split, label, clips) of each label in each split."""
        for split in SPLITS:
            part = [c for c in self.clips if c.split == split]
            for label in sorted({c.label for c in part}):
                yield split, label, [c for c in part if c.label == label]


def spectrum(wave: Wave) -> NDArray[np.float32]:
    """Unit vector of the mean and spread over time of 24 log bands without level: alike for one sound at any gain."""
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


def measure(clip: Clip, activity: SileroActivity | None) -> Measures:
    """The measurements of a clip, which is decoded once.

    Raises:
        UserError: The clip cannot be decoded.
    """
    sound = read_sound(clip.path)
    samples = np.round(np.clip(sound.wave, -1, 1) * 32767).astype("<i2")
    return Measures(
        known=MeasuredClip(clip, measure_levels(sound), sound.header.seconds),
        pcm=hashlib.sha256(samples.tobytes()).hexdigest(),
        spectrum=spectrum(sound.wave),
        voice=float(activity(sound.wave).mean()) if activity else None,
    )


def _examples(items: Sequence[str]) -> str:
    return ", ".join(items[:MAX_EXAMPLES]) + (", ..." if len(items) > MAX_EXAMPLES else "")


def _splits_of_sources(audit: Audit) -> dict[str, set[str]]:
    splits: dict[str, set[str]] = defaultdict(set)
    for clip in audit.clips:
        splits[name_key(clip.source_id)].add(clip.split)
    return splits


def check_sources(audit: Audit) -> None:
    """Sources in two splits, and splits that differ from the registry's."""
    for source, found in sorted(_splits_of_sources(audit).items()):
        if len(found) > 1:
            text = f"leak: source {source!r} stands in {' and '.join(sorted(found))}"
            ids = [c.clip_id for c in audit.clips if name_key(c.source_id) == source]
            audit.add(True, text, ids)
    for text in spelling_notes(audit.manifest):
        audit.add(False, text)
    if text := spellings(sorted({c.source_id for c in audit.clips}), "sources"):
        audit.add(
            False,
            f"{text}; no split may part them, but intervals count each",
        )
    registry = read_registry(audit.manifest)
    wrong = {
        f"{c.source_id} ({there} there, {c.split} here)"
        for c in audit.clips
        if registry and (there := registry.split_of(c.source_id) or c.split) != c.split
    }
    if wrong:
        text = f"leak: {len(wrong)} sources differ from the registry: {_examples(sorted(wrong))}"
        audit.add(True, text)


def check_recordings(audit: Audit) -> None:
    """Recordings, sources of mixed-in noise, and Freesound uploads that stand in two splits."""
    splits = _splits_of_sources(audit)
    cut_from: dict[str, set[str]] = defaultdict(set)
    shown: dict[str, str] = {}  # spelling of each recording
    uploads: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for clip, row in zip(audit.clips, audit.rows, strict=True):
        if recording := row.get("recording"):
            cut_from[shown.setdefault(name_key(recording), recording)].add(clip.split)
        noise = name_key(row.get("noise_source") or "")
        if splits.get(noise, {clip.split}) != {clip.split}:
            text = f"leak: clip {clip.clip_id!r} in {clip.split} holds noise of source {noise!r}"
            audit.add(True, f"{text} in {' and '.join(sorted(splits[noise]))}", [clip.clip_id])
        for text in (clip.source_id, clip.path.name, row.get("recording") or ""):
            if match := FREESOUND.search(text):
                uploads[match.group(1) or match.group(2)].add((clip.source_id, clip.split))
    for recording, found in sorted(cut_from.items()):
        if len(found) > 1:
            text = f"leak: recording {recording!r} stands in {' and '.join(sorted(found))}"
            audit.add(True, text)
    for upload, places in sorted(uploads.items()):
        if len({split for _, split in places}) > 1 and len({source for source, _ in places}) > 1:
            names = ", ".join(f"{source} in {split}" for source, split in sorted(places))
            audit.add(True, f"leak: Freesound upload {upload} stands in two splits: {names}")


def check_checkpoint(audit: Audit, checkpoint: str) -> None:
    """Sources of dev and test that a checkpoint was trained on."""
    stored = open_checkpoint(checkpoint).trained_on
    sources = trained_sources(checkpoint, stored, audit.manifest, None, ())
    scored = [c for c in audit.clips if c.split != "train"]
    try:
        for text in check_trained_on(scored, sources, checkpoint):
            audit.add(False, text)
    except LeakError as error:
        heard = set(map(name_key, sources or ()))
        ids = [c.clip_id for c in scored if name_key(c.source_id) in heard]
        audit.add(True, f"leak: {error}", ids)


def check_files(audit: Audit, activity: SileroActivity | None) -> None:
    """Files that are missing, changed or not decodable; the other clips are measured."""
    from rich.console import Console
    from rich.progress import track

    broken: list[str] = []
    for clip in track(audit.clips, "clips", console=Console(stderr=True)):
        try:
            verify([clip])
            audit.measures.append(measure(clip, activity))
        except UserError as error:
            broken.append(str(error))
    for text in broken[:MAX_EXAMPLES]:
        audit.add(True, text)
    if len(broken) > MAX_EXAMPLES:
        audit.add(True, f"{len(broken) - MAX_EXAMPLES} more files are missing, changed or broken")


def check_content(audit: Audit) -> None:
    """Equal or nearly equal sounds under two source ids; across splits it is a leak."""
    noise = {r["clip_id"]: r.get("noise_source") or "" for r in audit.rows}
    seen: set[tuple[str, str]] = set()
    for a, b, how in (*_same_samples(audit), *_same_sounds(audit)):
        key = (min(a.source_id, b.source_id), max(a.source_id, b.source_id))
        if a.source_id == b.source_id or key in seen:
            continue
        if noise[a.clip_id] and noise[a.clip_id] == noise[b.clip_id] and a.split == b.split:
            continue  # alike is the noise that was mixed in
        seen.add(key)
        across = a.split != b.split
        audit.add(
            across,
            f"{'leak: ' if across else ''}clips {a.clip_id!r} ({a.source_id}, {a.split}) and"
            f" {b.clip_id!r} ({b.source_id}, {b.split}) {how}",
            (a.clip_id, b.clip_id),
        )


def _same_samples(audit: Audit) -> Iterator[tuple[Clip, Clip, str]]:
    by_pcm: dict[str, list[Clip]] = defaultdict(list)
    for m in audit.measures:
        if not m.known.levels.silent:
            by_pcm[m.pcm].append(m.clip)
    for first, *others in by_pcm.values():
        for other in others:
            yield first, other, "hold the same samples"


def _same_sounds(audit: Audit) -> Iterator[tuple[Clip, Clip, str]]:
    """Pairs of nearly the same sound: among the three nearest spectra of each clip."""
    wave = functools.lru_cache(512)(load)
    matrix = np.stack([m.spectrum for m in audit.measures]) if audit.measures else np.zeros((0, 1))
    source = np.array([m.clip.source_id for m in audit.measures])
    for first in range(0, len(matrix), 512):
        cosine = matrix[first : first + 512] @ matrix.T
        cosine[source[first : first + 512, None] == source[None]] = 0
        for i, row in enumerate(cosine, first):
            for j in np.argsort(-row)[:3]:
                if row[j] < MIN_COSINE or j < i:
                    continue
                a, b = audit.measures[i].clip, audit.measures[j].clip
                r = correlation(wave(a.path), wave(b.path))
                if r >= MIN_CORRELATION:
                    yield a, b, f"are nearly the same sound (correlation {r:.2f})"


def check_measures(audit: Audit) -> None:
    """Silence, offset, clipping, other troubles of the level; other rates and durations than the manifest says."""
    for trouble, ids in find_troubles([m.known for m in audit.measures]):
        audit.add(trouble.fault, sentence(trouble, ids), ids)


def check_labels(audit: Audit) -> None:
    """Labels that voice activity contradicts, among clean clips that are long enough for it."""
    # Silero needs some 100 ms to start: on shorter clips its silence says nothing about the label.
    share = {
        m.clip: m.voice
        for m in audit.measures
        if m.voice is not None
        and m.known.seconds >= 0.5
        and (m.clip.snr_db is None or m.clip.snr_db >= 9.5)
    }
    for what, of, test in (
        ("SPEECH clips hold under 10 % voice",
         [c for c in share if c.label == "SPEECH"], lambda voice: voice < 0.1),
        ("NONSPEECH clips hold over 50 % voice",
         [c for c in share if c.label != "SPEECH"], lambda voice: voice > 0.5),
    ):  # fmt: skip
        if of:
            ids = [c.clip_id for c in of if test(share[c])]
            noisy = len(ids) > 0.1 * len(of)
            audit.add(
                noisy,
                f"{len(ids)} of {len(of)} {what} by Silero, of 500 ms and 10 dB and above"
                + (f": {_examples(ids)}" if ids else "")
                + (" (label noise above 10 %)" if noisy else ""),
                ids,
            )


def check_targets(audit: Audit) -> None:
    """Measured SNR and T60 that differ from their targets."""

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
    single = [
        f"{s} {d} ms {snr}" for (s, d, snr), labels in sorted(cells.items()) if len(labels) < 2
    ]
    if single:
        text = f"{len(single)} cells hold one class: {_examples(single)}; no accuracy there"
        audit.add(False, text)
    for split, label, clips in audit.groups():
        n = len({c.source_id for c in clips})
        if n < {"train": 0, "dev": 20, "test": 10}[split]:
            text = f"{split} has {n} {label} sources; a claim needs 10 (dev: in each half)"
            audit.add(False, text)


def check_shortcuts(audit: Audit) -> None:
    """Accuracy of a linear model on level, bandwidth and tilt alone, per split and for all."""
    clips = [m.clip for m in audit.measures]
    if missing := len(audit.clips) - len(clips):
        audit.add(False, f"shortcuts were looked for without the {missing} clips that are broken")
    parts = {s: [c for c in clips if c.split == s] for s in SPLITS} | {"all": clips}
    for name, part in parts.items():
        sources = Counter(label for label, _ in {(c.label, c.source_id) for c in part})
        if len(sources) < 2 or min(sources.values()) < 5:
            continue
        mean, low, high = audit.shortcuts[name] = shortcut_accuracy(part)
        if name == "all" or mean > MAX_ACCURACY:
            audit.add(
                mean > MAX_ACCURACY and low > 0.5,  # few clips give any mean by chance
                f"shortcut, {name}: level, bandwidth and tilt alone give {100 * mean:.1f} %"
                f" [{100 * low:.1f}, {100 * high:.1f}] balanced accuracy, limit {100 * MAX_ACCURACY:.0f} %",
            )


def _clips_and_rows(
    path: Path, labels: Task | Sequence[str]
) -> tuple[list[Clip], list[dict[str, str]]]:
    clips = read_manifest(path, labels, leaks=True)
    own = {c.clip_id for c in clips}
    table = read_table(path, NEEDED, tuple(COLUMNS))
    return clips, [row for _, row in table if row["clip_id"] in own]


def check_renderings(audit: Audit, labels: Task | Sequence[str]) -> None:
    """Adds the clips of further renderings, which all other checks then look at, too; and what is wrong with them."""
    path = renderings_path(audit.manifest)
    if not path.is_file():
        return
    first = {c.clip_id for c in audit.clips}
    clips, rows = _clips_and_rows(path, labels)
    fresh = [i for i, clip in enumerate(clips) if clip.clip_id not in first]
    audit.clips += [clips[i] for i in fresh]
    audit.rows += [rows[i] for i in fresh]
    audit.add(
        False,
        f"{len(clips):,} of the clips are further renderings ({path.name}), which --renderings hears",
    )
    try:
        read_renderings(audit.manifest, labels)
    except UserError as error:
        audit.add(True, str(error))


def audit_clips(
    manifest: Path,
    labels: Task | Sequence[str],
    checkpoint: str | None = None,
    with_voice: bool = True,
) -> Audit:
    """The findings of all checks, and the measurements of the clips.

    Without `with_voice`, or where Silero is not installed, labels are not compared with voice activity. Of more than
    two labels neither voice nor shortcuts are looked for, and it is said.

    Raises:
        UserError: The manifest cannot be read.
    """
    clips, rows = _clips_and_rows(manifest_path(manifest), labels)
    names = labels.labels if isinstance(labels, Task) else tuple(labels)
    audit = Audit(manifest, clips, rows)
    check_renderings(audit, labels)
    check_sources(audit)
    check_recordings(audit)
    if checkpoint is not None:
        check_checkpoint(audit, checkpoint)
    activity = None
    if with_voice and names == SPEECH_TASK.labels:
        try:
            activity = SileroActivity()
        except UserError as error:
            audit.add(False, f"labels not checked by voice activity: {error}")
    check_files(audit, activity)
    check_content(audit)
    check_measures(audit)
    check_targets(audit)
    if names == SPEECH_TASK.labels:
        check_labels(audit)
    if len(names) > 2:
        audit.add(
            False,
            "voice, cells and shortcuts are not looked for where there are more than two labels",
        )
        return audit
    check_cells(audit)
    check_shortcuts(audit)
    return audit
