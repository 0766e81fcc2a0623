"""Problems: opened once from settings, whatever would fail later fails here, and nothing is scored."""

import dataclasses

import pytest
from common import LABELS

from evaluators.audio_lm.checkpoint import SHIPPED
from evaluators.errors import UserError
from evaluators.fakes import FakeEvaluator
from evaluators.manifest import manifest_digest, read_manifest
from evaluators.prompts import Prompt, dump_prompts
from evaluators.several import PerCheckpoint
from evaluators.splits import Registry, halves, write_registry
from evaluators.tasks import SPEECH_TASK
from opro import problem
from opro.problem import open_data, open_model, open_problem, open_seeds
from opro.settings import DataSettings, MachineSettings, ModelSettings, OptimizeSettings


def mixed(rows):
    for row in rows:
        number = int(row["source_id"].removeprefix("source"))
        row["split"] = ("dev", "dev", "dev", "dev", "test", "test", "train", "train")[number % 8]


@pytest.fixture
def folder(make_manifest):
    return make_manifest(sources=48, per_source=3, change=mixed)


@pytest.fixture
def wanted(folder, tmp_path):
    def made(**more):
        base = {"checkpoint": "fake", "manifest": folder, "runs_dir": tmp_path / "runs"}
        return OptimizeSettings(**base | more).checked()

    return made


@pytest.fixture(autouse=True)
def nothing_is_scored_or_written(monkeypatch, tmp_path):
    def score(self, prompts, clips):
        raise AssertionError("scored")

    monkeypatch.setattr(FakeEvaluator, "score", score)
    yield
    assert not (tmp_path / "runs").exists()


def test_the_halves_share_no_source_and_are_the_split(wanted, folder):
    found = open_problem(wanted())
    search, holdout = found.search_clips, found.holdout_clips
    assert not {c.source_id for c in search} & {c.source_id for c in holdout}
    dev = read_manifest(folder, LABELS, "dev")
    assert {c.clip_id for c in (*search, *holdout)} == {c.clip_id for c in dev}
    for half in (search, holdout):
        assert {c.label for c in half} == set(LABELS)


@pytest.mark.parametrize("clips", ["12", "30", "71"])
def test_fewer_clips_are_parts_of_the_same_halves(wanted, folder, clips):
    """A source that is held out in one run is never searched by another of fewer clips."""
    whole = [{c.clip_id for c in half} for half in halves(read_manifest(folder, LABELS, "dev"))]
    found = open_problem(wanted(clips=clips))
    for half, of in zip((found.search_clips, found.holdout_clips), whole, strict=True):
        assert {c.clip_id for c in half} <= of
    assert len(found.search_clips) + len(found.holdout_clips) == int(clips)


def test_another_split_is_searched_where_that_is_asked_for(wanted):
    found = open_problem(wanted(split="train"))
    assert {c.split for c in (*found.search_clips, *found.holdout_clips)} == {"train"}


def test_a_half_without_a_class_is_refused(wanted):
    with pytest.raises(
        UserError, match=r"half of the 2 clips lacks a class: take more.* none of '"
    ):
        open_problem(wanted(clips="2"))


def test_the_identity_names_what_a_resume_must_find_again(wanted, folder, tmp_path):
    plain = open_problem(wanted()).identity
    assert plain["fingerprint"] == FakeEvaluator().fingerprint
    assert plain["data"] == manifest_digest(folder) and plain["task"] == "speech"
    seeds = tmp_path / "seeds.yaml"
    seeds.write_text(dump_prompts([Prompt("Is it? A or B")]))
    for change, key in (
        ({"seed": 4}, "seed"),
        ({"swap": True}, "fingerprint"),
        ({"seeds": seeds}, "seeds"),
    ):
        other = open_problem(wanted(**change)).identity
        assert {k for k in plain if plain[k] != other[k]} == {key}


def test_seeds_stand_once_and_carry_their_order(wanted, tmp_path):
    spec = tmp_path / "spec.yaml"
    base = open_problem(wanted()).seed_prompts
    spec.write_text(dump_prompts([base[1], Prompt("New? A or B")]))
    task = open_data(wanted()).task
    found = open_seeds(wanted(prompt_spec=spec), task)
    assert [p.text for p in found] == [*(p.text for p in base), "New? A or B"]
    assert not any(p.both_orders for p in found)
    both = open_seeds(wanted(prompt_spec=spec, swap=True), task)
    assert all(p.both_orders for p in both) and [p.text for p in both] == [p.text for p in found]


