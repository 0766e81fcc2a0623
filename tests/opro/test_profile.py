"""`opro.profile` through its command, and what a search makes of it."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from chat_server import serve
from common import DEMO

import opro.optimize as optimize
from evaluators.errors import PromptError, UserError
from evaluators.fakes import FakeEvaluator
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import halves
from evaluators.tasks import SPEECH_TASK, task_named
from opro import profile
from opro.proposers.profiled import read_profile
from opro.results.run_folder import RunFolder


def run(folder, *flags, code=0):
    assert profile.main(["--runs-dir", str(folder), *map(str, flags)]) == code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a profile of the stand-in: 170 wordings of the grammar, as many as its parts need."""
    folder = tmp_path_factory.mktemp("profile")
    run(folder, "--checkpoint", "fake", "--wordings", 170, "--clips", 160)
    return folder / "profile-speech-fake-s0"


@pytest.fixture
def no_page(monkeypatch):
    """Pictures take a second."""
    monkeypatch.setattr(profile, "page_of", lambda found: "")


@pytest.fixture(scope="module")
def document(made):
    return json.loads((made / "profile.json").read_text())


def test_it_hears_the_search_half_alone(document):
    dev = read_manifest(DEMO, SPEECH_TASK, "dev")
    search, holdout = ({c.source_id for c in half} for half in halves(dev))
    heard = set(document["heard_sources"])
    assert heard <= search and not heard & holdout
    assert document["sources"] == len(heard) and document["clips"] == 80


def test_every_file_says_the_same(made, document):
    (one,) = document["checkpoints"]
    assert set(one["groups"]) == {"grammar", "held-out"}
    rows = list(csv.DictReader((made / "wordings.csv").open()))
    assert len(rows) == len(document["wordings"]) == len(one["wordings"]) == 170 + 40 + 3
    assert [r["prompt_id"] for r in rows] == [w["prompt_id"] for w in document["wordings"]]
    grammar = [float(r["balanced_accuracy"]) for r in rows if r["group"] == "grammar"]
    middle = one["groups"]["grammar"]["numbers"]["balanced_accuracy_q50"]
    assert middle["value"] == pytest.approx(sorted(grammar)[84] / 2 + sorted(grammar)[85] / 2)
    assert middle["low"] < middle["value"] < middle["high"]
    effects = list(csv.DictReader((made / "effects.csv").open()))
    assert len(effects) == len(one["effects"]) == sum(len(f["levels"]) for f in document["factors"])
    best = read_prompts(made / "best-fake.yaml", SPEECH_TASK.labels)
    assert [p.to_dict() for p in best] == one["best"]
    tuned = {
        w["prompt_id"]: n["tuned"]
        for w, n in zip(document["wordings"], one["wordings"], strict=True)
    }
    assert tuned[best[0].prompt_id] == max(tuned.values())
    page = (made / "report.html").read_text()
    assert page.count("<svg") == 2 + len(document["factors"]) and "<script" not in page


def test_hand_written_prompts_have_their_place(document):
    (one,) = document["checkpoints"]
    value = [w["balanced_accuracy"] for w in one["wordings"]]
    others = [
        v for v, w in zip(value, document["wordings"], strict=True) if w["group"] == "grammar"
    ]
    assert len(one["hand_written"]) == 3
    for row in one["hand_written"]:
        own = value[row["wording"]]
        below = sum(v < own for v in others) + sum(v == own for v in others) / 2
        assert row["above"] == pytest.approx(below / len(others))


def test_the_same_command_scores_nothing_again(made, document, capsys):
    run(made.parent, "--checkpoint", "fake", "--wordings", 170, "--clips", 160, "--dry-run")
    plan = capsys.readouterr().out
    evals = 213 * 80
    assert f"fake: {evals:,} evals, {evals:,} cached" in plan


