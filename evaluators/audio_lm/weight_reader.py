"""Reads weights from safetensors files straight onto a card: blocks, several threads, pinned memory.

transformers copies from mapped memory, which the driver first copies into pinned memory of its own, page by page. Here
each thread reads blocks into pinned memory of ours, and the card fetches one while the next is read. The tensors are
handed to transformers as slices that are read when it asks for them: names, types and places stay its own affair, and
no more memory is taken on the card than it asks for. Who takes all tensors, one after another, has those that follow
read meanwhile (`all`). (fastsafetensors, the well-kept loader, puts each file into one piece of the card's memory,
which is free again only when the last tensor of the file is: with weights that are laid side by side, or quantized, a
model would take its memory twice.)

Reading begins when a tensor is asked for. Begun earlier, beside the imports of transformers, it made those slower by
more than it saved (evaluators/README.md).
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import local
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from evaluators.audio_lm.model_folder import TensorPlace, tensor_places, tensor_types
from evaluators.errors import PauseError, UserError

# Bytes that a thread reads at once; smaller blocks cost calls, larger ones pinned memory, which takes time to get.
BLOCK = 8 * 2**20
SMALL = (
    2**16
)  # bytes: what is smaller is read at once, which takes less than handing it to a thread
AHEAD = 2**30  # bytes that are read ahead of the tensor that is taken
# They read 32.7 GB/s from the page cache, one 6.2 (tests/bench_start.py, on an H100's host). So many on few cores, too:
# a disk is faster with several requests at once (tests/bench_start.py --disk 4).
THREADS = 8
TYPES = {  # of safetensors
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, as transformers takes it: a slice of safetensors, which is read by ``[...]``."""

    place: TensorPlace
    reader: "WeightReader"

    def get_dtype(self) -> str:
        """Its type, as safetensors names it."""
        return self.place.kind

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self.place.shape)

    def __getitem__(self, index: EllipsisType) -> Tensor:
        """All of it, on the device."""
        return self.reader.read(self.place)


