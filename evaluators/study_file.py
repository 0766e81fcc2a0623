"""An Optuna study in a file whose lock dies with its owner; Optuna's dashboard opens it."""

from pathlib import Path

import filelock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from evaluators.files import cut_torn_line


class _OwnedLock(JournalFileOpenLock):
    """A lock of the system, which a killed process gives back.

    Optuna's own is a link that stays behind a killed process. Where the file was named by a relative path it leads
    nowhere, so that Optuna cannot see how old it is, and waits for ever at full speed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._owned = filelock.FileLock(path.with_name(f".{path.name}.lock"))

    def acquire(self) -> bool:
        self._owned.acquire()
        return True

    def release(self) -> None:
        self._owned.release()


def study_file(path: Path) -> JournalStorage:
    """The studies of a file, which need not be there. Only for the process that holds the folder's lock.

    A last line that a crash cut short is cut off, and locks of Optuna that killed processes left are removed, so that
    its dashboard does not wait for them.

    Raises:
        OSError: The file cannot be written.
        KeyError, ValueError, AssertionError: It is damaged, or was written by another version of Optuna.
    """
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink(missing_ok=True)
    if path.exists():
        cut_torn_line(path)
    return JournalStorage(JournalFileBackend(str(path), _OwnedLock(path)))
