"""What is shown of a run names what its scores are."""

import json
import re

import pytest

from opro import leaderboard, optimize
from opro.leaderboard import _sorted
from opro.results.page import page_of
from opro.results.summary import FourCells
from opro.results.two_by_two import share_line
from opro.search.objective import NAMES, OBJECTIVES

ROW = {"state": "complete", "score": -3.0, "length": 1}


def cells(alone=(1.0, 2.0), beyond=(-1.0, 1.0), metric="balanced_accuracy"):
    def one(low, high):
        return {"value": (low + high) / 2, "low": low, "high": high}

    nothing = one(0.0, 0.0)
    return FourCells.model_validate(
        {
            "metric": metric,
            "found": "x",
            "scores": {
                w: dict.fromkeys(("argmax", "threshold"), nothing) for w in ("seed", "found")
            },
            "wording": {"argmax": nothing, "threshold": one(*beyond)},
            "threshold": {"seed": one(*alone), "found": nothing},
            "both": nothing,
        }
    )


def test_every_objective_has_a_name():
    assert set(NAMES) == set(OBJECTIVES) and len(set(NAMES.values())) == len(NAMES)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "accuracy", "worst_slice"])
def test_the_share_of_a_gain_says_what_it_is_a_gain_of(metric):
    assert f"points of {NAMES[metric]} over" in share_line(cells(metric=metric))


def test_what_has_no_holdout_score_comes_last_however_low_the_others_are():
    rows = [{**ROW, "fresh_score": score} for score in (None, -2.5, 0.5)]
    assert [r["fresh_score"] for r in _sorted(rows, "fresh_score")] == [0.5, -2.5, None]


@pytest.mark.parametrize("objective", ["nll", "auroc"])
def test_a_run_of_another_objective_is_not_shown_as_accuracies(
    make_manifest, tmp_path, monkeypatch, capsys, objective
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    argv = ["--checkpoint", "fake", "--manifest", str(make_manifest()), "--name", "run"]
    argv += ["--runs-dir", str(tmp_path), "--iterations", "1", "--candidates", "4"]
    assert optimize.main([*argv, "--objective", objective]) == 0
    shown = capsys.readouterr().out
    name = NAMES[objective]
    assert f"scores    {name}" in shown and f"run run: {name} on the search half" in shown
    assert "controls  balanced accuracy with silence" in shown
    assert leaderboard.main([str(tmp_path / "run")]) == 0
    assert f"run run: {name} of speech" in capsys.readouterr().out
    page = page_of(tmp_path / "run")
    assert f"<dt>scores</dt><dd>{name}</dd>" in page and f">{name}" in page
    assert f"<p>{name} on the search half" in page and "Balanced accuracy on the search" not in page
    assert "balanced accuracy, %" not in page


def test_a_test_score_without_an_interval_is_not_shown_with_one_of_no_width(
    make_manifest, tmp_path, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    argv = ["--checkpoint", "fake", "--manifest", str(make_manifest()), "--name", "run"]
    assert optimize.main([*argv, "--runs-dir", str(tmp_path), "--iterations", "0"]) == 0
    row = {"score": 0.5, "low": None, "high": None, "text": "x", "baseline": False}
    row["difference"] = {"value": 0.1, "low": None, "high": None, "p": 1.0, "p_holm": 1.0}
    (tmp_path / "run" / "test.json").write_text(json.dumps({"test_openings": 1, "prompts": [row]}))
    text = re.sub(r"<[^>]+>", " ", page_of(tmp_path / "run"))
    assert "+10.0 [too few sources for an interval]" in text
