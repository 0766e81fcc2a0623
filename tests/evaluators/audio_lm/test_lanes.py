"""Batches beside each other: the same bits, in order, and never over places that are still read."""

import threading

import numpy as np
import pytest
import torch

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.lanes import AHEAD, Lanes, lanes_of
from evaluators.audio_lm.memory import Shape
from evaluators.audio_lm.packing import CacheSegment
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import Prompt
from evaluators.tasks import SPEECH_TASK


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "lanes"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (32, 4)]
)
def test_every_lane_has_an_equal_share_of_the_threads(threads, lanes):
    assert lanes_of(threads) == lanes


@pytest.mark.usefixtures("four_threads")
def test_results_come_in_the_order_of_asking_and_threads_are_given_back():
    first = threading.Event()
    seen = []

    def work(number):
        if number == 0:
            assert first.wait(30)  # it ends after the second, which lies beside it
        else:
            first.set()
        seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return number

    with Lanes(2) as lanes:
        done = [r for n in range(9) for r in lanes.give(lambda n=n: work(n), [])]
        assert len(done) == 9 - 2 * AHEAD  # so many wait at most
        done += lanes.rest()
    assert done == list(range(9)) and seen == [(2, True)] * 9
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_places_are_waited_for_while_they_are_read():
    gate = threading.Event()
    with Lanes(2) as lanes:
        list(lanes.give(lambda: gate.wait(30), [CacheSegment(10, 5), CacheSegment(40, 2)]))
        assert list(lanes.over(CacheSegment(15, 25))) == []  # waits for nothing
        assert list(lanes.over(CacheSegment(42, 9))) == []
        threading.Timer(0.05, gate.set).start()
        assert list(lanes.over(CacheSegment(41, 9))) == [True]


@pytest.mark.usefixtures("four_threads")
def test_what_fails_in_a_lane_is_raised_where_it_was_asked_for_and_ends_the_rest():
    ran = []

    def fail():
        raise torch.OutOfMemoryError("in a lane")

    with pytest.raises(torch.OutOfMemoryError, match="in a lane"), Lanes(2) as lanes:
        list(lanes.give(fail, []))
        list(lanes.rest())
        ran.append("after it")
    assert not ran and torch.get_num_threads() == 4


def test_one_lane_computes_where_it_is_asked():
    with Lanes(1) as lanes:
        assert list(lanes.give(threading.get_ident, [])) == [threading.get_ident()]
        assert list(lanes.rest()) == []


@pytest.mark.usefixtures("four_threads")
def test_scores_are_the_same_bits_in_lanes_and_where_the_store_goes_round():
    clips = read_manifest(shipped("data/demo"), SPEECH_TASK.labels, "dev")[:12]
    prompts = [Prompt(f"Is it {word}?\nA) speech B) noise\n") for word in ("speech", "a voice")]
    one = AudioScorer(open_checkpoint("pocket-base"), "cpu", shape=Shape(64, 8, 16))
    one.lanes = lambda: 1  # type: ignore[method-assign]
    expected = one.score(prompts, clips).logp
    beside = AudioScorer(
        one.checkpoint,
        "cpu",
        shape=one.shape,
        loaded=(one.decoder.model, one.processor),
        store_bytes=120 * one.decoder.bytes_per_place,  # of a few clips alone
    )
    assert beside.lanes() == 4
    for _ in range(2):
        assert np.array_equal(beside.score(prompts, clips).logp, expected)
    assert beside.prefixes.bytes <= 120 * one.decoder.bytes_per_place
