"""The tables of a profile, from its document: for a terminal, as Markdown, and on the page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opro.results.sheet import Column, Sheet, decimal, percent

TOLD = 12  # effects in a terminal
LONGEST = 60  # characters of a text in a table
MOVED = {"hit_rate": "hits", "false_alarm_rate": "false alarms", "balanced_accuracy": "accuracy"}
PAIRS = "two agree"
Document = Mapping[str, Any]


def spread_sheet(document: Document) -> Sheet:
    """A row for each checkpoint and group of wordings; then what the others gain over the first checkpoint."""
    columns = [
        Column("checkpoint", text=True),
        Column("wordings", 8, text=True),
        Column("accuracy, lowest 5 %", 6),
        Column("median"),
        Column("highest 5 %", 6),
        Column("sd", 7),
        Column("by noise", 5),
        Column("AUROC, median", 7),
        Column("AUROC, lowest 5 %", 4),
        Column("bias, median", 4),
        Column("sd of bias", 3),
        Column(PAIRS, 8),
    ]
    rows = []
    for one in document["checkpoints"]:
        for group, about in one["groups"].items():
            noise = f"{100 * about['noise']['balanced_accuracy']:.1f}"
            cells = _cells(about["numbers"], noise, signed=False)
            rows.append([one["name"], f"{about['wordings']} {group}", *cells])
    for gain in document["differences"]:
        for group, numbers in gain["groups"].items():
            name = f"{gain['checkpoint']} less {gain['reference']}"
            rows.append([name, group, *_cells(numbers, "", signed=True)])
    title = (
        f"Balanced accuracy in percent over wordings, {document['clips']} clips of {document['sources']} sources"
        f" ({document['judged_on']}); 95 % over wordings and sources drawn together"
    )
    return Sheet(title, columns, rows)


def _cells(numbers: Mapping[str, Any], noise: str, *, signed: bool) -> list[str]:
    def part(name: str) -> str:
        return percent(numbers[name], signed or name.startswith("bias_q"))

    return [
        *(part(f"balanced_accuracy_q{q}") for q in (5, 50, 95)),
        part("balanced_accuracy_sd"),
        noise,
        decimal(numbers["auroc_q50"]),
        decimal(numbers["auroc_q5"]),
        part("bias_q50"),
        part("bias_sd"),
        part("consistency"),
    ]


def shown_effects(one: Document, count: int | None = None) -> list[Mapping[str, Any]]:
    """The effects that are shown, the one that moves hits or false alarms furthest first."""
    clear = [e for e in one["effects"] if e["clear"]]
    order = sorted(clear, key=lambda e: -max(abs(e[n]["value"] or 0.0) for n in MOVED))
    return order[:count]


def effects_sheet(one: Document, count: int | None = TOLD) -> Sheet:
    """What parts of wordings do to a checkpoint's answers, the strongest first."""
    columns = [
        Column("part", text=True),
        Column("as", text=True),
        Column("wordings", 3),
        *(Column(name, 9) for name in MOVED.values()),
    ]
    shown = shown_effects(one, count)
    rows = [
        [
            e["factor"],
            quoted(e["level"]),
            str(e["wordings"]),
            *(percent(e[name], signed=True) for name in MOVED),
        ]
        for e in shown
    ]
    clear = sum(e["clear"] for e in one["effects"])
    title = (
        f"{one['name']}: points against the mean over a part's variants; {clear} of {len(one['effects'])} variants are"
        " shown to move an outcome (p < 0.05, Holm)"
        + (f", the {len(shown)} strongest" if len(shown) < clear else "")
    )
    return Sheet(title, columns, rows)


def shares_sheet(document: Document) -> Sheet:
    """Share of the variance over the grammar's wordings that each part explains."""
    told = [one for one in document["checkpoints"] if one["explained"]]
    names = ["all", *(f["name"] for f in document["factors"])]
    columns = [
        Column("part", text=True),
        *(Column(f"{one['name']}, {MOVED[n]}") for one in told for n in MOVED),
    ]
    rows = [
        [
            "all together" if name == "all" else name,
            *(f"{100 * one['explained'][n][name]:.0f} %" for one in told for n in MOVED),
        ]
        for name in names
    ]
    return Sheet(
        "Share of the variance over the grammar's wordings that each part explains beyond the others (omega squared)",
        columns,
        rows,
    )


def hand_lines(document: Document) -> Iterator[str]:
    """Where the hand-written prompts lie among the wordings, a line each."""
    texts = document["wordings"]
    for one in document["checkpoints"]:
        for row in one["hand_written"]:
            i = row["wording"]
            score = one["wordings"][i]["balanced_accuracy"]
            yield (
                f"{one['name']}: {quoted(texts[i]['text'])} has {100 * score:.1f}, above"
                f" {100 * row['above']:.0f} % of the {next(iter(one['groups']))} wordings"
            )


