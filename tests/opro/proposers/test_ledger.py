"""The ledger, against sums that are written out."""

import contextlib
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opro.proposers.language_model import Message, Reply, SpentError, UnansweredError
from opro.proposers.ledger import Ledger, MeteredModel, open_calls


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


# ---- calls

CALL = (2, 1, "You propose.", "Propose prompts.")
REPLY = Reply("1. Listen.", 30, 7, 0.25, "m", "stop")


def metered(ledger, **more):
    """A metered model, what it was asked and what was recorded."""
    asked, records = [], []

    def lm(messages, *, temperature, max_tokens):
        asked.append((messages, temperature, max_tokens))
        return REPLY

    return MeteredModel(lm, ledger, records.append, **more), asked, records


def test_a_call_is_made_as_it_is_given_and_counted():
    ledger = Ledger(max_tokens=5000)
    model, asked, records = metered(ledger)
    assert model.ask(CALL, temperature=0.7, max_tokens=900) == REPLY
    assert (
        asked == [([Message("system", CALL[2]), Message("user", CALL[3])], 0.7, 900)]
        and records == []
    )
    assert (ledger.calls, ledger.tokens_in, ledger.tokens_out, ledger.cost) == (1, 30, 7, 0.25)


def test_a_call_that_the_limit_does_not_cover_is_not_made_and_is_recorded():
    model, asked, records = metered(Ledger(max_tokens=500))
    assert model.ask(CALL, temperature=0.7, max_tokens=500) is None and asked == []
    assert [(r["iteration"], r["call"]) for r in records] == [(2, 1)]
    assert records[0]["stopped"].startswith("--max-tokens 500 leaves no room")


def test_a_reply_that_was_paid_for_is_neither_asked_for_nor_counted_nor_recorded_again():
    ledger = Ledger(max_tokens=1)  # nothing is left
    model, asked, records = metered(ledger, paid={CALL: REPLY})
    assert model.ask(CALL, temperature=0.7, max_tokens=900) is REPLY
    model.keep(CALL, REPLY, 1, [{"text": "x", "reason": "y"}])
    assert asked == records == [] and ledger == Ledger(max_tokens=1)


def test_what_came_of_a_reply_is_recorded_with_it():
    ledger = Ledger()
    model, _, records = metered(ledger)
    refused = [{"text": "x", "reason": "too long"}, {"text": "y", "reason": "seen before"}]
    model.keep(CALL, REPLY, 3, refused)
    model.keep((3, 0, "", "Again."), REPLY, 0, refused[:1])
    assert ledger.refused == 3
    assert records[0] == {
        "iteration": 2,
        "call": 1,
        "model": "m",
        "system": "You propose.",
        "meta_prompt": "Propose prompts.",
        "reply": "1. Listen.",
        "tokens_in": 30,
        "tokens_out": 7,
        "cost": 0.25,
        "finish": "stop",
        "accepted": 3,
        "refused": refused,
    }


# ---- calls at once


@pytest.mark.parametrize("limit", [5_000, 12_345, 40_000])
def test_calls_at_once_never_exceed_a_limit_together_and_use_what_it_allows(limit):
    """Each takes less than it holds, so that others may follow."""
    under_way, most = [], []
    ledger = Ledger(max_tokens=limit, max_cost=limit / 1e6, prices=(1.0, 1.0))
    lock = threading.Lock()

    def lm(messages, *, temperature, max_tokens):
        worst = 5 + max_tokens
        with lock:
            under_way.append(worst)
            most.append(sum(under_way) + ledger.tokens_in + ledger.tokens_out)
            under_way.remove(worst)
        return Reply("", 5, max_tokens // 2, (5 + max_tokens // 2) / 1e6, "m", "stop")

    model = MeteredModel(lm, ledger, lambda entry: None)
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(model.ask, (1, i, "", "x" * 12), temperature=1.0, max_tokens=900)
            for i in range(200)
        ]
        replies = [job.result() for job in jobs]
    spent = ledger.tokens_in + ledger.tokens_out
    assert max(most) <= limit and spent <= limit and limit - spent < 905 + 5
    assert ledger.calls == sum(r is not None for r in replies) == spent // 455
    assert not ledger._held


