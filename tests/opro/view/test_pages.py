"""The page without a browser: what it reads, shows, refuses and asks of runs."""

import dataclasses
import json

import filelock
import numpy as np
import pytest
from common import LABELS
from view_runs import HOSTILE, NAME

pytest.importorskip("gradio", reason="pip install 'opro-audio[view]'")
pytest.importorskip("krippendorff", reason="pip install 'opro-audio[view]'")

from evaluators.errors import UserError
from evaluators.statistics.compare import compare
from opro.results.leaderboard import leaderboard_rows
from opro.results.predictions import read_predictions
from opro.search.steering import read_requests
from opro.view import compare as comparing
from opro.view import listen, playground, proposer, steer
from opro.view import runs as listed
from opro.view.__main__ import main
from opro.view.clips import Clips
from opro.view.compare import Side, common, compared, said_of
from opro.view.reading import names, see


def side(runs, name, number):
    seen = see(runs, name)
    return Side(seen, seen.trial(number))


def test_every_run_has_a_row_and_its_state(runs):
    frame = listed.runs_frame(runs).set_index("run")
    assert frame.loc["done", "state"] == "finished" and frame.loc["half", "state"] == "interrupted"
    assert set(frame.index) == {"done", "half", NAME} == set(names(runs))


def test_a_run_that_cannot_be_read_says_why_and_hides_no_other(runs, tmp_path):
    import shutil

    shutil.copytree(runs / "done", tmp_path / "done")
    shutil.copytree(runs / "done", tmp_path / "bad")
    (tmp_path / "bad" / "trials.jsonl").write_text("{\n")
    frame = listed.runs_frame(tmp_path).set_index("run")
    assert (
        frame.loc["bad", "state"] == "unreadable" and "damaged line" in frame.loc["bad", "decision"]
    )
    assert frame.loc["done", "state"] == "finished"
    assert "damaged line" in listed.show(tmp_path, "bad")[0]


def test_a_run_whose_lock_is_held_is_running_and_looking_leaves_the_lock_free(runs):
    with filelock.FileLock(runs / "half" / ".lock"):
        assert see(runs, "half").state == "running"
    assert see(runs, "half").state == "interrupted"
    with filelock.FileLock(runs / "half" / ".lock", timeout=0):
        pass


def test_looking_at_runs_changes_no_file(runs):
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file() and p.name != ".lock"}
    for name in names(runs):
        listed.show(runs, name)
        proposer.proposer_html(see(runs, name))
        steer.steering_html(see(runs, name))
    after = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file() and p.name != ".lock"}
    assert before == after


def test_the_leaderboard_is_that_of_opro_leaderboard(runs):
    seen = see(runs, "done")
    frame = listed.board_frame(seen)
    rows = leaderboard_rows(seen.run, seen.summary)
    assert frame["prompt id"].tolist() == [row["prompt_id"] for row in rows]
    shown = [round(100 * row["score"], 1) for row in rows if row["score"] is not None]
    assert frame["score"].dropna().tolist() == shown


def test_the_leaderboard_has_an_order_of_ones_choice(runs):
    seen = see(runs, "done")
    for order in listed.ORDERS:
        frame = listed.board_frame(seen, order)
        assert len(frame) == len(seen.run.history.trials)
        if order in ("holdout", "clips"):
            assert frame[order].dropna().is_monotonic_decreasing
    assert listed.board_frame(seen, "length")["prompt"].str.len().is_monotonic_increasing


def test_a_name_from_a_browser_leads_to_no_other_folder(runs):
    inside = [f"../{runs.name}/done", "./done", "done/", str(runs / "done")]
    for name in ["", ".", "..", "../runs", "/etc", "nothing", "done/scores", "done\0", *inside]:
        with pytest.raises(UserError, match="there is no run"):
            see(runs, name)


def test_hostile_words_are_text_wherever_html_is_made(runs):
    clips = Clips()
    html = [
        listed.show(runs, "done")[0],
        listed.show(runs, NAME)[0],
        proposer.proposer_html(see(runs, NAME)),
        compared(side(runs, NAME, 0), side(runs, "done", 1), "search half", clips),
        steer.steering_html(see(runs, NAME)),
        playground.played(playground.Bench(("fake",)), None, HOSTILE, HOSTILE, "A, B"),
        listen.refused(UserError(HOSTILE)),
    ]
    whole = "".join(html)
    for tag in ("<img", "<script", "<b onmouseover", "href"):
        assert tag not in whole
    assert (
        "&lt;img src=x" in html[2] and "&lt;img src=x" in html[3] and "&lt;b onmouseover" in html[1]
    )


def test_calls_of_every_kind_are_shown_and_a_torn_last_one_is_not(runs):
    html = proposer.proposer_html(see(runs, "done"))
    assert "no reply" in html and "the rewriter goes on" in html and "1 accepted, 1 refused" in html
    assert len(see(runs, "done").calls) == 3


