"""What gains a dev set can show, before anything is spent: python -m opro.power --manifest data/demo

Simulates searches with the clips and sources of a dev split: three seeds and --candidates prompts, one of them better
by a known gain, the others as good as the seeds; then the decision of opro.optimize as it is. Printed is how often
the better prompt replaces the baseline, for this dev set and for larger ones, and how often one that is no better does.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from evaluators.clips import ClipSet
from evaluators.errors import UserError
from evaluators.files import json_text
from evaluators.splits import halves
from evaluators.statistics.compare import step_down
from evaluators.statistics.metrics import balanced_weights
from evaluators.statistics.resampling import Clusters, clusters
from opro.cli import DONE, flag, parse, run_verb
from opro.problem import open_data
from opro.results.progress import counting
from opro.results.sheet import Column, Sheet, render
from opro.search.budget import most_finalists
from opro.search.select import winner_of
from opro.settings import DataSettings

SEEDS = 3
SHARED = 0.8  # correlation of two prompts' errors on a clip, on the probit scale
GAINS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)
Array = NDArray[Any]


@dataclass(frozen=True)
class PowerSettings(DataSettings):
    """The simulation."""

    searches: int = flag(200, "searches a cell", min=10)
    candidates: int = flag(50, "prompts that a search scores beside three seeds", min=1)
    accuracy: float = flag(0.8, "balanced accuracy of the seeds, 0 to 1", min=0.0)
    spread: float = flag(
        0.08, "how far accuracies differ between sources: standard deviation", min=0.0
    )
    seed: int = flag(0, "seed of the simulation")
    format: Literal["table", "markdown", "json"] = flag("table", "how to print it")


@dataclass(frozen=True, eq=False)
class Half:
    """Half of a dev set: index of the label and of the source of each clip."""

    truth: Array
    source: Array

    @classmethod
    def of(cls, clips: ClipSet) -> "Half":
        """The half that some clips are."""
        targets = clips.targets
        return cls(targets.truth, np.unique(targets.sources, return_inverse=True)[1])

    def grown(self, sources: int, clips: int) -> "Half":
        """The same with so many times the sources, and so many times the clips of each."""
        n = int(self.source.max()) + 1
        truth = np.tile(np.repeat(self.truth, clips), sources)
        own = np.repeat(self.source, clips)
        return Half(truth, np.concatenate([own + i * n for i in range(sources)]))

    def alone(self) -> "Half":
        """The same clips, each of its own source."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, _ = parse(PowerSettings, argv, __doc__ or "", config=False)
    if not 0.5 <= settings.accuracy <= 0.99:
        raise UserError(f"--accuracy is {settings.accuracy:g}; expected 0.5 to 0.99")
    if settings.spread > 0.3:
        raise UserError(f"--spread is {settings.spread:g}; expected 0 to 0.3 (0.08 is 8 points)")
    search, holdout = read_halves(settings)
    grown = {
        "as it is": (search, holdout),
        "2 times the sources": (search.grown(2, 1), holdout.grown(2, 1)),
        "4 times the sources": (search.grown(4, 1), holdout.grown(4, 1)),
        "2 times the clips of each": (search.grown(1, 2), holdout.grown(1, 2)),
        "each clip of its own source": (search.alone(), holdout.alone()),
    }
    gains = [g for g in GAINS if settings.accuracy + g <= 0.995]
    cells = []
    with counting("simulating", len(grown) * len(gains)) as step:
        for name, both in grown.items():
            for gain in gains:
                cells.append(simulate(name, both, gain, settings))
                step()
    if settings.format == "json":
        print(json_text([dataclasses.asdict(c) for c in cells]), end="")
    elif settings.format == "markdown":
        sheet = power_sheet(cells, settings)
        print(f"{sheet.title}\n\n{render(sheet, 'markdown')}")
    else:
        print(render(power_sheet(cells, settings)))
    return DONE


def read_halves(settings: DataSettings) -> tuple[Half, Half]:
    """(search half, holdout) of the dev split."""
    data = open_data(settings)
    both = [ClipSet(data.task, tuple(half)) for half in halves(data.split("dev").clips)]
    return Half.of(both[0]), Half.of(both[1])


def simulate(name: str, both: tuple[Half, Half], gain: float, settings: PowerSettings) -> Cell:
    """One cell of the table: many searches on (search half, holdout).

    A prompt is right on a clip where a normal variable, `SHARED` between prompts, lies below a bound that belongs to
    prompt and source. Bounds of a source differ by `spread`, half of the variance shared by all prompts.
    """
    search, holdout = both
    c = clusters(holdout.truth, holdout.source.astype(str).tolist(), resamples=2000)
    replaced = wrong = 0
    for number in range(settings.searches):
        rng = np.random.default_rng([settings.seed, number])
        right = _answers(gain, settings, rng)
        winner = _search(right, SEEDS + settings.candidates, both, c)
        if winner is not None:
            hit = gain > 0 and winner == SEEDS  # the index of the prompt with the gain
            replaced += hit or gain == 0
            wrong += not hit
    return Cell(
        name,
        len(search.truth) + len(holdout.truth),
        int(search.source.max() + holdout.source.max()) + 2,
        c.fewest,
        gain,
        replaced / settings.searches,
        wrong / settings.searches,
    )


def _answers(
    gain: float, settings: PowerSettings, rng: np.random.Generator
) -> Callable[[Half, Array], Array]:
    """Draws ``[prompt, clip]`` whether prompts are right on a half."""
    count = SEEDS + settings.candidates
    accuracy = np.full(count, settings.accuracy)
    accuracy[SEEDS] += gain

    def right(half: Half, prompts: Array) -> Array:
        sources = int(half.source.max()) + 1
        own = settings.spread / np.sqrt(2)
        effect = rng.normal(0, own, sources) + rng.normal(0, own, (count, sources))
        bound = ndtri(np.clip(accuracy[:, None] + effect, 0.01, 0.99))[prompts]
        shared = np.sqrt(SHARED) * rng.normal(size=len(half.truth))
        z = shared + np.sqrt(1 - SHARED) * rng.normal(size=(len(prompts), len(half.truth)))
        return np.asarray(z < bound[:, half.source])

    return right


def _search(
    right: Callable[[Half, Array], Array], prompts: int, both: tuple[Half, Half], c: Clusters
) -> int | None:
    """The prompt that replaces the baseline in one search, or None. `c` resamples the holdout."""
    search, holdout = both
    score = right(search, np.arange(prompts)) @ balanced_weights(search.truth)
    baseline = int(score[:SEEDS].argmax())
    order = [i for i in np.argsort(-score, kind="stable") if i >= SEEDS]
    finalists = [i for i in order if score[i] > score[baseline]][: most_finalists(c.fewest)]
    if not finalists:
        return None
    said = c.balanced(right(holdout, np.array([*finalists, baseline])).astype(float))
    gains = step_down(c, [said[i] - said[len(finalists)] for i in range(len(finalists))])
    best = winner_of(gains, c.fewest)
    return None if best is None else int(finalists[best])


def power_sheet(cells: Sequence[Cell], settings: PowerSettings) -> Sheet:
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
    return Sheet(title, columns, rows)


if __name__ == "__main__":
    sys.exit(run_verb(main))
