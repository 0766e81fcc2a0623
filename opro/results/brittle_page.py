"""Brittleness and the worth of phrases as the page of a run shows them."""

from collections.abc import Sequence
from typing import Any

from opro.results import figures
from opro.results.brittle import (
    Brittle,
    PhrasePart,
    brittle_line,
    brittle_sheet,
    kind_sheet,
    names_of,
    phrase_sheet,
    read_brittle,
)
from opro.results.run_folder import RunFolder
from opro.results.sheet import Sheet
from opro.results.summary import Summary
from opro.search.objective import NAMES

GAINS, COSTS = (
    "43,138,75",
    "192,57,43",
)  # red, green and blue of a phrase that is worth something, and of one that harms
Piece = tuple[str, str, str]  # text, style, what it is worth in words


def brittle_of(run: RunFolder, summary: Summary | None) -> dict[str, Any] | None:
    """The section of a finished run; None where nothing was measured.

    What `opro.brittle` wrote goes before what the decision measured: it has more edits. A file about another prompt, as
    of a run that was made anew, is left out, and it is said.
    """
    if summary is None:
        return None
    found, note = read_brittle(run.path), ""
    if found is not None and found.chosen != summary.chosen.prompt_id:
        found, note = None, "brittle.json is about another prompt than the chosen one: left out."
    parts = (found.brittleness if found else ()) or summary.brittleness
    if not parts and found is None and not note:
        return None
    names, metric = names_of(summary), summary.objective
    chosen = next((one for one in parts if one.prompt_id == summary.chosen.prompt_id), None)
    rows = [
        (
            f"{names.get(one.prompt_id, 'prompt')} {one.prompt_id[:4]}",
            one.score,
            one.floor,
            [edit.score for edit in one.edits],
        )
        for one in parts
    ]
    return {
        "note": note,
        "line": brittle_line(chosen) if chosen else "",
        "picture": figures.brittle(rows, NAMES[metric]) if rows else "",
        "sheet": _table(brittle_sheet(parts, names, metric)) if parts else None,
        "kinds": _table(kind_sheet(chosen)) if chosen and chosen.edits else None,
        "pieces": pieces(summary.chosen.text, found.phrases) if found else [],
        "system": _system(found) if found else None,
        "phrases": _table(phrase_sheet(found)) if found else None,
        "fitted": bool(found and found.fitted),
    }


def pieces(text: str, phrases: Sequence[PhrasePart]) -> list[Piece]:
    """The text cut at its finest phrases, each with its style; what is between them as it is."""
    fine = [p for p in phrases if p.end > 0 and p.kind != "whole sentence"]
    most, out, at = _most(phrases), list[Piece](), 0
    for one in sorted(fine, key=lambda p: p.start):
        if one.start < at or text[one.start : one.end] != one.text:
            continue
        out += [(text[at : one.start], "", "")] * (one.start > at)
        out.append((one.text, *_look(one, most)))
        at = one.end
    return [*out, (text[at:], "", "")] if at < len(text) else out


def _most(phrases: Sequence[PhrasePart]) -> float:
    return max((abs(p.worth.value) for p in phrases if p.worth), default=0.0) or 1.0


def _look(one: PhrasePart, most: float) -> tuple[str, str]:
    """(style, words): the stronger the colour the more it is worth; underlined where its interval lacks zero."""
    worth = one.worth
    if worth is None:
        return "border-bottom: 2px dotted", f"cannot be left out: {one.why_not}"
    colour = GAINS if worth.value > 0 else COSTS
    style = f"background: rgba({colour},{0.75 * abs(worth.value) / most:.2f})"
    low, high = worth.low, worth.high
    bounds = ""
    if low is not None and high is not None:
        style += "; border-bottom: 2px solid" if low > 0 or high < 0 else ""
        bounds = f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return style, f"worth {100 * worth.value:+.1f} points{bounds}"


def _system(found: Brittle) -> Piece | None:
    one = next((p for p in found.phrases if p.end == 0), None)
    return None if one is None else (one.text, *_look(one, _most(found.phrases)))


def _table(sheet: Sheet) -> dict[str, Any]:
    return {"title": sheet.title, "head": [c.name for c in sheet.columns], "rows": sheet.rows}
