"""The built-in rewriter: edits and recombines scored prompts without a language model.

An honest baseline: it takes a prompt apart into hints, question, options and closing, changes or exchanges parts,
and learns from the history only through which prompts it starts from. It does not know what a prompt means.
"""

import copy
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from evaluators.errors import UserError
from evaluators.files import read_yaml, shipped
from evaluators.orders import find_options
from evaluators.prompts import Prompt
from evaluators.tasks import FORMATS, FRAGMENTS, Task
from opro.proposers import surrogate
from opro.search.history import Candidate
from opro.search.proposer import SearchView

BANKS = shipped("prompts/rewriter")  # fragments by task
PROPOSALS_PER_PICK = 10  # proposals for each that is wanted, of which the surrogate picks
MAX_PAST = 400  # prompts that the surrogate learns from, more or less
PARENTS = 6  # prompts that are rewritten: the best so far
EDITS = (1, 1, 2, 2, 3)  # how many a prompt gets, drawn
LAYOUT = ("swap", "shorten", "cross", "layout")  # operators that need no bank of fragments
DRAWN = ("question", "options", "explain", "hint", "closing", "layout", "swap")
LEADS = ("", "Listen carefully.", "Listen to the audio.", "The clip may be short and noisy.")
CLOSINGS = ("", "Answer:", "Answer with one of these words.", "Only one is right.", "The answer is")
Fragments = Mapping[
    str, Sequence[Any]
]  # by kind, as in a fragments file; "answers" are pairs of answer words
KEYS = set(FRAGMENTS)


@dataclass(frozen=True)
class Parts:
    """A prompt taken apart. `options` are (label, words) in the order shown; `mark` and `join` say how they look."""

    hint: str
    question: str
    options: tuple[tuple[str, str], ...]
    closing: str
    mark: str = "{0}) {1}"
    join: str = "\n"
    letters: Sequence[str] = "AB"

    def prompt(self, like: Prompt) -> Prompt:
        """Put together again: letters by position, answers by label."""
        block = self.join.join(
            self.mark.format(self.letters[i], words) for i, (_, words) in enumerate(self.options)
        )
        head = " ".join(part for part in (self.hint, self.question) if part)
        gap = "\n" if self.join == "\n" else " "
        text = gap.join(part for part in (head, block) if part) + (
            f"\n\n{self.closing}" if self.closing else ""
        )
        given = {label: self.letters[i] for i, (label, _) in enumerate(self.options)}
        return replace(
            like, text=text, answers=tuple((label, (given[label],)) for label, _ in like.answers)
        )


def take_apart(prompt: Prompt) -> Parts | None:
    """The parts of a prompt whose answers are letters that mark its options, else None."""
    options = find_options(prompt)
    if options is None:
        return None
    text, last = prompt.text, options[-1]
    between = text[options[0].start : last.mark]
    return Parts(
        "",
        text[: options[0].mark].strip(),
        tuple((o.label, text[o.start : o.end]) for o in options),
        text[last.end :].partition("\n")[2].strip(),
        join="\n" if "\n" in between else " ",
        letters="".join(prompt.text[o.mark : o.start].strip(" ([).:=-\n\t]")[:1] for o in options),
    )


