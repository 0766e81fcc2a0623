"""The command prints a table and writes a page."""

import csv
import hashlib
import html

import numpy as np
import soundfile
from small_recordings import write_clip_set

from data import audit
from data.building.recordings import write_table
from evaluators.audio import RATE


def plant_source(rows, waves):
    rows[0]["split"] = "test"


def test_the_command_prints_a_table_and_writes_a_page(tmp_path, capsys):
    folder = write_clip_set(tmp_path, plant_source)
    page = tmp_path / "pages" / "audit.html"
    assert audit.main([str(folder), "--no-voice", "--page", str(page)]) == 1
    out = capsys.readouterr().out
    assert "FAULT  leak: source 'source0'" in out and "80 clips" in out
    text = page.read_text()
    assert text.count("<audio") >= 12 and "data:audio/wav;base64," in text
    assert "source &#39;source0&#39; stands in test and train" in text
    assert "http" not in text  # nothing is fetched


def write(path, wave, rate=RATE):
    soundfile.write(path, wave, rate, subtype="FLOAT")


def test_no_clip_stops_an_audit_and_each_trouble_has_its_name(tmp_path, capsys):
    """Silence, one sample, NaN, nothing, no sound, DC, channels that cancel, integers as floats, seconds for ms."""
    folder = write_clip_set(tmp_path)
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    noise = (0.02 * np.random.default_rng(0).standard_normal(8000)).astype("float32")
    spoils = [
        ("are digital silence", lambda p: write(p, 0 * noise)),
        ("are digital silence", lambda p: write(p, noise[:1])),
        ("that are no numbers", lambda p: write(p, noise * np.nan)),
        ("cannot be read (it is empty)", lambda p: p.write_bytes(b"")),
        ("Format not recognised", lambda p: p.write_text("no sound")),
        ("have an offset (DC) above half", lambda p: write(p, noise + 0.05)),
        ("have channels that cancel", lambda p: write(p, np.stack([noise, -noise], 1))),
        ("hold samples far above full scale", lambda p: write(p, 32_768 * noise)),
        ("clip (3 samples or more", lambda p: write(p, np.clip(99 * noise, -1, 1))),
        ("have a header that does not tell their length", lambda p: p.write_bytes(put_size(p))),
        ("not at 16 kHz", lambda p: write(p, noise, 8_000)),
    ]
    for row, (_, spoil) in zip(rows[::4], spoils, strict=False):
        spoil(folder / row["path"])
    for row in rows:
        row["sha256"] = hashlib.sha256((folder / row["path"]).read_bytes()).hexdigest()
    for row in rows[1:4]:
        row["duration_ms"] = "0.5"
    write_table(folder / "manifest.csv", rows, list(rows[0]))
    page = tmp_path / "audit.html"
    assert audit.main([str(folder), "--page", str(page)]) == 1  # with voice activity, too
    out = capsys.readouterr().out
    for what in (*(what for what, _ in spoils), "have a duration_ms that is in seconds"):
        assert what in out and what in html.unescape(page.read_text()), what
    assert "2 clips are digital silence" in out
    assert "shortcuts were looked for without the 3 clips that are broken" in out


def put_size(path):
    raw = path.read_bytes()
    place = raw.index(b"data") + 4
    return raw[:place] + bytes(4) + raw[place + 4 :]


def test_a_set_of_broken_clips_alone_has_a_page(tmp_path, capsys):
    folder = write_clip_set(tmp_path, sources=3)
    for path in folder.glob("*.wav"):
        path.write_text("no sound")
    assert audit.main([str(folder), "--no-voice", "--page", str(tmp_path / "a.html")]) == 1
    assert "1 more files are missing, changed or broken" in capsys.readouterr().out


def test_what_was_found_is_told_before_any_picture_is_drawn(tmp_path, capsys, monkeypatch):
    def fails(audit, page):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit, "write_page", fails)
    folder = write_clip_set(tmp_path, plant_source)
    assert audit.main([str(folder), "--no-voice", "--page", str(tmp_path / "a.html")]) == 1
    shown = capsys.readouterr()
    assert "FAULT  leak: source 'source0'" in shown.out and "the disk is full" in shown.err


def test_clip_names_cannot_bring_markup_into_the_page(tmp_path):
    def plant(rows, waves):
        rows[0]["source_id"] = rows[1]["source_id"] = "<script>alert(1)</script>"

    audit.main(
        [str(write_clip_set(tmp_path, plant)), "--no-voice", "--page", str(tmp_path / "a.html")]
    )
    text = (tmp_path / "a.html").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_a_manifest_that_cannot_be_read_is_wrong_use(tmp_path, capsys):
    assert audit.main([str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
