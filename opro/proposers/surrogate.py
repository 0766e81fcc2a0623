"""The surrogate: guesses from its words alone what a prompt would score, to choose which proposals to score.

After HbBoPs (arXiv 2412.07820), with a kernel that needs no model: a Gaussian process whose kernel is the square of the
share of words and word pairs that two prompts have in common.
"""

import itertools
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluators.prompts import Prompt

SPREAD = 0.2  # prior standard deviation of the reward between prompts
NOISE = 0.05  # of a reward about what the words explain


def words_of(prompt: Prompt) -> frozenset[str]:
    """Words, marks and their pairs, which answer stands for which label, and how the clip is given."""
    text = re.findall(r"\w+|[^\w\s]|\n", prompt.text.casefold())
    given = [f"{label}={word}" for label, words in prompt.answers for word in words]
    given += prompt.presentation.parts
    return frozenset([*text, *(f"{a} {b}" for a, b in itertools.pairwise(text)), *given])


def pick(
    past: Sequence[tuple[Prompt, float, float]],
    pool: Sequence[Prompt],
    count: int,
    rng: "np.random.Generator",
) -> list[int]:
    """Indices of `count` of the pool by Thompson sampling: each the best of one draw from the posterior.

    Args:
        past: Prompts with their rewards and the standard deviations of these.
    """
    rewards, sds = [reward for _, reward, _ in past], [sd for _, _, sd in past]
    texts = [words_of(p) for p in [*(prompt for prompt, _, _ in past), *pool]]
    shared = _kernel(texts)
    n = len(past)
    noise = NOISE**2 + np.square(sds)
    inverse = np.linalg.inv(SPREAD**2 * shared[:n, :n] + np.diag(noise))
    across = SPREAD**2 * shared[n:, :n]
    middle = float(np.median(rewards))
    mean = middle + across @ inverse @ (np.asarray(rewards) - middle)
    covariance = SPREAD**2 * shared[n:, n:] - across @ inverse @ across.T
    root = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(pool)))
    chosen: list[int] = []
    while len(chosen) < min(count, len(pool)):
        drawn = mean + root @ rng.standard_normal(len(pool))
        drawn[chosen] = -np.inf
        chosen.append(int(drawn.argmax()))
    return chosen


def _kernel(texts: Sequence[frozenset[str]]) -> NDArray[np.float64]:
    names = {w: i for i, w in enumerate(sorted(set().union(*texts)))}
    table = np.zeros((len(texts), len(names)))
    for row, text in zip(table, texts, strict=True):
        row[[names[w] for w in text]] = 1
    size = np.sqrt(table.sum(axis=1))
    return np.asarray(((table @ table.T) / np.outer(size, size)) ** 2)
