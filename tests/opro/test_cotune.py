"""The verb: searches and trainings in turns, one honest sequence of decisions, nothing lost by a kill."""

import contextlib
import csv
import io
import json

import pytest
import yaml
from common import LABELS
from tuned_fakes import in_splits, use_tuned

from evaluators.classifier import read_classifiers
from evaluators.errors import PauseError, UserError
from evaluators.manifest import read_manifest
from evaluators.splits import halves
from evaluators.statistics.compare import compare
from opro import cotune, finetune, matrix
from opro.optimize import run as run_search
from opro.optimize import search_only
from opro.results.cotuned import is_cotuned, read_best
from opro.results.decisions import DECISIONS
from opro.results.predictions import read_own
from opro.settings import OptimizeSettings

MUCH = {"pocket-base": -1.0, "lora-1": -0.4, "lora-2": 0.4, "lora-3": 0.5}


@pytest.fixture
def clips(make_manifest):
    return make_manifest(sources=96, per_source=4, change=in_splits)


@pytest.fixture(scope="module")
def walked(write_manifest, tmp_path_factory):
    """(Clips with a walk of at most five rounds, its trainings, what it printed)."""
    made = write_manifest(tmp_path_factory.mktemp("walked"), 96, 4, in_splits)
    with pytest.MonkeyPatch.context() as patch:
        _, trained = use_tuned(patch, MUCH)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert cotune.main(flags(made, "--rounds", "5")) == 0
        yield made, trained, out.getvalue(), err.getvalue()


def flags(clips, *more):
    runs = clips.parent / "runs"
    return [str(a) for a in ("--manifest", clips, "--runs-dir", runs, "--out", runs / "walk",
                             "--iterations", 1, "--candidates", 4, *more)]  # fmt: skip


def walk_of(clips):
    return json.loads((clips.parent / "runs" / "walk" / "cotune.json").read_text())


def ledger(clips):
    path = clips.parent / "runs" / DECISIONS
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def no_times(document):
    """A document without what differs from process to process."""
    own = {k: v for k, v in document.items() if k not in ("total", "provenance")}
    return own | {"steps": [{**s, "seconds": 0} for s in own["steps"]]}


def test_it_goes_on_until_fresh_clips_confirm_no_more(walked):
    clips, trained, out, err = walked
    walk = walk_of(clips)
    assert [r["confirmed"] for r in walk["rounds"]] == [False, True, True, False]
    assert walk["best"]["round"] == 2 and walk["best"]["checkpoint"].endswith("lora-2")
    last = walk["rounds"][3]
    assert (
        last["search"]["value"] > walk["rounds"][2]["search"]["value"] and last["gain"]["p"] > 0.025
    )
    assert walk["stopped"].startswith("round 3: not confirmed: gains") and not walk["baseline_kept"]
    # Each trains the adapter before it further, on the prompts that led there, the leader first.
    names = [s.checkpoint.rpartition("/")[2] for s, _ in trained]
    assert names == ["pocket-base", "lora-1", "lora-2"]
    assert all(1 <= len(prompts) <= 4 for _, prompts in trained)
    assert trained[1][1][0].text == walk["rounds"][1]["text"]
    assert [s["kind"] for s in walk["steps"]] == ["search", *["train", "search"] * 3]
    assert walk["total"]["steps"] == 9
    assert "BEST" in out and walk["commands"][0] in out and "step 7 of at most 11" in err
    assert "left" in err.partition("step 4 ")[2].splitlines()[0]
    folder = clips.parent / "runs" / "walk"
    best = read_classifiers(folder / "best.yaml", LABELS)
    assert [c.to_dict() for c in best] == [walk["best"]["classifier"]]
    with (folder / "cotune.csv").open(newline="") as file:
        assert [r["round"] for r in csv.DictReader(file)] == ["0", "1", "2", "3"]
    assert "best pair" in (folder / "cotune.md").read_text()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["front"] == 4 and "rounds" not in config and "runs_dir" not in config


def test_each_round_is_compared_at_the_whole_level_of_one_decision(walked):
    clips = walked[0]
    walk = walk_of(clips)
    assert walk["turn"] == {"number": 1, "level": 0.025, "left": 0.025} and len(ledger(clips)) == 1
    fresh = {name: read_own(clips.parent / "runs" / "walk" / "predictions" / f"round-{name}.csv", LABELS)
             for name in (0, 1, 2)}  # fmt: skip
    for number in (1, 2):
        again = compare(fresh[number], fresh[number - 1])
        told = walk["rounds"][number]["gain"]
        assert told["value"] == pytest.approx(again.value) and told["p"] == again.p < 0.025


def test_the_same_command_shows_it_again_and_other_settings_are_another_walk(walked, capsys):
    clips, trained, _, _ = walked
    before, count = no_times(walk_of(clips)), len(trained)
    assert cotune.main(flags(clips, "--rounds", "5")) == 0
    assert no_times(walk_of(clips)) == before and len(ledger(clips)) == 1
    assert len(trained) == count
    with pytest.raises(UserError, match="was started with front = 4, now it is 2"):
        cotune.main(flags(clips, "--front", "2"))


