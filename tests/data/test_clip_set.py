"""Builds are whole, resumable and the same bytes however they are run."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import soundfile
from common import LABELS
from small_recordings import (
    RECIPE,
    digests,
    make,
    make_recordings,
    recipe_file,
    rows_of,
)

from data import build
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
    assert make(recipe, recordings, tmp_path / "two", "--processes", "2") == 0
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


def spoil(target, name):
    """Makes a good recording one that cannot be read."""
    if name == "no samples":
        target.write_bytes(encoded(np.zeros(0), "WAV"))
    elif name == "nan":
        target.write_bytes(encoded(np.full(RATE, np.nan, "float32"), "WAV", "FLOAT"))
    elif name == "truncated":
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    elif name == "text":
        target.write_text("not a sound")
    elif name == "pointer":
        target.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif name == "folder":
        target.unlink()
        target.mkdir()
    elif name == "missing":
        target.unlink()
    elif name == "dangling":
        target.unlink()
        target.symlink_to("../.git/annex/objects/x.flac")


def encoded(wave, form, kind=None):
    out = io.BytesIO()
    soundfile.write(out, wave, RATE, format=form, subtype=kind)
    return out.getvalue()


BROKEN = {
    "no samples": "audio file .* holds no sample",
    "nan": "audio file .* no numbers",
    "truncated": "audio file .* is cut short or damaged: 24000 samples were expected",
    "text": "audio file .* cannot be read .* expected a format",
    "pointer": "audio file .* cannot be read .a pointer of Git LFS.; .* git lfs pull",
    "folder": "path '.*' is no file: .* is a folder",
    "missing": "path '.*' is no file: .* does not exist",
    "dangling": "path '.*' is no file: .* is a link to .*, whose content is not here; fetch it",
}


def rejected(out):
    with (out / "rejected.csv").open(newline="") as file:
        return {row["recording"]: row["reason"] for row in csv.DictReader(file)}


def test_a_build_goes_on_without_what_cannot_be_read(tmp_path, recipe, capsys):
    """Each kind of broken file has its reason and its table's line; the others make the same set as without them."""
    root = make_recordings(tmp_path, other=16)
    lines = (root / "manifest.csv").read_text().splitlines()
    files = [f"{kind}/{i}.flac" for kind in ("speech", "music") for i in range(4)]
    names = dict(zip(BROKEN, files, strict=True))
    for name, file in names.items():
        spoil(root / file, name)
    assert make(recipe, root, tmp_path / "out") == 0
    reasons = rejected(tmp_path / "out")
    assert sorted(reasons) == sorted(names.values())
    for name, file in names.items():
        line = next(i for i, text in enumerate(lines, 1) if text.startswith(f"{file},"))
        assert re.match(rf".*manifest\.csv:{line}: {BROKEN[name]}", reasons[file]), reasons[file]
    err = capsys.readouterr().err
    assert "8 of 80 recordings were left out, for " in err and "rejected.csv" in err
    (root / "manifest.csv").write_text(
        "\n".join(t for t in lines if t.partition(",")[0] not in reasons) + "\n"
    )
    assert make(recipe, root, tmp_path / "clean") == 0
    assert digests(tmp_path / "out").keys() == digests(tmp_path / "clean").keys()
    left = {"rejected.csv", "registry.json"}  # sources of unread files keep their split
    for file, digest in digests(tmp_path / "out").items():
        assert file in left or digest == digests(tmp_path / "clean")[file], file


