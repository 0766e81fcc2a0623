"""JSON lines of other people's tools, read strictly: every refusal names file and line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluators.errors import UserError
from evaluators.plain_data import brief, parse_json

MAX_LINE = 2**20  # bytes of one record
MAX_ARRAY = 2**28  # bytes of a file that is one JSON array


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, or of one JSON array, each with its place in the file.

    Raises:
        UserError: A line is no JSON object, is longer than `MAX_LINE`, has a key twice or a number that JSON does not
            know; names file and line.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
            file.seek(0)
            if start.startswith(b"["):
                yield from _array(path, file.read(MAX_ARRAY + 1))
                return
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > MAX_LINE:
                    raise UserError(
                        f"{where}: longer than {MAX_LINE:,} bytes; expected one object a line, audio as the"
                        " path of a file"
                    )
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield where, _object(parse_json(line, where), where)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror})") from None


def _array(path: Path, raw: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    if len(raw) > MAX_ARRAY:
        raise UserError(
            f"{path}: a JSON array of more than {MAX_ARRAY:,} bytes; write one object a line (JSONL)"
        )
    for i, record in enumerate(parse_json(raw, str(path)), 1):
        where = f"{path}: entry {i}"
        yield where, _object(record, where)


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UserError(f"{where}: {brief(record)} is no object; expected {{...}}")
    return record
