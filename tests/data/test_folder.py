"""Clips of one's own in one command: what comes out, and that every dead end names its cure."""

import csv
import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from common import DEMO, LABELS
from hypothesis import given, settings
from hypothesis import strategies as st
from small_clips import clip, folder, rows_of, two_folders

from data.building import folder as module
from data.building.design import stratified_splits
from evaluators.audio import load, load_part
from evaluators.errors import UserError
from evaluators.manifest import read_manifest, verify
from evaluators.splits import load_registry
from opro import optimize

SHARES = {"train": 0.6, "dev": 0.2, "test": 0.2}


def test_two_folders_are_searched_in_two_commands(tmp_path, monkeypatch, capsys):
    rows = [r for r in rows_of(DEMO) if r["split"] != "train"]
    for label, kind in zip(LABELS, ("talk", "rest"), strict=True):
        (tmp_path / kind).mkdir()
        for i, row in enumerate([r for r in rows if r["label"] == label][:60]):
            shutil.copyfile(DEMO / row["path"], tmp_path / kind / f"{i}.ogg")
    monkeypatch.chdir(tmp_path)
    assert folder("--speech", "talk", "--other", "rest") == 0
    said = capsys.readouterr().out
    assert "dev shows no gain, however large" in said and "--splits dev=0.5,test=0.5" in said
    flags = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "4"]
    assert optimize.main(["--manifest", "my_clips", *flags]) == 0
    said = capsys.readouterr().out
    assert "BASELINE KEPT" in said and "no prompt can replace the baseline, however good" in said
    flags += ["--name", "other"]
    halves = ["--splits", "dev=0.5,test=0.5", "--out", "other"]
    assert folder("--speech", "talk", "--other", "rest", *halves) == 0
    assert "dev shows no gain often" in capsys.readouterr().out  # 30 clips of a label are few
    assert optimize.main(["--manifest", "other", *flags]) == 0
    assert "no prompt can replace" not in capsys.readouterr().out


def test_what_is_written_is_measured_and_whole(tmp_path):
    flags = two_folders(tmp_path)
    clip(tmp_path / "speech" / "stereo 8k.flac", 5000, 0.35, 8000)
    out = tmp_path / "out"
    assert folder(*flags, "--out", out) == 0
    clips = read_manifest(out, LABELS)
    verify(clips)
    assert len(clips) == 21 and {c.category for c in clips} == {"speech", "other"}
    for c in clips:
        assert c.duration_ms == pytest.approx(len(load(c.path)) / 16, abs=0.01)
        assert c.snr_db is None and c.licence == "unknown"
    assert len({c.source_id for c in clips}) == 21
    assert load_registry(out / "registry.json").splits == {c.source_id: c.split for c in clips}
    assert {r["recording"] for r in rows_of(out)} >= {"speech/stereo 8k.flac", "noise/0.wav"}
    assert rows_of(out, "rejected.csv") == []


def test_the_same_folders_give_the_same_bytes_wherever_they_lie(tmp_path):
    for name in ("a", "b"):
        flags = two_folders(tmp_path / name / "in")
        assert folder(*flags, "--out", tmp_path / name / "out") == 0
    for name in ("manifest.csv", "registry.json", "rejected.csv"):
        one, other = ((tmp_path / k / "out" / name).read_bytes() for k in "ab")
        assert one == other


def test_clips_are_links_where_they_can_be_and_copies_elsewhere(tmp_path, monkeypatch, capsys):
    flags = two_folders(tmp_path)
    assert folder(*flags, "--out", tmp_path / "links") == 0
    assert "20 of them hard links to your files" in capsys.readouterr().out

    def no_links(*_):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", no_links)
    assert folder(*flags, "--out", tmp_path / "copies") == 0
    assert "hard links" not in capsys.readouterr().out
    for name, count in (("links", 2), ("copies", 1)):
        files = list((tmp_path / name / "clips").iterdir())
        assert len(files) == 20 and {f.stat().st_nlink for f in files} == {count}
    assert rows_of(tmp_path / "links") == rows_of(tmp_path / "copies")


