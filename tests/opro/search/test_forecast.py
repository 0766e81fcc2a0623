"""Forecasts: what a prompt would score on all clips, from those it was scored on."""

import numpy as np
import pytest
from known_truth import KnownTruth
from searches import clip_set, logp_of

from evaluators.classifier import among_labels, log_odds
from evaluators.prompts import Prompt
from evaluators.splits import halves
from opro.search import forecast
from opro.search.forecast import bases, draw_log_odds, draw_logp
from opro.search.objective import Objective


def basis(logp, truth):
    """That of two labels."""
    (found,) = bases(logp, truth)
    return found


PROMPTS = [Prompt(f"Prompt {i}: A) speech B) not") for i in range(30)]


@pytest.fixture(scope="module")
def half(dev_clips):
    return clip_set(halves(dev_clips)[0])


def worlds(half, count=8):
    """(basis of three references, log-odds of other prompts) of worlds of known truth."""
    truth = half.targets.truth
    for world in range(count):
        logp = KnownTruth(world).score(PROMPTS, half).logp
        yield basis(logp[:3], truth), log_odds(logp[3:].astype(float))


def test_forecasts_hold_what_they_say(half):
    """Intervals of 90 % hold nine times in ten, and the error is smaller than that of the mean of 16 clips."""
    truth = half.targets.truth
    weights, sign = Objective().weights(truth), np.where(truth == 0, 1, -1)
    inside, error, plain = [], [], []
    for known, others in worlds(half):
        for odds in others:
            drawn = draw_log_odds(known, np.arange(16), odds[:16])
            assert np.array_equal(drawn[:, :16], np.tile(odds[:16], (len(drawn), 1)))
            rewards = (weights * (drawn * sign > 0)).sum(axis=1)
            exact = float((weights * (odds * sign > 0)).sum())
            low, high = np.quantile(rewards, [0.05, 0.95])
            inside.append(low - 0.005 <= exact <= high + 0.005)
            error.append(rewards.mean() - exact)
            plain.append((odds[:16] * sign[:16] > 0).mean() - exact)
    assert 0.85 < np.mean(inside) < 0.97
    assert np.std(error) < 0.6 * np.std(plain)


def test_more_clips_leave_less_to_be_drawn(half):
    known, others = next(worlds(half, 1))
    spread = []
    for count in (8, 32, 100):
        drawn = draw_log_odds(known, np.arange(count), others[0][:count])
        spread.append(drawn[:, 100:].std(axis=0).mean())
    assert spread[0] > spread[1] > 0 and spread[2] > 0


def test_a_single_clip_is_as_unsure_as_its_forecast_says(half):
    """The noise of prompt and clip together is drawn too, not only what the references tell."""
    inside = []
    for known, others in worlds(half, 3):
        for odds in others:
            drawn = draw_log_odds(known, np.arange(64), odds[:64])[:, 64:]
            low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
            inside.append(((low <= odds[64:]) & (odds[64:] <= high)).mean())
    assert 0.8 < np.mean(inside) < 0.97


def test_scores_stay_whichever_clips_they_are_of_and_draws_do_not_depend_on_anything_else(half):
    known, others = next(worlds(half, 1))
    seen = np.array([7, 3, 150, 20, 99, 4])
    drawn = draw_log_odds(known, seen, others[0][seen])
    assert drawn.shape == (forecast.DRAWS, len(half))
    assert np.array_equal(drawn[:, seen], np.tile(others[0][seen], (len(drawn), 1)))
    assert np.array_equal(drawn, draw_log_odds(known, seen, others[0][seen]))
    assert len(np.unique(drawn[:, 0])) == forecast.DRAWS


@pytest.mark.parametrize("first", [0, 40])
def test_a_prompt_that_answers_as_the_references_do_is_forecast_nearly_exactly(half, first):
    truth, seen = half.targets.truth, np.arange(first, first + 24)
    odds = log_odds(KnownTruth().score(PROMPTS[:1], half).logp[0].astype(float))
    known = basis(logp_of([odds]), truth)
    drawn = draw_log_odds(known, seen, 2 * odds[seen] + 1)
    assert np.abs(drawn.mean(axis=0) - (2 * odds + 1)).max() < 0.2
    blind = draw_log_odds(basis(np.zeros((0, len(half), 2)), truth), seen, 2 * odds[seen] + 1)
    others = np.delete(np.arange(len(half)), seen)
    assert blind.std(axis=0)[others].mean() > 10 * drawn.std(axis=0)[others].mean()


