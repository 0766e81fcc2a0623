"""The playground: a checkpoint, a prompt and a clip, and the probabilities of the answers as the words change."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np
import soundfile

from evaluators.audio import RATE, Wave, load, read_header
from evaluators.build import build_evaluator
from evaluators.classifier import log_odds, sigmoid
from evaluators.clips import Clip
from evaluators.errors import PauseError, PromptError, UserError
from evaluators.evaluator import Evaluator
from evaluators.prompts import prompt_from
from evaluators.tasks import SPEECH_TASK
from opro.view.html import QUIET, refused, render, said
from opro.view.reading import names, see
from opro.view.steer import answers_of

SHIPPED = ("pocket-base", "pocket-lora")
LONGEST_S = 30.0  # of a clip; opro.predict cuts longer recordings into windows
ABOUT = (
    "What you drop or record stays on this machine and is scored whole, at 16 kHz. No threshold is applied: P is what"
    " the model gives each answer. The model is loaded with the first clip and takes memory beside a run under way."
)


@dataclass
class Bench:
    """The model that is loaded, one at a time.

    Attributes:
        checkpoints: That may be asked for: a browser names no other.
    """

    checkpoints: Sequence[str] = SHIPPED
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _name: str = ""
    _model: Evaluator | None = None

    def score(self, checkpoint: str, raw: dict[str, Any], wave: Wave) -> dict[str, Any]:
        """Probabilities of the answers, as the template takes them.

        Raises:
            UserError: Prompt, checkpoint or clip cannot be used.
        """
        prompt = prompt_from(raw, SPEECH_TASK.labels, "the prompt")
        with self._lock, TemporaryDirectory() as scratch:
            if checkpoint != self._name:
                if self._model is not None:
                    self._model.release()
                self._name, self._model = "", None
                self._model = build_evaluator(checkpoint)[0]
                self._name = checkpoint
            assert self._model is not None
            try:
                table = self._model.score([prompt], [clip_of(wave, Path(scratch))])
            except PromptError as error:
                raise UserError(str(error)) from None
        logp = table.logp[0, 0]
        first = float(sigmoid(log_odds(logp.astype(np.float64))))
        shares = np.exp(logp.astype(np.float64) - np.logaddexp.reduce(logp.astype(np.float64)))
        answers = {label: " / ".join(words) for label, words in prompt.answers}
        return {
            "first": (SPEECH_TASK.labels[0], first),
            "labels": [
                {"label": label, "answer": answers[label], "p": float(p)}
                for label, p in zip(SPEECH_TASK.labels, shares, strict=True)
            ],
            "outside": float(table.outside[0, 0]),
            "ms": round(1000 * len(wave) / RATE),
            "checkpoint": checkpoint,
        }


def clip_of(wave: Wave, scratch: Path) -> Clip:
    """A recording without a label as a clip that an evaluator takes."""
    path = scratch / "clip.wav"
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    digest = hashlib.sha256(wave.tobytes()).hexdigest()
    label = SPEECH_TASK.labels[0]  # an evaluator does not look at it
    return Clip(
        "clip", path, label, "", 1000 * len(wave) / RATE, None, "", "you", "", "", sha256=digest
    )


def recorded(path: str | None) -> Wave:
    """What was dropped or recorded, at 16 kHz mono.

    Raises:
        UserError: There is none, it cannot be decoded, or it is too long.
    """
    if not path:
        raise UserError("drop a clip, or record one with the microphone")
    try:
        seconds = read_header(Path(path)).seconds
        if seconds > LONGEST_S:
            raise UserError(
                f"the clip is {seconds:.0f} s long; expected at most {LONGEST_S:.0f} s (opro.predict labels longer"
                " recordings)"
            )
        return load(Path(path))
    except UserError as error:  # the path is one of the page's own, and says nothing to a person
        raise UserError(str(error).replace(repr(path), repr(Path(path).name))) from None


def checkpoints(runs_dir: Path, more: str | None) -> list[str]:
    """Checkpoints to choose from: none is read from a path that a browser gives."""
    found = [more] if more else []
    for name in names(runs_dir):
        try:
            found += see(runs_dir, name).run.checkpoints
        except UserError:
            continue
    return list(dict.fromkeys([*found, *SHIPPED]))


def start(runs_dir: Path, name: str | None) -> tuple[str, str]:
    """(text, answers) of the best prompt of a run, to begin with."""
    try:
        best = see(runs_dir, name or "").best
    except UserError:
        best = None
    if best is None:
        return "Is there speech in this clip?\nA) Yes\nB) No", "A, B"
    return best.prompt.text, ", ".join(words[0] for _, words in best.prompt.answers)


def played(bench: Bench, path: str | None, checkpoint: str, text: str, answers: str) -> str:
    """The answer of a checkpoint as HTML, or why there is none."""
    try:
        if checkpoint not in bench.checkpoints:
            raise UserError(
                f"checkpoint {checkpoint!r} is not of the list; start with --checkpoint"
            )
        raw = {"text": text, "answers": answers_of(answers, SPEECH_TASK.labels)}
        return render("playground", **bench.score(checkpoint, raw, recorded(path)))
    except (UserError, PauseError) as error:
        return said(error) if not path else refused(error)


def page(runs_dir: Path, chosen: Any, more: str | None) -> None:
    """The parts of the page."""
    bench = Bench(checkpoints(runs_dir, more))
    text, answers = start(runs_dir, chosen.value)
    gr.HTML(render("said", text=ABOUT, fault=False), elem_classes="opro")
    with gr.Row():
        with gr.Column():
            sound = gr.Audio(
                label="Clip", sources=["upload", "microphone"], type="filepath", buttons=[]
            )
            model = gr.Dropdown(
                list(bench.checkpoints), value=bench.checkpoints[0], label="Checkpoint"
            )
        with gr.Column():
            words = gr.Textbox(text, label="Prompt", lines=8)
            given = gr.Textbox(answers, label="Answer words, in the order of the labels")
            result = gr.HTML(said("Drop a clip, or record one."), elem_classes="opro", elem_id="p")

    def show(path: str | None, checkpoint: str, words_: str, answers_: str) -> str:
        return played(bench, path, checkpoint, words_, answers_)

    gr.on(
        [sound.change, model.change, words.change, given.change],
        show,
        [sound, model, words, given],
        result,
        trigger_mode="always_last",
        concurrency_limit=1,
        **{**QUIET, "show_progress": "minimal"},  # a model may take a while to load
    )
    chosen.change(lambda name: start(runs_dir, name), chosen, [words, given], **QUIET)
