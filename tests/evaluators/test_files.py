"""Files: what is written is read back, and a spreadsheet runs none of it."""

import csv
import errno
import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators import files
from evaluators.errors import PauseError
from evaluators.files import KEYS, append_line, csv_text, write_text

FORMULAS = ("=1+1", "+1", "-a", "@x", "\t=1")  # no id and no prompt may hold a carriage return


def read_back(rows, columns):
    return list(csv.DictReader(io.StringIO(csv_text(rows, columns), newline="")))


def test_free_text_that_a_spreadsheet_would_run_gets_an_apostrophe():
    for text in FORMULAS:
        assert read_back([{"text": text}], ["text"]) == [{"text": f"'{text}"}]
    for text in ("a=1", "'=1", "", " =1"):
        assert read_back([{"text": text, "n": 1}], ["text", "n"]) == [{"text": text, "n": "1"}]
    assert read_back([{"n": -1.5}], ["n"]) == [{"n": "-1.5"}]


@settings(deadline=None)
@given(st.sampled_from(KEYS), st.sampled_from(FORMULAS), st.text("abc-=+@', \"\n", max_size=5))
def test_what_tables_are_joined_by_is_read_back_as_it_was(key, begin, rest):
    for text in (begin + rest, rest):
        assert read_back([{key: text, "text": "x"}], [key, "text"])[0][key] == text


@pytest.fixture
def steps(monkeypatch):
    """What reaches the disk, in order: names of synced files and folders, and replacements."""
    seen, sync, replace = [], os.fsync, os.replace

    def fsync(number):
        seen.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{number}"))))
        sync(number)

    def replaced(old, new):
        seen.append(("replace", os.path.basename(new)))
        replace(old, new)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replaced)
    return seen


def test_a_file_is_on_disk_before_it_takes_its_name_and_its_name_before_the_call_returns(
    tmp_path, steps
):
    (tmp_path / "a").write_text("old")
    write_text(tmp_path / "a", "new")
    (first, scratch), *rest = steps
    assert first == "sync" and scratch.startswith(".a.") and scratch.endswith(".tmp")
    assert rest == [("replace", "a"), ("sync", tmp_path.name)]
    assert (tmp_path / "a").read_text() == "new" and os.listdir(tmp_path) == ["a"]


def test_a_line_is_on_disk_and_so_is_the_name_of_a_new_file(tmp_path, steps):
    append_line(tmp_path / "a", "1\n")
    assert steps == [("sync", "a"), ("sync", tmp_path.name)]
    append_line(tmp_path / "a", "2\n")
    assert steps[2:] == [("sync", "a")]
    assert (tmp_path / "a").read_text() == "1\n2\n"


@pytest.mark.parametrize("fault", ["file", "folder"])
def test_a_fault_of_the_disk_pauses_and_a_file_system_that_syncs_no_folder_does_not(
    tmp_path, monkeypatch, fault
):
    sync, folder = os.fsync, fault == "folder"

    def fsync(number, code):
        if os.path.isdir(f"/proc/self/fd/{number}") == folder:
            raise OSError(code, os.strerror(code))
        sync(number)

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(files.os, "fsync", lambda number: fsync(number, errno.EIO))
    with pytest.raises(PauseError, match=r"a' cannot be written .*give the same command again"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == ("new" if folder else "old")
    monkeypatch.setattr(files.os, "fsync", lambda number: fsync(number, errno.EINVAL))
    if folder:
        write_text(tmp_path / "a", "newer")
        assert (tmp_path / "a").read_text() == "newer"
