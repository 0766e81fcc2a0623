"""Searches that are killed at random moments, against the same searches left alone: python tests/bench_kills.py

kill -9 at a random moment of 2 iterations x 4 candidates x 40 clips, again and again until the run ends by itself.
After every kill: each whole line of the journal stays, and every eval of a trial it tells is in the cache. At the end:
journal and leaderboard are those of the run that was left alone. The language model is a scripted server.
"""

import argparse
import csv
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from chat_server import serve

from evaluators.build import build_evaluator
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.tasks import SPEECH_TASK
from opro.search.history import History

FILES = ("trials.jsonl", "leaderboard.csv", "best.yaml")


def reply(request):
    """Depends on what was asked alone."""
    text = request["messages"][-1]["content"]
    n = len(text) % 97
    return json.dumps(
        {"prompts": [f"Case {n}{i}: is speech heard? A) speech B) other" for i in range(4)]}
    )


def command(folder, checkpoint, url):
    argv = [
        sys.executable, "-m", "opro.optimize", "--checkpoint", checkpoint, "--iterations", "2", "--candidates", "4",
        "--clips", "40", "--name", "run", "--runs-dir", str(folder),
    ]  # fmt: skip
    more = ["--lm-base-url", url, "--lm-model", "scripted"] if url else ["--proposer", "rewriter"]
    return subprocess.Popen([*argv, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def lost_evals(folder, checkpoint, clips):
    """Evals of told trials that are not in the cache."""
    journal = folder / "run" / "trials.jsonl"
    if not journal.exists():
        return 0
    evaluator, _ = build_evaluator(checkpoint, cache=folder / ".cache")
    lost = 0
    for trial in History(journal, SPEECH_TASK.labels).trials:
        if trial.state == "waiting":
            continue
        prompt = trial.prompt
        with (folder / "run" / "scores" / f"{prompt.prompt_id}.csv").open() as file:
            heard = [clips[row["clip_id"]] for row in csv.DictReader(file)]
        assert len(heard) == trial.n_scored
        lost += evaluator.count_missing([prompt], heard)
    return lost


def lines(folder):
    journal = folder / "run" / "trials.jsonl"
    return journal.read_bytes().rpartition(b"\n")[0] if journal.exists() else b""


def alone(checkpoint, url):
    """(seconds, files) of a run that nobody kills; of the second one, which finds the caches of the system warm."""
    for _ in range(2):
        with tempfile.TemporaryDirectory() as place:
            begin = time.perf_counter()
            process = command(Path(place), checkpoint, url)
            _, err = process.communicate()
            assert process.returncode == 0, err.decode()
            seconds = time.perf_counter() - begin
            whole = {name: (Path(place) / "run" / name).read_bytes() for name in FILES}
    return seconds, whole


def campaign(job):
    """(kills made, runs that ended, evals lost, runs that differ)."""
    seed, kills, checkpoint, scripted = job
    manifest = read_manifest(shipped("data/demo"), SPEECH_TASK.labels, "dev")
    clips = {c.clip_id: c for c in manifest}
    rng = random.Random(seed)
    made = ended = lost = differ = 0
    with serve(reply) as server:
        url = server.url if scripted else ""
        seconds, whole = alone(checkpoint, url)
        while made < kills:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                while True:
                    process = command(folder, checkpoint, url)
                    try:
                        wait = rng.uniform(0.2, 0.95) * seconds if made < kills else None
                        _, err = process.communicate(timeout=wait)
                        assert process.returncode == 0, err.decode()
                        break
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
                        process.communicate()
                        made += 1
                        before = lines(folder)
                        lost += lost_evals(folder, checkpoint, clips)
                        assert whole["trials.jsonl"].startswith(before), "a journalled line differs"
                ended += 1
                differ += any((folder / "run" / n).read_bytes() != whole[n] for n in FILES)
    return made, ended, lost, differ


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="a tenth of them on the pocket")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    args = parser.parse_args()
    few = max(1, args.kills // 20)
    print("| checkpoint | proposer | kills | runs ended | evals lost | runs that differ |")
    print("| --- | --- | --- | --- | --- | --- |")
    with ProcessPoolExecutor(args.jobs) as pool:
        for checkpoint, kills in (("fake", args.kills // 2 - few), ("pocket-base", few)):
            for scripted in (False, True):
                shares = [len(range(i, kills, args.jobs)) for i in range(args.jobs)]
                jobs = [
                    (f"{args.seed}|{i}", share, checkpoint, scripted)
                    for i, share in enumerate(shares)
                    if share
                ]
                row = map(sum, zip(*pool.map(campaign, jobs), strict=True))
                proposer = "scripted server and rewriter" if scripted else "rewriter"
                print(
                    f"| {checkpoint} | {proposer} | " + " | ".join(map(str, row)) + " |", flush=True
                )


if __name__ == "__main__":
    main()