def test_a_failed_build_names_the_three_most_frequent_reasons_and_keeps_what_it_heard(
    tmp_path, recipe, capsys
):
    root = make_recordings(tmp_path)
    wave = 0.1 * coloured_noise(RATE, 0, np.random.default_rng(1))
    for i in range(16):
        path, sound = root / "speech" / f"{i}.flac", np.roll(wave, 99 * i)
        if i < 8:
            soundfile.write(path, np.stack([sound, -sound], 1), RATE)
        elif i < 13:
            path.write_text("not a sound")
        else:
            soundfile.write(path, 1e-3 * sound, RATE, subtype="PCM_24")
    out = tmp_path / "out"
    assert make(recipe, root, out) == 2
    (error,) = [t for t in capsys.readouterr().err.splitlines() if t.startswith("error: ")]
    assert "no speech window of 500 ms is left" in error
    cancels = "8 x 'its channels cancel when they are averaged'"
    assert f"16 of 72 recordings were left out, for {cancels}, 5 x " in error
    assert "cannot be read (Format not recognised)" in error and "3 x 'level -80 dBFS" in error
    assert len(rejected(out)) == 16 and not (out / "clips").exists()
    assert len((out / ".build" / "scans.jsonl").read_text().splitlines()) == 72
    # The dry run knows by now.
    assert make(recipe, root, out, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "missing: " in told and "left out: 16 of 72 recordings" in told
    # Mended, it goes on in the same folder, and only what is new is heard again.
    make_recordings(tmp_path / "again")
    for i in range(16):
        shutil.copyfile(
            tmp_path / "again/recordings/speech" / f"{i}.flac", root / "speech" / f"{i}.flac"
        )
    assert make(recipe, root, out) == 0
    assert not (out / ".build").exists() and rejected(out) == {}


def test_a_mended_recipe_runs_in_the_folder_where_the_wrong_one_failed(
    built, recordings, recipe, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    recipe.write_text(RECIPE.replace("clips_per_cell: 10", "clips_per_cell: 1000"))
    assert make(recipe, recordings, out) == 2
    assert sorted(p.name for p in out.iterdir()) == [".build", "rejected.csv"]
    recipe.write_text(RECIPE)
    monkeypatch.setattr(clip_set, "scan_recording", None)  # nothing is heard twice
    assert make(recipe, recordings, out) == 0
    assert digests(out) == digests(built)


def test_endings_that_are_not_read_are_counted_and_named(tmp_path, recipe, capsys):
    root = make_recordings(tmp_path)
    (root / "manifest.csv").unlink()
    lines = []
    for kind in ("speech", "environment", "music", "animal", "noise"):
        label = "SPEECH" if kind == "speech" else "NONSPEECH"
        lines.append(
            f"  - {{layout: folder, path: {root / kind}, label: {label}, category: {kind}}}"
        )
    recipe.write_text(RECIPE + "splits: {train: 1}\nrecordings:\n" + "\n".join(lines) + "\n")
    for i in range(20):
        (root / "speech" / f"more{i}.m4a").write_bytes(b"x")
    (root / "speech" / "a.WMA").write_bytes(b"x")
    (root / "speech" / "readme.txt").write_text("x")
    command = [str(recipe), "--out", str(tmp_path / "out"), "--processes", "1"]
    said = "20 .m4a, 1 .wma files in '"
    assert build.main([*command, "--dry-run"]) == 0
    assert said in capsys.readouterr().out
    assert build.main(command) == 0
    err = capsys.readouterr().err
    assert said in err and "ffmpeg -i x.m4a x.flac" in err and ".txt" not in err


def test_an_offset_is_no_signal(tmp_path, recipe, capsys):
    """Recordings of a cheap sound card: RMS .018 with an offset of .05, mixed at the SNR that their manifest tells."""
    root = make_recordings(tmp_path)
    for kind in ("speech", "noise"):
        for i in range(14):
            path = root / kind / f"{i}.flac"
            wave = soundfile.read(path, dtype="float32")[0]
            soundfile.write(path, 0.18 * wave + 0.05, RATE)
    assert make(recipe, root, tmp_path / "out") == 0
    assert "28 recordings had an offset (DC) above a tenth of their RMS" in capsys.readouterr().err
    scan = clip_set.scan_recording
    for row in rows_of(tmp_path / "out"):
        wave = soundfile.read(tmp_path / "out" / row["path"], dtype="float64")[0]
        if row["category"] == "speech" and row["noise"] == "white" and row["snr_target_db"] == "0":
            # Speech and noise of equal power: the clip has twice the power that one of them has.
            whole = soundfile.read(root / row["recording"], dtype="float64")[0]
            first = round(float(row["start_s"]) * RATE)
            clean = whole[first : first + len(wave)] - whole.mean()
            gain = (wave @ clean) / (clean @ clean)
            noise = wave - gain * clean
            assert 10 * np.log10((gain * clean).var() / noise.var()) == pytest.approx(0, abs=0.4)
    assert scan is clip_set.scan_recording


def test_one_source_in_two_spellings_has_one_split(tmp_path, recipe):
    root = make_recordings(tmp_path)
    table_of = root / "manifest.csv"
    nfc, nfd = "J\u00fcrgen", "Ju\u0308rgen "
    text = table_of.read_text()
    for i, name in enumerate((nfc, nfd, "J\u00dcRGEN", nfc)):
        text = text.replace(f",speech{i},", f",{name},")
    table_of.write_text(text, encoding="utf-8")
    project = tmp_path / "project"
    project.mkdir()
    (project / "registry.json").write_text(json.dumps({"splits": {nfd: "test"}, "trained_on": {}}))
    assert make(recipe, root, project / "one") == 0
    his = [f"speech/{i}.flac" for i in range(4)]
    rows = [r for r in rows_of(project / "one") if r["recording"] in his]
    assert rows and {r["split"] for r in rows} == {"test"}
    read_manifest(project / "one", LABELS)


def test_two_builds_do_not_share_a_folder(recordings, recipe, tmp_path, capsys):
    from filelock import FileLock

    (tmp_path / "out" / ".build").mkdir(parents=True)
    with FileLock(tmp_path / "out" / ".build" / "lock"):
        assert make(recipe, recordings, tmp_path / "out") == 2
    assert "another process is building there" in capsys.readouterr().err


def test_clips_are_not_built_into_their_own_recordings(recordings, recipe, capsys):
    assert make(recipe, recordings, recordings / "music" / "set") == 2
    assert "lies inside the recordings" in capsys.readouterr().err
