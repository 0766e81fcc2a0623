"""Collections of recordings as they were published: every layout becomes a list of `Recording`.

Readers look at names and tables only; they decode no audio.
"""

import functools
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic.dataclasses import dataclass as checked_dataclass

from evaluators.errors import UserError
from evaluators.files import read_table, shipped
from evaluators.names import Finder, first_spellings, looks_key, name_key

from .recordings import (
    CATEGORIES,
    UNKNOWN_LICENCE,
    Recording,
    audio_files,
    check_kind,
    check_name,
    missing_reason,
    unread_endings,
)
from .schema import CLOSED, FilePath, Whole

TABLE_COLUMNS = ("source_id", "group", "licence", "source_package", "language", "est_snr_db")
Policy = Literal["keep-all", "drop-human", "drop-voiced"]
Layout = Literal["csv", "folder", "voxconverse", "esc50", "musan", "gtzan", "fma", "synthetic"]

# Classes of ESC-50, by what they are to a speech detector. Sounds that people make are no speech, but whether a study
# counts them as negatives changes its false alarm rate: the policy decides.
ESC50_HUMAN = frozenset(
    "breathing brushing_teeth clapping coughing crying_baby drinking_sipping footsteps laughing"
    " sneezing snoring".split()
)
ESC50_ANIMAL = frozenset(
    "cat chirping_birds cow crickets crow dog frog hen insects pig rooster sheep".split()
)
ESC50_NOISE = frozenset("engine rain sea_waves vacuum_cleaner washing_machine wind".split())
# Human sounds, and animals that are voiced as people are.
ESC50_VOICED = ESC50_HUMAN | frozenset("cat cow crow dog hen rooster sheep".split())


@checked_dataclass(frozen=True, config=CLOSED)
class Collection:
    """Where recordings lie and how to read them; the fields after `path` are for the layouts that need them."""

    layout: Layout
    path: FilePath = Path(".")
    policy: Policy = "keep-all"  # esc50, musan
    label: str = ""  # folder
    category: str = ""  # folder
    licence: str = ""  # overrides what the layout knows
    group: Literal["file", "folder"] = "file"  # folder: what one source is
    count: Whole = 0  # synthetic: how many of each kind


def parse_collections(texts: Sequence[str]) -> tuple[Collection, ...]:
    """Collections from the command line: ``DIR`` or ``LAYOUT=DIR`` each.

    Raises:
        UserError: The layout is unknown, or needs more than a path.
    """
    out = []
    for text in texts:
        layout, sign, path = text.partition("=")
        if not sign or Path(text).exists():
            layout, path = "csv", text
        if layout not in READERS:
            raise UserError(
                f"--recordings {text!r}: layout {layout!r} is not one of"
                f" {', '.join(READERS)}; a folder that holds = is given as csv=DIR"
            )
        if layout in ("folder", "synthetic"):
            raise UserError(
                f"--recordings {text!r}: layout {layout!r} needs more than a path; write it in a"
                " recipe"
            )
        out.append(Collection(layout, Path(path)))  # type: ignore[arg-type]
    return tuple(out)


def read_collections(collections: Sequence[Collection]) -> list[Recording]:
    """The recordings of all collections; names are unique.

    Raises:
        UserError: There is no collection, a recording stands in two, a source has two labels, or `read_collection`
            refuses one.
    """
    if not collections:
        raise UserError(
            "no recordings: give --recordings DIR (a folder with manifest.csv) or LAYOUT=DIR, such"
            " as esc50=ESC-50-master; python -m data.build debian --out recordings fetches some"
        )
    out: dict[str, Recording] = {}
    labels: dict[str, str] = {}
    tables = sum(c.layout == "csv" for c in collections)
    for collection in collections:
        for recording in read_collection(collection):
            if collection.layout == "csv" and tables > 1:
                folder = collection.path.resolve()
                folder = folder if folder.is_dir() else folder.parent
                recording = replace(recording, name=f"{folder.name}/{recording.name}")
            if recording.name in out:
                raise UserError(
                    f"recording {recording.name!r} stands in two collections; give each once"
                )
            out[recording.name] = recording
    first = first_spellings((r.source_id for r in out.values()), looks_key)
    out = {name: replace(r, source_id=first[r.source_id]) for name, r in out.items()}
    for recording in out.values():
        other = labels.setdefault(name_key(recording.source_id), recording.label)
        if other != recording.label:
            raise UserError(
                f"{recording.where or recording.name}: source {recording.source_id!r} has label"
                f" {other} elsewhere and {recording.label} here; one source, one label"
            )
    return list(out.values())


