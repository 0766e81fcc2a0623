"""The run as an Optuna study that grows while it is searched: ``optuna-dashboard runs/NAME/optuna.log``.

Derived from the history and never read back but to see what stands there already.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from evaluators.prompts import Prompt
from opro.search.history import History, Trial

log = logging.getLogger(__name__)
LONGEST = (
    1_000_000  # characters of a prompt: one range for all runs, so that studies can be compared
)
Surface = Callable[[Prompt], Mapping[str, str]]


class LiveStudy:
    """Adds each trial to the study as it is told. A `opro.search.loop.Display`.

    A study that cannot be written costs the picture and never the search: that is said once in the log. Trials that
    were told while nobody wrote are added when the run goes on, marked with ``times``: they bear the time of adding.

    Args:
        history: Of the run; its trials are what is written.
        path: The journal file. Another process may read it at any time.
        levels: Parameter -> its values, the same in every run of the task.
        surface: The value of each parameter for a prompt.
    """

    def __init__(
        self,
        history: History,
        path: Path,
        levels: Mapping[str, tuple[str, ...]],
        surface: Surface,
    ) -> None:
        self._history, self._path = history, path
        self._levels, self._surface = levels, surface
        self._began = datetime.now()
        self._study: Any = None
        self._written: set[tuple[int, str]] = set()  # (trial, state)
        self._failed = False

    def stage(self, iteration: int, name: str) -> None:
        """See `Display`: trials of a race begin together."""
        self._began = datetime.now()

    def advance(self, scored: int, skipped: int) -> None:
        """See `Display`."""

    def told(self, trial: Trial, best: Trial | None) -> None:
        """See `Display`."""
        self._guarded(lambda: self._add_told(trial.number))

    def catch_up(self) -> None:
        """Adds what was told and does not stand there. Where nothing was, no study is opened for it."""
        if any(trial.state != "waiting" for trial in self._history.trials):
            self._guarded(self._add_missing)

    def _guarded(self, write: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            write()
        except Exception as error:  # Optuna's, the disk's: whatever it is, the search goes on
            self._failed = True
            log.warning("%s could not be written (%s)", self._path.name, error)

    def _add_told(self, number: int) -> None:
        """Adds the trial that was told at this moment: those before it stand there, once the study is open."""
        if self._study is None:
            self._add_missing(number)
        else:
            self._add([self._history.trials[number]], number)

    def _add_missing(self, now: int | None = None) -> None:
        """Adds trials in their order; of one that was dropped and later scored on all clips a second entry.

        Args:
            now: The trial that was told at this moment; others were told before.
        """
        if self._study is None:
            self._open()
        done = [t for t in self._history.trials if t.state != "waiting"]
        known = {number for number, _ in self._written}
        fresh = [t for t in done if t.number not in known]
        again = [t for t in done if t.number in known and (t.number, t.state) not in self._written]
        self._add([*fresh, *again], now)

    def _add(self, trials: Sequence[Trial], now: int | None) -> None:
        for trial in trials:
            if (trial.number, trial.state) in self._written:
                continue
            self._study.add_trial(self._frozen(trial, trial.number == now))
            self._written.add((trial.number, trial.state))

    def _open(self) -> None:
        import optuna

        from evaluators.study_file import study_file

        logging.getLogger("optuna").setLevel(logging.WARNING)

        def opened() -> Any:
            storage, name = study_file(self._path), self._path.parent.name
            study = optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )
            attrs = [t.user_attrs for t in study.trials]
            return study, {(a["trial"], a["state"]) for a in attrs}

        try:
            self._study, self._written = opened()
        except (KeyError, ValueError, AssertionError):  # of an earlier version, or damaged
            log.warning("%s is written anew: it was no study of this version", self._path.name)
            self._path.unlink()
            self._study, self._written = opened()

    def _frozen(self, trial: Trial, is_new: bool) -> Any:
        from optuna.distributions import CategoricalDistribution, IntDistribution
        from optuna.trial import FrozenTrial, TrialState

        state = {
            "complete": TrialState.COMPLETE,
            "dropped": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }[trial.state]
        prompt, end = trial.prompt, datetime.now()
        params: dict[str, Any] = {**self._surface(prompt), "length": max(1, len(prompt.text))}
        distributions: dict[str, Any] = {
            n: CategoricalDistribution(v) for n, v in self._levels.items()
        }
        return FrozenTrial(
            number=-1,  # the storage's own
            trial_id=-1,
            state=state,
            value=trial.reward if trial.state == "complete" else None,
            datetime_start=self._began if is_new else end,
            datetime_complete=end,
            params=params,
            distributions={**distributions, "length": IntDistribution(1, LONGEST)},
            user_attrs=_about(trial)
            | ({} if is_new else {"times": "of a later start, not its own"}),
            system_attrs={},
            intermediate_values=dict(enumerate(trial.outcome.blocks if trial.outcome else ())),
        )


def _about(trial: Trial) -> dict[str, Any]:
    """What the dashboard shows beside a trial's parameters."""
    return {
        "trial": trial.number,
        "state": trial.state,
        "prompt_id": trial.prompt.prompt_id,
        "text": trial.prompt.text,
        **({"presentation": trial.prompt.given} if trial.prompt.given else {}),
        "origin": trial.candidate.origin,
        "parents": list(trial.candidate.parents),
        "iteration": trial.iteration,
        "clips": trial.n_scored,
        **({"forecast": trial.reward} if trial.state == "dropped" else {}),
        **({"error": trial.error} if trial.error else {}),
    }
