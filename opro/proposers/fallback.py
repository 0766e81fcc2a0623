"""A language model that a search can do without."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from opro.proposers.language_model import UnansweredError
from opro.proposers.lm_proposer import LMProposer
from opro.proposers.rewriter import Fragments
from opro.search.history import Candidate
from opro.search.proposer import SearchView

T = TypeVar("T")

log = logging.getLogger(__name__)


class OrNothing:
    """A Proposer beside another one, which proposes nothing where its language model does not answer.

    A server that refuses is not asked again by this process; one that was not reached is, in the next round.

    Args:
        proposer: Asks the language model.
        record: Called once with an entry for the journal of proposals.
    """

    def __init__(self, proposer: LMProposer, record: Callable[[dict[str, Any]], None]) -> None:
        self.name, self.proposer, self._record = proposer.name, proposer, record
        self._told = self._refused = False
        self._failed_in = -1  # the last iteration without an answer

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`."""
        return self._answered(view, lambda: self.proposer.propose(view, n)) or []

    def fragments(self, view: SearchView) -> Fragments:
        """See `LMProposer.fragments`."""
        return self._answered(view, lambda: self.proposer.fragments(view)) or {}

    def _answered(self, view: SearchView, ask: Callable[[], T]) -> T | None:
        if self._refused or self._failed_in == view.iteration:
            return None
        try:
            return ask()
        except UnansweredError as error:
            self._refused, self._failed_in = error.refused, view.iteration
            if not self._told:
                self._told = True
                why = f"the rewriter goes on without it: {error.sentence}"
                log.warning("language model: %s", why)
                self._record({"iteration": view.iteration, "unanswered": why})
            return None
