"""Audio files as recorders, streams and broken downloads leave them: read to the end of what is there."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from common import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators import audio
from evaluators.audio import RATE, load, load_part, read_header, read_sound
from evaluators.errors import UserError

WAVE = (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype("float32")
ID3 = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)  # a tag of ten bytes
KINDS = "PCM_16 PCM_24 PCM_32 PCM_U8 FLOAT DOUBLE ULAW ALAW IMA_ADPCM MS_ADPCM".split()
LARGEST = 0xFFFFFFFF


def encoded(form="WAV", kind=None, wave=WAVE, rate=RATE):
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=form, subtype=kind)
    return out.getvalue()


def put(raw, place, new):
    return raw[:place] + new + raw[place + len(new) :]


def sized(raw, data, riff=None):
    """A WAV whose header claims these sizes."""
    raw = put(raw, raw.index(b"data") + 4, struct.pack("<I", data))
    return raw if riff is None else put(raw, 4, struct.pack("<I", riff))


def flac_of(total):
    """A FLAC whose header claims a number of samples; 0 is unknown."""
    raw = bytearray(encoded("FLAC"))
    raw[21] = raw[21] & 0xF0 | total >> 32
    raw[22:26] = struct.pack(">I", total & LARGEST)
    return bytes(raw)


def written(tmp_path, raw, name="x.wav"):
    path = tmp_path / name
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
@pytest.mark.parametrize("claim", [0, LARGEST, 0x7FFFFFFF, LARGEST - 36])
def test_a_wav_whose_header_tells_no_length_is_read_to_its_end(tmp_path, form, kind, claim):
    if kind not in soundfile.available_subtypes(form):
        pytest.skip("no such WAV")
    whole = written(tmp_path, encoded(form, kind), "whole.wav")
    path = written(tmp_path, sized(whole.read_bytes(), claim, claim))
    assert np.array_equal(load(path), load(whole))
    assert read_header(whole).told and not read_header(path).told
    assert (
        read_header(path).samples == read_header(whole).samples == read_sound(path).header.samples
    )


def test_other_headers_without_a_length(tmp_path):
    """RF64 and AU of a killed recorder, FLAC of a stream or of a claim that cannot be, with a tag in front."""
    rf64 = encoded("RF64")
    place = rf64.index(b"ds64")
    files = {
        "ds64.wav": (put(rf64, place + 8, bytes(24)), encoded("RF64")),
        "zero.au": (put(encoded("AU"), 8, bytes(4)), encoded("AU")),
        "unknown.flac": (flac_of(0), encoded("FLAC")),
        "claims.flac": (flac_of((1 << 36) - 1), encoded("FLAC")),
        "tagged.wav": (ID3 + sized(encoded(), 0, 0), encoded()),
        "streamed.wav": (ID3 + sized(encoded(), LARGEST, LARGEST), encoded()),
        "tagged.flac": (ID3 + flac_of(0), encoded("FLAC")),
    }
    for name, (raw, right) in files.items():
        path = written(tmp_path, raw, name)
        assert not read_header(path).told, name
        assert np.array_equal(load(path), load(written(tmp_path, right, f"right-{name}"))), name


def test_the_files_that_people_sent(tmp_path):
    flac = written(tmp_path, flac_of(0), "a.flac")
    zero = written(tmp_path, sized(encoded(), 0, 0))
    for path in (flac, zero):
        assert read_header(path).seconds == 1.0 and len(load(path)) == RATE
        part = load_part(path, 0.25, 0.5)
        assert np.array_equal(part, load(path)[RATE // 4 : RATE // 2])
        assert np.array_equal(load_part(path, 0.9, 3.0), load(path)[int(0.9 * RATE) :])


def test_an_mp3_without_a_frame_count_is_read_to_its_end(tmp_path):
    """Of variable rate, libsndfile's guess is half of it; of constant rate more than there is, which was refused."""
    loud = np.random.default_rng(1).standard_normal(10 * 44_100)
    raw = encoded("MP3", wave=(0.1 * loud).astype("float32"), rate=44_100)
    blank = raw.replace(b"Xing", b"XXXX").replace(b"Info", b"XXXX")
    whole, path = written(tmp_path, raw, "a.mp3"), written(tmp_path, blank, "b.mp3")
    guess = soundfile.info(path).frames
    assert blank != raw and abs(guess / soundfile.info(whole).frames - 1) > 0.2
    header = read_header(path)
    assert not header.told and header.seconds == pytest.approx(10, abs=0.1)
    assert len(load(path)) == pytest.approx(len(load(whole)), abs=3000)


