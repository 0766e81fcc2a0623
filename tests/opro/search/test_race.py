import numpy as np
import pytest
from conftest import LABELS
from hypothesis import given, settings
from hypothesis import strategies as st
from known_truth import KnownTruth

from evaluators.classifier import log_odds
from evaluators.fakes import FakeEvaluator
from evaluators.prompts import Prompt
from evaluators.splits import balanced_order, halves
from opro.search.forecast import basis, draw_margins
from opro.search.objective import Reward
from opro.search.race import FIRST, race

PROMPTS = [Prompt(f"Prompt {i}: A) speech B) not") for i in range(30)]
REWARDS = [
    Reward(objective, threshold)
    for objective in ("balanced_accuracy", "accuracy", "auroc", "nll", "worst_slice")
    for threshold in ("argmax", "dev")
]


@pytest.fixture(scope="module")
def half(dev_clips):
    clips = halves(balanced_order(dev_clips))[0]
    return clips, np.array([LABELS.index(c.label) for c in clips])


def exhaustive(evaluator, half, reward=REWARDS[0], prompts=PROMPTS):
    clips, truth = half
    return race(evaluator, prompts, clips, truth, reward, None)


def test_without_references_everything_is_scored_on_everything(half):
    clips, truth = half
    evaluator = KnownTruth()
    for prompt, result in zip(PROMPTS, exhaustive(evaluator, half), strict=True):
        logp = evaluator.score([prompt], clips).logp[0]
        assert np.array_equal(result.logp, logp) and result.judged is not None
        assert result.reward == Reward().judge(logp, truth, clips).reward and result.sd == 0


@pytest.mark.parametrize("make", [KnownTruth, lambda: KnownTruth(noise=2.0), FakeEvaluator])
def test_a_race_saves_evals_and_ends_with_a_prompt_as_good_as_the_best(half, make):
    clips, truth = half
    full = exhaustive(make(), half)
    evaluator = make()
    raced = race(
        evaluator, PROMPTS[3:], clips, truth, Reward(), np.stack([r.logp for r in full[:3]])
    )
    assert evaluator.forwards < 0.35 * len(raced) * len(clips)
    assert evaluator.forwards == sum(len(r.seen) for r in raced)
    finished = [r.reward for r in raced if r.judged] + [r.reward for r in full[:3]]
    assert max(finished) > max(r.reward for r in full) - 0.02


@pytest.mark.parametrize("reward", REWARDS, ids=str)
def test_what_a_race_finishes_equals_exhaustive_scoring(half, reward):
    clips, truth = half
    full = exhaustive(KnownTruth(), half, reward)
    order = sorted(range(len(PROMPTS)), key=lambda i: full[i].reward)
    known = np.stack([full[i].logp for i in order[:3]])
    rest = order[3:]
    raced = race(KnownTruth(), [PROMPTS[i] for i in rest], clips, truth, reward, known)
    finished = [(a, full[i]) for a, i in zip(raced, rest, strict=True) if a.judged]
    assert finished
    for a, b in finished:
        assert np.array_equal(a.logp, b.logp) and a.reward == b.reward and a.bias == b.bias
    for result in raced:
        assert len(set(result.seen)) == len(result.seen) == len(result.logp)
        assert result.judged or result.sd > 0


def test_rivals_in_another_order_end_the_same(half):
    clips, truth = half
    known = np.stack([r.logp for r in exhaustive(KnownTruth(), half)[:3]])
    there = race(KnownTruth(), PROMPTS[3:], clips, truth, Reward(), known)
    back = race(KnownTruth(), PROMPTS[:2:-1], clips, truth, Reward(), known)[::-1]
    for a, b in zip(there, back, strict=True):
        assert np.array_equal(a.seen, b.seen) and a.reward == b.reward and a.blocks == b.blocks


@settings(max_examples=30, deadline=None)
@given(budget=st.integers(0, 6000))
def test_a_race_never_asks_for_more_than_its_budget(half, budget):
    clips, truth = half
    evaluator = KnownTruth()
    known = evaluator.score(PROMPTS[:2], clips).logp
    evaluator.forwards = 0
    skipped = []
    race(
        evaluator,
        PROMPTS[2:],
        clips,
        truth,
        Reward(),
        known,
        lambda done, never: skipped.append(done + never),
        budget,
    )
    assert evaluator.forwards <= budget
    assert sum(skipped) == len(PROMPTS[2:]) * len(clips)  # the progress bar ends full


def test_no_candidate_races_on_when_it_can_no_longer_reach_the_best(half):
    clips, truth = half
    perfect = np.where(np.arange(2)[None] == truth[:, None], -0.01, -5).astype(np.float32)
    raced = race(KnownTruth(), PROMPTS, clips, truth, Reward(), perfect[None])
    assert all(len(r.seen) == FIRST and not r.judged for r in raced)


def test_forecasts_hold_what_they_say(half):
    """Intervals of 90 % hold nine times in ten, and the error is smaller than that of the mean of 16 clips."""
    clips, truth = half
    weights, sign = Reward().weights(truth), np.where(truth == 0, 1, -1)
    inside, error, plain = [], [], []
    for world in range(20):
        logp = KnownTruth(world).score(PROMPTS, clips).logp
        known = basis(logp[:3], truth)
        for one in logp[3:]:
            margin = log_odds(one.astype(float))
            drawn = draw_margins(known, np.arange(16), margin[:16])
            assert np.array_equal(drawn[:, :16], np.tile(margin[:16], (len(drawn), 1)))
            rewards = (weights * (drawn * sign > 0)).sum(axis=1)
            exact = float((weights * (margin * sign > 0)).sum())
            low, high = np.quantile(rewards, [0.05, 0.95])
            inside.append(low - 0.005 <= exact <= high + 0.005)
            error.append(rewards.mean() - exact)
            plain.append((margin[:16] * sign[:16] > 0).mean() - exact)
    assert 0.85 < np.mean(inside) < 0.97
    assert np.std(error) < 0.6 * np.std(plain)


def test_a_prompt_that_cannot_be_scored_fails_alone(half, pocket):
    clips, truth = half
    bad = Prompt("A or A", (("SPEECH", ("A",)), ("NONSPEECH", ("A",))))
    results = race(pocket, [PROMPTS[0], bad], clips[:5], truth[:5], Reward(), None)
    assert results[0].judged is not None and not results[0].error
    assert "begin with the same tokens" in results[1].error and results[1].judged is None


@pytest.mark.parametrize("reward", REWARDS, ids=str)
def test_every_reward_is_a_number_and_higher_for_the_truth(half, reward):
    clips, truth = half
    good = np.where(np.arange(2)[None] == truth[:, None], -0.01, -5).astype(np.float32)
    noisy = FakeEvaluator().score(PROMPTS[:1], clips).logp[0]
    assert reward.judge(good, truth, clips).reward > reward.judge(noisy, truth, clips).reward
    assert reward.judge(good, truth, clips).right.all()