def test_rules_of_seeds_are_read_and_said_not_to_be_taken(wanted, tmp_path, caplog):
    path = tmp_path / "best.yaml"
    one = "prompts:\n- text: Is it speech?\n  bias: {}\n"
    path.write_text(one.format(0.5))
    (seed,) = open_seeds(wanted(seeds=path), SPEECH_TASK)
    assert seed.text == "Is it speech?"
    assert "thresholds and calibration of these prompts are not taken here" in caplog.text
    path.write_text(one.format(".nan"))
    with pytest.raises(UserError, match="bias"):
        open_seeds(wanted(seeds=path), SPEECH_TASK)


def test_several_checkpoints_are_one_evaluator_and_each_clip_stands_once_for_each(wanted):
    found = open_problem(wanted(also="pocket-base"))
    assert isinstance(found.evaluator, PerCheckpoint)
    alone = open_problem(wanted())
    for joint, single in (
        (found.search_clips, alone.search_clips),
        (found.holdout_clips, alone.holdout_clips),
    ):
        assert [(c.clip_id, c.checkpoint) for c in joint] == [
            (c.clip_id, name) for c in single for name in ("fake", "pocket-base")
        ]


def test_an_adapter_belongs_to_the_first_checkpoint(wanted, monkeypatch):
    seen = {}

    def build(checkpoint, **options):
        seen[checkpoint] = options["adapter"]
        return FakeEvaluator(), frozenset()

    monkeypatch.setattr(problem, "build_evaluator", build)
    found = open_problem(wanted(checkpoint="a", also="b", adapter=SHIPPED["pocket-lora"]))
    assert seen == {"a": SHIPPED["pocket-lora"], "b": None}
    assert any("give --prompt-spec" in text for text in found.warnings)


@pytest.mark.parametrize("what", ["registry", "file", "heard", "task", "manifest", "empty split"])
def test_whatever_would_fail_later_fails_here(wanted, folder, what):
    clips, change = read_manifest(folder, LABELS, "dev"), {}
    if what == "registry":
        write_registry(folder / "registry.json", Registry({clips[-1].source_id: "test"}, {}))
        words = "is registered as 'test'"
    elif what == "file":
        clips[-1].path.write_bytes(b"other")
        words = "the manifest says"
    elif what == "heard":
        write_registry(folder / "registry.json", Registry({}, {"fake": (clips[-1].source_id,)}))
        words = "was trained on 1 of the sources"
    elif what == "task":
        change, words = {"task": "birds"}, "--task is 'birds'"
    elif what == "manifest":
        change, words = {"manifest": folder / "no"}, "does not exist"
    else:
        lines = [x for x in (folder / "manifest.csv").read_text().split("\n") if ",train," not in x]
        (folder / "manifest.csv").write_text("\n".join(lines))
        change, words = {"split": "train"}, "no clip in split 'train'"
    with pytest.raises(UserError, match=words):
        open_problem(wanted(**change))


def test_what_was_heard_is_a_warning_where_it_is_allowed(wanted, folder):
    source = read_manifest(folder, LABELS, "dev")[0].source_id
    write_registry(folder / "registry.json", Registry({}, {"fake": (source,)}))
    (warning,) = open_problem(wanted(heard="allow")).warnings
    assert "scores measure memory" in warning


def test_data_is_what_the_manifest_holds(folder):
    data = open_data(DataSettings(manifest=folder))
    assert data.digest == manifest_digest(folder) and data.task.labels == LABELS
    for split in ("train", "dev", "test"):
        assert {c.clip_id for c in data.split(split)} == {
            c.clip_id for c in read_manifest(folder, LABELS, split)
        }
    labels = [c.label for c in data.split("dev").first(10)]
    assert labels.count(LABELS[0]) == 5  # in balanced order


def test_several_checkpoints_share_their_base(folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(problem, "share", lambda evaluators: given.append(evaluators))
    data = open_data(DataSettings(manifest=folder))
    machine, settings = MachineSettings(runs_dir=tmp_path / "r"), ModelSettings(device="cpu")
    names, clips = ["pocket-base", "pocket-lora"], [data.split("dev")]
    model = problem.open_joint_model(settings, names, data, clips, machine=machine)
    assert given == [list(model.evaluator.evaluators.values())]


def test_a_model_without_a_machine_keeps_no_scores(folder):
    data = open_data(DataSettings(manifest=folder))
    model = open_model(ModelSettings(checkpoint="fake"), data, [data.split("dev")])
    assert isinstance(model.evaluator, FakeEvaluator) and model.checkpoint is None
    assert model.name == "fake" and model.warnings == ()


def test_nothing_opened_can_be_changed():
    for kind in (problem.Data, problem.Model, problem.Problem):
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
