"""The recordings that a command line names: files, folders, patterns, and lists on standard input."""

import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import soundfile

from evaluators.errors import UserError
from opro.recordings.blocks import CONTAINERS


def endings() -> frozenset[str]:
    """Endings of sound; containers are read by PyAV, and rejected one by one where it is not installed."""
    names = {str(name).lower() for name in soundfile.available_formats()} - {"raw"}
    return frozenset(
        names | CONTAINERS | {"aif", "aiff", "aifc", "oga", "mp2", "mp3", "opus", "wave"}
    )


def find_recordings(asked: Sequence[str], stdin: TextIO = sys.stdin) -> list[Path]:
    """The recordings in the order in which they were named, each once.

    A folder stands for the sound files in it and below, in the order of their names; ``-`` for the names on standard
    input, one a line.

    Raises:
        UserError: Nothing has the name, or nothing is there to hear.
    """
    found: dict[Path, None] = {}
    known = endings()
    for path in _named(asked, stdin):
        if not path.is_dir():
            found[path] = None
            continue
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            if file.suffix[1:].lower() in known:
                found[file] = None
    if not found:
        raise UserError(
            f"no recording in {', '.join(map(repr, asked)) or 'what was given'}; expected files such as .wav, .flac,"
            " .ogg, .mp3 or .m4a"
        )
    return list(found)


def _named(asked: Iterable[str], stdin: TextIO) -> Iterator[Path]:
    """Paths of files and folders that are there."""
    for name in asked:
        if name == "-":
            yield from _named((line.rstrip("\r\n") for line in stdin if line.strip()), stdin)
            continue
        path = Path(name)
        if path.exists():
            yield path
            continue
        matches = sorted(glob.glob(name, recursive=True))
        if not matches:
            raise UserError(
                f"{name!r} is not there; expected a recording, a folder of recordings, a pattern, or - for a list on"
                " standard input"
            )
        yield from map(Path, matches)
