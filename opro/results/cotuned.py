"""What a cotune leaves: pairs of prompt and checkpoint with what fresh clips say of each, and the one to use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.classifier import Classifier, classifier_from, dump_classifiers
from evaluators.errors import UserError
from evaluators.files import csv_text, is_written, read_json, write_json, write_text
from evaluators.prompts import shown_text
from evaluators.statistics.resampling import Estimate
from evaluators.targets import Predictions
from opro.results.predictions import write_predictions
from opro.results.provenance import provenance
from opro.results.sheet import Column, Sheet, percent, render
from opro.search.select import Turn

RESULT, BEST = "cotune.json", "best.yaml"
COLUMNS = (
    Column("round", 8),
    Column("checkpoint", text=True),
    Column("search half"),
    Column("holdout"),
    Column("gain over the round before"),
    Column("p", 7),
    Column("decision", 8, text=True),
    Column("steps", 5),
    Column("evals", 5),
    Column("s", 2),
    Column("prompt", 3, text=True),
)


@dataclass(frozen=True)
class Pair:
    """A prompt with its decision threshold, on a checkpoint.

    Attributes:
        run: The search that found it.
        search: Its score on the whole search half, which chose it among the pairs so far.
    """

    checkpoint: str
    classifier: Classifier
    run: str
    search: Estimate


@dataclass(frozen=True)
class Round:
    """The leading pair of a round, and what the holdout says of it.

    Attributes:
        number: 0 is the checkpoint as it is with its best hand-written prompt.
        holdout: Its score there; None where it was never heard there.
        gain: Over the pair that was confirmed last, at the level of the walk; None where nothing was compared.
        confirmed: It took that pair's place.
        why: In one sentence.
        said: On the holdout.
    """

    number: int
    pair: Pair
    why: str
    holdout: Estimate | None = None
    gain: Estimate | None = None
    confirmed: bool = False
    said: Predictions | None = None


@dataclass(frozen=True)
class Cotuned:
    """A whole walk.

    Attributes:
        steps: Searches and trainings, as `opro.tuning.Step`.
        turn: Which decision on its holdout the walk is; None where it made none.
        warnings: They belong to all its numbers.
    """

    rounds: Sequence[Round]
    steps: Sequence[Mapping[str, Any]]
    turn: Turn | None
    warnings: Sequence[str] = ()

    @property
    def best(self) -> Round:
        """The pair to use: the last one that fresh clips confirmed, or the one of round 0."""
        return next((r for r in reversed(self.rounds) if r.confirmed), self.rounds[0])

    @property
    def ended(self) -> str:
        """Why there is no further round."""
        last = self.rounds[-1]
        if not last.confirmed:
            return f"round {last.number}: {last.why}"
        return f"all {last.number} rounds are confirmed; a larger --rounds goes on from here"

    def document(self, about: Mapping[str, Any], out: Path) -> dict[str, Any]:
        """As cotune.json holds it.

        Args:
            about: checkpoint, objective, manifest (its digest), clips (where it lies), flags (of commands).
        """
        best = self.best
        return {
            "schema": 1,
            **about,
            "best": {"round": best.number, **_pair(best.pair)},
            "baseline_kept": best.number == 0,
            "stopped": self.ended,
            "turn": None
            if self.turn is None
            else {
                "number": self.turn.number,
                "level": self.turn.level,
                "left": self.turn.left,
            },
            "rounds": [_round(r) for r in self.rounds],
            "steps": [dict(s) for s in self.steps],
            "total": {
                name: sum(s[name] for s in self.steps) for name in ("seconds", "evals", "steps")
            },
            "commands": _commands(best.pair, out, about),
            "warnings": list(self.warnings),
        }


def _pair(pair: Pair) -> dict[str, Any]:
    prompt = pair.classifier.prompt
    return {
        "checkpoint": pair.checkpoint,
        "run": pair.run,
        "prompt_id": prompt.prompt_id,
        "text": prompt.text,
        "classifier": pair.classifier.to_dict(),
        "search": pair.search.to_dict(),
    }


def _round(one: Round) -> dict[str, Any]:
    gain = one.gain and {**one.gain.to_dict(), "p": one.gain.p}
    return {
        "round": one.number,
        **_pair(one.pair),
        "holdout": one.holdout and one.holdout.to_dict(),
        "gain": gain,
        "confirmed": one.confirmed,
        "why": one.why,
    }


def _commands(best: Pair, out: Path, about: Mapping[str, Any]) -> list[str]:
    """How the best pair is used."""
    prompts, model = out / BEST, f"--checkpoint {best.checkpoint}{about['flags']}"
    return [
        f"python -m opro.rescore {prompts} {model} --manifest {about['clips']} --split test",
        f"python -m opro.predict {prompts} AUDIO {model}",
    ]


def cotuned_sheet(document: Mapping[str, Any]) -> Sheet:
    """The rounds of cotune.json as people read them."""
    body, best = [], document["best"]["round"]
    for r in document["rounds"]:
        own = [s for s in document["steps"] if s["round"] == r["round"]]
        gain = r["gain"]
        body.append(
            [
                str(r["round"]),
                r["checkpoint"],
                percent(r["search"]),
                percent(r["holdout"]),
                "" if gain is None else percent(gain, signed=True),
                "" if gain is None or gain["p"] is None else f"{gain['p']:.2g}",
                "BEST" if r["round"] == best else "confirmed" if r["confirmed"] else "",
                str(sum(s["steps"] for s in own)),
                f"{sum(s['evals'] for s in own):,}",
                f"{sum(s['seconds'] for s in own):.0f}",
                shown_text(r["text"], ""),
            ]
        )
    title = (
        f"{document['objective']}, 95 % intervals over sources; the pair that leads on the search half of dev after"
        " each round, and what the holdout says, which nothing was searched, fitted or trained on"
    )
    return Sheet(title, COLUMNS, body)


def write_cotuned(out: Path, walk: Cotuned, about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes best.yaml, the predictions on the holdout, cotune.md, cotune.csv and, last, cotune.json. Returns that."""
    document = walk.document(about, out)
    for one in walk.rounds:
        if one.said is not None:
            write_predictions(out / "predictions" / f"round-{one.number}.csv", one.said)
    write_text(out / BEST, dump_classifiers([walk.best.pair.classifier]))
    sheet = cotuned_sheet(document)
    words = [render(sheet, "markdown"), "", *told(document)]
    write_text(out / "cotune.md", "\n".join([sheet.title, "", *words]) + "\n")
    rows = [_flat(r) for r in document["rounds"]]
    write_text(out / "cotune.csv", csv_text(rows, tuple(rows[0])))
    write_json(out / RESULT, {**document, "provenance": provenance({})})
    return document


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A round with its estimates as NAME, NAME_low, NAME_high."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key in ("search", "holdout", "gain"):
            own = value or {}
            names = ("value", "low", "high", *(("p",) if key == "gain" else ()))
            flat |= {f"{key}{'' if n == 'value' else f'_{n}'}": own.get(n) for n in names}
        elif key != "classifier":
            flat[key] = value
    return flat


