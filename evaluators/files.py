"""Files: one reader and one atomic writer for YAML, JSON, JSON lines and CSV, and where shipped files lie."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evaluators.environment import without_secrets
from evaluators.errors import PauseError, UserError
from evaluators.names import name_key
from evaluators.plain_data import parse_json, parse_yaml

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


def read_yaml(path: Path) -> Any:
    """A YAML file as plain data.

    Raises:
        UserError: It does not exist, is no YAML, or a mapping has a key twice; names the file.
    """
    if not path.is_file():
        raise UserError(f"file {str(path)!r} does not exist")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as YAML ({error})") from None
    return parse_yaml(text, str(path))


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


def read_json(path: Path, *, finite: bool = True) -> Any:
    """A JSON file as plain data; see `evaluators.plain_data.parse_json`.

    Raises:
        UserError: It cannot be read, or is no JSON; names the file.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: no file; expected one of JSON")
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: not readable as JSON ({error.strerror})") from None
    return parse_json(raw, str(path), finite=finite)


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

    columns, out = tuple(columns), io.StringIO()
    free = [(name, name not in KEYS) for name in columns]

    def cells(row: Mapping[str, Any]) -> Iterator[Any]:
        for name, is_free in free:
            value = row.get(name, "")
            runs = is_free and isinstance(value, str) and value.startswith(FORMULA)
            yield f"'{value}" if runs else value

    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(map(cells, rows))
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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a new file to be written in the block, which takes the place of `path` when the block ends.

    The file is there whole or not at all: it is on disk, under its name, when the block has ended; where the block
    fails `path` is as it was and nothing else is left. A link to a regular file is followed.

    Raises:
        UserError: `path` is a device, a pipe, a socket, a folder, or a link that leads nowhere.
        PauseError: The disk is full or the folder cannot be written.
    """
    check_regular(path)
    path = path.resolve() if path.is_symlink() else path
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        settle(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, of a folder, which must not be there when the block ends; the new one is made in the block.

    Raises:
        OSError: As of the system.
    """
    fresh = path.with_name(f"{path.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        yield fresh
        settle(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def settle(fresh: Path, path: Path) -> None:
    """Gives a file or folder that is written to its end the name `path`; its content is on disk before, the name after.

    Raises:
        OSError: As of the system.
    """
    sync(fresh)
    os.replace(fresh, path)
    _sync(path.parent)


def sync(path: Path) -> None:
    """A file, or all of a folder, is on disk when this returns."""
    for one in (*path.rglob("*"), path) if path.is_dir() else (path,):
        _sync(one)


def _sync(path: Path) -> None:
    """What a file holds, or the names of a folder's files, are on disk when this returns, or the system cannot tell."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems sync no folders
            raise
    finally:
        os.close(number)


def _temporary(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_torn(folder: Path, names: Sequence[str] = ("*",)) -> None:
    """Removes what killed processes were writing. Only for the process that holds the folder's lock.

    Args:
        names: Patterns of the files that nobody writes without the lock.
    """
    for name in names:
        for path in folder.rglob(f".{name}.*.tmp"):
            if path.stem.rpartition(".")[2].isdigit():  # as `_temporary` names it, not a person
                path.unlink(missing_ok=True)


def is_written(path: Path) -> bool:
    """Whether a file is there and holds something: a crash of the system may leave the name alone."""
    return path.is_file() and path.stat().st_size > 0


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, see `replacing`."""
    with replacing(path) as fresh:
        fresh.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, without keys; see `replacing`."""
    write_bytes(path, without_secrets(text).encode())


def copy_file(source: Path, path: Path) -> None:
    """Copies a file, whole or not at all, see `replacing`."""
    with replacing(path) as fresh:
        shutil.copyfile(source, fresh)


KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def _kind(path: Path) -> str:
    """What a path is, with links followed, where it is neither a regular file nor free."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link that leads nowhere" if os.path.islink(path) else ""
    return "" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no regular file")


def check_regular(path: Path) -> None:
    """Raises UserError for a device, a pipe, a socket, a folder, or a link that leads nowhere."""
    kind = _kind(path)
    if kind:
        raise UserError(f"{str(path)!r} is {kind}; expected a regular file or a new name")


def check_file(path: Path, flag: str) -> None:
    """Whether a file can be written, before there is work for it. A link to a regular file is followed.

    Args:
        flag: That named it, for the sentence.
    Raises:
        UserError: It is no regular file and no new name, or it cannot be written.
        PauseError: The disk is full.
    """
    kind = _kind(path)
    if kind:
        raise UserError(f"{flag} {str(path)!r} is {kind}; expected a regular file or a new name")
    if path.exists() and not os.access(path, os.W_OK):
        raise UserError(f"{flag} {str(path)!r} is write-protected; give another {flag}")
    _check_room(Path(os.path.realpath(path)), flag)


def check_folder(path: Path, flag: str, new: bool = False) -> None:
    """Whether files can be written into a folder, before there is work for it; it need not be there.

    Args:
        flag: That named it, for the sentence.
        new: It must not be there.
    Raises:
        UserError: It is something else, or cannot be written.
        PauseError: The disk is full.
    """
    if new and os.path.lexists(path):
        raise UserError(f"{flag} {str(path)!r} exists; give a folder that does not")
    if not path.is_dir() and os.path.lexists(path):
        raise UserError(f"{flag} {str(path)!r} is {_kind(path) or 'a file'}; expected a folder")
    _check_room(path.absolute() / "x", flag)


def _check_room(path: Path, flag: str) -> None:
    """Makes and removes a file beside `path`, or in the nearest folder above it that is there."""
    folder = next(one for one in path.parents if os.path.lexists(one))
    probe = _temporary(folder / path.name)
    try:
        probe.write_bytes(b"")
    except OSError as error:
        if error.errno in FULL:
            raise _cannot_write(path, error) from None
        raise UserError(
            f"{flag}: nothing can be written in {str(folder)!r} ({error.strerror}); give another {flag}"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = (  # of libraries that write by themselves
    "No space left on device",
    "database or disk is full",
    "PytorchStreamWriter failed writing",
)


def disk_is_full(error: BaseException) -> bool:
    """Whether it was for want of room that something could not be written, in whatever words a library says so."""
    by_number = isinstance(error, OSError) and error.errno in FULL
    return by_number or any(words in str(error) for words in FULL_WORDS)


@contextlib.contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Where libraries write by themselves: raises PauseError if one of them finds the disk full."""
    try:
        yield
    except PauseError:
        raise
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise PauseError(
            f"{str(folder)!r} cannot be written (the disk is full); make room, then give the same command again"
        ) from None


def _cannot_write(path: Path, error: OSError) -> PauseError:
    return PauseError(
        f"{str(path)!r} cannot be written ({error.strerror}); make room or mend the folder,"
        " then give the same command again"
    )


def write_json(path: Path, data: Any) -> None:
    """Plain data as a readable JSON file, whole or not at all."""
    write_text(path, json_text(data))


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, without keys. It is on disk when this returns; where it fails, nothing of it is there.

    Raises:
        UserError: `path` is a device, a pipe, a socket, a folder, or a link that leads nowhere.
        PauseError: The disk is full or the folder cannot be written.
    """
    check_regular(path)
    size = -1  # before the line
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("ab") as file:
            size = file.tell()
            file.write(without_secrets(line).encode())
            file.flush()
            os.fsync(file.fileno())
        if new:
            _sync(path.parent)
    except OSError as error:
        if size >= 0:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
        raise _cannot_write(path, error) from None


def cut_torn_line(path: Path) -> bool:
    """Removes a last line that a crash cut short. Only for the process that holds the run's lock.

    Returns:
        Whether there was one.
    """
    check_regular(path)
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        with path.open("r+b") as file:
            file.truncate(whole)
    return whole < len(raw)
