import numpy as np
import pytest
from conftest import LABELS

from evaluators.clips import balanced_order, halves
from evaluators.fakes import FakeEvaluator
from evaluators.prompts import Prompt
from opro.race import blocks_of, race
from opro.reward import Reward

PROMPTS = [Prompt(f"Prompt {i}: A) speech B) not") for i in range(30)]


@pytest.fixture(scope="module")
def half(dev_clips):
    clips = halves(balanced_order(dev_clips))[0]
    return clips, np.array([LABELS.index(c.label) for c in clips])


def test_blocks_cover_all_clips_once():
    for count in (1, 4, 7, 200, 1003):
        index = [i for b in blocks_of(count) for i in range(count)[b]]
        assert index == list(range(count))


def test_a_race_saves_evals_and_keeps_the_winner(half):
    clips, truth = half
    reward = Reward()
    full = race(FakeEvaluator(), PROMPTS, clips, truth, reward, None)
    rewards = [r.judged.reward for r in full]
    incumbent = int(np.argsort(rewards)[len(rewards) // 2])
    evaluator = FakeEvaluator()
    raced = race(evaluator, PROMPTS, clips, truth, reward, full[incumbent].judged.right)
    assert evaluator.forwards < 0.75 * len(PROMPTS) * len(clips)
    best = int(np.argmax(rewards))
    assert not raced[best].dropped and raced[best].judged.reward == rewards[best]


def test_the_score_of_a_prompt_does_not_depend_on_its_rivals(half):
    clips, truth = half
    incumbent = race(FakeEvaluator(), PROMPTS[:1], clips, truth, Reward(), None)[0].judged.right
    together = race(FakeEvaluator(), PROMPTS, clips, truth, Reward(), incumbent)
    for i in (1, 5, 9):
        alone = race(FakeEvaluator(), [PROMPTS[i]], clips, truth, Reward(), incumbent)[0]
        assert np.array_equal(alone.logp, together[i].logp) and alone.blocks == together[i].blocks


def test_a_prompt_that_cannot_be_scored_fails_alone(half, pocket):
    clips, truth = half
    bad = Prompt("A or A", (("SPEECH", ("A",)), ("NONSPEECH", ("A",))))
    results = race(pocket, [PROMPTS[0], bad], clips[:5], truth[:5], Reward(), None)
    assert results[0].judged is not None and not results[0].error
    assert "begin with the same tokens" in results[1].error and results[1].judged is None


@pytest.mark.parametrize(
    "objective", ["balanced_accuracy", "accuracy", "auroc", "nll", "worst_slice"]
)
@pytest.mark.parametrize("threshold", ["argmax", "dev"])
def test_every_reward_is_a_number_and_higher_for_the_truth(half, objective, threshold):
    clips, truth = half
    reward = Reward(objective, threshold)
    good = np.where(np.arange(2)[None] == truth[:, None], -0.01, -5).astype(np.float32)
    noisy = FakeEvaluator().score(PROMPTS[:1], clips).logp[0]
    assert reward.judge(good, truth, clips).reward > reward.judge(noisy, truth, clips).reward
    assert reward.judge(good, truth, clips).right.all()
