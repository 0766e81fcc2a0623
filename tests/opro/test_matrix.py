import csv
import json

import pytest

from evaluators.prompts import Prompt, dump_prompts
from opro import matrix, optimize, stats
from opro.cli import run_verb
from opro.results.run_folder import count_openings


@pytest.fixture
def made(make_manifest, monkeypatch):
    """A manifest of noise clips, half of the sources in test."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def change(rows):
        for row in rows:
            number = int(row["source_id"].removeprefix("source"))
            row["split"] = "test" if number % 4 < 2 else "dev"

    return make_manifest(sources=48, per_source=4, change=change)


def verb(*argv):
    try:
        return run_verb(lambda: matrix.main([str(a) for a in argv]))
    except SystemExit as stop:
        return stop.code


def flags(made, *more):
    return ["--checkpoint", "fake", "--manifest", made, "--runs-dir", made.parent / "runs", *more]


def result_of(made):
    return json.loads((made.parent / "runs" / "matrix-test" / "matrix.json").read_text())


def test_rows_tables_and_predictions(made, capsys):
    assert verb(*flags(made, "--baselines", "energy")) == 0
    result = result_of(made)
    names = [(r["model"], r["prompt"]) for r in result["rows"]]
    assert [n for n, _ in names] == ["fake"] * 3 + ["energy"]
    assert [p for _, p in names[:3]] == ["baselines 1", "baselines 2", "baselines 3"]
    (reference,) = [r for r in result["rows"] if r["reference"]]
    assert reference["row"] == "A1" and reference["difference"] is None
    assert reference["dev_score"] == max(r["dev_score"] for r in result["rows"][:3])
    p_holm = []
    for r in result["rows"]:
        score = r["balanced_accuracy"]
        assert score["low"] <= score["value"] <= score["high"]
        assert set(r["controls"]) == {"silence", "shuffled"} and r["latency"]["batch"] >= 0
        if r["difference"]:
            gap = score["value"] - reference["balanced_accuracy"]["value"]
            assert r["difference"]["value"] == pytest.approx(gap)
            p_holm.append((r["difference"]["p"], r["difference"]["p_holm"]))
    assert all(a <= b for a, b in p_holm)
    out = made.parent / "runs" / "matrix-test"
    files = sorted((out / "predictions").glob("*.csv"))
    again = stats.statistics(files, stats.Settings(resamples=500), {})
    for entry, r in zip(again["files"], result["rows"], strict=True):
        for name in ("accuracy", "balanced_accuracy", "auroc"):
            assert entry[name]["value"] == pytest.approx(r[name]["value"], abs=1e-4)
    with (out / "matrix.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["balanced_accuracy"]) == pytest.approx(
        result["rows"][0]["balanced_accuracy"]["value"]
    )
    assert (out / "matrix.md").read_text().count("\n") == 2 + 4
    assert (out / "matrix.tex").read_text().count(r"\\") == 1 + 4
    assert "opened 1 times" in capsys.readouterr().out


def test_searched_prompts_join_and_a_second_matrix_scores_nothing_anew(made, capsys):
    assert verb(*flags(made, "--search", "--format", "json")) == 0
    capsys.readouterr()
    first = result_of(made)
    searched = [r for r in first["rows"] if r["searched_on"] == ["fake"]]
    assert len(searched) == 1 and searched[0]["row"] in ("A2", "A1 = A2")
    (run,) = [p.parent for p in (made.parent / "runs").glob("*/summary.json")]
    assert (
        json.loads((run / "summary.json").read_text())["chosen"]["prompt_id"]
        == (searched[0]["prompt_id"])
    )
    assert verb(*flags(made, "--prompts", "prompts/seeds/baselines.yaml", run)) == 0
    second = result_of(made)
    for a, b in zip(first["rows"], second["rows"], strict=True):
        for name in (
            "row",
            "prompt_id",
            "balanced_accuracy",
            "difference",
            "controls",
            "calibrated",
        ):
            assert a[name] == b[name], name


def test_order_of_prompts_changes_no_score(made, tmp_path):
    prompts = [
        Prompt(f"Is it speech {i}?", (("SPEECH", ("A",)), ("NONSPEECH", ("B",))), "x")
        for i in range(3)
    ]
    scores = []
    for name, some in (("a", prompts), ("b", prompts[::-1])):
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_prompts(some))
        assert verb(*flags(made, "--prompts", path)) == 0
        rows = result_of(made)["rows"]
        scores.append({r["prompt_id"]: r["balanced_accuracy"] for r in rows})
    assert scores[0] == scores[1]


def test_a_dry_run_opens_nothing(made, capsys):
    assert verb(*flags(made, "--dry-run", "--search", "--baselines", "energy")) == 0
    out = capsys.readouterr().out
    assert "evals" in out and "energy" in out
    assert not (made.parent / "runs" / "matrix-test").exists()
    from evaluators.manifest import manifest_digest

    assert count_openings(made.parent / "runs", manifest_digest(made)) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--baselines", "siler"], ["'siler'", "silero"]),
        (["--baselines", "energy", "energy"], ["given twice"]),
        (["--checkpoint", "fake", "fake"], ["given twice"]),
        (["--checkpoint", "nothing-here"], ["nothing-here"]),
        (["--prompts", "nothing.yaml"], ["nothing.yaml"]),
        (["--task", "music"], ["'music'"]),
        (["--split", "tset"], ["--split"]),
    ],
)
def test_wrong_use_is_one_sentence_and_opens_nothing(made, capsys, more, words):
    assert verb(*flags(made, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error
    assert not (made.parent / "runs" / "test_openings.jsonl").exists()


def test_an_unfinished_run_is_refused(made, capsys):
    runs = made.parent / "runs"
    argv = ["--checkpoint", "fake", "--manifest", str(made), "--runs-dir", str(runs)]
    argv += ["--name", "x", "--iterations", "1", "--candidates", "2"]
    assert optimize.main(argv) == 0
    (runs / "x" / "summary.json").unlink()
    assert verb(*flags(made, "--prompts", runs / "x")) == 2
    assert "not finished" in capsys.readouterr().err
