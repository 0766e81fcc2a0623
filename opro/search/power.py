"""What gains a dev set can show: searches are simulated with its clips and sources, and decided as real ones are."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from evaluators.clips import ClipSet
from evaluators.statistics.compare import ALPHA, resamples_at, step_down
from evaluators.statistics.metrics import balanced_weights
from evaluators.statistics.resampling import MIN_SOURCES, Clusters, clusters
from opro.cli import flag
from opro.search.budget import most_finalists
from opro.search.select import winner_of

SEEDS = 3
SHARED = 0.8  # correlation of two prompts' errors on a clip, on the probit scale
OFTEN = 0.8  # how often a gain must be found to be one that a set can show
QUICK = 60  # searches for each gain of the one line that a dry run prints
RESAMPLES = 2000  # of each decision, at the level of the first one
Array = NDArray[Any]


@dataclass(frozen=True)
class Simulation:
    """The simulation."""

    searches: int = flag(200, "searches a cell", min=10, max=100_000)
    candidates: int = flag(50, "prompts that a search scores beside three seeds", min=1, max=10_000)
    accuracy: float = flag(0.8, "balanced accuracy of the seeds, 0 to 1", min=0.0)
    spread: float = flag(
        0.08, "how far accuracies differ between sources: standard deviation", min=0.0
    )
    seed: int = flag(0, "seed of the simulation", min=0)


@dataclass(frozen=True, eq=False)
class Half:
    """Half of a dev set: index of the label and of the source of each clip."""

    truth: Array
    source: Array

    @classmethod
    def of(cls, clips: ClipSet) -> "Half":
        """The half that some clips are."""
        targets = clips.targets
        truth = targets.truth if targets.classes else np.zeros_like(targets.truth)
        return cls(truth, np.unique(targets.sources, return_inverse=True)[1])

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
    level: float = ALPHA


def simulate(
    name: str,
    both: tuple[Half, Half],
    gain: float,
    settings: Simulation,
    alpha: float = ALPHA,
) -> Cell:
    """One cell of the table: many searches on (search half, holdout), decided at a one-sided level.

    A prompt is right on a clip where a normal variable, `SHARED` between prompts, lies below a bound that belongs to
    prompt and source. Bounds of a source differ by `spread`, half of the variance shared by all prompts.
    """
    search, holdout = both
    sources = holdout.source.astype(str).tolist()
    c = clusters(holdout.truth, sources, resamples=resamples_at(alpha, RESAMPLES))
    replaced = wrong = 0
    for number in range(settings.searches):
        rng = np.random.default_rng([settings.seed, number])
        right = _answers(gain, settings, rng)
        winner = _search(right, SEEDS + settings.candidates, both, c, alpha)
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
        alpha,
    )


def _answers(
    gain: float, settings: Simulation, rng: "np.random.Generator"
) -> Callable[[Half, Array], Array]:
    """Draws ``[prompt, clip]`` whether prompts are right on a half."""
    count = SEEDS + settings.candidates
    accuracy = np.full(count, settings.accuracy)
    accuracy[SEEDS] += gain

    def right(half: Half, prompts: Array) -> Array:
        sources = int(half.source.max()) + 1
        own = settings.spread / np.sqrt(2)
        effect = rng.normal(0, own, sources) + rng.normal(0, own, (count, sources))
        bound = scipy.special.ndtri(np.clip(accuracy[:, None] + effect, 0.01, 0.99))[prompts]
        shared = np.sqrt(SHARED) * rng.normal(size=len(half.truth))
        z = shared + np.sqrt(1 - SHARED) * rng.normal(size=(len(prompts), len(half.truth)))
        return np.asarray(z < bound[:, half.source])

    return right


def _search(
    right: Callable[[Half, Array], Array],
    prompts: int,
    both: tuple[Half, Half],
    c: Clusters,
    alpha: float,
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
    best = winner_of(gains, c.fewest, alpha)
    return None if best is None else int(finalists[best])


def smallest_gain(
    both: tuple[Half, Half], simulation: Simulation, alpha: float = ALPHA
) -> int | None:
    """The smallest gain in points that replaces the baseline in `OFTEN` of the searches.

    Returns:
        None where even the largest possible one is found less often.
    """

    def found(points: int) -> bool:
        return simulate("", both, points / 100, simulation, alpha).replaced >= OFTEN

    low, high = 1, round(100 * (0.99 - simulation.accuracy))
    if not found(high):
        return None
    while low < high:  # the larger a gain, the more often it is found
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle + 1, high)
    return low


def shown_by(
    both: tuple[Half, Half], simulation: Simulation | None = None, alpha: float = ALPHA
) -> str:
    """What a dev set of these halves can show, in one sentence.

    Args:
        simulation: Its number of searches is not read: `QUICK` are simulated.
        alpha: Level of the decision, one-sided.
    """
    simulation = replace(simulation or Simulation(), searches=QUICK)
    holdout = both[1]
    labels = np.union1d(both[0].truth, holdout.truth)
    fewest = min(len(np.unique(holdout.source[holdout.truth == k])) for k in labels)
    if fewest < MIN_SOURCES:
        return (
            f"no gain, however large: a claim needs {MIN_SOURCES} sources of each label in the holdout,"
            f" it has {fewest} of one"
        )
    gain = smallest_gain(both, simulation, alpha)
    if gain is None:
        return f"no gain often: even the largest is found in fewer than {100 * OFTEN:.0f} % of simulated searches"
    return (
        f"a prompt that is better by {gain} points replaces the baseline in {100 * OFTEN:.0f} % of searches"
        f" (simulated, seeds at {100 * simulation.accuracy:.0f} %; smaller gains are found less often:"
        " python -m opro.power)"
    )
