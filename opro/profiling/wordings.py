"""Wordings to profile a checkpoint with: a balanced sample of the rewriter's grammar, and what people have written.

The grammar is a task's fragments: each part of a prompt is a factor, each fragment one of its levels. Every level is in
as many wordings as any other of its factor, give or take one, and the factors are drawn independently of each other, so
that the effect of each can be told (a random balanced design; what it cannot tell is said by `effects.confounded`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from evaluators.prompts import Prompt
from evaluators.tasks import Task
from opro.proposers.rewriter import Parts, Rewriter, renamed

NONE = "none"  # the level of a part that is left out
GRAMMAR, HELD_OUT, HAND, GIVEN = "grammar", "held-out", "hand-written", "given"
GROUPS = (GRAMMAR, HELD_OUT, HAND, GIVEN)
SPARE = 3  # samples to fill up from
TRIES = 200  # exchanges for each row that makes no sense

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Factor:
    """A part of a prompt, and the levels that it may have, as a person reads them."""

    name: str
    levels: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """A prompt of a profile.

    Attributes:
        group: One of `GROUPS`.
        levels: Factor -> level, of the grammar's alone; a factor that does not apply to it is missing.
    """

    prompt: Prompt
    group: str
    levels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Design:
    """Wordings of one grammar, and its factors of more than one level."""

    factors: tuple[Factor, ...]
    wordings: tuple[Wording, ...]

    @property
    def effects(self) -> int:
        """Numbers that a linear model of the factors fits, the mean among them."""
        return 1 + sum(len(f.levels) - 1 for f in self.factors)


class Grammar:
    """The fragments of a task as factors.

    Args:
        task: One with fragments, its own or shipped ones: see `has_grammar`.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        bank = Rewriter(task, 0).bank
        self._kinds = {
            "question": list(dict.fromkeys(bank["questions"])),
            "thing": list(dict.fromkeys(bank["things"])),
            "option words": list(dict.fromkeys(map(tuple, bank["options"]))),
            "definition": [(), *dict.fromkeys(map(tuple, bank["explanations"]))],
            "first option": list(range(len(task.labels))),
            "letters": list(dict.fromkeys(bank["letters"])),
            "mark": list(dict.fromkeys(bank["formats"])),
            "lines": ["\n", " "],
            "hint": list(dict.fromkeys(["", *bank["hints"]])),
            "closing": list(dict.fromkeys(["", *bank["closings"]])),
        }

    @property
    def factors(self) -> tuple[Factor, ...]:
        """All of them, also those of one level."""
        return tuple(
            Factor(name, tuple(self._shown(name, i) for i in range(len(given))))
            for name, given in self._kinds.items()
        )

    def sizes(self) -> list[int]:
        """How many levels each factor has."""
        return [len(given) for given in self._kinds.values()]

    def named(self, row: Sequence[int]) -> dict[str, int]:
        """A row of level indices by factor; without `thing` where the question names none."""
        found = dict(zip(self._kinds, map(int, row), strict=True))
        if "{x}" not in self._kinds["question"][found["question"]]:
            del found["thing"]
        return found

    def wording(self, row: Sequence[int]) -> Wording:
        """The wording of a row of level indices."""
        found = self.named(row)
        at = {name: self._kinds[name][i] for name, i in found.items()}
        words = zip(
            at["option words"], at["definition"] or [""] * len(self.task.labels), strict=True
        )
        options = [
            (label, f"{text} ({more})" if more else text)
            for label, (text, more) in zip(self.task.labels, words, strict=True)
        ]
        first = at["first option"]
        letters = at["letters"]
        usual = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)]
        parts = Parts(
            hint=at["hint"],
            question=at["question"].format(x=at.get("thing", "")),
            options=tuple(options[first:] + options[:first]),
            closing=renamed(at["closing"], usual, letters),
            mark=at["mark"],
            join=at["lines"],
            letters=letters,
        )
        like = Prompt("", tuple((label, ("",)) for label in self.task.labels))
        shown = {name: self._shown(name, i) for name, i in found.items()}
        return Wording(parts.prompt(like), GRAMMAR, shown)

    def why_not(self, row: Sequence[int]) -> str:
        """The factor by which a row makes no sense, as "Yes" to a question that asks for no yes; "" where it does."""
        at = {name: self._kinds[name][i] for name, i in self.named(row).items()}
        answers = {text.partition(",")[0].strip().casefold() for text in at["option words"]}
        if answers == {"yes", "no"} and "thing" not in at:
            return "question"
        if "letter" in at["closing"].casefold() and not any(ch.isalpha() for ch in at["letters"]):
            return "closing"
        return ""

    def _shown(self, name: str, i: int) -> str:
        """A level in words."""
        value = self._kinds[name][i]
        if name == "first option":
            return self.task.labels[i]
        if name == "lines":
            return "several lines" if value == "\n" else "one line"
        if name == "letters":
            return " ".join(value)
        text = " / ".join(value) if isinstance(value, tuple) else value
        return text or NONE


