"""Cotune against training and then searching, at equal compute: python tests/bench_cotune.py --runs-dir runs/bench

For each seed `opro.cotune` walks as it does by default. Then the checkpoint is trained on the first hand-written prompt
for as many epochs as all rounds together had (B3), and searched (B4) until the search has asked for as many evals as
all searches of the walk. Every pair is decided with the threshold of the search half and scored on the test split; the
table has the mean over the seeds with 95 % intervals over the test sources, as `opro.stats` makes them. An interrupted
bench goes on; after each seed the table so far is printed. With --walks N no model is trained: N walks are simulated as
`bench_reruns.py` simulates searches, to see how often a round is confirmed that is no better than the one before.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from bench_reruns import ACCURACY, CANDIDATES, World, dev, share
from scipy.special import ndtri

from evaluators.classifier import Classifier, classifier_from
from evaluators.statistics.compare import ALPHA, difference, resample
from evaluators.statistics.metrics import balanced_weights
from evaluators.statistics.resampling import Statistic, clusters
from opro import cotune, finetune
from opro.cotune import CotuneSettings
from opro.optimize import search_only
from opro.problem import open_data, open_model
from opro.results.sheet import markdown, percent
from opro.search.power import SEEDS, SHARED
from opro.settings import DataSettings, MachineSettings, ModelSettings

ROWS = {
    "A1": "the checkpoint as it is, best hand-written prompt",
    "A2": "the checkpoint as it is, first search of the walk",
    "B3": "trained on the hand-written prompt, best hand-written prompt",
    "B4": "trained on the hand-written prompt, then searched",
    "B5": "cotuned: the pair handed over",
    "B5 last": "cotuned: the pair that leads on the search half at the end, confirmed or not",
}
WALKS = {
    "0, 0, 0, 0, 0": (0.0,) * 5,
    "+10, 0, 0, 0, 0": (0.1, 0.0, 0.0, 0.0, 0.0),
    "+6, +6, 0, 0, 0": (0.06, 0.06, 0.0, 0.0, 0.0),
    "+10, -10, 0, 0, 0": (0.1, -0.1, 0.0, 0.0, 0.0),
}  # points


def spent(run) -> list[int]:
    """Evals that a search had asked for after each iteration."""
    own = [0] * (1 + max(t.iteration for t in run.history.trials))
    for trial in run.history.trials:
        own[trial.iteration] += trial.n_scored
    return np.cumsum(own).tolist()


def of_one_seed(settings: CotuneSettings) -> tuple[dict, dict]:
    """(checkpoint and classifier of each row, what each has cost)."""
    labels = open_data(settings).task.labels
    folder = settings.folder
    walk = json.loads((folder / "cotune.json").read_text())
    first = next(s for s in walk["steps"] if s["kind"] == "search")
    searches = sum(s["kind"] == "search" for s in walk["steps"])
    trainings = [s for s in walk["steps"] if s["kind"] == "train"]
    evals, steps = walk["total"]["evals"], walk["total"]["steps"]

    def of(pair: dict) -> tuple[str, Classifier]:
        return pair["checkpoint"], classifier_from(pair["classifier"], labels, str(folder))

    record = json.loads((Path(trainings[0]["folder"]) / "training.json").read_text())
    lora = folder / "hand"
    tune = replace(
        settings.training(1, None), out=lora, epochs=len(trainings) * record["recipe"]["epochs"]
    )
    if not (lora / "adapter_config.json").is_file():
        with contextlib.redirect_stdout(sys.stderr):
            finetune.run(tune, finetune.prepare(tune), lora)
    alone = json.loads((lora / "training.json").read_text())
    many = replace(
        settings.search(0), checkpoint=str(lora), name=None,
        iterations=3 * searches * (settings.iterations + 1) // 2,  # more than enough evals
    )  # fmt: skip
    run = search_only(many)
    costs = spent(run)
    until = next((i for i, n in enumerate(costs) if n >= evals), len(costs) - 1)
    seen = [t for t in run.history.complete if t.iteration <= until]
    by_hand = next(t for t in seen if t.iteration == 0)
    base = search_only(settings.search(0)).history.complete[0]
    rows = {
        "A1": of(walk["rounds"][0]),
        "A2": (settings.checkpoint, base.classifier),
        "B3": (str(lora), by_hand.classifier),
        "B4": (str(lora), seen[0].classifier),
        "B5": of(walk["best"]),
        "B5 last": of(walk["rounds"][-1]),
    }
    return rows, {
        "A1": (0, costs[0]), "A2": (0, first["evals"]), "B3": (alone["steps"], costs[0]),
        "B4": (alone["steps"], costs[until]), "B5": (steps, evals), "B5 last": (steps, evals),
        "rounds": len(walk["rounds"]) - 1, "best": walk["best"]["round"], "ended": walk["stopped"],
    }  # fmt: skip


def on_test(settings: CotuneSettings, rows: dict) -> tuple:
    """(Targets of the test split, ``[clip]`` whether each row is right)."""
    data = open_data(DataSettings(settings.task, settings.manifest))
    clips = data.split("test")
    machine = MachineSettings(runs_dir=settings.runs_dir)
    right = {}
    for name, (checkpoint, classifier) in rows.items():
        how = ModelSettings(checkpoint, quantization=settings.quantization, device=settings.device)
        model = open_model(how, data, [clips], machine=machine)
        said = model.evaluator.score([classifier.prompt], clips).predict(classifier)
        right[name] = said.right.astype(np.float64)
        model.evaluator.release()
    return clips.targets, right


def shown(c, gain: Statistic, signed: bool = False) -> str:
    return percent(c.estimate(gain).to_dict(), signed=signed)


def table(targets, rights: list[dict], costs: list[dict]) -> str:
    """The rows as Markdown."""
    c = resample(targets)
    mean = {name: c.balanced(np.mean([r[name] for r in rights], axis=0)) for name in ROWS}
    body = []
    for name, words in ROWS.items():
        each = [f"{100 * float(c.balanced(r[name]).value):.1f}" for r in rights]
        steps, evals = np.mean([cost[name] for cost in costs], axis=0)
        against = [
            "" if name == other or name in ("A1", "A2") else
            f"{shown(c, mean[name] - mean[other], True)}"
            f" p {difference(c, mean[name], mean[other], two_sided=True).p:.2g}"
            for other in ("B3", "B4")
        ]  # fmt: skip
        body.append([name, words, shown(c, mean[name]), ", ".join(each), *against,
                     f"{steps:.0f}", f"{evals:,.0f}"])  # fmt: skip
    head = ["row", "pair", "balanced accuracy on test", "each seed", "against B3", "against B4",
            "training steps", "evals"]  # fmt: skip
    return markdown(head, body)


@cache
def dev_and_resamples():
    """The halves of the shipped dev split, and the resamples of the second."""
    both = dev()
    return both, clusters(both[1].truth, both[1].source.astype(str).tolist(), seed=0)


def simulated(gains: Sequence[float], seed: int) -> tuple[bool, bool, int]:
    """(Whether a walk confirms a round that is no better; whether trying every round at 2.5 % does; rounds confirmed).

    Each round brings prompts that are all better by its gain than those before; the pair that leads on the search half
    is compared on the holdout with the one that was confirmed last.
    """
    both, c = dev_and_resamples()
    world = World(both, [3, seed])

    def drawn(accuracy: float, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(Score of the leading prompt on the search half, ``[clip]`` whether it is right on the holdout)."""
        right = []
        for half, source, clip in zip(world.both, world.sources, world.clips, strict=True):
            effect = source + world.rng.normal(0, world.own, (count, len(source)))
            bound = ndtri(np.clip(accuracy + effect, 0.01, 0.99))[:, half.source]
            right.append(clip + np.sqrt(1 - SHARED) * world.rng.normal(size=bound.shape) < bound)
        score = right[0] @ balanced_weights(world.both[0].truth)
        return score.max(), right[1][score.argmax()].astype(float)

    best, heard = drawn(ACCURACY, SEEDS)
    accuracy = held = ACCURACY
    false_walk = false_any = stopped = False
    confirmed = 0
    for gain in gains:
        accuracy += gain
        score, fresh = drawn(accuracy, CANDIDATES)
        real = score > best and c.p_of_gain(c.balanced(fresh) - c.balanced(heard)) < ALPHA
        if real:
            false_any |= accuracy <= held
            false_walk |= accuracy <= held and not stopped
            confirmed += not stopped
            best, heard, held = score, fresh, accuracy
        stopped |= not real
    return false_walk, false_any, confirmed


