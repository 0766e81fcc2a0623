"""The leaderboard of a checkpoint that was hardly scored, from those of its relatives.

Log-odds of prompts x clips on several checkpoints (a bank) and a few of a new checkpoint's own make a Gaussian process.
Its mean is the bank's. What the new one does otherwise is a sum of parts, each a kernel of prompts times one of clips:
prompts that the bank's checkpoints treat alike shift alike, overall, by class, by what clips are like (a low-rank term:
bilinear in the principal parts of prompts and clips), and clip by clip; each prompt has shifts of its own, and each
pair has one; and the new checkpoint may be more like some of the bank's than like others. The variances of the parts
are those under which what was seen is likeliest, by the MM algorithm for variance components (Zhou et al. 2019). Draws
follow Matheron's rule: a draw of the prior, moved by what it misses of what was seen. How well it does stands in
tests/README.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANK = 20  # principal parts of prompts, and of clips
DRAWS = 200
STEPS = 50  # of the variances
FITTED = 600  # evals that the variances are fitted on
BLOCK = 5  # prompts that hear the same clips
LIKELY = 4  # prompts that may be best, which hear more
TOGETHER = 20  # prompts that are drawn at once
MOST = 2000  # evals of the new checkpoint: the solver works on all pairs of them
SMALL = 1e-6  # variance that is always there, so that the solver has a rank to work with

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]
Block = tuple[Ints, Ints]  # indices of prompts, and of the clips that all of them hear


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """``[..., prompt]`` balanced accuracies: as the likelier label decides, and with the best threshold."""

    plain: Floats
    tuned: Floats


def leaderboard(odds: Floats, truth: Ints) -> Leaderboard:
    """Of ``[..., prompt, clip]`` log-odds of label 0; thresholds are fitted on the same clips."""
    weight = np.where(truth == 0, 0.5 / (truth == 0).sum(), 0.5 / (truth == 1).sum())
    plain = ((odds >= 0) == (truth == 0)) @ weight
    order = np.argsort(odds, axis=-1)
    step = np.cumsum(np.where(truth == 0, -weight, weight)[order], axis=-1)
    ranked = np.take_along_axis(odds, order, axis=-1)
    step[..., :-1][ranked[..., :-1] == ranked[..., 1:]] = -1.0  # no threshold parts equal log-odds
    return Leaderboard(plain, 0.5 + np.maximum(step.max(axis=-1), 0.0))


@dataclass(frozen=True, eq=False)
class Seen:
    """Evals of the new checkpoint: ``[eval]`` indices of prompts and clips, and log-odds in nats."""

    prompts: Ints
    clips: Ints
    odds: Floats


def spread(share: float, truth: Ints, prompts: int, rng: np.random.Generator) -> list[Block]:
    """Blocks of about `share` of all pairs: each prompt with as many clips, of both classes in turns.

    Prompts of a block hear the same clips, so that a clip's audio is worked through once for them.
    """
    most = 2 * int(np.bincount(truth, minlength=2).min())
    each = min(max(1, round(share * len(truth))), most, max(1, MOST // prompts))
    rows = rng.permutation(prompts)
    out: list[Block] = []
    for i, first in enumerate(range(0, prompts, BLOCK)):
        sides = [rng.permutation(np.flatnonzero(truth == k)) for k in (0, 1)]
        clips = [int(sides[(i + j) % 2][j // 2]) for j in range(each)]
        out.append((np.sort(rows[first : first + BLOCK]), np.sort(np.array(clips))))
    return out


def likeliest(
    draws: Floats, blocks: Sequence[Block], count: int, truth: Ints, rng: np.random.Generator
) -> Block:
    """A block of about `count` more pairs, of the prompts that are best most often and clips that none of them heard.

    Args:
        draws: ``[draw, prompt]`` accuracies.
        blocks: What was heard.
    """
    first = np.bincount(draws.argmax(axis=1), minlength=draws.shape[1])
    rows = np.sort(np.lexsort((-draws.mean(axis=0), -first))[:LIKELY])
    heard = {int(n) for of, clips in blocks if np.isin(of, rows).any() for n in clips}
    each = max(1, count // len(rows))
    left = [n for n in rng.permutation(len(truth)).tolist() if n not in heard]
    sides = [[n for n in left if truth[n] == k] for k in (0, 1)]
    clips = sides[0][: (each + 1) // 2] + sides[1][: each // 2]
    return rows, np.sort(np.array(clips, dtype=np.int64))


def seen_of(blocks: Sequence[Block], odds: Sequence[Floats]) -> Seen:
    """The pairs of blocks, from ``[prompt, clip]`` log-odds of each."""
    prompts = [np.repeat(rows, len(clips)) for rows, clips in blocks]
    clips = [np.tile(clips, len(rows)) for rows, clips in blocks]
    values = [np.asarray(block, dtype=np.float64).ravel() for block in odds]
    return Seen(np.concatenate(prompts), np.concatenate(clips), np.concatenate(values))


class Forecast:
    """What is known of a new checkpoint.

    Args:
        bank: ``[checkpoint, prompt, clip]`` log-odds of label 0 in nats, of two checkpoints at least.
        truth: ``[clip]`` 0 or 1.
    """

    def __init__(self, bank: Floats, truth: Ints) -> None:
        self.bank, self.truth = bank, truth
        self.mean = bank.mean(axis=0)
        self.scale = float(self.mean.std()) or 1.0
        one, side = np.ones((len(truth), 1)), np.where(truth == 0, 1.0, -1.0)[:, None]
        alike = _principal(np.concatenate(list(bank), axis=1))
        heard = _principal(np.concatenate(bank - bank.mean(axis=2, keepdims=True)).T)[:, 1:]
        # (features of prompts, features of clips); None where each has a part of its own
        self._parts: list[tuple[Floats | None, Floats | None]] = [
            *((alike, of) for of in (one, side, heard, None)),
            *((None, of) for of in (one, side, heard)),
        ]
        away = (bank - self.mean) / self.scale
        self._away = np.moveaxis(away, 0, -1)  # [prompt, clip, checkpoint]

    def boards(self, seen: Seen, seed: int) -> Leaderboard:
        """``[draw, prompt]`` leaderboards that what was seen allows."""
        rng = np.random.default_rng(seed)
        at = seen.prompts, seen.clips
        y = (seen.odds - self.mean[at]) / self.scale
        kernels = self._kernels(at, at)
        variances, own = _fit(kernels, y, rng)
        prior = self._prior(variances, rng)
        gap = y - prior[:, *at] - rng.normal(0, np.sqrt(own + SMALL), (DRAWS, len(y)))
        moved = np.linalg.solve(
            np.tensordot(variances, kernels, 1) + (own + SMALL) * np.eye(len(y)), gap.T
        )
        prompts, clips = self.mean.shape
        boards = []
        for first in range(0, prompts, TOGETHER):
            rows = np.arange(first, min(first + TOGETHER, prompts))
            pairs = np.repeat(rows, clips), np.tile(np.arange(clips), len(rows))
            cross = np.tensordot(variances, self._kernels(pairs, at), 1)
            odds = prior[:, rows] + (cross @ moved).T.reshape(DRAWS, len(rows), clips)
            odds += rng.normal(0, np.sqrt(own), odds.shape)
            odds = self.mean[rows] + self.scale * odds
            inside = (seen.prompts >= first) & (seen.prompts <= rows[-1])
            odds[:, seen.prompts[inside] - first, seen.clips[inside]] = seen.odds[inside]
            boards.append(leaderboard(odds, self.truth))
        return Leaderboard(
            np.concatenate([b.plain for b in boards], axis=1),
            np.concatenate([b.tuned for b in boards], axis=1),
        )

    def _prior(self, variances: Floats, rng: np.random.Generator) -> NDArray[np.float32]:
        """``[draw, prompt, clip]`` what the parts may add to the mean, without what each pair has of its own."""
        *parts, mixed = variances
        shape = self.mean.shape
        mix = rng.normal(0, np.sqrt(mixed), (len(self.bank), DRAWS))
        out: NDArray[np.float32] = np.moveaxis(self._away @ mix, -1, 0).astype(np.float32)
        for v, (p, n) in zip(parts, self._parts, strict=True):
            size = [k if f is None else f.shape[1] for k, f in zip(shape, (p, n), strict=True)]
            w = rng.normal(0, np.sqrt(v), (DRAWS, *size))
            w = w if p is None else p @ w
            out += w if n is None else w @ n.T
        return out

    def _kernels(self, a: tuple[Ints, Ints], b: tuple[Ints, Ints]) -> Floats:
        """``[part, pair, pair]`` of (prompts, clips), each of variance one; the last mixes the bank's checkpoints."""

        def same(features: Floats | None, i: Ints, j: Ints) -> Floats:
            if features is None:
                return np.asarray(i[:, None] == j, dtype=np.float64)
            return np.asarray(features[i] @ features[j].T)

        parts = [same(p, a[0], b[0]) * same(n, a[1], b[1]) for p, n in self._parts]
        return np.stack([*parts, self._away[a] @ self._away[b].T])


