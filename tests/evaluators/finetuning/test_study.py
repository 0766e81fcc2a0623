"""A study: the recipe that was asked for comes first, interrupted trials are continued, the best adapter is kept."""

import json

import optuna
import pytest
import torch

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.errors import UserError
from evaluators.finetuning.memory import TrainingPlan
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.study import Report, open_study, search_recipe, suggest
from evaluators.finetuning.train import Machine

pytestmark = pytest.mark.tiny


def test_a_study_is_resumed_and_its_best_adapter_becomes_the_result(
    make_training, train_clips, tmp_path
):
    training = make_training(Recipe(epochs=1, lr=2e-3, batch=8), clips=train_clips[:16])
    folder = tmp_path / "study"
    folder.mkdir()
    lines = []
    torn = open_study(folder, training.recipe).ask()  # killed within its first trial
    assert suggest(torn, training.recipe) == training.recipe
    search_recipe(training, folder, 1, lines.append)
    search_recipe(training, folder, 2, lines.append)
    study = open_study(folder, training.recipe)
    states = [t.state.name for t in study.trials]
    assert states[:2] == ["FAIL", "COMPLETE"] and len(states) == 3
    assert study.trials[1].params == study.trials[0].params
    assert lines[0].startswith("trial 1  step 1/2  loss")
    record = json.loads((folder / "training.json").read_text())
    assert record["dev_loss"] == pytest.approx(study.best_value)
    assert open_checkpoint(str(folder)).base == open_checkpoint("pocket-base").base


def test_a_training_that_falls_behind_is_pruned():
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=1.0))
    report = Report(study.ask())
    state = type("State", (), {"global_step": 1})
    report.on_evaluate(None, state, None, metrics={"eval_loss": 0.5})
    with pytest.raises(optuna.TrialPruned):
        report.on_evaluate(None, type("S", (), {"global_step": 2}), None, metrics={"eval_loss": 2})


def test_a_study_runs_in_one_process(make_training, tmp_path):
    training = make_training(
        Recipe(),
        plan=TrainingPlan(False, 8, False, 0.0, None),
        machine=Machine(torch.device("cpu"), torch.float32, processes=2),
    )
    with pytest.raises(UserError, match="--study runs in one process"):
        search_recipe(training, tmp_path, 2, print)
