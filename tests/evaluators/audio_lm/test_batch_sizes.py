"""A batch that is not full is smaller where, and only where, each of its tokens gets the same bits."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import evaluator_with, noise, random_model, whole_batches

from evaluators.audio_lm.batch_sizes import BatchSizes, equal_sizes, steps
from evaluators.audio_lm.memory import Shape
from evaluators.audio_lm.templates import encode
from evaluators.evaluator import Work
from evaluators.prompts import Prompt

PROMPTS = [Prompt("A or B?" + " And now?" * n) for n in range(5)]


@given(
    st.sets(st.integers(1, 300), min_size=1).map(lambda s: tuple(sorted(s))), st.integers(1, 400)
)
def test_the_smallest_size_that_holds_them_is_taken(equal, tokens):
    holding = BatchSizes(equal).holding(tokens)
    assert holding == min((n for n in equal if n >= tokens), default=tokens)


@pytest.mark.parametrize("strange", [set(), {64}, {128, 512}, {64, 128, 192, 512, 768}])
def test_a_size_whose_sums_differ_in_one_bit_of_one_value_is_not_used(strange):
    def compute(x):
        out = 2 * x
        if len(x) in strange:
            out[len(x) // 2, 1] = torch.nextafter(out[len(x) // 2, 1], torch.tensor(9.0))
        return out

    tried = steps(256, 768)
    assert tried == [64, 128, 192, 512, 768]
    found = equal_sizes(compute, torch.rand(768, 3) - 2, 256, tried)
    assert found.equal == tuple(sorted({256, *tried} - strange))


def test_where_the_identifying_size_itself_gives_no_numbers_it_stands_alone():
    found = equal_sizes(lambda x: x / 0 - x / 0, torch.ones(256, 2), 256, [64, 128])
    assert found.equal == (256,)


@pytest.fixture(scope="module")
def made(dev_clips, tmp_path_factory):
    """(model, processor, clips of nine lengths)."""
    folder = tmp_path_factory.mktemp("sizes")
    clips = [noise(folder, dev_clips[0], n, 3200 + 1571 * n) for n in range(9)]
    return *random_model(1), clips


def steps_of(scorer):
    """Tokens of each batch that its decoder is given from here on."""
    step, sizes = scorer.decoder.step, []

    def noted(batch, cache):
        sizes.append(len(batch.positions))
        return step(batch, cache)

    scorer.decoder.step = noted
    return sizes


@pytest.mark.tiny
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_those_of_whole_batches_to_the_bit_and_less_is_computed(made, dtype):
    model, processor, clips = made
    model = model if dtype == "float32" else random_model(1)[0].bfloat16()
    shape = Shape(768, 48, 256)
    whole = whole_batches(evaluator_with(model, processor, shape, dtype))
    own = evaluator_with(model, processor, shape, dtype)
    assert len(own.decoder.sizes(768, 768).equal) > 1  # else this test shows nothing here
    many, few = steps_of(whole), steps_of(own)
    for prompts, heard in ((PROMPTS, clips), (PROMPTS[:1], clips[:2]), (PROMPTS[3:], clips[5:])):
        expected, found = whole.score(prompts, heard), own.score(prompts, heard)
        np.testing.assert_array_equal(found.logp, expected.logp)
        np.testing.assert_array_equal(found.logp_top, expected.logp_top)
    assert len(few) == len(many) and sum(few) < 0.7 * sum(many)
    assert own.fingerprint == whole.fingerprint


@pytest.mark.tiny
def test_without_memory_to_try_others_batches_are_whole_and_keep_their_shape(made):
    model, processor, clips = made
    scorer = evaluator_with(model, processor, Shape(768, 48, 256))
    expected = scorer.score(PROMPTS[:1], clips[:2]).logp

    def full(x):
        raise torch.OutOfMemoryError("pretended")

    short = evaluator_with(model, processor, Shape(768, 48, 256))
    short.decoder._alone = full
    np.testing.assert_array_equal(short.score(PROMPTS[:1], clips[:2]).logp, expected)
    assert short.decoder.sizes(768, 768).equal == (768,) and short.shape == Shape(768, 48, 256)


@pytest.mark.tiny
def test_clips_longer_than_a_batch_are_computed_in_their_own_length_as_ever(made):
    model, processor, clips = made
    shape = Shape(768, 48, 8)
    whole = whole_batches(evaluator_with(model, processor, shape))
    own = evaluator_with(model, processor, shape)
    own.decoder.sizes = lambda own, most: BatchSizes((own, 2 * own, 4 * own, 96 * own))
    many, few = steps_of(whole), steps_of(own)
    expected = whole.score(PROMPTS, clips).logp
    np.testing.assert_array_equal(own.score(PROMPTS, clips).logp, expected)
    longer = [n for n in many if 8 < n < 64]
    # The two clips of 5 and 7 tokens share a larger batch.
    assert len(longer) > 5 and [n for n in few if 8 < n < 64] == [16, *longer]


@pytest.mark.tiny
def test_work_counts_the_products_of_the_prompts_tokens_and_the_time_they_took(made, monkeypatch):
    model, processor, clips = made
    scorer = evaluator_with(model, processor)
    assert scorer.about().work == Work()
    begin = time.perf_counter()
    scorer.score(PROMPTS, clips[:3])
    scorer.score(PROMPTS[1:2], clips)
    passed = time.perf_counter() - begin
    tokens = [
        len(encode(processor.tokenizer, scorer.family.template.after(p.text))) for p in PROMPTS
    ]
    work = scorer.about().work
    assert work.evals == scorer.forwards == 24 and 0 < work.seconds < passed
    products = 3 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96)  # of the tiny model, a token
    assert work.flop == 2 * products * (3 * sum(tokens) + 9 * tokens[1])
    assert work.rate == 0 and work.share is None  # too short to be told
    monkeypatch.setattr("evaluators.audio_lm.scorer.MEASURED_S", 0.0)
    assert 0 < scorer.about().work.share < 1
    assert scorer.about().work.rate == scorer.about().work.rate  # measured once
