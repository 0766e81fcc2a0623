"""Is A better than B, from the logs of real packages: python tests/bench_logs.py

Installs what `opro stats` imports, and inspect-ai, lm-eval and (--lmms) lmms-eval, into fresh environments; lets each
package write two logs and asks `opro stats A B` of them. Printed are the seconds of the install and of the verdict, and
how far the means lie from the figures that the packages themselves give. Needs a package index.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT

from opro.results.logs.read import read_log

LIGHT = ("numpy", "scipy", "pyyaml", "rich", "zstandard")  # all that `opro stats` imports
QUIETLY = (
    "install",
    "-q",
    "--no-compile",
    "--no-warn-conflicts",
)  # bytecode is made when it is run
WRITERS = {  # kind -> (packages, its logs)
    "inspect": (("inspect-ai",), "inspect/*.eval"),
    "lm": (("lm-eval",), "lm/*/*/samples_toy_*.jsonl"),
    "lmms": (("lmms-eval", "filelock<3.20"), "lmms/*/*samples*.jsonl"),
}


def install(folder: Path, *commands: tuple[str, ...]) -> tuple[Path, float]:
    """(programs of a fresh environment after some installs, seconds)."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    for packages in commands:
        subprocess.run([folder / "bin" / "pip", *QUIETLY, *packages], check=True)
    return folder / "bin", time.perf_counter() - begin


def write(kind: str, programs: Path, folder: Path, samples: int) -> list[Path]:
    """The logs of one kind. The writer runs outside of any repository, whose address would stand in them."""
    folder.mkdir()
    writer = shutil.copy(ROOT / "tests" / "write_logs.py", folder)
    command = [programs / "python", writer, kind, folder, "--samples", str(samples)]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    return sorted(folder.glob(WRITERS[kind][1]))


def gap_of(path: Path) -> tuple[float, int]:
    """(largest difference between a mean over samples and the package's own figure, how many there are)."""
    log, gaps = read_log(path), []
    for name, value in log.reported.items():
        held = [s.scores[name] for s in log.samples if not np.isnan(s.scores.get(name, np.nan))]
        if held:
            gaps.append(abs(float(np.mean(held)) - value))
    return max(gaps), len(gaps)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--lmms", action="store_true", help="lmms-eval too: gigabytes to install")
    parser.add_argument(
        "--have",
        action="append",
        default=[],
        metavar="KIND=BIN",
        help="programs of an environment that is there, in place of an install",
    )
    args = parser.parse_args()
    have = {kind: Path(path) for kind, path in (one.split("=", 1) for one in args.have)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source"  # pip would leave a build folder in the checkout
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "runs"))
        ours, setup = install(folder / "ours", LIGHT, ("--no-deps", str(source)))
        print(f"install of what the verdict needs: {setup:.1f} s")
        for kind, (packages, pattern) in WRITERS.items():
            if kind == "lmms" and not args.lmms and kind not in have:
                continue
            programs = have.get(kind) or install(folder / f"{kind}-env", packages)[0]
            logs = write(kind, programs, folder / kind, args.samples)
            begin = time.perf_counter()
            done = subprocess.run(
                [ours / "opro", "stats", *logs, "--format", "json"],
                check=True, capture_output=True, text=True, cwd=folder,
            )  # fmt: skip
            seconds = time.perf_counter() - begin
            gaps = [gap_of(path) for path in logs]
            print(
                f"{kind}: {len(logs)} logs ({pattern}), {sum(p.stat().st_size for p in logs) / 1e6:.1f} MB, verdict in"
                f" {seconds:.1f} s, {setup + seconds:.1f} s with the install; {sum(n for _, n in gaps)} figures of the"
                f" package, largest difference {max(g for g, _ in gaps):.1e}"
            )
            for p in json.loads(done.stdout)["pairs"]:
                print(
                    f"    {p['score']}: {100 * p['difference']:+.1f} [{100 * p['low']:+.1f}, {100 * p['high']:+.1f}], p"
                    f" (Holm) {p['p_holm']:.4f}, detectable {100 * p['detectable']:.1f}, better: {p['better']}"
                )


if __name__ == "__main__":
    main()
