"""Does a backward pass tell which edits are good? python tests/bench_gradient.py --checkpoint pocket-base pocket-lora

One backward pass through a prompt gives, for each token and clip, how the log-odds of the answers move with the
embedding of the token (HotFlip, Ebrahimi et al. 2018; GCG, Zou et al. 2023). So the effect of an edit can be guessed to
first order before it is scored. The study: a search writes a history; some of its leaders and a seed prompt are edited
by the rewriter, with its own fragments and with those of human phrasings that the history has not seen (as a language
model writes them); each edit is scored on all clips of the search half. Printed: Spearman's correlation, over the edits
of a parent, of the guess with the true change of the loss (nats of the right label) and of balanced accuracy (threshold
fitted), the mean over parents with its standard error. Guesses: by the gradient on so many clips, by the surrogate
of words that the rewriter uses (`opro/proposers/surrogate.py`) after so many prompts, and both together.

The first order is exact in what it says of spans that are replaced by spans of equal length. Others are an
approximation: the new span is stretched or pooled by means to the length of the old one, and what is inserted or
deleted takes its neighbours along. Other letters and another order of the options are taken to change nothing.
"""

import argparse
import copy
import difflib
import random
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench_author import Author
from scipy.stats import spearmanr
from scipy.stats import t as student
from searches import Silent

from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.templates import encode, parts_of
from evaluators.build import build_evaluator
from evaluators.classifier import log_odds
from evaluators.clips import ClipSet
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.orders import find_options
from evaluators.prompts import Prompt, read_prompts
from evaluators.splits import balanced_order, halves
from evaluators.statistics import metrics
from evaluators.statistics.calibration import fit_bias
from evaluators.tasks import SPEECH_TASK
from opro.problem import Problem
from opro.proposers import surrogate
from opro.proposers.rewriter import PARENTS, Rewriter
from opro.search.budget import FEWEST_SEARCH, MIN_FULL_TRIALS, most_selected
from opro.search.history import Candidate, History, Outcome, Trial, best_first
from opro.search.loop import Clock, Search
from opro.search.proposer import SearchView
from opro.settings import SearchSettings

LABELS = SPEECH_TASK.labels
PICK = surrogate.pick
GUIDES = {}  # of searches under way, by their history
SHARES = (0.02, 0.1, 0.3, 1.0)
PASS = 3  # evals that a backward pass costs a clip
ROUND = 10  # prompts of a round of the history
BATCH = 64  # clips of a backward pass at once


@dataclass(frozen=True)
class Slope:
    """How a prompt's log-odds on some clips move with the embeddings of its tokens.

    Attributes:
        prompt: The parent.
        ids: ``[token]`` of its suffix, from the end of the audio to the answer.
        margin: ``[clip]`` log-odds of the first label.
        gradient: ``[clip, token, channel]`` of them.
    """

    prompt: Prompt
    ids: list[int]
    margin: np.ndarray
    gradient: torch.Tensor

    def first(self, count):
        """On the first so many of the clips."""
        return replace(self, margin=self.margin[:count], gradient=self.gradient[:count])


