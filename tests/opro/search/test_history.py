"""The journal: what is written is on disk before the method returns, and a reader gets the same history back."""

import errno
import json
import math
import os
from dataclasses import replace

import pytest
from common import LABELS
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from evaluators.classifier import Classifier
from evaluators.errors import PauseError, UserError
from evaluators.prompts import Prompt
from opro import optimize
from opro.search.history import Candidate, History, Outcome, Trial

UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # making failures small takes minutes here


def opened(path, repair=False):
    return History(path, LABELS, repair=repair)


def propose(history, iteration, prompts, origin="seed", parents=()):
    return history.add(iteration, [Candidate(p, origin, parents) for p in prompts])


def tell(history, trial, *, state="complete", error="", reward=None, **outcome):
    """Tells an outcome; one without a reward has failed."""
    found = None if reward is None else Outcome(reward, **{"sd": 0.0, "score": reward, **outcome})
    history.tell(replace(trial, state=state, outcome=found, error=error))


def state_of(history):
    return history.header, history.trials, history.proposed, history.best, history.selection


WHOLE = {
    "state": "complete",
    "score": 0.5,
    "low": 0.4,
    "high": 0.6,
    "loss": 0.7,
    "n_scored": 20,
    "blocks": (0.4, 0.5),
    "slices": {"200 ms": (0.5, 10)},
}


def fill(path, seeds):
    history = opened(path)
    history.begin({"seed": 1})
    trials = propose(history, 0, seeds)
    for i, trial in enumerate(trials[:2]):
        tell(history, trial, reward=0.5 + i / 10, bias=i / 4, **WHOLE)
    return history


def run_of_all_events(path, seeds):
    """A journal with every kind of event and every state."""
    history = fill(path, seeds)
    history.tell(replace(history.trials[2], state="failed", error="no such answer", failed_after=7))
    propose(history, 1, [Prompt("Ünïcode A or B"), Prompt("x A B")], "rewriter:cut", ("a", "b"))
    tell(history, history.trials[3], state="dropped", reward=0.9, sd=0.05, score=0.9, n_scored=5)
    propose(history, 2, [])
    history.close({"chosen": 1, "baseline": 0, "reason": "kept", "finalists": [1]})
    return history


def test_a_replayed_journal_gives_the_same_history(tmp_path, seeds):
    history = run_of_all_events(tmp_path / "t.jsonl", seeds)
    again = opened(tmp_path / "t.jsonl")
    assert state_of(again) == state_of(history)
    assert again.header == {"seed": 1} and again.proposed == {0, 1, 2}
    assert again.selection["finalists"] == [1]
    assert [t.number for t in again.trials] == [0, 1, 2, 3, 4]
    assert [t.iteration for t in again.trials] == [0, 0, 0, 1, 1]
    assert again.trials[3].candidate.parents == ("a", "b")
    assert again.trials[3].candidate.origin == "rewriter:cut"
    assert again.trials[3].candidate.prompt == Prompt("Ünïcode A or B")
    first = again.trials[0].outcome
    assert first.slices == {"200 ms": (0.5, 10)} and first.blocks == (0.4, 0.5)
    assert (first.reward, first.sd, first.score, first.low, first.high) == (0.5, 0, 0.5, 0.4, 0.6)
    assert (first.loss, first.bias, first.n_scored) == (0.7, 0.0, 20)
    assert again.trials[1].classifier == Classifier(seeds[1], 0.25)
    assert (again.trials[2].outcome, again.trials[2].failed_after) == (None, 7)


def test_the_trials_of_an_iteration_wait_until_they_are_told(tmp_path, seeds):
    history = opened(tmp_path / "t.jsonl")
    history.begin({})
    first, second = propose(history, 0, seeds[:2]), propose(history, 1, seeds[2:])
    assert [t.number for t in first] == [0, 1] and [t.number for t in second] == [2]
    for t in first + second:
        assert t.state == "waiting" and t.outcome is None and not t.scored
        assert t.reward == -math.inf and (t.error, t.n_scored) == ("", 0)
        assert t.classifier == Classifier(t.prompt)
    tell(history, first[0], state="failed", error="x")
    assert [t.state for t in history.of(0)] == ["failed", "waiting"]
    assert [t.number for t in history.of(1)] == [2] and history.of(2) == []


