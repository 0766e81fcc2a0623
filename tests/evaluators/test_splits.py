"""The order of clips, the halves of dev, the registry, and what a checkpoint was trained on."""

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import pytest
from common import DEMO, LABELS
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from evaluators.clips import Clip
from evaluators.errors import LeakError, UserError
from evaluators.manifest import NEEDED, read_manifest
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


def clip(name, label="SPEECH", source=None, ms=200.0, snr=0.0, split="dev"):
    source = name if source is None else source
    sha = hashlib.sha256(name.encode()).hexdigest()
    return Clip(name, Path(name), label, "x", ms, snr, "c", source, split, "CC0", sha)


def ids(clips):
    return [c.clip_id for c in clips]


def heard(manifest, stored=None, train=None, checkpoint="model"):
    return trained_sources(checkpoint, stored, manifest, train, LABELS)


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
    assert check_trained_on(dev_clips, frozenset(), "model") == []  # known: on nothing
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
        ("{", "registry.json: not readable as JSON"),
        ("[]", "not a split registry"),
        ('{"splits": {}}', "trained_on"),
        ('{"splits": {"a": "held"}, "trained_on": {}}', "split 'held' is not one of"),
        ('{"splits": [], "trained_on": {}}', "not a split registry"),
        ('{"splits": {}, "trained_on": {"m": 3}}', "not a split registry"),
        ('{"splits": {}, "trained_on": {"m": "abc"}}', "no list of source ids"),
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


def test_a_registry_cannot_be_changed():
    assert Registry.__dataclass_params__.frozen


def test_the_registry_that_ships_is_written_as_it_is_read(tmp_path):
    ours = DEMO / "registry.json"
    write_registry(tmp_path / "registry.json", read_registry(ours))
    assert (tmp_path / "registry.json").read_bytes() == ours.read_bytes()


NFC, NFD = "J\u00fcrgen", "Ju\u0308rgen"


@pytest.mark.parametrize("other", [NFD, f"{NFC} ", "J\u00dcRGEN"])
def test_a_source_is_known_in_every_spelling(tmp_path, other):
    """The registry, what a checkpoint was trained on, and the error: none compares bytes."""
    mine = clip("c0", source=NFC)
    with pytest.raises(LeakError, match="registered as 'train' but the manifest says 'dev'"):
        check_registry([mine], Registry({other: "train"}, {}))
    check_registry([mine], Registry({other: "dev"}, {}))
    with pytest.raises(LeakError, match="trained on 1 of the sources"):
        check_trained_on([mine], frozenset({other}), "model")
    write_registry(tmp_path / "registry.json", Registry({NFC: "train", other: "test"}, {}))
    with pytest.raises(
        UserError, match=r"source '.*' has two splits .written .*, which is one name"
    ):
        load_registry(tmp_path / "registry.json")
