"""Racing: who is scored on which clips, and who leaves."""

import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from known_truth import KnownTruth
from scipy import stats
from searches import Told, clip, clip_set, logp_of

from evaluators.cache import CachedEvaluator
from evaluators.classifier import log_odds
from evaluators.fakes import FakeEvaluator
from evaluators.prompts import Prompt
from evaluators.splits import balanced_order, halves
from opro.search.forecast import bases, draw_log_odds
from opro.search.objective import Measured, Objective
from opro.search.race import FIRST_BLOCK, Entry, Race

PROMPTS = [Prompt(f"Prompt {i}: A) speech B) not") for i in range(30)]
OBJECTIVES = [
    Objective(name, threshold)
    for name in ("balanced_accuracy", "accuracy", "auroc", "nll", "worst_slice")
    for threshold in ("argmax", "dev")
]


def told(odds, clips, bad=lambda number, place: False):
    """An evaluator that answers `odds` ``[prompt number][clip]``."""
    number = {p: i for i, p in enumerate(PROMPTS)}
    of = dict(zip(PROMPTS, odds, strict=False))
    return Told(of, clips, lambda prompt, place: bad(number[prompt], place))


def asked(evaluator):
    """(prompt numbers, places of clips) of each call."""
    return [([PROMPTS.index(p) for p in prompts], place) for prompts, place in evaluator.asked]


def raced(
    evaluator,
    half,
    objective=OBJECTIVES[0],
    prompts=PROMPTS,
    known=None,
    first=FIRST_BLOCK,
    evals=math.inf,
    **more,
):
    """Entries of a race; without `known` everything is scored on everything."""
    return Race(evaluator, half, objective, known, first, **more).run(prompts, evals)


def kept(rivals, best=0.0, truth=(0, 1, 0, 1), objective=OBJECTIVES[0]):
    """Who races on of rivals ``(forecast, sd)`` or ``(forecast, sd, right on the first clips)``; `best` is a reward."""
    entries = []
    for forecast, sd, *right in rivals:
        right = np.array(right[0] if right else [], float)
        chance = np.concatenate([right, np.full(len(truth) - len(right), 0.5)])
        logp = np.zeros((len(right), 2), np.float32)
        entries.append(Entry(np.arange(len(right)), logp, forecast, sd, chance))
    clips = clip_set(clip(i, t) for i, t in enumerate(truth))
    measured = Measured(best, np.ones(len(truth), bool), 0.0, 0.0, 0.5, None)
    return Race(None, clips, objective)._keep(entries, range(len(entries)), measured)


def in_turns(waiting, chances, truth):
    """The order in which clips come, by each entry's chance of being right about every clip."""
    clips = clip_set(clip(i, t) for i, t in enumerate(truth))
    none = np.zeros(0, np.int64), np.zeros((0, 2), np.float32)
    entries = [Entry(*none, p_correct=np.asarray(c, float)) for c in chances]
    return list(Race(None, clips, OBJECTIVES[0])._doubtful_first(np.array(waiting), entries))


@pytest.fixture(scope="module")
def half(dev_clips):
    return clip_set(halves(balanced_order(dev_clips))[0])


@pytest.fixture(scope="module")
def references(half):
    return np.stack([r.logp for r in raced(KnownTruth(), half, prompts=PROMPTS[:3])])


def some(half, count):
    return half.first(count)


def skilled(truth, shares, seed=0):
    """Log-odds of prompts that are right on such shares of clips."""
    rng = np.random.default_rng(seed)
    sign = np.where(truth == 0, 1.0, -1.0)
    return [
        sign * np.where(rng.random(len(truth)) < s, 1, -1) * rng.uniform(0.5, 3, len(truth))
        for s in shares
    ]


# ---- who leaves


def test_at_most_half_race_on_the_best_and_one_more_of_an_odd_number():
    rivals = [(0.5 + i / 1000, 0.2) for i in range(7)]
    assert kept(rivals) == [3, 4, 5, 6]
    assert kept(rivals[::-1]) == [0, 1, 2, 3]
    assert kept(rivals[:2]) == [1] and kept(rivals[:1]) == [0]


def test_who_is_worse_than_the_leader_for_sure_leaves():
    """At one-sided 10 %, of the spread of both forecasts together."""
    reach = stats.norm.ppf(0.9) * math.hypot(0.03, 0.04)
    third = (0.1, 0.0)
    fourth = (0.0, 0.0)
    for gap, stays in ((0.98 * reach, [0, 1]), (1.02 * reach, [0])):
        assert kept([(0.8, 0.04), (0.8 - gap, 0.03), third, fourth]) == stays
    assert kept([(0.8, 0.0), (0.8, 0.0), third, fourth]) == [0, 1]


