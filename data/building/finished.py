"""Finished clips as other people keep them: folders, tables, JSON lines, Kaldi directories, `datasets`.

Readers look at names and tables only; they decode no audio.
"""

import csv
import functools
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluators.errors import UserError
from opro.results.spellings import MOST_LABELS, column_for, folded

from .json_lines import read_records
from .recordings import AUDIO

HUB = "hub:"  # before the name of a data set on the hub
PATHS = (  # what columns with the audio file are called, folded
    "audiofilepath audiopath audiofile audio path filepath file filename wav wavpath wavfile clip"
    " sound key"
).split()
LENGTHS, STARTS = "duration durationms durationsec length dur".split(), ["offset", "start"]
SPLIT_NAMES = {"train", "training", "dev", "val", "valid", "validation", "test", "eval"}
FIELDS = ("path", "label", "source_id", "category", "licence", "language", "duration", "offset")
LISTS = (
    "manifest.csv",
    "metadata.csv",
    "metadata.jsonl",
)  # that a folder is read by, where it has one
TABLES, RECORDS = {".csv", ".tsv", ".txt"}, {".jsonl", ".json", ".ndjson", ".manifest"}


@dataclass(frozen=True, slots=True)
class FinishedClip:
    """One clip as its owner keeps it.

    `name` is what it is called below its folder, `stem` what of it may tell its source: the name without the folders
    that name its label; "" is the whole name. `label` is as it is spelled there. `content` gives the bytes of a clip
    that lies in no file of its own. `start` and `length` say which part of the file it is, in seconds or in
    milliseconds, as they were written; `start` None means all of it.
    """

    name: str
    path: Path
    label: str = ""
    category: str = ""
    source: str = ""
    licence: str = ""
    language: str = ""
    start: float | None = None
    length: float | None = None
    content: Callable[[], bytes] | None = None
    where: str = ""  # table and line that lists it, for error messages
    stem: str = ""
    question: str = ""  # of a clip with options of its own, a JSON list
    options: str = ""


@dataclass
class Reading:
    """What was found in one place, what was left out and why, and what was guessed, in words."""

    clips: list[FinishedClip] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Adds a sentence, once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class Names:
    """How columns and places are called: ``--map`` and ``--root``."""

    columns: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None

    def bases(self, table: Path) -> list[Path]:
        """Folders that the paths of a table may be relative to, in the order in which they are tried."""
        return [self.root] if self.root else [table.parent, Path(".")]


def read_finished(where: str, names: Names, labelled: bool) -> Reading:
    """The clips of a folder, table, manifest, Kaldi directory or data set.

    Args:
        where: Its path, or ``hub:NAME``.
        labelled: Whether labels are looked for: in the names of sub-folders, or in a column.
    Raises:
        UserError: It does not exist, nothing is in it, or it is malformed (file and line).
    """
    path = next((p for p in (Path(where) / name for name in LISTS) if p.is_file()), Path(where))
    if where.startswith(HUB) or (path / "dataset_info.json").is_file():
        found = _dataset(where, names, labelled)
    elif (path / "dataset_dict.json").is_file():
        found = _dataset(where, names, labelled)
    elif (path / "wav.scp").is_file():
        found = _kaldi(path, names, labelled)
    elif path.is_dir():
        found = _folder(path, labelled)
    elif not path.is_file():
        raise UserError(
            f"{where!r} does not exist; expected a folder of audio files, a table (CSV), JSON lines, a"
            f" Kaldi directory, a data set saved with `datasets`, or {HUB}NAME"
        )
    elif path.suffix.lower() in RECORDS:
        found = _records(path, names, labelled)
    elif path.suffix.lower() in TABLES:
        found = _table(path, names, labelled)
    else:
        raise UserError(
            f"{where!r} is read by no reader: its ending is {path.suffix!r}; expected a folder, or a file"
            f" that ends in {', '.join(sorted(TABLES | RECORDS))}"
        )
    if not found.clips:
        reasons = Counter(reason for _, reason in found.rejected).most_common(3)
        raise UserError(
            f"{where!r} holds no clip that can be used"
            + "".join(f"; {n} times: {reason}" for reason, n in reasons)
        )
    return found