def test_an_iteration_depends_on_those_before_it(tmp_path, seeds):
    history = opened(tmp_path / "t.jsonl")
    history.begin({})
    for iteration in range(3):
        propose(history, iteration, seeds[iteration : iteration + 1])
    assert [[t.number for t in history.before(i)] for i in range(5)] == [
        [], [0], [0, 1], [0, 1, 2], [0, 1, 2]
    ]  # fmt: skip
    assert [[t.number for t in history.of(i)] for i in range(4)] == [[0], [1], [2], []]


def test_a_run_begins_once_and_goes_on_as_what_it_was(tmp_path):
    path = tmp_path / "run" / "t.jsonl"
    identity = {"fingerprint": "a", "seed": 1}
    opened(path).begin(identity)
    raw = path.read_bytes()
    opened(path).begin(identity)
    assert path.read_bytes() == raw
    for other, changed in (
        ({"fingerprint": "b", "seed": 1}, "fingerprint"),
        ({"fingerprint": "a", "seed": 2}, "seed"),
        ({"fingerprint": "a", "seed": 1, "task": "x"}, "task"),
        ({"fingerprint": "a"}, "seed"),  # of a run that knew more of itself
    ):
        with pytest.raises(UserError, match=f"run 'run' was made with another {changed} "):
            opened(path).begin(other)
    assert path.read_bytes() == raw


DECIDED = {"chosen": 0, "baseline": 0, "reason": "kept", "finalists": []}


def test_a_run_is_closed_once(tmp_path, seeds):
    path = tmp_path / "t.jsonl"
    history = opened(path)
    history.begin({})
    propose(history, 0, seeds)
    history.close(DECIDED | {"chosen": 1})
    history.close(DECIDED | {"chosen": 2})
    assert history.selection == DECIDED | {"turn": 1} | {"chosen": 1} == opened(path).selection
    assert path.read_bytes().count(b"\n") == 3


def test_prompts_of_older_runs_with_swap_get_both_orders(tmp_path, seeds):
    path = tmp_path / "t.jsonl"
    fill(path, seeds)
    again = History(path, LABELS, both_orders=True)
    assert [t.prompt for t in again.trials] == [replace(p, both_orders=True) for p in seeds]
    assert [t.outcome for t in again.trials] == [t.outcome for t in opened(path).trials]


def test_every_event_has_its_keys(tmp_path, seeds):
    """Other programs read them: they stay."""
    path = tmp_path / "t.jsonl"
    run_of_all_events(path, seeds)
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {e["schema"] for e in events} == {1}
    names = "start propose tell tell tell propose tell propose select"
    assert [e["event"] for e in events] == names.split()
    assert set(events[1]) == {"schema", "event", "iteration", "candidates"}
    assert set(events[1]["candidates"][0]) == {"number", "prompt", "origin", "parents"}
    told = (
        "schema event prompt_id number state reward sd score low high nll bias fitted clips blocks"
    )
    assert set(events[2]) == {*told.split(), "slices", "profile", "outside", "error"}
    assert events[2]["prompt_id"] == seeds[0].prompt_id
    assert "Ünïcode" in path.read_text(encoding="utf-8")


