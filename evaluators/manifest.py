"""Manifests: the one place that knows the columns, and checks them row by row."""

import functools
import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from sys import intern  # values that many clips share are held once

from evaluators.clips import Clip
from evaluators.errors import LeakError, UserError
from evaluators.files import read_table, table_columns
from evaluators.names import Finder, looks_key, missing, name_key, spelled, spellings
from evaluators.plain_data import brief, parse_json
from evaluators.tasks import Task

log = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")

# Manifest columns. The first block is read by every verb, the second says how the clip was made.
COLUMNS = {
    "clip_id": "unique name of the clip",
    "path": "audio file, relative to the manifest, never outside its folder",
    "label": "the class the clip belongs to, e.g. SPEECH or NONSPEECH",
    "category": "speech, environment, music, animal, noise or silence",
    "duration_ms": "measured duration in milliseconds",
    "snr_db": (
        "measured SNR in dB, foreground over added noise on the active segment, before a lossy codec;"
        " empty if undefined"
    ),
    "condition": "what was done to the clip, e.g. dur300_snr+05",
    "source_id": "speaker, session or upload: the identity that must not cross a split",
    "split": "train, dev or test",
    "licence": "licence of the recording",
    "sha256": "SHA-256 of the file",
    "pcm_sha256": "SHA-256 of the decoded 16-bit samples, equal after a rebuild",
    "snr_target_db": "SNR asked for; empty where none is defined",
    "noise_slope_db": "slope of the added noise in dB per octave: 0 white, -3 pink",
    "vad_fraction": "share of the clean cut that the recipe's voice detector calls speech",
    "recording": "file the clip was cut from, relative to the recordings folder",
    "source_package": "where the recording was published",
    "language": "language tag, if speech",
    "start_s": "where in the recording the clip starts, in seconds",
    "noise": "added noise: white, pink or recorded; empty without",
    "noise_source": "source id of recorded noise",
    "t60_s": "reverberation time of the room applied, measured on its impulse response",
    "t60_target_s": "reverberation time asked for; empty for a dry clip",
    "filter": "band: bandpass, lowpass or highpass; empty for none",
    "rms": "root mean square of the clip as written, 1 is full scale",
    "question": "what is asked of this clip, where each clip has its own options",
    "options": "its options, as a JSON list; the label is the right one, or its letter",
    "category_policy": "which categories of its collection were left out, by name",
    "rendering": "in renderings.csv, beside the manifest: 1 for the second clip in place of the first, 2 for the third",
}
NEEDED = tuple(COLUMNS)[:11]
DIGEST = re.compile("[0-9a-f]{64}")
MS = 0.01, 1e8  # of a clip: up to a day and a bit
DB = -1000.0, 1000.0  # of an SNR


def manifest_path(where: Path) -> Path:
    """The manifest for a folder or a CSV file."""
    path = where / "manifest.csv" if where.is_dir() else where
    if not path.is_file():
        raise UserError(
            f"manifest {str(where)!r} does not exist: give a CSV file or a folder that holds"
            " manifest.csv"
        )
    return path


def read_manifest(
    where: Path, task: Task | Sequence[str], split: str | None = None, leaks: bool = False
) -> list[Clip]:
    """Clips of a manifest in file order, checked row by row. Source ids that look alike become the first of them.

    Args:
        where: CSV file, or a folder that holds ``manifest.csv``.
        task: What is decided; its clips of no class are left out, and it is said. Or labels that are allowed.
        split: Only this split, or all.
        leaks: Let a source stand in two splits, for an audit that lists them all.
    Raises:
        UserError: A column is missing, an id is repeated, a label or split is unknown, a path or link leaves the
            folder, a number cannot be read, a source, in any spelling, stands in two splits, or no clip is left.
    """
    path = manifest_path(where)
    names = table_columns(path, tuple(COLUMNS))
    if "ground_truth" in names and "label" not in names:
        raise UserError(
            f"{path}:1: column 'label' is missing; a manifest of the first study is imported by:"
            f" python -m data.build import --recordings {path} --root STUDY --out DIR"
        )
    finder, lines, written = Finder(path.parent), dict[str, str](), list[str]()
    first: dict[str, str] = {}  # spelling of each source
    clips = []
    kind = task if isinstance(task, Task) else Task("", tuple(task), "")
    _check_columns(path, kind, names)
    others: Counter[str] = Counter()
    for at, row in read_table(path, NEEDED, tuple(COLUMNS)):
        _check_text(row, at)
        label, question, options = _asked(row, kind, at)
        if label is None:
            others[row[kind.column]] += 1
            continue
        clip = _clip(row, finder, label, at)
        clip = replace(clip, question=question, options=options) if options else clip
        if (other := lines.setdefault(clip.clip_id, at)) != at:
            raise UserError(
                f"{at}: clip_id {clip.clip_id!r} stands in two rows, the other is line"
                f" {other.rpartition(':')[2]}; ids must be unique"
            )
        written.append(clip.source_id)
        source = first.setdefault(looks_key(clip.source_id), clip.source_id)
        clips.append(clip if source == clip.source_id else replace(clip, source_id=source))
    if not leaks:
        _check_leaks(path, clips, written, kind)
    for note in _notes(finder, written):
        _warn(f"{path}: {note}")
    told = ", ".join(f"{value or 'nothing'} ({count})" for value, count in others.items())
    if others and clips:
        _warn(
            f"{path}: {others.total()} clips are of no class of task {kind.name!r} and left out: {told:.300}"
        )
    if others and not clips:
        raise UserError(
            f"{path}: no clip is of a class of task {kind.name!r}: column {kind.column!r} holds {told:.300};"
            " give the --task that fits, or name these values in a task file"
        )
    chosen = [clip for clip in clips if split in (None, clip.split)]
    if not chosen:
        raise UserError(
            f"{path}: no clip in split {split!r}; it holds {sorted({clip.split for clip in clips})}"
        )
    return chosen


