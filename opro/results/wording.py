"""What changed between two prompts, by words."""

import difflib
import re
from collections.abc import Sequence

ALIKE = 0.5  # of a prompt's characters, from which on its changes are marked
Piece = tuple[str, str]  # (same | gone | new, text)


def word_changes(old: str, new: str) -> list[Piece]:
    """The pieces of both texts in one line. Of a text that shares little with the old one, it alone, as ``same``.

    >>> word_changes("Is it speech?", "Is this speech?")
    [('same', 'Is '), ('gone', 'it'), ('new', 'this'), ('same', ' speech?')]
    """
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (old, new))
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    shared = (t for m in matcher.get_matching_blocks() for t in a[m.a : m.a + m.size])
    if sum(len(t.strip()) for t in shared) < ALIKE * len(new):
        return [("same", new)]
    out: list[Piece] = []
    for op, i, j, k, m in matcher.get_opcodes():
        if op == "equal":
            out.append(("same", "".join(a[i:j])))
        else:
            out += [("gone", "".join(a[i:j]))] * (i < j) + [("new", "".join(b[k:m]))] * (k < m)
    return out


def side_by_side(old: str, new: str) -> tuple[Sequence[Piece], Sequence[Piece]]:
    """The same changes, the old text and the new one each by itself."""
    pieces = word_changes(old, new)
    first = [piece for piece in pieces if piece[0] != "new"]
    if "".join(text for _, text in first) != old:  # they share too little for marks
        first = [("same", old)]
    return first, [piece for piece in pieces if piece[0] != "gone"]
