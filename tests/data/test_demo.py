"""What ships: the clips and the checkpoints are what README says."""

import csv
import io
import json
from collections import Counter

import numpy as np
import pytest
import soundfile
from conftest import DEMO, LABELS, ROOT

from data.building.cues import LIMIT, cues, shortcut_accuracy
from data.building.recipe import recipe_path
from data.building.render import encode, pcm_digest
from data.makers.demo_clips import plan, read_recipe
from evaluators.audio import PEAK, add_noise, coloured_noise, load, normalise
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
    assert low <= mean <= min(high, LIMIT)


def test_the_shortcut_check_can_fail(make_manifest):
    def louder(rows):
        for row in rows:
            path = folder_of(row)
            wave, rate = soundfile.read(path)
            soundfile.write(path, wave * (3 if row["label"] == "SPEECH" else 0.3), rate)

    holder = {}

    def folder_of(row):
        return holder["folder"] / row["path"]

    folder = make_manifest(sources=40, per_source=2)
    holder["folder"] = folder
    clips = read_manifest(folder, LABELS)
    louder([{"path": c.path.name, "label": c.label} for c in clips])
    assert shortcut_accuracy(clips)[0] > 0.9


def test_plan_spreads_noise_clips_over_all_cells():
    cells = Counter(
        (duration, snr, category == "noise")
        for duration, snr, category in plan(read_recipe(recipe_path("demo")), "dev")
    )
    noise = [n for (_, _, is_noise), n in cells.items() if is_noise]
    assert sum(noise) == 50 and max(noise) <= 3


def test_mixing_gives_the_snr_on_the_active_segment():
    rng = np.random.default_rng(0)
    tone = np.sin(np.arange(16000) * 0.3).astype(np.float32)
    tone[8000:] = 0  # half of the container is empty: the SNR must not change
    for snr in (-5, 0, 20):
        mixed, measured = add_noise(tone, coloured_noise(16000, -3, rng), snr)
        added = mixed - tone
        assert measured == pytest.approx(snr, abs=1e-4)
        assert 10 * np.log10(
            (tone[:8000] ** 2).mean() / (added[:8000] ** 2).mean()
        ) == pytest.approx(snr, abs=0.3)
    assert np.abs(normalise(mixed)).max() == pytest.approx(PEAK, rel=1e-5)


def test_coloured_noise_has_its_slope():
    slopes = [
        cues(coloured_noise(16000, slope, np.random.default_rng(3)))[4] for slope in (0, -4.5)
    ]
    assert slopes[0] == pytest.approx(0, abs=0.5) and slopes[1] == pytest.approx(-4.5, abs=0.5)


def test_opus_gives_equal_samples_for_equal_input(clips):
    wave = load(clips[0].path)
    assert pcm_digest(encode(wave, "opus")) == pcm_digest(encode(wave, "opus"))
    assert len(soundfile.read(io.BytesIO(encode(wave, "opus")))[0]) == len(wave)


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
