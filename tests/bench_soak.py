"""A long search: is iteration 200 as cheap as iteration 20? python tests/bench_soak.py

The command itself, on the fake evaluator: 200 iterations of 20 candidates. Prints seconds and memory by iteration, the
journal's size, and how long the leaderboard of its 4,000 trials takes as a command.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from opro import optimize
from opro.results import progress


class Watch(progress.Progress):
    """Notes when an iteration begins, and the memory then."""

    seen: list = []  # noqa: RUF012

    def stage(self, iteration, name):
        if name == "proposing":
            now = Path("/proc/self/statm").read_text().split()[1]
            self.seen.append((time.perf_counter(), int(now) * resource.getpagesize() / 2**20))
        super().stage(iteration, name)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=20)
    args = parser.parse_args()
    optimize.Progress = Watch
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            "--checkpoint", "fake", "--iterations", args.iterations, "--candidates", args.candidates,
            "--name", "soak", "--runs-dir", folder,
        ]  # fmt: skip
        begin = time.perf_counter()
        assert optimize.run_verb(lambda: optimize.main(list(map(str, argv)))) == 0
        whole = time.perf_counter() - begin
        end = Watch.seen[-1][0]
        seconds, memory = np.diff([s for s, _ in Watch.seen]), [m for _, m in Watch.seen]
        print("\n| iterations | s each, median | memory at their end, MiB |\n| --- | --- | --- |")
        step = max(1, args.iterations // 5)
        for first in range(0, len(seconds), step):
            last = min(first + step, len(seconds))
            print(
                f"| {first + 1}-{last} | {np.median(seconds[first:last]):.3f} | {memory[last]:.0f} |"
            )
        journal = Path(folder) / "soak" / "trials.jsonl"
        print(
            f"\n{len(journal.read_text().splitlines()):,} events, {journal.stat().st_size / 2**20:.1f} MiB;"
            f" whole command {whole:.1f} s, of it {begin + whole - end:.1f} s after the last iteration began"
        )
        command = [
            sys.executable,
            "-m",
            "opro.leaderboard",
            str(journal.parent),
            "--format",
            "json",
        ]
        begin = time.perf_counter()
        rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(
            f"leaderboard of {len(rows.splitlines()) - 1:,} rows: {time.perf_counter() - begin:.2f} s"
        )


if __name__ == "__main__":
    main()