def length_lines(document: Document) -> Iterator[str]:
    """What ten more tokens go with, a line a checkpoint."""
    for one in document["checkpoints"]:
        if one["ten_more"]:
            parts = [f"{MOVED[n]} {percent(v, signed=True)}" for n, v in one["ten_more"].items()]
            yield f"{one['name']}: ten more {document['unit']} go with {', '.join(parts)}"


def best_sheet(document: Document, one: Document, count: int = 3) -> Sheet:
    """The best and the worst wordings of a checkpoint."""
    rows = []
    order = sorted(
        range(len(one["wordings"])),
        key=lambda i: (-one["wordings"][i]["tuned"], -(one["wordings"][i]["auroc"] or 0.0)),
    )
    for i in [*order[:count], *order[-count:]]:
        w = one["wordings"][i]
        cells = [f"{100 * w[n]:.1f}" for n in ("balanced_accuracy", "tuned")]
        cells += ["" if w["auroc"] is None else f"{w['auroc']:.3f}"]
        cells += [f"{100 * w[n]:.0f}" for n in ("hit_rate", "false_alarm_rate")]
        text = document["wordings"][i]
        rows.append([*cells, text["group"], json.dumps(text["text"], ensure_ascii=False)])
    names = ["accuracy", "with threshold", "AUROC", "hits", "false alarms"]
    columns = [
        *(Column(n) for n in names),
        Column("group", 5, text=True),
        Column("wording", text=True),
    ]
    return Sheet(
        f"{one['name']}: the best and the worst wordings, flattered for they are picked by these clips",
        columns,
        rows,
    )


def forecast_sheet(document: Document, one: Document, count: int = 5) -> Sheet:
    """The wordings that are predicted to be best for a checkpoint that was hardly scored."""
    texts = {w["prompt_id"]: w for w in document["wordings"]}
    order = sorted(one["wordings"], key=lambda w: -w["tuned"]["value"])
    rows = [
        [
            percent(w["balanced_accuracy"]),
            percent(w["tuned"]),
            texts[w["prompt_id"]]["group"],
            json.dumps(texts[w["prompt_id"]]["text"], ensure_ascii=False),
        ]
        for w in order[:count]
    ]
    columns = [
        Column("accuracy"),
        Column("with threshold"),
        Column("group", 5, text=True),
        Column("wording", text=True),
    ]
    return Sheet(
        f"{one['name']}, predicted from {one['evals']:,} of its {one['of']:,} evals and the others' scores: the best"
        " wordings; 95 % of what it would score on these clips",
        columns,
        rows,
    )


def quoted(text: str) -> str:
    """A text of a wording, shortened, in quotes."""
    return json.dumps(
        text if len(text) <= LONGEST else text[: LONGEST - 3] + "...", ensure_ascii=False
    )


def rows_of(document: Document) -> list[dict[str, Any]]:
    """A row for each wording and checkpoint, as the CSV file holds them."""
    names = [f["name"] for f in document["factors"]]
    return [
        {
            "checkpoint": one["name"],
            "prompt_id": text["prompt_id"],
            "group": text["group"],
            "length": text["length"],
            **numbers,
            **{name: text["levels"].get(name, "") for name in names},
            "text": text["text"],
        }
        for one in document["checkpoints"]
        for text, numbers in zip(document["wordings"], one["wordings"], strict=True)
    ]


def effect_rows(document: Document) -> list[dict[str, Any]]:
    """A row for each checkpoint and level of a factor, as the CSV file holds them."""
    out = []
    for one in document["checkpoints"]:
        for e in one["effects"]:
            row = {"checkpoint": one["name"], **{k: e[k] for k in ("factor", "level", "wordings")}}
            for name in MOVED:
                row |= {f"{name}{'' if k == 'value' else '_' + k}": v for k, v in e[name].items()}
                row[f"{name}_p_holm"] = e["p_holm"][name]
            out.append(row)
    return out


def forecast_rows(document: Document) -> list[dict[str, Any]]:
    """A row for each predicted checkpoint and wording, as the CSV file holds them."""
    texts = {w["prompt_id"]: w["text"] for w in document["wordings"]}
    out = []
    for one in document["predicted"]:
        for w in one["wordings"]:
            row = {"checkpoint": one["name"], "prompt_id": w["prompt_id"]}
            for name in ("balanced_accuracy", "tuned"):
                row |= {f"{name}{'' if k == 'value' else '_' + k}": v for k, v in w[name].items()}
            out.append({**row, "text": texts[w["prompt_id"]]})
    return out


def all_sheets(document: Document) -> Sequence[Sheet]:
    """All tables, in the order in which they are told."""
    told = [one for one in document["checkpoints"] if one["effects"]]
    return [
        spread_sheet(document),
        *(effects_sheet(one) for one in told),
        *([shares_sheet(document)] if told else []),
        *(best_sheet(document, one) for one in document["checkpoints"]),
        *(forecast_sheet(document, one) for one in document["predicted"]),
    ]