# Folders.


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder without hidden ones, links to folders followed once each, in a fixed order."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(parent)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        yield from (Path(parent) / name for name in sorted(files) if not name.startswith("."))


def _folder(folder: Path, labelled: bool) -> Reading:
    out, audio, others = Reading(), [], Counter[str]()
    for path in _files(folder):
        if path.suffix.lower() in AUDIO:
            audio.append(path)
        else:
            others[path.suffix.lower() or "no ending"] += 1
    unread = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(3))
    cure = "convert audio first, as in: ffmpeg -i NAME.m4a NAME.flac"
    if not audio:
        there = f"files are {unread}, which are not read; {cure}" if unread else "it is empty"
        raise UserError(
            f"no audio file in {str(folder)!r}: {there} (endings read: {' '.join(sorted(AUDIO))})"
        )
    if unread:
        out.note(f"{str(folder)!r}: {unread} files are not read ({cure})")
    relative = [path.relative_to(folder) for path in audio]
    depth = _label_depth(folder, relative, out) if labelled else 0
    for path, below in zip(audio, relative, strict=True):
        if not path.exists():
            out.rejected.append(
                (below.as_posix(), "a link to a file that is not there; fetch it (git annex get)")
            )
        elif labelled and len(below.parts) <= depth + 1:
            out.rejected.append((below.as_posix(), "lies in no sub-folder that names its label"))
        else:
            label = _visible(below.parts[depth]) if labelled else ""
            category = label or _visible(below.parts[0] if len(below.parts) > 1 else "")
            stem = Path(*below.parts[depth + 1 :]) if labelled else below
            found = FinishedClip(_visible(below.as_posix()), path, label, category)
            out.clips.append(replace(found, stem=_visible(stem.as_posix())))
    return out


def _label_depth(folder: Path, files: Sequence[Path], out: Reading) -> int:
    """How many folders lie above the one that names the label: 1 where the uppermost ones are train, dev and test."""
    tops = {f.parts[0] for f in files if len(f.parts) > 1}
    if not tops:
        raise UserError(
            f"{str(folder)!r} holds {len(files)} audio files and no sub-folders that name their labels; give"
            " it as --speech or as --other"
        )
    if not {t.lower() for t in tops} <= SPLIT_NAMES:
        return 0
    out.note(f"{str(folder)!r}: its own splits ({', '.join(sorted(tops))}) are not kept")
    return 1


# Tables: CSV, and JSON lines made flat.


@dataclass(frozen=True)
class _Table:
    """Columns of text, and the place of each row."""

    path: Path
    columns: dict[str, list[str]]
    where: list[str]

    def column(self, name: str, known: Sequence[str], names: Names) -> tuple[str, list[str]] | None:
        """(header, cells) of a column that was named with ``--map``, or is called so elsewhere."""
        if name in names.columns:
            asked = names.columns[name]
            if asked not in self.columns:
                raise UserError(
                    f"{self.path}: --map {name}={asked}: there is no {asked!r}; there are {self._there}"
                )
            return asked, self.columns[asked]
        if name == "label" and name in self.columns:
            return name, self.columns[name]
        found = [h for h in self.columns if folded(h) in (folded(name), *known)]
        if name in ("label", "source_id"):
            found = column_for(name, {h: _kinds(c) for h, c in self.columns.items()})
        if name == "label" and not found:
            found = [h for h in self.columns if folded(h) == "class"]
        found = [h for h in found if any(self.columns[h])]
        if len(found) > 1 and name in ("label", "source_id", "offset"):
            raise UserError(
                f"{self.path}: {name} may be {' or '.join(map(repr, found[:4]))}; say which with --map"
                f" {name}={found[0]}"
            )
        order = [folded(name), *known]
        found.sort(key=lambda h: order.index(folded(h)) if folded(h) in order else 0)
        return (found[0], self.columns[found[0]]) if found else None

    @property
    def _there(self) -> str:
        return ", ".join(list(self.columns)[:12]) or "none"

    def needed(self, name: str, known: Sequence[str], names: Names, cure: str) -> list[str]:
        """A column that must be there."""
        found = self.column(name, known, names)
        if found is None:
            raise UserError(
                f"{self.path}: no column {name!r}; there are {self._there}; name it with --map"
                f" {name}=COLUMN{cure}"
            )
        return found[1]