def test_who_is_worse_than_the_best_reference_for_sure_leaves_be_it_the_leader():
    """A gain of half a point must be possible at one-sided 10 %."""
    reach = stats.norm.ppf(0.9) * 0.05
    for short, stays in ((0.98 * reach, [0]), (1.02 * reach, [])):
        assert kept([(0.705 - short, 0.05)], best=0.7) == stays
    assert kept([(0.7, 0.0)], best=0.7) == []
    assert kept([(0.703, 0.0)], best=0.7) == [] and kept([(0.71, 0.0)], best=0.7) == [0]
    assert kept([(0.9, 0.0), (0.71, 0.5), (0, 0), (0, 0)], best=0.7) == [0, 1]


def test_who_cannot_reach_the_best_with_all_open_clips_right_leaves_however_good_its_forecast():
    truth = [0, 0, 0, 0, 1, 1]  # a clip of the second label weighs 1/4, of the first 1/8
    wrong = (0.99, 0.5, [1, 0, 1, 1, 0])  # at best 1 - 1/8 - 1/4
    assert kept([wrong], 0.625, truth) == [0]
    assert kept([wrong], 0.63, truth) == []
    assert kept([wrong], 0.66, truth, Objective("accuracy")) == [0]  # at best 4/6
    assert kept([wrong], 0.67, truth, Objective("accuracy")) == []


@pytest.mark.parametrize("objective", [r for r in OBJECTIVES if not r.sums_hits], ids=str)
def test_a_reward_that_is_no_sum_over_clips_has_no_such_bound(objective):
    assert kept([(0.99, 0.5, [0, 0, 0])], 0.9, objective=objective) == [0]


def test_nobody_stays_of_nobody():
    assert kept([]) == []


# ---- which clips come next


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=20), st.data()
)
def test_the_clips_most_in_doubt_come_next_the_labels_in_turns(rows, data):
    """In doubt is a clip whose mean chance of a right answer is near one half."""
    truth = [label for label, _ in rows]
    mean = np.array([chance / 4 for _, chance in rows])
    waiting = data.draw(st.permutations(range(len(rows))))
    waiting = waiting[: data.draw(st.integers(1, len(rows)))]
    aside = np.minimum(mean, 1 - mean) * data.draw(st.sampled_from([0, 0.5]))
    found = in_turns(waiting, [mean - aside, mean + aside], truth)
    own = [
        sorted((c for c in waiting if truth[c] == k), key=lambda c: abs(mean[c] - 0.5))
        for k in (0, 1)
    ]
    assert sorted(found) == sorted(waiting)
    for k in (0, 1):
        assert [c for c in found if truth[c] == k] == own[k]  # of equal doubt the order given
    for turn in range(min(map(len, own))):
        assert set(found[2 * turn : 2 * turn + 2]) == {own[0][turn], own[1][turn]}


def test_after_the_first_block_those_left_hear_what_they_are_least_sure_of(half, references):
    part = some(half, 100)
    truth = part.targets.truth
    known = references[:, :100] * 0.2
    evaluator = told(skilled(truth, [0.9, 0.95, 0.3, 0.3]), part)
    stopped = raced(evaluator, part, prompts=PROMPTS[:4], known=known, first=10, evals=40)
    evaluator.asked.clear()
    raced(evaluator, part, prompts=PROMPTS[:4], known=known, first=10)
    (everyone, block), (left, second), *_ = asked(evaluator)
    assert everyone == [0, 1, 2, 3] and block == list(range(10)) and len(left) <= 2
    chances = [stopped[p].p_correct for p in left]
    assert second == in_turns(range(10, 100), chances, truth)[:10]


