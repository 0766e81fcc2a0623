"""Racing: score candidates on growing blocks of clips and drop those that cannot win.

This saves evals; decisions never rest on it. All candidates of an iteration are scored on the same blocks of clips.
Each block is as large as all earlier blocks together. After a block every candidate's reward on all clips is forecast
(`forecast`); at most half of them stay, and none that cannot win. The clips of the first block are balanced; after it,
the clips whose outcome is most in doubt come first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import Bias
from evaluators.clips import ClipSet
from evaluators.errors import PromptError
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt
from evaluators.statistics.calibration import fit_shift
from opro.search.forecast import Basis, bases, draw_logp
from opro.search.objective import Measured, Objective, Profile

FIRST_BLOCK = 32  # clips of the first block
DROP_Z = 1.2816  # one-sided 10 %: how sure a forecast must be before a candidate is dropped for being worse
MIN_GAIN = 0.005  # smaller leads are not worth another clip

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Entry:
    """A candidate in a race, and what is known of it.

    Attributes:
        scored: Indices of the clips it was scored on, in that order.
        logp: ``[scored, label]`` in nats.
        reward, sd: Its reward on all clips: exact and 0, or a forecast and its standard deviation.
        p_correct: ``[clip]`` whether it is right: 0 or 1 where scored, a chance elsewhere.
        expected: ``[clip, label]`` nats: as scored, or the mean of the forecast's draws.
        blocks: `reward` after each block.
        measured: Its exact measures, once it is scored on all clips.
        bias: Of the classifier; of a forecast the mean over its draws.
        profile: Of a forecast the mean over its draws; None before any is made.
        error: Why it could not be scored, else empty.
        unlisted: Answers that a server did not list, in clips: half of the labels of two clips are one.
    """

    scored: Index
    logp: NDArray[np.float32]
    reward: float = math.nan
    sd: float = 0.0
    p_correct: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    expected: NDArray[np.floating] = field(default_factory=lambda: np.zeros((0, 0)))
    blocks: tuple[float, ...] = ()
    measured: Measured | None = None
    bias: Bias = 0.0
    profile: Profile | None = None
    error: str = ""
    unlisted: float = 0.0


def _no_progress(scored: int, skipped: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Race:
    """Races over one set of clips.

    A prompt is dropped when even with all open clips right it would stay below the best reference (without loss); when
    its forecast is below that of the leader, or of the best reference, at one-sided 10 %; or when half of those that
    are left are forecast better.

    Attributes:
        clips: In balanced order.
        references: ``[reference, clip, label]`` nats of prompts that were scored on every clip, the best first; None
            scores all prompts on everything.
        first_block: Clips of the first block.
        advance: Called with the evals made, and the evals that will never be asked for.
    """

    evaluator: Evaluator
    clips: ClipSet
    objective: Objective
    references: NDArray[np.float32] | None = None
    first_block: int = FIRST_BLOCK
    advance: Callable[[int, int], None] = _no_progress

    def run(self, prompts: Sequence[Prompt], evals: float = math.inf) -> list[Entry]:
        """Scores prompts block by block.

        Args:
            evals: That may be asked for: only as many go on, the best forecast first, as they cover.

        Returns:
            One entry a prompt, in their order.
        """
        count, labels = len(self.clips), len(self.clips.task.labels)
        entries = [Entry(np.zeros(0, np.int64), np.zeros((0, labels), np.float32)) for _ in prompts]
        racing, best, known = list(range(len(prompts))), None, None
        if self.references is not None:
            best = self.objective.measure(self.references[0], self.clips)
            known = bases(self.references, self.clips.targets.truth)
        waiting = np.arange(count)
        block = count if known is None else min(self.first_block, count)
        while racing and block:
            affordable = max(0, int(min(evals / block, len(racing))))
            self.advance(0, (len(racing) - affordable) * len(waiting))
            racing = sorted(racing, key=lambda p: -_sort_value(entries[p]))[:affordable]
            index, waiting = waiting[:block], waiting[block:]
            evals -= len(racing) * block
            asked, racing = len(racing), self._score(prompts, index, sorted(racing), entries)
            self.advance(0, (asked - len(racing)) * (block + len(waiting)))
            for p in racing:
                entries[p] = self._measure(entries[p], known)
            staying = racing if best is None else self._keep(entries, racing, best)
            self.advance(len(racing) * block, (len(racing) - len(staying)) * len(waiting))
            racing = staying
            if racing and len(waiting):
                waiting = self._doubtful_first(waiting, [entries[p] for p in racing])
            n_scored = count - len(waiting)
            # Score a small remainder now, too.
            block = len(waiting) if len(waiting) < 1.5 * n_scored else n_scored
        return entries

    def _score(
        self, prompts: Sequence[Prompt], index: Index, racing: list[int], entries: list[Entry]
    ) -> list[int]:
        """Scores those that race on a block; a prompt that this model cannot score is marked and left out."""
        part = self.clips.take(index.tolist())
        found: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        try:
            if racing:
                table = self.evaluator.score([prompts[p] for p in racing], part)
                found = {p: (table.logp[i], table.unlisted[i]) for i, p in enumerate(racing)}
        except PromptError:  # raised before anything is scored: find out which one it was
            for p in racing:
                try:
                    table = self.evaluator.score([prompts[p]], part)
                    found[p] = table.logp[0], table.unlisted[0]
                except PromptError as fault:
                    entries[p] = replace(entries[p], error=str(fault))
        for p, (logp, unlisted) in found.items():
            entries[p] = replace(
                entries[p],
                scored=np.concatenate([entries[p].scored, index]),
                logp=np.concatenate([entries[p].logp, logp]),
                unlisted=entries[p].unlisted + float(unlisted.sum()),
            )
        return list(found)

    def _measure(self, entry: Entry, known: tuple[Basis, ...] | None) -> Entry:
        """With its reward on all clips: exact when it is scored on all, else a forecast."""
        if len(entry.scored) == len(self.clips):
            logp = np.empty_like(entry.logp)
            logp[entry.scored] = entry.logp
            exact = self.objective.measure(logp, self.clips)
            return replace(
                entry,
                scored=np.arange(len(self.clips)),
                logp=logp,
                measured=exact,
                bias=exact.bias,
                profile=exact.profile,
                reward=exact.reward,
                sd=0.0,
                p_correct=exact.right.astype(float),
                expected=logp,
                blocks=(*entry.blocks, exact.reward),
            )
        assert known is not None
        drawn = draw_logp(known, entry.scored, entry.logp)
        expected, fitted = drawn.mean(axis=0), None
        if drawn.shape[-1] > 2:  # a fit to every draw would take seconds
            fitted = fit_shift(self.clips.targets.truth, expected)
        outcomes = [self.objective.measure(one, self.clips, fitted=fitted) for one in drawn]
        rewards = np.array([o.reward for o in outcomes])
        return replace(
            entry,
            reward=float(rewards.mean()),
            sd=float(rewards.std()),
            p_correct=np.mean([o.right for o in outcomes], axis=0),
            expected=expected,
            bias=_mean_bias([o.bias for o in outcomes]),
            profile=Profile(
                tuple(np.mean([o.profile.recalls for o in outcomes], axis=0).tolist()),
                float(np.mean([o.profile.auroc for o in outcomes])),
                float(np.mean([o.profile.tuned for o in outcomes])),
            ),
            blocks=(*entry.blocks, float(rewards.mean())),
        )

    def _keep(self, entries: Sequence[Entry], racing: Sequence[int], best: Measured) -> list[int]:
        """Those that stay in the race."""
        if not racing:
            return []
        ranked = sorted(racing, key=lambda p: -entries[p].reward)
        leader = entries[ranked[0]]
        truth, out = self.clips.targets.truth, []
        for p in ranked[: math.ceil(len(ranked) / 2)]:
            one = entries[p]
            bar = leader.reward - DROP_Z * math.hypot(one.sd, leader.sd)
            bar = max(bar, best.reward + MIN_GAIN - DROP_Z * one.sd)
            reachable = math.inf
            if self.objective.sums_hits:
                right = np.ones(len(truth))
                right[one.scored] = one.p_correct[one.scored]
                reachable = float(self.objective.weights(self.clips.targets.kinds) @ right)
            if one.reward >= bar and reachable >= best.reward - 1e-12:
                out.append(p)
        return sorted(out)

    def _doubtful_first(self, waiting: Index, racing: Sequence[Entry]) -> Index:
        """The waiting clips, those whose outcome is most in doubt first, the labels in turns."""
        p_correct = np.mean([e.p_correct for e in racing], axis=0)
        doubt, truth = p_correct * (1 - p_correct), self.clips.targets.truth
        place = np.empty(len(doubt))
        for k in np.unique(truth[waiting]):
            own = waiting[truth[waiting] == k]
            place[own[np.argsort(-doubt[own], kind="stable")]] = np.arange(len(own))
        return waiting[np.argsort(place[waiting], kind="stable")]


def _mean_bias(biases: Sequence[Bias]) -> Bias:
    mean = np.mean(np.array(biases), axis=0)
    return float(mean) if mean.ndim == 0 else tuple(mean.tolist())


def _sort_value(entry: Entry) -> float:
    return -math.inf if math.isnan(entry.reward) else entry.reward
