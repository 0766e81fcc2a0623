"""Disks, devices and kills against what the verbs promise: one sentence, nothing half-written, nothing lost."""

import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from common import DEMO, ROOT
from forked import children, is_alive
from hypothesis import given, settings
from hypothesis import strategies as st
from small_disk import tries, why_not

from data import audit, build
from evaluators import files
from evaluators.errors import PauseError, UserError
from evaluators.files import (
    append_line,
    check_file,
    check_folder,
    copy_file,
    replacing_folder,
    write_bytes,
    write_text,
)
from opro import ceiling, export, finetune, matrix, optimize, predict, report, rescore, seal
from opro.cli import run_verb
from opro.recordings.journal import alone

pytestmark = pytest.mark.xdist_group("disk")
RUN = ROOT / "tests/assets/run-v1/finished"
WAIT_S = 60  # for what must come, however busy the machine is
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def tree(folder: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(p.relative_to(folder)), p.lstat().st_mode, p.lstat().st_size)
        for p in folder.rglob("*")
    )


# What the flags that write may name.

FILES = {  # verb -> flags before the one that writes a file
    "report --out": (report, [RUN]),
    "rescore --out": (rescore, [ROOT / "prompts/heldout.yaml", "--checkpoint", "fake"]),
    "seal --out": (seal, [RUN]),
    "audit --page": (audit, [DEMO]),
}
FOLDERS = {  # and a folder
    "report --inspect": (report, [RUN, "--out", "page.html"]),
    "matrix --out": (matrix, ["--checkpoint", "fake"]),
    "matrix --runs-dir": (matrix, ["--checkpoint", "fake", "--out", "matrix"]),
    "rescore --runs-dir": (rescore, [ROOT / "prompts/heldout.yaml", "--checkpoint", "fake", "--out", "x.json"]),
    "predict --out": (predict, [RUN, DEMO]),
    "ceiling --out": (ceiling, []),
    "finetune --out": (finetune, []),
    "finetune --merge": (finetune, []),
    "export --to": (export, [RUN]),
    "optimize --runs-dir": (optimize, ["--checkpoint", "fake"]),
    "build --out": (build, ["factorial", "--recordings", DEMO]),
    "build folder --out": (build, ["folder", "--speech", DEMO, "--other", DEMO]),
}  # fmt: skip
PLACES = {  # what is named -> what the sentence says of a file and of a folder
    "device": ("is a device", "is a device"),
    "pipe": ("is a pipe", "is a pipe"),
    "socket": ("is a socket", "is a socket"),
    "folder": ("is a folder", None),
    "file": (None, "is a file"),
    "dangling link": ("is a link that leads nowhere", "is a link that leads nowhere"),
    "loop": ("is a link that leads nowhere", "is a link that leads nowhere"),
    "link to a device": ("is a device", "is a device"),
    "below a file": ("Not a directory", "Not a directory"),
    "in a folder without writing": ("nothing can be written in '/proc'", "nothing can be written in '/proc'"),
}  # fmt: skip


def place(folder: Path, kind: str) -> Path:
    """Makes what is named."""
    path = folder / "named"
    if kind == "device":
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except OSError as error:
            pytest.skip(f"no device can be made here ({error.strerror})")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.path.relpath(path))  # the name of a socket must be short
    elif kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("kept")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    elif kind == "below a file":
        (folder / "plain").write_text("kept")
        path = folder / "plain" / "named"
    else:
        path = Path("/proc/named")
    return path


CASES = [
    (verb, kind, PLACES[kind][i])
    for i, verbs in enumerate((FILES, FOLDERS))
    for verb in verbs
    for kind in PLACES
    if PLACES[kind][i] is not None
]


