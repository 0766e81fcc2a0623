"""What dev can show is told before anything is spent, and recipes may hold their shares."""

import re

import pytest
from small_recordings import RECIPE, make, make_recordings, rows_of

from data.building.dev_split import more_sources
from evaluators.splits import read_registry


def sources(out, split):
    return {r["source_id"] for r in rows_of(out) if (r["split"], r["label"]) == (split, "SPEECH")}


def test_a_dry_run_of_a_recipe_says_what_its_dev_will_show(recipe, recordings, tmp_path, capsys):
    assert make(recipe, recordings, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "dev shows no gain, however large: it has" in said and "a claim needs 20" in said
    assert "-> let split_by: stratified hold the shares" in said
    many = make_recordings(tmp_path, speech=160, other=40, seconds=0.1)
    recipe.write_text(recipe.read_text().replace("clips_per_cell: 10", "clips_per_cell: 200"))
    assert make(recipe, many, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "dev shows a prompt that is better by" in said and "--renderings" not in said
    assert make(recipe, many, tmp_path / "out", "--dry-run", "--renderings", "4") == 0
    said = capsys.readouterr().out
    gains = [int(n) for n in re.findall(r"shows a prompt that is better by (\d+) points", said)]
    assert "with --renderings all it shows" in said and gains[0] > gains[1]
    assert not (tmp_path / "out").exists()


def test_a_recipe_may_hold_its_shares(recordings, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + "split_by: stratified\n")
    assert make(path, recordings, tmp_path / "out", "--dry-run") == 0
    planned = capsys.readouterr().out
    assert not (tmp_path / "out").exists() and "-> give dev a larger share" in planned
    for split, count in (("train", 10), ("dev", 3), ("test", 3)):
        assert f"{split:6} speech       {count:8} " in planned
    assert make(path, recordings, tmp_path / "out") == 0
    splits = read_registry(tmp_path / "out").splits
    for split, count in (("train", 10), ("dev", 3), ("test", 3)):
        own = {s for s in splits if s.startswith("speech") and splits[s] == split}
        assert len(own) == count and sources(tmp_path / "out", split) <= own
    assert make(path, recordings, tmp_path / "out", "--check") == 0


def test_a_refused_build_leaves_the_registry_as_it_was(recordings, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE + "split_by: stratified\ncap: {SPEECH: 1, NONSPEECH: 1}\n".replace("cap", "match", 0)
    )
    text = path.read_text().replace("cap: {SPEECH: 40, NONSPEECH: 40}\n", "", 1)
    path.write_text(text)
    assert make(path, recordings, tmp_path / "out") == 2
    assert not (tmp_path / "out" / "registry.json").exists()
    project = tmp_path / "project"
    project.mkdir()
    before = '{"splits": {"speech0": "dev"}, "trained_on": {}}'
    (project / "registry.json").write_text(before)
    assert make(path, recordings, project / "out") == 2
    assert (project / "registry.json").read_text() == before
    assert not (project / "out" / "manifest.csv").exists()


def test_groups_of_a_stratified_recipe_stay_together(recordings, tmp_path):
    path = tmp_path / "recipe.yaml"
    group = [f"speech{i}" for i in range(4)]
    path.write_text(RECIPE + f"split_by: stratified\ntogether: [[{', '.join(group)}]]\n")
    assert make(path, recordings, tmp_path / "out") == 0
    splits = read_registry(tmp_path / "out").splits
    assert len({splits[s] for s in group}) == 1


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((10, 500), "SPEECH has 10 sources: add 90 sources"),
        ((500, 26), "NONSPEECH has 26 sources: --splits dev=0.85|NONSPEECH has 26 sources: add 74"),
        ((60, 61), "SPEECH has 60 sources: --splits dev=0.5,test=0.5"),
        ((98, 98), "or add 20 sources"),
    ],
)
def test_the_cure_for_few_sources_fits_their_number(counts, words):
    said = more_sources(dict(zip(("SPEECH", "NONSPEECH"), counts, strict=True)))
    assert any(part in said for part in words.split("|")), said
