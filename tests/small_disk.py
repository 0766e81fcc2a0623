"""Verbs on a disk that is really full: python tests/small_disk.py LEVELS VERB ... in a mount namespace of its own.

Level l of 21 has room for l/21 of what the verb writes when it is left alone. After each try the disk becomes large and
the same command is given again. Prints one JSON line a try; `tries` starts it and reads them.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from forked import done

ROOT = Path(__file__).resolve().parent.parent
LEVELS = 21
ALONE = ("unshare", "--user", "--map-root-user", "--mount")
PROBE = 'mount -t tmpfs -o size=64k none "$1"'
RUN = "run"


@dataclass(frozen=True)
class Try:
    """What a verb did on a disk that became full, and when its command was given again."""

    verb: str
    level: int
    kib: int
    code: int
    said: str  # standard error
    left: list[str]  # temporary files after the first try
    again: int
    said_again: str
    differ: list[str]  # results that are not those of a disk that was never full

    @property
    def sentences(self) -> list[str]:
        return re.findall(r"^(?:paused|error|interrupted): .*$", self.said, re.MULTILINE)


def why_not() -> str:
    """Why no file system can be mounted here; "" where one can."""
    with tempfile.TemporaryDirectory() as place:
        try:
            done = subprocess.run([*ALONE, "sh", "-c", PROBE, "sh", place], capture_output=True)
        except OSError as error:
            return f"unshare cannot be run ({error.strerror})"
    return "" if done.returncode == 0 else f"no file system can be mounted: {done.stderr.decode()}"


def tries(verbs: Sequence[str], levels: Sequence[int]) -> Iterator[Try]:
    """Runs verbs at levels of 1 to 20, in a process of its own."""
    text = ",".join(map(str, levels))
    with subprocess.Popen(
        [*ALONE, sys.executable, __file__, text, *verbs],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        for line in process.stdout or ():
            yield Try(**json.loads(line))
    if process.returncode:
        raise RuntimeError(f"small_disk ended with {process.returncode}")


# Within the namespace.


@dataclass(frozen=True)
class Verb:
    """A verb on the disk.

    Attributes:
        main: Takes the flags.
        flags: Given the disk and the folder of inputs, which lies elsewhere.
        results: Paths on the disk that must be the same, patterns.
        copied: Folder of inputs -> where it lies on the disk before it fills.
    """

    main: Callable[[Sequence[str]], int]
    flags: Callable[[Path, Path], list[str]]
    results: Sequence[str]
    copied: tuple[str, str] | None = None


FAKE = ["--checkpoint", "fake", "--clips", "80", "--candidates", "4"]
SEARCH = [*FAKE, "--iterations", "2", "--name", RUN]


def verbs() -> dict[str, Verb]:
    from data import audit, build
    from opro import export, finetune, matrix, optimize, predict, report, rescore, seal

    def at(folder: Path, *flags: str) -> list[str]:
        return [*flags, "--runs-dir", f"{folder}/runs"]

    with_run = ("runs", "runs")
    run = f"runs/{RUN}"
    return {
        "optimize": Verb(
            optimize.main,
            lambda disk, _: at(disk, *SEARCH),
            [f"{run}/{name}" for name in ("trials.jsonl", "leaderboard.csv", "best.yaml", "config.yaml")],
        ),
        "rescore": Verb(
            rescore.main, lambda disk, _: at(disk, f"{disk}/{run}"), [f"{run}/test.json"], with_run
        ),
        "matrix": Verb(
            matrix.main,
            lambda disk, _: at(disk, "--checkpoint", "fake", "--out", f"{disk}/matrix"),
            ["matrix/predictions/*"],  # the rest tells of times, too
        ),
        "report": Verb(
            report.main,
            lambda disk, _: [f"{disk}/{run}", "--inspect", f"{disk}/logs"],
            [f"{run}/report.html"],
            with_run,
        ),
        "seal": Verb(
            seal.main,
            lambda disk, _: [f"{disk}/runs/pocket", "--out", f"{disk}/new/card.yaml"],
            ["new/card.yaml"],
            with_run,
        ),
        "export": Verb(
            export.main,
            lambda disk, _: [f"{disk}/runs/pocket", "--to", f"{disk}/exported"],
            ["exported/*"],
            with_run,
        ),
        "predict": Verb(
            predict.main,
            lambda disk, inputs: [f"{disk}/{run}", *sorted(map(str, inputs.glob("long/*.wav"))),
                                  "--out", f"{disk}/answers"],
            ["answers/labels.csv", "answers/segments.csv", "answers/rttm/*"],
            with_run,
        ),
        "finetune": Verb(
            finetune.main,
            lambda disk, inputs: at(disk, "--manifest", f"{inputs}/small", "--out", f"{disk}/lora",
                                    "--epochs", "1", "--batch", "8"),
            ["lora/adapter_model.safetensors", "lora/adapter_config.json"],
        ),
        "study": Verb(
            finetune.main,
            lambda disk, inputs: at(disk, "--manifest", f"{inputs}/small", "--out", f"{disk}/lora",
                                    "--epochs", "1", "--batch", "8", "--study", "1"),
            ["lora/adapter_model.safetensors"],
        ),
        "build": Verb(
            build.main,
            lambda disk, inputs: [f"{inputs}/recipe.yaml", "--recordings", f"{inputs}/recordings",
                                  "--out", f"{disk}/set", "--processes", "1"],
            ["set/manifest.csv", "set/rejected.csv", "set/registry.json", "set/ATTRIBUTION.md"],
        ),
        "folder": Verb(
            build.main,
            lambda disk, inputs: ["folder", "--speech", f"{inputs}/recordings/speech",
                                  "--other", f"{inputs}/recordings/noise", "--out", f"{disk}/set"],
            ["set/manifest.csv", "set/registry.json", "set/clips/*"],
        ),
        "audit": Verb(
            audit.main,
            lambda disk, inputs: [f"{inputs}/small", "--no-voice", "--page", f"{disk}/audit.html"],
            ["audit.html"],
        ),
    }  # fmt: skip


def make_inputs(folder: Path, wanted: set[str]) -> None:
    """What the verbs start from."""
    import csv

    import numpy as np
    import soundfile

    from evaluators.manifest import read_manifest
    from evaluators.splits import balanced_order
    from evaluators.tasks import SPEECH_TASK
    from opro import optimize

    def search(*flags: str) -> None:
        code = done(lambda: optimize.main([*flags, "--runs-dir", f"{folder}/runs"]))[0]
        assert code == 0, flags

    if wanted & {"rescore", "report", "predict"}:
        search(*SEARCH)
    if wanted & {"seal", "export"}:
        search("--clips", "80", "--candidates", "2", "--iterations", "1", "--name", "pocket")
    if wanted & {"build", "folder"}:
        sys.path.insert(0, str(ROOT / "tests/data"))
        from small_recordings import make_recordings, recipe_file

        make_recordings(folder)
        recipe_file(folder)
    if "predict" in wanted:
        (folder / "long").mkdir()
        for i in range(3):
            wave = np.random.default_rng(i).normal(0, 0.1, 16000 * 20)
            soundfile.write(folder / "long" / f"{i}.wav", wave, 16000)
    if wanted & {"finetune", "study", "audit"}:
        demo = ROOT / "data/demo"
        rows = list(csv.DictReader((demo / "manifest.csv").open()))
        order = {
            c.clip_id: i
            for i, c in enumerate(balanced_order(read_manifest(demo, SPEECH_TASK.labels)))
        }
        rows.sort(key=lambda r: order[r["clip_id"]])
        kept = [r for r in rows if r["split"] == "train"][:32]
        kept += [r for r in rows if r["split"] == "dev"][:24]
        for row in kept:
            target = folder / "small" / row["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(demo / row["path"], target)
        with (folder / "small" / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(kept)


def mount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(disk)], check=True)


@contextlib.contextmanager
def disk_of(disk: Path, verb: Verb, inputs: Path, kib: int) -> Iterator[int]:
    """A disk with so much room beside the inputs, for the verb's temporary files, too. Gives the KiB that are used."""
    mount(disk, "size=1g")
    try:
        if verb.copied:
            shutil.copytree(inputs / verb.copied[0], disk / verb.copied[1])
        (disk / "tmp").mkdir()
        used = used_kib(disk)
        mount(disk, f"remount,size={used + kib}k")
        yield used
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def used_kib(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


def results_of(disk: Path, verb: Verb) -> dict[str, bytes]:
    found = {
        str(p.relative_to(disk)): p.read_bytes()
        for pattern in verb.results
        for p in sorted(disk.glob(pattern))
        if p.is_file()
    }
    if (
        manifest := found.get("set/manifest.csv")
    ) is not None:  # an Ogg container holds a random number
        found["set/manifest.csv"] = re.sub(rb"[0-9a-f]{64}", b"", manifest)
    if (card := found.get("new/card.yaml")) is not None:
        found["new/card.yaml"] = re.sub(rb"(digest|sealed): .*", b"", card)
    if (report := next((k for k in found if k.endswith(".html")), None)) is not None:
        found[report] = re.sub(rb"\d\d:\d\d(:\d\d)?", b"", found[report])
    return found


def main() -> None:
    levels, wanted = [int(n) for n in sys.argv[1].split(",")], sys.argv[2:]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        inputs, disk = Path(place) / "inputs", Path(place) / "disk"
        inputs.mkdir()
        disk.mkdir()
        os.environ |= {"XDG_CACHE_HOME": f"{place}/cache", "TMPDIR": f"{place}"}
        known = verbs()
        make_inputs(inputs, set(wanted))
        os.environ |= {"XDG_CACHE_HOME": f"{disk}/cache", "TMPDIR": f"{disk}/tmp"}
        tempfile.tempdir = None
        for name in wanted:
            verb = known[name]
            work = partial(verb.main, verb.flags(disk, inputs))
            with disk_of(disk, verb, inputs, 1 << 20) as before:
                code, said = done(work)
                assert code in (0, 1) and (verb.results == [] or results_of(disk, verb)), said
                whole_code, whole, written = code, results_of(disk, verb), used_kib(disk) - before
            for level in levels:
                # Of what little is written, still too little room: at least a page less than it takes.
                kib = max(4, min(max(4 * level, written * level // LEVELS), written - 4))
                with disk_of(disk, verb, inputs, kib):
                    code, said = done(work)
                    left = [str(p.relative_to(disk)) for p in disk.rglob("*")
                            if re.search(r"\.(tmp|part|new)$", p.name)]  # fmt: skip
                    mount(disk, "remount,size=1g")
                    again, said_again = (code, "") if code == 0 else done(work)
                    found = results_of(disk, verb)
                    differ = [n for n in {*found, *whole} if found.get(n) != whole.get(n)]
                    differ += [] if again == whole_code else ["exit code"]
                one = Try(name, level, kib, code, said, left, again, said_again, differ)
                print(json.dumps(asdict(one)), flush=True)


if __name__ == "__main__":
    main()