def test_a_dry_run_writes_nothing_and_says_the_same(tmp_path, capsys):
    flags = [*two_folders(tmp_path), "--out", tmp_path / "out"]
    assert folder(*flags, "--dry-run") == 0 and not (tmp_path / "out").exists()
    dry = capsys.readouterr().out
    assert folder(*flags) == 0
    whole = capsys.readouterr().out
    assert dry.strip() in whole and "wrote" in whole and "wrote" not in dry


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    flags = two_folders(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_registry", full)
    assert folder(*flags, "--out", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "speech").iterdir())) == 10


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path, capsys):
    flags = two_folders(tmp_path)
    speech = tmp_path / "speech"
    (speech / "broken.wav").write_bytes(b"RIFF and nothing more")
    soundfile.write(speech / "empty.wav", np.zeros(0), 16_000)
    (speech / "annex.wav").symlink_to("../.git/annex/objects/x.wav")
    shutil.copyfile(speech / "1.wav", speech / "zz again.wav")
    (speech / "talk.m4a").write_bytes(b"x")
    (speech / ".hidden.wav").write_bytes(b"x")
    assert folder(*flags, "--out", tmp_path / "out") == 0
    reasons = {r["recording"]: r["reason"] for r in rows_of(tmp_path / "out", "rejected.csv")}
    assert reasons.keys() == {f"speech/{n}.wav" for n in ("broken", "empty", "annex", "zz again")}
    assert "git annex get" in reasons["speech/annex.wav"]
    assert reasons["speech/zz again.wav"] == "same samples as speech/1.wav, which is SPEECH"
    said = capsys.readouterr().out
    assert "1 clips have the samples of another one and are left out" in said
    assert "left out: 4 (rejected.csv)" in said and "1 .m4a files are not read" in said
    assert len(rows_of(tmp_path / "out")) == 20


def test_links_are_followed_to_their_files(tmp_path):
    """Into an annex, or the cache of a hub: the clip is a file of its own, whatever becomes of the link."""
    flags = two_folders(tmp_path)
    store = clip(tmp_path / "store" / "a.wav", 700).rename(tmp_path / "store" / "0a1b")
    (tmp_path / "speech" / "linked.wav").symlink_to(store)
    (tmp_path / "noise" / "more").symlink_to(tmp_path / "noise")  # a circle
    assert folder(*flags, "--out", tmp_path / "out") == 0
    clips = read_manifest(tmp_path / "out", LABELS)
    assert len(clips) == 21 and not any(c.path.is_symlink() for c in clips)


def test_equal_samples_under_two_labels_are_told_and_left_out(tmp_path, capsys):
    flags = two_folders(tmp_path)
    clip(tmp_path / "noise" / "x.flac", 3)  # the samples of speech/3.wav
    assert folder(*flags, "--out", tmp_path / "out") == 0
    assert "2 clips with equal samples have one label here and another there" in (
        capsys.readouterr().out
    )
    assert {r["recording"] for r in rows_of(tmp_path / "out", "rejected.csv")} == {
        "noise/x.flac",
        "speech/3.wav",
    }
    kept = {r["recording"] for r in rows_of(tmp_path / "out")}
    assert len(kept) == 19 and not kept & {"noise/x.flac", "speech/3.wav"}


def test_names_that_may_begin_with_their_source_are_asked_about(tmp_path, capsys):
    flags = [*two_folders(tmp_path, 0), "--out", tmp_path / "out"]
    for i in range(24):
        clip(tmp_path / "speech" / f"anna{i // 4}_{i % 4}.wav", i)
        clip(tmp_path / "noise" / f"{i}.wav", 100 + i)
    assert folder(*flags) == 2 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert "--source '(.+)_[^_]*' makes 6 sources" in error and "--source file" in error
    assert folder(*flags, "--source", "(.+)_[^_]*") == 0
    said = capsys.readouterr().out
    assert "24 clips have the source that --source finds" in said
    assert "24 clips are taken for a source of their own" in said
    clips = read_manifest(tmp_path / "out", LABELS)  # it refuses a source in two splits
    assert len({c.source_id for c in clips if c.label == "SPEECH"}) == 6
    shutil.rmtree(tmp_path / "out")
    assert folder(*flags, "--source", "file") == 0
    assert len({c.source_id for c in read_manifest(tmp_path / "out", LABELS)}) == 48


