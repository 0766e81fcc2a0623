"""Recordings in windows, and windows in segments."""

import itertools

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators import audio
from evaluators.audio import RATE, load
from evaluators.errors import UserError
from opro.recordings.blocks import blocks, seconds_of
from opro.recordings.segments import Merging, Segment, audacity, merge, over_steps, rttm, union
from opro.recordings.windows import Cut, windows

CUTS = [(1000, 500), (500, 500), (300, 70), (200, 10)]


def noise(samples):
    return np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("samples", [1, 799, 16000, 16001, 24000, 161234])
def test_windows_are_pieces_of_the_recording_and_leave_nothing_out(
    tmp_path, cut, samples, monkeypatch
):
    monkeypatch.setattr(audio, "BLOCK", 16 * 11200)  # blocks of 0.7 s
    wave, cut = noise(samples), Cut.of_ms(*cut)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    found = list(windows(tmp_path / "a.wav", cut))
    assert len(found) == cut.count(samples)
    for one in found:
        assert np.array_equal(one.wave, wave[one.first : one.first + cut.window])
    firsts = [one.first for one in found]
    assert firsts[0] == 0 and firsts[-1] == max(0, samples - cut.window)
    assert all(0 < b - a <= cut.hop for a, b in itertools.pairwise(firsts))


@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (8000, 1), (48000, 3)])
def test_a_recording_in_blocks_sounds_like_the_whole(tmp_path, rate, channels):
    wave = np.stack([noise(25 * rate + i)[: 25 * rate] for i in range(channels)], -1)
    soundfile.write(tmp_path / "a.flac", wave, rate)
    whole = load(tmp_path / "a.flac")
    parts = np.concatenate(list(blocks(tmp_path / "a.flac")))
    assert len(parts) == len(whole) and np.abs(parts - whole).max() < 2e-4


def write_m4a(path, wave, rate):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, bit_rate=192_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        fifo = av.AudioFifo()
        fifo.write(frame)
        for part in [*fifo.read_many(1024, partial=True), None]:
            for packet in stream.encode(part):
                container.mux(packet)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_container_of_phones_sounds_like_the_file_it_was_made_of(tmp_path, rate):
    time = np.arange(3 * rate) / rate
    wave = (0.3 * np.sin(2 * np.pi * 440 * time) * (time > 1)).astype(np.float32)
    write_m4a(tmp_path / "a.m4a", wave, rate)
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    found = np.concatenate(list(blocks(tmp_path / "a.m4a")))
    true = np.concatenate(list(blocks(tmp_path / "a.wav")))
    assert abs(seconds_of(tmp_path / "a.m4a") - 3) < 0.1 and len(found) >= len(true)
    # An encoder may put a frame of silence in front.
    lag = min(
        range(0, 2200, 8),
        key=lambda n: np.abs(found[n : n + len(true) - 2200] - true[:-2200]).sum(),
    )
    assert np.abs(found[lag : lag + len(true) - 2200] - true[:-2200]).mean() < 0.01


def test_a_container_that_is_none_is_one_sentence(tmp_path):
    pytest.importorskip("av")
    for content in (b"", b"no container at all"):
        (tmp_path / "a.m4a").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.m4a' cannot be read"):
            list(blocks(tmp_path / "a.m4a"))


def test_a_sample_that_is_no_number_is_refused(tmp_path):
    wave = noise(20000)
    wave[12345] = np.nan
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    with pytest.raises(UserError, match="no numbers"):
        list(blocks(tmp_path / "a.wav"))


def test_a_recording_that_is_cut_short_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(60000), RATE)
    raw = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match="cut short or damaged"):
        list(blocks(tmp_path / "a.flac"))


def test_what_would_not_be_heard_is_refused():
    with pytest.raises(UserError, match="--hop-ms 600 is more than --window-ms 500"):
        Cut.of_ms(500, 600)


def firsts_of(cut, samples):
    out = list(range(0, max(1, samples - cut.window), cut.hop))
    last = max(0, samples - cut.window)
    return out if out[-1] == last else [*out, last]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 60), st.randoms())
def test_a_step_takes_the_mean_of_the_windows_that_hear_it(samples, window, hop, random):
    cut = Cut(window, min(hop, window))
    firsts = firsts_of(cut, samples)
    values = np.array([random.uniform(-3, 3) for _ in firsts])
    at, mean = over_steps(firsts, values, cut, samples)
    for sample in range(samples):
        heard = [v for f, v in zip(firsts, values, strict=True) if f <= sample < f + cut.window]
        step = int(np.searchsorted(at, sample, side="right")) - 1
        assert mean[step] == pytest.approx(np.mean(heard))


def test_segments_by_hand():
    """Windows of a second, half a second apart, over four seconds: speech from 1.5 s to 2.5 s, and at the end."""
    cut, samples = Cut.of_ms(1000, 500), 4 * RATE
    firsts = firsts_of(cut, samples)
    odds = np.array([-2.0, -2.0, -1.0, 3.0, -1.0, -2.0, 1.0])
    assert merge(firsts, odds, cut, samples, Merging()) == [Segment(1.5, 2.5), Segment(3.5, 4.0)]
    assert merge(firsts, odds, cut, samples, Merging(gap_s=1.1)) == [Segment(1.5, 4.0)]
    assert merge(firsts, odds, cut, samples, Merging(shortest_s=0.6)) == [Segment(1.5, 2.5)]
    assert merge(firsts, odds, cut, samples, Merging(smooth_s=1.5)) == [
        Segment(1.5, 2.5),
        Segment(3.5, 4.0),
    ]
    kept = odds > 0
    assert union(firsts, kept, cut, samples) == [Segment(1.5, 2.5), Segment(3.0, 4.0)]


def test_files_of_other_tools():
    parts = [Segment(0.5, 1.25)]
    assert (
        rttm("my file", parts, "SPEECH")
        == "SPEAKER my_file 1 0.500 0.750 <NA> <NA> speech <NA> <NA>\n"
    )
    assert audacity(parts, "SPEECH") == "0.500000\t1.250000\tSPEECH\n"
