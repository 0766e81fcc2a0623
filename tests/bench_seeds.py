"""Ten searches on a checkpoint against its peers at equal cost: python tests/bench_seeds.py --checkpoint pocket-base

For each seed: the default search with the built-in rewriter, and random paraphrases of the seed prompts at the same
number of prompts scored on everything; both from the three published baselines, both chosen honestly on the
holdout. Beside them threshold-only tuning of the best baseline. All are judged on the test split: paired differences to
the baseline, sources resampled; over seeds the mean with a t interval. All share one score cache.
"""

import argparse
import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
from scipy import stats

from evaluators.build import build_evaluator
from evaluators.classifier import Classifier, log_odds, read_classifiers
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import balanced_order, halves
from evaluators.statistics.calibration import fit_bias
from evaluators.statistics.compare import compare
from evaluators.tasks import SPEECH_TASK
from opro import optimize
from opro.search.history import History


def mean_interval(values):
    half = (
        stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
        if len(values) > 1
        else math.nan
    )
    return (
        f"{100 * np.mean(values):+.2f} [{100 * (np.mean(values) - half):+.2f},"
        f" {100 * (np.mean(values) + half):+.2f}]"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="pocket-base")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/bench_seeds"))
    args = parser.parse_args()
    labels = SPEECH_TASK.labels
    manifest = shipped("data/demo")
    evaluator, _ = build_evaluator(args.checkpoint, cache=args.runs_dir / ".cache")
    search = halves(balanced_order(read_manifest(manifest, labels, "dev")))[0]
    search = ClipSet(SPEECH_TASK, tuple(search))
    test = ClipSet(SPEECH_TASK, tuple(balanced_order(read_manifest(manifest, labels, "test"))))

    def said(classifier, clips=test):
        return evaluator.score([classifier.prompt], clips).predict(classifier)

    def balanced(said):
        right, truth = said.right, said.targets.truth
        return float(np.mean([right[truth == k].mean() for k in (0, 1)]))

    baselines = read_prompts(shipped("prompts/seeds/baselines.yaml"), labels)
    table = evaluator.score(baselines, search)
    best = max(baselines, key=lambda p: balanced(table.predict(Classifier(p))))
    base = said(Classifier(best))
    sources = len(set(test.targets.sources.tolist()))
    print(
        f"{args.checkpoint}: baseline {100 * balanced(base):.1f} on {len(test)} test"
        f" clips of {sources} sources\n"
    )

    bias = fit_bias(search.targets.truth, log_odds(table.logp[baselines.index(best)]))
    d = compare(said(Classifier(best, bias)), base)
    threshold_line = (
        f"threshold only: {100 * d.value:+.1f} points [{100 * d.low:+.1f}, {100 * d.high:+.1f}] on"
        f" test (bias {bias:+.2f} nats fitted on the search half)"
    )

    rows = {"race": [], "random": []}
    print(
        "| strategy | seed | kept? | dev gain (holdout) | best on search half, test gain |"
        " chosen, test gain [95 % over sources] | evals | chosen prompt |\n| --- | --- | --- | ---"
        " | --- | --- | --- | --- |"
    )
    for strategy in rows:
        for seed in range(args.seeds):
            name = f"{args.checkpoint}-{strategy}-{seed}"
            flags = [
                "--checkpoint",
                args.checkpoint,
                "--strategy",
                strategy,
                "--proposer",
                "rewriter",
                "--seed",
                str(seed),
                "--name",
                name,
                "--iterations",
                str(args.iterations),
                "--runs-dir",
                str(args.runs_dir),
                "--manifest",
                str(manifest),
            ]
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                assert optimize.main(flags) == 0
            folder = args.runs_dir / name
            summary = json.loads((folder / "summary.json").read_text())
            chosen = read_classifiers(folder / "best.yaml", labels)[0]
            d = compare(said(chosen), base)
            # What picking the winner of the search half without a second look would have given.
            greedy = History(folder / "trials.jsonl", labels).complete[0].classifier
            greedy_gain = balanced(said(greedy)) - balanced(base)
            rows[strategy].append(
                (
                    summary["gain"]["estimate"],
                    d.value,
                    greedy_gain,
                    summary["evals"]["requested"],
                    not summary["baseline_kept"],
                )
            )
            text = " / ".join(chosen.prompt.text.split("\n")).replace("|", "\\|")
            print(
                f"| {strategy} | {seed} | {'kept' if summary['baseline_kept'] else 'replaced'} |"
                f" {100 * summary['gain']['estimate']:+.1f} | {100 * greedy_gain:+.1f} |"
                f" {100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}] |"
                f" {summary['evals']['requested']:,} | {text[:90]} |",
                flush=True,
            )
    print()
    for strategy, values in rows.items():
        dev, gains, greedy, evals, replaced = zip(*values, strict=True)
        print(
            f"{strategy}: mean test gain {mean_interval(gains)} points over {args.seeds} seeds,"
            f" replaced {sum(replaced)} of {args.seeds}; dev gain {100 * np.mean(dev):+.2f}; best"
            f" on the search half unchecked {mean_interval(greedy)}; {np.mean(evals):,.0f} evals a"
            " search"
        )
    print(
        "race minus random, paired over seeds:"
        f" {mean_interval(np.array([a[1] for a in rows['race']]) - np.array([b[1] for b in rows['random']]))}"
        " points"
    )
    print(threshold_line)


if __name__ == "__main__":
    main()
