"""The profile of a checkpoint: every number of it, and the same as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.files import finite_or_none
from evaluators.statistics.resampling import Statistic
from evaluators.targets import Targets
from opro.profiling.effects import Effect, can_tell, effects, explained, slope
from opro.profiling.two_way import OUTCOMES, Answers, TwoWay, Value, noise, possible, summary
from opro.profiling.wordings import GRAMMAR, GROUPS, HAND, Design, Wording

FEWEST = 10  # wordings of a group whose spread is told
BEST = 10  # wordings that are handed on
MOVED = ("hit_rate", "false_alarm_rate", "balanced_accuracy")  # outcomes whose factors are told

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Asked:
    """What all checkpoints are profiled with.

    Attributes:
        design: Of the grammar's wordings, which come first; without any where the task has no grammar.
        wordings: All.
        lengths: ``[wording]`` in `unit`.
        two_way: The resamples.
    """

    design: Design
    wordings: tuple[Wording, ...]
    lengths: Floats
    unit: str
    two_way: TwoWay

    def rows(self, group: str) -> Ints:
        """The wordings of a group."""
        return np.flatnonzero([w.group == group for w in self.wordings])

    @property
    def groups(self) -> list[str]:
        """The groups that are large enough for a spread, the grammar first."""
        return [g for g in GROUPS if len(self.rows(g)) >= FEWEST]


@dataclass(frozen=True, eq=False)
class Profile:
    """A checkpoint's profile.

    Attributes:
        outcomes: ``[wording]`` by name.
        summaries: Group -> name of a number -> the number, with its draws.
        noises: Group -> outcome -> standard deviation between equal wordings.
        effects: Of the factors' levels; none where they cannot be told apart.
        explained: Outcome -> share of its variance by all factors, and by each alone.
        slopes: Outcome -> what ten more tokens or words go with, within the grammar.
    """

    name: str
    fingerprint: str
    warnings: tuple[str, ...]
    answers: Answers
    outcomes: Mapping[str, Statistic]
    summaries: Mapping[str, Mapping[str, Statistic]]
    noises: Mapping[str, Mapping[str, float]]
    effects: Sequence[Effect]
    explained: Mapping[str, Mapping[str, float]]
    slopes: Mapping[str, Statistic]

    @property
    def best(self) -> list[int]:
        """The wordings, best first: balanced accuracy with its threshold, then AUROC, then the order."""
        tuned, area = self.answers.tuned, self.outcomes["auroc"].value
        return sorted(range(len(tuned)), key=lambda i: (-round(float(tuned[i]), 9), -area[i], i))

    def places(self, asked: Asked) -> list[tuple[int, float]]:
        """Of the hand-written wordings, the share of the largest group that scores lower; ties count half."""
        if not asked.groups:
            return []
        value = self.outcomes["balanced_accuracy"].value
        others = value[asked.rows(asked.groups[0])]
        return [
            (int(i), float((others < value[i]).mean() + (others == value[i]).mean() / 2))
            for i in asked.rows(HAND)
        ]


def profile(
    name: str, about: tuple[str, tuple[str, ...]], asked: Asked, targets: Targets, logp: Floats
) -> Profile:
    """The profile of a checkpoint.

    Args:
        about: Its fingerprint, and warnings that belong to it.
        logp: ``[wording, clip, label]`` nats.
    """
    t, answers = asked.two_way, Answers(targets, logp)
    outcomes = answers.outcomes(t.sources)
    grammar = asked.rows(GRAMMAR)
    tellable = not can_tell(asked.design)
    some = {n: outcomes[n] for n in MOVED}
    return Profile(
        name,
        *about,
        answers,
        outcomes,
        {g: summary(t, answers, outcomes, asked.rows(g)) for g in asked.groups},
        {g: {n: noise(outcomes[n], asked.rows(g)) for n in OUTCOMES[:3]} for g in asked.groups},
        effects(asked.design, t, grammar, some) if tellable else (),
        {n: explained(asked.design, outcomes[n].value[grammar]) for n in MOVED} if tellable else {},
        {n: slope(asked.lengths, t, grammar, outcomes[n]) for n in MOVED} if len(grammar) else {},
    )


def differences(first: Profile, other: Profile, t: TwoWay) -> dict[str, dict[str, Value]]:
    """Group -> number -> other less first, of the same wordings and clips in every resample."""
    return {
        group: {name: t.interval(own[name] - first.summaries[group][name]) for name in own}
        for group, own in other.summaries.items()
    }


def plain(one: Profile, asked: Asked) -> dict[str, Any]:
    """A profile as plain data."""
    t = asked.two_way
    return {
        "name": one.name,
        "fingerprint": one.fingerprint,
        "warnings": list(one.warnings),
        "groups": {
            group: {
                "wordings": len(asked.rows(group)),
                "numbers": {name: t.interval(s, *possible(name)) for name, s in own.items()},
                "noise": one.noises[group],
            }
            for group, own in one.summaries.items()
        },
        "hand_written": [{"wording": i, "above": share} for i, share in one.places(asked)],
        "effects": [
            {
                "factor": e.factor,
                "level": e.level,
                "wordings": e.count,
                **e.moved,
                "p_holm": e.p,
                "clear": e.clear,
            }
            for e in one.effects
        ],
        "explained": one.explained,
        "ten_more": {name: t.interval(s) for name, s in one.slopes.items()},
        "wordings": [
            {
                **{name: finite_or_none(float(s.value[i])) for name, s in one.outcomes.items()},
                "tuned": float(one.answers.tuned[i]),
            }
            for i in range(len(asked.wordings))
        ],
        "best": [asked.wordings[i].prompt.to_dict() for i in one.best[:BEST]],
    }
