import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from evaluators.classifier import read_classifiers
from evaluators.prompts import Prompt, dump_prompts
from evaluators.statistics.describe import DEFINITIONS
from opro import brittle, matrix, optimize, report
from opro.cli import run_verb
from opro.results import page
from opro.results.brittle import read_brittle
from opro.results.brittle_page import brittle_of
from opro.results.run_folder import RunFolder
from opro.results.wording import word_changes

NASTY = 'Is <script>alert(1)</script> & "it" $speech$ {{ 7*7 }}?\nA) </pre><b>yes\nB) _no'


class Page(HTMLParser):
    """Tags that are open, what they refer to, and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.text, self.copied = [], [], set(), "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.links.append(value)
            if name == "data-copy":
                self.copied.append(value)
            if name == "id":
                self.ids.add(value)

    def handle_data(self, data):
        self.text += data


def verb(*argv):
    return run_verb(lambda: report.main([str(a) for a in argv]))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where the first test leaves the search for the others."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def run(kept, make_manifest, tmp_path, monkeypatch):
    """A finished search with a hostile seed prompt, on clips of three durations."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if any(kept.iterdir()):
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
        config = tmp_path / "run" / "config.yaml"
        made_in = (kept / "made_in").read_text()
        config.write_text(config.read_text().replace(made_in, str(tmp_path)))
        return tmp_path / "run"
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
    (tmp_path / "made_in").write_text(str(tmp_path))
    shutil.copytree(tmp_path, kept, dirs_exist_ok=True)
    return tmp_path / "run"


def check(path):
    text = path.read_text()
    page = Page(text)
    assert len(text.encode()) < 5 * 2**20
    (own,) = re.findall(r"<script>(.*?)</script>", text, re.S)  # the page's own; no other may run
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert page.tags.count("script") == 1 and "<" not in own.replace("=>", "")
    assert "49" not in re.findall(r"\$speech\$ (\d+)", page.text)
    for link in page.links:
        assert link.startswith(("data:", "#")), link  # nothing from a network
        assert not link.startswith("#") or link[1:] in page.ids
    assert not re.search(r"(?<!=\")https?://", text)  # but for the names of XML
    return text, page


def test_a_run_becomes_one_page(run, capsys):
    plain = RunFolder.read(run)
    assert brittle_of(plain, plain.summary) is None  # nothing was measured
    assert brittle.main([str(run), "--edits", "4", "--runs-dir", str(run.parent)]) == 0
    capsys.readouterr()
    assert verb(run) == 0
    text, shown = check(run / "report.html")
    assert {"brittle-1", "phrases-1"} <= shown.ids and {"#brittle-1", "#phrases-1"} <= set(
        shown.links
    )
    for one in read_brittle(run).phrases:
        if one.worth and one.kind != "whole sentence":
            assert f'title="worth {100 * one.worth.value:+.1f} points' in text
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
    text, shown = check(out / "report.html")
    assert text.index("<svg") < text.index("<table")  # the forest plot first
    assert "energy" in shown.text and "<script>alert(1)</script>" in shown.text


def test_what_is_copied_is_the_winner_to_the_letter(run):
    assert verb(run) == 0
    _, shown = check(run / "report.html")
    best = RunFolder.read(run).best
    prompt, whole = shown.copied
    assert prompt == best.prompt.text
    (run / "copied.yaml").write_text(whole)
    assert read_classifiers(run / "copied.yaml", ("SPEECH", "NONSPEECH")) == [best]
    assert not best.bias or f"{best.bias:+.2f} nats on SPEECH" in shown.text


def test_hostile_text_stays_text_in_buttons_too(run):
    """The best so far is the hostile seed itself: it stands in attributes, where quotes end a value."""
    (run / "summary.json").unlink()
    lines = (run / "trials.jsonl").read_text().splitlines(keepends=True)
    told = next(i for i, line in enumerate(lines) if '"event": "tell"' in line)
    (run / "trials.jsonl").write_text("".join(lines[: told + 1]))
    assert verb(run) == 0
    _, shown = check(run / "report.html")
    assert shown.copied[0] == NASTY


