"""Forecasts: what a prompt would score on all clips, from the few it was scored on.

Prompts asked of one model agree about clips: where one is sure, so are the others. The log-odds of a new prompt are
therefore nearly a linear function of those of prompts that were scored on every clip, and sixteen clips tell about as
much as two hundred do alone. Bayesian linear regression on the leading principal components (control variates, fitted
anew for each prompt); the unknown noise and coefficients are drawn, so that the forecast carries its own uncertainty.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.classifier import among_labels, log_odds, odds_of_each

COMPONENTS = 3  # beyond the mean of the references
DRAWS = 64

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Basis:
    """`features` ``[clip, feature]`` of the clips, and how strongly the coefficient of each is held near zero."""

    features: Floats
    ridge: Floats


def bases(logp: Floats, truth: NDArray[np.integer]) -> tuple[Basis, ...]:
    """The basis from reference prompts: of two labels one, of more one for each label against the rest.

    Args:
        logp: ``[reference, clip, label]`` of prompts scored on every clip; there may be none.
        truth: Index of each clip's label.
    """
    nats = logp.astype(np.float64)
    if logp.shape[-1] == 2:
        return (_basis(log_odds(nats), truth == 0),)
    odds = odds_of_each(nats)
    return tuple(_basis(odds[..., k], truth == k) for k in range(logp.shape[-1]))


def _basis(known: Floats, own: NDArray[np.bool_]) -> Basis:
    """From ``[reference, clip]`` log-odds of a label, and which clips are its own."""
    columns = [np.ones(len(own)), np.where(own, 1.0, -1.0)]
    ridge = [0.01, 0.3]
    if len(known):
        mean = known.mean(axis=0)
        columns.append(_scaled(mean))
        ridge.append(0.01)
        if len(known) > 1:
            _, _, directions = np.linalg.svd(known - mean, full_matrices=False)
            kept = directions[: min(COMPONENTS, len(known) - 1)]
            columns += [_scaled(d) for d in kept]
            ridge += [0.7] * len(kept)
    return Basis(np.stack(columns, axis=1), np.array(ridge))


def _scaled(column: Floats) -> Floats:
    return np.asarray((column - column.mean()) / (column.std() + 1e-9))


def draw_logp(known: tuple[Basis, ...], seen: NDArray[np.int64], logp: Floats) -> Floats:
    """``[draw, clip, label]`` nats on all clips: as scored on the `seen`, drawn from the posterior on the others.

    Args:
        seen: Indices of the clips scored.
        logp: ``[scored, label]`` their nats, in the same order.
    """
    nats = logp.astype(np.float64)
    if len(known) == 1:
        drawn = draw_log_odds(known[0], seen, log_odds(nats))
        return np.stack([-np.logaddexp(0, -drawn), -np.logaddexp(0, drawn)], axis=-1)
    odds = odds_of_each(nats)
    each = [draw_log_odds(one, seen, odds[:, k], k) for k, one in enumerate(known)]
    return among_labels(-np.logaddexp(0, -np.stack(each, axis=-1)))


def draw_log_odds(known: Basis, seen: NDArray[np.int64], margin: Floats, seed: int = 0) -> Floats:
    """``[draw, clip]`` log-odds on all clips: as scored on the `seen`, drawn from the posterior on the others.

    Args:
        seen: Indices of the clips scored.
        margin: Their log-odds, in the same order.
    """
    rng = np.random.default_rng(seed)  # the same draws for every prompt
    count, width = known.features.shape
    x = known.features[seen]
    precision = x.T @ x + np.diag(known.ridge)
    covariance = np.linalg.inv(precision)
    mean = covariance @ x.T @ margin
    free = max(1.0, len(seen) - np.trace(covariance @ x.T @ x))
    noise = ((margin - x @ mean) ** 2).sum() / free + 1e-6
    spread = np.sqrt(noise * free / rng.chisquare(free, (DRAWS, 1)))
    root = np.linalg.cholesky(covariance)
    coefficients = mean + spread * (rng.standard_normal((DRAWS, width)) @ root.T)
    out = coefficients @ known.features.T + spread * rng.standard_normal((DRAWS, count))
    out[:, seen] = margin
    return np.asarray(out)
