"""Further renderings of a clip set: the same sources heard in more clips, in a table beside the manifest.

A rendering is a second clip, a third one and so on of what a source gives: another cut, other noise, another cell of
duration and SNR. The manifest is rendering 0 and stays as it is, so that a set to which renderings are added keeps its
digest, its halves and all that was counted of it. `renderings.csv` has the columns of the manifest and `rendering`, 1
or higher. Sources stay the unit of every interval, so that more clips of them add no source.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evaluators.clips import Clip
from evaluators.errors import LeakError, UserError
from evaluators.files import read_table
from evaluators.manifest import COLUMNS, NEEDED, manifest_path, read_manifest
from evaluators.names import looks_key, name_key
from evaluators.plain_data import brief
from evaluators.tasks import Task

FILE = "renderings.csv"
COLUMN = "rendering"
MOST = 1000  # of one clip


def renderings_path(where: Path) -> Path:
    """The table of the further renderings of a clip set, whether or not there is one.

    Args:
        where: Manifest, or its folder. That of ``other.csv`` is ``other-renderings.csv``.
    """
    path = manifest_path(where)
    return path.with_name(FILE if path.name == "manifest.csv" else f"{path.stem}-{FILE}")


def read_renderings(
    where: Path, task: Task | Sequence[str], split: str | None = None
) -> tuple[tuple[Clip, ...], ...]:
    """The clips of each further rendering, rendering 1 first, in file order; none where there is no table.

    Args:
        where: Manifest, or its folder.
        task: What is decided, or labels that are allowed.
        split: Only this split, or all.
    Raises:
        UserError: As `read_manifest`, or a row is a clip of the manifest again, has a source that the manifest lacks,
            or no number of its rendering.
        LeakError: A source has another split than in the manifest.
    """
    path = renderings_path(where)
    if not path.is_file():
        return ()
    first = read_manifest(where, task)
    known = {name_key(clip.source_id): clip for clip in reversed(first)}
    known |= {looks_key(clip.source_id): clip for clip in first}
    ids, digests = {c.clip_id for c in first}, {c.sha256: c.clip_id for c in first}
    found: dict[int, list[Clip]] = {}
    numbers = _numbers(path)
    for clip in read_manifest(path, task):
        own = known.get(looks_key(clip.source_id)) or known.get(name_key(clip.source_id))
        at = f"{path}: clip {clip.clip_id!r}"
        if own is None:
            raise UserError(
                f"{at}: source {clip.source_id!r} has no clip in the manifest; a rendering is a further clip of a"
                " source that is there, so put the row into the manifest"
            )
        if own.split != clip.split:
            raise LeakError(
                f"{at}: source {clip.source_id!r} is in split {clip.split!r} here and in {own.split!r} in the manifest;"
                " a source keeps its split in all renderings"
            )
        if clip.clip_id in ids or clip.sha256 in digests:
            other = clip.clip_id if clip.clip_id in ids else digests[clip.sha256]
            raise UserError(
                f"{at}: id or file is that of clip {other!r}, which would count twice; leave the row out"
            )
        digests[clip.sha256] = clip.clip_id
        if split in (None, clip.split):
            found.setdefault(numbers[clip.clip_id], []).append(_of_source(clip, own.source_id))
    return tuple(tuple(found[number]) for number in sorted(found))


def _of_source(clip: Clip, source: str) -> Clip:
    """The clip with its source as the manifest spells it."""
    return clip if clip.source_id == source else replace(clip, source_id=source)


def _numbers(path: Path) -> dict[str, int]:
    """Rendering of each clip id."""
    out = {}
    for at, row in read_table(path, (*NEEDED, COLUMN), tuple(COLUMNS)):
        text = row[COLUMN].strip()
        if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST:
            raise UserError(
                f"{at}: {COLUMN} is {brief(row[COLUMN])}; expected 1 to {MOST}, the manifest is rendering 0"
            )
        out[row["clip_id"]] = int(text)
    return out


def read_all(where: Path, task: Task | Sequence[str]) -> list[Clip]:
    """The clips of a manifest and of all its further renderings.

    Raises:
        UserError: As `read_renderings`.
    """
    more = [clip for one in read_renderings(where, task) for clip in one]
    return [*read_manifest(where, task), *more]
