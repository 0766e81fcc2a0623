"""Pieces of the page as HTML: every text is escaped by the template, whoever wrote it."""

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluators.errors import PauseError, UserError
from opro.results.sheet import Sheet

TEMPLATES = Path(__file__).parent / "templates"
# Of every event of the page: no spinner over what is read, and no named address for others to call.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
STYLE = (TEMPLATES / "view.css").read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["percent"] = lambda value: "" if value is None else f"{100 * value:.1f}"
    env.filters["clock"] = lambda text: str(text)[:19].replace("T", " ")
    return env


def render(template: str, **values: Any) -> str:
    """A template of this folder, filled in."""
    return _environment().get_template(f"{template}.html").render(values)


def said(text: object, fault: bool = False) -> str:
    """A sentence that a screen reader reads out when it appears; a text of none is nothing."""
    return render("said", text=str(text), fault=fault)


def refused(error: UserError | PauseError) -> str:
    """The sentence of an error."""
    return said(error, fault=True)


def table(sheet: Sheet) -> dict[str, Any]:
    """A sheet as the templates take it."""
    return {
        "title": sheet.title,
        "head": [c.name for c in sheet.columns],
        "rows": [list(row) for row in sheet.rows],
        "texts": [c.text for c in sheet.columns],
    }