def _kinds(cells: Sequence[str]) -> list[str]:
    """The cells that are not empty, for guesses by what a column holds."""
    return [c for c in cells if c] or [""]


OPTIONAL: dict[str, Sequence[str]] = {  # columns -> what else they are called, folded
    "source_id": (),
    "category": (),
    "licence": ("license",),
    "language": ("lang",),
    "duration": LENGTHS,
    "offset": STARTS,
}


def _rows(table: _Table, names: Names, labelled: bool, out: Reading) -> list[dict[str, str]]:
    """What a table says of each clip, but for its file."""
    asked = {n: table.columns[n] for n in ("question", "options") if n in table.columns}
    if "options" in asked:  # answers are texts of each row's own, no labels
        found = table.needed("label", ("answer",), names, "; it holds the right option")
        cells = {"label": found, **asked}
    else:
        cells = {"label": _label_column(table, names, out)} if labelled else {}
    if any(folded(h) == "split" for h in table.columns):
        out.note(f"{table.path.name}: its own splits are not kept")
    for name, known in OPTIONAL.items():
        if found := table.column(name, known, names):
            cells[name] = found[1]
            if name in ("source_id", "offset"):
                out.note(f"{table.path.name}: {name} is {found[0]!r}")
    return [{name: column[i] for name, column in cells.items()} for i in range(len(table.where))]


def _from_table(table: _Table, names: Names, labelled: bool) -> Reading:
    """Clips of a table; files that are not there are left out, but not all of them."""
    out = Reading()
    paths = table.needed("path", PATHS, names, "")
    bases = names.bases(table.path)
    rows = _rows(table, names, labelled, out)
    for text, row, where in zip(paths, rows, table.where, strict=True):
        file = _locate(text, bases)
        if file is None:
            out.rejected.append((_visible(text), _missing(text, where)))
        else:
            out.clips.append(_clip(_visible(_name(text)), file, row, where))
    if paths and not out.clips:
        raise UserError(
            f"{table.where[0]}: no file {_visible(paths[0])[:80]!r} below {' or '.join(repr(str(b)) for b in bases)},"
            f" nor any other of the {len(paths)} listed; say with --root DIR what paths are relative to"
        )
    return out


def _clip(name: str, file: Path, row: Mapping[str, str], where: str) -> FinishedClip:
    return FinishedClip(
        name,
        file,
        row.get("label", ""),
        row.get("category", ""),
        row.get("source_id", ""),
        row.get("licence", ""),
        row.get("language", ""),
        _number(row, "offset", where),
        _number(row, "duration", where, strict=bool(row.get("offset"))),
        where=where,
        question=row.get("question", ""),
        options=row.get("options", ""),
    )


def _label_column(table: _Table, names: Names, out: Reading) -> list[str]:
    """The column with labels; a column `text` only where it holds nothing but words for kinds of sound."""
    cure = "; where all are of one kind, give the file as --speech or --other"
    found = table.column("label", (), names)
    if found is None and "text" in table.columns:
        cells = table.columns["text"]
        if any(map(is_speech, cells)) and all(is_speech(c) or is_other(c) for c in cells):
            found = "text", cells
    others = [h for h in table.columns if folded(h) not in PATHS]
    if found is None and len(table.columns) == 2 and others not in ([], ["text"]):
        header = others[0]
        if len(set(table.columns[header])) <= MOST_LABELS:
            found = header, table.columns[header]
    header, cells = found or ("", table.needed("label", (), names, cure))
    kinds = Counter(cells)
    if len(kinds) > MOST_LABELS:
        shown = ", ".join(repr(k[:30]) for k in list(kinds)[:3])
        raise UserError(
            f"{table.path}: {header!r} holds {len(kinds)} different texts, such as {shown}, which are no labels;"
            f" name another column with --map label=COLUMN{cure}"
        )
    if "" in kinds:
        raise UserError(f"{table.where[cells.index('')]}: label is empty; expected one in each row")
    out.note(f"{table.path.name}: label is {header!r}")
    return cells


