"""SNR is measured where the foreground is active."""

import numpy as np
import pytest

from data.building.cues import cues
from data.building.mixing import (
    PEAK,
    active_frames,
    add_noise,
    coloured_noise,
    frame_power,
    measured_snr,
    normalise,
)
from evaluators.audio import RATE


def tone(samples=RATE):
    return np.sin(np.arange(samples) * 0.3).astype(np.float32)


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


def test_measured_snr_agrees_with_a_plain_calculation():
    rng = np.random.default_rng(3)
    wave = coloured_noise(RATE, -3, rng)
    mixed, _ = add_noise(wave, coloured_noise(RATE, 0, rng), 7.0)
    plain = 10 * np.log10((wave**2).mean() / ((mixed - wave) ** 2).mean())
    assert measured_snr(wave, mixed) == pytest.approx(plain, abs=0.2)


def test_measuring_finds_a_wrong_label():
    rng = np.random.default_rng(0)
    mixed, _ = add_noise(tone(), coloured_noise(RATE, 0, rng), 0)
    assert measured_snr(tone(), 0.5 * (mixed - tone()) + tone()) == pytest.approx(6.02, abs=0.05)


def test_the_published_snr_was_3_db_off_and_ours_is_not():
    """The published bank set the level of the noise from a container that was half padding."""
    rng = np.random.default_rng(0)
    speech = tone()
    container = np.concatenate([np.zeros(RATE // 2), speech, np.zeros(RATE // 2)]).astype(
        np.float32
    )
    wanted = 5.0
    rms = np.sqrt((container**2).mean())  # over all of it
    noise = rng.standard_normal(2 * RATE) * rms / 10 ** (wanted / 20)
    inside = slice(RATE // 2, RATE // 2 + RATE)
    theirs = 10 * np.log10((speech**2).mean() / (noise[inside] ** 2).mean())
    assert theirs - wanted == pytest.approx(3.0, abs=0.15)
    mixed, _ = add_noise(container, coloured_noise(2 * RATE, 0, rng), wanted)
    added = (mixed - container)[inside]
    ours = 10 * np.log10((speech**2).mean() / (added**2).mean())
    assert ours == pytest.approx(wanted, abs=0.1)
    assert measured_snr(container, mixed) == pytest.approx(wanted, abs=0.01)


def test_active_frames_leave_out_the_padding():
    wave = np.concatenate([np.zeros(3200), tone(3200)]).astype(np.float32)
    assert active_frames(wave).sum() == 10 and len(frame_power(wave)) == 20
