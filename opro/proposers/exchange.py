"""Prompts that separate two classes the wrong way round are tried with their answers exchanged.

What such a prompt hears is right, and its score then is exactly 100 minus what it was: the scores are known (the cache
reads them the other way round), so that nothing goes through the model again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from evaluators.prompts import exchanged
from opro.proposers.replies import dedup_key
from opro.search.history import Candidate
from opro.search.proposer import Proposer, SearchView

REVERSED = 0.4  # AUROC below which a prompt counts as reversed
SHARE = 4  # of a round's candidates at most one in so many is an exchange, or one
ORIGIN = "exchange"


@dataclass(frozen=True)
class Exchanging:
    """A Proposer that puts exchanged prompts before those of another one."""

    proposer: Proposer

    @property
    def name(self) -> str:
        """The other one's."""
        return self.proposer.name

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`."""
        first = list(_exchanges(view))[: max(1, n // SHARE)] if n > 1 else []
        known = {dedup_key(c.prompt) for c in first}
        rest = self.proposer.propose(view, n - len(first))
        return [*first, *(c for c in rest if dedup_key(c.prompt) not in known)]


def _exchanges(view: SearchView) -> Iterator[Candidate]:
    """Of every reversed prompt the exchange that was not tried yet, the most reversed first."""
    known = {dedup_key(t.prompt) for t in view.trials}
    found = [
        (t.outcome.profile.auroc, t)
        for t in view.scored
        if t.outcome and t.outcome.profile and t.outcome.profile.auroc < REVERSED
    ]
    for _, trial in sorted(found, key=lambda pair: pair[0]):
        other = exchanged(trial.prompt)
        if other is not None and dedup_key(other) not in known:
            yield Candidate(other, ORIGIN, (trial.prompt.prompt_id,))
