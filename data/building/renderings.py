"""What the further renderings of a built set are, in words: how many clips of how many sources, and what they lack."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.manifest import SPLITS

Row = Mapping[str, Any]


def by_rendering(
    rows: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(Rows of the manifest, rows of further renderings)."""
    return (
        [row for row in rows if "rendering" not in row],
        [row for row in rows if "rendering" in row],
    )


def told(first: Sequence[Row], more: Sequence[Row]) -> list[str]:
    """A sentence for each rendering of each split.

    Args:
        first: Rows of the manifest.
        more: Rows of the further renderings, with `rendering`, in order.
    """
    heard = {_cut(row) for row in first}
    groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
    again: dict[tuple[int, int], int] = defaultdict(int)
    for row in more:
        key = int(row["rendering"]), SPLITS.index(row["split"])
        groups[key].append(row)
        again[key] += _cut(row) in heard
        heard.add(_cut(row))
    out = []
    for (number, place), rows in sorted(groups.items()):
        split = SPLITS[place]
        own = [row for row in first if row["split"] == split]
        sources = {row["source_id"] for row in own}
        text = (
            f"rendering {number} of {split}: {len(rows):,} clips of"
            f" {len({row['source_id'] for row in rows}):,} of {len(sources):,} sources"
        )
        if again[number, place]:
            text += (
                f"; {again[number, place]:,} are of a cut that an earlier clip has, with other noise, for their sources"
                " have no further one that long"
            )
        if len(rows) < len(own):
            text += f"; {len(own) - len(rows):,} clips of the manifest have no further one, for nothing would differ"
        out.append(text)
    return out


def _cut(row: Row) -> tuple[str, str]:
    return str(row["recording"]), str(row["start_s"])
