"""Readers of recordings: every published layout becomes a list of `Recording`.

Layouts: csv (a table of files), folder, voxconverse, esc50, musan, gtzan, fma, synthetic. Readers look at names and
tables only; no audio is decoded here.
"""

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from evaluators.errors import UserError
from evaluators.files import write_text

AUDIO = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".snd", ".w64"}
CATEGORIES = ("speech", "environment", "music", "animal", "noise", "silence")
Policy = Literal["keep-all", "drop-human", "drop-voiced"]
Layout = Literal["csv", "folder", "voxconverse", "esc50", "musan", "gtzan", "fma", "synthetic"]
UNKNOWN_LICENCE = "unknown"

# ESC-50's classes, by what they are for a speech detector. Sounds made by people are no speech, but whether a study
# counts them as negatives changes its false alarms: that is the policy.
ESC50_HUMAN = {
    "breathing",
    "brushing_teeth",
    "clapping",
    "coughing",
    "crying_baby",
    "drinking_sipping",
    "footsteps",
    "laughing",
    "sneezing",
    "snoring",
}
ESC50_ANIMAL = {
    "cat",
    "chirping_birds",
    "cow",
    "crickets",
    "crow",
    "dog",
    "frog",
    "hen",
    "insects",
    "pig",
    "rooster",
    "sheep",
}
ESC50_NOISE = {"engine", "rain", "sea_waves", "vacuum_cleaner", "washing_machine", "wind"}
# Human sounds, and animals that are voiced as people are.
ESC50_VOICED = ESC50_HUMAN | {"cat", "cow", "crow", "dog", "hen", "rooster", "sheep"}


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
    where: str = ""  # table and line that names it, for error messages


@dataclass(frozen=True)
class Collection:
    """Where recordings lie and how to read them; the fields after `path` are for the layouts that need them."""

    layout: Layout
    path: Path = Path(".")
    policy: Policy = "keep-all"  # esc50, musan
    label: str = ""  # folder
    category: str = ""  # folder
    licence: str = ""  # overrides what the layout knows
    group: Literal["file", "folder"] = "file"  # folder: what one source is
    count: int = 0  # synthetic: how many of each kind


def read_collection(collection: Collection) -> list[Recording]:
    """All recordings of a collection, sorted by name.

    Raises:
        UserError: The folder or a table is missing or malformed (file and line), a name is not UTF-8, no recording.
    """
    where = collection.path
    for name, layouts in FIELDS.items():
        if getattr(collection, name) != getattr(Collection("csv"), name) and (
            collection.layout not in layouts
        ):
            raise UserError(
                f"recordings {str(where)!r}: {name} means nothing for layout"
                f" {collection.layout!r}, only for {', '.join(layouts)}"
            )
    if collection.layout != "synthetic" and not where.is_dir() and collection.layout != "csv":
        raise UserError(
            f"recordings {str(where)!r} is no folder; layout {collection.layout!r} expects one"
        )
    found = sorted(READERS[collection.layout](collection), key=lambda r: r.name)
    for recording in found:
        try:
            f"{recording.name}{recording.path}".encode()
        except UnicodeEncodeError:
            raise UserError(
                f"recording {recording.name.encode(errors='surrogateescape')!r}: the file name is"
                " not UTF-8; rename the file"
            ) from None
    if not found:
        raise UserError(
            f"recordings {str(where)!r}: nothing found; layout {collection.layout!r} expects"
            f" {EXPECTS[collection.layout]}"
        )
    return found


def audio_files(folder: Path) -> Iterator[Path]:
    """Audio files below a folder, hidden ones left out."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in AUDIO and not path.name.startswith(".") and path.is_file():
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(f"recording {str(path)!r} is a link that leaves {str(folder)!r}")
            yield path


def file_below(root: Path, name: str, where: str) -> Path:
    """The file of that name, which must lie below `root`, links followed."""
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
    """Rows as CSV, whole or not at all, values as they are: what `read_table` reads back."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_table(path: Path, needed: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV table with their "file:line"; the columns are checked first."""
    if not path.is_file():
        raise UserError(f"table {str(path)!r} does not exist")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [c for c in needed if c not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path}:1: column {missing[0]!r} is missing; needed are {', '.join(needed)}"
                )
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}:{reader.line_num}: the row has"
                        f" {'more' if None in row else 'fewer'} fields than the header; expected"
                        f" {len(reader.fieldnames or ())}"
                    )
                yield f"{path}:{reader.line_num}", row
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8; save the table as UTF-8"
        ) from None
    except csv.Error as error:
        raise UserError(f"{path}: not readable as CSV ({error})") from None