class Rewriter:
    """A Proposer.

    Args:
        task: Its labels must match the fragments file prompts/rewriter/<task>.yaml; without one only layout changes.
        seed: Proposals depend on it, the iteration and the history, nothing else.
        learn: Start from the best prompts so far; otherwise always from the seeds (random paraphrases).
    """

    name = "rewriter"

    def __init__(self, task: Task, seed: int, learn: bool = True, folder: Path = BANKS) -> None:
        self.task = task
        self.seed = seed
        self.learn = learn
        path = folder / f"{task.name}.yaml"
        own = dict(task.fragments)
        self.bank = own or (read_yaml(path) if path.is_file() else {})
        if self.bank and set(self.bank) != KEYS:
            raise UserError(
                f"{path}: keys {sorted(set(self.bank) ^ KEYS)} are unknown or missing; expected"
                f" {sorted(KEYS)}"
            )

    def enriched(self, more: Fragments) -> "Rewriter":
        """A rewriter with more fragments, drawn as often as its own; this one where some kind would have none."""
        if not more:
            return self
        bank = {kind: _alike(self.bank.get(kind, ()), more.get(kind, ())) for kind in KEYS}
        bank["letters"] = _alike(bank["letters"], more.get("answers", ()))
        bank["letters"] = bank["letters"] or [ascii_uppercase[: len(self.task.labels)]]
        bank["formats"] = bank["formats"] or list(FORMATS)
        bank["closings"] = bank["closings"] or [""]
        if not all(bank.values()):
            return self
        out = copy.copy(self)
        out.bank = bank
        return out

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`; fewer than `n` only when nothing new can be made."""
        rng = random.Random(f"{self.seed}|{view.iteration}|{self.learn}")
        past = [t for t in view.scored if self.learn or t.iteration == 0]
        if not past:
            return []
        parents = [t.prompt for t in (past[:PARENTS] if self.learn else past)]
        known = {t.prompt.digest for t in view.trials}
        out: list[Candidate] = []
        size = n * PROPOSALS_PER_PICK if self.learn else n
        # At first far from the seed prompts, later near to the best.
        redraw_share = 1 / view.iteration if self.learn else 0.0
        for _ in range(200 * n):
            if len(out) == size:
                break
            candidate = self.rewrite(parents, rng, redraw_share)
            if candidate is None or view.why_not(candidate.prompt):
                continue
            if candidate.prompt.digest not in known:
                known.add(candidate.prompt.digest)
                out.append(candidate)
        if len(out) <= n:
            return out
        # The best and some others: using every past trial would make iterations slower in a long search.
        told = past[: MAX_PAST // 2] + past[MAX_PAST // 2 :][:: 1 + 2 * len(past) // MAX_PAST]
        chosen = surrogate.pick(
            [(t.prompt, t.reward, t.outcome.sd if t.outcome else 0.0) for t in told],
            [c.prompt for c in out],
            n,
            np.random.default_rng([self.seed, view.iteration]),
        )
        return [out[i] for i in chosen]

    def rewrite(
        self, parents: Sequence[Prompt], rng: random.Random, redraw_share: float = 0.0
    ) -> Candidate | None:
        """One prompt made from a parent, the better ones likelier, or None when this parent cannot be edited.

        Args:
            parents: Best first.
            redraw_share: How often about half of its parts are drawn anew, instead of one to three edits.
        """
        weights = [2.0**-i for i in range(len(parents))] if self.learn else None
        parent = rng.choices(parents, weights)[0]
        parts = self._take_apart(parent)
        if parts is None:
            known = any(self._take_apart(one) is not None for one in parents)
            return None if known else _around(parent, rng)
        if not self.bank:
            operators = rng.choices(LAYOUT, k=rng.choice(EDITS))
        elif rng.random() < redraw_share:
            operators = [name for name in DRAWN if rng.random() < 0.6]
        else:
            operators = rng.choices(list(_OPERATORS), k=rng.choice(EDITS))
        done, ids = [], [parent.prompt_id]
        for operator in operators:
            other = rng.choice(parents)
            mate = self._take_apart(other)
            if operator == "cross":
                if mate is None or other is parent:
                    continue
                ids.append(other.prompt_id)
            parts = _OPERATORS[operator](parts, mate or parts, self.bank, rng, self.task)
            done.append(operator)
        prompt = parts.prompt(parent)
        return Candidate(prompt, "rewriter:" + "+".join(done), tuple(ids)) if done else None

    def _take_apart(self, prompt: Prompt) -> Parts | None:
        """Like `take_apart`, with a leading hint of the bank as a part of its own, so that hints do not pile up."""
        parts = take_apart(prompt)
        if parts is not None:
            for hint in self.bank.get("hints", ()):
                if parts.question.startswith(hint):
                    return replace(
                        parts, hint=hint, question=parts.question.removeprefix(hint).strip()
                    )
        return parts


def _around(prompt: Prompt, rng: random.Random) -> Candidate:
    """Other words before and after a prompt that cannot be taken apart, or its answers in other letters."""
    text, done = prompt.text.strip(), []
    for name, some, strip in (
        ("lead", LEADS, str.removeprefix),
        ("closing", CLOSINGS, str.removesuffix),
    ):
        if rng.random() < 0.6:
            for one in sorted(filter(None, some), key=len, reverse=True):
                text = strip(text, one).strip()
            new = rng.choice(some)
            text = " ".join(filter(None, (new, text) if name == "lead" else (text, new)))
            done.append(name)
    if not done or rng.random() < 0.3:
        prompt, text = _recased(
            replace(prompt, text=text), rng.choice((str.upper, str.lower, str.title))
        )
        done.append("case")
    return Candidate(replace(prompt, text=text), "rewriter:" + "+".join(done), (prompt.prompt_id,))


def _recased(prompt: Prompt, change: Callable[[str], str]) -> tuple[Prompt, str]:
    """(Prompt, text) with the words of its answers in other letters, where each stands in the text."""
    text, answers = prompt.text, []
    for label, words in prompt.answers:
        for word in words:
            whole = rf"(?<!\w){re.escape(word)}(?!\w)"
            if len(word) < 2 or not re.search(whole, text):
                return prompt, prompt.text
            text = re.sub(whole, lambda m, word=word: change(word), text)  # type: ignore[misc]
        answers.append((label, tuple(map(change, words))))
    return replace(prompt, answers=tuple(answers)), text


def _alike(own: Sequence[Any], more: Sequence[Any]) -> list[Any]:
    """Both lists, the own one repeated so that many fragments of unknown worth do not crowd it out."""
    times = max(1, len(more) // len(own)) if own else 0
    return [*list(own) * times, *more]


def _pair(parts: Parts, pair: Sequence[str], task: Task) -> Parts:
    words = dict(zip(task.labels, pair, strict=True))
    return replace(parts, options=tuple((label, words[label]) for label, _ in parts.options))


def _letters(parts: Parts, letters: Sequence[str]) -> Parts:
    """Other answers, letters or words; where the old ones are named, as in "Answer A or B.", they change too."""
    if len(letters) != len(parts.letters):
        return parts

    return replace(
        parts,
        letters=letters,
        question=renamed(parts.question, parts.letters, letters),
        closing=renamed(parts.closing, parts.letters, letters),
    )


def renamed(text: str, old: Sequence[str], new: Sequence[str]) -> str:
    """The words with other letters where the old ones stand side by side, as in "A or B"."""
    names = dict(zip(old, new, strict=True))
    either = "|".join(map(re.escape, old))
    return re.sub(
        rf"(?<!\w)({either})( or | and |/|, )({either})(?!\w)",
        lambda m: names[m[1]] + m[2] + names[m[3]],
        text,
    )


def _explain(parts: Parts, pair: Sequence[str], task: Task) -> Parts:
    words = dict(zip(task.labels, pair, strict=True))
    return replace(
        parts,
        options=tuple(
            (label, f"{re.sub(r' *[(].*[)]', '', text)} ({words[label]})")
            for label, text in parts.options
        ),
    )


_Operator = Callable[[Parts, Parts, dict[str, Any], random.Random, Task], Parts]
_OPERATORS: dict[str, _Operator] = {
    "question": lambda p, m, b, r, t: replace(
        p, question=r.choice(b["questions"]).format(x=r.choice(b["things"]))
    ),
    "options": lambda p, m, b, r, t: _pair(p, r.choice(b["options"]), t),
    "explain": lambda p, m, b, r, t: _explain(p, r.choice(b["explanations"]), t),
    "hint": lambda p, m, b, r, t: replace(p, hint=r.choice(b["hints"])),
    "closing": lambda p, m, b, r, t: replace(
        p, closing=renamed(r.choice(b["closings"]), ascii_uppercase[: len(p.letters)], p.letters)
    ),
    "layout": lambda p, m, b, r, t: replace(
        p,
        mark=r.choice((b or {"formats": FORMATS})["formats"]),
        join=r.choice(("\n", " ")),
    ),
    "swap": lambda p, m, b, r, t: replace(p, options=p.options[::-1]),
    "letters": lambda p, m, b, r, t: _letters(p, r.choice(b["letters"])),
    "shorten": lambda p, m, b, r, t: replace(
        p,
        hint="",
        closing="" if r.random() < 0.5 else p.closing,
        options=tuple(
            (label, re.sub(r" *[(].*[)]", "", text) or text) for label, text in p.options
        ),
    ),
    "cross": lambda p, m, b, r, t: r.choice(
        (
            replace(p, question=renamed(m.question, m.letters, p.letters)),
            replace(p, options=m.options),
            replace(p, closing=renamed(m.closing, m.letters, p.letters), mark=m.mark),
        )
    ),
}
