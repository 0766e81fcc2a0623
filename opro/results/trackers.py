"""Searches in experiment trackers: W&B, MLflow, TensorBoard, as transformers' Trainer reports trainings to them.

Where they report to is said by their own environment variables: WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME, TENSORBOARD_LOGGING_DIR. Told are the settings, each trial with its text, the decision and
best.yaml; never an address of a language model, nor a word of a tracker's errors, which may hold keys.
"""

import hashlib
import html
import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from evaluators.classifier import Bias
from evaluators.errors import UserError
from opro.results.run_folder import BEST, RunFolder
from opro.results.summary import Summary
from opro.search.history import Trial
from opro.settings import file_name

log = logging.getLogger(__name__)
UNTOLD = ("lm_base_url",)  # settings that may hold a key in their address


class Tracker(Protocol):
    """One service or folder that keeps the curves of many runs."""

    def log(self, numbers: dict[str, float], text: str, step: int) -> None:
        """Adds a trial: its numbers and its prompt."""

    def finish(self, summary: Summary | None) -> None:
        """Ends the report: with the decision, or without where the search was interrupted."""


class Reported:
    """Trials to trackers, as they are told. A `opro.search.loop.Display`.

    A tracker that fails is left alone for the rest of the process: that costs its curves and never the search.
    """

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def stage(self, iteration: int, name: str) -> None:
        """See `Display`."""

    def advance(self, scored: int, skipped: int) -> None:
        """See `Display`."""

    def told(self, trial: Trial, best: Trial | None) -> None:
        """See `Display`."""
        numbers = {"trial/iteration": float(trial.iteration), "trial/clips": float(trial.n_scored)}
        if trial.outcome is not None:
            kind = "reward" if trial.state == "complete" else "forecast"
            numbers[f"trial/{kind}"] = trial.reward
            if not isinstance(trial.outcome.bias, tuple):  # one a label is in the journal
                numbers["trial/bias"] = trial.outcome.bias
        if best is not None:
            numbers["best/reward"] = best.reward
        self._each(lambda one: one.log(numbers, trial.prompt.shown, trial.number))

    def finish(self, summary: Summary | None) -> None:
        """Ends all reports."""
        self._each(lambda one: one.finish(summary))
        self._trackers = {}

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, one in list(self._trackers.items()):
            try:
                do(one)
            except Exception as error:  # theirs are of any kind
                log.warning(
                    "%s failed (%s): this process reports no more to it", name, type(error).__name__
                )
                del self._trackers[name]


def tracker_names(asked: str | None) -> list[str]:
    """The trackers of ``--report-to``.

    Raises:
        UserError: One is unknown, or its package is not installed.
    """
    if asked is None or asked == "none":
        return []
    installed = [name for name in KINDS if importlib.util.find_spec(name)]
    if asked == "all" and not installed:
        raise UserError(
            f"--report-to all: none of {', '.join(KINDS)} is installed; pip install one"
        )
    names = installed if asked == "all" else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in KINDS:
            raise UserError(
                f"--report-to {asked!r}: {name!r} is unknown; expected {', '.join(KINDS)} with commas between, all or"
                " none"
            )
        if name not in installed:
            raise UserError(
                f"--report-to {asked}: {name} is not installed; pip install {name}, or leave it out"
            )
    return names


def open_trackers(names: Sequence[str], run: RunFolder) -> Reported:
    """Begins, or goes on with, the run in each tracker.

    Raises:
        UserError: One cannot begin.
    """
    opened: dict[str, Tracker] = {}
    for name in names:
        try:
            opened[name] = KINDS[name](run)
        except Exception as error:  # theirs are of any kind
            Reported(opened).finish(None)
            raise UserError(
                f"--report-to {name}: it could not begin ({type(error).__name__}); check its settings, or give the"
                " same command without it"
            ) from None
    return Reported(opened)


def _identity(run: RunFolder) -> str:
    """A name that the same search has on every resume, and no other search."""
    raw = json.dumps([run.name, run.history.header], sort_keys=True)
    return f"{run.name[:80]}-{hashlib.sha256(raw.encode()).hexdigest()[:12]}"


def _settings(run: RunFolder) -> dict[str, Any]:
    return {k: v for k, v in run.config.items() if k not in UNTOLD}


def _nats(bias: Bias) -> str:
    """Digits of a bias, one a label where it has several."""
    return ", ".join(f"{b:.6g}" for b in (bias if isinstance(bias, tuple) else (bias,)))


def _numbers(summary: Summary) -> dict[str, float]:
    """The decision in numbers."""
    gain = {
        k: v for k, v in (("low", summary.gain.low), ("high", summary.gain.high)) if v is not None
    }
    return {
        "decision/gain": summary.gain.estimate,
        **{f"decision/gain_{k}": v for k, v in gain.items()},
        "decision/baseline_score": summary.baseline.score,
        "decision/chosen_score": summary.chosen.score,
        "decision/replaced": float(not summary.baseline_kept),
    }


