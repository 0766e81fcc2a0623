"""Clips of any duration: scored as the stock model does, whatever their company, at the cost of their own frames."""

import contextlib
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import evaluator_with, noise, random_model, stock_scores

from evaluators.audio_lm.device import one_thread
from evaluators.audio_lm.families import QWEN2_AUDIO, encode_qwen2_audio
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.memory import Shape
from evaluators.audio_lm.packed_tower import LogMel, embed_qwen2_audio, qwen2_audio_positions
from evaluators.audio_lm.stock import StockModel
from evaluators.audio_lm.tower import AudioTower, ClipReader, clip_key
from evaluators.prompts import Prompt

pytestmark = pytest.mark.tiny
ASKED = Prompt("Is it speech?\nA) yes\nB) no")
SECONDS = 3  # of the model's window
FEW = [
    1,
    80,
    160,
    161,
    320,
    321,
    400,
    480,
    481,
    640,
    641,
    800,
]  # samples: 20 ms and less, and little more


@pytest.fixture(scope="module")
def tiny():
    return random_model(SECONDS)


@pytest.fixture(scope="module")
def made(tiny, dev_clips, tmp_path_factory):
    """(Samples -> a clip of noise, clip -> its scores by the stock model); each made once."""
    folder, known = tmp_path_factory.mktemp("lengths"), {}
    stock = StockModel(*tiny, torch.device("cpu"))

    def clip(samples):
        found = noise(folder, dev_clips[0], samples, samples)
        return replace(found, duration_ms=samples / 16)

    def truth(clip):
        if clip.clip_id not in known:
            known[clip.clip_id] = stock_scores(stock, ASKED, clip)
        return known[clip.clip_id]

    return clip, truth


def apart(table, truths):
    """Largest difference in nats of both members from the stock model's scores ``[clip, member, label]``."""
    ours = np.stack([table.logp[0], table.logp_top[0]], 1)
    return np.abs(ours - np.array(truths)).max()


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 16_000 * SECONDS), min_size=1, max_size=6, unique=True))
def test_any_lengths_together_are_scored_as_the_stock_model_scores_each_alone(tiny, made, lengths):
    clip, truth = made
    clips = [clip(n) for n in lengths]
    table = evaluator_with(*tiny).score([ASKED], clips)
    assert apart(table, [truth(c) for c in clips]) < 1e-4
    alone = [evaluator_with(*tiny).score([ASKED], [c]).logp[0, 0] for c in clips]
    assert np.abs(table.logp[0] - alone).max() < 1e-5


def test_clips_of_20_ms_and_less_are_scored_as_the_stock_model_does_and_named(tiny, made, caplog):
    clip, truth = made
    clips = [clip(n) for n in FEW]
    evaluator = evaluator_with(*tiny)
    table = evaluator.score([ASKED], clips)
    assert apart(table, [truth(c) for c in clips]) < 1e-4
    assert np.ptp(table.logp[0, :5], 0).max() < 1e-5 < np.ptp(table.logp[0, 5:], 0).min()
    (said,) = [r.getMessage() for r in caplog.records if "too short" in r.getMessage()]
    assert said.startswith("5 clips, such as 'noise 1', are too short to become an audio token")
    assert "scored on the text alone" in said
    again = evaluator.score([ASKED], clips[::-1])
    assert np.abs(again.logp[:, ::-1] - table.logp).max() < 1e-5


@contextlib.contextmanager
def positions_run(model):
    """How many positions the audio tower ran on, a line after another."""
    seen = []
    layer = model.model.audio_tower.layers[0].fc1
    hook = layer.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    try:
        yield seen
    finally:
        hook.remove()


