"""How much of a gain is wording and how much threshold: the sheet and the sentence that say so."""

from opro.results.sheet import Column, Sheet
from opro.results.summary import FourCells, Interval, Summary

NAMES = {"seed": "best seed prompt", "found": "prompt found"}
MODES = {"argmax": "argmax", "threshold": "with its threshold"}


def two_by_two_sheet(cells: FourCells, where: str = "the holdout") -> Sheet:
    """The four classifiers on the same clips; what wording and threshold gain, paired, with 95 % intervals."""
    metric = cells.metric.replace("_", " ")
    rows = [
        [
            NAMES[who],
            *(_value(cells.scores[who][mode]) for mode in MODES),
            _gain(cells.threshold[who]),
        ]
        for who in NAMES
    ]
    wording = [_gain(cells.wording[mode]) for mode in MODES]
    rows.append(["wording gains", *wording, f"both {_gain(cells.both)}"])
    columns = [Column("", text=True), *(Column(name) for name in MODES.values())]
    return Sheet(
        f"{metric} on {where}; thresholds are fitted on the search half",
        [*columns, Column("threshold gains")],
        rows,
    )


def share_line(cells: FourCells) -> str:
    """One line: how much of the whole gain the threshold alone gives, and how much wording adds to it."""
    alone, beyond = cells.threshold["seed"], cells.wording["threshold"]
    return (
        f"of {100 * cells.both.value:+.1f} points over the best seed prompt as it is, its threshold alone gives"
        f" {_gain(alone)}, wording beyond that {_gain(beyond)}"
    )


def verdict_line(summary: Summary) -> str:
    """What the table means for what is handed over, in plain words; "" where nothing needs to be said."""
    cells = summary.two_by_two
    if cells is None:
        return ""
    alone, beyond = cells.threshold["seed"].low, cells.wording["threshold"].low
    if summary.baseline_kept and summary.chosen.bias and alone is not None and alone > 0:
        return "so the threshold does it all: the best seed prompt is handed over with it"
    if not summary.baseline_kept and not summary.chosen.bias and beyond is not None and beyond <= 0:
        return "so a threshold on the best seed prompt may do as well: --threshold dev would tell"
    return ""


def _value(one: Interval) -> str:
    return f"{100 * one.value:.1f}{_bounds(one, '.1f')}"


def _gain(one: Interval) -> str:
    return f"{100 * one.value:+.1f}{_bounds(one, '+.1f')}"


def _bounds(one: Interval, form: str) -> str:
    if one.low is None or one.high is None:
        return ""
    return f" [{100 * one.low:{form}}, {100 * one.high:{form}}]"
