"""What wording is worth beyond a threshold: python tests/bench_wording.py --checkpoint pocket-base

Scores the hand-written prompts, the held-out phrasings and random prompts of the built-in rewriter on the dev and test
split. Prints how far AUROC and accuracy spread over the sensible ones (AUROC on dev above 0.6), and on test,
with thresholds fitted on dev alone: the best hand-written prompt, the best prompt of all, and a stack of all prompts (a
ridge logistic regression on their log-odds). Choices are made on dev.
"""

import argparse
import random
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from evaluators.build import build_evaluator
from evaluators.classifier import Classifier, log_odds
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import balanced_order
from evaluators.statistics import metrics
from evaluators.statistics.calibration import fit_bias
from evaluators.statistics.compare import compare
from evaluators.targets import Predictions
from evaluators.tasks import SPEECH_TASK
from opro.proposers.rewriter import Rewriter

SENSIBLE = 0.6  # AUROC on dev
RIDGE = 30.0


def rewritten(seeds, count):
    """Random prompts of the rewriter, none twice."""
    rewriter, rng, out = Rewriter(SPEECH_TASK, 0), random.Random(0), {}
    while len(out) < count:
        made = rewriter.rewrite(seeds, rng, redraw_share=1.0)
        if made is not None:
            out[made.prompt.digest] = made.prompt
    return list(out.values())


def stack(odds, truth):
    """Weights ``[prompt + 1]`` of a ridge logistic regression of SPEECH on ``[prompt, clip]`` standard log-odds."""
    x = np.vstack([odds, np.ones(odds.shape[1])])
    sign = np.where(truth == 0, 1.0, -1.0)

    def loss(w):
        z = sign * (w @ x)
        p = 1 / (1 + np.exp(z))
        value = np.logaddexp(0, -z).sum() + RIDGE / 2 * (w[:-1] ** 2).sum()
        return value, -(x * (sign * p)).sum(1) + RIDGE * np.append(w[:-1], 0)

    return minimize(loss, np.zeros(len(x)), jac=True, method="L-BFGS-B").x


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", nargs="+", default=["pocket-base", "pocket-lora"])
    parser.add_argument("--rewritten", type=int, default=100)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/bench_wording"))
    args = parser.parse_args()
    labels = SPEECH_TASK.labels
    sets = {}
    for split in ("dev", "test"):
        clips = balanced_order(read_manifest(shipped("data/demo"), labels, split))
        sets[split] = ClipSet(SPEECH_TASK, tuple(clips))
    dev, test = (sets[s].targets.truth for s in ("dev", "test"))
    seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), labels)
    heldout = read_prompts(shipped("prompts/heldout.yaml"), labels)
    groups = {
        "hand-written": seeds,
        "held-out": heldout,
        "rewriter": rewritten(seeds, args.rewritten),
    }
    prompts = [p for group in groups.values() for p in group]
    for checkpoint in args.checkpoint:
        evaluator, _ = build_evaluator(checkpoint, cache=args.runs_dir / ".cache")
        tables = {split: evaluator.score(prompts, clips) for split, clips in sets.items()}
        odds = {
            split: np.array([log_odds(t.logp[i]) for i in range(len(prompts))])
            for split, t in tables.items()
        }
        area = np.array([metrics.auroc(dev, row) for row in odds["dev"]])
        bias = np.array([fit_bias(dev, row) for row in odds["dev"]])

        def accuracy(split, i, bias=0.0, odds=odds):
            truth = sets[split].targets.truth
            said = np.where(odds[split][i] + bias > 0, 0, 1)
            return float(np.mean([(said[truth == k] == k).mean() for k in (0, 1)]))

        plain = np.array([accuracy("dev", i) for i in range(len(prompts))])
        tuned = np.array([accuracy("dev", i, bias[i]) for i in range(len(prompts))])
        print(f"\n{checkpoint}: dev {len(dev)} clips, test {len(test)} clips")
        print(
            "| prompts | sensible | AUROC least / quartiles / most | argmax quartiles | with threshold |"
        )
        print("| --- | --- | --- | --- | --- |")
        start = 0
        for name, group in groups.items():
            rows = np.arange(start, start + len(group))
            start += len(group)
            rows = rows[area[rows] > SENSIBLE]
            if not len(rows):
                continue
            q = np.quantile(area[rows], [0, 0.25, 0.5, 0.75, 1])
            a = 100 * np.quantile(plain[rows], [0, 0.25, 0.5, 0.75, 1])
            t = 100 * np.quantile(tuned[rows], [0, 0.25, 0.5, 0.75, 1])
            cells = [" / ".join(f"{v:.3f}" for v in q), " / ".join(f"{v:.0f}" for v in a)]
            cells.append(" / ".join(f"{v:.0f}" for v in t))
            print(f"| {name} | {len(rows)} of {len(group)} | {' | '.join(cells)} |")
        for i in range(len(seeds)):
            print(
                f"hand-written {i + 1}: AUROC {area[i]:.3f}, argmax {100 * plain[i]:.1f}, threshold"
                f" {100 * tuned[i]:.1f}"
            )

        def said(i, bias=0.0, tables=tables):
            return tables["test"].predict(Classifier(prompts[i], bias))

        first = int(np.argmax(tuned[: len(seeds)]))
        base = said(first, bias[first])
        weights = stack(odds["dev"] / odds["dev"].std(1, keepdims=True), dev)
        scaled = odds["test"] / odds["dev"].std(1, keepdims=True)
        stacked = weights[:-1] @ scaled + weights[-1]
        fitted = weights[:-1] @ (odds["dev"] / odds["dev"].std(1, keepdims=True)) + weights[-1]
        shift = fit_bias(dev, fitted)
        rows = {
            "best hand-written, argmax": said(int(np.argmax(plain[: len(seeds)]))),
            "best held-out + threshold": said(
                k := len(seeds) + int(np.argmax(tuned[len(seeds) : len(seeds) + len(heldout)])),
                bias[k],
            ),
            "best of all + threshold": said(k := int(np.argmax(tuned)), bias[k]),
        }
        decided = np.where(stacked + shift > 0, 0, 1)
        rows[f"stack of {len(prompts)} prompts"] = Predictions(
            "stack", sets["test"].targets, decided
        )
        best = max(range(len(prompts)), key=lambda i: accuracy("test", i, bias[i]))
        print(
            f"test, best hand-written + threshold: {100 * accuracy('test', first, bias[first]):.1f}"
        )
        for name, one in rows.items():
            d = compare(one, base)
            print(f"test, {name}: {100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]")
        print(
            f"test, best prompt if test had chosen it (not honest): {100 * accuracy('test', best, bias[best]):.1f}"
        )
        print("best of all:", repr(prompts[int(np.argmax(tuned))].text))


if __name__ == "__main__":
    main()