def test_what_the_loop_refused_is_shown_with_its_round(runs, tmp_path):
    import shutil

    shutil.copytree(runs / "done", tmp_path / "done")
    path = tmp_path / "done" / "trials.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    last = [e for e in lines if e["event"] == "propose"][-1]
    last["refused"] = [{"text": HOSTILE, "reason": "contains the forbidden 'hum'"}]
    path.write_text("".join(json.dumps(e) + "\n" for e in lines))
    html = proposer.proposer_html(see(tmp_path, "done"))
    assert "refused, contains the forbidden &#39;hum&#39;" in html and "<img" not in html
    assert "from #" in html  # parents go by their numbers


@pytest.mark.parametrize("half", comparing.HALVES)
def test_what_is_compared_is_what_the_files_of_the_run_say(runs, half):
    seen = see(runs, "done")
    made = seen.run.history.selection
    numbers = [made["baseline"], *made["finalists"]] if half == "holdout" else [0, 1, 2]
    if len(numbers) < 2:
        numbers = [numbers[0], numbers[0]]
    a, b = (said_of(side(runs, "done", n), half) for n in numbers[:2])
    one, other = common(a, b)
    assert one.targets.clip_ids == other.targets.clip_ids
    gain = compare(other, one)
    html = compared(side(runs, "done", numbers[0]), side(runs, "done", numbers[1]), half, Clips())
    mended = int((other.right & ~one.right).sum())
    broken = int((one.right & ~other.right).sum())
    assert (
        f"mends {mended} and breaks {broken}" in html and f"{100 * gain.value:+.1f} points" in html
    )


def test_a_prompt_is_compared_with_its_threshold(runs):
    """Equal to the trial's own score: balanced accuracy on all search clips, decided with its bias."""
    from evaluators.statistics import metrics

    for trial in see(runs, "done").run.history.complete:
        found = said_of(side(runs, "done", trial.number), "search half")
        score = metrics.balanced_accuracy(found.targets.truth, found.right)
        assert score == pytest.approx(trial.outcome.score, abs=1e-4)


def test_two_runs_are_shown_with_what_came_of_them_and_the_settings_that_differ(runs):
    sheet = comparing.two_runs(see(runs, "done"), see(runs, "half"))
    rows = {row[0]: row[1:] for row in sheet.rows}
    assert rows["state"] == ["finished", "interrupted"]
    assert rows["--max-evals"] == ["None", "5000"] and "--checkpoint" not in rows
    html = compared(side(runs, "done", 1), side(runs, "half", 1), "search half", Clips())
    assert "the settings in which they differ" in html


def test_runs_of_other_data_are_not_compared(runs, tmp_path):
    one = read_predictions(next((runs / "done" / "scores").glob("*.csv")), LABELS[0])
    other = dataclasses.replace(
        one, targets=dataclasses.replace(one.targets, truth=1 - one.targets.truth)
    )
    with pytest.raises(UserError, match="their labels differ"):
        common(one, other)
    names_ = tuple(f"other {c}" for c in one.targets.clip_ids)
    with pytest.raises(UserError, match="no clip in common"):
        common(
            one, dataclasses.replace(one, targets=dataclasses.replace(one.targets, clip_ids=names_))
        )


def test_a_clip_is_played_only_under_a_name_that_the_page_has_shown(runs):
    clips, seen = Clips(), see(runs, "done")
    every = clips.of(str(seen.run.config["manifest"]), LABELS)
    url = clips.url(every[0])
    assert every[0].clip_id not in url and clips.sound(url.rpartition("/")[2])[:4] == b"RIFF"
    for token in ("", "../../etc/passwd", every[0].clip_id, str(every[0].path)):
        with pytest.raises(UserError, match="no such clip"):
            clips.sound(token)
    assert Clips().url(every[0]) != url  # of another process


@pytest.fixture
def under_way(runs, tmp_path):
    import shutil

    shutil.copytree(runs / "half", tmp_path / "half")
    return tmp_path


def test_what_is_steered_is_written_for_the_run_to_take(under_way):
    seen = see(under_way, "half")
    with filelock.FileLock(under_way / "half" / ".lock"):
        steer.request(see(under_way, "half"), "pause", None)
    steer.request(
        seen,
        "prompt",
        {"text": "Mine: speech? A or B", "answers": dict(zip(LABELS, "AB", strict=True))},
    )
    steer.request(seen, "forbid", "hum")
    steer.request(seen, "max_evals", 6000)
    kinds = [one.kind for one in read_requests(seen.run.steering, LABELS)]
    assert kinds == ["pause", "prompt", "forbid", "max_evals"]
    html = steer.steering_html(see(under_way, "half"))
    assert html.count("waits for the next round") == 4 and "Mine: speech?" in html


