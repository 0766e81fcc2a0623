"""From settings to a proposer: which language model, the rewriter, or both."""

import json
import logging
import math
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluators.environment import audio_server, language_server
from evaluators.errors import UserError
from evaluators.evaluator import require_presents
from evaluators.files import append_line, cut_torn_line, resolve
from evaluators.plain_data import inert, json_lines
from evaluators.presentation import AS_IS, Presentation
from evaluators.prompts import read_presentations
from opro.problem import Problem
from opro.proposers.exchange import Exchanging
from opro.proposers.fallback import OrNothing
from opro.proposers.frame_rewriter import FrameRewriter
from opro.proposers.heeding import Heeding
from opro.proposers.language_model import LanguageModel, Reply
from opro.proposers.ledger import Call, Ledger, MeteredModel, open_calls
from opro.proposers.lm_proposer import Calls, LMProposer
from opro.proposers.local_model import LocalModel
from opro.proposers.mixed import Mixed, nothing
from opro.proposers.openai_model import OpenAIModel, Thinking
from opro.proposers.presenting import Presenting
from opro.proposers.rewriter import Rewriter
from opro.proposers.shared import Shared
from opro.search.history import Candidate
from opro.search.objective import Objective
from opro.search.proposer import Proposer
from opro.settings import STRATEGIES, OptimizeSettings

log = logging.getLogger(__name__)
UNKNOWN = (  # of a damaged line
    "what the run has spent on its language model is unknown: restore the file, or give another --name"
)
CALLS = (
    "calls.jsonl"  # beside the journal of proposals: which calls were begun, and which have ended
)


@dataclass(frozen=True)
class ProposerPlan:
    """The proposer of a run before its folder is open: wrong use is found here.

    Attributes:
        lm: The language model, or None for the rewriter alone.
        ledger: What the run has spent on it.
        shared: Candidates of other runs.
        presentations: That are searched beside the wording.
        told: What profiles tell the language model.
        name: What a resumed run must find again.
    """

    settings: OptimizeSettings
    problem: Problem
    lm: LanguageModel | None
    ledger: Ledger
    shared: Sequence[Candidate] = field(default_factory=tuple)
    presentations: Sequence[Presentation] = ()
    told: str = ""

    @property
    def name(self) -> str:
        """Who proposes, and what is searched beside the wording."""
        name = "rewriter"
        if self.lm is not None:
            name = f"lm {self.lm.name}" + ("" if self._alone else " and rewriter")
        ways = "; ".join(how.words for how in self.presentations)
        return f"{name}, with clips {ways}" if ways else name

    @property
    def _alone(self) -> bool:
        return self.settings.proposer == "lm" or STRATEGIES[self.settings.strategy].lm_alone

    def resume(self, journal: Path) -> Proposer:
        """The proposer, with what an interrupted run has paid for: its cost counts, and its replies are used."""
        settings, task = self.settings, self.problem.task
        paid = _restore(journal, self.ledger)
        learn = settings.strategy != "random"
        made = FrameRewriter if task.choices else Rewriter
        rewriter = made(task, settings.seed, learn)
        proposer: Proposer = rewriter
        if self.lm is not None:

            def record(entry: dict[str, Any]) -> None:
                _record(journal, self.ledger, entry)

            calls = journal.with_name(CALLS)
            _charge_open(calls, self.ledger, paid)
            metered = MeteredModel(
                self.lm,
                self.ledger,
                record,
                paid,
                lambda entry: append_line(calls, json.dumps(entry) + "\n"),
            )
            asking = LMProposer(
                metered,
                task,
                Objective(settings.objective, settings.threshold),
                strategy=settings.strategy,
                seed=settings.seed,
                both_orders=settings.swap,
                calls=Calls(settings.lm_separate, settings.lm_concurrency, self.told),
            )
            self.lm.on_loss = lambda *lost: _lose(journal, self.ledger, *lost)
            self.lm.may_take = metered.may_take
            proposer = asking
            if not self._alone:
                beside = OrNothing(asking, record)
                proposer = Mixed(beside, rewriter, nothing if task.choices else beside.fragments)
        elif settings.strategy != "random" and settings.proposer == "auto":
            if isinstance(rewriter, Rewriter) and not rewriter.bank:
                print(
                    f"task {task.name!r} has no fragments for the rewriter: it changes layout, order and what stands"
                    " before and after the question; fragments in a task file, or a language model, bring other words",
                    file=sys.stderr,
                )
            print(
                "proposals come from the built-in rewriter; to use a language model set OPENAI_API_KEY"
                " (and --lm-base-url for another server) and give --lm-model NAME",
                file=sys.stderr,
            )
        if self.presentations:
            proposer = Presenting(proposer, self.presentations, settings.seed)
        if settings.strategy == "race":
            proposer = Exchanging(proposer)
        return Shared(proposer, self.shared) if self.shared else proposer


