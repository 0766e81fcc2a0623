"""Types of recipe fields for pydantic, and its errors as one sentence."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

T = TypeVar("T")
CLOSED = ConfigDict(extra="forbid")
EXPECTED = {  # by pydantic's type of error; our own validators write it into their message
    "tuple_type": "a list, as in [a, b]",
    "string_type": "text",
    "dataclass_type": "a mapping with layout and path",
    "too_short": "at least one entry",
    "less_than": "below {lt}",
    "greater_than_equal": "{ge} or more",
    "literal_error": "one of {expected}",
}


def check(test: Callable[[T], bool], expected: str) -> AfterValidator:
    """A check by a function; `expected` completes its message."""

    def run(value: T) -> T:
        if not test(value):
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(run)


def within(low: float, high: float, unit: str = "") -> AfterValidator:
    """A check that a number lies between two others."""
    return check(lambda value: low <= value <= high, f"{low:,} to {high:,} {unit}".rstrip())


def shares_of(names: Sequence[str]) -> AfterValidator:
    """A check of relative shares: known names, nothing negative, a sum above zero."""

    def run(shares: dict[str, T]) -> dict[str, T]:
        for name in sorted(set(shares) - set(names)):
            raise ValueError(f"{name!r} is not one of {', '.join(names)}")
        if min(shares.values()) < 0 or not sum(shares.values()) > 0:
            raise ValueError("expected numbers of zero or more, one above zero")
        return shares

    return AfterValidator(run)


def _number(value: Any) -> Any:
    # pydantic alone would take "5" and true for numbers.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise ValueError("expected a number")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 or value > 1e15:
        raise ValueError("expected a whole number")
    return int(value)


def _path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("expected a path")
    return info.context["base"] / value if info.context else Path(value)


def _named(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise ValueError("expected names and numbers")
    return {str(name): number for name, number in value.items()}


def _unique(values: tuple[T, ...]) -> tuple[T, ...]:
    texts = [v if isinstance(v, str) else f"{v:g}" for v in values]
    for text in sorted(t for t in texts if texts.count(t) > 1):
        raise ValueError(f"{text} stands twice")
    return values


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]
FilePath = Annotated[Path, BeforeValidator(_path)]  # relative to the recipe's folder
Named = BeforeValidator(_named)  # of a dictionary
Unique = AfterValidator(_unique)  # of a tuple


def explain(error: ValidationError, kind: type) -> str:
    """The first error as one sentence; an unknown key comes before all others, with the nearest known one."""
    unknown = ("unexpected_keyword_argument", "invalid_key")
    found = min(error.errors(), key=lambda e: e["type"] not in unknown)
    *above, key = found["loc"] or ("",)
    parts = [f", entry {p + 1}" if isinstance(p, int) else f": {p}" for p in (*above, key)]
    if found["type"] in (*unknown, "missing"):
        for name in above:
            if isinstance(name, str):
                kind = get_args(get_type_hints(kind)[name])[0]
        known = get_type_hints(kind)
        near = difflib.get_close_matches(str(key), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        problem = f"unknown; {hint}" if found["type"] in unknown else "missing"
        return "".join([*parts[:-1], f": key {key!r} is {problem}"]).removeprefix(": ")
    context = found.get("ctx", {})
    message = str(context.get("error", found["msg"]))
    if found["type"] in EXPECTED:
        choices = str(context.get("expected", "")).replace(" or ", ", ").replace("'", "")
        context = context | {"expected": choices}
        message = "expected " + EXPECTED[found["type"]].format_map(context)
    between = f" is {found['input']!r}; " if message.startswith("expected") else ": "
    return f"{''.join(parts)}{between}{message}".lstrip(": ")