def test_what_the_references_differ_in_comes_first_after_their_mean(half):
    rng = np.random.default_rng(0)
    mean, more = rng.normal(0, 2, len(half)), rng.normal(0, 0.5, len(half))
    found = basis(logp_of([mean + more, mean - more]), half.targets.truth).features
    assert abs(np.corrcoef(found[:, 3], more)[0, 1]) == pytest.approx(1)
    shift = log_odds(logp_of([mean, mean + more, mean + 2 * more]).astype(float))
    found = basis(logp_of(shift), half.targets.truth).features
    assert abs(np.corrcoef(found[:, 3], more)[0, 1]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("references", "columns"), [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (9, 6)]
)
def test_a_basis_has_a_mean_and_at_most_three_directions(half, references, columns):
    truth = half.targets.truth
    logp = KnownTruth().score(PROMPTS, half).logp[:references]
    found = basis(logp, truth)
    assert found.features.shape == (len(half), columns) and found.ridge.shape == (columns,)
    assert (found.features[:, 0] == 1).all() and (found.ridge > 0).all()
    assert np.array_equal(found.features[:, 1], np.where(truth == 0, 1, -1))
    if references:
        mean = log_odds(logp.astype(float)).mean(axis=0)
        assert np.corrcoef(found.features[:, 2], mean)[0, 1] == pytest.approx(1)
        assert found.features[:, 2:].mean(axis=0) == pytest.approx(0, abs=1e-6)
        assert found.features[:, 2:].std(axis=0) == pytest.approx(1, abs=1e-6)


def four_way(seed, clips=200, prompts=12):
    """(``[prompt, clip, label]`` nats of prompts that mostly agree about clips, truth)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, clips)
    common = rng.normal(0, 1.2, (clips, 4)) + 1.8 * np.eye(4)[truth]
    each = rng.uniform(0.5, 1.5, (prompts, 1, 1)) * common + rng.normal(0, 0.7, (prompts, 1, 4))
    return among_labels(each + rng.normal(0, 0.6, each.shape)), truth


def test_forecasts_of_four_labels_hold_what_they_say_and_sum_to_one():
    inside, error, plain = [], [], []
    for seed in range(6):
        logp, truth = four_way(seed)
        weights, seen = Objective().weights(truth), np.arange(24)
        known = bases(logp[:3].astype(np.float32), truth)
        for one in logp[3:]:
            drawn = draw_logp(known, seen, one[seen])
            assert drawn.shape == (forecast.DRAWS, len(truth), 4)
            assert np.allclose(drawn[:, seen], one[seen], atol=1e-9)
            assert np.allclose(np.exp(drawn).sum(-1), 1)
            rewards = (weights * (drawn.argmax(-1) == truth)).sum(axis=1)
            exact = float((weights * (one.argmax(-1) == truth)).sum())
            low, high = np.quantile(rewards, [0.05, 0.95])
            inside.append(low - 0.005 <= exact <= high + 0.005)
            error.append(rewards.mean() - exact)
            plain.append((one[seen].argmax(-1) == truth[seen]).mean() - exact)
    assert np.mean(inside) > 0.8
    assert np.std(error) < 0.7 * np.std(plain)


def test_without_references_each_label_knows_its_own_clips():
    truth = np.array([0, 1, 2, 3] * 5)
    for k, one in enumerate(bases(np.zeros((0, 20, 4), np.float32), truth)):
        assert np.array_equal(one.features[:, 1], np.where(truth == k, 1, -1))


def test_two_labels_are_forecast_as_their_log_odds_are(half):
    truth, seen = half.targets.truth, np.arange(32)
    logp = KnownTruth().score(PROMPTS[:5], half).logp
    drawn = draw_logp(bases(logp[:4], truth), seen, logp[4][seen])
    odds = draw_log_odds(basis(logp[:4], truth), seen, log_odds(logp[4][seen].astype(float)))
    assert np.allclose(log_odds(drawn), odds)
