"""Shared fixtures: small manifests, the pocket evaluator, verbs as functions."""

import csv
import gc
import hashlib
import io
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # processes share the cores: threads of each would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import soundfile
from common import DEMO, LABELS
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from evaluators.files import shipped
from evaluators.manifest import NEEDED, read_manifest
from evaluators.prompts import read_prompts

settings.register_profile("thorough", max_examples=1000)  # --hypothesis-profile thorough
settings.register_profile("quick", max_examples=50)  # where a test names no number of its own
settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """What was imported stays to the end: no garbage collection needs to go through it again and again."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def wide_output(monkeypatch):
    """Tables are as wide as in a pipe, wherever the tests run."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="session")
def seeds():
    return read_prompts(shipped("prompts/seeds/baselines.yaml"), LABELS)


@pytest.fixture(scope="session")
def heldout():
    return read_prompts(shipped("prompts/heldout.yaml"), LABELS)


@pytest.fixture(scope="session")
def dev_clips():
    return read_manifest(DEMO, LABELS, "dev")


@pytest.fixture(scope="session")
def pocket():
    """The shipped base checkpoint behind the evaluator, float32 on the CPU."""
    from evaluators.audio_lm.checkpoint import open_checkpoint
    from evaluators.audio_lm.scorer import AudioScorer

    return AudioScorer(open_checkpoint("pocket-base"), "cpu", "float32")


@cache
def noise(source: int, clip: int, samples: int) -> bytes:
    """A WAV file. It is made in memory, since libsndfile waits for the disk after each file."""
    file = io.BytesIO()
    wave = np.random.default_rng([source, clip]).normal(0, 0.1, samples).astype("float32")
    soundfile.write(file, wave, 16000, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="session")
def write_manifest() -> Callable[..., Path]:
    """Writes a folder of short noise clips with a manifest; `change` edits the rows before they are written."""

    def write(
        root: Path,
        sources: int = 24,
        per_source: int = 2,
        change: Callable[[list[dict]], None] = lambda rows: None,
        name: str = "clips",
        columns=NEEDED,
    ) -> Path:
        folder = root / name
        folder.mkdir()
        rows = []
        for s in range(sources):
            label = LABELS[s % 2]
            for k in range(per_source):
                samples = (200, 500)[k % 2] * 16
                path = folder / f"s{s}-{k}.wav"
                path.write_bytes(noise(s, k, samples))
                rows.append(
                    {
                        "clip_id": f"s{s}-{k}",
                        "path": path.name,
                        "label": label,
                        "category": "speech" if s % 2 == 0 else "music",
                        "duration_ms": samples // 16,
                        "snr_db": (0, 10)[k % 2],
                        "condition": f"k{k}",
                        "source_id": f"source{s}",
                        "split": "dev",
                        "licence": "CC0",
                        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    }
                )
        change(rows)
        with (folder / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return folder

    return write


@pytest.fixture
def make_manifest(write_manifest, tmp_path) -> Callable[..., Path]:
    """The same in the folder of the test."""
    return partial(write_manifest, tmp_path)
