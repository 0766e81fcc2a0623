"""What a language model is shown of a search: a parent, where it errs, what was tried on it and what came of that.

Parents come from the instance-wise Pareto front (GEPA, arXiv 2507.19457): a prompt that alone is right about some clips
is worth starting from, even if another one is right more often.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.clips import Clip
from evaluators.statistics import metrics
from opro.search.history import Trial

SLICES = 4  # worst slices that are named
MISJUDGED = 6  # clips that are described
CHILDREN = 6  # earlier changes that are shown


@dataclass(frozen=True)
class Heard:
    """The search clips, and what the best trials said about them.

    Attributes:
        clips: The search half.
        truth: Index of each clip's label.
        logp: ``[clip, label]`` by trial number, of trials that heard every clip, the best first.
    """

    clips: Sequence[Clip]
    truth: NDArray[np.int64]
    logp: Mapping[int, NDArray[np.float32]]

    def decided(self, trial: Trial) -> NDArray[np.int64]:
        """Index of the label that a trial gives each clip."""
        return metrics.decide(self.logp[trial.number], trial.bias)


def front(heard: Heard, trials: Sequence[Trial]) -> dict[int, float]:
    """The trials that no other one dominates clip by clip, with the share of the clips each leads.

    A clip's lead is shared by all that are right about it.

    Args:
        trials: All in `heard`, in any order.
    """
    right = np.array([heard.decided(t) == heard.truth for t in trials])
    kept: list[int] = []
    for i, own in enumerate(right):
        covers = (right >= own).all(axis=1)  # it is right wherever this one is
        more = right.sum(axis=1) > own.sum()
        if not (covers & (more | (np.arange(len(right)) < i))).any():
            kept.append(i)
    if not kept:
        return {}
    rows = right[kept].astype(float)
    lead = (rows / np.maximum(rows.sum(axis=0), 1)).sum(axis=1)
    return {trials[i].number: float(v) / len(heard.truth) for i, v in zip(kept, lead, strict=True)}


def draw_parent(heard: Heard, trials: Sequence[Trial], rng: random.Random) -> Trial | None:
    """One of the front, likelier the more clips it leads; None before any trial heard every clip."""
    known = [t for t in trials if t.number in heard.logp]
    if not known:
        return None
    leads = front(heard, known)
    number = rng.choices(list(leads), list(leads.values()))[0] if leads else known[0].number
    return next(t for t in known if t.number == number)


def about_parent(
    heard: Heard, parent: Trial, past: Sequence[Trial], labels: Sequence[str], rng: random.Random
) -> str:
    """The parent with its profile of errors, some clips it misjudges, and its children with what they gained."""
    lines = [
        f"Start from this prompt, which scored {_points(parent.reward)}:",
        "",
        parent.candidate.prompt.text,
    ]
    worst = sorted(parent.slices.items(), key=lambda item: item[1][0])[:SLICES]
    if worst:
        named = ", ".join(f"{name} ({100 * s:.0f} % of {n} clips)" for name, (s, n) in worst)
        lines += ["", f"It does worst on: {named}."]
    said = heard.decided(parent)
    for k, label in enumerate(labels):
        own = heard.truth == k
        missed = int((said[own] != k).sum())
        lines.append(f"It gets {missed} of {int(own.sum())} clips of {label} wrong.")
    wrong = misjudged(heard, parent, labels, MISJUDGED, rng)
    if wrong:
        lines += ["", "Some clips it gets wrong:", *(f"- {line}" for line in wrong)]
    children = [
        t
        for t in past
        if parent.candidate.prompt.prompt_id in t.candidate.parents and t.reward is not None
    ]
    children.sort(key=lambda t: t.rank)
    if children:
        lines += ["", "Changes tried on it before, with the points they gained:"]
        for child in children[-CHILDREN:]:
            gain = 100 * ((child.reward or 0.0) - (parent.reward or 0.0))
            about = "about " if child.state == "dropped" else ""
            text = " / ".join(child.candidate.prompt.text.split("\n"))
            lines.append(f"{about}{gain:+.1f}: {text}")
    return "\n".join(lines)


def misjudged(
    heard: Heard, trial: Trial, labels: Sequence[str], count: int, rng: random.Random
) -> list[str]:
    """Up to `count` clips that a trial is wrong about, in words: what is known of each, and what was said."""
    said = heard.decided(trial)
    margin = metrics.margins(heard.logp[trial.number]) + trial.bias
    wrong = np.flatnonzero(said != heard.truth).tolist()
    return [
        f"{about_clip(heard.clips[i])}; it is {labels[heard.truth[i]]}, the answer was"
        f" {labels[said[i]]} ({100 / (1 + np.exp(-abs(margin[i]))):.0f} % sure)"
        for i in sorted(rng.sample(wrong, min(count, len(wrong))))
    ]


def about_clip(clip: Clip) -> str:
    """A clip in words, as a language model cannot hear it."""
    noise = "" if clip.snr_db is None else f", {clip.snr_db:.0f} dB above its noise"
    return f"a clip of {clip.duration_ms:.0f} ms{noise}, kind: {clip.category}"


def standstill(past: Sequence[Trial]) -> int:
    """Iterations since the best trial was found."""
    told = [t for t in past if t.state in ("complete", "dropped")]
    if not told:
        return 0
    return max(t.iteration for t in past) - max(told, key=lambda t: t.rank).iteration


def _points(value: float | None) -> str:
    return f"{100 * (value or 0.0):.0f}"
