"""What a run costs around the model as clips and prompts grow: python tests/bench_growth.py

    python tests/bench_growth.py --most 600000                       three minutes of one core
    python tests/bench_growth.py --most 6000000                      twenty minutes
    python tests/bench_growth.py --pocket --most 60000               the pocket in place of a made-up evaluator

Each cell is a process of its own: clips x prompts searched in full (`--strategy opro`), journal and cache kept, then
the same command again, another run that finds all scores in the cache, the leaderboard, and the report. Prompts and
scores are made up at next to no cost; half of the clips decide, so a prompt is scored on the other half. Steps are run
as the commands run them. Seconds are of the processor, so that other work on the machine counts little. Memory is the
process's highest less what it had before. `one more` is what the evals cost that a cell has beyond the cell with a
tenth of its clips, or of its prompts: all steps but the run that finds its scores.

Below the table the same seconds and memory as a sum: so much for a run, so much for each clip, each prompt, each eval
(relative least squares, no term below zero), and how far the cells lie from it. Where a cell is dearer than its sum,
something grows faster than all of these.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from scipy.optimize import nnls

from evaluators.cache import CachedEvaluator
from evaluators.clips import Clip
from evaluators.evaluator import Evaluator, ScoreTable, Uncached
from evaluators.files import shipped
from evaluators.manifest import NEEDED
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK
from opro import leaderboard, report
from opro.cli import run_verb
from opro.optimize import optimize
from opro.search.history import Candidate
from opro.search.proposer import SearchView

CLIPS, PROMPTS = (100, 1_000, 10_000, 100_000), (1, 10, 100, 1_000)
PER_SOURCE = 5  # clips
STEPS = ("search", "again", "cached", "leaderboard", "report")


class Hashed(Uncached):
    """Scores by hashes of prompt and clip, as arrays: what is measured is all the rest."""

    fingerprint = hashlib.sha256(b"bench_growth").hexdigest()

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        number = np.array([int(c.sha256[:8], 16) for c in clips], dtype=np.uint64)
        sign = np.array([1.0 if c.label == SPEECH_TASK.labels[0] else -1.0 for c in clips])
        logp = np.empty((len(prompts), len(clips), 2), dtype=np.float32)
        for i, prompt in enumerate(prompts):
            own = int(prompt.digest[:8], 16)
            noise = ((number * np.uint64(2654435761) + np.uint64(own)) % np.uint64(2**32)) / 2**32
            odds = sign * (own % 1000) / 1000 + 4 * (noise - 0.5)
            logp[i, :, 0], logp[i, :, 1] = -np.logaddexp(0, -odds), -np.logaddexp(0, odds)
        self.forwards += len(prompts) * len(clips)
        return ScoreTable(tuple(prompts), tuple(clips), logp, logp)


class Endless:
    """Proposes as many prompts as it is asked for."""

    name = "endless"

    def propose(self, view: SearchView, n: int) -> list[Candidate]:
        texts = (f"Is it speech? {view.iteration}.{i}: A or B" for i in range(n))
        return [Candidate(Prompt(text), "made") for text in texts]


def write_clips(folder: Path, counts: Sequence[int]) -> None:
    """Clips of 100 ms that differ, and a manifest for each of these numbers of them."""
    random, rows = np.random.default_rng(0), []
    (folder / "wav").mkdir()
    for i in range(max(counts)):
        file = io.BytesIO()
        soundfile.write(file, random.normal(0, 0.1, 1600), 16_000, format="WAV", subtype="PCM_16")
        name = f"wav/{i}.wav"
        (folder / name).write_bytes(file.getvalue())
        rows.append(
            {
                "clip_id": f"c{i}", "path": name, "label": SPEECH_TASK.labels[i % 2],
                "category": ("speech", "music")[i % 2], "duration_ms": 100, "snr_db": (0, 10)[i // 2 % 2],
                "condition": "k", "source_id": f"s{i % 2}-{i // 2 // PER_SOURCE}", "split": "dev",
                "licence": "CC0", "sha256": hashlib.sha256(file.getvalue()).hexdigest(),
            }
        )  # fmt: skip
    for count in counts:
        with (folder / f"{count}.csv").open("w", newline="") as out:
            writer = csv.DictWriter(out, NEEDED, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows[:count])


def highest() -> float:
    """The most memory that this process had, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def size(folder: Path) -> int:
    """Bytes of its files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def measure(manifest: Path, prompts: int, pocket: bool) -> dict[str, float]:
    """Evals asked for, seconds by step, MiB, and bytes on disk of a cell."""
    seconds: dict[str, float] = {}
    evals = 0

    def inner() -> Evaluator:
        if not pocket:
            return Hashed()
        from evaluators.audio_lm.checkpoint import open_checkpoint
        from evaluators.audio_lm.scorer import AudioScorer

        return AudioScorer(open_checkpoint("pocket-base"), "cpu", "float32")

    def timed(step: str, work: Callable[[], object]) -> None:
        begin = time.process_time()
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            code = run_verb(lambda: 0 if work() in (0, None) else 1)
        if code:
            sys.exit(f"{step} of {manifest} x {prompts} ended with {code}")
        seconds[step] = time.process_time() - begin

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def search(runs: str) -> None:
            nonlocal evals
            cached = CachedEvaluator(inner(), folder / "cache")
            rounds = max(1, prompts // 10)
            optimize(
                cached, shipped("prompts/seeds/baselines.yaml"), manifest, proposer=Endless(), strategy="opro",
                iterations=rounds, candidates=min(prompts, 10), runs_dir=folder / runs, name="run",
            )  # fmt: skip
            evals = max(evals, cached.usage.requested)
            cached.close()

        before, run = highest(), str(folder / "runs" / "run")
        timed("search", lambda: search("runs"))
        found = {"evals": float(evals), "run": size(Path(run)), "cache": size(folder / "cache")}
        timed("again", lambda: search("runs"))
        timed("leaderboard", lambda: leaderboard.main([run]))
        timed("report", lambda: report.main([run]))
        found["MiB"] = highest() - before
        timed("cached", lambda: search("others"))
    return found | seconds


def table(cells: dict[tuple[int, int], dict[str, float]]) -> str:
    """The cells as Markdown."""
    head = ["clips", "prompts", "evals", *(f"{s}, us an eval" for s in STEPS)]
    head += [
        "MiB",
        "run, cache: bytes an eval",
        "one more by clips",
        "by prompts: us, bytes of memory",
    ]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]

    def more(cell: dict[str, float], smaller: dict[str, float] | None) -> str:
        if smaller is None or cell["evals"] <= smaller["evals"]:
            return ""
        evals = cell["evals"] - smaller["evals"]
        spent = [_spent(c) for c in (cell, smaller)]
        memory = 2**20 * (cell["MiB"] - smaller["MiB"]) / evals
        return f"{1e6 * (spent[0] - spent[1]) / evals:.1f}, {memory:.0f}"

    for (clips, prompts), cell in cells.items():
        each = [f"{1e6 * cell[s] / cell['evals']:.2f}" for s in STEPS]
        disk = f"{cell['run'] / cell['evals']:.0f}, {cell['cache'] / cell['evals']:.0f}"
        by = [more(cell, cells.get(k)) for k in ((clips // 10, prompts), (clips, prompts // 10))]
        row = [
            f"{clips:,}",
            f"{prompts:,}",
            f"{cell['evals']:,.0f}",
            *each,
            f"{cell['MiB']:.0f}",
            disk,
            *by,
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def sums(cells: dict[tuple[int, int], dict[str, float]]) -> str:
    """Seconds and memory of the cells as a sum over runs, clips, prompts and evals."""
    terms = np.array([(1, n, cell["evals"] / n, cell["evals"]) for (n, _), cell in cells.items()])
    lines = []
    for name, unit, scale, found in (
        (
            "all steps but the run that finds its scores",
            "us",
            1e6,
            [_spent(c) for c in cells.values()],
        ),
        ("memory", "bytes", 2**20, [c["MiB"] for c in cells.values()]),
    ):
        share, _ = nnls(terms / np.array(found)[:, None], np.ones(len(found)))
        run, clip, prompt, one = scale * share
        off = 100 * (np.array(found) / (terms @ share) - 1)
        far = [
            f"{off[i]:+.0f} % at {'{:,} x {:,}'.format(*list(cells)[i])}"
            for i in (off.argmin(), off.argmax())
        ]
        lines.append(
            f"{name}: {run:,.0f} {unit} a run, {clip:.0f} a clip, {prompt:,.0f} a prompt, {one:.1f} an eval; cells lie"
            f" from {' to '.join(far)} off"
        )
    return "\n".join(lines)


def _spent(cell: dict[str, float]) -> float:
    """Seconds of all steps but the run that finds its scores."""
    return sum(cell[step] for step in STEPS if step != "cached")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--most", type=int, default=600_000, help="evals of a search; larger cells are left out")
    add("--pocket", action="store_true", help="score with the shipped checkpoint")
    add("--cell", nargs=2, metavar=("MANIFEST", "PROMPTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        manifest, prompts = args.cell
        print(json.dumps(measure(Path(manifest), int(prompts), args.pocket)))
        return 0
    wanted = [(c, p) for p in PROMPTS for c in CLIPS if c * (p + 7) / 2 <= args.most]
    cells = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_clips(Path(scratch), sorted({clips for clips, _ in wanted}))
        for clips, prompts in wanted:
            command = [sys.executable, __file__, "--cell", f"{scratch}/{clips}.csv", str(prompts)]
            command += ["--pocket"] if args.pocket else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            cells[clips, prompts] = json.loads(done.stdout.splitlines()[-1])
            print(f"{clips:,} x {prompts:,} done", file=sys.stderr, flush=True)
    print(f"{table(cells)}\n\n{sums(cells)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
