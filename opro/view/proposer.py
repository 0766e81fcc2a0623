"""What the proposer was asked, and what it said."""

from pathlib import Path
from typing import Any

import gradio as gr

from evaluators.errors import UserError
from opro.view.html import QUIET, refused, render, said
from opro.view.reading import Seen, see

NEWEST = 40  # calls that are shown


def proposer_html(seen: Seen) -> str:
    """The journal of calls to a language model, newest first, and where each prompt of a round came from."""
    history = seen.run.history
    numbers = {t.prompt.prompt_id: f"#{t.number}" for t in history.trials}
    rounds: dict[int, list[dict[str, Any]]] = {}
    for trial in history.trials:
        rounds.setdefault(trial.iteration, []).append(
            {
                "number": trial.number,
                "origin": trial.candidate.origin,
                "parents": ", ".join(numbers.get(p, p) for p in trial.candidate.parents),
                "score": "" if trial.outcome is None else f"{100 * trial.outcome.score:.1f}",
                "state": trial.state,
                "text": trial.prompt.shown,
            }
        )
    who = (history.header or {}).get("proposer", "")
    return render(
        "proposer",
        name=seen.run.name,
        who=who,
        calls=list(reversed(seen.calls))[:NEWEST],
        older=max(0, len(seen.calls) - NEWEST),
        rounds=sorted(rounds.items(), reverse=True),
        refused=history.refused,
    )


def page(runs_dir: Path, chosen: Any) -> None:
    """The parts of the page."""

    def show(name: str | None) -> str:
        if not name:
            return said("There is no run yet.")
        try:
            return proposer_html(see(runs_dir, name))
        except UserError as error:
            return refused(error)

    again = gr.Button("Read again", size="sm")
    html = gr.HTML(show(chosen.value), elem_classes="opro")
    gr.on([chosen.change, again.click], show, chosen, html, **QUIET)
