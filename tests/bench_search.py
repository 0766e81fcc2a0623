"""Our search against its peers at equal cost: python tests/bench_search.py --checkpoint pocket-base pocket-lora

Needs `pip install -e '.[bench]'`. Every method starts from the published seed prompts, has its prompts written
by the built-in rewriter (the packages through their own public interfaces), sees dev clips only, and pays for each
pair of prompt and clip it asks for once; all share one cache. What each would hand over after so many evals is then
scored on the test split. Runs are kept in --out, so that the same command goes on where it was stopped.

With --lm-model NAME --lm-base-url URL a language model behind a server writes the prompts instead, for every method
through its own meta-prompt; its replies are kept in --out/replies and given again when the same run is made anew.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import multiprocessing
import random
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from searches import Silent

from evaluators.audio_lm.answer_tokens import PromptError
from evaluators.build import build_evaluator
from evaluators.classifier import decide as decided
from evaluators.classifier import log_odds
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import prompt_from, read_prompts
from evaluators.splits import balanced_order, halves
from evaluators.statistics import metrics
from evaluators.statistics.calibration import fit_bias
from evaluators.tasks import SPEECH_TASK
from opro.problem import Problem
from opro.proposers.language_model import Message, Reply
from opro.proposers.ledger import Ledger, MeteredModel
from opro.proposers.lm_proposer import LMProposer
from opro.proposers.mixed import Mixed
from opro.proposers.openai_model import OpenAIModel
from opro.proposers.rewriter import Rewriter
from opro.search.budget import fit_budget
from opro.search.history import History
from opro.search.loop import Clock, Search
from opro.search.objective import Objective
from opro.search.select import decide
from opro.settings import SearchSettings

LABELS = SPEECH_TASK.labels
BUDGETS = (1000, 3000)
POPULATION = 10  # of the methods that keep one: the seeds and rewritings of them


class SpentError(Exception):
    """The budget does not cover what was asked for."""


@dataclass
class Meter:
    """Right or wrong of prompts on clips; counts each pair once, and ends a method that has spent its budget."""

    evaluator: object
    budget: int
    author: object  # who writes the prompts
    pairs: set = field(default_factory=set)
    events: list = field(
        default_factory=list
    )  # (evals, prompt, bias) whenever a method's choice changes

    def right(self, prompt, clips):
        asked = {(prompt.digest, c.clip_id) for c in clips}
        if len(self.pairs | asked) > self.budget:
            raise SpentError
        self.pairs |= asked
        truth = np.array([LABELS.index(c.label) for c in clips])
        try:
            return decided(self.evaluator.score([prompt], clips).logp[0]) == truth
        except PromptError:  # a text with control tokens, say, by a package that takes any
            return np.zeros(len(clips), bool)

    def margins(self, prompt, clips):
        self.right(prompt, clips)
        return log_odds(self.evaluator.score([prompt], clips).logp[0])

    def choose(self, prompt, bias=0.0):
        if not self.events or self.events[-1][1:] != (prompt, bias):
            self.events.append((len(self.pairs), prompt, bias))


class Author:
    """The rewriter as a function from text to text: the prompts it knows that a text quotes are the parents."""

    def __init__(self, seed, seeds):
        self.rewriter, self.rng = Rewriter(SPEECH_TASK, seed), random.Random(seed)
        self.known = {p.text: p for p in seeds}

    def __call__(self, text, far=0.5):
        found = sorted((text.rfind(t), t) for t in self.known if t in text)
        # A text that is part of another one is not quoted on its own.
        quoted = [t for _, t in found if not any(t != o and t in o for _, o in found)]
        return self.child([self.known[t] for t in reversed(quoted)][:6], far).text

    def child(self, parents, far=0.5):
        for _ in range(1000):
            made = self.rewriter.rewrite(parents, self.rng, far)
            if made is not None and made.prompt.text not in self.known:
                self.known[made.prompt.text] = made.prompt
                return made.prompt
        return parents[0]

    def prompt(self, text):
        return self.known[text]

    def population(self, seeds):
        return [*seeds, *(self.child(seeds) for _ in range(POPULATION - len(seeds)))]


class Chat:
    """A model behind a server, as a function from text to text and as our LanguageModel.

    The n-th reply of a run is kept beside the digest of what was asked, and a run made anew gets it from there.
    """

    def __init__(self, name, url, path, seed, seeds):
        self.name, self.url, self.path = name, url, path
        self.rng, self.rewriter = random.Random(seed), Author(seed, seeds)
        self.known = self.rewriter.known
        self.count = 0
        self.kept = []
        if path.exists():
            self.kept = [json.loads(line) for line in path.read_text().splitlines()]

    def __call__(self, messages, *, temperature=1.0, max_tokens=200):
        if isinstance(messages, str):
            return self([Message("user", messages)]).text
        asked = hashlib.sha256(repr(messages).encode()).hexdigest()[:16]
        if self.count < len(self.kept) and self.kept[self.count]["asked"] == asked:
            reply = Reply(**self.kept[self.count]["reply"])
        else:
            model = OpenAIModel(self.name, self.url)
            reply = model(messages, temperature=temperature, max_tokens=max_tokens)
            self.kept = [*self.kept[: self.count], {"asked": asked, "reply": asdict(reply)}]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(k) + "\n" for k in self.kept))
        self.count += 1
        return reply

    def prompt(self, text):
        """Any text as a prompt: one of ours, or the model's with the letters A and B as answers."""
        if text not in self.known:
            self.known[text] = prompt_from({"text": text}, LABELS, "reply")
        return self.known[text]

    def population(self, seeds):
        return self.rewriter.population(seeds)


