import json
from dataclasses import replace

import pytest
from conftest import LABELS

from evaluators.errors import UserError
from opro.search.history import Candidate, History


def fill(path, seeds):
    history = History(path, LABELS)
    history.start({"seed": 1})
    trials = history.add(0, [Candidate(p, "seed") for p in seeds])
    for i, trial in enumerate(trials[:2]):
        history.tell(
            replace(
                trial,
                state="complete",
                reward=0.5 + i / 10,
                score=0.5,
                low=0.4,
                high=0.6,
                nll=0.7,
                clips=20,
                blocks=(0.4, 0.5),
                slices={"200 ms": (0.5, 10)},
            )
        )
    return history


def test_a_replayed_journal_gives_the_same_history(tmp_path, seeds):
    history = fill(tmp_path / "t.jsonl", seeds)
    again = History(tmp_path / "t.jsonl", LABELS)
    assert (
        again.trials == history.trials and again.header == history.header and again.proposed == {0}
    )
    assert [t.number for t in again.waiting(0)] == [2]
    assert again.complete[0].number == 1


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_cut_and_the_run_goes_on(tmp_path, seeds, cut):
    path = tmp_path / "t.jsonl"
    fill(path, seeds)
    raw = path.read_bytes()
    path.write_bytes(raw[:-cut])
    reader = History(path, LABELS)
    assert path.read_bytes() == raw[:-cut]  # a reader changes nothing
    history = History(path, LABELS, repair=True)
    assert history.trials == reader.trials
    assert [t.state for t in history.trials] == ["complete", "waiting", "waiting"]
    history.tell(
        replace(
            history.trials[1],
            state="complete",
            reward=0.6,
            score=0.5,
            low=0.4,
            high=0.6,
            nll=0.7,
            clips=20,
            blocks=(0.4, 0.5),
            slices={"200 ms": (0.5, 10)},
        )
    )
    assert path.read_bytes() == raw


@pytest.mark.parametrize(
    "damage",
    [
        b"garbage\n",
        b"[1]\n",
        b'{"event": "tell"}\n',
        b'{"event": "tall", "schema": 1}\n',
        b'{"event": "tell", "schema": 1, "prompt_id": "x", "number": 99}\n',
        b'{"event": "start", "schema": 1}\n',
        b'{"event": "propose", "schema": 1}\n',
    ],
)
def test_a_damaged_middle_is_reported_with_its_line(tmp_path, seeds, damage):
    path = tmp_path / "t.jsonl"
    fill(path, seeds)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], damage, *lines[2:]]))
    with pytest.raises(UserError, match=r"t\.jsonl:2: damaged"):
        History(path, LABELS)


def test_a_newer_journal_is_refused(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"schema": 99, "event": "start"}) + "\n")
    with pytest.raises(UserError, match="newer version"):
        History(path, LABELS)


def test_dropped_trials_are_never_the_best(tmp_path, seeds):
    history = fill(tmp_path / "t.jsonl", seeds)
    history.tell(replace(history.trials[2], state="dropped", reward=0.99, clips=5))
    assert [t.number for t in history.complete] == [1, 0]


def test_ties_go_to_the_smaller_loss_then_the_shorter_text(tmp_path, seeds):
    history = History(tmp_path / "t.jsonl", LABELS)
    for trial, loss in zip(
        history.add(0, [Candidate(p, "seed") for p in seeds]), (0.6, 0.6, 0.5), strict=True
    ):
        history.tell(replace(trial, state="complete", reward=0.8, nll=loss))
    assert [t.number for t in history.complete] == [2, 0, 1]
