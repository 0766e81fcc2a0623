"""What it costs to leave the audio tower as it is, on the pocket base: python tests/bench_targets.py

A server such as vLLM does not apply LoRA to the audio tower; `--targets llm-only` trains none there. Trains both ways,
three seeds each, by `opro.finetune` and its defaults; judges on the test split with the prompt trained on. Interrupted,
it goes on. Four minutes on one core with 128 clips.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.classifier import Classifier
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.statistics.compare import compare, estimate
from evaluators.targets import Predictions
from evaluators.tasks import SPEECH_TASK
from opro.finetune import main as finetune

SEEDS = (0, 1, 2)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/targets"))
    parser.add_argument("--clips", default="128", help="of the train split: all, or a number")
    args = parser.parse_args()
    labels = SPEECH_TASK.labels
    prompt = read_prompts(shipped("prompts/seeds/baselines.yaml"), labels)[0]
    clips = ClipSet(SPEECH_TASK, tuple(read_manifest(shipped("data/demo"), labels, "test")))

    def said(checkpoint: str) -> Predictions:
        table = AudioScorer(open_checkpoint(checkpoint), "cpu").score([prompt], clips)
        return table.predict(Classifier(prompt))

    print("| clips | seed | attention | llm-only | llm-only - attention, over sources |")
    print("| --- | --- | --- | --- | --- |")
    means = []
    for seed in SEEDS:
        both = []
        for targets in ("attention", "llm-only"):
            out = args.out / f"{targets}-{args.clips}-{seed}"
            flags = ["--targets", targets, "--clips", args.clips, "--seed", str(seed)]
            finetune([*flags, "--out", str(out)])
            both.append(said(str(out)))
        one, other = (100 * estimate(p).value for p in both)
        d = compare(both[1], both[0])
        means.append((one, other))
        print(
            f"| {args.clips} | {seed} | {one:.1f} | {other:.1f} | {100 * d.value:+.1f}"
            f" [{100 * d.low:+.1f}, {100 * d.high:+.1f}] |",
            flush=True,
        )
    one, other = np.mean(means, axis=0)
    print(f"| {args.clips} | mean | {one:.1f} | {other:.1f} | {other - one:+.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
