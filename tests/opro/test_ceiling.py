"""The verb: a soft prompt through the command line, resumed, judged on unseen sources, and its row in a matrix."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from common import LABELS, ROOT

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.latency import Latency
from evaluators.manifest import read_manifest
from evaluators.prompts import dump_prompts
from evaluators.splits import balanced_order, halves
from evaluators.statistics.calibration import fit_shift
from evaluators.statistics.metrics import balanced_accuracy
from opro import ceiling, matrix, report
from opro.cli import run_verb
from opro.results.ceilings import RESULT, VECTORS

pytestmark = pytest.mark.tiny


def verb(main, *argv):
    try:
        return run_verb(lambda: main([str(a) for a in argv]))
    except SystemExit as stop:
        return stop.code


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A manifest of 8 train, 16 dev and 4 test clips of the demo."""
    folder = tmp_path_factory.mktemp("small")
    rows = list(csv.DictReader((ROOT / "data/demo/manifest.csv").open()))
    order = {
        c.clip_id: i
        for i, c in enumerate(balanced_order(read_manifest(ROOT / "data/demo", LABELS)))
    }
    rows.sort(key=lambda r: order[r["clip_id"]])
    kept = []
    for split, count in (("train", 8), ("dev", 16), ("test", 4)):
        kept += [r for r in rows if r["split"] == split][:count]
    for row in kept:
        target = folder / row["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "data/demo" / row["path"], target)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(kept)
    return folder


def flags(small, *more):
    words = ("--epochs", "1", "--seeds", "2", "--batch", "4", "--runs-dir", small / "runs")
    return ["--manifest", small, "--out", small / "soft", *words, *more]


@pytest.fixture(scope="module")
def made(small):
    assert verb(ceiling.main, *flags(small)) == 0
    return small / "soft"


def test_what_it_says_follows_from_scores_and_files(small, made, seeds):
    result = json.loads((made / RESULT).read_text())
    search, holdout = halves(balanced_order(read_manifest(small, LABELS, "dev")))
    scorer = AudioScorer(open_checkpoint("pocket-base"), "cpu", "float32")
    tables = [scorer.score(seeds, clips) for clips in (search, holdout)]
    best, of = -1.0, None
    for i, prompt in enumerate(seeds):
        logp, truth = tables[0].logp[i], tables[0].targets.truth
        one = ceiling.Classifier(prompt, fit_shift(truth, logp))
        said = tables[0].predict(one)
        score = balanced_accuracy(said.targets.kinds, said.right)
        if score > best:
            best, of = score, one
    hand, soft = result["rows"]
    judged = tables[1].predict(of)
    assert hand["prompt"]["text"] == of.prompt.text and hand["search_half"] == pytest.approx(best)
    assert result["scores"]["hand"]["value"] == pytest.approx(
        balanced_accuracy(judged.targets.kinds, judged.right)
    )
    assert result["prompt"]["text"] == of.prompt.text  # where the vectors began
    assert soft["tokens"] == result["tokens"] == hand["tokens"]
    kept = min(result["seeds"], key=lambda one: one["best"]["loss"])
    assert kept["best"]["loss"] == min(e["loss"] for s in result["seeds"] for e in s["curve"])
    rows = list(csv.DictReader((made / "soft.csv").open()))
    assert [r["clip_id"] for r in rows] == [c.clip_id for c in holdout]
    right = np.array([r["label"] == r["predicted"] for r in rows])
    kinds = np.array([r["label"] for r in rows])
    value = np.mean([right[kinds == k].mean() for k in set(kinds)])
    assert result["scores"]["soft"]["value"] == pytest.approx(value)
    heard = {c.source_id for c in read_manifest(small, LABELS, "train")}
    assert set(result["train"]["sources"]) == heard
    assert not heard & {c.source_id for c in (*search, *holdout)}
    assert result["test_openings"] is None and not (small / "runs" / "test_openings.jsonl").exists()


def test_it_goes_on_from_the_seeds_that_were_done(small, made, capsys):
    before = json.loads((made / RESULT).read_text())
    vectors = (made / VECTORS).read_bytes()
    (made / RESULT).unlink()
    (made / "seed-1.json").unlink()
    done = (made / "seed-0.json").stat().st_mtime_ns
    assert verb(ceiling.main, *flags(small)) == 0
    said = capsys.readouterr()
    assert "seed 0" not in said.err and "seed 1  epoch 1" in said.err
    assert "proves no upper bound" in said.out and before["sentence"] in said.out
    after = json.loads((made / RESULT).read_text())
    assert (made / "seed-0.json").stat().st_mtime_ns == done
    assert (made / VECTORS).read_bytes() == vectors
    changing = ("seconds", "provenance")
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }
    assert verb(ceiling.main, *flags(small, "--lr", "0.2")) == 2
    assert "was started with lr = 0.1, now it is 0.2" in capsys.readouterr().err


