"""Time and memory of building clip sets: python tests/bench_build.py --recordings DIR

Builds 1,000 clips of the factorial from half of the sources and from all of them, and 2,000 clips from all. Prints
seconds, how many seconds of recordings one second takes, the largest process, and what twice the sources cost.
"""

import argparse
import csv
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data.building.recipe import RECIPES
from evaluators.audio import read_header


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with (args.recordings / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row.get("group") or row["source_id"] for row in rows})
    print(
        "| sources | recordings, min | clips | build, s | times real time | largest process, MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    took = []
    for keep, cell in ((set(names[::2]), 25), (set(names), 25), (set(names), 50)):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "recordings"
            part = [r for r in rows if (r.get("group") or r["source_id"]) in keep]
            for row in part:
                target = folder / row["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(args.recordings / row["path"], target)
            with (folder / "manifest.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(part)
            seconds = sum(read_header(folder / row["path"]).seconds for row in part)
            recipe = Path(scratch) / "factorial.yaml"  # half of the sources must be able to fill it
            text = (RECIPES / "factorial.yaml").read_text()
            text = re.sub(r"cap: .*", "cap: {SPEECH: 400, NONSPEECH: 200}", text)
            recipe.write_text(re.sub(r"clips_per_cell: .*", f"clips_per_cell: {cell}", text))
            command = [sys.executable, "-m", "data.build", str(recipe), "--recordings", str(folder)]
            command += ["--out", f"{scratch}/out", "--processes", str(args.processes)]
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            took.append(time.perf_counter() - begin)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(
            f"| {len(keep)} | {seconds / 60:.0f} | {40 * cell:,} | {took[-1]:.0f} | {seconds / took[-1]:.0f} |"
            f" {peak:.0f} |",
            flush=True,
        )
    print(f"\ntwice the sources: {took[1] / took[0]:.2f} times the time")


if __name__ == "__main__":
    main()
