"""One recording, and the tables and folders that list recordings."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.errors import UserError
from evaluators.files import write_text
from evaluators.names import LINK_CURE, missing

# Endings of what libsndfile reads, and of what lies beside recordings and is no sound.
AUDIO = set(
    ".wav .wave .bwf .rf64 .w64 .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .sph .voc".split()
)
NO_AUDIO = {""} | set(
    ".txt .csv .tsv .json .jsonl .xml .yaml .yml .toml .ini .cfg .log .md .rst .html .htm .pdf .bib .doc .docx .xls"
    " .xlsx .rttm .lab .textgrid .trs .ctm .stm .uem .eaf .srt .vtt .copyright .png .jpg .jpeg .gif .svg .py .sh"
    " .ipynb .npy .npz .pkl".split()
)
LABELS = ("SPEECH", "NONSPEECH")
CATEGORIES = ("speech", "environment", "music", "animal", "noise", "silence")
UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True, slots=True)
class Recording:
    """One file, or a synthetic sound.

    `name` is unique in a build and stands in the manifest. `source_id` is the identity that must not cross a split:
    speaker, session or upload; `also` are other names of it, under which another collection may list it. `parts` are
    the times in seconds that may be cut; empty means all of it. `fault` says why it is left out, where that is known
    before it is read.
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
    fault: str = ""
    also: tuple[str, ...] = ()


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


def _visible(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is not hidden, nor in a hidden folder."""
    for path in folder.rglob("*"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def audio_files(folder: Path) -> Iterator[Path]:
    """Audio files below a folder, without hidden ones; also links to what is not there.

    Raises:
        UserError: A link leaves the folder.
    """
    root = folder.resolve()
    for path in _visible(folder):
        sounds = path.suffix.lower() in AUDIO
        if not path.is_symlink():
            if sounds and path.is_file():
                yield path
        elif not path.exists():
            if sounds:
                yield path
        elif not path.resolve().is_relative_to(root) and (sounds or path.is_dir()):
            raise UserError(
                f"recording {str(path)!r} is a link to {str(path.resolve())!r}, outside the folder"
                f" {str(folder)!r}: {LINK_CURE}"
            )
        elif sounds and path.is_file():
            yield path


def unread_endings(folder: Path) -> Counter[str]:
    """How many files below a folder have each ending that is neither read as audio nor known to be none."""
    endings = (path.suffix.lower() for path in _visible(folder) if path.is_file())
    return Counter(ending for ending in endings if ending not in AUDIO | NO_AUDIO)


def missing_reason(path: Path, named: str) -> str:
    """Why a file that a table lists cannot be read, empty if it is there; `named` is where and as what."""
    return "" if path.is_file() else f"{named} is no file: {str(path)!r} {missing(path)}"


def linked_sources(recordings: Sequence[Recording]) -> list[tuple[str, ...]]:
    """Groups of source ids that are one artist or upload by another name, as in MUSAN and FMA: one split."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for recording in recordings:
        for name in recording.also:
            by_name[name].append(recording.source_id)
    groups = (tuple(sorted(set(ids))) for ids in by_name.values())
    return [group for group in groups if len(group) > 1]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Writes rows as CSV, whole or not at all, values unchanged; `evaluators.files.read_table` reads them."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
