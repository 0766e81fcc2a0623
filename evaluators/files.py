"""Files: one reader and one atomic writer for YAML, JSON, JSON lines and CSV, and where shipped files lie."""

import csv
import errno
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from evaluators.environment import without_secrets
from evaluators.errors import PauseError, UserError
from evaluators.names import name_key

ROOT = Path(__file__).resolve().parent.parent  # of a checkout, or site-packages


def shipped(path: str | Path) -> Path:
    """A file that comes with the project, such as ``data/demo``, in a checkout and in an installed wheel.

    >>> shipped("prompts/seeds/baselines.yaml").is_file()
    True
    """
    here = ROOT / path
    return here if here.exists() else ROOT / "opro" / path


def resolve(path: Path) -> Path:
    """A path as given, else the shipped file of that name."""
    return (
        path if path.exists() or path.is_absolute() or not shipped(path).exists() else shipped(path)
    )


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping with two equal keys, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(f"line {key_node.start_mark.line + 1}: key {key!r} stands twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """A YAML file as plain data.

    Raises:
        UserError: It does not exist, is no YAML, or a mapping has a key twice; names the file.
    """
    if not path.is_file():
        raise UserError(f"file {str(path)!r} does not exist")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not readable as YAML ({reason})") from None


class _Dumper(yaml.SafeDumper):
    """Multi-line texts as literal blocks, so that a person can read them."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str",
        text,
        style="|" if "\n" in text and not re.search(r"[ \t]\n|[^\x20-\x7e\n]", text) else None,
    ),
)


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `read_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def read_json(path: Path) -> Any:
    """A JSON file as plain data.

    Raises:
        UserError: It cannot be read, or is no JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None


def finite_or_none(value: float) -> float | None:
    """A number that JSON knows, else None.

    >>> finite_or_none(0.5), finite_or_none(float("nan"))
    (0.5, None)
    """
    return float(value) if math.isfinite(value) else None


def plain(data: Any) -> Any:
    """NaN and infinity as null, which JSON lacks; mappings and sequences as dictionaries and lists."""
    if isinstance(data, float):
        return finite_or_none(data)
    if isinstance(data, Mapping):
        return {k: plain(v) for k, v in data.items()}
    return [plain(v) for v in data] if isinstance(data, list | tuple) else data


def json_text(data: Any) -> str:
    """Plain data as readable JSON."""
    return json.dumps(plain(data), indent=2, ensure_ascii=False) + "\n"


# Columns that tables are joined by: written as they are, so that they are read back equal.
KEYS = (
    "clip_id",
    "source_id",
    "label",
    "predicted",
    "prompt_id",
    "run",
    "checkpoint",
    "model",
    "file",
    "predictions",
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a text begins with that a spreadsheet runs


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV; a free text, in none of `KEYS`, that a spreadsheet would run gets an apostrophe in front."""

    def cell(name: str, value: Any) -> Any:
        runs = isinstance(value, str) and value.startswith(FORMULA) and name not in KEYS
        return f"'{value}" if runs else value

    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: cell(k, v) for k, v in row.items()} for row in rows)
    return out.getvalue()


SEPARATORS = ",;\t"  # the semicolon is Excel's where the comma is the decimal sign
DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+(e[-+]?[0-9]+)?", re.IGNORECASE)


def read_table(
    path: Path, needed: Sequence[str], known: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV table, each with its "file:line"; rows without any value are left out.

    Separators are commas, semicolons (numbers then have decimal commas, which become points) or tabs. Columns that are
    needed or known are found in other case, too.

    Raises:
        UserError: The file is missing, is no UTF-8 or CSV, lacks a needed column, has one twice, or a row has too many
            or too few fields.
    """
    separator, columns, rows = _rows(path, (*needed, *known))
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(
            f"{path}:1: column {missing[0]!r} is missing; needed are {', '.join(needed)}"
        )
    for line, row in rows:
        if len(row) != len(columns):
            raise UserError(
                f"{path}:{line}: the row has {'more' if len(row) > len(columns) else 'fewer'} fields"
                f" than the header, {len(row)} for {len(columns)}; expected as many (a decimal comma?"
                " a comma without quotes? a file that was cut?)"
            )
        if separator == ";":
            row = [v.replace(",", ".") if DECIMAL_COMMA.fullmatch(v) else v for v in row]
        yield f"{path}:{line}", dict(zip(columns, row, strict=True))


def table_columns(path: Path, known: Sequence[str] = ()) -> list[str]:
    """The columns of a CSV table. Raises UserError as `read_table`."""
    return _rows(path, known)[1]


def _rows(
    path: Path, known: Sequence[str]
) -> tuple[str, list[str], Iterator[tuple[int, list[str]]]]:
    """(separator, columns, (line, fields) of each row that holds something)."""
    if not path.is_file():
        raise UserError(f"table {str(path)!r} does not exist")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: byte {error.start} is not UTF-8; save the table as CSV in UTF-8"
        ) from None
    said = re.match("sep=.[\r\n]+", text)  # a first line that Excel reads and writes
    text = text[said.end() :] if said else text
    skipped = 1 if said else 0
    separator = _separator(re.split("[\r\n]", text, maxsplit=1)[0], known)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                if any(field.strip() for field in row):
                    yield reader.line_num + skipped, row
        except csv.Error as error:
            raise UserError(
                f"{path}:{reader.line_num + skipped}: not readable as a CSV row ({error})"
            ) from None

    found = rows()
    keys = {name_key(name): name for name in known}
    columns = [keys.get(name_key(name), name.strip()) for name in next(found, (0, []))[1]]
    twice = [name for i, name in enumerate(columns) if name in columns[:i]]
    if twice:
        raise UserError(f"{path}:1: column {twice[0]!r} stands there twice; expected it once")
    return separator, columns, found


def _separator(header: str, known: Sequence[str]) -> str:
    """What separates the columns: that with which most of the known ones are found, of several the first."""

    def count(separator: str) -> tuple[int, int]:
        names = {name_key(name.strip('"')) for name in header.split(separator)}
        return len(names & {name_key(name) for name in known}), len(names)

    return max(SEPARATORS, key=count)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, without keys. It is on disk, under its name, when this returns.

    Raises:
        PauseError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            _write_through(file, without_secrets(text))
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _write_through(file: IO[str], text: str) -> None:
    """Writes to a file; the text is on disk when this returns."""
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """The names of a folder's files are on disk when this returns, or the file system cannot tell."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems sync no folders
            raise
    finally:
        os.close(number)


def _cannot_write(path: Path, error: OSError) -> PauseError:
    return PauseError(
        f"{str(path)!r} cannot be written ({error.strerror}); make room or mend the folder,"
        " then give the same command again"
    )


def write_json(path: Path, data: Any) -> None:
    """Plain data as a readable JSON file, whole or not at all."""
    write_text(path, json_text(data))


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, without keys. The line is on disk when this returns.

    Raises:
        PauseError: The disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("a", encoding="utf-8") as file:
            _write_through(file, without_secrets(line))
        if new:
            _sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None


def cut_torn_line(path: Path) -> bool:
    """Removes a last line that a crash cut short. Only for the process that holds the run's lock.

    Returns:
        Whether there was one.
    """
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        with path.open("r+b") as file:
            file.truncate(whole)
    return whole < len(raw)
