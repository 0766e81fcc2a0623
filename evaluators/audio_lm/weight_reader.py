"""Reads weights from safetensors files straight onto a card: blocks, several threads, pinned memory.

transformers copies from mapped memory, which the driver first copies into pinned memory of its own, page by page. Here
each thread reads blocks into pinned memory of ours, and the card fetches one while the next is read. The tensors are
handed to transformers as slices that are read when it asks for them: names, types and places stay its own affair, and
no more memory is taken on the card than it asks for. (fastsafetensors, the well-kept loader, puts each file into one
piece of the card's memory, which is free again only when the last tensor of the file is: with weights that are laid
side by side, or quantized, a model would take its memory twice.)
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from evaluators.audio_lm.model_folder import TensorPlace, tensor_places, tensor_types
from evaluators.errors import UserError

# Bytes that a thread reads at once: it needs the interpreter between two blocks, which may be busy with imports.
BLOCK = 32 * 2**20
THREADS = 6  # at most; more do not make the link faster
ROOM = 2.2  # times all tensors that must be free on a card for reading early
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

    name: str
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
        return self.reader.read(self.name)


@dataclass(frozen=True)
class Run:
    """Tensors that lie one after another in a file and are read at once: a large one alone, small ones together."""

    path: Path
    begin: int
    end: int
    names: frozenset[str]


@dataclass(frozen=True)
class Reading:
    """Bytes of a run on the device, once all parts are read; of those on a card each gives an event."""

    data: Tensor
    parts: Sequence[Future[Any]]


class WeightReader:
    """The tensors of files, to be read onto a device. Any thread may ask.

    Args:
        folder: It holds them.
        paths: The files; headers alone are read now.
        device: Where the tensors go.

    Attributes:
        folder: See above.
        tensors: By name.

    Raises:
        UserError: A file is torn or no safetensors file, or holds no tensor.
    """

    def __init__(self, folder: Path, paths: Iterable[Path], device: torch.device) -> None:
        if device.type == "cuda" and device.index is None:  # the threads may have another one
            device = torch.device("cuda", torch.cuda.current_device())
        self.folder, self._device = folder, device
        files = {path: tensor_places(path) for path in paths}
        self.tensors = {
            name: StoredTensor(name, place, self)
            for places in files.values()
            for name, place in places.items()
        }
        self._runs = {
            name: run for path in files for run in runs(path, files[path]) for name in run.names
        }
        self._files = {path: os.open(path, os.O_RDONLY) for path in files}
        self._pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
        self._lanes = local()
        self._alone = Lock()
        self._readings: dict[Run, Reading] = {}
        self._left = {run: set(run.names) for run in self._runs.values()}

    @property
    def bytes(self) -> int:
        """What all tensors take."""
        return sum(one.place.end - one.place.begin for one in self.tensors.values())

    def begin(self) -> None:
        """Begins to read all tensors, where the card has room for them twice: transformers reserves theirs beside."""
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            if free < ROOM * self.bytes:
                return
        for run in dict.fromkeys(self._runs.values()):
            self._reading(run)

    def close(self) -> None:
        """Ends the threads, gives up the files and what nobody took."""
        self._pool.shutdown(cancel_futures=True)
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        self._readings.clear()

    def read(self, name: str) -> Tensor:
        """A tensor; it is there.

        Raises:
            UserError: The file became shorter.
        """
        run, place = self._runs[name], self.tensors[name].place
        reading = self._reading(run)
        try:
            for copied in [part.result() for part in reading.parts]:
                if copied is not None:
                    copied.synchronize()
        except EOFError:
            raise UserError(
                f"{str(run.path)!r} became shorter while it was read; restore it"
            ) from None
        data = reading.data
        if len(run.names) > 1:  # memory of its own, which begins as all does
            data = data[place.begin - run.begin : place.end - run.begin].clone()
        with self._alone:
            self._left[run].discard(name)
            if not self._left[run]:
                self._readings.pop(run, None)
        return data.view(TYPES[place.kind]).reshape(place.shape)

    def _reading(self, run: Run) -> Reading:
        """A run's reading, which begins now unless it has begun."""
        with self._alone:
            if run not in self._readings:
                with torch.inference_mode(False):  # the threads could not write to it
                    data = torch.empty(run.end - run.begin, dtype=torch.uint8, device=self._device)
                free = None
                if self._device.type == "cuda":  # what freed memory is still used for comes first
                    free = torch.cuda.current_stream(self._device).record_event()
                parts = [
                    self._pool.submit(self._copy, run, first, data[first : first + BLOCK], free)
                    for first in range(0, len(data), BLOCK)
                ]
                self._readings[run] = Reading(data, parts)
            return self._readings[run]

    def _copy(self, run: Run, first: int, into: Tensor, free: Any) -> Any:
        """Copies a part of a run; onto a card once its memory is free, as an event that is to be waited for."""
        file, begin = self._files[run.path], run.begin + first
        if free is None:
            return fill(file, begin, into)
        if not hasattr(self._lanes, "own"):
            self._lanes.own = PinnedLane(self._device)
        return self._lanes.own.copy(file, begin, into, free)


def runs(path: Path, places: dict[str, TensorPlace]) -> Iterator[Run]:
    """The tensors of a file in runs of up to a block, in their order."""
    ordered = sorted(places, key=lambda name: (places[name].begin, places[name].end))
    number, begin = 0, 0
    marked = []
    for name in ordered:
        if places[name].end - begin > BLOCK:
            number, begin = number + 1, places[name].begin
        marked.append((number, name))
    for _, group in itertools.groupby(marked, key=lambda one: one[0]):
        names = [name for _, name in group]
        yield Run(path, places[names[0]].begin, places[names[-1]].end, frozenset(names))


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
