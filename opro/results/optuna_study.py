"""The run as an Optuna study, for `optuna-dashboard`. Derived from the history, never read back."""

import logging
from pathlib import Path

from opro.search.history import History


def write_study(history: History, path: Path, name: str) -> None:
    """Writes the trials so far as an Optuna journal, whole or not at all: `optuna-dashboard <path>` opens it."""
    import optuna
    from optuna.distributions import CategoricalDistribution, IntDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState, create_trial

    logging.getLogger("optuna").setLevel(logging.WARNING)
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(temporary))),
        study_name=name,
        direction="maximize",
    )
    origins = sorted({t.candidate.origin.split(":")[0] for t in history.trials})
    states = {
        "complete": TrialState.COMPLETE,
        "dropped": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    longest = max(len(t.prompt.text) for t in history.trials)
    trials = []
    for trial in history.trials:
        if trial.state == "waiting":
            continue
        prompt = trial.prompt
        trials.append(
            create_trial(
                state=states[trial.state],
                value=trial.reward if trial.state == "complete" else None,
                params={"origin": trial.candidate.origin.split(":")[0], "length": len(prompt.text)},
                distributions={
                    "origin": CategoricalDistribution(origins),
                    "length": IntDistribution(1, longest),
                },
                user_attrs={
                    "prompt_id": prompt.prompt_id,
                    "text": prompt.text,
                    "origin": trial.candidate.origin,
                    "parents": list(trial.candidate.parents),
                    "iteration": trial.iteration,
                    "clips": trial.outcome.n_scored if trial.outcome else 0,
                },
                intermediate_values=dict(enumerate(trial.outcome.blocks if trial.outcome else ())),
            )
        )
    study.add_trials(trials)
    temporary.replace(path)
    for lock in path.parent.glob(f"{temporary.name}.*"):
        lock.unlink(missing_ok=True)
