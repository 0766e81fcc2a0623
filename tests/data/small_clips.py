"""Folders of short clips that all sound different."""

import csv
from pathlib import Path

import numpy as np
import soundfile

from data import build


def clip(path: Path, number: int, seconds: float = 0.2, rate: int = 16_000) -> Path:
    """A clip of noise; equal numbers give equal samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(number).normal(0, 3000, int(seconds * rate))
    soundfile.write(path, wave.astype(np.int16), rate)
    return path


def two_folders(root: Path, count: int = 10, names: str = "{}.wav") -> list[str]:
    """Folders speech and noise below `root`, and the flags that name them."""
    for k, kind in enumerate(("speech", "noise")):
        for i in range(count):
            clip(root / kind / names.format(i), 1000 * k + i)
    return ["--speech", str(root / "speech"), "--other", str(root / "noise")]


def folder(*arguments: object) -> int:
    return build.main(["folder", *map(str, arguments)])


def rows_of(out: Path, name: str = "manifest.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
