"""One self-contained page of a run or a matrix: python -m opro.report runs/NAME

Score history, leaderboard with each prompt's changes to the baseline, accuracy by duration and SNR, psychometric
curves, reliability before and after calibration, false alarms by category, cost, provenance, and players with
spectrograms for the clips that were judged worst. No network is needed to read it. Of a run, everything but history
and leaderboard is measured on the fresh half of dev, which the search never saw.
"""

import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.errors import UserError
from evaluators.files import resolve
from evaluators.several import clip_name
from opro.cli import DONE, flag, parse, run_verb

if TYPE_CHECKING:
    from evaluators.clips import Clip
    from evaluators.statistics.describe import Judgements

WORST = 6  # misses and false alarms with a player, each
MOST_ROWS = 20  # of a leaderboard
MOST_CURVES = 5
ALIKE = 0.5  # of a prompt's characters, from which on its changes are marked


@dataclass(frozen=True)
class Settings:
    """Settings of a report."""

    out: Path | None = flag(None, "file to write (default: report.html in the folder)")


@dataclass(frozen=True)
class Shown:
    """A configuration that the page draws. `reliability`: (name, bins) before and after calibration."""

    name: str
    judged: "Judgements"
    reliability: tuple[tuple[str, Sequence[dict[str, float]]], ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    settings, space = parse(
        Settings,
        argv,
        __doc__ or "",
        lambda p: p.add_argument(
            "folder", type=Path, metavar="FOLDER", help="folder of a finished run, or of a matrix"
        ),
        config=False,
    )
    from evaluators.files import write_text

    folder = space.folder
    if (folder / "matrix.json").is_file():
        page = _matrix_page(folder)
    elif (folder / "trials.jsonl").is_file():
        page = _run_page(folder)
    else:
        raise UserError(
            f"{str(folder)!r} holds no run and no matrix; expected trials.jsonl or matrix.json in it"
        )
    out = settings.out or folder / "report.html"
    if out.is_dir():
        raise UserError(f"--out {str(out)!r} is a folder; expected a file name")
    text = _render(page)
    write_text(out, text)
    print(f"written to {out} ({len(text.encode()) / 2**20:.1f} MB)")
    return DONE


def _render(page: dict[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "results" / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["percent"] = lambda v: "" if v is None else f"{100 * v:.1f}"
    return env.get_template("report.html").render(page)


def _run_page(folder: Path) -> dict[str, Any]:
    from evaluators.files import read_yaml
    from evaluators.prompts import TASKS
    from opro.results import figures
    from opro.results.predictions import read_predictions
    from opro.results.summary import FRESH
    from opro.results.table import read_summary, rows_of
    from opro.search.history import History

    summary = read_summary(folder)
    if summary is None:
        raise UserError(
            f"run {folder.name!r} is not finished; give its command again, it goes on from there"
        )
    config = read_yaml(folder / "config.yaml")
    task = TASKS[config["task"]]
    history = History(folder / "trials.jsonl", task.labels)
    baseline, chosen = summary["baseline"], summary["chosen"]
    shown, notes = [], []
    for name, one in (("baseline", baseline), ("chosen prompt", chosen)):
        path = folder / FRESH / f"{one['prompt_id']}.csv"
        if not path.is_file():
            notes.append(f"{path.name} is missing: what is drawn by clip is left out")
        elif name == "baseline" or one["prompt_id"] != baseline["prompt_id"]:
            judged = read_predictions(path, task.labels[0], {})
            search = folder / "scores" / f"{one['prompt_id']}.csv"
            shown.append(Shown(name, judged, _calibrated(search, judged, task.labels[0], notes)))
    trials = [
        {"number": t.number, "score": t.score, "low": t.low, "high": t.high, "state": t.state}
        for t in history.trials
        if t.state in ("complete", "dropped")
    ]
    board = [
        {**row, "diff": _diff(baseline["text"], row["text"])}
        for row in rows_of(folder, summary)
        if row["state"] == "complete"
    ][:MOST_ROWS]
    test = folder / "test.json"
    return {
        "title": f"Run {folder.name}",
        "lead": summary["reason"],
        "kept": summary["baseline_kept"],
        "facts": _run_facts(summary),
        "chosen": {**chosen, "diff": _diff(baseline["text"], chosen["text"])},
        "baseline": baseline,
        "test": json.loads(test.read_text(encoding="utf-8")) if test.is_file() else None,
        "history": figures.history(trials, baseline["search_score"]),
        "board": board,
        "matrix": None,
        "where": "the fresh half of dev",
        **_by_clip(shown, _clips(config["manifest"], task.labels)),
        "notes": [*notes, *summary.get("warnings", [])],
        "provenance": _provenance(folder / "provenance.json"),
    }


def _run_facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    gain, evals, lm = summary["gain"], summary["evals"], summary["lm"]
    controls = summary["controls"].get(summary["chosen"]["prompt_id"], {})
    facts = [
        ("checkpoint", summary["checkpoint"]),
        (
            "gain on fresh clips",
            f"{100 * gain['estimate']:+.1f} points [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
            f" on {gain['clips']} clips of {gain['sources']} sources",
        ),
        ("trials", f"{summary['trials']} in {summary['iterations']} iterations"),
        (
            "cost",
            f"{evals['requested']:,} evals, {evals['cached']:,} from the cache,"
            f" {evals['forward']:,} through the model; {summary['seconds']['total']:.0f} s",
        ),
    ]
    if lm["calls"]:
        cost = "cost unknown" if lm["cost"] is None else f"US$ {lm['cost']:.2f}"
        facts.append(
            (
                "language model",
                f"{lm['calls']} calls, {lm['tokens_in']:,} tokens in, {lm['tokens_out']:,} out,"
                f" {cost}",
            )
        )
    if controls:
        facts.append(
            (
                "without the sound",
                f"{100 * controls['silence']:.1f} % with silence, {100 * controls['shuffled']:.1f} %"
                " with shuffled samples (50 is what text alone can give)",
            )
        )
    return facts


def _matrix_page(folder: Path) -> dict[str, Any]:
    from evaluators.prompts import TASKS
    from opro.results import figures
    from opro.results.matrix_rows import HEAD, cells
    from opro.results.predictions import read_predictions

    try:
        result = json.loads((folder / "matrix.json").read_text(encoding="utf-8"))
        rows = result["rows"]
        settings = result["provenance"]["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'matrix.json'}: damaged ({error}); make the matrix again"
        ) from None
    task = TASKS[settings["task"]]
    reference = next(r for r in rows if r["reference"])
    coded = [r for r in rows if r["row"]] or rows
    best = max(rows, key=lambda r: r["balanced_accuracy"]["value"])
    drawn = [best, *(r for r in [*coded, *rows] if r is not best)][:MOST_CURVES]
    shown = []
    for r in rows:
        if not any(r is d for d in drawn):
            continue
        path = folder / r["predictions"]
        bins = [("as it is", r.get("reliability") or [])]
        if r.get("calibrated"):
            bins.append(("calibrated on dev", r["calibrated"]["reliability"]))
        name = f"{r['row'] + ': ' if r['row'] else ''}{r['model']}"
        shown.append(
            Shown(f"{name}, {r['prompt']}", read_predictions(path, task.labels[0], {}), tuple(bins))
        )
    shown.sort(key=lambda s: not s.name.endswith(f"{best['model']}, {best['prompt']}"))
    names = [f"{r['row']}  {r['model']}, {r['prompt']}".strip()[:60] for r in rows]
    estimates = [r["balanced_accuracy"] for r in rows]
    opened = result["test_openings"]
    return {
        "title": f"Matrix on {result['split']}",
        "lead": f"{len(rows)} configurations on {result['clips']:,} clips of {result['sources']}"
        f" sources; differences are to {result['reference']}.",
        "kept": None,
        "facts": [("test split opened", f"{opened} times in this project")] if opened else [],
        "chosen": None,
        "baseline": None,
        "test": None,
        "history": figures.forest(
            [
                (n, e["value"], _or(e["low"], e["value"]), _or(e["high"], e["value"]))
                for n, e in zip(names, estimates, strict=True)
            ],
            reference["balanced_accuracy"]["value"],
        ),
        "board": [],
        "matrix": {"head": HEAD, "rows": cells(result), "prompts": _texts(rows)},
        "where": f"the {result['split']} split",
        **_by_clip(shown, _clips(settings["manifest"], task.labels)),
        "notes": list(dict.fromkeys(w for r in rows for w in r["warnings"])),
        "provenance": _flat(result["provenance"]),
    }


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _texts(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(name, text) of each prompt, once."""
    return list({r["prompt"]: (r["prompt"], r["text"]) for r in rows if "text" in r}.values())


def _clips(manifest: str, labels: Sequence[str]) -> "dict[str, Clip]":
    """Clips by id, to be played; none where the manifest has gone."""
    from evaluators.clips import read_manifest

    try:
        return {c.clip_id: c for c in read_manifest(resolve(Path(manifest)), labels)}
    except UserError:
        return {}


def _calibrated(
    search: Path, fresh: "Judgements", positive: str, notes: list[str]
) -> tuple[tuple[str, list[dict[str, float]]], ...]:
    """Reliability on the fresh half before and after calibration on the search half."""
    import dataclasses

    import numpy as np

    from evaluators.statistics import calibration
    from opro.results.predictions import read_predictions

    def bins(probability: Any) -> list[dict[str, float]]:
        decided = np.where(probability > 0.5, 0, 1)
        sure = np.maximum(probability, 1 - probability)
        return [
            dataclasses.asdict(r) for r in calibration.reliability(sure, decided == fresh.truth)
        ]

    assert fresh.probability is not None
    out = [("as it is", bins(fresh.probability))]
    if search.is_file():
        seen = read_predictions(search, positive, {})
        assert seen.score is not None
        try:
            fitted = calibration.fit_calibration(seen.truth, seen.score)
            own = np.clip(fresh.probability, 1e-6, 1 - 1e-6)
            out.append(("calibrated on dev", bins(fitted.probability(np.log(own / (1 - own))))))
        except UserError as error:
            notes.append(str(error))
    return tuple(out)


def _diff(old: str, new: str) -> list[tuple[str, str]]:
    """(same | gone | new, text) by words: what was changed in a prompt. One that shares little is shown as it is."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (old, new))
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    if sum(len(t.strip()) for m in matcher.get_matching_blocks() for t in a[m.a : m.a + m.size]) < (
        ALIKE * len(new)
    ):
        return [("same", new)]
    out: list[tuple[str, str]] = []
    for op, i, j, k, m in matcher.get_opcodes():
        if op == "equal":
            out.append(("same", "".join(a[i:j])))
        else:
            out += [("gone", "".join(a[i:j]))] * (i < j) + [("new", "".join(b[k:m]))] * (k < m)
    return out


def _by_clip(shown: Sequence[Shown], clips: "dict[str, Clip]") -> dict[str, Any]:
    """Everything that is drawn from per-clip results."""
    from evaluators.statistics import describe
    from opro.results import figures

    fitted = {s.name: describe.curves(s.judged) for s in shown}
    curves = []
    for name in describe.AXES:
        some = [(s.name, fitted[s.name][name]) for s in shown if name in fitted[s.name]]
        if some:
            curves.append((name, figures.psychometric(name, some)))
    best = (
        shown[-1]
        if len(shown) == 2 and shown[0].name == "baseline"
        else shown[0]
        if shown
        else None
    )
    return {
        "heat": [(s.name, _heat(s.judged)) for s in shown],
        "curves": curves,
        "thresholds": [
            (s.name, [(k, t["text"]) for k, t in describe.thresholds(s.judged).items()])
            for s in shown
        ],
        "reliability": [
            (s.name, figures.reliability(s.reliability)) for s in shown if s.reliability
        ],
        "alarms": _alarms(shown),
        "players_of": best.name if best else "",
        "players": _players(best.judged, clips) if best else [],
    }


def _heat(j: "Judgements") -> dict[str, Any] | None:
    """Hits and false alarms by duration and SNR; None where the clips have not both."""
    import numpy as np

    from evaluators.statistics.describe import grouped, ordered

    if not {"duration_ms", "snr_db"} <= set(j.slices):
        return None
    durations, snrs = (grouped(j.slices[n]) for n in ("duration_ms", "snr_db"))
    right = j.decided == j.truth
    body = []
    for d in ordered(durations):
        line = []
        for s in ordered(snrs):
            inside = (durations == d) & (snrs == s)
            parts = [right[inside & (j.truth == k)] for k in np.unique(j.truth)]
            parts = [p for p in parts if len(p)]
            score = float(np.mean([p.mean() for p in parts])) if parts else None
            line.append({"score": score, "clips": int(inside.sum()), "whole": len(parts) > 1})
        body.append((d, line))
    return {"snrs": ordered(snrs), "rows": body} if body and body[0][1] else None


def _alarms(shown: Sequence[Shown]) -> dict[str, Any] | None:
    """False alarms by category of the clips that hold no speech."""
    from evaluators.statistics import describe

    names: dict[str, dict[str, Any]] = {}
    for s in shown:
        levels = describe.describe(s.judged, resamples=200)["slices"].get("category", {})
        for level, part in levels.items():
            if part["false_alarm_rate"] is not None:
                names.setdefault(level, {})[s.name] = part
    return {"columns": [s.name for s in shown], "rows": sorted(names.items())} if names else None


def _players(j: "Judgements", clips: "dict[str, Clip]") -> list[dict[str, Any]]:
    """The surest mistakes: misses and false alarms by how far off the probability was."""
    import numpy as np

    from evaluators.audio import load
    from opro.results import figures

    assert j.probability is not None
    out = []
    for kind, index in (("missed", 0), ("false alarm", 1)):
        wrong = np.flatnonzero((j.decided != j.truth) & ((j.truth == 0) == (index == 0)))
        worst = wrong[
            np.argsort(-np.abs(j.probability[wrong] - (j.truth[wrong] == 0)), kind="stable")
        ]
        for i in worst[:WORST]:
            clip = clips.get(clip_name(j.clip_ids[i]))
            if clip is None:
                continue
            wave = load(clip.path)
            snr = "no SNR" if clip.snr_db is None else f"{clip.snr_db:+.0f} dB"
            out.append(
                {
                    "kind": kind,
                    "id": clip.clip_id,
                    "sure": 100 * float(j.probability[i]),
                    "label": j.labels[0],
                    "about": f"{clip.category}, {clip.duration_ms:.0f} ms, {snr}, {clip.source_id}",
                    "wav": figures.wav(wave),
                    "image": figures.spectrogram(wave),
                }
            )
    return out


def _provenance(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        return []
    return _flat(json.loads(path.read_text(encoding="utf-8")))


def _flat(raw: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            key,
            json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value),
        )
        for key, value in raw.items()
    ]


if __name__ == "__main__":
    sys.exit(run_verb(main))
