"""Clips, manifests and the split registry: the one place that knows the columns."""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evaluators.errors import LeakError, UserError

if TYPE_CHECKING:
    from evaluators.audio import Wave

SPLITS = ("train", "dev", "test")
Audio = Literal["recorded", "silence", "shuffled"]

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


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled piece of audio.

    `duration_ms` and `snr_db` are measured; `snr_db` is None for clips without a foreground event (noise, silence).
    `source_id` is the cluster for every statistic. `audio` replaces what is heard for control conditions:
    digital silence, or the clip's own samples in random order (same level, no content).
    """

    clip_id: str
    path: Path
    label: str
    category: str
    duration_ms: float
    snr_db: float | None
    condition: str
    source_id: str
    split: str
    licence: str
    sha256: str
    audio: Audio = "recorded"


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


def clip_wave(clip: Clip) -> "Wave":
    """What is heard: the recording, silence of its length, or its own samples in random order.

    Raises:
        UserError: It cannot be decoded.
    """
    import numpy as np

    from evaluators.audio import load, shuffle

    wave = load(clip.path)
    if clip.audio == "silence":
        return np.zeros_like(wave)
    if clip.audio == "shuffled":
        return shuffle(wave, int(clip.sha256[:12], 16))
    return wave


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


def _order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def balanced_order(clips: Sequence[Clip]) -> list[Clip]:
    """The clips in a fixed order in which every prefix is balanced over label, duration, SNR and source.

    Depends on nothing but the clips' ids and attributes, so "the first N" is the same set on every machine.
    Each cell (label, duration, condition) is ordered so that its sources take turns; then the cells take turns.
    """
    cells: dict[tuple[str, int, str], list[Clip]] = {}
    used: dict[str, int] = {}
    for clip in sorted(clips, key=lambda c: _order(c.clip_id)):
        cells.setdefault((clip.label, round(clip.duration_ms), _cell(clip)), []).append(clip)
    labels = sorted({key[0] for key in cells})
    queues = {
        label: [
            cells[key] for key in sorted(cells, key=lambda k: _order(repr(k))) if key[0] == label
        ]
        for label in labels
    }
    total = {label: sum(map(len, queue)) for label, queue in queues.items()}
    taken = dict.fromkeys(labels, 0)
    out: list[Clip] = []
    while len(out) < len(clips):
        # The label that is furthest behind its share goes next; labels of equal size alternate.
        label = min(
            (lab for lab in labels if taken[lab] < total[lab]),
            key=lambda lab: (taken[lab] / total[lab], lab),
        )
        queue = queues[label]
        cell = queue.pop(0)
        index = min(range(len(cell)), key=lambda i: (used.get(cell[i].source_id, 0), i))
        clip = cell.pop(index)
        used[clip.source_id] = used.get(clip.source_id, 0) + 1
        taken[label] += 1
        if cell:
            queue.append(cell)
        out.append(clip)
    return out


def _cell(clip: Clip) -> str:
    return "none" if clip.snr_db is None else str(round(clip.snr_db / 5) * 5)


def halves(clips: Sequence[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Dev halved by source, stratified by label: (search half, fresh half).

    The halves depend on the source ids and clip counts alone, never on a run's seed: otherwise the half that
    judged one run would have been searched by the next. Largest sources first, each goes to the lighter half.
    """
    half_of: dict[str, int] = {}
    for label in sorted({clip.label for clip in clips}):
        counts: dict[str, int] = {}
        for clip in clips:
            if clip.label == label and clip.source_id not in half_of:
                counts[clip.source_id] = counts.get(clip.source_id, 0) + 1
        load = [[0, 0], [0, 0]]  # per half: clips, sources
        for source in sorted(counts, key=lambda s: (-counts[s], _order(s))):
            half = min((0, 1), key=lambda h: (load[h][0], load[h][1], h))
            half_of[source] = half
            load[half][0] += counts[source]
            load[half][1] += 1
    ordered = balanced_order(clips)
    first = [clip for clip in ordered if half_of[clip.source_id] == 0]
    second = [clip for clip in ordered if half_of[clip.source_id] == 1]
    return first, second


