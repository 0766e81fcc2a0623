"""Numbers to and from a card, without the host waiting for what the card works on."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ALIGNED = 16  # bytes, where a tensor may begin


class Later:
    """Numbers on their way from a card: reading them waits for what was launched before them, and nothing after.

    Args:
        values: ``[number]`` or ``[]``, on any device.
    """

    def __init__(self, values: Tensor) -> None:
        self.host, self.there = values, None
        if values.is_cuda:
            self.host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.host.copy_(values, non_blocking=True)
            self.there = torch.cuda.Event()
            self.there.record()

    def read(self) -> Any:
        """The numbers, as `Tensor.tolist` gives them."""
        if self.there is not None:
            self.there.synchronize()
        return self.host.tolist()


def sent(tree: Any, device: torch.device) -> Any:
    """The same dictionaries and lists with their tensors on a card: one copy for all, for which the host does not wait.

    For any other device they stay as they are.
    """
    here = [x for x in _tensors(tree) if not x.is_cuda]
    if device.type != "cuda" or not here:
        return tree
    return _with(tree, iter(_through(here, device)))


def _through(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on a device, by one copy of their bytes."""
    begins, end = [], 0
    for x in tensors:
        begins.append(end)
        end += -(-x.nbytes // ALIGNED) * ALIGNED
    host = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for x, begin in zip(tensors, begins, strict=True):
        _piece(host, begin, x).copy_(x)
    there = host.to(device, non_blocking=True)
    return [_piece(there, begin, x) for x, begin in zip(tensors, begins, strict=True)]


def _piece(line: Tensor, begin: int, like: Tensor) -> Tensor:
    """The bytes of a line from a place on, as a tensor like another."""
    return line[begin : begin + like.nbytes].view(like.dtype).view(like.shape)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors, in their order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list):
        for one in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(one)


def _with(tree: Any, pieces: Iterator[Tensor]) -> Any:
    """The tree with its tensors exchanged, but for those that are on a card already."""
    if isinstance(tree, Tensor):
        return tree if tree.is_cuda else next(pieces)
    if isinstance(tree, dict):
        return {name: _with(one, pieces) for name, one in tree.items()}
    return [_with(one, pieces) for one in tree] if isinstance(tree, list) else tree
