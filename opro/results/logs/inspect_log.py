"""Logs of inspect_ai: ``.eval``, a ZIP archive of JSON, and ``.json``, the same in one file.

Read are the summaries of samples, which hold scores, targets, answers and metadata; messages and events stay unread, so
that a log of gigabytes is read in a second. Format: https://inspect.aisi.org.uk/eval-logs.html
"""

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from evaluators.errors import UserError
from opro.results.logs.sample_log import (
    MOST_BYTES,
    Sample,
    SampleLog,
    digest,
    leaves,
    number,
    parse_json,
    shown,
    text_of,
    texts,
)

KIND = "inspect_ai"
ZSTANDARD = 93  # the number of this compression in a ZIP archive, which Python knows from 3.14 on
BROKEN = (
    zipfile.BadZipFile,
    zstandard.ZstdError,
    zlib.error,
    struct.error,
    RuntimeError,
    NotImplementedError,
    EOFError,
    OSError,
    ValueError,
)


def read_eval(path: Path) -> SampleLog:
    """An ``.eval`` log.

    Raises:
        UserError: It is damaged, or no such log.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            begun = "header.json" not in names and "_journal/start.json" in names
            start = "_journal/start.json" if begun else "header.json"
            if start not in names:
                raise UserError(f"{path}: a ZIP archive without header.json; expected an .eval log")
            header = _member(path, archive, start)
            samples: list[Any] = []
            for name in _summaries(names):
                held = _member(path, archive, name)
                samples += held if isinstance(held, list) else [held]
    except BROKEN as error:
        raise UserError(
            f"{path}: cannot be read as a ZIP archive ({shown(str(error), 120)}); a log that was cut or is"
            " being written?"
        ) from None
    return _log(path, header if isinstance(header, Mapping) else {}, samples)


def _summaries(names: set[str]) -> list[str]:
    """Members that hold summaries: all of them in one, or those that a log that was not finished has so far."""
    if "summaries.json" in names:
        return ["summaries.json"]
    parts = [n for n in names if re.fullmatch(r"_journal/summaries/[0-9]{1,9}\.json", n)]
    return sorted(parts, key=lambda n: int(n.split("/")[-1].split(".")[0]))


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> Any:
    info, where = archive.getinfo(name), f"{path}: {name}"
    if info.file_size > MOST_BYTES:
        raise UserError(
            f"{where}: {info.file_size / 1e6:,.0f} MB; expected at most {MOST_BYTES / 1e6:,.0f} MB"
        )
    if info.compress_type == ZSTANDARD:
        raw = _unpacked(path, info)
    else:
        with archive.open(info) as file:
            raw = file.read(MOST_BYTES + 1)
    if zlib.crc32(raw) != info.CRC:
        raise UserError(f"{where}: is damaged (its checksum is wrong)")
    return parse_json(raw, where)


def _unpacked(path: Path, info: zipfile.ZipInfo) -> bytes:
    """A member that is compressed with Zstandard, at most one byte more than it says it holds."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<26x2H", file.read(30))
        file.seek(name + extra, 1)
        reader = zstandard.ZstdDecompressor().stream_reader(
            file.read(info.compress_size), read_across_frames=True
        )
        return bytes(reader.read(info.file_size + 1))


def read_json_log(path: Path, data: Mapping[str, Any]) -> SampleLog:
    """A ``.json`` log, parsed."""
    samples = data.get("samples")
    return _log(path, data, samples if isinstance(samples, list) else [])


def _log(path: Path, header: Mapping[str, Any], raw: list[Any]) -> SampleLog:
    samples = dict[tuple[str, int], Sample]()
    for i, one in enumerate(raw):  # of a sample that was run again, the last counts, as there
        sample = _sample(one, f"{path}: sample {i + 1}")
        samples[sample.id, sample.epoch] = sample
    if not samples:
        raise UserError(f"{path}: the log holds no samples; expected the log of a finished task")
    about = header.get("eval")
    about = about if isinstance(about, Mapping) else {}
    notes = []
    status = header.get("status", "started")
    if status != "success":
        notes.append(f"its status is {shown(str(status))!r}, not 'success': samples may be missing")
    if header.get("invalidated"):
        notes.append("some of its samples are marked as invalidated; they are counted all the same")
    return SampleLog(
        path,
        KIND,
        text_of(about.get("task")),
        text_of(about.get("model")),
        tuple(samples.values()),
        tuple(notes),
        _reported(header.get("results")),
    )


def _sample(raw: Any, where: str) -> Sample:
    """A summary, or a whole sample, which holds the same and more."""
    if not isinstance(raw, Mapping):
        raise UserError(f"{where}: is {type(raw).__name__}; expected a mapping with id and scores")
    name, epoch = raw.get("id"), raw.get("epoch", 1)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise UserError(f"{where}: id is {shown(repr(name), 60)}; expected a text or a number")
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
        raise UserError(f"{where}: epoch is {shown(repr(epoch), 60)}; expected 1, 2, ...")
    scores, answers, reasons = _scores(raw.get("scores"))
    error = raw.get("error")
    error = error.get("message") if isinstance(error, Mapping) else error
    choices = raw.get("choices")
    return Sample(
        text_of(name),
        epoch,
        text_of(raw.get("target")),
        digest(_question(raw.get("input"))),
        texts(raw.get("metadata")),
        scores,
        answers,
        tuple(map(text_of, choices)) if isinstance(choices, list) else (),
        trouble=shown(str(error).strip(), 80) if error else ", ".join(reasons),
    )


def _question(given: Any) -> Any:
    """The texts of an input; messages have ids that differ from run to run."""
    if not isinstance(given, list):
        return given
    return [m.get("content") if isinstance(m, Mapping) else m for m in given]


def _scores(raw: Any) -> tuple[dict[str, float], dict[str, str], list[str]]:
    """(number, answer) by name of score, and why there is none."""
    scores, answers, reasons = dict[str, float](), dict[str, str](), list[str]()
    for scorer, score in raw.items() if isinstance(raw, Mapping) else ():
        if not isinstance(score, Mapping):
            continue
        for name, value in leaves(score.get("value"), shown(str(scorer))):
            found = number(value)
            if found is None:
                reasons.append(f"{name} is {shown(str(value), 40)!r}")
                continue
            scores[name] = found
            if isinstance(score.get("answer"), str):
                answers[name] = text_of(score["answer"])
        if score.get("reason"):
            reasons.append(shown(str(score["reason"]), 80))
    return scores, answers, reasons


def _reported(results: Any) -> dict[str, float]:
    """Name of a score -> accuracy or mean as the log has it."""
    return {name: value for name, value in _metrics(results) if not math.isnan(value)}


def _metrics(results: Any) -> Iterator[tuple[str, float]]:
    scores = results.get("scores") if isinstance(results, Mapping) else None
    for score in scores if isinstance(scores, list) else ():
        if not isinstance(score, Mapping) or not isinstance(score.get("metrics"), Mapping):
            continue
        name, scorer = text_of(score.get("name")), text_of(score.get("scorer"))
        for metric in ("mean", "accuracy"):
            held = score["metrics"].get(metric)
            value = number(held.get("value")) if isinstance(held, Mapping) else None
            if value is not None:
                yield name if name == scorer else f"{scorer}.{name}", value