SPEECH_WORDS = (
    "speech voice voiced humanspeech humanvoice spokenspeech speaking talking talk spoken human"
).split()
OTHER_WORDS = (
    "nonspeech nospeech notspeech nonvoice novoice unvoiced other others noise music silence"
    " background environment environmental ambient ambience animal animals none"
).split()


def _word(text: str) -> str:
    return folded(text).removeprefix("label")


def is_speech(label: str) -> bool:
    """Whether a label says speech and nothing else.

    >>> is_speech("Human voice"), is_speech("non-speech"), is_speech("speech over music")
    (True, False, False)
    """
    return _word(label) in SPEECH_WORDS


def is_other(label: str) -> bool:
    """Whether a label is a known word for what is no speech."""
    return _word(label) in OTHER_WORDS


def _table(path: Path, names: Names, labelled: bool) -> Reading:
    """A CSV file with or without a header line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        separator = next((s for s in "\t;," if s in first), ",")
        reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
        rows = [(f"{path}:{reader.line_num}", [c.strip() for c in row]) for row in reader if row]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except (csv.Error, OSError) as error:
        raise UserError(f"{path}: not readable as CSV ({str(error).splitlines()[0]})") from None
    if not rows:
        raise UserError(f"{path}: is empty; expected a row a clip: path,label")
    head = rows[0][1]
    if Path(head[0]).suffix.lower() in AUDIO:  # no header: the first row is a clip
        head = ["path", "label", *(f"column {i}" for i in range(3, len(head) + 1))][: len(head)]
    else:
        rows = rows[1:]
    if not rows:
        raise UserError(f"{path}: holds a header and no row; expected a row a clip")
    for i, name in enumerate(head):
        if name in head[:i]:
            raise UserError(f"{path}:1: column {name!r} stands there twice")
    for where, row in rows:
        if len(row) != len(head):
            raise UserError(
                f"{where}: {len(row)} fields, {len(head)} are expected (a comma without quotes? a file"
                " that was cut?)"
            )
    cells = [[row[i] for _, row in rows] for i in range(len(head))]
    shown = [[_visible(c) for c in column] for column in cells]
    columns = {
        _visible(h): c if folded(h) in PATHS or h == names.columns.get("path") else s
        for h, c, s in zip(head, cells, shown, strict=True)
    }
    return _from_table(_Table(path, columns, [where for where, _ in rows]), names, labelled)


def _records(path: Path, names: Names, labelled: bool) -> Reading:
    """JSON lines: of NeMo, of ms-swift and LLaMA-Factory with audio, or flat objects."""
    rows, places, wanted = list[dict[str, str]](), list[str](), set(names.columns.values())
    for where, record in read_records(path):
        row = {str(k): str(v) for k, v in record.items() if isinstance(v, str | int | float)}
        row |= {k: "" for k, v in record.items() if v is None}
        if isinstance(record.get("choices"), list):  # of MMAU and MMAR
            row["options"] = json.dumps(record["choices"], ensure_ascii=False)
            row.setdefault("label", row.get("answer", ""))
            if "audio_id" in row:
                row.setdefault("path", row["audio_id"])
        if audio := _listed_audio(record, where):
            row["audio"] = audio
        answer = _answer(record)
        if answer is not None and not row.keys() & {"label", names.columns.get("label")}:
            row["label"] = answer
        row = {
            _visible(k): v if folded(k) in PATHS or k in wanted else _visible(v)
            for k, v in row.items()
        }
        rows.append(row)
        places.append(where)
    if not rows:
        raise UserError(f"{path}: is empty; expected a JSON object a line")
    keys = list(dict.fromkeys(k for row in rows for k in row))
    columns = {k: [row.get(k, "") for row in rows] for k in keys}
    return _from_table(_Table(path, columns, places), names, labelled)


def _listed_audio(record: Mapping[str, Any], where: str) -> str:
    """The one audio file of a chat record: in ``audios`` or ``audio``, or in a part of a message."""
    files = [a for name in ("audios", "audio") for a in _items(record.get(name))]
    for message in _messages(record):
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, dict) and part.get("type") == "audio":
                files += [part[k] for k in ("audio", "audio_url", "path", "url") if k in part][:1]
    files = [f["path"] if isinstance(f, dict) and "path" in f else f for f in files]
    if len(files) > 1:
        raise UserError(
            f"{where}: {len(files)} audio files; expected one, since a clip is one file"
        )
    if files and not isinstance(files[0], str):
        raise UserError(f"{where}: audio is {str(files[0])[:40]!r}; expected the path of a file")
    return files[0] if files else ""


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _messages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns of a chat record, whatever they are called."""
    turns = record.get("messages") or record.get("conversations") or []
    return [t for t in turns if isinstance(t, dict)] if isinstance(turns, list) else []


