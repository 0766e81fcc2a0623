"""Two prompts of one run or of two, side by side: wording, scores, and the clips whose verdict changed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import numpy as np

from evaluators.classifier import sigmoid
from evaluators.errors import UserError
from evaluators.statistics.compare import compare
from evaluators.targets import Predictions
from opro.results.predictions import read_own
from opro.results.progress import spelled
from opro.results.sheet import Column, Sheet
from opro.results.wording import side_by_side
from opro.search.history import Trial
from opro.search.select import points
from opro.view.clips import Clips
from opro.view.html import QUIET, refused, render, said, table
from opro.view.reading import Seen, names, see

Half = Literal["search half", "holdout"]
HALVES: tuple[Half, ...] = ("search half", "holdout")
SHOWN = 24  # clips of each kind with a player
KINDS = (
    ("mended", "wrong by the first prompt, right by the second"),
    ("broken", "right by the first prompt, wrong by the second"),
    ("other", "wrong by both, in different ways"),
)


@dataclass(frozen=True)
class Side:
    """One of two prompts."""

    seen: Seen
    trial: Trial

    @property
    def name(self) -> str:
        """Run and number."""
        return f"{self.seen.run.name} #{self.trial.number}"


def said_of(side: Side, half: Half) -> Predictions:
    """What a prompt decided, with its threshold, on the clips of a half that it was scored on.

    Raises:
        UserError: It was scored on none of them.
    """
    run, trial = side.seen.run, side.trial
    path = (
        run.scores(trial.prompt) if half == "search half" else run.holdout(trial.prompt.prompt_id)
    )
    if not path.is_file():
        why = (
            "it was not scored yet"
            if half == "search half"
            else "only the baseline and the finalists of a finished run were; choose the search half"
        )
        raise UserError(f"{side.name} has no scores on the {half}: {why}")
    found = read_own(path, run.task.labels)
    if half == "holdout" or found.score is None or len(run.task.labels) != 2:
        return replace(found, name=side.name)
    odds = found.score + trial.classifier.bias
    decided = np.where(odds > 0, 0, 1)
    return replace(found, name=side.name, decided=decided, probability=sigmoid(odds), score=odds)


def common(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions]:
    """Both on the clips that both hold, in the order of the first.

    Raises:
        UserError: They have none in common, or one says another truth of a clip.
    """
    place = {clip: i for i, clip in enumerate(b.targets.clip_ids)}
    kept = [i for i, clip in enumerate(a.targets.clip_ids) if clip in place]
    if not kept:
        raise UserError(f"{a.name} and {b.name} were scored on no clip in common")
    first = a.take(np.array(kept))
    other = b.take(np.array([place[clip] for clip in first.targets.clip_ids]))
    if (
        first.targets.labels != other.targets.labels
        or (first.targets.truth != other.targets.truth).any()
    ):
        raise UserError(f"{a.name} and {b.name} are of different data: their labels differ")
    return first, other


def compared(a: Side, b: Side, half: Half, clips: Clips) -> str:
    """The comparison as HTML."""
    left, right = side_by_side(a.trial.prompt.shown, b.trial.prompt.shown)
    values: dict[str, Any] = {
        "sides": [_side(a, left), _side(b, right)],
        "runs": None if a.seen is b.seen else table(two_runs(a.seen, b.seen)),
        "unmarked": a.trial.prompt.shown != b.trial.prompt.shown
        and all(kind == "same" for kind, _ in (*left, *right)),
        "line": "",
        "groups": [],
        "note": "",
    }
    try:
        one, other = common(said_of(a, half), said_of(b, half))
    except UserError as error:
        return render("compare", **{**values, "note": str(error)})
    right_a, right_b = one.right, other.right
    differ = one.decided != other.decided
    both = {
        "mended": differ & right_b,
        "broken": differ & right_a,
        "other": differ & ~right_a & ~right_b,
    }
    config = a.seen.run.config
    found, why = clips.by_id(str(config["manifest"]), a.seen.run.task)
    for kind, about in KINDS:
        index = np.flatnonzero(both[kind])
        rows = [
            _row(one, other, i, clips, found) for i in _surest(one, other, index)[:SHOWN].tolist()
        ]
        if rows:
            values["groups"].append(
                {"name": kind, "about": about, "count": len(index), "rows": rows}
            )
    values["line"] = _line(one, other, both["mended"].sum(), both["broken"].sum(), half)
    return render("compare", **{**values, "note": why})


def two_runs(a: Seen, b: Seen) -> Sheet:
    """How two runs differ: what came of them, and the settings that are not alike."""

    def results(seen: Seen) -> dict[str, str]:
        best, summary = seen.best, seen.summary
        score = "" if best is None or best.outcome is None else f"{100 * best.outcome.score:.1f}"
        return {
            "state": seen.state,
            "round": f"{seen.round} of {seen.rounds}",
            "prompts": str(seen.told),
            "best on the search half": score,
            "decision": "" if summary is None else summary.reason,
            "chosen on the holdout": "" if summary is None else f"{100 * summary.chosen.score:.1f}",
            "new evals": f"{seen.spent.forward:,}",
            "time": spelled(seen.spent.total),
        }

    first, second = results(a), results(b)
    rows = [[name, first[name], second[name]] for name in first]
    mine, theirs = a.run.config, b.run.config
    keys = [k for k in dict.fromkeys((*mine, *theirs)) if k != "name"]
    rows += [
        [f"--{k.replace('_', '-')}", str(mine.get(k)), str(theirs.get(k))]
        for k in keys
        if mine.get(k) != theirs.get(k)
    ]
    columns = [Column("", text=True), Column(a.run.name, text=True), Column(b.run.name, text=True)]
    return Sheet("the two runs, and the settings in which they differ", columns, rows)


def _side(side: Side, pieces: Any) -> dict[str, Any]:
    one, prompt = side.trial.outcome, side.trial.prompt
    score = "not scored"
    if one is not None:
        bounds = "" if one.low is None else f" [{100 * one.low:.1f}, {100 * (one.high or 0):.1f}]"
        forecast = ", a forecast" if side.trial.state == "dropped" else ""
        score = f"{100 * one.score:.1f}{bounds} on {one.n_scored} search clips{forecast}"
    answers = ", ".join(f"{label}: {' / '.join(words)}" for label, words in prompt.answers)
    return {
        "name": side.name,
        "origin": side.trial.candidate.origin,
        "score": score,
        "bias": side.trial.classifier.bias,
        "pieces": pieces,
        "answers": answers,
        "system": prompt.system,
    }


def _line(one: Predictions, other: Predictions, mended: int, broken: int, half: Half) -> str:
    gain = compare(other, one)
    chosen = (
        "; both were chosen on these clips, which flatters the better one"
        if half == "search half"
        else ""
    )
    return (
        f"On {gain.clips} clips of the {half}, of {gain.sources} sources, the second mends {mended} and breaks"
        f" {broken}: {points(gain)} of balanced accuracy, each with its threshold{chosen}."
    )


def _surest(one: Predictions, other: Predictions, index: Any) -> Any:
    """Those first on which the two differ most."""
    if one.probability is None or other.probability is None:
        return index
    gap = np.abs(one.probability - other.probability)[index]
    return index[np.argsort(-gap, kind="stable")]


def _row(one: Predictions, other: Predictions, i: int, clips: Clips, found: Any) -> dict[str, Any]:
    targets = one.targets
    name = targets.clip_ids[i]
    units = {"duration_ms": " ms", "snr_db": " dB"}
    slices = [f"{v[i]}{units.get(k, '')}" for k, v in targets.slices.items() if v[i]]
    return {
        "player": clips.player(found.get(name.rpartition("|")[2]), f"clip {name}"),
        "id": name,
        "truth": targets.labels[targets.truth[i]],
        "first": _verdict(one, i),
        "second": _verdict(other, i),
        "about": ", ".join([*slices, str(targets.sources[i])]),
    }


def _verdict(said_: Predictions, i: int) -> str:
    label = str(said_.targets.labels[said_.decided[i]])
    if said_.probability is None:
        return label
    return f"{label}, P({said_.targets.labels[0]}) {100 * said_.probability[i]:.0f} %"


def choices(runs_dir: Path, name: str | None) -> list[tuple[str, int]]:
    """(what a list shows, number) of a run's prompts, best first."""
    if not name:
        return []
    try:
        history = see(runs_dir, name).run.history
    except UserError:
        return []
    scored = [
        (t, f"{100 * t.reward:.1f}{'*' if t.state == 'dropped' else ''}") for t in history.scored
    ]
    rest = [(t, t.state) for t in history.trials if not t.scored]
    return [
        (f"#{t.number}  {score}  {' '.join(t.prompt.shown.split())[:80]}", t.number)
        for t, score in (*scored, *rest)
    ]


