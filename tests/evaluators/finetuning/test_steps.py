"""Training steps are Trainer's, to the bit on a CPU; what goes to a card and comes from it is as it was."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evaluators.finetuning import transfer
from evaluators.finetuning.steps import StepTrainer, _Note, average
from evaluators.finetuning.train import Checkpoints
from evaluators.finetuning.transfer import Later, sent


class Points(Dataset):
    """Twenty-four points with a right answer."""

    def __len__(self):
        return 24

    def __getitem__(self, number):
        x = torch.randn(8, generator=torch.Generator().manual_seed(number))
        return {"x": x, "target_id": x[:2] * x[2:4]}


class Model(nn.Module):
    """Some frozen weights, dropout that is off before the training, and trained weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3)).eval().requires_grad_(False)
        self.trained = nn.Linear(16, 2)

    def forward(self, x, target_id):
        return {"loss": (self.trained(self.frozen(x)) - target_id).square().mean()}


def arguments(folder, **more):
    return TrainingArguments(
        str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True, seed=3,
        num_train_epochs=2, learning_rate=0.05, max_grad_norm=0.1, eval_strategy="steps", eval_steps=5,
        logging_steps=3, logging_first_step=True, save_strategy="no", report_to="none", disable_tqdm=True,
        label_names=["target_id"], prediction_loss_only=True, logging_nan_inf_filter=False, **more,
    )  # fmt: skip


def result_of(kind, folder):
    """(What was logged, the weights)."""
    model = Model()
    trainer = kind(
        model=model, args=arguments(folder), train_dataset=Points(), eval_dataset=Points()
    )
    trainer.train()
    times = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    logged = [{k: v for k, v in e.items() if k not in times} for e in trainer.state.log_history]
    return logged[:-1], model.trained.weight.detach().clone()


class LateTrainer(StepTrainer):
    """Logs as on a card."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.logs_late = True


@pytest.mark.parametrize("kind", [StepTrainer, LateTrainer])
def test_a_training_is_that_of_trainer_to_the_bit(tmp_path, kind):
    (logged, weights), (expected, same) = (result_of(k, tmp_path) for k in (kind, Trainer))
    assert logged == expected and len(logged) > 6
    assert torch.equal(weights, same)


def test_trainer_still_calls_what_is_replaced_of_it_though_it_is_not_public(tmp_path):
    calls, gone = Counter(), f"transformers {transformers.__version__} has a Trainer without"
    look = "see what it has in its place, and change StepTrainer in evaluators/finetuning/steps.py"

    def counted(name):
        def call(self, *args, **more):
            calls[name] += 1
            return getattr(StepTrainer, name)(self, *args, **more)

        return call

    replaced = "_clip_grad_norm", "_maybe_log_save_evaluate"
    assert [name for name in replaced if name not in vars(Trainer)] == [], f"{gone} them: {look}"
    made = type("Counted", (LateTrainer,), {name: counted(name) for name in replaced})
    trainer = made(
        model=Model(), args=arguments(tmp_path), train_dataset=Points(), eval_dataset=Points()
    )
    trainer.train()
    steps, epochs = 12, 2
    for name, times in zip(replaced, (steps, steps + epochs), strict=True):
        assert calls[name] == times, f"{gone} calls of {name} at each step: {look}"
    theirs = Trainer(
        model=Model(), args=arguments(tmp_path), train_dataset=Points(), eval_dataset=Points()
    )
    theirs.train()
    used = "_globalstep_last_logged", "_total_loss_scalar"
    assert [name for name in used if name not in vars(theirs)] == [], f"{gone} them: {look}"


def test_what_a_step_noted_is_logged_as_of_that_step(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, *, logs=None, **kw):
            seen.append((state.global_step, state.epoch, logs["loss"], logs["grad_norm"]))

    trainer = StepTrainer(
        model=Model(), args=arguments(tmp_path), eval_dataset=Points(), callbacks=[Watch()]
    )
    trainer.state.global_step, trainer.state.epoch, trainer._total_loss_scalar = 7, 0.7, 1.0
    trainer._globalstep_last_logged = 4
    trainer.control.should_log = True
    total = torch.tensor(6.0)
    note = trainer._noted(total, torch.tensor(0.5), 0.1)
    assert isinstance(note, _Note) and not total and not trainer.control.should_log
    assert trainer._noted(total, torch.tensor(0.5), 0.1) is None
    trainer.state.global_step, trainer.state.epoch = 8, 0.8
    trainer._tell(note)
    assert seen == [(7, 0.7, 2.0, 0.5)]
    assert (trainer.state.global_step, trainer.state.epoch) == (8, 0.8)
    assert trainer.state.log_history[-1]["step"] == 7 and trainer._total_loss_scalar == 7.0


def test_a_tree_of_tensors_arrives_as_it_was():
    tree = {
        "a": [torch.arange(5), torch.tensor(2.5), torch.zeros(0, 3)],
        "b": {"mask": torch.tensor([[True], [False]]), "frames": 7},
        "c": torch.randn(3, 2).to(torch.bfloat16).T,
    }
    assert sent(tree, torch.device("cpu")) is tree
    here = list(transfer._tensors(tree))
    copied = transfer._with(tree, iter(transfer._through(here, torch.device("cpu"))))
    assert copied["b"]["frames"] == 7 and list(copied) == list(tree)
    for x, y in zip(here, transfer._tensors(copied), strict=True):
        assert (
            x.dtype == y.dtype and torch.equal(x, y) and x.data_ptr() != y.data_ptr()
        ) or not x.numel()


@pytest.mark.parametrize("value", [torch.tensor(2.5), torch.tensor([1, 2])])
def test_numbers_are_read_later(value):
    assert Later(value).read() == value.tolist()


def test_gradients_become_their_mean_over_all_processes(monkeypatch):
    weights = [
        nn.Parameter(torch.zeros(2, 3)),
        nn.Parameter(torch.zeros(4)),
        nn.Parameter(torch.zeros(1)),
    ]
    own, other = torch.arange(6.0).view(2, 3), torch.arange(4.0)
    weights[0].grad, weights[1].grad = own.clone(), other.clone()
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.mul_(12))
    average(weights)
    assert torch.equal(weights[0].grad, 3 * own) and torch.equal(weights[1].grad, 3 * other)
    assert weights[2].grad is None


def test_several_processes_save_one_step_after_the_first_decides_and_once(tmp_path, monkeypatch):
    due = [0.0, 1.0, 1.0, 0.0, 0.0]  # of the first process, whose clock counts
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda x, first: x.fill_(due.pop(0)))
    saver, args = Checkpoints(tmp_path), SimpleNamespace(device=torch.device("cpu"))
    saved = []
    for step in range(1, 6):
        control = TrainerControl()
        saver.on_step_end(args, TrainerState(global_step=step, max_steps=9), control)
        saved.append(control.should_save)
    assert saved == [False, False, True, False, False]
