import pickle
import sqlite3
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from evaluators.cache import CachedEvaluator
from evaluators.clips import balanced_order
from evaluators.evaluator import Usage
from evaluators.fakes import FakeEvaluator


@pytest.fixture
def clips(dev_clips):
    return balanced_order(dev_clips)[:30]


def test_cached_equals_uncached_in_any_order(tmp_path, seeds, clips):
    plain = FakeEvaluator().score(seeds, clips)
    cached = CachedEvaluator(FakeEvaluator(), tmp_path)
    cached.score(seeds[:2], clips[:10])
    cached.score(seeds[1:], clips[5:20])
    table = cached.score(seeds, clips)
    assert np.array_equal(table.logp, plain.logp) and np.array_equal(table.logp_top, plain.logp_top)
    again = CachedEvaluator(FakeEvaluator(), tmp_path)
    assert np.array_equal(again.score(seeds[::-1], clips[::-1]).logp, plain.logp[::-1, ::-1])
    assert again.usage == Usage(requested=90, cached=90, forward=0) and again.inner.forwards == 0


def test_only_missing_pairs_go_through_the_model(tmp_path, seeds, clips):
    cached = CachedEvaluator(FakeEvaluator(), tmp_path)
    cached.score(seeds, clips[:10])
    assert cached.count_missing(seeds, clips) == 60
    cached.score(seeds, clips)
    assert cached.inner.forwards == 90 and cached.usage == Usage(120, 30, 90)


def test_a_changed_model_prompt_clip_or_control_is_scored_anew(tmp_path, seeds, clips):
    cached = CachedEvaluator(FakeEvaluator(), tmp_path)
    cached.score(seeds[:1], clips[:1])
    changed = [
        (seeds[0], replace(clips[0], sha256="other")),
        (seeds[0], replace(clips[0], audio="silence")),
        (replace(seeds[0], system="x"), clips[0]),
    ]
    for prompt, clip in changed:
        assert cached.count_missing([prompt], [clip]) == 1
    cached.inner.fingerprint = "other weights"
    assert cached.count_missing(seeds[:1], clips[:1]) == 1


def test_renamed_clips_keep_their_scores(tmp_path, seeds, clips):
    cached = CachedEvaluator(FakeEvaluator(), tmp_path)
    cached.score(seeds[:1], clips[:1])
    assert (
        cached.count_missing(seeds[:1], [replace(clips[0], clip_id="renamed", split="train")]) == 0
    )


def test_two_processes_share_a_folder_without_loss(tmp_path, seeds, clips):
    code = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from conftest import DEMO, LABELS
from evaluators.cache import CachedEvaluator; from evaluators.clips import *
from evaluators.fakes import FakeEvaluator; from evaluators.files import shipped
from evaluators.prompts import read_prompts
from pathlib import Path
clips = balanced_order(read_manifest(DEMO, LABELS, "dev"))[:30]
seeds = read_prompts(shipped("prompts/seeds/baselines.yaml"), LABELS)
e = CachedEvaluator(FakeEvaluator(), Path({str(tmp_path)!r}))
for i in range(int(sys.argv[1]), 30, 2): e.score(seeds, clips[i:i+1])
"""
    both = [subprocess.Popen([sys.executable, "-c", code, str(i)]) for i in (0, 1)]
    assert [p.wait() for p in both] == [0, 0]
    assert CachedEvaluator(FakeEvaluator(), tmp_path).count_missing(seeds, clips) == 0


class Bomb:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.bomb_went_off = True",))


@pytest.mark.parametrize("place", ["value", "key"])
def test_a_cache_file_cannot_run_code(tmp_path, seeds, clips, place):
    import builtins

    cached = CachedEvaluator(FakeEvaluator(), tmp_path)
    cached.score(seeds[:1], clips[:1])
    cached.close()
    db = sqlite3.connect(tmp_path / "cache.db")
    if place == "value":
        db.execute("UPDATE Cache SET value = ?, mode = 4", (sqlite3.Binary(pickle.dumps(Bomb())),))
    else:
        db.execute("UPDATE Cache SET key = ?, raw = 0", (sqlite3.Binary(pickle.dumps(Bomb())),))
    db.commit()
    db.close()
    again = CachedEvaluator(FakeEvaluator(), tmp_path)
    if place == "value":
        with pytest.raises(ValueError, match="delete the cache folder"):
            again.score(seeds[:1], clips[:1])
    else:
        again.score(seeds[:1], clips[:1])
        with pytest.raises(ValueError, match="delete the cache folder"):
            list(again._cache)
    assert not hasattr(builtins, "bomb_went_off")
