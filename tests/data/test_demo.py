"""What ships: the clips and the checkpoints are what data/README.md says."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from common import DEMO, LABELS, ROOT

from data.building.cues import MAX_ACCURACY, shortcut_accuracy
from data.building.render import pcm_digest
from evaluators.audio import load
from evaluators.audio_lm.checkpoint import SHIPPED, open_checkpoint
from evaluators.manifest import COLUMNS, read_manifest, verify
from evaluators.splits import check_registry, read_registry


@pytest.fixture(scope="module")
def clips():
    return read_manifest(DEMO, LABELS)


@pytest.fixture(scope="module")
def rows():
    with (DEMO / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def test_clip_set_is_whole_balanced_and_small(clips):
    verify(clips)
    count = Counter((c.split, c.label) for c in clips)
    assert count == {
        ("train", "SPEECH"): 500,
        ("train", "NONSPEECH"): 500,
        ("dev", "SPEECH"): 200,
        ("dev", "NONSPEECH"): 200,
        ("test", "SPEECH"): 200,
        ("test", "NONSPEECH"): 200,
    }
    assert {round(c.duration_ms) for c in clips} == {200, 300, 500, 1000}
    for split in ("train", "dev", "test"):
        cells = Counter(
            (round(c.duration_ms), round(c.snr_db / 5) * 5)
            for c in clips
            if c.split == split and c.label == "SPEECH"
        )
        assert len(cells) == 20 and len(set(cells.values())) == 1
        categories = Counter(
            c.category for c in clips if c.split == split and c.label == "NONSPEECH"
        )
        assert len(categories) == 4 and len(set(categories.values())) == 1
    assert sum(p.stat().st_size for p in DEMO.rglob("*") if p.is_file()) <= 8 * 2**20


def test_sources_are_many_and_capped(clips):
    sources = {
        (split, label): Counter(c.source_id for c in clips if (c.split, c.label) == (split, label))
        for split in ("train", "dev", "test")
        for label in LABELS
    }
    assert len(sources["test", "SPEECH"]) >= 14 and len(sources["test", "NONSPEECH"]) >= 40
    assert len(sources["dev", "SPEECH"]) >= 20 and len(sources["dev", "NONSPEECH"]) >= 40
    for (_, label), counts in sources.items():
        assert max(counts.values()) <= (26 if label == "SPEECH" else 6)


def test_registry_agrees_and_checkpoints_heard_train_only(clips):
    registry = read_registry(DEMO)
    check_registry(clips, registry)
    assert set(registry.trained_on) == set(SHIPPED)
    for name, heard in registry.trained_on.items():
        assert {registry.splits[source] for source in heard} == {"train"}
        assert open_checkpoint(name).trained_on == frozenset(heard)


def test_every_clip_names_recording_licence_and_package(rows):
    assert set(rows[0]) <= set(COLUMNS)
    attribution = (DEMO / "ATTRIBUTION.md").read_text()
    for row in rows:
        assert row["licence"] and row["recording"] and row["source_package"] in attribution
        assert (DEMO / "licences" / f"{row['source_package']}.copyright").is_file()


def test_measured_snr_is_what_was_asked_for(rows):
    assert (
        max(abs(float(r["snr_db"]) - float(r["snr_target_db"])) for r in rows if r["snr_db"]) < 0.01
    )
    assert all(r["category"] == "noise" for r in rows if not r["snr_db"])


def test_clips_do_not_clip_and_have_the_length_they_claim(clips, rows):
    for clip, row in list(zip(clips, rows, strict=True))[::40]:
        wave = load(clip.path)
        assert len(wave) == clip.duration_ms * 16
        assert np.abs(wave).max() < 0.999  # Opus may overshoot the peak of 0.64
        assert pcm_digest(clip.path.read_bytes()) == row["pcm_sha256"]


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_no_shortcut_gives_the_label_away(clips, split):
    mean, low, high = shortcut_accuracy([c for c in clips if c.split == split])
    assert low <= mean <= min(high, MAX_ACCURACY)


def test_pocket_checkpoints_are_small_and_name_what_they_heard():
    files = [p for p in (ROOT / "data" / "pocket").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 13 * 2**20
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".pkl")]
    for name in ("base", "lora"):
        card = (ROOT / "data" / "pocket" / name / "README.md").read_text()
        assert "GPL" in card and "CC-BY" in card
        assert json.loads((ROOT / "data" / "pocket" / name / "training.json").read_text())[
            "sources"
        ]
