"""What a proposer is, and all that it may know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import ClipSet
from evaluators.prompts import Prompt
from opro.search.history import Candidate, Trial, best_first
from opro.search.lengths import Limit
from opro.search.steering import forbidden_in


@dataclass(frozen=True)
class SearchView:
    """A search as a proposer sees it: earlier iterations alone, so that no proposer can break a resume.

    Attributes:
        iteration: That is being proposed; the seed prompts were 0.
        trials: Of earlier iterations, in their order.
        clips: The search half.
        logp: ``[clip, label]`` nats by trial number, of the best trials that were scored on every clip, best first.
        rounds: Iterations of proposals that the run has; 0: unknown.
        forbidden: Words that no candidate may contain; the loop refuses those that do.
        limit: The longest that a candidate may be, likewise; None: any length.
    """

    iteration: int
    trials: Sequence[Trial]
    clips: ClipSet
    logp: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    rounds: int = 0
    forbidden: tuple[str, ...] = ()
    limit: Limit | None = None

    @cached_property
    def scored(self) -> list[Trial]:
        """Complete and dropped trials, best first."""
        return best_first(t for t in self.trials if t.scored)

    def why_not(self, prompt: Prompt) -> str:
        """Why the loop would refuse a prompt as a candidate; "" where it would not."""
        words = forbidden_in(prompt, self.forbidden)
        if words is not None:
            return f"contains the forbidden {words!r}"
        return self.limit.why_not(prompt) if self.limit is not None else ""


@runtime_checkable
class Proposer(Protocol):
    """Makes candidates from what is known of a search."""

    @property
    def name(self) -> str:
        """Who proposes, in words."""

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """At most `n` candidates that differ from all trials of the view.

        Deterministic in view and `n` (a language model's replies are recorded); changes neither. Raises PauseError
        when a server does not answer.
        """
