"""--renderings: search and decision hear each source in more clips, and all that was counted stays counted."""

import json
import shutil
from dataclasses import replace

import pytest

import opro
from evaluators.names import name_key
from opro import optimize, power, seal, verify
from opro.cli import run_verb
from opro.problem import open_problem
from opro.results.decisions import DECISIONS
from opro.results.run_folder import RunFolder
from opro.settings import OptimizeSettings

FAKE = OptimizeSettings(checkpoint="fake", iterations=1)


def settings(tmp_path, **more):
    return replace(FAKE, runs_dir=tmp_path / "runs", **more).checked()


def test_both_halves_keep_their_clips_and_sources_and_hear_more_of_each(tmp_path):
    first = open_problem(settings(tmp_path))
    more = open_problem(settings(tmp_path, renderings="all"))
    for one, many in (
        (first.search_clips, more.search_clips),
        (first.holdout_clips, more.holdout_clips),
    ):
        assert many.clips[: len(one)] == one.clips and len(many) == 2 * len(one)
        assert {name_key(c.source_id) for c in many} == {name_key(c.source_id) for c in one}
        assert len({c.sha256 for c in many}) == len(many)
    sources = [{c.source_id for c in half} for half in (more.search_clips, more.holdout_clips)]
    assert not sources[0] & sources[1]
    assert open_problem(settings(tmp_path, renderings="2")).holdout_clips == more.holdout_clips
    assert "renderings" not in first.identity and len(str(more.identity["renderings"])) == 64


def test_without_the_flag_a_run_is_called_as_before_and_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("opro.problem.read_renderings", lambda *_: pytest.fail("was read"))
    own = settings(tmp_path)
    assert "renderings" not in own.config
    open_problem(own)
    assert settings(tmp_path, renderings="all").name != own.name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for flags in ([], ["--renderings", "all"]):
        assert optimize.main(["--checkpoint", "fake", "--runs-dir", str(folder), *flags]) == 0
    return folder


def named(runs, **more):
    own = replace(OptimizeSettings(checkpoint="fake", runs_dir=runs), **more).checked()
    return RunFolder.read(own.folder)


def test_the_decision_says_on_how_many_clips_and_counts_as_the_second_on_its_half(runs, capsys):
    one, many = named(runs).finished(), named(runs, renderings="all").finished()
    assert "200 holdout clips of 75 sources" in one.reason
    assert "400 holdout clips of 75 sources" in many.reason and many.turn.number == 2
    flags = ["--checkpoint", "fake", "--runs-dir", str(runs), "--renderings", "all"]
    assert optimize.main(flags) == 0
    said = capsys.readouterr().out
    assert "heard     each source in all of its renderings; it counts as one source" in said
    assert optimize.main([*flags, "--seed", "1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert (
        "selection   on 400 clips of 75 sources, each heard in all of its renderings; 3rd" in said
    )


def test_a_decision_that_was_killed_is_made_again_as_it_was_and_counts_once(runs, tmp_path):
    whole = named(runs, renderings="all")
    kept = tmp_path / "runs"
    shutil.copytree(runs, kept)
    folder = kept / whole.name
    (folder / "summary.json").unlink()
    journal = folder / "trials.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))
    flags = ["--checkpoint", "fake", "--runs-dir", str(kept), "--renderings", "all"]
    assert optimize.main(flags) == 0
    again = named(kept, renderings="all")
    same = {"reason", "gain", "turn", "chosen", "finalists"}
    assert again.finished().model_dump(include=same) == whole.finished().model_dump(include=same)
    assert (kept / DECISIONS).read_text() == (runs / DECISIONS).read_text()


def test_a_card_of_such_a_run_holds_all_clips_and_is_verified(runs, tmp_path):
    run = named(runs, renderings="all")
    card = tmp_path / "card.yaml"
    assert seal.main([str(run.path), "--out", str(card), "--runs-dir", str(runs)]) == 0
    assert "dev-r1-s" in card.read_text()
    assert verify.main([str(card)]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--renderings", "3"], "expected all, or a number up to 2: there are 2"),
        (["--renderings", "0"], "--renderings is '0'"),
        (["--renderings", "some"], "--renderings is 'some'"),
        (["--renderings", "2", "--clips", "100"], "leave one of the two out"),
        (["--renderings", "2", "--split", "train"], "number up to 1: the manifest alone is there"),
    ],
)
def test_wrong_flags(flags, words, tmp_path, capsys):
    flags = ["--checkpoint", "fake", "--runs-dir", str(tmp_path), *flags, "--dry-run"]
    assert run_verb(lambda: optimize.main(flags)) == 2
    assert words in capsys.readouterr().err


def test_a_run_is_not_gone_on_with_other_renderings(tmp_path, capsys):
    demo = tmp_path / "demo"
    shutil.copytree("data/demo", demo, ignore=shutil.ignore_patterns("licences"))
    flags = ["--checkpoint", "fake", "--manifest", str(demo), "--runs-dir", str(tmp_path / "runs")]
    flags += ["--iterations", "0", "--renderings", "all"]
    assert optimize.main(flags) == 0
    table = demo / "renderings.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    assert run_verb(lambda: optimize.main(flags)) == 2
    assert "was made with another renderings" in capsys.readouterr().err


def test_power_has_a_row_for_renderings_and_the_level_that_is_left(runs, capsys, monkeypatch):
    monkeypatch.setattr(power, "GAINS", (0.0,))
    flags = ["--searches", "10", "--candidates", "2", "--runs-dir", str(runs), "--format", "json"]
    assert power.main(flags) == 0
    cells = json.loads(capsys.readouterr().out)
    rows = {c["dev"]: c for c in cells}
    assert {"as it is", "--renderings 2", "4 renderings"} <= set(rows)
    assert (rows["--renderings 2"]["clips"], rows["--renderings 2"]["sources"]) == (800, 149)
    assert {round(c["level"], 6) for c in cells} == {round(0.025 / 6, 6)}  # the third one
    assert power.main([*flags, "--decision", "1"]) == 0
    assert {c["level"] for c in json.loads(capsys.readouterr().out)} == {0.025}
    assert power.main([*flags[:-1], "table", "--decision", "2"]) == 0
    assert "2nd decision on this holdout, level 0.013" in " ".join(capsys.readouterr().out.split())


def test_from_python(tmp_path):
    run = opro.optimize(
        "fake",
        ["Is there speech in this clip? A) yes B) no"],
        "data/demo",
        iterations=0,
        renderings="all",
        runs_dir=tmp_path,
    )
    assert RunFolder.read(run.path).config["renderings"] == "all"
    with pytest.raises(
        opro.UserError, match="clips are given as objects; give the manifest's path"
    ):
        opro.optimize("fake", ["x"], opro.load_clips("data/demo", "dev"), renderings="all")
