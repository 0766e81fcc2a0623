"""Manifests: the one place that knows the columns, and checks them row by row."""

import csv
import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from evaluators.clips import Clip
from evaluators.errors import LeakError, UserError

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
    "category_policy": "which categories of its collection were left out, by name",
}
NEEDED = tuple(COLUMNS)[:11]


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
    where: Path, labels: Sequence[str], split: str | None = None, leaks: bool = False
) -> list[Clip]:
    """Clips of a manifest in file order, checked row by row.

    Args:
        where: CSV file, or a folder that holds ``manifest.csv``.
        labels: Labels that are allowed.
        split: Only this split, or all.
        leaks: Let a source stand in two splits, for an audit that lists them all.
    Raises:
        UserError: A column is missing, an id is repeated, a label or split is unknown, a path leaves the folder,
            a number cannot be read, a source stands in two splits, or no clip is left.
    """
    path = manifest_path(where)
    root = path.parent.resolve()
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        missing = [name for name in NEEDED if name not in names]
        if missing:
            raise UserError(
                f"{path}:1: column {missing[0]!r} is missing; needed are {', '.join(NEEDED)}"
                + (
                    "; a manifest of the first study is imported by: python -m data.build import"
                    f" --recordings {path} --root STUDY --out DIR"
                    if "ground_truth" in names
                    else ""
                )
            )
        try:
            lines: dict[str, int] = {}
            clips = []
            for row in reader:
                clips.append(_clip(row, root, labels, f"{path}:{reader.line_num}"))
                other = lines.setdefault(clips[-1].clip_id, reader.line_num)
                if other != reader.line_num:
                    raise UserError(
                        f"{path}:{reader.line_num}: clip_id {clips[-1].clip_id!r} stands in two"
                        f" rows, the other is line {other}; ids must be unique"
                    )
        except (csv.Error, ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(
                f"{path}:{reader.line_num}: not readable as a CSV row ({error})"
            ) from None
    split_of: dict[str, str] = {}
    for clip in clips:
        if split_of.setdefault(clip.source_id, clip.split) != clip.split and not leaks:
            raise LeakError(
                f"{path}: source {clip.source_id!r} is in split {split_of[clip.source_id]!r} and in"
                f" {clip.split!r}; split by source, or the test score measures memory"
            )
    chosen = [clip for clip in clips if split in (None, clip.split)]
    if not chosen:
        raise UserError(
            f"{path}: no clip in split {split!r}; it holds {sorted({clip.split for clip in clips})}"
        )
    return chosen


def _clip(row: dict[str, str], root: Path, labels: Sequence[str], where: str) -> Clip:
    for name in NEEDED:
        if not row[name].isprintable():
            raise UserError(
                f"{where}: {name} is {row[name]!r}; expected text without control characters"
            )
    if row["label"] not in labels:
        raise UserError(f"{where}: label {row['label']!r} is not one of {', '.join(labels)}")
    if row["split"] not in SPLITS:
        raise UserError(f"{where}: split {row['split']!r} is not one of {', '.join(SPLITS)}")
    path = (root / row["path"]).resolve()
    if not path.is_relative_to(root):
        raise UserError(f"{where}: path {row['path']!r} leaves the folder of the manifest")
    return Clip(
        clip_id=row["clip_id"],
        path=path,
        label=row["label"],
        category=row["category"],
        duration_ms=_number(row["duration_ms"], f"{where}: duration_ms"),
        snr_db=_number(row["snr_db"], f"{where}: snr_db") if row["snr_db"] else None,
        condition=row["condition"],
        source_id=row["source_id"],
        split=row["split"],
        licence=row["licence"],
        sha256=row["sha256"],
    )


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where} is {text!r}; expected a number")
    return value


def columns_of(where: Path) -> list[str]:
    """The columns that a manifest has."""
    with manifest_path(where).open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return next(csv.reader(file), [])


def verify(clips: Iterable[Clip]) -> None:
    """Compares every file with its SHA-256, since scores are cached under it.

    Raises:
        UserError: A file is missing or differs; names the first one.
    """
    for clip in clips:
        if not clip.path.is_file():
            raise UserError(
                f"clip {clip.clip_id!r}: file {str(clip.path)!r} is missing; restore it or its"
                " manifest row"
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
