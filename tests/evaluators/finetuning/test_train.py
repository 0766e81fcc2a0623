"""A training: what is refused, which checkpoint is continued, which epoch is kept, several processes."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evaluators.errors import UserError
from evaluators.finetuning import train
from evaluators.finetuning.memory import TrainingPlan
from evaluators.finetuning.model import adapted_model
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.train import (
    DONE_MARKER,
    KeepBest,
    Machine,
    Progress,
    StopAtNan,
    last_complete,
    make_samples,
)

pytestmark = pytest.mark.tiny


def state(step, of=10):
    return SimpleNamespace(global_step=step, max_steps=of, is_world_process_zero=True)


def test_a_batch_must_divide_among_the_processes(make_training):
    machine = Machine(torch.device("cpu"), torch.float32, processes=2)
    with pytest.raises(UserError, match="of 16 cannot be shared by 2 processes with 16 samples"):
        make_training(Recipe(), machine=machine)
    plan = TrainingPlan(False, 8, False, 0.0, None)
    training = make_training(Recipe(epochs=3), machine=machine, plan=plan)
    assert (training.steps, training.steps_per_epoch) == (6, 2)


def test_graphs_are_made_with_kernels_and_where_memory_is_not_short(make_training, monkeypatch):
    training = make_training(Recipe())
    assert train.graphs_for(training) == 0
    monkeypatch.setattr(train, "load_kernels", lambda device: object())
    assert train.graphs_for(training) == training.machine.max_graphs > 0
    short = make_training(Recipe(), plan=replace(training.plan, checkpointing=True))
    assert train.graphs_for(short) == 0


def test_an_epoch_is_chosen_by_every_wording_that_was_trained_on_in_both_orders_where_they_were(
    make_training, seeds
):
    for prompts, swap, wordings in ((1, False, 1), (1, True, 2), (3, True, 6)):
        training = make_training(Recipe(swap=swap), prompts=tuple(seeds[:prompts]))
        model = adapted_model(
            training.checkpoint, training.recipe, torch.device("cpu"), torch.float32
        )
        samples, validation = make_samples(training, model)
        assert validation.wordings == samples.wordings and len(samples.wordings) == wordings
        clips = range(len(training.validation))
        assert sorted(validation.order) == [(c, w) for c in clips for w in range(wordings)]


def test_only_a_complete_checkpoint_is_continued(tmp_path):
    assert last_complete(tmp_path) is None
    for step in (2, 9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 9):
        (tmp_path / f"checkpoint-{step}" / DONE_MARKER).touch()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-9"
    assert not (tmp_path / "checkpoint-10").exists()


def test_the_epoch_of_the_lowest_loss_is_kept_and_two_without_a_lower_one_end_it(tmp_path):
    keeper, args = KeepBest(tmp_path), SimpleNamespace(eval_steps=5)
    model = SimpleNamespace(
        save_pretrained=lambda folder, save_embedding_layers: Path(folder).mkdir()
    )
    for step, loss, stops in ((5, 0.5, False), (10, 0.3, False), (15, 0.4, False), (20, 0.3, True)):
        control = SimpleNamespace(should_training_stop=False)
        keeper.on_evaluate(args, state(step), control, metrics={"eval_loss": loss}, model=model)
        assert control.should_training_stop == stops
    assert json.loads((tmp_path / "best" / "best.json").read_text()) == {"step": 10, "loss": 0.3}
    keeper.on_train_begin(args, state(10), None)
    assert keeper.best()["step"] == 10
    keeper.on_train_begin(args, state(9), None)  # resumed before it: it will be found again
    assert keeper.best() is None


def test_a_loss_that_is_no_number_ends_it():
    StopAtNan().on_log(None, state(3), None, logs={"loss": 0.1, "grad_norm": float("nan")})
    with pytest.raises(UserError, match="the eval_loss is nan at step 3: lower --lr"):
        StopAtNan().on_log(None, state(3), None, logs={"eval_loss": float("nan")})


def test_progress_is_one_line_for_each_loss():
    lines = []
    progress = Progress(lines.append, "trial 1  ")
    progress.on_train_begin(None, state(0), None)
    progress.on_log(None, state(10), None, logs={"loss": 0.5})
    progress.on_log(None, state(10), None, logs={"eval_loss": 0.25})
    progress.on_log(None, state(10), None, logs={"train_runtime": 3.0})
    assert lines == [
        "trial 1  step 10/10  loss 0.5000  0 s left",
        "trial 1  step 10/10  dev loss 0.2500  0 s left",
    ]
