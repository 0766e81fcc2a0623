"""CR2 with matrices written out, to hold the engine's sums against."""

import numpy as np
from scipy.linalg import fractional_matrix_power
from scipy.stats import t


def student(kind, source, gained, weights):
    """(Value, standard error, degrees of freedom) of a weighted sum of the kinds' means of ``[clip]`` gains.

    Bell and McCaffrey 2002: with X of ones, H = X X' / N, the residuals of a source are multiplied by the root of the
    inverse of (I - H) restricted to its clips; degrees of freedom as if the clips of a source were one number repeated.
    """
    sources, value, parts, degrees, own = np.unique(source), 0.0, [], [], 0.0
    for k, weight in zip(np.unique(kind), weights, strict=True):
        inside = kind == k
        x, of = gained[inside].astype(float), source[inside]
        n = len(x)
        hat = np.full((n, n), 1 / n)
        left = np.eye(n) - hat
        seen = np.zeros((len(sources), n))  # what a source's clips make of the residuals
        for i, one in enumerate(sources):
            mine = np.flatnonzero(of == one)
            if not len(mine):
                continue
            root = fractional_matrix_power(left[np.ix_(mine, mine)], -0.5)
            seen[i] = root.sum(0) @ left[mine] / n
        each = weight * seen @ x
        omega = (of[:, None] == of) * 1.0
        spread = weight**2 * seen @ omega @ seen.T
        value += weight * x.mean()
        own = own + each
        parts.append((each**2).sum())
        degrees.append(np.trace(spread) ** 2 / (spread**2).sum())
    parts = np.array(parts)
    return value, np.sqrt((own**2).sum()), parts.sum() ** 2 / (parts**2 / degrees).sum()


def bounds(kind, source, gained, weights, alpha):
    """(Low, high, one-sided p) of it by Student's distribution."""
    value, error, degrees = student(kind, source, gained, weights)
    reach = t.ppf(1 - alpha, degrees) * error
    return value - reach, value + reach, t.sf(value / error, degrees)


def balanced_gain(truth, source, right, other, alpha=0.025):
    """(Low, high, one-sided p) of how much more balanced accuracy `right` answers have than `other` ones."""
    gained, kinds = np.asarray(right) * 1.0 - np.asarray(other), np.unique(truth)
    if not gained.any():
        return 0.0, 0.0, 1.0
    weights = np.full(len(kinds), 1 / len(kinds))
    low, high, p = bounds(np.asarray(truth), np.asarray(source), gained, weights, alpha)
    return max(low, -1.0), min(high, 1.0), p
