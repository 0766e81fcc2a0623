"""Prompts and clips as batches of packed tokens: rows one after another in a single line of a fixed number of tokens.

A batch always has the same size, whatever its rows, and nothing but attention looks beyond a token's own row. So a
score does not depend on its neighbours.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.audio_lm.answer_tokens import Answers

Ints = NDArray[np.int64]
Item = TypeVar("Item")


@dataclass(frozen=True)
class CacheSegment:
    """Consecutive places in a KV cache, of one clip or one system message."""

    begin: int
    length: int


NOTHING = CacheSegment(0, 0)


def overlap(one: CacheSegment, other: CacheSegment) -> bool:
    """Whether two segments have a place in common."""
    return max(one.begin, other.begin) < min(one.begin + one.length, other.begin + other.length)


@dataclass(frozen=True)
class PromptRow:
    """The tokens that score one prompt's answers.

    The row holds the prompt, then one branch for each answer of several tokens: the answer's tokens but the last,
    attended to by nothing outside the branch.

    Attributes:
        prompt: The prompt's number in the call.
        ids: ``[token]`` token ids.
        positions: ``[token]``, counted from the end of the clip.
        branch: ``[token]``, 0: the prompt, n: branch n.
        kept: How many tokens at the end of the row have hidden states that are read.
        reads: ``[read, 3]``: number of the kept token, token id to read there, number of the answer sequence.
        labels: Of each answer sequence, the index of its label.
    """

    prompt: int
    ids: Ints
    positions: Ints
    branch: NDArray[np.int32]
    kept: int
    reads: Ints
    labels: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(tokens, kept tokens)."""
        return len(self.ids), self.kept


class Job(NamedTuple):
    """A prompt, the position of the clip that it is scored on, and where the clip lies in the cache."""

    row: PromptRow
    clip: int
    segment: CacheSegment


def pack_prompt(number: int, suffix: Sequence[int], answers: Answers) -> PromptRow:
    """The row that scores a prompt's answers, at the cost of its own tokens and the extra tokens of long answers.

    Args:
        number: The prompt's number in the call.
        suffix: Tokens from the end of the audio to the answer.
        answers: The token sequences to score.
    """
    return _pack(number, suffix, _sequences(answers))


def pack_parts(
    number: int, suffix: Sequence[int], answers: Answers, tokens: int, kept: int
) -> list[PromptRow]:
    """The rows that score a prompt's answers: one, or as few as hold them all where they are many and long.

    Args:
        tokens, kept: What a batch can hold; a row that exceeds it holds a single answer, and cannot be scored.
    """
    parts: list[list[tuple[int, Sequence[int]]]] = [[]]
    more = 0  # tokens of the last part's answers
    for label, sequence in _sequences(answers):
        own = len(sequence) - 1
        full = more + own + 1 > kept or len(suffix) + more + own > tokens
        if parts[-1] and full:
            parts.append([])
            more = 0
        parts[-1].append((label, sequence))
        more += own
    return [_pack(number, suffix, part) for part in parts]


def _sequences(answers: Answers) -> list[tuple[int, Sequence[int]]]:
    """(label, token ids) of every answer."""
    return [(k, sequence) for k, group in enumerate(answers.sequences) for sequence in group]


def _pack(
    number: int, suffix: Sequence[int], sequences: Sequence[tuple[int, Sequence[int]]]
) -> PromptRow:
    ids, positions, branch = list(suffix), list(range(len(suffix))), [0] * len(suffix)
    reads: list[tuple[int, int, int]] = []
    labels: list[int] = []
    for label, sequence in sequences:
        reads.append((0, sequence[0], len(labels)))
        first = len(ids) - len(suffix) + 1  # of the branch, among the kept tokens
        own = branch[-1] + 1
        for i, token in enumerate(sequence[:-1]):
            ids.append(token)
            positions.append(len(suffix) + i)
            branch.append(own)
            reads.append((first + i, sequence[i + 1], len(labels)))
        labels.append(label)
    return PromptRow(
        number,
        np.array(ids, dtype=np.int64),
        np.array(positions, dtype=np.int64),
        np.array(branch, dtype=np.int32),
        len(ids) - len(suffix) + 1,
        np.array(reads, dtype=np.int64),
        tuple(labels),
    )


