"""Rows and batches: what lies where, and that a batch's size does not depend on its rows."""

import numpy as np
import torch

from evaluators.audio_lm.answer_tokens import Answers
from evaluators.audio_lm.packing import (
    NOTHING,
    AnswerReads,
    BatchLimits,
    CacheSegment,
    Job,
    WaitingJobs,
    fill_batches,
    lay_out_prefixes,
    lay_out_prompts,
    pack,
    pack_prompt,
)

CPU = torch.device("cpu")
ANSWERS = Answers((((7,), (5, 6, 8)), ((9, 4),)))  # label 0: two words, label 1: one of two tokens


def test_long_answers_are_branches_after_the_prompt():
    row = pack_prompt(3, [1, 2, 3], ANSWERS)
    assert row.ids.tolist() == [1, 2, 3, 5, 6, 9]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 3]
    assert row.branch.tolist() == [0, 0, 0, 1, 1, 2]
    assert row.kept == 4 and row.labels == (0, 0, 1)
    assert row.reads.tolist() == [[0, 7, 0], [0, 5, 1], [1, 6, 1], [2, 8, 1], [0, 9, 2], [3, 4, 2]]


def test_batches_keep_to_their_limits_and_buckets():
    sizes = [(3, 1), (3, 1), (5, 1), (5, 4), (1, 1)]
    filled = lambda **limits: list(fill_batches(sizes, lambda s: s, BatchLimits(**limits)))  # noqa: E731
    assert filled(tokens=8, kept=9) == [sizes[:2], sizes[2:3], sizes[3:]]
    assert filled(tokens=99, kept=4) == [sizes[:3], sizes[3:4], sizes[4:]]
    assert filled(tokens=99, kept=99, bucket=4) == [sizes[:2], sizes[2:4], sizes[4:]]
    assert list(fill_batches([], len, BatchLimits(1, 1))) == []


def test_a_batch_has_its_size_whatever_its_rows():
    row = pack_prompt(0, [1, 2, 3], ANSWERS)
    jobs = [Job(row, 0, CacheSegment(10, 5)), Job(row, 1, CacheSegment(15, 2))]
    for count in (1, 2):
        layout = lay_out_prompts(jobs[:count], CacheSegment(0, 10))
        ids = np.concatenate([job.row.ids for job in jobs[:count]])
        batch = pack(ids, layout, size=16, kept=12, device=CPU)
        assert batch.tokens.shape == batch.positions.shape == (16,) and batch.keep.shape == (12,)
    assert batch.positions.tolist() == [15, 16, 17, 18, 19, 18, 12, 13, 14, 15, 16, 15, *[0] * 4]
    assert batch.keep.tolist() == [2, 3, 4, 5, 8, 9, 10, 11, *[0] * 4]
    assert batch.rows.start.tolist() == [0, 6, 12] and batch.rows.longest == 6
    assert batch.kept_rows.query_start.tolist() == [0, 4, 8] and batch.kept_rows.few_queries
    assert batch.write is None and batch.rows.has_branches


def test_padding_of_a_prefix_goes_to_the_spare_place():
    layout = lay_out_prefixes([2, 1], CacheSegment(0, 4), 6, 99)
    batch = pack(torch.ones(3, 8), layout, size=5, kept=0, device=CPU)
    assert batch.positions.tolist() == [4, 5, 4, 0, 0]
    assert batch.write.tolist() == [6, 7, 8, 99, 99]
    assert batch.keep is None and not batch.rows.has_branches


def test_sequences_of_a_label_are_summed_as_probabilities():
    row = pack_prompt(1, [1, 2, 3], ANSWERS)
    reads = AnswerReads.of([Job(row, 0, NOTHING), Job(row, 2, NOTHING)])
    assert reads.state.tolist() == [0, 0, 1, 2, 0, 3, 4, 4, 5, 6, 4, 7]
    logp = np.full((2, 3, 2), -np.inf, np.float32)
    top = logp.copy()
    reads.add_to(logp, top, torch.full((12,), -1.0))
    assert np.isneginf(logp[0]).all() and np.isneginf(logp[1, 1]).all()
    np.testing.assert_allclose(logp[1, 0], [np.logaddexp(-1, -3), -2], rtol=1e-6)
    np.testing.assert_allclose(top[1, 2], [-1, -2])


def test_jobs_wait_until_a_batch_of_their_system_message_and_length_is_full():
    short, long = pack_prompt(0, [1, 2], ANSWERS), pack_prompt(1, list(range(9)), ANSWERS)
    first, second = CacheSegment(0, 5), CacheSegment(50, 7)
    # Two short ones of 5 tokens fit, or one long one of 12.
    waiting = WaitingJobs(BatchLimits(13, 99, bucket=4))
    jobs = [Job(row, c, CacheSegment(9 * c + 10, 9)) for c in range(3) for row in (long, short)]

    def shown(batches):
        return [(system, [(j.row.prompt, j.clip) for j in batch]) for system, batch in batches]

    waiting.add(first, jobs)
    waiting.add(second, jobs[:2])
    full = shown(waiting.full())
    assert full == [(first, [(1, 0)]), (first, [(1, 1)]), (first, [(0, 0), (0, 1)])]
    assert shown(waiting.full()) == []
    waiting.add(first, [])
    for nothing in (CacheSegment(5, 5), CacheSegment(37, 13), CacheSegment(28, 0)):
        assert shown(waiting.over(nothing)) == []
    assert shown(waiting.over(CacheSegment(5, 6))) == [(second, [(1, 0)]), (second, [(0, 0)])]
    assert shown(waiting.over(CacheSegment(36, 1))) == [(first, [(1, 2)]), (first, [(0, 2)])]
    waiting.add(second, jobs[:2])
    waiting.add(first, jobs[:1])
    assert shown(waiting.over(CacheSegment(55, 1))) == [(second, [(1, 0)]), (second, [(0, 0)])]
    assert shown(waiting.rest()) == [(first, [(1, 0)])]
    assert shown(waiting.rest()) == []
