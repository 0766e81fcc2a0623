"""What the score cache and its key cost: python tests/bench_cache.py

20,000 scores (50 prompts in 5 calls x 400 clips) stored one iteration after another, then read again by a new process'
cache, in seconds of the processor. The evaluator inside is the fake one, its own time is taken
off. Then the digest of 2 GB of weights in two files, hashed, and remembered.
"""

import json
import os
import tempfile
import time
from pathlib import Path

from evaluators.audio_lm.identity import weights_digest
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
    begin = time.process_time()
    for prompts in calls:
        fake.score(prompts, clips)
    alone = time.process_time() - begin
    with tempfile.TemporaryDirectory() as folder:
        for name in ("stored", "read again"):
            cached = CachedEvaluator(FakeEvaluator(), Path(folder))
            begin = time.process_time()
            for prompts in calls:
                cached.score(prompts, clips)
            seconds = time.process_time() - begin - (alone if name == "stored" else 0)
            count = sum(map(len, calls)) * len(clips)
            print(
                f"{name}: {1e6 * seconds / count:.1f} us a score, {100 * seconds * RATE / count:.2f} %"
                f" of scoring at {RATE:,} evals/s ({cached.usage.cached:,} of {count:,} from the cache)"
            )
            cached.close()
    hashing()


def hashing() -> None:
    """Digests of a random model in two shards."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        placed, size = {}, 2**20  # numbers of a tensor
        for shard in ("one.safetensors", "two.safetensors"):
            about = {
                f"{shard} {i}": {
                    "dtype": "F16",
                    "shape": [size],
                    "data_offsets": [2 * size * i, 2 * size * (i + 1)],
                }
                for i in range(500)
            }
            placed |= dict.fromkeys(about, shard)
            header = json.dumps(about).encode()
            with (Path(folder) / shard).open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                for _ in about:
                    file.write(os.urandom(2 * size))
        index = {"weight_map": placed}
        (Path(folder) / "model.safetensors.index.json").write_text(json.dumps(index))
        gigabytes = sum(p.stat().st_size for p in Path(folder).glob("*.safetensors")) / 1e9
        for name in ("hashed", "remembered"):
            begin, used = time.perf_counter(), time.process_time()
            digest = weights_digest(Path(folder))
            seconds, used = time.perf_counter() - begin, time.process_time() - used
            print(
                f"{gigabytes:.1f} GB of weights {name}: {seconds:.3f} s with {os.cpu_count()} cores,"
                f" {used / gigabytes:.3f} processor seconds a GB ({digest[:12]})"
            )


if __name__ == "__main__":
    main()