@dataclass(frozen=True)
class BatchLimits:
    """How many tokens and kept tokens fit a batch, and which rows may share one."""

    tokens: int
    kept: int
    bucket: int = 0  # rows share a batch if their lengths round up to the same multiple; 0: all may

    def bucket_of(self, tokens: int) -> int:
        """The bucket of a row of so many tokens."""
        return -(-tokens // self.bucket) if self.bucket else 0


def fill_batches(
    items: Sequence[Item], size: Callable[[Item], tuple[int, int]], limits: BatchLimits
) -> Iterator[list[Item]]:
    """Splits items, in their order, into batches within the limits; `size` gives (tokens, kept tokens) of an item."""
    batch: list[Item] = []
    tokens = kept = bucket = 0
    for item in items:
        more_tokens, more_kept = size(item)
        own = limits.bucket_of(more_tokens)
        full = tokens + more_tokens > limits.tokens or kept + more_kept > limits.kept
        if batch and (full or own != bucket):
            yield batch
            batch, tokens, kept = [], 0, 0
        batch.append(item)
        tokens, kept, bucket = tokens + more_tokens, kept + more_kept, own
    if batch:
        yield batch


class WaitingJobs:
    """Jobs that wait until they fill a batch: of one system message, and of one length bucket where there are any.

    Args:
        limits: Of a batch.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._jobs: dict[tuple[CacheSegment, int], list[Job]] = {}

    def add(self, system: CacheSegment, jobs: Sequence[Job]) -> None:
        """Further jobs after a system message."""
        for job in jobs:
            bucket = self._limits.bucket_of(len(job.row.ids))
            self._jobs.setdefault((system, bucket), []).append(job)

    def full(self) -> Iterator[tuple[CacheSegment, list[Job]]]:
        """(System message, jobs) of each full batch; they wait no longer."""
        for (system, bucket), jobs in self._jobs.items():
            *batches, self._jobs[system, bucket] = self._split(jobs)
            for batch in batches:
                yield system, batch

    def over(self, places: CacheSegment) -> Iterator[tuple[CacheSegment, list[Job]]]:
        """Batches, full or not, of all jobs that wait with one that needs any of these places in the cache."""
        for (system, bucket), jobs in list(self._jobs.items()):
            if any(overlap(part, places) for part in (system, *(job.segment for job in jobs))):
                del self._jobs[system, bucket]
                for batch in self._split(jobs):
                    yield system, batch

    def rest(self) -> Iterator[tuple[CacheSegment, list[Job]]]:
        """All others."""
        for (system, _), jobs in self._jobs.items():
            for batch in self._split(jobs):
                yield system, batch
        self._jobs.clear()

    def _split(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        return fill_batches(jobs, lambda job: job.row.size, self._limits)


@dataclass(frozen=True)
class AnswerReads:
    """Which probabilities are read from a batch, and the cells of the score table that they belong to."""

    state: Ints  # [read], number of the kept token
    token: Ints  # [read], token id
    sequence: Ints  # [read], number of the answer sequence
    cells: Ints  # [sequence, 3]: prompt, clip, label

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> "AnswerReads":
        """The reads of a batch of these jobs, in their order."""
        rows = [job.row for job in jobs]
        first_state = np.cumsum([0, *(row.kept for row in rows[:-1])])
        first_sequence = np.cumsum([0, *(len(row.labels) for row in rows[:-1])])
        cells = [(job.row.prompt, job.clip, label) for job in jobs for label in job.row.labels]
        return cls(
            np.concatenate([r.reads[:, 0] + f for r, f in zip(rows, first_state, strict=True)]),
            np.concatenate([r.reads[:, 1] for r in rows]),
            np.concatenate([r.reads[:, 2] + f for r, f in zip(rows, first_sequence, strict=True)]),
            np.array(cells, dtype=np.int64),
        )

    def add_to(self, logp: NDArray[np.float32], top: NDArray[np.float32], values: Tensor) -> None:
        """Adds the sequences' probabilities to their cells of ``[prompt, clip, label]``, in place.

        Args:
            logp: Log of the sum over a label's sequences.
            top: The likeliest sequence.
            values: ``[read]``, log-probabilities in nats; those of a sequence are summed.
        """
        raw = values.cpu().numpy().astype(np.float64)
        sums = np.bincount(self.sequence, weights=raw).astype(np.float32)
        cells = tuple(self.cells.T)
        with np.errstate(invalid="ignore"):  # NaN is an error of the table, in one sentence
            np.logaddexp.at(logp, cells, sums)
            np.maximum.at(top, cells, sums)


@dataclass(frozen=True)
class Layout:
    """Rows of tokens one after another, not yet padded to a batch.

    Attributes:
        positions: ``[token]``, in the whole sequence.
        lengths: ``[row]``, tokens of each row.
        segments: ``[row]``, the cached segment that the row's tokens attend to.
        system: The cached segment that the tokens of all rows attend to.
        branch: ``[token]``, or None where no row has branches.
        kept: ``[row]``, tokens at the end of each row whose hidden states are wanted; None: none.
        write: Places in the cache that the tokens' keys and values go to, one after another; None: nowhere.
        spare: The place in the cache that padding goes to.
    """

    positions: Ints
    lengths: Ints
    segments: Sequence[CacheSegment]
    system: CacheSegment
    branch: NDArray[np.int32] | None = field(default=None, kw_only=True)
    kept: Ints | None = field(default=None, kw_only=True)
    write: CacheSegment | None = field(default=None, kw_only=True)
    spare: int = field(default=0, kw_only=True)


def lay_out_prompts(jobs: Sequence[Job], system: CacheSegment) -> Layout:
    """Rows of prompts after the clips that they are scored on."""
    rows, segments = [job.row for job in jobs], [job.segment for job in jobs]
    lengths = np.array([len(row.ids) for row in rows])
    before = np.array([system.length + segment.length for segment in segments])
    return Layout(
        np.concatenate([row.positions for row in rows]) + np.repeat(before, lengths),
        lengths,
        segments,
        system,
        branch=np.concatenate([row.branch for row in rows]),
        kept=np.array([row.kept for row in rows]),
    )


def lay_out_prefixes(
    lengths: Sequence[int], system: CacheSegment, write: int, spare: int
) -> Layout:
    """Rows of clips after a system message, or of the message itself: keys and values go to places from `write` on."""
    return Layout(
        np.concatenate([np.arange(n) for n in lengths]) + system.length,
        np.array(lengths),
        [NOTHING] * len(lengths),
        system,
        write=CacheSegment(write, sum(lengths)),
        spare=spare,
    )


@dataclass(frozen=True)
class PackedRows:
    """Rows of a batch as attention takes them. All tensors are int32 and on the device.

    Attributes:
        start: ``[row + 1]``, first token of each row.
        query_start: ``[row + 1]``, first query of each row. Its queries are its last tokens.
        branch: ``[token]``, 0: attended to by all later tokens of its row, n: by tokens of branch n only.
        begin: ``[row]``, first place of the row's segment in the cache.
        length: ``[row]``, places in it.
        system: The segment that all rows attend to.
        longest: Tokens of the longest row.
        longest_query: Queries of the row that has most.
        has_branches: Whether any branch is above 0.
        few_queries: Whether the queries are kept tokens only. Block sizes may depend on this, never on the rows, so
            that scores do not depend on them.
    """

    start: Tensor
    query_start: Tensor
    branch: Tensor
    begin: Tensor
    length: Tensor
    system: CacheSegment
    longest: int
    longest_query: int
    has_branches: bool
    few_queries: bool = False


@dataclass(frozen=True)
class PackedBatch:
    """A batch of the packed step, on the device."""

    tokens: Tensor  # [token] ids, or [token, channel] embeddings
    positions: Tensor  # [token], in the whole sequence
    rows: PackedRows
    kept_rows: PackedRows | None  # the same rows with the kept tokens as queries
    keep: Tensor | None  # [kept], tokens whose last hidden states are wanted
    write: Tensor | None  # [token], places in the cache that keys and values go to


def pack(
    tokens: Ints | Tensor, layout: Layout, *, size: int, kept: int, device: torch.device
) -> PackedBatch:
    """The batch of a layout, padded to `size` tokens and `kept` kept tokens.

    Args:
        tokens: ``[token]`` ids, or ``[token, channel]`` embeddings that are on the device.
        layout: How the tokens lie in rows.
        size: Tokens of the batch.
        kept: Kept tokens of the batch.
        device: Where it goes.
    """

    def put(array: NDArray[np.generic], length: int, value: int = 0) -> Tensor:
        out = np.full(length, value, dtype=array.dtype)
        out[: len(array)] = array
        return to_device(out, device)

    count = len(layout.positions)
    if isinstance(tokens, Tensor):
        line = torch.zeros(size, tokens.shape[1], dtype=tokens.dtype, device=device)
        line[:count] = tokens
    else:
        line = put(tokens, size)
    branch = np.zeros(count, dtype=np.int32) if layout.branch is None else layout.branch
    start = np.concatenate([[0], np.cumsum(layout.lengths)])
    begin_length = np.array([[s.begin, s.length] for s in layout.segments], dtype=np.int32)
    on_device = to_device(start.astype(np.int32), device)
    rows = PackedRows(
        start=on_device,
        query_start=on_device,
        branch=put(branch, size),
        begin=to_device(begin_length[:, 0], device),
        length=to_device(begin_length[:, 1], device),
        system=layout.system,
        longest=int(layout.lengths.max()),
        longest_query=int(layout.lengths.max()),
        has_branches=bool(branch.any()),
    )
    keep = write = kept_rows = None
    if layout.kept is not None:
        ends = zip(start[1:], layout.kept, strict=True)
        keep = put(np.concatenate([np.arange(end - k, end) for end, k in ends]), kept)
        query_start = np.concatenate([[0], np.cumsum(layout.kept)]).astype(np.int32)
        kept_rows = replace(
            rows,
            query_start=to_device(query_start, device),
            longest_query=int(layout.kept.max()),
            few_queries=True,
        )
    if layout.write is not None:
        begin = layout.write.begin
        write = put(np.arange(begin, begin + layout.write.length), size, layout.spare)
    return PackedBatch(line, put(layout.positions, size), rows, kept_rows, keep, write)


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array as a tensor on the device. From pinned memory: any other copy waits for all that is queued there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