def test_every_event_is_on_disk_and_synced_before_the_method_returns(tmp_path, seeds, monkeypatch):
    path = tmp_path / "deep" / "t.jsonl"
    synced = []
    real = os.fsync

    def spy(number):
        real(number)
        synced.append((os.readlink(f"/proc/self/fd/{number}"), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", spy)
    history = opened(path)
    steps = [
        lambda: history.begin({"seed": 1}),
        lambda: propose(history, 0, seeds),
        lambda: tell(history, history.trials[0], reward=0.5, **WHOLE),
        lambda: history.close(DECIDED),
    ]
    for number, step in enumerate(steps, 1):
        step()
        of_file = [content for name, content in synced if name == str(path)]
        assert of_file[-1] == path.read_bytes() and len(of_file) == number
        assert (str(path.parent), of_file[0]) in synced  # the new file's name too
        assert path.read_bytes().count(b"\n") == number
        assert state_of(opened(path)) == state_of(history)


def test_a_write_that_fails_pauses_and_changes_nothing(tmp_path, seeds, monkeypatch):
    history = fill(tmp_path / "t.jsonl", seeds)
    before = list(history.trials)

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for step in (
        lambda: propose(history, 1, seeds),
        lambda: tell(history, history.trials[2], reward=0.9, **WHOLE),
        lambda: history.close(DECIDED),
    ):
        with pytest.raises(PauseError, match="No space left"):
            step()
        assert history.trials == before and history.selection is None


def test_a_journal_that_cannot_be_made_pauses(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PauseError, match="cannot be written"):
        opened(tmp_path / "file" / "t.jsonl").begin({})


def test_a_full_device_pauses_a_search_with_exit_one(tmp_path, monkeypatch, capsys):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    argv = ["--checkpoint", "fake", "--clips", "20", "--iterations", "0", "--proposer", "rewriter"]
    argv += ["--runs-dir", str(tmp_path), "--name", "run"]
    assert optimize.run_verb(lambda: optimize.main(argv)) == 1
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_journal_cut_anywhere_is_read_up_to_its_last_whole_line(tmp_path, seeds):
    whole = tmp_path / "whole.jsonl"
    run_of_all_events(whole, seeds)
    raw, path = whole.read_bytes(), tmp_path / "t.jsonl"
    ends = [i + 1 for i, byte in enumerate(raw) if byte == 10]
    for cut in sorted({len(raw), *range(0, len(raw), 37), *ends, *(e - 1 for e in ends)}):
        kept = max((e for e in ends if e <= cut), default=0)
        path.write_bytes(raw[:kept])
        expected = state_of(opened(path))
        path.write_bytes(raw[:cut])
        assert state_of(opened(path)) == expected
        assert path.read_bytes() == raw[:cut]  # a reader changes nothing
        assert state_of(opened(path, repair=True)) == expected
        assert path.read_bytes() == raw[:kept]


def test_a_torn_line_that_was_repaired_is_written_again_as_it_was(tmp_path, seeds):
    path = tmp_path / "t.jsonl"
    fill(path, seeds)
    raw = path.read_bytes()
    path.write_bytes(raw[:-40])
    history = opened(path, repair=True)
    assert [t.state for t in history.trials] == ["complete", "waiting", "waiting"]
    tell(history, history.trials[1], reward=0.6, bias=0.25, **WHOLE)
    assert path.read_bytes() == raw


@pytest.mark.parametrize(
    "damage",
    [
        b"garbage\n",
        b"[1]\n",
        b"\n",
        b'{"event": "tell"}\n',
        b'{"schema": 1}\n',
        b'{"event": "tall", "schema": 1}\n',
        b'{"event": "tell", "schema": 1, "prompt_id": "x", "number": 99}\n',
        b'{"event": "start", "schema": 1}\n',
        b'{"event": "propose", "schema": 1}\n',
        b'{"event": "propose", "schema": "1"}\n',
    ],
)
def test_a_damaged_middle_is_reported_with_its_line(tmp_path, seeds, damage):
    path = tmp_path / "t.jsonl"
    fill(path, seeds)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], damage, *lines[2:]]))
    with pytest.raises(UserError, match=r"t\.jsonl:2: damaged"):
        opened(path)


def test_a_journal_without_its_start_is_damaged_in_line_one(tmp_path, seeds):
    path = tmp_path / "t.jsonl"
    fill(path, seeds)
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(UserError, match=r"t\.jsonl:1: damaged"):
        opened(path)


def test_an_event_of_the_next_schema_is_refused_wherever_it_stands(tmp_path, seeds):
    path = tmp_path / "t.jsonl"
    run_of_all_events(path, seeds)
    lines = path.read_text(encoding="utf-8").splitlines()
    for number in range(len(lines)):
        event = json.loads(lines[number])
        event["schema"] += 1
        path.write_text("\n".join([*lines[:number], json.dumps(event), *lines[number + 1 :], ""]))
        with pytest.raises(UserError, match="newer version"):
            opened(path)


def test_dropped_trials_are_scored_but_never_complete(tmp_path, seeds):
    history = fill(tmp_path / "t.jsonl", seeds)
    tell(history, history.trials[2], state="dropped", reward=0.99, n_scored=5)
    assert [t.number for t in history.complete] == [1, 0]
    assert [t.number for t in history.scored] == [2, 1, 0]
    assert history.best.number == 2


