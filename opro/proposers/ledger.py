"""The ledger: calls, tokens and cost of a run, and the limits on them."""

from dataclasses import dataclass

from opro.proposers.language_model import Reply


@dataclass
class Ledger:
    """Calls, tokens and cost of a run, with the limits on them. Restored from the run's proposals on resume."""

    max_tokens: int | None = None
    max_cost: float | None = None
    prices: tuple[float, float] | None = None  # US dollars per million tokens in and out
    refused: int = 0  # proposals that could not be used
    lost: int = 0  # calls that may have been charged though no reply came
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