def read_collection(collection: Collection) -> list[Recording]:
    """All recordings of a collection, sorted by name.

    Raises:
        UserError: The folder or a table is missing or malformed (file and line), a name is not UTF-8, a field does not
            belong to the layout, or nothing is found.
    """
    where, layout = f"recordings {str(collection.path)!r}", collection.layout
    for name, layouts in FIELDS.items():
        if getattr(collection, name) != getattr(Collection("csv"), name) and layout not in layouts:
            raise UserError(
                f"{where}: {name} means nothing for layout {layout!r}, only for {', '.join(layouts)}"
            )
    if layout not in ("synthetic", "csv") and not collection.path.is_dir():
        raise UserError(f"{where} is no folder; layout {layout!r} expects one")
    reader, expected = READERS[layout]
    found = sorted(reader(collection), key=lambda r: r.name)
    for recording in found:
        check_name(recording)
    if not found:
        raise UserError(f"{where}: nothing found; layout {layout!r} expects {expected}")
    return found


def _recording(
    c: Collection, name: str, path: Path | None, category: str, source: str, **more: Any
) -> Recording:
    label = "SPEECH" if category == "speech" else "NONSPEECH"
    licence = c.licence or more.pop("licence", "") or UNKNOWN_LICENCE
    return Recording(name, path, label, category, source, licence, **more)


def _csv(c: Collection) -> Iterator[Recording]:
    table = c.path / "manifest.csv" if c.path.is_dir() else c.path
    if not table.is_file():
        raise UserError(
            f"--recordings: table {str(table)!r} does not exist; expected a CSV file with the"
            " columns path, label (SPEECH or NONSPEECH), category (speech,"
            f" {', '.join(CATEGORIES[1:])}) and source_id (the speaker, session or upload), one row"
            " a recording; other layouts are given as LAYOUT=DIR: voxconverse, esc50, musan,"
            " gtzan, fma; see data/README.md"
        )
    finder, first = Finder(table.parent), dict[Path, str]()
    for where, row in read_table(table, ("path", "label", "category"), TABLE_COLUMNS):
        source = (row.get("source_id") or row.get("group") or "").strip()
        if not source:
            raise UserError(
                f"{where}: source_id is empty; expected who or what was recorded, so that it never"
                " crosses a split"
            )
        path = finder.find(row["path"], f"{where}: path")
        if path in first:
            raise UserError(f"{where}: path {row['path']!r} stands in {first[path]} too")
        first[path] = where
        check_kind(row["label"], row["category"], where)
        try:
            snr = float(row["est_snr_db"]) if row.get("est_snr_db") else None
        except ValueError:
            snr = math.nan
        if snr is not None and not math.isfinite(snr):
            raise UserError(
                f"{where}: est_snr_db is {row['est_snr_db']!r}; expected a number or nothing"
            )
        more = {"licence": row.get("licence"), "package": row.get("source_package", "")}
        more |= {"language": row.get("language", ""), "est_snr_db": snr, "where": where}
        more |= {"fault": missing_reason(path, f"{where}: path {row['path']!r}")}
        yield _recording(c, row["path"], path, row["category"], source, **more)
    if told := finder.told():
        print(f"note: {table}: {told}", file=sys.stderr)


