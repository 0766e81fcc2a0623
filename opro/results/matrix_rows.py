"""The matrix as people read it."""

from typing import Any

from opro.results.table import percent

HEAD = (
    "row",
    "model",
    "fine-tuning",
    "data",
    "prompt",
    "balanced accuracy",
    "difference",
    "p (Holm)",
)
HEAD += (
    "threshold on dev",
    "hits",
    "false alarms",
    "AUROC",
    "ECE, calibrated",
    "silence",
    "shuffled",
)
HEAD += ("ms single", "ms batch")


def cells(result: dict[str, Any]) -> list[list[str]]:
    """The table that people read; `HEAD` names its columns."""
    body = []
    for r in result["rows"]:
        d = r["difference"]
        fitted = r.get("calibrated")
        ece = "" if r["ece"] is None else f"{r['ece']['value']:.3f}"
        if fitted:
            ece += f", {fitted['ece']['value']:.3f}"
        took = r["latency"]
        body.append(
            [
                r["row"],
                r["model"],
                r["finetuning"],
                r["data"],
                r["prompt"],
                percent(r["balanced_accuracy"]),
                "reference" if d is None else percent(d, signed=True),
                "" if d is None else f"{d['p_holm']:.4f}",
                percent(r.get("threshold_on_dev")),
                f"{100 * r['hit_rate']['value']:.0f}",
                f"{100 * r['false_alarm_rate']['value']:.0f}",
                f"{r['auroc']['value']:.3f}",
                ece,
                *(f"{100 * r['controls'][k]:.0f}" for k in ("silence", "shuffled")),
                f"{took['decode'] + took['features'] + took['single']:.1f}",
                f"{took['decode'] + took['features'] + took['batch']:.1f}",
            ]
        )
    return body
