"""Language model and rewriter together."""

from collections.abc import Callable
from dataclasses import dataclass

from opro.proposers.frame_rewriter import FrameRewriter
from opro.proposers.replies import dedup_key
from opro.proposers.rewriter import Fragments, Rewriter
from opro.search.history import Candidate, Trial
from opro.search.proposer import Proposer, SearchView


def nothing(view: SearchView) -> Fragments:
    """No fragments."""
    return {}


@dataclass(frozen=True)
class Mixed:
    """Language model and rewriter share an iteration's candidates.

    Each gets one at least; the others go by how often a candidate of each was among the better half of its round, so
    that equal authors share alike, however many of each there were. What a language model fails to deliver the rewriter
    fills, so that a useless one costs little. The rewriter uses fragments that a language model has written, if any.

    Attributes:
        fragments: Asked in every round; it answers alike within a run.
    """

    lm: Proposer
    rewriter: Rewriter | FrameRewriter
    fragments: Callable[[SearchView], Fragments] = nothing

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.lm.name} and {self.rewriter.name}"

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`."""
        share = round(lm_share(view) * n)
        given = self.lm.propose(view, min(max(share, 1), max(1, n - 1)))
        if len(given) >= n:
            return given[:n]
        known = {dedup_key(c.prompt) for c in given}
        rest = self.rewriter.enriched(self.fragments(view)).propose(view, n)
        return [*given, *(c for c in rest if dedup_key(c.prompt) not in known)][:n]


def lm_share(view: SearchView) -> float:
    """The share of a round that a language model has earned, by the rates at which each author did well."""
    tried, well = {True: 0, False: 0}, {True: 0, False: 0}
    for number in range(1, view.iteration):
        found = [t for t in view.scored if t.iteration == number and _is_made(t)]
        for place, trial in enumerate(found):
            by_lm = trial.candidate.origin == "lm"
            tried[by_lm] += 1
            well[by_lm] += 2 * place < len(found) - 1 or len(found) == 1
    rates = {who: (1 + well[who]) / (2 + tried[who]) for who in tried}
    return rates[True] / (rates[True] + rates[False])


def _is_made(trial: Trial) -> bool:
    return trial.candidate.origin == "lm" or trial.candidate.origin.startswith("rewriter")
