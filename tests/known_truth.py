"""An evaluator whose prompts have a true accuracy that can be computed: a linear model of clips, like the pocket's."""

import hashlib

import numpy as np

from evaluators.clips import Clip
from evaluators.evaluator import ScoreTable, Uncached

WIDTH = 64  # numbers that describe a clip; a prompt's own noise is a direction among them


def draws(*parts: object, size: int) -> np.ndarray:
    """Standard normal numbers that depend on the parts alone."""
    raw = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(raw[:8], "big")).standard_normal(size)


class KnownTruth(Uncached):
    """Log-odds = skill x what a clip says + tilt x what else it is + shift + noise that differs from prompt to prompt.

    Half of the variance of everything random belongs to a clip's source.

    Args:
        world: Another world has other clips and prompts.
        noise: Standard deviation of what belongs to prompt and clip together; what a clip says has one of 1.
        deaf: Prompts hear nothing of the label, so that all are equally bad: what shuffled labels do.
    """

    def __init__(self, world: int = 0, noise: float = 0.4, deaf: bool = False) -> None:
        self.world, self.noise, self.deaf = world, noise, deaf
        self.fingerprint = hashlib.sha256(f"{world}|{noise}|{deaf}".encode()).hexdigest()
        self.forwards = 0
        self._clips: dict[tuple[str, str], np.ndarray] = {}
        self._population = np.random.default_rng([world, 7]).standard_normal((20_000, 3))

    def _prompt(self, digest: str) -> tuple[float, float, float, np.ndarray]:
        drawn = draws(self.world, digest, size=3 + WIDTH)
        own = drawn[3:] / np.linalg.norm(drawn[3:])
        return 0.8 + 0.35 * drawn[0], 0.5 * drawn[1], 0.4 * drawn[2], own

    def _clip(self, clip: Clip) -> np.ndarray:
        key = (clip.clip_id, clip.audio)
        if key not in self._clips:
            source = draws(self.world, clip.source_id, size=2 + WIDTH)
            self._clips[key] = (source + draws(self.world, *key, size=2 + WIDTH)) / np.sqrt(2)
        return self._clips[key]

    def true_accuracy(self, prompt) -> float:
        """Balanced accuracy over all clips there could be."""
        skill, shift, tilt, _ = self._prompt(prompt.digest)
        says, other, noise = self._population.T
        right = [
            sign * (skill * (sign + says) + tilt * other + shift + self.noise * noise) > 0
            for sign in (1, -1)
        ]
        return float(np.mean(right))

    def score(self, prompts, clips) -> ScoreTable:
        """See `Evaluator.score`."""
        about = np.array([self._clip(c) for c in clips])
        first = prompts[0].answers[0][0]
        says = np.array([0 if self.deaf else 1 if c.label == first else -1 for c in clips])
        logp = np.zeros((len(prompts), len(clips), 2), np.float32)
        for p, prompt in enumerate(prompts):
            skill, shift, tilt, own = self._prompt(prompt.digest)
            odds = skill * (says + about[:, 0]) + tilt * about[:, 1] + shift
            odds = odds + self.noise * (about[:, 2:] * own).sum(axis=1)
            logp[p, :, 0] = -np.logaddexp(0, -odds) - 0.01
            logp[p, :, 1] = -np.logaddexp(0, odds) - 0.01
        self.forwards += len(prompts) * len(clips)
        return ScoreTable(tuple(prompts), tuple(clips), logp, logp)
