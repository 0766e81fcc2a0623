"""Sheets: every table that people read, in a terminal, as Markdown or as LaTeX. No digit is ever cropped.

A terminal table that is too wide first shortens its texts, then leaves out columns (and says which), and at last writes
each row as lines of "name  value".
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len, chop_cells, set_cell_size

PIPE_WIDTH = 160  # columns where standard output is no terminal and COLUMNS does not say
GAP = 2  # blanks between columns
SHORTEST = 24  # cells that a shortened text keeps at least
Form = Literal["table", "markdown", "latex"]


@dataclass(frozen=True)
class Column:
    """A column of a sheet.

    Attributes:
        keep: How dear it is: where the width does not do, the smallest goes first; 9 is never left out.
        text: It holds texts, which are ranged left and may be shortened; else numbers, ranged right and shown whole.
    """

    name: str
    keep: int = 9
    text: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table: its title, its columns, and a cell for each in every row."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


def width_of_output() -> int:
    """Columns of standard output: COLUMNS where it is set, else the terminal's, else 160."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return PIPE_WIDTH


def render(sheet: Sheet, form: Form = "table", width: int | None = None) -> str:
    """The sheet as text, without a newline at its end.

    >>> print(render(Sheet("t", [Column("a"), Column("b", text=True)], [["1.0", "x"]]), width=40))
    t
      a  b
    1.0  x
    """
    if form == "markdown":
        return markdown([c.name for c in sheet.columns], sheet.rows)
    if form == "latex":
        return _latex(sheet)
    return _table(sheet, width or width_of_output())


def _table(sheet: Sheet, width: int) -> str:
    rows = [[_one_line(cell) for cell in row] for row in sheet.rows]
    shown = list(range(len(sheet.columns)))
    wide = {
        i: max(cell_len(s) for s in (_one_line(sheet.columns[i].name), *(r[i] for r in rows)))
        for i in shown
    }
    least = {i: min(n, SHORTEST) if sheet.columns[i].text else n for i, n in wide.items()}
    left_out: list[str] = []
    while _total(shown, least) > width:
        dispensable = [i for i in shown if sheet.columns[i].keep < 9]
        if not dispensable:
            return _stacked(sheet, rows, width)
        goes = min(dispensable, key=lambda i: (sheet.columns[i].keep, -i))
        shown.remove(goes)
        left_out.append(sheet.columns[goes].name)
    spare = width - _total(shown, least)
    for i in shown:  # what is left goes to the texts, the first one first
        more = min(spare, wide[i] - least[i])
        least[i] += more
        spare -= more
    lines = list(_wrapped(sheet.title, width))
    head = [_one_line(c.name) for c in sheet.columns]
    for row in (head, *rows):
        lines.append(_line([_cell(row[i], least[i], sheet.columns[i].text) for i in shown]))
    if left_out:
        lines += _wrapped(f"(left out at {width} columns: {'; '.join(left_out)})", width)
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """Text of one line that steers no terminal: what people put into files is shown as it is read."""
    text = text.replace("\n", " / ")
    return "".join(ch if ch.isprintable() else " " if ch.isspace() else "\ufffd" for ch in text)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """The text in lines of at most `width`, broken between words where that does."""
    line = ""
    for word in _one_line(text).split():
        if line and cell_len(line) + 1 + cell_len(word) <= width:
            line += f" {word}"
            continue
        if line:
            yield line
        *whole, line = chop_cells(word, width)
        yield from whole
    if line:
        yield line


def _total(shown: Sequence[int], widths: dict[int, int]) -> int:
    return sum(widths[i] for i in shown) + GAP * (len(shown) - 1)


def _line(cells: Sequence[str]) -> str:
    return (" " * GAP).join(cells).rstrip()


def _cell(text: str, width: int, is_text: bool) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    blanks = " " * (width - cell_len(text))
    return text + blanks if is_text else blanks + text


def _stacked(sheet: Sheet, rows: Sequence[Sequence[str]], width: int) -> str:
    """Each row as lines of name and value; texts are shortened, numbers never."""
    names = [_one_line(c.name) for c in sheet.columns]
    margin = min(max(map(cell_len, names), default=0), max(1, width // 2))
    lines = list(_wrapped(sheet.title, width))
    for row in rows:
        lines.append("")
        for column, name, cell in zip(sheet.columns, names, row, strict=True):
            room = max(8, width - margin - GAP)
            value = cell if cell_len(cell) <= room or not column.text else _cell(cell, room, True)
            if cell:
                lines.append(_line([_cell(name, margin, True), value]))
    return "\n".join(lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; text in cells is escaped, so that a prompt cannot leave its cell."""

    def cell(text: str) -> str:
        text = text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*")
        return text.replace("<", "&lt;").replace("\n", "<br>")

    lines = [head, ["---"] * len(head), *([cell(v) for v in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _latex(sheet: Sheet) -> str:
    import pandas as pd

    frame = pd.DataFrame([list(row) for row in sheet.rows], columns=[c.name for c in sheet.columns])
    return str(frame.to_latex(index=False, escape=True)).rstrip("\n")


def percent(value: dict[str, float | None] | None, signed: bool = False) -> str:
    """An estimate in percent, as in ``88.1 [86.8, 89.3]``; empty where there is none.

    >>> percent({"value": 0.881, "low": 0.868, "high": None})
    '88.1 [86.8, ?]'
    """
    if value is None or value["value"] is None:
        return ""
    sign = "+" if signed else ""
    low, high = (
        "?" if bound is None else f"{100 * bound:{sign}.1f}"
        for bound in (value["low"], value["high"])
    )
    return f"{100 * value['value']:{sign}.1f} [{low}, {high}]"


def decimal(value: dict[str, float | None] | None) -> str:
    """An estimate as it is, as in ``0.934 [0.910, 0.951]``; empty where there is none."""
    if value is None or value["value"] is None:
        return ""
    low, high = (
        "?" if bound is None else f"{bound:.3f}" for bound in (value["low"], value["high"])
    )
    return f"{value['value']:.3f} [{low}, {high}]"
