"""How often the test split of a manifest was used in this project: each use makes the next result less trustworthy."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

from evaluators.classifier import Classifier
from evaluators.errors import PauseError, UserError
from evaluators.files import append_line, check_regular
from evaluators.plain_data import parse_json

log = logging.getLogger(__name__)
USES = "test_openings.jsonl"  # in the runs folder, since the data folder may be read-only


def count_uses(runs_dir: Path, digest: str) -> int:
    """How often the test split of the manifest with this digest was used."""
    return len(_uses(runs_dir, digest))


def _uses(runs_dir: Path, digest: str) -> list[set[str]]:
    """What each use showed; empty of version 0.1, which did not note it."""
    path = runs_dir / USES
    check_regular(path)
    if not path.exists():
        return []
    found, damaged = list[set[str]](), list[str]()
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            use = _Use.model_validate(parse_json(line, f"{path}:{number}"))
        except (UserError, ValidationError):
            damaged.append(str(number))
            found.append(
                set()
            )  # of which manifest is unknown: rather one too many than one too few
        else:
            if use.manifest == digest:
                found.append(set(use.shows))
    if damaged:
        log.warning(
            "%s: line %s is damaged and counts as one use of this test split",
            path,
            ", ".join(damaged),
        )
    return found


class _Use(BaseModel):
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
    with _alone(runs_dir):
        uses = _uses(runs_dir, digest)
        if shows and set().union(*uses).issuperset(shows):
            return len(uses)
        event = {
            "manifest": digest,
            "verb": verb,
            "about": about,
            "shows": sorted(shows),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        torn = (runs_dir / USES).exists() and not (runs_dir / USES).read_bytes().endswith(b"\n")
        line = json.dumps(event, ensure_ascii=False) + "\n"
        append_line(runs_dir / USES, "\n" + line if torn else line)
        return len(uses) + 1


@contextlib.contextmanager
def _alone(runs_dir: Path) -> Iterator[None]:
    """No other process counts or notes a use until the block ends."""
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(runs_dir / f".{USES}.lock")
        lock.acquire()
    except OSError as error:
        raise PauseError(
            f"the count of test uses in {str(runs_dir)!r} cannot be written ({error.strerror}); mend the"
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
