"""The budget: all arithmetic of ``--max-evals``.

An eval is one prompt, in one order of its options, on one clip. Search and selection together never ask for more than
``--max-evals``. What decides nothing comes on top: the controls beside the chosen prompt, the first seed prompt where
it is not the baseline, and the trivial edits of ``--brittleness``.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluators.clips import ClipSet
from evaluators.errors import UserError
from opro.problem import Problem
from opro.search.brittleness import CLIPS
from opro.search.history import Trial
from opro.search.race import FIRST_BLOCK
from opro.settings import STRATEGIES, SearchSettings

FINALISTS = 5  # at most
SOURCES_PER_FINALIST = (
    10  # of the rarest label: with few sources every finalist costs much power (Holm)
)
MIN_FULL_TRIALS = 12  # that a search can at least afford to score on all its clips
FEWEST_SEARCH, FEWEST_HOLDOUT = 32, 64  # clips that a half is cut down to
CONTROLS = 4  # silence and shuffled audio, each for baseline and chosen prompt


def most_finalists(sources: int) -> int:
    """How many finalists a holdout with that many `sources` of the rarest label can decide among.

    >>> most_finalists(11), most_finalists(35), most_finalists(400)
    (1, 3, 5)
    """
    return max(1, min(FINALISTS, sources // SOURCES_PER_FINALIST))


def most_selected(holdout: ClipSet) -> int:
    """Prompts that the selection compares at most: the baseline and the finalists."""
    return 1 + most_finalists(holdout.targets.fewest_sources)


def most_beside(seed_prompts: int) -> int:
    """Prompts that are scored on the holdout and decide nothing, at most: the controls, and the first seed prompt."""
    return CONTROLS + min(seed_prompts - 1, 1)


@dataclass(frozen=True)
class Budget:
    """What a search may ask for, in pairs of prompt and clip.

    Attributes:
        pairs: Of search and selection; infinite without ``--max-evals``.
        selection: Of these, set aside for the selection, and after races for one forecast that is to be finished.
        batch: Candidates a round.
        races: Whether losers are dropped early.
    """

    pairs: float
    selection: int
    batch: int
    races: bool

    @classmethod
    def of(cls, problem: Problem, settings: SearchSettings) -> "Budget":
        """The budget of a search."""
        selected = most_selected(problem.holdout_clips)
        races = STRATEGIES[settings.strategy].races
        return cls(
            max_pairs(problem, settings),
            selected * len(problem.holdout_clips) + races * len(problem.search_clips),
            settings.candidates,
            races,
        )

    def left(self, earlier: Sequence[Trial]) -> float:
        """Pairs that are left for an iteration, by the trials of earlier iterations alone."""
        spent = sum(t.n_scored for t in earlier)
        return self.pairs - self.selection - spent

    def candidates(self, left: float, search_clips: int) -> int:
        """Candidates of an iteration: as many as asked for, or as what is left can score."""
        if math.isinf(left):
            return self.batch
        # A race halves the field again and again: two blocks a candidate.
        each = 2 * self.first_block(left) if self.races else search_clips
        return max(0, min(self.batch, int(left // each)))

    def first_block(self, left: float) -> int:
        """Clips of a race's first block: half as many when what is left makes few races."""
        return FIRST_BLOCK if left >= 2 * 2 * FIRST_BLOCK * self.batch else FIRST_BLOCK // 2


def orders(problem: Problem, settings: SearchSettings) -> int:
    """Orders of its options that a prompt is scored in at most."""
    if not (settings.swap or any(p.both_orders for p in problem.seed_prompts)):
        return 1
    return max((len(c.options) for c in problem.search_clips), default=0) or 2


def max_pairs(problem: Problem, settings: SearchSettings) -> float:
    """Pairs of prompt and clip that ``--max-evals`` covers: both orders of a prompt are two evals."""
    if settings.max_evals is None:
        return math.inf
    return settings.max_evals // orders(problem, settings)


