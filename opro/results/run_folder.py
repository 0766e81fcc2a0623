"""Run folders: the only module that knows the files of a run, and the lock that keeps them to one process."""

import contextlib
import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import Classifier, dump_classifiers
from evaluators.clips import Clip
from evaluators.errors import UserError
from evaluators.files import (
    FORMULA,
    check_regular,
    csv_text,
    dump_yaml,
    is_written,
    read_json,
    read_yaml,
    remove_torn,
    write_json,
    write_text,
)
from evaluators.plain_data import brief
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK, Task, read_task, shipped_tasks, task_named
from opro.cli import check_kinds
from opro.results.predictions import write_predictions
from opro.results.provenance import provenance, version_changes
from opro.results.summary import Summary, read_summary
from opro.search.history import History, Trial
from opro.search.select import Decision
from opro.settings import REPEATS, OptimizeSettings, checkpoint_names

log = logging.getLogger(__name__)
JOURNAL = "trials.jsonl"
CONFIG = "config.yaml"
TASK = "task.yaml"  # what is decided, where that is not `speech`
PROPOSALS = "proposals.jsonl"
USAGE = "usage.jsonl"  # evals and seconds of every process that worked on the run
SUMMARY = "summary.json"
BEST = "best.yaml"
LEADERBOARD = "leaderboard.csv"
STEERING = "steering.jsonl"  # what people asked of the run while it went on
PROVENANCE = "provenance.json"
STUDY = "optuna.log"
LOG = "log.txt"
LOCK = ".lock"
OWN = (CONFIG, TASK, PROVENANCE, BEST, SUMMARY, "*.csv")  # written whole by whoever holds the lock
PEEKED_S = 1.0  # seconds that a process waits for the lock: `is_open` may hold it for a moment
SCORES = "scores"  # per-clip log-probabilities on the search half, by prompt id
OLD_DASH = tuple(f"'{first}" for first in FORMULA)
HOLDOUT = Path(SCORES) / "fresh"  # per-clip predictions of baseline and finalists on the holdout


