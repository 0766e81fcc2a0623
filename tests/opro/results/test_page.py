"""The page's parts: each number on it is that of the predictions."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from common import ROOT

from evaluators.errors import UserError
from evaluators.targets import Predictions, Targets
from opro.results import page
from opro.results.run_folder import RunFolder
from opro.results.wording import word_changes

FROZEN = ROOT / "tests" / "assets" / "run-v1"


@pytest.fixture
def frozen(tmp_path):
    return Path(shutil.copytree(FROZEN, tmp_path / "runs"))


@pytest.fixture
def said():
    rng = np.random.default_rng(0)
    n = 240
    truth = np.arange(n) % 2
    probability = np.clip(0.5 + 0.3 * (1 - 2 * truth) + rng.normal(0, 0.3, n), 0.01, 0.99)
    slices = {
        "duration_ms": np.array([("200", "500")[i // 2 % 2] for i in range(n)]),
        "snr_db": np.array([("-5", "10")[i // 4 % 2] for i in range(n)]),
        "category": np.array([("voice", "music")[k] for k in truth]),
    }
    ids = tuple(f"c{i}" for i in range(n))
    sources = np.array([f"s{i // 8}{truth[i]}" for i in range(n)])
    targets = Targets(("SPEECH", "NONSPEECH"), ids, truth, sources, slices)
    return Predictions("x", targets, np.where(probability > 0.5, 0, 1), probability)


def test_the_heat_map_holds_balanced_accuracy_by_duration_and_snr(said):
    heat = page._heat(said)
    assert heat["snrs"] == ["-5", "10"] and [d for d, _ in heat["rows"]] == ["200", "500"]
    slices, truth = said.targets.slices, said.targets.truth
    for d, line in heat["rows"]:
        for s, cell in zip(heat["snrs"], line, strict=True):
            inside = (slices["duration_ms"] == d) & (slices["snr_db"] == s)
            parts = [said.right[inside & (truth == k)].mean() for k in (0, 1)]
            assert cell["score"] == pytest.approx(np.mean(parts))
            assert cell["clips"] == inside.sum() and cell["whole"]


def test_false_alarms_are_those_of_clips_without_speech(said):
    found = page._alarms([page.Drawn("one", said)])
    assert found["columns"] == ["one"] and [name for name, _ in found["rows"]] == ["music"]
    rate = found["rows"][0][1]["one"]["false_alarm_rate"]["value"]
    assert rate == pytest.approx((said.decided[said.targets.truth == 1] == 0).mean())


def test_the_worst_mistakes_are_played_surest_first(said, monkeypatch):
    monkeypatch.setattr(page, "_player", lambda kind, clip, p, label: (kind, clip, p))
    clips = {f"c{i}": i for i in range(len(said.targets))}
    found = page._players(said, clips)
    missed = [(i, p) for kind, i, p in found if kind == "missed"]
    alarms = [(i, p) for kind, i, p in found if kind == "false alarm"]
    assert len(missed) == len(alarms) == page.WORST
    truth = said.targets.truth
    assert all(truth[i] == 0 and said.decided[i] == 1 for i, _ in missed)
    assert all(truth[i] == 1 and said.decided[i] == 0 for i, _ in alarms)
    assert [p for _, p in missed] == sorted(p for _, p in missed)
    assert [p for _, p in alarms] == sorted((p for _, p in alarms), reverse=True)
    wrong = said.probability[(truth == 0) & (said.decided == 1)]
    assert missed[0][1] == wrong.min()


def test_calibration_is_fitted_and_shown_with_the_trials_threshold(frozen):
    """Both curves are of probabilities that carry the bias: of the same decisions."""
    run = RunFolder.read(frozen / "finished")
    summary, notes = run.finished(), []
    said = page.read_own(run.holdout(summary.chosen.prompt_id), run.task.labels)
    curves = dict(page._calibrated(run, summary.chosen.prompt_id, said, notes))
    assert set(curves) == {"as it is", "calibrated on dev"} and notes == []
    for bins in curves.values():
        assert sum(b["clips"] for b in bins) == len(said.targets)
    right = sum(b["right"] * b["clips"] for b in curves["as it is"])
    assert right == pytest.approx(said.right.sum())
    own = np.maximum(said.probability, 1 - said.probability)
    mean = sum(b["confidence"] * b["clips"] for b in curves["as it is"]) / len(own)
    assert mean == pytest.approx(own.mean())


def test_files_that_are_gone_are_told_and_the_rest_is_drawn(frozen):
    run = frozen / "finished"
    for path in (run / "scores" / "fresh").iterdir():
        path.unlink()
    (run / "test.json").unlink()
    (run / "provenance.json").unlink()
    text = page.page_of(run)
    assert "is missing: what is drawn by clip is left out" in text and "<svg" in text


def test_a_folder_of_neither_kind_and_damaged_ones_are_one_sentence(frozen, tmp_path):
    with pytest.raises(UserError, match="holds no run and no matrix"):
        page.page_of(tmp_path)
    for text in ("{}", '{"rows": []}', "[]"):
        (frozen / "matrix-test" / "matrix.json").write_text(text)
        with pytest.raises(UserError, match=r"matrix\.json: "):
            page.page_of(frozen / "matrix-test")
    assert "Not finished: " in page.page_of(frozen / "interrupted")


def test_changes_of_a_prompt_are_whole_words():
    diff = word_changes("Is it speech? Answer A.", "Is it human speech? Answer B.")
    assert ("new", "human ") in diff or ("new", " human") in diff
    assert ("gone", "A") in diff and ("new", "B") in diff