def fit_budget(problem: Problem, settings: SearchSettings) -> Problem:
    """The problem with the first clips of both halves that a search of so few evals is best made on.

    The selection takes a fifth of the evals, and at least what 64 clips cost: on fewer a gain of 15 points is not told
    from none. Of the search half as many as a few prompts can be scored on in full, down to 32: prompts differ by more
    than a small sample errs (`tests/bench_search.py`).

    Raises:
        UserError: ``--max-evals`` does not cover seed prompts, selection and one candidate.
    """
    pairs = max_pairs(problem, settings)
    if math.isinf(pairs):
        return problem
    search, holdout = problem.search_clips, problem.holdout_clips
    each = int(pairs) // 5 // most_selected(holdout)
    fitted = holdout.first(max(FEWEST_HOLDOUT, each - each % 2))
    set_aside = most_selected(fitted) * len(fitted)
    each = int(pairs - set_aside) // MIN_FULL_TRIALS
    problem = dataclasses.replace(
        problem,
        search_clips=search.first(max(FEWEST_SEARCH, each - each % 2)),
        holdout_clips=fitted,
    )
    least = set_aside + _least_search(problem, Budget.of(problem, settings))
    if pairs < least:
        raise UserError(
            f"--max-evals is {settings.max_evals}; the seeds and the selection on {len(fitted)} holdout clips take"
            f" {least * orders(problem, settings)}, so give more, or fewer --clips"
        )
    if len(problem.search_clips) == len(search) and len(fitted) == len(holdout):
        return problem
    warning = (
        f"with --max-evals {settings.max_evals} the search works on {len(problem.search_clips)} of its"
        f" {len(search)} clips, the selection on {len(fitted)} of {len(holdout)}"
    )
    return dataclasses.replace(problem, warnings=(*problem.warnings, warning))


def _least_search(problem: Problem, budget: Budget) -> int:
    """Pairs that a search needs at least: the seed prompts, and one candidate."""
    clips, seeds = len(problem.search_clips), len(problem.seed_prompts)
    if not budget.races:
        return (seeds + 1) * clips
    return 2 * clips + seeds * min(FIRST_BLOCK, clips)  # the first seed, and a forecast to finish


def edited_pairs(problem: Problem, settings: SearchSettings) -> int:
    """Pairs of ``--brittleness`` at most: baseline and finalists, each as it is and with its trivial edits."""
    if not settings.brittleness:
        return 0
    prompts = 1 + most_finalists(problem.holdout_clips.targets.fewest_sources)
    return prompts * (1 + settings.brittleness) * min(CLIPS, len(problem.search_clips))


def planned_pairs(problem: Problem, settings: SearchSettings) -> int:
    """Pairs of search, selection, controls and trivial edits where nothing is dropped, without ``--max-evals``."""
    prompts = len(problem.seed_prompts) + settings.iterations * settings.candidates
    search = settings.repeats * prompts * len(problem.search_clips)
    return search + decision_pairs(problem, settings)


def decision_pairs(problem: Problem, settings: SearchSettings) -> int:
    """Pairs of the selection, its controls and trivial edits, and of what each of several repeats would hand over."""
    prompts = most_selected(problem.holdout_clips) + most_beside(len(problem.seed_prompts))
    if settings.repeats > 1:
        prompts += settings.repeats
    return prompts * len(problem.holdout_clips) + edited_pairs(problem, settings)


def most_evals(problem: Problem, settings: SearchSettings) -> int:
    """Evals of a search at most, controls and trivial edits included: before racing and the cache."""
    on_top = most_beside(len(problem.seed_prompts)) * len(problem.holdout_clips)
    on_top += edited_pairs(problem, settings)
    pairs = min(planned_pairs(problem, settings), max_pairs(problem, settings) + on_top)
    return int(pairs) * orders(problem, settings)
