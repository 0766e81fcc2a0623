"""Small recordings and clip sets that the tests of data/ share."""

import csv
import hashlib
import io
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from common import LABELS

from data import build
from data.building.mixing import (
    coloured_noise,
)
from evaluators.audio import RATE
from evaluators.manifest import NEEDED

RECIPE = """
design: factorial
durations_ms: [200, 500]
snrs_db: [0, 10]
clips_per_cell: 10
noise: {white: 1, pink: 1, recorded: 1}
min_source_snr_db: -100
voice: webrtc  # the fastest, since the two lines below switch it off
vad_speech: 0
vad_nonspeech: 1
cap: {SPEECH: 40, NONSPEECH: 40}
"""


def sound(path, seconds=1.0, rate=RATE, channels=1, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(len(str(path))).normal(0, 0.1, (int(seconds * rate), channels))
    soundfile.write(path, wave, rate, **more)
    return path


def table(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@cache
def recording(kind: str, number: int, seconds: float) -> bytes:
    """A FLAC file, made in memory, since libsndfile waits for the disk after each file."""
    rng, file = np.random.default_rng([*kind.encode(), number]), io.BytesIO()
    wave = 0.1 * coloured_noise(int(seconds * RATE), -1.0 * (number % 5), rng)
    soundfile.write(file, wave, RATE, format="FLAC")
    return file.getvalue()


def make_recordings(tmp_path: Path, speech=16, other=14, seconds=1.5) -> Path:
    """A folder of recordings that all sound different; RECIPE switches voice activity off."""
    root = tmp_path / "recordings"
    rows = []
    kinds = [("SPEECH", "speech", speech)] + [
        ("NONSPEECH", kind, other) for kind in ("environment", "music", "animal", "noise")
    ]
    for label, kind, count in kinds:
        for i in range(count):
            name = f"{kind}/{i}.flac"
            (root / kind).mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(recording(kind, i, seconds))
            rows.append((name, label, kind, f"{kind}{i}", "CC0"))
    table(root / "manifest.csv", ["path", "label", "category", "source_id", "licence"], *rows)
    return root


def make(recipe, recordings, out, *more):
    return build.main(
        [str(recipe), "--recordings", str(recordings), "--out", str(out), "--processes", "1", *more]
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def build_variants(tmp_path, recordings, text) -> Path:
    path = tmp_path / "variants.yaml"
    common = (
        "min_source_snr_db: -100\nvoice: webrtc\nvad_speech: 0\nvad_nonspeech: 1\nbase_clips: 8\n"
    )
    common += "splits: {train: 1, dev: 1}\n"
    path.write_text(f"design: variants\n{common}{text}")
    out = tmp_path / "variants"
    assert make(path, recordings, out) == 0
    return out


def write_clip_set(root, change=lambda rows, waves: None, sources=40):
    """A clip set in which every clip is a different sound; `change` edits rows and waves before writing."""
    folder = root / "set"
    folder.mkdir()
    rows, waves = [], []
    for s in range(sources):
        for k in range(2):
            rng = np.random.default_rng([s, k])
            wave = coloured_noise(RATE // 2, -6 * rng.random(), rng)
            # Every source is a different chirp in noise, so that no two are alike.
            chirp = np.sin(np.arange(len(wave)) ** 1.5 * (0.0002 + 0.00005 * s + 0.00002 * k))
            waves.append((0.02 * wave + 0.1 * chirp).astype("float32"))
            rows.append(
                {
                    "clip_id": f"c{s}-{k}",
                    "path": f"c{s}-{k}.wav",
                    "label": LABELS[s % 2],
                    "category": "speech" if s % 2 == 0 else "music",
                    "duration_ms": 500,
                    "snr_db": (0, 10)[k],
                    "condition": "x",
                    "source_id": f"source{s}",
                    "split": ("train", "train", "dev", "test")[s // 2 % 4],
                    "licence": "CC0",
                    "sha256": "",
                    "recording": f"r{s}.wav",
                }
            )
    change(rows, waves)
    for row, wave in zip(rows, waves, strict=True):
        soundfile.write(folder / row["path"], wave, RATE, subtype="FLOAT")
        digest = hashlib.sha256((folder / row["path"]).read_bytes()).hexdigest()
        row["sha256"] = row["sha256"] or digest
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*NEEDED, "recording", "noise_source", "snr_target_db"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def recipe_file(folder):
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    return path
