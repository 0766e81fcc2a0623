"""Other tasks than speech, through the verbs: the run knows its task, whatever becomes of the file."""

import json

import numpy as np
import pytest

import opro
from evaluators.classifier import read_classifiers
from evaluators.files import shipped
from evaluators.tasks import task_named
from opro import matrix, report, rescore, seal, verify
from opro.cli import run_verb
from opro.optimize import main as optimize_main
from opro.results.predictions import read_own
from opro.results.run_folder import RunFolder


def verb(main, *argv):
    return run_verb(lambda: main([str(a) for a in argv]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A search over four kinds of sound, by a task file that is gone afterwards."""
    folder = tmp_path_factory.mktemp("tasks")
    file = folder / "kinds.yaml"
    file.write_bytes((shipped("prompts/tasks") / "animal.yaml").read_bytes())
    argv = ["--task", file, "--checkpoint", "fake", "--iterations", 2, "--runs-dir", folder]
    assert verb(optimize_main, *argv, "--name", "r") == 0
    file.unlink()
    return folder / "r"


def test_a_run_knows_its_task(run):
    found = RunFolder.read(run)
    assert found.task == task_named("animal")
    assert found.history.header["task"].startswith("animal-")
    assert {len(t.prompt.answers) for t in found.history.trials} == {4}
    assert {t.state for t in found.history.trials} == {"complete", "dropped"}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["controls"][summary["chosen"]["prompt_id"]]["silence"] == pytest.approx(
        0.25, abs=0.1
    )


def test_every_verb_decides_as_the_run_did(run, tmp_path, capsys):
    assert verb(rescore.main, run, "--split", "dev", "--runs-dir", tmp_path) == 0
    assert verb(seal.main, run, "--out", tmp_path / "card.yaml") == 0
    assert verb(verify.main, tmp_path / "card.yaml") == 0
    assert "same labels, P within" in capsys.readouterr().out
    result = opro.load_run(run)
    clips = opro.load_clips("data/demo", "dev", task=str(run / "task.yaml"))
    said = opro.score("fake", result.best, clips, runs_dir=tmp_path).set_index("clip_id")
    held = result.holdout
    held = held[held.prompt_id == result.best.prompt_id].set_index("clip_id")
    assert (said.loc[held.index].predicted == held.predicted).all()
    labels = opro.predict(run, [c.path for c in clips[:4]], evaluator="fake").windows
    assert set(labels.answer) <= {*clips.task.labels, "unsure"}
    assert set(labels.label) <= set(clips.task.labels)
    assert labels[[f"p_{v}" for v in clips.task.labels]].sum(axis=1).round(4).eq(1).all()


def test_a_matrix_of_another_task_takes_its_prompts(tmp_path, capsys):
    argv = ["--task", "animal", "--checkpoint", "fake", "--runs-dir", tmp_path, "--split", "dev"]
    assert verb(matrix.main, *argv, "--out", tmp_path / "m") == 0
    rows = json.loads((tmp_path / "m" / "matrix.json").read_text())["rows"]
    assert len(rows) == len(task_named("animal").prompts)


def test_another_task_is_another_run(run, capsys):
    argv = ["--checkpoint", "fake", "--iterations", 2, "--runs-dir", run.parent, "--name", "r"]
    assert verb(optimize_main, "--task", "speech", *argv) == 2
    assert "was started with task" in capsys.readouterr().err


def test_a_task_without_prompts_asks_for_some(tmp_path, capsys):
    file = tmp_path / "t.yaml"
    file.write_text(
        "name: t\nlabels: [SPEECH, NONSPEECH]\ndescription: speech or not\n", encoding="utf-8"
    )
    argv = ["--task", file, "--checkpoint", "fake", "--runs-dir", tmp_path / "runs"]
    assert verb(optimize_main, *argv) == 2
    assert (
        "task 't' has no prompts of its own; give some with --seeds FILE" in capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()
    seeds = "prompts/seeds/baselines.yaml"
    assert verb(optimize_main, *argv, "--seeds", shipped(seeds), "--iterations", 0) == 0


THREE = """
name: three
labels: [NOISE, SPEECH, SOUND]
description: Decide whether a clip holds speech, another sound, or noise alone.
column: category
values: {NOISE: [noise], SPEECH: [speech], SOUND: [animal, music, environment]}
prompts:
- {text: "A) noise B) speech C) sound", answers: {NOISE: A, SPEECH: B, SOUND: C}}
- {text: "Is it noise (A), speech (B) or a sound (C)?", answers: {NOISE: A, SPEECH: B, SOUND: C}}
"""


def test_three_labels_have_a_bias_each_which_every_verb_keeps(tmp_path, capsys):
    file = tmp_path / "three.yaml"
    file.write_text(THREE)
    argv = ["--task", file, "--checkpoint", "fake", "--iterations", 2, "--threshold", "dev"]
    assert verb(optimize_main, *argv, "--runs-dir", tmp_path, "--name", "r") == 0
    run = RunFolder.read(tmp_path / "r")
    best = read_classifiers(run.path / "best.yaml", run.task.labels)[0]
    assert len(best.bias) == 3 and any(best.bias)
    assert best == next(
        t.classifier for t in run.history.trials if t.prompt.prompt_id == best.prompt_id
    )
    told = capsys.readouterr().out
    assert all(f"{v} {b:+.2f}" in told for v, b in zip(run.task.labels, best.bias, strict=True))

    assert verb(rescore.main, run.path, "--split", "dev", "--runs-dir", tmp_path) == 0
    row = json.loads((run.path / "dev.json").read_text())["prompts"][0]
    recalls = [one["recall"] for one in row["labels"].values()]
    assert row["score"] == pytest.approx(np.mean(recalls))
    assert row["auroc"] == pytest.approx(np.mean([o["auroc"] for o in row["labels"].values()]))
    for label, one in row["labels"].items():
        assert sum(one["taken_for"].values()) == one["clips"] > 0
        assert one["taken_for"][label] / one["clips"] == one["recall"]
    assert "lowest recall" in capsys.readouterr().out
    for made in (run.finished().baseline, run.finished().chosen):  # the bias is in what is kept
        held = read_own(run.holdout(made.prompt_id), run.task.labels)
        trial = next(t for t in run.history.trials if t.prompt.prompt_id == made.prompt_id)
        shares = trial.classifier.distribution(held.logp)
        np.testing.assert_allclose(held.probability, shares[:, 0], atol=1e-5)
    assert verb(seal.main, run.path, "--runs-dir", tmp_path, "--out", tmp_path / "card.yaml") == 0
    assert verb(verify.main, tmp_path / "card.yaml") == 0, capsys.readouterr().out

    assert verb(report.main, run.path) == 0
    page = (run.path / "report.html").read_text()
    assert "Labels taken for each other" in page and "Psychometric" not in page
    assert verb(matrix.main, *argv[:4], "--prompts", run.path / "best.yaml", "--split", "dev",
                "--runs-dir", tmp_path, "--out", tmp_path / "m") == 0  # fmt: skip
    one = json.loads((tmp_path / "m" / "matrix.json").read_text())["rows"][0]
    assert one["bias"] == list(best.bias) and set(one["labels"]) == set(run.task.labels)
    assert verb(matrix.main, *argv[:4], "--baselines", "energy", "--out", tmp_path / "n") == 2
    assert "tells two labels apart" in capsys.readouterr().err
