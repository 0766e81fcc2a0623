"""Steering: what a round takes is journalled, so that a steered search cut anywhere ends as the one that was not."""

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from common import LABELS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from searches import GOOD, SEEDS, Made, ScriptedLM, Searched, scored_trial, three_seeds, view_of
from test_loop import cuts_of, few_resamples

from evaluators.errors import PauseError, UserError
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK
from opro import optimize
from opro.cli import run_verb
from opro.proposers.ledger import Ledger, MeteredModel
from opro.proposers.lm_proposer import LMProposer
from opro.proposers.rewriter import Rewriter
from opro.results.run_folder import RunFolder
from opro.search.history import History
from opro.search.objective import Objective
from opro.search.steering import (
    Steering,
    ask,
    forbidden_in,
    pauses,
    read_requests,
    request_from,
)

TEXT = "By hand: speech? A or B"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)


def request(kind, value=None):
    raw = {"kind": kind, "value": value, "time": "2026-01-01T00:00:00+0000", "who": "me"}
    return request_from(raw, LABELS, "test")


def prompt(text=TEXT):
    return request("prompt", {"text": text})


class Inbox:
    """Holds at each round what is written down for it and for earlier ones, whenever a process looks."""

    def __init__(self, path, schedule):
        self.path, self.schedule = path, schedule

    def __call__(self):
        now = 1 + max(History(self.path, LABELS).proposed, default=-1)
        return [
            one for number, some in sorted(self.schedule.items()) if number <= now for one in some
        ]


def steered(path, schedule, pauses_seen=None, **options):
    """The search at its end, its command given again after every pause."""
    given_ = {"iterations": 3, "candidates": 4, "search": 64, "holdout": 40, "decides": False}
    while True:
        try:
            return Searched(path, inbox=Inbox(path, schedule), **{**given_, **options})
        except PauseError as pause:
            if pauses_seen is not None:
                pauses_seen.append(str(pause))


def texts(search, iteration):
    return [t.prompt.text for t in search.history.of(iteration)]


requests = st.one_of(
    st.just(request("pause")),
    st.just(request("resume")),
    st.sampled_from([TEXT, "Another: speech? A or B", SEEDS[1].text]).map(prompt),
    st.sampled_from(["2.1", "nothing of it", "speech"]).map(lambda words: request("forbid", words)),
    st.sampled_from([500, 900, 1500]).map(lambda most: request("max_evals", most)),
)


