"""Steering a run under way: pause, a prompt of one's own, words to forbid, a larger budget. All of it is journalled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from evaluators.errors import PauseError, UserError
from evaluators.prompts import prompt_from
from opro.search.steering import Kind, ask, forbidden_in, read_requests
from opro.view.html import QUIET, refused, render, said
from opro.view.reading import RUNNING, Seen, see

EVERY_S = 2.0  # seconds between two looks at what was taken
ABOUT = (
    "A run takes what is asked here before its next round, and journals which round took it; a round that has begun is"
    " not changed. A pause ends the process, which frees the device: the run's command, given again, goes on. A larger"
    " budget buys candidates; the clips that the old one cut the search down to stay. A prompt that was written after"
    " listening to clips of the holdout is no longer independent of them, and the decision then flatters it."
)


def request(seen: Seen, kind: Kind, value: Any) -> str:
    """Asks a run for something; what comes of it in a sentence.

    Raises:
        UserError: It cannot be, and why.
    """
    run = seen.run
    if seen.summary is not None:
        raise UserError(f"run {run.name!r} is finished; it takes nothing any more")
    if kind == "pause" and seen.state != RUNNING:
        raise UserError(f"no process works on run {run.name!r}; there is nothing to pause")
    if kind == "prompt":
        _check_prompt(seen, value)
    if kind == "max_evals":
        most = run.history.steering.max_evals(run.config.get("max_evals"))
        if most is None:
            raise UserError(f"run {run.name!r} has no --max-evals; there is no limit to raise")
        if value is None or value != int(value) or value <= most:
            raise UserError(f"the budget is {most:,} evals; expected a larger whole number")
        value = int(value)
    made = ask(run.steering, kind, value, run.task.labels)
    return f"Noted at {made.time[11:19]}: the next round that begins takes it."


def _check_prompt(seen: Seen, raw: Any) -> None:
    """Refuses at once what the loop would refuse between rounds."""
    history = seen.run.history
    prompt = prompt_from(raw, seen.run.task.labels, "your prompt")
    if prompt.prompt_id in {t.prompt.prompt_id for t in history.trials}:
        raise UserError("this prompt was tried already; change a word")
    if words := forbidden_in(prompt, history.steering.forbidden):
        raise UserError(f"this prompt contains {words!r}, which was forbidden")
    for label, answers in prompt.answers:
        if not any(word in prompt.text for word in answers):
            raise UserError(
                f"the prompt does not offer the answer {answers[0]!r} of {label}; write it into the text"
            )


def steering_html(seen: Seen) -> str:
    """What was asked of a run, and which round took it."""
    taken = list(seen.run.history.steering.taken)
    asked = read_requests(seen.run.steering, seen.run.task.labels)
    rows = [(f"round {number}", one) for number, one in taken]
    later = "never: the run is finished" if seen.summary else "waits for the next round"
    rows += [(later, one) for one in asked[len(taken) :]]
    return render(
        "steer",
        name=seen.run.name,
        state=seen.state,
        round=seen.round,
        rounds=seen.rounds,
        rows=[
            {
                "taken": when,
                "kind": one.kind,
                "who": one.who,
                "time": one.time,
                "value": _plain(one.value),
            }
            for when, one in reversed(rows)
        ],
    )


def _plain(value: Any) -> str:
    return str(value["text"]) if isinstance(value, dict) else "" if value is None else str(value)


def answers_of(text: str, labels: tuple[str, ...]) -> dict[str, str]:
    """Answer words by label from ``A, B``, in the labels' order.

    Raises:
        UserError: There are more or fewer.
    """
    words = [word.strip() for word in text.split(",")]
    if len(words) != len(labels) or not all(words):
        raise UserError(
            f"answers are {text!r}; expected {len(labels)} with commas between, of {', '.join(labels)}"
        )
    return dict(zip(labels, words, strict=True))


def page(runs_dir: Path, chosen: Any) -> None:
    """The parts of the page."""

    def show(name: str | None) -> str:
        try:
            return steering_html(see(runs_dir, name)) if name else said("There is no run yet.")
        except UserError as error:
            return refused(error)

    def asking(kind: Kind, make: Callable[..., Any]) -> Callable[..., tuple[str, str]]:
        def act(name: str | None, *given: Any) -> tuple[str, str]:
            try:
                seen = see(runs_dir, name or "")
                return said(request(seen, kind, make(seen, *given))), show(name)
            except (UserError, PauseError) as error:
                return refused(error), show(name)

        return act

    gr.HTML(render("said", text=ABOUT, fault=False), elem_classes="opro")
    answer = gr.HTML(elem_classes="opro", elem_id="steered")
    with gr.Row():
        pause = gr.Button("Pause before the next round")
        resume = gr.Button("Call a pause off")
    text = gr.Textbox(label="A prompt of your own for the next round", lines=4)
    words = gr.Textbox(
        "A, B", label="Its answer words, in the order of the labels, with commas between"
    )
    add = gr.Button("Add the prompt")
    never = gr.Textbox(label="Words that no later candidate may contain", max_lines=1)
    forbid = gr.Button("Forbid them")
    evals = gr.Number(None, label="New --max-evals", precision=0)
    more = gr.Button("Raise the budget")
    html = gr.HTML(show(chosen.value), elem_classes="opro")

    def nothing(seen: Seen) -> None:
        return None

    def prompt(seen: Seen, given: str, answers: str) -> dict[str, Any]:
        return {"text": given, "answers": answers_of(answers, seen.run.task.labels)}

    both = [answer, html]
    pause.click(asking("pause", nothing), chosen, both, **QUIET)
    resume.click(asking("resume", nothing), chosen, both, **QUIET)
    add.click(asking("prompt", prompt), [chosen, text, words], both, **QUIET)
    forbid.click(asking("forbid", lambda seen, given: given), [chosen, never], both, **QUIET)
    more.click(asking("max_evals", lambda seen, given: given), [chosen, evals], both, **QUIET)
    chosen.change(show, chosen, html, **QUIET)
    gr.Timer(EVERY_S).tick(show, chosen, html, **QUIET)
