"""The store: bounded, shared by system messages, and of no influence on a score; and what happens when memory ends."""

from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import evaluator_with, noise, random_model, whole_batches

from evaluators.audio_lm.attention import Heads
from evaluators.audio_lm.memory import EMBEDDINGS_SHARE, Shape
from evaluators.audio_lm.packing import CacheSegment
from evaluators.audio_lm.prefixes import KVRing
from evaluators.audio_lm.scorer import _Results
from evaluators.cache import CachedEvaluator
from evaluators.prompts import Prompt

pytestmark = pytest.mark.tiny
SYSTEMS = ["You are judge 1.", "Listen to the clip, and answer with a letter.", "A or B.", ""]
PROMPTS = [
    Prompt(text, system=system)
    for system in SYSTEMS
    for text in ("A or B?", "Is it speech?\nA) yes\nB) no")
]
LENGTHS = [3200, 8000, 4801, 15_999, 5120, 320, 9000, 12_345]


@pytest.fixture(scope="module")
def small(dev_clips, tmp_path_factory):
    """(model, processor, clips of eight lengths, scores ``[prompt, clip, label]`` with room for everything)."""
    model, processor = random_model(1)
    folder = tmp_path_factory.mktemp("store")
    clips = [noise(folder, dev_clips[0], number, n) for number, n in enumerate(LENGTHS)]
    return model, processor, clips, evaluator_with(model, processor).score(PROMPTS, clips).logp


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=40),
    st.integers(1, 50),
)
def test_the_ring_overwrites_what_is_oldest_and_nothing_else(writes, most):
    """Against a line that marks each place with the number of its last write."""
    decoder = SimpleNamespace(
        heads=Heads(1, 1, 1), dtype=torch.float32, device=torch.device("cpu"), layers=[0, 1],
        bytes_per_place=16,
    )  # fmt: skip
    ring, written = KVRing(decoder), {}
    for number, (count, name) in enumerate(writes):
        before = dict(ring.segments)
        ring.reserve(count, most)
        assert ring.segments == before
        out, places = ring.next_out(count), ring.next_places(count)
        begin = ring.take(count)
        assert places == CacheSegment(begin, count)
        assert begin + count <= ring.spare  # padding overwrites nothing
        assert ring.segments == {k: v for k, v in before.items() if k not in out}
        key = (str(name), None)
        ring.note(key, CacheSegment(begin, count))
        for layer in ring.layers:
            layer.keys[begin : begin + count] = number
            layer.values[begin : begin + count] = -number
        written[key] = number
        for key, segment in ring.segments.items():
            places = slice(segment.begin, segment.begin + segment.length)
            for layer in ring.layers:
                assert set(layer.keys[places].flatten().tolist()) == {written[key]}
                assert set(layer.values[places].flatten().tolist()) == {-written[key]}
        needless = [k for k in out if not begin <= before[k].begin < begin + count]
        assert not needless or begin == 0  # passed on the way round
        assert ring.capacity <= max(most, max(n for n, _ in writes[: number + 1]) + 1)
        assert ring.bytes == 16 * ring.capacity


