"""What was said so far, on disk as it comes: an interrupted command goes on from there."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from evaluators.errors import PauseError, UserError
from evaluators.files import (
    append_line,
    cut_torn_line,
    is_written,
    read_json,
    remove_torn,
    write_json,
)
from evaluators.plain_data import json_lines, parse_json

WINDOWS = "windows.jsonl"  # a line a window
RECORDINGS = "recordings.jsonl"  # a line a recording that is done, after those of its windows
SETTINGS = "predict.json"
MEND = "remove the folder and give the command again"
LOCK = ".lock"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process labels into the folder until the block ends; what a killed one was writing is removed.

    Raises:
        UserError: Another process is labelling there.
        PauseError: The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"--out {str(folder)!r}: another process is labelling there; wait for it, or give another --out"
        ) from None
    except OSError as error:
        raise PauseError(
            f"{str(folder)!r} cannot be written ({error.strerror}); mend the folder, then give the same command again"
        ) from None
    try:
        if (
            folder / SETTINGS
        ).exists():  # otherwise it may be a home folder, whose files are not ours
            remove_torn(folder)
        for torn in folder.glob(f".{SETTINGS}.*.tmp"):
            torn.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


@dataclass
class Journal:
    """The files of one labelling.

    Attributes:
        done: Recordings that are finished or were rejected.
        begun: Windows of the others that are known, in order.
    """

    folder: Path
    done: set[str] = field(default_factory=set)
    begun: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> "Journal":
        """A new labelling in a folder, or the one that is there.

        Args:
            identity: All that an answer depends on.
        Raises:
            UserError: The folder holds answers that depend on something else, or is damaged.
        """
        path, wanted = folder / SETTINGS, dict(identity)
        wanted = parse_json(json.dumps(wanted), str(path))  # tuples become lists
        if not any(map(is_written, (path, folder / WINDOWS, folder / RECORDINGS))):
            write_json(path, wanted)
        before = read_json(path)
        if before != wanted:
            other = sorted(k for k in {*before, *wanted} if before.get(k) != wanted.get(k))
            raise UserError(
                f"--out {str(folder)!r} holds answers made with other settings ({', '.join(other)}); give another"
                " --out, or remove it"
            )
        out = cls(folder)
        out.done = {row["file"] for row in out.recordings()}
        for row in out.windows():
            if row["file"] not in out.done:
                out.begun.setdefault(row["file"], []).append(row)
        return out

    def add_windows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows; they are on disk when this returns."""
        append_line(self.folder / WINDOWS, "".join(map(_line, rows)))

    def add_recording(self, row: Mapping[str, Any]) -> None:
        """Adds a recording that is done."""
        append_line(self.folder / RECORDINGS, _line(row))

    def windows(self) -> Iterator[dict[str, Any]]:
        """The rows of windows, one after another."""
        return _rows(self.folder / WINDOWS)

    def recordings(self) -> Iterator[dict[str, Any]]:
        """The rows of recordings."""
        return _rows(self.folder / RECORDINGS)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        cut_torn_line(path)
    for where, row in json_lines(path, MEND):
        if not isinstance(row.get("file"), str):
            raise UserError(f"{where}: damaged line (file is no text); {MEND}")
        yield row