def _check_leaks(path: Path, clips: Sequence[Clip], written: Sequence[str], task: Task) -> None:
    """Raises LeakError where a source, in any spelling, stands in two splits; else as `_check_files`."""
    seen: dict[str, tuple[str, str]] = {}
    for clip, name in zip(clips, written, strict=True):
        split, other = seen.setdefault(name_key(name), (clip.split, name))
        if split != clip.split:
            raise LeakError(
                f"{path}: source {clip.source_id!r} is in split {split!r} and in {clip.split!r}"
                f"{spelled(other, name)}; split by source, or the test score measures memory"
            )
    _check_files(path, clips, task)


def _check_files(path: Path, clips: Sequence[Clip], task: Task) -> None:
    """Raises LeakError where one file, by its digest, stands in two splits; UserError for two sources or two labels.

    Where each clip has its own question, a file may have several, of one source.
    """
    first: dict[str, Clip] = {}
    for clip in clips:
        if not DIGEST.fullmatch(clip.sha256):  # of a manifest that is read for its sources alone
            continue
        other = first.setdefault(clip.sha256, clip)
        said = f"{path}: clips {other.clip_id!r} and {clip.clip_id!r} are one file (SHA-256 {clip.sha256[:12]}...)"
        if other.split != clip.split:
            raise LeakError(
                f"{said} in splits {other.split!r} and {clip.split!r}; leave one of them out, or the test score"
                " measures memory"
            )
        if looks_key(other.source_id) != looks_key(clip.source_id):
            raise UserError(
                f"{said} of two sources, {other.source_id!r} and {clip.source_id!r}; leave one of them out, or give"
                " both the same source"
            )
        if other.label != clip.label and not task.choices:
            raise UserError(
                f"{said} with two labels, {other.label!r} and {clip.label!r}; leave the wrong one out"
            )


def spelling_notes(where: Path) -> list[str]:
    """What names of a manifest were taken although they are spelled otherwise, one sentence each.

    Raises:
        UserError: The manifest cannot be read.
    """
    path = manifest_path(where)
    finder, written = Finder(path.parent), list[str]()
    for at, row in read_table(path, NEEDED, tuple(COLUMNS)):
        finder.find(row["path"], f"{at}: path")
        written.append(row["source_id"])
    return _notes(finder, written)


def _notes(finder: Finder, written: Sequence[str]) -> list[str]:
    alike = spellings(written, "sources", looks_key)
    return [*filter(None, [finder.told()]), *([f"{alike}; each counts as one"] if alike else [])]


@functools.cache  # a manifest is read several times
def _warn(text: str) -> None:
    log.warning("%s", text)


def _check_text(row: dict[str, str], where: str) -> None:
    """Raises UserError for a control character, or an id that is empty."""
    for name in ("clip_id", "source_id"):
        if not row[name].strip():
            raise UserError(f"{where}: {name} is empty; expected a name")
    for name in NEEDED:
        if not row[name].isprintable():
            raise UserError(
                f"{where}: {name} is {brief(row[name])}; expected text without control characters"
            )


