"""Several processes of one training, as `accelerate launch` starts them: what the first one decides, all follow."""

import os
from collections.abc import Callable
from typing import TypeVar

from evaluators.errors import UserError

Value = TypeVar("Value")


def is_first() -> bool:
    """Whether this process writes the result."""
    return os.environ.get("RANK", "0") == "0"


def count() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def agree(decide: Callable[[], Value], on_cpu: bool) -> Value:
    """What `decide` returns in the first process, in all of them. The others wait for it.

    Args:
        decide: Called in the first process alone; its value must be picklable.
        on_cpu: Whether the training runs on CPUs.

    Raises:
        UserError: What `decide` raised in the first process, in all of them.
    """
    if count() == 1:
        return decide()
    import torch
    from accelerate import PartialState

    PartialState(cpu=on_cpu)  # opens the connection that Trainer will use
    told: list[tuple[str, Value | None]] = [("", None)]
    if is_first():
        try:
            told = [("", decide())]
        except UserError as error:
            told = [(str(error), None)]
    torch.distributed.broadcast_object_list(told, 0)
    wrong, value = told[0]
    if wrong:
        raise UserError(wrong)
    return value  # type: ignore[return-value]  # decide's, where nothing is wrong


def close() -> None:
    """Ends the connection of the processes, if there is one. Torch warns of one that is left."""
    if count() == 1:
        return
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
