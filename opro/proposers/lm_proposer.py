"""The proposer that asks a language model, with a scored history."""

import json
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluators.prompts import Prompt
from evaluators.server_words import shortened
from evaluators.tasks import Task
from opro.proposers.evidence import draw_parent
from opro.proposers.fragments import read_fragments
from opro.proposers.language_model import Reply
from opro.proposers.ledger import Call, MeteredModel
from opro.proposers.replies import check_proposal, dedup_key, parse, reply_schema
from opro.proposers.request import META, MetaPrompt, Round
from opro.proposers.rewriter import Fragments
from opro.search.history import Candidate, Trial
from opro.search.objective import Objective
from opro.search.presentations import wording
from opro.search.proposer import SearchView

log = logging.getLogger(__name__)

TEMPERATURE = 1.0  # of sampling; at 0 a search gets stuck (arXiv 2309.03409)
WAVES = 3  # of calls an iteration may take to fill its candidates
EACH = 5  # prompts asked for in a call, more or less: several parents, and replies that are not too long
OPRO_PARENTS = 3  # best prompts that a new one of OPRO counts as made from
REPLY_TOKENS = 200  # of a reply's analysis, of each prompt asked for, and of one beyond
MOST_READ = (
    40  # entries of a reply that are looked at, or four times those asked for where that is more
)
FRAGMENTS_TOKENS = 2500
FRAGMENTS_CALL = -1  # its number among the calls of the first round


@dataclass(frozen=True)
class _Asked:
    """One call: what is asked, for how many prompts, starting from which trial."""

    call: Call
    wanted: int
    start: Trial | None

    @property
    def max_tokens(self) -> int:
        """Room for the reply."""
        return REPLY_TOKENS * (2 + self.wanted)


@dataclass(frozen=True)
class Calls:
    """How a round's prompts are asked for.

    Attributes:
        separate: One call a prompt and none again, as in the paper.
        concurrency: Calls under way at once.
        told: What requests say besides, of a profile; strategy ``opro`` leaves it out, as the paper does.
    """

    separate: bool = False
    concurrency: int = 1
    told: str = ""