def pair(runs_dir: Path, name: str | None) -> tuple[int | None, int | None]:
    """The prompts that are compared at first: the best seed prompt and the best one."""
    try:
        seen = see(runs_dir, name or "")
    except UserError:
        return None, None
    return tuple(t.number if t else None for t in (seen.best_seed, seen.best))  # type: ignore[return-value]


def page(runs_dir: Path, chosen: Any, clips: Clips) -> None:
    """The parts of the page."""
    name = chosen.value
    first, second = pair(runs_dir, name)
    with gr.Row():
        a = gr.Dropdown(
            choices(runs_dir, name), value=first, label="First prompt, of the run above"
        )
        with gr.Column():
            other = gr.Dropdown(names(runs_dir), value=name, label="Run of the second prompt")
            b = gr.Dropdown(choices(runs_dir, name), value=second, label="Second prompt")
    half = gr.Radio(list(HALVES), value=HALVES[0], label="Clips")
    again = gr.Button("Read again", size="sm")
    html = gr.HTML(elem_classes="opro")

    def show(
        run: str | None,
        number: int | None,
        other_run: str | None,
        other_number: int | None,
        on: Half,
    ) -> str:
        if not run or not other_run or number is None or other_number is None:
            return said("Choose two prompts.")
        try:
            sides = [see(runs_dir, run), see(runs_dir, other_run)]
            return compared(
                Side(sides[0], sides[0].trial(number)),
                Side(sides[1], sides[1].trial(other_number)),
                on if on in HALVES else HALVES[0],
                clips,
            )
        except UserError as error:
            return refused(error)

    def of_run(run: str | None) -> tuple[Any, ...]:
        one, two = pair(runs_dir, run)
        listed = choices(runs_dir, run)
        return (
            gr.update(choices=listed, value=one),
            gr.update(choices=names(runs_dir), value=run),
            gr.update(choices=listed, value=two),
            show(run, one, run, two, HALVES[0]),
        )

    def of_other(run: str | None, number: int | None, other_run: str | None) -> tuple[Any, str]:
        two = pair(runs_dir, other_run)[1]
        html_ = show(run, number, other_run, two, HALVES[0])
        return gr.update(choices=choices(runs_dir, other_run), value=two), html_

    # `input` is a person's doing alone: what one list changes in another comes with its own comparison.
    asked = [chosen, a, other, b, half]
    gr.on([a.input, b.input, half.input], show, asked, html, **QUIET)
    gr.on([chosen.change, again.click], of_run, chosen, [a, other, b, html], **QUIET)
    other.input(of_other, [chosen, a, other], [b, html], **QUIET)
    html.value = show(name, first, name, second, HALVES[0])
