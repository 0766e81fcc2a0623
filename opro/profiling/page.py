"""The page of a profile: from its document to one HTML page that needs no network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from opro.profiling import pictures
from opro.profiling.tables import (
    best_sheet,
    effects_sheet,
    hand_lines,
    length_lines,
    shares_sheet,
    spread_sheet,
)
from opro.results.sheet import percent

EXTREMES = 5  # best and worst wordings, each


def page_of(document: Mapping[str, Any]) -> str:
    """The page."""
    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    told = [one for one in document["checkpoints"] if one["effects"]]
    names = ", ".join(one["name"] for one in document["checkpoints"])
    return env.get_template("profile.html").render(
        title=f"How {names} react to wording",
        lead=list(_lead(document)),
        spread=pictures.spread(document),
        plane=pictures.plane(document),
        numbers=spread_sheet(document),
        hand=list(hand_lines(document)),
        length=list(length_lines(document)),
        shares=shares_sheet(document) if told else None,
        effects=[effects_sheet(one, None) for one in told],
        factors=[
            (f["name"], pictures.effects(document, f["name"], f["levels"]))
            for f in (document["factors"] if told else ())
        ],
        best=[best_sheet(document, one, EXTREMES) for one in document["checkpoints"]],
        notes=[
            *document["notes"],
            *dict.fromkeys(w for one in document["checkpoints"] for w in one["warnings"]),
        ],
        document=document,
    )


def _lead(document: Mapping[str, Any]) -> list[str]:
    """What a checkpoint's wordings are like, a sentence each."""
    out = []
    for one in document["checkpoints"]:
        for group, about in list(one["groups"].items())[:1]:
            n = about["numbers"]
            low, high = (f"{100 * n[f'balanced_accuracy_{q}']['value']:.0f}" for q in ("q5", "q95"))
            out.append(
                f"{one['name']}: nine of ten {group} wordings have {low} to {high} % balanced accuracy, half of them"
                f" above {percent(n['balanced_accuracy_q50'])}; two wordings give a clip the same answer in"
                f" {percent(n['consistency'])} % of the cases."
            )
    return out
