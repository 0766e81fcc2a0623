"""Fragments of prompts: a language model writes them once a run, the rewriter builds with them. They are untrusted."""

import json
from collections.abc import Mapping
from typing import Any

from evaluators.prompts import SPECIAL
from evaluators.tasks import Task
from opro.proposers.replies import objects, plain
from opro.proposers.rewriter import Fragments

LONGEST = 120  # characters of a fragment
MOST = 40  # of a kind
SINGLE = ("questions", "things", "hints", "closings")
PAIRS = ("options", "explanations", "answers")


def read_fragments(reply: str, task: Task) -> Fragments:
    """The usable fragments of a reply: the last JSON object with any of the kinds; empty if there is none.

    A fragment is a line of printable text without a control token; of a pair, one for each label, the two differ.
    """
    found = [
        one for one in objects(reply) if isinstance(one, Mapping) and set(one) & {*SINGLE, *PAIRS}
    ]
    raw = found[-1] if found else {}
    out: dict[str, list[Any]] = {}
    for kind in SINGLE:
        texts = [_checked(one) for one in _list(raw.get(kind))]
        out[kind] = [t for t in texts if t and (kind != "questions" or _asks(t))]
    for kind in PAIRS:
        pairs = [_pair(one, task) for one in _list(raw.get(kind))]
        out[kind] = [p for p in pairs if p and (kind != "answers" or all(w.isalnum() for w in p))]
    return {
        kind: list({json.dumps(one): one for one in values}.values())
        for kind, values in out.items()
        if values
    }


def _list(value: Any) -> list[Any]:
    return value[:MOST] if isinstance(value, list) else []


def _checked(raw: Any) -> str:
    """The fragment, or an empty text."""
    if not isinstance(raw, str):
        return ""
    text = " ".join(plain(raw).split())
    fine = len(text) <= LONGEST and text.isprintable() and not SPECIAL.search(text)
    return text if fine else ""


def _asks(text: str) -> bool:
    """Whether a question has no place to fill, or the one that is known."""
    rest = text.replace("{x}", "", 1)
    return "{" not in rest and "}" not in rest


def _pair(raw: Any, task: Task) -> list[str]:
    """Its texts in the order of the labels, or none."""
    if isinstance(raw, Mapping):
        raw = [raw.get(label) for label in task.labels]
    if not isinstance(raw, list) or len(raw) != len(task.labels):
        return []
    texts = [_checked(one) for one in raw]
    differ = len({t.casefold() for t in texts}) == len(texts)
    return texts if all(texts) and differ else []