def _folder(c: Collection) -> Iterator[Recording]:
    check_kind(c.label, c.category, f"recordings {str(c.path)!r}")
    root = c.path.resolve().name
    for path in audio_files(c.path):
        relative = path.relative_to(c.path)
        source = relative.parts[0] if c.group == "folder" else relative.with_suffix("").as_posix()
        name = f"{root}/{relative.as_posix()}"
        yield _recording(c, name, path, c.category, f"{root}:{source}", package=root)


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker turn of an RTTM file, in seconds."""

    start: float
    end: float
    speaker: str


def read_rttm(path: Path) -> list[Turn]:
    """The SPEAKER lines of an RTTM file, without turns of zero length.

    Raises:
        UserError: A line has too few fields, or its start or duration is no number or negative.
    """
    turns = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as text ({error})") from None
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        if len(fields) < 8:
            raise UserError(
                f"{path}:{number}: {len(fields)} fields; an RTTM SPEAKER line has at least 8"
            )
        try:
            start, length = float(fields[3]), float(fields[4])
        except ValueError:
            start = length = math.nan
        if not (0 <= start < math.inf and 0 <= length < math.inf):
            raise UserError(
                f"{path}:{number}: turn starts at {fields[3]} and lasts {fields[4]}; expected"
                " seconds of zero or more"
            )
        if length:
            turns.append(Turn(start, start + length, fields[7]))
    return turns


def one_speaker(turns: Iterable[Turn]) -> tuple[tuple[float, float], ...]:
    """The intervals where exactly one speaker talks; touching turns of one speaker are joined."""
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
            continue  # many people fetch only a part of the audio
        parts = one_speaker(read_rttm(rttm))
        if parts:
            name, source = f"voxconverse/{rttm.stem}", f"voxconverse:{rttm.stem}"
            more = {"licence": "CC-BY-4.0", "package": "voxconverse", "where": str(rttm)}
            yield _recording(c, name, waves[rttm.stem], "speech", source, parts=parts, **more)


def _esc50(c: Collection) -> Iterator[Recording]:
    dropped = {"keep-all": (), "drop-human": ESC50_HUMAN, "drop-voiced": ESC50_VOICED}[c.policy]
    finder = Finder(c.path / "audio")
    for where, row in read_table(c.path / "meta" / "esc50.csv", ("filename", "category")):
        file, kind = row["filename"], row["category"]
        if kind in dropped:
            continue
        fields = file.split("-")
        if len(fields) != 4:
            raise UserError(f"{where}: filename {file!r} is not fold-freesound-take-class.wav")
        path = finder.find(file, f"{where}: filename")
        source = f"freesound:{fields[1]}"  # the files of one upload are one source
        category = "noise" if kind in ESC50_NOISE else "environment"
        category = "animal" if kind in ESC50_ANIMAL else category
        more = {"licence": "CC-BY-NC-3.0", "package": f"esc50:{kind}", "where": where}
        more |= {"fault": missing_reason(path, f"{where}: filename {file!r}")}
        yield _recording(c, f"esc50/{file}", path, category, source, policy=c.policy, **more)


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
            source, also = path.stem, ()
            if category == "music":
                if c.policy != "keep-all" and len(note) > 2 and note[2].upper() == "Y":
                    continue  # vocals
                if len(note) > 3:
                    source = f"artist:{note[3]}"
                    also = (artist_name(note[3]),)
            name = f"musan/{path.relative_to(c.path).as_posix()}"
            more = {"licence": "see musan LICENSE", "package": f"musan:{path.parent.name}"}
            more |= {"policy": c.policy, "also": also}
            yield _recording(c, name, path, category, f"musan:{source}", **more)


def artist_name(name: str) -> str:
    """An artist as collections share it: MUSAN writes underscores where FMA writes blanks."""
    return f"artist:{name_key(name.replace('_', ' '))}"


@functools.cache
def gtzan_facts() -> tuple[dict[str, str], dict[str, str]]:
    """Published facts about GTZAN's tracks: (artist of each that is known, fault of each that has one)."""
    artists: dict[str, str] = {}
    faults: dict[str, str] = {}
    for _, row in read_table(shipped("data/recipes/gtzan.csv"), ("what", "name", "tracks")):
        genre, *ranges = row["tracks"].split() or [""]
        for text in ranges:
            first, _, last = text.partition("-")
            for number in range(int(first), int(last or first) + 1):
                kind = faults if row["what"] == "fault" else artists
                kind[f"{genre}.{number:05d}"] = row["name"]
    return artists, faults


def _gtzan(c: Collection) -> Iterator[Recording]:
    artists, faults = gtzan_facts()
    for path in audio_files(c.path):
        if re.fullmatch(r"[a-z]+\.\d{5}", path.stem):
            package = f"gtzan:{path.stem.split('.')[0]}"
            artist = artists.get(path.stem)
            source = f"gtzan:artist:{artist}" if artist else f"gtzan:{path.stem}"
            more: dict[str, Any] = {"package": package, "fault": faults.get(path.stem, "")}
            more["also"] = (artist_name(artist),) if artist else ()
            yield _recording(c, f"gtzan/{path.name}", path, "music", source, **more)


def _fma(c: Collection) -> Iterator[Recording]:
    tracks = _fma_tracks(c)
    for path in audio_files(c.path):
        if not re.fullmatch(r"\d{6}", path.stem):
            continue
        track = tracks.get(int(path.stem))
        if track is None:
            fault = "tracks.csv does not list it: its artist and whether it is speech are unknown"
            source = f"fma:track{path.stem}"
            yield _recording(c, f"fma/{path.name}", path, "music", source, fault=fault)
        elif track["genre"] != "Spoken":
            more = {"licence": track["licence"], "package": "fma"}
            more["also"] = (artist_name(track["name"]),) if track["name"] else ()
            source = f"fma:{track['artist']}"
            yield _recording(c, f"fma/{path.name}", path, "music", source, **more)