def _principal(rows: Floats) -> Floats:
    """``[row, part]`` a constant and the first principal parts of rows, of unit mean square together."""
    centred = rows - rows.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    parts = u[:, :RANK] * s[:RANK]
    parts /= np.sqrt((parts**2).sum(axis=1).mean()) or 1.0
    return np.column_stack([np.ones(len(parts)), parts])


def _fit(kernels: Floats, y: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """Variances of the parts, and what each pair has of its own, under which ``[eval]`` y is likeliest."""
    some = rng.permutation(len(y))[:FITTED]
    every = np.concatenate([kernels[:, some[:, None], some], np.eye(len(some))[None]])
    v = np.full(len(every), max(float(np.mean(y**2)), SMALL) / len(every))
    for _ in range(STEPS):
        inverse = np.linalg.inv(np.tensordot(v, every, 1) + SMALL * np.eye(len(some)))
        a = inverse @ y[some]
        fits = np.maximum(np.einsum("kij,i,j->k", every, a, a, optimize=True), 0.0)
        bound = np.einsum("kij,ij->k", every, inverse)
        there = bound > 0  # no such part: two equal checkpoints have nothing to mix
        v *= np.sqrt(np.divide(fits, bound, out=np.zeros_like(v), where=there))
    return v[:-1], float(v[-1])
