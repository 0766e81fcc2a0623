"""Logs of evaluations compared sample by sample: which score of them, which samples, and what is told beside.

A log of one kind of answers out of a few, such as yes and no, can be read as predictions too; see `as_predictions`.
"""

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evaluators.errors import UserError
from evaluators.statistics.compare import compare_scores, mean_of, resample_scores
from evaluators.statistics.resampling import MIN_SOURCES, Clusters
from evaluators.targets import SLICES, Predictions, Scores
from opro.results.logs.harness_log import MISSED
from opro.results.logs.sample_log import Sample, SampleLog, number
from opro.results.predictions import LOGP, Table, read_rows
from opro.results.spellings import MOST_LABELS, predicted_names, same_word

NAMED = 3  # samples that a sentence names
FIELDS = 6  # fields that one names
NAMES = ("score", "source_id")  # what --map says of a log
ROUNDING = 1e-6
MOST_DRAWS = 50_000_000  # resamples x sources: 400 MB
LEAST_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Scored:
    """A log, and the score of it that is compared.

    Attributes:
        name: A, B, ... in the order given: what sentences call it.
        table: Its runs as rows of text: ids, sources, fields.
        scores: Of the samples that have one: the mean over their epochs.
        as_zero: Sample -> its mean where a run without a score counts 0, of all samples.
        missing: Sample none of whose runs has a score -> why, "" where that is not known.
        told: What is to be said of it, a sentence each.
    """

    name: str
    log: SampleLog
    score: str
    table: Table
    scores: Scores
    as_zero: Mapping[str, float]
    missing: Mapping[str, str]
    told: tuple[str, ...] = ()
    first: Mapping[str, Sample] = field(default_factory=dict)


def open_scored(logs: Sequence[SampleLog], names: dict[str, str]) -> list[list[Scored]]:
    """The logs, those of one task together, each task with the score that `names` says or that all its logs have first.

    Args:
        names: What --map says: ``score`` and ``source_id``.
    Raises:
        UserError: A log has no such score, or a sample has two sources.
    """
    for name in names:
        if name not in NAMES:
            raise UserError(
                f"--map {name}={names[name]!r}: of the log of an evaluation, {' and '.join(NAMES)} can be said;"
                " its labels and answers are known"
            )
    letters = string.ascii_uppercase if len(logs) <= 26 else map(str, itertools.count(1))
    named = dict(zip((log.path for log in logs), letters, strict=False))
    return [
        [_scored(named[log.path], log, *chosen) for log, chosen in _choose(group, names)]
        for group in tasks(logs)
    ]


def tasks(logs: Sequence[SampleLog]) -> list[list[SampleLog]]:
    """The logs of one task together: by its name, or because a sample asks the same and has a score of one name."""
    asked = [{s.id: s.asked for s in log.samples} for log in logs]
    offered = [set(_offered(log)) for log in logs]

    def alike(i: int, j: int) -> bool:
        if logs[i].task and logs[i].task == logs[j].task:
            return True
        same = any(asked[j].get(name) == what for name, what in asked[i].items())
        return same and bool(offered[i] & offered[j])

    groups: list[list[int]] = []
    for i in range(len(logs)):
        mine = [g for g in groups if any(alike(i, j) for j in g)]
        groups = [g for g in groups if g not in mine] + [[*itertools.chain(*mine), i]]
    return [[logs[i] for i in sorted(group)] for group in sorted(groups, key=min)]


def _choose(
    logs: Sequence[SampleLog], names: dict[str, str]
) -> Iterator[tuple[SampleLog, tuple[str, str | None, str]]]:
    """(log, (its score, what --map says of its sources, what is told of the choice)) of the logs of one task."""
    offered = [_offered(log) for log in logs]
    for log, known in zip(logs, offered, strict=True):
        if not known:
            raise UserError(f"{log.path}: no sample has a score that is a number")
    common = [n for n in offered[0] if all(n in known for known in offered)]
    if not common and "score" not in names:
        a, b = (f"{', '.join(offered[i])} in {logs[i].path}" for i in (0, -1))
        raise UserError(
            f"logs of one task have no score in common: there are {a}, and {b}; say with --map score=NAME which"
        )
    for log, known in zip(logs, offered, strict=True):
        if "score" in names:
            yield log, (_named(log, names["score"], known), names.get("source_id"), "")
        else:
            told = f"the score is {common[0]!r}, the first of {', '.join(known)}"
            yield log, (common[0], names.get("source_id"), told if known[1:] else "")


