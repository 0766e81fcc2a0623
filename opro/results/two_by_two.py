"""How much of a gain is wording and how much threshold: the sheet and the sentence that say so."""

from opro.results.sheet import Column, Sheet
from opro.results.summary import FourCells, Interval, Summary
from opro.search.objective import NAMES as METRICS

NAMES = {"seed": "best seed prompt", "found": "prompt found"}
MODES = {"argmax": "argmax", "threshold": "with its threshold"}


def two_by_two_sheet(cells: FourCells, where: str = "the holdout") -> Sheet:
    """The four classifiers on the same clips; what wording and threshold gain, paired, with 95 % intervals."""
    rows = [
        [
            NAMES[who],
            *(_value(pair[mode]) for mode in MODES),
            _gain(cells.threshold[who]),
        ]
        for who, pair in cells.scores.items()
    ]
    if cells.wording:
        wording = [_gain(cells.wording[mode]) for mode in MODES]
        rows.append([f"{_what(cells)} gains", *wording, f"both {_gain(cells.both)}"])
    columns = [Column("", text=True), *(Column(name) for name in MODES.values())]
    return Sheet(
        f"{METRICS[cells.metric]} on {where}; thresholds are fitted on the search half",
        [*columns, Column("threshold gains")],
        rows,
    )


def _what(cells: FourCells) -> str:
    """What is gained by, beside the threshold."""
    return "wording with presentation" if cells.presentation else "wording"


def share_line(cells: FourCells) -> str:
    """One line: how much of the whole gain the threshold alone gives, and how much wording adds to it."""
    alone, metric = _gain(cells.threshold["seed"]), METRICS[cells.metric]
    if not cells.wording:
        return f"its threshold gives the best seed prompt {alone} points of {metric}; no wording beat it"
    return (
        f"of {100 * cells.both.value:+.1f} points of {metric} over the best seed prompt as it is, its threshold"
        f" alone gives {alone}, {_what(cells)} beyond that {_gain(cells.wording['threshold'])}"
    )


def verdict_line(summary: Summary) -> str:
    """What the table means for what is handed over, in plain words; "" where nothing needs to be said."""
    cells = summary.two_by_two
    if cells is None:
        return ""
    alone, beyond = cells.threshold["seed"], cells.wording.get("threshold")
    more = beyond is not None and beyond.low is not None and beyond.low > 0
    if summary.baseline_kept and summary.chosen.bias:
        if alone.low is not None and alone.low > 0 and not more:
            return "so the threshold does it all: the best seed prompt is handed over with it"
        if alone.value < 0:
            return "its threshold did not hold up on the holdout; take out `bias` in best.yaml for argmax"
    if not summary.baseline_kept and not summary.chosen.bias and not more and cells.wording:
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
