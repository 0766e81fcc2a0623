"""Which clips go to which worker, without Ray: workers here answer when they are asked."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from evaluators.fakes import FakeEvaluator
from evaluators.prompts import Prompt
from evaluators.ray_pool import AHEAD, BATCHES, CHUNKS, TEMPLATE, RayPool, Seat


@dataclass(frozen=True)
class Shape:
    tokens: int


class Counting(FakeEvaluator):
    """One that has a tokenizer: ten tokens a prompt."""

    def prompt_tokens(self, prompt):
        return 10


@dataclass(eq=False)
class Answer:
    """Stands for a call, and holds what it gives."""

    logp: np.ndarray
    top: np.ndarray


@dataclass
class Actor:
    """A worker in this process; `calls` are the clips of each call, `most` the calls it had at once."""

    evaluator: FakeEvaluator = field(default_factory=FakeEvaluator)
    calls: list = field(default_factory=list)

    @property
    def score(self):
        return self

    def remote(self, process, prompts, clips):
        self.calls.append(list(clips))
        table = self.evaluator.score(prompts, clips)
        return Answer(table.logp, table.logp_top)


class Pool(RayPool):
    """Two workers or more; the one with most to do answers last."""

    def __init__(self, workers, tokens=None, make=FakeEvaluator):
        super().__init__(make)
        self.__dict__["_seats"] = [Seat(Actor(), usable=True) for _ in range(workers)]
        self._about = ("x", Shape(tokens) if tokens else None)
        self.at_once = Counter()

    def _next(self):
        for number, seat in enumerate(self._seats):
            self.at_once[number] = max(self.at_once[number], len(seat.flight))
        busy = [seat for seat in self._seats if seat.flight]
        seat = min(busy, key=lambda s: len(s.actor.calls))
        ref = next(iter(seat.flight))
        return [(seat, seat.flight.pop(ref), (ref.logp, ref.top, self._about))]


def prompts(count):
    return [Prompt(f"Speech {i}? A or B") for i in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 33])
@pytest.mark.parametrize("tokens", [None, 64, 4096])
def test_every_clip_is_scored_once_and_equally_by_any_number_of_workers(
    dev_clips, workers, count, tokens
):
    pool = Pool(workers, tokens, Counting)
    table = pool.score(prompts(3), dev_clips[:count])
    expected = FakeEvaluator().score(prompts(3), dev_clips[:count])
    assert np.array_equal(table.logp, expected.logp)
    assert np.array_equal(table.logp_top, expected.logp_top)
    asked = [clip.clip_id for seat in pool._seats for call in seat.actor.calls for clip in call]
    assert sorted(asked) == sorted(clip.clip_id for clip in dev_clips[:count])


@pytest.mark.parametrize("workers", [2, 4])
def test_a_small_call_is_one_chunk_for_each_worker_and_none_takes_anothers(dev_clips, workers):
    """A race's first block: with chunks of a few clips each cost a whole batch, and one worker took them all."""
    pool = Pool(workers, 4096, Counting)
    pool.score(prompts(10), dev_clips[:32])
    calls = [[len(call) for call in seat.actor.calls] for seat in pool._seats]
    assert calls == [[32 // workers]] * workers
    assert set(pool.at_once.values()) == {1}


def test_a_large_call_has_chunks_that_fill_batches_and_some_ahead(dev_clips):
    pool, row = Pool(2, 256, Counting), 10 + TEMPLATE
    pool.score(prompts(5), dev_clips[:200])
    batches = [len(call) * 5 * row / 256 for seat in pool._seats for call in seat.actor.calls]
    assert min(batches) >= BATCHES and 2 < len(batches) <= 2 * CHUNKS
    assert max(pool.at_once.values()) == AHEAD


def test_new_clips_make_up_for_known_ones_that_lie_with_few_workers(dev_clips):
    """A race's later block: clips in doubt, some known, wherever they lie among the others."""
    pool, clips = Pool(3, 4096, Counting), dev_clips[:30]
    known = {1: 0, 8: 0, 14: 2, 19: 0, 22: 0, 23: 1, 29: 0, 28: 0}
    pool._home.update({(clips[i].sha256, clips[i].audio): seat for i, seat in known.items()})
    pool.score(prompts(10), clips)
    assert [sum(map(len, seat.actor.calls)) for seat in pool._seats] == [10, 10, 10]
    for i, seat in known.items():
        assert any(clips[i] in call for call in pool._seats[seat].actor.calls)


def test_who_has_nothing_left_takes_from_the_one_that_has_most(dev_clips):
    """The clips are all at home with the first worker."""
    pool, clips = Pool(2, 256, Counting), dev_clips[:100]
    pool._home.update({(c.sha256, c.audio): 0 for c in clips})
    pool.score(prompts(20), clips)
    both = [sum(map(len, seat.actor.calls)) for seat in pool._seats]
    assert min(both) >= 25
