"""What gains a dev set can show, before anything is spent: python -m opro.power --manifest data/demo

Simulates searches with the clips and sources of a dev split: three seeds and --candidates prompts, one of them better
by a known gain, the others as good as the seeds; then the decision of opro.optimize as it is, at the level that is left
for the next decision on this holdout. Printed is how often the better prompt replaces the baseline, for this dev set,
with further renderings (more clips of the same sources, as data.build makes them), and for larger sets, and how often
one that is no better does.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.files import json_text
from evaluators.splits import halves
from opro.cli import DONE, flag, hand_over, parse, run_verb
from opro.problem import open_data
from opro.results.decisions import count_decisions
from opro.results.progress import counting
from opro.results.sheet import Column, Sheet, render
from opro.search.power import Cell, Half, Simulation, simulate
from opro.search.select import Turn, ordinal
from opro.settings import DataSettings

RENDERINGS = (2, 4)  # that a row is shown of where the set has fewer
GAINS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)


@dataclass(frozen=True)
class PowerSettings(Simulation, DataSettings):
    """The simulation."""

    decision: int = flag(
        0,
        "which decision on the holdout it is, whose level is smaller the later; 0 is the next one by the ledger in"
        " --runs-dir",
        min=0,
        max=1_000,
    )
    runs_dir: Path = flag(Path("runs"), "where the ledger of decisions lies")
    format: Literal["table", "markdown", "json"] = flag("table", "how to print it")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, _ = parse(PowerSettings, argv, __doc__ or "", config=False)
    if not 0.5 <= settings.accuracy <= 0.99:
        raise UserError(f"--accuracy is {settings.accuracy:g}; expected 0.5 to 0.99")
    if settings.spread > 0.3:
        raise UserError(f"--spread is {settings.spread:g}; expected 0 to 0.3 (0.08 is 8 points)")
    dev = read_dev(settings)
    turn = Turn(settings.decision or count_decisions(settings.runs_dir, dev.holdout) + 1)
    grown = dev.grown()
    gains = [g for g in GAINS if settings.accuracy + g <= 0.995]
    cells = []
    with counting("simulating", len(grown) * len(gains)) as step:
        for name, both in grown.items():
            for gain in gains:
                cells.append(simulate(name, both, gain, settings, turn.level))
                step()
    document = [dataclasses.asdict(c) for c in cells]
    hand_over(document)
    if settings.format == "json":
        print(json_text(document), end="")
    elif settings.format == "markdown":
        sheet = power_sheet(cells, settings, turn)
        print(f"{sheet.title}\n\n{render(sheet, 'markdown')}")
    else:
        print(render(power_sheet(cells, settings, turn)))
    return DONE


@dataclass(frozen=True)
class Dev:
    """The halves of a dev split in each number of renderings that there is, the manifest alone first."""

    renderings: Sequence[tuple[ClipSet, ClipSet]]

    @property
    def holdout(self) -> ClipSet:
        """As the manifest has it."""
        return self.renderings[0][1]

    def grown(self) -> dict[str, tuple[Half, Half]]:
        """(search half, holdout) as they are, and as they could be, by name."""
        both = [(Half.of(a), Half.of(b)) for a, b in self.renderings]
        search, holdout = both[0]
        out = {"as it is": both[0]}
        out |= {f"--renderings {i + 1}": one for i, one in enumerate(both) if i}
        for count in (n for n in RENDERINGS if n > len(both)):
            out[f"{count} renderings"] = (search.grown(1, count), holdout.grown(1, count))
        return out | {
            "2 times the sources": (search.grown(2, 1), holdout.grown(2, 1)),
            "4 times the sources": (search.grown(4, 1), holdout.grown(4, 1)),
            "each clip of its own source": (search.alone(), holdout.alone()),
        }


def read_dev(settings: DataSettings) -> Dev:
    """The dev split."""
    data = open_data(settings)
    first = [ClipSet(data.task, tuple(half)) for half in halves(data.split("dev").clips)]
    counts = range(1, data.renderings("dev") + 1)
    return Dev([(data.again(first[0], str(n)), data.again(first[1], str(n))) for n in counts])


def power_sheet(cells: Sequence[Cell], settings: PowerSettings, turn: Turn | None = None) -> Sheet:
    """The cells as a table: a row a dev set, a column a gain."""
    gains = sorted({c.gain for c in cells})
    columns = [
        Column("dev set", text=True),
        Column("clips", 2),
        Column("sources", 2),
        Column("of the rarer kind, holdout", 1),
        *(Column(f"{100 * g:+.0f}" if g else "false") for g in gains),
    ]
    rows = []
    for name in dict.fromkeys(c.dev for c in cells):
        own = {c.gain: c for c in cells if c.dev == name}
        first = own[0.0]
        row = [name, str(first.clips), str(first.sources), str(first.fewest)]
        rows.append([*row, *(f"{100 * own[g].replaced:.1f} %" for g in gains)])
    title = (
        f"how often a prompt that is better by so many points replaces the baseline:"
        f" {settings.candidates} candidates, seeds at {100 * settings.accuracy:.0f} %,"
        f" {100 * settings.spread:.0f} points between sources, {settings.searches} searches"
    )
    if turn and turn.number > 1:
        title += f"; {ordinal(turn.number)} decision on this holdout, level {turn.level:.2g}"
    return Sheet(title, columns, rows)


if __name__ == "__main__":
    sys.exit(run_verb(main))
