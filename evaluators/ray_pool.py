"""The evaluator on many GPUs and machines: Ray actors behind the same protocol.

Every actor holds the whole evaluator, on one GPU or, in a cluster without GPUs, on some CPUs. A call's clips are handed
out in chunks; a clip goes to the actor that has its prefix, or to an idle one. A lost actor is replaced and its chunk
repeated. Scores do not depend on the actor that computes them, so results equal those of one process; cache and
journal stay with the calling process.
"""

import contextlib
import functools
import logging
import os
import signal
import time
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import Clip
from evaluators.errors import DeviceLostError, PauseError, UserError
from evaluators.evaluator import About, Evaluator, ScoreTable, Uncached, Work, prompt_tokens, share
from evaluators.prompts import Prompt

log = logging.getLogger(__name__)

CHUNKS = 4  # of a call's clips for each worker at most: small enough to share the end
BATCHES = 8  # that a chunk fills at least, or all that a worker has: a batch costs as much when it is not full
AHEAD = 2  # of its own chunks a worker has at once, so that it never waits for the next
TEMPLATE = 12  # tokens of a row besides its prompt, about
LOSSES = 3  # workers that may die on one chunk
WAIT_S = 120.0  # without any worker at all
OF_ONE = "of_one_process"  # resource of a cluster that ends with the process that started it
TOLD_S = 30.0  # for workers to tell what they have computed; a run ends without it as well

Chunk = NDArray[np.int64]  # positions of clips


class Worker:
    """What runs in an actor: an evaluator for each pool of its crew, one of which scores."""

    def __init__(self, makes: Sequence[Callable[[], Evaluator]]) -> None:
        self.process = (
            uuid.uuid4().hex
        )  # Ray starts a lost actor anew: another process, another name
        self.evaluators: list[Any] = []
        self.evaluator = self._evaluator(0, makes)

    def _evaluator(self, number: int, makes: Sequence[Callable[[], Evaluator]]) -> Any:
        if new := [make() for make in makes[len(self.evaluators) :]]:
            self.evaluators += new
            share(self.evaluators)
        return self.evaluators[number]

    def begin(
        self, number: int, makes: Sequence[Callable[[], Evaluator]], shape: Any = None
    ) -> tuple[str, tuple[str, Any]]:
        """(process, `about`) of an evaluator, which scores from here on; of pools that joined later they are made now.

        Before that it takes over a shape that another worker's memory made necessary.
        """
        self.evaluator = self._evaluator(number, makes)
        if shape is not None:
            self.evaluator.shape = shape
        return self.process, self.about()

    def about(self) -> tuple[str, Any]:
        """(fingerprint, batch shape) of the evaluator that scores."""
        return self.evaluator.fingerprint, self.evaluator.shape

    def release(self, number: int) -> None:
        """Frees what one of its evaluators has for itself."""
        self.evaluators[number].release()

    def forget(self) -> None:
        """Drops what it keeps of clips."""
        self.evaluator.forget()

    def work(self, number: int) -> tuple[int, Work | None]:
        """Evals that one of its evaluators has answered, and what it has computed for them."""
        evaluator = self.evaluators[number]
        return evaluator.usage.forward, evaluator.about().work

    def score(
        self, process: str, prompts: Sequence[Prompt], clips: Sequence[Clip]
    ) -> tuple[Any, Any, tuple[str, Any]] | tuple[()]:
        """The table's two members, and `about`; nothing in another process than the one that began.

        A worker that dies between two calls is started anew without a word: evaluator and shape are not the owner's.
        """
        if process != self.process:
            return ()
        try:
            table = self.evaluator.score(prompts, clips)
        except DeviceLostError:  # a new process may get it back, or another device
            log.exception("device lost")
            os._exit(1)
        return table.logp, table.logp_top, self.about()


@dataclass
class Seat:
    """A worker as its owner sees it.

    Attributes:
        process: The one that answered last.
        flight: Unfinished calls: (number of the owner's call, its chunk, the process it went to); None: `begin`.
    """

    actor: Any
    usable: bool = False
    process: str = ""
    flight: dict[Any, tuple[int, Chunk, str] | None] = field(default_factory=dict)


class Crew:
    """The workers of a pool, or of several that take turns at them, each with a checkpoint.

    Attributes:
        makes: Makes the evaluator of each pool.
        pools: The pools that are alive.
        users: Numbers of those that are not released.
        turn: Number of the one that the workers score for.
    """

    def __init__(self) -> None:
        self.makes: list[Callable[[], Evaluator]] = []
        self.pools: weakref.WeakSet[RayPool] = weakref.WeakSet()
        self.users: set[int] = set()
        self.turn = 0

    def join(self, pool: "RayPool", make: Callable[[], Evaluator]) -> int:
        """The number of a further pool."""
        number = len(self.makes)
        self.makes.append(make)
        self.pools.add(pool)
        self.users.add(number)
        return number


