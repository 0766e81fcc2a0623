"""Evidence: where a parent errs and what edits of it gained, as a language model is shown it.

Half of the parents come from the instance-wise Pareto front (GEPA, arXiv 2507.19457): a prompt that alone is right
about some clips is worth starting from, even if another one is right more often. The other half are leaders, forecasts
too.
"""

import itertools
import math
import random
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import shifted
from opro.proposers.table import quoted
from opro.search.history import Trial
from opro.search.proposer import SearchView

LEADERS = 6  # that a parent is drawn from
CHILDREN = 4  # best and worst edits that are named
DURATIONS = 8  # that stand in a line each
SURE = math.log(9)  # nats: an answer that is 90 % sure


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
    """A trial to start from; None before any has a score.

    With even chances one of the front, likelier the more clips it leads, or one of the leaders, each half as likely as
    the one before it.
    """
    known = [t for t in view.trials if t.number in view.logp]
    leaders = view.scored[:LEADERS]
    if leaders and (not known or rng.random() < 0.5):
        return rng.choices(leaders, [2.0**-i for i in range(len(leaders))])[0]
    if not known:
        return None
    leads = front(view, known)
    drawn = rng.choices(list(leads), list(leads.values())) if any(leads.values()) else list(leads)
    number = drawn[0]
    return next(t for t in known if t.number == number)


def about_parent(view: SearchView, parent: Trial) -> str:
    """Where a parent errs: misses by duration and SNR, false alarms by kind, and how sure it is."""
    lines = [
        f"Row #{parent.number}, which scores {100 * parent.reward:.1f}:",
        "",
        parent.prompt.text,
        "",
        *([f"With it the clip is given {given}.", ""] if (given := parent.prompt.given) else []),
    ]
    if parent.number not in view.logp:
        return "\n".join(
            [
                *lines,
                f"It heard {parent.n_scored} of {len(view.clips)} clips: its errors are not known.",
            ]
        )
    labels, truth = view.clips.task.labels, view.clips.targets.truth
    said = decided(view, parent)
    ranked = np.sort(shifted(view.logp[parent.number], parent.classifier.bias), axis=-1)
    sure = ranked[:, -1] - ranked[:, -2] > SURE
    for k, label in enumerate(labels):
        own = truth == k
        right = said == k
        counts = [
            f"{int((own & a & b).sum())} {words}"
            for a, b, words in (
                (right, sure, "right and sure"),
                (right, ~sure, "right but near"),
                (~right, ~sure, "wrong but near"),
                (~right, sure, "wrong and sure"),
            )
        ]
        lines.append(f"{label}, {int(own.sum())} clips: {', '.join(counts)}.")
    lines += _missed(view, (truth == 0) & (said != 0), truth == 0, labels[0])
    lines += _by_kind(view, said, truth, labels)
    return "\n".join(lines)


def _missed(
    view: SearchView, missed: NDArray[np.bool_], own: NDArray[np.bool_], label: str
) -> list[str]:
    """Misses of one label by duration and SNR, as ``missed/clips``."""
    durations = np.array([round(c.duration_ms) for c in view.clips])
    snrs = np.array([math.nan if c.snr_db is None else round(c.snr_db / 5) * 5 for c in view.clips])
    columns = [*sorted({float(s) for s in snrs[own & ~np.isnan(snrs)]}), math.nan]
    lines = [f"{label} missed of clips, by duration and SNR:"]
    for name_of_row, row in _spans(durations, own):
        cells = []
        for snr in columns:
            cell = own & row & (np.isnan(snrs) if math.isnan(snr) else snrs == snr)
            if cell.any():
                name = "no noise" if math.isnan(snr) else f"{snr + 0.0:.0f} dB"
                cells.append(f"{name} {int((missed & cell).sum())}/{int(cell.sum())}")
        lines.append(f"- {name_of_row}: {', '.join(cells)}")
    return lines if len(lines) > 1 else []


def _spans(
    durations: NDArray[np.integer], own: NDArray[np.bool_]
) -> list[tuple[str, NDArray[np.bool_]]]:
    """The durations of some clips with the clips of each; of many durations, quarters of the clips."""
    known = np.unique(durations[own])
    if len(known) <= DURATIONS:
        return [(f"{d} ms", durations == d) for d in known]
    edges = np.unique(np.quantile(durations[own], [0, 0.25, 0.5, 0.75, 1], method="nearest"))
    out = []
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        row = (durations >= low) & (durations < high + (i + 2 == len(edges)))
        out.append((f"{low} to {high} ms", row))
    return out


def _by_kind(
    view: SearchView, said: NDArray[np.integer], truth: NDArray[np.integer], labels: Sequence[str]
) -> list[str]:
    """What the clips of each other label, of more than two of each, were taken for, by kind."""
    lines = []
    kinds = np.array([c.category for c in view.clips])
    first = len(labels) == 2  # of two, what the first one is missed at stands above
    for k, label in enumerate(labels[first:], first):
        for wrong in range(len(labels)):
            found = []
            for kind in sorted(set(kinds[truth == k])):
                cell = (truth == k) & (kinds == kind)
                if count := int((said[cell] == wrong).sum()):
                    found.append(f"{kind} {count}/{int(cell.sum())}")
            if wrong != k and found:
                lines.append(f"{label} called {labels[wrong]}: {', '.join(found)}")
    return lines


def edits(view: SearchView, parent: Trial, shown: Iterable[Trial]) -> str:
    """What edits of the parent gained, the best and the worst; their texts where no row shows them."""
    rows = {t.number for t in shown}
    made = [t for t in view.trials if t.scored and parent.prompt.prompt_id in t.candidate.parents]
    made.sort(key=lambda t: t.reward)
    if len(made) > 2 * CHILDREN:
        made = [*made[:CHILDREN], *made[-CHILDREN:]]
    lines = []
    for t in made:
        about = "about " if t.state == "dropped" else ""
        text = "" if t.number in rows else f": {quoted(t.prompt)}"
        lines.append(f"- {about}{100 * (t.reward - parent.reward):+.1f}: row #{t.number}{text}")
    return "\n".join(["Edits of it, with the points they gained:", *lines]) if lines else ""


def standstill(view: SearchView) -> int:
    """Iterations since the best trial was found."""
    if not view.scored:
        return 0
    return max(t.iteration for t in view.trials) - view.scored[0].iteration


def noise(view: SearchView) -> float | None:
    """By how many points a prompt's score is uncertain on new clips: half of a seed prompt's 95 % interval."""
    widths = [
        50 * (t.outcome.high - t.outcome.low)
        for t in view.trials
        if t.iteration == 0 and t.state == "complete" and t.outcome
        and t.outcome.low is not None and t.outcome.high is not None
    ]  # fmt: skip
    return float(np.median(widths)) if widths else None
