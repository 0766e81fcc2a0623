"""A data curve as people read it: score over the clips that were trained on, hand-written against searched prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluators.files import csv_text, write_json, write_text
from opro.results import figures
from opro.results.looks import said_of_uses
from opro.results.provenance import provenance
from opro.results.sheet import Column, Sheet, percent, render

COLUMNS = (
    Column("clips"),
    Column("sources", 5),
    Column("steps", 6),
    Column("hand-written"),
    Column("searched"),
    Column("the search gains"),
    Column("p (Holm)", 7),
    Column("more clips gain"),
    Column("p (Holm)", 7),
    Column("evals", 4),
    Column("s", 3),
    Column("searched prompt", 2, text=True),
)


def curve_sheet(document: Mapping[str, Any]) -> Sheet:
    """The rows of curve.json."""
    body = []
    for r in document["rows"]:
        more = r["clips_gain"]
        body.append(
            [
                f"{r['clips']:,}",
                str(r["sources"]),
                str(r["steps"]),
                percent(r["hand"]),
                percent(r["searched"]),
                percent(r["search_gains"], signed=True),
                f"{r['search_gains']['p_holm']:.3f}",
                "" if more is None else percent(more, signed=True),
                "" if more is None else f"{more['p_holm']:.3f}",
                f"{r['evals']:,}",
                f"{r['seconds']:.0f}",
                r["searched"]["text"],
            ]
        )
    return Sheet(_title(document), COLUMNS, body)


def _title(document: Mapping[str, Any]) -> str:
    where = "the holdout of dev" if document["split"] == "dev" else document["split"]
    return (
        f"{document['objective']} of {document['checkpoint']} by train clips, on {document['clips']} clips of"
        f" {document['sources']} sources of {where}; 95 % intervals over sources; more clips: of the searched prompt,"
        " over the size before"
    )


def told(document: Mapping[str, Any], out: Path) -> list[str]:
    """What stands below the table."""
    uses = document["test_openings"]
    return [
        *(f"warning: {text}" for text in document["warnings"]),
        *([said_of_uses(uses)] if uses is not None else []),
        f"written to {out}; open {out / 'curve.html'}",
    ]


def write_curve(out: Path, document: Mapping[str, Any]) -> None:
    """Writes curve.svg, .html, .md, .csv and, last, .json."""
    picture, sheet = (
        figures.data_curve(document["rows"], document["objective"]),
        curve_sheet(document),
    )
    alone = picture.replace("currentColor", "#333333").replace(
        "<svg", '<svg width="700" height="340"', 1
    )
    write_text(out / "curve.svg", alone)
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    page = env.get_template("curve.html").render(
        title=f"Data curve of {document['checkpoint']}",
        lead=sheet.title,
        picture=Markup(picture),
        columns=[c.name for c in sheet.columns],
        rows=sheet.rows,
        notes=told(document, out)[:-1],
    )
    write_text(out / "curve.html", page)
    write_text(out / "curve.md", f"{sheet.title}\n\n{render(sheet, 'markdown')}\n")
    rows = [_flat(r) for r in document["rows"]]
    write_text(out / "curve.csv", csv_text(rows, tuple(dict.fromkeys(k for r in rows for k in r))))
    write_json(out / "curve.json", {**document, "provenance": provenance({})})


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its estimates as NAME, NAME_low, NAME_high."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            own = {k: v for k, v in value.items() if k != "classifier"}
            flat |= {f"{key}{'' if k == 'value' else f'_{k}'}": v for k, v in own.items()}
        elif value is not None:
            flat[key] = value
    return flat