def walks(count: int) -> str:
    """How often simulated walks err, as Markdown."""
    body = []
    with ProcessPoolExecutor(2) as pool:
        for name, gains in WALKS.items():
            found = list(pool.map(partial(simulated, gains), range(count), chunksize=8))
            walk, tried, rounds = (np.array(x) for x in zip(*found, strict=True))
            shares = [share(x).strip().replace("<=", "up to") for x in (walk, tried)]
            body.append([name, *shares, f"{rounds.mean():.2f}"])
    head = ["true gain of each round", f"a walk errs, % of {count}", "trying all rounds errs, %",
            "rounds confirmed"]  # fmt: skip
    return markdown(head, body)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="pocket-base")
    parser.add_argument("--manifest", type=Path, default=Path("data/demo"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--quantization", default="none", choices=("none", "nf4"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/bench-cotune"))
    parser.add_argument("--walks", type=int, default=0, help="simulated instead of trained")
    args = parser.parse_args()
    if args.walks:
        print(walks(args.walks))
        return 0
    rights, costs = [], []
    for seed in range(args.seeds):
        runs = args.runs_dir / f"seed-{seed}"  # a ledger of its own: seeds are no reruns here
        settings = CotuneSettings(
            checkpoint=args.checkpoint, manifest=args.manifest, device=args.device, seed=seed,
            quantization=args.quantization, rounds=args.rounds, iterations=args.iterations,
            epochs=args.epochs, runs_dir=runs,
        )  # fmt: skip
        argv = ["--checkpoint", args.checkpoint, "--manifest", str(args.manifest), "--device",
                args.device, "--quantization", args.quantization, "--seed", str(seed), "--rounds",
                str(args.rounds), "--iterations", str(args.iterations), "--runs-dir", str(runs),
                *(["--epochs", str(args.epochs)] if args.epochs else [])]  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr):
            cotune.main(argv)
            rows, cost = of_one_seed(settings)
            targets, right = on_test(settings, rows)
        rights.append(right)
        costs.append(cost)
        print(
            f"seed {seed}: {cost['rounds']} rounds walked, round {cost['best']} handed over; {cost['ended']}"
        )
        print(table(targets, rights, costs) + "\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
