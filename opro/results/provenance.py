"""Where and how a process runs: command, code, versions, machine. Nothing of the environment's secrets."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from evaluators.files import ROOT

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "httpx2",
    "numpy",
    "scipy",
    "optuna",
    "diskcache",
)


def provenance(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data about this process, with `extra` at its end."""
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


def version_changes(recorded: Mapping[str, str], here: Mapping[str, str]) -> str:
    """The libraries whose versions differ, in words; "" where none does.

    >>> version_changes({"torch": "2.12.0", "soxr": "1.0"}, {"torch": "2.13.0", "soxr": "1.0"})
    'torch 2.12.0 (here 2.13.0)'
    """
    names = [n for n in {**recorded, **here} if recorded.get(n) != here.get(n)]
    return ", ".join(f"{n} {recorded.get(n, 'none')} (here {here.get(n, 'none')})" for n in names)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    def run(*command: str) -> str:
        return subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return {"commit": run("rev-parse", "HEAD"), "dirty": bool(run("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
