"""An evaluator of one's own: what the search needs is a log-probability of each answer for each prompt and clip.

    run = opro.optimize(Keywords(), [SEED], "data/demo", iterations=3)

This one stands for a model that compares words with sounds: each answer's explanation in the prompt is matched with
three measured properties of the clip. It shows the shape; as a detector it is poor.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluators.audio import RATE
from evaluators.clips import Clip, clip_wave
from evaluators.evaluator import ScoreTable, Uncached
from evaluators.prompts import Prompt

SEED = "Which is it?\nA) a voice, soft and brief\nB) a loud or shrill sound"
WORDS = {  # word -> weights of (level, share of energy from 300 to 3,400 Hz, change of level)
    "voice": (0.0, 2.0, 1.0),
    "speech": (0.0, 2.0, 1.5),
    "words": (0.0, 1.0, 2.0),
    "loud": (2.0, 0.0, 0.0),
    "soft": (-1.0, 0.0, 0.0),
    "brief": (0.0, 0.0, 0.5),
    "shrill": (0.0, -2.0, 0.0),
    "noise": (0.5, -0.5, -2.0),
    "music": (0.5, 0.0, -1.0),
}


class Keywords(Uncached):
    """Matches the words of each option with what is measured of the clip. `Uncached` fills in the rest of `Evaluator`.

    `fingerprint` names everything that can change a score: give another one whenever the code changes.
    """

    fingerprint = "keywords, version 1"

    def score(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> ScoreTable:
        """See `Evaluator.score`: nats, ``[prompt, clip, label]``."""
        heard = np.stack([measured(clip) for clip in clips])
        asked = np.stack([[weights(p.text, words[0]) for _, words in p.answers] for p in prompts])
        fit = np.einsum("pkf,cf->pck", asked, heard)
        logp = (fit - np.logaddexp.reduce(fit, axis=-1, keepdims=True)).astype(np.float32)
        self.forwards += len(prompts) * len(clips)
        return ScoreTable(tuple(prompts), tuple(clips), logp, logp)


def measured(clip: Clip) -> NDArray[np.float64]:
    """Level, share of energy in the band of voices, and change of level, each about -1 to 1."""
    wave = clip_wave(clip).astype(np.float64)
    power = np.abs(np.fft.rfft(wave)) ** 2
    band = slice(*(int(f * len(wave) / RATE) for f in (300, 3400)))
    share = power[band].sum() / max(power.sum(), 1e-12)
    parts = [np.sqrt(np.mean(part**2)) + 1e-6 for part in np.array_split(wave, 10)]
    level = np.log10(np.sqrt(np.mean(wave**2)) + 1e-6) / 2 + 0.75
    return np.array([level, 2 * share - 1, np.clip(np.std(np.log10(parts)) - 0.5, -1, 1)])


def weights(text: str, letter: str) -> NDArray[np.float64]:
    """Sum of the weights of the words behind an option's letter, up to the end of its line."""
    option = re.search(rf"\b{re.escape(letter)}[).:]\s*(.*)", text)
    words = re.findall(r"[a-z]+", option[1].lower()) if option else []
    rows = [WORDS.get(word, (0.0, 0.0, 0.0)) for word in words]
    return np.asarray(np.array(rows).reshape(-1, 3).sum(axis=0), dtype=np.float64)
