import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from evaluators.prompts import Prompt, dump_prompts
from evaluators.statistics.describe import DEFINITIONS
from opro import matrix, optimize, report
from opro.cli import run_verb
from opro.results import page

NASTY = 'Is <script>alert(1)</script> & "it" $speech$ {{ 7*7 }}?\nA) </pre><b>yes\nB) _no'


class Page(HTMLParser):
    """Tags that are open, what they refer to, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.text = [], [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.links.append(value)
            if name == "id":
                self.ids.add(value)

    def handle_data(self, data):
        self.text += data


def verb(*argv):
    return run_verb(lambda: report.main([str(a) for a in argv]))


@pytest.fixture
def run(make_manifest, tmp_path, monkeypatch):
    """A finished search with a hostile seed prompt, on clips of three durations."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    answers = (("SPEECH", ("A",)), ("NONSPEECH", ("B",)))
    seeds = tmp_path / "seeds.yaml"
    seeds.write_text(dump_prompts([Prompt(NASTY, answers, "x")]))

    def change(rows):
        for i, row in enumerate(rows):
            row["duration_ms"] = (200, 300, 500)[i % 3]

    folder = make_manifest(sources=60, per_source=6, change=change)
    argv = ["--checkpoint", "fake", "--manifest", str(folder), "--runs-dir", str(tmp_path)]
    argv += ["--name", "run", "--iterations", "2", "--candidates", "6", "--seeds", str(seeds)]
    assert optimize.main(argv) == 0
    return tmp_path / "run"


def check(path):
    text = path.read_text()
    page = Page(text)
    assert len(text.encode()) < 5 * 2**20
    assert "script" not in page.tags and "49" not in re.findall(r"\$speech\$ (\d+)", page.text)
    for link in page.links:
        assert link.startswith(("data:", "#")), link  # nothing from a network
        assert not link.startswith("#") or link[1:] in page.ids
    assert not re.search(r"(?<!=\")https?://", text)  # but for the names of XML
    return text, page


def test_a_run_becomes_one_page(run, capsys):
    assert verb(run) == 0
    text, shown = check(run / "report.html")
    assert shown.tags.count("svg") >= 3 and shown.tags.count("audio") >= 1
    assert shown.tags.count("audio") == shown.tags.count("img")
    assert "<script>alert(1)</script>" in shown.text and "&lt;script&gt;" in text
    summary = json.loads((run / "summary.json").read_text())
    assert summary["reason"] in shown.text
    assert "DT75" in shown.text and "music" in shown.text
    for definition in DEFINITIONS.values():
        assert f"Thresholds, {definition}:" in shown.text
    assert verb(run, "--out", run.parent / "other.html") == 0
    assert (run.parent / "other.html").read_text() == text


def test_per_clip_results_of_the_holdout_are_kept(run):
    from opro.results.predictions import read_predictions

    summary = json.loads((run / "summary.json").read_text())
    for one in (summary["baseline"], *summary["finalists"]):
        j = read_predictions(run / "scores" / "fresh" / f"{one['prompt_id']}.csv", "SPEECH", {})
        truth, right = j.targets.truth, j.right
        score = (right[truth == 0].mean() + right[truth == 1].mean()) / 2
        assert score == pytest.approx(one["score"])
        assert len(right) == summary["gain"]["clips"]


def test_a_matrix_becomes_one_page(run, make_manifest, tmp_path):
    def change(rows):
        for row in rows:
            row["split"] = ("dev", "test")[int(row["source_id"].removeprefix("source")) % 4 // 2]

    folder = make_manifest(sources=48, per_source=3, change=change, name="more")
    out = tmp_path / "m"
    argv = ["--checkpoint", "fake", "--manifest", str(folder), "--runs-dir", str(tmp_path)]
    argv += ["--prompts", str(tmp_path / "seeds.yaml"), str(run), "--baselines", "energy"]
    assert matrix.main([*argv, "--out", str(out)]) == 0
    assert verb(out) == 0
    _, shown = check(out / "report.html")
    assert "energy" in shown.text and "<script>alert(1)</script>" in shown.text


def test_missing_per_clip_results_are_told(run):
    for path in (run / "scores" / "fresh").iterdir():
        path.unlink()
    assert verb(run) == 0
    assert "is missing" in check(run / "report.html")[1].text


def test_no_clip_stops_a_report(run):
    """Silence, one sample, no number, no file, no sound: the page says which cannot be played, and shows the others."""
    spoils = (
        lambda path: soundfile.write(path, np.zeros(3200), 16_000),
        lambda path: soundfile.write(path, np.zeros(1), 16_000),
        lambda path: soundfile.write(path, np.full(99, np.nan), 16_000, subtype="FLOAT"),
        lambda path: path.unlink(),
        lambda path: path.write_text("no sound"),
    )
    for i, path in enumerate(sorted((run.parent / "clips").glob("*.wav"))):
        spoils[i % len(spoils)](path)
    assert verb(run) == 0
    _, shown = check(run / "report.html")
    assert shown.text.count("Cannot be played: audio file") >= 3
    assert "holds samples that are no numbers" in shown.text and "does not exist" in shown.text
    assert 0 < shown.tags.count("audio") == shown.tags.count("img")


def test_a_report_says_why_no_clip_can_be_played(run):
    (run.parent / "clips" / "manifest.csv").unlink()
    assert verb(run) == 0
    assert "no clip can be played: manifest " in check(run / "report.html")[1].text


def test_wrong_folders(run, tmp_path, capsys):
    assert verb(tmp_path) == 2
    assert "no run and no matrix" in capsys.readouterr().err
    assert verb(run, "--out", tmp_path) == 2
    (run / "summary.json").unlink()
    assert verb(run) == 2
    assert "not finished" in capsys.readouterr().err
    damaged = tmp_path / "d"
    damaged.mkdir()
    (damaged / "matrix.json").write_text("{}")
    assert verb(damaged) == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "marked"),
    [
        ("Is it speech? Answer A.", "Is it human speech? Answer A.", True),
        ("Is it speech?", "Quite other words altogether", False),
        ("", "x", False),
    ],
)
def test_changes_are_marked_where_much_is_shared(old, new, marked):
    diff = page._diff(old, new)
    assert "".join(t for op, t in diff if op != "gone") == new
    assert any(op == "new" for op, _ in diff) == marked
