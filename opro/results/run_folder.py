"""Run folders: what a run leaves on disk, and the checks when one is opened again."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from evaluators.errors import UserError
from evaluators.files import ROOT, append_line, dump_yaml, read_yaml, write_text
from evaluators.prompts import TASKS, Prompt, read_prompts

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "openai",
    "numpy",
    "scipy",
    "optuna",
    "diskcache",
)
CACHE = ".cache"  # under the runs folder, shared by all runs
OPENINGS = "test_openings.jsonl"


@contextlib.contextmanager
def open_run(folder: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """Creates a run folder or opens it again, alone, until the block ends.

    Raises:
        UserError: Another process has the run open, or it was started with other settings.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"run {folder.name!r} is open in another process; wait for it, or give another --name"
        ) from None
    except OSError as error:
        raise UserError(
            f"run folder {str(folder)!r} cannot be written ({error.strerror}); give another"
            " --runs-dir"
        ) from None
    try:
        path = folder / "config.yaml"
        if path.exists():
            before = read_yaml(path)
            for key in {*before, *config}:
                if before.get(key) != config.get(key):
                    raise UserError(
                        f"run {folder.name!r} was started with {key} = {before.get(key)!r}, now it"
                        f" is {config.get(key)!r}; give another --name"
                    )
        else:
            write_text(path, dump_yaml(dict(config)))
        yield folder
    finally:
        lock.release()


def provenance(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Where and how this process runs: command, code, versions, machine. Nothing of the environment's secrets."""
    return {
        "argv": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": _git(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        **extra,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        dirty = bool(
            subprocess.run(
                ["git", "status", "--porcelain"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": dirty}


def find_runs(runs_dir: Path) -> list[Path]:
    """All run folders, oldest first."""
    if not runs_dir.is_dir():
        return []
    found = [path.parent for path in runs_dir.glob("*/trials.jsonl")]
    return sorted(
        found,
        key=lambda p: (
            (p / "config.yaml").stat().st_mtime if (p / "config.yaml").exists() else 0.0,
            p.name,
        ),
    )


def chosen_prompt(folder: Path) -> tuple[Prompt, str]:
    """The prompt that a finished run chose (its baseline, where that was kept), and the run's checkpoint.

    Raises:
        UserError: The run is not finished, or its files are damaged.
    """
    config = read_yaml(folder / "config.yaml")
    if not (folder / "summary.json").is_file() or not (folder / "best.yaml").is_file():
        raise UserError(
            f"run {folder.name!r} is not finished; give its command again, it goes on from there"
        )
    labels = TASKS[config["task"]].labels
    return read_prompts(folder / "best.yaml", labels)[0], str(config["checkpoint"])


def count_openings(runs_dir: Path, digest: str) -> int:
    """How often the test split of the manifest with this digest was opened in this project."""
    path = runs_dir / OPENINGS
    if not path.exists():
        return 0
    count = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
        try:
            count += json.loads(line)["manifest"] == digest
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}:{number}: damaged line; restore the file, it counts how often the test"
                " split was looked at"
            ) from None
    return count


def record_opening(runs_dir: Path, digest: str, verb: str, about: str) -> int:
    """Notes that the test split is being opened, before it is scored; returns how often that has happened now."""
    before = count_openings(runs_dir, digest)
    line = json.dumps(
        {
            "manifest": digest,
            "verb": verb,
            "about": about,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        },
        ensure_ascii=False,
    )
    append_line(runs_dir / OPENINGS, line + "\n")
    return before + 1
