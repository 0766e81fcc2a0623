"""The ledger, against sums that are written out."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opro.proposers.language_model import Reply
from opro.proposers.ledger import Ledger


def test_the_ledger_stops_before_its_limits():
    ledger = Ledger(max_tokens=5000, max_cost=1.0)
    assert ledger.why_stop(100, 2048) == ""
    ledger.add(Reply("", 2000, 2000, 0.2, "m", "stop"))
    assert "--max-tokens 5000" in ledger.why_stop(100, 2048)
    ledger = Ledger(max_cost=1.0)
    ledger.add(Reply("", 1, 1, 0.6, "m", "stop"))
    assert "--max-cost 1.0" in ledger.why_stop(1, 2048)


counts = st.integers(0, 5000)
costs = st.none() | st.floats(0, 3, allow_nan=False)
calls = st.lists(st.tuples(st.sampled_from(["reply", "lost"]), counts, counts, costs), max_size=8)
prices = st.tuples(st.floats(0, 50), st.floats(0, 50))


def booked(ledger, entries):
    """What the ledger shows after each of the calls."""
    seen = [(0, 0, 0.0)]
    for kind, tokens_in, tokens_out, cost in entries:
        if kind == "reply":
            ledger.add(Reply("", tokens_in, tokens_out, cost, "m", "stop"))
        else:
            ledger.charge_unanswered(tokens_in, tokens_out)
        seen.append((ledger.tokens_in, ledger.tokens_out, ledger.cost))
    return seen


@settings(deadline=None)
@given(calls, prices)
def test_tokens_and_cost_are_sums_that_never_fall_and_lost_calls_are_charged(entries, price):
    ledger = Ledger(prices=price)
    seen = booked(ledger, entries)
    assert all(a <= b for x, y in pairwise(seen) for a, b in zip(x, y, strict=True))
    assert ledger.tokens_in == sum(e[1] for e in entries)
    assert ledger.tokens_out == sum(e[2] for e in entries)
    worst = [(i * price[0] + o * price[1]) / 1e6 for _, i, o, _ in entries]
    expected = (w if e[0] == "lost" else e[3] or 0 for w, e in zip(worst, entries, strict=True))
    assert ledger.cost == pytest.approx(math.fsum(expected), abs=1e-9)
    assert (ledger.calls, ledger.lost) == tuple(
        sum(e[0] == kind for e in entries) for kind in ("reply", "lost")
    )


@settings(deadline=None)
@given(calls, prices, counts, counts, st.floats(0, 1), st.integers(0, 40_000))
def test_a_call_is_allowed_only_if_its_worst_case_fits_both_limits(
    entries, price, tokens_in, tokens_out, max_cost, max_tokens
):
    ledger = Ledger(max_tokens, max_cost, price)
    booked(ledger, entries)
    worst = (tokens_in * price[0] + tokens_out * price[1]) / 1e6
    after = ledger.tokens_in + ledger.tokens_out + tokens_in + tokens_out
    why = ledger.why_stop(tokens_in, tokens_out)
    if after > max_tokens:
        assert f"--max-tokens {max_tokens}" in why
    elif ledger.cost + worst > max_cost or ledger.cost >= max_cost:
        assert f"--max-cost {max_cost}" in why
    else:
        assert why == ""
    unlimited = Ledger(prices=price)
    booked(unlimited, entries)
    assert unlimited.why_stop(tokens_in, tokens_out) == ""


def test_a_limit_may_be_reached_exactly_and_nothing_is_free_beyond_it():
    assert Ledger(max_tokens=100).why_stop(60, 40) == "" != Ledger(max_tokens=100).why_stop(60, 41)
    ledger = Ledger(max_cost=1.0, prices=(1e6, 1e5))
    assert ledger.why_stop(0, 10) == ledger.why_stop(1, 0) == "" != ledger.why_stop(1, 1)
    ledger.add(Reply("", 1, 0, 1.0, "m", "stop"))
    assert "(1.0000 spent)" in ledger.why_stop(0, 0)
    with_tokens = Ledger(max_tokens=9)
    with_tokens.add(Reply("", 3, 4, None, "m", "stop"))
    assert "(7 spent)" in with_tokens.why_stop(1, 2)
    assert Ledger(max_cost=0.0).why_stop(0, 0) != ""


def test_without_prices_a_call_is_taken_to_cost_twice_the_mean_so_far():
    ledger = Ledger(max_cost=1.0)
    assert ledger.why_stop(10**9, 10**9) == "" and ledger.charge_unanswered(10, 10) == 0
    for cost in (0.1, 0.3):
        ledger.add(Reply("", 1, 1, cost, "m", "stop"))
    assert ledger.charge_unanswered(5, 7) == pytest.approx(0.4) and ledger.cost == pytest.approx(
        0.8
    )
    assert "(0.8000 spent)" in ledger.why_stop(1, 1)
    assert Ledger().cost == 0 == Ledger().calls == Ledger().lost == Ledger().refused