def _offered(log: SampleLog) -> list[str]:
    """Names of scores, in the order in which they occur."""
    names = dict.fromkeys(n for s in log.samples for n in s.scores)
    return [n for n in names if any(not np.isnan(s.scores.get(n, np.nan)) for s in log.samples)]


def _named(log: SampleLog, asked: str, offered: Sequence[str]) -> str:
    """The score that is meant: by its name, or by a part of it that no other has."""
    if asked in offered:
        return asked
    found = [n for n in offered if asked in (*n.split(","), n.split(",")[0].rpartition(".")[2])]
    if len(found) == 1:
        return found[0]
    what = (
        f"may be {' or '.join(found)}" if found else f"is not there; there are {', '.join(offered)}"
    )
    raise UserError(f"{log.path}: --map score={asked!r} {what}")


def _scored(name: str, log: SampleLog, score: str, source: str | None, told: str) -> Scored:
    table = _table(log, score, {"source_id": source} if source else {})
    sources = _sources(log, table)
    value = np.array([s.scores.get(score, np.nan) for s in log.samples])
    runs: dict[str, list[int]] = {}
    for i, sample in enumerate(log.samples):
        runs.setdefault(sample.id, []).append(i)
    missing, means, as_zero = dict[str, str](), dict[str, float](), dict[str, float]()
    for one, rows in sorted(runs.items()):
        held = value[rows][~np.isnan(value[rows])]
        as_zero[one] = float(np.nan_to_num(value[rows]).mean())
        if len(held):
            means[one] = float(held.mean())
        else:
            missing[one] = next(
                (log.samples[i].trouble for i in rows if log.samples[i].trouble), ""
            )
    scores = Scores(
        str(log.path),
        tuple(means),
        np.array([sources[one] for one in means], dtype=np.str_),
        np.array(list(means.values())),
    )
    first = {one: log.samples[rows[0]] for one, rows in runs.items()}
    made = Scored(name, log, score, table, scores, as_zero, missing, first=first)
    return replace(made, told=tuple(filter(None, (told, *_notes(made, value)))))


def _table(log: SampleLog, score: str, names: dict[str, str]) -> Table:
    """The runs of a log as rows: its fields, and over them what the log itself knows."""
    samples = log.samples
    columns = {
        name: [s.fields.get(name, "") for s in samples]
        for name in dict.fromkeys(n for s in samples for n in s.fields)
    }
    columns["clip_id"] = [s.id for s in samples]
    columns["label"] = [s.target for s in samples]
    columns["predicted"] = [s.answers.get(score, "") for s in samples]
    columns.pop("score", None)
    columns.setdefault("source_id", columns["clip_id"])
    return Table(log.path, columns, [f": sample {s.id}" for s in samples], names)


def _sources(log: SampleLog, table: Table) -> dict[str, str]:
    """Sample -> its source."""
    out: dict[str, str] = {}
    for i, text in enumerate(table.needed("source_id", "what samples share")):
        one = log.samples[i].id
        if not text:
            raise UserError(f"{table.at(i)}: source_id is empty; expected it for every sample")
        if out.setdefault(one, text) != text:
            raise UserError(
                f"{table.at(i)}: source_id is {text!r} in one epoch and {out[one]!r} in another"
            )
    return out


def _notes(made: Scored, value: np.ndarray[Any, Any]) -> Iterator[str]:
    """What is to be said of one log."""
    log = made.log
    yield from log.notes
    runs = int(np.isnan(value).sum())
    if runs:
        epochs = f"; {runs} of {len(value)} runs" if len(value) > len(made.first) else ""
        yield (
            f"{len(made.missing)} of {len(made.first)} samples have no score{epochs}"
            f"{_named_samples(made.missing)}: they are in no mean and no difference"
        )
    unread = sum(s.answers.get(made.score) == MISSED for s in log.samples)
    if unread:
        yield f"the filter found no answer in {unread} of {len(value)} replies, which count as wrong"
    if len(value) > len(made.first):
        yield "a sample's score is the mean over its epochs"
    if made.score in log.less_is_better:
        yield f"of {made.score} less is better"
    own = log.reported.get(made.score)
    mean = float(made.scores.value.mean())
    if own is not None and abs(own - mean) > ROUNDING * max(1.0, abs(own)):
        yield (
            f"the log's own figure for {made.score} is {own:g}, and the mean over samples, which is compared, {mean:g}:"
            " the log's is made in another way"
        )
    if made.table.columns["source_id"] is made.table.columns["clip_id"] and not made.table.names:
        shared = [name for name in made.table.columns if _may_group(made, name)]
        if shared:
            yield (
                "each sample counts as a source; where several share one, --map source_id=FIELD (fields:"
                f" {', '.join(shared[:FIELDS])})"
            )


