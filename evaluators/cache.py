"""Scores of any evaluator, stored on disk by content."""

import contextlib
import functools
import hashlib
import itertools
import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskcache
import numpy as np
from numpy.typing import NDArray

from evaluators.clips import Clip
from evaluators.errors import PauseError, UserError
from evaluators.evaluator import Around, Evaluator, ScoreTable, Usage
from evaluators.files import disk_is_full
from evaluators.prompts import Prompt, exchanged
from evaluators.score_rows import (
    SEGMENT,
    SUM_BYTES,
    Array,
    Numbers,
    Row,
    entry_bytes,
    packed,
    sealed,
    unpacked,
    unsealed,
)

log = logging.getLogger(__name__)
KEPT = 2_000_000  # pairs that a process has room for in memory, 34 MB with two labels
INLINE = 2**62  # bytes from which on diskcache would put a value into a file of its own: never
LAYOUT = "2"  # of a value; part of its key, so that rows of earlier versions are left alone


class _PlainDisk(diskcache.Disk):  # type: ignore[misc]
    """Keys are text, and values bytes in the row itself.

    Anything else is not ours: diskcache would unpickle it, which runs code, or read and later delete the file that it
    names, wherever that lies.
    """

    def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> Any:
        if not isinstance(value, bytes):
            raise TypeError(f"the cache stores bytes, got {type(value).__name__}")
        return super().store(value, read, key)

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        """The value of a row; None of one that this program did not write."""
        ours = mode == diskcache.core.MODE_RAW and filename is None and isinstance(value, bytes)
        return value if ours else None

    def remove(self, file_path: str) -> None:
        """Deletes nothing: no row of ours has a file."""

    def get(self, key: Any, raw: bool) -> Any:
        if not raw:
            raise UserError(
                "the score cache holds a key that this program did not write; delete the cache"
                " folder"
            )
        return super().get(key, raw)


