"""Scores of any evaluator, stored on disk by content."""

import contextlib
import functools
import hashlib
import logging
import sqlite3
from collections.abc import Iterator, Sequence
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

log = logging.getLogger(__name__)
KEPT = 100_000  # pairs that a process holds in memory, about 30 MB
INLINE = 2**62  # bytes from which on diskcache would put a value into a file of its own: never
LAYOUT = "2"  # of a value; part of its key, so that rows of earlier versions are left alone
SUM_BYTES = 16  # of a value's checksum


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
    content and the clip's audio bytes: never a name or a position. One row holds a prompt's clips; rows are merged
    inside a transaction, so processes may share the folder.

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
        self._rows: dict[str, dict[bytes, NDArray[np.float32]]] = {}  # rows read by this process
        self._pairs = 0  # in them

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
        cached = 0
        missing: dict[
            tuple[int, ...], list[int]
        ] = {}  # clip positions -> prompts that lack exactly those
        for p, prompt in enumerate(prompts):
            row = self._known(prompt, keys)
            lacking = tuple(c for c, key in enumerate(keys) if key not in row)
            for c, key in enumerate(keys):
                if key in row:
                    logp[p, c], top[p, c] = row[key]
            cached += len(clips) - len(lacking)
            if lacking:
                missing.setdefault(lacking, []).append(p)
        for positions, numbers in missing.items():
            # Memory that ran out changes the shape of this call's batches, and with it the key: it is asked for after.
            table = self.inner.score([prompts[p] for p in numbers], [clips[c] for c in positions])
            for i, p in enumerate(numbers):
                logp[p, positions], top[p, positions] = table.logp[i], table.logp_top[i]
                new = {
                    keys[c]: np.stack([table.logp[i, j], table.logp_top[i, j]])
                    for j, c in enumerate(positions)
                }
                self._add(self._row_key(prompts[p]), new, labels)
        # Only now: of a call that fails, PromptError say, nothing is delivered, and the rest of it is asked for again.
        self._requested += len(prompts) * len(clips)
        self._cached += cached
        return ScoreTable(tuple(prompts), tuple(clips), logp, top)

    def count_missing(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> int:
        """How many of these pairs would go through the model."""
        if not self.folder.is_dir():
            return len(prompts) * len(clips)
        keys = [_clip_key(clip) for clip in clips]
        rows = [self._known(p, keys) for p in prompts]
        return sum(key not in row for row in rows for key in keys)

    def _row_key(self, prompt: Prompt) -> str:
        parts = f"{LAYOUT}|{self.inner.fingerprint}|{prompt.digest}{self.reading(prompt)}"
        return hashlib.sha256(parts.encode()).hexdigest()

    def _known(self, prompt: Prompt, clips: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """A prompt's scores, also from the one whose two answers are exchanged: the same two numbers a clip."""
        row = self._row(self._row_key(prompt), len(prompt.answers), clips)
        other = exchanged(prompt) if self.mirrors else None
        if other is None or all(clip in row for clip in clips):
            return row
        there = self._row(self._row_key(other), len(other.answers), clips)
        return {clip: values[:, ::-1] for clip, values in there.items()} | row

    def _row(
        self, key: str, labels: int, clips: Sequence[bytes]
    ) -> dict[bytes, NDArray[np.float32]]:
        """A prompt's scores. Read again where some of the clips lack: another process may have added them."""
        row = self._rows.get(key)
        if row is None or not all(clip in row for clip in clips):
            with self._faults():
                row = self._read(key, labels)
            self._keep(key, row)
        return row

    def _keep(self, key: str, row: dict[bytes, NDArray[np.float32]]) -> None:
        """Keeps a row in memory, and evicts the oldest rows above the limit."""
        self._pairs += len(row) - len(self._rows.pop(key, ()))
        self._rows[key] = row
        while self._pairs > KEPT and len(self._rows) > 1:
            self._pairs -= len(self._rows.pop(next(iter(self._rows))))

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

    def _add(self, key: str, new: dict[bytes, NDArray[np.float32]], labels: int) -> None:
        with self._faults(), self._cache.transact(retry=True):
            merged = self._read(key, labels) | new
            self._cache.set(key, _pack(key, merged), retry=True)
        self._keep(key, merged)

    def _read(self, key: str, labels: int) -> dict[bytes, NDArray[np.float32]]:
        """A row as it is on disk; a damaged one counts as missing."""
        raw = self._cache.get(key, b"", retry=True)
        row = _unpack(key, raw, labels)
        if row is None:
            log.warning(
                "a row of the score cache %r is not what was written there; its scores are made again",
                str(self.folder),
            )
        return row or {}

    def close(self) -> None:
        """Closes the files."""
        self._cache.close()


def _clip_key(clip: Clip) -> bytes:
    return hashlib.sha256(f"{clip.sha256}|{clip.audio}".encode()).digest()[:16]


def _dtype(labels: int) -> Any:
    return np.dtype([("clip", "V16"), ("values", "<f4", (2, labels))])


def _pack(key: str, row: dict[bytes, NDArray[np.float32]]) -> bytes:
    """A row's value: its entries, and a checksum over its key and them."""
    out = np.zeros(len(row), dtype=_dtype(len(next(iter(row.values()))[0])))
    out["clip"] = np.array(list(row), dtype="V16")
    out["values"] = np.stack(list(row.values()))
    return out.tobytes() + _checksum(key, out.tobytes())


def _checksum(key: str, entries: bytes) -> bytes:
    return hashlib.sha256(key.encode() + entries).digest()[:SUM_BYTES]


def _unpack(key: str, raw: bytes | None, labels: int) -> dict[bytes, NDArray[np.float32]] | None:
    """The entries of a row's value; None where they are not what was written under that key."""
    if raw is None:
        return None
    if not raw:
        return {}
    entries, told = raw[:-SUM_BYTES], raw[-SUM_BYTES:]
    if told != _checksum(key, entries) or len(entries) % _dtype(labels).itemsize:
        return None
    table = np.frombuffer(entries, dtype=_dtype(labels))
    return {
        bytes(clip): values for clip, values in zip(table["clip"], table["values"], strict=True)
    }