@pytest.mark.parametrize(("verb", "kind", "sentence"), CASES)
def test_what_is_no_place_for_a_result_is_refused_before_any_work(
    tmp_path, monkeypatch, capsys, verb, kind, sentence
):
    monkeypatch.chdir(tmp_path)
    module, flags = (FILES | FOLDERS)[verb]
    flag = verb.split()[-1]
    named = place(tmp_path, kind)
    if verb.endswith(("--to", "--merge")) and os.path.lexists(named):
        sentence = "exists; give a folder that does not"
    before = tree(tmp_path)
    argv = [*map(str, flags), flag, str(named)]
    if (
        module is not optimize
        and "--runs-dir" not in argv
        and module in (rescore, finetune, ceiling)
    ):
        argv += ["--runs-dir", "runs"]
    assert run_verb(lambda: module.main(argv)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("error: ") and sentence in told[0], told
    assert flag in told[0] and tree(tmp_path) == before


def test_a_link_to_a_regular_file_is_followed_by_all_writers(tmp_path):
    (tmp_path / "kept").mkdir()
    target, link = tmp_path / "kept" / "file", tmp_path / "link"
    target.write_text("old\n")
    link.symlink_to(target)
    check_file(link, "--out")
    write_text(link, "new\n")
    append_line(link, "more\n")
    assert link.is_symlink() and target.read_text() == "new\nmore\n"
    (tmp_path / "other").write_text("copied")
    copy_file(tmp_path / "other", link)
    assert link.is_symlink() and target.read_text() == "copied"
    assert os.listdir(tmp_path / "kept") == ["file"]
    (tmp_path / "to").symlink_to(tmp_path / "kept")
    check_folder(tmp_path / "to", "--out")


@pytest.mark.parametrize("write", [write_text, append_line])
@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link", "loop", "link to a device"])
def test_no_writer_writes_to_what_is_no_regular_file(tmp_path, monkeypatch, kind, write):
    monkeypatch.chdir(tmp_path)
    named = place(tmp_path, kind)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"named' is a .*; expected a regular file or a new name"):
        write(named, "text\n")
    assert tree(tmp_path) == before


# Writers whose disk fails at any step.


class Failing:
    """Fails at one of the calls that reach the disk."""

    def __init__(self, monkeypatch, number: int, code: int) -> None:
        self.left, self.code = number, code
        for module, name in ((files.os, "fsync"), (files.os, "replace"), (files.os, "open")):
            monkeypatch.setattr(module, name, self.of(getattr(module, name)))

    def of(self, call):
        def called(*given, **options):
            self.left -= 1
            if self.left == 0:
                raise OSError(self.code, os.strerror(self.code))
            return call(*given, **options)

        return called


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(1, 8),
    code=st.sampled_from([errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS]),
    old=st.none() | st.binary(max_size=20),
    new=st.binary(max_size=20),
)
def test_a_file_is_the_old_or_the_new_one_wherever_the_disk_fails(
    tmp_path_factory, number, code, old, new
):
    path = tmp_path_factory.mktemp("failing") / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, number, code)
        try:
            write_bytes(path, new)
            failed = False
        except PauseError as error:
            failed = True
            assert "make room or mend the folder, then give the same command again" in str(error)
    content = path.read_bytes() if path.exists() else None
    assert content in ((old, new) if failed else (new,))
    assert os.listdir(path.parent) == ["file"] * (content is not None)


@settings(max_examples=20, deadline=None)
@given(number=st.integers(1, 4), old=st.none() | st.just("old\n"))
def test_a_line_is_there_whole_or_not_at_all(tmp_path_factory, number, old):
    path = tmp_path_factory.mktemp("failing") / "file"
    if old is not None:
        path.write_text(old)
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch, number, errno.ENOSPC)
        try:
            append_line(path, "new\n")
            wanted = {(old or "") + "new\n"}
        except PauseError:
            wanted = {old or "", (old or "") + "new\n"}
    assert (path.read_text() if path.exists() else "") in wanted


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="full"), replacing_folder(tmp_path / "new") as fresh:
        fresh.mkdir()
        (fresh / "file").write_text("half")
        raise OSError("full")
    assert os.listdir(tmp_path) == []