class CachedEvaluator(Around):
    """An Evaluator that scores only pairs that no process has scored before, by the inner evaluator.

    The key is a digest of the evaluator's fingerprint (weights, adapter, precision, scorer version), the prompt's
    content and the clip's audio bytes: never a name or a position. One row holds a prompt's clips, in segments of
    1,024, so that what a call costs does not grow with the row; they are written inside a transaction, so processes
    may share the folder.

    Args:
        mirrors: Exchanging the answers of two labels exchanges their scores, as of any model that is asked for words;
            then one of the two prompts is enough.
    """

    def __init__(self, inner: Evaluator, folder: Path, mirrors: bool = False) -> None:
        super().__init__(inner)
        self.mirrors = mirrors
        self.folder = folder
        self._requested = 0
        self._cached = 0
        self._numbers: dict[bytes, int] = {}  # of the clips that this process has met
        self._rows: dict[str, Row] = {}  # read by this process
        self._slots = 0  # in them
        self._alone = threading.RLock()  # threads of one process share numbers and rows

    @functools.cached_property
    def _cache(self) -> Any:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The default policy drops old rows past 1 GiB without a word; long values would get files of their own.
            return diskcache.Cache(
                str(self.folder), disk=_PlainDisk, eviction_policy="none", disk_min_file_size=INLINE
            )
        except (OSError, sqlite3.Error) as error:
            if disk_is_full(error):
                raise PauseError(
                    f"the score cache {str(self.folder)!r} cannot be opened (the disk is full); make room, then give"
                    " the same command again"
                ) from None
            raise UserError(
                f"the score cache {str(self.folder)!r} cannot be opened ({error}); give another --runs-dir, or delete"
                " the cache folder"
            ) from None

    @property
    def usage(self) -> Usage:
        """See `Evaluator.usage`."""
        return Usage(self._requested, self._cached, self._requested - self._cached)

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`. Every pair that was missing is on disk when this returns."""
        labels = len(prompts[0].answers)
        logp = np.full((len(prompts), len(clips), labels), np.nan, dtype=np.float32)
        top = logp.copy()
        keys = [_clip_key(clip) for clip in clips]
        numbers, cached = self._numbered(keys), 0
        missing: dict[bytes, list[int]] = {}  # which clips are known -> prompts that lack the rest
        for p, prompt in enumerate(prompts):
            known, values = self._known(prompt, numbers)
            logp[p], top[p] = values[:, 0], values[:, 1]
            cached += int(known.sum())
            if not known.all():
                missing.setdefault(known.tobytes(), []).append(p)
        for mask, lacking in missing.items():
            places = np.flatnonzero(~np.frombuffer(mask, dtype=bool)).tolist()
            # Memory that ran out changes the shape of this call's batches, and with it the key: it is asked for after.
            table = self.inner.score([prompts[p] for p in lacking], [clips[c] for c in places])
            for i, p in enumerate(lacking):
                logp[p, places], top[p, places] = table.logp[i], table.logp_top[i]
                both = np.stack([table.logp[i], table.logp_top[i]], axis=1)
                self._add(self._row_key(prompts[p]), [keys[c] for c in places], both)
        # Only now: of a call that fails, PromptError say, nothing is delivered, and the rest of it is asked for again.
        self._requested += len(prompts) * len(clips)
        self._cached += cached
        return ScoreTable(tuple(prompts), tuple(clips), logp, top)

    def count_missing(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> int:
        """How many of these pairs would go through the model."""
        if not self.folder.is_dir():
            return len(prompts) * len(clips)
        numbers = self._numbered([_clip_key(clip) for clip in clips])
        return sum(int((~self._known(p, numbers)[0]).sum()) for p in prompts)

    def _numbered(self, clips: Sequence[bytes]) -> Numbers:
        """The number of each clip in this process."""
        with self._alone:
            known = self._numbers
            found = [known.setdefault(clip, len(known)) for clip in clips]
        return np.array(found, dtype=np.int64)

    def _row_key(self, prompt: Prompt) -> str:
        parts = f"{LAYOUT}|{self.inner.fingerprint}|{prompt.digest}{self.reading(prompt)}"
        return hashlib.sha256(parts.encode()).hexdigest()

    def _known(self, prompt: Prompt, numbers: Numbers) -> tuple[NDArray[np.bool_], Array]:
        """A prompt's scores as `Row.take` gives them.

        Also from the prompt whose two answers are exchanged: the same two numbers a clip.
        """
        known, values = self._taken(prompt, numbers)
        other = exchanged(prompt) if self.mirrors else None
        if other is None or known.all():
            return known, values
        also, turned = self._taken(other, numbers)
        new = also & ~known
        values[new] = turned[new][..., ::-1]
        return known | also, values

    def _taken(self, prompt: Prompt, numbers: Numbers) -> tuple[NDArray[np.bool_], Array]:
        """A prompt's own. Read again where some of the clips lack: another process may have added them."""
        key = self._row_key(prompt)
        with self._alone:
            row = self._rows.get(key)
            if row is None or not row.take(numbers)[0].all():
                with self._faults():
                    row = self._read(key, len(prompt.answers)).row
                self._keep(key, row)
            return row.take(numbers)

    def _keep(self, key: str, row: Row) -> None:
        """Keeps a row in memory, and evicts the oldest rows above the limit."""
        self._rows.pop(key, None)
        self._rows[key] = row
        self._slots += row.slots - row.counted
        row.counted = row.slots
        while self._slots > KEPT and len(self._rows) > 1:
            gone = self._rows.pop(next(iter(self._rows)))
            self._slots -= gone.counted
            gone.counted = 0

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Raises PauseError, after which a run can be resumed, for faults of the disk; UserError for a damaged file."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise PauseError(
                f"the score cache {str(self.folder)!r} cannot be read or written ({error}); make room or mend the"
                " folder, then give the same command again"
            ) from None
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"the score cache {str(self.folder)!r} is damaged ({error}); delete the cache folder, its scores are"
                " made again"
            ) from None

    def _add(self, key: str, clips: Sequence[bytes], values: Array) -> None:
        """Adds ``[clip, 2, label]`` scores behind those that are there."""
        numbers, size = self._numbered(clips), entry_bytes(values.shape[-1])
        written: list[tuple[int, bytes, int]] = []
        with self._alone, self._faults(), self._cache.transact(retry=True):
            found = self._read(key, values.shape[-1])
            once = np.sort(np.unique(numbers, return_index=True)[1])  # a call may name a clip twice
            fresh = once[~found.row.take(numbers[once])[0]]
            left, beyond = fresh, ((number, b"") for number in itertools.count(found.end))
            for number, entries in itertools.chain(found.room.items(), beyond):
                if number >= found.end and not len(left):
                    break
                count = SEGMENT - len(entries) // size
                some, left = left[:count], left[count:]
                if len(some) or not entries:  # one that was damaged is mended
                    entries += packed([clips[i] for i in some], values[some])
                    raw = sealed(_segment(key, number), entries)
                    self._cache.set(_segment(key, number), raw, retry=True)
                    written.append((number, raw, len(entries) // size))
        with self._alone:
            found.row.put(numbers[fresh], values[fresh])  # only what is on disk counts as known
            for segment in written:
                found.row.note(*segment)
            self._keep(key, found.row)

    def _read(self, key: str, labels: int) -> "_Read":
        """A prompt's row with all that is on disk by now; what is damaged counts as missing."""
        row, room = self._rows.get(key) or Row(labels), dict[int, bytes]()
        for number in itertools.count(row.whole):
            name = _segment(key, number)
            raw = self._cache.get(name, b"", retry=True)
            if raw == b"":
                return _Read(row, room, number)
            if number == row.whole and raw == row.last:
                room[number] = raw[:-SUM_BYTES]
                continue
            entries = unsealed(name, raw, labels)
            if entries is None:
                log.warning(
                    "a row of the score cache %r is not what was written there; its scores are made again",
                    str(self.folder),
                )
                room[number] = b""
                continue
            clips, values = unpacked(entries, labels)
            row.put(self._numbered(clips), values)
            row.note(number, raw, len(clips))
            if len(clips) < SEGMENT:
                room[number] = entries
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Closes the files."""
        self._cache.close()


def _clip_key(clip: Clip) -> bytes:
    return hashlib.sha256(f"{clip.sha256}|{clip.audio}".encode()).digest()[:16]


def _segment(key: str, number: int) -> str:
    """The key of a row's segment; of the first that of the row, as when a row was one value."""
    return f"{key}.{number}" if number else key


@dataclass(frozen=True)
class _Read:
    """What a look at the disk gives.

    Attributes:
        row: The row with all that stands there.
        room: Segments that take more clips -> their entries; none of one that is damaged.
        end: The first segment that is not there.
    """

    row: Row
    room: dict[int, bytes]
    end: int
