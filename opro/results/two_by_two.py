"""How much of a gain is wording and how much threshold: the sheet and the sentence that say so."""

from opro.results.sheet import Column, Sheet
from opro.results.summary import FourCells, Interval
from opro.search.objective import NAMES as METRICS

NAMES = {"seed": "best seed prompt", "found": "prompt found"}
MODES = {"argmax": "argmax", "threshold": "with its threshold"}


def two_by_two_sheet(cells: FourCells, where: str = "the holdout") -> Sheet:
    """The four classifiers on the same clips; what wording and threshold gain, paired, with 95 % intervals."""
    rows = [
        [
            NAMES[who],
            *(_value(cells.scores[who][mode]) for mode in MODES),
            _gain(cells.threshold[who]),
        ]
        for who in NAMES
    ]
    rows.append(
        ["wording gains", *(_gain(cells.wording[mode]) for mode in MODES), _gain(cells.both)]
    )
    columns = [Column("", text=True), *(Column(name) for name in MODES.values())]
    return Sheet(
        f"{METRICS[cells.metric]} on {where}; thresholds are fitted on the search half",
        [*columns, Column("threshold gains")],
        rows,
    )


def share_line(cells: FourCells) -> str:
    """One line: how much of the whole gain the threshold alone gives, and how much wording adds to it."""
    alone, beyond = cells.threshold["seed"], cells.wording["threshold"]
    return (
        f"of {100 * cells.both.value:+.1f} points of {METRICS[cells.metric]} over the best seed prompt as it is, its"
        f" threshold alone gives {_gain(alone)}, wording beyond that {_gain(beyond)}"
    )


def threshold_does_it_all(cells: FourCells) -> bool:
    """Whether the threshold gains for certain, and wording beyond it does not."""
    alone, beyond = cells.threshold["seed"].low, cells.wording["threshold"].low
    return alone is not None and alone > 0 and (beyond is None or beyond <= 0)


def _value(one: Interval) -> str:
    return f"{100 * one.value:.1f}{_bounds(one, '.1f')}"


def _gain(one: Interval) -> str:
    return f"{100 * one.value:+.1f}{_bounds(one, '+.1f')}"


def _bounds(one: Interval, form: str) -> str:
    if one.low is None or one.high is None:
        return ""
    return f" [{100 * one.low:{form}}, {100 * one.high:{form}}]"
