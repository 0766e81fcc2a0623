"""The page of all runs, and of one: state, leaderboard, decision, slices, costs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from evaluators.errors import UserError
from evaluators.prompts import shown_text
from opro.results.leaderboard import leaderboard_rows
from opro.results.progress import spelled
from opro.results.sheet import Column, Sheet
from opro.results.shown import decision_lines
from opro.results.two_by_two import two_by_two_sheet
from opro.search.history import Trial
from opro.search.objective import NAMES
from opro.view.html import QUIET, refused, render, table
from opro.view.reading import PAUSED, RUNNING, STOPPED, Seen, names, see

RUNS = ("run", "state", "round", "prompts", "best, %", "decision", "checkpoint", "evals", "time")
BOARD = ("score", "95 %", "holdout", "state", "clips", "origin", "prompt id", "prompt")
ORDERS = ("score", "holdout", "clips", "origin", "length")
ABOUT = (
    "Scores are on the search half, in %: the best of many is flattered by having been picked, which is why a run"
    " decides on its holdout. Prompts that were dropped early come last where scores are the order."
)
EVERY_S = 2.0  # seconds between two looks at the journals


def runs_frame(runs_dir: Path) -> pd.DataFrame:
    """A row a run, newest first; one that cannot be read says why."""
    rows = []
    for name in names(runs_dir):
        try:
            rows.append(_run_row(see(runs_dir, name)))
        except UserError as error:
            rows.append([name, "unreadable", "", "", "", str(error), "", "", ""])
    return pd.DataFrame(rows, columns=list(RUNS), dtype=object)


def _run_row(seen: Seen) -> list[str]:
    best, verdict = seen.best, ""
    if seen.summary is not None:
        gain = 100 * seen.summary.gain.estimate
        verdict = "baseline kept" if seen.summary.baseline_kept else f"replaced, {gain:+.1f} points"
    return [
        seen.run.name,
        seen.state,
        f"{seen.round} of {seen.rounds}",
        str(seen.told),
        "" if best is None or best.outcome is None else f"{100 * best.outcome.score:.1f}",
        verdict,
        seen.run.checkpoint,
        f"{seen.spent.forward:,}",
        spelled(seen.spent.total),
    ]


def board_frame(seen: Seen | None, order: str = "score") -> pd.DataFrame:
    """The leaderboard of a run in one of `ORDERS`; of none without rows."""
    rows = []
    for row in [] if seen is None else leaderboard_rows(seen.run, seen.summary):
        bounds = "" if row["low"] is None else f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        state = "dropped early, a forecast" if row["state"] == "dropped" else str(row["state"])
        rows.append(
            [
                _percent(row["score"]),
                bounds,
                _percent(row["fresh_score"]),
                state + (", chosen" if row["chosen"] else ""),
                row["clips"],
                row["origin"],
                row["prompt_id"],
                shown_text(row["text"], row.get("presentation", "")),
            ]
        )
    frame = pd.DataFrame(rows, columns=list(BOARD))
    if order == "length":
        return frame.sort_values("prompt", key=lambda texts: texts.str.len(), kind="stable")
    if (
        order in BOARD and order != "score"
    ):  # by score they come: what was dropped early is a forecast
        return frame.sort_values(order, ascending=order == "origin", kind="stable")
    return frame


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)


def run_html(seen: Seen) -> str:
    """State, decision, costs and slices of a run."""
    summary = seen.summary
    tables = [slices_sheet(seen)]
    if summary is not None and summary.two_by_two is not None:
        tables.insert(0, two_by_two_sheet(summary.two_by_two))
    facts = list(decision_lines(seen.run, summary) if summary else _facts_so_far(seen))
    return render(
        "run",
        name=seen.run.name,
        state=seen.state,
        round=seen.round,
        rounds=seen.rounds,
        told=seen.told,
        line=_line(seen),
        share=round(seen.share, 3),
        warnings=[text for key, text in facts if key == "warning"],
        facts=[
            (key, text)
            for key, text in (*facts, *_costs(seen))
            if key not in ("warning", "next", "note")
        ],
        tables=[table(sheet) for sheet in tables if sheet.rows],
    )


def _line(seen: Seen) -> str:
    waiting = sum(t.state == "waiting" for t in seen.run.history.trials)
    if seen.state == RUNNING:
        return f", {waiting} being scored" if waiting else ""
    if seen.state in (PAUSED, STOPPED):
        return "; its command, given again, goes on from here"
    return ""


def _facts_so_far(seen: Seen) -> Iterator[tuple[str, str]]:
    yield "scores", f"{NAMES[seen.objective]} on the search half; nothing is decided yet"
    for name, trial in (("best seed", seen.best_seed), ("best so far", seen.best)):
        if trial is not None and trial.outcome is not None:
            mark = " (a forecast)" if trial.state == "dropped" else ""
            yield name, f"{100 * trial.outcome.score:.1f}{mark}  {trial.prompt.shown!r}"


def _costs(seen: Seen) -> Iterator[tuple[str, str]]:
    spent = seen.spent
    yield (
        "spent",
        f"{spent.forward:,} new evals; {spelled(spent.total)}, of which {spelled(spent.scoring)}"
        f" scoring and {spelled(spent.proposing)} proposing",
    )
    given = seen.run.config.get("max_evals")
    most = seen.run.history.steering.max_evals(given)
    if most is not None:
        raised = "" if most == given else f", raised from {given:,} while it went on"
        yield "budget", f"--max-evals {most:,}{raised}"
    if seen.calls:
        tokens = sum(int(c.get(k) or 0) for c in seen.calls for k in ("tokens_in", "tokens_out"))
        prices = [c["cost"] for c in seen.calls if c.get("cost") is not None]
        cost = f"US$ {sum(prices):.2f}" if prices else "cost unknown"
        replies = sum("reply" in c for c in seen.calls)
        yield "language model", f"{replies} replies, {tokens:,} tokens, {cost}"


def slices_sheet(seen: Seen) -> Sheet:
    """Score by slice on the search half: best seed prompt and best prompt, where both were scored on everything."""
    trials: list[tuple[str, Trial | None]] = [("best seed", seen.best_seed), ("best", seen.best)]
    shown = [(name, t.outcome.slices) for name, t in trials if t and t.outcome and t.outcome.slices]
    levels = list(dict.fromkeys(level for _, slices in shown for level in slices))
    columns = [Column("slice", text=True), Column("clips"), *(Column(name) for name, _ in shown)]
    rows = []
    for level in levels:
        clips = next(slices[level][1] for _, slices in shown if level in slices)
        scores = [f"{100 * s[level][0]:.1f}" if level in s else "" for _, s in shown]
        rows.append([level, str(clips), *scores])
    return Sheet("by slice on the search half, %", columns, rows)


def show(runs_dir: Path, name: str | None, order: str = "score") -> tuple[str, pd.DataFrame]:
    """(HTML, leaderboard) of the run of that name."""
    if not name:
        return render("said", text="There is no run yet.", fault=False), board_frame(None)
    try:
        seen = see(runs_dir, name)
        return run_html(seen), board_frame(seen, order)
    except UserError as error:
        return refused(error), board_frame(None)


def page(runs_dir: Path, chosen: Any) -> None:
    """The parts of the page, which follow the journals as they grow."""
    frame = gr.Dataframe(
        runs_frame(runs_dir),
        label="All runs",
        datatype="str",
        interactive=False,
        show_search="filter",
        wrap=True,
        column_widths=["170px", "110px", "90px", "90px", "80px", "200px", "180px", "90px", "90px"],
        elem_id="runs",
    )
    html, board = show(runs_dir, chosen.value)
    about = gr.HTML(html, elem_classes="opro")
    gr.HTML(render("said", text=ABOUT, fault=False), elem_classes="opro")
    order = gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order by")
    rows = gr.Dataframe(
        board,
        label="Prompts",
        datatype=["number", "str", "number", "str", "number", "str", "str", "str"],
        interactive=False,
        show_search="filter",
        wrap=True,
        column_widths=["70px", "125px", "85px", "120px", "60px", "140px", "125px", "480px"],
        elem_id="board",
    )
    state = gr.State("")

    def refresh(name: str | None, by: str, before: str) -> tuple[Any, ...]:
        overview, (one, board) = runs_frame(runs_dir), show(runs_dir, name, by)
        now = f"{name}|{overview.to_json()}|{one}|{board.to_json()}"
        if now == before:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return overview, one, board, gr.update(choices=names(runs_dir)), now

    outputs = [frame, about, rows, chosen, state]
    given = [chosen, order, state]
    gr.on([gr.Timer(EVERY_S).tick, chosen.change, order.change], refresh, given, outputs, **QUIET)
