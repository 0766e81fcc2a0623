"""Two runs at once on one machine: python tests/bench_busy.py [--spin] [--threads N]

The seconds that one short search takes on the shipped base checkpoint, and two of them started together, each in a
process and a folder of its own. Two runs share the cores, so twice the time of one is what can be had on two cores
that one run fills, and less where it does not. --spin shows OpenMP's default, in which threads spin while they wait.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT

from evaluators.threads import COUNTS, WAITING

SPINS = {"GOMP_SPINCOUNT": "300000"}  # libgomp's default, said aloud: so nothing else is set


def start(folder: Path, spin: bool, threads: int, iterations: int) -> "subprocess.Popen[bytes]":
    plain = {k: v for k, v in os.environ.items() if k not in (*WAITING, *COUNTS)}
    flags = ["--iterations", str(iterations), "--name", "busy", "--runs-dir", str(folder)]
    return subprocess.Popen(
        [sys.executable, "-m", "opro.optimize", *flags, "--threads", str(threads)],
        cwd=ROOT,
        env=plain | (SPINS if spin else {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def seconds(runs: int, args: argparse.Namespace) -> float:
    """So long until all of the runs have ended; infinite past the limit."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        started = [
            start(Path(folder) / str(n), args.spin, args.threads, args.iterations)
            for n in range(runs)
        ]
        try:
            for run in started:
                left = begin + args.limit - time.perf_counter()
                assert run.wait(timeout=max(left, 0.01)) == 0
        except subprocess.TimeoutExpired:
            return float("inf")
        finally:
            for run in started:
                run.kill()
                run.wait()
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spin", action="store_true", help="threads that spin, OpenMP's default")
    parser.add_argument("--threads", type=int, default=0, help="of each run; 0 is the default")
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2, help="the shortest time counts")
    parser.add_argument(
        "--limit", type=float, default=900.0, help="seconds after which it is stopped"
    )
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before it began")
    print("| threads | one run, s | two at once, s | times |\n| --- | --- | --- | --- |")
    one, two = (min(seconds(n, args) for _ in range(args.repeats)) for n in (1, 2))
    how = "spin" if args.spin else "sleep"
    print(f"| {args.threads or 'default'}, {how} | {one:.1f} | {two:.1f} | {two / one:.2f} |")


if __name__ == "__main__":
    main()