class Backward:
    """A plain forward of the checkpoint with embeddings as leaves, and its backward.

    Args:
        scorer: An `AudioScorer`; its weights are used as they are.
    """

    def __init__(self, scorer):
        self.scorer = scorer
        self.model = scorer.decoder.model  # here, out of inference mode: autograd keeps weights
        self.lm = self.model.model.language_model
        self.table = self.lm.embed_tokens.weight.detach()
        self.width = self.table.shape[1]
        self.audio = {}

    def embed(self, ids):
        return self.table[torch.tensor(ids, device=self.table.device)]

    def suffix(self, prompt):
        template = self.scorer.family.template
        return encode(self.scorer.processor.tokenizer, template.after(parts_of(prompt)[1]))

    def slope(self, prompt, clips):
        """The slope of a prompt: clips do not mix, so that one pass gives that of each."""
        ids = self.suffix(prompt)
        margin, gradient = (
            np.zeros(len(clips)),
            torch.zeros(len(clips), len(ids), self.width),
        )
        for part, leaf, odds in self.forward(prompt, clips, self.embed(ids), grad=True):
            (found,) = torch.autograd.grad(odds.sum(), leaf)
            margin[part] = odds.detach().cpu().numpy()
            gradient[part] = found.float().cpu()
        return Slope(prompt, ids, margin, gradient)

    def margin(self, prompt, clips, rows):
        """``[clip]`` log-odds with other embeddings ``[token, channel]`` in the place of the suffix'."""
        margin = np.zeros(len(clips))
        with torch.no_grad():
            for part, _, odds in self.forward(prompt, clips, rows):
                margin[part] = odds.cpu().numpy()
        return margin

    def forward(self, prompt, clips, rows, grad=False):
        """Places of some clips, the embeddings after them, and their log-odds, batch by batch."""
        tokenizer, template = (
            self.scorer.processor.tokenizer,
            self.scorer.family.template,
        )
        before = self.embed(encode(tokenizer, template.before(prompt.system)))
        answers = find_answers(tokenizer, prompt).sequences
        assert len(answers) == 2 and all(len(s) == 1 for label in answers for s in label)
        first, second = ([s[0] for s in label] for label in answers)
        new = [c for c in clips if c.clip_id not in self.audio]
        for clip, heard in zip(new, self.scorer.embeddings(new) if new else [], strict=True):
            self.audio[clip.clip_id] = heard.clone()
        lengths = np.array([len(self.audio[c.clip_id]) for c in clips])
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            for part in np.array_split(same, -(-len(same) // BATCH)):
                heard = torch.stack([self.audio[clips[i].clip_id] for i in part])
                leaf = rows.expand(len(part), -1, -1).clone().requires_grad_(grad)
                x = torch.cat([before.expand(len(part), -1, -1), heard, leaf], 1)
                last = self.lm(inputs_embeds=x, use_cache=False).last_hidden_state[:, -1]
                logits = self.model.lm_head(last).float()
                yield (
                    part,
                    leaf,
                    logits[:, first].logsumexp(-1) - logits[:, second].logsumexp(-1),
                )


def as_parent(prompt, parent):
    """The prompt with the letters and the order of the options of its parent."""
    options, own = find_options(prompt), find_options(parent)
    if options is None or own is None:
        return prompt
    order, letters = [o.label for o in own], dict(parent.answers)
    if [o.label for o in options] == order and prompt.answers == parent.answers:
        return prompt
    words = {o.label: prompt.text[o.start : o.end] for o in options}
    text, end = "", 0
    for place, label in zip(options, order, strict=True):
        mark = prompt.text[place.mark : place.start]
        mark = mark.replace(dict(prompt.answers)[place.label][0], letters[label][0])
        text += prompt.text[end : place.mark] + mark + words[label]
        end = place.end
    return replace(prompt, text=text + prompt.text[end:], answers=parent.answers)


def spans(old, new):
    """(old, new) stretches of token ids that differ, and whether all are of equal lengths."""
    found, equal = [], True
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            continue
        if b - a != d - c:
            equal = False
            if a == b or c == d:  # inserted or deleted: with the tokens on both sides
                a, b, c, d = a - 1, b + 1, c - 1, d + 1
        found.append((slice(a, b), slice(c, d)))
    return found, equal


def step_of(slope, backward, prompt):
    """``[token, channel]`` by which an edit moves the embeddings, and whether its spans are of equal lengths."""
    new = backward.suffix(as_parent(prompt, slope.prompt))
    found, equal = spans(slope.ids, new)
    step = torch.zeros_like(backward.embed(slope.ids))
    for a, c in found:
        old = backward.embed(slope.ids[a])
        step[a] = F.adaptive_avg_pool1d(backward.embed(new[c]).T[None], len(old))[0].T - old
    return step.float().cpu(), equal


def moved(slope, backward, prompt):
    """``[clip]`` log-odds of an edit to first order, and whether all of its spans are of equal lengths."""
    step, equal = step_of(slope, backward, prompt)
    return slope.margin + torch.einsum("ntc,tc->n", slope.gradient, step).numpy(), equal


def loss(margin, truth):
    """Balanced mean of the nats of the right label."""
    sign = np.where(truth == 0, 1.0, -1.0)
    return float(metrics.balanced_weights(truth) @ np.logaddexp(0, -sign * margin))


def linear_loss(before, after, truth):
    """The loss, to first order in the log-odds too."""
    sign = np.where(truth == 0, 1.0, -1.0)
    slope = -sign / (1 + np.exp(sign * before))
    return loss(before, truth) + float(metrics.balanced_weights(truth) @ (slope * (after - before)))


def tuned(margin, truth):
    """Balanced accuracy with the best threshold."""
    return metrics.balanced_accuracy(truth, (margin + fit_bias(truth, margin) < 0) == (truth == 1))


@dataclass(frozen=True)
class Edit:
    """One edit of a parent: of the kind `kind`, the number of its parent, and its prompt."""

    kind: str
    parent: int
    prompt: Prompt


KINDS = {
    "own": "the rewriter's edits",
    "human": "with words that are new",
    "word": "a word for a word",
}


def guesser(scored):
    """Balanced accuracy and loss of each prompt that was scored: a function of prompts to ``[prompt, 2]``."""

    def guess(past, prompts):
        """The mean of the surrogate's posterior of minus the loss, and of balanced accuracy."""
        n, texts = len(past), [surrogate.words_of(p) for p in [*past, *prompts]]
        shared = surrogate._kernel(texts)
        out = []
        for values in np.array([scored[p] for p in past]).T:
            # The loss has another scale: brought to that of the reward.
            middle, scale = (
                np.median(values),
                surrogate.SPREAD / max(values.std(), 1e-9),
            )
            noise = surrogate.NOISE**2 * np.eye(n)
            weights = np.linalg.solve(
                surrogate.SPREAD**2 * shared[:n, :n] + noise, scale * (values - middle)
            )
            out.append(surrogate.SPREAD**2 * shared[n:, :n] @ weights)
        return np.array(out).T

    return guess


@dataclass
class Bench:
    """A checkpoint under study."""

    evaluator: object
    seeds: list
    clips: ClipSet

    def __post_init__(self):
        self.truth = self.clips.targets.truth
        self.margins = {}

    def score(self, prompts):
        """Log-odds ``[clip]`` of each on all clips; kept."""
        new = list(dict.fromkeys(p for p in prompts if p not in self.margins))
        for part in (new[i : i + ROUND] for i in range(0, len(new), ROUND)):  # kept on the way
            table = self.evaluator.score(part, self.clips)
            self.margins |= {p: log_odds(logp) for p, logp in zip(part, table.logp, strict=True)}
        return [self.margins[p] for p in prompts]

    def value(self, prompt, count=None):
        """(minus the loss, tuned balanced accuracy) on the first so many clips."""
        (margin,) = self.score([prompt])
        return -loss(margin[:count], self.truth[:count]), tuned(margin[:count], self.truth[:count])

    def history(self, count, seed):
        """What a search without races tries, as the rewriter proposes it: the seeds and `count` prompts."""
        rewriter, trials = Rewriter(SPEECH_TASK, seed), []
        self.score(self.seeds)
        found = [Candidate(p, "seed") for p in self.seeds]
        for iteration in range(1, count // ROUND + 2):
            self.score([c.prompt for c in found])
            for c in found:
                reward = self.value(c.prompt)[1]
                outcome = Outcome(reward, 0.0, reward)
                trials.append(Trial(len(trials), iteration - 1, c, "complete", outcome))
            view = SearchView(iteration, tuple(trials), self.clips)
            found = rewriter.propose(view, ROUND)
        return [t.prompt for t in trials]

    def edits(self, parents, known, each, seed):
        """So many edits of each kind of each parent, none of them in the history."""
        rng, own = random.Random(seed), Rewriter(SPEECH_TASK, seed)
        other, tokenizer = copy.copy(own), self.evaluator.innermost.processor.tokenizer
        other.bank = own.bank | Author(seed, True).fragments()
        heard = words(known)
        fresh = sorted(words(Prompt(str(list(bank.bank.values()))) for bank in (own, other)))
        lengths = {w: len(tokenizer.encode(f" {w}")) for w in fresh}
        out, seen = [], {p.digest for p in known}
        for number, parent in enumerate(parents):
            rest = [p for p in parents if p is not parent]
            left = dict.fromkeys(KINDS, each)
            for _ in range(200 * each):
                kind = next((k for k in KINDS if left[k]), None)
                if kind is None:
                    break
                if kind == "word":
                    made = one_word(parent, lengths, rng)
                else:
                    bank = own if kind == "own" else other
                    found = bank.rewrite([parent, *rest], rng)
                    made = found and found.prompt
                    if found is None or found.parents[0] != parent.prompt_id:
                        continue
                    if kind == "human" and words([made]) <= heard:
                        continue
                if made is not None and made.digest not in seen:
                    seen.add(made.digest)
                    left[kind] -= 1
                    out.append(Edit(kind, number, made))
        return out


def words(prompts):
    return set().union(*(re.findall(r"[^\W\d_]+", p.text.casefold()) for p in prompts))


def one_word(prompt, lengths, rng):
    """The prompt with one word in the place of another of as many tokens."""
    places = [m for m in re.finditer(r"(?<= )[a-z]{3,}", prompt.text) if m[0] in lengths]
    if not places:
        return None
    place = rng.choice(places)
    same = [w for w in lengths if lengths[w] == lengths[place[0]] and len(w) > 2 and w != place[0]]
    text = prompt.text[: place.start()] + rng.choice(same) + prompt.text[place.end() :]
    return replace(prompt, text=text)


def guesses(bench, backward, slopes, edits, history, args):
    """Name of a guess -> ``[edit, 2]`` guesses of minus the loss and of balanced accuracy; lengths that are equal."""
    out, equal = {}, np.zeros(len(edits), bool)
    for count in args.clips:
        truth, rows = bench.truth[:count], []
        for i, edit in enumerate(edits):
            slope = slopes[edit.parent].first(count)
            after, equal[i] = moved(slope, backward, edit.prompt)
            # Guessed balanced accuracy has many ties: the area under the curve, which moves with it, has not.
            rows.append([-linear_loss(slope.margin, after, truth), metrics.auroc(truth, after)])
        out[f"gradient on {count} clips"] = np.array(rows)
    guess, prompts = (
        guesser({p: bench.value(p) for p in history}),
        [e.prompt for e in edits],
    )
    for count in args.past:
        past = list(
            dict.fromkeys([*history[: len(bench.seeds) + count], *(s.prompt for s in slopes)])
        )
        out[f"surrogate after {count} prompts"] = guess(past, prompts)
    for count in args.past:
        name = f"gradient on {args.clips[-1]} clips"
        both = [out[name], out[f"surrogate after {count} prompts"]]
        out[f"both, after {count} prompts"] = sum(standard(b, edits) for b in both)
    scored = [bench.value(p, args.clips[0]) for p in prompts]
    out[f"scored on {args.clips[0]} clips"] = np.array(scored)
    return out, equal


def how_far(backward, slopes, edits, clips):
    """Prints how well the first order tells a clip's log-odds where only a part of an edit's step is taken."""
    found = {share: [] for share in SHARES}
    for number, slope in enumerate(slopes):
        slope, own = slope.first(len(clips)), [e for e in edits if e.parent == number]
        for edit in [e for e in own if e.kind == "word"][:4]:
            step, _ = step_of(slope, backward, edit.prompt)
            guess = torch.einsum("ntc,tc->n", slope.gradient, step).numpy()
            for share in SHARES:
                rows = backward.embed(slope.ids) + share * step.to(backward.table)
                true = backward.margin(slope.prompt, clips, rows) - slope.margin
                found[share].append((true.mean(), share * guess.mean()))
    print("\n| share of the step | Spearman over edits | change that is explained |")
    print("| --- | --- | --- |")
    for share, pairs in found.items():
        true, guess = np.array(pairs).T
        explained = 1 - ((true - guess) ** 2).sum() / (true**2).sum()
        print(f"| {share:.0%} | {spearmanr(true, guess)[0]:+.2f} | {explained:.0%} |")


def standard(values, edits):
    """Standard scores among the edits of a parent."""
    out, parent = np.zeros(values.shape), np.array([e.parent for e in edits])
    for number in np.unique(parent):
        own = values[parent == number]
        out[parent == number] = (own - own.mean(0)) / np.maximum(own.std(0), 1e-12)
    return out


def rank(guess, true, edits, chosen):
    """Spearman's correlation over the edits of a parent: the mean over parents with its standard error."""
    found, parent = [], np.array([e.parent for e in edits])
    for number in np.unique(parent):
        own = (parent == number) & chosen
        if own.sum() >= 8 and np.ptp(true[own]) > 0:
            found.append(spearmanr(guess[own], true[own])[0] if np.ptp(guess[own]) > 0 else 0.0)
    if len(found) < 2:
        return "-"
    return f"{np.mean(found):+.2f} +- {np.std(found, ddof=1) / len(found) ** 0.5:.2f}"


def best_fifth(guess, true, edits):
    """Points by which the fifth of a parent's edits that is guessed best beats the mean of all."""
    found, parent = [], np.array([e.parent for e in edits])
    for number in np.unique(parent):
        own, values = guess[parent == number], true[parent == number]
        found.append(values[np.argsort(-own)[: len(own) // 5]].mean() - values.mean())
    return f"{100 * np.mean(found):+.1f} +- {100 * np.std(found, ddof=1) / len(found) ** 0.5:.1f}"


def study(bench, checkpoint, args):
    """Prints the table of a checkpoint."""
    history = bench.history(max(args.past), args.seed)
    early = sorted(history[: len(bench.seeds) + min(args.past)], key=lambda p: -bench.value(p)[1])
    parents = list(dict.fromkeys([*early[: PARENTS - 1], max(bench.seeds, key=bench.value)]))
    edits = bench.edits(parents, history, args.edits, args.seed)
    bench.score([e.prompt for e in edits])
    true = np.array([bench.value(e.prompt) for e in edits])
    backward = Backward(bench.evaluator.innermost)
    slopes = [backward.slope(p, bench.clips) for p in parents]
    for slope, scored in zip(slopes, bench.score(parents), strict=True):
        assert np.abs(slope.margin - scored).max() < 1e-2, "the plain forward is not the scorer's"
    found, equal = guesses(bench, backward, slopes, edits, history, args)
    kinds = {text: np.array([e.kind == kind for e in edits]) for kind, text in KINDS.items()}
    grammar = ~kinds[KINDS["word"]]
    print(
        f"\n{checkpoint}, {len(parents)} parents, mean +- standard error over them; all spans are"
    )
    print(f"of equal length in {(equal & grammar).sum()} of {grammar.sum()} edits of the grammar\n")
    heads = [f"{name} ({chosen.sum()}): {what}" for name, chosen in kinds.items() for what in WHAT]
    print(f"| guess | {' | '.join(heads)} | the best fifth, points |")
    print(f"|{' --- |' * (len(heads) + 2)}")
    for name, guess in found.items():
        cells = [
            rank(guess[:, k], true[:, k], edits, chosen)
            for chosen in kinds.values()
            for k in range(2)
        ]
        print(f"| {name} | {' | '.join(cells)} | {best_fifth(guess[:, 1], true[:, 1], edits)} |")
    how_far(backward, slopes, edits, bench.clips.first(args.clips[0]))


WHAT = ("loss", "accuracy")


class Guide:
    """Picks proposals in the place of `surrogate.pick`: the half that the gradient guesses best, of which it picks.

    Each round takes the gradient of the best prompt so far, unless that is known. A proposal is guessed from the
    nearest prompt whose gradient is known.

    Args:
        alone: Without the surrogate: those that the gradient guesses best.
        most: Evals that all passes together may cost, at `PASS` a clip.
    """

    def __init__(self, backward, clips, alone, most):
        self.backward, self.clips, self.alone, self.most = backward, clips, alone, most
        self.slopes, self.spent = {}, 0

    @property
    def cost(self):
        """Of a pass."""
        return PASS * len(self.clips)

    @property
    def affords(self):
        """Whether there may be another pass."""
        return self.spent + self.cost <= self.most

    def pick(self, past, pool, count, rng):
        best = past[0][0]
        if best not in self.slopes and self.affords:
            self.slopes[best] = self.backward.slope(best, self.clips)
            self.spent += self.cost
        if not self.slopes:
            return PICK(past, pool, count, rng)
        order = np.argsort([-self.guess(prompt) for prompt in pool], kind="stable").tolist()
        if self.alone:
            return order[:count]
        half = order[: max(count, len(order) // 2)]
        return [half[i] for i in PICK(past, [pool[i] for i in half], count, rng)]

    def guess(self, prompt):
        """Area under the curve to first order."""

        def differ(slope):
            new = self.backward.suffix(as_parent(prompt, slope.prompt))
            return sum(a.stop - a.start for a, _ in spans(slope.ids, new)[0])

        near = min(self.slopes.values(), key=differ)
        after, _ = moved(near, self.backward, prompt)
        return metrics.auroc(self.clips.targets.truth, after)


class Charged(Search):
    """A search whose budget pays for the passes of a guide, and always holds one more ready."""

    @property
    def budget(self):
        guide = GUIDES.get(id(self.history))
        spent = 0 if guide is None else guide.spent + guide.cost * guide.affords
        found = super().budget
        return replace(found, pairs=found.pairs - spent)


def searched(bench, backward, how, budget, seed, test, args):
    """(Evals, balanced accuracy on test) of what one search holds for best, with its threshold."""
    clips = bench.clips.first(max(FEWEST_SEARCH, budget // MIN_FULL_TRIALS))
    problem = Problem(SPEECH_TASK, tuple(bench.seeds), clips, test, bench.evaluator, {})
    settings = SearchSettings(iterations=100, candidates=ROUND, seed=seed, threshold="dev")
    # Nothing is confirmed here, so that nothing is set aside for it but the forecast that is to be finished.
    aside = most_selected(test) * len(test)
    settings = replace(settings, max_evals=budget + aside)
    guide = None
    if how != "surrogate":
        alone = how == "gradient"
        # Two passes at least, on at most so many clips.
        heard = min(args.clips[0], int(budget * args.share) // (2 * PASS))
        guide = Guide(backward, clips.first(heard), alone, budget * args.share)
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "trials.jsonl", LABELS)
        history.begin({})
        if guide is not None:
            GUIDES[id(history)] = guide
            surrogate.pick = guide.pick
        try:
            proposer = Rewriter(SPEECH_TASK, seed)
            search = Charged(
                problem, settings, proposer, history, Silent(), Clock(), lambda *_: None
            )
            search.run()
            if guide is not None:
                guide.most = guide.spent  # no pass is held ready any more
            search.finish_finalists()
        finally:
            surrogate.pick = PICK
            GUIDES.clear()
        best = best_first(t for t in history.trials if t.state == "complete")[0]
        evals = sum(t.n_scored + t.asked_twice for t in history.trials)
    evals += guide.spent if guide is not None else 0
    right = bench.evaluator.score([best.prompt], test).predict(best.classifier).right
    return evals, 100 * metrics.balanced_accuracy(test.targets.truth, right)


def compare_searches(bench, checkpoint, args):
    """Prints guided and unguided searches at equal evals."""
    backward = Backward(bench.evaluator.innermost)
    test = balanced_order(read_manifest(shipped("data/demo"), LABELS, "test"))
    test = ClipSet(SPEECH_TASK, tuple(test))
    print(
        f"\n{checkpoint}, balanced accuracy on test of the best of the search half, {args.seeds} seeds"
    )
    print(f"| picks | {' | '.join(f'{b:,} evals | gains | spent' for b in args.budgets)} |")
    print(f"|{' --- |' * (1 + 3 * len(args.budgets))}")
    first = {}
    for how in HOW:
        cells = []
        for budget in args.budgets:
            runs = [
                searched(bench, backward, how, budget, seed, test, args)
                for seed in range(args.seeds)
            ]
            evals, values = np.array(runs).T
            gain = values - first.setdefault(budget, values)
            cells += [
                interval(values),
                interval(gain) if how != HOW[0] else "",
                f"{evals.mean():,.0f}",
            ]
        print(f"| {how} | {' | '.join(cells)} |", flush=True)


def interval(values):
    """Mean with Student's 95 % interval over seeds."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.1f} [{values.mean() - half:.1f}, {values.mean() + half:.1f}]"


HOW = ("surrogate", "gradient and surrogate", "gradient")


def material(checkpoint, args):
    """The search half of the demo, the published seed prompts, and an evaluator."""
    seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), LABELS)
    everything = read_manifest(shipped("data/demo"), LABELS)
    search, _ = halves([c for c in everything if c.split == "dev"])
    clips = ClipSet(SPEECH_TASK, tuple(balanced_order(search)))
    evaluator, _ = build_evaluator(checkpoint, cache=args.out / ".cache", device=args.device)
    return Bench(evaluator, seeds, clips)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", nargs="+", default=["pocket-base", "pocket-lora"])
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--clips", nargs="+", type=int, default=[32, 100, 200])
    parser.add_argument("--past", nargs="+", type=int, default=[50, 300], help="prompts scored")
    parser.add_argument("--edits", type=int, default=12, help="of each kind, a parent")
    parser.add_argument("--search", action="store_true", help="compare searches instead")
    parser.add_argument("--budgets", nargs="+", type=int, default=[300, 1000, 3000])
    parser.add_argument("--seeds", type=int, default=10, help="searches of each kind")
    parser.add_argument("--share", type=float, default=1 / 3, help="of the evals, for gradients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_gradient"))
    args = parser.parse_args()
    for checkpoint in args.checkpoint:
        bench = material(checkpoint, args)
        (compare_searches if args.search else study)(bench, checkpoint, args)


if __name__ == "__main__":
    main()