def test_two_checkpoints_stand_side_by_side(tmp_path, monkeypatch, no_page):
    """On the same wordings and resamples: one against itself differs by nothing."""
    flags = ["--wordings", 20, "--clips", 120]
    opened = profile.open_model
    monkeypatch.setattr(profile, "open_model", lambda s, *a, **k: opened(
        s if s.checkpoint == "fake" else profile.ModelSettings(checkpoint="fake"), *a, **k))  # fmt: skip
    run(tmp_path, "--checkpoint", "fake", "other", *flags, "--out", tmp_path / "p")
    found = json.loads((tmp_path / "p" / "profile.json").read_text())
    (gain,) = found["differences"]
    assert gain["groups"].keys() == {"grammar", "held-out"}
    for numbers in gain["groups"].values():
        for value in numbers.values():
            assert value == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (
        any("too few" in note for note in found["notes"]) and not found["checkpoints"][0]["effects"]
    )


def test_a_relative_is_predicted_and_a_search_of_it_starts_there(tmp_path, monkeypatch, no_page):
    """From 2 % of its evals; the bank here is the new one itself, so that the best is known."""
    opened, asked = profile.open_model, []

    def open_fake(settings, *a, **k):
        model = opened(profile.ModelSettings(checkpoint="fake"), *a, **k)
        return replace(model, name=settings.checkpoint)

    monkeypatch.setattr(profile, "open_model", open_fake)
    plain = FakeEvaluator.score
    monkeypatch.setattr(FakeEvaluator, "score", lambda self, prompts, clips: (
        asked.append(len(prompts) * len(clips)), plain(self, prompts, clips))[1])  # fmt: skip
    argv = ["--wordings", 20, "--clips", 120, "--out", tmp_path / "p", "--predict", "fake"]
    run(tmp_path, "--checkpoint", "a", "b", *argv)
    found = json.loads((tmp_path / "p" / "profile.json").read_text())
    (one,) = found["predicted"]
    assert [w["prompt_id"] for w in one["wordings"]] == [w["prompt_id"] for w in found["wordings"]]
    assert one["of"] == 63 * found["clips"] and 63 < one["evals"] <= 90
    for told, true in zip(one["wordings"], found["checkpoints"][0]["wordings"], strict=True):
        assert told["tuned"]["low"] <= told["tuned"]["value"] <= told["tuned"]["high"]
        assert told["tuned"]["value"] == pytest.approx(true["tuned"], abs=0.1)
    rows = list(csv.DictReader((tmp_path / "p" / "predicted.csv").open()))
    assert [float(r["tuned"]) for r in rows] == [w["tuned"]["value"] for w in one["wordings"]]
    best = read_prompts(tmp_path / "p" / "best-fake.yaml", SPEECH_TASK.labels)
    assert [p.to_dict() for p in best] == one["best"]
    told = read_profile(tmp_path / "p", SPEECH_TASK, "fake")
    assert [t.prompt.digest for t in told.run.trials] == [p.digest for p in best]
    assert read_profile(tmp_path / "p", SPEECH_TASK, "a").run.trials != told.run.trials


def test_more_labels_work(tmp_path, capsys, no_page):
    run(tmp_path, "--checkpoint", "fake", "--task", "animal", "--wordings", 60, "--clips", 200,
        "--format", "json")  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["labels"] == list(task_named("animal").labels)
    (one,) = found["checkpoints"]
    assert {e["factor"] for e in one["effects"]} >= {"first option", "definition", "lines"}
    assert 0.2 < one["groups"]["grammar"]["numbers"]["auroc_q50"]["value"] <= 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--task", "keywords"], "task 'keywords' has no"),
        (["--task", "choices"], "task 'choices' has"),
        (["--checkpoint", "fake", "fake"], "'fake' is given twice"),
        (["--prompts", "no.yaml"], "no.yaml"),
        (["--predict", "pocket-base"], "--predict needs the scores of 2"),
        (["pocket-lora", "--predict", "fake"], "'fake' is named twice"),
        (["pocket-lora", "--predict", "a", "a"], "'a' is named twice"),
        (["pocket-lora", "--task", "animal", "--predict", "a"], "works for tasks of two labels"),
    ],
)
def test_what_cannot_be_profiled_is_said(tmp_path, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        run(tmp_path, "--checkpoint", "fake", *flags)
    assert not list(tmp_path.glob("profile-*"))


def test_a_list_of_prompts_is_a_group_and_what_cannot_be_asked_is_named(
    tmp_path, monkeypatch, no_page
):
    texts = [f"Is it speech, number {i}? A) yes B) no" for i in range(12)]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"prompts": [{"text": t} for t in texts]}))
    plain = FakeEvaluator.score

    def score(self, prompts, clips):
        if any(p.text == texts[3] for p in prompts):
            raise PromptError("prompt x cannot be asked")
        return plain(self, prompts, clips)

    monkeypatch.setattr(FakeEvaluator, "score", score)
    run(tmp_path, "--checkpoint", "fake", "--wordings", 15, "--clips", 120, "--prompts",
        tmp_path / "p.yaml", "--out", tmp_path / "o")  # fmt: skip
    found = json.loads((tmp_path / "o" / "profile.json").read_text())
    assert found["checkpoints"][0]["groups"]["given"]["wordings"] == 11
    assert texts[3] not in {w["text"] for w in found["wordings"]}
    assert any("1 of 70 wordings could not be scored" in note for note in found["notes"])