@dataclass(frozen=True)
class OwnPlan:
    """A proposer that was given as an object; it asks no language model that the run pays for."""

    proposer: Proposer
    ledger: Ledger = field(default_factory=lambda: Ledger(None, None, None))

    @property
    def name(self) -> str:
        """Who proposes."""
        return f"own {self.proposer.name}"

    def resume(self, journal: Path) -> Proposer:
        """The proposer, with what it must not propose left out."""
        return Heeding(self.proposer)


def _asks_one(settings: OptimizeSettings) -> bool:
    """Whether a language model is asked where one is configured."""
    return settings.proposer != "rewriter" and settings.strategy != "random"


def check_servers(settings: OptimizeSettings) -> None:
    """Looks at the addresses, keys and proxies that a run needs, before clips and checkpoints are opened.

    Raises:
        UserError: One of them cannot be used.
    """
    for checkpoint in settings.checkpoints:
        if checkpoint.startswith("endpoint:"):
            audio_server()
    local = settings.lm_model is not None and Path(settings.lm_model).is_dir()
    named = settings.lm_base_url or os.environ.get("OPENAI_BASE_URL")
    if _asks_one(settings) and not local and (named or os.environ.get("OPENAI_API_KEY")):
        language_server(settings.lm_base_url)


def open_proposer(
    settings: OptimizeSettings, problem: Problem, shared: Sequence[Candidate] = (), told: str = ""
) -> ProposerPlan:
    """The proposer that the settings ask for.

    Args:
        shared: Candidates of other runs.
        told: What profiles tell the language model.
    Raises:
        UserError: A language model is asked for and none is configured, or it cannot be reached so, or the strategy
            asks none.
    """
    if settings.proposer == "lm" and settings.strategy == "random":
        raise UserError(
            "--proposer lm does not go with --strategy random, which asks no language model; give"
            " --strategy race or opro"
        )
    lm = None
    if _asks_one(settings):
        lm = connect(settings.lm_model, settings.lm_base_url, settings.seed, settings.max_cost)
        if isinstance(lm, OpenAIModel):
            lm.thinking = Thinking(settings.lm_reply_tokens, settings.lm_effort)
        if lm is None and settings.proposer == "lm":
            raise UserError(
                "--proposer lm: no language model is configured; give --lm-base-url and --lm-model, or"
                " set OPENAI_API_KEY and give --lm-model"
            )
    prices = lm.prices if lm is not None else None
    ledger = Ledger(settings.max_tokens, settings.max_cost, prices)
    ways = _presentations(settings, problem)
    return ProposerPlan(settings, problem, lm, ledger, shared, ways, told)


def _presentations(settings: OptimizeSettings, problem: Problem) -> list[Presentation]:
    """What ``--presentations`` names.

    Raises:
        UserError: The file cannot be used, or the evaluator does not heed presentations.
    """
    if settings.presentations is None:
        return []
    found = read_presentations(resolve(settings.presentations))
    seed = problem.seed_prompts[0]
    require_presents(problem.evaluator, [replace(seed, presentation=how) for how in found])
    return [how for how in found if how != AS_IS]


