"""Our search against its peers at equal cost: python tests/bench_search.py --checkpoint pocket-base pocket-lora

Needs `pip install -e '.[bench]'`. Every method starts from the task's seed prompts, has its prompts written by the
same author (the packages through their own public interfaces), sees dev clips only, and pays for each pair of prompt
and clip it asks for once; all share one cache. What each would hand over after so many evals is then scored on the test
split, as it is and with a threshold fitted on the clips that the method itself has paid for with that prompt. Each seed
draws which dev clips come first, for all methods alike. What decides nothing is not paid for by anybody: our controls,
and the first seed prompt on the holdout where it is not the baseline.

The author is the built-in rewriter. `--author phrasings` simulates people: the 40 held-out phrasings in random order,
then the rewriter on them. With --lm-model NAME --lm-base-url URL a language model behind a server writes the prompts
instead, for every method through its own meta-prompt; its replies are kept in --out/replies and given again when the
same run is made anew. gepa is driven as it is by default, with four proposals at once, and with the score of its
ConfidenceAdapter (the adapter itself talks to chat completions only).

In slices, on any machine: each run is one JSON file in --out/runs, what is there is not made again, and after --minutes
what runs is stopped. Beside what `opro.optimize` needs the packages need numpy, pandas, scipy, scikit-learn and tqdm:

    pip install --no-deps --target peers gepa==0.1.4 promptolution==2.3.0     (0.4 MB as wheels)
    PYTHONPATH=.:peers python tests/bench_search.py --device cuda --processes 16 --minutes 8.5 --task speech animal
"""

import argparse
import contextlib
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import multiprocessing
import random
import re
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from searches import Silent

from evaluators.audio_lm.answer_tokens import PromptError
from evaluators.build import build_evaluator
from evaluators.classifier import decide as decided
from evaluators.clips import ClipSet
from evaluators.files import shipped, write_text
from evaluators.manifest import read_manifest
from evaluators.prompts import prompt_from, read_prompts
from evaluators.splits import balanced_order, halves
from evaluators.statistics import metrics
from evaluators.statistics.calibration import fit_shift
from evaluators.tasks import task_named
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

BUDGETS = (300, 1000, 3000, 10_000)
WANTED = re.compile(r"Write (\d+) (?:new|prompts)")  # how many our request asks for
STEPS = 1000  # of a package that would go on for ever on prompts it has paid for
POPULATION = 10  # of the methods that keep one: the seeds and rewritings of them


class SpentError(Exception):
    """The budget does not cover what was asked for."""


@dataclass(frozen=True)
class Choice:
    """What a method would hand over after `evals`; `fitted` is a bias from the clips paid for with that prompt."""

    evals: int
    prompt: object
    bias: object
    fitted: object
    clips: int


@dataclass
class Meter:
    """Answers of prompts to clips; counts each pair once, and ends a method that has spent its budget."""

    task: object
    evaluator: object
    budget: int
    author: object  # who writes the prompts
    salt: str  # which clips come first
    pairs: set = field(default_factory=set)
    paid: dict = field(default_factory=dict)  # digest -> {clip_id: clip}
    choices: list = field(default_factory=list)  # whenever a method's choice changes

    def balanced(self, clips):
        return balanced_order(clips, self.salt)

    def truth(self, clips):
        return np.array([self.task.labels.index(c.label) for c in clips])

    def logp(self, prompt, clips):
        """``[clip, label]`` nats, None where the prompt cannot be asked."""
        asked = {(prompt.digest, c.clip_id) for c in clips}
        if len(self.pairs | asked) > self.budget:
            raise SpentError
        self.pairs |= asked
        try:
            found = self.evaluator.score([prompt], clips).logp[0]
        except PromptError:  # a text with control tokens, say, by a package that takes any
            return None
        self.paid.setdefault(prompt.digest, {}).update({c.clip_id: c for c in clips})
        return found

    def decided(self, prompt, clips):
        """``[clip]`` index of the label, -1 where the prompt cannot be asked."""
        found = self.logp(prompt, clips)
        return np.full(len(clips), -1) if found is None else decided(found)

    def right(self, prompt, clips):
        return self.decided(prompt, clips) == self.truth(clips)

    def choose(self, prompt, bias=0.0, fits=True):
        clips = list(self.paid.get(prompt.digest, {}).values())
        if self.choices:
            last = self.choices[-1]
            if (last.prompt, last.bias, last.clips) == (prompt, bias, len(clips)):
                return
        fitted, truth = bias, self.truth(clips)
        if fits and len(np.unique(truth)) > 1:
            fitted = fit_shift(truth, self.evaluator.score([prompt], clips).logp[0])
        self.choices.append(Choice(len(self.pairs), prompt, bias, fitted, len(clips)))


