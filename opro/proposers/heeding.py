"""A proposer of one's own, held to what every proposer keeps to."""

import logging
from dataclasses import dataclass

from opro.proposers.replies import dedup_key
from opro.search.history import Candidate
from opro.search.proposer import Proposer, SearchView

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heeding:
    """Leaves out, and says so, what was tried before, what stands twice, and what is more than was asked for."""

    proposer: Proposer

    @property
    def name(self) -> str:
        """Its name."""
        return self.proposer.name

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`."""
        labels = list(view.clips.task.labels)
        known, kept = {dedup_key(t.prompt) for t in view.trials}, list[Candidate]()
        given = self.proposer.propose(view, n)
        for candidate in given:
            key = dedup_key(candidate.prompt)
            fits = [label for label, _ in candidate.prompt.answers] == labels
            if fits and key not in known and len(kept) < n:
                known.add(key)
                kept.append(candidate)
        if len(kept) < len(given):
            log.warning(
                "%d of %d candidates of %s are left out: tried before, without an answer for each label, or more than"
                " the %d asked for",
                len(given) - len(kept),
                len(given),
                self.name,
                n,
            )
        return kept
