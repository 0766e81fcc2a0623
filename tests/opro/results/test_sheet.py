"""Sheets: at every width no digit is cropped, and what is left out is named."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from common import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from opro import power, rescore, stats
from opro.results import sheet as sheets
from opro.results.leaderboard import leaderboard_rows, leaderboard_sheet
from opro.results.matrix_rows import matrix_sheet
from opro.results.run_folder import RunFolder
from opro.results.sheet import Column, Sheet, render, width_of_output

FROZEN = ROOT / "tests" / "assets" / "run-v1"


def left_out(lines: list[str]) -> str:
    """The names that the sheet's last line tells of, which may be wrapped."""
    text = " ".join(lines)
    found = re.search(r"\(left out at \d+ columns: (.*)\)$", text)
    return found.group(1) if found else ""


def check(sheet: Sheet, width: int) -> str:
    """Asserts what every terminal table keeps; says which way of three it was shown."""
    text = render(sheet, width=width)
    lines = text.split("\n")
    numbers = [i for i, c in enumerate(sheet.columns) if not c.text]
    dropped = left_out(lines)
    head = [c.name for c in sheet.columns if not named(dropped, c.name)]
    stacked = not any(x.split() == " ".join(head).split() for x in lines)
    for row in sheet.rows:
        for i in numbers:
            if stacked or not named(dropped, sheet.columns[i].name):
                assert row[i] in text, (width, sheet.columns[i].name)
    if stacked:
        assert not dropped
        digits = {cell for row in sheet.rows for i, cell in enumerate(row) if i in numbers}
        for line in lines:
            assert cell_len(line) <= width or any(d and line.endswith(d) for d in digits), line
        return "stacked"
    for line in lines:
        assert cell_len(line) <= width, line
    # A row is one line, with the cells of the columns that are shown in their order.
    body = [x for x in lines if not x.startswith("(left out")]
    kept = [i for i in numbers if not named(dropped, sheet.columns[i].name)]
    for row in sheet.rows:
        assert any(in_order([row[i] for i in kept], line) for line in body)
    return "dropped" if dropped else "whole"


def named(dropped: str, name: str) -> bool:
    return bool(name) and name in dropped.split("; ")


def in_order(cells: list[str], line: str) -> bool:
    at = 0
    for cell in cells:
        at = line.find(cell, at)
        if at < 0:
            return False
        at += len(cell)
    return True


number = st.one_of(
    st.floats(0, 1).map(lambda v: f"{100 * v:.1f}"),
    st.tuples(st.floats(-1, 1), st.floats(0, 1)).map(
        lambda v: f"{100 * v[0]:+.1f} [{100 * (v[0] - v[1]):+.1f}, {100 * (v[0] + v[1]):+.1f}]"
    ),
    st.integers(0, 10**7).map(lambda v: f"{v:,}"),
    st.just(""),
)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60)


@st.composite
def any_sheet(draw) -> Sheet:
    count = draw(st.integers(1, 9))
    columns, kinds = [], []
    for i in range(count):
        text = draw(st.booleans())
        name = f"c{i} " + draw(st.text("abcdefgh ", max_size=14)).strip()
        columns.append(Column(" ".join(name.split()), draw(st.integers(0, 9)), text))
        kinds.append(words if text else number)
    rows = draw(st.lists(st.tuples(*kinds), max_size=4))
    title = draw(st.sampled_from(["", "a title of several words, " * 6, "t" * 250]))
    return Sheet(title.strip(), columns, [list(row) for row in rows])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(any_sheet())
def test_every_number_is_whole_at_every_width(sheet):
    for width in range(20, 201):
        check(sheet, width)


def frozen_sheets() -> dict[str, list[Sheet]]:
    """The sheets of all verbs, of frozen results."""
    predictions = sorted((FROZEN / "matrix-test" / "predictions").glob("*.csv"))
    found = stats.statistics(predictions, stats.StatsSettings(resamples=100), {})
    run = RunFolder.read(FROZEN / "finished")
    cells = [
        power.Cell(name, 12800, 640, 160, gain, 0.123 + gain, 0.0)
        for name in ("as it is", "each clip of its own source")
        for gain in power.GAINS
    ]
    return {
        "matrix": [matrix_sheet(json.loads((FROZEN / "matrix-test" / "matrix.json").read_text()))],
        "rescore": [
            rescore.result_sheet(json.loads((FROZEN / "finished" / "test.json").read_text()))
        ],
        "stats": stats.statistics_sheets(found),
        "leaderboard": [leaderboard_sheet(leaderboard_rows(run), " of speech on data/demo, dev")],
        "power": [power.power_sheet(cells, power.PowerSettings())],
    }


@pytest.fixture(scope="module")
def verbs():
    return frozen_sheets()


