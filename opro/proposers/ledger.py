"""Calls to a language model: counted, limited, journalled, and never made twice."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opro.proposers.language_model import (
    LanguageModel,
    Message,
    Reply,
    SpentError,
    UnansweredError,
    most_tokens,
)

Call = tuple[int, int, str, str]  # iteration, call in it, system message, what is asked
Begun = tuple[int, int]  # iteration, call in it
Tokens = tuple[int, int]  # in, out


@dataclass
class Ledger:
    """Calls, tokens and cost of a run, with the limits on them. Restored from the run's proposals on resume.

    Safe to use from several threads, each of which has one call under way at most: what that may cost is held, so that
    calls under way together never exceed a limit.
    """

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
    lock: threading.Condition = field(
        default_factory=threading.Condition, repr=False, compare=False
    )
    _held: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    def add(self, reply: Reply) -> None:
        """Counts a reply."""
        with self.lock:
            self.calls += 1
            self.tokens_in += reply.tokens_in
            self.tokens_out += reply.tokens_out
            self.cost += reply.cost or 0.0

    def hold(self, tokens_in: int, tokens_out: int) -> str:
        """Sets aside what this thread's next try takes at most; returns why it may not be made, or an empty text.

        Where only the calls of other threads leave no room, it waits for them: they may take less than they hold.
        """
        with self.lock:
            self._held.pop(threading.get_ident(), None)
            self.lock.notify_all()
            while (why := self.why_stop(tokens_in, tokens_out)) and self._held:
                self.lock.wait()
            if not why:
                self._held[threading.get_ident()] = tokens_in, tokens_out
            return why

    def release(self) -> None:
        """Sets nothing aside for this thread any more: its call is counted, or was not made."""
        with self.lock:
            self._held.pop(threading.get_ident(), None)
            self.lock.notify_all()

    def charge_unanswered(self, tokens_in: int, tokens_out: int) -> float:
        """Counts a call whose reply never came, at its worst case: the server may charge it. Returns its cost."""
        with self.lock:
            cost = self._price(tokens_in, tokens_out)
            self.lost += 1
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out
            self.cost += cost
            return cost

    def why_stop(self, tokens_in: int, tokens_out: int) -> str:
        """Why no further call may be made, or an empty text.

        Assumes that the next one takes so many tokens, and those of other threads all that they hold.
        """
        with self.lock:
            total = self.tokens_in + self.tokens_out
            others = [v for k, v in self._held.items() if k != threading.get_ident()]
            most = total + tokens_in + tokens_out + sum(map(sum, others))
            if self.max_tokens is not None and most > self.max_tokens:
                return f"--max-tokens {self.max_tokens} leaves no room for another call ({total} spent)"
            worst = sum(self._price(*held) for held in ((tokens_in, tokens_out), *others))
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


def open_calls(entries: Iterable[Mapping[str, Any]], kept: Collection[Call]) -> list[Tokens]:
    """Most tokens of each call that was begun and of which it is unknown what came.

    Args:
        entries: What `MeteredModel.note` was told, in its order.
        kept: Calls whose replies are known; a crash may have come before that was noted.
    """
    begun: dict[Begun, list[Tokens]] = {}
    ended = Counter[Begun]()
    for entry in entries:
        if "ended" in entry:
            ended[_begun(entry["ended"])] += 1
            continue
        known = begun.setdefault(_begun(entry["begun"]), [])
        most = int(entry["tokens_in"]), int(entry["tokens_out"])
        if min(most) < 0:
            raise ValueError(f"tokens are {min(most)}")
        if entry.get("instead"):
            known[-1:] = [most]
        else:
            known.append(most)
    answered = Counter(call[:2] for call in kept)
    return [
        most
        for call, tries in begun.items()
        for most in tries[: max(0, len(tries) - max(ended[call], answered[call]))]
    ]


def _begun(value: Any) -> Begun:
    iteration, number = value
    return int(iteration), int(number)


@dataclass(frozen=True)
class MeteredModel:
    """A language model whose calls are counted. Safe to use from several threads.

    Attributes:
        record: Called with one dictionary a call, one at a time.
        paid: Replies that an interrupted run has had: they are not asked for again.
        note: Called with one dictionary before a call leaves, and one when it is known what came of it: what is begun
            and never ends counts on resume, see `open_calls`.
    """

    lm: LanguageModel
    ledger: Ledger
    record: Callable[[dict[str, Any]], None] = _forget
    paid: Mapping[Call, Reply] = field(default_factory=dict)
    note: Callable[[dict[str, Any]], None] = _forget
    _asking: dict[int, Call] = field(default_factory=dict, repr=False)  # by thread

    def ask(
        self,
        call: Call,
        *,
        temperature: float,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply | None:
        """The reply; None when the ledger's limit is near, which is recorded."""
        if call in self.paid:
            return self.paid[call]
        iteration, number, system, text = call
        more = {} if schema is None else {"schema": schema}
        try:
            if stop := self._why_not(most_tokens(system + text), max_tokens):
                raise SpentError(stop)
            own = [Message("system", system)] if system else []
            chat = [*own, Message("user", text)]
            self._asking[threading.get_ident()] = call
            self._begin(call, most_tokens(system + text), max_tokens)
            reply = self.lm(chat, temperature=temperature, max_tokens=max_tokens, **more)
            self.ledger.add(reply)
            return reply
        except SpentError as stopped:
            with self.ledger.lock:
                self.record({"iteration": iteration, "call": number, "stopped": str(stopped)})
            self._end(call)
            return None
        except UnansweredError:  # its tries are counted, each as it failed
            self._end(call)
            raise
        finally:
            self.ledger.release()

    def may_take(self, tokens_in: int, tokens_out: int) -> str:
        """Why a try of this thread's call may not be made with more room than was asked for, or an empty text."""
        stop = self.ledger.hold(tokens_in, tokens_out)
        if not stop:
            self._begin(self._asking[threading.get_ident()], tokens_in, tokens_out, instead=True)
        return stop

    def _begin(self, call: Call, tokens_in: int, tokens_out: int, instead: bool = False) -> None:
        entry = {"begun": call[:2], "tokens_in": tokens_in, "tokens_out": tokens_out}
        with self.ledger.lock:
            self.note(entry | ({"instead": True} if instead else {}))

    def _end(self, call: Call) -> None:
        if self._asking.pop(threading.get_ident(), None) is not None:
            with self.ledger.lock:
                self.note({"ended": call[:2]})

    def _why_not(self, tokens_in: int, tokens_out: int) -> str:
        """Why a call may not be made, or an empty text: then what it may take is held."""
        stop = self.ledger.hold(tokens_in, tokens_out)
        with self.ledger.lock:
            torn, self.ledger.torn = self.ledger.torn, False
        if torn and not stop:  # with no room for it, it was not made
            return self.lm.on_loss(tokens_in, tokens_out, "its record was cut short")
        return stop

    def keep(self, call: Call, reply: Reply, accepted: int, refused: list[dict[str, str]]) -> None:
        """Records a reply and what came of it, once."""
        if call in self.paid:
            return
        entry = {
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
        with self.ledger.lock:
            self.ledger.refused += len(refused)
            self.record(entry)
            self.note({"ended": call[:2]})