def told(document: Mapping[str, Any]) -> list[str]:
    """The best pair, why the walk ended, and how the pair is used."""
    best, total = document["best"], document["total"]
    kept = " (the checkpoint as it is, with its best hand-written prompt)"
    return [
        f"best pair   {best['checkpoint']}{kept if document['baseline_kept'] else ''}",
        f"prompt      {shown_text(best['text'], '')!r}",
        f"ended       {document['stopped']}",
        f"cost        {total['evals']:,} evals asked for, {total['steps']:,} training steps, {total['seconds']:.0f} s",
        *(f"warning     {text}" for text in document["warnings"]),
        *(f"next        {text}" for text in document["commands"]),
    ]


def is_cotuned(folder: Path) -> bool:
    """Whether a folder is that of a finished cotune."""
    return is_written(folder / RESULT)


def read_best(folder: Path, labels: Sequence[str]) -> tuple[str, Classifier]:
    """(Checkpoint, classifier): the best pair of a cotune's folder.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / RESULT
    raw = read_json(path)
    try:
        best = raw["best"]
        checkpoint, classifier = str(best["checkpoint"]), dict(best["classifier"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: no best pair; give the command of opro.cotune again, it writes the file anew"
        ) from None
    return checkpoint, classifier_from(classifier, labels, str(path))