def test_the_matrix_has_a_row_for_the_pair(walked, tmp_path):
    folder = walked[0].parent / "runs" / "walk"
    checkpoint, best = read_best(folder, LABELS)
    settings = matrix.MatrixSettings(manifest=walked[0])
    (entry,) = matrix._entries([folder], matrix.open_data(settings), settings)
    assert entry.searched_on == (checkpoint,) and entry.classifier == best and not entry.from_file
    (tmp_path / "cotune.json").write_text("{}")
    with pytest.raises(UserError, match="no best pair"):
        read_best(tmp_path, LABELS)


def test_a_longer_walk_goes_on_and_another_one_is_a_further_decision(clips, monkeypatch):
    use_tuned(monkeypatch, MUCH)
    assert cotune.main(flags(clips, "--rounds", "1")) == 0
    first = walk_of(clips)
    assert "larger --rounds" in first["stopped"]
    assert cotune.main(flags(clips, "--rounds", "2")) == 0
    longer = walk_of(clips)
    assert longer["rounds"][:2] == first["rounds"] and len(longer["rounds"]) == 3
    assert len(ledger(clips)) == 1
    other = [
        *flags(clips, "--seed", "1", "--rounds", "1"),
        "--out",
        str(clips.parent / "runs" / "other"),
    ]
    assert cotune.main(other) == 0
    raw = json.loads((clips.parent / "runs" / "other" / "cotune.json").read_text())
    assert raw["turn"]["number"] == 2 and raw["turn"]["level"] == 0.0125


def test_nothing_but_the_decisions_hears_the_holdout(clips, monkeypatch):
    heard, _ = use_tuned(monkeypatch, MUCH)
    fresh = {c.clip_id for c in halves(read_manifest(clips, LABELS, "dev"))[1]}
    real, before = cotune.record_decision, []

    def record_decision(*given):
        before.append(fresh & set(heard))
        return real(*given)

    monkeypatch.setattr(cotune, "record_decision", record_decision)
    assert cotune.main(flags(clips, "--rounds", "1")) == 0
    assert before == [set()] and fresh <= set(heard)
    test = {c.clip_id for c in read_manifest(clips, LABELS, "test")}
    assert not test & set(heard)


def test_what_is_no_better_is_not_confirmed_and_the_checkpoint_stays_as_it_is(clips, monkeypatch):
    use_tuned(monkeypatch, {"lora-1": -2.0})
    assert cotune.main(flags(clips, "--iterations", "0")) == 0
    walk = walk_of(clips)
    assert walk["baseline_kept"] and walk["best"]["checkpoint"] == "pocket-base"
    # Without candidates the seeds lead on the base itself: there is no new pair, and no decision is spent.
    assert "nothing is compared" in walk["stopped"] and walk["turn"] is None and not ledger(clips)
    assert all(r["holdout"] is None for r in walk["rounds"])


def test_with_fewer_than_ten_sources_no_claim_is_made(make_manifest, monkeypatch, capsys):
    clips = make_manifest(sources=32, per_source=4, change=in_splits)
    use_tuned(monkeypatch, MUCH)
    assert cotune.main(flags(clips)) == 0
    walk = walk_of(clips)
    assert "no claim" in walk["stopped"] and walk["baseline_kept"] and not ledger(clips)
    assert walk["rounds"][1]["gain"]["value"] > 0.1 and "4 sources" in walk["warnings"][0]


def test_a_walk_that_was_interrupted_ends_as_the_one_that_was_not(walked, clips, monkeypatch):
    _, trained = use_tuned(monkeypatch, MUCH)
    real = finetune.run

    def run(*given):
        if len(trained) == 1:
            raise PauseError("the disk is full")
        real(*given)

    monkeypatch.setattr(finetune, "run", run)
    with pytest.raises(PauseError):
        cotune.main(flags(clips, "--rounds", "5"))
    assert not is_cotuned(clips.parent / "runs" / "walk")
    monkeypatch.setattr(finetune, "run", real)
    assert cotune.main(flags(clips, "--rounds", "5")) == 0
    one, two = walk_of(walked[0]), walk_of(clips)
    for part in ("classifier", "search", "holdout", "gain", "confirmed", "why"):
        assert [r[part] for r in one["rounds"]] == [r[part] for r in two["rounds"]]
    assert one["turn"] == two["turn"] and len(ledger(clips)) == 1


def test_a_dry_run_tells_the_plan_and_writes_nothing(clips, monkeypatch, capsys):
    use_tuned(monkeypatch, MUCH)
    assert cotune.main([*flags(clips, "--rounds", "2"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "at most 2 rounds: 3 searches and 2 trainings" in said and "each round at 0.025" in said
    assert not (clips.parent / "runs" / "walk").exists()


def test_a_search_that_decides_later_is_the_search_that_decides(clips, monkeypatch, capsys):
    use_tuned(monkeypatch, {})
    journals = []
    for folder, first in (("a", True), ("b", False)):
        settings = OptimizeSettings(
            manifest=clips, iterations=1, candidates=4, runs_dir=clips.parent / folder
        )
        if first:
            run = search_only(settings)
            assert run.summary is None and not (clips.parent / folder / DECISIONS).exists()
        journals.append((run_search(settings) / "trials.jsonl").read_bytes())
    assert journals[0] == journals[1]
