"""Language model and rewriter together."""

from opro.proposers.replies import dedup_key
from opro.search.history import Candidate
from opro.search.proposer import Proposer, SearchView


class Mixed:
    """Language model and rewriter share an iteration's candidates.

    Each gets one at least; of the others the share of the past iterations that its candidates won. What a language
    model fails to deliver the rewriter fills, so that a useless one costs little.
    """

    def __init__(self, lm: Proposer, rewriter: Proposer) -> None:
        self.name = f"{lm.name} and {rewriter.name}"
        self.lm, self.rewriter = lm, rewriter

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`."""
        won, rounds = 0, 0
        for number in range(1, view.iteration):
            scored = [t for t in view.scored if t.iteration == number]
            if scored:
                rounds += 1
                won += scored[0].candidate.origin == "lm"
        share = round((1 + won) / (2 + rounds) * n)
        share = min(max(share, 1), max(1, n - 1))
        given = self.lm.propose(view, share)
        known = {dedup_key(c.prompt) for c in given}
        rest = self.rewriter.propose(view, n) if len(given) < n else []
        return [*given, *(c for c in rest if dedup_key(c.prompt) not in known)][:n]
