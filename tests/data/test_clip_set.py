"""Builds are whole, resumable and the same bytes however they are run."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from common import LABELS, ROOT
from small_recordings import (
    RECIPE,
    digests,
    make,
    make_recordings,
    recipe_file,
    rows_of,
)

from data.building import clip_set
from data.building.mixing import (
    coloured_noise,
)
from evaluators.audio import RATE
from evaluators.manifest import read_manifest, verify
from evaluators.splits import check_registry, read_registry


@pytest.fixture(scope="module")
def built(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    assert make(recipe_file(folder), recordings, folder / "out") == 0
    return folder / "out"


def test_a_set_is_whole_balanced_and_split_by_source(built):
    clips = read_manifest(built, LABELS)
    verify(clips)
    check_registry(clips, read_registry(built))
    assert len(clips) == 80
    for split, count in (("train", 24), ("dev", 8), ("test", 8)):
        for label in LABELS:
            assert sum((c.split, c.label) == (split, label) for c in clips) == count
    other = [c for c in clips if c.label == "NONSPEECH"]
    assert {k: sum(c.category == k for c in other) for k in ("music", "noise")} == {
        "music": 10,
        "noise": 10,
    }
    assert all(c.snr_db is None for c in other if c.category == "noise")
    assert not (built / ".build").exists()


def test_noise_and_clip_share_the_split(built):
    splits = read_registry(built).splits
    for row in rows_of(built):
        if row["noise_source"]:
            assert splits[row["noise_source"]] == row["split"]
            assert row["noise_source"] != row["source_id"]


def test_the_number_of_processes_changes_no_byte(built, recordings, recipe, tmp_path):
    command = [sys.executable, "-m", "data.build", str(recipe), "--recordings", str(recordings)]
    subprocess.run(
        [*command, "--out", str(tmp_path / "two"), "--processes", "2"], cwd=ROOT, check=True
    )
    assert digests(tmp_path / "two") == digests(built)


def test_an_interrupted_build_goes_on_to_the_same_bytes(
    built, recordings, recipe, tmp_path, monkeypatch
):
    real, calls = clip_set._render_one, []

    def stops(task):
        calls.append(task)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return real(task)

    out = tmp_path / "out"
    monkeypatch.setattr(clip_set, "_render_one", stops)
    assert make(recipe, recordings, out) == 1
    assert not (out / "manifest.csv").exists() and (out / ".build").is_dir()
    with (out / ".build" / "rows.jsonl").open("a") as file:
        file.write('["torn')  # as a kill leaves it
    done = len(calls)
    calls.clear()
    assert make(recipe, recordings, out) == 1  # stops again, later
    assert make(recipe, recordings, out) == 0
    assert len(calls) + done - 1 <= 80 + 1
    assert digests(out) == digests(built)


def test_another_recipe_does_not_go_on_with_an_unfinished_build(
    recordings, recipe, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        clip_set, "_render_one", lambda task: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert make(recipe, recordings, tmp_path / "out") == 1
    recipe.write_text(RECIPE.replace("[0, 10]", "[0, 5]"))
    assert make(recipe, recordings, tmp_path / "out") == 2
    assert "unfinished build of another recipe" in capsys.readouterr().err


def test_an_unfinished_build_does_not_go_on_with_changed_inputs(
    tmp_path, recipe, monkeypatch, capsys
):
    root = make_recordings(tmp_path)
    stop = lambda task: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    monkeypatch.setattr(clip_set, "_render_one", stop)
    assert make(recipe, root, tmp_path / "out") == 1
    table_of = root / "manifest.csv"
    table_of.write_text(table_of.read_text().replace("speech3", "speech99"))
    assert make(recipe, root, tmp_path / "out") == 2
    assert "another recipe or other recordings" in capsys.readouterr().err


def test_check_says_what_differs(built, recordings, recipe, tmp_path, capsys):
    assert make(recipe, recordings, built, "--check") == 0
    assert "0 clips differ" in capsys.readouterr().out
    assert make(recipe, recordings, tmp_path / "none", "--check") == 2


def test_check_sees_a_damaged_and_a_missing_clip(recordings, recipe, tmp_path, capsys):
    assert make(recipe, recordings, tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    (tmp_path / "out" / rows[0]["path"]).write_bytes(b"junk")
    (tmp_path / "out" / rows[1]["path"]).unlink()
    assert make(recipe, recordings, tmp_path / "out", "--check") == 1
    out = capsys.readouterr().out
    assert "2 clips differ" in out and rows[0]["clip_id"] in out and rows[1]["clip_id"] in out


def test_dry_run_writes_nothing_and_says_what_is_missing(recordings, recipe, tmp_path, capsys):
    assert make(recipe, recordings, tmp_path / "out", "--dry-run") == 0
    assert "80 clips" in capsys.readouterr().out and not (tmp_path / "out").exists()
    recipe.write_text(
        RECIPE.replace("NONSPEECH: 40", "NONSPEECH: 1").replace("cell: 10", "cell: 75")
    )
    make(recipe, recordings, tmp_path / "out", "--dry-run")
    assert "missing: " in capsys.readouterr().out


def test_a_project_has_one_registry(recordings, recipe, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    moved = {"splits": {"speech0": "test", "speech1": "test"}, "trained_on": {"m": ["speech5"]}}
    (project / "registry.json").write_text(json.dumps(moved))
    assert make(recipe, recordings, project / "one") == 0
    registry = read_registry(project / "one")
    assert not (project / "one" / "registry.json").exists()
    assert registry.splits["speech0"] == registry.splits["speech1"] == "test"
    assert registry.trained_on == {"m": ("speech5",)} and "music3" in registry.splits
    assert {c.source_id: c.split for c in read_manifest(project / "one", LABELS)}.items() <= (
        registry.splits.items()
    )


def test_equal_recordings_under_two_names_are_kept_once(tmp_path, recipe):
    root = make_recordings(tmp_path)
    (root / "music" / "99.flac").write_bytes((root / "music" / "0.flac").read_bytes())
    with (root / "manifest.csv").open("a") as file:
        file.write("music/99.flac,NONSPEECH,music,another name,CC0\n")
    assert make(recipe, root, tmp_path / "out") == 0
    rejected = (tmp_path / "out" / "rejected.csv").read_text()
    assert "music/99.flac,NONSPEECH,music,another name,same samples as music/0.flac" in rejected
    assert "another name" not in read_registry(tmp_path / "out").splits


def test_rejected_recordings_are_listed_with_their_reason(tmp_path, recipe):
    root = make_recordings(tmp_path)
    quiet = 1e-4 * coloured_noise(2 * RATE, 0, np.random.default_rng(1))
    for name, wave in (("quiet", quiet), ("zero", np.zeros(RATE)), ("short", 0.1 * quiet[:500])):
        soundfile.write(root / "music" / f"{name}.wav", wave, RATE, subtype="FLOAT")
        with (root / "manifest.csv").open("a") as file:
            file.write(f"music/{name}.wav,NONSPEECH,music,{name},CC0\n")
    assert make(recipe, root, tmp_path / "out") == 0
    with (tmp_path / "out" / "rejected.csv").open() as file:
        reasons = {r["recording"]: r["reason"] for r in csv.DictReader(file)}
    assert reasons == {
        "music/quiet.wav": "level -80 dBFS, below -50",
        "music/zero.wav": "digital silence",
        "music/short.wav": "shorter than 200 ms",
    }


def bad(tmp_path, name):
    """A folder of good recordings with one thing wrong."""
    root = make_recordings(tmp_path, speech=6, other=4, seconds=1.0)
    target = root / "noise" / "0.flac"
    if name == "no samples":
        soundfile.write(root / "noise" / "x.wav", np.zeros(0), RATE)
        target.unlink()
        (root / "noise" / "x.wav").rename(target)
    elif name == "nan":
        target.unlink()
        soundfile.write(root / "n.wav", np.full(RATE, np.nan, "float32"), RATE, subtype="FLOAT")
        (root / "n.wav").rename(target)
    elif name == "truncated":
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    elif name == "text":
        target.write_text("not a sound")
    elif name == "folder":
        target.unlink()
        target.mkdir()
    elif name == "missing":
        target.unlink()
    return root


AUDIO = {
    "no samples": "manifest.csv:20: audio file .*0.flac.* holds no sample",
    "nan": "manifest.csv:20: audio file .* no numbers",
    "truncated": "manifest.csv:20: audio file .*(cut short|cannot be read)",
    "text": "manifest.csv:20: audio file .* cannot be read .* expected a format",
    "folder": "manifest.csv:20: path 'noise/0.flac' is no file",
    "missing": "manifest.csv:20: path 'noise/0.flac' is no file",
}


@pytest.mark.parametrize("name", AUDIO)
def test_bad_audio_is_one_sentence_and_leaves_nothing(tmp_path, recipe, name, capsys):

    root = bad(tmp_path, name)
    with (root / "manifest.csv").open() as file:
        line = next(i for i, text in enumerate(file, 1) if text.startswith("noise/0.flac"))
    assert make(recipe, root, tmp_path / "out") == 2
    err = [t for t in capsys.readouterr().err.splitlines() if t.startswith("error: ")]
    assert len(err) == 1 and re.search(AUDIO[name].replace(":20:", f":{line}:"), err[0]), err
    assert not (tmp_path / "out").exists()


def test_a_mended_recipe_runs_in_the_folder_where_the_wrong_one_failed(
    recordings, recipe, tmp_path
):
    out = tmp_path / "out"
    out.mkdir()
    recipe.write_text(RECIPE.replace("clips_per_cell: 10", "clips_per_cell: 1000"))
    assert make(recipe, recordings, out) == 2 and not list(out.iterdir())
    recipe.write_text(RECIPE)
    assert make(recipe, recordings, out) == 0


def test_two_builds_do_not_share_a_folder(recordings, recipe, tmp_path, capsys):
    from filelock import FileLock

    (tmp_path / "out" / ".build").mkdir(parents=True)
    with FileLock(tmp_path / "out" / ".build" / "lock"):
        assert make(recipe, recordings, tmp_path / "out") == 2
    assert "another process is building there" in capsys.readouterr().err


def test_clips_are_not_built_into_their_own_recordings(recordings, recipe, capsys):
    assert make(recipe, recordings, recordings / "music" / "set") == 2
    assert "lies inside the recordings" in capsys.readouterr().err