class WeightReader:
    """The tensors of files, to be read onto a device. Any thread may ask; all threads of the reader read a tensor.

    Args:
        paths: The files; headers alone are read now.
        device: Where the tensors go.

    Attributes:
        tensors: By name.

    Raises:
        UserError: A file is torn or no safetensors file, or holds no tensor.
        PauseError: A file cannot be opened.
    """

    def __init__(self, paths: Iterable[Path], device: torch.device) -> None:
        if device.type == "cuda" and device.index is None:  # the threads may have another one
            device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        places = {name: one for path in paths for name, one in tensor_places(path).items()}
        self.tensors = {name: StoredTensor(one, self) for name, one in places.items()}
        self._files: dict[Path, int] = {}
        self._pool = ThreadPoolExecutor(THREADS)
        self._lanes = local()
        for path in {one.path for one in places.values()}:
            try:
                self._files[path] = os.open(path, os.O_RDONLY)
            except OSError as error:
                self.close()
                raise _unread(path, error) from None

    def close(self) -> None:
        """Ends the threads, gives up the files."""
        self._pool.shutdown(cancel_futures=True)
        if (
            self._device.type == "cuda"
        ):  # after an early end nobody has waited for what the card still fetches
            torch.cuda.synchronize(self._device)
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def read(self, place: TensorPlace) -> Tensor:
        """A tensor; it is there.

        Raises:
            UserError: The file became shorter.
            PauseError: Its disk does not give it.
        """
        return self._begin(place).tensor()

    def all(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors and their names in this order, one after another; those that follow are read meanwhile.

        Raises:
            UserError: A file became shorter.
            PauseError: Its disk does not give it.
        """
        begun: deque[tuple[str, _Reading]] = deque()
        ahead = 0
        for name in names:
            place = self.tensors[name].place
            begun.append((name, self._begin(place)))
            ahead += place.size
            while ahead > AHEAD:
                name, reading = begun.popleft()
                ahead -= reading.place.size
                yield name, reading.tensor()
        for name, reading in begun:
            yield name, reading.tensor()

    def _begin(self, place: TensorPlace) -> "_Reading":
        with torch.inference_mode(False):  # threads could not write to it, nor to a view
            if place.size <= SMALL:
                return _Reading(place, self._read_small(place), ())
            out = torch.empty(place.shape, dtype=TYPES[place.kind], device=self._device)
            blocks = out.reshape(-1).view(torch.uint8).split(BLOCK)
        free = None
        if self._device.type == "cuda":  # what freed memory is still used for comes first
            free = torch.cuda.current_stream(self._device).record_event()
        parts = [
            self._pool.submit(self._copy, place, i * BLOCK, block, free)
            for i, block in enumerate(blocks)
        ]
        return _Reading(place, out, parts)

    def _read_small(self, place: TensorPlace) -> Tensor:
        out = torch.empty(place.shape, dtype=TYPES[place.kind])
        try:
            fill(self._files[place.path], place.begin, out.reshape(-1).view(torch.uint8))
        except (EOFError, OSError) as error:
            raise _unread(place.path, error) from None
        return out.to(self._device)

    def _copy(self, place: TensorPlace, first: int, into: Tensor, free: Any) -> Any:
        """Copies a part of a tensor; onto a card once its memory is free, as an event that is to be waited for."""
        file, begin = self._files[place.path], place.begin + first
        if free is None:
            return fill(file, begin, into)
        if not hasattr(self._lanes, "own"):
            self._lanes.own = PinnedLane(self._device)
        return self._lanes.own.copy(file, begin, into, free)


@dataclass(frozen=True)
class _Reading:
    """A tensor that threads are reading, block by block."""

    place: TensorPlace
    into: Tensor
    parts: Sequence[Future[Any]]

    def tensor(self) -> Tensor:
        """The tensor; it is there."""
        try:
            for copied in [part.result() for part in self.parts]:
                if copied is not None:
                    copied.synchronize()
        except (EOFError, OSError) as error:
            raise _unread(self.place.path, error) from None
        return self.into


def _unread(path: Path, error: EOFError | OSError) -> UserError | PauseError:
    if isinstance(error, EOFError):
        return UserError(f"{str(path)!r} became shorter while it was read; restore it")
    return PauseError(
        f"{str(path)!r} cannot be read ({error.strerror}); when it can be, give the same command again"
    )


class PinnedLane:
    """Reads into one of two pieces of pinned memory while the card fetches the other, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pieces = [torch.empty(BLOCK, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._fetched = [torch.cuda.Event() for _ in range(2)]

    def copy(self, file: int, begin: int, into: Tensor, free: Any) -> torch.cuda.Event:
        """Copies bytes of a file, from `begin` on, into ``[byte]`` on the card, after the event `free`."""
        self._pieces.reverse()
        self._fetched.reverse()
        piece = self._pieces[0][: len(into)]
        self._fetched[0].synchronize()  # before it was ever recorded, this is nothing
        fill(file, begin, piece)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            into.copy_(piece, non_blocking=True)
            self._fetched[0] = self._stream.record_event()
        return self._fetched[0]


def fill(file: int, begin: int, into: Tensor) -> None:
    """Fills ``[byte]`` of the processor's memory from a file.

    Raises:
        EOFError: The file ends before.
    """
    room = memoryview(into.numpy())  # type: ignore[arg-type]  # numpy's stubs know no buffers
    while room:
        count = os.preadv(file, [room], begin)
        if not count:
            raise EOFError
        room, begin = room[count:], begin + count


def can_read(paths: Iterable[Path], device: torch.device) -> bool:
    """Whether a reader is of use: for a card, where the system reads at a place without moving to it."""
    if device.type != "cuda" or not hasattr(os, "preadv"):
        return False
    return {kind for path in paths for kind in tensor_types(path).values()} <= TYPES.keys()