@pytest.mark.parametrize("verb", ["matrix", "rescore", "stats", "leaderboard", "power"])
@pytest.mark.parametrize("width", [60, 80, 100, 150])
def test_the_sheets_of_the_verbs_show_their_numbers_whole(verbs, verb, width):
    for sheet in verbs[verb]:
        check(sheet, width)


def test_the_most_telling_numbers_are_the_last_to_go(verbs):
    shown = render(verbs["matrix"][0], width=100).split("\n")
    assert "balanced accuracy" in shown[1] and "difference" in shown[1]
    assert "ms single" in left_out(shown)
    shown = render(verbs["rescore"][0], width=80).split("\n")
    assert "balanced accuracy" in shown[1] and "against baseline" in shown[1]


def test_a_narrow_sheet_shortens_texts_then_drops_columns_then_stacks_rows():
    columns = [
        Column("score"),
        Column("n", 2),
        Column("m", 1),
        Column("prompt", text=True),
    ]
    sheet = Sheet("title", columns, [["88.1 [86.8, 89.3]", "1,200", "7", "words " * 20]])
    assert [check(sheet, w) for w in (200, 60, 45, 30)] == ["whole", "whole", "dropped", "stacked"]
    assert render(sheet, width=60).count("…") == 1
    assert left_out(render(sheet, width=45).split("\n")) == "m; n"  # the least dear goes first
    for name in ("score", "n", "m", "prompt"):
        assert any(x.startswith(f"{name} ") for x in render(sheet, width=30).split("\n"))


def test_numbers_are_ranged_right_and_texts_left():
    columns = [Column("score"), Column("by", text=True), Column("n")]
    sheet = Sheet("title", columns, [["8.5", "hand", "1,200"], ["88.1", "lm", "7"]])
    assert render(sheet, width=60).split("\n") == [
        "title",
        "score  by        n",
        "  8.5  hand  1,200",
        " 88.1  lm        7",
    ]


def test_the_width_is_that_of_columns_then_of_the_terminal_then_160(monkeypatch):
    monkeypatch.setenv("COLUMNS", "77")
    assert width_of_output() == 77
    for wrong in ("", "0", "wide", "-3"):
        monkeypatch.setenv("COLUMNS", wrong)
        monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((91, 20)))
        assert width_of_output() == 91
        monkeypatch.setattr(os, "get_terminal_size", _no_terminal)
        assert width_of_output() == sheets.PIPE_WIDTH == 160


def _no_terminal(fd):
    raise OSError("no terminal")


@pytest.mark.parametrize("columns", ["64", None])
def test_a_pipe_gets_as_many_columns_as_it_asks_for(columns):
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"COLUMNS": columns} if columns else {})
    command = [sys.executable, "-m", "opro.leaderboard", str(FROZEN / "finished")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    longest = max(map(len, done.stdout.split("\n")))
    assert longest <= int(columns or 160) and (columns is not None or longest > 100)


def test_text_steers_no_terminal():
    sheet = Sheet("t", [Column("a", text=True)], [["\x1b[2J\tred\u202e\r\nnext"]])
    out = render(sheet, width=60)
    assert not set(out) & set("\x1b\t\r\u202e") and "red" in out and " / next" in out


def test_a_prompt_cannot_leave_its_markdown_cell():
    sheet = Sheet("t", [Column("a"), Column("b", text=True)], [["1", "x|y\n*z* <b> \\|"]])
    lines = render(sheet, "markdown").split("\n")
    assert lines == ["| a | b |", "| --- | --- |", "| 1 | x\\|y<br>\\*z\\* &lt;b> \\\\\\| |"]


def test_latex_escapes_what_it_would_read():
    out = render(
        Sheet("t", [Column("a"), Column("b", text=True)], [["1", "50 % & $x_1$"]]), "latex"
    )
    assert r"50 \% \& \$x\_1\$" in out and out.endswith(r"\end{tabular}")


def test_estimates_are_written_with_their_bounds():
    assert sheets.percent({"value": 0.881, "low": 0.868, "high": 0.893}) == "88.1 [86.8, 89.3]"
    gain = {"value": 0.0104, "low": -0.02, "high": None}
    assert sheets.percent(gain, signed=True) == "+1.0 [-2.0, ?]"
    assert sheets.percent(None) == sheets.percent({"value": None, "low": None, "high": None}) == ""
    assert sheets.decimal({"value": 0.9344, "low": 0.91, "high": None}) == "0.934 [0.910, ?]"
    assert sheets.decimal(None) == ""


def test_no_module_lays_out_tables_beside_this_one():
    """One renderer: what crops digits elsewhere cannot come back."""
    for path in Path(ROOT / "opro").rglob("*.py"):
        text = path.read_text()
        assert "rich.table" not in text, path
