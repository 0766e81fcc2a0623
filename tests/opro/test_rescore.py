import csv
import io
import json

import pytest
from conftest import DEMO, LABELS

from evaluators.manifest import manifest_digest
from evaluators.prompts import Prompt, dump_prompts
from opro import leaderboard, optimize, rescore


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name, seed in (("one", "0"), ("two", "1")):
        argv = [
            "--checkpoint",
            "fake",
            "--iterations",
            "2",
            "--candidates",
            "5",
            "--runs-dir",
            str(tmp_path),
            "--name",
            name,
            "--seed",
            seed,
            "--proposer",
            "rewriter",
        ]
        assert optimize.main(argv) == 0
    return tmp_path / "one"


def verb(module, *argv, code=0):
    assert module.run_verb(lambda: module.main([str(a) for a in argv])) == code


def test_test_scores_come_with_paired_intervals_and_are_counted(folder, capsys):
    for look in (1, 2):
        verb(rescore, folder, "--runs-dir", folder.parent)
        result = json.loads((folder / "test.json").read_text())
        assert result["test_openings"] == look
        assert f"opened {look} times" in capsys.readouterr().out
    first, *others = result["prompts"]
    assert first["baseline"] and first["clips"] == 400 and first["sources"] > 50
    summary = json.loads((folder / "summary.json").read_text())
    assert first["prompt_id"] == summary["baseline"]["prompt_id"]
    assert summary["chosen"]["prompt_id"] in {row["prompt_id"] for row in result["prompts"]}
    for row in others:
        d = row["difference"]
        assert (
            d["value"] == pytest.approx(row["score"] - first["score"])
            and d["low"] <= d["value"] <= d["high"]
            and d["p"] <= d["p_holm"]
        )
        assert row["low"] <= row["score"] <= row["high"]
        assert row["score"] == pytest.approx((row["hit_rate"] + 1 - row["false_alarm_rate"]) / 2)
        assert {"200 ms", "-5 dB", "music"} <= set(row["slices"])
    line = json.loads((folder.parent / "test_openings.jsonl").read_text().splitlines()[0])
    assert line["manifest"] == manifest_digest(DEMO)


def test_dev_is_not_counted(folder):
    verb(rescore, folder, "--split", "dev", "--runs-dir", folder.parent)
    assert json.loads((folder / "dev.json").read_text())["test_openings"] == 0
    assert not (folder.parent / "test_openings.jsonl").exists()


def test_a_prompt_file_is_scored_beside_itself_or_to_out(tmp_path, seeds):
    path = tmp_path / "mine.yaml"
    path.write_text(dump_prompts(seeds))
    flags = ["--checkpoint", "fake", "--runs-dir", tmp_path / "r"]
    verb(rescore, path, *flags)
    assert len(json.loads((tmp_path / "mine.test.json").read_text())["prompts"]) == 3
    verb(rescore, path, *flags, "--out", tmp_path / "o.json")
    assert json.loads((tmp_path / "o.json").read_text())["test_openings"] == 2


def test_an_unfinished_run_may_not_see_the_test_split(folder, capsys):
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(lines[:-1]))
    verb(rescore, folder, "--runs-dir", folder.parent, code=2)
    assert "is not finished" in capsys.readouterr().err
    assert not (folder.parent / "test_openings.jsonl").exists()


def test_nothing_is_scored_when_one_input_is_wrong(folder, tmp_path, capsys):
    verb(rescore, folder, tmp_path / "nowhere.yaml", "--runs-dir", folder.parent, code=2)
    assert "nowhere.yaml' does not exist" in capsys.readouterr().err
    assert (
        not (folder / "test.json").exists() and not (folder.parent / "test_openings.jsonl").exists()
    )


def test_a_damaged_count_is_an_error_not_a_fresh_start(folder, capsys):
    (folder.parent / "test_openings.jsonl").write_text("garbage\n")
    verb(rescore, folder, "--runs-dir", folder.parent, code=2)
    assert "test_openings.jsonl:1: damaged line" in capsys.readouterr().err


def test_leaderboard_in_all_formats(folder, capsys):
    capsys.readouterr()
    verb(leaderboard, "--runs-dir", folder.parent, "--format", "json")
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 26 and set(rows[0]) >= {
        "run",
        "checkpoint",
        "prompt_id",
        "text",
        "score",
        "low",
        "high",
        "clips",
        "origin",
    }
    complete = [r["score"] for r in rows if r["state"] == "complete"]
    assert complete == sorted(complete, reverse=True) and [r["state"] for r in rows] == sorted(
        r["state"] for r in rows
    )
    verb(leaderboard, folder, "--format", "csv")
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(table) == 13 and table[0]["text"]
    verb(leaderboard, folder, "--format", "markdown")
    assert len(capsys.readouterr().out.splitlines()) == 15
    verb(leaderboard, folder)
    assert "dropped early" in capsys.readouterr().out


def test_leaderboard_without_runs_says_how_to_make_one(tmp_path, capsys):
    verb(leaderboard, "--runs-dir", tmp_path, code=2)
    assert "make one with: python -m opro.optimize" in capsys.readouterr().err
    verb(leaderboard, tmp_path, code=2)
    assert "is no run folder" in capsys.readouterr().err


EVIL = '=HYPERLINK("http://x")|`<script>` A or B \\ [red]x[/red]'


def test_untrusted_prompt_text_stays_text_everywhere(tmp_path, capsys):
    path = tmp_path / "evil.yaml"
    path.write_text(dump_prompts([Prompt(EVIL), Prompt("Plain: A or B")]))
    verb(
        optimize,
        "--checkpoint",
        "fake",
        "--iterations",
        "0",
        "--clips",
        "120",
        "--seeds",
        path,
        "--runs-dir",
        tmp_path,
        "--name",
        "evil",
        "--proposer",
        "rewriter",
    )
    assert "[red]x[/red]" in capsys.readouterr().out
    cells = [row["text"] for row in csv.DictReader((tmp_path / "evil" / "leaderboard.csv").open())]
    assert "'" + EVIL in cells
    verb(leaderboard, tmp_path / "evil", "--format", "markdown")
    line = next(x for x in capsys.readouterr().out.splitlines() if "HYPERLINK" in x)
    assert "<script>" not in line and "\\|" in line
    from evaluators.prompts import read_prompts

    assert {p.text for p in read_prompts(path, LABELS)} == {EVIL, "Plain: A or B"}


def test_a_prompt_that_cannot_be_scored_costs_no_look_at_the_test_split(tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text("prompts:\n- text: A or A\n  answers: {SPEECH: A, NONSPEECH: A}\n")
    verb(rescore, path, "--checkpoint", "pocket-base", "--runs-dir", tmp_path, code=2)
    assert "begin with the same tokens" in capsys.readouterr().err
    assert not (tmp_path / "test_openings.jsonl").exists()


def test_a_damaged_run_is_left_out_of_the_leaderboard_and_named(folder, capsys):
    (folder.parent / "two" / "summary.json").write_text("{}")
    capsys.readouterr()
    verb(leaderboard, "--runs-dir", folder.parent, "--format", "json")
    out = capsys.readouterr()
    assert {row["run"] for row in json.loads(out.out)} == {"one"} and "left out" in out.err
    verb(leaderboard, folder.parent / "two", code=2)


def test_finished_runs_show_fresh_scores_in_their_csv(folder):
    rows = list(csv.DictReader((folder / "leaderboard.csv").open()))
    assert sum(bool(row["fresh_score"]) for row in rows) >= 1
