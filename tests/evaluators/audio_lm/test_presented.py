"""The scorer gives a clip as its prompt says: as the stock model scores it, and once for all prompts that share it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import evaluator_with, noise, random_model, stock_scores

from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.memory import Shape
from evaluators.audio_lm.stock import StockModel
from evaluators.audio_lm.tower import AudioTower
from evaluators.cache import CachedEvaluator
from evaluators.errors import PromptError
from evaluators.finetuning.samples import tokenize_prompts
from evaluators.orders import BothOrders
from evaluators.presentation import AS_IS, Presentation
from evaluators.prompts import Prompt

pytestmark = pytest.mark.tiny
CLOSE = 1e-5  # nats, float32
WAYS = [
    AS_IS,
    Presentation(repeat_to_ms=900),
    Presentation(pad_to_ms=1000, pad="noise", gain="rms", level_dbfs=-20.0),
    Presentation(text_first=True),
    Presentation(pad_to_ms=1000, text_first=True),
]
WORDINGS = [
    Prompt("Is it speech?\nA) yes\nB) no"),
    Prompt("Is it speech?\nA) yes\nB) no", system="Listen."),
    Prompt("?", (("SPEECH", ("human speech",)), ("NONSPEECH", ("other sounds", "noise")))),
]
ASKED = [replace(prompt, presentation=how) for how in WAYS for prompt in WORDINGS]


@pytest.fixture(scope="module")
def small(dev_clips, tmp_path_factory):
    """(model, processor, clips of four lengths, one of them silent)."""
    model, processor = random_model(1)
    folder = tmp_path_factory.mktemp("presented")
    made = [noise(folder, dev_clips[0], n, s) for n, s in enumerate([3200, 8000, 4801])]
    return model, processor, [*made, replace(made[0], audio="silence")]


@pytest.fixture(scope="module")
def table(small):
    model, processor, clips = small
    return evaluator_with(model, processor).score(ASKED, clips)


def test_scores_are_those_of_the_stock_model_on_what_is_presented(small, table):
    model, processor, clips = small
    stock = StockModel(model, processor, torch.device("cpu"))
    truth = np.array([[stock_scores(stock, p, c) for c in clips[::3]] for p in ASKED])
    assert np.abs(table.logp[:, ::3] - truth[:, :, 0]).max() < CLOSE
    assert np.abs(table.logp_top[:, ::3] - truth[:, :, 1]).max() < CLOSE
    spread = np.ptp(table.logp.reshape(len(WAYS), -1), axis=0).max()
    assert spread > 0.01  # the model hears the difference


@pytest.mark.parametrize("store_bytes", [None, 2.0**17])
def test_together_and_one_by_one_in_any_order_and_with_little_room_are_equal(
    small, table, store_bytes
):
    model, processor, clips = small
    scorer = evaluator_with(
        model, processor, Shape(256, 64, 64) if store_bytes else None, store_bytes=store_bytes
    )
    shuffled = scorer.score(ASKED[::-1], clips[::-1])
    assert np.abs(shuffled.logp[::-1, ::-1] - table.logp).max() < CLOSE
    for i in (4, 7, 10):
        alone = scorer.score([ASKED[i]], clips[1:2])
        assert np.abs(alone.logp[0, 0] - table.logp[i, 1]).max() < CLOSE


def test_what_is_cached_is_what_is_scored_by_scores_and_by_features(small, table, tmp_path):
    model, processor, clips = small
    scorer = evaluator_with(model, processor, features=tmp_path / "features")
    cached = BothOrders(CachedEvaluator(scorer, tmp_path / "scores"))
    first = cached.score(ASKED, clips)
    assert np.abs(first.logp - table.logp).max() < CLOSE and cached.count_missing(ASKED, clips) == 0
    sounds = {how.sound for how in WAYS}
    files = list((tmp_path / "features").rglob("*.npy"))
    assert len(files) == len(sounds) * len(clips)
    again = cached.score(ASKED, clips)
    assert np.array_equal(again.logp, first.logp) and cached.usage.forward == len(ASKED) * len(
        clips
    )
    stored = evaluator_with(model, processor, features=tmp_path / "features").score(ASKED, clips)
    assert np.array_equal(stored.logp, first.logp)


def test_a_presentation_costs_the_audio_of_a_clip_once_whatever_the_number_of_prompts(
    small, monkeypatch
):
    model, processor, clips = small
    heard = []
    embed = AudioTower.embed

    def spied(self, keys, reader, tokens):
        heard.extend(keys)
        return embed(self, keys, reader, tokens)

    monkeypatch.setattr(AudioTower, "embed", spied)
    scorer = evaluator_with(model, processor)
    scorer.score(ASKED, clips)
    assert len(heard) == len(set(heard)) == len({how.sound for how in WAYS}) * len(clips)
    scorer.score([replace(p, text=f"Then: {p.text}") for p in ASKED], clips)
    assert len(heard) == len(set(heard))


def test_without_presentations_keys_of_features_are_those_from_before(small):
    _, processor, clips = small
    store = FeatureStore(None, processor.feature_extractor)
    keys = {how: store.decode(clips[0], how).key for how in WAYS}
    assert keys[AS_IS] == keys[WAYS[3]] == store.decode(clips[0]).key
    assert len(set(keys.values())) == len({how.sound for how in WAYS})


def test_what_gets_too_long_is_the_prompts_fault(small):
    model, processor, clips = small
    prompt = replace(WORDINGS[0], presentation=Presentation(repeat_to_ms=1500))
    with pytest.raises(PromptError, match=r"repeated to 1500 ms, the model hears 1000 ms"):
        evaluator_with(model, processor).score([prompt], clips)


def test_training_refuses_prompts_with_a_presentation(small):
    from evaluators.audio_lm.families import QWEN2_AUDIO

    tokenizer = small[1].tokenizer
    with pytest.raises(Exception, match="wants the clip after the question, and training gives"):
        tokenize_prompts(ASKED[9:10], ["SPEECH", "NONSPEECH"], tokenizer, QWEN2_AUDIO, False)
