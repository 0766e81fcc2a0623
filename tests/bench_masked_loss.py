"""What masking the loss and more clips bring on the pocket base: python tests/bench_masked_loss.py

Trains with the loss at every word and at the answer alone, on 128 clips and on all train clips, three seeds each, by
`opro.finetune` and its defaults; judges on the test split with the prompt trained on. Interrupted, it goes on.
About half an hour on two cores.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.statistics import metrics
from evaluators.tasks import SPEECH_TASK
from opro.finetune import main as finetune

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"
SEEDS = (0, 1, 2)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/masked_loss"))
    args = parser.parse_args()
    labels = SPEECH_TASK.labels
    prompt = read_prompts(shipped("prompts/seeds/baselines.yaml"), labels)[:1]
    clips = read_manifest(DEMO, labels, "test")
    truth = np.array([labels.index(c.label) for c in clips])
    sources = [c.source_id for c in clips]

    def right(checkpoint: str) -> np.ndarray:
        table = AudioScorer(open_checkpoint(checkpoint), "cpu").score(prompt, clips)
        return metrics.decide(table.logp[0]) == truth

    lines = [
        "| loss | clips | test, by seed | mean over seeds | seed 0, over sources | to the base, seed 0 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    plain = right("pocket-base")
    e = metrics.estimate(truth, plain, sources)
    lines.append(
        f"| base | - | {100 * e.value:.1f} | | [{100 * e.low:.1f}, {100 * e.high:.1f}] | |"
    )
    for loss in ("full", "answer"):
        for count in ("128", "all"):
            scores, found = [], []
            for seed in SEEDS:
                out = args.out / f"{loss}-{count}-{seed}"
                flags = ["--loss", loss, "--clips", count, "--seed", str(seed), "--out", str(out)]
                finetune(flags)
                found.append(right(str(out)))
                scores.append(100 * metrics.balanced_accuracy(truth, found[-1]))
            spread = stats.t.ppf(0.975, len(SEEDS) - 1) * np.std(scores, ddof=1) / len(SEEDS) ** 0.5
            e = metrics.estimate(truth, found[0], sources)
            d = metrics.paired_difference(truth, found[0], plain, sources)
            mean = float(np.mean(scores))
            lines.append(
                f"| {loss} | {count} | {', '.join(f'{s:.1f}' for s in scores)} |"
                f" {mean:.1f} [{mean - spread:.1f}, {mean + spread:.1f}] |"
                f" {100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}] |"
                f" {100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}] |"
            )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
