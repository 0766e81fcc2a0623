import dataclasses
import random

import pytest
from conftest import DEMO, LABELS

from evaluators.errors import LeakError, UserError
from evaluators.manifest import read_manifest, verify
from evaluators.splits import (
    Registry,
    balanced_order,
    check_registry,
    check_trained_on,
    halves,
    read_registry,
    write_registry,
)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("label", "MUSIC", "label 'MUSIC' is not one of SPEECH, NONSPEECH"),
        ("split", "held", "split 'held' is not one of train, dev, test"),
        ("path", "../outside.wav", "leaves the folder"),
        ("path", "/etc/hostname", "leaves the folder"),
        ("duration_ms", "long", "duration_ms is 'long'; expected a number"),
        ("snr_db", "nan", "snr_db is 'nan'; expected a number"),
        (
            "clip_id",
            "s1-0",
            "manifest.csv:4: clip_id 's1-0' stands in two rows, the other is line 2",
        ),
    ],
)
def test_a_bad_row_is_named(make_manifest, field, value, message):
    folder = make_manifest(sources=4, change=lambda rows: rows[0].update({field: value}))
    with pytest.raises(UserError, match=message):
        read_manifest(folder, LABELS)


def test_a_missing_column_is_named(make_manifest):
    folder = make_manifest(sources=4, columns=("clip_id", "path", "label"))
    with pytest.raises(UserError, match="column 'category' is missing"):
        read_manifest(folder, LABELS)


def test_a_source_in_two_splits_is_refused(make_manifest):
    folder = make_manifest(sources=4, change=lambda rows: rows[0].update(split="test"))
    with pytest.raises(UserError, match="source 'source0' is in split 'test' and in 'dev'"):
        read_manifest(folder, LABELS)


def test_a_changed_file_is_found(make_manifest):
    folder = make_manifest(sources=4)
    clips = read_manifest(folder, LABELS)
    verify(clips)
    clips[2].path.write_bytes(b"other")
    with pytest.raises(UserError, match=f"clip '{clips[2].clip_id}'.*the manifest says"):
        verify(clips)
    clips[2].path.unlink()
    with pytest.raises(UserError, match="is missing"):
        verify(clips)


def test_balanced_order_does_not_depend_on_the_order_of_the_file(dev_clips):
    shuffled = list(dev_clips)
    random.Random(1).shuffle(shuffled)
    assert balanced_order(shuffled) == balanced_order(dev_clips)
    assert sorted(c.clip_id for c in shuffled) == sorted(
        c.clip_id for c in balanced_order(dev_clips)
    )


@pytest.mark.parametrize("count", [20, 40, 80, 200])
def test_every_prefix_is_balanced(dev_clips, count):
    first = balanced_order(dev_clips)[:count]
    speech = [c for c in first if c.label == "SPEECH"]
    assert abs(len(speech) - count / 2) <= 1
    for duration in (200, 300, 500, 1000):
        assert abs(sum(round(c.duration_ms) == duration for c in speech) - len(speech) / 4) <= 4


def test_halves_share_no_source_and_have_enough(dev_clips):
    search, fresh = halves(dev_clips)
    assert not {c.source_id for c in search} & {c.source_id for c in fresh}
    assert sorted(c.clip_id for c in search + fresh) == sorted(c.clip_id for c in dev_clips)
    for half in (search, fresh):
        assert len({c.source_id for c in half if c.label == "SPEECH"}) >= 10
        assert len({c.source_id for c in half if c.label == "NONSPEECH"}) >= 20
    backwards = halves(dev_clips[::-1])
    assert backwards == (search, fresh)


def test_the_registry_refuses_a_source_that_changed_its_split(tmp_path, dev_clips):
    registry = Registry({dev_clips[0].source_id: "train"}, {"model": ("a",)})
    write_registry(tmp_path / "registry.json", registry)
    (tmp_path / "manifest.csv").write_text("x")
    assert read_registry(tmp_path) == registry
    with pytest.raises(UserError, match="registered as 'train' but the manifest says 'dev'"):
        check_registry(dev_clips, registry)


def test_a_checkpoint_may_not_be_judged_on_what_it_heard(dev_clips):
    assert check_trained_on(dev_clips, frozenset({"somebody else"}), "model") == []
    heard = frozenset({dev_clips[5].source_id})
    with pytest.raises(
        LeakError, match=f"trained on 1 of the sources to be scored \\({dev_clips[5].source_id}"
    ):
        check_trained_on(dev_clips, heard, "model")
    (warning,) = check_trained_on(dev_clips, heard, "model", "allow")
    assert "scores measure memory" in warning
    (warning,) = check_trained_on(dev_clips, None, "model")
    assert "is unknown" in warning


def test_clips_are_frozen(dev_clips):
    with pytest.raises(dataclasses.FrozenInstanceError):
        dev_clips[0].label = "NONSPEECH"
    assert (DEMO / "manifest.csv").exists()
