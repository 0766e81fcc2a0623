"""Ten searches a mode on a checkpoint: python tests/bench_seeds.py --checkpoint pocket-base

For each seed the default search (each prompt with the threshold that is best on the search half), the same with
``--threshold argmax``, and random paraphrases of the seed prompts; all from the three published baselines, all chosen
honestly on the holdout. Judged on the test split against the best seed prompt with its threshold, which no wording is
needed for: paired differences, sources resampled; over seeds the mean with a t interval. All share one score cache.
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
    parser.add_argument("--modes", nargs="+", default=["default", "argmax", "random"])
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

    truth = search.targets.truth
    biases = [fit_bias(truth, log_odds(row)) for row in table.logp]
    tuned = [
        balanced(table.predict(Classifier(p, b))) for p, b in zip(baselines, biases, strict=True)
    ]
    place = int(np.argmax(tuned))
    plain, base = base, said(Classifier(baselines[place], biases[place]))
    d = compare(base, plain)
    print(
        f"best seed prompt with its threshold {100 * balanced(base):.1f}:"
        f" {100 * d.value:+.1f} points [{100 * d.low:+.1f}, {100 * d.high:+.1f}] over argmax\n"
    )

    modes = {
        "default": [],
        "argmax": ["--threshold", "argmax"],
        "random": ["--strategy", "random"],
    }
    rows = {mode: [] for mode in args.modes}
    print(
        "| mode | seed | kept? | dev gain (holdout) | best on search half, test gain |"
        " chosen, test gain [95 % over sources] | evals | chosen prompt |\n| --- | --- | --- | ---"
        " | --- | --- | --- | --- |"
    )
    for mode in rows:
        for seed in range(args.seeds):
            name = f"{Path(args.checkpoint).name}-{mode}-{seed}"
            flags = [
                "--checkpoint",
                args.checkpoint,
                *modes[mode],
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
            rows[mode].append(
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
                f"| {mode} | {seed} | {'kept' if summary['baseline_kept'] else 'replaced'} |"
                f" {100 * summary['gain']['estimate']:+.1f} | {100 * greedy_gain:+.1f} |"
                f" {100 * d.value:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}] |"
                f" {summary['evals']['requested']:,} | {text[:90]} |",
                flush=True,
            )
    print()
    for mode, values in rows.items():
        dev, gains, greedy, evals, replaced = zip(*values, strict=True)
        print(
            f"{mode}: mean test gain over seed + threshold {mean_interval(gains)} points over {args.seeds} seeds,"
            f" replaced {sum(replaced)} of {args.seeds}; dev gain {100 * np.mean(dev):+.2f}; best"
            f" on the search half unchecked {mean_interval(greedy)}; {np.mean(evals):,.0f} evals a"
            " search"
        )


if __name__ == "__main__":
    main()