def _restore(journal: Path, ledger: Ledger) -> dict[Call, Reply]:
    """Replies that an interrupted run has had, by call; the ledger counts what it spent.

    Raises:
        UserError: A line is damaged: what it cost is unknown.
    """
    paid: dict[Call, Reply] = {}
    if not journal.exists():
        return paid
    ledger.torn = cut_torn_line(journal)
    for where, raw in json_lines(journal, UNKNOWN):
        try:
            if "stopped" in raw or "unanswered" in raw:
                continue
            for name in ("tokens_in", "tokens_out", "cost"):
                if not 0 <= (raw.get(name) or 0) < math.inf:
                    raise ValueError(f"{name} is {raw[name]}")
            if "lost" in raw:
                ledger.charge_unanswered(raw["tokens_in"], raw["tokens_out"])
                continue
            keys = ("reply", "tokens_in", "tokens_out", "cost", "model", "finish")
            reply = Reply(*(raw[k] for k in keys))
            paid[raw["iteration"], raw["call"], raw.get("system", ""), raw["meta_prompt"]] = reply
            ledger.add(reply)
            ledger.refused += len(raw["refused"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where}: damaged line ({type(error).__name__}: {inert(str(error), lines=False)}); {UNKNOWN}"
            ) from None
    return paid


def _charge_open(calls: Path, ledger: Ledger, paid: Collection[Call]) -> None:
    """Counts calls that were under way when a process ended, at their worst case: the server may charge them.

    Raises:
        UserError: A line is damaged.
    """
    if not calls.exists():
        return
    cut_torn_line(calls)
    entries = []
    for where, entry in json_lines(calls, UNKNOWN):
        try:
            entries.append(entry)
            open_calls(entries[-1:], ())
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"{where}: damaged line ({type(error).__name__}: {inert(str(error), lines=False)}); {UNKNOWN}"
            ) from None
    found = open_calls(entries, paid)
    for tokens_in, tokens_out in found:
        ledger.charge_unanswered(tokens_in, tokens_out)
    if found:
        ledger.torn = False  # its call is one of these
        log.warning(
            "language model: %d calls were under way when the run was interrupted; they count at their worst case",
            len(found),
        )


def _record(journal: Path, ledger: Ledger, entry: dict[str, Any]) -> None:
    with ledger.lock:  # lines of several threads stay whole
        append_line(journal, json.dumps(entry) + "\n")  # plain ASCII: a reply may hold anything
    for refused in entry.get("refused", []):
        log.info("refused (%s): %r", refused["reason"], refused["text"])
    if "stopped" in entry:
        log.warning("no further call to the language model: %s", entry["stopped"])


def _lose(journal: Path, ledger: Ledger, tokens_in: int, tokens_out: int, why: str) -> str:
    """Counts a call without a reply; returns why there may be no further one, or an empty text."""
    with ledger.lock:
        cost = ledger.charge_unanswered(tokens_in, tokens_out)
        entry = {"lost": why, "tokens_in": tokens_in, "tokens_out": tokens_out, "cost": cost}
        _record(journal, ledger, entry)
        return ledger.why_stop(tokens_in, tokens_out)


def connect(
    model: str | None, base_url: str | None, seed: int, max_cost: float | None
) -> LanguageModel | None:
    """The language model that flags and environment ask for, or None when none is configured.

    Raises:
        UserError: An endpoint without a model name, or `max_cost` without a way to know the cost.
    """
    if model and Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise UserError(
                f"--lm-model {model!r} is a directory without config.json; expected a transformers"
                " model or a model name"
            )
        return LocalModel(Path(model), seed)
    url = base_url or os.environ.get("OPENAI_BASE_URL")
    if not url and not os.environ.get("OPENAI_API_KEY"):
        if model:
            raise UserError(
                f"--lm-model {model!r} is no directory and no endpoint is configured; set"
                " OPENAI_API_KEY, or give --lm-base-url"
            )
        return None
    if not model:
        raise UserError(
            "an endpoint is configured but no model; give --lm-model NAME, or --proposer rewriter"
            " to do without"
        )
    prices = _prices()
    if max_cost is not None and prices is None and "openrouter" not in (url or ""):
        raise UserError(
            "--max-cost needs prices: set OPRO_LM_PRICES=IN,OUT (US dollars per million tokens), or"
            " use --max-tokens"
        )
    return OpenAIModel(model, base_url, prices)


def _prices() -> tuple[float, float] | None:
    text = os.environ.get("OPRO_LM_PRICES")
    if not text:
        return None
    try:
        price_in, price_out = (float(part) for part in text.split(","))
        if not (0 <= price_in < math.inf and 0 <= price_out < math.inf):
            raise ValueError
    except ValueError:
        raise UserError(
            f"OPRO_LM_PRICES is {text!r}; expected two numbers, US dollars per million tokens in"
            " and out, like 0.15,0.60"
        ) from None
    return price_in, price_out
