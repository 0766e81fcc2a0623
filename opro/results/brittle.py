"""brittle.json, the sheets, and the sentences about how brittle a prompt is and what each of its phrases is worth."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from evaluators.errors import UserError
from evaluators.files import read_json
from evaluators.prompts import shown_text
from opro.results.sheet import Column, Sheet, percent
from opro.results.summary import BrittlePart, Interval, Part, Summary
from opro.search.objective import NAMES
from opro.search.select import p_text

BRITTLE = "brittle.json"  # in a run's folder


class Worth(Interval):
    """What is lost with a phrase: the score with it less that without it; p is two-sided, Holm's over the phrases."""

    p_holm: float


class PhrasePart(Part):
    """A phrase of the chosen prompt, at its place in the text (0 and 0: the system message).

    `worth` is with a threshold fitted anew to what is left, on the same clips, as the search fits it to every prompt;
    `as_it_is` with the threshold of the whole prompt. None where the prompt cannot do without it, as `why_not` says.
    """

    kind: str
    start: int
    end: int
    text: str
    without: str | None
    why_not: str = ""
    worth: Worth | None = None
    as_it_is: Worth | None = None


class Brittle(Part):
    """brittle.json: made by `opro.brittle` on clips of the search half. The chosen prompt is first in `brittleness`."""

    run: str
    chosen: str
    metric: str
    fitted: bool
    clips: int
    sources: int
    brittleness: tuple[BrittlePart, ...]
    phrases: tuple[PhrasePart, ...]
    evals: int
    warnings: tuple[str, ...] = ()


def read_brittle(folder: Path) -> Brittle | None:
    """What `opro.brittle` found of a run; None where it was not asked.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / BRITTLE
    if not path.is_file():
        return None
    try:
        return Brittle.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: damaged ({where}: {first['msg']}); python -m opro.brittle {folder} makes it again"
        ) from None


def names_of(summary: Summary) -> dict[str, str]:
    """Prompt id -> what it is in the decision."""
    finalists = {f.prompt_id: "finalist" for f in summary.finalists}
    kept = "baseline, kept" if summary.baseline_kept else "baseline"
    return {**finalists, summary.chosen.prompt_id: "chosen", summary.baseline.prompt_id: kept}


def brittle_sheet(parts: Sequence[BrittlePart], names: Mapping[str, str], metric: str) -> Sheet:
    """One row a prompt: its score, what trivial edits leave of it, and the worst of them in words."""
    rows, anew = [], any(one.floor_anew is not None for one in parts)
    for one in parts:
        worst, again = one.worst, one.floor_anew
        rows.append(
            [
                names.get(one.prompt_id, "prompt"),
                f"{100 * one.score:.1f}",
                percent(one.loss.model_dump(), signed=True),
                f"{100 * one.floor:.1f}",
                *(["" if again is None else f"{100 * again:.1f}"] if anew else []),
                f"{100 * median([e.score for e in one.edits] or [one.score]):.1f}",
                f"{100 * worst.score:.1f}" if worst else "",
                str(len(one.edits)),
                worst.name if worst else "",
                shown_text(one.text, one.presentation),
            ]
        )
    columns = [
        Column("", text=True),
        Column("as it is"),
        Column("mean loss"),
        Column("9 of 10 reach"),
        *([Column("with a threshold fitted anew", 7)] if anew else []),
        Column("median", 5),
        Column("worst"),
        Column("edits", 4),
        Column("the worst edit", text=True),
        Column("prompt", 6, text=True),
    ]
    where = f"{parts[0].clips} clips of {parts[0].sources} sources of the search half"
    return Sheet(f"{NAMES[metric]} under trivial edits, on {where}", columns, rows)


def kind_sheet(one: BrittlePart) -> Sheet:
    """One row a kind of trivial edit of a prompt, the one that costs most first."""
    kinds = dict.fromkeys(edit.kind for edit in one.edits)
    rows = []
    for kind in kinds:
        own = [edit for edit in one.edits if edit.kind == kind]
        worst = min(own, key=lambda e: e.score)
        mean = sum(e.score for e in own) / len(own)
        numbers = [str(len(own)), f"{100 * mean:.1f}", f"{100 * worst.score:.1f}"]
        rows.append((mean, [kind, *numbers, worst.name]))
    columns = [Column("kind", text=True), Column("edits"), Column("mean"), Column("worst")]
    return Sheet(
        "trivial edits of the chosen prompt by kind",
        [*columns, Column("the worst edit", text=True)],
        [cells for _, cells in sorted(rows, key=lambda row: row[0])],
    )


def brittle_lines(summary: Summary) -> Iterator[str]:
    """What the decision says of the chosen prompt's brittleness, and of the baseline's."""
    names = names_of(summary)
    told = [one for one in summary.brittleness if names.get(one.prompt_id, "") != "finalist"]
    for one in sorted(told, key=lambda p: p.prompt_id != summary.chosen.prompt_id):
        yield brittle_line(one, "" if len(told) == 1 else f"{names[one.prompt_id]}: ")


def brittle_line(one: BrittlePart, who: str = "") -> str:
    """One line: floor, mean loss, worst edit."""
    worst = one.worst
    if worst is None:
        return f"{who}no trivial edit of it could be scored"
    anew = ""
    if one.floor_anew is not None:
        anew = f" ({100 * one.floor_anew:.1f} with a threshold fitted anew to each)"
    return (
        f"{who}{100 * one.score:.1f} on {one.clips} clips of the search half; of {len(one.edits)} trivial edits nine in"
        f" ten leave {100 * one.floor:.1f} or more{anew}, mean loss {percent(one.loss.model_dump(), signed=True)};"
        f" the worst leaves {100 * worst.score:.1f}: {worst.name}"
    )


def phrase_sheet(found: Brittle) -> Sheet:
    """One row a phrase, the dearest first; what cannot be left out last, with the reason."""
    head = "worth, threshold fitted anew" if found.fitted else "worth"
    rows = []
    for one in by_worth(found.phrases):
        cells = [_worth(one.worth), p_text(one.worth.p_holm) if one.worth else ""]
        cells += [_worth(one.as_it_is)] if found.fitted else []
        rows.append([*cells, one.kind, one.text + (f"  [{one.why_not}]" if one.why_not else "")])
    more = [Column("with its threshold", 7)] if found.fitted else []
    columns = [Column(head), Column("p (Holm)", 6), *more]
    return Sheet(
        f"what each phrase of the chosen prompt is worth: points of {NAMES[found.metric]} lost without it, on"
        f" {found.clips} clips of {found.sources} sources of the search half, which flatters the whole",
        [*columns, Column("", 5, text=True), Column("phrase", text=True)],
        rows,
    )


def by_worth(phrases: Sequence[PhrasePart]) -> list[PhrasePart]:
    """The dearest first; those that cannot be left out last."""
    return sorted(
        phrases, key=lambda one: (one.worth is None, -one.worth.value if one.worth else 0.0)
    )


def _worth(one: Worth | None) -> str:
    return "" if one is None else percent(one.model_dump(), signed=True)
