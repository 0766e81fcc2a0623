"""How often the test split of a manifest was used in this project: each use makes the next result less trustworthy."""

import contextlib
import hashlib
import io
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

from evaluators.classifier import Classifier
from evaluators.errors import PauseError, UserError
from evaluators.files import append_line, check_regular
from evaluators.plain_data import parse_json

log = logging.getLogger(__name__)
USES = "test_openings.jsonl"  # in the runs folder, since the data folder may be read-only

Kind = TypeVar("Kind", bound=BaseModel)


def count_uses(runs_dir: Path, digest: str) -> int:
    """How often the test split of the manifest with this digest was used."""
    return len(_uses(runs_dir, digest))


def _uses(runs_dir: Path, digest: str) -> list[set[str]]:
    """What each use showed; empty of version 0.1, which did not note it."""
    lines = journal_lines(runs_dir / USES, Use, "one use of this test split")
    # Of a damaged line the manifest is unknown: rather one too many than one too few.
    return [set(use.shows if use else ()) for use in lines if use is None or use.manifest == digest]


def journal_lines(path: Path, kind: type[Kind], counts: str) -> list[Kind | None]:
    """The lines of a journal of looks; None for one that is damaged, which is warned of.

    Args:
        counts: What a damaged line counts as, in words.
    """
    check_regular(path)
    if not path.exists():
        return []
    found, damaged = list[Kind | None](), list[str]()
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            found.append(kind.model_validate(parse_json(line, f"{path}:{number}")))
        except (UserError, ValidationError):
            damaged.append(str(number))
            found.append(None)
    if damaged:
        log.warning("%s: line %s is damaged and counts as %s", path, ", ".join(damaged), counts)
    return found


def append_event(path: Path, event: Mapping[str, Any]) -> None:
    """Adds a line to a journal of looks, with the time; after one that a crash tore, on a line of its own."""
    torn = _is_torn(path)
    timed = {**event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    line = json.dumps(timed, ensure_ascii=False) + "\n"
    append_line(path, "\n" + line if torn else line)


def _is_torn(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        return file.read() != b"\n"


class Use(BaseModel):
    """A line of the journal of uses."""

    model_config = ConfigDict(strict=True)
    manifest: str
    shows: list[str] = []


def look_id(verb: str, fingerprint: str, classifier: Classifier) -> str:
    """16 hex digits of what a verb shows of a split: one classifier on one model."""
    raw = json.dumps([verb, fingerprint, classifier.to_dict()], sort_keys=True)
    return hashlib.sha256(raw.encode()).hexdigest()[:16]


def record_use(runs_dir: Path, digest: str, verb: str, about: str, shows: Sequence[str]) -> int:
    """Notes that the test split is being used, before it is scored. Returns how often that has happened now.

    A command that shows again what was shown before, and nothing else, is no further use. Processes take turns.

    Args:
        shows: From `look_id`.
    """
    with alone(runs_dir / USES, "count of test uses"):
        uses = _uses(runs_dir, digest)
        if shows and set().union(*uses).issuperset(shows):
            return len(uses)
        event = {
            "manifest": digest,
            "verb": verb,
            "about": about,
            "shows": sorted(shows),
        }
        append_event(runs_dir / USES, event)
        return len(uses) + 1


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """No other process counts or notes in a journal of looks until the block ends.

    Args:
        what: The journal in words.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path.parent / f".{path.name}.lock")
        lock.acquire()
    except OSError as error:
        raise PauseError(
            f"the {what} in {str(path.parent)!r} cannot be written ({error.strerror}); mend the"
            " folder, then give the same command again"
        ) from None
    try:
        yield
    finally:
        lock.release()


def said_of_uses(uses: int) -> str:
    """The count as a sentence."""
    text = f"the test split of this manifest has been opened {times(uses)} in this project"
    return text + ("; each use makes the next result less trustworthy" if uses > 1 else "")


def times(count: int) -> str:
    """How often, in words.

    >>> times(1), times(2)
    ('once', '2 times')
    """
    return "once" if count == 1 else f"{count} times"
