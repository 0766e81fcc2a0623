"""Calls to a language model: counted, limited, journalled, and never made twice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opro.proposers.language_model import LanguageModel, Message, Reply, SpentError, most_tokens

Call = tuple[int, int, str, str]  # iteration, call in it, system message, what is asked


@dataclass
class Ledger:
    """Calls, tokens and cost of a run, with the limits on them. Restored from the run's proposals on resume."""

    max_tokens: int | None = None
    max_cost: float | None = None
    prices: tuple[float, float] | None = None  # US dollars per million tokens in and out
    refused: int = 0  # proposals that could not be used
    lost: int = 0  # calls that may have been charged though no reply came
    torn: bool = False  # a crash cut the last record short: it may be of the reply to the next call
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def add(self, reply: Reply) -> None:
        """Counts a reply."""
        self.calls += 1
        self.tokens_in += reply.tokens_in
        self.tokens_out += reply.tokens_out
        self.cost += reply.cost or 0.0

    def charge_unanswered(self, tokens_in: int, tokens_out: int) -> float:
        """Counts a call whose reply never came, at its worst case: the server may charge it. Returns its cost."""
        cost = self._price(tokens_in, tokens_out)
        self.lost += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.cost += cost
        return cost

    def why_stop(self, tokens_in: int, tokens_out: int) -> str:
        """Why no further call may be made, or an empty text. Assumes that the next one takes so many tokens."""
        total = self.tokens_in + self.tokens_out
        if self.max_tokens is not None and total + tokens_in + tokens_out > self.max_tokens:
            return f"--max-tokens {self.max_tokens} leaves no room for another call ({total} spent)"
        worst = self._price(tokens_in, tokens_out)
        if self.max_cost is not None and (
            self.cost >= self.max_cost or self.cost + worst > self.max_cost
        ):
            return f"--max-cost {self.max_cost} leaves no room for another call ({self.cost:.4f} spent)"
        return ""

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        if self.prices is not None:
            return (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6
        return 2 * self.cost / self.calls if self.calls else 0.0


def _forget(entry: dict[str, Any]) -> None:
    """Keeps no record."""


@dataclass(frozen=True)
class MeteredModel:
    """A language model whose calls are counted.

    Attributes:
        record: Called with one dictionary a call.
        paid: Replies that an interrupted run has had: they are not asked for again.
    """

    lm: LanguageModel
    ledger: Ledger
    record: Callable[[dict[str, Any]], None] = _forget
    paid: Mapping[Call, Reply] = field(default_factory=dict)

    def ask(self, call: Call, *, temperature: float, max_tokens: int) -> Reply | None:
        """The reply; None when the ledger's limit is near, which is recorded."""
        if call in self.paid:
            return self.paid[call]
        iteration, number, system, text = call
        asked = most_tokens(system + text)
        try:
            stop = self.ledger.why_stop(asked, max_tokens)
            if self.ledger.torn and not stop:  # with no room for it, it was not made
                stop = self.lm.on_loss(asked, max_tokens, "its record was cut short")
            self.ledger.torn = False
            if stop:
                raise SpentError(stop)
            own = [Message("system", system)] if system else []
            messages = [*own, Message("user", text)]
            reply = self.lm(messages, temperature=temperature, max_tokens=max_tokens)
        except SpentError as stopped:
            self.record({"iteration": iteration, "call": number, "stopped": str(stopped)})
            return None
        self.ledger.add(reply)
        return reply

    def keep(self, call: Call, reply: Reply, accepted: int, refused: list[dict[str, str]]) -> None:
        """Records a reply and what came of it, once."""
        if call in self.paid:
            return
        self.ledger.refused += len(refused)
        self.record(
            {
                "iteration": call[0],
                "call": call[1],
                "model": reply.model,
                "system": call[2],
                "meta_prompt": call[3],
                "reply": reply.text,
                "tokens_in": reply.tokens_in,
                "tokens_out": reply.tokens_out,
                "cost": reply.cost,
                "finish": reply.finish,
                "accepted": accepted,
                "refused": refused,
            }
        )