def test_what_is_printed_to_a_full_disk_ends_in_one_sentence(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "opro.leaderboard", str(RUN)],
            stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
    told = done.stderr.strip().splitlines()
    assert done.returncode == 1 and len(told) == 1, done.stderr
    assert told[0].startswith(
        "paused: a file, or what is printed to, cannot be written (the disk is full)"
    )


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize(
    ("levels", "verbs"),
    [
        pytest.param((15,), ("optimize", "report", "build"), id="quick"),
        pytest.param(
            (4, 17), ("rescore", "matrix", "predict", "finetune", "study", "folder", "audit", "seal", "export"),
            id="others", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_a_full_disk_is_one_sentence_and_the_same_command_ends_as_if_it_had_never_been_full(
    levels, verbs
):
    seen = list(tries(verbs, levels))
    assert len(seen) == len(levels) * len(verbs)
    for one in seen:
        assert "Traceback" not in one.said + one.said_again, one
        assert len(one.sentences) == (one.code != 0) and one.left == [] and one.differ == [], one
        assert one.code == 1 and "give the same command again" in one.said, one


# Files that a crash of the system left empty.


def searched(folder: Path) -> int:
    argv = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "3", "--clips", "40"]
    return optimize.main([*argv, "--name", "run", "--runs-dir", str(folder)])


def test_files_that_a_crash_left_empty_are_written_anew(tmp_path, caplog):
    assert searched(tmp_path) == 0
    run = tmp_path / "run"
    whole = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    (run / "summary.json").unlink()
    (run / ".best.yaml.123.tmp").write_text("of a process that was killed")
    for name in ("config.yaml", "provenance.json", "optuna.log", "best.yaml", "leaderboard.csv"):
        (run / name).write_bytes(b"")
    assert searched(tmp_path) == 0
    for name in ("config.yaml", "trials.jsonl", "best.yaml", "leaderboard.csv"):
        assert (run / name).read_bytes() == whole[name], name
    assert json.loads((run / "provenance.json").read_text())["scored_with"] is not None
    assert "config.yaml was empty" in caplog.text and not list(run.glob(".*.tmp"))


def test_labelling_into_a_folder_of_other_things_removes_none_of_them(tmp_path):
    theirs = [tmp_path / "work/.draft.7.tmp", tmp_path / ".notes.txt.1.tmp"]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (tmp_path / ".predict.json.5.tmp").write_text("of a process that was killed")
    with alone(tmp_path):
        assert all(path.exists() for path in theirs)
    assert not (tmp_path / ".predict.json.5.tmp").exists()
    (tmp_path / "predict.json").write_text("{}")
    (tmp_path / ".old.draft.tmp").write_text("mine")
    with alone(tmp_path):
        assert (tmp_path / ".old.draft.tmp").exists() and not theirs[1].exists()


def test_a_folder_of_answers_that_a_crash_left_empty_is_begun_anew(tmp_path):
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "predict.json").write_bytes(b"")
    clip = next((DEMO / "clips").rglob("*.*"))
    argv = [str(ROOT / "prompts/heldout.yaml"), str(clip), "--checkpoint", "fake"]
    prompts = tmp_path / "one.yaml"
    shutil.copy(RUN / "best.yaml", prompts)
    argv[0] = str(prompts)
    assert predict.main([*argv, "--out", str(tmp_path / "answers")]) == 0
    assert json.loads((tmp_path / "answers" / "predict.json").read_text())


# Kills.

HOLDER = """
import os, signal, sys
from pathlib import Path
import optuna
from evaluators.study_file import study_file

optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(storage=study_file(Path("study.log")), study_name="s")
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)  # within the lock, the line not yet synced
study.ask()
"""


def test_a_study_whose_lock_was_held_by_a_killed_process_goes_on(tmp_path, monkeypatch):
    """By a relative name, after which Optuna's own lock is a link that leads nowhere."""
    import optuna

    from evaluators.study_file import study_file

    done = subprocess.run([sys.executable, "-c", HOLDER], cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == -signal.SIGKILL
    monkeypatch.chdir(tmp_path)
    os.symlink("elsewhere/study.log", "study.log.lock")  # and one that an earlier version left

    class LateError(BaseException):
        """Nothing catches it."""

    def late(*_):
        raise LateError

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(WAIT_S)
    try:
        storage = study_file(Path("study.log"))
        study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
        study.ask()
        assert len(study.trials) in (1, 2)
        optuna.create_study(  # as its dashboard opens it
            storage=optuna.storages.JournalStorage(
                optuna.storages.journal.JournalFileBackend("study.log")
            ),
            study_name="s",
            load_if_exists=True,
        )
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_a_torn_line_of_a_study_is_cut_off(tmp_path):
    import optuna

    from evaluators.study_file import study_file

    path = tmp_path / "study.log"
    study = optuna.create_study(storage=study_file(path), study_name="s")
    study.ask()
    path.write_bytes(path.read_bytes() + b'{"op_code": 4, "wor')
    for _ in range(2):
        study = optuna.create_study(storage=study_file(path), study_name="s", load_if_exists=True)
        study.ask()
    assert len(study.trials) == 3


def test_processes_of_a_build_end_with_it_though_it_was_killed(tmp_path):
    sys.path.insert(0, str(ROOT / "tests/data"))
    from small_recordings import make_recordings, recipe_file

    recordings, recipe = make_recordings(tmp_path, seconds=1.0), recipe_file(tmp_path)
    argv = [recipe, "--recordings", recordings, "--out", tmp_path / "set", "--processes", "2"]
    building = subprocess.Popen(
        [sys.executable, "-m", "data.build", *map(str, argv)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT,
    )  # fmt: skip
    end = time.monotonic() + WAIT_S
    try:
        while not (tmp_path / "set/.build/scans.jsonl").exists() and building.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        workers = children(building.pid)
    finally:
        building.kill()
        building.wait()
    assert building.returncode == -signal.SIGKILL and len(workers) >= 2
    try:
        while any(map(is_alive, workers)):
            assert time.monotonic() < end + WAIT_S, "processes outlive their parent"
            time.sleep(0.02)
    finally:
        for one in filter(is_alive, workers):
            os.kill(one, signal.SIGKILL)


def test_a_build_of_finished_clips_that_was_killed_begins_anew(tmp_path):
    sys.path.insert(0, str(ROOT / "tests/data"))
    from small_recordings import make_recordings

    recordings, out = make_recordings(tmp_path, seconds=0.5), tmp_path / "set"
    argv = ["folder", "--speech", str(recordings / "speech"), "--other", str(recordings / "noise")]
    (out / ".folder").mkdir(parents=True)
    (out / "clips").mkdir()
    (out / "clips" / "torn.flac").write_bytes(b"half")
    assert build.main([*argv, "--out", str(out)]) == 0
    assert (out / "manifest.csv").is_file() and not (out / ".folder").exists()
    assert not (out / "clips" / "torn.flac").exists()


def test_an_unfinished_build_whose_recipe_was_left_empty_goes_on(tmp_path):
    sys.path.insert(0, str(ROOT / "tests/data"))
    from small_recordings import make_recordings, recipe_file

    recordings, recipe = make_recordings(tmp_path), recipe_file(tmp_path)
    state = tmp_path / "set" / ".build"
    state.mkdir(parents=True)
    for name in ("recipe", "scans.jsonl", "rows.jsonl"):
        (state / name).write_bytes(b"")
    argv = [recipe, "--recordings", recordings, "--out", tmp_path / "set", "--processes", "1"]
    assert build.main([*map(str, argv)]) == 0
    assert not state.exists() and not list((tmp_path / "set").rglob("*.tmp"))


def test_two_processes_do_not_label_into_one_folder(tmp_path, capsys):
    out, clip = tmp_path / "answers", next((DEMO / "clips").rglob("*.*"))
    argv = [str(RUN / "best.yaml"), str(clip), "--checkpoint", "fake", "--out", str(out)]
    with alone(out):
        (out / "predict.json").write_bytes(b"")
        (out / ".labels.csv.7.tmp").write_text("of a process that was killed")
        assert run_verb(lambda: predict.main(argv)) == 2
    assert "another process is labelling there; wait for it" in capsys.readouterr().err
    assert predict.main(argv) == 0 and not list(out.glob(".*.tmp"))
