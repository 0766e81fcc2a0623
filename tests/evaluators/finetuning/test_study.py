"""A study: the recipe that was asked for comes first, interrupted trials are continued, the best adapter is kept."""

import itertools
import json

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.errors import UserError
from evaluators.finetuning.memory import TrainingPlan
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.study import ENDED, Report, ask, open_study, search_recipe, suggest
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


class Killed(BaseException):
    """The process ends here."""


def recipes(folder, deaths):
    """Recipes of three trials, where processes die after so many lines."""
    folder.mkdir()
    first, left = Recipe(), list(deaths)
    append = JournalFileBackend.append_logs
    while True:
        lines = iter(range(left.pop(0))) if left else itertools.count()

        def dying(self, logs, lines=lines):
            append(self, logs)
            if next(lines, None) is None:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(JournalFileBackend, "append_logs", dying)
            try:
                study = open_study(folder, first)
                while len(ended := study.get_trials(states=ENDED)) < 3:
                    suggest(trial := ask(study, first), first)
                    study.tell(trial, len(ended) / 10)
                return [t.params for t in study.get_trials(states=ENDED)]
            except Killed:
                continue


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=3))
def test_a_study_that_was_killed_anywhere_tries_the_recipes_of_one_that_was_not(
    tmp_path_factory, deaths
):
    place = tmp_path_factory.mktemp("studies")
    assert recipes(place / "a", deaths) == recipes(place / "b", [])


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
