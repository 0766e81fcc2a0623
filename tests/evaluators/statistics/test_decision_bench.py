"""What tests/bench_decision.py compares is what it says: its p against the decision's own, scipy's and written out."""

import bench_decision as bench
import numpy as np
import pytest
from scipy import stats

from evaluators.statistics.compare import compare, resample
from evaluators.statistics.resampling import level_at_zero
from evaluators.targets import Predictions, Targets


def totals(half, seed=0, trials=6):
    rng = np.random.default_rng(seed)
    shape = bench.Shape("", (), ())
    return bench.Totals(half, bench.gained(shape, half, 0.05, 1, trials, rng)[:, 0])


def test_cr2_welch_is_the_decisions_and_the_bound_expanded_by_the_fewest_that_of_resamples(
    monkeypatch,
):
    """Answers of clips that have the drawn totals, through `compare`, on the same resamples."""
    half = bench.drawn_half(
        bench.Shape("", (10, 24), (9, 2), unequal=0.5), np.random.default_rng(3)
    )
    t = totals(half)
    index = np.repeat(np.arange(len(half.kind)), half.clips)
    place = np.arange(len(index)) - np.repeat(half.clips.cumsum() - half.clips, half.clips)
    truth = half.kind[index]
    ids = tuple(map(str, range(len(index))))
    clips = Targets(("x", "y"), ids, truth, np.array([f"{i:03d}" for i in index]))
    monkeypatch.setattr(bench, "DRAWS", 4000)

    class Seeded:
        def integers(self, below):
            return 0

    expanded, student = bench.expanded(t, Seeded())["fewest"], bench.cr2_welch(t)
    c = resample(clips)
    for i, total in enumerate(t.total):
        gains, losses = place < total[index], place < -total[index]
        a, b = (
            Predictions(n, clips, np.where(right, truth, 1 - truth))
            for n, right in (("a", ~losses), ("b", ~gains))
        )
        assert student[i] == pytest.approx(compare(a, b).p, abs=1e-9)
        draws = (c.balanced(a.right) - c.balanced(b.right)).draws
        assert expanded[i] == pytest.approx(level_at_zero(draws, c.fewest), abs=1e-6)


def test_with_one_clip_a_source_welchs_t_is_scipys_and_cr2_has_its_degrees_of_freedom():
    """The sum of two means is the difference of one and minus the other."""
    half = bench.Half(np.repeat([0, 1], [12, 30]), np.ones(42, int))
    t = totals(half, seed=1)
    first, second = t.total[:, :12], t.total[:, 12:]
    theirs = stats.ttest_ind(first, -second, axis=1, equal_var=False, alternative="greater")
    assert bench.welch(t) == pytest.approx(theirs.pvalue)
    assert bench.cr2_welch(t) == pytest.approx(theirs.pvalue)
    mean, half_variance = bench.moments(t, 0, alike=False)
    assert mean**2 / half_variance == pytest.approx(11)


def test_cr2_is_unbiased_where_clips_are_independent_and_has_the_moments_it_says():
    half = bench.Half(np.repeat([0, 1], [5, 6]), np.array([1, 2, 3, 9, 20, 1, 1, 4, 4, 5, 30]))
    rng = np.random.default_rng(0)
    t = bench.Totals(half, rng.normal(size=(40_000, 11)) * np.sqrt(half.clips))
    parts = t.variances(t.residual**2 / (1 - t.share))
    for k in half.kinds:
        mean, half_variance = bench.moments(t, k, alike=False)
        assert mean == pytest.approx(1 / (4 * t.n[k]))  # of half a mean of independent clips
        assert parts[:, k].mean() == pytest.approx(mean, rel=0.03)
        assert parts[:, k].var() == pytest.approx(2 * half_variance, rel=0.1)
    assert t.value.var() == pytest.approx(parts.sum(-1).mean(), rel=0.03)


def test_signs_are_studentised_as_they_would_be_one_draw_at_a_time(monkeypatch):
    half = bench.drawn_half(bench.Shape("", (6, 9), (4, 3), unequal=0.7), np.random.default_rng(5))
    t = totals(half, trials=4)
    monkeypatch.setattr(bench, "DRAWS", 60)
    for moved in (t.total, bench.restricted(t)):
        found = bench.by_signs(t, moved, np.random.default_rng(9))
        signs = np.random.default_rng(9).choice([-1.0, 1.0], (60, 15))

        def studentised(total):
            one = bench.Totals(half, total)
            return one.value / np.sqrt(
                (one.variances(one.residual**2) * one.s / (one.s - 1)).sum(-1)
            )

        large = sum(studentised(moved * s) >= studentised(t.total) - 1e-9 for s in signs)
        assert found == pytest.approx((1 + large) / 61)
    # What the constraint takes off gains nothing over the classes together.
    assert bench.Totals(half, bench.restricted(t)).value == pytest.approx(t.value)
    assert not np.allclose(bench.restricted(t), t.total)


def test_holm_decides_among_finalists_as_compare_many_does():
    p = np.array([[0.01, 0.02], [0.013, 0.02], [0.012, 0.03], [0.5, 0.001]])
    value = np.array([[1, 2], [9, 1], [1, 2], [5, 1]])
    assert bench.winners(p, value).tolist() == [1, -1, 0, 1]
