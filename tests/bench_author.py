"""Does a good author help? python tests/bench_author.py --checkpoint pocket-base

An author who knows nothing of the checkpoint is simulated behind a loopback server: it has the 40 held-out human
phrasings and reads what a request shows. ``full`` reads the whole table: it starts from the rows that are best with
their best threshold, whatever their letters, and writes fragments for the rewriter. ``score`` reads texts and rounded
scores alone, as requests once had them, takes every answer for A or B in the seeds' order, and writes no fragments.
Each joins the rewriter under ``--proposer auto``; ``rewriter`` is the rewriter alone. Over seeds, after each round:
evals asked for, and balanced accuracy on the test split of what the search half holds for best, with its threshold.
"""

import argparse
import contextlib
import io
import json
import random
import re
from pathlib import Path

import numpy as np
from chat_server import serve

from evaluators.build import build_evaluator
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.orders import find_options
from evaluators.prompts import Prompt, read_prompts
from evaluators.splits import balanced_order
from evaluators.tasks import SPEECH_TASK
from opro import optimize
from opro.search.history import History, best_first

LABELS = SPEECH_TASK.labels
ROW = re.compile(
    r"^#\d+ \| ~?([\d.]+) \|.*\| ([\d.-]+) \| [\d-]+ \| \d+ \| (\S+), (\S+) \| (\".*\")$",
    re.M,
)


class Author:
    """Replies like a person who writes good questions and tries combinations of them."""

    def __init__(self, seed, full):
        self.rng, self.full = random.Random(seed), full
        self.phrasings = list(read_prompts(shipped("prompts/heldout.yaml"), LABELS))
        self.rng.shuffle(self.phrasings)

    def __call__(self, request):
        text = request["messages"][-1]["content"]
        if "building blocks" in request["messages"][0]["content"]:
            return json.dumps(self.fragments() if self.full else {})
        n = int(re.search(r"Write (\d+) prompts", text)[1])
        rows = sorted(self.rows(text), key=lambda row: row[0])
        new = [self.edit(rows) if i % 2 and rows else self.fresh() for i in range(n)]
        return json.dumps({"prompts": [p for p in new if p]})

    def rows(self, text):
        """(value, prompt) as far as this author reads them."""
        for score, tuned, first, second, quoted in ROW.findall(text):
            if self.full:
                answers = (("SPEECH", (first,)), ("NONSPEECH", (second,)))
                yield float(tuned if tuned != "-" else score), Prompt(json.loads(quoted), answers)
            else:
                yield round(float(score)), Prompt(json.loads(quoted))

    def fresh(self):
        if not self.phrasings:
            return None
        return self.told(self.phrasings.pop())

    def edit(self, rows):
        """One of the four best rows, with a sentence of a phrasing before it or its options the other way round."""
        prompt = self.rng.choice(rows[-4:])[1]
        options = find_options(prompt)
        if options and self.rng.random() < 0.4:
            a, b = options
            text = prompt.text
            swapped = (
                text[: a.start]
                + text[b.start : b.end]
                + text[a.end : b.start]
                + text[a.start : a.end]
            )
            answers = tuple(
                (label, words)
                for (label, _), (_, words) in zip(prompt.answers, prompt.answers[::-1], strict=True)
            )
            return self.told(Prompt(swapped + text[b.end :], answers))
        return self.told(
            Prompt(f"{self.rng.choice(self.hints())} {prompt.text}"[:500], prompt.answers)
        )

    def hints(self):
        everything = read_prompts(shipped("prompts/heldout.yaml"), LABELS)
        firsts = [p.text.split("\n")[0] for p in everything]
        return [
            t.split(". ")[0].rstrip(".") + "."
            for t in firsts
            if "A" not in t.split() and len(t) < 110
        ]

    def fragments(self):
        everything = read_prompts(shipped("prompts/heldout.yaml"), LABELS)
        pairs = []
        for p in everything:
            if options := find_options(p):
                words = {o.label: p.text[o.start : o.end] for o in options}
                pairs.append([words[label] for label in LABELS])
        questions = [h for h in self.hints() if "?" in h]
        return {
            "hints": self.hints(),
            "options": pairs,
            "questions": [q.rstrip(".") for q in questions],
        }

    @staticmethod
    def told(prompt):
        return {
            "text": prompt.text,
            "answers": {label: words[0] for label, words in prompt.answers},
        }


def searched(args, who, seed):
    """The history of one search."""
    name = f"author-{Path(args.checkpoint).name}-{who}-{seed}"
    flags = [
        "--checkpoint",
        args.checkpoint,
        "--seed",
        seed,
        "--name",
        name,
        "--runs-dir",
        args.runs_dir,
    ]
    flags += [
        "--manifest",
        shipped("data/demo"),
        "--seeds",
        shipped("prompts/seeds/baselines.yaml"),
    ]
    with serve(Author(seed, who == "full")) as server, contextlib.redirect_stdout(io.StringIO()):
        lm = ["--lm-model", "author", "--lm-base-url", server.url]
        # The server's port is part of the settings: a finished run is read as it is.
        if not (args.runs_dir / name / "summary.json").exists():
            optimize.main(
                list(map(str, [*flags, *(["--proposer", "rewriter"] if who == "rewriter" else lm)]))
            )
    return History(args.runs_dir / name / "trials.jsonl", LABELS)


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
    print("| author | round | evals | search half | test |\n| --- | --- | --- | --- | --- |")
    for who in ("rewriter", "score", "full"):
        rows = []
        for seed in range(args.seeds):
            history = searched(args, who, seed)
            line = []
            for number in range(max(t.iteration for t in history.trials) + 1):
                known = history.before(number + 1)
                best = best_first(t for t in known if t.state == "complete")[0]
                table = evaluator.score([best.prompt], test)
                right = table.predict(best.classifier).right
                truth = test.targets.truth
                score = np.mean([right[truth == k].mean() for k in (0, 1)])
                line.append((sum(t.n_scored for t in known), 100 * best.reward, 100 * score))
            rows.append(line)
        table = np.array(rows)
        for number in range(table.shape[1]):
            evals, found, tested = table[:, number].mean(axis=0)
            error = table[:, number, 2].std(ddof=1) / len(rows) ** 0.5
            print(
                f"| {who} | {number} | {evals:,.0f} | {found:.1f} | {tested:.1f} +- {error:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
