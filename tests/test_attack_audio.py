"""Hostile audio files: each is one sentence wherever files are read, and takes no memory that its header claims.

A case is (name, content, what the sentence says); "" for what is read as far as it is there.
"""

import csv
import hashlib
import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from common import little_room

from data import audit, build
from evaluators import audio
from evaluators.audio import RATE, load, read_blocks, read_header, read_sound
from evaluators.errors import UserError
from evaluators.manifest import NEEDED
from opro import optimize, predict
from opro.recordings.blocks import blocks

ROOM = 2**30  # bytes of addresses that reading any of them may take
WAVE = (0.1 * np.random.default_rng(0).standard_normal(RATE // 2)).astype("float32")
SIGNS = np.where(np.arange(8000) % 2, 1, -1)
LARGEST = 2**32 - 1


def encoded(form="WAV", kind=None, wave=WAVE, rate=RATE):
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=form, subtype=kind)
    return out.getvalue()


def put(raw, place, layout, *values):
    new = struct.pack(layout, *values)
    return raw[:place] + new + raw[place + len(new) :]


def put_after(raw, name, distance, layout, *values):
    return put(raw, raw.index(name) + distance, layout, *values)


def floats(wave, rate=RATE, kind="FLOAT"):
    return encoded(
        kind=kind, wave=np.asarray(wave, "float64" if kind == "DOUBLE" else "float32"), rate=rate
    )


def flac(total=8000, rate=RATE, channels=1):
    raw = bytearray(encoded("FLAC"))
    about = int.from_bytes(raw[18:26], "big")
    bits = about >> 36 & 31
    raw[18:26] = (rate << 44 | channels - 1 << 41 | bits << 36 | total).to_bytes(8, "big")
    return bytes(raw)


def au(channels=1, rate=RATE):
    return b".snd" + struct.pack(">5I", 24, LARGEST, 3, rate, channels) + bytes(8000)


def first(samples, **how):
    return encoded(wave=WAVE[:samples], **how)


FILES = {
    "2^36 samples in FLAC": ("a.flac", flac(2**36 - 1), ""),
    "10^9 samples in FLAC": ("a.flac", flac(10**9), ""),
    "2^32 bytes in WAV": ("a.wav", put_after(encoded(), b"data", 4, "<I", LARGEST), ""),
    "2^60 bytes in RF64": ("a.wav", put_after(encoded("RF64"), b"ds64", 8, "<3Q", *[2**60] * 3), ""),
    "2^62 bytes in CAF": ("a.caf", put_after(encoded("CAF"), b"data", 4, ">q", 2**62), "cannot be read"),
    "2^62 bytes in W64": ("a.w64", put_after(encoded("W64"), b"data", 16, "<Q", 2**62), ""),
    "2^32 frames in AIFF": ("a.aiff", put_after(encoded("AIFF"), b"COMM", 10, ">I", LARGEST), ""),
    "10^9 channels": ("a.au", au(10**9), "Too many channels"),
    "65,535 channels": ("a.wav", put(encoded(), 22, "<H", 65535), "Too many channels"),
    "no channel": ("a.wav", put(encoded(), 22, "<H", 0), "Channel count is zero"),
    "8 channels where there is 1": ("a.flac", flac(channels=8), "cut short or damaged"),
    "0 Hz": ("a.wav", put(encoded(), 24, "<I", 0), "cannot be read"),
    "0 Hz in FLAC": ("a.flac", flac(rate=0), "cannot be read"),
    "1 Hz": ("a.wav", put(encoded(), 24, "<I", 1), "a rate of 1 samples a second; expected 1,000 to"),
    "10^9 Hz": ("a.wav", put(encoded(), 24, "<I", 10**9), "a rate of 1,000,000,000 samples a second"),
    "2^31 Hz": ("a.au", au(rate=2**31 - 1), "a rate of 2,147,483,647 samples"),
    "no bits": ("a.wav", put(encoded(), 34, "<H", 0), "cannot be read"),
    "3e38": ("a.wav", floats(3e38 * SIGNS), r"a sample of 3e\+38, where 1 is full scale; expected at most 2,147"),
    "one of 3e38": ("a.wav", floats([*WAVE, -3e38]), r"a sample of 3e\+38"),
    "3e38 at 44,100 Hz": ("a.wav", floats(3e38 * SIGNS, 44100), r"a sample of 3e\+38"),
    "3e38 in stereo": ("a.wav", floats(np.full((800, 2), 3e38)), r"a sample of 3e\+38"),
    "3e38 that cancel": ("a.wav", floats(np.array([[3e38, -3e38]] * 800)), r"a sample of 3e\+38"),
    "1e300": ("a.wav", floats(1e300 * SIGNS, kind="DOUBLE"), "no numbers"),
    "integers as floats": ("a.wav", floats(2.0**30 * SIGNS), ""),
    "NaN": ("a.wav", floats([*WAVE, np.nan]), "no numbers"),
    "infinity": ("a.wav", floats([*WAVE, np.inf]), "no numbers"),
    "no byte": ("a.wav", b"", "it is empty"),
    "no sample": ("a.wav", first(0), "holds no sample"),
    "a header": ("a.wav", encoded()[:44], "holds no sample"),
    "half a header": ("a.wav", encoded()[:20], "cannot be read"),
    "1 sample": ("a.wav", first(1), ""),
    "less than 1 sample": ("a.wav", first(1, rate=96_000), "less than one at 16,000 Hz"),
    "1 ms": ("a.wav", first(16), ""),
    "20 ms": ("a.wav", first(320), ""),
    "half a FLAC": ("a.flac", encoded("FLAC")[:4000], "cut short or damaged"),
    "half an Ogg": ("a.ogg", encoded("OGG")[:3000], "cannot be read"),
    "half an MP3": ("a.mp3", encoded("MP3")[:700], "cut short or damaged"),
    "words": ("a.wav", b"hello there", "Format not recognised"),
    "noise": ("a.wav", np.random.default_rng(0).bytes(5000), "Format not recognised"),
    "bare samples": ("a.raw", bytes(99), "bare samples"),
}  # fmt: skip
EMPTY = ("no sample", "a header", "less than 1 sample")  # where a stream ends before it begins
BROKEN = {title: case for title, case in FILES.items() if case[2]}


def written(folder, titles=FILES, number=0):
    """The files by their titles, under names of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for i, title in enumerate(titles):
        name, raw, _ = FILES[title]
        paths[title] = folder / f"{number + i:02}-{name}"
        paths[title].write_bytes(raw)
    return paths


def sounds(folder, count, seed):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise = np.random.default_rng([seed, i]).normal(0, 0.1, 8000)
        soundfile.write(folder / f"s{seed}{i}.wav", noise.astype("float32"), RATE)
    return sorted(folder.glob(f"s{seed}*.wav"))


def manifest(folder, others=()):
    """A manifest of sound clips, and others."""
    paths = [*sounds(folder, 24, 0), *others]
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, NEEDED)
        writer.writeheader()
        for i, path in enumerate(paths):
            about = {"clip_id": f"c{i}", "path": path.name, "label": ("SPEECH", "NONSPEECH")[i % 2]}
            about |= {
                "category": "x",
                "duration_ms": 500,
                "snr_db": 0,
                "condition": "c",
                "split": "dev",
            }
            about |= {"source_id": f"source{i}", "licence": "CC0"}
            writer.writerow(about | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    return folder / "manifest.csv"


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("title", FILES)
def test_a_hostile_file_is_one_sentence_or_read_as_far_as_it_is_there(title, tmp_path):
    path, sentence = written(tmp_path, [title])[title], FILES[title][2]
    with little_room(ROOM):
        if not sentence:
            sound = read_sound(path)
            assert 0 < len(sound.wave) <= 2 * len(WAVE) and np.isfinite(sound.wave).all()
            assert np.isfinite([sound.channel_power, sound.mono_power]).all()
            assert sum(map(len, blocks(path))) == len(sound.wave)
            assert read_header(path).samples >= sound.header.samples
            return
        with pytest.raises(UserError, match=sentence) as caught:
            load(path)
        if title not in EMPTY:
            with pytest.raises(UserError, match=sentence):
                list(blocks(path))
    said = str(caught.value)
    assert "\n" not in said and str(path) in said


def test_silence_of_hours_in_a_small_file_is_refused(tmp_path, monkeypatch):
    """By what its header tells, before it is decoded; else once more was decoded than may be."""
    wave = np.zeros(20 * RATE, "float32")
    raw = encoded("FLAC", wave=wave)
    told, untold = tmp_path / "a.flac", tmp_path / "b.flac"
    told.write_bytes(raw)
    untold.write_bytes(raw[:21] + bytes([raw[21] & 0xF0]) + bytes(4) + raw[26:])
    assert len(raw) < len(wave) / 100 and read_header(told).told and not read_header(untold).told
    for path in (told, untold):
        assert len(load(path)) == len(wave)
    monkeypatch.setattr(audio, "MOST", len(wave) - 1)
    for path in (told, untold):
        with pytest.raises(
            UserError, match=r"holds more than 319,999 samples at 16,000 Hz .* cut it"
        ):
            load(path)
        assert len(audio.load_part(path, 0, 3)) == 3 * RATE
        assert sum(len(block) for block, _ in read_blocks(path)) == len(wave)
    low = tmp_path / "low.wav"
    soundfile.write(
        low, wave[: 2 * RATE], 1000
    )  # 32 s, which are 16 times as many samples at 16 kHz
    with pytest.raises(UserError, match=r"more than 19,999 samples at 1,000 Hz"):
        load(low)


def test_a_build_leaves_them_out_with_their_sentence(tmp_path, capsys):
    paths = written(tmp_path / "speech")
    sounds(tmp_path / "speech", 6, 1)
    sounds(tmp_path / "other", 6, 2)
    argv = ["folder", "--speech", tmp_path / "speech", "--other", tmp_path / "other"]
    argv += ["--source", "file"]
    argv += ["--out", tmp_path / "out", "--processes", "1"]
    with little_room(ROOM):
        assert build.run_verb(lambda: build.main(list(map(str, argv)))) == 0
    assert "Traceback" not in capsys.readouterr().err
    rejected = {
        Path(row["recording"]).name: row["reason"]
        for row in table(tmp_path / "out" / "rejected.csv")
    }
    for title in BROKEN.keys() - {"bare samples"}:  # whose ending is none of audio
        name = paths[title].name
        assert re.search(BROKEN[title][2], rejected[name].replace("...", "")), (
            title,
            rejected[name],
        )


def test_an_audit_names_some_and_counts_all(tmp_path, capsys):
    paths = written(tmp_path, BROKEN)
    path = manifest(tmp_path, paths.values())
    argv = [path, "--page", tmp_path / "page.html", "--no-voice"]
    with little_room(ROOM):
        assert audit.run_verb(lambda: audit.main(list(map(str, argv)))) == 1
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("FAULT")]
    named = {t: x for t in BROKEN for x in said if paths[t].name in x}
    assert len(named) == 5 and all(re.search(BROKEN[t][2], x) for t, x in named.items())
    assert any(f"{len(BROKEN) - 5} more files are missing, changed or broken" in x for x in said)


def test_predictions_leave_them_out_with_their_sentence(tmp_path, capsys):
    paths = written(tmp_path / "sound")
    prompt = tmp_path / "one.yaml"
    prompt.write_text("prompts:\n- text: Is this speech? A) yes B) no\n")
    argv = [prompt, tmp_path / "sound", "--checkpoint", "fake", "--out", tmp_path / "out"]
    argv += ["--runs-dir", tmp_path / "runs"]
    with little_room(ROOM):
        assert predict.run_verb(lambda: predict.main(list(map(str, argv)))) == 1
    assert "Traceback" not in capsys.readouterr().err
    rejected = {Path(r["file"]).name: r["reason"] for r in table(tmp_path / "out" / "rejected.csv")}
    for title in BROKEN.keys() - {"bare samples"}:
        sentence = "holds no sample" if title in EMPTY else BROKEN[title][2]
        assert re.search(sentence, rejected[paths[title].name]), title


@pytest.mark.tiny
@pytest.mark.parametrize("title", ["3e38 at 44,100 Hz", "1 Hz"])
def test_a_search_ends_with_the_sentence(title, tmp_path, capsys):
    paths = written(tmp_path / "clips", [title])
    path = manifest(tmp_path / "clips", paths.values())
    argv = ["--checkpoint", "pocket-base", "--manifest", path, "--iterations", 1, "--candidates", 2]
    argv += ["--name", "r", "--runs-dir", tmp_path / "runs", "--heard", "allow"]
    assert optimize.run_verb(lambda: optimize.main(list(map(str, argv)))) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and re.search(FILES[title][2], errors[0])
