"""An evaluator whose prompts have a true accuracy that can be computed: a linear model of clips, like the pocket's."""

import hashlib

import numpy as np

from evaluators.clips import Clip
from evaluators.scores import ScoreTable


def draws(*parts: object, size: int = 8) -> np.ndarray:
    """Standard normal numbers that depend on the parts alone."""
    raw = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(raw[:8], "big")).standard_normal(size)


class KnownTruth:
    """Log-odds of a prompt on a clip: skill x what the clip says + tilt x what else it is + shift + noise of the pair.

    Args:
        world: Another world has other clips and prompts.
        noise: Standard deviation of what belongs to the pair alone; a clip's own part has one of 1.
        equal: All prompts have the same skill, shift and tilt, so none is better.
    """

    def __init__(self, world: int = 0, noise: float = 0.4, equal: bool = False) -> None:
        self.world, self.noise, self.equal = world, noise, equal
        self.fingerprint = hashlib.sha256(f"{world}|{noise}|{equal}".encode()).hexdigest()
        self.forwards = 0
        self._clips: dict[str, np.ndarray] = {}
        rng = np.random.default_rng([world, 7])
        self._population = rng.standard_normal((20_000, 3))

    def _prompt(self, digest: str) -> tuple[float, float, float]:
        a, b, c = draws(self.world, "equal" if self.equal else digest, size=3)
        return 0.8 + 0.35 * a, 0.5 * b, 0.4 * c

    def _clip(self, clip: Clip) -> np.ndarray:
        found = self._clips.get(clip.sha256)
        if found is None:
            found = draws(self.world, clip.sha256, clip.audio, size=2)
            self._clips[clip.sha256] = found
        return found

    def true_accuracy(self, prompt) -> float:
        """Balanced accuracy over all clips there could be."""
        skill, shift, tilt = self._prompt(prompt.digest)
        own, other, noise = self._population.T
        right = [
            (sign * (skill * (sign + own) + tilt * other + shift + self.noise * noise) > 0).mean()
            for sign in (1, -1)
        ]
        return float(np.mean(right))

    def score(self, prompts, clips) -> ScoreTable:
        """See `Evaluator.score`."""
        about = np.array([self._clip(c) for c in clips])
        signs = np.array([1.0 if c.label == prompts[0].answers[0][0] else -1.0 for c in clips])
        logp = np.zeros((len(prompts), len(clips), 2), np.float32)
        for p, prompt in enumerate(prompts):
            skill, shift, tilt = self._prompt(prompt.digest)
            noise = [draws(self.world, prompt.digest, c.sha256, size=1)[0] for c in clips]
            odds = skill * (signs + about[:, 0]) + tilt * about[:, 1] + shift
            odds = odds + self.noise * np.array(noise)
            logp[p, :, 0] = -np.logaddexp(0, -odds) - 0.01
            logp[p, :, 1] = -np.logaddexp(0, odds) - 0.01
        self.forwards += len(prompts) * len(clips)
        return ScoreTable(tuple(prompts), tuple(clips), logp, logp)
