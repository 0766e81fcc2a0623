"""Which label was taken for which: of tasks with more than two labels."""

from typing import Any

import numpy as np

from evaluators.statistics.metrics import aurocs, confusion
from evaluators.targets import Predictions
from opro.results.sheet import Column, Sheet

MOST_ROWS = 20  # labels that a table shows
MOST_NAMED = 3  # labels that a mistake is told of


def by_label(said: Predictions) -> dict[str, dict[str, Any]]:
    """Label -> clips, recall, auroc (against the rest), taken_for (label -> clips); nothing of two labels.

    Recall and auroc are None where a label has no clip.
    """
    labels, truth = said.targets.labels, said.targets.truth
    if len(labels) == 2:
        return {}
    table = confusion(truth, said.decided, len(labels))
    area = {} if said.logp is None else aurocs(truth, said.logp)
    return {
        label: {
            "clips": int(row.sum()),
            "recall": float(row[k] / row.sum()) if row.sum() else None,
            "auroc": area.get(k),
            "taken_for": dict(zip(labels, row.tolist(), strict=True)),
        }
        for k, (label, row) in enumerate(zip(labels, table, strict=True))
    }


def confusion_sheet(found: dict[str, dict[str, Any]], who: str) -> Sheet:
    """The labels of `by_label` as people read them, those answered right least first."""
    heard = sorted(
        (item for item in found.items() if item[1]["clips"]), key=lambda i: i[1]["recall"]
    )
    title = f"{who}, by label"
    if len(heard) > MOST_ROWS:
        title += f"; the {MOST_ROWS} of {len(heard)} with the lowest recall"
    if len(heard) < len(found):
        title += f"; {len(found) - len(heard)} of {len(found)} labels have no clip here"
    rows = []
    for label, one in heard[:MOST_ROWS]:
        wrong = sorted(
            ((n, other) for other, n in one["taken_for"].items() if n and other != label),
            key=lambda pair: (-pair[0], pair[1]),
        )
        named = ", ".join(f"{other} {n}" for n, other in wrong[:MOST_NAMED])
        area = "" if one["auroc"] is None or np.isnan(one["auroc"]) else f"{one['auroc']:.3f}"
        more = ", ..." if len(wrong) > MOST_NAMED else ""
        rows.append([label, str(one["clips"]), f"{100 * one['recall']:.1f}", area, named + more])
    columns = [
        Column("label", text=True),
        Column("clips", 7),
        Column("recall"),
        Column("AUROC", 5),
        Column("taken for, clips", text=True),
    ]
    return Sheet(title, columns, rows)