calls_of = st.lists(
    st.tuples(
        st.lists(st.sampled_from(range(len(PROMPTS))), min_size=1, max_size=8, unique=True),
        st.lists(st.sampled_from(range(len(LENGTHS))), min_size=1, max_size=10),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, deadline=None)
@given(calls_of, st.integers(60, 400), st.sampled_from([8, 30]))
def test_the_budget_is_never_exceeded_and_no_score_depends_on_it(small, calls, places, prefix):
    model, processor, clips, truth = small
    evaluator = evaluator_with(model, processor, Shape(200, 30, prefix))
    most = places * evaluator.decoder.bytes_per_place
    evaluator = evaluator_with(model, processor, Shape(200, 30, prefix), store_bytes=most)
    seen = note_bytes(evaluator)
    for rows, columns in calls:
        table = evaluator.score([PROMPTS[r] for r in rows], [clips[c] for c in columns])
        assert np.abs(table.logp - truth[rows][:, columns]).max() < 1e-5
    assert 0 < max(seen) <= most


def note_bytes(evaluator):
    """What the store takes before each step of the decoder."""
    seen, step, prefixes = [], evaluator.decoder.step, evaluator.prefixes

    def noted(batch, cache):
        layers = sum(part.numel() * part.itemsize for layer in cache for part in layer)
        kept = sum(t.numel() * t.itemsize for t in prefixes._embeddings.kept.values())
        assert prefixes.bytes == layers + kept and kept <= EMBEDDINGS_SHARE * prefixes.budget()
        seen.append(prefixes.bytes)
        return step(batch, cache)

    evaluator.decoder.step = noted
    return seen


def note_heard(evaluator):
    """How often each clip goes through the audio tower."""
    heard, tower = Counter(), evaluator.prefixes._tower
    embed = tower.embed

    def noted(keys, *rest):
        heard.update(keys)
        return embed(keys, *rest)

    tower.embed = noted
    return heard


@pytest.mark.parametrize("places", [70, 150, 10_000])
def test_each_clip_is_heard_once_a_call_for_all_system_messages(small, places):
    model, processor, clips, truth = small
    shape = Shape(200, 30, 30)
    evaluator = evaluator_with(model, processor, shape)
    most = places * evaluator.decoder.bytes_per_place
    evaluator = evaluator_with(model, processor, shape, store_bytes=most)
    heard = note_heard(evaluator)
    assert np.abs(evaluator.score(PROMPTS, [*clips, *clips]).logp[:, 8:] - truth).max() < 1e-5
    assert len(heard) == len(clips) and set(heard.values()) == {1}
    evaluator.score(PROMPTS, clips)
    if places == 10_000:
        assert set(heard.values()) == {1}


def test_embeddings_are_kept_for_further_system_messages_and_others_make_room_for_this_calls(small):
    model, processor, clips, _ = small
    evaluator = evaluator_with(model, processor)
    evaluator.score(PROMPTS[:2], clips[:4])
    heard = note_heard(evaluator)
    evaluator.score(PROMPTS[2:], clips[:4])
    assert not heard
    size = 64 * 4 * 14  # room for one, of 8,000 samples or of 9,000
    few = evaluator_with(model, processor, store_bytes=size / EMBEDDINGS_SHARE)
    heard = note_heard(few)
    few.score(PROMPTS[:2], [clips[1]])
    few.score(PROMPTS[2:4], [clips[6]])  # no room: the other one is kept
    few.score(PROMPTS[4:6], [clips[6]])  # not in this call: it goes
    few.score(PROMPTS[6:], [clips[6]])
    assert {key[0]: n for key, n in heard.items()} == {clips[1].sha256: 1, clips[6].sha256: 2}


class Failing:
    """Raises OutOfMemoryError in place of those steps of a decoder whose numbers are given."""

    def __init__(self, evaluator, *numbers):
        self.sizes, self.numbers = [], numbers
        self.step = evaluator.decoder.step
        evaluator.decoder.step = self

    def __call__(self, batch, cache):
        self.sizes.append(len(batch.positions))
        if len(self.sizes) - 1 in self.numbers:
            raise torch.OutOfMemoryError("pretended")
        return self.step(batch, cache)


SHORT = Shape(200, 30, 30)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def undisturbed(request, small):
    """(Makes an evaluator, clips, what it says of them where no memory is short, its steps)."""
    model, processor, clips, _ = small
    model = model if request.param == "float32" else random_model(1)[0].bfloat16()
    many = [replace(clip, sha256=f"{clip.sha256} {i}") for i in range(6) for clip in clips]
    make = partial(evaluator_with, model, processor, SHORT, request.param)
    truth = make()
    steps = Failing(truth)
    return make, many, truth.score(PROMPTS, many).logp, steps


@pytest.mark.parametrize("number", [0, 5, 30, 100])
def test_memory_that_is_short_for_once_changes_no_key_and_no_bit(undisturbed, number):
    make, many, expected, steps = undisturbed
    evaluator = make()
    before, failing = evaluator.fingerprint, Failing(evaluator, number)
    np.testing.assert_array_equal(evaluator.score(PROMPTS, many).logp, expected)
    assert evaluator.fingerprint == before and evaluator.shape == SHORT
    batches = [one.sizes.count(200) for one in (failing, steps)]
    assert batches[0] <= batches[1] + 10  # what is scored by then is not scored again
    assert evaluator.forwards == len(PROMPTS) * len(many)


def test_a_call_that_needs_smaller_batches_is_of_them_alone_and_the_next_is_not(small, tmp_path):
    """In bf16, where a score depends on the shape of its batch, and so does its key."""
    _, processor, clips, _ = small
    model = random_model(1)[0].bfloat16()
    whole, half = Shape(400, 48, 512), Shape(200, 24, 256)

    def opened(shape):
        """Its scores depend on the shape more than those of a small model on a CPU do."""
        evaluator = whole_batches(evaluator_with(model, processor, shape, "bfloat16"))
        read = evaluator.decoder.read
        evaluator.decoder.read = lambda hidden, *rest: read(hidden, *rest) - len(hidden)
        return evaluator

    exact = {s: opened(s) for s in (whole, half)}
    scores = {s: e.score(PROMPTS, clips).logp for s, e in exact.items()}
    evaluator = opened(whole)
    cached = CachedEvaluator(evaluator, tmp_path)
    step, done, short = evaluator.decoder.step, [], True

    def failing(batch, cache):
        if short and len(batch.positions) == 400 and done.count(400) == 3:
            raise torch.OutOfMemoryError("pretended")
        done.append(len(batch.positions))
        return step(batch, cache)

    evaluator.decoder.step = failing
    np.testing.assert_array_equal(cached.score(PROMPTS, clips).logp, scores[half])
    assert 400 in done  # some of it was scored in whole batches, and again
    assert evaluator.fingerprint == exact[half].fingerprint
    assert cached.count_missing(PROMPTS, clips) == 0  # as long as memory is short
    short = False
    done.clear()
    cached.score([replace(PROMPTS[0], text="A, or B?")], clips)
    assert 256 not in done and 512 in done  # nothing of the smaller batches is used
    assert evaluator.fingerprint == exact[whole].fingerprint
    assert cached.count_missing(PROMPTS, clips) == len(PROMPTS) * len(clips)
    np.testing.assert_array_equal(cached.score(PROMPTS, clips).logp, scores[whole])


def test_what_other_batches_gave_is_not_used_where_a_worker_takes_another_shape(small):
    """As `evaluators.ray_pool` has it: in bf16, keys and values may depend on the shape that they were made in."""
    model, processor, clips, truth = small
    evaluator = whole_batches(evaluator_with(model, processor, Shape(200, 30, 30)))
    evaluator.score(PROMPTS, clips)
    steps = Failing(evaluator)
    evaluator.score(PROMPTS, clips)
    assert set(steps.sizes) == {200}  # all is kept
    evaluator.shape = Shape(190, 30, 31)
    assert np.abs(evaluator.score(PROMPTS, clips).logp - truth).max() < 1e-5
    assert set(steps.sizes) == {200, 64, 31, 190} and evaluator.shape == Shape(190, 30, 31)


def test_waiting_results_are_entered_as_they_come(small, monkeypatch):
    """So that neither the device nor the host holds more of them the more clips there are."""
    model, processor, clips, truth = small
    monkeypatch.setattr("evaluators.audio_lm.scorer.PENDING", 3)
    evaluator, most = evaluator_with(model, processor, Shape(100, 20, 30)), []
    add = _Results.add

    def noted(results, values, reads):
        add(results, values, reads)
        most.append(len(results._pending))

    monkeypatch.setattr(_Results, "add", noted)
    table = evaluator.score(PROMPTS, clips)
    assert np.abs(table.logp - truth).max() < 1e-5
    assert len(most) > 9 and max(most) == 2


def test_embeddings_of_another_line_are_not_taken_for_those_of_this_one(small):
    """In half precision they may be other bits, and the size of a line is a part of the key of a score."""
    model, processor, clips, _ = small
    evaluator = evaluator_with(model, processor)
    heard, wide, found = note_heard(evaluator), evaluator.shape, []
    for shape in (wide, wide, replace(wide, prefix=2 * wide.prefix), wide):
        evaluator.shape = shape
        evaluator.score(PROMPTS[:1], clips[:2])
        found.append(heard.total())
    assert found == [2, 2, 4, 6]
