"""Run folders of version 0.1 are read, resumed and rescored as the version that wrote them did."""

import json
import shutil
from pathlib import Path

import pytest

from opro import leaderboard, optimize, report, rescore

FROZEN = Path(__file__).resolve().parent / "assets" / "run-v1"


@pytest.fixture
def runs(tmp_path):
    return Path(shutil.copytree(FROZEN, tmp_path / "runs"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_finished_run_is_shown_and_not_changed(runs, capsys):
    before = bytes_of(runs / "finished")
    flags = ["--checkpoint", "fake", "--iterations", "3", "--candidates", "6", "--threshold", "dev"]
    assert optimize.main([*flags, "--name", "finished", "--runs-dir", str(runs)]) == 0
    out = capsys.readouterr().out
    summary = json.loads(before["summary.json"])
    verdict, _, why = summary["reason"].partition(":")
    assert f"{verdict.upper()}:{why}" in out
    after = bytes_of(runs / "finished")
    assert {name: after[name] for name in before} == before


def test_an_interrupted_run_goes_on_to_the_journal_it_would_have_had(runs):
    flags = ["--checkpoint", "fake", "--iterations", "3", "--candidates", "6", "--seed", "4"]
    flags += ["--threshold", "argmax"]
    assert optimize.main([*flags, "--name", "interrupted", "--runs-dir", str(runs)]) == 0
    went_on = [
        json.loads(x) for x in (runs / "interrupted" / "trials.jsonl").read_text().split("\n")[:-1]
    ]
    whole = [json.loads(x) for x in (runs / "whole.jsonl").read_text().split("\n")[:-1]]
    assert whole[-1]["event"] == went_on[-1]["event"] == "select"
    numbers = (
        "event",
        "number",
        "state",
        "reward",
        "clips",
        "bias",
        "blocks",
        "slices",
        "candidates",
    )
    assert [{k: e.get(k) for k in numbers} for e in went_on[:-1]] == [
        {k: e.get(k) for k in numbers} for e in whole[:-1]
    ]
    for one, other in zip(went_on, whole, strict=True):  # 0.1 rounded forecasts once more
        assert one.get("score") == pytest.approx(other.get("score"), abs=1.1e-6)
    assert {k: went_on[-1][k] for k in ("chosen", "baseline", "finalists")} == {
        k: whole[-1][k] for k in ("chosen", "baseline", "finalists")
    }


def test_a_run_is_rescored_to_the_same_numbers(runs):
    before = json.loads((runs / "finished" / "test.json").read_text())
    assert rescore.main([str(runs / "finished"), "--split", "test", "--runs-dir", str(runs)]) == 0
    after = json.loads((runs / "finished" / "test.json").read_text())
    assert after["fingerprint"] == before["fingerprint"]
    assert after["test_openings"] == before["test_openings"] + 3  # the matrix and two more since
    assert len(after["prompts"]) == len(before["prompts"])
    for old, new in zip(before["prompts"], after["prompts"], strict=True):
        assert new["prompt_id"] == old["prompt_id"]
        for name in (
            "score",
            "low",
            "high",
            "hit_rate",
            "false_alarm_rate",
            "auroc",
            "clips",
            "sources",
        ):
            assert new[name] == pytest.approx(old[name], abs=1e-9), name
        assert new["slices"] == old["slices"]
        one, other = new["difference"], old["difference"]
        assert one["value"] == pytest.approx(other["value"], abs=1e-9)
        # Bounds of a difference are Student's since; of what they were they lie within a point or two.
        for name in ("low", "high"):
            assert one[name] == pytest.approx(other[name], abs=0.025)


def test_the_leaderboard_reads_all_of_them(runs, capsys):
    assert leaderboard.main(["--runs-dir", str(runs), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {r["run"] for r in rows} == {"finished", "interrupted", "replaced"}
    chosen = [r for r in rows if r["run"] == "replaced" and r["chosen"]]
    assert [(r["prompt_id"], round(r["score"], 3), r["fresh_score"]) for r in chosen] == [
        ("68e1ef1d2c17", 0.89, 0.92)
    ]


@pytest.mark.parametrize(
    "name", [pytest.param("finished", marks=pytest.mark.slow), "replaced", "matrix-test"]
)
def test_reports_are_made_of_them(runs, name):
    assert report.main([str(runs / name)]) == 0
    page = (runs / name / "report.html").read_text()
    wanted = json.loads((FROZEN / "replaced" / "summary.json").read_text())["reason"]
    assert name != "replaced" or wanted.split(":")[0] in page
    assert "<svg" in page
