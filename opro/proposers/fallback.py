"""A language model that a search can do without."""

import logging
from collections.abc import Callable
from typing import Any

from opro.proposers.language_model import UnansweredError
from opro.search.history import Candidate
from opro.search.proposer import Proposer, SearchView

log = logging.getLogger(__name__)


class OrNothing:
    """A Proposer beside another one, which proposes nothing where its language model does not answer.

    A server that refuses is not asked again by this process; one that was not reached is, in the next round.

    Args:
        proposer: Asks the language model.
        record: Called once with an entry for the journal of proposals.
    """

    def __init__(self, proposer: Proposer, record: Callable[[dict[str, Any]], None]) -> None:
        self.name, self.proposer, self._record = proposer.name, proposer, record
        self._told = self._refused = False

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`."""
        if self._refused:
            return []
        try:
            return self.proposer.propose(view, n)
        except UnansweredError as error:
            self._refused = error.refused
            if not self._told:
                self._told = True
                why = f"the rewriter goes on without it: {error.sentence}"
                log.warning("language model: %s", why)
                self._record({"iteration": view.iteration, "unanswered": why})
            return []