def _may_group(made: Scored, name: str) -> bool:
    """Whether a field may tell what samples share: it has several values, each of several samples."""
    columns = made.table.columns
    own = name in ("clip_id", "source_id", "label", "predicted") or name in _offered(made.log)
    values = columns[name]
    if own or "" in values or values == columns["label"]:
        return False
    return 1 < len(set(values)) <= len(made.first) / 2


def _named_samples(missing: Mapping[str, str]) -> str:
    shown = [
        f"{one} ({why})" if why else one for one, why in itertools.islice(missing.items(), NAMED)
    ]
    more = ", ..." if len(missing) > NAMED else ""
    return f" ({', '.join(shown)}{more})" if shown else ""


# ---- pairs


def compare_logs(
    groups: Sequence[Sequence[Scored]], *, resamples: int, seed: int
) -> dict[str, Any]:
    """{"logs": [...], "pairs": [...]}: every log by itself, and all pairs of one task, with one correction.

    Returns:
        A log: name, file, kind, task, model, score, share (whether it lies between 0 and 1), samples, sources, epochs,
        unscored, mean {value, low, high}, told. A pair: as `compare_scores`, and score, samples, sources, better ("a",
        "b" or None), told.
    """
    most = max(len(set(one.scores.sources.tolist())) for one in itertools.chain(*groups))
    drawn = min(resamples, max(MOST_DRAWS // most, LEAST_RESAMPLES))
    text = f"{drawn:,} resamples, not {resamples:,}: there are {most:,} sources"
    fewer = (text,) if drawn < resamples else ()
    alone = ("no other log is of its task or asks the same: it is compared with none",)
    logs = []
    for group in groups:
        single = alone if len(group) == 1 < len(groups) else ()
        for one in group:
            c = resample_scores(one.scores, resamples=drawn, seed=seed)
            logs.append(_described(one, c) | {"told": [*one.told, *single, *fewer]})
    pairs = [pair for group in groups for pair in itertools.combinations(group, 2)]
    joint = [_joint(a, b) for a, b in pairs]
    found = compare_scores([both for both, _ in joint], resamples=drawn, seed=seed)
    out = []
    for (a, _), (both, told), gain in zip(pairs, joint, found, strict=True):
        sources = len(set(both[0].sources.tolist()))
        about = {"score": a.score, "samples": len(both[0]), "sources": sources}
        better, why = _better(gain, sources, a.score in a.log.less_is_better)
        out.append({**gain, **about, "better": better, "told": [*told, *why]})
    return {"logs": logs, "pairs": out}


def _described(one: Scored, c: Clusters) -> dict[str, Any]:
    log, value = one.log, one.scores.value
    return {
        "name": one.name,
        "file": str(log.path),
        "kind": log.kind,
        "task": log.task,
        "model": log.model,
        "score": one.score,
        "share": _is_share(value),
        "samples": len(value),
        "sources": c.sources,
        "epochs": max(s.epoch for s in log.samples),
        "unscored": len(one.missing),
        "mean": c.estimate(mean_of(c, value)).to_dict(),
    }


def _better(gain: Mapping[str, Any], sources: int, less: bool) -> tuple[str | None, list[str]]:
    if sources < MIN_SOURCES:
        return None, [f"{sources} sources are too few for a claim; expected {MIN_SOURCES} or more"]
    if gain["p_holm"] >= 0.05:
        return None, []
    return ("a" if (gain["difference"] > 0) != less else "b"), []


def _joint(a: Scored, b: Scored) -> tuple[tuple[Scores, Scores], list[str]]:
    """The scores of the samples that have one in both logs, and what is told of the others.

    Raises:
        UserError: There are none, or the logs say different things of a sample.
    """
    files = f"{a.log.path} and {b.log.path}"
    shared = [one for one in a.first if one in b.first]
    both = sorted(set(a.scores.ids) & set(b.scores.ids))
    if not both:
        raise UserError(f"{files} are of one task, and no sample has a score in both")
    x, y = a.scores.of(both), b.scores.of(both)
    for what, mine, theirs in (
        ("target", [a.first[i].target for i in both], [b.first[i].target for i in both]),
        ("source_id", x.sources.tolist(), y.sources.tolist()),
    ):
        for one, p, q in zip(both, mine, theirs, strict=True):
            if p != q:
                raise UserError(
                    f"sample {one}: {what} is {p!r} in {a.log.path} and {q!r} in {b.log.path}"
                )
    told = []
    for mine, other in ((a, b), (b, a)):
        alone = {one: "" for one in mine.first if one not in other.first}
        if alone:
            told.append(
                f"{len(alone)} samples are in {mine.name} only{_named_samples(alone)} and are left out"
            )
    lost = [one for one in shared if one in a.missing or one in b.missing]
    if lost:
        text = f"{len(lost)} samples have no score in one of the two{_named_samples(dict.fromkeys(lost, ''))}"
        told.append(f"{text} and are left out{_counted_as_zero(a, b, shared)}")
    changed = sum(a.first[i].asked != b.first[i].asked for i in both)
    if changed:
        told.append(f"{changed} of {len(both)} samples ask something else in the two logs")
    if a.score != b.score:
        told.append(f"the scores have two names, {a.score} and {b.score}")
    return (x, y), told


def _counted_as_zero(a: Scored, b: Scored, shared: Sequence[str]) -> str:
    """The difference if runs without a score were wrong, where the score is a share."""
    if not (_is_share(a.scores.value) and _is_share(b.scores.value)):
        return ""
    zero = float(np.mean([a.as_zero[i] - b.as_zero[i] for i in shared]))
    return f"; counted as wrong they would make the difference {100 * zero:+.1f} points"


def _is_share(value: np.ndarray[Any, Any]) -> bool:
    return bool(((value >= 0) & (value <= 1)).all())


# ---- as predictions


def as_predictions(
    one: Scored, positive: str, slices: Sequence[str] | None
) -> tuple[Predictions, tuple[str, ...]] | str:
    """The log as predictions of labels, with what was guessed; else, in words, why it is none.

    It is where every sample was run once, its answer and its target are among a few labels with `positive` among them,
    and it is right by these where its score is 1. A multiple-choice log of lm-evaluation-harness, whose choices are the
    same everywhere, has log-probabilities too, and one whose samples have a field ``p_LABEL`` the probability of it.
    """
    samples = one.log.samples
    labels = sorted({s.target for s in samples})
    if same_word(positive) not in map(same_word, labels):
        return f"no target is {positive}"
    if not 2 <= len(labels) <= MOST_LABELS or "" in labels:
        return f"there are {len(labels)} targets"
    if len(one.first) < len(samples):
        return "samples were run several times"
    table = _own_columns(one, slices)
    choices = samples[0].choices
    if samples[0].logp and all(s.logp and s.choices == choices for s in samples):
        if set(labels) != set(choices):
            return f"its choices are {', '.join(choices)} and its targets {', '.join(labels)}"
        for i, label in enumerate(choices):
            table.columns[LOGP + label] = [repr(s.logp[i]) for s in samples]
        del table.columns["predicted"]
    else:
        name = f"p_{positive}"  # as we write them
        values = [number(s.fields.get(name)) for s in samples]
        if len(labels) == 2 and all(v is not None and 0 <= v <= 1 for v in values):
            table.columns["score"] = [s.fields[name] for s in samples]
            table.guessed.append(f"{name} is the probability of {positive}")
        answers = table.columns["predicted"]
        known = predicted_names(answers, {v: v for v in labels}, positive)
        strange = [v for v in answers if v not in known]
        if strange:
            return f"{len(strange)} answers are none of its targets, such as {strange[0]!r}"
    try:
        said, guessed = read_rows(table, positive, slices)
    except UserError as error:
        return str(error)
    score = [s.scores.get(one.score, np.nan) for s in samples]
    if not (said.right == np.array(score)).all():
        return f"{one.score} is not whether the answer is the target"
    return said, guessed


def _own_columns(one: Scored, slices: Sequence[str] | None) -> Table:
    """A log's rows with no field but those to slice by: other fields are not to be guessed at."""
    table = one.table
    kept = ("clip_id", "label", "predicted", *(SLICES if slices is None else slices))
    columns = {name: table.columns[name] for name in kept if name in table.columns}
    columns["source_id"] = table.needed("source_id", "what samples share")
    return Table(table.path, columns, table.places, {}, list(one.told))
