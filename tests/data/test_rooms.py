"""Rooms and bands do what they say."""

import numpy as np
import pytest
import soundfile

from data.building.mixing import add_noise, coloured_noise
from data.building.rooms import (
    band_limit,
    find_responses,
    reverberate,
    schroeder_t60,
    synthetic_response,
)
from evaluators.audio import RATE
from evaluators.errors import UserError


def tone(samples=RATE):
    return np.sin(np.arange(samples) * 0.3).astype(np.float32)


@pytest.mark.parametrize("t60", [0.2, 0.3, 1.0, 2.5])
def test_a_room_has_the_t60_asked_for_in_what_comes_out_of_it(t60):
    response = synthetic_response(t60, np.random.default_rng(1))
    click = np.zeros(4 * RATE, dtype=np.float32)
    click[100] = 1
    heard = reverberate(click, response)
    assert np.abs(heard).argmax() == 100  # the direct sound stays in place
    assert schroeder_t60(heard) == pytest.approx(t60, rel=0.10)


def test_the_t60_of_an_exact_decay_is_exact():
    time = np.arange(2 * RATE) / RATE
    assert schroeder_t60(np.exp(-3 * np.log(10) * time / 0.7)) == pytest.approx(0.7, rel=0.01)


def test_a_level_without_a_response_is_an_error(tmp_path):
    response = synthetic_response(0.5, np.random.default_rng(1))
    soundfile.write(tmp_path / "room.wav", response, RATE)
    soundfile.write(tmp_path / "speech.wav", tone(), RATE)  # decays nowhere: matches nothing
    found = find_responses([tmp_path], [0.5])
    assert [path.name for path, _ in found[0.5]] == ["room.wav"]
    with pytest.raises(UserError, match=r"t60_s 2.5 has no impulse response within 10 %.*0\.50 s"):
        find_responses([tmp_path], [0.5, 2.5])


@pytest.mark.parametrize(
    ("name", "kept", "lost"),
    [
        ("bandpass", 1000, 60),
        ("bandpass", 1000, 6500),
        ("lowpass", 1000, 6500),
        ("highpass", 1000, 60),
    ],
)
def test_bands_keep_and_remove_what_they_say_without_delay(name, kept, lost):
    time = np.arange(RATE) / RATE
    keep, lose = (np.sin(2 * np.pi * f * time).astype(np.float32) for f in (kept, lost))
    middle = slice(2000, -2000)
    assert band_limit(keep, name)[middle] == pytest.approx(keep[middle], abs=0.02)
    assert np.abs(band_limit(lose, name)[middle]).max() < 0.01


def test_every_degradation_changes_the_clip():
    rng = np.random.default_rng(0)
    wave = coloured_noise(RATE, -3, rng)
    for other in (
        reverberate(wave, synthetic_response(0.3, rng)),
        *(band_limit(wave, name) for name in ("bandpass", "lowpass", "highpass")),
        add_noise(wave, coloured_noise(RATE, 0, rng), 20)[0],
    ):
        assert len(other) == len(wave)
        assert np.abs(other - wave).max() > 0.01