def _csv(c: Collection) -> Iterator[Recording]:
    table = c.path / "manifest.csv" if c.path.is_dir() else c.path
    root = table.parent.resolve()
    first: dict[str, str] = {}
    for where, row in read_table(table, ("path", "label", "category")):
        source = (row.get("source_id") or row.get("group") or "").strip()
        if not source:
            raise UserError(
                f"{where}: source_id is empty; expected who or what was recorded, so that it never"
                " crosses a split"
            )
        path = file_below(root, row["path"], f"{where}: path")
        if row["path"] in first:
            raise UserError(f"{where}: path {row['path']!r} stands in {first[row['path']]} too")
        first[row["path"]] = where
        _check_kind(row["label"], row["category"], where)
        try:
            est = float(row["est_snr_db"]) if row.get("est_snr_db") else None
            if est is not None and not math.isfinite(est):
                raise ValueError
        except ValueError:
            raise UserError(
                f"{where}: est_snr_db is {row['est_snr_db']!r}; expected a number or nothing"
            ) from None
        yield Recording(
            name=row["path"],
            path=path,
            label=row["label"],
            category=row["category"],
            source_id=source,
            licence=c.licence or row.get("licence") or UNKNOWN_LICENCE,
            package=row.get("source_package", ""),
            language=row.get("language", ""),
            est_snr_db=est,
            where=where,
        )


def _check_kind(label: str, category: str, where: str) -> None:
    if label not in ("SPEECH", "NONSPEECH"):
        raise UserError(f"{where}: label {label!r} is not one of SPEECH, NONSPEECH")
    if category not in CATEGORIES or (category == "speech") != (label == "SPEECH"):
        raise UserError(
            f"{where}: category {category!r} does not go with label {label}; expected"
            f" {'speech' if label == 'SPEECH' else ', '.join(CATEGORIES[1:])}"
        )