@pytest.mark.parametrize(
    "kind, value, sentence",
    [
        ("pause", None, "no process works on run 'half'"),
        ("max_evals", 4000, "the budget is 5,000 evals; expected a larger"),
        ("max_evals", None, "expected a larger whole number"),
        ("prompt", {"text": "=cmd() Speech? A or B"}, "tried already"),
        ("prompt", {"text": "Speech?"}, "does not offer the answer 'A' of SPEECH"),
        ("forbid", "", "expected words"),
    ],
)
def test_what_a_run_cannot_take_is_refused_at_once(under_way, kind, value, sentence):
    seen = see(under_way, "half")
    with pytest.raises(UserError, match=sentence):
        steer.request(seen, kind, value)
    assert not seen.run.steering.exists()


def test_a_finished_run_takes_nothing(runs):
    with pytest.raises(UserError, match="finished"):
        steer.request(see(runs, "done"), "forbid", "x")


def test_the_playground_gives_what_the_evaluator_gives(runs, dev_clips):
    from evaluators.classifier import log_odds, sigmoid
    from evaluators.fakes import FakeEvaluator
    from evaluators.prompts import Prompt

    path = str(dev_clips[0].path)
    wave = playground.recorded(path)
    given = {"text": "Speech? A or B", "answers": dict(zip(LABELS, "AB", strict=True))}
    found = playground.Bench(("fake",)).score("fake", given, wave)
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as scratch:
        clip = playground.clip_of(wave, Path(scratch))
        logp = FakeEvaluator().score([Prompt("Speech? A or B")], [clip]).logp[0]
    assert found["first"][1] == pytest.approx(float(sigmoid(log_odds(logp))[0]), abs=1e-6)
    assert sum(one["p"] for one in found["labels"]) == pytest.approx(1)


@pytest.mark.parametrize(
    "text, answers, checkpoint, sentence",
    [
        ("Speech? A or B", "A", "fake", "expected 2 with commas between"),
        ("", "A, B", "fake", "expected the prompt"),
        ("Speech? A or B", "A, B", "/etc", "is not of the list"),
    ],
)
def test_the_playground_refuses_in_a_sentence(dev_clips, text, answers, checkpoint, sentence):
    html = playground.played(
        playground.Bench(("fake",)), str(dev_clips[0].path), checkpoint, text, answers
    )
    assert sentence in html and 'role="alert"' in html


def test_a_recording_that_is_too_long_or_no_audio_is_refused_without_its_path(tmp_path):
    import soundfile

    long, odd = tmp_path / "long.wav", tmp_path / "odd.wav"
    soundfile.write(long, np.zeros(16000 * 31), 16000)
    odd.write_text("no audio")
    with pytest.raises(UserError, match="is 31 s long"):
        playground.recorded(str(long))
    with pytest.raises(UserError, match="cannot be read") as error:
        playground.recorded(str(odd))
    assert str(tmp_path) not in str(error.value)


def session(runs, folder, who="Ann"):
    import shutil

    if not (folder / "done").exists():
        shutil.copytree(runs / "done", folder / "done")
    return listen.Session(folder, Clips(), "done", who)


def test_listening_is_blind_and_goes_on_where_it_stopped(runs, tmp_path):
    ann = session(runs, tmp_path)
    html, shown = ann.html(autoplay=False)
    _, clips = ann.opened()
    assert "Clip 1 of 100" in html
    assert not any(c.clip_id in html or c.path.name in html for c in clips)
    assert not any(label in html for label in LABELS)
    html, after = ann.judge("SPEECH", shown)
    assert "Clip 2 of 100" in html and after != shown
    assert "Clip 2 of 100" in ann.judge("SPEECH", shown)[0]  # a second click judges no other clip
    assert "Clip 2 of 100" in session(runs, tmp_path).html(autoplay=False)[0]
    assert "Clip 1 of 100" in session(runs, tmp_path, "Bob").html(autoplay=False)[0]
    lines = (tmp_path / "listening.jsonl").read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["SPEECH"]


def test_a_verdict_that_is_none_is_not_recorded(runs, tmp_path):
    ann = session(runs, tmp_path)
    ann.judge("<b>", ann.html(autoplay=False)[1])
    assert not (tmp_path / "listening.jsonl").exists()


@pytest.mark.parametrize("who", ["", "  ", "x" * 61, "a\x1b[2Jb"])
def test_a_listener_needs_a_plain_name(runs, tmp_path, who):
    with pytest.raises(UserError, match="your name is"):
        session(runs, tmp_path, who).html(autoplay=False)


def test_results_of_listening_are_told_in_words(runs, tmp_path):
    for who in ("Ann", "Bob"):
        one = session(runs, tmp_path, who)
        for _ in range(30):
            _, left, _ = one.waiting()
            one.judge(left[0].label, one.html(autoplay=False)[1])
    html = one.results()
    assert "60 of 2 listeners" in html and "balanced accuracy 100.0" in html


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--port", "70000"], "expected 1 to 65535"),
        (["--runs-dir", "/nowhere"], "is no folder"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path, flags, sentence):
    base = [] if "--runs-dir" in flags else ["--runs-dir", str(tmp_path)]
    with pytest.raises(UserError, match=sentence):
        main([*base, *flags])


def test_a_run_that_has_not_changed_is_not_read_again(runs):
    assert see(runs, "done") is see(runs, "done")