def _label(row: dict[str, str], task: Task, where: str) -> str | None:
    """The clip's label, None where it is of no class of the task."""
    value = row[task.column]
    try:
        return task.label_of(value)
    except KeyError:
        raise UserError(
            f"{where}: {task.column} {value!r} is not one of {', '.join(task.labels)}"
        ) from None


def _check_columns(path: Path, task: Task, names: Sequence[str]) -> None:
    """Raises UserError where a column is missing that the task reads."""
    if task.choices and "options" not in names:
        raise UserError(
            f"{path}:1: task {task.name!r} asks each clip's own question; column 'options' is missing, a JSON list each"
        )
    if task.column != "label" and task.column not in names:
        raise UserError(
            f"{path}:1: task {task.name!r} reads column {task.column!r}, which is missing; there are {', '.join(names)}"
        )


def _asked(row: dict[str, str], task: Task, where: str) -> tuple[str | None, str, tuple[str, ...]]:
    """(label, question, options) of a row; the label is None where the clip is of no class of the task."""
    if not task.choices:
        return _label(row, task, where), "", ()
    options = _options(row, where)
    question = row.get("question", "").strip()
    if not question.replace("\n", "").replace("\t", "").isprintable():
        raise UserError(
            f"{where}: question is {question!r:.80}; expected text without control characters"
        )
    return _place(row, task, options, where), question, options


def _options(row: dict[str, str], where: str) -> tuple[str, ...]:
    """A clip's own options."""
    try:
        found = parse_json(row["options"], where)
    except UserError:
        found = None
    texts = found if isinstance(found, list) else []
    clean = [t.strip() for t in texts if isinstance(t, str) and t.strip().isprintable()]
    if len(clean) < 2 or len(clean) < len(texts) or len(set(clean)) < len(clean) or "" in clean:
        raise UserError(
            f"{where}: options is {row['options']!r:.80}; expected a JSON list of two or more different texts"
        )
    return tuple(clean)


def _place(row: dict[str, str], task: Task, options: Sequence[str], where: str) -> str:
    """The label of the right option: the one whose text stands in the column, else the letter that does."""
    value, labels = row[task.column].strip(), task.labels[: len(options)]
    if len(options) > len(task.labels):
        raise UserError(
            f"{where}: there are {len(options)} options; task {task.name!r} has {len(task.labels)} labels for them"
        )
    if value in options:
        return labels[options.index(value)]
    if value not in labels:
        raise UserError(
            f"{where}: {task.column} {value!r:.80} is none of the options, and none of {', '.join(labels)}"
        )
    return value


def _clip(row: dict[str, str], finder: Finder, label: str, where: str) -> Clip:
    if row["split"] not in SPLITS:
        raise UserError(f"{where}: split {row['split']!r} is not one of {', '.join(SPLITS)}")
    return Clip(
        clip_id=row["clip_id"],
        path=finder.find(row["path"], f"{where}: path"),
        label=label,
        category=intern(row["category"]),
        duration_ms=_number(row["duration_ms"], f"{where}: duration_ms", MS),
        snr_db=_number(row["snr_db"], f"{where}: snr_db", DB) if row["snr_db"] else None,
        condition=intern(row["condition"]),
        source_id=intern(row["source_id"]),
        split=intern(row["split"]),
        licence=intern(row["licence"]),
        sha256=row["sha256"],
    )


def _number(text: str, where: str, between: tuple[float, float]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    low, high = between
    if not low <= value <= high:
        raise UserError(f"{where} is {brief(text)}; expected a number from {low:g} to {high:,.0f}")
    return value


def columns_of(where: Path) -> list[str]:
    """The columns that a manifest has."""
    return table_columns(manifest_path(where), tuple(COLUMNS))


def verify(clips: Iterable[Clip]) -> None:
    """Compares every file with its SHA-256, since scores are cached under it.

    Raises:
        UserError: A file is missing or differs; names the first one.
    """
    for clip in clips:
        if not clip.path.is_file():
            raise UserError(
                f"clip {clip.clip_id!r}: file {str(clip.path)!r} is missing ({missing(clip.path)});"
                " restore it or its manifest row"
            )
        digest = hashlib.sha256(clip.path.read_bytes()).hexdigest()
        if digest != clip.sha256:
            raise UserError(
                f"clip {clip.clip_id!r}: {str(clip.path)!r} has SHA-256 {digest[:12]}..., the"
                f" manifest says {clip.sha256[:12]}...; rebuild the clips or correct the manifest"
            )


def manifest_digest(where: Path) -> str:
    """SHA-256 of the manifest file: the identity of a clip set, test openings are counted by it."""
    return hashlib.sha256(manifest_path(where).read_bytes()).hexdigest()
