"""An Optuna objective over prompts that are made from a trial's parameters.

    def prompt(trial):
        question = trial.suggest_categorical("question", QUESTIONS)
        return Prompt(f"{question} A) yes B) no")

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    study.optimize(OptunaBackend(evaluator, search_half, prompt), n_trials=100)

The best value of a study is the winner of its noise: decide on sources that it has not seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import optuna

from evaluators.clips import ClipSet
from evaluators.errors import PromptError
from evaluators.evaluator import Evaluator
from evaluators.prompts import Prompt
from opro.search.objective import Objective

FIRST = 32  # clips before the first report


@dataclass(frozen=True)
class OptunaBackend:
    """Scores on blocks of clips that double, with a report after each, so that Optuna may prune.

    Attributes:
        clips: In balanced order, as `opro.load_clips` gives them.
        make: From a trial to its prompt.
        objective: What is maximised, and whether each prompt's threshold is fitted on these clips.
    """

    evaluator: Evaluator
    clips: ClipSet
    make: Callable[[optuna.Trial], Prompt]
    objective: Objective = field(default_factory=Objective)

    def __call__(self, trial: optuna.Trial) -> float:
        """The objective on all clips; text and bias are user attributes. A prompt that cannot be scored is pruned."""
        prompt = self.make(trial)
        trial.set_user_attr("text", prompt.text)
        parts, done = [], 0
        while done < len(self.clips):
            block = self.clips[done : max(FIRST, 2 * done)]
            try:
                parts.append(self.evaluator.score([prompt], block).logp[0])
            except PromptError as error:
                trial.set_user_attr("error", str(error))
                raise optuna.TrialPruned(str(error)) from None
            done += len(block)
            measured = self.objective.measure(np.concatenate(parts), self.clips.first(done))
            trial.report(measured.reward, done)
            if done < len(self.clips) and trial.should_prune():
                raise optuna.TrialPruned(f"after {done} clips")
        trial.set_user_attr("bias", measured.bias)
        return measured.reward
