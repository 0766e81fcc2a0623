"""Manifests, the order of clips, the halves of dev, the registry, and what a checkpoint has heard."""

import csv
import dataclasses
import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import LABELS
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from evaluators.audio import load
from evaluators.clips import Clip, clip_wave
from evaluators.errors import LeakError, UserError
from evaluators.manifest import NEEDED, manifest_digest, read_manifest, verify
from evaluators.splits import (
    Registry,
    balanced_order,
    check_registry,
    check_trained_on,
    halves,
    load_registry,
    read_registry,
    trained_sources,
    write_registry,
)

UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # making failures small takes minutes here

# What a redrawing may change stands here.


def clip(name, label="SPEECH", source=None, ms=200.0, snr=0.0, split="dev"):
    source = name if source is None else source
    sha = hashlib.sha256(name.encode()).hexdigest()
    return Clip(name, Path(name), label, "x", ms, snr, "c", source, split, "CC0", sha)


def ids(clips):
    return [c.clip_id for c in clips]


def heard(manifest, stored=None, train=None, checkpoint="model"):
    return trained_sources(checkpoint, stored, manifest, train, LABELS)


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


def sha(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def test_order_and_halves_of_the_demo_are_those_of_the_published_runs(dev_clips):
    """The first N clips, and who judges whom, are the same on every machine and in every version."""
    assert sha(ids(balanced_order(dev_clips))) == "238abbdf378dca5c"
    search, fresh = halves(dev_clips)
    assert sha(ids(search)) == "8f8a7670f9876768"
    assert sha(ids(fresh)) == "a95092be24543ac2"


sets = st.lists(
    st.tuples(
        st.integers(0, 9),  # source
        st.sampled_from([200.0, 200.4, 500.0]),
        st.sampled_from([None, -5.0, 0.0, 2.4, 12.6]),
        st.integers(0, 9),  # 0: the source's clip of the other label
    ),
    min_size=1,
    max_size=40,
)


def clips_of(rows):
    return [
        clip(f"c{i}", LABELS[(s % 2) ^ (odd == 0)], f"s{s}", ms, snr)
        for i, (s, ms, snr, odd) in enumerate(rows)
    ]


def place(text):
    return hashlib.sha256(text.encode()).hexdigest()


@settings(max_examples=60, deadline=None, phases=UNSHRUNK, derandomize=True)
@given(sets, st.randoms(use_true_random=False))
def test_the_halves_are_those_of_the_rule_written_out(rows, rng):
    """Label by label, the largest source first, each to the half with fewer clips; whatever the clips' order."""
    clips = clips_of(rows)
    half = {}
    for label in sorted({c.label for c in clips}):
        mine = [c.source_id for c in clips if c.label == label and c.source_id not in half]
        sums, count = [0, 0], [0, 0]
        for source in sorted(set(mine), key=lambda s: (-mine.count(s), place(s))):
            lighter = 0 if (sums[0], count[0]) <= (sums[1], count[1]) else 1
            half[source] = lighter
            sums[lighter] += mine.count(source)
            count[lighter] += 1
    ordered = balanced_order(clips)
    expected = tuple([c for c in ordered if half[c.source_id] == h] for h in (0, 1))
    shuffled = list(clips)
    rng.shuffle(shuffled)
    assert halves(shuffled) == expected
    renamed = [dataclasses.replace(c, clip_id=f"other {c.clip_id}") for c in clips]
    for now, then in zip(halves(renamed), expected, strict=True):
        assert {c.source_id for c in now} == {c.source_id for c in then}


@settings(max_examples=60, deadline=None, phases=UNSHRUNK, derandomize=True)
@given(sets, st.randoms(use_true_random=False))
def test_the_order_is_that_of_the_rule_written_out(rows, rng):
    """The label furthest behind goes next; its cells take turns; in a cell the source heard least."""
    clips = clips_of(rows)
    cells, used, out = {}, {}, []
    for c in sorted(clips, key=lambda c: place(c.clip_id)):
        level = "none" if c.snr_db is None else str(round(c.snr_db / 5) * 5)
        cells.setdefault((c.label, round(c.duration_ms), level), []).append(c)
    turns = {
        label: sorted((k for k in cells if k[0] == label), key=lambda k: place(repr(k)))
        for label in sorted({c.label for c in clips})
    }
    size = {label: sum(c.label == label for c in clips) for label in turns}
    while len(out) < len(clips):
        done = {label: sum(c.label == label for c in out) for label in turns}
        label = min((lab for lab in turns if turns[lab]), key=lambda x: (done[x] / size[x], x))
        key = turns[label].pop(0)
        best = min(cells[key], key=lambda c: used.get(c.source_id, 0))
        cells[key].remove(best)
        used[best.source_id] = used.get(best.source_id, 0) + 1
        turns[label] += [key] if cells[key] else []
        out.append(best)
    shuffled = list(clips)
    rng.shuffle(shuffled)
    assert ids(balanced_order(shuffled)) == ids(out)


some_ids = st.frozensets(st.sampled_from([f"source{i}" for i in range(6)]), max_size=4)


@settings(max_examples=40, deadline=None, phases=UNSHRUNK, derandomize=True)
@given(st.none() | some_ids, st.none() | some_ids, st.none() | st.integers(2, 5), st.booleans())
def test_what_a_checkpoint_heard_is_the_union_of_all_that_tell(
    tmp_path_factory, stored, registered, trained, other
):
    folder = tmp_path_factory.mktemp("heard")
    (folder / "manifest.csv").write_text("never read")
    if registered is not None or other:
        lists = {"another": ("source99",)} if other else {}
        lists |= {} if registered is None else {"model": tuple(registered)}
        write_registry(folder / "registry.json", Registry({}, lists))
    train, train_ids = None, None
    if trained is not None:
        train, train_ids = folder / "train.csv", frozenset(f"source{i}" for i in range(trained))
        rows = [f"{i},a,SPEECH,x,1,,c,source{i},train,l,s" for i in range(trained)]
        rows.append("d,a,SPEECH,x,1,,c,source50,dev,l,s")  # not trained on
        train.write_text("\n".join([",".join(NEEDED), *rows, ""]))
    lists = [s for s in (stored, registered, train_ids) if s is not None]
    expected = frozenset().union(*lists) if lists else None
    assert heard(folder, stored, train) == expected


def test_each_list_alone_makes_a_leak_beside_the_others(make_manifest, tmp_path):
    """A source of the judged clips in the weights' own list, in the registry, or in the train manifest."""
    folder = make_manifest(sources=4)
    clips = read_manifest(folder, LABELS)
    leaks = [frozenset({"source0"}), frozenset({"source1"}), frozenset({"source2"})]
    none = frozenset({"elsewhere"})
    for leaking in (0, 1, 2):
        stored, registered, trained = (leaks[i] if i == leaking else none for i in range(3))
        write_registry(folder / "registry.json", Registry({}, {"model": tuple(registered)}))
        train = tmp_path / "train.csv"
        rows = [f"{s},a,SPEECH,x,1,,c,{s},train,l,s" for s in trained]
        train.write_text("\n".join([",".join(NEEDED), *rows, ""]))
        known = heard(folder, stored, train)
        with pytest.raises(LeakError, match=f"trained on 1 of .*\\(source{leaking}\\)"):
            check_trained_on(clips, known, "model")


@pytest.mark.parametrize("count", [1, 7, 8, 9, 12])
def test_a_leak_lists_the_first_eight_sources(count):
    clips = [clip(f"c{i:02d}") for i in range(12)]
    sources = [c.source_id for c in clips][:count]
    with pytest.raises(LeakError) as error:
        check_trained_on(clips, frozenset(sources), "model")
    listed = ", ".join(sources[:8]) + (", ..." if count > 8 else "")
    assert f"trained on {count} of the sources to be scored ({listed})" in str(error.value)


def test_the_registry_stands_in_the_folder_else_above_it(tmp_path):
    folder = tmp_path / "project" / "clips"
    folder.mkdir(parents=True)
    (folder / "manifest.csv").write_text("x")
    assert read_registry(folder) is None
    above, here = Registry({"a": "dev"}, {}), Registry({"a": "test"}, {})
    write_registry(folder.parent / "registry.json", above)
    assert read_registry(folder) == above == read_registry(folder / "manifest.csv")
    write_registry(folder / "registry.json", here)
    assert read_registry(folder) == here


def test_a_registry_is_written_sorted_and_whole(tmp_path):
    path = tmp_path / "registry.json"
    write_registry(path, Registry({"b": "dev", "ä": "test"}, {"m": ("z", "a"), "k": ()}))
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert raw == {
        "schema": 1,
        "splits": {"b": "dev", "ä": "test"},
        "trained_on": {"k": [], "m": ["a", "z"]},
    }
    assert list(raw["trained_on"]) == ["k", "m"] and "ä" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["registry.json"]
    assert load_registry(path) == Registry({"b": "dev", "ä": "test"}, {"k": (), "m": ("a", "z")})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a split registry"),
        ("[]", "not a split registry"),
        ('{"splits": {}}', "trained_on"),
        ('{"splits": {"a": "held"}, "trained_on": {}}', "split 'held' is not one of"),
        ('{"splits": [], "trained_on": {}}', "not a split registry"),
        ('{"splits": {}, "trained_on": {"m": 3}}', "not a split registry"),
    ],
)
def test_a_damaged_registry_is_refused(tmp_path, text, message):
    (tmp_path / "registry.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_registry(tmp_path / "registry.json")


def test_the_registry_asks_for_every_clip_and_knows_only_its_own_sources(dev_clips):
    for split in ("train", "test"):
        for one in (dev_clips[0], dev_clips[-1]):
            with pytest.raises(LeakError, match=f"registered as '{split}'"):
                check_registry(dev_clips, Registry({one.source_id: split}, {}))
    check_registry(dev_clips, Registry({c.source_id: "dev" for c in dev_clips[:9]}, {}))
    check_registry(dev_clips, Registry({"another": "test"}, {}))
    check_registry(dev_clips, None)


def test_each_split_is_read_alone_and_in_the_order_of_the_file(make_manifest):
    splits = ["test", "dev", "train", "dev"]

    def change(rows):
        for row in rows:
            row["split"] = splits[int(row["source_id"][-1])]

    folder = make_manifest(sources=4, change=change)
    everything = read_manifest(folder, LABELS)
    assert ids(everything) == [f"s{s}-{k}" for s in range(4) for k in range(2)]
    assert everything == read_manifest(folder / "manifest.csv", LABELS)
    for split in ("train", "dev", "test"):
        assert read_manifest(folder, LABELS, split) == [c for c in everything if c.split == split]
    first = everything[0]
    assert (first.path, first.label, first.category) == (folder / "s0-0.wav", "SPEECH", "speech")
    assert (first.duration_ms, first.snr_db, first.condition) == (200.0, 0.0, "k0")
    assert (first.source_id, first.licence, first.audio) == ("source0", "CC0", "recorded")
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()


def test_a_split_without_clips_is_refused(make_manifest):
    folder = make_manifest(sources=2)
    with pytest.raises(UserError, match=r"no clip in split 'test'; it holds \['dev'\]"):
        read_manifest(folder, LABELS, "test")
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(folder / "nowhere", LABELS)


def test_leaking_sources_are_read_where_an_audit_asks_for_them(make_manifest):
    folder = make_manifest(sources=4, change=lambda rows: rows[0].update(split="test"))
    assert len(read_manifest(folder, LABELS, leaks=True)) == 8
    for split in (None, "dev", "test"):
        with pytest.raises(LeakError):
            read_manifest(folder, LABELS, split)


@pytest.mark.parametrize("column", NEEDED)
def test_every_needed_column_is_asked_for_by_name(make_manifest, column):
    folder = make_manifest(sources=1, columns=[c for c in NEEDED if c != column])
    with pytest.raises(UserError, match=f"manifest.csv:1: column '{column}' is missing") as error:
        read_manifest(folder, LABELS)
    assert "data.build import" not in str(error.value)


@pytest.mark.parametrize("column", NEEDED)
def test_no_cell_may_hold_control_characters(make_manifest, column):
    folder = make_manifest(sources=2, change=lambda rows: rows[1].update({column: "a\x1b[2J"}))
    with pytest.raises(UserError, match=f"manifest.csv:3: {column} is .*control characters"):
        read_manifest(folder, LABELS)


def test_a_manifest_of_the_first_study_is_told_how_to_be_imported(tmp_path):
    (tmp_path / "manifest.csv").write_text("clip_id,ground_truth\n")
    with pytest.raises(UserError, match=r"data\.build import"):
        read_manifest(tmp_path, LABELS)


def test_a_short_row_is_named_by_its_line(make_manifest):
    folder = make_manifest(sources=2)
    with (folder / "manifest.csv").open("a") as file:
        file.write("half,a row\n")
    with pytest.raises(UserError, match=r"manifest\.csv:6: not readable as a CSV row"):
        read_manifest(folder, LABELS)


def test_an_empty_snr_is_none_and_a_byte_order_mark_does_no_harm(make_manifest):
    folder = make_manifest(sources=2, change=lambda rows: rows[0].update(snr_db=""))
    path = folder / "manifest.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [c.snr_db for c in read_manifest(folder, LABELS)] == [None, 10.0, 0.0, 10.0]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "", "1,5"])
def test_a_duration_must_be_a_finite_number(make_manifest, value):
    folder = make_manifest(sources=2, change=lambda rows: rows[0].update(duration_ms=value))
    with pytest.raises(UserError, match=r"manifest\.csv:2: duration_ms is .*expected a number"):
        read_manifest(folder, LABELS)


def test_a_file_inside_a_folder_of_the_manifest_may_be_named(make_manifest):
    def change(rows):
        rows[0]["path"] = f"deep/../{rows[0]['path']}"

    folder = make_manifest(sources=1, change=change)
    assert read_manifest(folder, LABELS)[0].path == folder / "s0-0.wav"


def test_what_is_heard_is_the_recording_its_silence_or_its_samples_in_another_order(make_manifest):
    a, b = read_manifest(make_manifest(sources=1), LABELS)
    wave = clip_wave(a)
    assert np.array_equal(wave, load(a.path)) and len(wave) == 3200
    silence = clip_wave(dataclasses.replace(a, audio="silence"))
    assert silence.shape == wave.shape and silence.dtype == wave.dtype and not silence.any()
    mixed = clip_wave(dataclasses.replace(a, audio="shuffled"))
    assert np.array_equal(np.sort(mixed), np.sort(wave)) and not np.array_equal(mixed, wave)
    assert np.array_equal(mixed, clip_wave(dataclasses.replace(a, audio="shuffled", clip_id="x")))
    other = clip_wave(dataclasses.replace(a, audio="shuffled", sha256=b.sha256))
    assert not np.array_equal(mixed, other)


def test_every_file_is_verified_to_the_last(make_manifest):
    folder = make_manifest(sources=3)
    clips = read_manifest(folder, LABELS)
    verify(clips)
    with clips[-1].path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=f"clip '{clips[-1].clip_id}'.*the manifest says"):
        verify(clips)
    verify(clips[:-1])


def test_the_digest_of_a_clip_set_is_that_of_its_manifest_file(make_manifest):
    folder = make_manifest(sources=2)
    path = folder / "manifest.csv"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest_digest(folder) == manifest_digest(path) == digest
    rows = list(csv.reader(path.open()))
    rows[-1][-1] = rows[-2][-1]
    path.write_text("\n".join(map(",".join, rows)))
    assert manifest_digest(folder) != digest


def test_what_is_read_cannot_be_changed():
    for kind in (Clip, Registry):
        assert kind.__dataclass_params__.frozen
