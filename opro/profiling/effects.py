"""Which parts of a wording move an outcome: a linear model of the factors of a design, by least squares.

Each level has an effect: how far wordings that have it lie from the mean over the levels of its factor, all other parts
alike. Intervals come from the same resamples of wordings and sources as everything else (`opro.profiling.two_way`), so
that they hold what the factors do together and the model leaves out. Pure numpy.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from evaluators.statistics.compare import holm
from evaluators.statistics.resampling import MIN_SOURCES, Statistic
from opro.profiling.two_way import AT_ONCE, TwoWay, Value
from opro.profiling.wordings import Design

ROWS_EACH = 3  # wordings for each number of the model, at least
CLEAR = 0.05  # corrected p below which an effect counts as shown

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Effect:
    """What one level does to each outcome.

    Attributes:
        count: Wordings that have it.
        moved: Outcome -> {value, low, high} against the mean of the factor's levels, as a share of 1.
        p: Outcome -> two-sided p, corrected by Holm over all levels.
    """

    factor: str
    level: str
    count: int
    moved: Mapping[str, Value]
    p: Mapping[str, float]

    @property
    def clear(self) -> bool:
        """Whether it is shown to move any outcome."""
        return any(p < CLEAR for p in self.p.values())


@dataclass(frozen=True, eq=False)
class Coding:
    """A design as numbers.

    Attributes:
        x: ``[wording, column]``: the mean, then of each factor one column less than its levels; a level counts 1, the
            last one -1 in all of them, and 0 is a factor that does not apply (deviation coding).
        levels: ``[level, column]`` the effect of each level from the coefficients.
        names: (factor, level) of each.
    """

    x: Floats
    levels: Floats
    names: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, design: Design) -> "Coding":
        """The coding of a design, in the order of its wordings."""
        columns, blocks, names = [np.ones((len(design.wordings), 1))], list[Floats](), []
        for factor in design.factors:
            size = len(factor.levels)
            code = np.vstack([np.eye(size - 1), -np.ones((1, size - 1))])
            place = {level: i for i, level in enumerate(factor.levels)}
            rows = np.zeros((len(design.wordings), size - 1))
            for row, wording in zip(rows, design.wordings, strict=True):
                if factor.name in wording.levels:
                    row[:] = code[place[wording.levels[factor.name]]]
            columns.append(rows)
            blocks.append(code)
            names += [(factor.name, level) for level in factor.levels]
        width = 1 + sum(block.shape[1] for block in blocks)
        levels, at, down = np.zeros((len(names), width)), 1, 0
        for block in blocks:
            levels[down : down + len(block), at : at + block.shape[1]] = block
            down, at = down + len(block), at + block.shape[1]
        return cls(np.hstack(columns), levels, tuple(names))

    def without(self, factor: str) -> Floats:
        """`x` without the columns of one factor."""
        mine = self.levels[[name == factor for name, _ in self.names]]
        return self.x[:, ~np.asarray(mine.any(axis=0), dtype=bool)]


def can_tell(design: Design) -> str:
    """Why the factors of a design cannot be told apart; "" where they can."""
    need, found = ROWS_EACH * design.effects, len(design.wordings)
    if not design.factors:
        return "there is no grammar to build wordings from"
    if found < need:
        return (
            f"{found} wordings of the grammar are too few for its {design.effects} numbers; {need} are needed, so give"
            f" --wordings {need} or more"
        )
    x = Coding.of(design).x
    if np.linalg.matrix_rank(x) < x.shape[1]:
        return "two factors of these wordings always change together; give another --seed, or more --wordings"
    return ""


def effects(
    design: Design, t: TwoWay, rows: Ints, outcomes: Mapping[str, Statistic]
) -> list[Effect]:
    """What each level does to each outcome.

    Args:
        rows: Of the design's wordings, in their order, among those of `t` and `outcomes`.
        outcomes: ``[wording]`` by name.
    """
    coding = Coding.of(design)
    count = np.array(
        [sum(w.levels.get(f) == at for w in design.wordings) for f, at in coding.names]
    )
    moved: dict[str, list[Value]] = {}
    shown: dict[str, list[float]] = {}
    for name, each in outcomes.items():
        fit = _fitted(coding, t.times[:, rows], each.value[rows], each.draws[rows])
        ones = [Statistic(v, d) for v, d in zip(*fit, strict=True)]
        moved[name] = [t.interval(one) for one in ones]
        shown[name] = holm([_p(one, t.sources.fewest) for one in ones])
    return [
        Effect(
            factor,
            level,
            int(count[i]),
            {name: own[i] for name, own in moved.items()},
            {name: own[i] for name, own in shown.items()},
        )
        for i, (factor, level) in enumerate(coding.names)
    ]


def _fitted(coding: Coding, times: Ints, value: Floats, draws: Floats) -> tuple[Floats, Floats]:
    """(``[level]``, ``[level, resample]``) effects by least squares; each resample has its own wordings and sources."""
    x = coding.x
    # A level that a resample lacks has no effect there, rather than one of any size.
    small = 1e-6 * np.eye(x.shape[1])
    drawn = []
    step = max(1, AT_ONCE // x.size)
    for begin in range(0, len(times), step):
        part = slice(begin, begin + step)
        inner = (x.T * times[part][:, None, :]) @ x + small
        right = (times[part] * draws.T[part]) @ x
        drawn.append(np.linalg.solve(inner, right[:, :, None])[:, :, 0])
    found = np.linalg.lstsq(x, value, rcond=None)[0]
    return coding.levels @ found, coding.levels @ np.concatenate(drawn).T


def _p(one: Statistic, sources: int) -> float:
    """Two-sided p by the spread of the resamples, with one degree of freedom less than sources of the rarer label.

    1 with fewer than `MIN_SOURCES`, of which no claim is made.
    """
    spread = float(np.nanstd(one.draws))
    if sources < MIN_SOURCES or not spread > 0:
        return 1.0
    return float(2.0 * scipy.special.stdtr(sources - 1, -abs(float(one.value)) / spread))


def explained(design: Design, value: Floats) -> dict[str, float]:
    """Share of an outcome's variance over wordings: of ``all`` factors together, and what each adds to the others.

    Omega squared (Hays 1963): what as many numbers without any meaning would explain is taken off.
    """
    coding = Coding.of(design)
    total = float(((value - value.mean()) ** 2).sum())

    def rest(x: Floats) -> float:
        fit = np.linalg.lstsq(x, value, rcond=None)[0]
        return float(np.square(value - x @ fit).sum())

    whole = rest(coding.x)
    each = whole / (len(value) - coding.x.shape[1])
    if not total + each > 0:
        return dict.fromkeys(("all", *(f.name for f in design.factors)), 0.0)

    def share(square: float, columns: int) -> float:
        return float(max(0.0, (square - columns * each) / (total + each)))

    out = {"all": share(total - whole, coding.x.shape[1] - 1)}
    return out | {
        f.name: share(rest(coding.without(f.name)) - whole, len(f.levels) - 1)
        for f in design.factors
    }


def slope(lengths: Floats, t: TwoWay, rows: Ints, each: Statistic) -> Statistic:
    """What ten more tokens (or words) go with, of some wordings: a line through outcome over length (least squares)."""
    x, times = lengths[rows] / 10, t.times[:, rows].T

    def line(weight: Floats, y: Floats) -> Floats:
        middle = (weight * x[:, None]).sum(0) / weight.sum(0)
        off = weight * (x[:, None] - middle)
        square = (off * (x[:, None] - middle)).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(square > 0, (off * y).sum(0) / square, np.nan))

    value = line(np.ones((len(rows), 1)), each.value[rows][:, None])[0]
    return Statistic(np.asarray(value), line(times.astype(np.float64), each.draws[rows]))


def confounded(design: Design, lengths: Floats, unit: str) -> Iterator[str]:
    """What the design cannot tell apart, a sentence each.

    Args:
        lengths: ``[wording]`` of the design's, in `unit`.
    """
    x = Coding.of(design).x
    fit = x @ np.linalg.lstsq(x, lengths, rcond=None)[0]
    share = 1 - ((lengths - fit) ** 2).sum() / max(((lengths - lengths.mean()) ** 2).sum(), 1e-9)
    yield (
        f"length is the sum of the other parts ({100 * share:.0f} % of it follows from them): what it goes with is not"
        f" told from what hint, definition, closing and option words do; lengths are {unit}"
    )
    names = {f.name for f in design.factors}
    if "thing" in names and any("thing" not in w.levels for w in design.wordings):
        yield "how the thing is named is told from the questions that name it alone"
    yield (
        "the effects are those of each part on average over the others: what two parts do together is in what the model"
        " leaves over"
    )
    worst, factor = max((_inflation(design, f.name), f.name) for f in design.factors)
    yield (
        f"variances are at most {worst:.2f} times those of a design without any overlap ({factor})"
    )


def _inflation(design: Design, factor: str) -> float:
    """By how much the overlap with the other factors raises the variances of a factor's coefficients, on average.

    Generalized variance inflation, per coefficient (Fox and Monette 1992).
    """
    coding = Coding.of(design)
    mine = coding.levels[[name == factor for name, _ in coding.names]]
    own = np.flatnonzero(mine[:, 1:].any(axis=0))
    r = np.atleast_2d(np.corrcoef(coding.x[:, 1:], rowvar=False))
    rest = np.setdiff1d(np.arange(len(r)), own)
    logs = [np.linalg.slogdet(r[np.ix_(m, m)])[1] for m in (own, rest, np.arange(len(r)))]
    return float(np.exp((logs[0] + logs[1] - logs[2]) / len(own)))
