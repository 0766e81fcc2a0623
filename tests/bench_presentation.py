"""What it is worth to give a clip otherwise: python tests/bench_presentation.py --checkpoint pocket-base pocket-lora

Scores eight prompts (the hand-written ones, then held-out phrasings) with six presentations of the clip on dev and
test, on all clips and on those of 200 ms. Each cell is balanced accuracy with a threshold fitted on the dev clips of
the table, as dev / test. Below, for each presentation, the wording that is best on dev, on test: with its gain over the
best wording with the clip as it is, threshold and all; of all eight, and of the hand-written ones alone, from which a
search starts. All choices are made on dev. Intervals are over sources, 95 %; those of gains, and p, are corrected for
the five presentations.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluators.build import build_evaluator
from evaluators.classifier import Classifier, log_odds
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.presentation import AS_IS
from evaluators.prompts import read_presentations, read_prompts
from evaluators.splits import balanced_order
from evaluators.statistics.calibration import fit_bias
from evaluators.statistics.compare import compare_many, estimate
from evaluators.tasks import SPEECH_TASK

PROMPTS, HAND_WRITTEN = 8, 3
SHORT_MS = 200


def bounds(one, form):
    low, high = one.low, one.high
    return f"{100 * one.value:{form}}" + (
        "" if low is None else f" [{100 * low:{form}}, {100 * high:{form}}]"
    )


def show(name, ways, wordings, tables):
    """Prints one table; `tables` are of dev and test, their prompts the wordings of each way in turns."""
    prompts = tables["dev"].prompts
    truth = tables["dev"].targets.truth
    rules = [
        Classifier(p, fit_bias(truth, log_odds(tables["dev"].logp[i])))
        for i, p in enumerate(prompts)
    ]
    said = {split: [table.predict(rule) for rule in rules] for split, table in tables.items()}
    score = {
        split: np.array([estimate(one).value for one in own]).reshape(len(ways), wordings)
        for split, own in said.items()
    }
    counts = ", ".join(
        f"{len(t.clips)} {s} clips of {len({c.source_id for c in t.clips})} sources"
        for s, t in tables.items()
    )
    print(f"\n{name}: {counts}; dev / test with the dev threshold\n")
    print("| clip | " + " | ".join(f"prompt {k + 1}" for k in range(wordings)) + " |")
    print("| --- |" + " --- |" * wordings)
    for w, how in enumerate(ways):
        cells = [
            f"{100 * score['dev'][w, k]:.0f} / {100 * score['test'][w, k]:.0f}"
            for k in range(wordings)
        ]
        print(f"| {how.words} | {' | '.join(cells)} |")
    for group, count in (("all", wordings), ("hand-written", HAND_WRITTEN)):
        best_of(group, ways, said, {split: values[:, :count] for split, values in score.items()})


def best_of(group, ways, said, score):
    """Prints what each presentation gains with the best of some wordings; `score` is ``[way, wording]``."""
    wordings = len(said["dev"]) // len(ways)
    best = [w * wordings + int(score["dev"][w].argmax()) for w in range(len(ways))]
    gains = compare_many([said["test"][i] for i in best[1:]], said["test"][best[0]])
    count = score["dev"].shape[1]
    print(
        f"\n| clip | mean of {count} {group} | best of them on dev | dev | test | gain over the clip as it is | p |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for w, i in enumerate(best):
        gain = ["", ""] if not w else [bounds(gains[w - 1], "+.1f"), f"{gains[w - 1].p:.3f}"]
        row = [
            ways[w].words,
            " / ".join(f"{100 * score[split][w].mean():.1f}" for split in ("dev", "test")),
            f"prompt {i % wordings + 1}",
            f"{100 * score['dev'][w].max():.1f}",
            bounds(estimate(said["test"][i]), ".1f"),
            *gain,
        ]
        print(f"| {' | '.join(row)} |")
    way = int(score["dev"].max(axis=1).argmax())
    (gain,) = compare_many([said["test"][best[way]]], said["test"][best[0]])
    told = "the clip as it is" if not way else f"{bounds(gain, '+.1f')} on test, tested alone"
    print(f"\nchosen on dev of these {score['dev'].size}: {ways[way].words}: {told}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", nargs="+", default=["pocket-base", "pocket-lora"])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/bench_presentation"))
    args = parser.parse_args()
    labels = SPEECH_TASK.labels
    seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), labels)
    wordings = [*seeds, *read_prompts(shipped("prompts/heldout.yaml"), labels)][:PROMPTS]
    ways = [AS_IS, *read_presentations(shipped("prompts/presentations") / "common.yaml")]
    prompts = [replace(p, presentation=how) for how in ways for p in wordings]
    for checkpoint in args.checkpoint:
        evaluator, _ = build_evaluator(checkpoint, cache=args.runs_dir / ".cache")
        for name, most in (("all clips", None), (f"clips of {SHORT_MS} ms", SHORT_MS)):
            tables = {}
            for split in ("dev", "test"):
                clips = balanced_order(read_manifest(shipped("data/demo"), labels, split))
                kept = tuple(c for c in clips if most is None or c.duration_ms <= most)
                tables[split] = evaluator.score(prompts, ClipSet(SPEECH_TASK, kept))
            show(f"{checkpoint}, {name}", ways, len(wordings), tables)
    for k, prompt in enumerate(wordings, 1):
        print(f"prompt {k}: {prompt.text!r}")


if __name__ == "__main__":
    main()
