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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize, stats

from evaluators.build import build_evaluator
from evaluators.classifier import log_odds
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import balanced_order, halves
from evaluators.tasks import SPEECH_TASK
from opro.profiling.scoring import score, telling
from opro.profiling.wordings import HAND, HELD_OUT, sample, united

RANK = 20  # of the features of prompts and clips
DRAWS = 200
KINDS = {"plain": "Argmax", "tuned": "With the best threshold"}
MODEL, FOCUSED = "the model", "the model, half of its evals on what may be best"
RECIPES = {
    "plain": ["--seed", "1"],
    "plain-on": ["--seed", "11", "--checkpoint", "{dir}/plain"],  # its second epoch
    "hot": ["--seed", "2", "--lr", "1e-3", "--clips", "200", "--epochs", "2"],
    "mlp": ["--seed", "3", "--targets", "attention+mlp", "--lr", "3e-4"],
    "many": ["--seed", "4", "--prompts", "prompts/heldout.yaml", "--lr", "3e-4"],
    "llm": ["--seed", "5", "--targets", "llm-only", "--lr", "5e-4", "--clips", "400"],
    "full": ["--seed", "6", "--loss", "full", "--clips", "200"],
}


@dataclass(frozen=True)
class Leaderboard:
    """``[..., prompt]`` balanced accuracy of ``[..., prompt, clip]`` log-odds, at 0 and at the best threshold."""

    plain: np.ndarray
    tuned: np.ndarray


def leaderboard(odds, truth):
    """Accuracies are of these clips, thresholds fitted on the same ones."""
    weight = np.where(truth == 0, 0.5 / (truth == 0).sum(), 0.5 / (truth == 1).sum())
    plain = ((odds > 0) == (truth == 0)) @ weight
    order = np.argsort(odds, axis=-1)
    step = np.where(truth == 0, -weight, weight)[order]  # each clip that falls below the threshold
    best = np.maximum(np.cumsum(step, axis=-1).max(axis=-1), 0)
    return Leaderboard(plain, 0.5 + best)


def features(rows, rank):
    """``[row, rank + 1]`` principal parts of rows, of unit mean square together, and a constant."""
    centred = rows - rows.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    u = u[:, :rank] * s[:rank]
    u /= np.sqrt((u**2).sum(axis=1).mean())
    return np.column_stack([u, np.ones(len(u))])


class Forecast:
    """Log-odds of a new checkpoint: a Gaussian process over prompts and clips, from a bank and a few of its own.

    The mean is the bank's. What a checkpoint does otherwise is a sum of parts, each a kernel of prompts times one of
    clips: prompts that the bank's checkpoints treat alike shift alike (overall, by class, by what clips are like: a
    low-rank term); each prompt has a shift of its own, overall and by class; each pair has one. And the new checkpoint
    may be more like some of the bank's than like others. The variances are those under which what was seen of the
    new one is likeliest (L-BFGS), with a weak prior.

    Args:
        bank: ``[checkpoint, prompt, clip]`` log-odds in nats.
        truth: ``[clip]`` 0 or 1.
    """

    def __init__(self, bank, truth):
        self.bank, self.mean = bank, bank.mean(axis=0)
        prompts, clips = bank.shape[1:]
        self.scale = float(self.mean.std())
        p = features(np.concatenate(list(bank), axis=1), RANK)
        n = features(np.concatenate([b - b.mean(axis=1, keepdims=True) for b in bank]).T, RANK)
        n, one = n[:, :-1], np.ones((clips, 1))
        side = np.where(truth == 0, 1.0, -1.0)[:, None]
        own = None  # the identity
        self.parts = [(p, one), (p, side), (p, n), (own, one), (own, side), (own, n), (own, own)]
        away = (bank - self.mean) / self.scale
        self.away = away.reshape(len(bank), -1).T  # [pair, checkpoint]
        self.shape = (prompts, clips)

    def kernels(self, rows, columns):
        """``[part, pair, pair]`` of (prompts, clips) pairs, each without its variance."""
        out = []
        for part in self.parts:
            kernel = 1.0
            for side, a, b in zip(part, rows, columns, strict=True):
                if side is None:
                    kernel = kernel * (a[:, None] == b[None, :])
                else:
                    kernel = kernel * (side[a] @ side[b].T)
            out.append(np.asarray(kernel, dtype=np.float64))
        a, b = (self.away[i[0] * self.shape[1] + i[1]] for i in (rows, columns))
        return np.stack([*out, a @ b.T])

    def fit(self, prompts, clips, odds):
        """Log variances, from what was seen."""
        seen = self.kernels((prompts, clips), (prompts, clips))
        y = (odds - self.mean[prompts, clips]) / self.scale
        start = np.full(len(seen), np.log(0.05))

        def loss(theta):
            v = np.exp(theta)
            k = np.tensordot(v, seen, 1) + 1e-6 * np.eye(len(y))
            inverse = np.linalg.inv(k)
            a = inverse @ y
            value = (
                0.5 * y @ a
                + 0.5 * np.linalg.slogdet(k)[1]
                + 0.5 * (((theta - start) / 2) ** 2).sum()
            )
            slope = 0.5 * np.tensordot(seen, inverse - np.outer(a, a), 2) * v + (theta - start) / 4
            return value, slope

        return optimize.minimize(
            loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 60}
        ).x

    def draws(self, prompts, clips, odds, seed=0):
        """``[draw, prompt, clip]`` log-odds given what was seen, and it exactly where it was seen."""
        rng, v = np.random.default_rng(seed), np.exp(self.fit(prompts, clips, odds))
        y = (odds - self.mean[prompts, clips]) / self.scale
        seen = np.tensordot(v, self.kernels((prompts, clips), (prompts, clips)), 1)
        every = tuple(i.ravel() for i in np.indices(self.shape))
        cross = np.zeros((self.shape[0] * self.shape[1], len(y)))
        for first in range(0, len(cross), 4000):
            part = slice(first, first + 4000)
            cross[part] = np.tensordot(
                v, self.kernels(tuple(i[part] for i in every), (prompts, clips)), 1
            )
        prior = np.zeros((DRAWS, *self.shape))
        for variance, (p, n) in zip(v, self.parts, strict=False):
            size = [s if f is None else f.shape[1] for s, f in zip(self.shape, (p, n), strict=True)]
            z = rng.normal(0, np.sqrt(variance), (DRAWS, *size))
            z = z if p is None else p @ z
            prior += z if n is None else z @ n.T
        mixed = rng.normal(0, np.sqrt(v[-1]), (DRAWS, len(self.bank)))
        prior += (mixed @ self.away.T).reshape(prior.shape)
        # Matheron's rule: a draw of the prior, moved by what it misses of what was seen.
        gap = y - prior[:, prompts, clips]
        moved = np.linalg.solve(seen + 1e-6 * np.eye(len(y)), gap.T)
        out = prior.reshape(DRAWS, -1) + (cross @ moved).T
        return self.mean + self.scale * out.reshape(prior.shape)


