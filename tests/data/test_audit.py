"""The audit finds what was planted, and leaves a good set alone."""

import csv
import hashlib
import json

import numpy as np
import pytest
import soundfile
from conftest import DEMO, LABELS

from data import audit
from data.auditing.checks import audit_clips, correlation
from evaluators.audio import RATE, coloured_noise
from evaluators.manifest import NEEDED


@pytest.fixture
def clip_set(tmp_path):
    """A writer of clip sets: every clip is a different sound; `change` edits waves and rows before writing."""

    def write(change=lambda rows, waves: None, sources=40):
        folder = tmp_path / "set"
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

    return write


def faults(folder, **more):
    return [f.text for f in audit_clips(folder, LABELS, with_voice=False, **more).faults]


def test_a_good_set_has_no_fault(clip_set):
    assert [f for f in faults(clip_set()) if not f.startswith("shortcut")] == []


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
def test_what_was_planted_is_found(clip_set, plant, message):
    found = [f for f in faults(clip_set(plant)) if not f.startswith("shortcut")]
    assert len(found) == 1 and message in found[0], found


def test_a_registry_that_disagrees_is_found(clip_set):
    folder = clip_set()
    (folder / "registry.json").write_text(
        json.dumps({"splits": {"source0": "test"}, "trained_on": {}})
    )
    assert any(
        "differ from the registry: source0 (test there, train here)" in f for f in faults(folder)
    )


def test_a_checkpoint_that_heard_the_clips_is_found(clip_set, monkeypatch):
    from evaluators.audio_lm import checkpoint

    real = checkpoint.open_checkpoint("pocket-base")

    def plant(rows, waves):
        rows[8]["source_id"] = rows[9]["source_id"] = sorted(real.trained_on)[0]

    found = faults(clip_set(plant), checkpoint="pocket-base")
    assert any("was trained on 1 of the sources to be scored" in f for f in found)


def test_a_shortcut_is_found(clip_set):
    def louder(rows, waves):
        for i, row in enumerate(rows):
            waves[i] = waves[i] * (3 if row["label"] == "SPEECH" else 0.3)

    assert any(f.startswith("shortcut, all") for f in faults(clip_set(louder)))


def test_labels_that_voice_activity_contradicts_are_listed():
    found = audit_clips(DEMO, LABELS)
    assert not found.faults
    assert any("SPEECH clips hold under 10 % voice" in f.text for f in found.findings)


def test_the_command_prints_a_table_and_writes_a_page(clip_set, tmp_path, capsys):
    folder = clip_set(plant_source)
    page = tmp_path / "pages" / "audit.html"
    assert audit.main([str(folder), "--no-voice", "--page", str(page)]) == 1
    out = capsys.readouterr().out
    assert "FAULT  leak: source 'source0'" in out and "80 clips" in out
    text = page.read_text()
    assert text.count("<audio") >= 12 and "data:audio/wav;base64," in text
    assert "source &#39;source0&#39; stands in test and train" in text
    assert "http" not in text  # nothing is fetched


def test_clip_names_cannot_bring_markup_into_the_page(clip_set, tmp_path):
    def plant(rows, waves):
        rows[0]["source_id"] = rows[1]["source_id"] = "<script>alert(1)</script>"

    audit.main([str(clip_set(plant)), "--no-voice", "--page", str(tmp_path / "a.html")])
    text = (tmp_path / "a.html").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_a_manifest_that_cannot_be_read_is_wrong_use(tmp_path, capsys):
    assert audit.main([str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_correlation_sees_through_gain_and_shift():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=4000).astype("float32") for _ in range(2))
    assert correlation(a, 0.1 * np.roll(a, 50)) > 0.95
    assert correlation(a, b) < 0.2
