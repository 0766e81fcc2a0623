"""Known vulnerabilities of the packages that are installed: python tests/dependency_scan.py

Asks pip-audit. Exit code 1 for every one that is not argued for in `EXCEPTIONS`; 0 also where the service that knows
them cannot be asked, which is said in a sentence.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

EXCEPTIONS = {
    # diskcache unpickles what its folder holds, so that whoever can write there runs code, and it has had no release
    # since 2023. Here it stores bytes alone: evaluators/cache.py gives it a disk that refuses to store anything else,
    # has each value in its row and none in a file, and reads back as damaged, without a look at it, whatever is no
    # bytes. tests/evaluators/test_cache.py and tests/test_attack_cache.py put pickles and files into such a folder.
    (
        "diskcache",
        "CVE-2025-69872",
    ): "evaluators/cache.py stores and reads bytes alone, nothing is unpickled",
}
TIMEOUT_S = 60
UNREACHABLE = re.compile(r"requests\.exceptions\.|ConnectionError|ServiceError|Timeout")
NOT_CHECKED = "not checked: the service of known vulnerabilities is not reachable"


def main() -> int:
    """The command. Returns the exit code."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [*command, "--aliases", "on", "--timeout", "5"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        print(f"{NOT_CHECKED} ({TIMEOUT_S} s without an answer)")
        return 0
    code, lines = verdict(done.stdout, done.stderr)
    print("\n".join(lines))
    return code


def verdict(out: str, errors: str) -> tuple[int, list[str]]:
    """(Exit code, what is to be told) of pip-audit's two outputs."""
    try:
        found = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["no output"])[-1]
        if UNREACHABLE.search(errors):
            return 0, [f"{NOT_CHECKED} ({last[:200]})"]
        return 1, [f"pip-audit failed: {last[:200]}; pip install -e '.[dev]' installs it"]
    checked = [one for one in found if "skip_reason" not in one]
    unknown = sorted(one["name"] for one in found if "skip_reason" in one)
    if not checked:
        return 0, [f"{NOT_CHECKED} (it knows none of {len(found)} packages)"]
    code, lines, seen = 0, [f"{len(checked)} packages checked"], set[tuple[str, str]]()
    if unknown:
        lines.append(f"not known to the service: {', '.join(unknown)}")
    for one in checked:
        for vulnerability in one["vulns"]:
            names = {vulnerability["id"], *vulnerability.get("aliases", ())}
            excepted = {(one["name"].lower(), name) for name in names} & EXCEPTIONS.keys()
            seen |= excepted
            if excepted:
                lines += [
                    f"excepted: {name} {cve}: {EXCEPTIONS[name, cve]}" for name, cve in excepted
                ]
                continue
            code = 1
            lines.append(_told(one, vulnerability))
    installed = {one["name"].lower() for one in checked}
    lines += [
        f"{name} {cve} is no longer found: take it out of EXCEPTIONS"
        for name, cve in EXCEPTIONS.keys() - seen
        if name in installed
    ]
    return code, lines


def _told(package: Mapping[str, Any], vulnerability: Mapping[str, Any]) -> str:
    mended = ", ".join(vulnerability.get("fix_versions") or ()) or "no release so far"
    return (
        f"{package['name']} {package['version']} has {vulnerability['id']}, mended in {mended}: raise its lower bound"
        " in pyproject.toml, or argue for an exception in tests/dependency_scan.py"
    )


if __name__ == "__main__":
    sys.exit(main())
