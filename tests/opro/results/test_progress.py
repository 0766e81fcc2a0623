"""The live line: time left comes from the rate of scores, and pipes get one line a trial."""

import re
from types import SimpleNamespace

import pytest
from searches import SEEDS, Searched, half

from evaluators.evaluator import Usage
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK
from opro.problem import Problem
from opro.results.progress import Progress, TimeLeft, counting, spelled
from opro.search.history import Candidate, Outcome, Trial
from opro.settings import OptimizeSettings


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0, "0 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")],
)
def test_durations_in_words(seconds, text):
    assert spelled(seconds) == text


def left(**more):
    base = {"completed": 0.0, "total": 100.0, "elapsed": 10.0}
    fields = {"first_scored": None, "skipped_by_then": 0}
    fields |= {k: more.pop(k) for k in list(more) if k in fields}
    return TimeLeft().render(SimpleNamespace(**base | more, fields=fields)).plain


def test_time_left_does_not_count_the_loading():
    assert left() == "-"
    assert left(first_scored=4.0) == "-"  # nothing is scored yet
    assert left(first_scored=4.0, skipped_by_then=16, completed=16.0) == "-"  # the first block
    # 40 evals in the 6 s since the first block came: 60 are left.
    assert left(first_scored=4.0, completed=40.0, elapsed=10.0) == "9 s"


def shown(capsys, *trials, **settings):
    evaluator = SimpleNamespace(usage=Usage(200, 50, 150))
    problem = Problem(SPEECH_TASK, SEEDS, half("s", 200), half("h", 100), evaluator, {})
    settings = OptimizeSettings(candidates=10, **settings)
    with Progress(problem, settings) as display:
        total = display._bar.tasks[0].total
        display.stage(1, "scoring")
        display.advance(20, 80)
        for trial, best in trials:
            display.told(trial, best)
        task = display._bar.tasks[0]
    return capsys.readouterr().err, task, total


def trial(number, reward, state="complete"):
    one = None if reward is None else Outcome(reward, 0.0, reward, n_scored=40)
    return Trial(number, 0, Candidate(Prompt(f"[red]{number}"), "seed"), state, one)


def test_a_pipe_gets_one_line_a_trial(capsys):
    first, second, third = trial(0, 0.81), trial(1, 0.5, "dropped"), trial(2, None, "failed")
    err, *_ = shown(capsys, (first, first), (second, first), (third, first))
    lines = [x for x in err.split("\n") if x.startswith("trial")]
    assert [x.split()[1] for x in lines] == ["0", "1", "2"]
    assert "reward 81.0" in lines[0] and "best 81.0 (#0)" in lines[0] and "40 clips" in lines[0]
    assert "reward 50.0 *" in lines[1] and "reward failed" in lines[2]
    assert all("25 % cached" in x for x in lines)


def test_a_terminal_gets_a_line_of_every_new_best_and_of_no_other_trial(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as far as rich knows
    monkeypatch.setenv("TERM", "xterm")
    found = Searched(tmp_path / "t.jsonl", iterations=3, decides=False)
    bests = [(t.number, best.number) for t, best in found.display.trials]
    new = [number for number, best in bests if number == best]
    assert 1 < len(new) < len(bests)  # some are better than all before, some are not
    settings = OptimizeSettings(candidates=5, iterations=3)
    with Progress(found.problem, settings) as display:
        for one, best in found.display.trials:
            display.told(one, best)
        shown = display._bar.tasks[0].fields["best"]
    lines = re.findall(r"trial +(\d+) .*best ([\d.]+) \(#(\d+)\)", plain(capsys.readouterr().err))
    of = {t.number: t for t in found.history.trials}
    assert [(int(n), int(best)) for n, _, best in lines] == [(n, n) for n in new]
    assert [score for _, score, _ in lines] == [f"{100 * of[n].reward:.1f}" for n in new]
    assert shown == f"{100 * of[new[-1]].reward:.1f} (#{new[-1]})"


def plain(text):
    """Without the control sequences of a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.parametrize(("swap", "orders"), [(False, 1), (True, 2)])
def test_evals_of_both_orders_are_counted_and_skipped_ones_leave_the_total(capsys, swap, orders):
    _, task, total = shown(capsys, swap=swap)
    assert task.completed == 20 * orders and task.total == total - 80 * orders
    assert task.description == "iteration 1/5 scoring"


def test_counting_is_silent_in_a_pipe(capsys):
    with counting("simulating", 3) as step:
        for _ in range(3):
            step()
    assert capsys.readouterr() == ("", "")