class RayPool(Uncached):
    """An Evaluator over the GPUs, or CPUs, of a Ray cluster.

    Args:
        make: Makes the evaluator in a worker, `Uncached`; every node must find the same files under the same paths.
        address: ``auto``: a cluster that runs here, else one that is started for this process; or HOST:PORT.
        cpus: CPUs of a worker where the cluster has no GPU.
        workers: How many; None: as many as the cluster has room for.
    Raises:
        UserError: No cluster answers, it has no room, or its nodes would not give equal scores: each finds out for
            itself which weights lie there.
        PauseError: No worker is left, or one chunk of clips kills them one after the other.
    """

    def __init__(
        self,
        make: Callable[[], Evaluator],
        address: str = "auto",
        cpus: int = 1,
        workers: int | None = None,
    ) -> None:
        self._make, self._address, self._cpus, self._workers = make, address, cpus, workers
        self._crew = Crew()
        self._number = self._crew.join(self, make)
        self._about: tuple[str, Any] | None = None
        self._home: dict[tuple[str, str], int] = {}  # clip -> seat
        self._calls = 0
        self.forwards = 0
        self._seconds = 0.0  # of calls
        self._gone: set[str] = set()  # processes that do not answer

    @functools.cached_property
    def _local(self) -> Evaluator:
        """One like those of the workers, in this process. It loads nothing."""
        return self._make()

    @property
    def innermost(self) -> Evaluator:
        """One like those of the workers, in this process."""
        return self._local.innermost

    def about(self) -> About:
        """That of an evaluator like the workers', in this process; with what they have computed."""
        return replace(self._local.about(), work=self._work())

    @property
    def _ray(self) -> Any:
        """The library, where workers are: an extra, and slow to import."""
        import ray

        return ray

    def _work(self) -> Work | None:
        """Of all workers at once, in the wall time of this process; their rates add up."""
        seats = [seat for seat in self.__dict__.get("_seats", ()) if seat.usable]
        if not seats:
            return None
        ray = self._ray
        try:
            asked = [seat.actor.work.remote(self._number) for seat in seats]
            found: list[tuple[int, Work | None]] = ray.get(asked, timeout=TOLD_S)
        except ray.exceptions.RayError as error:  # one died, or is not there in time
            log.debug("work is not told: %s", error)
            return None
        told = [(count, work) for count, work in found if work is not None and work.evals]
        if not told:
            return None
        works = [work for _, work in told]
        scale = self.forwards / sum(count for count, _ in told)  # those that died tell nothing
        evals = round(scale * sum(work.evals for work in works))
        flop = scale * sum(work.flop for work in works)
        measured = all(work.rate for work in works)
        rate = sum(work.rate for work in works) if measured else 0.0
        return Work(evals, self._seconds, flop, rate)

    def share_with(self, other: Uncached) -> bool:
        """Whether both take turns at one set of workers from here on, each of which holds their bases once."""
        if not isinstance(other, RayPool):
            return False
        if self._crew is other._crew:
            return True
        if "_seats" in vars(self):  # workers of its own
            return False
        if any(getattr(self, of) != getattr(other, of) for of in ("_address", "_cpus", "_workers")):
            return False
        self._crew = other._crew
        self._number = self._crew.join(self, self._make)
        if "_seats" in vars(other):
            vars(self)["_seats"] = other._seats
        return True

    def release(self) -> None:
        """Ends the workers, or what they hold for this pool alone while others need them; see `Evaluator.release`."""
        ray = self._ray
        self._crew.users.discard(self._number)
        for seat in vars(self).get("_seats", ()):
            if self._crew.users:
                seat.actor.release.remote(self._number)
            else:
                ray.kill(seat.actor)
        if not self._crew.users:
            for pool in self._crew.pools:
                vars(pool).pop("_seats", None)
        self._home.clear()

    def _take_turn(self) -> None:
        """Makes the workers score for this pool: each says first that it has what the others have."""
        seats = self._seats
        self._crew.users.add(self._number)
        if self._crew.turn != self._number:
            self._crew.turn = self._number
            for seat in seats:
                seat.usable = False
                seat.flight.clear()  # of a call that ended early
                self._greet(seat)

    def forget(self) -> None:
        """Makes every worker drop what it keeps of clips, as `AudioScorer.forget` does: for benchmarks."""
        ray = self._ray
        ray.get([seat.actor.forget.remote() for seat in self._seats])
        self._home.clear()

    @functools.cached_property
    def _seats(self) -> list[Seat]:
        import ray

        connect(self._address)
        room: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call, unused-ignore]
        gpus = int(room.get("GPU", 0))
        count = gpus or int(room.get("CPU", 0) // self._cpus)
        if self._workers is not None:
            count = min(count, self._workers)
        if count < 1:
            raise UserError(
                f"--ray {self._address}: the cluster has {int(room.get('CPU', 0))} CPUs and no GPU, a worker takes"
                f" {self._cpus}; add nodes, or give fewer --ray-cpus"
            )
        options: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0}
        if not gpus:
            options = {"num_cpus": self._cpus}
        kind = ray.remote(max_restarts=-1, scheduling_strategy="SPREAD", **options)(Worker)
        seats = [Seat(kind.remote(self._crew.makes)) for _ in range(count)]
        for pool in self._crew.pools:
            vars(pool)["_seats"] = seats
        self._crew.turn = self._number
        log.info("ray: %d workers, of %d GPUs and %d CPUs", count, gpus, int(room.get("CPU", 0)))
        for seat in seats:
            self._greet(seat)
        return seats

    @property
    def lost(self) -> int:
        """Workers that died."""
        return len(self._gone)

    @property
    def usable(self) -> int:
        """Workers that have started and live."""
        return sum(seat.usable for seat in self._seats)

    @property
    def fingerprint(self) -> str:
        """See `Evaluator`: that of every worker."""
        return self._wait_for_one()[0]

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator`."""
        self._take_turn()
        while True:
            before, begin = self.fingerprint, time.perf_counter()
            table = self._score(prompts, clips)
            self._seconds += time.perf_counter() - begin
            if self.fingerprint == before:  # else a worker ran out of memory: all in its shape
                self.forwards += len(prompts) * len(clips)
                return table

    def _score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        shape = (len(prompts), len(clips), len(prompts[0].answers) if prompts else 0)
        logp, top = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        self._calls += 1
        queues = self._hand_out(prompts, clips)
        left = sum(map(len, queues))
        losses: Counter[bytes] = Counter()
        while left:
            for number, seat in enumerate(self._seats):
                while seat.usable and any(queues):
                    # Another one's chunk only when it has nothing to do: else one takes all of a small call.
                    if len(seat.flight) >= (AHEAD if queues[number] else 1):
                        break
                    chunk = (queues[number] or max(queues, key=len)).popleft()
                    ref = seat.actor.score.remote(seat.process, prompts, [clips[i] for i in chunk])
                    seat.flight[ref] = (self._calls, chunk, seat.process)
            for seat, job, answer in self._next():
                if job is None or job[0] != self._calls:
                    continue  # of a call that ended early
                chunk = job[1]
                if isinstance(answer, Exception):
                    try:
                        raise answer
                    finally:  # else this frame, which the error keeps, would keep it and the workers
                        del answer
                if not answer:
                    losses[chunk.tobytes()] += answer is None  # else it died before it had them
                    if losses[chunk.tobytes()] >= LOSSES:
                        raise PauseError(
                            f"{LOSSES} workers died on the clips from {clips[chunk[0]].clip_id!r} to"
                            f" {clips[chunk[-1]].clip_id!r}; see Ray's logs for why, then give the same command again"
                        )
                    queues[self._seats.index(seat)].appendleft(chunk)
                    continue
                logp[:, chunk], top[:, chunk], about = answer
                if self._agree(about):
                    left -= 1
                else:
                    self._begin_again(seat)
                    queues[self._seats.index(seat)].appendleft(chunk)
        return ScoreTable(tuple(prompts), tuple(clips), logp, top)

    def _hand_out(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[deque[Chunk]]:
        """Each seat's chunks: its own clips, and then new ones to whoever has the fewest."""
        own: list[list[int]] = [[] for _ in self._seats]
        keys = [(clip.sha256, clip.audio) for clip in clips]
        known = [key in self._home for key in keys]
        for i in sorted(
            range(len(keys)), key=lambda i: not known[i]
        ):  # new ones make up for the rest
            if keys[i] not in self._home:
                self._home[keys[i]] = min(range(len(own)), key=lambda s: (len(own[s]), s))
            own[self._home[keys[i]]].append(i)
        size = max(1, -(-len(clips) // (self._chunks(prompts, clips) * len(own))))
        return [
            deque(np.array(mine[at : at + size], np.int64) for at in range(0, len(mine), size))
            for mine in own
        ]

    def _chunks(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> int:
        """For each worker: as many as fill `BATCHES` of its batches, one at least; `CHUNKS` where none are known."""
        batch: int | None = getattr(self._wait_for_one()[1], "tokens", None)
        lengths = [prompt_tokens(self._local, prompt) for prompt in prompts]
        if batch is None or None in lengths:
            return CHUNKS
        tokens = len(clips) * sum(length + TEMPLATE for length in lengths if length is not None)
        return max(1, min(CHUNKS, tokens // (batch * BATCHES * len(self._seats))))

    def _next(self) -> list[tuple[Seat, tuple[int, Chunk, str] | None, Any]]:
        """Finished calls: (seat, what it was for, answer). Waits for one at least.

        The answer is None where the worker died meanwhile, nothing where it had died before.
        """
        import ray

        begin = time.monotonic()
        while True:
            flight = {ref: seat for seat in self._seats for ref in seat.flight}
            done, _ = ray.wait(list(flight), timeout=1.0) if flight else ([], [])
            if done:
                break
            if self.usable:
                begin = time.monotonic()
            elif time.monotonic() - begin > WAIT_S:
                raise PauseError(
                    f"no Ray worker for {WAIT_S:.0f} s; mend the cluster, then give the same command again"
                )
        out = []
        for ref in done:
            seat = flight[ref]
            job = seat.flight.pop(ref)
            answer = self._fetch(ref)
            if not answer:
                self._lose(seat, job[2] if job else "")
            elif job is None:
                if isinstance(answer, Exception):
                    try:
                        raise answer
                    finally:
                        del answer  # as in `_score`
                seat.process, about = answer
                self._gone.discard(seat.process)  # it was only slow to answer
                seat.usable = self._agree(about)
                if not seat.usable:  # it has not been told of the smaller shape, or is being told
                    self._begin_again(seat)
            out.append((seat, job, answer))
        return out

    def _fetch(self, ref: Any) -> Any:
        """The answer, what the evaluator raised, or None when the worker died."""
        import ray

        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else error
        except ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                why = str(error).strip().splitlines()[-1][:300]
                raise PauseError(f"a Ray worker cannot start ({why}); mend its node") from None
            log.debug("worker died: %s", error)
            return None

    def _lose(self, seat: Seat, process: str) -> None:
        """A call to a process failed: Ray starts the worker anew, elsewhere if need be; it works once it answers.

        Failures of one death come one by one, the last of them perhaps when the next process works already.
        """
        if process and process not in self._gone:
            self._gone.add(process)
            log.warning("a Ray worker died (%d so far); its clips are scored again", self.lost)
        if process in ("", seat.process):
            self._begin_again(seat)

    def _begin_again(self, seat: Seat) -> None:
        seat.usable = False
        if None not in seat.flight.values():
            self._greet(seat)

    def _greet(self, seat: Seat) -> None:
        shape = self._about[1] if self._about else None
        ref = seat.actor.begin.remote(self._number, self._crew.makes, shape)
        seat.flight[ref] = None

    def _wait_for_one(self) -> tuple[str, Any]:
        if self._about is None:
            self._take_turn()
        while self._about is None:
            self._next()
        return self._about

    def _agree(self, about: tuple[str, Any]) -> bool:
        """All workers have one fingerprint. One that ran out of memory makes all take its smaller shape.

        False of one that still has the larger one: its scores are not those of the fingerprint.
        """
        if self._about is None:
            self._about = about
        if about[0] == self._about[0]:
            return True
        if about[1] == self._about[1]:
            raise UserError(
                f"--ray {self._address}: the cluster's nodes differ in weights, libraries or devices, so that scores"
                " would depend on who computes them; give all nodes the same files and versions, and use cards of one"
                " kind, or --dtype float32"
            )
        smaller = min(about, self._about, key=lambda a: a[1].tokens)
        if smaller is self._about:
            return False
        self._about = smaller
        for seat in self._seats:
            seat.usable = False
            self._greet(seat)
        return True


def connect(address: str) -> None:
    """Joins a Ray cluster, or starts one for this process.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
        PauseError: Another process has started the one that runs here for itself, and has its workers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs the package ray: pip install -e '.[ray]'") from None
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with _terminated_as_before():
            if address != "auto":
                ray.init(address=address, **options)
                return
            try:
                ray.init(address="auto", **options)
            except ConnectionError:
                ray.init("local", include_dashboard=False, resources={OF_ONE: 1}, **options)
                return
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"--ray {address!r}: no Ray cluster answers ({type(error).__name__}: {str(error).splitlines()[0][:200]});"
            " start one with: ray start --head, or give --ray auto"
        ) from None
    if OF_ONE in ray.cluster_resources():  # type: ignore[no-untyped-call, unused-ignore]
        ray.shutdown()
        raise PauseError(
            f"--ray {address}: another command has started a Ray cluster for itself on this machine; wait until it has"
            " ended, then give the same command again"
        )


@contextlib.contextmanager
def _terminated_as_before() -> Iterator[None]:
    """Ray takes SIGTERM for itself and ends the process with a trace: who has a handler gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before):
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGTERM, before)
