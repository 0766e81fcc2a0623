"""The ledger of holdouts: each decision is counted once by what its clips are, and the level is spent over them."""

import itertools
import json
import multiprocessing
from dataclasses import replace

import pytest
from searches import clip, clip_set, scored_trial

from evaluators.errors import PauseError
from evaluators.statistics.compare import ALPHA
from opro.results.decisions import DECISIONS, comparison_id, count_decisions, record_decision
from opro.search.select import Turn


def half(first=0, count=12, name="c", label=0):
    """Clips with content of their own, whatever their names."""
    return clip_set(
        replace(clip(f"{name}{i}", (i + label) % 2), sha256=f"{i:064x}")
        for i in range(first, first + count)
    )


def test_the_level_of_all_decisions_together_is_at_most_5_percent():
    turns = [Turn(n) for n in range(1, 5001)]
    assert turns[0].level == ALPHA == 0.025
    assert all(a.level > b.level > 0 for a, b in itertools.pairwise(turns))
    spent = 0.0
    for turn in turns:
        spent += turn.level
        assert spent + turn.left == pytest.approx(0.05) and spent < 0.05


def test_what_is_said_names_number_level_and_what_is_left():
    assert Turn().said() == ""
    assert Turn(3).said().startswith("; 3rd decision on this half, level 0.0042, 0.0083 left")


def test_each_comparison_on_a_half_is_counted_once_whatever_runs_and_files_are_called(tmp_path):
    def record(what, clips=None, run="r"):
        return record_decision(tmp_path, clips or half(), run, what).number

    assert count_decisions(tmp_path, half()) == 0 and not (tmp_path / DECISIONS).exists()
    assert [record("p"), record("q"), record("p"), record("p", run="other")] == [1, 2, 1, 1]
    assert record("q", half(name="renamed")) == 2  # by content
    assert record("p", half(100)) == 1  # other recordings
    assert record("p", half(label=1)) == 1  # the same ones, labelled otherwise
    assert record("s") == 3 and count_decisions(tmp_path, half()) == 3


def test_a_half_that_shares_clips_pays_for_them(tmp_path):
    """A clip more or less, as ``--clips`` gives it, makes no new half."""
    assert record_decision(tmp_path, half(0, 12), "r", "p").number == 1
    assert record_decision(tmp_path, half(0, 11), "r", "q").number == 2
    assert record_decision(tmp_path, half(11, 12), "r", "s").number == 2  # of the first alone
    assert count_decisions(tmp_path, half(0, 30)) == 3
    assert count_decisions(tmp_path, half(50, 5)) == 0


def test_several_checkpoints_on_the_same_clips_are_one_half(tmp_path):
    both = half().repeat(["one", "two"])
    assert record_decision(tmp_path, half(), "r", "p").number == 1
    assert record_decision(tmp_path, both, "r", "q").number == 2


def test_what_is_compared_is_model_objective_seed_and_classifiers():
    one, other = scored_trial(0, 0.7, 0), scored_trial(1, 0.8, 1)
    same = {"fingerprint": "f", "objective": "accuracy", "seed": 0, "trials": [one, other]}
    ways = [
        same,
        same | {"fingerprint": "g"},
        same | {"objective": "auroc"},
        same | {"seed": 1},
        same | {"trials": [other, one]},
        same | {"trials": [one]},
        same | {"trials": [one, scored_trial(1, 0.8, 1, bias=0.5)]},
    ]
    ids = [comparison_id(**way) for way in ways]
    assert len(set(ids)) == len(ids)
    # The number of a trial and what its search scored are not compared.
    again = [scored_trial(0, 0.6, 0), replace(scored_trial(5, 0.9, 3), candidate=other.candidate)]
    assert comparison_id(**(same | {"trials": again})) == ids[0]


