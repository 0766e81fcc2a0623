"""What gains a dev set can show, before anything is spent: python -m opro.power --manifest data/demo

Simulates searches with the clips and sources of a dev split: three seeds and --candidates prompts, one of them better
by a known gain, the others as good as the seeds; then the selection of opro.optimize as it is. Printed is how often
the better prompt replaces the baseline, for this dev set and for larger ones, and how often one that is no better does.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluators.errors import UserError
from evaluators.files import resolve
from opro.cli import DONE, flag, parse, run_verb

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SEEDS = 3
SHARED = 0.8  # correlation of two prompts' errors on a clip, on the probit scale


@dataclass(frozen=True)
class Settings:
    """Settings of the simulation."""

    manifest: Path = flag(Path("data/demo"), "manifest CSV, or the folder that holds manifest.csv")
    task: str = flag("speech", "what is decided about a clip")
    searches: int = flag(200, "searches a cell", min=10)
    candidates: int = flag(50, "prompts that a search scores beside three seeds", min=1)
    accuracy: float = flag(0.8, "balanced accuracy of the seeds, 0 to 1", min=0.0)
    spread: float = flag(
        0.08, "how far accuracies differ between sources: standard deviation", min=0.0
    )
    seed: int = flag(0, "seed of the simulation")
    format: Literal["table", "markdown", "json"] = flag("table", "how to print it")


@dataclass(frozen=True)
class Half:
    """Half of a dev set: index of the label and of the source of each clip."""

    truth: "Array"
    source: "Array"

    def grown(self, sources: int, clips: int) -> "Half":
        """The same with so many times the sources, and so many times the clips of each."""
        import numpy as np

        n = int(self.source.max()) + 1
        truth = np.tile(np.repeat(self.truth, clips), sources)
        own = np.repeat(self.source, clips)
        return Half(truth, np.concatenate([own + i * n for i in range(sources)]))

    def alone(self) -> "Half":
        """The same clips, each of its own source."""
        import numpy as np

        return Half(self.truth, np.arange(len(self.truth)))


@dataclass(frozen=True)
class Cell:
    """How often the better prompt (or, at gain 0, any) replaced the baseline."""

    dev: str
    clips: int
    sources: int
    fewest: int
    gain: float
    replaced: float
    wrong: float


GAINS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, _ = parse(Settings, argv, __doc__ or "", config=False)
    if not 0.5 <= settings.accuracy <= 0.99:
        raise UserError(f"--accuracy is {settings.accuracy:g}; expected 0.5 to 0.99")
    if settings.spread > 0.3:
        raise UserError(f"--spread is {settings.spread:g}; expected 0 to 0.3 (0.08 is 8 points)")
    search, fresh = read_halves(settings)
    grown = {
        "as it is": (search, fresh),
        "2 times the sources": (search.grown(2, 1), fresh.grown(2, 1)),
        "4 times the sources": (search.grown(4, 1), fresh.grown(4, 1)),
        "2 times the clips of each": (search.grown(1, 2), fresh.grown(1, 2)),
        "each clip of its own source": (search.alone(), fresh.alone()),
    }
    cells = []
    for name, halves in grown.items():
        for gain in GAINS:
            if settings.accuracy + gain <= 0.995:
                cells.append(simulate(name, *halves, gain, settings))
                if sys.stderr.isatty():
                    print(f"\r{name}, {100 * gain:.0f} points   ", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + 60 * " " + "\r", end="", file=sys.stderr)
    if settings.format == "json":
        print(json.dumps([asdict(c) for c in cells], indent=2))
    else:
        _print(cells, settings)
    return DONE


def read_halves(settings: Settings) -> tuple[Half, Half]:
    """The halves of the dev split."""
    import numpy as np

    from evaluators import clips as clipset
    from evaluators.prompts import TASKS

    if settings.task not in TASKS:
        raise UserError(f"--task is {settings.task!r}; expected one of {', '.join(TASKS)}")
    labels = TASKS[settings.task].labels
    clips = clipset.read_manifest(resolve(settings.manifest), labels, "dev")
    found = []
    for half in clipset.halves(clips):
        _, source = np.unique([c.source_id for c in half], return_inverse=True)
        found.append(Half(np.array([labels.index(c.label) for c in half]), source))
    return found[0], found[1]


def simulate(name: str, search: Half, fresh: Half, gain: float, settings: Settings) -> Cell:
    """One cell of the table.

    A prompt is right on a clip where a normal variable, `SHARED` between prompts, lies below a bound that belongs to
    prompt and source. Bounds of a source differ by `spread`, half of the variance shared by all prompts.
    """
    import numpy as np
    from scipy import stats

    from evaluators.statistics import metrics
    from opro.search.select import judge, most_finalists

    count = SEEDS + settings.candidates
    better = SEEDS  # the index of the prompt with the gain
    accuracy = np.full(count, settings.accuracy)
    accuracy[better] += gain
    c = metrics.clusters(fresh.truth, fresh.source.astype(str).tolist(), resamples=2000)
    weight = metrics.balanced_weights(search.truth)
    most = most_finalists(c.fewest)
    replaced = wrong = 0
    for number in range(settings.searches):
        rng = np.random.default_rng([settings.seed, number])

        def right(half: Half, prompts: "Array", rng: Any = rng) -> "Array":
            sources = int(half.source.max()) + 1
            own = settings.spread / np.sqrt(2)
            effect = rng.normal(0, own, sources) + rng.normal(0, own, (count, sources))
            bound = stats.norm.ppf(np.clip(accuracy[:, None] + effect, 0.01, 0.99))[prompts]
            z = np.sqrt(SHARED) * rng.normal(size=len(half.truth)) + np.sqrt(
                1 - SHARED
            ) * rng.normal(size=(len(prompts), len(half.truth)))
            return np.asarray(z < bound[:, half.source])

        score = right(search, np.arange(count)) @ weight
        baseline = int(score[:SEEDS].argmax())
        order = [i for i in np.argsort(-score, kind="stable") if i >= SEEDS]
        finalists = [i for i in order if score[i] > score[baseline]][:most]
        _, _, best = judge(c, right(fresh, np.array([*finalists, baseline])))
        if best is not None:
            hit = gain > 0 and finalists[best] == better
            replaced += hit or gain == 0
            wrong += not hit
    n = settings.searches
    return Cell(
        name,
        len(search.truth) + len(fresh.truth),
        int(search.source.max() + fresh.source.max()) + 2,
        c.fewest,
        gain,
        replaced / n,
        wrong / n,
    )


def _print(cells: Sequence[Cell], settings: Settings) -> None:
    from opro.results.table import markdown_table

    gains = sorted({c.gain for c in cells})
    head = ["dev set", "clips", "sources", "of the rarer kind, fresh half"]
    head += [f"{100 * g:+.0f}" if g else "false" for g in gains]
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
    if settings.format == "markdown":
        print(f"{title}\n\n{markdown_table(head, rows)}")
        return
    from rich.table import Table

    from opro.results.table import wide_console

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    wide_console().print(table)


if __name__ == "__main__":
    sys.exit(run_verb(main))
