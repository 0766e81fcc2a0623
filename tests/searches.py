"""Searches by hand: clip sets, views and problems; evaluators, proposers and displays that remember what was asked."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluators.audio_lm.answer_tokens import PromptError
from evaluators.clips import Clip, ClipSet
from evaluators.evaluator import ScoreTable, Uncached
from evaluators.fakes import FakeEvaluator
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK
from opro.problem import Problem
from opro.proposers.language_model import Reply
from opro.search.history import Candidate, History, Outcome, Trial
from opro.search.loop import Clock, Search
from opro.search.proposer import SearchView
from opro.search.select import decide
from opro.settings import SearchSettings

LABELS = SPEECH_TASK.labels
SEEDS = tuple(Prompt(f"Seed {i}: speech? A or B") for i in (5, 1, 7))


def clip(i, label=0, duration=500.0, snr=None, category="x", source=None):
    return Clip(
        str(i), Path(f"{i}.wav"), LABELS[label], category, duration, snr, "c", source or f"s{i}", "dev", "CC0",
        hashlib.sha256(str(i).encode()).hexdigest(),
    )  # fmt: skip


def clip_set(clips):
    return ClipSet(SPEECH_TASK, tuple(clips))


def half(name, count, sources=40):
    """So many clips, the labels in turns, with every property that a slice is made of."""
    return clip_set(
        clip(
            f"{name}{i}",
            i % 2,
            (200.0, 500.0)[i // 2 % 2],
            (0.0, 10.0, None)[i % 3],
            ("speech", "music", "animal")[i % 2 * (1 + i % 4 // 3)],
            f"{name}-{i % sources}",
        )
        for i in range(count)
    )


def logp_of(odds):
    """``[..., label]`` nats of log-odds of the first label."""
    m = np.asarray(odds, float)
    return np.stack([-np.logaddexp(0, -m), -np.logaddexp(0, m)], -1).astype(np.float32)


def scored_trial(number, reward, iteration=1, *, state="complete", prompt=None, **outcome):
    """A trial with an outcome; what is not given is unremarkable."""
    about = {"score": reward, "sd": 0.0, "loss": 0.5, "n_scored": 9, **outcome}
    origin = about.pop("origin", "seed" if iteration == 0 else "made")
    candidate = Candidate(
        prompt or Prompt(f"Prompt {number:03d}"), origin, about.pop("parents", ())
    )
    return Trial(number, iteration, candidate, state, Outcome(reward, **about))


def view_of(trials, iteration=None, clips=None, logp=None):
    """A view of these trials, as of the iteration after the last of them."""
    if iteration is None:
        iteration = 1 + max((t.iteration for t in trials), default=0)
    return SearchView(
        iteration,
        tuple(t for t in trials if t.iteration < iteration),
        clips or half("s", 10),
        logp or {},
    )


class Silent:
    """A display that shows nothing."""

    def stage(self, iteration, name):
        pass

    def advance(self, scored, skipped):
        pass

    def told(self, trial, best):
        pass


class Display(Silent):
    """Remembers what it was told."""

    def __init__(self):
        self.stages, self.scored, self.skipped, self.trials = [], 0, 0, []

    def stage(self, iteration, name):
        self.stages.append((iteration, name))

    def advance(self, scored, skipped):
        assert scored >= 0 and skipped >= 0
        self.scored, self.skipped = self.scored + scored, self.skipped + skipped

    def told(self, trial, best):
        self.trials.append((trial, best))


class Made:
    """A proposer whose prompts depend on everything that is known of earlier iterations, and on nothing else.

    Args:
        short: So many fewer than asked for, in iteration `at`.
        options: The prompts have options that can change their order.
    """

    name = "test"

    def __init__(self, short=0, at=0, options=False, both_orders=False):
        self.asked, self.short, self.at = [], short, at
        self.question = "A) speech B) none" if options else "speech? A or B"
        self.both_orders = both_orders

    def propose(self, view, n):
        self.asked.append((view.iteration, n))
        known = [(t.number, t.state, t.reward, t.rank) for t in view.trials]
        known += [(number, logp.sum()) for number, logp in view.logp.items()]
        text = hashlib.sha256(repr((known, n)).encode()).hexdigest()[:8]
        n -= self.short if view.iteration == self.at else 0
        made = [
            Prompt(f"{view.iteration}.{i} {text}: {self.question}", both_orders=self.both_orders)
            for i in range(n)
        ]
        return [Candidate(p, "made", (SEEDS[0].prompt_id,)) for p in made]


class Spied(FakeEvaluator):
    """Remembers what it scored, and calls `before` first.

    Args:
        bad: Whether a text cannot be scored.
    """

    def __init__(self, before=lambda prompts: None, bad=lambda text: False):
        super().__init__()
        self.before, self.bad = before, bad
        self.calls = []

    def score(self, prompts, clips):
        self.before(prompts)
        for p in prompts:
            if self.bad(p.text):
                raise PromptError(f"{p.text} cannot be scored")
        self.calls.append((list(prompts), list(clips)))
        return super().score(prompts, clips)

    def evals(self, half=""):
        return sum(
            len(p) * sum(c.audio == "recorded" and c.clip_id.startswith(half) for c in cs)
            for p, cs in self.calls
        )


class Told(Uncached):
    """Answers with the log-odds it is told, by prompt and clip, and remembers what it was asked.

    Args:
        odds: Prompt -> ``[clip]``.
        clips: In that order.
        bad: Whether (prompt, place of a clip) cannot be scored.
    """

    fingerprint = "told"

    def __init__(self, odds, clips, bad=lambda prompt, place: False):
        self.odds, self.place, self.bad = odds, {c.clip_id: i for i, c in enumerate(clips)}, bad
        self.asked = []

    def score(self, prompts, clips):
        place = [self.place[c.clip_id] for c in clips]
        for p in prompts:
            if any(self.bad(p, c) for c in place):
                raise PromptError(f"{p.text} cannot be scored")
        self.asked.append((list(prompts), place))
        self.forwards += len(prompts) * len(place)
        logp = logp_of([np.asarray(self.odds[p])[place] for p in prompts])
        return ScoreTable(tuple(prompts), tuple(clips), logp, logp)


class Searched:
    """One search in a folder: the journal, what was asked of the evaluator, and what came of it."""

    def __init__(
        self,
        path,
        *,
        search=96,
        holdout=64,
        seeds=SEEDS,
        evaluator=None,
        proposer=None,
        display=None,
        sources=40,
        on_save=lambda trial, entry: None,
        decides=True,
        fit=lambda problem, settings: problem,
        inbox=lambda: (),
        **settings,
    ):
        self.path = path
        self.evaluator = evaluator or Spied()
        self.proposer = proposer or Made()
        self.display, self.clock, self.saved = display or Display(), Clock(), []
        self.settings = SearchSettings(
            **{"iterations": 2, "candidates": 5, "threshold": "argmax", **settings}
        )
        search = half("s", search, sources) if isinstance(search, int) else search
        holdout = half("f", holdout, sources) if isinstance(holdout, int) else holdout
        seeds = tuple(replace(p, both_orders=p.both_orders or self.settings.swap) for p in seeds)
        problem = Problem(SPEECH_TASK, seeds, search, holdout, self.evaluator, {"seed": 0})
        self.problem = fit(problem, self.settings)
        self.history = History(path, LABELS, repair=True)
        self.history.begin(self.problem.identity)

        def save(trial, entry):
            on_save(trial, entry)
            self.saved.append((trial, entry))

        one = Search(
            self.problem,
            self.settings,
            self.proposer,
            self.history,
            self.display,
            self.clock,
            save,
            inbox=inbox,
        )
        self.search = one
        one.run()
        if decides:
            one.finish_finalists()
        self.decision = None
        if decides:
            self.decision = decide(self.problem, self.settings, self.history, self.display.advance)

    @property
    def journal(self):
        return self.path.read_bytes()

    @property
    def events(self):
        return [json.loads(line) for line in self.journal.splitlines()]

    @property
    def told(self):
        return [e for e in self.events if e["event"] == "tell"]

    @property
    def proposed(self):
        found = [e for e in self.events if e["event"] == "propose"]
        return {e["iteration"]: len(e["candidates"]) for e in found}


# What proposers see and are answered.

NINE = clip_set(
    clip(f"c{i}", i % 2, 200.0 + 100 * i, 5.0, ("speech", "music")[i % 2], f"s{i}")
    for i in range(9)
)
GOOD = "Is it speech?\nA) Yes\nB) No"


def right_about(*places):
    """Log-probabilities on `NINE` of a trial that is right about these clips, 89 % sure of every answer."""
    first = (np.arange(9) % 2 == 0) == np.isin(np.arange(9), places)
    return np.log(np.where(first[:, None], [0.8, 0.1], [0.1, 0.8])).astype(np.float32)


def three_seeds(seeds, more=(), logp=None, iteration=None):
    """A view after three seed prompts were scored, and `more` trials; the third is dominated by the first."""
    slices = {"200 ms": (0.4, 5), "music": (0.9, 4)}
    trials = [
        scored_trial(i, reward, 0, prompt=p, slices=slices)
        for i, (p, reward) in enumerate(zip(seeds, (0.7, 0.6, 0.65), strict=True))
    ]
    known = {0: right_about(*range(7)), 2: right_about(3, 4, 5, 6), 1: right_about(8)}
    return view_of([*trials, *more], iteration, NINE, known if logp is None else logp)


class ScriptedLM:
    """Answers with the next reply of a list, and remembers what it was asked, system message and question in one."""

    name = "scripted"
    prices = None
    on_loss = staticmethod(lambda tokens_in, tokens_out, why: "")
    may_take = staticmethod(lambda tokens_in, tokens_out: "")

    def __init__(self, *replies):
        self.replies, self.asked, self.options = list(replies), [], []

    def __call__(self, messages, *, temperature, max_tokens, schema=None):
        self.asked.append("".join(m.content for m in messages))
        self.options.append((len(messages), temperature, max_tokens))
        return Reply(self.replies.pop(0), 10, 5, 0.01, self.name, "stop")
