"""What a log of an evaluation holds, whoever wrote it: for each sample its scores, its answer and what is known of it.

Logs come from elsewhere, so that everything read is bounded and everything that may be shown is made printable.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.errors import UserError

MOST_BYTES = 1 << 28  # of JSON that is parsed at once
MOST_VALUES = 20_000_000  # in it: each takes about 100 bytes of memory
LONGEST = 200  # characters of a text that is kept
LARGEST = 1e100  # of a score: sums of larger ones would overflow
DEEPEST = 4  # of mappings within mappings whose values are kept

GRADES = {"c": 1.0, "i": 0.0, "p": 0.5, "n": 0.0, "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Sample:
    """One run of one sample.

    Attributes:
        id: Of the sample; several runs (epochs) share it.
        epoch: From 1.
        target: What is right, "" where the log does not say it.
        asked: Digest of the question: whether two logs asked the same.
        fields: Other properties, as text.
        scores: Name -> number, NaN where there is none.
        answers: Name of a score -> the answer that it is of.
        choices: The answers that the sample offers, () where it is free.
        logp: Log-probability of each choice in nats, () where they are not known.
        trouble: Why a score is missing, "" where nothing is known of that.
    """

    id: str
    epoch: int
    target: str
    asked: str
    fields: Mapping[str, str]
    scores: Mapping[str, float]
    answers: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    logp: tuple[float, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class SampleLog:
    """A log of an evaluation.

    Attributes:
        kind: The package that wrote it.
        task, model: "" where the log does not say it.
        samples: At least one; (id, epoch) is unique.
        notes: What is to be told of it, a sentence each.
        reported: Name of a score -> the figure that the package itself gives for it.
        less_is_better: Names of scores.
    """

    path: Path
    kind: str
    task: str
    model: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    reported: Mapping[str, float] = field(default_factory=dict)
    less_is_better: frozenset[str] = frozenset()


def parse_json(raw: bytes, where: str) -> Any:
    """JSON as plain data.

    Raises:
        UserError: It is none, or larger than memory should hold.
    """
    if len(raw) > MOST_BYTES or sum(map(raw.count, (b"{", b"[", b","))) > MOST_VALUES:
        raise UserError(
            f"{where}: {len(raw) / 1e6:,.0f} MB of JSON; expected at most {MOST_BYTES / 1e6:,.0f} MB and"
            f" {MOST_VALUES / 1e6:,.0f} million values"
        )
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON ({shown(str(error), 120)})") from None


def shown(text: str, longest: int = LONGEST) -> str:
    r"""A text of one line that steers no terminal. What is not printable is escaped, so that two texts stay two.

    >>> print(shown("a\x1b[2J\n"), shown("long text", 5))
    a\x1b[2J\n long ...
    """
    if len(text) > longest:
        text = text[:longest] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(value: Any) -> float | None:
    """The number that a score is, by the words that inspect_ai has for it too; NaN where it says there is none.

    >>> number("C"), number(True), number("0.5"), number("maybe"), number([1])
    (1.0, 1.0, 0.5, None, None)
    """
    if isinstance(value, str):
        value = value.strip().casefold()
        if value in GRADES:
            return GRADES[value]
        if not value.isascii() or "_" in value:
            return None
    if not isinstance(value, str | int | float):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return None if abs(found) > LARGEST else found


def leaves(data: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in mappings within mappings that is no mapping or list.

    >>> list(leaves({"a": {"b": 1}, "c": [2]}))
    [('a.b', 1)]
    """
    if isinstance(data, Mapping):
        if depth < DEEPEST:
            for key, value in data.items():
                yield from leaves(value, f"{name}.{key}" if name else str(key), depth + 1)
    elif not isinstance(data, list) and data is not None:
        yield shown(name), data


def texts(data: Any) -> dict[str, str]:
    """Dotted name -> value as text, of the short ones."""
    out = {}
    for name, value in leaves(data):
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if len(text) <= LONGEST:
            out[name] = shown(text.strip())
    return out


def text_of(value: Any) -> str:
    """An id, a target or an answer as text; a list of them joined. Long ones end in a digest, so that two stay two."""
    if value is None:
        return ""
    text = " | ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = text.strip()
    return (
        shown(text) if len(text) <= LONGEST else f"{shown(text, LONGEST // 2)}{digest(text)[:12]}"
    )


def digest(data: Any) -> str:
    """Hexadecimal SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
