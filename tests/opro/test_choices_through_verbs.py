"""A task whose clips bring their own questions, through the verbs: on the shipped clips, with made-up questions."""

import csv
import json
import shutil

import numpy as np
import pytest

from evaluators.clips import ClipSet
from evaluators.evaluator import ScoreTable, Uncached
from evaluators.files import shipped
from evaluators.manifest import manifest_path, read_manifest
from evaluators.tasks import task_named
from opro import brittle, export, finetune, matrix, predict, report, rescore
from opro.cli import run_verb
from opro.optimize import main as optimize_main
from opro.results.question_kinds import chance_of, over_orders
from opro.results.run_folder import RunFolder

SOUNDS = {
    "speech": "a person",
    "music": "an instrument",
    "animal": "an animal",
    "environment": "a thing",
}


def verb(main, *argv):
    return run_verb(lambda: main([str(a) for a in argv]))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A clip set with two kinds of questions, of three and of four options, in drawn orders."""
    folder = tmp_path_factory.mktemp("asked")
    demo = manifest_path(shipped("data/demo"))
    with demo.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] in ("dev", "test")]
    (folder / "clips").mkdir()
    rng, out = np.random.default_rng(0), []
    for i, row in enumerate(r for r in rows if r["category"] in SOUNDS):
        right = SOUNDS[row["category"]]
        others = rng.permutation([s for s in SOUNDS.values() if s != right])[: 2 + i % 2]
        options = rng.permutation([right, *others]).tolist()
        target = folder / "clips" / f"{i}.flac"
        shutil.copyfile(demo.parent / row["path"], target)
        kind = ("who", "what")[i % 2]
        out.append(
            row | {"path": f"clips/{i}.flac", "category": kind, "label": right,
                   "question": f"{kind.title()} is heard?", "options": json.dumps(options)}
        )  # fmt: skip
    with (folder / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(out[0]))
        writer.writeheader()
        writer.writerows(out)
    return folder


@pytest.fixture(scope="module")
def run(asked):
    argv = ["--task", "choices", "--manifest", asked, "--checkpoint", "fake", "--iterations", 2]
    argv += ["--objective", "accuracy", "--swap", "--runs-dir", asked / "runs", "--name", "r"]
    assert verb(optimize_main, *argv) == 0
    return asked / "runs" / "r"


def test_a_manifest_tells_options_and_the_right_one(asked):
    task = task_named("choices")
    clips = read_manifest(asked, task, "dev")
    assert {len(c.options) for c in clips} == {3, 4}
    right = {c.options[task.labels.index(c.label)] for c in clips}
    assert right == set(SOUNDS.values())


def test_frames_are_searched_and_handed_over(run, capsys):
    found = RunFolder.read(run)
    assert all(
        "{options}" in t.prompt.text and "{question}" in t.prompt.text for t in found.history.trials
    )
    assert all(t.prompt.both_orders for t in found.history.trials)
    assert not any(t.classifier.bias for t in found.history.trials)
    assert found.finished().two_by_two is None
    assert any("a place among a clip's own options" in text for text in found.finished().warnings)
    made = [t for t in found.history.trials if t.iteration]
    assert len(made) > 10 and len({t.prompt.text for t in made}) > 10
    assert verb(report.main, run) == 0
    page = (run / "report.html").read_text()
    assert "100 over the number of options" in page and "Psychometric" not in page


def test_frames_have_trivial_edits_and_cannot_do_without_their_places(run, asked, capsys):
    assert verb(brittle.main, run, "--edits", 5, "--runs-dir", asked / "runs") == 0
    found = json.loads((run / "brittle.json").read_text())
    assert found["metric"] == "accuracy" and not found["fitted"]
    for one in found["brittleness"]:
        assert (
            len(one["edits"]) == 5 and one["floor_anew"] is None and one["loss"]["low"] is not None
        )
        assert all("{question}" in e["text"] and "{options}" in e["text"] for e in one["edits"])
    why = {p["text"]: p["why_not"] for p in found["phrases"] if p["why_not"]}
    assert "clip's own options" in " ".join(why.values())
    assert "fitted anew" not in capsys.readouterr().out


def test_rescoring_tells_accuracy_by_kind_chance_and_how_much_the_order_decides(run, asked, capsys):
    assert verb(rescore.main, run, "--split", "test", "--runs-dir", asked / "runs") == 0
    row = json.loads((run / "test.json").read_text())["prompts"][0]
    assert set(row["kinds"]) == {"who", "what"} and "labels" not in row
    clips = sum(kind["clips"] for kind in row["kinds"].values())
    mean = sum(kind["clips"] * kind["accuracy"]["value"] for kind in row["kinds"].values()) / clips
    assert row["score"] == pytest.approx(mean)
    assert row["kinds"]["who"]["chance"] == pytest.approx(1 / 3)
    assert row["kinds"]["what"]["chance"] == pytest.approx(1 / 4)
    orders = row["orders"]
    assert 0 <= orders["always_right"]["value"] <= orders["correctness"]["value"] <= 1
    assert (
        orders["consistency"]["low"]
        <= orders["consistency"]["value"]
        <= orders["consistency"]["high"]
    )
    assert sum(orders["places"]) == pytest.approx(1)
    told = capsys.readouterr().out
    assert "by kind of question" in told and "two orders agree in" in told and "AUROC" not in told


class FirstPlace(Uncached):
    """Takes whatever stands first."""

    fingerprint = "first"

    def score(self, prompts, clips):
        first = [[float(words == ("A",)) for _, words in prompt.answers] for prompt in prompts]
        logp = np.repeat(np.array(first, dtype=np.float32)[:, None], len(clips), axis=1) - 1
        return ScoreTable(tuple(prompts), tuple(clips), logp, logp)


def test_what_always_takes_the_first_place_is_never_consistent(asked):
    task = task_named("choices")
    clips = ClipSet(task, tuple(read_manifest(asked, task, "dev")[:40]))
    found = over_orders(FirstPlace(), task.prompts[0], clips)
    assert found["places"] == pytest.approx([1, 0, 0, 0]) and found["consistency"]["value"] == 0
    guess = np.mean([1 / len(clip.options) for clip in clips])
    assert found["correctness"]["value"] == pytest.approx(guess)
    assert chance_of(clips) == pytest.approx(guess) and found["always_right"]["value"] == 0


def test_a_matrix_takes_frames_and_what_cannot_ask_says_so(run, asked, tmp_path, capsys):
    argv = ["--task", "choices", "--manifest", asked, "--runs-dir", asked / "runs"]
    assert verb(matrix.main, *argv, "--checkpoint", "fake", "--prompts", run / "best.yaml", "--split",
                "dev", "--out", tmp_path / "m") == 0  # fmt: skip
    capsys.readouterr()
    clip = next((asked / "clips").iterdir())
    assert verb(predict.main, run, clip, "--out", tmp_path / "p") == 2
    assert "recordings bring none" in capsys.readouterr().err
    assert verb(export.main, run, "--to", tmp_path / "e") == 2
    assert "asks each clip its own question" in capsys.readouterr().err
    assert verb(finetune.main, *argv, "--checkpoint", "pocket-base", "--out", tmp_path / "f") == 2
    assert "asks each clip its own question" in capsys.readouterr().err
    plain = tmp_path / "plain.yaml"
    plain.write_text('prompts:\n- {text: "A or B?"}\n')
    assert verb(optimize_main, *argv[:4], "--checkpoint", "fake", "--seeds", plain, "--name", "x",
                "--runs-dir", tmp_path) == 2  # fmt: skip
    assert "{options}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "label", "said"),
    [
        ("dog|cat", "dog", "expected a JSON list"),
        ('["dog"]', "dog", "two or more"),
        ('["dog", "dog"]', "dog", "two or more"),
        ('["dog", "cat"]', "cow", "none of the options"),
        ('["dog", "cat"]', "C", "none of the options"),
        (json.dumps([str(i) for i in range(9)]), "1", "8 labels"),
    ],
)
def test_a_row_that_asks_nothing_sensible_is_named(asked, tmp_path, options, label, said, capsys):
    with (asked / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:3]
    rows[1] |= {"options": options, "label": label}
    shutil.copytree(asked / "clips", tmp_path / "clips")
    with (tmp_path / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    argv = ["--task", "choices", "--manifest", tmp_path, "--checkpoint", "fake"]
    assert verb(optimize_main, *argv, "--runs-dir", tmp_path / "runs") == 2
    told = capsys.readouterr().err
    assert "manifest.csv:3" in told and said in told