class Author:
    """The rewriter as a function from text to text: the prompts it knows that a text quotes are the parents."""

    def __init__(self, task, seed, seeds):
        self.task, self.rewriter, self.rng = task, Rewriter(task, seed), random.Random(seed)
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


class Phrasings(Author):
    """People who know nothing of the checkpoint: a phrasing of theirs at a time, and the rewriter when all are told.

    As our LanguageModel it gives as many at once as are asked for, and no fragments.
    """

    name = "phrasings"

    def __init__(self, task, seed, seeds):
        super().__init__(task, seed, seeds)
        self.left = list(read_prompts(shipped("prompts/heldout.yaml"), task.labels))
        self.rng.shuffle(self.left)

    def next(self):
        prompt = self.left.pop()
        self.known[prompt.text] = prompt
        return prompt

    def __call__(self, asked, far=0.5, **_):
        if isinstance(asked, str):
            return self.next().text if self.left else super().__call__(asked, far)
        found = WANTED.search(asked[-1].content)
        made = [self.next() for _ in range(int(found[1]) if found else 0) if self.left]
        told = [{"text": p.text, "answers": {k: w[0] for k, w in p.answers}} for p in made]
        return Reply(json.dumps({"prompts": told} if found else {}), 0, 0, 0.0, self.name, "stop")


class Chat:
    """A model behind a server, as a function from text to text and as our LanguageModel.

    The n-th reply of a run is kept beside the digest of what was asked, and a run made anew gets it from there.
    """

    def __init__(self, name, url, path, task, seed, seeds):
        self.name, self.url, self.path, self.labels = name, url, path, task.labels
        self.rng, self.rewriter = random.Random(seed), Author(task, seed, seeds)
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
        """Any text as a prompt: one of ours, or the model's with letters as answers."""
        if text not in self.known:
            self.known[text] = prompt_from({"text": text}, self.labels, "reply")
        return self.known[text]

    def population(self, seeds):
        return self.rewriter.population(seeds)


class Hostile:
    """A language model whose prompts are well-formed and bad: their options stand for the wrong class."""

    name = "hostile"

    def __init__(self):
        self.made = 0

    def __call__(self, messages, **_):
        found = WANTED.search(messages[-1].content)
        count = int(found[1]) if found else 0
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
    threshold="dev",
    guard=True,
    lm=None,
):
    """Our loop: `guard` off hands over the best of the search half without a second look."""
    learn = strategy != "random"
    if lm is None and learn and isinstance(meter.author, Chat | Phrasings):
        lm = meter.author
    # A language model that writes nothing usable would be asked for ever.
    rounds, each = 10 if isinstance(lm, Chat) else 100, 8 if strategy == "opro" else 10
    settings = SearchSettings(
        iterations=rounds, candidates=each, strategy=strategy, threshold=threshold, seed=seed,
        max_evals=meter.budget,
    )  # fmt: skip
    task = meter.task
    clips = [ClipSet(task, tuple(meter.balanced(half))) for half in (search, holdout)]
    problem = fit_budget(Problem(task, tuple(seeds), *clips, meter.evaluator, {}), settings)
    proposer = rewriter = Rewriter(task, seed, learn=learn)
    if lm is not None:
        asks = LMProposer(
            MeteredModel(lm, Ledger()),
            task,
            Objective(threshold=threshold),
            strategy=strategy,
            seed=seed,
        )
        proposer = asks if strategy == "opro" else Mixed(asks, rewriter)
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "trials.jsonl", task.labels)
        history.begin({})
        Search(problem, settings, proposer, history, Silent(), Clock(), lambda *_: None).run()
        decision = decide(problem, settings, history)
        chosen = decision.chosen
        if not guard and decision.finalists:
            chosen = decision.finalists[0].trial
        asked = sum(t.n_scored for t in history.trials)
        asked += (1 + len(decision.finalists)) * len(problem.holdout_clips)
        assert asked <= meter.budget, (asked, meter.budget)
    meter.pairs = set(range(asked))
    meter.choose(chosen.prompt, chosen.classifier.bias, fits=False)