@settings(
    max_examples=12, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
@given(
    schedule=st.dictionaries(st.integers(1, 3), st.lists(requests, max_size=3), max_size=3),
    max_evals=st.sampled_from([None, 600]),
    cut=st.floats(0, 1),
)
def test_a_steered_search_cut_anywhere_ends_byte_equal(schedule, max_evals, cut):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        few_resamples(patch)
        raw = steered(Path(folder) / "whole.jsonl", schedule, max_evals=max_evals).journal
        cuts = cuts_of(raw, within=4)
        for at in {cuts[int(cut * (len(cuts) - 1))], cuts[len(cuts) // 2]}:
            path = Path(folder) / f"cut{at}.jsonl"
            path.write_bytes(raw[:at])
            assert steered(path, schedule, max_evals=max_evals).journal == raw


def test_an_inbox_without_requests_changes_no_byte_of_the_journal(tmp_path, monkeypatch):
    few_resamples(monkeypatch)
    plain = Searched(tmp_path / "plain.jsonl", decides=False).journal
    assert Searched(tmp_path / "inbox.jsonl", decides=False, inbox=list).journal == plain


def test_a_prompt_by_hand_takes_a_place_of_the_next_round_and_is_scored(tmp_path):
    search = steered(tmp_path / "t.jsonl", {2: [prompt()]})
    (own,) = [t for t in search.history.trials if t.prompt.text == TEXT]
    assert (own.iteration, own.candidate.origin, own.scored) == (2, "hand", True)
    assert [len(texts(search, i)) for i in (1, 2, 3)] == [4, 4, 4]
    assert search.proposer.asked == [(1, 4), (2, 3), (3, 4)]


def test_more_prompts_by_hand_than_places_are_all_tried_and_the_proposer_is_not_asked(tmp_path):
    asked = [f"Hand {i}: speech? A or B" for i in range(6)]
    search = steered(tmp_path / "t.jsonl", {1: [prompt(text) for text in asked]})
    assert texts(search, 1) == asked
    assert (1, 0) not in search.proposer.asked and search.proposer.asked[0] == (2, 4)


def test_a_prompt_by_hand_that_was_tried_is_refused_with_its_reason(tmp_path):
    search = steered(tmp_path / "t.jsonl", {1: [prompt(SEEDS[0].text)]})
    (event,) = [e for e in search.events if e["event"] == "propose" and e["iteration"] == 1]
    assert event["refused"] == [{"text": SEEDS[0].text, "reason": "already tried or proposed"}]


def test_forbidden_words_keep_candidates_out_of_all_later_rounds(tmp_path):
    search = steered(
        tmp_path / "t.jsonl", {2: [request("forbid", "2.1"), request("forbid", "3.0")]}
    )
    assert len(texts(search, 1)) == 4
    assert [len(texts(search, i)) for i in (2, 3)] == [3, 3]
    refused = [one["reason"] for e in search.events for one in e.get("refused", ())]
    assert refused == ["contains the forbidden '2.1'", "contains the forbidden '3.0'"]


def test_a_pause_ends_the_process_before_the_round_once(tmp_path):
    seen = []
    search = steered(tmp_path / "t.jsonl", {2: [request("pause")]}, seen)
    assert len(seen) == 1 and seen[0].startswith("before round 2, as me asked")
    assert search.history.proposed == {0, 1, 2, 3}


def test_a_pause_that_was_called_off_does_nothing(tmp_path):
    seen = []
    steered(tmp_path / "t.jsonl", {2: [request("pause"), request("resume")]}, seen)
    assert seen == []
    assert pauses([request("resume"), request("pause"), prompt()]) is not None


def test_a_raised_budget_buys_rounds_that_it_would_not_have_had(tmp_path):
    before = Searched(
        tmp_path / "a.jsonl", max_evals=500, search=64, holdout=40, candidates=4, iterations=3
    )
    after = steered(
        tmp_path / "b.jsonl", {1: [request("max_evals", 1500)]}, max_evals=500, decides=True
    )
    assert len(after.history.trials) > len(before.history.trials)
    assert 500 < after.evaluator.evals() <= 1500
    lower = steered(tmp_path / "c.jsonl", {1: [request("max_evals", 10)]}, max_evals=500)
    assert len(lower.history.trials) == len(before.history.trials)


def test_the_rewriter_fills_its_round_without_forbidden_words(seeds):
    view = view_of([scored_trial(i, 0.5 + i / 10, 0, prompt=p) for i, p in enumerate(seeds)])
    free = Rewriter(SPEECH_TASK, 0).propose(view, 8)
    words = "animals"
    assert any(forbidden_in(c.prompt, [words]) for c in free)
    held = Rewriter(SPEECH_TASK, 0).propose(replace(view, forbidden=(words,)), 8)
    assert len(held) == 8 and not any(forbidden_in(c.prompt, [words]) for c in held)


def test_a_language_model_is_told_what_is_forbidden_and_refused_it(seeds):
    entries = []
    lm = ScriptedLM(
        json.dumps({"prompts": ["Any animals?\nA) voice\nB) animals", GOOD]}),
        json.dumps({"prompts": ["Voice?\nA) voice\nB) none"]}),
    )
    model = MeteredModel(lm, Ledger(), entries.append, {})
    view = replace(three_seeds(seeds), forbidden=("Animals",))
    found = LMProposer(model, SPEECH_TASK, Objective()).propose(view, 2)
    assert [c.prompt.text for c in found] == [GOOD, "Voice?\nA) voice\nB) none"]
    assert [r["reason"] for r in entries[0]["refused"]] == ["contains the forbidden 'Animals'"]
    assert (
        'No prompt may contain these words, which are refused in any case: "Animals"' in lm.asked[0]
    )
    again = ScriptedLM(json.dumps({"prompts": [GOOD]}))
    LMProposer(MeteredModel(again, Ledger(), entries.append, {}), SPEECH_TASK, Objective()).propose(
        three_seeds(seeds), 1
    )
    assert "No prompt may contain" not in again.asked[0]


def test_a_run_is_paused_by_its_inbox_goes_on_and_says_what_was_steered(tmp_path, capsys):
    """The verb itself: exit code 1 with one sentence, the same command goes on, the summary tells."""
    flags = ["--checkpoint", "fake", "--iterations", "2", "--clips", "100", "--name", "r"]
    flags += ["--candidates", "4", "--runs-dir", str(tmp_path)]
    inbox = tmp_path / "r" / "steering.jsonl"
    inbox.parent.mkdir()
    ask(inbox, "prompt", {"text": TEXT}, LABELS)
    ask(inbox, "forbid", "animals", LABELS)
    ask(inbox, "pause", None, LABELS)
    assert run_verb(lambda: optimize.main(flags)) == 1
    assert "paused: before round 1" in capsys.readouterr().err
    assert run_verb(lambda: optimize.main(flags)) == 0
    run = RunFolder.read(tmp_path / "r")
    warnings = run.finished().warnings
    assert [w.split(": ")[1].split(" ")[0] for w in warnings if "steered by" in w] == [
        "added",
        "forbade",
    ]
    assert [t.iteration for t in run.history.trials if t.candidate.origin == "hand"] == [1]
    assert "1 by hand (steering)" in capsys.readouterr().out
    assert not any(forbidden_in(t.prompt, ["animals"]) for t in run.history.trials if t.iteration)


def test_what_is_asked_is_read_back_and_a_torn_line_is_left_for_later(tmp_path):
    path = tmp_path / "steering.jsonl"
    assert read_requests(path, LABELS) == []
    first = ask(path, "prompt", {"text": TEXT}, LABELS)
    second = ask(path, "forbid", "  two   words ", LABELS)
    assert second.value == "two words"
    with path.open("a") as file:
        file.write('{"kind": "pa')
    assert read_requests(path, LABELS) == [first, second]
    third = ask(path, "pause", None, LABELS)  # the torn line was of a page that died
    assert read_requests(path, LABELS) == [first, second, third]


@pytest.mark.parametrize(
    "kind, value, sentence",
    [
        ("stop", None, "kind 'stop' is unknown"),
        ("prompt", "text", "expected text and answers"),
        ("prompt", {"text": "\x1b[2J"}, "control character U\\+001B"),
        ("forbid", "  ", "expected words"),
        ("forbid", "x" * 201, "at most 200"),
        ("max_evals", 0, "whole number"),
        ("max_evals", True, "whole number"),
    ],
)
def test_what_is_no_request_is_refused_and_not_written(tmp_path, kind, value, sentence):
    with pytest.raises(UserError, match=sentence):
        ask(tmp_path / "steering.jsonl", kind, value, LABELS)
    assert not (tmp_path / "steering.jsonl").exists()


def test_a_damaged_line_is_named_and_left_out(tmp_path, caplog):
    path = tmp_path / "steering.jsonl"
    good = json.dumps(request("pause").to_dict())
    path.write_text(f"{good}\n{{nothing\n{good}\n[]\n{good[:9]}")
    assert read_requests(path, LABELS) == [request("pause")] * 2
    assert "steering.jsonl:2: damaged line" in caplog.text
    assert "steering.jsonl:4: damaged line" in caplog.text


def test_results_say_what_was_steered():
    taken = (
        (2, prompt()),
        (2, request("pause")),
        (3, request("forbid", "hum")),
        (3, request("max_evals", 9)),
    )
    said = Steering(taken).told(5)
    assert [s.split(": ")[1].split(" ")[0] for s in said] == ["added", "forbade", "raised"]
    assert Steering(taken).told(None) == said[:2]  # a run without a limit has none to raise
    assert Steering(taken).forbidden == ("hum",)


def test_whole_words_are_forbidden_in_any_case_and_in_answers():
    assert (
        forbidden_in(Prompt("x", answers=(("SPEECH", ("Yes",)), ("NONSPEECH", ("no",)))), ["YES"])
        == "YES"
    )
    assert forbidden_in(Prompt("Is it\nspeech?"), ["IT SPEECH"]) == "IT SPEECH"
    assert forbidden_in(Prompt("items"), ["item"]) is None


def test_made_prompts_are_unchanged_by_the_view_of_an_unsteered_search(tmp_path):
    assert (
        Searched(tmp_path / "t.jsonl", decides=False, proposer=Made()).history.steering
        == Steering()
    )
