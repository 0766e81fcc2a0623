"""What giving the clip otherwise has changed of a score, with the wording held fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evaluators.presentation import AS_IS, Presentation
from evaluators.prompts import Prompt
from opro.search.history import Trial


def wording(prompt: Prompt) -> Prompt:
    """The prompt with the clip as it is."""
    return replace(prompt, presentation=AS_IS)


def effects(scored: Sequence[Trial]) -> Mapping[Presentation, list[float]]:
    """By presentation what it changed of the reward, for each wording that was scored with the clip as it is too.

    Rewards of trials that were dropped early are forecasts.
    """
    plain = {t.prompt: t.reward for t in scored if t.prompt.presentation == AS_IS}
    out: dict[Presentation, list[float]] = {}
    for trial in scored:
        if trial.prompt.presentation != AS_IS and wording(trial.prompt) in plain:
            gain = trial.reward - plain[wording(trial.prompt)]
            out.setdefault(trial.prompt.presentation, []).append(gain)
    return out