def _answer(record: Mapping[str, Any]) -> str | None:
    """What the model is to answer, which is the label: the last turn of the assistant, or the output."""
    said = None
    for turn in _messages(record):
        if turn.get("role", turn.get("from")) in ("assistant", "gpt", "model"):
            said = turn.get("content", turn.get("value"))
    if said is None:
        said = next((record[k] for k in ("output", "response") if k in record), None)
    if isinstance(said, list):
        said = "".join(p.get("text", "") for p in said if isinstance(p, dict))
    return None if said is None else str(said).strip()


# Kaldi.


def _kaldi(folder: Path, names: Names, labelled: bool) -> Reading:
    """A Kaldi data directory: wav.scp, and where they are there segments, utt2spk and utt2label."""
    out = Reading()
    waves = dict(_pairs(folder / "wav.scp"))
    parts = dict(_pairs(folder / "segments")) if (folder / "segments").is_file() else None
    speakers = dict(_pairs(folder / "utt2spk")) if (folder / "utt2spk").is_file() else {}
    if all(utterance == speaker for utterance, speaker in speakers.items()):
        speakers = {}
    labels = _kaldi_labels(folder) if labelled else {}
    bases = [names.root] if names.root else [folder, Path("."), folder.parent, folder.parent.parent]
    for utterance in waves if parts is None else parts:
        where = f"{folder / ('segments' if parts else 'wav.scp')}: {utterance}"
        recording, row = utterance, {"source_id": speakers.get(utterance, "")}
        if parts is not None:
            recording, start, end = _segment(parts[utterance], where)
            row |= {"offset": str(start), "duration": str(end - start)}
        text = waves.get(recording, "")
        if text.endswith("|"):
            raise UserError(
                f"{where}: {text[:60]!r} is a command, which is not run; write its output to a file and name"
                " the file"
            )
        file = _locate(text, bases)
        if file is None:
            out.rejected.append((utterance, _missing(text, where)))
        elif labelled and utterance not in labels:
            out.rejected.append((utterance, "has no label in utt2label"))
        else:
            row["label"] = labels.get(utterance, "")
            out.clips.append(_clip(_visible(utterance), file, row, where))
    if speakers:
        out.note(f"{str(folder)!r}: sources are the speakers in utt2spk")
    return out


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Lines of a name and a text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as text ({error})") from None
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        name, *text = line.split(maxsplit=1)[:2] or [""]
        if name in seen:
            raise UserError(f"{path}:{number}: {_visible(name)!r} stands there twice")
        if name and not text:
            raise UserError(f"{path}:{number}: nothing follows {_visible(name)!r}")
        if name:
            seen.add(name)
            yield name, text[0].strip()


def _kaldi_labels(folder: Path) -> dict[str, str]:
    for name in ("utt2label", "text"):
        if (folder / name).is_file():
            found = {utterance: _visible(text) for utterance, text in _pairs(folder / name)}
            if len(set(found.values())) <= MOST_LABELS:
                return found
    raise UserError(
        f"{str(folder)!r} tells no labels: add a file utt2label (a line of UTTERANCE LABEL for each), or"
        " give the directories of the two kinds as --speech and --other"
    )


