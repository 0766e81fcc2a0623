"""One notion of sameness for names that people type and file systems store: of sources, recordings and files.

Names are the same where they differ in Unicode form (a Mac stores an accented letter as two characters), blanks,
invisible characters, the direction of slashes, or case. What differs in case alone can be seen to differ: such sources
count as two in intervals, as they always did, but no split may part them.
"""

import functools
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from evaluators.errors import UserError

T = TypeVar("T")
LINK_CURE = "copy the folder with its links followed (cp -rL FOLDER COPY), or for git-annex: git annex unlock"
FETCH_CURE = "fetch it (git annex get, git lfs pull), or download it again"


@functools.lru_cache(1 << 16)
def looks_key(name: str) -> str:
    r"""What all names share that look like this one.

    >>> looks_key("Ju\u0308rgen ") == looks_key("J\u00fcrgen") == looks_key("J\u00fcrgen\u200b")
    True
    >>> looks_key("a\\b.wav") == looks_key("a/b.wav"), looks_key("Ann") == looks_key("ann")
    (True, False)
    """
    text = name
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = "".join(
            c for c in text if unicodedata.category(c) != "Cf"
        )  # zero width, soft hyphen
    return " ".join(text.replace("\\", "/").split())


@functools.lru_cache(1 << 16)
def name_key(name: str) -> str:
    """What all spellings of a name share, in whatever case.

    >>> name_key("Ann ") == name_key("ann"), name_key("s1") == name_key("s2")
    (True, False)
    """
    return unicodedata.normalize("NFKC", looks_key(name).casefold())


def first_spellings(names: Iterable[str], key: Callable[[str], str] = name_key) -> dict[str, str]:
    """Each name -> the first of its spellings.

    >>> first_spellings(["Ann", "ann ", "Bob"])
    {'Ann': 'Ann', 'ann ': 'Ann', 'Bob': 'Bob'}
    """
    first: dict[str, str] = {}
    return {name: first.setdefault(key(name), name) for name in names}


def shared_names(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Those of `names` that are among the others in some spelling, sorted."""
    keys = {name_key(name) for name in others}
    return sorted({name for name in names if name_key(name) in keys})


def by_key(values: Mapping[str, T]) -> dict[str, T]:
    """The values by the key of their names; of two spellings the first counts."""
    out: dict[str, T] = {}
    for name, value in values.items():
        out.setdefault(name_key(name), value)
    return out


def spelled(name: str, other: str) -> str:
    """Two spellings of one name, so that a reader sees the difference; empty where there is none.

    >>> spelled("Ann", "Ann"), spelled("Ann", "ann ")
    ('', " (written 'Ann' and 'ann ', which is one name)")
    """
    return f" (written {name!a} and {other!a}, which is one name)" if name != other else ""


def spellings(names: Iterable[str], what: str, key: Callable[[str], str] = name_key) -> str:
    """The beginning of a sentence about names that are written in several ways; empty where none is.

    >>> spellings(["Ann", "ann ", "Bob"], "sources")
    "1 sources are written in several ways, such as 'Ann' and 'ann '"
    """
    other = [(one, name) for name, one in first_spellings(names, key).items() if name != one]
    if not other:
        return ""
    count = len({one for one, _ in other})
    one, name = other[0]
    return f"{count} {what} are written in several ways, such as {one!a} and {name!a}"


class Finder:
    """Finds files below a folder by their names, also where these are spelled otherwise on disk.

    `others` holds what was found so: (name, path below the folder).
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.others: list[tuple[str, str]] = []
        self._entries: dict[Path, dict[str, list[str]]] = {}
        self._folders: dict[str, Path] = {}  # by the path that a name gives: links resolved
        self._plain: dict[str, Path] = {}  # of these, by name, folders in which a file was found

    def find(self, name: str, where: str) -> Path:
        """The file, links resolved; one that is not there, or a link to nothing, as it is named.

        Args:
            name: Path below the folder.
            where: Begins the message.
        Raises:
            UserError: The name or a link leaves the folder, or the name can be no path.
        """
        folder, _, file = name.rpartition("/")
        if folder in self._plain and _is_no_link(self._plain[folder], file):
            return self._plain[folder] / file
        try:
            path = self.root / name
            found = self._resolved(path)
            if found.is_relative_to(self.root):
                if path.exists():
                    if file == path.name and ".." not in path.parts and not path.is_symlink():
                        self._plain[folder] = found.parent
                    return found
                if (other := self._other_spelling(name)) is not None:
                    return self.find(other, where)
                return path if path.is_symlink() else found
            link = next((p for p in (path, *path.parents) if p.is_symlink()), None)
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(f"{where} {name[:80]!r} is no path ({error})") from None
        inside = Path(os.path.normpath(path)).is_relative_to(self.root)
        if link is None or not inside:
            raise UserError(f"{where} {name!r} leaves the folder {str(self.root)!r}")
        raise UserError(
            f"{where} {name!r} is a link to {str(found)!r}, outside the folder {str(self.root)!r}:"
            f" {LINK_CURE}"
        )

    def _resolved(self, path: Path) -> Path:
        """The path, links resolved; the links of a folder once, for most files share one."""
        if (
            ".." in path.parts or path.is_symlink()
        ):  # a file's .. is a way, and no link is seen behind it
            return path.resolve()
        folder = str(path.parent)
        if folder not in self._folders:
            self._folders[folder] = path.parent.resolve()
        return self._folders[folder] / path.name

    def _other_spelling(self, name: str) -> str | None:
        """The one path below the folder that differs from `name` in spelling alone."""
        folder, parts = self.root, [p for p in name.replace("\\", "/").split("/") if p != "."]
        for part in parts:
            if part == "..":
                return None
            if not (folder / part).exists():
                alike = self._listed(folder).get(name_key(part), [])
                if len(alike) != 1:
                    return None
                part = alike[0]
            folder = folder / part
        other = folder.relative_to(self.root).as_posix()
        if other == name:
            return None
        self.others.append((name, other))
        return other

    def _listed(self, folder: Path) -> dict[str, list[str]]:
        """Key -> names of a folder's entries."""
        if folder not in self._entries:
            entries = self._entries[folder] = {}
            for path in folder.iterdir() if folder.is_dir() else ():
                entries.setdefault(name_key(path.name), []).append(path.name)
        return self._entries[folder]

    def told(self) -> str:
        """One sentence about the names that were spelled otherwise; empty where none was."""
        if not self.others:
            return ""
        name, other = self.others[0]
        return (
            f"{len(self.others)} paths are spelled otherwise than their files (Unicode form, case, blanks or"
            f" slashes), such as {name!a} for {other!a}; the files were taken"
        )


def _is_no_link(folder: Path, file: str) -> bool:
    """Whether an entry of a folder stands there and is no link; one look at the disk."""
    if file in ("", ".", ".."):
        return False
    try:
        return not stat.S_ISLNK(os.lstat(f"{folder}/{file}").st_mode)
    except (OSError, ValueError):
        return False


def missing(path: Path) -> str:
    """What is wrong with a path that is no file, and what to do."""
    if path.is_symlink():
        return f"is a link to {str(path.readlink())!r}, whose content is not here; {FETCH_CURE}"
    if path.is_dir():
        return "is a folder; expected a file"
    return "does not exist"