@contextlib.contextmanager
def open_run(folder: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """Creates a run folder or opens it again, alone, until the block ends.

    Raises:
        UserError: Another process has the run open, or it was started with other settings.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        lock.acquire(timeout=PEEKED_S)
    except filelock.Timeout:
        raise UserError(
            f"run {folder.name!r} is open in another process; wait for it, or give another --name"
        ) from None
    except OSError as error:
        raise UserError(
            f"run folder {str(folder)!r} cannot be written ({error.strerror}); give another"
            " --runs-dir"
        ) from None
    try:
        remove_torn(folder, OWN)
        path = folder / CONFIG
        if is_written(path):
            before = read_yaml(path)
            if not isinstance(before, dict):
                raise UserError(f"{path}: no settings; restore the file, or give another --name")
            for key in {*before, *config}:
                if before.get(key) != config.get(key):
                    raise UserError(
                        f"run {folder.name!r} was started with {key} = {before.get(key)!r}, now it"
                        f" is {config.get(key)!r}; give another --name"
                    )
        else:
            if path.exists():
                log.warning(
                    "%s was empty, as a crash of the system leaves a file; it is written anew from the settings of"
                    " this command, which must be those that the run was started with",
                    path,
                )
            write_text(path, dump_yaml(dict(config)))
        yield folder
    finally:
        lock.release()


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Attributes:
        config: Its settings as plain data, of any version: `get` what a later version added.
        task: What it decides.
        history: Its journal, replayed.
    """

    path: Path
    config: Mapping[str, Any]
    task: Task
    history: History

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, path: Path, config: Mapping[str, Any], task: Task = SPEECH_TASK
    ) -> "Iterator[RunFolder]":
        """The folder of a run that begins, goes on or has ended, alone until the block ends.

        A task of another file is kept in it, so that every verb knows it.
        """
        with open_run(path, config):
            for name in (JOURNAL, LOG):  # read, or kept open, before anything is written to them
                check_regular(path / name)
            if task != SPEECH_TASK and not is_written(path / TASK):
                write_text(path / TASK, task.text())
            yield cls._of(path, config, repair=True)

    @classmethod
    def read(cls, path: Path, flag: str = "") -> "RunFolder":
        """A run folder of any age; nothing is written.

        Args:
            flag: That named it, for the sentence when it is no run folder.
        Raises:
            UserError: It is no run folder, or its files are damaged.
        """
        if not (path / JOURNAL).is_file():
            raise UserError(f"{flag}{str(path)!r} is no run folder: it holds no {JOURNAL}")
        config = read_yaml(path / CONFIG)
        if (
            not isinstance(config, dict)
            or not (config.get("task") in shipped_tasks() or (path / TASK).is_file())
            or None in (config.get("checkpoint"), config.get("manifest"))
        ):
            raise UserError(f"{path / CONFIG}: no settings of a run; restore the file")
        check_kinds(config, OptimizeSettings, str(path / CONFIG))
        return cls._of(path, config)

    @classmethod
    def _of(cls, path: Path, config: Mapping[str, Any], repair: bool = False) -> "RunFolder":
        task = read_task(path / TASK) if (path / TASK).is_file() else task_named(config["task"])
        both = bool(config.get("swap"))
        history = History(path / JOURNAL, task.labels, repair=repair, both_orders=both)
        return cls(path, config, task, history)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def task_flag(self) -> str:
        """What ``--task`` would be given to decide the same."""
        kept = self.path / TASK
        return str(kept) if kept.is_file() else self.task.name

    @property
    def checkpoints(self) -> list[str]:
        """The checkpoints that its prompt is to serve, each by itself."""
        return checkpoint_names(str(self.config["checkpoint"]), self.config.get("also"))

    @property
    def checkpoint(self) -> str:
        """The checkpoint it searched on, or all that its prompt is to serve."""
        also = self.config.get("also")
        return str(self.config["checkpoint"]) + (f", {also}" if also else "")

    @property
    def proposals(self) -> Path:
        """Journal of the calls to a language model."""
        return self.path / PROPOSALS

    @property
    def steering(self) -> Path:
        """Inbox of what people ask of the run while it goes on."""
        return self.path / STEERING

    @property
    def usage(self) -> Path:
        """Journal of the evals and seconds spent."""
        return self.path / USAGE

    @property
    def repeats(self) -> list[Path]:
        """Folders of its searches that have begun, in their order, where ``--repeats`` made several."""
        found = {
            int(seed): path.parent
            for path in (self.path / REPEATS).glob(f"*-seed*/{JOURNAL}")
            if (seed := path.parent.name.rpartition("-seed")[2]).isdecimal()
        }
        return [found[seed] for seed in sorted(found)]

    @property
    def ended(self) -> bool:
        """Of one search of several, whether nothing is left of it: it does not decide by itself."""
        return is_written(self.path / LEADERBOARD)

    def end(self, leaderboard: str) -> None:
        """Ends one search of several."""
        write_text(self.path / LEADERBOARD, leaderboard)

    def take_scores(self, other: "RunFolder", trial: Trial) -> None:
        """Keeps a copy of what a search of its own, one of several, scored per clip."""
        path = other.scores(trial.prompt)
        if path.exists():
            write_text(self.path / SCORES / path.name, path.read_text(encoding="utf-8"))

    @property
    def summary(self) -> Summary | None:
        """What a finished run came to, else None. Prompts go by today's ids, whatever version wrote it.

        A run whose journal lost its decision has not ended, whatever file is there.

        Raises:
            UserError: The file is damaged.
        """
        if self.history.selection is None:
            return None
        return read_summary(self.path / SUMMARY, self._older_ids)

    @property
    def _older_ids(self) -> dict[str, str]:
        """Ids of a run with ``--swap`` from before prompts carried their order -> today's."""
        if not self.config.get("swap"):
            return {}
        prompts = [t.prompt for t in self.history.trials]
        return {_single_order(p).prompt_id: p.prompt_id for p in prompts}

    def finished(self) -> Summary:
        """The summary.

        Raises:
            UserError: The run has not ended.
        """
        check_regular(self.path / BEST)
        summary = self.summary
        if summary is None or self.history.selection is None or not (self.path / BEST).is_file():
            raise UserError(
                f"run {self.name!r} is not finished; give its command again, it goes on from there:"
                " its choice must not depend on what comes after"
            )
        return summary

    def document(self) -> dict[str, Any]:
        """What a finished run came to, as summary.json holds it, with its name and the paths of its files."""
        files = (SUMMARY, BEST, LEADERBOARD, JOURNAL, SCORES, STUDY, LOG)
        paths = {Path(one).stem: str(self.path / one) for one in files}
        return {
            "run": self.name,
            **self.finished().model_dump(),
            "paths": {"folder": str(self.path), **paths},
        }

    @property
    def best(self) -> Classifier:
        """What a finished run hands over: its choice, or the baseline where that was kept; as in best.yaml.

        From the journal: before thresholds and orders were a part of the file, best.yaml held the words alone.
        """
        self.finished()
        number = int((self.history.selection or {})["chosen"])
        return self.history.trials[number].classifier

    def ranking(self) -> list[Trial]:
        """Of a finished run: baseline, chosen trial, finalists, then the other complete ones; each once."""
        self.finished()
        made = self.history.selection or {}
        order = [made["baseline"], made["chosen"], *made["finalists"]]
        order += [t.number for t in self.history.complete]
        return [self.history.trials[number] for number in dict.fromkeys(order)]

    def scores(self, prompt: Prompt) -> Path:
        """Per-clip scores of a prompt on the search half."""
        return self._named(Path(SCORES), prompt.prompt_id)

    def holdout(self, prompt_id: str) -> Path:
        """Per-clip predictions of a prompt on the holdout."""
        return self._named(HOLDOUT, prompt_id)

    def _named(self, folder: Path, prompt_id: str) -> Path:
        """The file of a prompt, under the id that it had when the file was written."""
        path = self.path / folder / f"{prompt_id}.csv"
        if path.exists():
            return path
        older = (old for old, new in self._older_ids.items() if new == prompt_id)
        paths = [self.path / folder / f"{name}.csv" for name in older]
        return next((p for p in paths if p.exists()), path)

    def searched_sources(self, trials: Sequence[Trial]) -> frozenset[str]:
        """Sources of the clips that trials were scored on.

        Raises:
            UserError: Their scores cannot be read.
        """
        found: set[str] = set()
        for trial in trials:
            path = self.scores(trial.prompt)
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    found |= {row["source_id"] for row in csv.DictReader(file)}
            except (OSError, KeyError, csv.Error) as error:
                raise UserError(
                    f"--share {str(self.path)!r}: {path.name} of its scores cannot be read"
                    f" ({type(error).__name__}: {error}), so it is unknown which clips it searched on"
                ) from None
        # Version 0.1 wrote an apostrophe before a dash: such a source counts under both names.
        return frozenset(found | {one[1:] for one in found if one.startswith(OLD_DASH)})

    def save_scores(self, trial: Trial, clips: Sequence[Clip], logp: NDArray[np.floating]) -> None:
        """Per clip the log-probability of each label in nats, and the mass outside all answers."""
        labels, rows = self.task.labels, []
        inside = np.exp(logp).sum(axis=-1)
        for clip, values, share in zip(clips, logp.tolist(), inside.tolist(), strict=True):
            row = {
                "clip_id": clip.name,
                "source_id": clip.source_id,
                "label": clip.label,
                "duration_ms": clip.duration_ms,
                "snr_db": clip.snr_db,
                "category": clip.category,
            }
            for label, value in zip(labels, values, strict=True):
                row[f"logp_{label}"] = round(value, 6)
            row["outside"] = round(max(0.0, 1 - share), 6)
            rows.append(row)
        columns = ["clip_id", "source_id", "label", "duration_ms", "snr_db", "category"]
        columns += [*(f"logp_{label}" for label in labels), "outside"]
        path = self.path / SCORES / f"{trial.prompt.prompt_id}.csv"
        write_text(path, csv_text(rows, columns))

    @property
    def weights(self) -> str | None:
        """Digest of the checkpoint that its scores are of; None of a run that did not record it, or has none."""
        path = self.path / PROVENANCE
        made = read_json(path) if is_written(path) else {}
        return made.get("weights") if isinstance(made, dict) else None

    @property
    def scored_with(self) -> dict[str, str] | None:
        """Versions of the libraries that its scores depend on; None of a run that did not record them."""
        path = self.path / PROVENANCE
        made = read_json(path) if is_written(path) else {}
        found = made.get("scored_with") if isinstance(made, dict) else made
        if found is None:
            return None
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise UserError(
                f"{path}: scored_with is {brief(found)}; expected libraries with their versions, so restore the file"
            )
        return found

    def begin(self, identity: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Journals what the run is, or checks that it is still that: scores of two kinds are never mixed.

        A finished run is shown as it was, whatever libraries are installed since: nothing of it is scored again.

        Args:
            identity: See `opro.problem.Problem`; with a fingerprint.
            versions: As `scored_with`, of the libraries here.

        Raises:
            UserError: It is another run, or libraries changed before it ended; names what changed.
        """
        before = (self.history.header or identity)["fingerprint"]
        recorded = self.scored_with
        changes = ""
        if before != identity["fingerprint"] and versions:
            changes = (
                "an earlier version of this program"
                if recorded is None
                else version_changes(recorded, versions)
            )
        if not changes:
            self.history.begin(identity)
            return
        said = f"run {self.name!r} was scored with {changes}"
        if self.summary is None:
            here = "" if recorded is None else "go on where these are installed, or "
            raise UserError(
                f"{said}, and scores of both are not mixed; {here}give another --name, for which all"
                " is scored anew"
            )
        self.history.begin({**identity, "fingerprint": before})
        log.warning("%s and is shown as it was; give another --name to score anew", said)

    def save_provenance(self, about: Mapping[str, Any]) -> None:
        """Where and how the run began; a resumed run keeps what stands there."""
        if not is_written(self.path / PROVENANCE):
            write_json(self.path / PROVENANCE, provenance(about))

    def save_results(self, decision: Decision, summary: Summary, leaderboard: str) -> None:
        """Writes the results. summary.json comes last: with it the run counts as finished."""
        for prompt_id, said in decision.predictions.items():
            write_predictions(self.holdout(prompt_id), said)
        write_text(self.path / BEST, dump_classifiers([decision.chosen.classifier]))
        turn = decision.turn
        self.history.close(
            {
                "chosen": decision.chosen.number,
                "baseline": decision.baseline.number,
                "reason": decision.reason,
                "finalists": [f.trial.number for f in decision.finalists],
                **({"turn": turn.number} if turn and turn.number > 1 else {}),
            }
        )
        write_text(self.path / LEADERBOARD, leaderboard)
        write_json(self.path / SUMMARY, summary.model_dump())


def _single_order(prompt: Prompt) -> Prompt:
    return replace(prompt, both_orders=False)


def is_open(folder: Path) -> bool:
    """Whether a process works on the run. Holds its lock for a moment to see; writes nothing."""
    if not (folder / LOCK).exists():
        return False
    try:
        with filelock.FileLock(folder / LOCK).acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # in a folder that cannot be written nobody works
        return False


def find_runs(runs_dir: Path) -> list[Path]:
    """All run folders, oldest first."""
    if not runs_dir.is_dir():
        return []

    def age(folder: Path) -> tuple[float, str]:
        config = folder / CONFIG
        return config.stat().st_mtime if config.exists() else 0.0, folder.name

    return sorted((path.parent for path in runs_dir.glob(f"*/{JOURNAL}")), key=age)
