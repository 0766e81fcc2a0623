"""The document of a profile: all that its files, tables and page are made from, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluators.clips import ClipSet
from evaluators.statistics.resampling import MIN_SOURCES
from opro.profiling.effects import can_tell, confounded
from opro.profiling.measured import Asked, differences, plain, profile
from opro.profiling.scoring import Scored
from opro.profiling.two_way import RESAMPLES, TwoWay
from opro.profiling.wordings import GRAMMAR, Design, Wording

VERSION = 1


@dataclass(frozen=True)
class Heard:
    """What a checkpoint gave.

    Attributes:
        fingerprint: Of the evaluator that scored it.
        warnings: They belong to its numbers.
        lengths: Of each wording, in `unit`.
    """

    name: str
    fingerprint: str
    warnings: tuple[str, ...]
    scored: Scored
    lengths: tuple[int, ...]
    unit: str


@dataclass(frozen=True)
class Setting:
    """What a profile is made with.

    Attributes:
        design: Of the wordings of the grammar.
        wordings: All that were asked.
    """

    clips: ClipSet
    design: Design
    wordings: Sequence[Wording]
    seed: int


def document(setting: Setting, heard: Sequence[Heard]) -> dict[str, Any]:
    """The profiles of checkpoints on the same wordings and clips, and how the others differ from the first.

    A wording that a checkpoint could not be asked with is left out of all of them, and named.
    """
    failed = {i: why for one in heard for i, why in one.scored.failed.items()}
    kept = [i for i in range(len(setting.wordings)) if i not in failed]
    wordings = tuple(setting.wordings[i] for i in kept)
    design = replace(setting.design, wordings=tuple(w for w in wordings if w.group == GRAMMAR))
    targets = setting.clips.targets
    asked = Asked(
        design,
        wordings,
        np.array([heard[0].lengths[i] for i in kept], dtype=np.float64),
        heard[0].unit,
        TwoWay.of(targets, [w.group for w in wordings], seed=setting.seed),
    )
    profiles = [
        profile(one.name, (one.fingerprint, _warnings(one)), asked, targets, one.scored.logp[kept])
        for one in heard
    ]
    first, *others = profiles
    grammar = asked.lengths[asked.rows(GRAMMAR)]
    why = can_tell(design)
    return {
        "profile": VERSION,
        "task": setting.clips.task.name,
        "labels": list(setting.clips.task.labels),
        "clips": len(targets),
        "sources": asked.two_way.sources.sources,
        "fewest_sources": asked.two_way.sources.fewest,
        "heard_sources": sorted(set(targets.sources.tolist())),
        "seed": setting.seed,
        "resamples": RESAMPLES,
        "unit": asked.unit,
        "factors": [{"name": f.name, "levels": list(f.levels)} for f in design.factors],
        "notes": [
            *_left_out(setting, failed),
            *_few(asked.two_way.sources.fewest),
            *([why] if why else confounded(design, grammar, asked.unit)),
        ],
        "wordings": [
            {
                "prompt_id": w.prompt.prompt_id,
                "group": w.group,
                "length": int(length),
                "text": w.prompt.text,
                "levels": dict(w.levels),
            }
            for w, length in zip(wordings, asked.lengths, strict=True)
        ],
        "checkpoints": [plain(one, asked) for one in profiles],
        "differences": [
            {
                "checkpoint": one.name,
                "reference": first.name,
                "groups": differences(first, one, asked.two_way),
            }
            for one in others
        ],
    }


def _warnings(one: Heard) -> tuple[str, ...]:
    share = one.scored.unlisted
    if not share:
        return one.warnings
    return (
        *one.warnings,
        f"up to {100 * share:.0f} % of a wording's answers are not among the tokens that the server lists: their scores"
        " are upper bounds",
    )


def _few(sources: int) -> list[str]:
    """A sentence where there are too few sources to claim anything."""
    if sources >= MIN_SOURCES:
        return []
    return [
        f"no part is shown to move an outcome: the clips have {sources} sources of one label, {MIN_SOURCES} are needed"
    ]


def _left_out(setting: Setting, failed: dict[int, str]) -> list[str]:
    """A sentence on wordings that could not be asked."""
    if not failed:
        return []
    i, why = next(iter(failed.items()))
    return [
        f"{len(failed)} of {len(setting.wordings)} wordings could not be scored and are left out, such as"
        f" {setting.wordings[i].prompt.text[:60]!r}: {why}"
    ]
