"""A run as Python sees it: what it found, as data frames."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.classifier import Classifier
from opro.results.leaderboard import leaderboard_rows
from opro.results.run_folder import RunFolder
from opro.results.shown import run_lines
from opro.results.summary import Summary

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """A run, finished or not; it prints as ``python -m opro.optimize`` ends.

    Attributes:
        path: Its folder: `opro.load_run` opens it again.
    """

    path: Path

    @property
    def folder(self) -> RunFolder:
        """The files of the run, read anew."""
        return RunFolder.read(self.path)

    @property
    def finished(self) -> bool:
        """Whether it has decided."""
        return self.folder.summary is not None

    @property
    def summary(self) -> Summary:
        """What it came to, as summary.json holds it: decision, gain with interval, costs, warnings.

        Raises:
            UserError: The run is not finished; its command goes on.
        """
        return self.folder.finished()

    @property
    def best(self) -> Classifier:
        """What it hands over: the prompt found, or the baseline where that was kept, with its decision threshold."""
        return self.folder.best

    @property
    def replaced(self) -> bool:
        """Whether the holdout confirmed a better prompt than the best seed prompt."""
        return not self.summary.baseline_kept

    @property
    def leaderboard(self) -> "pd.DataFrame":
        """A row a prompt, best first, as in leaderboard.csv. Scores are shares of 1 on the search half.

        `fresh_score` is that on the holdout, of baseline and finalists alone.
        """
        return _frame([{k: v for k, v in row.items() if k != "slices"} for row in self._rows])

    @property
    def slices(self) -> "pd.DataFrame":
        """A row a prompt and slice of the search half: duration, SNR, category."""
        return _frame(
            [
                {"prompt_id": row["prompt_id"], "slice": name, "score": value}
                for row in self._rows
                for name, value in row["slices"].items()
            ]
        )

    @property
    def holdout(self) -> "pd.DataFrame":
        """A row a clip and prompt: what baseline and finalists said of the clips that chose nothing."""
        folder, parts = self.folder, []
        for scored in (self.summary.baseline, *self.summary.finalists):
            rows = _read(folder.holdout(scored.prompt_id))
            parts.append(rows.assign(prompt_id=scored.prompt_id))
        return pandas().concat(parts, ignore_index=True)

    def scores(self, prompt_id: str) -> "pd.DataFrame":
        """A row a clip of the search half: log-probabilities in nats of a prompt's answers.

        Raises:
            KeyError: No prompt of the run has this id.
        """
        folder = self.folder
        for trial in folder.history.trials:
            if trial.prompt.prompt_id == prompt_id:
                return _read(folder.scores(trial.prompt))
        raise KeyError(f"run {folder.name!r} has no prompt {prompt_id!r}")

    @property
    def _rows(self) -> list[dict[str, Any]]:
        return leaderboard_rows(self.folder)

    def __str__(self) -> str:
        if not self.finished:
            told = len(self._rows)
            return f"run {self.path.name}: not finished, {told} prompts scored"
        return "\n".join(run_lines(self.folder))

    def _repr_html_(self) -> str:
        """A notebook shows the text as it is."""
        return f"<pre>{escape(str(self))}</pre>"


def load_run(path: str | Path) -> Result:
    """A run of the command line or of Python.

    Raises:
        UserError: It is no run folder.
    """
    found = Result(Path(path))
    _ = found.folder
    return found


def pandas() -> Any:
    """The library, loaded when it is first needed: it takes half a second."""
    return importlib.import_module("pandas")


def _frame(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    return pandas().DataFrame(rows)


def _read(path: Path) -> "pd.DataFrame":
    """A CSV file of ours. Names of clips and sources stay text."""
    kinds: Mapping[str, type] = {"clip_id": str, "source_id": str, "label": str, "predicted": str}
    return pandas().read_csv(path, dtype=kinds, keep_default_na=False, na_values={"snr_db": [""]})
