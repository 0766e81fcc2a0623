"""The matrix: the codes of its rows in the published comparison, and the sheet that people read."""

from collections.abc import Mapping
from typing import Any

from opro.results.sheet import Column, Sheet, percent

MASKED_ALL = 1000  # clips from which on a LoRA is the matrix' row B3
COLUMNS = (
    Column("row", 6, text=True),
    Column("model", text=True),
    Column("fine-tuning", 1, text=True),
    Column("data", 1, text=True),
    Column("prompt", text=True),
    Column("balanced accuracy"),
    Column("difference"),
    Column("p (Holm)", 8),
    Column("threshold on dev", 5),
    Column("hits", 7),
    Column("false alarms", 7),
    Column("AUROC", 4),
    Column("ECE, calibrated", 2),
    Column("silence", 3),
    Column("shuffled", 3),
    Column("ms single", 0),
    Column("ms batch", 2),
)


def row_code(about: Mapping[str, Any], baseline: bool, searched: bool) -> str:
    """The row's name in the published matrix, where it has one; two where a search kept the baseline.

    Args:
        about: From `opro.matrix`: fine-tuning, loss, clips, omni, and cotuned of an adapter that `opro.cotune` trained.
    """
    if about.get("cotuned"):
        names = ("", "B5")
    elif about["finetuning"] == "none":
        names = ("", "C1") if about["omni"] else ("A1", "A2")
    elif about["loss"] == "answer" and about["clips"] >= MASKED_ALL:
        names = ("B3", "B4")
    else:
        names = ("B1" if about["loss"] == "full" else "B2", "")
    return " = ".join(
        n for n, is_it in zip(names, (baseline, searched), strict=True) if n and is_it
    )


def judged_on(result: Mapping[str, Any]) -> str:
    """What was scored, in words; a matrix of version 0.1 scored the whole split."""
    return str(result.get("judged_on", result["split"]))


def matrix_sheet(result: Mapping[str, Any]) -> Sheet:
    """The rows of matrix.json as people read them."""
    body = []
    for r in result["rows"]:
        gain, took = r["difference"], r["latency"]
        ece = "" if r["ece"] is None else f"{r['ece']['value']:.3f}"
        if r.get("calibrated"):
            ece += f", {r['calibrated']['ece']['value']:.3f}"
        body.append(
            [
                r["row"],
                r["model"],
                r["finetuning"],
                r["data"],
                r["prompt"],
                percent(r["balanced_accuracy"]),
                "reference" if gain is None else percent(gain, signed=True),
                "" if gain is None else f"{gain['p_holm']:.4f}",
                percent(r.get("threshold_on_dev")),
                *rates_cells(r),
                f"{r['auroc']['value']:.3f}",
                ece,
                *(f"{100 * r['controls'][k]:.0f}" for k in ("silence", "shuffled")),
                f"{took['decode'] + took['features'] + took['single']:.1f}",
                f"{took['decode'] + took['features'] + took['batch']:.1f}",
            ]
        )
    title = (
        f"{judged_on(result)}: {result['clips']} clips of {result['sources']} sources, 95 % intervals"
        " over sources"
    )
    hits = next(i for i, c in enumerate(COLUMNS) if c.name == "hits")
    several = (*COLUMNS[:hits], Column("lowest recall", 7), *COLUMNS[hits + 2 :])
    return Sheet(title, several if any("labels" in r for r in result["rows"]) else COLUMNS, body)


def rates_cells(row: Mapping[str, Any]) -> list[str]:
    """Hits and false alarms in percent, or of more than two labels the lowest recall."""
    if "labels" not in row:
        rates = (row["hit_rate"], row["false_alarm_rate"])
        return [f"{100 * (r if isinstance(r, float) else r['value']):.0f}" for r in rates]
    heard = {k: v["recall"] for k, v in row["labels"].items() if v["clips"]}
    least = min(heard, key=lambda label: heard[label])
    return [f"{100 * heard[least]:.0f} ({least})"]