class Hostile:
    """A language model whose prompts are well-formed and bad: their options stand for the wrong class."""

    name = "hostile"

    def __init__(self):
        self.made = 0

    def __call__(self, messages, **_):
        count = int(re.search(r"Write (\d+) new", messages[-1].content).group(1))
        self.made += count
        texts = [
            f"Question {self.made - i}: what is heard? A) no speech B) speech" for i in range(count)
        ]
        return Reply(json.dumps({"prompts": texts}), 0, 0, 0.0, self.name, "stop")


def ours(
    meter,
    seeds,
    seed,
    search,
    holdout,
    *,
    strategy="race",
    threshold="argmax",
    guard=True,
    lm=None,
):
    """Our loop: `guard` off hands over the best of the search half without a second look."""
    learn = strategy != "random"
    if lm is None and learn and isinstance(meter.author, Chat):
        lm = meter.author
    # A language model that writes nothing usable would be asked for ever.
    rounds, each = 10 if isinstance(lm, Chat) else 100, 8 if strategy == "opro" else 10
    settings = SearchSettings(
        iterations=rounds, candidates=each, strategy=strategy, threshold=threshold, seed=seed,
        max_evals=meter.budget,
    )  # fmt: skip
    clips = [ClipSet(SPEECH_TASK, tuple(half)) for half in (search, holdout)]
    problem = fit_budget(Problem(SPEECH_TASK, tuple(seeds), *clips, meter.evaluator, {}), settings)
    proposer = rewriter = Rewriter(SPEECH_TASK, seed, learn=learn)
    if lm is not None:
        asks = LMProposer(
            MeteredModel(lm, Ledger()),
            SPEECH_TASK,
            Objective(threshold=threshold),
            strategy=strategy,
            seed=seed,
        )
        proposer = asks if strategy == "opro" else Mixed(asks, rewriter)
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "trials.jsonl", LABELS)
        history.begin({})
        Search(problem, settings, proposer, history, Silent(), Clock(), lambda *_: None).run()
        decision = decide(problem, settings, history)
        chosen = decision.chosen
        if not guard and decision.finalists:
            chosen = decision.finalists[0].trial
        asked = sum(t.n_scored for t in history.trials)
        asked += len(decision.predictions) * len(problem.holdout_clips)
        assert asked <= meter.budget, (asked, meter.budget)
    meter.pairs = set(range(asked))
    meter.choose(chosen.prompt, chosen.classifier.bias)


