"""Does a good author help? python tests/bench_author.py --checkpoint pocket-base

An author who knows nothing of the checkpoint is simulated behind a loopback server. It has the 40 held-out human
phrasings and their parts, makes many prompts of them and of the leading rows, and gives those that a regression on the
words of the rows it has read rates highest, some others beside. What differs is what it reads. ``new`` reads the
table of today's request: prompts with their answers, valued by their best threshold, and writes fragments for the
rewriter. ``old`` reads what requests once held: texts and whole scores at the threshold in use, and no fragments are
asked of it. Each joins the rewriter under ``--proposer auto``; ``alone`` is ``new`` without the rewriter;
``rewriter`` is the rewriter alone. For numbers of evals asked for, over seeds: balanced accuracy on the test split of
what the search half holds for best by then, with its threshold; and how many of the author's own prompts came within
two points of the best prompt that any of these searches found.
"""

import argparse
import contextlib
import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from chat_server import serve
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Ridge

from evaluators.build import build_evaluator
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.orders import find_options
from evaluators.prompts import Prompt, read_prompts
from evaluators.splits import balanced_order
from evaluators.tasks import SPEECH_TASK
from opro import optimize
from opro.proposers.rewriter import take_apart
from opro.search.history import History, best_first

LABELS = SPEECH_TASK.labels
EVERYTHING = list(read_prompts(shipped("prompts/heldout.yaml"), LABELS))
HINTS = [
    t.split(". ")[0].rstrip(".") + "."
    for t in (p.text.split("\n")[0] for p in EVERYTHING)
    if "A" not in t.split() and len(t) < 110
]
FEW = 6  # rows from which nothing is learned
AT = (350, 700, 1000, 1500, 2000, 2500, 3000)  # evals
ROW = re.compile(
    r"^#\d+ \| ~?([\d.]+) \|.*\| ([\d.-]+) \| [\d-]+ \| \d+ \| (\S+), (\S+) \| (\".*\")$",
    re.M,
)