class LMProposer:
    """Asks a language model, for a round's prompts in a few calls at once, each from another parent.

    Strategy ``opro`` is the paper's (arXiv 2309.03409): instructions alone, from one meta-prompt without parents. A
    clip cannot be shown as text, so what the best prompt errs on stands in place of exemplars.

    Args:
        model: Answers; its calls are counted and limited.
        task, objective: What it is told.
        strategy: A key of `opro.settings.STRATEGIES`.
        seed: Of the parents.
        both_orders: Of the prompts that are proposed.
        calls: How a round's prompts are asked for.
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
        calls: Calls = Calls(),
        folder: Path = META,
    ) -> None:
        self.name = f"language model {model.lm.name}"
        self.model, self.task = model, task
        self.opro = strategy == "opro"
        self.seed, self.both_orders = seed, both_orders
        self.calls = calls
        name = "opro.txt" if strategy == "opro" else "propose.txt"
        self._schema = None if strategy == "opro" else reply_schema(task)
        told = "" if self.opro else calls.told
        self._meta = MetaPrompt(folder / name, task, objective, told)
        self._about_fragments = MetaPrompt(META / "fragments.txt", task, objective, told)
        self._fragments: Fragments | None = None

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        """See `Proposer`. Stops early, with what it has, when the ledger's limit is near."""
        known = {dedup_key(wording(t.prompt)) for t in view.trials}
        out: list[Candidate] = []
        refusals: list[str] = []
        calls = 0
        for _ in range(1 if self.calls.separate else WAVES):
            so_far = Round(n, [json.dumps(c.prompt.text) for c in out], refusals)
            asked = self._wave(view, n - len(out), calls, so_far)
            calls += len(asked)
            answered = 0
            for one, reply in self._answers(asked):
                if reply is None:
                    continue
                answered += 1
                made, refused = self._checked(
                    view, one, reply, min(one.wanted, n - len(out)), known
                )
                out += made
                refusals += [f"{r['text'][:80]!r}: {r['reason']}" for r in refused]
                self.model.keep(one.call, reply, len(made), refused)
            if len(out) >= n or answered < len(asked):
                break
        return out

    def fragments(self, view: SearchView) -> Fragments:
        """Building blocks for the rewriter, asked for once a run with the seed prompts' scores."""
        if self._fragments is None:
            seeds = tuple(t for t in view.trials if t.iteration == 0)
            first = SearchView(1, seeds, view.clips, rounds=view.rounds)
            request = self._about_fragments.request(first, 1, None, Round(1))
            call = (1, FRAGMENTS_CALL, request.system, request.text)
            reply = self.model.ask(call, temperature=TEMPERATURE, max_tokens=FRAGMENTS_TOKENS)
            if reply is None:
                return {}
            self._fragments = read_fragments(reply.text, self.task)
            count = sum(map(len, self._fragments.values()))
            why = {"text": reply.text[:200], "reason": "no fragments found in the reply"}
            self.model.keep(call, reply, count, [] if count else [why])
        return self._fragments

    def _wave(self, view: SearchView, n: int, first: int, so_far: Round) -> list[_Asked]:
        """The calls of a wave, all made from what was known before it."""
        count = n if self.calls.separate else max(1, round(n / EACH))
        if self.opro and not self.calls.separate:
            count = 1
        out = []
        for i in range(count):
            number = first + i
            # The paper's calls of one iteration differ by sampling alone.
            start = self._start(view, 0 if self.opro else number)
            wanted = n // count + (i < n % count)
            request = self._meta.request(view, wanted, start, so_far)
            out.append(
                _Asked((view.iteration, number, request.system, request.text), wanted, start)
            )
        return out

    def _start(self, view: SearchView, number: int) -> Trial | None:
        if self.opro:
            return next((t for t in view.scored if t.number in view.logp), None)
        return draw_parent(view, random.Random(f"{self.seed}|{view.iteration}|{number}"))

    def _answers(self, asked: Sequence[_Asked]) -> Iterator[tuple[_Asked, Reply | None]]:
        """Each call with its reply, in their order; None where the ledger forbids it."""
        with ThreadPoolExecutor(self.calls.concurrency) as pool:
            options: dict[str, Any] = {"temperature": TEMPERATURE, "schema": self._schema}
            jobs = [
                pool.submit(self.model.ask, one.call, max_tokens=one.max_tokens, **options)
                for one in asked
            ]
            try:
                for one, job in zip(asked, jobs, strict=True):
                    yield one, job.result()
            finally:  # what has not begun when one fails is not asked
                for job in jobs:
                    job.cancel()

    def _checked(
        self, view: SearchView, asked: _Asked, reply: Reply, wanted: int, known: set[str]
    ) -> tuple[list[Candidate], list[dict[str, str]]]:
        """The usable prompts of a reply, and what was refused with its reason."""
        found = parse(reply.text)
        cut = " (the reply was cut at its limit of tokens)" if reply.finish == "length" else ""
        if not found:
            return [], [
                {"text": reply.text[:200], "reason": f"no proposals found in the reply{cut}"}
            ]
        if cut:
            log.warning(
                "iteration %d, call %d%s: %d whole prompts of it are used",
                *asked.call[:2],
                cut,
                len(found),
            )
        good: list[Candidate] = []
        refused = []
        most = max(MOST_READ, 4 * wanted)
        for i, raw in enumerate(found):
            if len(good) == wanted:
                break  # more than were asked for is no mistake
            if i == most:
                refused.append(
                    {"text": "", "reason": f"{len(found) - most} further entries were not read"}
                )
                break
            prompt = check_proposal(raw, self.task, known)
            if isinstance(prompt, Prompt):
                candidate = self._candidate(view, asked, prompt, raw)
                why = view.why_not(candidate.prompt)
                if not why:
                    good.append(candidate)
                    continue
                prompt = why
            text = str(raw.get("text") if isinstance(raw, Mapping) else raw)[:200]
            refused.append({"text": text, "reason": shortened(prompt)})
        return good, refused

    def _candidate(self, view: SearchView, asked: _Asked, prompt: Prompt, raw: Any) -> Candidate:
        """A proposed prompt, with system message and presentation of the prompt that it starts from."""
        parents = [t.prompt for t in (asked.start,) if t]
        if self.opro:
            parents = [t.prompt for t in view.scored[:OPRO_PARENTS][::-1]]
        like = parents[-1:]
        if not self.opro and isinstance(raw, Mapping) and "from" in raw:
            named = _row(view, raw["from"])
            parents = [named.prompt] if named else []
            like = parents or like
        prompt = replace(prompt, both_orders=self.both_orders)
        if like:
            prompt = replace(prompt, system=like[-1].system, presentation=like[-1].presentation)
        return Candidate(prompt, "lm", tuple(p.prompt_id for p in parents))


def _row(view: SearchView, value: Any) -> Trial | None:
    """The trial that a reply names as what it changed, as 12, "12" or "#12"."""
    found = re.fullmatch(r"(?:row )?#?(\d{1,6})", str(value).strip().casefold())
    return next((t for t in view.trials if found and t.number == int(found[1])), None)