def _folder(c: Collection) -> Iterator[Recording]:
    _check_kind(c.label, c.category, f"recordings {str(c.path)!r}")
    root = c.path.resolve().name
    for path in audio_files(c.path):
        relative = path.relative_to(c.path)
        source = relative.parts[0] if c.group == "folder" else relative.with_suffix("").as_posix()
        yield Recording(
            name=f"{root}/{relative.as_posix()}",
            path=path,
            label=c.label,
            category=c.category,
            source_id=f"{root}:{source}",
            licence=c.licence or UNKNOWN_LICENCE,
            package=root,
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker turn of an RTTM file, in seconds."""

    start: float
    end: float
    speaker: str


def read_rttm(path: Path) -> list[Turn]:
    """The SPEAKER lines of an RTTM file; turns without length are left out.

    Raises:
        UserError: A line has too few fields, or a start or duration that is no number or negative.
    """
    turns = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as text ({error})") from None
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith((";", "#")) or fields[0] != "SPEAKER":
            continue
        if len(fields) < 8:
            raise UserError(
                f"{path}:{number}: {len(fields)} fields; an RTTM SPEAKER line has at least 8"
            )
        try:
            start, length = float(fields[3]), float(fields[4])
        except ValueError:
            start = length = float("nan")
        if not (0 <= start < float("inf") and 0 <= length < float("inf")):
            raise UserError(
                f"{path}:{number}: turn starts at {fields[3]} and lasts {fields[4]}; expected"
                " seconds of zero or more"
            )
        if length:
            turns.append(Turn(start, start + length, fields[7]))
    return turns


def one_speaker(turns: Iterable[Turn]) -> tuple[tuple[float, float], ...]:
    """The intervals where exactly one speaker talks; turns of the same speaker that touch are joined."""
    edges: list[tuple[float, int, str]] = []
    for turn in turns:
        edges += [(turn.start, 1, turn.speaker), (turn.end, -1, turn.speaker)]
    active: dict[str, int] = defaultdict(int)
    out: list[tuple[float, float]] = []
    last, speaker_of_last = 0.0, ""
    for time, step, speaker in sorted(edges, key=lambda e: e[:2]):
        talking = [s for s, n in active.items() if n > 0]
        if len(talking) == 1 and time > last:
            if out and out[-1][1] == last and speaker_of_last == talking[0]:
                out[-1] = (out[-1][0], time)
            else:
                out.append((last, time))
            speaker_of_last = talking[0]
        active[speaker] += step
        last = time
    return tuple(out)


def _voxconverse(c: Collection) -> Iterator[Recording]:
    waves = {p.stem: p for p in audio_files(c.path)}
    for rttm in c.path.rglob("*.rttm"):
        if rttm.stem not in waves:
            continue  # people fetch a part of the audio
        parts = one_speaker(read_rttm(rttm))
        if parts:
            yield Recording(
                name=f"voxconverse/{rttm.stem}",
                path=waves[rttm.stem],
                label="SPEECH",
                category="speech",
                source_id=f"voxconverse:{rttm.stem}",
                licence=c.licence or "CC-BY-4.0",
                package="voxconverse",
                parts=parts,
                where=str(rttm),
            )


def _esc50(c: Collection) -> Iterator[Recording]:
    dropped = {"keep-all": set(), "drop-human": ESC50_HUMAN, "drop-voiced": ESC50_VOICED}[c.policy]
    for where, row in read_table(c.path / "meta" / "esc50.csv", ("filename", "category")):
        kind = row["category"]
        if kind in dropped:
            continue
        fields = row["filename"].split("-")
        if len(fields) != 4:
            raise UserError(
                f"{where}: filename {row['filename']!r} is not fold-freesound-take-class.wav"
            )
        path = file_below(c.path / "audio", row["filename"], f"{where}: filename")
        yield Recording(
            name=f"esc50/{row['filename']}",
            path=path,
            label="NONSPEECH",
            category=(
                "animal"
                if kind in ESC50_ANIMAL
                else "noise"
                if kind in ESC50_NOISE
                else "environment"
            ),
            source_id=f"freesound:{fields[1]}",  # files of one upload are one source
            licence=c.licence or "CC-BY-NC-3.0",
            package=f"esc50:{kind}",
            policy=c.policy,
            where=where,
        )


def _musan(c: Collection) -> Iterator[Recording]:
    kinds = {"music": "music", "noise": "environment", "speech": "speech"}
    for folder, category in kinds.items():
        notes: dict[str, list[str]] = {}
        for table in (c.path / folder).rglob("ANNOTATIONS"):
            for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
                fields = line.split()
                if fields:
                    notes[fields[0]] = fields
        for path in audio_files(c.path / folder):
            note = notes.get(path.stem, [])
            source = path.stem
            if category == "music":
                if c.policy != "keep-all" and len(note) > 2 and note[2].upper() == "Y":
                    continue  # vocals
                if len(note) > 3:
                    source = f"artist:{note[3]}"
            yield Recording(
                name=f"musan/{path.relative_to(c.path).as_posix()}",
                path=path,
                label="SPEECH" if category == "speech" else "NONSPEECH",
                category=category,
                source_id=f"musan:{source}",
                licence=c.licence or "see musan LICENSE",
                package=f"musan:{path.parent.name}",
                policy=c.policy,
            )


def _gtzan(c: Collection) -> Iterator[Recording]:
    for path in audio_files(c.path):
        if re.fullmatch(r"[a-z]+\.\d{5}", path.stem):
            yield Recording(
                name=f"gtzan/{path.name}",
                path=path,
                label="NONSPEECH",
                category="music",
                source_id=f"gtzan:{path.stem}",
                licence=c.licence or UNKNOWN_LICENCE,
                package=f"gtzan:{path.stem.split('.')[0]}",
            )


def _fma(c: Collection) -> Iterator[Recording]:
    artist: dict[int, tuple[str, str, str]] = {}
    for table in c.path.rglob("tracks.csv"):
        import pandas as pd

        try:
            tracks = pd.read_csv(table, header=[0, 1], index_col=0, low_memory=False)
            columns = [("artist", "id"), ("track", "license"), ("track", "genre_top")]
            for number, *values in tracks[columns].itertuples():
                artist[int(number)] = tuple(map(str, values))  # type: ignore[assignment]
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{table}: not FMA's tracks.csv ({error}); expected two header rows with artist/id,"
                " track/license, track/genre_top"
            ) from None
    for path in audio_files(c.path):
        if not re.fullmatch(r"\d{6}", path.stem):
            continue
        who, licence, genre = artist.get(int(path.stem), (f"track{path.stem}", "", ""))
        if genre == "Spoken":
            continue
        yield Recording(
            name=f"fma/{path.name}",
            path=path,
            label="NONSPEECH",
            category="music",
            source_id=f"fma:{who}",
            licence=c.licence or licence or UNKNOWN_LICENCE,
            package="fma",
        )


def _synthetic(c: Collection) -> Iterator[Recording]:
    for kind in ("white", "pink", "silence"):
        for number in range(c.count):
            yield Recording(
                name=f"synthetic/{kind}{number:04d}",
                path=None,
                label="NONSPEECH",
                category="silence" if kind == "silence" else "noise",
                source_id=f"synthetic:{kind}{number:04d}",
                licence="CC0",
                package="synthetic",
                kind=kind,
            )


FIELDS = {  # fields of a collection that only some layouts read
    "policy": ("esc50", "musan"),
    "label": ("folder",),
    "category": ("folder",),
    "group": ("folder",),
    "count": ("synthetic",),
}
READERS: dict[str, Callable[[Collection], Iterator[Recording]]] = {
    "csv": _csv,
    "folder": _folder,
    "voxconverse": _voxconverse,
    "esc50": _esc50,
    "musan": _musan,
    "gtzan": _gtzan,
    "fma": _fma,
    "synthetic": _synthetic,
}
EXPECTS = {
    "csv": "manifest.csv with path, label, category, source_id",
    "folder": "audio files",
    "voxconverse": "NAME.wav and NAME.rttm, in any folders below",
    "esc50": "meta/esc50.csv and audio/",
    "musan": "music/, noise/, speech/",
    "gtzan": "GENRE/GENRE.00000.wav",
    "fma": "000/000002.mp3 and tracks.csv",
    "synthetic": "count of 1 or more",
}
assert set(READERS) == set(EXPECTS) == set(get_args(Layout))
