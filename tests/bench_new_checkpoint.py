"""A checkpoint never scored, from those that were: python tests/bench_new_checkpoint.py --train runs/adapters

Scores prompts (hand-written, held-out and of the rewriter's grammar) on the search half of the demo's dev split with
every checkpoint; what was scored before comes from the cache in --runs-dir. Then each checkpoint in turn is new: its
leaderboard is predicted from the others' scores and 2 % of its own, and compared with the true one on the same clips:
Kendall's tau-b, regret (what the true best is above the one that is predicted best), and the share of true accuracies
within their 95 % intervals. Goal: tau >= 0.8 and regret <= 0.5 points. `--train DIR` makes adapters there first, of
several recipes and seeds, and adds them to the checkpoints; what is there is not made again.

Beside the model (`Forecast`): the mean of the others' leaderboards; the leaderboard of the checkpoint whose log-odds
are most like what was seen; the new one's own evals alone.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

from evaluators.build import build_evaluator
from evaluators.classifier import log_odds
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import balanced_order, halves
from evaluators.tasks import SPEECH_TASK
from opro.profiling.forecast import Forecast, leaderboard, likeliest, seen_of, spread
from opro.profiling.scoring import score, telling
from opro.profiling.wordings import HAND, HELD_OUT, sample, united

KINDS = {"plain": "Argmax", "tuned": "With the best threshold"}
MODEL, FOCUSED = "the model", "the model, half of its evals on what may be best"
RECIPES = {  # about two minutes each on a CPU
    "plain": "--seed 1",
    "hot": "--seed 2 --lr 1e-3 --clips 200 --epochs 2",
    "mlp": "--seed 3 --targets attention+mlp --lr 3e-4",
    "many": "--seed 4 --prompts prompts/heldout.yaml --lr 3e-4 --clips 400",
    "llm": "--seed 5 --targets llm-only --lr 5e-4 --clips 400",
    "llm-on": "--seed 12 --targets llm-only --lr 5e-4 --clips 400 --checkpoint {dir}/llm",
    "full": "--seed 6 --targets llm-only --loss full --clips 200",
}


def hear(odds, blocks):
    return seen_of(blocks, [odds[np.ix_(*block)] for block in blocks])


def focused(forecast, truth, odds, share, rng, kind):
    """Half of the evals evenly, the other half on the prompts that may be best by them, as `opro.profile --predict`."""
    blocks = spread(share / 2, truth, len(odds), rng)
    seen = hear(odds, blocks)
    draws = getattr(forecast.boards(seen, 0), kind)
    more = round(share * odds.size) - len(seen.odds)
    return hear(odds, [*blocks, likeliest(draws, blocks, more, truth, rng)])


def judge(predicted, true, interval=None):
    """(tau, regret in points, that of the best of the first five, share in the interval, its mean width in points)."""
    order = np.argsort(-predicted, kind="stable")
    tau = stats.kendalltau(predicted, true).statistic
    regret, of_five = (100 * (true.max() - true[order[:n]].max()) for n in (1, 5))
    if interval is None:
        return tau, regret, of_five, np.nan, np.nan
    low, high = interval
    inside = (low - 1e-9 <= true) & (true <= high + 1e-9)
    return tau, regret, of_five, 100 * inside.mean(), 100 * (high - low).mean()


def predicted_by(bank, odds, truth, share, rng):
    """Method -> objective -> (predicted accuracies, intervals or None)."""
    forecast, others = Forecast(bank, truth), leaderboard(bank, truth)
    seen = hear(odds, spread(share, truth, len(odds), rng))
    at = seen.prompts, seen.clips
    like = int(np.argmin([np.mean((b[at] - seen.odds) ** 2) for b in bank]))
    said = np.full(odds.shape, np.nan)
    said[at] = (seen.odds >= 0) == (truth[seen.clips] == 0)
    drawn = forecast.boards(seen, 0)
    out = {
        "mean of the others, no eval": {},
        "the most similar one": {},
        "its own evals alone": {},
        MODEL: {},
        FOCUSED: {},
    }
    for kind in KINDS:
        board = getattr(others, kind)
        out["mean of the others, no eval"][kind] = board.mean(axis=0), None
        out["the most similar one"][kind] = board[like], None
        out["its own evals alone"][kind] = np.nanmean(said, axis=1), None
        second = forecast.boards(focused(forecast, truth, odds, share, rng, kind), 0)
        for name, draws in ((MODEL, drawn), (FOCUSED, second)):
            values = getattr(draws, kind)
            out[name][kind] = values.mean(axis=0), np.quantile(values, [0.025, 0.975], axis=0)
    return out


def report(odds, truth, names, share, repeats):
    """Prints a row for each objective, method and new checkpoint, and of all of them."""
    rows = {}
    for new, name in enumerate(names):
        true = leaderboard(odds[new], truth)
        for repeat in range(repeats):
            rng = np.random.default_rng([repeat, new])
            found = predicted_by(np.delete(odds, new, axis=0), odds[new], truth, share, rng)
            for method, by in found.items():
                for kind, (value, interval) in by.items():
                    numbers = judge(value, getattr(true, kind), interval)
                    rows.setdefault((kind, method), {}).setdefault(name, []).append(numbers)
    shown = [name.rpartition("/")[2] for name in names]
    for kind, title in KINDS.items():
        print(f"\n{title}: tau / regret in points, mean of {repeats} draws of the evals\n")
        print(
            f"| predicted by | {' | '.join(shown)} | all: tau | regret | in the interval | its width |"
        )
        print("| --- |" + " --- |" * (len(names) + 6))
        for (of, method), by in rows.items():
            if of != kind:
                continue
            each = np.array([np.mean(by[name], axis=0) for name in names])
            cells = [f"{tau:.2f} / {regret:.1f}" for tau, regret, *_ in each]
            tau, regret, of_five, inside, width = each.mean(axis=0)
            told = ["", ""] if np.isnan(inside) else [f"{inside:.0f} %", f"{width:.0f}"]
            print(
                f"| {method} | {' | '.join([*cells, f'{tau:.2f}', f'{regret:.1f}', f'{of_five:.1f}', *told])} |"
            )


def train(folder, device):
    """The adapters of `RECIPES` that are not there yet. Returns their folders."""
    out = []
    for name, flags in RECIPES.items():
        out.append(str(folder / name))
        given = flags.format(dir=folder).split()
        command = ["-m", "opro.finetune", "--out", out[-1], "--runs-dir", str(folder / "runs")]
        subprocess.run([sys.executable, *command, "--device", device, *given], check=True)
    return out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", nargs="+", default=["pocket-base", "pocket-lora"])
    parser.add_argument(
        "--train", type=Path, metavar="DIR", help="make adapters there, and add them"
    )
    parser.add_argument(
        "--grammar", type=int, default=77, help="wordings, beside 43 that people wrote"
    )
    parser.add_argument("--clips", type=int, default=100, help="of the search half of dev")
    parser.add_argument("--share", type=float, default=0.02, help="of the new checkpoint's evals")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/bench_new_checkpoint"))
    args = parser.parse_args()
    if args.train:
        args.checkpoint += train(args.train, args.device)
    labels = SPEECH_TASK.labels
    search, _ = halves(read_manifest(shipped("data/demo"), labels, "dev"))
    clips = ClipSet(SPEECH_TASK, tuple(balanced_order(search)[: args.clips]))
    seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), labels)
    held = read_prompts(shipped("prompts/heldout.yaml"), labels)
    design = sample(SPEECH_TASK, args.grammar, 0)
    prompts = [w.prompt for w in united(design, [(HELD_OUT, held), (HAND, seeds)])]
    tables = []
    for checkpoint in args.checkpoint:
        evaluator, _ = build_evaluator(
            checkpoint, device=args.device, cache=args.runs_dir / ".cache"
        )
        scored = score(evaluator, prompts, clips, telling(checkpoint, len(prompts)))
        tables.append(log_odds(scored.logp).astype(np.float64))
    if len(tables) < 3:
        print("two checkpoints are needed beside the new one: give three or more, or --train DIR")
        return
    print(
        f"{len(prompts)} prompts x {len(clips)} clips x {len(tables)} checkpoints; {100 * args.share:g} % are"
        f" {round(args.share * tables[0].size)} evals"
    )
    report(np.array(tables), clips.targets.truth, args.checkpoint, args.share, args.repeats)


if __name__ == "__main__":
    main()
