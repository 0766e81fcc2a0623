"""Rows of tokens: exactly the answer is supervised, rare labels weigh more, masks are small."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO, audio_config
from evaluators.audio_lm.features import FeatureStore
from evaluators.finetuning.samples import (
    Collate,
    Samples,
    Schedule,
    longest_row,
    mask,
    tokenize_prompts,
)


@pytest.fixture
def store(processor):
    return FeatureStore(None, processor.feature_extractor)


def test_exactly_the_answer_is_supervised(processor, store, train_clips, seeds, labels):
    wordings = tokenize_prompts(seeds, labels, processor.tokenizer, QWEN2_AUDIO, True)
    schedule = Schedule(epochs=2, batch=16, seed=0, shuffle=True)
    samples = Samples(train_clips[:32], wordings, labels, store, schedule=schedule)
    config = audio_config(open_checkpoint("pocket-base").base)
    for i in range(0, len(samples), 16):
        batch = Collate(QWEN2_AUDIO, config, "answer")([samples[j] for j in range(i, i + 16)])
        assert len(batch["target_id"]) == 16  # one token a sample
        assert set(processor.tokenizer.convert_ids_to_tokens(batch["target_id"])) == {"A", "B"}
        assert float(batch["target_weight"].sum()) == pytest.approx(1, abs=0.5)
        for row, place, token in zip(
            batch["target_row"], batch["target_place"], batch["target_id"], strict=True
        ):
            assert batch["ids"][row, place + 1] == token
            assert not batch["ids"][row, place + 2 :].any()  # nothing but padding follows
    both = {samples.order[i][1] for i in range(len(samples))}
    assert both == set(range(6))  # all wordings, in both orders


def test_rare_labels_weigh_more(processor, store, train_clips, seeds, labels):
    speech = [c for c in train_clips if c.label == "SPEECH"][:4]
    other = [c for c in train_clips if c.label != "SPEECH"][:12]
    wordings = tokenize_prompts(seeds[:1], labels, processor.tokenizer, QWEN2_AUDIO, False)
    samples = Samples([*speech, *other], wordings, labels, store)
    weight = np.array([samples[i]["weight"] for i in range(16)])
    assert weight[:4].sum() == pytest.approx(weight[4:].sum()) == pytest.approx(8)


def test_the_longest_row_is_the_longest_of_the_batch(processor, store, train_clips, seeds, labels):
    clips, config = train_clips[:16], audio_config(open_checkpoint("pocket-base").base)
    wordings = tokenize_prompts(seeds[:1], labels, processor.tokenizer, QWEN2_AUDIO, False)
    row = longest_row(clips, wordings, QWEN2_AUDIO, config, processor.feature_extractor)
    samples = Samples(clips, wordings, labels, store)
    batch = Collate(QWEN2_AUDIO, config, "answer")([samples[i] for i in range(16)])
    assert batch["ids"].shape[1] == row.tokens > row.audio > 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 5), st.integers(0, 99))
def test_every_epoch_shows_each_clip_once_with_the_next_wording(epochs, clips, wordings, seed):
    order = Schedule(epochs, 1, seed, True).order(clips, wordings)
    assert order == Schedule(epochs, 1, seed, True).order(clips, wordings)
    seen: dict[int, int] = {}
    for epoch in range(epochs):
        part = order[epoch * clips : (epoch + 1) * clips]
        assert sorted(c for c, _ in part) == list(range(clips))
        for c, w in part:
            assert w == (seen.get(c, w - 1) + 1) % wordings
            seen[c] = w
    assert len(Schedule(epochs, 8, seed, True).order(clips, wordings)) % 8 == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 100))
def test_masks_are_small_and_stay_within_the_clip(seed, frames):
    mel = np.arange(80 * 110, dtype=np.float32).reshape(80, 110) + 1e6
    out = mask(mel, frames, np.random.default_rng(seed))
    changed = out != mel
    assert not changed[:, frames:].any()
    whole_bins = changed[:, :frames].all(1).sum()
    assert whole_bins <= 11 or frames == 1
    rest = changed[~changed[:, :frames].all(1), :frames]
    assert rest.any(0).sum() <= max(1, round(0.05 * frames))