def test_a_matrix_has_its_row_and_its_sentence(small, made, tmp_path, capsys, monkeypatch, seeds):
    monkeypatch.setattr(matrix.latency, "measure", lambda *_: Latency(1.0, 1.0, 1.0, 1.0, 1))
    runs = ("--runs-dir", tmp_path / "runs", "--manifest", small)
    one_prompt = tmp_path / "p.yaml"
    one_prompt.write_text(dump_prompts(seeds[:1]))
    argv = ["--checkpoint", "pocket-base", "--split", "dev", "--soft", made, *runs]
    argv += ["--prompts", one_prompt]
    assert verb(matrix.main, *argv) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "runs" / "matrix-dev" / "matrix.json").read_text())
    own = json.loads((made / RESULT).read_text())
    (row,) = (r for r in result["rows"] if r.get("soft"))
    assert row["prompt"] == f"soft prompt of {own['tokens']} tokens, no words" and "text" not in row
    assert row["soft"] == own["digest"] and row["row"] == ""
    assert row["balanced_accuracy"]["value"] == pytest.approx(own["scores"]["soft"]["value"])
    assert set(row["controls"]) == {"silence", "shuffled"} and row["threshold_on_dev"]
    (one,) = result["ceilings"]
    gain = row["threshold_on_dev"]["value"] - result["rows"][0]["threshold_on_dev"]["value"]
    assert one["sentence"] in said and one["room"]["value"] == pytest.approx(gain)
    assert report.main([str(tmp_path / "runs" / "matrix-dev")]) == 0
    page = (tmp_path / "runs" / "matrix-dev" / "report.html").read_text()
    assert one["sentence"] in page and row["prompt"] in page
    path = made / VECTORS
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert verb(matrix.main, *argv) == 2
        assert "is not the soft prompt that its record tells of" in capsys.readouterr().err
    finally:
        path.write_bytes(whole)
    argv[1] = "pocket-lora"
    assert verb(matrix.main, *argv, "--heard", "allow") == 2
    assert "which are of none of --checkpoint pocket-lora" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--checkpoint", "fake"], "has no weights here"),
        (["--checkpoint", "endpoint:x"], "has no weights here"),
        (["--clips", "5000"], "--clips is '5000'; expected all, or a number up to 8"),
        (["--batch", "32"], "fewer than a batch of 32"),
        (["--prompt", "nothing.yaml"], "does not exist"),
        (["--prompt", "."], "is no run folder"),
        (["--task", "choices"], "choices"),
        (["--ray", "auto"], "is trained in one process"),
    ],
)
def test_wrong_use_is_one_sentence_and_writes_nothing(small, tmp_path, capsys, more, message):
    argv = flags(small, *more)
    argv[argv.index("--out") + 1] = tmp_path / "out"
    assert verb(ceiling.main, *argv) == 2
    said = capsys.readouterr().err
    assert message in said and re.fullmatch(r"error: [^\n]*\n", said)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(small, tmp_path, capsys):
    argv = flags(small, "--dry-run")
    argv[argv.index("--out") + 1] = tmp_path / "out"
    assert verb(ceiling.main, *argv) == 0
    said = capsys.readouterr().out
    assert "8 of" in said and "2 x at most 1 epochs" in said and not (tmp_path / "out").exists()