def test_clips_of_distinct_lengths_cost_little_more_than_clips_of_four(tiny, made):
    """Counted in positions of the tower; grouped by length, 160 clips took 1,648 to be heard."""
    clip, _ = made
    distinct = [clip(3200 + 80 * n) for n in range(160)]
    four = [
        replace(clip(n), sha256=f"{n} {i}") for i in range(40) for n in (3280, 6640, 12640, 15920)
    ]
    seconds = [sum(c.duration_ms for c in clips) for clips in (distinct, four)]
    assert seconds[0] == pytest.approx(seconds[1], rel=0.02)
    costs = []
    for clips in (distinct, four):
        with positions_run(tiny[0]) as seen:
            evaluator_with(*tiny).score([ASKED], clips)
        assert set(seen) == {512}  # the line of a CPU
        costs.append(sum(seen))
    weighed = sum(qwen2_audio_positions(-(-int(c.duration_ms * 16) // 160)) for c in distinct)
    assert costs[0] <= 1.15 * costs[1] and costs[0] <= 1.2 * weighed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_embedding_is_the_same_bits_in_any_company(tiny, made, dtype):
    clip, _ = made
    model, processor = tiny
    model = random_model(SECONDS)[0].to(getattr(torch, dtype))
    store = FeatureStore(None, processor.feature_extractor)
    tower = AudioTower(model, QWEN2_AUDIO, store, getattr(torch, dtype))
    clips = [clip(n) for n in (3200, 47_000, 320, 9000, 3210, 15_999, 48_000, 700)]

    def embed(part):
        with ClipReader(store, part) as reader, torch.inference_mode():
            return tower.embed([clip_key(c) for c in part], reader, 64)

    whole = embed(clips)
    for part in (*([c] for c in clips), clips[::-1], clips[2:5]):
        for key, tokens in embed(part).items():
            assert torch.equal(tokens, whole[key])
    assert [len(tokens) for tokens in whole.values()] != []


def test_what_is_embedded_for_training_is_what_is_scored(tiny, made):
    """By another function, for clips of one length; a clip of 20 ms has no token there either."""
    clip, _ = made
    model, processor = tiny
    store = FeatureStore(None, processor.feature_extractor)
    for samples, tokens in ((320, 0), (321, 1), (9000, 14), (48_000, 75)):
        decoded = store.decode(clip(samples))
        (mel,) = store.log_mel([decoded.wave])
        with torch.inference_mode():
            there = encode_qwen2_audio(model, torch.from_numpy(mel)[None], decoded.frames)[0]
            (here,) = embed_qwen2_audio(model, [LogMel(mel, decoded.frames)], 160)
        assert here.shape == there.shape == (tokens, 64)
        assert torch.allclose(here, there, atol=1e-5)


def test_waves_and_features_are_let_go_of_as_they_are_used(tiny, made):
    """Of 2,500 clips at most as many are held as are read ahead and fill a part."""
    clip, _ = made
    base = clip(3300)
    clips = [replace(base, sha256=f"copy {n}", duration_ms=206.25) for n in range(2500)]
    evaluator = evaluator_with(*tiny, shape=Shape(768, 48, 256))
    store, alive, most = evaluator.feature_store, set(), []
    decode = store.decode

    def noted(clip, how):
        out = decode(clip, how)
        alive.add(clip.sha256)
        weakref.finalize(out, alive.discard, clip.sha256)
        most.append(len(alive))
        return out

    store.decode = noted
    with positions_run(tiny[0]) as seen:
        evaluator.score([ASKED], clips)
    assert len(most) == 2500 and len(seen) > 5
    part = 16 * 256 // 6  # clips that take 6 tokens' worth of the tower
    assert max(most) <= 64 * 8 + part + 1 and not alive


@pytest.mark.parametrize("threads", [1, 4])
def test_features_are_made_on_one_thread_whatever_torch_has(tiny, made, threads):
    """With four threads a clip of a second had features of other bits, and Ray's workers have one."""
    clip, _ = made
    store = FeatureStore(None, tiny[1].feature_extractor)
    clips = [clip(samples) for samples in (16000, 3200, 4801)]
    with one_thread():
        expected = [store.log_mel([store.decode(c).wave])[0] for c in clips]
    log_mel, used = store.log_mel, []

    def noted(waves):
        used.append(torch.get_num_threads())
        return log_mel(waves)

    store.log_mel = noted
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with ClipReader(store, clips) as reader:
            reader.read_ahead(3)
            found = reader.take([clip_key(c) for c in clips])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for mel, values in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mel.values, values)
    assert used == [1]


def test_long_clips_are_not_read_as_far_ahead_as_short_ones(tiny, made):
    clip, _ = made
    store = FeatureStore(None, tiny[1].feature_extractor)
    for seconds, expected in ((0.2, 64), (30.0, 18)):  # 512 s and the one that exceeds them
        clips = [replace(clip(3200), sha256=str(n), duration_ms=1e3 * seconds) for n in range(80)]
        with ClipReader(store, clips) as reader:
            reader.read_ahead(64)
            assert len(reader._begun) == expected
            keys = [clip_key(c) for c in clips]
            assert len(reader.take(keys[:10])) == 10
            assert reader.frames(keys[79]) == 20  # those before it are begun on the way
