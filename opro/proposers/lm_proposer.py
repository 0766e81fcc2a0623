"""The proposer that asks a language model, with a scored history."""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

from evaluators.errors import UserError
from evaluators.files import shipped
from evaluators.prompts import Prompt
from evaluators.tasks import Task
from opro.proposers.evidence import about_parent, draw_parent, misjudged, standstill
from opro.proposers.language_model import Reply
from opro.proposers.ledger import MeteredModel
from opro.proposers.replies import MAX_CHARACTERS, check_proposal, dedup_key, parse
from opro.search.history import Candidate, Trial
from opro.search.objective import Objective
from opro.search.proposer import SearchView

META = shipped("prompts/meta")  # what a language model is told, to edit
PROMPTS_SHOWN = 20  # of the history that a language model sees (OPRO's figure)
EXEMPLARS = 3  # clips of the paper's meta-prompt
FIELDS = (
    "task",
    "reward",
    "answers",
    "history",
    "parent",
    "exemplars",
    "progress",
    "refused",
    "n",
    "longest",
    "example",
)  # names a meta-prompt may use
TEMPERATURE = 1.0  # of sampling; at 0 a search gets stuck (arXiv 2309.03409)
CALLS = 3  # calls an iteration may take to fill its candidates
REPLY_TOKENS = 200  # of a reply, and as many more for each prompt asked for


class LMProposer:
    """Asks a language model.

    Strategy ``opro`` is the paper's (arXiv 2309.03409): one prompt a call, all calls of an iteration on one meta-prompt
    of the best prompts and three exemplars; a clip cannot be shown as text, so an exemplar is what is known of a clip
    that the best prompt misjudges. Otherwise every call shows a parent from the Pareto front (`evidence`).

    Args:
        model: Answers; its calls are counted and limited.
        task, objective: What it is told.
        strategy: A key of `opro.settings.STRATEGIES`.
        seed: Of the parents and clips that are shown.
        both_orders: Of the prompts that are proposed.
        folder: Where the meta-prompts lie.
    """

    def __init__(
        self,
        model: MeteredModel,
        task: Task,
        objective: Objective,
        *,
        strategy: str = "race",
        seed: int = 0,
        both_orders: bool = False,
        folder: Path = META,
    ) -> None:
        self.name = f"language model {model.lm.name}"
        self.model, self.task, self.objective = model, task, objective
        self.strategy, self.seed, self.both_orders = strategy, seed, both_orders
        path = folder / ("opro.txt" if strategy == "opro" else "propose.txt")
        try:
            self._template = Template(path.read_text(encoding="utf-8"))
            self._fill({})
        except (OSError, UnicodeDecodeError, KeyError, ValueError) as error:
            raise UserError(
                f"{path}: the meta-prompt cannot be used ({type(error).__name__}: {error}); known names are"
                f" {', '.join('$' + n for n in FIELDS)}, and a dollar sign is written $$"
            ) from None

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`. Stops early, with what it has, when the ledger's limit is near."""
        iteration = view.iteration
        known = {dedup_key(t.prompt) for t in view.trials}
        out: list[Candidate] = []
        refusals: list[str] = []
        single = self.strategy == "opro"
        for call in range(n if single else CALLS):
            if len(out) >= n:
                break
            # The paper's calls of one iteration differ by sampling alone.
            rng = random.Random(f"{self.seed}|{iteration}|{0 if single else call}")
            meta, parents = self._render(view, n - len(out), refusals, rng)
            reply_tokens = REPLY_TOKENS * (1 + (1 if single else n - len(out)))
            asked = (iteration, call, meta)
            reply = self.model.ask(asked, temperature=TEMPERATURE, max_tokens=reply_tokens)
            if reply is None:
                break
            new, refused = self._checked(reply, n - len(out), known)
            out += [self._candidate(prompt, parents) for prompt in new]
            refusals += [f"{r['text'][:80]!r}: {r['reason']}" for r in refused]
            self.model.keep(asked, reply, len(new), refused)
        return out

    def _candidate(self, prompt: Prompt, parents: Sequence[Prompt]) -> Candidate:
        """A proposed prompt, with the system message of the best prompt that it starts from."""
        prompt = replace(prompt, both_orders=self.both_orders)
        if parents:
            prompt = replace(prompt, system=parents[-1].system)
        return Candidate(prompt, "lm", tuple(p.prompt_id for p in parents))

    def _checked(
        self, reply: Reply, wanted: int, known: set[str]
    ) -> tuple[list[Prompt], list[dict[str, str]]]:
        """The usable prompts of a reply, and what was refused with its reason."""
        found = parse(reply.text)
        if not found:
            return [], [{"text": reply.text[:200], "reason": "no proposals found in the reply"}]
        good: list[Prompt] = []
        refused = []
        for raw in found:
            if len(good) == wanted:
                break  # more than were asked for is no mistake
            prompt = check_proposal(raw, self.task, known)
            if isinstance(prompt, Prompt):
                good.append(prompt)
            else:
                text = str(raw.get("text") if isinstance(raw, Mapping) else raw)[:200]
                refused.append({"text": text, "reason": prompt})
        return good, refused

    def _render(
        self,
        view: SearchView,
        n: int,
        refusals: Sequence[str],
        rng: random.Random,
    ) -> tuple[str, list[Prompt]]:
        """The meta-prompt, and the prompts it starts from, the best one last."""
        best = _best(view)
        shown = "\n\n".join(
            f"text:\n{t.prompt.text}\nscore:\n{round(100 * t.reward)}" for t in best
        )
        parents = [t.prompt for t in best[-3:]]
        parent, exemplars = "", ""
        if self.strategy == "opro":
            full = [t for t in best if t.number in view.logp]
            lines = misjudged(view, full[-1], EXEMPLARS, rng) if full else []
            exemplars = "\n\n".join(f"<INS>\nclip: {line}" for line in lines)
        elif start := draw_parent(view, rng):
            parents = [start.prompt]
            parent = about_parent(view, start, rng)
        still = standstill(view)
        text = self._fill(
            {
                "history": shown,
                "parent": parent,
                "exemplars": exemplars,
                "progress": (
                    f"For {still} rounds nothing has scored higher: try something quite different."
                    if still > 1
                    else ""
                ),
                "refused": (
                    "Do not repeat these mistakes, the prompts were refused:\n"
                    + "\n".join(refusals[-5:])
                    + "\n"
                    if refusals
                    else ""
                ),
                "n": n,
            }
        )
        return text, parents

    def _fill(self, values: Mapping[str, Any]) -> str:
        letters = "ABCDEFGH"[: len(self.task.labels)]
        fixed = {
            "task": self.task.description,
            "reward": self.objective.describe(self.task),
            "answers": " and ".join(letters),
            "longest": MAX_CHARACTERS,
            "example": json.dumps(dict(zip(self.task.labels, letters, strict=True))),
        }
        text = self._template.substitute({**dict.fromkeys(FIELDS, ""), **fixed, **values})
        return re.sub(r"\n{3,}", "\n\n", text)


def _best(view: SearchView) -> list[Trial]:
    """The best trials, ascending: models attend to the end (arXiv 2309.03409)."""
    return view.scored[:PROMPTS_SHOWN][::-1]