def _segment(text: str, where: str) -> tuple[str, float, float]:
    fields = text.split()
    row = dict(zip(("recording", "start", "end"), fields, strict=False))
    start, end = _number(row, "start", where), _number(row, "end", where)
    if len(fields) != 3 or start is None or end is None or not start < end:
        raise UserError(f"{where}: {text[:60]!r}; expected RECORDING START END in seconds")
    return row["recording"], start, end


# `datasets`.


def _dataset(where: str, names: Names, labelled: bool) -> Reading:
    """A data set saved to disk with `datasets`, or on the hub, with a column of audio."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{where!r} is a data set of the package datasets: pip install datasets, or this project's"
            " extra 'datasets'"
        ) from None
    out = Reading()
    try:
        if where.startswith(HUB):
            data = datasets.load_dataset(where.removeprefix(HUB))
        else:
            data = datasets.load_from_disk(where)
    except Exception as error:  # datasets raises whatever its file systems do
        raise UserError(
            f"{where!r} cannot be opened by datasets ({type(error).__name__}: {_visible(str(error))[:160]}); save it"
            " with save_to_disk, then give its folder"
        ) from None
    parts = dict(data) if isinstance(data, datasets.DatasetDict) else {"": data}
    if len(parts) > 1:
        out.note(f"{where!r}: its own splits ({', '.join(parts)}) are not kept")
    for split, part in parts.items():
        kinds = part.features
        audio = next((n for n, kind in kinds.items() if isinstance(kind, datasets.Audio)), None)
        if audio is None:
            raise UserError(f"{where!r} has no column of audio; there are {', '.join(kinds)}")
        place = f"{where}{f', {split}' if split else ''}"
        texts = part.remove_columns(audio)
        columns = {
            name: [_visible(_text(kinds[name], value)) for value in texts[name]]
            for name in texts.column_names
        }
        table = _Table(Path(place), columns, [f"{place}: row {i + 1}" for i in range(len(part))])
        rows = _rows(table, names, labelled, out)
        part = part.cast_column(audio, datasets.Audio(decode=False))
        for i, row in enumerate(rows):
            found = part[i][audio]
            name = Path(found["path"] or f"{i:06d}.wav").name
            content = functools.partial(_bytes_of, part, i, audio) if found["bytes"] else None
            file = Path(name) if content else Path(found["path"])
            clip = _clip(_visible(f"{split}/{name}" if split else name), file, row, table.where[i])
            out.clips.append(replace(clip, content=content))
    return out


def _bytes_of(data: Any, row: int, column: str) -> bytes:
    return bytes(data[row][column]["bytes"])


def _text(kind: Any, value: Any) -> str:
    """A cell as text, a class by its name."""
    if value is None:
        return ""
    return str(kind.int2str(value) if hasattr(kind, "int2str") else value)


# Cells.


def _locate(text: str, bases: Iterable[Path]) -> Path | None:
    """The file that a table means: as written, with `/` for backslashes, or in the other Unicode form."""
    text = text.removeprefix("file://")
    forms = [text, text.replace("\\", "/")]
    forms += [unicodedata.normalize(form, forms[1]) for form in ("NFC", "NFD")]
    for base in bases if text else ():
        for form in dict.fromkeys(forms):
            try:
                if (base / form).is_file():
                    return base / form
            except (OSError, ValueError):
                return None
    return None


def _missing(text: str, where: str) -> str:
    if re.match(r"[a-z0-9]+://", text):
        return f"an address and no file ({where}); download it first"
    return f"no such file ({where})" if text else f"no path ({where})"


def _name(path: str) -> str:
    """A path as a clip's name: its last two parts at most, since tables often hold paths of another machine."""
    return "/".join([p for p in re.split(r"[/\\]", path) if p not in ("", ".", "..")][-2:])


def _visible(text: str) -> str:
    """A text without what would steer a terminal or cannot be written."""
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def _number(row: Mapping[str, str], name: str, where: str, strict: bool = True) -> float | None:
    """A number of zero or more; None where there is none, or where it is not needed and cannot be read."""
    text = row.get(name, "")
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is None or 0 <= value < 1e9:
        return value
    if strict:
        raise UserError(f"{where}: {name} is {text[:40]!r}; expected a number of zero or more")
    return None