def even(count, shape, truth, rng):
    """(prompts, clips) of about `count` pairs: as many clips for each prompt, of both classes in turns."""
    prompts = shape[0]
    each = max(1, round(count / prompts))
    out = []
    for p in rng.permutation(prompts):
        sides = [list(rng.permutation(np.flatnonzero(truth == k))) for k in (0, 1)]
        out += [(p, sides[i % 2].pop()) for i in range(each)]
    return tuple(np.array(out).T)


def focused(forecast, truth, odds, count, rng, kind):
    """Half of the pairs evenly, the other half on the prompts that may be best by them, an eighth of all."""
    prompts, clips = even(count / 2, odds.shape, truth, rng)
    drawn = leaderboard(forecast.draws(prompts, clips, odds[prompts, clips]), truth)
    board = getattr(drawn, kind)
    first = np.bincount(board.argmax(axis=1), minlength=len(odds))
    likely = np.lexsort((-board.mean(axis=0), -first))[: max(5, len(odds) // 8)]
    known = set(zip(prompts.tolist(), clips.tolist(), strict=True))
    free = [(p, n) for p in likely.tolist() for n in range(odds.shape[1]) if (p, n) not in known]
    more = rng.permutation(len(free))[: max(0, count - len(prompts))]
    extra = np.array(free)[more].T
    return np.concatenate([prompts, extra[0]]), np.concatenate([clips, extra[1]])


def judge(predicted, true, interval=None):
    """(tau, regret in points, share of the true ones in the interval, its mean width in points)."""
    tau = stats.kendalltau(predicted, true).statistic
    regret = 100 * (true.max() - true[int(np.argmax(predicted))])
    if interval is None:
        return tau, regret, np.nan, np.nan
    low, high = interval
    inside = (low - 1e-9 <= true) & (true <= high + 1e-9)
    return tau, regret, 100 * inside.mean(), 100 * (high - low).mean()


def predicted_by(bank, odds, truth, share, rng):
    """Method -> objective -> (predicted accuracies, intervals or None)."""
    count = round(share * odds.size)
    forecast, others = Forecast(bank, truth), leaderboard(bank, truth)
    prompts, clips = even(count, odds.shape, truth, rng)
    seen = odds[prompts, clips]
    like = int(np.argmin([np.mean((b[prompts, clips] - seen) ** 2) for b in bank]))
    said = np.full(odds.shape, np.nan)
    said[prompts, clips] = (seen > 0) == (truth[clips] == 0)
    drawn = leaderboard(forecast.draws(prompts, clips, seen), truth)
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
        again = focused(forecast, truth, odds, count, rng, kind)
        second = leaderboard(forecast.draws(*again, odds[again]), truth)
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
        print("| --- |" + " --- |" * (len(names) + 4))
        for (of, method), by in rows.items():
            if of != kind:
                continue
            each = np.array([np.mean(by[name], axis=0) for name in names])
            cells = [f"{tau:.2f} / {regret:.1f}" for tau, regret, *_ in each]
            tau, regret, inside, width = each.mean(axis=0)
            told = ["", ""] if np.isnan(inside) else [f"{inside:.0f} %", f"{width:.0f}"]
            print(f"| {method} | {' | '.join([*cells, f'{tau:.2f}', f'{regret:.1f}', *told])} |")


def train(folder, device):
    """The adapters of `RECIPES` that are not there yet. Returns their folders."""
    out = []
    for name, flags in RECIPES.items():
        out.append(str(folder / name))
        given = [flag.format(dir=folder) for flag in flags]
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
