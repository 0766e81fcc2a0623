"""Sizes of a batch in which each of its tokens gets the same bits, so that a batch that is not full can be smaller.

A product of another number of rows may be summed in another order, and a half-precision score may depend on that: this
is why a batch has one size, which is part of what identifies a score. Most products of other sizes are summed alike.
Which ones are, is tried on the device at hand, with the model's own weights, before any is used.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PARTS = 16  # steps from nothing to a whole batch
LEAST_STEP = 64  # tokens


@dataclass(frozen=True)
class BatchSizes:
    """Numbers of tokens that a batch may have.

    Attributes:
        equal: Ascending; in each of them every token gets the bits that it gets in the size that identifies a score,
            which is one of them.
    """

    equal: tuple[int, ...]

    @property
    def largest(self) -> int:
        """Tokens that a batch holds at most, but for a single row that is longer."""
        return self.equal[-1]

    def holding(self, tokens: int) -> int:
        """The smallest size that holds so many tokens; of a single row that fits none, its own length."""
        place = bisect_left(self.equal, tokens)
        return self.equal[place] if place < len(self.equal) else tokens


def steps(own: int, most: int) -> list[int]:
    """Sizes to try beside `own`, up to `most`: sixteenths of it, and multiples of it."""
    step = max(LEAST_STEP, own // PARTS)
    return [*range(step, own, step), *range(2 * own, most + 1, own)]


def equal_sizes(
    compute: Callable[[Tensor], Tensor], example: Tensor, own: int, tried: Sequence[int]
) -> BatchSizes:
    """The sizes among `tried` in which `compute` gives each row, to the bit, what it gives in batches of `own` rows.

    Args:
        compute: ``[row, channel]`` -> ``[row, value]``, each row's values from that row alone. Its input is its own.
        example: ``[row, channel]`` of random numbers, a multiple of `own` rows, as many as the largest of `tried`.
        own: Rows of the batches that identify a score.
        tried: Further numbers of rows.
    """
    parts = [compute(part.clone()) for part in example.split(own)]
    expected = torch.cat(parts)
    # The last rows: in the smaller batch they lie elsewhere than in the whole one.
    found = [n for n in tried if torch.equal(compute(example[-n:].clone()), expected[-n:])]
    return BatchSizes(tuple(sorted({own, *found})))