@pytest.mark.parametrize("line", ["garbage", "[]", "3", "{}", "[" * 9999, '{"half": "a"}'])
def test_a_damaged_line_is_named_and_counts_on_any_half(tmp_path, line, caplog):
    record_decision(tmp_path, half(), "r", "p")
    with (tmp_path / DECISIONS).open("a") as file:
        file.write(line + "\n")
    assert count_decisions(tmp_path, half()) == 2 and count_decisions(tmp_path, half(100)) == 1
    assert f"{DECISIONS}: line 2 is damaged and counts as one decision" in caplog.text
    assert record_decision(tmp_path, half(), "r", "p").number == 1
    assert record_decision(tmp_path, half(), "r", "q").number == 3


def test_a_torn_line_counts_and_takes_no_other_with_it(tmp_path):
    record_decision(tmp_path, half(), "r", "p")
    raw = (tmp_path / DECISIONS).read_bytes()
    (tmp_path / DECISIONS).write_bytes(raw + raw[:-9])
    assert (
        record_decision(tmp_path, half(), "r", "q").number == 3 == count_decisions(tmp_path, half())
    )
    kept = json.loads((tmp_path / DECISIONS).read_text().split("\n")[0])
    assert kept["run"] == "r" and len(kept["clips"]) == 12 and kept["time"].startswith("20")


def lines_of(folder):
    return [json.loads(line) for line in (folder / DECISIONS).read_text().splitlines()]


def test_the_clips_of_a_half_are_written_once_and_older_ledgers_count_alike(tmp_path):
    halves = [half(0, 12), half(5, 12), half(0, 12), half(50, 12), half(5, 12)]
    numbers = [record_decision(tmp_path, h, "r", f"p{i}").number for i, h in enumerate(halves)]
    lines = lines_of(tmp_path)
    assert numbers == [1, 2, 3, 1, 4]
    assert ["clips" in line for line in lines] == [True, True, False, True, False]
    marks = {line["half"]: line["clips"] for line in lines if "clips" in line}
    old = [line | {"clips": marks[line["half"]]} for line in lines]  # each with its clips
    (tmp_path / DECISIONS).write_text("".join(json.dumps(line) + "\n" for line in old))
    assert [count_decisions(tmp_path, half(a, 12)) for a in (0, 5, 50, 90)] == [4, 4, 1, 0]
    assert record_decision(tmp_path, half(), "r", "p2").number == 3
    assert record_decision(tmp_path, half(), "r", "new").number == 5
    assert "clips" not in lines_of(tmp_path)[-1]


def test_where_the_line_with_the_clips_is_lost_all_on_that_half_count_on_any(tmp_path):
    for what in ("p", "q"):
        record_decision(tmp_path, half(), "r", what)
    first, second = (tmp_path / DECISIONS).read_text().splitlines()
    (tmp_path / DECISIONS).write_text(f"{first[:-20]}\n{second}\n")
    # Nobody knows whether "q" was compared on these clips: it is no decision that is made again.
    assert record_decision(tmp_path, half(100), "r", "q").number == 3
    assert record_decision(tmp_path, half(), "r", "s").number == 3
    assert [
        "clips" in line
        for line in [json.loads(x) for x in (tmp_path / DECISIONS).read_text().splitlines()[2:]]
    ] == [True, True]


def decide_often(folder, name, barrier, found):
    barrier.wait()
    for i in range(15):
        found.put(record_decision(folder, half(), name, f"{name}-{i}").number)


def test_processes_take_turns_and_lose_no_decision(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(3), context.Queue()
    several = [
        context.Process(target=decide_often, args=(tmp_path, str(n), barrier, found))
        for n in range(3)
    ]
    for one in several:
        one.start()
    numbers = sorted(found.get(timeout=60) for _ in range(45))
    for one in several:
        one.join()
    assert numbers == list(range(1, 46))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PauseError, match=r"ledger of holdouts .* cannot be written"):
        record_decision(tmp_path / "file", half(), "r", "p")
