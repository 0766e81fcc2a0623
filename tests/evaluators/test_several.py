"""One prompt for several checkpoints: every clip is scored by its own."""

import dataclasses

import numpy as np
import pytest

from evaluators.cache import CachedEvaluator
from evaluators.clips import ClipSet
from evaluators.evaluator import About, Usage
from evaluators.fakes import FakeEvaluator
from evaluators.several import PerCheckpoint
from evaluators.tasks import SPEECH_TASK


class Named(FakeEvaluator):
    """Its scores lie `shift` below the fake's."""

    def __init__(self, name, shift=0.0):
        super().__init__()
        self.fingerprint, self.shift, self.name, self.released = name, shift, name, 0
        self.heard = []

    def score(self, prompts, clips):
        self.heard += clips
        table = super().score(prompts, clips)
        shift = np.float32(self.shift)
        return dataclasses.replace(
            table, logp=table.logp - shift, logp_top=table.logp_top - 2 * shift
        )

    def about(self):
        return About(device=self.name)

    def release(self):
        self.released += 1


@pytest.fixture
def clips(dev_clips):
    return ClipSet(SPEECH_TASK, tuple(dev_clips[:6]))


def test_each_clip_is_scored_by_the_checkpoint_it_names_in_its_place(seeds, clips):
    a, b = Named("a"), Named("b", 5.0)
    both = clips.repeat(["a", "b"])
    order = np.random.default_rng(0).permutation(12)
    mixed = both.take(order.tolist())
    table = PerCheckpoint({"a": a, "b": b}).score(seeds, mixed)
    assert table.clips == mixed.clips and table.prompts == tuple(seeds)
    plain = FakeEvaluator().score(seeds, clips)
    for place, i in enumerate(order):
        shift = np.float32(5.0 * (i % 2))
        assert np.array_equal(table.logp[:, place], plain.logp[:, i // 2] - shift)
        assert np.array_equal(table.logp_top[:, place], plain.logp_top[:, i // 2] - 2 * shift)
    # Each sees the clips themselves, so that its cached scores are those of a search of its own.
    assert set(a.heard) == set(b.heard) == set(clips.clips)
    assert table.targets.clip_ids == tuple(c.name for c in mixed)


def test_cached_scores_are_those_of_one_checkpoint_alone(seeds, clips, tmp_path):
    caches = {n: CachedEvaluator(Named(n), tmp_path) for n in ("a", "b")}
    caches["a"].score(seeds, clips[:4])
    both = PerCheckpoint(caches)
    assert both.count_missing(seeds, clips.repeat(["a", "b"])) == 3 * (2 + 6)
    assert both.count_missing(seeds, clips.repeat(["a"])) == 3 * 2
    both.score(seeds, clips.repeat(["a", "b"]))
    assert both.usage == Usage(12 + 36, 12, 12 + 24)
    assert caches["b"].count_missing(seeds, clips) == 0


def test_what_is_asked_of_one_is_asked_of_the_first_and_releasing_releases_all(seeds, clips):
    a, b = Named("a"), Named("b")
    both = PerCheckpoint({"a": a, "b": b})
    assert both.about() == About(device="a") and both.innermost is a
    both.release()
    assert (a.released, b.released) == (1, 1)
    assert both.usage == Usage()


def test_the_libraries_are_those_of_all_checkpoints(monkeypatch):
    libraries = {"a": {"torch": "2"}, "b": {"torch": "2", "peft": "1"}}
    monkeypatch.setattr(Named, "about", lambda self: About(versions=libraries[self.name]))
    both = PerCheckpoint({"a": Named("a"), "b": Named("b")})
    assert both.about() == About(versions={"torch": "2", "peft": "1"})


def test_the_fingerprint_knows_every_checkpoint_by_name_and_weights():
    a, b, c = Named("a"), Named("b"), Named("c")
    several = [{"a": a, "b": b}, {"a": a, "b": c}, {"a": a}, {"x": a, "b": b}]
    prints = [PerCheckpoint(one).fingerprint for one in several]
    assert len(set(prints)) == 4 and all(len(p) == 64 for p in prints)
    assert prints[0] == PerCheckpoint({"a": Named("a"), "b": Named("b")}).fingerprint


def test_a_clip_of_no_checkpoint_is_an_error_not_a_score(seeds, clips):
    both = PerCheckpoint({"a": Named("a"), "b": Named("b")})
    for strange in (clips, clips.repeat(["a", "c"])):
        with pytest.raises(ValueError, match="none of"):
            both.score(seeds, strange)
        with pytest.raises(ValueError, match="none of"):
            both.count_missing(seeds, strange)
