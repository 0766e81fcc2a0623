"""`opro.brittle`: trivial edits of a run's prompts and the worth of phrases, in its file, on screen and page."""

import json
import re
import shutil
from pathlib import Path

import pytest

from evaluators.classifier import Classifier
from evaluators.fakes import FakeEvaluator
from evaluators.orders import BothOrders
from evaluators.statistics.compare import compare
from opro import brittle, optimize, report
from opro.cli import run_verb
from opro.problem import open_data
from opro.results.brittle import PhrasePart, Worth, read_brittle
from opro.results.brittle_page import brittle_of, pieces
from opro.results.run_folder import RunFolder
from opro.search.brittleness import CLIPS
from opro.settings import DataSettings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run whose decision looked at 12 edits, and what `opro.brittle` made of it."""
    folder = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.delenv("OPENAI_API_KEY", raising=False)
    words = f"--checkpoint fake --runs-dir {folder} --name r --iterations 1 --candidates 4 --clips 200 --brittleness 12"
    assert optimize.main(words.split()) == 0
    assert brittle.main([f"{folder}/r", "--runs-dir", str(folder), "--edits", "15"]) == 0
    patch.undo()
    return folder


@pytest.fixture
def runs(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "runs")


def test_the_file_holds_what_the_comparison_says(whole):
    found, run = read_brittle(whole / "r"), RunFolder.read(whole / "r")
    summary = run.finished()
    names = [summary.chosen, summary.baseline, *summary.finalists]
    assert [b.prompt_id for b in found.brittleness] == list(
        dict.fromkeys(n.prompt_id for n in names)
    )
    assert found.chosen == summary.chosen.prompt_id and not found.warnings
    data = open_data(DataSettings("speech", Path(run.config["manifest"])))
    clips = brittle.search_half(run, data, run.best.prompt)
    held = {line.split(",")[0] for line in run.holdout(found.chosen).read_text().splitlines()[1:]}
    assert len(clips) == found.clips and not held & {c.name for c in clips}
    model = BothOrders(FakeEvaluator())
    whole_prompt = run.best
    table = model.score([whole_prompt.prompt], clips)
    own = table.predict(whole_prompt)
    phrases = {p.text: p for p in brittle.phrases(whole_prompt.prompt)}
    scored = [p for p in found.phrases if p.worth]
    assert len(scored) >= 3 and all((p.worth is None) == bool(p.why_not) for p in found.phrases)
    for one in scored:
        rest = phrases[one.text].without
        said = model.score([rest], clips).predict(Classifier(rest, whole_prompt.bias))
        gain = compare(own, said)
        assert (gain.value, gain.low, gain.high) == pytest.approx(
            (one.as_it_is.value, one.as_it_is.low, one.as_it_is.high)
        )
        assert one.worth.value <= one.as_it_is.value + 1e-9  # a threshold of its own cannot harm


def test_the_decision_and_the_verb_measure_alike_and_evals_are_counted(whole, capsys):
    found, summary = read_brittle(whole / "r"), RunFolder.read(whole / "r").finished()
    decided = {b.prompt_id: b for b in summary.brittleness}
    assert len(decided) == 1 + len(summary.finalists)
    for one in found.brittleness:
        first = decided[one.prompt_id]
        assert (first.score, first.clips) == (one.score, one.clips) and one.clips <= CLIPS
        assert first.edits == one.edits[:12] and len(one.edits) == 15
    assert brittle.main([str(whole / "r"), "--runs-dir", str(whole), "--edits", "15"]) == 0
    most = int(re.search(r"scores  ([\d,]+) evals at most", capsys.readouterr().out)[1].replace(",", ""))  # fmt: skip
    assert read_brittle(whole / "r").evals == most


def test_the_screen_says_it(whole, capsys):
    argv = ["--checkpoint", "fake", "--runs-dir", str(whole), "--name", "r", "--iterations", "1"]
    argv += ["--candidates", "4", "--clips", "200", "--brittleness", "12"]
    assert optimize.main(argv) == 0
    out = capsys.readouterr().out
    assert re.search(r"^brittle   .*of 12 trivial edits nine in ten leave \d", out, re.M)
    assert optimize.main([*argv, "--dry-run", "--name", "other"]) == 0
    assert re.search(r"brittle     [\d,]+ of them at most are trivial edits", capsys.readouterr().out)  # fmt: skip


def test_without_edits_the_phrases_alone(runs):
    assert brittle.main([str(runs / "r"), "--runs-dir", str(runs), "--edits", "0"]) == 0
    found = read_brittle(runs / "r")
    assert found.brittleness == () and found.phrases
    shown = brittle_of(run := RunFolder.read(runs / "r"), run.summary)
    assert "of 12 trivial edits" in shown["line"] and shown["phrases"]  # those of the decision
    assert brittle_of(run, None) is None


def test_what_is_about_another_prompt_is_left_out_of_the_page(runs):
    path = runs / "r" / "brittle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chosen": "0" * 12}))
    shown = brittle_of(run := RunFolder.read(runs / "r"), run.summary)
    assert "about another prompt" in shown["note"] and not shown["phrases"] and shown["sheet"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "summary.json").unlink(), "is not finished"),
        (lambda run: shutil.rmtree(run / "scores"), "so it is unknown which clips"),
        (lambda run: (run / "brittle.json").unlink() or (run / "brittle.json").mkdir(), "brittle.json"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_sentence(runs, capsys, spoil, said):
    spoil(runs / "r")
    assert run_verb(lambda: brittle.main([str(runs / "r"), "--runs-dir", str(runs)])) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_a_damaged_file_says_how_it_is_made_again(runs, capsys):
    (runs / "r" / "brittle.json").write_text('{"run": "r"}')
    assert run_verb(lambda: report.main([str(runs / "r")])) == 2
    assert "python -m opro.brittle" in capsys.readouterr().err


def phrase(start, text, value, reach=0.01, kind="clause"):
    about = {"kind": kind, "start": start, "end": start + len(text), "text": text, "without": None}
    if value is None:
        return PhrasePart(**about, why_not="why")
    bounds = {"low": value - reach, "high": value + reach}
    return PhrasePart(**about, worth=Worth(value=value, p_holm=0.1, **bounds))


def test_the_text_is_whole_and_coloured_by_worth():
    text = "Listen. Is it <b>? A) Yes"
    found = [
        phrase(0, text[:18], 0.5, kind="whole sentence"),
        phrase(0, "Listen.", 0.1),
        phrase(8, "Is it <b>?", -0.05, reach=0.2),
        phrase(22, "Yes", None),
    ]
    made = pieces(text, found)
    assert "".join(piece for piece, *_ in made) == text
    styles = {piece: style for piece, style, _ in made}
    assert "43,138,75,0.15" in styles["Listen."] and "solid" in styles["Listen."]
    assert "192,57,43" in styles["Is it <b>?"] and "solid" not in styles["Is it <b>?"]
    assert "dotted" in styles["Yes"] and styles[" A) "] == ""
