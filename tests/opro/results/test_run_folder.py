"""Run folders: one process at a time, files of every version, and nothing read that is not finished."""

import json
import shutil
import threading
from pathlib import Path

import filelock
import numpy as np
import pytest
from common import LABELS, ROOT

from evaluators.classifier import read_classifiers
from evaluators.errors import UserError
from evaluators.evaluator import About
from evaluators.fakes import FakeEvaluator
from evaluators.files import read_yaml
from opro import leaderboard, matrix, optimize, report, rescore
from opro.results.leaderboard import leaderboard_rows
from opro.results.predictions import read_predictions
from opro.results.run_folder import (
    CONFIG,
    JOURNAL,
    SUMMARY,
    RunFolder,
    find_runs,
    is_open,
    open_run,
)

ASSETS = ROOT / "tests" / "assets"


@pytest.fixture
def frozen(tmp_path):
    return Path(shutil.copytree(ASSETS / "run-v1", tmp_path / "runs"))


@pytest.fixture
def swapped(tmp_path):
    """A run with ``--swap`` as version 0.1 left it: prompts without their order, under their old ids."""
    return Path(shutil.copytree(ASSETS / "run-v1-swap" / "swapped", tmp_path / "runs" / "swapped"))


def raw_summary(folder):
    return json.loads((folder / "summary.json").read_text())


# The version before prompts carried their order.


def test_old_prompts_of_a_swap_run_carry_both_orders(swapped):
    assert '"both_orders"' not in (swapped / JOURNAL).read_text()
    run = RunFolder.read(swapped)
    assert run.history.trials and all(t.prompt.both_orders for t in run.history.trials)


def test_what_an_old_swap_run_hands_over_has_its_order_and_its_threshold(swapped):
    events = [json.loads(x) for x in (swapped / JOURNAL).read_text().splitlines()]
    number = events[-1]["chosen"]
    bias = next(e["bias"] for e in events if e["event"] == "tell" and e["number"] == number)
    best = RunFolder.read(swapped).best
    assert best.prompt.both_orders and best.bias == bias != 0
    assert best.prompt.text == raw_summary(swapped)["chosen"]["text"]


def test_scores_of_an_old_swap_run_are_found_by_their_old_ids(swapped):
    run, old = RunFolder.read(swapped), raw_summary(swapped)
    summary = run.finished()
    for name in ("baseline", "chosen"):
        before, now = old[name], getattr(summary, name)
        assert now.prompt_id != before["prompt_id"] and now.text == before["text"]
        (trial,) = [t for t in run.history.trials if t.prompt.prompt_id == now.prompt_id]
        for path in (run.scores(trial.prompt), run.holdout(now.prompt_id)):
            assert path.name == f"{before['prompt_id']}.csv" and path.is_file()
        said = read_predictions(run.holdout(now.prompt_id), LABELS[0])
        right, truth = said.right, said.targets.truth
        assert (right[truth == 0].mean() + right[truth == 1].mean()) / 2 == pytest.approx(now.score)
    assert set(summary.controls) == {summary.baseline.prompt_id, summary.chosen.prompt_id}
    assert run.searched_sources([t for t in run.history.trials if run.scores(t.prompt).exists()])


def test_the_leaderboard_of_an_old_swap_run_shows_its_holdout_scores(swapped):
    run, old = RunFolder.read(swapped), raw_summary(swapped)
    rows = {r["text"]: r for r in leaderboard_rows(run)}
    for one in (old["baseline"], *old["finalists"]):
        assert rows[one["text"]]["fresh_score"] == one["score"]
    assert [r["text"] for r in rows.values() if r["chosen"]] == [old["chosen"]["text"]]


def test_an_old_swap_run_is_rescored_to_the_numbers_it_had(swapped):
    before = json.loads((swapped / "test.json").read_text())
    assert rescore.main([str(swapped), "--runs-dir", str(swapped.parent)]) == 0
    after = json.loads((swapped / "test.json").read_text())
    assert after["warnings"] == [] and after["test_openings"] == 1
    for old, new in zip(before["prompts"], after["prompts"], strict=True):
        assert new["text"] == old["text"] and new["both_orders"]
        for name in ("score", "low", "high", "hit_rate", "false_alarm_rate", "auroc"):
            assert new[name] == pytest.approx(old[name], abs=1e-6), name


