"""Verdicts of people who listen blind: their journal, how far they agree, and what that leaves for a model to reach."""

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import krippendorff
import numpy as np

from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.files import append_line, cut_torn_line
from evaluators.plain_data import inert, log_lines, parse_object
from evaluators.splits import balanced_order
from evaluators.statistics.compare import estimate
from evaluators.statistics.resampling import Estimate
from evaluators.targets import Predictions, Targets

log = logging.getLogger(__name__)
VERDICTS = "listening.jsonl"  # in the runs folder
UNSURE = "unsure"
CLIPS = 100  # that everybody hears: the first in balanced order, so that listeners overlap


@dataclass(frozen=True)
class Verdict:
    """What a person heard in a clip. `manifest` is the digest of the clip set; `verdict` a label, or unsure."""

    manifest: str
    clip_id: str
    listener: str
    verdict: str
    time: str


def read_verdicts(path: Path, manifest: str) -> list[Verdict]:
    """The verdicts on a clip set; of a clip that somebody heard twice the last one. Damaged lines are left out."""
    found: dict[tuple[str, str], Verdict] = {}
    for where, line in log_lines(path):
        try:
            raw = parse_object(line, where, "it is left out")
            one = Verdict(**{name: inert(str(value), lines=False) for name, value in raw.items()})
        except (UserError, TypeError) as error:
            log.warning(
                "%s",
                error if isinstance(error, UserError) else f"{where}: damaged line; it is left out",
            )
            continue
        if one.manifest == manifest:
            found[one.listener, one.clip_id] = one
    return list(found.values())


def record(path: Path, manifest: str, clip_id: str, listener: str, verdict: str) -> Verdict:
    """Adds a verdict. Processes take turns. Raises PauseError where the folder cannot be written."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    one = Verdict(manifest, clip_id, listener, verdict, now)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            cut_torn_line(path)
        append_line(path, json.dumps(asdict(one), ensure_ascii=False) + "\n")
    return one


def playlist(clips: Sequence[Clip], listener: str) -> list[Clip]:
    """The clips that everybody hears, in an order of the listener's own."""
    chosen = balanced_order(list(clips))[:CLIPS]
    random.Random(f"{listener}|{len(clips)}").shuffle(chosen)
    return chosen


def alpha(verdicts: Sequence[Verdict], labels: Sequence[str]) -> float | None:
    """Krippendorff's alpha, nominal, over listeners; unsure counts as not heard.

    Returns:
        1 is full agreement, 0 chance; None where no clip was heard by two, or all said the same of everything.
    """
    people = sorted({v.listener for v in verdicts})
    clips = sorted({v.clip_id for v in verdicts})
    data = np.full((len(people), len(clips)), np.nan)
    for v in verdicts:
        if v.verdict in labels:
            data[people.index(v.listener), clips.index(v.clip_id)] = labels.index(v.verdict)
    paired = (~np.isnan(data)).sum(axis=0) > 1 if data.size else np.zeros(0, bool)
    if not paired.any() or len(np.unique(data[:, paired][~np.isnan(data[:, paired])])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement="nominal"))


@dataclass(frozen=True)
class Ceiling:
    """The labels as people hear them.

    Attributes:
        estimate: Balanced accuracy of the listeners' majority against the labels: a model that hears as they do scores
            so much. None where not both labels were heard.
        clips: With a majority.
        undecided: Heard by somebody, without a majority or all unsure; left out.
        differ: Clip ids whose label the majority does not hear.
    """

    estimate: Estimate | None
    clips: int
    undecided: int
    differ: tuple[str, ...]


def ceiling(
    verdicts: Sequence[Verdict], clips: Mapping[str, Clip], labels: Sequence[str]
) -> Ceiling:
    """What the labels' noise leaves for a model to reach."""
    votes: dict[str, Counter[str]] = {}
    for v in verdicts:
        if v.clip_id in clips:
            own = votes.setdefault(v.clip_id, Counter())
            own.update([v.verdict] if v.verdict in labels else [])
    heard: dict[str, int] = {}
    for name, count in votes.items():
        best = count.most_common(2)
        if best and (len(best) == 1 or best[0][1] > best[1][1]):
            heard[name] = labels.index(best[0][0])
    undecided = len(votes) - len(heard)
    targets = Targets.of([clips[name] for name in heard], labels)
    if len(np.unique(targets.truth)) < 2:
        return Ceiling(None, len(heard), undecided, ())
    said = Predictions("listeners", targets, np.array(list(heard.values())))
    differ = [name for name, right in zip(heard, said.right, strict=True) if not right]
    return Ceiling(estimate(said), len(heard), undecided, tuple(differ))
