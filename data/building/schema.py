"""Types of recipe fields for pydantic, and its errors as one sentence."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

T = TypeVar("T")
CLOSED = ConfigDict(extra="forbid")
EXPECTED = {  # by pydantic's type of error; what a validator of ours expects is in its message
    "tuple_type": "a list, as in [a, b]",
    "string_type": "text",
    "dataclass_type": "a mapping with layout and path",
    "too_short": "at least one entry",
    "less_than": "below {lt}",
    "greater_than_equal": "{ge} or more",
    "literal_error": "one of {expected}",
}


def _number(value: Any) -> Any:
    # pydantic alone would take "5" and true for numbers.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise ValueError("expected a number")
    return value


def _whole(value: Any) -> int:
    try:
        if _number(value) == int(value):
            return int(value)
    except ValueError:
        pass
    raise ValueError("expected a whole number")


def _path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("expected a path")
    return info.context["base"] / value if info.context else Path(value)


def _named(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise ValueError("expected names and numbers")
    return {str(name): number for name, number in value.items()}


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_whole)]
FilePath = Annotated[Path, BeforeValidator(_path)]  # relative to the recipe's folder
Named = BeforeValidator(_named)  # of a dictionary


def within(low: float, high: float, unit: str = "") -> AfterValidator:
    """A check that a number lies between two others."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"expected {low:,} to {high:,} {unit}".rstrip())
        return value

    return AfterValidator(check)


def shares_of(names: Sequence[str]) -> AfterValidator:
    """A check of relative shares: known names, nothing negative, a sum above zero."""

    def check(shares: dict[str, T]) -> dict[str, T]:
        unknown = sorted(set(shares) - set(names))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(names)}")
        if min(shares.values()) < 0 or not sum(shares.values()) > 0:
            raise ValueError("expected numbers of zero or more, one above zero")
        return shares

    return AfterValidator(check)


def _check_unique(values: tuple[T, ...]) -> tuple[T, ...]:
    texts = [v if isinstance(v, str) else f"{v:g}" for v in values]
    for text in sorted(texts):
        if texts.count(text) > 1:
            raise ValueError(f"{text} stands twice")
    return values


Unique = AfterValidator(_check_unique)  # of a tuple


def check(test: Callable[[T], bool], expected: str) -> AfterValidator:
    """A check by a function; the message says what was expected."""

    def run(value: T) -> T:
        if not test(value):
            raise ValueError(f"expected {expected}")
        return value

    return AfterValidator(run)


def sentence(error: ValidationError, kind: type) -> str:
    """The first error as one sentence; an unknown key comes before all others, with the nearest known one."""
    unknown = ("unexpected_keyword_argument", "invalid_key")
    found = min(error.errors(), key=lambda e: e["type"] not in unknown)
    *above, key = found["loc"] or ("",)
    parts = [f", entry {p + 1}" if isinstance(p, int) else f": {p}" for p in above]
    if found["type"] in (*unknown, "missing"):
        for name in above:
            if isinstance(name, str):
                kind = get_args(get_type_hints(kind)[name])[0]
        known = get_type_hints(kind)
        near = difflib.get_close_matches(str(key), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        problem = f"unknown; {hint}" if found["type"] in unknown else "missing"
        return "".join([*parts, f": key {key!r} is {problem}"]).removeprefix(": ")
    place = "".join([*parts, f", entry {key + 1}" if isinstance(key, int) else f": {key}"])
    context = found.get("ctx", {})
    if found["type"] in EXPECTED:
        choices = str(context.get("expected", "")).replace(" or ", ", ").replace("'", "")
        context = context | {"expected": choices}
        message = "expected " + EXPECTED[found["type"]].format_map(context)
    else:
        message = str(context.get("error", found["msg"]))
    if message.startswith("expected"):
        message = f" is {found['input']!r}; {message}"
    else:
        message = f": {message}"
    return (place + message).removeprefix(": ").removeprefix(": ")
