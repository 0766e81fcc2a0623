"""Clips and sets of clips: what is heard, and that every set keeps its order and its sources."""

import dataclasses
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from common import LABELS
from hypothesis import given
from hypothesis import strategies as st

from evaluators.audio import load
from evaluators.clips import Clip, ClipSet, clip_wave, sound_of
from evaluators.manifest import read_manifest
from evaluators.presentation import AS_IS, Presentation
from evaluators.tasks import SPEECH_TASK

AUDIO = ("recorded", "silence", "shuffled")


def clip(name, label="SPEECH", source=None):
    source = name if source is None else source
    sha = hashlib.sha256(name.encode()).hexdigest()
    return Clip(name, Path(name), label, "x", 200.0, 0.0, "c", source, "dev", "CC0", sha)


def clip_set(count=7):
    clips = (clip(f"c{i}", LABELS[i % 2], f"s{i // 2}") for i in range(count))
    return ClipSet(SPEECH_TASK, tuple(clips))


def test_what_is_heard_is_the_recording_its_silence_or_its_samples_in_another_order(make_manifest):
    a, b = read_manifest(make_manifest(sources=1), LABELS)
    wave = clip_wave(a)
    assert np.array_equal(wave, load(a.path)) and len(wave) == 3200
    silence = clip_wave(dataclasses.replace(a, audio="silence"))
    assert silence.shape == wave.shape and silence.dtype == wave.dtype and not silence.any()
    mixed = clip_wave(dataclasses.replace(a, audio="shuffled"))
    assert np.array_equal(np.sort(mixed), np.sort(wave)) and not np.array_equal(mixed, wave)
    assert np.array_equal(mixed, clip_wave(dataclasses.replace(a, audio="shuffled", clip_id="x")))
    # The order is part of what a cached score means: it may never change.
    order = np.random.default_rng(int(a.sha256, 16) >> 4 * (64 - 12))
    assert np.array_equal(mixed, order.permutation(wave))
    other = clip_wave(dataclasses.replace(a, audio="shuffled", sha256=b.sha256))
    assert not np.array_equal(mixed, other)


def test_clips_of_one_sound_are_the_same_samples_and_silence_is_told_by_its_length(tmp_path):
    rng, made = np.random.default_rng(0), []
    kinds = [(1600, 16000), (1600, 16000), (1601, 16000), (800, 8000), (4410, 44100), (1600, 8000)]
    for number, (samples, rate) in enumerate(kinds):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, rng.normal(0, 0.1, (samples, 2)), rate)
        made += [
            dataclasses.replace(clip(f"{number}", source=a), path=path, audio=a) for a in AUDIO
        ]
    data = bytearray((tmp_path / "0.wav").read_bytes())
    data[40:44] = bytes(4)  # a header that tells no length
    (tmp_path / "untold.wav").write_bytes(data)
    made.append(dataclasses.replace(made[1], path=tmp_path / "untold.wav", sha256="another"))
    for how in (AS_IS, Presentation(repeat_to_ms=150, gain="rms", pad_to_ms=300, pad="noise")):
        waves = [clip_wave(one, how).tobytes() for one in made]
        for (a, one), (b, other) in itertools.combinations(zip(made, waves, strict=True), 2):
            assert sound_of(a) != sound_of(b) or one == other
    silent = [sound_of(one) for one in made if one.audio == "silence"]
    assert silent[0] == silent[1] == silent[-1] and len(set(silent)) == 5
    assert len({sound_of(one) for one in made}) == 5 + 2 * len(kinds)  # all others are their own


def test_a_set_is_a_sequence_of_its_clips():
    clips = clip_set()
    assert len(clips) == 7 and list(clips) == list(clips.clips)
    assert clips[2] is clips.clips[2] and clips[-1] is clips.clips[-1]
    assert clips.clips[3] in clips and clip("other") not in clips
    part = clips[1:6:2]
    assert isinstance(part, ClipSet) and part.task is clips.task
    assert part.clips == clips.clips[1:6:2]
    assert clips == ClipSet(SPEECH_TASK, tuple(clips)) != clips[:6]
    with pytest.raises(IndexError):
        clips[7]


@given(st.integers(1, 9), st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_the_first_and_some_clips_stay_in_the_order_asked_for(count, index):
    clips = clip_set()
    assert clips.first(count).clips == clips.clips[:count]
    taken = clips.take(index)
    assert taken.clips == tuple(clips.clips[i] for i in index) and taken.task is clips.task


def test_the_targets_of_a_set_are_those_of_its_clips_in_their_order():
    clips = clip_set()
    t = clips.targets
    assert t.labels == LABELS and t.clip_ids == tuple(f"c{i}" for i in range(7))
    assert t.truth.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert t.sources.tolist() == [f"s{i // 2}" for i in range(7)]
    assert clips.targets is t  # made once
    order = [5, 0, 3]
    assert clips.take(order).targets.clip_ids == t.take(np.array(order)).clip_ids


def test_each_clip_stands_once_for_every_checkpoint_under_its_own_source():
    clips = clip_set(3)
    both = clips.repeat(["a", "b"])
    assert [(c.clip_id, c.checkpoint) for c in both] == [
        ("c0", "a"), ("c0", "b"), ("c1", "a"), ("c1", "b"), ("c2", "a"), ("c2", "b"),
    ]  # fmt: skip
    assert [c.name for c in both][:3] == ["a|c0", "b|c0", "a|c1"]
    assert len(set(both.targets.clip_ids)) == 6
    assert both.targets.sources.tolist() == ["s0", "s0", "s0", "s0", "s1", "s1"]
    assert both.targets.fewest_sources == clips.targets.fewest_sources
    for c in both:
        assert dataclasses.replace(c, checkpoint="") in clips.clips
    assert [c.name for c in clips] == ["c0", "c1", "c2"]  # without a checkpoint: the id


@pytest.mark.parametrize("audio", ["silence", "shuffled"])
def test_a_control_changes_what_is_heard_and_nothing_else(audio):
    clips = clip_set().repeat(["a", "b"])
    control = clips.as_control(audio)
    assert {c.audio for c in control} == {audio} and {c.audio for c in clips} == {"recorded"}
    assert control.as_control("recorded") == clips
    assert control.targets.clip_ids == clips.targets.clip_ids


def test_what_is_read_cannot_be_changed():
    for kind in (Clip, ClipSet):
        assert kind.__dataclass_params__.frozen