outcomes = st.tuples(
    st.sampled_from(["complete", "dropped", "failed", "waiting"]),
    st.sampled_from([0.5, 0.6, 0.7]),
    st.sampled_from([0.0, 0.15]),
    st.sampled_from([None, 0.2, 0.4]),
    st.integers(0, 3),
)


@settings(max_examples=60, deadline=None, phases=UNSHRUNK, derandomize=True)
@given(st.lists(outcomes, min_size=1, max_size=8))
def test_the_order_is_reward_less_its_sd_then_loss_then_length(tmp_path_factory, made):
    """Against the rule written out; the best is the first of them, of equal ones the one that was told first."""
    path = tmp_path_factory.mktemp("order") / "t.jsonl"
    history = opened(path)
    history.begin({})
    prompts = [Prompt(f"{i}: A or B" + "x" * one[4]) for i, one in enumerate(made)]
    trials = propose(history, 0, prompts)
    for trial, (state, reward, sd, nll, _) in zip(trials, made, strict=True):
        if state == "failed":
            tell(history, trial, state="failed", error="x")
        elif state != "waiting":
            tell(history, trial, state=state, reward=reward, sd=sd, loss=nll)

    def key(i):
        _, reward, sd, nll, length = made[i]
        return -(reward - sd), 1e9 if nll is None else nll, length, i

    scored = sorted((i for i, o in enumerate(made) if o[0] in ("complete", "dropped")), key=key)
    for one in (history, opened(path)):
        assert [t.number for t in one.scored] == scored
        complete = [i for i in scored if made[i][0] == "complete"]
        assert [t.number for t in one.complete] == complete
        assert (one.best.number if one.best else None) == (scored[0] if scored else None)


def test_a_trial_without_a_reward_ranks_below_every_other(tmp_path, seeds):
    history = opened(tmp_path / "t.jsonl")
    history.begin({})
    trials = propose(history, 0, seeds[:2])
    tell(history, trials[0], state="dropped", reward=math.nan)  # no reward can be had
    tell(history, trials[1], state="complete", reward=-3.0)
    assert [t.number for t in history.scored] == [1, 0] and history.best.number == 1


numbers = st.one_of(st.floats(), st.integers(-5, 5), st.text(max_size=3))
nested = st.recursive(
    numbers, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3)
)


@settings(max_examples=40, deadline=None, phases=UNSHRUNK, derandomize=True)
@given(st.dictionaries(st.sampled_from(["a", "b"]), nested))
def test_floats_are_rounded_to_six_places_and_what_is_no_number_is_null(tmp_path_factory, header):
    path = tmp_path_factory.mktemp("round") / "t.jsonl"
    opened(path).begin(header)

    def plain(value):
        if isinstance(value, float):
            return round(value, 6) if math.isfinite(value) else None
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list) else value

    event = json.loads(path.read_bytes(), parse_constant=lambda name: pytest.fail(name))
    assert event == {"schema": 1, "event": "start", **plain(header)}
    assert opened(path).header == plain(header)


def test_what_is_journalled_cannot_be_changed():
    for kind in (Candidate, Trial):
        assert kind.__dataclass_params__.frozen


def test_a_forecast_that_is_finished_makes_way_for_what_comes_of_it(tmp_path, seeds):
    history = run_of_all_events(tmp_path / "t.jsonl", seeds)
    assert history.best.number == 3 and history.trials[3].asked_twice == 0
    tell(history, history.trials[3], reward=0.55, **WHOLE)
    assert history.best.number == 1 and history.trials[3].n_scored == 20
    assert history.trials[3].asked_twice == 5
    other = run_of_all_events(tmp_path / "u.jsonl", seeds)
    other.tell(replace(other.trials[3], state="failed", error="x", outcome=None, failed_after=20))
    failed = other.trials[3]
    assert (failed.outcome, failed.n_scored, failed.reward) == (None, 20, -math.inf)
    assert other.best.number == 1 and failed.asked_twice == 5
    assert opened(tmp_path / "u.jsonl").trials == other.trials
