"""Evidence: what a language model is shown of a search: a parent, where it errs, what was changed on it, the gains.

Parents come from the instance-wise Pareto front (GEPA, arXiv 2507.19457): a prompt that alone is right about some clips
is worth starting from, even if another one is right more often.
"""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import log_odds
from evaluators.clips import Clip
from opro.search.history import Trial
from opro.search.proposer import SearchView

SLICES = 4  # worst slices that are named
MISJUDGED = 6  # clips that are described
CHILDREN = 6  # earlier changes that are shown


def decided(view: SearchView, trial: Trial) -> NDArray[np.integer]:
    """``[clip]`` index of the label that a trial of `SearchView.logp` decides on."""
    return trial.classifier.decide(view.logp[trial.number])


def front(view: SearchView, trials: Sequence[Trial]) -> dict[int, float]:
    """The trials that no other one dominates clip by clip, with the share of the clips each leads.

    A clip's lead is shared by all that are right about it.

    Args:
        trials: All in `SearchView.logp`, in any order.
    """
    truth = view.clips.targets.truth
    right = np.array([decided(view, t) == truth for t in trials])
    kept: list[int] = []
    for i, own in enumerate(right):
        covers = (right >= own).all(axis=1)  # it is right wherever this one is
        more = right.sum(axis=1) > own.sum()
        if not (covers & (more | (np.arange(len(right)) < i))).any():
            kept.append(i)
    rows = right[kept].astype(float)
    lead = (rows / np.maximum(rows.sum(axis=0), 1)).sum(axis=1)
    return {trials[i].number: float(v) / len(truth) for i, v in zip(kept, lead, strict=True)}


def draw_parent(view: SearchView, rng: random.Random) -> Trial | None:
    """One of the front, likelier the more clips it leads; None before any trial was scored on every clip."""
    known = [t for t in view.trials if t.number in view.logp]
    if not known:
        return None
    leads = front(view, known)
    drawn = rng.choices(list(leads), list(leads.values())) if any(leads.values()) else list(leads)
    number = drawn[0]
    return next(t for t in known if t.number == number)


def about_parent(view: SearchView, parent: Trial, rng: random.Random) -> str:
    """The parent with its profile of errors, some clips it misjudges, and its children with what they gained."""
    assert parent.outcome is not None
    labels, truth = view.clips.task.labels, view.clips.targets.truth
    lines = [
        f"Start from this prompt, which scored {100 * parent.reward:.0f}:",
        "",
        parent.prompt.text,
    ]
    worst = sorted(parent.outcome.slices.items(), key=lambda item: item[1][0])[:SLICES]
    if worst:
        named = ", ".join(f"{name} ({100 * s:.0f} % of {n} clips)" for name, (s, n) in worst)
        lines += ["", f"It does worst on: {named}."]
    said = decided(view, parent)
    for k, label in enumerate(labels):
        own = truth == k
        missed = int((said[own] != k).sum())
        lines.append(f"It gets {missed} of {int(own.sum())} clips of {label} wrong.")
    wrong = misjudged(view, parent, MISJUDGED, rng)
    if wrong:
        lines += ["", "Some clips it gets wrong:", *(f"- {line}" for line in wrong)]
    children = [
        t for t in view.trials if parent.prompt.prompt_id in t.candidate.parents and t.scored
    ]
    children.sort(key=lambda t: t.rank)
    if children:
        lines += ["", "Changes tried on it before, with the points they gained:"]
        for child in children[-CHILDREN:]:
            about = "about " if child.state == "dropped" else ""
            text = " / ".join(child.prompt.text.split("\n"))
            lines.append(f"{about}{100 * (child.reward - parent.reward):+.1f}: {text}")
    return "\n".join(lines)


def misjudged(view: SearchView, trial: Trial, count: int, rng: random.Random) -> list[str]:
    """Up to `count` clips that a trial is wrong about, in words: what is known of each, and the answer given."""
    labels, truth = view.clips.task.labels, view.clips.targets.truth
    said = decided(view, trial)
    odds = log_odds(view.logp[trial.number]) + trial.classifier.bias
    wrong = np.flatnonzero(said != truth).tolist()
    return [
        f"{about_clip(view.clips[i])}; it is {labels[truth[i]]}, the answer was"
        f" {labels[said[i]]} ({100 / (1 + np.exp(-abs(odds[i]))):.0f} % sure)"
        for i in sorted(rng.sample(wrong, min(count, len(wrong))))
    ]


def about_clip(clip: Clip) -> str:
    """A clip in words: a language model cannot hear it."""
    noise = "" if clip.snr_db is None else f", {clip.snr_db:.0f} dB above its noise"
    return f"a clip of {clip.duration_ms:.0f} ms{noise}, kind: {clip.category}"


def standstill(view: SearchView) -> int:
    """Iterations since the best trial was found."""
    if not view.scored:
        return 0
    return max(t.iteration for t in view.trials) - view.scored[0].iteration