@pytest.mark.parametrize(
    ("count", "first", "blocks"),
    [
        (100, 10, [10, 10, 20, 40, 20]),
        (99, 10, [10, 10, 20, 59]),  # less than half as much again is heard at once
        (24, 10, [10, 14]),
        (25, 10, [10, 10, 5]),
        (8, 10, [8]),
        (70, None, [32, 38]),
    ],
)
def test_each_block_is_as_long_as_all_before_it(half, count, first, blocks):
    part = some(half, count)
    truth = part.targets.truth
    evaluator = told(skilled(truth, [1.0]), part)
    poor = logp_of(skilled(truth, [0.2, 0.3], 5))
    more = {} if first is None else {"first": first}
    (result,) = raced(evaluator, part, prompts=PROMPTS[:1], known=poor, **more)
    assert [len(place) for _, place in asked(evaluator)] == blocks
    assert sorted(c for _, place in asked(evaluator) for c in place) == list(range(count))
    assert result.measured is not None and len(result.blocks) == len(blocks)


# ---- what a race leaves


def test_without_references_everything_is_scored_on_everything(half):
    part = some(half, 60)
    truth = part.targets.truth
    evaluator = told(skilled(truth, [0.9, 0.1, 0.5]), part)
    results = raced(evaluator, part, prompts=PROMPTS[:3])
    assert asked(evaluator) == [([0, 1, 2], list(range(60)))]
    for p, result in enumerate(results):
        logp = logp_of(evaluator.odds[PROMPTS[p]])
        own = OBJECTIVES[0].measure(logp, part)
        assert np.array_equal(result.logp, logp) and result.measured is not None
        assert (result.reward, result.sd, result.blocks) == (own.reward, 0, (own.reward,))


@pytest.mark.parametrize("finishes", [True, False])
def test_every_score_belongs_to_the_clip_that_was_heard(half, references, finishes):
    """Clips are heard in another order than they stand; who finishes has seen them in order, with its own scores."""
    part = some(half, 100)
    truth = part.targets.truth
    shares = [0.98, 0.97, 0.6, 0.65, 0.7, 0.55]
    evaluator = told(skilled(truth, shares), part)
    results = raced(evaluator, part, prompts=PROMPTS[:6], known=references[:, :100] * 0.3, first=10)
    found = [r for r in results if (r.measured is not None) == finishes]
    assert found
    for p, result in enumerate(results):
        heard = [c for numbers, place in asked(evaluator) if p in numbers for c in place]
        assert np.array_equal(result.logp, logp_of(evaluator.odds[PROMPTS[p]])[result.scored])
        if result.measured is None:
            assert list(result.scored) == heard and len(heard) < 100
        else:
            assert list(result.scored) == list(range(100)) == sorted(heard) != heard
            own = OBJECTIVES[0].measure(logp_of(evaluator.odds[PROMPTS[p]]), part)
            assert (result.reward, result.sd) == (own.reward, 0.0)
            assert (result.measured.right == own.right).all()
            assert (result.p_correct == own.right).all() and result.blocks[-1] == own.reward


@pytest.mark.parametrize("objective", [OBJECTIVES[0], OBJECTIVES[3], OBJECTIVES[1]], ids=str)
def test_who_is_dropped_keeps_a_forecast_of_its_reward_with_its_spread(half, references, objective):
    part = some(half, 60)
    truth = part.targets.truth
    known = references[:, :60]
    evaluator = told(skilled(truth, [0.9, 0.8, 0.5, 0.4]), part)
    results = raced(evaluator, part, objective, PROMPTS[:4], known, first=12)
    dropped = [(p, r) for p, r in enumerate(results) if r.measured is None and len(r.scored) == 12]
    assert len(dropped) >= 2
    for p, result in dropped:
        drawn = draw_log_odds(
            bases(known, truth)[0], result.scored, log_odds(result.logp.astype(float))
        )
        outcomes = [objective.measure(logp_of(m).astype(float), part) for m in drawn]
        rewards = [o.reward for o in outcomes]
        assert result.reward == pytest.approx(np.mean(rewards), abs=1e-6)
        assert result.sd == pytest.approx(np.std(rewards), abs=1e-6)
        assert result.p_correct == pytest.approx(
            np.mean([o.right for o in outcomes], axis=0), abs=1e-6
        )
        assert result.bias == pytest.approx(np.mean([o.bias for o in outcomes]), abs=1e-5)
        assert result.blocks == (result.reward,)
        if objective.threshold == "argmax":
            right = (np.asarray(evaluator.odds[PROMPTS[p]]) > 0) == (truth == 0)
            assert (result.p_correct[:12] == right[:12]).all()


