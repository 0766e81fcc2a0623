"""Trainer whose steps wait for nothing: while a card works on one step, the host prepares and launches the next.

What is logged is read one step later, so the card never runs dry. Several processes add up their gradients in one
piece, after the last backward pass of a step. On a CPU all is as Trainer has it.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from evaluators.finetuning.transfer import Later


def average(weights: list[Tensor]) -> None:
    """Makes each gradient its mean over all processes, which each hold some of a step's samples: one sum for all."""
    grads = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    flat /= torch.distributed.get_world_size()
    torch.distributed.all_reduce(flat)
    pieces = flat.split([grad.numel() for grad in grads])
    torch._foreach_copy_(grads, [x.view_as(grad) for x, grad in zip(pieces, grads, strict=True)])


def forget_gradients(weights: list[Tensor]) -> None:
    """What `Module.zero_grad` does, for the weights that have a gradient, without a walk through the model."""
    for weight in weights:
        weight.grad = None


@dataclass(frozen=True)
class _Note:
    """What is logged of a step, before it is read."""

    step: int
    epoch: float
    steps: int  # since the note before
    rate: float
    seen: Later  # sum of the losses since then, norm of the gradient


class StepTrainer(Trainer):
    """Trainer for a model of which few weights are trained, and which gives its own loss.

    Two methods that it replaces are not public, `_clip_grad_norm` and `_maybe_log_save_evaluate`. What is public will
    not do: without a limit Trainer takes the norm of all gradients once more, and no callback is told of norm or loss.
    A test says so when another version of transformers no longer calls them.

    Attributes:
        logs_late: Whether a loss is logged a step later.
    """

    def __init__(self, model: Any, **arguments: Any) -> None:
        super().__init__(model=model, **arguments)
        self.logs_late = self.args.device.type == "cuda"
        model.eval()  # so that the first step sets all modules to training, whatever they were
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        self._note: _Note | None = None

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward pass; Trainer's own walks through all modules each time."""
        if not model.training:
            model.train()
        vars(model).setdefault("zero_grad", functools.partial(forget_gradients, self.trained))
        with self.accelerator.no_sync(model):
            with self.compute_loss_context_manager():
                whole: Any = self.compute_loss(model, self._prepare_inputs(inputs))
            loss: Tensor = whole / self.current_gradient_accumulation_steps
            self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            average(self.trained)
        return loss.detach()

    def _clip_grad_norm(self, model: Any) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self.trained, self.args.max_grad_norm)

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, *rest: Any, learning_rate: float | None = None
    ) -> None:
        """Trainer's, but on a card the loss is logged a step later, or before a validation and at the end."""
        if self.logs_late:
            before, self._note = self._note, self._noted(tr_loss, grad_norm, learning_rate)
            self._tell(before)
            control = self.control
            if control.should_evaluate or control.should_save or control.should_training_stop:
                last, self._note = self._note, None
                self._tell(last)
        go_on: Any = super()._maybe_log_save_evaluate
        go_on(tr_loss, grad_norm, *rest, learning_rate=learning_rate)

    def _noted(self, tr_loss: Tensor, grad_norm: Any, rate: float | None) -> _Note | None:
        """What is to be logged of this step, if anything is. Trainer has nothing to log then."""
        steps = self.state.global_step - self._globalstep_last_logged
        if not self.control.should_log or steps <= 0:
            return None
        loss = self.accelerator.gather(tr_loss).mean()
        seen = Later(torch.stack([loss, grad_norm.to(loss.dtype)]))
        tr_loss -= tr_loss
        self._globalstep_last_logged = self.state.global_step
        self.control.should_log = False
        rate = self._get_learning_rate() if rate is None else rate
        return _Note(self.state.global_step, self.state.epoch, steps, rate, seen)

    def _tell(self, note: _Note | None) -> None:
        """Logs it as of its step."""
        if note is None:
            return
        loss, norm = note.seen.read()
        self._total_loss_scalar += loss
        self.store_flos()
        now = self.state.global_step, self.state.epoch
        self.state.global_step, self.state.epoch = note.step, note.epoch
        try:
            self.log({"loss": loss / note.steps, "grad_norm": norm, "learning_rate": note.rate})
        finally:
            self.state.global_step, self.state.epoch = now
