"""Clip sets of the first study: their `*_metadata.csv` files become one manifest with splits by source."""

import hashlib
import math
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.audio import load
from evaluators.errors import UserError
from evaluators.files import copy_file, read_table
from evaluators.names import Finder, name_key
from evaluators.splits import Registry, write_registry

from .clip_set import project_registry
from .design import split_of
from .recipe import Import
from .recordings import missing_reason, write_table

NEEDED = ("clip_id", "audio_path", "ground_truth", "duration_ms", "snr_db")
VARIANT = ("variant_id", "variant_name", "original_variant")
# The source in a name that the study's scripts gave: Freesound's id in an ESC-50 name, else the VoxConverse recording.
FREESOUND = re.compile(r"(?:^|_)\d-(\d+)-[A-Z]-\d+(?:_|$)")
VOXCONVERSE = re.compile(r"^voxconverse_([a-z]{5})(?:_|$)")
CATEGORY = {"esc50": "environment", "musan": "music"}


def source_of(row: dict[str, str], pattern: str) -> str | None:
    """The source id of a row, or None when its name does not hold one."""
    name = row["clip_id"]
    if pattern:
        match = re.search(pattern, name)
        return match.group(1) if match else None
    if match := FREESOUND.search(name):
        return f"freesound:{match.group(1)}"
    if match := VOXCONVERSE.search(name):
        return f"voxconverse:{match.group(1)}"
    group = row.get("group_id", "")
    return f"{row.get('dataset', 'study')}:{group}" if group else None


@dataclass(frozen=True)
class Study:
    """The clips of a study: manifest rows, the file of each clip id, and the split of each source."""

    rows: list[dict[str, Any]]
    files: dict[str, Path]
    splits: dict[str, str]

    def outline(self) -> list[str]:
        """Clips and sources per split and label, as lines of text."""
        sources: dict[tuple[str, str], list[str]] = defaultdict(list)
        for row in self.rows:
            sources[row["split"], row["label"]].append(row["source_id"])
        return [
            f"{split:6} {label:10} {len(ids):6,} clips of {len(set(ids)):,} sources"
            for (split, label), ids in sorted(sources.items())
        ]


def read_study(recipe: Import, out: Path) -> Study:
    """The clips of the recipe's manifests, with splits by source as in the registry of `out`. Writes nothing.

    Raises:
        UserError: A manifest or row is wrong (file and line), or a clip is missing.
    """
    if not recipe.manifests:
        raise UserError("import needs the study's manifests: give --recordings FILE_metadata.csv")
    _check_pattern(recipe.source_pattern)
    _, registry = project_registry(out)
    study = Study([], {}, {})
    unknown = 0
    first: dict[str, str] = {}  # spelling of each source
    finder = Finder(recipe.root)
    for manifest in recipe.manifests:
        for where, row in read_table(manifest, NEEDED):
            made, file = _row(recipe, finder, where, row)
            if made["clip_id"] in study.files:
                raise UserError(
                    f"{where}: clip {made['clip_id']!r} stands twice; give each manifest once"
                )
            source = source_of(row, recipe.source_pattern)
            unknown += source is None
            source = source or f"study:{row['clip_id']}"
            source = first.setdefault(name_key(source), source)
            split = registry.split_of(source) or split_of(source, recipe.splits)
            study.splits[source] = split
            study.files[made["clip_id"]] = file
            study.rows.append(made | {"source_id": source, "split": split})
    if not study.rows:
        raise UserError(f"{recipe.manifests[0]}: no row; expected one for each clip")
    if unknown:
        print(
            f"warning: the source of {unknown} clips is unknown, each clip_id counts as one; give"
            " source_pattern in a recipe, or splits may leak",
            file=sys.stderr,
        )
    return study


def write_study(study: Study, out: Path) -> None:
    """Copies the clips and writes manifest.csv and the registry of `out`."""
    for row in study.rows:
        copy_file(study.files[row["clip_id"]], out / row["path"])
    write_table(out / "manifest.csv", study.rows, list(study.rows[0]))
    path, registry = project_registry(out)
    write_registry(path, Registry(registry.splits | study.splits, registry.trained_on))


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"source_pattern {pattern!r} is no pattern ({error})") from None
    if pattern and groups != 1:
        raise UserError(f"source_pattern has {groups} groups; expected one, the source id")


def _row(
    recipe: Import, finder: Finder, where: str, row: dict[str, str]
) -> tuple[dict[str, Any], Path]:
    label = row["ground_truth"].upper().replace("-", "").replace("_", "")
    if label not in ("SPEECH", "NONSPEECH"):
        raise UserError(f"{where}: ground_truth {row['ground_truth']!r} is not SPEECH or NONSPEECH")
    file = finder.find(row["audio_path"].replace("\\", "/"), f"{where}: audio_path")
    if reason := missing_reason(file, f"{where}: audio_path {row['audio_path']!r}"):
        raise UserError(reason)
    duration_ms = _number(row, "duration_ms", (1, 60_000), where)
    snr_db = _number(row, "snr_db", (-60, 100), where)
    variant = next((row[name] for name in VARIANT if row.get(name)), "")
    clip_id = (
        variant if variant.startswith(row["clip_id"]) else f"{row['clip_id']}_{variant}".strip("_")
    )
    clip_id = re.sub(r"[^\w.+-]", "_", clip_id)
    wave = load(file)
    other = CATEGORY.get(row.get("dataset", ""), "noise")
    return {
        "clip_id": clip_id,
        "path": f"clips/{clip_id}{file.suffix.lower()}",
        "label": label,
        "category": "speech" if label == "SPEECH" else other,
        "duration_ms": f"{len(wave) / 16 if duration_ms is None else duration_ms:g}",
        "snr_db": "" if snr_db is None else f"{snr_db:g}",
        "condition": variant.removeprefix(row["clip_id"]).strip("_") or "study",
        "source_id": "",
        "split": "",
        "licence": recipe.licence,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "recording": row["audio_path"],
        "source_package": row.get("dataset", ""),
    }, file


def _number(
    row: dict[str, str], name: str, limits: tuple[float, float], where: str
) -> float | None:
    text = row[name].strip()
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not limits[0] <= value <= limits[1]:
        raise UserError(
            f"{where}: {name} is {row[name]!r}; expected {limits[0]} to {limits[1]} or nothing"
        )
    return value