def test_a_search_starts_from_its_best(made, tmp_path):
    flags = ["--checkpoint", "fake", "--iterations", "1", "--candidates", "4", "--clips", "160"]
    argv = [*flags, "--share", str(made), "--runs-dir", str(tmp_path), "--name", "r"]
    assert optimize.main(argv) == 0
    trials = RunFolder.read(tmp_path / "r").history.trials
    origins = [t.candidate.origin for t in trials if t.iteration == 1]
    assert origins[:2] == [f"shared:{made.name}"] * 2
    best = read_prompts(made / "best-fake.yaml", SPEECH_TASK.labels)
    assert {t.prompt.text for t in trials if t.iteration == 1} & {p.text for p in best}
    assert (
        optimize.main(
            [
                *flags,
                "--seeds",
                str(made / "best-fake.yaml"),
                "--runs-dir",
                str(tmp_path),
                "--name",
                "s",
            ]
        )
        == 0
    )


def test_its_language_model_is_told_what_parts_do(tmp_path, document):
    """In every request, of the fragments too; and a search without a profile asks as it ever did."""
    one = dict(document["checkpoints"][0])
    strong = {"value": 0.31, "low": 0.2, "high": 0.4}
    one["effects"] = [
        {**one["effects"][0], "level": "a strange one", "hit_rate": strong, "clear": True}
    ]
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "profile.json").write_text(json.dumps({**document, "checkpoints": [one]}))
    flags = "--checkpoint fake --iterations 1 --candidates 4 --clips 120 --lm-model m".split()
    told = {}
    for name, more in (("with", ["--share", str(folder)]), ("without", [])):
        with serve(lambda request: json.dumps({"prompts": ["Speech? A) yes B) no"]})) as server:
            argv = [*flags, *more, "--runs-dir", str(tmp_path), "--name", name]
            assert optimize.main([*argv, "--lm-base-url", server.url]) == 0
        told[name] = [json.dumps(r["messages"]) for r in server.requests]
    assert told["with"] and all("a strange one" in m and "+31.0" in m for m in told["with"])
    assert told["without"] and not any("Measured before the search" in m for m in told["without"])


def test_a_profile_of_held_out_sources_is_refused(made, tmp_path, document):
    dev = read_manifest(DEMO, SPEECH_TASK, "dev")
    held = sorted({c.source_id for c in halves(dev)[1]})
    folder = tmp_path / "leaky"
    folder.mkdir()
    (folder / "profile.json").write_text(json.dumps({**document, "heard_sources": held[:1]}))
    argv = ["--checkpoint", "fake", "--iterations", "1", "--share", str(folder)]
    with pytest.raises(UserError, match="which the holdout here holds"):
        optimize.main([*argv, "--runs-dir", str(tmp_path)])


def test_the_page_shows_text_as_text(made, document):
    found = json.loads(json.dumps(document))
    found["wordings"][-1]["text"] = found["wordings"][0]["text"] = "<script>alert(1)</script>"
    found["checkpoints"][0]["name"] = "<b>x</b>"
    found["factors"] = found["factors"][:1]  # pictures take a second
    page = profile.page_of(found)
    assert "<script" not in page and "<b>x" not in page and "&lt;b&gt;x" in page


def test_the_standard_library_keeps_its_profile():
    import cProfile
    import profile as standard

    assert Path(standard.__file__).parent != Path(profile.__file__).parent
    assert cProfile.Profile is not None
