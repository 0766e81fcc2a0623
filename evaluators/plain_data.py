"""Plain data from untrusted text: JSON, JSON lines and YAML, with limits on size, depth and numbers before use.

Whoever wrote a file or a reply, what comes out is plain data or one sentence with the place.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from evaluators.errors import UserError

MOST_BYTES = 2**28  # of a text
MOST_LINE = 2**24  # bytes of a line of JSON lines
DEEPEST = 64  # brackets within brackets
MOST_NODES = 200_000  # of a YAML document, with those that its aliases repeat
LONGEST_INTEGER = (
    1000  # characters in YAML; Python writes none above 4,300 digits, hexadecimal ones have more
)
SHOWN = 120  # characters of a value that a sentence repeats
BIDI = frozenset(
    "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def inert(text: str, *, lines: bool = True) -> str:
    r"""A text that steers no terminal: control characters and those that turn the order of letters are escaped.

    Args:
        text: Whatever it is.
        lines: Leave ends of lines and tabs as they are.

    >>> print(inert("a\x1b[2Jb\u202e"), inert("one\ntwo", lines=False))
    a\x1b[2Jb\u202e one\ntwo
    """
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        ch.encode("unicode_escape").decode("ascii")
        if ch not in kept and (unicodedata.category(ch) in ("Cc", "Cs") or ch in BIDI)
        else ch
        for ch in text
    )


def brief(value: Any) -> str:
    """A value as a sentence may repeat it: on one line, inert, and short. Looks at no more of it than it shows.

    >>> brief("x" * 1000)[-6:], brief({"a": [1, 2]})
    ("x...'", "{'a': [1, 2]}")
    """
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN else value[:SHOWN] + "...")
    if isinstance(value, bool | int | float | None):
        return repr(value)[:SHOWN]
    if isinstance(value, list | tuple):
        text = ", ".join(map(brief, value[:4])) + (", ..." if len(value) > 4 else "")
        return f"[{text}]" if len(text) <= SHOWN else f"a list of {len(value)}"
    if isinstance(value, dict):
        pairs = list(value.items())[:4]
        text = ", ".join(f"{brief(k)}: {brief(v)}" for k, v in pairs)
        text += ", ..." if len(value) > 4 else ""
        return f"{{{text}}}" if len(text) <= SHOWN else f"a mapping of {len(value)} keys"
    return type(value).__name__


def parse_json(raw: bytes | str, where: str, *, most: int = MOST_BYTES, finite: bool = True) -> Any:
    """A JSON text as plain data. NaN, infinity and keys that stand twice are none.

    Args:
        raw: UTF-8, with or without a byte order mark.
        where: How a sentence names the place.
        most: Bytes that it may have.
        finite: Refuse NaN and infinity, which Python's own writer makes, and configurations of models hold.

    Raises:
        UserError: It is no JSON, too long, or nested deeper than `DEEPEST`.
    """
    text = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    text = text.removeprefix(b"\xef\xbb\xbf")
    if len(text) > most:
        raise UserError(f"{where}: {len(text):,} bytes of JSON; expected at most {most:,}")
    if _depth(text) > DEEPEST:
        raise UserError(f"{where}: nested deeper than {DEEPEST} brackets; expected plain data")
    try:
        numbers: dict[str, Any] = (
            {"parse_constant": _constant, "parse_float": _finite} if finite else {}
        )
        return json.loads(text.decode(), object_pairs_hook=_unique, **numbers)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = inert(str(error), lines=False)[:SHOWN]
        raise UserError(f"{where}: not readable as JSON ({reason})") from None


def _depth(text: bytes) -> int:
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return 0
    deepest = depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        first = found[0][:1]
        depth += first in b"[{"
        depth -= first in b"]}"
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:40]!r} stands twice")
    return out


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is beyond what a number can be")
    return value


def json_lines(path: Path, mend: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of an append-only log, each with its "file:line"; none of a file that is not there.

    A last line that a crash cut short, or that is being written, is left out; `evaluators.files.cut_torn_line` removes
    it.

    Args:
        path: The log.
        mend: What a person can do about a damaged line, without an editor.

    Raises:
        UserError: A line is no JSON object, or cannot be read.
    """
    for where, raw in log_lines(path):
        yield where, parse_object(raw, where, mend)


def parse_object(raw: bytes, where: str, mend: str) -> dict[str, Any]:
    """The object that a line of a log holds. Raises UserError where it holds none, with the way to mend it."""
    try:
        value = parse_json(raw, where, most=MOST_LINE)
    except UserError as error:
        reason = str(error).removeprefix(f"{where}: ")
        raise UserError(f"{where}: damaged line ({reason}); {mend}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: damaged line ({brief(value)} is no object); {mend}")
    return value


def log_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The whole lines of an append-only log, each with its "file:line"."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_LINE + 2):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) > MOST_LINE:
                        raise UserError(f"{path}:{number}: longer than {MOST_LINE:,} bytes")
                    return
                yield f"{path}:{number}", line[:-1]
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror})") from None


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping with two equal keys, of which YAML would silently keep the last, and nodes that lie too deep.

    At once: for each bracket that is open, PyYAML looks at every token.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.depth > DEEPEST:
            raise UserError(_too_deep())
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise UserError(f"line {line}: key {brief(key)} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """A YAML text as plain data.

    Raises:
        UserError: It is no YAML, too long or too deep, has a mapping with a key twice, or aliases that multiply.
    """
    if len(text) > MOST_BYTES:
        raise UserError(
            f"{where}: {len(text):,} characters of YAML; expected at most {MOST_BYTES:,}"
        )
    loader = None
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_growth(node)
        return loader.construct_document(node)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = inert((str(error) or type(error).__name__).splitlines()[0], lines=False)[:SHOWN]
        raise UserError(f"{where}: not readable as YAML ({reason})") from None
    finally:
        if loader is not None:
            loader.dispose()


def _too_deep() -> str:
    return f"nested deeper than {DEEPEST} levels; expected plain data"


def _check_growth(root: yaml.Node) -> None:
    """Raises UserError for a document that is too deep, or too large once its aliases are followed."""
    known: dict[
        int, tuple[int, int]
    ] = {}  # (nodes, levels) by identity: an alias is the same node again

    def measure(node: yaml.Node, depth: int) -> tuple[int, int]:
        if id(node) not in known:
            known[id(node)] = MOST_NODES, DEEPEST  # of a node that holds itself
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > LONGEST_INTEGER:
                raise UserError(
                    f"a number of {len(node.value):,} characters; expected at most {LONGEST_INTEGER}"
                )
            inner: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                inner = list(node.value)
            elif isinstance(node, yaml.MappingNode):
                inner = [one for pair in node.value for one in pair]
            found = [measure(one, depth + 1) for one in inner if depth < DEEPEST] or [(0, 0)]
            known[id(node)] = 1 + sum(n for n, _ in found), 1 + max(levels for _, levels in found)
        nodes, levels = known[id(node)]
        if levels > DEEPEST or depth >= DEEPEST:
            raise UserError(_too_deep())
        if nodes > MOST_NODES:
            raise UserError(
                f"more than {MOST_NODES:,} values, with those that aliases repeat; write fewer"
            )
        return nodes, levels

    measure(root, 0)