def test_a_wav_that_ends_early_is_read_and_told(tmp_path):
    raw = encoded()
    path = written(tmp_path, raw[: len(raw) // 2])
    header = read_header(path)
    assert header.seconds == pytest.approx(0.5, abs=0.01) and not header.told
    assert len(load(path)) == header.samples


def test_what_is_really_empty_holds_no_sample(tmp_path):
    empty = sized(encoded(wave=np.zeros(0, "float32")), 0)
    listed = empty + b"LIST" + struct.pack("<I", 4) + b"INFO"
    for raw in (empty, listed):
        for read in (load, read_header):
            with pytest.raises(UserError, match="holds no sample"):
                read(written(tmp_path, raw))


def test_a_flac_that_was_cut_says_how_much_is_there(tmp_path):
    raw = encoded("FLAC")
    with pytest.raises(UserError, match=r"cut short or damaged: 16000 samples were expected, \d+"):
        load(written(tmp_path, raw[: len(raw) // 2], "a.flac"))


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.wav", b"", r"cannot be read \(it is empty\)"),
        ("a.wav", b"not a sound", r"Format not recognised"),
        ("a.raw", b"\0\1" * 99, r"bare samples, without a header"),
        ("a.wav", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.wav", put(encoded(), 24, struct.pack("<I", 1)), "a rate of 1 samples a second; expected 1,000"),
        ("a.wav", put(encoded(), 24, struct.pack("<I", 1 << 30)), "a rate of 1,073,741,824 samples"),
        ("a.wav", encoded(kind="FLOAT", wave=np.full(99, np.nan, "float32")), "no numbers"),
        ("a.wav", encoded(wave=WAVE[:1], rate=96_000), "holds 1 samples at 96,000 Hz, less than one"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, raw, reason):
    with pytest.raises(UserError, match=reason) as error:
        load(written(tmp_path, raw, name))
    assert "\n" not in str(error.value)


CLAIMS = """
import resource, sys
from pathlib import Path
from evaluators.audio import load, read_header

load(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[2:]:
    assert read_header(Path(name)).samples == 16_000 and len(load(Path(name))) == 16_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_is_taken_for_what_is_there_not_for_what_is_claimed(tmp_path):
    """2^36 samples are 256 GiB; what libsndfile makes of an unknown length are 32 EiB."""
    claims = {
        "unknown.flac": flac_of(0),
        "long.flac": flac_of((1 << 36) - 1),
        "x.wav": sized(encoded(), LARGEST, LARGEST),
    }
    names = [written(tmp_path, raw, name) for name, raw in claims.items()]
    right = written(tmp_path, encoded("FLAC"), "right.flac")
    command = [sys.executable, "-c", CLAIMS, str(right), *map(str, names)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 100


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 400), st.sampled_from(["WAV", "FLAC"]), st.integers(1, 50))
def test_blocks_are_the_same_samples_as_one_read(tmp_path_factory, channels, samples, form, block):
    """What a clip gives does not depend on how it is read: soundfile's own reading, averaged, is the same bytes."""
    path = tmp_path_factory.mktemp("blocks") / f"x.{form.lower()}"
    rng = np.random.default_rng([channels, samples])
    soundfile.write(path, rng.uniform(-1, 1, (samples, channels)), RATE, format=form)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "BLOCK", block)
        assert load(path).tobytes() == expected.tobytes()
        assert read_sound(path).channel_power > 0
