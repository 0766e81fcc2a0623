"""Clip sets are built from recordings: the same bytes however it is run, measured, resumable, and refused in words."""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import LABELS, ROOT
from test_recordings import sound, table

from data import build
from data.building.design import quotas, split_of
from data.building.render import measured_snr
from data.building.rooms import synthetic_response
from evaluators.audio import RATE, add_noise, coloured_noise, load
from evaluators.manifest import read_manifest, verify
from evaluators.splits import check_registry, read_registry

RECIPE = """
design: factorial
durations_ms: [200, 500]
snrs_db: [0, 10]
clips_per_cell: 10
noise: {white: 1, pink: 1, recorded: 1}
min_source_snr_db: -100
vad_speech: 0
vad_nonspeech: 1
cap: {SPEECH: 40, NONSPEECH: 40}
"""


def folder_of(tmp_path: Path, speech=16, other=14, seconds=3.0) -> Path:
    """Recordings that a machine can tell apart; voice activity is switched off in RECIPE."""
    root = tmp_path / "recordings"
    rows = []
    kinds = [("SPEECH", "speech", speech)] + [
        ("NONSPEECH", kind, other) for kind in ("environment", "music", "animal", "noise")
    ]
    for label, kind, count in kinds:
        for i in range(count):
            name = f"{kind}/{i}.flac"
            rng = np.random.default_rng([*kind.encode(), i])
            (root / kind).mkdir(parents=True, exist_ok=True)
            wave = 0.1 * coloured_noise(int(seconds * RATE), -1.0 * (i % 5), rng)
            soundfile.write(root / name, wave, RATE)
            rows.append((name, label, kind, f"{kind}{i}", "CC0"))
    table(root / "manifest.csv", ["path", "label", "category", "source_id", "licence"], *rows)
    return root


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("source"))


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def make(recipe, recordings, out, *more):
    return build.main(
        [str(recipe), "--recordings", str(recordings), "--out", str(out), "--processes", "1", *more]
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def built(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    (folder / "recipe.yaml").write_text(RECIPE)
    assert make(folder / "recipe.yaml", recordings, folder / "out") == 0
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


def test_the_snr_is_measured_on_what_was_written(built):
    for row in rows_of(built):
        if row["snr_db"]:
            assert float(row["snr_db"]) == pytest.approx(float(row["snr_target_db"]), abs=0.1)
    assert {row["noise"] for row in rows_of(built)} == {"white", "pink", "recorded"}
    assert all((row["noise"] == "recorded") == bool(row["noise_source"]) for row in rows_of(built))


def test_clips_reach_their_peak_and_do_not_clip(built):
    for row in rows_of(built)[::7]:
        assert np.abs(load(built / row["path"])).max() == pytest.approx(0.637, abs=0.001)


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
    real, calls = build._make_one, []

    def stops(task):
        calls.append(task)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return real(task)

    out = tmp_path / "out"
    monkeypatch.setattr(build, "_make_one", stops)
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
    monkeypatch.setattr(build, "_make_one", lambda task: (_ for _ in ()).throw(KeyboardInterrupt))
    assert make(recipe, recordings, tmp_path / "out") == 1
    recipe.write_text(RECIPE.replace("[0, 10]", "[0, 5]"))
    assert make(recipe, recordings, tmp_path / "out") == 2
    assert "unfinished build of another recipe" in capsys.readouterr().err


def test_check_says_what_differs(built, recordings, recipe, tmp_path, capsys):
    assert make(recipe, recordings, built, "--check") == 0
    assert "0 clips differ" in capsys.readouterr().out
    assert make(recipe, recordings, tmp_path / "none", "--check") == 2


def test_dry_run_writes_nothing_and_says_what_is_missing(recordings, recipe, tmp_path, capsys):
    assert make(recipe, recordings, tmp_path / "out", "--dry-run") == 0
    assert "80 clips" in capsys.readouterr().out and not (tmp_path / "out").exists()
    recipe.write_text(
        RECIPE.replace("NONSPEECH: 40", "NONSPEECH: 1").replace("cell: 10", "cell: 75")
    )
    make(recipe, recordings, tmp_path / "out", "--dry-run")
    assert "missing: " in capsys.readouterr().out


def test_adding_sources_moves_none():
    shares = {"train": 0.6, "dev": 0.2, "test": 0.2}
    names = [f"source{i}" for i in range(3000)]
    split = {n: split_of(n, shares) for n in names}
    assert {n: split_of(n, shares) for n in names[:100]} == {n: split[n] for n in names[:100]}
    for name, share in shares.items():
        assert sum(s == name for s in split.values()) / 3000 == pytest.approx(share, abs=0.03)
    for total in (1, 7, 50, 970):
        found = quotas(total, shares)
        assert sum(found.values()) == total
        assert all(abs(found[name] - share * total) < 1 for name, share in shares.items())


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


def variants(tmp_path, recordings, text) -> Path:
    path = tmp_path / "variants.yaml"
    common = "min_source_snr_db: -100\nvad_speech: 0\nvad_nonspeech: 1\nbase_clips: 8\n"
    common += "splits: {train: 1, dev: 1}\n"
    path.write_text(f"design: variants\n{common}{text}")
    out = tmp_path / "variants"
    assert make(path, recordings, out) == 0
    return out


def test_the_bank_has_22_conditions_that_differ_from_the_neutral_one(recordings, tmp_path):
    out = variants(
        tmp_path,
        recordings,
        "vary: one_factor\ndurations_ms: [20, 40, 60, 80, 100, 200, 500, 1000]\n"
        "snrs_db: [-10, -5, 0, 5, 10, 20]\nt60_s: [0.3, 1.0, 2.5]\n"
        "filters: [bandpass, lowpass, highpass]\n",
    )
    rows = rows_of(out)
    by_condition = {
        c: [r for r in rows if r["condition"] == c] for c in {r["condition"] for r in rows}
    }
    assert len(by_condition) == 22 and {len(v) for v in by_condition.values()} == {8}
    for row in rows:
        if row["snr_db"]:
            assert float(row["snr_db"]) == pytest.approx(float(row["snr_target_db"]), abs=0.1)
        if row["t60_target_s"]:
            assert float(row["t60_s"]) == pytest.approx(float(row["t60_target_s"]), rel=0.1)
    neutral = {r["recording"]: r["pcm_sha256"] for r in by_condition["dur1000"]}
    same = {"dur1000", "t60_none", "filter_none"}
    for name, part in by_condition.items():
        assert all((neutral[r["recording"]] == r["pcm_sha256"]) == (name in same) for r in part), (
            name
        )


def test_recorded_rooms_are_used_and_measured(recordings, tmp_path):
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    for i, t60 in enumerate((0.5, 0.52, 1.1)):
        soundfile.write(
            rooms / f"{i}.wav",
            synthetic_response(t60, np.random.default_rng(i)),
            RATE,
            subtype="FLOAT",
        )
    out = variants(
        tmp_path,
        recordings,
        "vary: one_factor\ndurations_ms: [1000]\nsnrs_db: []\nt60_s: [0.5]\nresponses: [rooms]\n",
    )
    measured = {float(r["t60_s"]) for r in rows_of(out) if r["t60_s"]}
    assert measured and all(t == pytest.approx(0.5, rel=0.1) for t in measured)


def test_the_first_studys_sets_have_640_and_160_clips(recordings, tmp_path):
    for name, count in (("crossed", 640), ("clean", 160)):
        path = tmp_path / f"{name}.yaml"
        text = (ROOT / "data" / "recipes" / f"{name}.yaml").read_text()
        path.write_text(text + "min_source_snr_db: -100\nvad_speech: 0\nvad_nonspeech: 1\n")
        assert make(path, recordings, tmp_path / name) == 0
        assert len(rows_of(tmp_path / name)) == count
    for row in rows_of(tmp_path / "clean"):
        assert float(row["rms"]) == pytest.approx(0.1, abs=0.002)
        assert float(row["snr_target_db"] or 0) >= 0 and float(row["duration_ms"]) >= 200


def test_equal_recordings_under_two_names_are_kept_once(tmp_path, recipe):
    root = folder_of(tmp_path)
    (root / "music" / "99.flac").write_bytes((root / "music" / "0.flac").read_bytes())
    with (root / "manifest.csv").open("a") as file:
        file.write("music/99.flac,NONSPEECH,music,another name,CC0\n")
    assert make(recipe, root, tmp_path / "out") == 0
    rejected = (tmp_path / "out" / "rejected.csv").read_text()
    assert "music/99.flac,NONSPEECH,music,another name,same samples as music/0.flac" in rejected
    assert "another name" not in read_registry(tmp_path / "out").splits


def test_rejected_recordings_are_listed_with_their_reason(tmp_path, recipe):
    root = folder_of(tmp_path)
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


def test_webrtc_calls_noise_speech(recordings, tmp_path):
    """Why it is not the default: it rejects the negatives that Silero keeps."""
    from data.building.recipe import read_recipe
    from data.building.recordings import Collection, read_collection
    from data.building.scan import scan
    from data.building.voice import VOICES

    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("vad_nonspeech: 1", "vad_nonspeech: 0.05"))
    recipe = read_recipe(path)
    noise = [r for r in read_collection(Collection("csv", recordings)) if r.category == "noise"]
    kept = {
        name: sum(bool(scan(r, recipe, (500,), VOICES[name]()).windows) for r in noise)
        for name in ("silero", "webrtc")
    }
    assert kept["silero"] == len(noise) and kept["webrtc"] < len(noise) / 2


def test_a_two_hour_recording_costs_no_more_memory_than_a_minute(tmp_path):
    code = (
        "import resource, sys; from data import build, scan; scan.MAX_PARTS = 3;"
        "assert build.main(sys.argv[1:]) == 0;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peak = {}
    for minutes in (1, 120):
        root = folder_of(tmp_path / str(minutes))
        # Two hours are 460 MB as floats at 16 kHz.
        block = np.random.default_rng(0).normal(0, 0.1, 8_000 * 60).astype("float32")
        with soundfile.SoundFile(root / "long.wav", "w", 8_000, 1, "ULAW") as file:
            for _ in range(minutes):
                file.write(block)
        with (root / "manifest.csv").open("a") as file:
            file.write("long.wav,NONSPEECH,noise,long,CC0\n")
        recipe = tmp_path / "r.yaml"
        recipe.write_text(RECIPE)
        out = subprocess.run(
            [sys.executable, "-c", code, str(recipe), "--recordings", str(root), "--out",
             str(tmp_path / f"o{minutes}"), "--processes", "1"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        peak[minutes] = int(out.split()[-1])
        (root / "long.wav").unlink()
    assert peak[120] < peak[1] + 60, peak


def bad(tmp_path, name):
    """A folder of good recordings with one thing wrong."""
    root = folder_of(tmp_path, speech=6, other=4, seconds=1.0)
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
    import re

    root = bad(tmp_path, name)
    with (root / "manifest.csv").open() as file:
        line = next(i for i, text in enumerate(file, 1) if text.startswith("noise/0.flac"))
    assert make(recipe, root, tmp_path / "out") == 2
    err = [t for t in capsys.readouterr().err.splitlines() if t.startswith("error: ")]
    assert len(err) == 1 and re.search(AUDIO[name].replace(":20:", f":{line}:"), err[0]), err
    assert not (tmp_path / "out").exists()


GOOD = "speech/0.flac,SPEECH,speech,s0,CC0"
TABLE = {
    "label typo": ("speech/0.flac,SPEACH,speech,s0,CC0", ":2: label 'SPEACH' is not one of"),
    "wrong category": ("speech/0.flac,SPEECH,music,s0,CC0", ":2: category 'music' does not go"),
    "outside": ("../x.wav,SPEECH,speech,s0,CC0", ":2: path '../x.wav' leaves the folder"),
    "no source": ("speech/0.flac,SPEECH,speech,,CC0", ":2: source_id is empty"),
    "short row": ("speech/0.flac,SPEECH", ":2: the row has fewer fields"),
    "long row": ("speech/0.flac,SPEECH,speech,s0,CC0,a,b", ":2: the row has more fields"),
    "twice": (f"{GOOD}\n{GOOD}", ":3: path .* stands in .*:2 too"),
    "two labels": (f"{GOOD}\nmusic/0.flac,NONSPEECH,music,s0,CC0", ":2: source 's0' has label NONSPEECH elsewhere"),
    "latin-1": (b"speech/0.flac,SPEECH,speech,caf\xe9,CC0", "is not UTF-8"),
    "empty": ("", "nothing found; layout 'csv' expects"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_a_bad_table_is_one_sentence_with_its_line(tmp_path, recipe, name, capsys):
    import re

    root = folder_of(tmp_path, speech=1, other=1, seconds=0.3)
    text, message = TABLE[name]
    header = b"path,label,category,source_id,licence\n"
    (root / "manifest.csv").write_bytes(
        header + (text if isinstance(text, bytes) else text.encode())
    )
    assert make(recipe, root, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_missing_column_and_a_missing_table(tmp_path, recipe, capsys):
    root = folder_of(tmp_path, speech=1, other=1, seconds=0.3)
    (root / "manifest.csv").write_text("path,label\nspeech/0.flac,SPEECH\n")
    assert make(recipe, root, tmp_path / "out") == 2
    assert "manifest.csv:1: column 'category' is missing" in capsys.readouterr().err
    (root / "manifest.csv").unlink()
    assert make(recipe, root, tmp_path / "out") == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_is_refused(tmp_path, recipe, capsys):
    folder = tmp_path / "odd"
    folder.mkdir()
    soundfile.write(folder / "x.wav", np.zeros(100), RATE)
    try:
        (folder / "x.wav").rename(Path(str(folder) + "/\udcff.wav"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    recipe.write_text(
        RECIPE + "recordings:\n  - {layout: folder, path: odd, label: NONSPEECH, category: noise}\n"
    )
    assert build.main([str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "is not UTF-8; rename the file" in capsys.readouterr().err


def test_a_clip_is_found_where_its_row_says_it_starts(recordings, tmp_path):
    out = variants(
        tmp_path, recordings, "vary: crossed\ndurations_ms: [100, 1000]\nsnrs_db: [60]\n"
    )
    for row in rows_of(out)[:8]:
        clip, whole = load(out / row["path"]), load(recordings / row["recording"])
        first = round(float(row["start_s"]) * RATE)
        part = whole[first : first + len(clip)]
        assert np.corrcoef(clip, part)[0, 1] > 0.99


def test_a_gap_in_the_middle_of_a_recording_is_no_clip(tmp_path):
    root = folder_of(tmp_path)
    gap = 0.1 * coloured_noise(3 * RATE, 0, np.random.default_rng(9))
    gap[int(1.48 * RATE) : int(1.52 * RATE)] = 0
    for i in range(16):
        soundfile.write(root / "speech" / f"{i}.flac", np.roll(gap, i), RATE)
    out = variants(tmp_path, root, "vary: crossed\ndurations_ms: [20, 1000]\nsnrs_db: [0]\n")
    speech = [r for r in rows_of(out) if r["label"] == "SPEECH"]
    assert speech and all(
        float(r["start_s"]) != 1.0 for r in speech if r["duration_ms"] == "1000.0"
    )


def test_an_unfinished_build_does_not_go_on_with_changed_inputs(
    tmp_path, recipe, monkeypatch, capsys
):
    root = folder_of(tmp_path)
    stop = lambda task: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    monkeypatch.setattr(build, "_make_one", stop)
    assert make(recipe, root, tmp_path / "out") == 1
    table_of = root / "manifest.csv"
    table_of.write_text(table_of.read_text().replace("speech3", "speech99"))
    assert make(recipe, root, tmp_path / "out") == 2
    assert "another recipe or other recordings" in capsys.readouterr().err


def test_check_sees_a_damaged_and_a_missing_clip(recordings, recipe, tmp_path, capsys):
    assert make(recipe, recordings, tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    (tmp_path / "out" / rows[0]["path"]).write_bytes(b"junk")
    (tmp_path / "out" / rows[1]["path"]).unlink()
    assert make(recipe, recordings, tmp_path / "out", "--check") == 1
    out = capsys.readouterr().out
    assert "2 clips differ" in out and rows[0]["clip_id"] in out and rows[1]["clip_id"] in out


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


def test_formats_of_any_rate_and_channel_count_are_read(tmp_path):
    sound(tmp_path / "a.wav", rate=48_000, channels=2)
    sound(tmp_path / "b.wav", rate=8_000, subtype="ULAW")
    sound(tmp_path / "c.mp3", rate=44_100, format="MP3")
    for path in tmp_path.iterdir():
        assert len(load(path)) == pytest.approx(RATE, abs=RATE // 10)


RECIPES = {
    "typo": ("duration_ms: [200]", "key 'duration_ms' is unknown; did you mean 'durations_ms'"),
    "twice": ("seed: 1\nseed: 2", "key 'seed' stands twice"),
    "type": ("clips_per_cell: many", "clips_per_cell is 'many'; expected a whole number"),
    "list": ("durations_ms: 200", "durations_ms is 200; expected a list"),
    "nan": ("snrs_db: [.nan]", "snrs_db, entry 1 is nan; expected a number"),
    "bool": ("snrs_db: [yes]", "entry 1 is .*; expected a number"),
    "far": ("snrs_db: [300]", "snrs_db: 300 is not within"),
    "short": ("durations_ms: [1]", "durations_ms: 1 is not within 20"),
    "share": ("splits: {train: 0}", "splits is .*; expected numbers"),
    "split": ("splits: {held: 1}", "splits: 'held' is not one of train, dev, test"),
    "category": ("categories: {birds: 1}", "categories: 'birds' is not one of"),
    "noise": ("noise: {brown: 1}", "noise: 'brown' is not one of"),
    "layout": ("recordings: [{layout: wav}]", "layout is 'wav'; expected one of csv"),
    "level": ("level: loud", "level is 'loud'; expected one of peak, rms"),
    "design": ("design: latin", "design is 'latin'; expected one of"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_recipe_is_one_sentence(tmp_path, recordings, name, capsys):
    import re

    text, message = RECIPES[name]
    path = tmp_path / "r.yaml"
    path.write_text(text if "design" in text else f"design: factorial\n{text}\n")
    assert make(path, recordings, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert re.search(message, err) and str(path) in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--out", "x"], "recipe 'nothing' does not exist; known are"),
        (["factorial", "--out", "x"], "no recordings: give --recordings"),
        (["factorial", "--out", "x", "--recordings", "esc51=/"], "layout 'esc51' is not one of"),
        (["factorial", "--out", "x", "--recordings", "esc50=/nowhere"], "is no folder"),
        (["factorial", "--out", "x", "--processes", "0"], "--processes is 0; expected 1 or more"),
        (["debian", "--out", "x", "--packages", "vlc"], "'vlc' is not in the catalogue"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build.main(arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_turn_after_the_end_of_the_audio_is_refused(tmp_path, recipe, capsys):
    sound(tmp_path / "vox" / "abcde.wav", 2)
    (tmp_path / "vox" / "abcde.rttm").write_text("SPEAKER abcde 1 9 2 <NA> <NA> a <NA> <NA>\n")
    recordings = f"voxconverse={tmp_path / 'vox'}"
    assert make(recipe, recordings, tmp_path / "out") == 2
    assert "a turn starts at 9.00 s, but" in capsys.readouterr().err


def study(tmp_path):
    root = tmp_path / "study"
    rows = []
    for i, (name, dataset) in enumerate(
        [
            ("voxconverse_abjxc_000_1000ms", "voxconverse"),
            ("esc50_1-100-A-14_000_1000ms", "esc50"),
            ("esc50_1-100-B-14_001_1000ms", "esc50"),
        ]
    ):
        for snr in (0, 10):
            file = sound(root / "data" / f"{name}_dur200ms_snr{snr:+d}dB.wav", 2.0)
            rows.append((name, f"dur200ms_snr{snr:+d}dB", 200, snr, file.relative_to(root).as_posix(),
                         "SPEECH" if i == 0 else "NON-SPEECH", dataset))  # fmt: skip
    header = [
        "clip_id",
        "variant_name",
        "duration_ms",
        "snr_db",
        "audio_path",
        "ground_truth",
        "dataset",
    ]
    return root, table(root / "test_metadata.csv", header, *rows)


def test_manifests_of_the_first_study_are_imported_with_splits_by_source(tmp_path, capsys):
    root, manifest = study(tmp_path)
    out = tmp_path / "out"
    arguments = ["import", "--recordings", str(manifest), "--root", str(root), "--out", str(out)]
    assert build.main([*arguments, "--dry-run"]) == 0 and not out.exists()
    assert build.main(arguments) == 0
    clips = read_manifest(out, LABELS)
    verify(clips)
    assert len(clips) == 6
    assert {c.source_id for c in clips} == {"voxconverse:abjxc", "freesound:100"}
    assert len({c.split for c in clips if c.source_id == "freesound:100"}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("NON-SPEECH", "MUSIC"), ":4: ground_truth 'MUSIC'"),
        (
            lambda t: t.replace("data/esc50_1-100-A", "data/esc50_9-100-A"),
            ":4: audio_path .* no file",
        ),
        (lambda t: t.replace("data/esc", "../../esc"), ":4: audio_path .* leaves"),
        (lambda t: t.replace(",10,", ",ten,"), ":3: snr_db is 'ten'"),
        (lambda t: t.replace("snr+10dB,", "snr+0dB,"), ":3: clip .* stands twice"),
    ],
)
def test_a_bad_row_of_the_first_study_is_named(tmp_path, change, message, capsys):
    import re

    root, manifest = study(tmp_path)
    manifest.write_text(change(manifest.read_text()))
    out = tmp_path / "out"
    assert (
        build.main(
            ["import", "--recordings", str(manifest), "--root", str(root), "--out", str(out)]
        )
        == 2
    )
    assert re.search(message, capsys.readouterr().err) and not out.exists()


def test_debian_dry_run_lists_the_small_set(capsys, tmp_path):
    assert build.main(["debian", "--out", str(tmp_path / "x"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "sonic-pi-samples" in out and "580 recordings" in out and not (tmp_path / "x").exists()


def test_archives_inside_packages_are_read(tmp_path):
    import struct

    from data.building.debian import read_rcc, read_riffs

    riffs = b"".join(b"RIFF" + struct.pack("<I", n) + bytes(n) for n in (10, 20))
    assert [len(r) for r in read_riffs(b"junk" + riffs)] == [18, 28]
    # One folder with one file, stored as it is: version 1, root -> "a" -> "b.wav".
    names = b"".join(struct.pack(">HI", len(n), 0) + n.encode("utf-16-be") for n in ("a", "b.wav"))
    tree = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", 0, 2, 1, 2)
    tree += struct.pack(">IHHHI", 8, 0, 0, 0, 0)
    data = struct.pack(">I", 5) + b"sound"
    at = 20
    raw = b"qres" + struct.pack(">IIII", 1, at, at + len(tree), at + len(tree) + len(data))
    assert list(read_rcc(raw + tree + data + names)) == [("a/b.wav", b"sound")]
    assert list(read_rcc(b"something else")) == []


def test_measured_snr_agrees_with_a_plain_calculation():
    rng = np.random.default_rng(3)
    wave = coloured_noise(RATE, -3, rng)
    mixed, _ = add_noise(wave, coloured_noise(RATE, 0, rng), 7.0)
    plain = 10 * np.log10((wave**2).mean() / ((mixed - wave) ** 2).mean())
    assert measured_snr(wave, mixed) == pytest.approx(plain, abs=0.2)
