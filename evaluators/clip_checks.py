"""What is wrong with clips, by name, found by decoding them: levels, channels, lengths, the unit of durations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.audio import read_sound
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.levels import LEVEL_TROUBLES, SILENT, Levels, Trouble, measure_levels

MAX_EXAMPLES = 5  # named of each trouble
MAX_DECODED = 200  # clips that a look takes; an audit takes all
OFF = 0.05  # of a duration, that a manifest may be wrong by

IN_SECONDS = Trouble(
    True,
    "have a duration_ms that is in seconds: their slices and thresholds by duration are in the wrong unit",
    "multiply the column by 1,000",
)
WRONG_LENGTH = Trouble(
    False, "last 5 % more or less than the manifest says", "measure duration_ms again"
)


@dataclass(frozen=True)
class MeasuredClip:
    """A clip with its levels, and how long its file lasts."""

    clip: Clip
    levels: Levels
    seconds: float


def find_troubles(measured: Sequence[MeasuredClip]) -> Iterator[tuple[Trouble, list[str]]]:
    """Each trouble with the ids of the clips that have it."""
    for trouble, test in LEVEL_TROUBLES:
        silence = ("silence",) if trouble is SILENT else ()
        ids = [
            m.clip.clip_id for m in measured if test(m.levels) and m.clip.category not in silence
        ]
        if ids:
            yield trouble, ids
    ratio = {m.clip.clip_id: 1000 * m.seconds / max(m.clip.duration_ms, 1e-9) for m in measured}
    in_seconds = [name for name, value in ratio.items() if abs(value / 1000 - 1) < 2 * OFF]
    if in_seconds:
        yield IN_SECONDS, in_seconds
    off = [n for n, value in ratio.items() if abs(value - 1) > OFF and n not in set(in_seconds)]
    if off:
        yield WRONG_LENGTH, off


def sentence(trouble: Trouble, ids: Sequence[str]) -> str:
    """A trouble as text: how many clips, what, and some of them."""
    more = ", ..." if len(ids) > MAX_EXAMPLES else ""
    return f"{len(ids)} clips {trouble.what}: {', '.join(ids[:MAX_EXAMPLES])}{more}"


def look_at_clips(clips: Sequence[Clip], first: Sequence[Clip] = ()) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to do about it) of some of the clips: `first`, then others from all over the set."""
    rest = [clip for clip in clips if clip not in set(first)]
    place = np.linspace(0, len(rest) - 1, min(len(rest), max(0, MAX_DECODED - len(first))))
    some = [*first, *(rest[i] for i in place.astype(int))]
    measured, unreadable = [], []
    for clip in some:
        try:
            sound = read_sound(clip.path)
            measured.append(MeasuredClip(clip, measure_levels(sound), sound.header.seconds))
        except UserError as error:
            unreadable.append(str(error))
    of = "" if len(some) == len(clips) else f" (of {len(some)} that were decoded)"
    if unreadable:
        yield (
            f"{len(unreadable)} clips cannot be read{of}: {unreadable[0]}",
            "mend the files, or take their rows out",
        )
    for trouble, ids in find_troubles(measured):
        yield sentence(trouble, ids) + of, trouble.fix
