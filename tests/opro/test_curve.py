"""The data curve: nested sets, counted looks, a table with its picture, nothing lost by a kill."""

import csv
import json

import pytest
from common import LABELS
from tuned_fakes import in_splits, use_tuned

from evaluators.errors import PauseError, UserError
from evaluators.manifest import read_manifest
from evaluators.splits import balanced_order, halves
from opro import curve, finetune
from opro.results import figures
from opro.results.decisions import DECISIONS
from opro.results.looks import USES

NATS = {"pocket-base": -1.0, "lora-8": -0.6, "lora-16": 0.4}


@pytest.fixture
def clips(make_manifest):
    return make_manifest(sources=96, per_source=2, change=in_splits)


def flags(clips, *more):
    runs = clips.parent / "runs"
    return [str(a) for a in ("--manifest", clips, "--runs-dir", runs, "--out", runs / "curve",
                             "--iterations", 1, "--candidates", 4, "--clips", 16, 8, *more)]  # fmt: skip


def curve_of(clips, split="dev"):
    return json.loads((clips.parent / "runs" / "curve" / split / "curve.json").read_text())


def test_sizes_are_nested_and_stand_beside_the_checkpoint_as_it_is(clips, monkeypatch, capsys):
    heard, trained = use_tuned(monkeypatch, NATS)
    assert curve.main(flags(clips)) == 0
    found, out = curve_of(clips), capsys.readouterr()
    rows = found["rows"]
    assert [r["clips"] for r in rows] == [0, 8, 16] and found["test_openings"] is None
    assert [(s.clips, s.checkpoint) for s, _ in trained] == [
        ("8", "pocket-base"),
        ("16", "pocket-base"),
    ]
    assert all(len(prompts) == 1 for _, prompts in trained)  # the first hand-written one
    train = balanced_order(read_manifest(clips, LABELS, "train"))
    assert [r["sources"] for r in rows] == [
        len({c.source_id for c in train[:n]}) for n in (0, 8, 16)
    ]
    hand = [r["hand"]["value"] for r in rows]
    assert hand == sorted(hand) and hand[-1] > hand[0] + 0.2
    for r in rows:
        gain = r["searched"]["value"] - r["hand"]["value"]
        assert r["search_gains"]["value"] == pytest.approx(gain)
    assert rows[0]["clips_gain"] is None
    assert rows[2]["clips_gain"]["value"] == pytest.approx(
        rows[2]["searched"]["value"] - rows[1]["searched"]["value"]
    )
    fresh = {c.clip_id for c in halves(read_manifest(clips, LABELS, "dev"))[1]}
    assert fresh <= set(heard) and found["clips"] == len(fresh)
    assert not (clips.parent / "runs" / DECISIONS).exists()  # nothing is decided there
    assert "curve.html" in out.out and "training on 8 clips" in out.err
    check_files(clips)


def check_files(clips):
    """They hold the same numbers."""
    folder, rows = clips.parent / "runs" / "curve" / "dev", curve_of(clips)["rows"]
    with (folder / "curve.csv").open(newline="") as file:
        told = list(csv.DictReader(file))
    assert [float(r["searched_low"]) for r in told] == [r["searched"]["low"] for r in rows]
    page = (folder / "curve.html").read_text()
    assert page.count("<svg") == 1 and "<script" not in page and "train clips" in page
    assert (folder / "curve.svg").read_text().startswith("<svg") and "16" in page
    for r in rows:
        assert f"{100 * r['searched']['value']:.1f} [" in page
        assert f"{100 * r['searched']['value']:.1f} [" in (folder / "curve.md").read_text()


def test_each_use_of_test_is_counted_and_showing_it_again_is_none(clips, monkeypatch, capsys):
    _, trained = use_tuned(monkeypatch, NATS)
    real = finetune.run

    def run(settings, *rest):
        if settings.clips == "16":
            raise PauseError("the disk is full")
        real(settings, *rest)

    monkeypatch.setattr(finetune, "run", run)
    with pytest.raises(PauseError):
        curve.main(flags(clips, "--split", "test"))
    assert not (clips.parent / "runs" / USES).exists()  # before anything is shown
    monkeypatch.setattr(finetune, "run", real)
    for _ in range(2):
        assert curve.main(flags(clips, "--split", "test")) == 0
    assert curve.main(flags(clips)) == 0  # on the holdout, with the same adapters
    assert [s.clips for s, _ in trained] == ["8", "16"]  # what was finished is taken as it is
    assert curve_of(clips, "test")["test_openings"] == 1
    assert "opened once" in capsys.readouterr().out


def test_a_size_that_cannot_be_is_found_before_anything_is_trained(clips, monkeypatch, capsys):
    _, trained = use_tuned(monkeypatch, NATS)
    with pytest.raises(UserError, match="names 16 clips twice"):
        curve.main([*flags(clips), "016"])
    with pytest.raises(UserError, match="expected all, or a number up to 48"):
        curve.main([*flags(clips), "49"])
    assert curve.main([*flags(clips), "all", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "sizes       0, 8, 16, 48 train clips: 3 trainings" in said
    assert not trained and not (clips.parent / "runs" / "curve").exists()


def test_scores_in_nats_and_missing_bounds_are_drawn():
    rows = [{"clips": n, "hand": {"value": -0.7, "low": None, "high": None},
             "searched": {"value": -0.5, "low": -0.6, "high": -0.4}} for n in (0, 1000)]  # fmt: skip
    assert "1,000" in figures.data_curve(rows, "negative log-likelihood in nats")