class TensorBoard:
    """Files in the run's folder; a resumed run adds another beside them, and the curves go on."""

    def __init__(self, run: RunFolder) -> None:
        written: Any = importlib.import_module("torch.utils.tensorboard")
        folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(run.path / "tensorboard")
        self._writer = written.SummaryWriter(folder)
        self._writer.add_text("settings", _fenced(json.dumps(_settings(run), indent=1)))

    def log(self, numbers: dict[str, float], text: str, step: int) -> None:
        """See `Tracker`."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.add_text("trial/prompt", _fenced(text), step)

    def finish(self, summary: Summary | None) -> None:
        """See `Tracker`."""
        if summary is not None:
            for name, value in _numbers(summary).items():
                self._writer.add_scalar(name, value, 0)
            self._writer.add_text("decision", summary.reason)
            self._writer.add_text("decision/prompt", _fenced(summary.chosen.text))
        self._writer.close()


def _fenced(text: str) -> str:
    """A text as Markdown that is shown as it is."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


class Mlflow:
    """A run of MLFLOW_EXPERIMENT_NAME; the chosen prompt is registered where the server has a prompt registry."""

    def __init__(self, run: RunFolder) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        self._run = run
        tag, name = "opro.search", _identity(run)
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
            self._mlflow.set_experiment("opro-audio")
        found = self._mlflow.search_runs(
            filter_string=f"tags.`{tag}` = '{name}'", output_format="list"
        )
        if found:
            self._mlflow.start_run(run_id=found[0].info.run_id)
        else:
            self._mlflow.start_run(run_name=run.name, tags={tag: name})
            self._mlflow.log_params({k: str(v)[:500] for k, v in _settings(run).items()})

    def log(self, numbers: dict[str, float], text: str, step: int) -> None:
        """See `Tracker`."""
        self._mlflow.log_metrics(numbers, step=step)
        self._mlflow.log_text(text, f"prompts/{step:04d}.txt")

    def finish(self, summary: Summary | None) -> None:
        """See `Tracker`."""
        if summary is None:
            self._mlflow.end_run("KILLED")
            return
        self._mlflow.log_metrics(_numbers(summary))
        self._mlflow.set_tag("opro.decision", summary.reason)
        self._mlflow.log_artifact(str(self._run.path / BEST))
        self._register(summary)
        self._mlflow.end_run()

    def _register(self, summary: Summary) -> None:
        """A new version of the prompt of this task and checkpoint; a line in the log where there is no registry."""
        name = file_name(f"{self._run.task.name}-{self._run.checkpoint}")[:200]
        try:
            genai: Any = importlib.import_module("mlflow.genai")
            genai.register_prompt(
                name=name,
                template=summary.chosen.text,
                commit_message=summary.reason[:500],
                tags={
                    "run": self._run.name,
                    "prompt_id": summary.chosen.prompt_id,
                    "bias_nats": _nats(summary.chosen.bias),
                    "replaced_baseline": str(not summary.baseline_kept).lower(),
                },
            )
        except Exception as error:  # no genai in this MLflow, or no registry behind its address
            log.warning("the prompt was not registered in MLflow (%s)", type(error).__name__)
            return
        log.info("registered in MLflow's prompt registry as %s", name)


class Wandb:
    """A run of WANDB_PROJECT, which goes on when the search does."""

    def __init__(self, run: RunFolder) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._wandb, self._path = wandb, run.path
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "opro-audio"),
            dir=os.environ.get("WANDB_DIR", str(run.path)),
            id=file_name(_identity(run)),
            name=run.name,
            config=_settings(run),
            resume="allow",
        )

    def log(self, numbers: dict[str, float], text: str, step: int) -> None:
        """See `Tracker`."""
        self._run.log(
            {**numbers, "trial/number": step, "trial/prompt": self._wandb.Html(_html(text))}
        )

    def finish(self, summary: Summary | None) -> None:
        """See `Tracker`."""
        if summary is None:
            self._run.finish(exit_code=1)
            return
        self._run.summary.update({**_numbers(summary), "decision": summary.reason})
        best = self._wandb.Artifact(f"{self._run.id}-best", type="prompt")
        best.add_file(str(self._path / BEST))
        self._run.log_artifact(best)
        self._run.finish()


def _html(text: str) -> str:
    """A text as HTML that is shown as it is."""
    return f"<pre>{html.escape(text)}</pre>"


KINDS: dict[str, Callable[[RunFolder], Tracker]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
    "tensorboard": TensorBoard,
}
