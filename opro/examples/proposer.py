"""A proposer of one's own: prompts from a list, the best so far with one word exchanged.

run = opro.optimize("pocket-base", SEEDS, "data/demo", proposer=Exchange(WORDS), iterations=3)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from opro.search.history import Candidate
from opro.search.proposer import SearchView

WORDS = {"speech": ("a human voice", "spoken words"), "clip": ("recording", "sound")}


@dataclass(frozen=True)
class Exchange:
    """Exchanges words of the best prompts. Deterministic, so that an interrupted search goes on as it would have.

    Attributes:
        words: Word -> what it may become.
    """

    words: Mapping[str, Sequence[str]]
    name: str = "exchange"

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """At most `n` prompts that were not tried: of the best prompt first."""
        tried = {t.prompt.text for t in view.trials}
        found: dict[str, Candidate] = {}
        for trial in view.scored:
            for word, others in self.words.items():
                for other in others:
                    text = trial.prompt.text.replace(word, other)
                    if text not in tried:
                        prompt = replace(trial.prompt, text=text)
                        one = Candidate(prompt, f"{self.name}:{word}", (trial.prompt.prompt_id,))
                        found.setdefault(text, one)
        return list(found.values())[:n]
