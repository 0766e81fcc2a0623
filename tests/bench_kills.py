"""Searches, results and builds that are killed, against the same left alone: python tests/bench_kills.py

kill -9, again and again until the command ends by itself: at random moments of 2 iterations x 4 candidates x 40 clips;
while a lock is held, of the files and of the score cache, by a search and by opro.rescore; at random moments of a build
by one and by two processes, of which none may outlive it. After every kill of a search each whole line of the journal
stays, and every eval of a trial it tells is in the cache. At the end the results are those of the command that was left
alone, and no temporary file is there. Then disks that become full, at levels 1 to 20: see small_disk.py.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

from chat_server import serve
from forked import KILLED, children, done, dying_in_lock, is_alive, start, wait
from small_disk import tries, why_not

from data import build
from evaluators.build import build_evaluator
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.tasks import SPEECH_TASK
from opro import finetune, optimize, rescore
from opro.search.history import History

sys.path.insert(0, str(Path(__file__).parent / "data"))
from small_recordings import make_recordings, recipe_file

SEARCHED = ("run/trials.jsonl", "run/leaderboard.csv", "run/best.yaml")
DISK = ("optimize", "rescore", "matrix", "report", "finetune", "build")
ORPHANS_S = (
    60  # seconds that a process may outlive a parent that was killed: Python may still be starting
)


@dataclass(frozen=True)
class Case:
    """What is killed.

    Attributes:
        work: Given a folder, the work there.
        results: In the folder, which must be equal at the end.
        inputs: Copied into the folder first.
    """

    work: Callable[[Path], Callable[[], int]]
    results: tuple[str, ...]
    inputs: Path | None = None
    checkpoint: str = ""  # of a search, whose evals are counted


@dataclass
class Row:
    """A line of the table."""

    kills: int = 0
    ended: int = 0
    lost: int = 0  # evals, or lines of the journal
    differ: int = 0
    left: int = 0  # temporary files at the end
    orphans: int = 0


def reply(request):
    """Depends on what was asked alone."""
    text = request["messages"][-1]["content"]
    n = len(text) % 97
    return json.dumps(
        {"prompts": [f"Case {n}{i}: is speech heard? A) speech B) other" for i in range(4)]}
    )


def serving(place):
    """A scripted server in a process of its own: whoever forks has one thread."""
    with serve(reply) as server:
        place.send(server.url)
        place.recv()


def search(checkpoint, url, folder):
    argv = ["--checkpoint", checkpoint, "--iterations", "2", "--candidates", "4", "--clips", "40"]
    argv += ["--lm-base-url", url, "--lm-model", "scripted"] if url else ["--proposer", "rewriter"]
    return partial(optimize.main, [*argv, "--name", "run", "--runs-dir", str(folder)])


def lost_evals(folder, checkpoint):
    """Evals of told trials that are not in the cache."""
    clips = {c.clip_id: c for c in read_manifest(shipped("data/demo"), SPEECH_TASK.labels, "dev")}
    evaluator, _ = build_evaluator(checkpoint, cache=folder / ".cache")
    lost = 0
    for trial in History(folder / "run/trials.jsonl", SPEECH_TASK.labels).trials:
        if trial.state == "waiting":
            continue
        prompt = trial.prompt
        with (folder / "run" / "scores" / f"{prompt.prompt_id}.csv").open() as file:
            heard = [clips[row["clip_id"]] for row in csv.DictReader(file)]
        assert len(heard) == trial.n_scored
        lost += evaluator.count_missing([prompt], heard)
    print(f"\nlost {lost}", file=sys.stderr)
    return 0


def results(folder, case):
    found = {}
    for name in case.results:
        for path in sorted(folder.glob(name)):
            found[str(path.relative_to(folder))] = path.read_bytes()
    if (
        table := found.get("set/manifest.csv")
    ) is not None:  # an Ogg container holds a random number
        found["set/manifest.csv"] = re.sub(rb"[0-9a-f]{64}", b"", table)
    return found


def lines(folder):
    journal = folder / "run" / "trials.jsonl"
    return journal.read_bytes().rpartition(b"\n")[0] if journal.exists() else b""


def fresh(place, case):
    """The folder of a command, always of one name: it stands in what is written."""
    folder = Path(place) / "here"
    shutil.rmtree(folder, ignore_errors=True)
    if case.inputs:
        shutil.copytree(case.inputs, folder)
    else:
        folder.mkdir()
    return folder


def alone(place, case):
    """(seconds, results, locks taken) of a command that nobody kills."""
    folder = fresh(place, case)
    begin = time.perf_counter()
    code, said = done(partial(dying_in_lock, 0, case.work(folder)))
    assert code == 0, said
    seconds = time.perf_counter() - begin
    return seconds, results(folder, case), int(re.findall(r"^locks (\d+)$", said, re.MULTILINE)[-1])


def killed_at_random(work, seconds):
    """Whether it was killed, and how many processes outlived it."""
    with tempfile.TemporaryFile() as said:
        process = start(work, said)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number, status = os.waitpid(process, os.WNOHANG)
            if number:
                said.seek(0)
                assert os.waitstatus_to_exitcode(status) == 0, said.read().decode()
                return False, 0
            time.sleep(0.002)
        others = children(process)
        os.kill(process, signal.SIGKILL)
        wait(process)
    while any(map(is_alive, others)) and time.monotonic() < end + ORPHANS_S:
        time.sleep(0.05)
    orphans = [one for one in others if is_alive(one)]
    for one in orphans:
        os.kill(one, signal.SIGKILL)
    return True, len(orphans)


def campaign(case, kills, seed, aimed):
    """Kills a command until it ends by itself, as often as it takes."""
    rng, row = random.Random(seed), Row()
    with tempfile.TemporaryDirectory() as place:
        seconds, whole, locks = alone(place, case)
        while row.kills < kills:
            folder = fresh(place, case)
            while True:
                work = case.work(folder)
                if row.kills >= kills:
                    code, said = done(work)
                    assert code == 0, said
                    break
                if aimed:
                    code, said = done(partial(dying_in_lock, rng.randint(1, locks), work))
                    assert code in (0, KILLED), said
                    killed, orphans = code == KILLED, 0
                else:
                    killed, orphans = killed_at_random(work, rng.uniform(0.02, 0.95) * seconds)
                row.orphans += orphans
                if not killed:
                    break
                row.kills += 1
                if case.checkpoint and (folder / "run/trials.jsonl").exists():
                    row.lost += not whole["run/trials.jsonl"].startswith(lines(folder))
                    code, said = done(partial(lost_evals, folder, case.checkpoint))
                    row.lost += int(re.findall(r"^lost (\d+)$", said, re.MULTILINE)[-1])
            row.ended += 1
            row.differ += results(folder, case) != whole
            row.left += sum(1 for _ in folder.rglob("*.tmp")) + sum(
                1 for _ in folder.rglob("*.part")
            )
    return row


def cases(place, url):
    """(Name, case, share of the random kills, share of those aimed at locks)."""
    finished = place / "finished"
    code, said = done(search("fake", "", finished))
    assert code == 0, said
    make_recordings(place)
    recipe = str(recipe_file(place))

    def built(processes, folder):
        argv = [recipe, "--recordings", str(place / "recordings"), "--out", str(folder / "set")]
        return partial(build.main, [*argv, "--processes", processes])

    def rescored(folder):
        return partial(rescore.main, [str(folder / "run"), "--runs-dir", str(folder)])

    def studied(folder):
        argv = ["--clips", "16", "--batch", "8", "--epochs", "1", "--study", "1", "--rank", "4"]
        argv += ["--out", str(folder / "study"), "--runs-dir", str(folder), "--targets", "llm-only"]
        return partial(finetune.main, argv)

    clips = ("set/manifest.csv", "set/rejected.csv", "set/registry.json")
    for checkpoint, share in (("fake", 0.3), ("pocket-base", 0.03)):
        for proposer, where in (("rewriter", ""), ("server and rewriter", url)):
            case = Case(partial(search, checkpoint, where), SEARCHED, checkpoint=checkpoint)
            aimed = 0.4 if checkpoint == "fake" else 0
            yield f"search, {checkpoint}, {proposer}", case, share, aimed
    yield "rescore", Case(rescored, ("run/test.json",), finished), 0.06, 0.15
    yield "build, 1 process", Case(partial(built, "1"), clips), 0.14, 0
    yield "build, 2 processes", Case(partial(built, "2"), clips), 0.14, 0
    yield "finetune --study", Case(studied, ("study/adapter_model.safetensors",)), 0, 0.05


def told(name, kind, row):
    print(f"| {name} | {kind} | " + " | ".join(map(str, astuple(row))) + " |", flush=True)


def full_disks(levels, verbs):
    print("\n| verb | levels | exit codes | tracebacks | files left | results that differ |")
    print("| --- | --- | --- | --- | --- | --- |")
    for verb in verbs:
        found = list(tries([verb], range(1, levels + 1)))
        codes = ", ".join(f"{n} x {c}" for c, n in sorted(Counter(t.code for t in found).items()))
        traces = sum("Traceback" in t.said + t.said_again for t in found)
        left, differ = (
            sum(map(len, one)) for one in zip(*((t.left, t.differ) for t in found), strict=True)
        )
        print(f"| {verb} | {len(found)} | {codes} | {traces} | {left} | {differ} |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=140, help="at random moments")
    parser.add_argument("--in-locks", type=int, default=60, help="while a lock is held")
    parser.add_argument("--levels", type=int, default=20, help="of full disks; 0: none")
    parser.add_argument("--verbs", nargs="+", default=DISK, help="on full disks")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serving, args=(there,), daemon=True
    )
    server.start()
    print(
        "| command | killed | kills | ended | evals lost | results that differ | files left | orphans |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        for name, case, share, aimed in cases(Path(place), here.recv()):
            if count := round(share * args.kills):
                told(name, "at random", campaign(case, count, f"{args.seed}|{name}", False))
            if count := round(aimed * args.in_locks):
                told(name, "in a lock", campaign(case, count, f"{args.seed}|{name}", True))
    here.send("end")
    if args.levels and (reason := why_not()):
        print(f"\nno full disks: {reason}")
    elif args.levels:
        full_disks(args.levels, args.verbs)


if __name__ == "__main__":
    main()
