"""The pictures of a profile: SVG for its page, and one PNG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opro.profiling.tables import MOVED
from opro.profiling.two_way import DRAWN
from opro.profiling.wordings import GRAMMAR, HAND, HELD_OUT
from opro.results.figures import COLOURS, INK, axes, legend, plain, svg

LONGEST = 40  # characters of a level beside a line
MARKS = {GRAMMAR: ("o", 3), HELD_OUT: ("^", 5), HAND: ("D", 7)}
Document = Mapping[str, Any]


def spread(document: Document) -> str:
    """Every wording's balanced accuracy, lowest first, a line a checkpoint, with the intervals of the quantiles."""
    figure, axis = axes(7.0, 3.4)
    texts = document["wordings"]
    for one, colour in zip(document["checkpoints"], COLOURS, strict=False):
        group = next(iter(one["groups"]), None)
        if group is None:
            continue
        own = [i for i, w in enumerate(texts) if w["group"] == group]
        value = np.sort([100 * one["wordings"][i]["balanced_accuracy"] for i in own])
        share = 100 * np.arange(len(value)) / max(1, len(value) - 1)
        axis.plot(share, value, color=colour, label=plain(f"{one['name']}, {group}"))
        numbers = one["groups"][group]["numbers"]
        at = [numbers[f"balanced_accuracy_q{round(100 * q)}"] for q in DRAWN]
        ends = [(v["low"], v["high"]) for v in at]
        if all(low is not None and high is not None for low, high in ends):
            low, high = (100 * np.array(end) for end in zip(*ends, strict=True))
            x = [100 * q for q in DRAWN]
            axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        for row in one["hand_written"]:
            score = 100 * one["wordings"][row["wording"]]["balanced_accuracy"]
            axis.plot(100 * row["above"], score, "D", ms=6, mfc="none", color=colour)
    axis.plot([], [], "D", ms=6, mfc="none", color=INK, label="hand-written")
    axis.set_xlabel("share of the wordings that score lower, %")
    axis.set_ylabel("balanced accuracy, %")
    legend(figure)
    return svg(figure)


def plane(document: Document) -> str:
    """Hits over false alarms of every wording, a colour a checkpoint."""
    figure, axis = axes(4.6, 4.2)
    axis.plot([0, 100], [0, 100], color=INK, lw=0.8, ls="--")
    texts = document["wordings"]
    for one, colour in zip(document["checkpoints"], COLOURS, strict=False):
        for group, (mark, size) in MARKS.items():
            own = [w for w, t in zip(one["wordings"], texts, strict=True) if t["group"] == group]
            if own:
                x, y = ([100 * w[n] for w in own] for n in ("false_alarm_rate", "hit_rate"))
                fill = colour if group == GRAMMAR else "none"
                label = plain(one["name"]) if group == GRAMMAR else None
                axis.plot(x, y, mark, ms=size, mfc=fill, color=colour, alpha=0.6, label=label)
    for group in (HELD_OUT, HAND):
        if any(t["group"] == group for t in texts):
            mark, size = MARKS[group]
            axis.plot([], [], mark, ms=size, mfc="none", color=INK, label=group)
    axis.set_xlabel("false alarms, %")
    axis.set_ylabel("hits, %")
    axis.set_xlim(-3, 103)
    axis.set_ylim(-3, 103)
    legend(figure)
    return svg(figure)


def effects(document: Document, factor: str, names: Sequence[str]) -> str:
    """What the levels of a factor do to hits and false alarms, a colour a checkpoint, one picture of two panels."""
    told = [one for one in document["checkpoints"] if one["effects"]]
    figure, axis = axes(6.4, 0.9 + (0.24 * len(told) + 0.18) * len(names))
    height = 1.0 / (len(told) + 1)
    for i, one in enumerate(told):
        rows = {e["level"]: e for e in one["effects"] if e["factor"] == factor}
        for name, mark, fill in (("hit_rate", "o", True), ("false_alarm_rate", "s", False)):
            for place, level in enumerate(names):
                v = rows[level][name]
                y = -place - height * (i + (0.25 if name != "hit_rate" else 0)) + 0.3
                ends = [v["low"], v["high"]]
                if None not in ends:
                    axis.plot([100 * e for e in ends], [y, y], color=COLOURS[i], lw=1)
                label = plain(f"{one['name']}, {MOVED[name]}") if place == 0 else None
                axis.plot(
                    100 * v["value"], y, mark, ms=4, color=COLOURS[i],
                    mfc=COLOURS[i] if fill else "none", label=label,
                )  # fmt: skip
    axis.axvline(0, color=INK, lw=0.8, ls="--")
    short = [n if len(n) <= LONGEST else n[: LONGEST - 1] + "…" for n in names]
    axis.set_yticks(-np.arange(len(names)), [plain(n) for n in short], fontsize=7)
    axis.set_xlabel(f"points against the mean over the variants of: {factor}")
    legend(figure)
    return svg(figure)
