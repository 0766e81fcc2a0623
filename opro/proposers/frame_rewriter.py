"""The rewriter of frames: prompts into which each clip's own question and options are put.

Like `opro.proposers.rewriter` an honest baseline that does not know what words mean: it exchanges what stands before,
between and after question and options, and the letters of the answers.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluators.prompts import OPTIONS, QUESTION, Prompt
from evaluators.tasks import Task
from opro.proposers import surrogate
from opro.search.history import Candidate
from opro.search.proposer import SearchView

PARENTS = 6  # prompts that are rewritten: the best so far
PROPOSALS_PER_PICK = 10  # proposals for each that is wanted, of which the surrogate picks
CROSS = 0.2  # how often a part comes from another parent
BANK = {
    "leads": (
        "",
        "Listen to the audio.",
        "Listen carefully and answer.",
        "Answer the question about the audio.",
    ),
    "joins": ("\n", " ", "\n\n", "\nOptions:\n", "\nChoices: ", " Choose one: "),
    "closings": (
        "",
        "Answer:",
        "Answer with one letter.",
        "Only one option is right.",
        "The best option is",
        "Decide by what is heard.",
    ),
}
LETTERS = ("ABCDEFGHIJ", "123456789", "abcdefghij")


@dataclass(frozen=True)
class Frame:
    """A frame taken apart: what stands before the question, between it and the options, and after them."""

    lead: str
    join: str
    closing: str

    def text(self) -> str:
        """Put together again."""
        lead = f"{self.lead} " if self.lead else ""
        gap = "\n\n" if self.closing and "\n" in self.join else " " if self.closing else ""
        return f"{lead}{QUESTION}{self.join}{OPTIONS}{gap}{self.closing}"


def take_apart(text: str) -> Frame | None:
    """The parts of a frame in which the question comes before the options, each once; else None."""
    if text.count(QUESTION) != 1 or text.count(OPTIONS) != 1:
        return None
    lead, _, rest = text.partition(QUESTION)
    join, found, closing = rest.partition(OPTIONS)
    return Frame(lead.strip(), join, closing.strip()) if found else None


class FrameRewriter:
    """A Proposer for tasks whose clips bring their own options.

    Args:
        task: Its fragments (leads, joins, closings), where it has some, are used in place of `BANK`.
        seed: Proposals depend on it, the iteration and the history, nothing else.
        learn: Start from the best prompts so far; otherwise always from the seeds.
    """

    name = "rewriter"

    def __init__(self, task: Task, seed: int, learn: bool = True) -> None:
        self.task = task
        self.seed = seed
        self.learn = learn
        self.bank = {kind: tuple(task.fragments.get(kind) or own) for kind, own in BANK.items()}

    def enriched(self, more: Mapping[str, Sequence[Any]]) -> "FrameRewriter":
        """Itself: fragments are of options that all clips share."""
        return self

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`; fewer than `n` only when nothing new can be made."""
        rng = random.Random(f"{self.seed}|{view.iteration}|{self.learn}")
        past = [t for t in view.scored if self.learn or t.iteration == 0]
        parents = [t.prompt for t in past if take_apart(t.prompt.text) is not None][:PARENTS]
        known = {t.prompt.digest for t in view.trials}
        out: list[Candidate] = []
        size = n * PROPOSALS_PER_PICK if self.learn else n
        for _ in range(200 * n if parents else 0):
            candidate = self._rewrite(parents, rng)
            if candidate.prompt.digest in known or view.why_not(candidate.prompt):
                continue
            known.add(candidate.prompt.digest)
            out.append(candidate)
            if len(out) == size:
                break
        if len(out) <= n:
            return out
        chosen = surrogate.pick(
            [(t.prompt, t.reward, t.outcome.sd if t.outcome else 0.0) for t in past],
            [c.prompt for c in out],
            n,
            np.random.default_rng([self.seed, view.iteration]),
        )
        return [out[i] for i in chosen]

    def _rewrite(self, parents: Sequence[Prompt], rng: random.Random) -> Candidate:
        parent, mate = rng.choices(parents, [2.0**-i for i in range(len(parents))], k=2)
        frame, other = take_apart(parent.text), take_apart(mate.text)
        assert frame is not None and other is not None, "parents are frames"
        done, ids = [], dict.fromkeys([parent.prompt_id])
        for kind in rng.sample(["lead", "join", "closing", "letters"], k=rng.choice((1, 1, 2, 3))):
            if kind == "letters":
                parent = _relettered(parent, rng.choice(LETTERS))
            elif mate is not parent and rng.random() < CROSS:
                frame = replace(frame, **{kind: getattr(other, kind)})
                ids[mate.prompt_id] = None
            else:
                frame = replace(frame, **{kind: rng.choice(self.bank[f"{kind}s"])})
            done.append(kind)
        prompt = replace(parent, text=frame.text())
        return Candidate(prompt, "rewriter:" + "+".join(done), tuple(ids))


def _relettered(prompt: Prompt, letters: str) -> Prompt:
    """Other letters for the options; where the text names the old ones, as in "A, B, C or D", it stays as it is."""
    old = [words[0] for _, words in prompt.answers]
    if any(re.search(rf"(?<!\w){re.escape(letter)}(?!\w)", prompt.text) for letter in old[1:]):
        return prompt
    answers = ((label, (new,)) for (label, _), new in zip(prompt.answers, letters, strict=False))
    return replace(prompt, answers=tuple(answers))