def test_a_source_of_both_labels_stays_in_one_split(tmp_path):
    flags = two_folders(tmp_path, 0)
    for i in range(40):
        for k, kind in enumerate(("speech", "noise")):
            room = f"room{i // 4}" if k else f"ROOM{i // 4}"  # one room, whatever the case
            clip(tmp_path / kind / f"{room}_{kind[0]}{i}.wav", 1000 * k + i)
    assert folder(*flags, "--out", tmp_path / "out", "--source", "^(.+?)_") == 0
    clips = read_manifest(tmp_path / "out", LABELS)
    assert len({c.source_id for c in clips}) == 10 and len({c.split for c in clips}) == 3


def test_registered_sources_keep_their_splits_in_the_next_set(tmp_path):
    """By content: under another name, in another folder and in another format, too."""
    project = tmp_path / "project"
    flags = two_folders(tmp_path / "in", 20)
    assert folder(*flags, "--out", project / "first") == 0
    (project / "first" / "registry.json").rename(project / "registry.json")
    first = {r["pcm_sha256"]: r["split"] for r in rows_of(project / "first")}
    for path in sorted((tmp_path / "in" / "speech").iterdir()):
        wave, rate = soundfile.read(path, dtype="int16")
        path.unlink()
        soundfile.write(path.with_name(f"new {path.stem}.flac"), wave, rate)
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    for i in range(13):
        clip(tmp_path / "elsewhere" / "speech" / f"more{i}.wav", 500 + i)
    flags = [f.replace("/in/", "/elsewhere/") for f in flags]
    assert folder(*flags, "--out", project / "second") == 0
    second = {r["pcm_sha256"]: r["split"] for r in rows_of(project / "second")}
    assert len(second) == 53 and all(second[pcm] == split for pcm, split in first.items())
    counts = Counter(r["split"] for r in rows_of(project / "second") if r["label"] == "SPEECH")
    assert counts == {"train": 20, "dev": 7, "test": 6}


