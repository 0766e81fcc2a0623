"""How the clip is given, searched beside the wording: the best wordings are tried with other presentations.

What another proposer makes of a prompt keeps its presentation, so that both are searched together and decided on once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluators.presentation import AS_IS, Presentation
from evaluators.prompts import Prompt
from opro.proposers.replies import dedup_key
from opro.search.history import Candidate, Trial
from opro.search.presentations import effects, wording
from opro.search.proposer import Proposer, SearchView

SHARE = 2  # of a round's candidates one in so many is a known wording with another presentation
WORDINGS = 6  # that are tried so: the best so far
SPREAD = 0.1  # prior standard deviation of what a presentation changes of the reward
ORIGIN = "presentation"


@dataclass(frozen=True)
class Presenting:
    """A Proposer that puts wordings with other presentations before the candidates of another one.

    Attributes:
        presentations: Beside the clip as it is.
        seed: Of the draws.
    """

    proposer: Proposer
    presentations: Sequence[Presentation]
    seed: int

    @property
    def name(self) -> str:
        """The other one's."""
        return self.proposer.name

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`."""
        first = self._crossed(view, n // SHARE)
        known = {dedup_key(c.prompt) for c in first}
        rest = self.proposer.propose(view, n - len(first))
        return [*first, *(c for c in rest if dedup_key(c.prompt) not in known)]

    def _crossed(self, view: SearchView, n: int) -> list[Candidate]:
        """At most `n` of the best wordings with presentations that they were not tried with.

        What was never tried comes first, with the best wording. The others are drawn by Thompson sampling: the reward
        of the wording, and a draw of what the presentation changes.
        """
        tried = {t.prompt.presentation for t in view.trials}
        heard = {t.prompt.presentation for t in view.scored}
        # What no prompt has a score with the model cannot hear so, because it gets too long, say.
        ways = [how for how in (AS_IS, *self.presentations) if how in heard or how not in tried]
        pool = list(self._pool(view, ways))
        first: dict[Presentation, tuple[Trial, Presentation]] = {}
        for trial, how in pool:
            if how not in tried:
                first.setdefault(how, (trial, how))
        chosen = list(first.values())[:n]
        pool = [one for one in pool if one not in chosen]
        known = effects(view.scored)
        rng = np.random.default_rng([self.seed, view.iteration])
        while pool and len(chosen) < n:
            drawn = {how: _draw(known.get(how, ()), rng) for how in ways} | {AS_IS: 0.0}
            best = max(
                pool,
                key=lambda one: (
                    one[0].reward + drawn[one[1]] - drawn.get(one[0].prompt.presentation, 0.0)
                ),
            )
            pool.remove(best)
            chosen.append(best)
        return [
            Candidate(replace(t.prompt, presentation=how), ORIGIN, (t.prompt.prompt_id,))
            for t, how in chosen
        ]

    def _pool(
        self, view: SearchView, ways: Sequence[Presentation]
    ) -> Iterator[tuple[Trial, Presentation]]:
        """The best wordings, best first, with each presentation that they were not tried with."""
        known = {dedup_key(t.prompt) for t in view.trials}
        best: dict[Prompt, Trial] = {}
        for trial in view.scored:
            best.setdefault(wording(trial.prompt), trial)
        for trial in list(best.values())[:WORDINGS]:
            for how in ways:
                prompt = replace(trial.prompt, presentation=how)
                if dedup_key(prompt) not in known and not view.why_not(prompt):
                    yield trial, how


def _draw(gains: Sequence[float], rng: "np.random.Generator") -> float:
    """A draw of what a presentation changes: the known gains, and one of zero for the prior."""
    count = len(gains) + 1
    return float(rng.normal(sum(gains) / count, SPREAD / np.sqrt(count)))