def has_grammar(task: Task) -> bool:
    """Whether a task has fragments that wordings can be built from."""
    return not task.choices and bool(Rewriter(task, 0).bank)


def sample(task: Task, count: int, seed: int) -> Design:
    """At most `count` different wordings of a task's grammar; fewer where it has no more."""
    grammar = Grammar(task)
    rng = np.random.default_rng([seed, count])
    made: dict[str, Wording] = {}
    for row in _rows(grammar, count, rng):
        if len(made) < count:
            one = grammar.wording(row)
            made.setdefault(one.prompt.digest, one)
    wordings = tuple(made.values())
    factors = []
    for factor in grammar.factors:  # of what is there
        held = {w.levels[factor.name] for w in wordings if factor.name in w.levels}
        levels = tuple(level for level in factor.levels if level in held)
        if len(levels) > 1:
            factors.append(replace(factor, levels=levels))
    return Design(tuple(factors), wordings)


def _rows(grammar: Grammar, count: int, rng: np.random.Generator) -> Rows:
    """Rows of level indices, all of a small grammar, else a balanced sample with some to spare."""
    sizes = grammar.sizes()
    if math.prod(sizes) <= 4 * count:
        every = np.array(list(product(*map(range, sizes))), dtype=np.int64)
        rows = rng.permutation(every)
        return rows[[not grammar.why_not(row) for row in rows]]
    rows = _sensible(grammar, _balanced(sizes, count, rng), rng)
    spare = [_balanced(sizes, count, rng) for _ in range(SPARE)]  # for those that turn out equal
    return np.concatenate([rows, *([r for r in part if not grammar.why_not(r)] for part in spare)])


def _balanced(sizes: Sequence[int], count: int, rng: np.random.Generator) -> Rows:
    """``[row, factor]`` level indices: in each column all levels as often, give or take one."""
    return np.stack(
        [rng.permutation(np.resize(rng.permutation(size), count)) for size in sizes], axis=1
    )


def _sensible(grammar: Grammar, rows: Rows, rng: np.random.Generator) -> Rows:
    """The rows with levels exchanged between two of them until all make sense, so that the balance stays."""
    names = [f.name for f in grammar.factors]
    for i in range(len(rows)):
        for _ in range(TRIES):
            wrong = grammar.why_not(rows[i])
            if not wrong:
                break
            j, k = int(rng.integers(len(rows))), names.index(wrong)
            pair = rows[[i, j]].copy()
            rows[i, k], rows[j, k] = pair[1, k], pair[0, k]
            if grammar.why_not(rows[i]) == wrong or (j < i and grammar.why_not(rows[j])):
                rows[[i, j]] = pair
    return rows[[not grammar.why_not(row) for row in rows]]


def united(design: Design, others: Sequence[tuple[str, Sequence[Prompt]]]) -> list[Wording]:
    """The design's wordings, then those of other groups, each prompt once: in the first group that has it."""
    found = {w.prompt.digest: w for w in design.wordings}
    for group, prompts in others:
        for prompt in prompts:
            found.setdefault(prompt.digest, Wording(prompt, group))
    return list(found.values())
