"""The factor table: which property of a prompt goes with which score, over all rows of a search.

A language model that reads forty rows does not see that one of them decides; a table of differences says it in a line.
Properties are of the surface, since a small model reacts to it: letters, order, layout, length, single words, and how
the clip is given.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.orders import find_options
from evaluators.prompts import Prompt
from opro.search.history import Trial

FEWEST = 3  # rows with a factor, and without it
TOLD = 9  # factors
TOGETHER = 3  # pairs of factors
CLEAR = 3.0  # standard errors by which the effect of a pair must differ from the sum of its parts
COMMON = frozenset(
    "this that with have from your what which does only than then them when where clip audio".split()
)

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]


def properties(prompt: Prompt) -> set[str]:
    """What a prompt's surface has."""
    text = prompt.text
    options = find_options(prompt)
    head = text[: options[0].mark] if options else text
    (label, words), *_ = prompt.answers
    found = {f"{label} = {words[0]}"}
    places = {name: _place(text, given) for name, given in prompt.answers}
    if min(places, key=lambda name: places[name]) == label:
        found.add(f"{label} is offered first")
    if "?" in head:
        found.add("asks a question")
    if "\n" in text.strip():
        found.add("has several lines")
    if re.search(r"\(\w[^)]{2,}\)", text):
        found.add("explains in brackets")
    if re.search(r"(?i)\b(answer|reply|respond|choice|choose)\b[^\n]*$", text.strip()):
        found.add("ends with a request to answer")
    if re.search(r"(?i)\byou are\b", text):
        found.add("gives a role")
    if len(text) < 80:
        found.add("is shorter than 80 characters")
    if len(text) > 160:
        found.add("is longer than 160 characters")
    if not options:
        found.add("its answers are words")
    found |= {f"clip {part}" for part in prompt.presentation.parts}
    tail = text[len(head) :]
    for where, part in (("before the options", head), ("in or after the options", tail)):
        for word in set(re.findall(r"[^\W\d_]{4,}", part.casefold())) - COMMON:
            found.add(f'"{word}" {where}')
    return found


def levels(labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The parts of a prompt by which a study is drawn, and the values each may have: `surface` gives one of them."""
    return {
        "question": ("asked", "stated"),
        "first option": tuple(labels),
        "answers": ("letters of options", "words"),
        "layout": ("one line", "several lines"),
        "explanation": ("in brackets", "none"),
        "hint": ("beside the question", "none"),
        "closing": ("asks to answer", "none"),
    }


def surface(prompt: Prompt) -> dict[str, str]:
    """The values of `levels` that a prompt has."""
    found, options = properties(prompt), find_options(prompt)
    head = prompt.text[: options[0].mark] if options else prompt.text
    chosen = {  # whether it is the first of the two
        "question": "asks a question" in found,
        "answers": "its answers are words" not in found,
        "layout": "has several lines" not in found,
        "explanation": "explains in brackets" in found,
        "hint": len(re.findall(r"[.!?](?=\s|$)", head.strip())) > 1,
        "closing": "ends with a request to answer" in found,
    }
    labels = [label for label, _ in prompt.answers]
    first, _ = min(prompt.answers, key=lambda answer: _place(prompt.text, answer[1]))
    return {
        "first option": first,
        **{name: levels(labels)[name][not is_so] for name, is_so in chosen.items()},
    }


def _place(text: str, words: Sequence[str]) -> int:
    found = [m.start() for w in words if (m := re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text))]
    return min(found, default=len(text))


@dataclass(frozen=True)
class _Rows:
    """Scored trials as arrays."""

    score: Floats
    shares: Floats  # [row, 2] hits and false alarms, NaN where unknown
    has: dict[str, Bools]

    def difference(self, a: Bools, b: Bools) -> float:
        """Mean score of some rows less that of others, in standard errors."""
        one, other = self.score[a], self.score[b]
        pooled = (one.var() * len(one) + other.var() * len(other)) / len(self.score) + 1.0
        return float(
            (one.mean() - other.mean()) / np.sqrt(pooled * (1 / len(one) + 1 / len(other)))
        )

    def about(self, rows: Bools) -> str:
        """Means of some rows in words."""
        known = self.shares[rows & ~np.isnan(self.shares[:, 0])]
        text = f"{self.score[rows].mean():.1f}"
        if len(known):
            hits, false = known.mean(axis=0)
            text += f" (hits {hits:.0f}, false alarms {false:.0f})"
        return f"{text} in {int(rows.sum())} rows"


def factors(trials: Sequence[Trial]) -> str:
    """The factors that moved the score most, one a line, and pairs of them that act otherwise together."""
    rows = _rows([t for t in trials if t.scored])
    if not rows.has:
        return "Too few rows so far."
    effect = {name: rows.difference(has, ~has) for name, has in rows.has.items()}
    best = sorted(effect, key=lambda name: -abs(effect[name]))
    lines = [
        f"- {n}: {rows.about(rows.has[n])}; else {rows.about(~rows.has[n])}" for n in best[:TOLD]
    ]
    return "\n".join([*lines, *_together(rows, best[: 3 * TOLD])])


def _rows(trials: Sequence[Trial]) -> _Rows:
    found = [properties(t.prompt) for t in trials]
    has: dict[str, Bools] = {}
    seen: set[bytes] = set()
    # Names of the structure first: of factors that the same rows have one is told.
    for name in sorted(set().union(*found), key=lambda n: (n.startswith('"'), n)):
        own = np.array([name in one for one in found])
        key = min(own.tobytes(), (~own).tobytes())
        if min(own.sum(), (~own).sum()) >= FEWEST and key not in seen:
            seen.add(key)
            has[name] = own
    shares = [
        [100 * t.outcome.profile.recalls[0], 100 * (1 - t.outcome.profile.recalls[1])]
        if t.outcome and t.outcome.profile and len(t.outcome.profile.recalls) == 2
        else [np.nan, np.nan]
        for t in trials
    ]
    score = np.array([100 * t.reward for t in trials])
    return _Rows(score, np.array(shares).reshape(-1, 2), has)


def _together(rows: _Rows, names: Sequence[str]) -> list[str]:
    """Pairs whose effect is not the sum of their parts."""
    found = []
    for a, b in itertools.combinations(names, 2):
        x, y = rows.has[a], rows.has[b]
        cells = (x & y, x & ~y, ~x & y, ~x & ~y)
        if min(c.sum() for c in cells) < FEWEST:
            continue
        mean = [rows.score[c].mean() for c in cells]
        error = np.sqrt(sum(rows.score[c].var() / c.sum() for c in cells) + 1.0 / len(rows.score))
        effect = (mean[0] - mean[1] - mean[2] + mean[3]) / error
        if abs(effect) > CLEAR:
            both, one, other, none = (f"{m:.1f}" for m in mean)
            line = f"- {a}, and {b}: both {both}, the first alone {one}, the second alone {other}, neither {none}"
            found.append((-abs(effect), line))
    return [line for _, line in sorted(found)[:TOGETHER]]