def nemo(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("unit", [1, 1000])
def test_seconds_are_told_from_milliseconds_by_the_files(tmp_path, unit, capsys):
    two_folders(tmp_path)
    rows = [
        {"audio_filepath": f"{kind}/{i}.wav", "duration": 0.2 * unit, "label": kind}
        for kind in ("speech", "noise")
        for i in range(10)
    ]
    path = nemo(tmp_path / "m.jsonl", rows)
    assert folder("--clips", path, "--out", tmp_path / "out") == 0
    assert ("m: times are in milliseconds" in capsys.readouterr().out) == (unit == 1000)
    assert {r["duration_ms"] for r in rows_of(tmp_path / "out")} == {"200"}


def test_durations_that_are_those_of_no_file_are_told(tmp_path, capsys):
    two_folders(tmp_path)
    rows = [
        {"audio_filepath": f"{kind}/{i}.wav", "duration": 0.2 if i else 7, "label": kind}
        for kind in ("speech", "noise")
        for i in range(10)
    ]
    path = nemo(tmp_path / "m.jsonl", rows)
    assert folder("--clips", path, "--out", tmp_path / "out") == 0
    assert f"2 durations in tables are not those of the files, such as 7 for 0.20 s ({path}:1)" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("unit", [1, 1000])
def test_rows_with_an_offset_are_cut_and_share_the_source_of_their_file(tmp_path, unit, capsys):
    rows = []
    for i in range(12):
        kind = ("speech", "background")[i % 2]
        clip(tmp_path / f"{i}.wav", i, 3.0, 8000)
        rows += [
            {
                "audio_filepath": f"{i}.wav",
                "offset": o * unit,
                "duration": 0.63 * unit,
                "label": kind,
            }
            for o in (0.0, 1.1, 2.3)
        ]
    rows.append({"audio_filepath": "1.wav", "offset": 2.9 * unit, "duration": 0.63 * unit,
                 "label": "background"})  # fmt: skip
    path = nemo(tmp_path / "m.jsonl", rows)
    assert folder("--clips", path, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "36 clips have the file they are cut from as their source" in said
    clips = read_manifest(tmp_path / "out", LABELS)
    assert len(clips) == 36 and len({c.source_id for c in clips}) == 12
    assert {c.duration_ms for c in clips} == {630}
    whole = load_part(tmp_path / "0.wav", 1.1, 1.73)
    cut = next(c for c in clips if c.clip_id == "m-0_1100")
    assert load(cut.path) == pytest.approx(whole, abs=1 / 32_000)
    (left_out,) = rows_of(tmp_path / "out", "rejected.csv")
    assert "its part from 2.9 to 3.53 s is not in its file of 3.00 s" in left_out["reason"]


def test_an_offset_without_a_duration_cuts_to_the_end(tmp_path):
    rows = []
    for i in range(12):
        clip(tmp_path / f"{i}.wav", i, 1.0)
        rows.append(
            {"audio_filepath": f"{i}.wav", "offset": 0.7, "label": ("speech", "noise")[i % 2]}
        )
    assert folder("--clips", nemo(tmp_path / "m.jsonl", rows), "--out", tmp_path / "out") == 0
    assert {r["duration_ms"] for r in rows_of(tmp_path / "out")} == {"300"}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_all_kinds_become_clips(tmp_path, form):
    flags = two_folders(tmp_path)
    odd = ["J\u00fcrgen 1.wav", "a,b.wav", "x" * 240 + ".wav", "-dash.wav", "A.wav", "a.wav", "x..wav",
            "new\nline.wav", "\u202eleft.wav"]  # fmt: skip
    for i, name in enumerate(odd):
        clip(tmp_path / "speech" / unicodedata.normalize(form, name), 300 + i)
    assert folder(*flags, "--out", tmp_path / "out") == 0
    clips = read_manifest(tmp_path / "out", LABELS)
    verify(clips)
    assert len(clips) == 29
    assert len({c.path.name.casefold() for c in clips}) == 29
    assert all(len(c.path.name.encode()) < 130 for c in clips)


def test_sub_folders_are_categories_of_what_is_no_speech(tmp_path):
    flags = two_folders(tmp_path, 12)
    shutil.rmtree(tmp_path / "noise")
    for k, kind in enumerate(("rain", "engine", "my dog")):
        for i in range(5):
            clip(tmp_path / "noise" / kind / f"{i}.wav", 100 * k + i + 50)
    assert folder(*flags, "--out", tmp_path / "out") == 0
    counts = Counter((c.label, c.category) for c in read_manifest(tmp_path / "out", LABELS))
    assert counts == {("SPEECH", "speech"): 12, ("NONSPEECH", "rain"): 5,
                      ("NONSPEECH", "engine"): 5, ("NONSPEECH", "my dog"): 5}  # fmt: skip


# Dead ends: what is there, what is asked, what is said.


def nothing(root):
    (root / "speech").mkdir()
    return ["--speech", root / "speech", "--other", root / "speech"]


def unread(root):
    flags = two_folders(root)
    shutil.rmtree(root / "noise")
    for i in range(20):
        path = root / "noise" / f"{i}.m4a"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return flags


def broken(root):
    flags = two_folders(root)
    for path in (root / "noise").iterdir():
        path.write_bytes(b"no audio")
    return flags


def nested(root):
    two_folders(root / "in")
    return ["--speech", root / "in" / "speech", "--other", root / "in"]


def flat(root):
    two_folders(root)
    return ["--clips", root / "speech"]


def inside(root):
    return [*two_folders(root), "--out", root / "noise" / "out"]


def taken(root):
    (root / "out" / "clips").mkdir(parents=True)
    return two_folders(root)


def a_file(root):
    (root / "out").write_text("x")
    return two_folders(root)


def table(text):
    def make(root):
        two_folders(root)
        (root / "t.csv").write_text(text)
        return ["--clips", root / "t.csv"]

    return make


def lines(*records, name="t.jsonl"):
    def make(root):
        two_folders(root)
        (root / name).write_text("\n".join(records) + "\n")
        return ["--clips", root / name]

    return make


def labels(*names):
    def make(root):
        for k, name in enumerate(names):
            for i in range(6):
                clip(root / "in" / name / f"{i}.wav", 10 * k + i)
        return ["--clips", root / "in"]

    return make


def kaldi(**files):
    def make(root):
        two_folders(root)
        for name, text in files.items():
            (root / "kaldi").mkdir(exist_ok=True)
            (root / "kaldi" / name.replace("_", ".")).write_text(text)
        return ["--clips", root / "kaldi"]

    return make


def with_flags(make, *flags):
    return lambda root: [*make(root), *flags]


DEAD_ENDS = {
    "nothing is given": (lambda root: [], "nothing to read: give --speech DIR and --other DIR"),
    "one kind is given": (
        lambda root: two_folders(root)[:2],
        "--speech is given and --other is not; two kinds are needed",
    ),
    "no such place": (
        lambda root: ["--speech", root / "nowhere", "--other", root / "elsewhere"],
        "does not exist; expected a folder of audio files, a table",
    ),
    "an empty folder": (nothing, "no audio file in .*: it is empty"),
    "other endings": (unread, "files are 20 .m4a, which are not read; convert audio first.*ffmpeg"),
    "nothing can be decoded": (broken, "all 10 clips are SPEECH.*10 left out: audio file"),
    "one folder in the other": (nested, "is given as SPEECH and as NONSPEECH"),
    "no sub-folders": (flat, "10 audio files and no sub-folders .*--speech or as --other"),
    "the output in the input": (inside, "lies inside .*choose a folder elsewhere"),
    "clips in the output": (taken, "holds a folder 'clips' already; remove it"),
    "the output is a file": (a_file, "is a file; expected a folder"),
    "few sources": (
        lambda root: two_folders(root, 3),
        "SPEECH has clips of 3 sources .*at least 4 are needed for 3 splits: add clips of other",
    ),
    "one label": (labels("speech", "voice"), "all 12 clips are SPEECH; two kinds are needed"),
    "no speech": (labels("music", "noise"), "all 12 clips are NONSPEECH; .*--positive"),
    "labels of no word": (
        labels("a", "b"),
        r"which of its labels are speech cannot be told from 'a' \(6\), 'b' \(6\); say --positive",
    ),
    "a label that may be speech": (
        labels("speech", "speech over music", "noise"),
        "whether 'speech over music' is speech cannot be told",
    ),
    "a label that is not there": (
        with_flags(labels("a", "b"), "--positive", "c"),
        r"--positive c: .* has no such label; it has 'a' \(6\)",
    ),
    "a pattern that is none": (
        lambda root: [*two_folders(root), "--source", "("],
        "is no regular expression",
    ),
    "a pattern without a group": (
        lambda root: [*two_folders(root), "--source", ".+"],
        "has 0 groups; expected one, as in",
    ),
    "a pattern that fits nothing": (
        lambda root: [*two_folders(root), "--source", "spk([0-9]+)"],
        "fits none of 20 names, such as '0.wav'",
    ),
    "a table without labels": (
        table("path,a,b\nspeech/0.wav,x,y\n"),
        "no column 'label'; there are path, a, b; name it with --map label=COLUMN",
    ),
    "a table without paths": (
        table("a,label\nspeech/0.wav,x\n"),
        "no column 'path'; there are a, label; name it with --map path=COLUMN",
    ),
    "an empty table": (table(""), "is empty; expected a row a clip"),
    "a table of a header": (table("path,label\n"), "holds a header and no row"),
    "a row that was cut": (
        table("path,label\nspeech/0.wav\n"),
        "t.csv:2: 1 fields, 2 are expected",
    ),
    "files that are elsewhere": (
        table("path,label\nx/0.wav,speech\nx/1.wav,noise\n"),
        "t.csv:2: no file 'x/0.wav' below .* nor any other of the 2 listed; say with --root",
    ),
    "an empty label": (table("path,label\nspeech/0.wav,\n"), "no column 'label'|label is empty"),
    "transcripts": (
        lines(
            *(
                json.dumps({"audio_filepath": f"speech/{i}.wav", "text": f"word {i}"})
                for i in range(10)
            )
        ),
        "no column 'label'.*give the file as --speech or --other",
    ),
    "a column that is not there": (
        with_flags(table("path,x\nspeech/0.wav,speech\n"), "--map", "label=y"),
        "--map label=y: there is no 'y'; there are path, x",
    ),
    "a map of nothing": (
        lambda root: [*two_folders(root), "--map", "colour=x"],
        "expected NAME=TEXT, each name once, of path, label",
    ),
    "no JSON": (lines('{"a": 1', "x"), "t.jsonl:1: not readable as JSON"),
    "no object": (lines("[1]", name="t.json"), "entry 1: 1 is no object"),
    "a key twice": (lines('{"audio": "a", "audio": "b"}'), "t.jsonl:1: .*key 'audio' stands twice"),
    "a number that is none": (lines('{"duration": NaN}'), "t.jsonl:1: .*NaN is no number"),
    "two files in a row": (
        lines('{"audios": ["a.wav", "b.wav"], "messages": []}'),
        "t.jsonl:1: 2 audio files; expected one",
    ),
    "an offset that is none": (
        lines('{"audio": "speech/0.wav", "label": "speech", "offset": "soon"}'),
        "t.jsonl:1: offset is 'soon'; expected a number",
    ),
    "a file of another kind": (
        lines("x", name="t.pkl"),
        "is read by no reader: its ending is '.pkl'",
    ),
    "a command in wav.scp": (
        kaldi(wav_scp="a sox x.wav - |\n", utt2label="a speech\n"),
        "is a command, which is not run; write its output to a file",
    ),
    "a Kaldi directory without labels": (
        kaldi(wav_scp="a ../speech/0.wav\n"),
        r"tells no labels: add a file utt2label .*--speech and --other",
    ),
    "a segment that is none": (
        kaldi(wav_scp="a ../speech/0.wav\n", segments="u a 1 0\n", utt2label="u speech\n"),
        "expected RECORDING START END in seconds",
    ),
    "shares that are none": (
        lambda root: [*two_folders(root), "--splits", "dev=half"],
        "expected shares of zero or more, of dev above zero",
    ),
    "a flag of other recipes": (
        lambda root: [*two_folders(root), "--recordings", "x"],
        "--recordings means nothing for 'folder'; it takes --speech, --other and --clips",
    ),
}


@pytest.mark.parametrize("name", DEAD_ENDS)
def test_every_dead_end_names_its_cure_and_leaves_nothing(name, tmp_path, capsys):
    make, words = DEAD_ENDS[name]
    flags = [str(f) for f in make(tmp_path)]
    out = tmp_path / "out"
    before = out.exists()
    assert folder(*([] if "--out" in flags else ["--out", out]), *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(words, error), error
    assert out.exists() == before and not (tmp_path / "noise" / "out").exists()


# Splits.

kinds = st.dictionaries(
    st.text("abcdef0123456789", min_size=1, max_size=6),
    st.tuples(st.sampled_from(LABELS), st.sampled_from(["x", "y", "z", "rare"])),
    max_size=120,
)


@settings(max_examples=100, deadline=None)
@given(kinds, st.sampled_from([SHARES, {"train": 0.0, "dev": 0.35, "test": 0.65}]))
def test_every_label_and_category_has_its_shares(kinds, shares):
    found = stratified_splits(kinds, shares, {}, {"dev": 2})
    assert found.keys() == kinds.keys()
    assert found == stratified_splits(dict(reversed(kinds.items())), shares, {}, {"dev": 2})
    for label in LABELS:
        own = [s for s, (name, _) in kinds.items() if name == label]
        counts = Counter(found[s] for s in own)
        for split, share in shares.items():
            assert counts[split] >= share * len(own) - 3 and counts[split] <= share * len(own) + 3
            assert counts[split] == 0 or share
        if len(own) >= 4:  # so that both halves of dev have one, and test has one
            assert counts["dev"] >= 2 and counts["test"] >= 1
        for category in ("x", "y", "z", "rare"):
            group = [s for s in own if kinds[s][1] == category]
            counts = Counter(found[s] for s in group)
            for split, share in shares.items():
                assert abs(counts[split] - share * len(group)) <= 4


@settings(max_examples=100, deadline=None)
@given(kinds, st.data())
def test_registered_splits_are_kept_and_new_ones_fill_up(kinds, data):
    known = {
        s: data.draw(st.sampled_from(list(SHARES)))
        for s in sorted(kinds)
        if data.draw(st.booleans())
    }
    found = stratified_splits(kinds, SHARES, known, {"dev": 2})
    assert all(found[s] == split for s, split in known.items()) and found.keys() == kinds.keys()


@settings(max_examples=100, deadline=None)
@given(kinds, st.text("ghijk", min_size=1, max_size=4))
def test_an_added_source_moves_few_others(kinds, added):
    before = stratified_splits(kinds, SHARES, {}, {"dev": 2})
    after = stratified_splits({**kinds, added: (LABELS[0], "y")}, SHARES, {}, {"dev": 2})
    moved = [s for s in kinds if before[s] != after[s]]
    assert all(kinds[s][0] == LABELS[0] for s in moved) and len(moved) <= 8


def test_labels_are_told_by_their_words_or_not_at_all():
    def told(*labels, positive=()):
        return module.speech_labels(dict.fromkeys(labels, 1), positive, "x")

    assert told("Speech", "music", "dog_bark") == {"Speech"}
    assert told("speech", "voice", "non-speech", "noise") == {"speech", "voice"}
    assert (
        told("1", "0") == {"1"}
        and told("yes", "no") == {"yes"}
        and told("True", "False") == {"True"}
    )
    assert told("NONSPEECH") == set() and told("noise", "music") == set()
    assert told("A", "B", positive=["a"]) == {"A"}
    assert told("speech over music", "noise", positive=["Speech_over music"]) == {
        "speech over music"
    }
    for labels in (
        ("A", "B"),
        ("2", "1"),
        ("stop", "go"),
        ("talk show", "speech"),
        ("vocals", "speech"),
    ):
        with pytest.raises(UserError, match="--positive NAME"):
            told(*labels)


def test_a_csv_with_a_header_or_none_and_of_every_separator(tmp_path):
    two_folders(tmp_path)
    rows = [(f"{kind}\\{i}.wav", kind) for kind in ("speech", "noise") for i in range(10)]
    made = []
    for number, (header, separator) in enumerate(
        [(None, ","), (("file", "class"), ";"), (("label", "path"), "\t")]
    ):
        path = tmp_path / f"{number}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter=separator)
            if header:
                writer.writerow(header)
            writer.writerows([r[::-1] for r in rows] if header and header[0] == "label" else rows)
        assert folder("--clips", path, "--out", tmp_path / f"out{number}") == 0
        made.append(
            {(r["pcm_sha256"], r["label"], r["split"]) for r in rows_of(tmp_path / f"out{number}")}
        )
    assert made[0] == made[1] == made[2] and len(made[0]) == 20