def best_seed(meter, seeds, seed, search, holdout):
    """The seed prompt that scores best on as many dev clips as the budget covers."""
    clips = meter.balanced([*search, *holdout])[: meter.budget // len(seeds)]
    scores = [meter.right(p, clips).mean() for p in seeds]
    meter.choose(seeds[int(np.argmax(scores))])


def threshold_only(meter, seeds, seed, search, holdout):
    """The best seed prompt with the decision threshold fitted on the same clips."""
    clips = meter.balanced([*search, *holdout])[: meter.budget // len(seeds)]
    truth = meter.truth(clips)
    fits = []
    for prompt in seeds:
        logp = meter.logp(prompt, clips)
        bias = fit_shift(truth, logp)
        fits.append((metrics.balanced_accuracy(truth, decided(logp, bias) == truth), prompt, bias))
    meter.choose(*max(fits, key=lambda f: f[0])[1:], fits=False)


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
    clips = {c.clip_id: c for c in meter.balanced([*search, *holdout])}
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
            said = {}
            for text, part in asked.items():
                found = np.full(len(part), -1)
                if text.strip():
                    found = meter.decided(author.prompt(text), part)
                said |= {(text, c.clip_id): k for c, k in zip(part, found, strict=True)}
            words = [*(label.lower() for label in meter.task.labels), "nothing"]  # of -1
            out = [words[said[text, x]] for text, x in zip(prompts, xs, strict=True)]
            return out, out

        def _extract_preds(self, preds):
            return preds

    class Watch(BaseCallback):
        def on_step_end(self, optimizer):
            meter.choose(author.prompt(str(optimizer.prompts[0]) or seeds[0].text))
            return len(meter.pairs) < meter.budget

    frame = pandas.DataFrame([{"x": c.clip_id, "y": c.label} for c in clips.values()])
    task = ClassificationTask(
        frame, meter.task.description, n_subsamples=size, eval_strategy=strategy, seed=seed
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
    method.optimize(STEPS)
    logging.disable(logging.NOTSET)


def gepa(meter, seeds, seed, search, holdout, *, valid, parallel=1, sure=False):
    """The package gepa: minibatches of the search half, `valid` clips of the holdout as its validation set.

    `parallel` proposals are made at once, of parents of their own; `sure` counts a right answer by its probability, as
    its ConfidenceAdapter does by default. It takes one seed prompt: it is given, free of charge, the one that is best
    on those clips.
    """
    import gepa as package
    from gepa.adapters.confidence_adapter.scoring import LinearBlendScoring
    from gepa.strategies.proposal_sampling import IndependentSampling

    author = meter.author
    validation = meter.balanced(holdout)[:valid]
    truth = meter.truth(validation)
    blend = LinearBlendScoring(low_confidence_threshold=0.99)
    table = meter.evaluator.score(seeds, validation)
    first = seeds[int(np.argmax((decided(table.logp) == truth).mean(axis=1)))]

    class Adapter:
        def evaluate(self, batch, candidate, capture_traces=False):
            text = candidate["prompt"]
            logp = meter.logp(author.prompt(text), batch) if text.strip() else None
            scores = [0.0] * len(batch)
            if logp is not None:
                right = decided(logp) == meter.truth(batch)
                scores = [float(r) for r in right]
                if sure:
                    scores = [
                        blend.score(bool(r), float(p.max()))
                        for r, p in zip(right, logp, strict=True)
                    ]
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
    if parallel > 1:
        by["sampling_strategy"] = IndependentSampling(parallel)
    meter.choose(first)
    with contextlib.redirect_stdout(io.StringIO()):
        package.optimize(
            seed_candidate={"prompt": first.text},
            trainset=search,
            valset=validation,
            adapter=Adapter(),
            max_metric_calls=3 * meter.budget,  # it counts repeated pairs too; the meter ends it
            skip_perfect_score=False,
            callbacks=[Watch()],
            seed=seed,
            **by,
        )


def partial(function, **options):
    return lambda *args: function(*args, **options)


METHODS = {
    "ours": ours,
    "ours, argmax": partial(ours, threshold="argmax"),
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
    "gepa, 50, 4 proposals at once": partial(gepa, valid=50, parallel=4),
    "gepa, 50, ConfidenceAdapter's score": partial(gepa, valid=50, sure=True),
}
WITHOUT = {"best seed prompt", "threshold only"}  # an author
NEEDS_REWRITER = {"random paraphrases", "--strategy random", "ours, with a hostile language model"}
ONCE = {  # a choice at every number of evals, so that one run shows the whole curve
    name for name in METHODS if not name.startswith(("ours", "--")) and name not in WITHOUT
}


def mean_interval(values):
    values = 100 * np.asarray(values)
    if len(values) < 2 or not values.std():
        return f"{values.mean():.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.2f} [{values.mean() - half:.2f}, {values.mean() + half:.2f}]"


@dataclass(frozen=True)
class Run:
    """One method on one task and checkpoint; `budget` is the largest where one run shows all of them."""

    task: str
    checkpoint: str
    method: str
    author: str
    seed: int
    budget: int

    def path(self, out):
        name = re.sub(r"\W+", "-", " ".join(map(str, asdict(self).values())))
        return out / "runs" / f"{name}.json"


def run_of(args, task, checkpoint, method, seed, budget):
    """The run that shows what a method hands over after `budget` evals."""
    author = "none" if method in WITHOUT else args.lm_model or args.author
    most = max(args.budgets) if method in ONCE else budget
    return Run(task, checkpoint, method, author, seed, most)


def in_force(choices, budget):
    """What was chosen last within `budget` evals; what came first where nothing was."""
    return [c for c in choices if c["evals"] <= budget or c is choices[0]][-1]


def read(args, run):
    """What is known of a run, None where it is to be made: it is not there, or not for all budgets."""
    path = run.path(args.out)
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    wanted = [b for b in args.budgets if b <= run.budget]
    known = all(in_force(found["choices"], b).get("test") is not None for b in wanted)
    return found if known else None


def collect(args):
    """All runs, from their files or made now: {run: what is known}. None if time was up before all were made."""
    begin = time.monotonic()
    wanted = dict.fromkeys(
        run_of(args, task, checkpoint, name, seed, budget)
        for seed in range(args.seeds)
        for budget in sorted(args.budgets, reverse=True)
        for name in args.methods
        for checkpoint in args.checkpoint
        for task in args.task
    )
    todo = [run for run in wanted if read(args, run) is None]
    (args.out / "runs").mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        made = pool.imap_unordered(functools.partial(once, args), todo)
        for done in range(1, len(todo) + 1):
            left = None if args.minutes is None else 60 * args.minutes - (time.monotonic() - begin)
            try:
                run, last = made.next(None if left is None else max(0, left))
            except multiprocessing.TimeoutError:
                print(
                    f"{done - 1} of {len(todo)} runs were made in {args.minutes:g} minutes; the same command goes on"
                )
                return None  # leaving the pool ends what runs
            print(
                f"{done}/{len(todo)} {' '.join(map(str, asdict(run).values()))} {last}", flush=True
            )
    return {run: read(args, run) for run in wanted}


@functools.cache
def material(cache, task_name, checkpoint, device):
    """What every run of this process works on."""
    torch.set_num_threads(1)
    task = task_named(task_name)
    seeds = list(task.prompts) or read_prompts(shipped("prompts/seeds/baselines.yaml"), task.labels)
    everything = read_manifest(shipped("data/demo"), task)
    search, holdout = halves([c for c in everything if c.split == "dev"])
    test = balanced_order([c for c in everything if c.split == "test"])
    evaluator = build_evaluator(checkpoint, cache=cache, device=device)[0]
    return task, evaluator, seeds, search, holdout, test


def once(args, run):
    """One method, once: every choice it made; those in force at a budget with their balanced accuracy on test."""
    begin = time.monotonic()
    cache = args.out / ".cache"
    task, evaluator, seeds, search, holdout, test = material(
        cache, run.task, run.checkpoint, args.device
    )
    author = (Phrasings if run.author == "phrasings" else Author)(task, run.seed, seeds)
    if args.lm_model:
        path = args.out / "replies" / run.path(args.out).with_suffix(".jsonl").name
        author = Chat(args.lm_model, args.lm_base_url, path, task, run.seed, seeds)
    meter = Meter(task, evaluator, run.budget, author, str(run.seed))
    with contextlib.suppress(SpentError):
        METHODS[run.method](meter, seeds, run.seed, search, holdout)
    truth = meter.truth(test)
    choices = [
        {
            "evals": c.evals,
            "text": c.prompt.text,
            "bias": c.bias,
            "fitted": c.fitted,
            "clips": c.clips,
        }
        for c in meter.choices
    ]
    for budget in args.budgets:
        told = in_force(choices, budget)
        logp = evaluator.score([meter.choices[choices.index(told)].prompt], test).logp[0]
        for key, bias in (("test", told["bias"]), ("test_fitted", told["fitted"])):
            told[key] = float(metrics.balanced_accuracy(truth, decided(logp, bias) == truth))
    made = asdict(run) | {
        "evals": len(meter.pairs),
        "seconds": time.monotonic() - begin,
        "choices": choices,
    }
    write_text(run.path(args.out), json.dumps(made))
    return run, f"{choices[-1]['test']:.4f}"


def results(args, runs, task, checkpoint, name, budget, key):
    """``[seed]`` balanced accuracy on test."""
    return np.array(
        [
            in_force(runs[run_of(args, task, checkpoint, name, s, budget)]["choices"], budget)[key]
            for s in range(args.seeds)
        ]
    )


def table(args, runs):
    """Each method as it hands over, and with a threshold; `ours` has one of its own, `ours, argmax` none."""
    for task, checkpoint in itertools.product(args.task, args.checkpoint):
        author = args.lm_model or args.author
        print(
            f"\n{task}, {checkpoint}, author {author}: balanced accuracy on test, (ours minus it), {args.seeds} seeds"
        )
        print("| method |" + "".join(f" {b:,} | + threshold |" for b in args.budgets))
        print("| --- |" + " --- | --- |" * len(args.budgets))
        for name in args.methods:
            cells = []
            for budget in args.budgets:
                for key in ("test", "test_fitted"):
                    values = results(args, runs, task, checkpoint, name, budget, key)
                    gap = results(args, runs, task, checkpoint, "ours", budget, "test") - values
                    same = key == "test_fitted" and (
                        name.startswith(("ours", "--")) or name == "threshold only"
                    )
                    more = "" if name == "ours" else f" ({mean_interval(gap)})"
                    cells.append("" if same else f"{100 * values.mean():.1f}{more}")
            print(f"| {name} | " + " | ".join(cells) + " |")


def plot(args, runs):
    """The table's means as curves over evals; a package's with its threshold."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(itertools.product(args.task, args.checkpoint))
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 4.5), squeeze=False)
    for axis, (task, checkpoint) in zip(axes[0], panels, strict=True):
        for i, name in enumerate(args.methods):
            values = np.array(
                [
                    results(args, runs, task, checkpoint, name, b, "test_fitted")
                    for b in args.budgets
                ]
            )
            error = (
                stats.sem(values, axis=1) * stats.t.ppf(0.975, args.seeds - 1)
                if args.seeds > 1
                else 0
            )
            style = {"color": plt.get_cmap("tab20")(i % 20), "lw": 3 if name == "ours" else 1}
            axis.errorbar(
                args.budgets,
                100 * values.mean(axis=1),
                100 * error,
                label=name,
                marker="o",
                **style,
            )
        axis.set(
            title=f"{task}, {checkpoint}",
            xlabel="evals",
            ylabel="balanced accuracy on test, %",
            xscale="log",
        )
    axes[0][-1].legend(fontsize=6, loc="lower right")
    figure.tight_layout()
    figure.savefig(args.out / "curves.png", dpi=130)
    print(f"\n{args.out / 'curves.png'}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", nargs="+", default=["speech"], help="such as speech animal")
    parser.add_argument("--checkpoint", nargs="+", default=["pocket-base", "pocket-lora"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--author", default="rewriter", choices=["rewriter", "phrasings"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1, help="of one thread each")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, help="stop then; the same command goes on")
    parser.add_argument("--lm-model", help="who writes the prompts instead of the rewriter")
    parser.add_argument("--lm-base-url")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_search"))
    args = parser.parse_args()
    if args.author == "phrasings" and args.task != ["speech"]:
        parser.error("--author phrasings writes prompts for --task speech alone")
    if args.lm_model is not None or args.author == "phrasings":
        args.methods = [name for name in args.methods if name not in NEEDS_REWRITER]
    args.methods = list(
        dict.fromkeys(["ours", *args.methods])
    )  # which all others are compared with
    runs = collect(args)
    if runs is None:
        return
    table(args, runs)
    plot(args, runs)


if __name__ == "__main__":
    main()
