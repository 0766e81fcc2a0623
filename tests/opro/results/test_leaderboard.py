"""Leaderboards: what is ranked together was measured on the same clips, and says so."""

import csv
import io
import itertools
import json
import shutil

import pytest
from common import ROOT

from evaluators.manifest import manifest_digest
from opro import leaderboard, optimize
from opro.cli import run_verb
from opro.results.leaderboard import COLUMNS, leaderboard_rows, leaderboard_sheet
from opro.results.run_folder import RunFolder

FROZEN = ROOT / "tests" / "assets" / "run-v1"


def verb(*argv, code=0):
    assert run_verb(lambda: leaderboard.main([str(a) for a in argv])) == code


@pytest.fixture(scope="module")
def runs(write_manifest, tmp_path_factory):
    """Two runs on one manifest, one on another, and one that climbs something else."""
    root = tmp_path_factory.mktemp("ranked")
    first = write_manifest(root, name="first")
    second = write_manifest(root, name="second", per_source=3)
    for name, folder, more in (
        ("one", first, []),
        ("two", second, []),
        ("three", first, ["--seed", "1"]),
        ("four", first, ["--objective", "auroc"]),
    ):
        argv = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "3", *more]
        argv += ["--manifest", str(folder), "--runs-dir", str(root / "runs"), "--name", name]
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("OPENAI_API_KEY", raising=False)
            assert optimize.main(argv) == 0
    return root / "runs", first, second


def tables(out):
    """The printed tables, each with its title."""
    return [block for block in out.split("\n\n") if block.strip()]


def test_runs_of_other_clips_or_objectives_are_not_ranked_together(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    folder, first, second = runs
    capsys.readouterr()
    verb("--runs-dir", folder)
    found = tables(capsys.readouterr().out)
    assert len(found) == 3
    of = {
        frozenset(n for n in ("one", "two", "three", "four") if f"{n} " in t.split("\n", 1)[1])
        or n_of(t): t.split("\n")[0]
        for t in found
    }
    both, alone, other = of[frozenset({"one", "three"})], of["two"], of["four"]
    for title, manifest in ((both, first), (alone, second), (other, first)):
        assert f"on {manifest} [{manifest_digest(manifest)[:8]}], dev" in title
        assert "of speech" in title
    assert "balanced accuracy of speech" in both and "AUROC of speech" in other
    assert both != alone


def n_of(table):
    """The run that a title names, of a table of one run."""
    title = table.split("\n")[0]
    assert title.startswith("run ")
    return title.removeprefix("run ").partition(":")[0]


@pytest.mark.parametrize("form", ["json", "csv", "markdown"])
@pytest.mark.parametrize("by", ["score", "length", "fresh_score", "run"])
def test_no_form_and_no_order_mixes_them(runs, capsys, form, by):
    folder, *_ = runs
    capsys.readouterr()
    verb("--runs-dir", folder, "--format", form, "--sort", by)
    out = capsys.readouterr().out
    if form == "markdown":
        assert out.count("**") == 2 * 3
        assert all(" on the search half" in x for x in out.split("\n") if x.startswith("**"))
        return
    rows = json.loads(out) if form == "json" else list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 4 * (3 + 3)
    group = {"one": 0, "three": 0, "two": 1, "four": 2}
    order = [group[row["run"]] for row in rows]
    assert sum(a != b for a, b in itertools.pairwise(order)) == 2  # three stretches


def test_runs_of_the_same_clips_are_ranked_together_best_first(runs, capsys):
    folder, *_ = runs
    capsys.readouterr()
    verb(folder / "one", folder / "three", "--format", "json")
    rows = json.loads(capsys.readouterr().out)
    complete = [r["score"] for r in rows if r["state"] == "complete"]
    assert complete == sorted(complete, reverse=True) and {r["run"] for r in rows} == {
        "one",
        "three",
    }


def test_the_same_manifest_with_other_clips_is_another_data_set(make_manifest, tmp_path, capsys):
    folder = make_manifest(per_source=4)
    for name, clips in (("all", "all"), ("some", "48")):
        argv = ["--checkpoint", "fake", "--iterations", "0", "--clips", clips, "--name", name]
        argv += ["--manifest", str(folder), "--runs-dir", str(tmp_path / "runs")]
        assert optimize.main(argv) == 0
    capsys.readouterr()
    verb("--runs-dir", tmp_path / "runs")
    found = tables(capsys.readouterr().out)
    assert len(found) == 2 and sum("48 clips" in " ".join(t.split()) for t in found) == 1


def test_rows_say_how_each_prompt_fared():
    run = RunFolder.read(FROZEN / "replaced")
    rows = leaderboard_rows(run)
    assert all(set(row) == set(COLUMNS) for row in rows)
    assert len(rows) == len(run.history.trials)
    states = [row["state"] for row in rows]
    assert states == sorted(states, key=["complete", "dropped", "failed"].index)
    complete = [row["score"] for row in rows if row["state"] == "complete"]
    assert complete == sorted(complete, reverse=True)
    summary = run.finished()
    of = {row["prompt_id"]: row for row in rows}
    assert [row["prompt_id"] for row in rows if row["chosen"]] == [summary.chosen.prompt_id]
    for one in (summary.baseline, *summary.finalists):
        assert of[one.prompt_id]["fresh_score"] == one.score
    assert sum(row["fresh_score"] is not None for row in rows) == 1 + len(summary.finalists)


def test_the_sheet_marks_forecasts_failures_and_the_choice():
    base = {"run": "r", "checkpoint": "c", "low": None, "high": None, "clips": 4, "origin": "lm"}
    base |= {"fresh_score": None, "chosen": False, "score": 0.5}
    rows = [
        {**base, "state": "complete", "text": "a", "chosen": True, "low": 0.4, "high": 0.6},
        {**base, "state": "dropped", "text": "b"},
        {**base, "state": "failed", "text": "c", "score": None},
    ]
    sheet = leaderboard_sheet(rows)
    assert [r[0] for r in sheet.rows] == ["50.0 ", "50.0*", "!"]
    assert [r[1] for r in sheet.rows] == ["40-60", "", ""]
    assert [r[-1] for r in sheet.rows] == ["-> a", "b", "c"]
    assert sheet.title.startswith("run r: ")
    two = leaderboard_sheet([*rows, {**rows[0], "run": "s"}])
    assert [c.name for c in two.columns[:2]] == ["run", "checkpoint"]
    assert [r[0] for r in two.rows] == ["r", "r", "r", "s"]


def test_a_run_that_goes_on_is_listed_without_holdout_scores(tmp_path, capsys):
    shutil.copytree(FROZEN / "interrupted", tmp_path / "interrupted")
    verb(tmp_path / "interrupted", "--format", "json")
    rows = json.loads(capsys.readouterr().out)
    assert rows and all(row["fresh_score"] is None and not row["chosen"] for row in rows)


def test_a_long_table_ends_and_says_how_much_is_hidden(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(leaderboard, "MAX_ROWS", 5)
    shutil.copytree(FROZEN / "finished", tmp_path / "finished")
    verb(tmp_path / "finished")
    count = len(RunFolder.read(tmp_path / "finished").history.trials)
    assert f"and {count - 5} more; --format csv, markdown or json shows all" in (
        capsys.readouterr().out
    )
