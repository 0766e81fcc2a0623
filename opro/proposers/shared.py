"""Prompts that other runs found good, as candidates of a new one: what suits one checkpoint often suits the next."""

import csv
from collections.abc import Sequence
from pathlib import Path

from evaluators.clips import Clip
from evaluators.errors import LeakError, UserError
from opro.search.history import Candidate, History


def shared_candidates(
    folders: str | None, labels: Sequence[str], fresh: Sequence[Clip], count: int
) -> list[Candidate]:
    """The best prompts of runs by their search halves, in turns, at most `count`.

    A run's choice on fresh clips is not looked at: those clips are to judge here too.

    Args:
        folders: Run folders with commas between, or None.
        fresh: Clips that will judge; no run may have searched on their sources.
    Raises:
        UserError: A folder is no run.
        LeakError: A run has searched on a source of `fresh`.
    """
    if not folders:
        return []
    judges = {c.source_id for c in fresh}
    lists: list[list[Candidate]] = []
    for name in folders.split(","):
        folder = Path(name.strip())
        if not (folder / "trials.jsonl").is_file():
            raise UserError(
                f"--share {str(folder)!r} is no run folder: it holds no trials.jsonl; expected folders of"
                " finished or interrupted searches, with commas between"
            )
        history = History(folder / "trials.jsonl", labels)
        found = []
        for trial in history.scored[:count]:
            path = folder / "scores" / f"{trial.candidate.prompt.prompt_id}.csv"
            _check_unheard(path, judges, folder)
            origin = f"shared:{folder.name}"
            found.append(Candidate(trial.candidate.prompt, origin, trial.candidate.parents))
        lists.append(found)
    out: dict[str, Candidate] = {}
    for place in range(count):
        for found in lists:
            if place < len(found) and len(out) < count:
                out.setdefault(found[place].prompt.digest, found[place])
    return list(out.values())


def _check_unheard(path: Path, judges: set[str], folder: Path) -> None:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            sources = {row["source_id"] for row in csv.DictReader(file)}
    except (OSError, KeyError, csv.Error) as error:
        raise UserError(
            f"--share {str(folder)!r}: {path.name} of its scores cannot be read ({type(error).__name__}: {error}), so"
            " it is unknown which clips it searched on"
        ) from None
    both = sources & judges
    if both:
        raise LeakError(
            f"--share {str(folder)!r} searched on source {sorted(both)[0]!r}, which is to judge here; share runs of the"
            " same manifest and split"
        )
