"""The phrases of a prompt, and the prompt without each of them: what a phrase is worth is what is lost with it.

Cut by simple punctuation: sentences, clauses between commas, colons and dashes, explanations in brackets, and options
at their letters' marks. The finest phrases do not overlap; a sentence of several stands beside them.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from evaluators.orders import find_options
from evaluators.prompts import OPTIONS, QUESTION, Prompt
from opro.search.edits import answers_kept

SYSTEM_MESSAGE = "system message"
_ENDS = re.compile(r"[.!?]+(?=\s|\Z)|\n")  # of sentences
_BREAKS = re.compile(r"[,;:](?=\s)|\s[-\u2013\u2014]\s|(?=\()|(?<=\))")  # of clauses


@dataclass(frozen=True)
class Phrase:
    """A part of a prompt.

    Attributes:
        kind: sentence, clause, explanation, option or system message.
        start, end: Its place in the prompt's text; 0 and 0 of the system message.
        text: Its words.
        without: The prompt without it; None where that is impossible.
        why_not: Why it is impossible; "" where it is not.
    """

    kind: str
    start: int
    end: int
    text: str
    without: Prompt | None
    why_not: str = ""

    @property
    def whole(self) -> bool:
        """Whether it holds other phrases."""
        return self.kind == "whole sentence"


def phrases(prompt: Prompt) -> tuple[Phrase, ...]:
    """The phrases of a prompt in the order of its text, its system message last."""
    text, found = prompt.text, list[Phrase]()
    marks = [(o.mark, o.start, o.end) for o in find_options(prompt) or ()]
    for start, end in _sentences(text, marks):
        inside = list(_clauses(text, start, end))
        option = next((m for m in marks if m[0] <= start < m[2]), None)
        if len(inside) > 1 and option is None:
            found.append(_phrase(prompt, "whole sentence", start, end))
        for a, b in inside:
            kind = "sentence" if len(inside) == 1 else "clause"
            if text[a] == "(":
                kind = "explanation"
            elif option is not None:
                kind = "option"
            found.append(_phrase(prompt, kind, a, b))
    if prompt.system.strip():
        rest = replace(prompt, system="")
        found.append(Phrase(SYSTEM_MESSAGE, 0, 0, prompt.system, rest))
    return tuple(found)


def _sentences(text: str, marks: list[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """Places of sentences, without blanks around; a mark of an option begins one, and belongs to none."""
    ends = {
        m.end() for m in _ENDS.finditer(text) if not any(a <= m.start() < b for a, b, _ in marks)
    }
    cuts = sorted({0, len(text), *ends, *(edge for a, b, _ in marks for edge in (a, b))})
    skipped = {(a, b) for a, b, _ in marks}
    for a, b in itertools.pairwise(cuts):
        if (a, b) not in skipped:
            yield from _stripped(text, a, b)


def _clauses(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Places of the clauses of a sentence: brackets are whole, a mark of punctuation ends what stands before it."""
    brackets = [m.span() for m in re.finditer(r"\([^()]*\)", text[start:end])]
    cuts = {start, end}
    for m in _BREAKS.finditer(text, start, end):
        at = m.end() - start
        if not any(a < at < b for a, b in brackets):
            cuts.add(m.end())
    for a, b in itertools.pairwise(sorted(cuts)):
        yield from _stripped(text, a, b)


def _stripped(text: str, a: int, b: int) -> Iterator[tuple[int, int]]:
    """The place without blanks at its ends; nothing where no word is left."""
    piece = text[a:b]
    if re.search(r"\w", piece):
        start = a + len(piece) - len(piece.lstrip())
        yield start, start + len(piece.strip())


def _phrase(prompt: Prompt, kind: str, start: int, end: int) -> Phrase:
    own = prompt.text[start:end]
    rest = replace(prompt, text=_left(prompt.text, start, end))
    inside = [o for o in find_options(prompt) or () if o.start <= start and end <= o.end]
    kept = [prompt.text[o.start : start] + prompt.text[end : o.end] for o in inside]
    alone = any(not re.search(r"\w", words) for words in kept)
    why = "it is all that an option says" if alone else _why_not(prompt, own, rest)
    if why:
        return Phrase(kind, start, end, own, None, why)
    return Phrase(kind, start, end, own, rest)


def _why_not(prompt: Prompt, own: str, rest: Prompt) -> str:
    """Why a prompt cannot do without some of its words."""
    if not rest.text.strip():
        return "it is the whole text"
    for place in (QUESTION, OPTIONS):
        if place in own:
            return f"it is the place of each clip's own {place.strip('{}')}"
    if answers_kept(prompt, rest):
        return ""
    if find_options(prompt) is not None:
        return "it is all that an option says"
    named = [w for _, words in prompt.answers for w in words if w in own]
    return f"it alone names the answer {', '.join(map(repr, named))}"


def _left(text: str, start: int, end: int) -> str:
    """The text without a phrase, and without what only joined it to its neighbours."""
    before, own, after = text[:start], text[start:end], text[end:]
    joined = re.search(r"(?:[,;:]|\s[-\u2013\u2014])\s*\Z", before)
    last = re.search(r"[.!?]+\Z", own)
    if joined and (last or not after.strip() or after.startswith("\n")):
        before = before[: joined.start()] + (last[0] if last else "")
    if own.startswith("(") or not before or before[-1].isspace():
        after = after.lstrip(" ")
    if not before.strip() or before.endswith("\n"):  # its whole line goes
        after = after.lstrip("\n") if after.startswith("\n") else after
    if after.startswith(("\n", ".", ",", "?", "!", ":")):
        before = before.rstrip(" ")
    return before + after if after.strip() else before.rstrip()
