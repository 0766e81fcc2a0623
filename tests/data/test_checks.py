"""The audit finds what was planted, and leaves a good set alone."""

import csv
import json
import shutil

import numpy as np
import pytest
from common import DEMO, LABELS
from small_recordings import write_clip_set

from data.auditing.checks import audit_clips, correlation
from data.building.recordings import write_table


def faults(folder, **more):
    return [f.text for f in audit_clips(folder, LABELS, with_voice=False, **more).faults]


def test_a_good_set_has_no_fault(tmp_path):
    assert [f for f in faults(write_clip_set(tmp_path)) if not f.startswith("shortcut")] == []


def plant_same_file(rows, waves):
    waves[16] = waves[8]  # source8 in train holds a clip of source4 in dev


def plant_upload(rows, waves):
    rows[0]["recording"], rows[8]["recording"] = "esc50/1-777-A-3.wav", "esc50/1-777-B-3.wav"


def plant_near_copy(rows, waves):
    shifted = np.roll(waves[8], 37) * 0.5
    waves[16] = (shifted + 0.001 * np.random.default_rng(0).normal(size=len(shifted))).astype(
        "float32"
    )


def plant_source(rows, waves):
    for row in rows[0:2]:
        row["recording"] += str(row["clip_id"])
    rows[0]["split"] = "test"


def plant_recording(rows, waves):
    rows[8]["recording"] = rows[9]["recording"] = rows[0]["recording"]


def plant_spelling(rows, waves):
    rows[8]["source_id"] = "Source0 "


def plant_noise(rows, waves):
    rows[8]["noise_source"] = "source0"


def plant_snr(rows, waves):
    rows[8] |= {"snr_target_db": 10, "snr_db": 0}


def plant_clipping(rows, waves):
    waves[3] = np.clip(waves[3] * 50, -1, 1)


def plant_silence(rows, waves):
    waves[3] = np.zeros_like(waves[3])


def plant_digest(rows, waves):
    rows[3]["sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_same_file, "hold the same samples"),
        (plant_upload, "Freesound upload 777 stands in two splits"),
        (plant_near_copy, "are nearly the same sound"),
        (plant_source, "source 'source0' stands in test and train"),
        (plant_recording, "recording 'r0.wav' stands in dev and train"),
        (plant_spelling, "source 'source0' stands in dev and train"),
        (plant_noise, "clip 'c4-0' in dev holds noise of source 'source0' in train"),
        (plant_snr, "lies at most 10.000 dB off what was asked for (c4-0)"),
        (plant_clipping, "1 clips clip (3 samples"),
        (plant_silence, "1 clips are digital silence"),
        (plant_digest, "the manifest says 000000000000"),
    ],
)
def test_what_was_planted_is_found(tmp_path, plant, message):
    found = [f for f in faults(write_clip_set(tmp_path, plant)) if not f.startswith("shortcut")]
    assert len(found) == 1 and message in found[0], found


def test_a_registry_that_disagrees_is_found(tmp_path):
    folder = write_clip_set(tmp_path)
    (folder / "registry.json").write_text(
        json.dumps({"splits": {"source0": "test"}, "trained_on": {}})
    )
    assert any(
        "differ from the registry: source0 (test there, train here)" in f for f in faults(folder)
    )


def test_a_checkpoint_that_heard_the_clips_is_found(tmp_path):
    from evaluators.audio_lm import checkpoint

    real = checkpoint.open_checkpoint("pocket-base")

    def plant(rows, waves):
        rows[8]["source_id"] = rows[9]["source_id"] = sorted(real.trained_on)[0]

    found = faults(write_clip_set(tmp_path, plant), checkpoint="pocket-base")
    assert any("was trained on 1 of the sources to be scored" in f for f in found)


def test_a_shortcut_is_found(tmp_path):
    def louder(rows, waves):
        for i, row in enumerate(rows):
            waves[i] = waves[i] * (3 if row["label"] == "SPEECH" else 0.3)

    assert any(f.startswith("shortcut, all") for f in faults(write_clip_set(tmp_path, louder)))


def test_labels_that_voice_activity_contradicts_are_listed(tmp_path):
    with (DEMO / "manifest.csv").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["split"] == "dev"
            and row["snr_target_db"] in ("20", "")
            and row["duration_ms"] == "1000"
        ]
    wrong = next(r for r in rows if r["label"] == "SPEECH" and r["vad_fraction"] == "1.00")
    wrong["label"] = "NONSPEECH"
    (tmp_path / "clips").mkdir()
    for row in rows:
        shutil.copyfile(DEMO / row["path"], tmp_path / row["path"])
    write_table(tmp_path / "manifest.csv", rows, list(rows[0]))
    found = audit_clips(tmp_path, LABELS)
    assert not found.faults
    (finding,) = [f for f in found.findings if "NONSPEECH clips hold over 50 % voice" in f.text]
    assert wrong["clip_id"] in finding.clips and wrong["clip_id"] in finding.text


def test_correlation_sees_through_gain_and_shift():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=4000).astype("float32") for _ in range(2))
    assert correlation(a, 0.1 * np.roll(a, 50)) > 0.95
    assert correlation(a, b) < 0.2
