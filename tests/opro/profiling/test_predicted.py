"""A new checkpoint's leaderboard from its relatives' (`opro.profiling.forecast`)."""

import numpy as np
import pytest
from scipy import stats

from evaluators.statistics.calibration import fit_bias
from evaluators.statistics.metrics import balanced_accuracy
from opro.profiling import forecast
from opro.profiling.forecast import Forecast, leaderboard, likeliest, seen_of, spread

PROMPTS, CLIPS = 30, 24
TRUTH = np.arange(CLIPS) % 2


def relatives(count, seed=0, apart=0.5):
    """``[checkpoint, prompt, clip]`` log-odds that share most of what they do."""
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(PROMPTS, 2)), rng.normal(size=(CLIPS, 2))
    base = rng.normal(0, 1.5, (PROMPTS, 1)) + rng.uniform(0, 2, (PROMPTS, 1)) * (1 - 2 * TRUTH)
    base = base + u @ v.T

    def moved():
        """Prompts that are alike move alike, the classes apart or together and each clip by itself."""
        apart_more = u @ rng.normal(0, 2 * apart, (2, 1)) * (1 - 2 * TRUTH)
        return apart_more + u @ rng.normal(0, apart / 2, (2, CLIPS))

    return np.array([base + moved() for _ in range(count)])


def heard(odds, blocks):
    return seen_of(blocks, [odds[np.ix_(*block)] for block in blocks])


def test_a_leaderboard_is_what_thresholds_give():
    odds = np.round(relatives(1)[0], 1)  # with equal log-odds, which no threshold parts
    board = leaderboard(odds, TRUTH)
    for row, plain, tuned in zip(odds, board.plain, board.tuned, strict=True):
        for bias, expected in ((0.0, plain), (fit_bias(TRUTH, row), tuned)):
            right = (row + bias >= 0) == (TRUTH == 0)
            assert balanced_accuracy(TRUTH, right) == pytest.approx(expected)


def test_what_may_be_best_hears_more_and_no_clip_twice():
    rng = np.random.default_rng(0)
    blocks = spread(0.1, TRUTH, PROMPTS, rng)
    draws = rng.normal(size=(50, PROMPTS))
    draws[:, [3, 17]] += 20
    rows, clips = likeliest(draws, blocks, 40, TRUTH, rng)
    assert {3, 17} <= set(rows.tolist()) and len(rows) == 4 and len(clips) == 10
    assert np.bincount(TRUTH[clips]).tolist() == [5, 5]
    for of, before in blocks:
        if set(of.tolist()) & set(rows.tolist()):
            assert not set(before.tolist()) & set(clips.tolist())


@pytest.mark.parametrize("share", [0.02, 0.1, 1.0])
def test_evals_are_spread_evenly(share):
    blocks = spread(share, TRUTH, PROMPTS, np.random.default_rng(0))
    seen = heard(relatives(1)[0], blocks)
    pairs = set(zip(seen.prompts.tolist(), seen.clips.tolist(), strict=True))
    assert len(pairs) == len(seen.odds) == PROMPTS * max(1, round(share * CLIPS))
    assert len(set(np.bincount(seen.prompts).tolist())) == 1
    classes = np.bincount(TRUTH[seen.clips])
    assert abs(classes[0] - classes[1]) <= PROMPTS
    assert np.array_equal(seen.odds, relatives(1)[0][seen.prompts, seen.clips])


def test_what_was_seen_stays_as_it_was(monkeypatch):
    """All of it seen, every draw is the true leaderboard."""
    monkeypatch.setattr(forecast, "FITTED", 100)
    *bank, new = relatives(4)
    blocks = [(np.arange(PROMPTS), np.arange(CLIPS))]
    boards, true = (
        Forecast(np.array(bank), TRUTH).boards(heard(new, blocks), 0),
        leaderboard(new, TRUTH),
    )
    assert np.allclose(boards.plain, true.plain) and np.allclose(boards.tuned, true.tuned)


def test_a_few_evals_tell_the_order_and_intervals_hold_the_truth():
    inside, order, before = [], [], []
    for seed in range(4):
        *bank, new = relatives(5, seed)
        true = leaderboard(new, TRUTH).tuned
        blocks = spread(0.1, TRUTH, PROMPTS, np.random.default_rng(seed))
        drawn = Forecast(np.array(bank), TRUTH).boards(heard(new, blocks), seed).tuned
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        inside.append(np.mean((low <= true + 1e-9) & (true <= high + 1e-9)))
        order.append(stats.kendalltau(drawn.mean(axis=0), true).statistic)
        others = leaderboard(np.array(bank), TRUTH).tuned.mean(axis=0)
        before.append(stats.kendalltau(others, true).statistic)
    assert np.mean(inside) > 0.85
    assert np.mean(order) > np.mean(before) + 0.03 and np.mean(order) > 0.7


def test_equal_relatives_predict_themselves():
    one = relatives(1)[0]
    blocks = spread(0.1, TRUTH, PROMPTS, np.random.default_rng(0))
    boards = Forecast(np.array([one, one]), TRUTH).boards(heard(one, blocks), 0)
    assert np.abs(boards.plain - leaderboard(one, TRUTH).plain).max() < 0.05
