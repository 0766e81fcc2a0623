"""Files: what is written is read back, and a spreadsheet runs none of it."""

import csv
import errno
import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators import files
from evaluators.errors import PauseError, UserError
from evaluators.files import KEYS, append_line, csv_text, read_table, table_columns, write_text

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


def table_of(tmp_path, raw):
    path = tmp_path / "t.csv"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return path


EXCEL = {
    "comma": "clip_id,duration_ms,note\na,0.5,x\nb,-1.5,y\n",
    "semicolon and decimal comma": "clip_id;duration_ms;note\r\na;0,5;x\r\nb;-1,5;y\r\n",
    "tab": "clip_id\tduration_ms\tnote\na\t0.5\tx\nb\t-1.5\ty\n",
    "byte order mark": "\ufeffclip_id;duration_ms;note\na;0,5;x\nb;-1,5;y\n",
    "sep line": "sep=;\r\nclip_id;duration_ms;note\r\na;0,5;x\r\nb;-1,5;y\r\n",
    "quotes": '"clip_id";"duration_ms";"note"\n"a";"0,5";"x"\n"b";"-1,5";"y"\n',
    "blank rows": "clip_id;duration_ms;note\n;;\na;0,5;x\n\nb;-1,5;y\n;;\n",
    "other case": "Clip_ID ,DURATION_MS, Note\na,0.5,x\nb,-1.5,y\n",
    "carriage returns": "clip_id,duration_ms,note\ra,0.5,x\rb,-1.5,y\r",
}


@pytest.mark.parametrize("kind", EXCEL)
def test_a_table_is_read_as_excel_writes_it(tmp_path, kind):
    path = table_of(tmp_path, EXCEL[kind])
    rows = [row for _, row in read_table(path, ("clip_id", "duration_ms"), ("note",))]
    assert rows == [
        {"clip_id": "a", "duration_ms": "0.5", "note": "x"},
        {"clip_id": "b", "duration_ms": "-1.5", "note": "y"},
    ]
    assert table_columns(path, ("clip_id", "duration_ms", "note")) == [
        "clip_id",
        "duration_ms",
        "note",
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            "a,b\n1,2\n0,5,2\n",
            r"t.csv:3: the row has more fields than the header, 3 for 2; .*decimal comma",
        ),
        ("a,b\n1\n", r"t.csv:2: the row has fewer fields than the header, 1 for 2"),
        ('a,b\n1,2\n1,"2\n3,4\n', r"t.csv:4: not readable as a CSV row"),
        ("a;c\n1;2\n", r"t.csv:1: column 'b' is missing; needed are a, b"),
        ("a,b,A\n1,2,3\n", r"t.csv:1: column 'a' stands there twice"),
        (
            b"a,b\n1,2\n1,caf\xe9\n",
            r"t.csv:3: byte 13 is not UTF-8; save the table as CSV in UTF-8",
        ),
        ("a,b\n".encode("utf-16"), r"t.csv:1: byte 0 is not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused_by_line(tmp_path, raw, message):
    with pytest.raises(UserError, match=message):
        list(read_table(table_of(tmp_path, raw), ("a", "b")))


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@settings(deadline=None)
@given(st.lists(st.tuples(cells, cells, cells), max_size=4))
def test_a_table_with_commas_is_read_back_as_it_was_written(tmp_path_factory, rows):
    """Nothing is changed where commas separate: decimal commas become points with semicolons alone."""
    path = tmp_path_factory.mktemp("t") / "t.csv"
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("a", "b", "c"), *rows])
    path.write_bytes(text.getvalue().encode())
    found = [tuple(row.values()) for _, row in read_table(path, ("a", "b", "c"))]
    assert found == [row for row in rows if any(cell.strip() for cell in row)]