class Author:
    """Replies like a person who has good phrasings and learns from the rows which words do well."""

    def __init__(self, seed: int, reads_all: bool) -> None:
        self.rng, self.reads_all = random.Random(seed), reads_all
        self.phrasings = list(read_prompts(shipped("prompts/heldout.yaml"), LABELS))
        self.rng.shuffle(self.phrasings)

    def __call__(self, request):
        system, text = (message["content"] for message in request["messages"])
        if "building blocks" in system:
            return json.dumps(self.fragments() if self.reads_all else {})
        n = int(re.search(r"Write (\d+) prompts", text)[1])
        chosen = self.choose(list(self.rows(text)), n)
        return json.dumps({"prompts": [self.told(prompt) for prompt in chosen]})

    def rows(self, text):
        """(value, prompt) as far as this author reads them."""
        for score, tuned, first, second, quoted in ROW.findall(text):
            if self.reads_all:
                answers = (("SPEECH", (first,)), ("NONSPEECH", (second,)))
                yield float(tuned if tuned != "-" else score), Prompt(json.loads(quoted), answers)
            else:
                yield round(float(score)), Prompt(json.loads(quoted))

    def choose(self, rows, n):
        """The prompts that the words of the rows speak for, after some phrasings as they are written."""
        fresh = self.phrasings[: n if len(rows) < FEW else n // 4 + 1]
        del self.phrasings[: len(fresh)]
        if len(rows) < FEW:
            return fresh
        known = {prompt.digest for _, prompt in rows}
        pool = {p.digest: p for p in self.made(rows) if p.digest not in known}
        vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", binary=True)
        told = vectorizer.fit_transform([prompt.text for _, prompt in rows])
        model = Ridge(alpha=3.0).fit(told, [value for value, _ in rows])
        rated = model.predict(vectorizer.transform([p.text for p in pool.values()]))
        best = np.argsort(-rated)[: n - len(fresh)]
        return [*fresh, *(list(pool.values())[i] for i in best)]

    def made(self, rows):
        """Leading rows and phrasings with the options or a sentence of another phrasing."""
        leaders = [prompt for _, prompt in sorted(rows, key=lambda row: -row[0])[:6]]
        parts = [p for p in map(take_apart, [*leaders, *EVERYTHING]) if p is not None]
        for _ in range(400):
            one, other = self.rng.choice(parts), self.rng.choice(parts)
            kind = self.rng.randrange(3)
            if kind == 0:
                one = replace(one, options=other.options)
            elif kind == 1:
                one = replace(one, question=other.question)
            else:
                one = replace(one, hint=self.rng.choice(HINTS))
            prompt = one.prompt(EVERYTHING[0])
            if len(prompt.text) < 400:
                yield prompt

    def fragments(self):
        pairs = []
        for p in EVERYTHING:
            if options := find_options(p):
                words = {o.label: p.text[o.start : o.end] for o in options}
                pairs.append([words[label] for label in LABELS])
        questions = [h.rstrip(".") for h in HINTS if "?" in h]
        return {"hints": HINTS, "options": pairs, "questions": questions}

    @staticmethod
    def told(prompt):
        return {
            "text": prompt.text,
            "answers": {label: words[0] for label, words in prompt.answers},
        }


def searched(args, who, seed):
    """The history of one search."""
    name = f"author-{Path(args.checkpoint).name}-{who}-{seed}"
    flags = ["--checkpoint", args.checkpoint, "--seed", seed, "--name", name]
    flags += ["--runs-dir", args.runs_dir, "--manifest", shipped("data/demo")]
    flags += ["--seeds", shipped("prompts/seeds/baselines.yaml")]
    with serve(Author(seed, who != "old")) as server, contextlib.redirect_stdout(io.StringIO()):
        lm = ["--lm-model", "author", "--lm-base-url", server.url]
        proposer = {
            "rewriter": ["--proposer", "rewriter"],
            "alone": ["--proposer", "lm", *lm],
        }
        # The server's port is part of the settings: a finished run is read as it is.
        if not (args.runs_dir / name / "summary.json").exists():
            optimize.main(list(map(str, [*flags, *proposer.get(who, lm)])))
    return History(args.runs_dir / name / "trials.jsonl", LABELS)


def curve(history, tested):
    """Test score at each number of evals: that of the best prompt known after the rounds that they paid for."""
    steps = []
    for number in range(max(t.iteration for t in history.trials) + 1):
        known = history.before(number + 1)
        best = best_first(t for t in known if t.state == "complete")[0]
        steps.append((sum(t.n_scored for t in known), tested(best.classifier)))
    first = steps[0][1]
    return [max(((n, s) for n, s in steps if n <= at), default=(0, first))[1] for at in AT]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="pocket-base")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/bench_author"))
    args = parser.parse_args()
    evaluator, _ = build_evaluator(args.checkpoint, cache=args.runs_dir / ".cache")
    test = ClipSet(
        SPEECH_TASK, tuple(balanced_order(read_manifest(shipped("data/demo"), LABELS, "test")))
    )

    def tested(classifier):
        right = evaluator.score([classifier.prompt], test).predict(classifier).right
        return 100 * np.mean([right[test.targets.truth == k].mean() for k in (0, 1)])

    runs = {
        who: [searched(args, who, seed) for seed in range(args.seeds)]
        for who in ("rewriter", "alone", "old", "new")
    }
    best = max(t.outcome.profile.tuned for hs in runs.values() for h in hs for t in complete(h))
    print(f"| author | {' | '.join(f'{at:,}' for at in AT)} | evals | own prompts near the best |")
    print(f"|{' --- |' * (len(AT) + 3)}")
    for who, histories in runs.items():
        table = np.array([curve(history, tested) for history in histories])
        errors = table.std(axis=0, ddof=1) / len(table) ** 0.5
        cells = [f"{m:.1f} +- {e:.1f}" for m, e in zip(table.mean(axis=0), errors, strict=True)]
        evals = np.mean([sum(t.n_scored for t in h.trials) for h in histories])
        own = [
            t
            for h in histories
            for t in h.trials
            if t.iteration and (t.candidate.origin == "lm") == (who != "rewriter")
        ]
        near = sum(t.scored and t.outcome.profile.tuned > best - 0.02 for t in own)
        print(f"| {who} | {' | '.join(cells)} | {evals:,.0f} | {near} of {len(own)} |", flush=True)


def complete(history):
    """The trials that heard all clips."""
    return [t for t in history.trials if t.state == "complete"]


if __name__ == "__main__":
    main()