def test_an_old_swap_run_is_shown_again_and_not_changed(swapped, capsys, monkeypatch):
    monkeypatch.chdir(ASSETS / "run-v1-swap")  # its seeds were given by a relative path
    before = {p: p.read_bytes() for p in swapped.rglob("*") if p.is_file()}
    argv = ["--config", str(swapped / CONFIG), "--runs-dir", str(swapped.parent)]
    assert optimize.main([*argv, "--manifest", "data/demo"]) == 0
    assert "REPLACED: gains +32.4 points" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in before} == before


def test_an_old_swap_run_gets_a_report_and_a_row_of_the_matrix(swapped, make_manifest, tmp_path):
    assert report.main([str(swapped), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "is missing" not in page and "calibrated on dev" in page

    def change(rows):
        for row in rows:
            number = int(row["source_id"].removeprefix("source"))
            row["split"] = "test" if number % 4 < 2 else "dev"

    folder = make_manifest(sources=24, change=change)
    argv = ["--checkpoint", "fake", "--prompts", str(swapped), "--manifest", str(folder)]
    assert matrix.main([*argv, "--runs-dir", str(tmp_path), "--out", str(tmp_path / "m")]) == 0
    (row,) = json.loads((tmp_path / "m" / "matrix.json").read_text())["rows"]
    best = RunFolder.read(swapped).best
    assert (row["prompt_id"], row["bias"]) == (best.prompt_id, best.bias)


# Reading.


@pytest.mark.parametrize("name", ["finished", "replaced"])
def test_the_ranking_is_baseline_choice_finalists_then_the_other_complete_ones(frozen, name):
    run = RunFolder.read(frozen / name)
    made, ranked = run.history.selection, run.ranking()
    order = [made["baseline"], made["chosen"], *made["finalists"]]
    assert [t.number for t in ranked][: len(set(order))] == list(dict.fromkeys(order))
    assert len({t.number for t in ranked}) == len(ranked)
    assert {t.number for t in ranked} == {t.number for t in run.history.complete} | set(order)


@pytest.mark.parametrize("gone", ["summary.json", "best.yaml", "select"])
def test_a_run_without_its_end_is_not_finished(frozen, gone):
    folder = frozen / "finished"
    if gone == "select":
        lines = (folder / JOURNAL).read_text().splitlines(keepends=True)
        (folder / JOURNAL).write_text("".join(lines[:-1]))
    else:
        (folder / gone).unlink()
    run = RunFolder.read(folder)
    for use in (run.finished, run.ranking, lambda: run.best):
        with pytest.raises(UserError, match="is not finished; give its command again"):
            use()


def test_what_is_no_run_folder_is_named_with_its_flag(tmp_path, frozen):
    with pytest.raises(UserError, match=r"^--share '.*' is no run folder: it holds no trials"):
        RunFolder.read(tmp_path, flag="--share ")
    for text in ("[]", "task: birds\ncheckpoint: x\n", "task: speech\n", ""):
        (frozen / "finished" / CONFIG).write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml: no settings of a run; restore"):
            RunFolder.read(frozen / "finished")


def test_reading_writes_nothing_and_repairs_nothing(frozen):
    folder = frozen / "interrupted"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    run = RunFolder.read(folder)
    assert run.summary is None and run.history.trials
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    with RunFolder.open(folder, run.config):
        pass
    assert (folder / JOURNAL).read_bytes() != before[folder / JOURNAL]  # the torn line is cut


def test_runs_are_listed_oldest_first(frozen):
    import os

    for age, name in enumerate(("replaced", "finished", "interrupted")):
        os.utime(frozen / name / CONFIG, (1000 + age, 1000 + age))
    (frozen / "no-run").mkdir()
    assert [p.name for p in find_runs(frozen)] == ["replaced", "finished", "interrupted"]
    assert find_runs(frozen / "nowhere") == []


# Writing.


def test_a_folder_is_open_once_and_again_after_the_block(tmp_path):
    with open_run(tmp_path / "r", {"a": 1}):
        with pytest.raises(UserError, match="run 'r' is open in another process"):
            with open_run(tmp_path / "r", {"a": 1}):
                pass
    with pytest.raises(RuntimeError) as caught, open_run(tmp_path / "r", {"a": 1}):
        raise RuntimeError
    assert caught.tb is not None  # whoever keeps the traceback keeps no lock
    with filelock.FileLock(tmp_path / "r" / ".lock", timeout=0):
        pass


def test_who_looks_whether_a_run_is_open_stops_no_process_that_begins(tmp_path):
    """A page holds the lock for a moment to see that it is free."""
    folder = tmp_path / "r"
    assert not is_open(folder) and not folder.exists()
    with open_run(folder, {"a": 1}):
        assert is_open(folder)
    assert not is_open(folder)
    peek = filelock.FileLock(folder / ".lock", thread_local=False)
    peek.acquire(timeout=0)
    threading.Timer(0.1, peek.release).start()
    with open_run(folder, {"a": 1}):
        assert is_open(folder)


def test_other_settings_are_refused_and_named(tmp_path):
    with open_run(tmp_path / "r", {"a": 1, "b": None}):
        assert read_yaml(tmp_path / "r" / CONFIG) == {"a": 1, "b": None}
    for config, words in (
        ({"a": 2, "b": None}, "was started with a = 1, now it is 2"),
        ({"a": 1, "b": None, "c": 3}, "was started with c = None, now it is 3"),
        ({"b": None}, "was started with a = 1, now it is None"),
    ):
        with pytest.raises(UserError, match=words), open_run(tmp_path / "r", config):
            pass
    with open_run(tmp_path / "r", {"a": 1}):  # a key that a later version added, at its default
        pass


@pytest.fixture
def made(make_manifest, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    argv = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "3", "--threshold", "dev"]
    argv += ["--manifest", str(make_manifest()), "--runs-dir", str(tmp_path / "runs")]
    return [*argv, "--name", "run"], tmp_path / "runs" / "run"


def test_the_summary_comes_last(made, monkeypatch):
    """Whoever finds summary.json finds all the other results."""
    argv, folder = made
    from opro.results import run_folder

    real = run_folder.write_json

    def write(path, value):
        if path.name == SUMMARY:
            raise KeyboardInterrupt
        real(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_json", write)
        with pytest.raises(KeyboardInterrupt):
            optimize.main(argv)
    for name in ("best.yaml", "leaderboard.csv"):
        assert (folder / name).is_file()
    run = RunFolder.read(folder)
    assert run.summary is None and run.history.selection is not None
    journal = (folder / JOURNAL).read_bytes()
    assert optimize.main(argv) == 0
    assert RunFolder.read(folder).finished().status == "complete"
    assert (folder / JOURNAL).read_bytes() == journal


def test_best_yaml_holds_what_the_journal_chose(made):
    argv, folder = made
    assert optimize.main(argv) == 0
    run = RunFolder.read(folder)
    assert read_classifiers(folder / "best.yaml", LABELS) == [run.best]
    assert run.best.prompt_id == run.finished().chosen.prompt_id
    assert run.finished().chosen.bias == run.best.bias


def test_scores_of_the_search_half_are_those_of_the_journal(made):
    argv, folder = made
    assert optimize.main(argv) == 0
    run = RunFolder.read(folder)
    for trial in run.history.complete:
        said = read_predictions(run.scores(trial.prompt), LABELS[0])
        truth = said.targets.truth
        says = said.score + trial.classifier.bias > 0
        right = says == (truth == 0)
        score = (right[truth == 0].mean() + right[truth == 1].mean()) / 2
        assert score == pytest.approx(trial.outcome.score, abs=1e-6)
        assert len(truth) == trial.outcome.n_scored
        assert np.unique(said.targets.sources).size == len(run.searched_sources([trial]))


def test_scores_that_cannot_be_read_stop_a_share(made):
    argv, folder = made
    assert optimize.main(argv) == 0
    run = RunFolder.read(folder)
    run.scores(run.history.trials[0].prompt).unlink()
    with pytest.raises(UserError, match="it is unknown which clips it searched on"):
        run.searched_sources(run.history.trials)
    assert leaderboard.main([str(folder)]) == 0


def test_provenance_of_the_first_start_stays(made):
    argv, folder = made
    assert optimize.main(argv) == 0
    before = (folder / "provenance.json").read_bytes()
    with RunFolder.open(folder, read_yaml(folder / CONFIG)) as run:
        run.save_provenance({"device": "another"})
    assert (folder / "provenance.json").read_bytes() == before


# Libraries and weights that change between two commands.


@pytest.fixture
def installed(monkeypatch):
    """Libraries and weights of the fake evaluator, to be changed by a test."""
    libraries, weights = {"torch": "2.12.0", "soxr": "1.0"}, ["a"]

    class Versioned(FakeEvaluator):
        def __init__(self):
            super().__init__()
            self.fingerprint = repr((weights, libraries))

        def about(self):
            return About(versions=dict(libraries))

    monkeypatch.setattr("evaluators.fakes.FakeEvaluator", Versioned)
    return libraries, weights


def interrupted(argv, monkeypatch):
    """The run as it is when its process ends before the decision."""

    def end(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optimize, "decide", end)
        with pytest.raises(KeyboardInterrupt):
            optimize.main(argv)


def test_an_interrupted_run_is_not_mixed_with_scores_of_another_library(
    made, installed, monkeypatch, capsys
):
    argv, folder = made
    libraries, _ = installed
    interrupted(argv, monkeypatch)
    recorded = {"torch": "2.12.0", "soxr": "1.0"}
    assert json.loads((folder / "provenance.json").read_text())["scored_with"] == recorded
    journal = (folder / JOURNAL).read_bytes()
    libraries["torch"] = "2.13.0"
    assert optimize.run_verb(lambda: optimize.main(argv)) == 2
    said = capsys.readouterr().err
    assert (
        "run 'run' was scored with torch 2.12.0 (here 2.13.0), and scores of both are not mixed; go on where these are"
        " installed, or give another --name, for which all is scored anew"
    ) in said
    assert "soxr" not in said and (folder / JOURNAL).read_bytes() == journal
    assert optimize.main([*argv, "--name", "anew"]) == 0
    usage = json.loads((folder.parent / "anew" / "summary.json").read_text())["evals"]
    assert usage["forward"] == usage["requested"] - usage["cached"] > 0
    libraries["torch"] = "2.12.0"
    assert optimize.main(argv) == 0 and RunFolder.read(folder).finished()


def test_a_finished_run_is_shown_as_it_was_whatever_is_installed_since(made, installed, capsys):
    argv, folder = made
    libraries, weights = installed
    assert optimize.main(argv) == 0
    shown = capsys.readouterr().out
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "log.txt"}
    libraries |= {"torch": "2.13.0", "triton": "3.5"}
    assert optimize.main(argv) == 0
    out = capsys.readouterr()
    assert out.out == shown
    assert (
        "run 'run' was scored with torch 2.12.0 (here 2.13.0), triton none (here 3.5) and is shown as it was; give"
        " another --name to score anew"
    ) in out.err
    assert {p: p.read_bytes() for p in before} == before
    libraries["torch"] = "2.12.0"
    del libraries["triton"]
    weights.append("b")
    assert optimize.run_verb(lambda: optimize.main(argv)) == 2
    assert "run 'run' was made with another fingerprint (weights, device" in capsys.readouterr().err


def test_a_run_of_other_seeds_is_refused_whatever_is_installed_since(
    made, installed, capsys, seeds
):
    argv, folder = made
    assert optimize.main(argv) == 0
    journal = folder / JOURNAL
    journal.write_text(journal.read_text().replace('"seeds": "', '"seeds": "0', 1))
    installed[0]["torch"] = "2.13.0"
    assert optimize.run_verb(lambda: optimize.main(argv)) == 2
    assert "was made with another seeds" in capsys.readouterr().err


def test_a_run_that_did_not_record_its_libraries_is_named_as_one_of_before(
    made, installed, monkeypatch, capsys
):
    argv, folder = made

    def forget():
        path = folder / "provenance.json"
        raw = json.loads(path.read_text())
        del raw["scored_with"]
        path.write_text(json.dumps(raw))
        installed[1].append("by another rule")

    interrupted(argv, monkeypatch)
    forget()
    assert optimize.run_verb(lambda: optimize.main(argv)) == 2
    said = "run 'run' was scored with an earlier version of this program"
    assert f"{said}, and scores of both are not mixed; give another" in capsys.readouterr().err
    assert optimize.main([*argv, "--name", "second"]) == 0
    folder = folder.parent / "second"
    forget()
    capsys.readouterr()
    assert optimize.main([*argv, "--name", "second"]) == 0
    assert "earlier version of this program and is shown as it was" in capsys.readouterr().err


def test_a_rescore_with_another_library_says_so(made, installed):
    argv, folder = made
    assert optimize.main(argv) == 0
    flags = ["--split", "dev", "--runs-dir", str(folder.parent)]
    assert rescore.main([str(folder), *flags]) == 0
    assert len(json.loads((folder / "dev.json").read_text())["warnings"]) == 1  # of the split
    installed[0]["torch"] = "2.13.0"
    assert rescore.main([str(folder), *flags]) == 0
    first, _ = json.loads((folder / "dev.json").read_text())["warnings"]
    assert first == "the run was scored with torch 2.12.0 (here 2.13.0)"
    installed[0]["torch"] = "2.12.0"
    installed[1].append("b")
    assert rescore.main([str(folder), *flags]) == 0
    first, _ = json.loads((folder / "dev.json").read_text())["warnings"]
    assert first == "the checkpoint, its precision or a library is not the one of the run"
