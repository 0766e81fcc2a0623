"""Rendered clips are what their manifest rows say."""

import io

import numpy as np
import pytest
import soundfile
from common import ROOT
from small_recordings import build_variants, make, recipe_file, rows_of

from data.building.mixing import coloured_noise
from data.building.render import encode, pcm_digest
from data.building.rooms import synthetic_response
from evaluators.audio import RATE, load


@pytest.fixture(scope="module")
def built(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    assert make(recipe_file(folder), recordings, folder / "out") == 0
    return folder / "out"


def test_the_snr_is_measured_on_what_was_written(built):
    for row in rows_of(built):
        if row["snr_db"]:
            assert float(row["snr_db"]) == pytest.approx(float(row["snr_target_db"]), abs=0.1)
    assert {row["noise"] for row in rows_of(built)} == {"white", "pink", "recorded"}
    assert all((row["noise"] == "recorded") == bool(row["noise_source"]) for row in rows_of(built))


def test_clips_reach_their_peak_and_do_not_clip(built):
    for row in rows_of(built)[::7]:
        assert np.abs(load(built / row["path"])).max() == pytest.approx(0.637, abs=0.001)


def test_the_bank_has_22_conditions_that_differ_from_the_neutral_one(recordings, tmp_path):
    out = build_variants(
        tmp_path,
        recordings,
        "vary: one_factor\ndurations_ms: [20, 40, 60, 80, 100, 200, 500, 1000]\n"
        "snrs_db: [-10, -5, 0, 5, 10, 20]\nt60_s: [0.3, 1.0, 2.5]\n"
        "filters: [bandpass, lowpass, highpass]\n",
    )
    rows = rows_of(out)
    by_condition = {
        c: [r for r in rows if r["condition"] == c] for c in {r["condition"] for r in rows}
    }
    assert len(by_condition) == 22 and {len(v) for v in by_condition.values()} == {8}
    for row in rows:
        if row["snr_db"]:
            assert float(row["snr_db"]) == pytest.approx(float(row["snr_target_db"]), abs=0.1)
        if row["t60_target_s"]:
            assert float(row["t60_s"]) == pytest.approx(float(row["t60_target_s"]), rel=0.1)
    neutral = {r["recording"]: r["pcm_sha256"] for r in by_condition["dur1000"]}
    same = {"dur1000", "t60_none", "filter_none"}
    for name, part in by_condition.items():
        assert all((neutral[r["recording"]] == r["pcm_sha256"]) == (name in same) for r in part), (
            name
        )


def test_recorded_rooms_are_used_and_measured(recordings, tmp_path):
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    for i, t60 in enumerate((0.5, 0.52, 1.1)):
        soundfile.write(
            rooms / f"{i}.wav",
            synthetic_response(t60, np.random.default_rng(i)),
            RATE,
            subtype="FLOAT",
        )
    out = build_variants(
        tmp_path,
        recordings,
        "vary: one_factor\ndurations_ms: [1000]\nsnrs_db: []\nt60_s: [0.5]\nresponses: [rooms]\n",
    )
    measured = {float(r["t60_s"]) for r in rows_of(out) if r["t60_s"]}
    assert measured and all(t == pytest.approx(0.5, rel=0.1) for t in measured)


def test_the_first_studys_sets_have_640_and_160_clips(recordings, tmp_path):
    for name, count in (("crossed", 640), ("clean", 160)):
        path = tmp_path / f"{name}.yaml"
        text = (ROOT / "data" / "recipes" / f"{name}.yaml").read_text()
        path.write_text(
            text + "min_source_snr_db: -100\nvoice: webrtc\nvad_speech: 0\nvad_nonspeech: 1\n"
        )
        assert make(path, recordings, tmp_path / name) == 0
        assert len(rows_of(tmp_path / name)) == count
    for row in rows_of(tmp_path / "clean"):
        assert float(row["rms"]) == pytest.approx(0.1, abs=0.002)
        assert float(row["snr_target_db"] or 0) >= 0 and float(row["duration_ms"]) >= 200


def test_a_clip_is_found_where_its_row_says_it_starts(recordings, tmp_path):
    out = build_variants(
        tmp_path, recordings, "vary: crossed\ndurations_ms: [100, 1000]\nsnrs_db: [60]\n"
    )
    for row in rows_of(out)[:8]:
        clip, whole = load(out / row["path"]), load(recordings / row["recording"])
        first = round(float(row["start_s"]) * RATE)
        part = whole[first : first + len(clip)]
        assert np.corrcoef(clip, part)[0, 1] > 0.99


def test_opus_gives_equal_samples_for_equal_input():
    wave = 0.1 * coloured_noise(RATE, -3, np.random.default_rng(0))
    assert pcm_digest(encode(wave, "opus")) == pcm_digest(encode(wave, "opus"))
    assert len(soundfile.read(io.BytesIO(encode(wave, "opus")))[0]) == len(wave)