def test_a_call_that_others_leave_no_room_for_waits_for_what_they_really_take():
    begun, go_on = threading.Event(), threading.Event()

    def lm(messages, *, temperature, max_tokens):
        if messages[0].content == "first":
            begun.set()
            assert go_on.wait(20)
        return REPLY

    ledger = Ledger(max_tokens=1000)
    model = MeteredModel(lm, ledger)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(model.ask, (1, 0, "", "first"), temperature=1.0, max_tokens=900)
        assert begun.wait(20)
        assert "leaves no room" in ledger.why_stop(1, 900)
        second = pool.submit(model.ask, (1, 1, "", "second"), temperature=1.0, max_tokens=900)
        assert not second.done()
        go_on.set()
        assert first.result(20) == second.result(20) == REPLY


def test_a_call_that_fails_holds_nothing():
    def lm(messages, *, temperature, max_tokens):
        raise OSError

    ledger = Ledger(max_tokens=1000)
    with pytest.raises(OSError):
        MeteredModel(lm, ledger).ask(CALL, temperature=1.0, max_tokens=900)
    assert ledger.why_stop(50, 950) == ""


def test_a_thread_may_hold_more_for_its_next_try_and_not_beyond_the_limit():
    ledger = Ledger(max_tokens=1000)
    assert ledger.hold(10, 400) == "" == ledger.hold(10, 990)
    assert "leaves no room" in ledger.hold(10, 991)


def test_a_schema_goes_with_the_call_where_there_is_one():
    seen = []

    def lm(messages, *, temperature, max_tokens, schema=None):
        seen.append(schema)
        return REPLY

    model = MeteredModel(lm, Ledger())
    model.ask(CALL, temperature=1.0, max_tokens=9)
    model.ask(CALL, temperature=1.0, max_tokens=9, schema={"type": "object"})
    assert seen == [None, {"type": "object"}]


# ---- calls of which it is unknown what came


def noted(model_of):
    """A metered model over `model_of`, and what was noted of its calls."""
    notes = []
    return MeteredModel(model_of, Ledger(max_tokens=9000), note=notes.append), notes


def lm_that(raises):
    def lm(messages, *, temperature, max_tokens):
        if raises is not None:
            raise raises
        return REPLY

    return lm


@pytest.mark.parametrize(
    ("raises", "kept", "still_open"),
    [(None, True, 0), (None, False, 1), (SpentError("x"), False, 0), (UnansweredError("x"), False, 0),
     (KeyboardInterrupt(), False, 1)],
)  # fmt: skip
def test_a_call_is_open_until_it_is_known_what_came_of_it(raises, kept, still_open):
    model, notes = noted(lm_that(raises))
    with contextlib.suppress(UnansweredError, KeyboardInterrupt):
        reply = model.ask(CALL, temperature=0.7, max_tokens=900)
        if kept:
            model.keep(CALL, reply, 0, [])
    found = open_calls(notes, ())
    assert len(found) == still_open and all(tokens_out == 900 for _, tokens_out in found)
    assert (
        open_calls(notes, [CALL]) == []
    )  # its reply is in the journal: the crash came just before the note


def test_a_call_with_more_room_is_open_with_that():
    model, notes = noted(lambda *messages, **options: model.may_take(50, 4000) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.ask(CALL, temperature=0.7, max_tokens=900)
    assert open_calls(notes, ()) == [(50, 4000)]


@given(st.lists(st.tuples(st.sampled_from(["begun", "ended"]), st.integers(0, 2)), max_size=20))
def test_each_beginning_without_an_end_is_counted(steps):
    entries = [
        {kind: [1, call]} | ({"tokens_in": 3, "tokens_out": 4} if kind == "begun" else {})
        for kind, call in steps
    ]
    counts = [
        [(kind, call) for kind, call in steps].count((k, c))
        for c in range(3)
        for k in ("begun", "ended")
    ]
    expected = sum(max(0, b - e) for b, e in zip(counts[::2], counts[1::2], strict=True))
    assert open_calls(entries, ()) == [(3, 4)] * expected
