"""What the score cache costs: python tests/bench_cache.py

20,000 scores (50 prompts in 5 calls x 400 clips) stored one iteration after another, then read again by a new process'
cache. The evaluator inside is the fake one, its own time is taken off.
"""

import tempfile
import time
from pathlib import Path

from evaluators.cache import CachedEvaluator
from evaluators.fakes import FakeEvaluator
from evaluators.manifest import read_manifest
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
RATE = 1000  # evals a second that an H100 reaches on the 7B


def main() -> None:
    clips = read_manifest(DEMO, SPEECH_TASK.labels, "dev")
    calls = [[Prompt(f"Is there speech? {i} {k}") for k in range(10)] for i in range(5)]
    fake = FakeEvaluator()
    begin = time.perf_counter()
    for prompts in calls:
        fake.score(prompts, clips)
    alone = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        for name in ("stored", "read again"):
            cached = CachedEvaluator(FakeEvaluator(), Path(folder))
            begin = time.perf_counter()
            for prompts in calls:
                cached.score(prompts, clips)
            seconds = time.perf_counter() - begin - (alone if name == "stored" else 0)
            count = sum(map(len, calls)) * len(clips)
            print(
                f"{name}: {1e6 * seconds / count:.1f} us a score, {100 * seconds * RATE / count:.2f} %"
                f" of scoring at {RATE:,} evals/s ({cached.usage.cached:,} of {count:,} from the cache)"
            )
            cached.close()


if __name__ == "__main__":
    main()
