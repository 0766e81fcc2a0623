"""Blind listening: clips without label, name or verdict, in an order of one's own; what is heard is recorded."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from evaluators.clips import Clip
from evaluators.errors import PauseError, UserError
from evaluators.files import resolve
from evaluators.manifest import manifest_digest
from evaluators.statistics.resampling import Estimate
from evaluators.tasks import SPEECH_TASK
from opro.view.clips import Clips
from opro.view.html import QUIET, refused, render, said
from opro.view.reading import see
from opro.view.verdicts import (
    CLIPS,
    UNSURE,
    VERDICTS,
    alpha,
    ceiling,
    playlist,
    read_verdicts,
    record,
)

LONGEST_NAME = 60
ABOUT = (
    f"You hear the first {CLIPS} clips of the run's split in balanced order, shuffled for you alone, without label or"
    " name. Say what you hear; Tab and Enter are enough. Verdicts go to listening.jsonl in the runs folder."
)


@dataclass(frozen=True)
class Session:
    """A listener on the clips of a run."""

    runs_dir: Path
    clips: Clips
    run: str
    listener: str

    def heard_by(self) -> str:
        """The listener's name.

        Raises:
            UserError: There is none, or it is no plain line.
        """
        name = " ".join(self.listener.split())
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise UserError(
                f"your name is {self.listener[:80]!r}; expected 1 to {LONGEST_NAME} characters"
            )
        return name

    def opened(self) -> tuple[str, tuple[Clip, ...]]:
        """(digest of the manifest, clips of the run's split)."""
        config = see(self.runs_dir, self.run).run.config
        manifest = str(config["manifest"])
        every = self.clips.of(manifest, SPEECH_TASK)
        split = str(config.get("split", "dev"))
        return manifest_digest(resolve(Path(manifest))), tuple(c for c in every if c.split == split)

    def waiting(self) -> tuple[str, list[Clip], int]:
        """(digest, clips still to be heard, clips of the list)."""
        digest, clips = self.opened()
        name = self.heard_by()
        listed = playlist(clips, name)
        done = {
            v.clip_id for v in read_verdicts(self.runs_dir / VERDICTS, digest) if v.listener == name
        }
        return digest, [c for c in listed if c.clip_id not in done], len(listed)

    def html(self, autoplay: bool) -> tuple[str, str]:
        """The next clip to be heard, and what says that it was shown."""
        _, left, count = self.waiting()
        place = count - len(left) + 1
        player = self.clips.player(left[0], f"clip {place} of {count}") if left else None
        html = render("listen", player=player, place=place, count=count, autoplay=autoplay)
        return html, player["url"] if player else ""

    def judge(self, verdict: str, shown: str) -> tuple[str, str]:
        """Records what was heard in the clip that is shown, and shows the next one. Nobody judges one unheard."""
        digest, left, _ = self.waiting()
        current = bool(left) and shown == self.clips.url(left[0])
        if current and verdict in (*SPEECH_TASK.labels, UNSURE):
            path = self.runs_dir / VERDICTS
            record(path, digest, left[0].clip_id, self.heard_by(), verdict)
        return self.html(autoplay=True)

    def results(self) -> str:
        """Agreement of all listeners, and the ceiling."""
        digest, clips = self.opened()
        verdicts = read_verdicts(self.runs_dir / VERDICTS, digest)
        found = ceiling(verdicts, {c.clip_id: c for c in clips}, SPEECH_TASK.labels)
        return render(
            "heard",
            verdicts=len(verdicts),
            listeners=len({v.listener for v in verdicts}),
            unsure=sum(v.verdict == UNSURE for v in verdicts),
            alpha=alpha(verdicts, SPEECH_TASK.labels),
            found=found,
            ceiling=None if found.estimate is None else _points(found.estimate),
        )


def _points(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return f"{100 * one.value:.1f} [too few sources for an interval]"
    return f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def page(runs_dir: Path, chosen: Any, clips: Clips) -> None:
    """The parts of the page."""

    def answered(
        run: str | None, listener: str, shown: str, verdict: str | None
    ) -> tuple[str, str]:
        try:
            session = Session(runs_dir, clips, run or "", listener)
            if verdict is None:
                return session.html(autoplay=False)
            return session.judge(verdict, shown)
        except (UserError, PauseError) as error:
            return refused(error), ""

    def results(run: str | None) -> str:
        try:
            return Session(runs_dir, clips, run or "", "").results()
        except UserError as error:
            return refused(error)

    gr.HTML(render("said", text=ABOUT, fault=False), elem_classes="opro")
    name = gr.Textbox(label="Your name", max_lines=1)
    begin = gr.Button("Begin, or go on")
    html = gr.HTML(said("Give your name to begin."), elem_classes="opro", elem_id="listening")
    shown = gr.Textbox(visible=False)  # the browser's own: a second click judges no other clip
    given, both = [chosen, name, shown], [html, shown]
    with gr.Row():
        for verdict in (*SPEECH_TASK.labels, UNSURE):
            gr.Button(verdict).click(
                functools.partial(answered, verdict=verdict),
                given,
                both,
                concurrency_limit=1,
                concurrency_id="listening",
                **QUIET,
            )
    first = functools.partial(answered, verdict=None)
    gr.on([begin.click, name.submit], first, given, both, **QUIET)
    with gr.Accordion("How far listeners agree, and what that leaves", open=False):
        again = gr.Button("Reckon")
        heard = gr.HTML(elem_classes="opro", elem_id="heard")
        again.click(results, chosen, heard, **QUIET)
