"""One recording, and the tables and folders that list recordings."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.errors import UserError
from evaluators.files import write_text

AUDIO = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".snd", ".w64"}
LABELS = ("SPEECH", "NONSPEECH")
CATEGORIES = ("speech", "environment", "music", "animal", "noise", "silence")
UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True, slots=True)
class Recording:
    """One file, or a synthetic sound.

    `name` is unique in a build and stands in the manifest. `source_id` is the identity that must not cross a split:
    speaker, session or upload. `parts` are the times in seconds that may be cut; empty means all of it.
    """

    name: str
    path: Path | None  # None: synthetic, `kind` says which sound
    label: str
    category: str
    source_id: str
    licence: str = UNKNOWN_LICENCE
    package: str = ""
    language: str = ""
    parts: tuple[tuple[float, float], ...] = ()
    est_snr_db: float | None = None
    policy: str = ""
    kind: str = ""
    where: str = ""  # table and line that lists it, for error messages


def check_kind(label: str, category: str, where: str) -> None:
    """Raises a UserError unless the label is known and the category belongs to it."""
    if label not in LABELS:
        raise UserError(f"{where}: label {label!r} is not one of {', '.join(LABELS)}")
    if category not in CATEGORIES or (category == "speech") != (label == "SPEECH"):
        raise UserError(
            f"{where}: category {category!r} does not go with label {label}; expected"
            f" {'speech' if label == 'SPEECH' else ', '.join(CATEGORIES[1:])}"
        )


def check_name(recording: Recording) -> None:
    """Raises a UserError when the file name is not UTF-8."""
    try:
        f"{recording.name}{recording.path}".encode()
    except UnicodeEncodeError:
        raise UserError(
            f"recording {recording.name.encode(errors='surrogateescape')!r}: the file name is"
            " not UTF-8; rename the file"
        ) from None


def audio_files(folder: Path) -> Iterator[Path]:
    """Audio files below a folder, without hidden ones.

    Raises:
        UserError: A file is a link that leaves the folder.
    """
    for path in folder.rglob("*"):
        if path.suffix.lower() in AUDIO and not path.name.startswith(".") and path.is_file():
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(f"recording {str(path)!r} is a link that leaves {str(folder)!r}")
            yield path


def file_below(root: Path, name: str, where: str) -> Path:
    """The file `name` below `root`, links resolved.

    Raises:
        UserError: It does not exist or lies elsewhere; the message starts with `where`.
    """
    try:
        path = (root / name).resolve()
        inside, there = path.is_relative_to(root.resolve()), path.is_file()
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"{where} {name[:80]!r} is no path ({error})") from None
    if not inside:
        raise UserError(f"{where} {name!r} leaves the folder {str(root)!r}")
    if not there:
        raise UserError(f"{where} {name!r} is no file below {str(root)!r}")
    return path


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Writes rows as CSV, whole or not at all, values unchanged; `evaluators.files.read_table` reads them."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