@dataclass(frozen=True)
class Registry:
    """The splits of a project's sources, and which checkpoint was trained on which sources.

    `splits` maps source id to split; `trained_on` maps a checkpoint's name to the ids it has heard.
    """

    splits: dict[str, str]
    trained_on: dict[str, tuple[str, ...]]


def registry_path(folder: Path) -> Path:
    """The project's registry for a folder of clips: in it, or in the folder above if it is there."""
    above = folder.parent / "registry.json"
    here = folder / "registry.json"
    return above if above.is_file() and not here.is_file() else here


def read_registry(where: Path) -> Registry | None:
    """The split registry of a manifest's project, or None when it has none."""
    path = registry_path(manifest_path(where).parent)
    return load_registry(path) if path.is_file() else None


def load_registry(path: Path) -> Registry:
    """A registry file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        wrong = {s for s in raw["splits"].values() if s not in SPLITS}
        if wrong:
            raise ValueError(f"split {sorted(map(str, wrong))[0]!r} is not one of {SPLITS}")
        return Registry(
            dict(raw["splits"]), {name: tuple(ids) for name, ids in raw["trained_on"].items()}
        )
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path}: not a split registry ({error}); expected keys 'splits' and 'trained_on'"
        ) from None


def write_registry(path: Path, registry: Registry) -> None:
    """Writes the registry as stable JSON."""
    raw = {
        "schema": 1,
        "splits": dict(sorted(registry.splits.items())),
        "trained_on": {name: sorted(ids) for name, ids in sorted(registry.trained_on.items())},
    }
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)


def check_registry(clips: Iterable[Clip], registry: Registry | None) -> None:
    """Raises UserError when a clip's split is not the one its source has in the registry."""
    if registry is None:
        return
    for clip in clips:
        known = registry.splits.get(clip.source_id)
        if known is not None and known != clip.split:
            raise LeakError(
                f"clip {clip.clip_id!r}: source {clip.source_id!r} is registered as {known!r} but"
                f" the manifest says {clip.split!r}; a source keeps its split in all clip sets of a"
                " project"
            )


def heard_sources(
    checkpoint: str,
    stored: frozenset[str] | None,
    where: Path,
    train_manifest: Path | None,
    labels: Sequence[str],
) -> frozenset[str] | None:
    """Source ids that a checkpoint was trained on, or None when nothing tells.

    Args:
        checkpoint: Its name, under which the registry may list what it heard.
        stored: Ids that the checkpoint itself carries.
        where: Manifest whose registry is asked.
        train_manifest: Manifest it was trained on, by flag.
        labels: Labels of that manifest.
    """
    registry = read_registry(where)
    heard = stored
    if registry is not None and checkpoint in registry.trained_on:
        heard = (heard or frozenset()) | frozenset(registry.trained_on[checkpoint])
    if train_manifest is not None:
        trained = {c.source_id for c in read_manifest(train_manifest, labels, "train")}
        heard = (heard or frozenset()) | trained
    return heard


def check_unheard(
    clips: Iterable[Clip],
    heard: frozenset[str] | None,
    checkpoint: str,
    policy: Literal["refuse", "allow"] = "refuse",
) -> list[str]:
    """Warnings about what a checkpoint has heard of these clips; they belong into every result that follows.

    Raises:
        LeakError: It was trained on some of the sources, and the policy is to refuse; lists them.
    """
    if heard is None:
        return [
            f"what {checkpoint!r} was trained on is unknown: give --train-manifest, or scores may"
            " measure memory"
        ]
    overlap = sorted({clip.source_id for clip in clips} & heard)
    if not overlap:
        return []
    text = (
        f"checkpoint {checkpoint!r} was trained on {len(overlap)} of the sources to be scored"
        f" ({', '.join(overlap[:8])}{', ...' if len(overlap) > 8 else ''})"
    )
    if policy == "allow":
        return [f"{text}: scores measure memory (--heard allow)"]
    raise LeakError(
        f"{text}; score clips of other sources, or give --heard allow, which is recorded"
    )
