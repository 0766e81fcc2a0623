"""Further renderings of a built set: other clips of the same sources, the same bytes every time, audited like all."""

import csv
from collections import Counter

import pytest
from common import LABELS
from small_recordings import RECIPE, digests, make

from data import audit, build
from evaluators.errors import LeakError, UserError
from evaluators.manifest import read_manifest, verify
from evaluators.renderings import FILE, read_renderings


def rendered(recordings, folder, count, recipe=RECIPE):
    path = folder / f"recipe{count}.yaml"
    path.write_text(f"{recipe}renderings: {count}\n" if count > 1 else recipe)
    assert make(path, recordings, folder / f"r{count}") == 0
    return folder / f"r{count}"


@pytest.fixture(scope="module")
def sets(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rendered")
    return {n: rendered(recordings, folder, n) for n in (1, 2, 3)}


def rows(folder, name=FILE):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def write(folder, changed):
    with (folder / FILE).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(changed[0]))
        writer.writeheader()
        writer.writerows(changed)


def test_each_build_holds_the_one_with_fewer_renderings_byte_by_byte(sets):
    made = {n: digests(folder) for n, folder in sets.items()}
    for few, more in ((1, 2), (2, 3)):
        changed = {k for k, v in made[few].items() if made[more].get(k) != v}
        assert changed <= {FILE, "ATTRIBUTION.md"}
    assert rows(sets[3])[: len(rows(sets[2]))] == rows(sets[2])
    assert not (sets[1] / FILE).exists() and read_renderings(sets[1], LABELS) == ()


def test_a_rendering_is_one_more_clip_of_each_source_for_each_it_has_in_even_cells(sets):
    first = [c for c in read_manifest(sets[3], LABELS) if c.split != "train"]
    own = Counter((c.source_id, c.label, round(c.duration_ms)) for c in first)
    found = read_renderings(sets[3], LABELS)
    assert len(found) == 2
    for clips in found:
        verify(clips)
        assert Counter((c.source_id, c.label, round(c.duration_ms)) for c in clips) == own
        assert Counter(c.condition for c in clips) == Counter(c.condition for c in first)
    every = [*first, *(c for one in found for c in one)]
    assert len({c.sha256 for c in every}) == len(every)
    cells = {(r["recording"], r["start_s"], r["condition"], r["pcm_sha256"]) for r in rows(sets[3])}
    assert len(cells) == len(rows(sets[3]))


def test_only_the_split_asked_for(sets):
    dev = read_renderings(sets[2], LABELS, "dev")
    assert {c.split for one in dev for c in one} == {"dev"} and len(dev[0]) == 16


def test_the_build_says_what_the_renderings_are(recordings, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    flags = [str(recipe), "--recordings", str(recordings), "--out", str(tmp_path / "o")]
    assert build.main([*flags, "--renderings", "3", "--dry-run"]) == 0
    assert "2 further renderings of dev and test, of 32 clips each" in capsys.readouterr().out
    assert build.main([*flags, "--renderings", "0"]) == 2
    assert "--renderings is 0; expected 1 to 100" in capsys.readouterr().err
    assert build.main([*flags, "--renderings", "4", "--processes", "1"]) == 0
    said = capsys.readouterr().err
    assert "rendering 3 of dev: 16 clips of" in said
    assert "are of a cut that an earlier clip has, with other noise" in said


@pytest.mark.slow  # the same plan with conditions in place of cells
def test_variants_are_rendered_of_other_cuts_with_all_their_conditions(recordings, tmp_path):
    recipe = RECIPE.replace("design: factorial", "design: variants").replace(
        "clips_per_cell: 10", "base_clips: 10\nbase_ms: 500"
    )
    out = rendered(recordings, tmp_path, 2, recipe)
    first = [r for r in rows(out, "manifest.csv") if r["split"] != "train"]
    more = rows(out)
    assert Counter(r["condition"] for r in more) == Counter(r["condition"] for r in first)
    assert not {r["pcm_sha256"] for r in first} & {r["pcm_sha256"] for r in more}


@pytest.mark.slow  # a further build
def test_check_rebuilds_renderings_too(sets, recordings, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"{RECIPE}renderings: 2\n")
    assert make(recipe, recordings, sets[2], "--check") == 0
    victim = sets[2] / rows(sets[2])[3]["path"]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-8])
    try:
        assert make(recipe, recordings, sets[2], "--check") == 1
        assert rows(sets[2])[3]["clip_id"] in capsys.readouterr().out
    finally:
        victim.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r, m: r.update(source_id="nobody"), "has no clip in the manifest"),
        (lambda r, m: r.update(split="test" if r["split"] == "dev" else "dev"), "in the manifest"),
        (lambda r, m: r.update(rendering="0"), "expected 1 to 1000, the manifest is rendering 0"),
        (lambda r, m: r.update(rendering="two"), "rendering is 'two'"),
        (lambda r, m: r.update(clip_id=m["clip_id"]), "would count twice"),
        (lambda r, m: r.update(sha256=m["sha256"], path=m["path"]), "would count twice"),
    ],
)
def test_what_no_rendering_is_is_refused(sets, change, words):
    before = (sets[2] / FILE).read_bytes()
    changed = rows(sets[2])
    source = changed[0]["source_id"]
    own = next(r for r in rows(sets[2], "manifest.csv") if r["source_id"] == source)
    change(changed[0], own)
    # Of a source that has one row here, so that the table alone is no leak.
    write(sets[2], [changed[0], *(r for r in changed[1:] if r["source_id"] != source)])
    try:
        with pytest.raises((UserError, LeakError), match=words):
            read_renderings(sets[2], LABELS)
    finally:
        (sets[2] / FILE).write_bytes(before)


def test_the_audit_hears_all_renderings_and_finds_what_none_is(sets, capsys):
    flags = [str(sets[2]), "--no-voice", "--page", str(sets[2].parent / "page.html")]
    before = (sets[2] / FILE).read_bytes()
    changed = rows(sets[2])
    changed[0] |= {"source_id": "nobody"}
    write(sets[2], changed)
    try:
        assert audit.main(flags) == 1
    finally:
        (sets[2] / FILE).write_bytes(before)
    said = capsys.readouterr().out
    assert "32 of the clips are further renderings (renderings.csv)" in said
    assert "112 clips," in said and "has no clip in the manifest" in said
