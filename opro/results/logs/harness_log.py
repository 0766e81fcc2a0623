"""Files of samples of lm-evaluation-harness and of lmms-eval, which began as a copy of it: one JSON object a line.

They are written with ``--log_samples``. A score is called as in their tables of results: metric, then filter.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluators.errors import UserError
from opro.results.logs.sample_log import (
    MOST_BYTES,
    Sample,
    SampleLog,
    digest,
    leaves,
    number,
    parse_json,
    shown,
    text_of,
    texts,
)

LM_EVAL, LMMS_EVAL = "lm-evaluation-harness", "lmms-eval"
NAMES = (  # of files: task and date, which the file of results shares
    (LM_EVAL, re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl?"), "results_{}.json"),
    (LMMS_EVAL, re.compile(r"(?P<date>\d{8}_\d{6})_samples_(?P<task>.+)\.jsonl?"), "{}_results.json"),
)  # fmt: skip
OWN = frozenset(  # keys of a line that are no metrics
    "doc_id doc target arguments resps filtered_resps filter metrics doc_hash prompt_hash target_hash input"
    " token_counts input_media".split()
)
MISSED = "[invalid]"  # what a filter gives where it finds no answer


def read_lines(path: Path) -> SampleLog:
    """A file of one sample a line.

    Raises:
        UserError: A line is no sample, or a sample stands there twice; names the lines.
    """
    with path.open("rb") as file:
        numbered = enumerate(iter(lambda: file.readline(MOST_BYTES + 1), b""), 1)
        held = ((parse_json(raw, f"{path}:{i}"), f":{i}") for i, raw in numbered if raw.strip())
        return _log(path, held)


def read_list(path: Path, data: list[Any]) -> SampleLog:
    """A file that holds all samples in one list, parsed: as lm-evaluation-harness wrote them until 2024."""
    return _log(path, ((raw, f": sample {i}") for i, raw in enumerate(data, 1)))


def _log(path: Path, held: Iterator[tuple[Any, str]]) -> SampleLog:
    samples, stood, kind = dict[str, Sample](), dict[tuple[str, str], str](), LM_EVAL
    for raw, place in held:
        if not isinstance(raw, Mapping) or isinstance(raw.get("doc_id"), dict | list | None):
            raise UserError(f"{path}{place}: no doc_id; expected a sample of {LM_EVAL}")
        sample, by = _sample(raw), text_of(raw.get("filter"))
        first = stood.setdefault((sample.id, by), place)
        if first != place:
            raise UserError(
                f"{path}{place}: doc_id {sample.id} stands at {path}{first} too; expected each once (two runs, or two"
                " filters that lmms-eval does not name, in one file)"
            )
        kind = LMMS_EVAL if "input" in raw else kind
        known = samples.get(sample.id, sample)
        samples[sample.id] = replace(
            sample,
            scores={**known.scores, **sample.scores},
            answers={**known.answers, **sample.answers},
        )
    if not samples:
        raise UserError(f"{path}: holds no samples")
    return _with_results(SampleLog(path, kind, "", "", tuple(samples.values())))


def _sample(raw: Mapping[str, Any]) -> Sample:
    named = raw.get("metrics")
    metrics = set(raw) - OWN
    if isinstance(named, list):
        metrics = {m for m in named if isinstance(m, str)} & set(raw)
    by = f",{text_of(raw['filter'])}" if "filter" in raw else ""
    scores = {}
    for metric in (m for m in raw if m in metrics):  # in the order of the line
        for name, value in leaves(raw[metric], metric):
            found = number(value)
            if found is not None:
                scores[f"{name}{by}"] = found
    replies = raw.get("filtered_resps")
    reply = replies[0] if isinstance(replies, list) and len(replies) == 1 else replies
    choices, logp = _choices(raw.get("arguments"), replies)
    own = {m: raw[m] for m in raw if m in metrics and isinstance(raw[m], Mapping)}
    return Sample(
        text_of(raw["doc_id"]),
        1,
        _target(text_of(raw.get("target")), choices),
        digest([raw.get("doc_hash"), raw.get("input")]),
        {**texts(own), **texts(raw.get("doc"))},
        scores,
        dict.fromkeys(scores, text_of(reply)) if isinstance(reply, str) else {},
        choices,
        logp,
    )


def _choices(arguments: Any, replies: Any) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """What a multiple-choice sample offers, and the log-probability of each in nats; () where it is none."""
    arguments = list(arguments.values()) if isinstance(arguments, Mapping) else arguments
    if not isinstance(arguments, list) or not isinstance(replies, list):
        return (), ()
    offered = [_second(a) for a in arguments]
    logp = [number(r[0]) if isinstance(r, list) and len(r) == 2 else None for r in replies]
    choices = tuple(text_of(o) for o in offered if isinstance(o, str))
    values = tuple(v for v in logp if v is not None and not math.isnan(v))
    if not len(choices) == len(offered) == len(values) == len(replies) == len(set(choices)):
        return (), ()
    return choices, values


def _second(argument: Any) -> Any:
    """What is scored after the prompt: {arg_0: prompt, arg_1: choice}, or [prompt, choice] until 2024."""
    if isinstance(argument, Mapping):
        return argument.get("arg_1")
    return argument[1] if isinstance(argument, list) and len(argument) == 2 else None


def _target(text: str, choices: tuple[str, ...]) -> str:
    """The right choice, which may be told by its place."""
    if choices and text not in choices and text.isdecimal() and text.isascii() and len(text) < 4:
        return choices[int(text)] if int(text) < len(choices) else text
    return text


def _with_results(log: SampleLog) -> SampleLog:
    """The log with what its file's name and the file of results beside it say of it."""
    for kind, pattern, results in NAMES:
        match = pattern.fullmatch(log.path.name)
        if match is None:
            continue
        log = replace(log, task=shown(match["task"]))
        beside = log.path.with_name(results.format(match["date"]))
        try:
            with beside.open("rb") as file:
                found = parse_json(file.read(MOST_BYTES + 1), str(beside))
        except (OSError, UserError):
            return log  # it is not needed
        return _told(log, found, kind)
    return log


def _told(log: SampleLog, found: Any, kind: str) -> SampleLog:
    if not isinstance(found, Mapping):
        return log

    def part(name: str) -> Mapping[str, Any]:
        held = found.get(name)
        held = held.get(log.task) if isinstance(held, Mapping) else None
        return held if isinstance(held, Mapping) else {}

    plain = kind == LMMS_EVAL  # its samples do not name their filter
    reported, less = {}, set()
    for name, value in part("results").items():
        value = number(value) if not isinstance(value, str) else None
        if value is not None and "_stderr" not in name:
            reported[name.removesuffix(",none") if plain else name] = value
    for metric, higher in part("higher_is_better").items():
        if higher is False:
            starts = (f"{metric},", f"{metric}.")
            less |= {n for n in log.samples[0].scores if f"{n},".startswith(starts)}
    model = text_of(found.get("model_name"))
    return replace(log, model=model, reported=reported, less_is_better=frozenset(less))
