"""Prompts that other runs found good are tried first: what suits one checkpoint often suits the next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evaluators.clips import ClipSet
from evaluators.errors import LeakError
from evaluators.names import shared_names
from opro.proposers.replies import dedup_key
from opro.search.history import Candidate, Trial
from opro.search.proposer import Proposer, SearchView


@dataclass(frozen=True)
class PastRun:
    """Another run.

    Attributes:
        trials: Its best by its search half, best first. Its choice on the holdout is not looked at: the same clips
            decide here, too.
        sources: Of the clips that these trials were scored on.
    """

    name: str
    trials: Sequence[Trial]
    sources: frozenset[str]


def shared_candidates(runs: Sequence[PastRun], holdout: ClipSet, count: int) -> list[Candidate]:
    """The best prompts of other runs, in turns, at most `count`.

    Raises:
        LeakError: A run has searched on a source of the holdout.
    """
    held_out = {c.source_id for c in holdout}
    for run in runs:
        both = shared_names(held_out, run.sources)
        if both:
            raise LeakError(
                f"--share {run.name!r} searched on source {both[0]!r}, which the holdout here holds; share runs of"
                " the same manifest and split"
            )
    out: dict[str, Candidate] = {}
    for place in range(count):
        for run in runs:
            if place < len(run.trials) and len(out) < count:
                one = run.trials[place].candidate
                out.setdefault(one.prompt.digest, replace(one, origin=f"shared:{run.name}"))
    return list(out.values())


class Shared:
    """Shared candidates take at most half of the places of the first round.

    Args:
        proposer: Makes all other candidates.
        candidates: Best first.
    """

    def __init__(self, proposer: Proposer, candidates: Sequence[Candidate]) -> None:
        self.name, self.proposer, self.candidates = proposer.name, proposer, candidates

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`."""
        if view.iteration != 1:
            return self.proposer.propose(view, n)
        known = {dedup_key(t.prompt) for t in view.trials}
        first = [c for c in self.candidates if dedup_key(c.prompt) not in known][: (n + 1) // 2]
        known = {dedup_key(c.prompt) for c in first}
        rest = self.proposer.propose(view, n - len(first)) if len(first) < n else []
        return [*first, *(c for c in rest if dedup_key(c.prompt) not in known)]
