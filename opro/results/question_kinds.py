"""Questions with options of each clip's own: scores by kind of question, and how much the order of options decides."""

from typing import Any

import numpy as np

from evaluators.choices import chosen_by_turn, consistency, correctness
from evaluators.clips import ClipSet
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt
from evaluators.statistics.compare import resample
from evaluators.statistics.describe import interval
from evaluators.targets import Predictions
from opro.results.sheet import Column, Sheet, percent


def chance_of(clips: ClipSet) -> float:
    """Accuracy of a guess: the mean over clips of one in as many as there are options."""
    return float(np.mean([1 / len(clip.options) for clip in clips]))


def by_kind(said: Predictions, clips: ClipSet) -> dict[str, dict[str, Any]]:
    """Kind of question -> clips, sources, accuracy {value, low, high}, chance."""
    kinds = np.array([clip.category for clip in clips])
    out = {}
    for kind in sorted(set(kinds.tolist())):
        index = np.flatnonzero(kinds == kind)
        part = said.take(index)
        c = resample(part.targets, resamples=2000)
        out[kind] = {
            "clips": len(index),
            "sources": c.sources,
            "accuracy": interval(c, c.accuracy(part.right)),
            "chance": chance_of(clips.take(index.tolist())),
        }
    return out


def over_orders(evaluator: Evaluator, prompt: Prompt, clips: ClipSet) -> dict[str, Any]:
    """How a prompt answers in every rotation of the options, with 95 % intervals over sources.

    Returns:
        consistency: share of the pairs of orders that agree; correctness: share of the orders answered right, as by
        López, Kesiraju and Luque (arXiv 2510.04584); always_right: share of the clips answered right in every order;
        each {value, low, high}; places: share of all answers that fell on each place shown.
    """
    chosen = chosen_by_turn(evaluator, prompt, clips.clips)
    truth = clips.targets.truth
    c = resample(clips.targets)
    ones = np.ones(len(clips))
    parts = {
        "consistency": [consistency(one) for one in chosen],
        "correctness": [correctness(one, k) for one, k in zip(chosen, truth, strict=True)],
        "always_right": [float((one == k).all()) for one, k in zip(chosen, truth, strict=True)],
    }
    places = np.zeros(max(map(len, chosen)))
    for one in chosen:
        shown = (one - np.arange(len(one))) % len(one)
        np.add.at(places, shown, 1 / len(one))
    return {
        **{name: interval(c, c.share(np.array(v), ones)) for name, v in parts.items()},
        "places": (places / len(clips)).tolist(),
    }


def kinds_sheet(kinds: dict[str, dict[str, Any]], who: str) -> Sheet:
    """The kinds of `by_kind` as people read them."""
    columns = [
        Column("kind of question", text=True),
        Column("clips", 7),
        Column("sources", 6),
        Column("accuracy"),
        Column("chance", 7),
    ]
    rows = [
        [k, str(v["clips"]), str(v["sources"]), percent(v["accuracy"]), f"{100 * v['chance']:.0f}"]
        for k, v in kinds.items()
    ]
    return Sheet(f"{who}, by kind of question", columns, rows)


def orders_line(found: dict[str, Any], letters: list[str]) -> str:
    """`over_orders` in a sentence."""
    places = ", ".join(f"{v} {100 * p:.0f}" for v, p in zip(letters, found["places"], strict=False))
    return (
        f"over all rotations of the options: {percent(found['correctness'])} % right on average,"
        f" {percent(found['always_right'])} % right in all of them; two orders agree in"
        f" {percent(found['consistency'])} % of the cases; answers by place, in percent: {places}"
    )
