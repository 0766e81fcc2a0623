"""What a run has spent: every process adds its own, and what a fault interrupts is told first."""

import json
import time

import pytest
from searches import half

from evaluators.errors import PauseError, UserError
from evaluators.evaluator import Usage
from evaluators.fakes import FakeEvaluator
from evaluators.prompts import Prompt
from opro.results import spending
from opro.results.spending import MeteredEvaluator, Spending, Spent, read_spent
from opro.search.loop import Clock

PROMPTS = [Prompt("A or B"), Prompt("B or A")]


@pytest.fixture
def now(monkeypatch):
    """The clock, to be set."""
    at = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: at[0])
    return at


def opened(path, inner=None):
    inner = inner or FakeEvaluator()
    one = Spending(path, inner, Clock(), read_spent(path), begin=time.perf_counter())
    return one, MeteredEvaluator(inner, one)


def test_processes_add_up_and_a_killed_one_loses_no_more_than_the_call_it_was_in(tmp_path, now):
    path = tmp_path / "u.jsonl"
    for process in (1, 2, 3):
        one, evaluator = opened(path)
        with one.clock.stage("proposing"):
            now[0] += 5
        with one.clock.stage("scoring"):
            now[0] += 2
            evaluator.score(PROMPTS, half("s", 7))  # and is killed in the middle of the stage
        now[0] += 100
        expected = Spent(14 * process, 7.0 * process, 2.0 * process, 5.0 * process)
        assert one.total == read_spent(path) == expected


def test_the_evaluator_is_the_inner_one_in_all_else(tmp_path):
    inner = FakeEvaluator()
    _, evaluator = opened(tmp_path / "u.jsonl", inner)
    clips = half("s", 4)
    assert evaluator.fingerprint == inner.fingerprint and evaluator.innermost is inner
    assert evaluator.about() == inner.about() and evaluator.count_missing(PROMPTS, clips) == 8
    assert (evaluator.score(PROMPTS, clips).logp == inner.score(PROMPTS, clips).logp).all()
    assert evaluator.usage == inner.usage == Usage(16, 0, 16)
    evaluator.release()


def test_what_a_failing_call_has_spent_counts_and_its_own_error_is_told(tmp_path, monkeypatch):
    class Half(FakeEvaluator):
        def score(self, prompts, clips):
            super().score(prompts[:1], clips)
            raise UserError("clip 'x' is broken")

    one, evaluator = opened(tmp_path / "u.jsonl", Half())
    with pytest.raises(UserError, match="clip 'x' is broken"):
        evaluator.score(PROMPTS, half("s", 7))
    assert one.total.forward == read_spent(one.path).forward == 7

    def full(path, line):
        raise PauseError("the disk is full")

    monkeypatch.setattr(spending, "append_line", full)
    with pytest.raises(UserError, match="clip 'x' is broken"):
        evaluator.score(PROMPTS, half("s", 7))
    with pytest.raises(PauseError, match="the disk is full"), one.noted():
        pass


def test_a_torn_line_is_cut_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "u.jsonl"
    assert read_spent(path) == Spent() and not path.exists()
    line = json.dumps({"forward": 3, "total": 1.5, "scoring": 1.0, "proposing": 0.25}) + "\n"
    path.write_text(2 * line + line[:20])
    torn = path.read_text()
    assert read_spent(path, repair=False) == Spent(6, 3.0, 2.0, 0.5) and path.read_text() == torn
    assert read_spent(path) == Spent(6, 3.0, 2.0, 0.5) and path.read_text() == 2 * line
    for damaged in ("", "{", "[]", "3", '{"forward": "x"}', '{"moon": 1}', "\x00"):
        path.write_text(line + damaged + "\n" + line)
        with pytest.raises(UserError, match=r"u\.jsonl:2: damaged line .*or delete it") as caught:
            read_spent(path)
        assert "\n" not in str(caught.value)
