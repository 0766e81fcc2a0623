"""The parity tests with the oldest and the newest libraries that pyproject.toml allows.

    python tests/bench_versions.py                 both
    python tests/bench_versions.py oldest          one of them

Each runs in a virtual environment of its own, for the time of the run, in which those libraries lie in front of the
packages of this environment: torch is not fetched again. It needs a package index. The exit code is 1 if a test fails.
Seconds are those of pip and the tests, on the clock and of all processors together.
"""

import os
import re
import site
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("transformers", "peft", "accelerate", "httpx2")
TESTS = (  # against the stock model, plain peft, and the plain training step; one file of it trains through Trainer
    "tests/evaluators/audio_lm/test_scorer.py::test_pairs_equal_the_stock_forward_and_constrained_generation"
    "[pocket-lora]",
    "tests/evaluators/audio_lm/test_omni.py",
    "tests/evaluators/audio_lm/test_more_families.py",
    "tests/evaluators/audio_lm/test_adapters.py::test_every_kind_in_both_layouts_scores_as_plain_peft",
    "tests/evaluators/audio_lm/test_identity.py::test_hub_snapshot_local_copy_and_copies_in_other_shards_are_one",
    "tests/evaluators/finetuning/test_model.py",
    "tests/evaluators/finetuning/test_adapter_folder.py",
    "tests/evaluators/test_chat_client.py",
)


@dataclass(frozen=True)
class Row:
    """What a run of the tests came to."""

    name: str
    installed: str
    result: str
    seconds: float
    processor_seconds: float
    passed: bool


def bounds() -> dict[str, str]:
    """What pyproject.toml asks of each library, as in ``>=1.60,<4``."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = {m[1]: m[2] for line in lines if (m := re.match(r"([\w.-]+)(.*)", line))}
    return {name: found[name] for name in LIBRARIES}


def oldest() -> list[str]:
    """The oldest versions that are allowed, as pip is asked for them."""
    lowest = {name: re.search(r">=([\w.]+)", bound) for name, bound in bounds().items()}
    return [f"{name}=={bound[1]}" for name, bound in lowest.items() if bound]


def newest() -> list[str]:
    """The newest ones, likewise."""
    return [f"{name}{bound}" for name, bound in bounds().items()]


def run(name: str, wanted: list[str]) -> Row:
    """Installs the versions and runs the tests with them."""
    begin, used = time.perf_counter(), processor_seconds()
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        places = [sys.executable, "-c", "import site; print(site.getsitepackages()[0])"]
        inner = subprocess.run([python, *places[1:]], capture_output=True, text=True, check=True)
        (Path(inner.stdout.strip()) / "behind.pth").write_text(site.getsitepackages()[0] + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--upgrade", *wanted]
        subprocess.run(pip, check=True)
        code = (
            "from importlib.metadata import version; import sys; print(*map(version, sys.argv[1:]))"
        )
        asked = [python, "-c", code, *LIBRARIES]
        found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
        tests = [python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *TESTS]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(tests, cwd=ROOT, env=environment, capture_output=True, text=True)
    failed = re.findall(r"^(?:FAILED|ERROR) .*", done.stdout, re.M)
    if done.returncode:
        print("\n".join(failed) or done.stdout[-2000:] + done.stderr[-2000:])
    installed = ", ".join(f"{a} {b}" for a, b in zip(LIBRARIES, found, strict=True))
    result = "all passed" if done.returncode == 0 else f"{len(failed)} failed"
    seconds, used = time.perf_counter() - begin, processor_seconds() - used
    return Row(name, installed, result, seconds, used, done.returncode == 0)


def processor_seconds() -> float:
    """Of all processes that this one has waited for."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> int:
    kinds = {"oldest": oldest(), "newest": newest()}
    rows = [run(name, kinds[name]) for name in sys.argv[1:] or kinds]
    print("| which | with | result | seconds | of processors |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        times = f"{row.seconds:.0f} | {row.processor_seconds:.0f}"
        print(f"| {row.name} | {row.installed} | {row.result} | {times} |")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
