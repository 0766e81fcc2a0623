"""Levels: what is wrong with a sound is told by its name, and well-made clips are left alone."""

import csv

import numpy as np
import pytest
import soundfile
from common import DEMO, LABELS
from hypothesis import given
from hypothesis import strategies as st

from evaluators import clip_checks
from evaluators.audio import RATE, load, read_sound
from evaluators.clip_checks import look_at_clips
from evaluators.levels import LEVEL_TROUBLES, measure_levels, offset_of, without_offset
from evaluators.manifest import read_manifest

NOISE = (0.02 * np.random.default_rng(0).standard_normal(RATE // 2)).astype("float32")


def named(tmp_path, wave, rate=RATE):
    path = tmp_path / "x.wav"
    soundfile.write(path, wave, rate, subtype="FLOAT")
    levels = measure_levels(read_sound(path))
    return [trouble.what for trouble, test in LEVEL_TROUBLES if test(levels)]


@pytest.mark.parametrize(
    ("wave", "what"),
    [
        (NOISE, []),
        (np.stack([NOISE, NOISE], 1), []),
        (np.stack([NOISE, np.roll(NOISE, 99)], 1), []),  # unrelated channels are 3 dB quieter
        (np.stack([NOISE, 0 * NOISE], 1), []),
        (np.stack([NOISE, -NOISE], 1), ["have channels that cancel"]),
        (np.stack([NOISE, -0.9 * NOISE], 1), ["have channels that cancel"]),
        (np.stack([NOISE, NOISE, -NOISE, -NOISE], 1), ["have channels that cancel"]),
        (0 * NOISE, ["are digital silence"]),
        (0 * NOISE + 0.2, ["are digital silence"]),
        (NOISE[:1], ["are digital silence"]),
        (NOISE * 32_768, ["hold samples far above full scale"]),
        (NOISE + 0.05, ["have an offset (DC) above half"]),
        (NOISE - 0.05, ["have an offset (DC) above half"]),
        (NOISE + 0.006, ["have an offset (DC) above a tenth"]),
        (NOISE + 0.001, []),  # 0.01 dB
        (np.clip(NOISE * 30, -1, 1), ["clip (3 samples or more at full scale)"]),
        (NOISE * 1e-3, ["are quieter than -60 dBFS"]),
        (NOISE * 1e-3 + 0.1, ["have an offset (DC) above half", "are quieter than -60 dBFS"]),
    ],
)
def test_each_trouble_has_its_name(tmp_path, wave, what):
    found = named(tmp_path, wave)
    assert len(found) == len(what)
    assert all(f.startswith(w) for f, w in zip(found, what, strict=True)), found


def test_the_level_is_that_of_the_sound_without_its_offset(tmp_path):
    """Speech at RMS .018 with an offset of .05 was shown as .053, and mixed 8 dB too low."""
    path = tmp_path / "x.wav"
    soundfile.write(path, 0.9 * NOISE + 0.05, RATE, subtype="FLOAT")
    levels = measure_levels(read_sound(path))
    assert levels.rms == pytest.approx(0.018, rel=0.05) and levels.offset == pytest.approx(
        0.05, rel=0.01
    )
    assert without_offset(load(path)).mean() == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 50), st.floats(-0.02, 0.02))
def test_a_wave_without_an_offset_is_the_very_same_object(seed, share):
    wave = np.random.default_rng(seed).standard_normal(4_000).astype("float32")
    wave = (wave - wave.mean() + share).astype("float32")
    assert without_offset(wave) is wave


def test_slow_sounds_are_no_offset():
    """A swing of 3 Hz in 200 ms has a mean, but each quarter another one."""
    swing = np.sin(2 * np.pi * 3 * np.arange(3_200) / RATE + 0.3).astype("float32")
    assert abs(swing.mean()) > 0.1 * swing.std() and offset_of(swing) == 0


def test_the_shipped_clips_have_none_of_these_troubles():
    clips = read_manifest(DEMO, LABELS)
    assert list(look_at_clips(clips)) == []


def test_durations_in_seconds_are_told_from_milliseconds(make_manifest):
    def in_seconds(rows):
        for row in rows:
            row["duration_ms"] /= 1000

    (found,) = look_at_clips(read_manifest(make_manifest(change=in_seconds), LABELS))
    assert found[0].startswith("48 clips have a duration_ms that is in seconds")
    assert found[1] == "multiply the column by 1,000"
    right = look_at_clips(read_manifest(make_manifest(name="right"), LABELS))
    assert list(right) == []


def test_a_look_takes_the_clips_that_are_scored_and_some_of_all_others(make_manifest, monkeypatch):
    folder = make_manifest()
    clips = read_manifest(folder, LABELS)
    for clip in (clips[3], clips[-1]):
        soundfile.write(clip.path, np.zeros(3200), RATE)
    monkeypatch.setattr(clip_checks, "MAX_DECODED", 10)
    (silent, _), _ = look_at_clips(clips, [clips[3]])
    assert silent.startswith("2 clips are digital silence") and silent.endswith(
        "(of 10 that were decoded)"
    )


def test_a_clip_that_cannot_be_read_hides_no_other(make_manifest):
    folder = make_manifest(sources=3)
    clips = read_manifest(folder, LABELS)
    clips[0].path.write_text("no sound")
    soundfile.write(clips[1].path, np.zeros(8000), RATE)
    texts = [text for text, _ in look_at_clips(clips)]
    assert texts[0].startswith("1 clips cannot be read: audio file ")
    assert texts[1] == "1 clips are digital silence but not of category silence: s0-1"


def test_silence_of_category_silence_is_right(make_manifest):
    def silent(rows):
        for row in rows:
            row["category"] = "silence"

    folder = make_manifest(sources=2, change=silent)
    with (folder / "manifest.csv").open() as file:
        for row in csv.DictReader(file):
            soundfile.write(folder / row["path"], np.zeros(int(row["duration_ms"]) * 16), RATE)
    assert list(look_at_clips(read_manifest(folder, LABELS))) == []
