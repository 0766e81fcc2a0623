"""Labels for recordings: the answers are the evaluator's, and a resumed labelling is an uninterrupted one."""

import csv
import io
import json

import numpy as np
import pytest
import soundfile

from evaluators.audio import RATE
from evaluators.classifier import log_odds, read_classifiers
from evaluators.files import shipped
from opro import optimize, predict
from opro.cli import run_verb
from opro.recordings import inputs, journal
from opro.recordings.inputs import find_recordings
from opro.results.run_folder import RunFolder


def verb(*argv):
    try:
        return run_verb(lambda: predict.main([str(a) for a in argv]))
    except SystemExit as stop:
        return stop.code


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(make_manifest, monkeypatch):
    """A finished search with the stand-in, on enough sources to promise an error rate of one in ten."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    folder = make_manifest(sources=48, per_source=2)
    argv = ["--checkpoint", "fake", "--manifest", folder, "--runs-dir", folder.parent / "runs"]
    argv += ["--name", "r", "--iterations", 1, "--candidates", 2]
    assert optimize.main([str(a) for a in argv]) == 0
    return folder.parent / "runs" / "r"


@pytest.fixture
def recordings(tmp_path):
    """Two long recordings, three clips, and a file that is no sound."""
    folder = tmp_path / "sound"
    (folder / "below").mkdir(parents=True)
    for name, seconds in (("long", 7.3), ("below/long", 3.0), ("a", 0.4), ("b", 0.2), ("c", 1.0)):
        samples = int(seconds * RATE)
        wave = np.random.default_rng(samples).normal(0, 0.1, samples)
        soundfile.write(folder / f"{name}.wav", wave.astype(np.float32), RATE)
    (folder / "bad.wav").write_bytes(b"RIFF no sound")
    (folder / "d.m4a").write_bytes(b"")
    (folder / "note.txt").write_text("x")
    return folder


def test_answers_go_to_files_that_other_tools_open(run, recordings, tmp_path, capsys):
    out = tmp_path / "out"
    code = verb(run, recordings, "--out", out, "--window-ms", 1000, "--hop-ms", 500)
    said = capsys.readouterr()
    assert code == 1 and "2 could not be read" in said.err
    rows = rows_of(out / "labels.csv")
    assert len(rows) == 14 + 5 + 3 and all(r["answer"] in (r["label"], "unsure") for r in rows)
    for row in rows:
        assert float(row["p_SPEECH"]) + float(row["p_NONSPEECH"]) == pytest.approx(1, abs=2e-6)
        assert (row["label"] == "SPEECH") == (float(row["log_odds"]) > 0)
    rejected = {r["file"]: r["reason"] for r in rows_of(out / "rejected.csv")}
    assert set(rejected) == {str(recordings / "bad.wav"), str(recordings / "d.m4a")}
    assert all(rejected.values())
    segments = rows_of(out / "segments.csv")
    tracks = sorted(p.name for p in (out / "rttm").iterdir())
    assert len(tracks) == 2 and len({t[:5] for t in tracks}) == 1  # two files of one name
    lines = [x for p in (out / "rttm").iterdir() for x in p.read_text().splitlines()]
    assert len(lines) == len(segments)
    for line in lines:
        kind, _, _, start, length, *_ = line.split()
        assert kind == "SPEAKER" and float(start) >= 0 and float(length) > 0


def test_an_interrupted_labelling_goes_on_and_ends_equal(
    run, recordings, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(predict, "CHUNK", 4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert verb(run, recordings, "--out", whole) == 1
    real, calls = journal.Journal.add_windows, []

    def stops(self, rows):
        calls.append(len(rows))
        if len(calls) % 2 == 0:
            with (parts / journal.WINDOWS).open("a") as file:
                file.write('{"file": "torn')
            raise KeyboardInterrupt
        real(self, rows)

    monkeypatch.setattr(journal.Journal, "add_windows", stops)
    tries = 0
    while (
        verb(run, recordings, "--out", parts) == 1
        and "interrupted: nothing is lost" in capsys.readouterr().err
    ):
        tries += 1
    assert tries >= 3
    for name in ("labels.csv", "segments.csv", "rejected.csv", journal.RECORDINGS, journal.WINDOWS):
        assert (whole / name).read_text() == (parts / name).read_text()


def test_other_settings_need_another_folder(run, recordings, tmp_path, capsys):
    assert verb(run, recordings / "a.wav", "--out", tmp_path / "o") == 0
    assert verb(run, recordings / "a.wav", "--out", tmp_path / "o", "--hop-ms", 400) == 2
    assert "other settings (hop_ms)" in capsys.readouterr().err


def test_a_dry_run_scores_nothing_and_counts_all(run, recordings, tmp_path, capsys):
    assert verb(run, recordings / "long.wav", "--out", tmp_path / "o", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "14 windows" in out and "unsure" in out and not (tmp_path / "o").exists()


def test_the_gate_writes_the_parts_that_may_hold_speech(run, recordings, tmp_path):
    out = tmp_path / "o"
    assert verb(run, recordings / "long.wav", "--out", out, "--gate", "--error-rate", 0.2) == 0
    kept = [json.loads(x) for x in (out / journal.WINDOWS).read_text().splitlines()]
    heard = np.zeros(int(7.3 * RATE), dtype=bool)
    for row in kept:
        if row["kept"]:
            heard[round(row["start_s"] * RATE) : round(row["end_s"] * RATE)] = True
    parts = sorted((out / "gate").iterdir()) if (out / "gate").exists() else []
    assert sum(soundfile.info(p).frames for p in parts) == heard.sum()


def test_a_gate_that_can_promise_nothing_is_refused(run, recordings, tmp_path, capsys):
    code = verb(run, recordings / "a.wav", "--out", tmp_path / "o", "--gate", "--error-rate", 0.01)
    assert code == 2 and "cannot promise an error rate of 0.01" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_prompt_file_alone_answers_without_sureness(run, recordings, tmp_path, capsys):
    out = tmp_path / "o"
    argv = [run / "best.yaml", recordings / "a.wav", "--checkpoint", "fake", "--out", out]
    assert verb(*argv) == 0
    assert "tells nothing of sureness" in capsys.readouterr().err
    assert "answer" not in rows_of(out / "labels.csv")[0]


@pytest.mark.tiny
def test_what_is_said_of_a_clip_is_what_the_evaluator_says(pocket, dev_clips, tmp_path):
    """Whatever else is labelled beside it: equal log-odds, equal labels."""
    clips = sorted(dev_clips[:6], key=lambda c: str(c.path))
    seeds = shipped("prompts/seeds/baselines.yaml")
    one = read_classifiers(seeds, ("SPEECH", "NONSPEECH"))[0]
    single = tmp_path / "one.yaml"
    from evaluators.classifier import dump_classifiers

    single.write_text(dump_classifiers([one]))
    argv = [single, *(c.path for c in clips), "--out", tmp_path / "o", "--device", "cpu"]
    assert verb(*argv, "--checkpoint", "pocket-base") == 0
    table = pocket.score([one.prompt], clips)
    said = [float(r["log_odds"]) for r in rows_of(tmp_path / "o" / "labels.csv")]
    assert said == pytest.approx(log_odds(table.logp[0]).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["nowhere.wav"], "'nowhere.wav' is not there"),
        (["*.nothing"], "'*.nothing' is not there"),
        ([""], "no recording in"),
    ],
)
def test_what_is_not_there_is_one_sentence(tmp_path, monkeypatch, asked, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(inputs.UserError, match=words.replace("*", r"\*")):
        find_recordings(asked)


def test_names_from_standard_input_folders_and_patterns(recordings, monkeypatch):
    monkeypatch.chdir(recordings)
    found = find_recordings(["-", "*.wav", "."], io.StringIO("c.wav\n\nbelow\n"))
    names = [p.as_posix() for p in found]
    assert names[:2] == ["c.wav", "below/long.wav"] and len(names) == len(set(names)) == 7
    assert "d.m4a" in names


def test_segments_are_judged_against_true_ones(run, recordings, tmp_path, capsys):
    pytest.importorskip("pyannote.metrics")
    out = tmp_path / "o"
    assert verb(run, recordings / "long.wav", "--out", out) == 0
    truth = out / "rttm" / "long.rttm"
    capsys.readouterr()
    if not truth.read_text():
        truth.write_text("SPEAKER long 1 0.000 1.000 <NA> <NA> speech <NA> <NA>\n")
        expected = "error rate 100.0 %"
    else:
        expected = "error rate 0.0 %"
    assert verb(run, recordings / "long.wav", "--out", out, "--reference", truth) == 0
    assert expected in capsys.readouterr().out
    (tmp_path / "x.rttm").write_text("SPEAKER x 1 0.000 1.000 <NA> <NA> speech <NA> <NA>\n")
    assert verb(run, recordings / "long.wav", "--out", out, "--reference", tmp_path / "x.rttm") == 2
    assert "it names x" in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_refused(run, recordings, tmp_path, capsys):
    (run / "summary.json").unlink()
    assert verb(run, recordings, "--out", tmp_path / "o") == 2
    assert "is not finished" in capsys.readouterr().err
    assert RunFolder.read(run).name == "r"


def test_the_files_are_of_the_recordings_that_were_named(run, recordings, tmp_path, capsys):
    out = tmp_path / "out"
    assert verb(run, recordings / "a.wav", recordings / "b.wav", "--out", out) == 0
    assert verb(run, recordings / "c.wav", "--out", out) == 0
    assert {r["file"] for r in rows_of(out / "labels.csv")} == {str(recordings / "c.wav")}
