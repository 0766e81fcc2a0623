"""ATTRIBUTION.md of a clip set: its recordings and their licences, with the packages' notices."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.files import copy_file, write_text

INTRO = (
    "# Where the clips come from",
    "",
    "Cut from the recordings below, mixed with noise, normalised and coded anew: every clip is a changed excerpt.",
    "`manifest.csv` names recording, source, licence and start of each one. Clips of GPL recordings are data",
    "under that licence, apart from the licence of the code. Full notices, where the recordings came with them,",
    "are in `licences/`.",
    "",
    "| package | clips by licence |",
    "| --- | --- |",
)


def write_attribution(
    rows: Sequence[Mapping[str, Any]], collections: Sequence[Path], out: Path
) -> None:
    """Writes ATTRIBUTION.md, and copies the notices in `licences/` beside the recordings.

    Args:
        rows: Rows of the manifest, with source_package and licence.
        collections: Folders, or tables, of recordings.
        out: Folder of the clip set.
    """
    lines = [*INTRO, *licence_rows(rows)]
    for name in {row["source_package"] for row in rows}:
        for folder in collections:
            root = folder if folder.is_dir() else folder.parent
            notice = root / "licences" / f"{Path(name).name}.copyright"
            if notice.is_file():
                copy_file(notice, out / "licences" / notice.name)
    write_text(out / "ATTRIBUTION.md", "\n".join(lines) + "\n")


def licence_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line of a Markdown table for each package: how many rows it gave under which licence."""
    packages: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        packages[row["source_package"]][row["licence"]] += 1
    out = []
    for name, count in sorted(packages.items()):
        shares = ", ".join(f"{licence}: {n}" for licence, n in sorted(count.items()))
        cells = (" ".join(text.split()).replace("|", "\\|") for text in (name, shares))
        out.append(f"| {' | '.join(cells)} |")
    return out
