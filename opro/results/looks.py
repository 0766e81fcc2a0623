"""How often the test split of a manifest was used in this project: each use makes the next result less trustworthy."""

import json
import time
from pathlib import Path

from evaluators.errors import UserError
from evaluators.files import append_line

USES = "test_openings.jsonl"  # in the runs folder, since the data folder may be read-only


def count_uses(runs_dir: Path, digest: str) -> int:
    """How often the test split of the manifest with this digest was used."""
    path = runs_dir / USES
    if not path.exists():
        return 0
    count = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
        try:
            count += json.loads(line)["manifest"] == digest
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}:{number}: damaged line; restore the file, it counts how often the test"
                " split was looked at"
            ) from None
    return count


def record_use(runs_dir: Path, digest: str, verb: str, about: str) -> int:
    """Notes that the test split is being used, before it is scored. Returns how often that has happened now."""
    before = count_uses(runs_dir, digest)
    event = {
        "manifest": digest,
        "verb": verb,
        "about": about,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    append_line(runs_dir / USES, json.dumps(event, ensure_ascii=False) + "\n")
    return before + 1


def said_of_uses(uses: int) -> str:
    """The count as a sentence."""
    text = f"the test split of this manifest has been opened {uses} times in this project"
    return text + ("; each use makes the next result less trustworthy" if uses > 1 else "")
