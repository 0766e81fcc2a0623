"""Imports clip sets of the first study: its `*_metadata.csv` files become a manifest with splits by source."""

import hashlib
import math
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from evaluators.audio import load
from evaluators.errors import UserError
from evaluators.splits import Registry, load_registry, registry_path, write_registry

from .design import split_of
from .recipe import Import
from .recordings import file_below, read_table, write_table

NEEDED = ("clip_id", "audio_path", "ground_truth", "duration_ms", "snr_db")
VARIANT = ("variant_id", "variant_name", "original_variant")
# What one recording is, in the names that the study's scripts gave: Freesound's id in an ESC-50 name, else the
# VoxConverse recording.
FREESOUND = re.compile(r"(?:^|_)\d-(\d+)-[A-Z]-\d+(?:_|$)")
VOXCONVERSE = re.compile(r"^voxconverse_([a-z]{5})(?:_|$)")
CATEGORY = {"esc50": "environment", "musan": "music"}


def source_of(row: dict[str, str], pattern: str) -> str | None:
    """The source id of a row, or None when its name does not say."""
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


def convert(recipe: Import, out: Path, dry_run: bool = False) -> int:
    """Copies the clips and writes manifest.csv and registry.json into `out`; returns the number of clips.

    Raises:
        UserError: A manifest or row is wrong (file and line), or a clip is missing; nothing is written then.
    """
    if not recipe.manifests:
        raise UserError("import needs the study's manifests: give --recordings FILE_metadata.csv")
    if recipe.source_pattern:
        try:
            groups = re.compile(recipe.source_pattern).groups
        except re.error as error:
            raise UserError(
                f"source_pattern {recipe.source_pattern!r} is no pattern ({error})"
            ) from None
        if groups != 1:
            raise UserError(f"source_pattern has {groups} groups; expected one, the source id")
    path = registry_path(out)
    registry = load_registry(path) if path.is_file() else Registry({}, {})
    rows: list[dict[str, Any]] = []
    files: dict[str, Path] = {}
    splits: dict[str, str] = {}
    unknown = 0
    for manifest in recipe.manifests:
        for where, row in read_table(manifest, NEEDED):
            made, file = _row(recipe, where, row)
            if made["clip_id"] in files:
                raise UserError(
                    f"{where}: clip {made['clip_id']!r} stands twice; give each manifest once"
                )
            source = source_of(row, recipe.source_pattern)
            unknown += source is None
            source = source or f"study:{row['clip_id']}"
            split = registry.splits.get(source) or split_of(source, recipe.splits)
            splits[source] = split
            files[made["clip_id"]] = file
            rows.append(made | {"source_id": source, "split": split})
    if not rows:
        raise UserError(f"{recipe.manifests[0]}: no row; expected one for each clip")
    if unknown:
        print(
            f"warning: the source of {unknown} clips is unknown, each clip_id counts as one; give"
            " source_pattern in a recipe, or splits may leak",
            file=sys.stderr,
        )
    if dry_run:
        count = Counter((r["split"], r["label"]) for r in rows)
        for (split, label), n in sorted(count.items()):
            sources = {r["source_id"] for r in rows if (r["split"], r["label"]) == (split, label)}
            print(f"{split:6} {label:10} {n:6,} clips of {len(sources):,} sources")
        return len(rows)
    _write(rows, files, out)
    write_registry(path, Registry(registry.splits | splits, registry.trained_on))
    return len(rows)


def _row(recipe: Import, where: str, row: dict[str, str]) -> tuple[dict[str, Any], Path]:
    label = row["ground_truth"].upper().replace("-", "").replace("_", "")
    if label not in ("SPEECH", "NONSPEECH"):
        raise UserError(f"{where}: ground_truth {row['ground_truth']!r} is not SPEECH or NONSPEECH")
    file = file_below(recipe.root, row["audio_path"].replace("\\", "/"), f"{where}: audio_path")
    numbers = {}
    for name in ("duration_ms", "snr_db"):
        text = row[name].strip()
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.nan
        low, high = (1, 60_000) if name == "duration_ms" else (-60, 100)
        if value is not None and not low <= value <= high:
            raise UserError(
                f"{where}: {name} is {row[name]!r}; expected {low} to {high} or nothing"
            )
        numbers[name] = value
    variant = next((row[name] for name in VARIANT if row.get(name)), "")
    clip_id = (
        variant if variant.startswith(row["clip_id"]) else f"{row['clip_id']}_{variant}".strip("_")
    )
    clip_id = re.sub(r"[^\w.+-]", "_", clip_id)
    wave = load(file)
    duration = numbers["duration_ms"]
    return {
        "clip_id": clip_id,
        "path": f"clips/{clip_id}{file.suffix.lower()}",
        "label": label,
        "category": "speech"
        if label == "SPEECH"
        else CATEGORY.get(row.get("dataset", ""), "noise"),
        "duration_ms": f"{len(wave) / 16 if duration is None else duration:g}",
        "snr_db": "" if numbers["snr_db"] is None else f"{numbers['snr_db']:g}",
        "condition": variant.removeprefix(row["clip_id"]).strip("_") or "study",
        "source_id": "",
        "split": "",
        "licence": recipe.licence,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "recording": row["audio_path"],
        "source_package": row.get("dataset", ""),
    }, file


def _write(rows: list[dict[str, Any]], files: dict[str, Path], out: Path) -> None:
    (out / "clips").mkdir(parents=True, exist_ok=True)
    for row in rows:
        shutil.copyfile(files[row["clip_id"]], out / row["path"])
    write_table(out / "manifest.csv", rows, list(rows[0]))