def test_all_trials_stand_there_and_the_chosen_one_is_marked(run):
    assert verb(run) == 0
    text, shown = check(run / "report.html")
    trials = [t for t in RunFolder.read(run).history.trials if t.state != "waiting"]
    assert text.count('data-label="clips"') == len(trials) > page.FIRST_ROWS
    assert f"The other {len(trials) - page.FIRST_ROWS} trials" in shown.text
    assert text.count('<tr class="chosen">') == 1
    # Score over length is drawn, and its unit told.
    assert "Score and length" in shown.text and "the run knows no tokens" in shown.text
    assert "Length in words of system message and text" in shown.text
    assert ">words of system message and text<" in text  # the picture's axis
    assert text.count('data-label="words"') == len(trials)
    assert "front: none is as short" in text


def test_an_unfinished_run_has_a_page_that_says_so(run):
    whole = (run / "trials.jsonl").read_text()
    (run / "summary.json").unlink()
    for keep in (
        0,
        1,
        2,
        4,
        len(whole.splitlines()) - 1,
    ):  # nothing yet, proposals, some trials, all but the decision
        (run / "trials.jsonl").write_text("".join(whole.splitlines(keepends=True)[:keep]))
        assert verb(run) == 0
        _, shown = check(run / "report.html")
        assert "Not finished: " in shown.text and "The same command goes on" in shown.text
        assert "Chosen" not in shown.text and "holdout of dev" not in shown.text
        assert ("Leads so far" in shown.text) == (keep > 2)


def test_several_runs_share_one_page_and_its_axes(run, tmp_path, capsys):
    other, third = tmp_path / "other", tmp_path / "third"
    for folder in (other, third):
        shutil.copytree(run, folder)
    (third / "summary.json").unlink()
    assert verb(run, other, third) == 0
    assert f"written to {tmp_path / 'report.html'}" in capsys.readouterr().out
    text, shown = check(tmp_path / "report.html")
    assert "3 runs" in shown.text and "not finished" in shown.text and len(shown.copied) == 6
    single = [RunFolder.read(folder) for folder in (run, other, third)]
    assert text.count('data-label="clips"') == sum(len(r.history.trials) for r in single)
    alone = page.page_of(run)
    assert alone.count('data-label="clips"') == len(single[0].history.trials)


def test_shared_axes_hold_every_run(monkeypatch):
    rows = [{"number": 0, "score": 0.5, "low": 0.4, "high": 0.6, "state": "complete"}]
    others = [{**rows[0], "score": 0.9, "low": None, "high": None}]
    low, high = page.figures.limits([rows, others])
    assert low < 40 and high > 90 and page.figures.limits([[], []]) is None
    drawn = []
    monkeypatch.setattr(page.figures, "svg", lambda figure: drawn.append(figure) or "")
    for one in (rows, others):
        page.figures.history(one, None, shared=(low, high))
    assert drawn[0].axes[0].get_ylim() == drawn[1].axes[0].get_ylim() == (low, high)


def test_legends_cover_no_point(monkeypatch):
    drawn = []
    monkeypatch.setattr(page.figures, "svg", lambda figure: drawn.append(figure) or "")
    rows = [
        {
            "number": i,
            "score": 0.1 * i,
            "low": 0.0,
            "high": 1.0,
            "state": ("complete", "dropped")[i % 2],
        }
        for i in range(10)
    ]
    page.figures.history(rows, 0.5)
    bins = [{"confidence": 0.5 + i / 10, "right": i / 5, "clips": 9} for i in range(6)]
    page.figures.reliability([("one", bins), ("a name that is longer than thirty letters", bins)])
    for figure in drawn:
        figure.canvas.draw()
        (legend,), (axis,) = figure.legends, figure.axes
        assert legend.get_window_extent().y0 >= axis.get_window_extent().y1


def test_several_folders_that_do_not_go_together(run, tmp_path, capsys):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "matrix.json").write_text("{}")
    assert verb(run, tmp_path / "m") == 2
    assert "is a matrix, which has a page of its own" in capsys.readouterr().err
    assert verb(run, run, "--inspect", tmp_path / "logs") == 2
    assert "--inspect takes the logs of one folder" in capsys.readouterr().err
    assert verb(run, tmp_path / "nowhere") == 2


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
    diff = word_changes(old, new)
    assert "".join(t for op, t in diff if op != "gone") == new
    assert any(op == "new" for op, _ in diff) == marked