def _fma_tracks(c: Collection) -> dict[int, dict[str, Any]]:
    """What tracks.csv tells of each track: artist (an id), name (of the artist), licence, genre."""
    tables = list(c.path.rglob("tracks.csv"))
    if not tables:
        raise UserError(
            f"recordings {str(c.path)!r} hold no tracks.csv; without it neither artists, which may"
            " not cross a split, nor spoken tracks are known: put fma_metadata/tracks.csv of"
            " fma_metadata.zip below the folder"
        )
    import pandas as pd

    out: dict[int, dict[str, Any]] = {}
    names = {
        ("artist", "id"): "artist",
        ("artist", "name"): "name",
        ("track", "license"): "licence",
    }
    names |= {("track", "genre_top"): "genre"}
    for table in tables:
        try:
            tracks = pd.read_csv(table, header=[0, 1], index_col=0, low_memory=False)
            if ("artist", "name") not in tracks:
                tracks["artist", "name"] = ""
            found = tracks[list(names)].fillna("").astype(str)
            for number, *values in found.itertuples():
                out[int(number)] = dict(zip(names.values(), values, strict=True))
        except (KeyError, ValueError, TypeError, OverflowError, OSError) as error:
            raise UserError(
                f"{table}: not FMA's tracks.csv ({str(error).splitlines()[0][:200]}); expected two"
                " header rows with artist/id, track/license, track/genre_top"
            ) from None
    return out


def _synthetic(c: Collection) -> Iterator[Recording]:
    for kind in ("white", "pink", "silence"):
        category = "silence" if kind == "silence" else "noise"
        for number in range(c.count):
            name = f"synthetic/{kind}{number:04d}"
            yield Recording(
                name,
                None,
                "NONSPEECH",
                category,
                name.replace("/", ":"),
                "CC0",
                "synthetic",
                kind=kind,
            )


def collection_notes(
    collections: Sequence[Collection], recordings: Sequence[Recording]
) -> Iterator[str]:
    """What a reader cannot know or does not read, one sentence each."""
    for c in collections:
        if c.layout in ("csv", "synthetic"):
            continue
        endings = unread_endings(c.path)
        if endings:
            listed = ", ".join(f"{n} {ending}" for ending, n in endings.most_common())
            ending = endings.most_common(1)[0][0]
            yield (
                f"{listed} files in {str(c.path)!r} are not read; convert sounds to WAV or FLAC, as"
                f" by: ffmpeg -i x{ending} x.flac"
            )
        if c.layout == "voxconverse":
            known = {r.path for r in recordings}
            alone = sum(path not in known for path in audio_files(c.path))
            if alone:
                yield f"{alone} audio files in {str(c.path)!r} are left out: no RTTM, or nobody speaks alone"
    unknown = Counter(
        name
        for r in recordings
        for name in ("gtzan", "musan")
        if r.category == "music" and r.name.startswith(f"{name}/") and not r.also
    )
    for name, n in unknown.items():
        yield f"the artist of {n} music files of {name} is unknown: each counts as a source of its own"
    layouts = {c.layout for c in collections}
    if {"musan", "esc50"} <= layouts:
        yield (
            "MUSAN's free-sound files and ESC-50 both stem from Freesound, and no list tells which uploads"
            " they share: python -m data.audit compares the sounds"
        )


FIELDS = {  # fields of a collection that only some layouts read
    "policy": ("esc50", "musan"),
    "label": ("folder",),
    "category": ("folder",),
    "group": ("folder",),
    "count": ("synthetic",),
}
READERS: dict[str, tuple[Callable[[Collection], Iterator[Recording]], str]] = {  # what they expect
    "csv": (_csv, "manifest.csv with path, label, category, source_id"),
    "folder": (_folder, "audio files"),
    "voxconverse": (_voxconverse, "NAME.wav and NAME.rttm, in any folders below"),
    "esc50": (_esc50, "meta/esc50.csv and audio/"),
    "musan": (_musan, "music/, noise/, speech/"),
    "gtzan": (_gtzan, "GENRE/GENRE.00000.wav"),
    "fma": (_fma, "000/000002.mp3 and tracks.csv"),
    "synthetic": (_synthetic, "count of 1 or more"),
}
assert tuple(READERS) == get_args(Layout)