@pytest.mark.parametrize("make", [KnownTruth, lambda: KnownTruth(noise=2.0), FakeEvaluator])
def test_a_race_saves_evals_and_ends_with_a_prompt_as_good_as_the_best(half, make):
    full = raced(make(), half)
    evaluator = make()
    known = np.stack([r.logp for r in full[:3]])
    results = raced(evaluator, half, prompts=PROMPTS[3:], known=known)
    assert evaluator.forwards < 0.35 * len(results) * len(half)
    assert evaluator.forwards == sum(len(r.scored) for r in results)
    finished = [r.reward for r in results if r.measured] + [r.reward for r in full[:3]]
    assert max(finished) > max(r.reward for r in full) - 0.02


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_what_a_race_finishes_equals_exhaustive_scoring(half, objective):
    part = some(half, 60)
    full = raced(KnownTruth(), part, objective, PROMPTS[:8])
    order = sorted(range(8), key=lambda i: full[i].reward)
    known = np.stack([full[i].logp for i in order[:3]])
    rest = order[3:]
    results = raced(KnownTruth(), part, objective, [PROMPTS[i] for i in rest], known, first=16)
    finished = [(a, full[i]) for a, i in zip(results, rest, strict=True) if a.measured]
    assert finished
    for a, b in finished:
        assert np.array_equal(a.logp, b.logp) and a.reward == b.reward and a.bias == b.bias
        own = objective.measure(b.logp, part)
        assert (a.reward, a.bias) == (own.reward, own.bias)
    for result in results:
        assert len(set(result.scored)) == len(result.scored) == len(result.logp)
        assert (result.measured is not None) == (len(result.scored) == 60)


def test_rivals_in_another_order_end_the_same(half, references):
    part, known = some(half, 120), references[:, :120]
    there = raced(KnownTruth(), part, prompts=PROMPTS[3:15], known=known, first=16)
    back = raced(KnownTruth(), part, prompts=PROMPTS[14:2:-1], known=known, first=16)[::-1]
    for a, b in zip(there, back, strict=True):
        assert np.array_equal(a.scored, b.scored) and a.reward == b.reward and a.blocks == b.blocks


def test_the_best_reference_is_the_first(half):
    part = some(half, 60)
    truth = part.targets.truth
    perfect, poor = np.where(truth == 0, 3.0, -3.0), skilled(truth, [0.2], 8)[0]
    evaluator = told(skilled(truth, [0.9]), part)
    for known, finishes in (((perfect, poor), False), ((poor, perfect), True)):
        (result,) = raced(evaluator, part, prompts=PROMPTS[:1], known=logp_of(known), first=20)
        assert (result.measured is not None) == finishes


def test_no_candidate_races_on_when_it_can_no_longer_reach_the_best(half):
    truth = half.targets.truth
    perfect = np.where(np.arange(2)[None] == truth[:, None], -0.01, -5).astype(np.float32)
    results = raced(KnownTruth(), half, known=perfect[None])
    assert all(len(r.scored) == FIRST_BLOCK and not r.measured for r in results)


def test_no_prompts_need_no_evals(half, references):
    evaluator = KnownTruth()
    assert raced(evaluator, half, prompts=[], known=references) == [] and evaluator.forwards == 0


# ---- the budget


