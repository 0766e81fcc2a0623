"""A soft prompt's training: repeatable, from the words on, and nothing but the vectors moves."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.soft import SoftScorer
from evaluators.errors import UserError
from evaluators.finetuning import soft_prompt
from evaluators.finetuning.soft_prompt import SoftRecipe, SoftTraining, _rate, train_soft
from evaluators.statistics.calibration import fit_shift

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module")
def scorer():
    return SoftScorer(open_checkpoint("pocket-base"), None, "cpu", "float32")


def test_the_loss_falls_the_weights_stay_and_parts_of_a_batch_add_up(
    scorer, train_clips, dev_clips, seeds
):
    start = scorer.words(seeds[0])
    clips, validation = train_clips[:8], dev_clips[:4]
    before = [p.clone() for p in scorer.decoder.model.parameters()]
    told = []
    found = [
        train_soft(SoftTraining(scorer, start, clips, validation, recipe), told.append)
        for recipe in (
            SoftRecipe(1, batch=4),
            SoftRecipe(1, batch=4, micro=3),
        )
    ]
    one, parts = found
    assert one.best.epoch == 1 and one.best.loss < one.curve[0].loss
    assert one.curve[0].train_loss is None and tuple(told[:2]) == one.curve
    for a, b in zip(one.curve, parts.curve, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-4)
    assert one.soft.vectors.shape == start.vectors.shape
    after = scorer.decoder.model.parameters()
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    scorer.soft = one.soft
    again = scorer.score([seeds[0]], validation).logp[0]
    truth = np.array([[k for k, _ in start.prompt.answers].index(c.label) for c in validation])
    share = {k: (truth == k).mean() for k in set(truth)}
    weight = np.array([1 / (len(share) * share[k]) for k in truth])
    bias = fit_shift(truth, again)
    odds = again[:, 0].astype(float) + bias - again[:, 1]
    loss = (weight * np.logaddexp(0, np.where(truth == 0, -odds, odds))).mean()
    assert loss == pytest.approx(one.best.loss, abs=1e-6)


def test_where_training_only_harms_the_words_are_kept(scorer, train_clips, dev_clips, seeds):
    start = scorer.words(seeds[0])
    other = {"SPEECH": "NONSPEECH", "NONSPEECH": "SPEECH"}
    wrong = [replace(clip, label=other[clip.label]) for clip in train_clips[:8]]
    found = train_soft(
        SoftTraining(scorer, start, wrong, dev_clips[:4], SoftRecipe(1, lr=1.0, batch=4))
    )
    assert found.curve[1].loss > found.curve[0].loss
    assert found.best.epoch == 0 and (found.soft.vectors == start.vectors).all()
    assert found.best.loss == min(epoch.loss for epoch in found.curve)


def test_a_batch_that_does_not_fit_is_taken_in_parts(
    scorer, train_clips, dev_clips, seeds, monkeypatch
):
    asked, real = [], soft_prompt.answer_logp

    def small(scorer, prompt, vectors, clips):
        asked.append(len(clips))
        if len(clips) > 2:
            raise torch.OutOfMemoryError
        return real(scorer, prompt, vectors, clips)

    start = scorer.words(seeds[0])
    training = SoftTraining(scorer, start, train_clips[:8], dev_clips[:2], SoftRecipe(1, batch=8))
    whole = train_soft(training)
    monkeypatch.setattr(soft_prompt, "answer_logp", small)
    parts = train_soft(training)
    assert asked == [8, 4, 2, 2, 2, 2]
    assert parts.curve[1].train_loss == pytest.approx(whole.curve[1].train_loss, abs=1e-5)
    assert parts.curve[1].loss == pytest.approx(whole.curve[1].loss, abs=1e-4)


def test_a_loss_that_is_no_number_ends_the_training(
    scorer, train_clips, dev_clips, seeds, monkeypatch
):
    monkeypatch.setattr(
        soft_prompt, "answer_logp", lambda s, p, vectors, clips: vectors.sum() * torch.full((len(clips), 2), torch.nan)
    )  # fmt: skip
    training = SoftTraining(
        scorer, scorer.words(seeds[0]), train_clips[:4], dev_clips[:4], SoftRecipe(1, batch=4)
    )
    with pytest.raises(UserError, match="lower --lr"):
        train_soft(training)


def test_the_rate_climbs_and_falls_to_nothing():
    rates = [_rate(step, 100, 0.1) for step in range(101)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == 1.0 and rates[100] == 0.0
    assert all(a <= b for a, b in pairwise(rates[:10]))
    assert all(a >= b for a, b in pairwise(rates[10:]))