def best_seed(meter, seeds, seed, search, holdout):
    """The seed prompt that scores best on as many dev clips as the budget covers."""
    clips = balanced_order([*search, *holdout])[: meter.budget // len(seeds)]
    scores = [meter.right(p, clips).mean() for p in seeds]
    meter.choose(seeds[int(np.argmax(scores))])


def threshold_only(meter, seeds, seed, search, holdout):
    """The best seed prompt with the decision threshold fitted on the same clips."""
    clips = balanced_order([*search, *holdout])[: meter.budget // len(seeds)]
    truth = np.array([LABELS.index(c.label) for c in clips])
    fits = []
    for prompt in seeds:
        margin = meter.margins(prompt, clips)
        bias = fit_bias(truth, margin)
        fits.append((metrics.balanced_accuracy(truth, (margin + bias < 0) == truth), prompt, bias))
    meter.choose(*max(fits, key=lambda f: f[0])[1:])


def greedy_random(meter, seeds, seed, search, holdout):
    """Random rewritings of the seeds, each on all search clips; the best of them."""
    author = meter.author
    best = -1.0
    for prompt in [*seeds, *(author.child(seeds, 0.5) for _ in range(1000))]:
        score = meter.right(prompt, search).mean()
        if score > best:
            best = score
            meter.choose(prompt)


def promptolution(meter, seeds, seed, search, holdout, *, name, strategy, size=30, grown=True):
    """A method of the package promptolution; `grown` starts it from ten prompts instead of the three seeds."""
    import pandas
    from promptolution.llms.base_llm import BaseLLM
    from promptolution.optimizers.capo import CAPO
    from promptolution.optimizers.evoprompt_de import EvoPromptDE
    from promptolution.optimizers.evoprompt_ga import EvoPromptGA
    from promptolution.optimizers.opro import OPRO
    from promptolution.predictors.base_predictor import BasePredictor
    from promptolution.tasks.classification_tasks import ClassificationTask
    from promptolution.utils.callbacks import BaseCallback

    random.seed(seed)
    np.random.seed(seed)
    clips = {c.clip_id: c for c in balanced_order([*search, *holdout])}
    author = meter.author

    class Model(BaseLLM):
        def _get_response(self, prompts, system_prompts):
            replies = [author(p) for p in prompts]
            return (
                replies if isinstance(author, Chat) else [f"<prompt>{r}</prompt>" for r in replies]
            )

    class Predictor(BasePredictor):
        def predict(self, prompts, xs, system_prompts=None):
            asked = {}
            for text, x in zip(prompts, xs, strict=True):
                asked.setdefault(text, []).append(clips[x])
            right = {}
            for text, part in asked.items():
                found = np.zeros(len(part), bool)
                if text.strip():
                    found = meter.right(author.prompt(text), part)
                right |= {(text, c.clip_id): r for c, r in zip(part, found, strict=True)}
            other = {LABELS[0]: LABELS[1], LABELS[1]: LABELS[0]}
            said = [
                (clips[x].label if right[text, x] else other[clips[x].label]).lower()
                for text, x in zip(prompts, xs, strict=True)
            ]
            return said, said

        def _extract_preds(self, preds):
            return preds

    class Watch(BaseCallback):
        def on_step_end(self, optimizer):
            meter.choose(author.prompt(str(optimizer.prompts[0]) or seeds[0].text))
            return len(meter.pairs) < meter.budget

    frame = pandas.DataFrame([{"x": c.clip_id, "y": c.label} for c in clips.values()])
    task = ClassificationTask(
        frame, SPEECH_TASK.description, n_subsamples=size, eval_strategy=strategy, seed=seed
    )
    start = author.population(seeds) if grown else list(seeds)
    common = {
        "predictor": Predictor(Model()),
        "task": task,
        "meta_llm": Model(),
        "initial_prompts": [p.text for p in start],
        "callbacks": [Watch()],
    }
    if name == "capo":
        common |= {"upper_shots": 0, "create_fs_reasoning": False, "df_few_shots": frame.iloc[:0]}
        method = CAPO(**common)
    else:
        method = {"evoprompt-ga": EvoPromptGA, "evoprompt-de": EvoPromptDE, "opro": OPRO}[name](
            **common
        )
    meter.choose(seeds[0])
    logging.disable(logging.CRITICAL)  # it reports the exhausted budget as an error, and ends
    method.optimize(10_000)
    logging.disable(logging.NOTSET)


def gepa(meter, seeds, seed, search, holdout, *, valid):
    """The package gepa: minibatches of the search half, `valid` clips of the holdout as its validation set.

    It takes one seed prompt: it is given, free of charge, the one that is best on those clips.
    """
    import gepa as package

    author = meter.author
    validation = balanced_order(holdout)[:valid]
    truth = np.array([LABELS.index(c.label) for c in validation])
    table = meter.evaluator.score(seeds, validation)
    first = seeds[int(np.argmax((decided(table.logp) == truth).mean(axis=1)))]

    class Adapter:
        def evaluate(self, batch, candidate, capture_traces=False):
            text = candidate["prompt"]
            right = meter.right(author.prompt(text), batch) if text.strip() else [0.0] * len(batch)
            scores = [float(r) for r in right]
            return package.EvaluationBatch(
                outputs=scores, scores=scores, trajectories=list(batch) if capture_traces else None
            )

        def make_reflective_dataset(self, candidate, batch, components):
            records = [
                {
                    "Inputs": f"a clip of {c.duration_ms:.0f} ms, {c.category}, SNR {c.snr_db} dB",
                    "Generated Outputs": "right" if s else "wrong",
                    "Feedback": f"the right answer is {c.label}",
                }
                for c, s in zip(batch.trajectories, batch.scores, strict=True)
            ]
            return {c: records for c in components}

    def rewrite(candidate, dataset, components):
        return {"prompt": author(candidate["prompt"])}

    class Watch:
        def on_valset_evaluated(self, event):
            if event["is_best_program"]:
                meter.choose(author.prompt(event["candidate"]["prompt"] or first.text))

    by = {"custom_candidate_proposer": rewrite}
    if isinstance(author, Chat):
        by = {"reflection_lm": author}
    meter.choose(first)
    with contextlib.redirect_stdout(io.StringIO()):
        package.optimize(
            seed_candidate={"prompt": first.text},
            trainset=search,
            valset=validation,
            adapter=Adapter(),
            max_metric_calls=meter.budget,
            skip_perfect_score=False,
            callbacks=[Watch()],
            seed=seed,
            **by,
        )


def partial(function, **options):
    return lambda *args: function(*args, **options)


METHODS = {
    "ours": ours,
    "ours, threshold fitted": partial(ours, threshold="dev"),
    "ours without the second look": partial(ours, guard=False),
    "ours, with a hostile language model": partial(ours, lm=Hostile()),
    "best seed prompt": best_seed,
    "threshold only": threshold_only,
    "random paraphrases": greedy_random,
    "--strategy random": partial(ours, strategy="random"),
    "--strategy opro": partial(ours, strategy="opro"),
    "promptolution CAPO, 3 prompts": partial(
        promptolution, name="capo", strategy="sequential_block", grown=False
    ),
    "promptolution CAPO, 10 prompts": partial(
        promptolution, name="capo", strategy="sequential_block"
    ),
    "promptolution EvoPrompt GA": partial(promptolution, name="evoprompt-ga", strategy="subsample"),
    "promptolution EvoPrompt DE": partial(promptolution, name="evoprompt-de", strategy="subsample"),
    "promptolution OPRO": partial(promptolution, name="opro", strategy="subsample", grown=False),
    "promptolution OPRO, 100 clips": partial(
        promptolution, name="opro", strategy="sequential_block", size=100, grown=False
    ),
    "gepa, 200 validation clips": partial(gepa, valid=200),
    "gepa, 50 validation clips": partial(gepa, valid=50),
}
FIXED = {"best seed prompt", "threshold only"}  # no chance in them
NEEDS_REWRITER = {"random paraphrases", "--strategy random", "ours, with a hostile language model"}
ONCE = {  # a choice at every number of evals, so that one run shows the whole curve
    name for name in METHODS if not name.startswith(("ours", "--")) and name not in FIXED
}


def mean_interval(values):
    values = 100 * np.asarray(values)
    if len(values) < 2 or not values.std():
        return f"{values.mean():.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.2f} [{values.mean() - half:.2f}, {values.mean() + half:.2f}]"


def at(run, budget):
    """Test accuracy of what a run would hand over after `budget` evals."""
    return [e["test"] for e in run["events"] if e["evals"] <= budget or e is run["events"][0]][-1]


def collect(args):
    """All runs, from the file or made now: {(checkpoint, method, seed, budget): run}."""
    path = args.out / "runs.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    runs = {}
    if path.exists():
        for line in path.read_text().splitlines():
            raw = json.loads(line)
            runs[raw["checkpoint"], raw["method"], raw["seed"], raw["budget"]] = raw
    wanted = [
        (checkpoint, name, seed, budget)
        for budget in sorted(args.budgets, reverse=True)
        for seed in range(args.seeds)
        for name in args.methods
        for checkpoint in args.checkpoint
        if (name not in FIXED or seed == 0) and (name not in ONCE or budget == max(args.budgets))
    ]
    todo = [run for run in wanted if run not in runs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool, path.open("a") as file:
        model = (args.lm_model, args.lm_base_url)
        jobs = [pool.submit(once, args.out, model, *run) for run in todo]
        for done, job in enumerate(as_completed(jobs), 1):
            run = job.result()
            runs[run["checkpoint"], run["method"], run["seed"], run["budget"]] = run
            file.write(json.dumps(run) + "\n")
            file.flush()
            what = f"{run['checkpoint']} {run['method']} {run['seed']} {run['budget']}"
            print(f"{done}/{len(todo)} {what} {run['events'][-1]['test']:.4f}", flush=True)
    return runs


@functools.cache
def material(cache, checkpoint):
    """What every run of this process works on."""
    torch.set_num_threads(1)
    seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), LABELS)
    everything = read_manifest(shipped("data/demo"), LABELS)
    search, holdout = halves([c for c in everything if c.split == "dev"])
    test = balanced_order([c for c in everything if c.split == "test"])
    return build_evaluator(checkpoint, cache=cache)[0], seeds, search, holdout, test


def once(out, model, checkpoint, name, seed, budget):
    """One method, once: every choice it made, with its balanced accuracy on test."""
    evaluator, seeds, search, holdout, test = material(out / ".cache", checkpoint)
    truth = np.array([LABELS.index(c.label) for c in test])
    author = Author(seed, seeds)
    if model[0]:
        run = re.sub(r"\W+", "-", f"{checkpoint} {name} {seed} {budget}")
        author = Chat(*model, out / "replies" / f"{run}.jsonl", seed, seeds)
    meter = Meter(evaluator, budget, author)
    with contextlib.suppress(SpentError):
        METHODS[name](meter, seeds, seed, search, holdout)
    events = []
    for evals, prompt, bias in meter.events:
        right = decided(evaluator.score([prompt], test).logp[0], bias) == truth
        score = metrics.balanced_accuracy(truth, right)
        events.append({"evals": evals, "text": prompt.text, "test": score})
    return {
        "checkpoint": checkpoint,
        "method": name,
        "seed": seed,
        "budget": budget,
        "evals": len(meter.pairs),
        "events": events,
    }


def table(args, runs):
    for checkpoint in args.checkpoint:
        print(f"\n{checkpoint}, balanced accuracy on test of the prompt handed over")
        print("| method |" + "".join(f" {b:,} evals | ours minus it |" for b in args.budgets))
        print("| --- |" + " --- | --- |" * len(args.budgets))

        def results(name, budget, checkpoint=checkpoint):
            fixed, once = name in FIXED, name in ONCE
            return [
                at(
                    runs[
                        checkpoint, name, 0 if fixed else s, max(args.budgets) if once else budget
                    ],
                    budget,
                )
                for s in range(args.seeds)
            ]

        for name in args.methods:
            cells = []
            for budget in args.budgets:
                values = results(name, budget)
                gap = np.array(results("ours", budget)) - np.array(values)
                cells += [mean_interval(values), "" if name == "ours" else mean_interval(gap)]
            print(f"| {name} | " + " | ".join(cells) + " |")


def plot(args, runs):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(args.checkpoint), figsize=(6 * len(args.checkpoint), 4.5))
    grid = np.arange(100, max(args.budgets) + 1, 50)
    for axis, checkpoint in zip(np.atleast_1d(axes), args.checkpoint, strict=True):
        for i, name in enumerate(args.methods):
            colour = plt.get_cmap("tab20")(i % 20)
            if name in ONCE:
                lines = np.array(
                    [
                        [at(runs[checkpoint, name, s, max(args.budgets)], b) for b in grid]
                        for s in range(args.seeds)
                    ]
                )
                axis.plot(grid, 100 * lines.mean(axis=0), color=colour, label=name, lw=1)
                if args.seeds > 1:
                    error = 100 * stats.sem(lines) * stats.t.ppf(0.975, args.seeds - 1)
                    middle = 100 * lines.mean(axis=0)
                    axis.fill_between(
                        grid, middle - error, middle + error, color=colour, alpha=0.08
                    )
            else:
                n = 1 if name in FIXED else args.seeds
                values = [
                    [100 * at(runs[checkpoint, name, s, b], b) for s in range(n)]
                    for b in args.budgets
                ]
                error = [stats.sem(v) * stats.t.ppf(0.975, n - 1) if n > 1 else 0 for v in values]
                axis.errorbar(
                    args.budgets,
                    [np.mean(v) for v in values],
                    error,
                    color=colour,
                    label=name,
                    marker="o",
                    lw=3 if name == "ours" else 1,
                )
        axis.set(title=checkpoint, xlabel="evals", ylabel="balanced accuracy on test, %")
    np.atleast_1d(axes)[-1].legend(fontsize=6, loc="lower right")
    figure.tight_layout()
    figure.savefig(args.out / "curves.png", dpi=130)
    print(f"\n{args.out / 'curves.png'}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", nargs="+", default=["pocket-base", "pocket-lora"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--lm-model", help="who writes the prompts instead of the rewriter")
    parser.add_argument("--lm-base-url")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_search"))
    args = parser.parse_args()
    if args.lm_model is not None:
        args.methods = [name for name in args.methods if name not in NEEDS_REWRITER]
    args.methods = list(
        dict.fromkeys(["ours", *args.methods])
    )  # which all others are compared with
    runs = collect(args)
    table(args, runs)
    plot(args, runs)


if __name__ == "__main__":
    main()