@settings(max_examples=12, deadline=None)
@given(evals=st.integers(-200, 700), count=st.integers(1, 8))
@example(evals=-40, count=8)  # spent before the race began
def test_a_race_never_asks_for_more_than_its_budget(half, references, evals, count):
    part = some(half, 100)
    evaluator, shown = KnownTruth(), []
    results = raced(
        evaluator, part, prompts=PROMPTS[3 : 3 + count], known=references[:, :100], first=16,
        advance=lambda done, never: shown.append((done, never)), evals=evals,
    )  # fmt: skip
    assert evaluator.forwards <= max(0, evals)
    assert evaluator.forwards == sum(len(r.scored) for r in results) == sum(d for d, _ in shown)
    assert sum(d + n for d, n in shown) == count * 100  # the progress bar ends full
    assert all(d >= 0 and n >= 0 for d, n in shown)
    assert evaluator.forwards >= min(max(0, evals) // 16, count) * 16  # what it covers is used


def test_a_budget_that_covers_some_goes_to_the_best_forecasts(half):
    part = some(half, 60)
    truth = part.targets.truth
    evaluator = told(skilled(truth, [0.6, 0.9, 0.7, 0.98]), part)
    known = logp_of(skilled(truth, [0.3, 0.25], 7))
    one, two = (
        raced(evaluator, part, prompts=PROMPTS[:4], known=known, first=10, evals=b)
        for b in (40, 50)
    )
    best = int(np.argmax([r.reward for r in one]))
    assert [len(r.scored) for r in one] == [10] * 4
    assert best == 3 and [len(r.scored) for r in two] == [20 if p == best else 10 for p in range(4)]


def test_a_budget_that_covers_few_goes_to_the_first(half, references):
    part = some(half, 60)
    results = raced(
        KnownTruth(), part, prompts=PROMPTS[3:8], known=references[:, :60], first=10, evals=29
    )
    assert [len(r.scored) for r in results] == [10, 10, 0, 0, 0]
    for result in results[2:]:  # nothing is known of who heard nothing
        assert math.isnan(result.reward) and result.sd == result.bias == 0 and not result.error
        assert not len(result.p_correct) and result.blocks == () and result.measured is None


# ---- prompts that cannot be scored


def test_a_prompt_that_cannot_be_scored_fails_alone(half, references):
    part = some(half, 60)
    truth = part.targets.truth
    margin = skilled(truth, [0.9, 0.8, 0.7, 0.95])
    good = [0, 2, 3]
    alone = raced(
        told(margin, part), part, prompts=[PROMPTS[p] for p in good], known=references[:, :60]
    )
    evaluator = told(margin, part, bad=lambda number, place: number == 1)
    results = raced(evaluator, part, prompts=PROMPTS[:4], known=references[:, :60])
    assert results[1].error == f"{PROMPTS[1].text} cannot be scored"
    assert results[1].measured is None and len(results[1].scored) == 0
    for p, other in zip(good, alone, strict=True):
        assert not results[p].error and results[p].reward == other.reward
        assert np.array_equal(results[p].scored, other.scored)


def test_a_prompt_that_fails_later_keeps_what_it_has(half):
    part = some(half, 60)
    truth = part.targets.truth
    known = logp_of(skilled(truth, [0.3, 0.25], 7))
    evaluator = told(skilled(truth, [0.9, 0.95]), part, lambda p, c: p == 1 and c == 40)
    results = raced(evaluator, part, prompts=PROMPTS[:2], known=known, first=10)
    assert results[1].error and results[1].measured is None and 10 <= len(results[1].scored) < 60
    assert not results[0].error


@settings(max_examples=12, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 59)), max_size=6), st.integers(0, 400))
def test_after_a_prompt_that_cannot_be_scored_nothing_is_asked_for_twice(half, faults, evals):
    """Not by the usage that a cache tells either; whoever can be scored is, and the display ends at its total."""
    part = some(half, 60)
    truth = part.targets.truth
    known = logp_of(skilled(truth, [0.3, 0.25], 7))
    inner = told(
        skilled(truth, [0.9, 0.95, 0.6, 0.8, 0.7, 0.5]), part, lambda p, c: (p, c) in faults
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        evaluator, shown = CachedEvaluator(inner, Path(folder)), []
        results = raced(
            evaluator, part, prompts=PROMPTS[:6], known=known, first=10, evals=evals,
            advance=lambda done, never: shown.append((done, never)),
        )  # fmt: skip
        evaluator.close()
    pairs = [(p, c) for prompts, place in asked(inner) for p in prompts for c in place]
    assert len(pairs) == len(set(pairs)) == sum(len(r.scored) for r in results) <= evals
    assert evaluator.usage.requested == evaluator.usage.forward == len(pairs)
    assert sum(d + n for d, n in shown) == 6 * 60
    for p, result in enumerate(results):
        assert bool(result.error) <= any(p == q for q, _ in faults)
        assert np.array_equal(result.logp, logp_of(inner.odds[PROMPTS[p]])[result.scored])
    bad_at_once = {p for p, c in faults if c < 10}
    for p, result in enumerate(results[: evals // 10]):
        assert (len(result.scored) == 0) == (p in bad_at_once)


def test_another_fault_stops_the_race(half):
    class Broken(KnownTruth):
        def score(self, prompts, clips):
            raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="device is gone"):
        raced(Broken(), some(half, 10), prompts=PROMPTS[:2])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_reward_is_a_number_and_higher_for_the_truth(half, objective):
    truth = half.targets.truth
    good = np.where(np.arange(2)[None] == truth[:, None], -0.01, -5).astype(np.float32)
    noisy = FakeEvaluator().score(PROMPTS[:1], half).logp[0]
    assert objective.measure(good, half).reward > objective.measure(noisy, half).reward
    assert objective.measure(good, half).right.all()
