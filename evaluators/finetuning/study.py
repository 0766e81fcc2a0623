"""Optuna over the recipe: rate, rank, epochs and target modules by validation loss; resumable."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from transformers import TrainerCallback

from evaluators.errors import UserError
from evaluators.finetuning.adapter_folder import (
    copy_adapter,
    is_finished,
    read_record,
    write_adapter,
)
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.train import Progress, Training
from evaluators.study_file import study_file

JOURNAL = "optuna.log"  # in the folder of the study; Optuna's dashboard opens it
RANKS = {4, 8, 16, 32}
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
LAST = "targets"  # what is suggested last: a trial that has it has its recipe
FIXED = "fixed_params"  # Optuna's name of what an enqueued trial was given


class Report(TrainerCallback):
    """Reports each epoch's validation loss to the study, and ends a training that falls behind.

    Raises:
        optuna.TrialPruned: From within `Trainer.train`.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, metrics: Any = None, **kw: Any
    ) -> None:
        """Reports, and asks whether to go on."""
        self.trial.report(metrics["eval_loss"], state.global_step)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def search_recipe(
    training: Training,
    folder: Path,
    n_trials: int,
    tell: Callable[[str], None],
    fixed: Set[str] = frozenset(),
) -> None:
    """Trains with `n_trials` recipes; the adapter of the lowest validation loss becomes the result in `folder`.

    The recipe of `training` is the first one. Trials that were interrupted are continued.

    Args:
        training: What is trained.
        folder: Of the result and of the study.
        n_trials: Trainings, with those that an earlier call finished.
        tell: Takes lines of progress.
        fixed: Of lr, rank and epochs, what stays as the recipe of `training` has it. An adapter that is trained further
            keeps its rank, too.

    Raises:
        UserError: Several processes, or a loss became NaN or infinite.
    """
    if training.machine.processes > 1:
        raise UserError("--study runs in one process; start it without accelerate launch")
    study = open_study(folder, training.recipe)
    kept = fixed if training.checkpoint.adapter is None else {*fixed, "rank"}
    while len(study.get_trials(states=ENDED)) < n_trials:
        trial = ask(study, training.recipe)
        recipe = suggest(trial, training.recipe, kept)
        run_trial(study, trial, dataclasses.replace(training, recipe=recipe), folder, tell)
        state = study.trials[trial.number].state.name.lower()
        best = f"best dev loss {study.best_value:.4f}"
        tell(f"trial {trial.number}  {trial.params}  {state}  {best}")
    copy_adapter(folder / study.best_trial.user_attrs["folder"], folder, training.checkpoint)


def open_study(folder: Path, first: Recipe) -> optuna.Study:
    """The study of a folder; a new one begins with the recipe `first`, an old one with trials that were cut short."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=study_file(folder / JOURNAL),
        study_name=folder.name,
        direction="minimize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=0),
    )
    waiting = [t.system_attrs[FIXED] for t in study.get_trials(states=(TrialState.WAITING,))]
    for torn in study.get_trials(states=(TrialState.RUNNING,)):
        # One that was killed before it had its recipe has it from where it comes: what was asked for, or the sampler.
        params = torn.params if LAST in torn.params else torn.system_attrs.get(FIXED, {})
        if params and params not in waiting:
            study.enqueue_trial(params)
        study.tell(torn.number, state=TrialState.FAIL)
    if not study.trials:
        study.enqueue_trial(
            {"lr": first.lr, "rank": first.rank, "epochs": first.epochs, "targets": first.targets}
        )
    return study


def ask(study: optuna.Study, first: Recipe) -> optuna.Trial:
    """The next trial. What is sampled in it depends on the trials that have ended, not on how often it was begun."""
    ended = len(study.get_trials(states=ENDED))
    study.sampler = optuna.samplers.TPESampler(seed=first.seed + ended)
    return study.ask()


def suggest(trial: optuna.Trial, first: Recipe, fixed: Set[str] = frozenset()) -> Recipe:
    """The recipe of a trial: `first` with other target modules, rate, rank and epochs, but for what is fixed."""
    found: dict[str, Any] = {}
    if "lr" not in fixed:
        found["lr"] = trial.suggest_float("lr", first.lr / 10, first.lr * 5, log=True)
    if "rank" not in fixed:
        found["rank"] = trial.suggest_categorical("rank", sorted({*RANKS, first.rank}))
    if "epochs" not in fixed:
        found["epochs"] = trial.suggest_int("epochs", 1, max(4, first.epochs))
    targets = sorted({"attention", "llm-only", first.targets})
    found[LAST] = trial.suggest_categorical(LAST, targets)
    return dataclasses.replace(first, **found)


def run_trial(
    study: optuna.Study,
    trial: optuna.Trial,
    training: Training,
    folder: Path,
    tell: Callable[[str], None],
) -> None:
    """Trains with the recipe of a trial, in a folder of its own, and tells the study of its loss."""
    key = hashlib.sha256(repr(training.recipe).encode()).hexdigest()[:8]
    own = folder / "trials" / key
    trial.set_user_attr("folder", str(own.relative_to(folder)))
    try:
        if is_finished(own):  # finished, but the study was not told
            loss = read_record(own)["dev_loss"]
        else:
            own.mkdir(parents=True, exist_ok=True)
            callbacks = (Progress(tell, f"trial {trial.number}  "), Report(trial))
            loss = write_adapter(training, own, callbacks)
        study.tell(trial, loss)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        shutil.rmtree(own)
