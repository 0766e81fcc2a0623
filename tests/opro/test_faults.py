"""What a user sees of each fault: `pytest -s -k table_of_faults` prints it. Every paused run resumes."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chat_server import serve

from evaluators.errors import DeviceLostError, PauseError, UserError
from evaluators.fakes import FakeEvaluator
from opro import optimize
from opro.proposers import openai_model
from opro.results.optuna_study import LiveStudy

KEY = "sk-marked-secret-key"
LASTING = {  # fault -> what is done about it
    401: "paused at once",
    403: "paused at once",
    404: "paused at once",
    400: "paused at once",
    429: "tried 5 times",
    "retry-after": "tried 5 times, as late as asked",
    500: "tried 5 times",
    503: "tried 5 times",
    "reset": "tried 5 times",
    "slow": "tried 5 times",
    "drip": "tried 5 times",
    "half": "tried 5 times",
    "html": "tried 5 times",
    "schema": "tried 5 times",
    "list": "tried 5 times",
    "empty": "tried 5 times",
    "null": "tried 5 times",
    "filter": "goes on: no prompts in it",
    "huge": "goes on: no prompts in it",
    "hm, I have no idea": "goes on: no prompts in it",
}


def reply(request):
    n = len(request["messages"][-1]["content"])
    texts = [f"Is speech heard in this clip, case {n} {i}? A) speech B) other" for i in range(3)]
    return json.dumps({"prompts": texts})


def run(folder, *flags):
    argv = [
        "--checkpoint", "fake", "--iterations", "2", "--candidates", "4", "--clips", "80", "--name", "run",
        "--runs-dir", str(folder), *map(str, flags),
    ]  # fmt: skip
    return optimize.run_verb(lambda: optimize.main(argv))


@pytest.fixture
def quick(monkeypatch):
    """No waits, and half a second for a reply."""
    original = openai_model.OpenAIModel.__init__
    monkeypatch.setattr(
        openai_model.OpenAIModel,
        "__init__",
        lambda self, *a, **k: original(self, *a, **{**k, "wait": lambda s: None, "timeout": 0.5}),
    )
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.slow
def test_table_of_faults_of_a_language_model(tmp_path, quick, capsys):
    """Each fault stays until the run has given up or gone on; the run then resumes to its end, the key nowhere."""
    rows = []
    with serve(reply) as server:
        flags = ["--lm-base-url", server.url, "--lm-model", "test", "--proposer", "lm"]
        for number, (fault, done) in enumerate(LASTING.items()):
            folder = tmp_path / str(number)
            server.script = [fault] * 6
            before = len(server.requests)
            code = run(folder, *flags)
            tries = len(server.requests) - before
            err = capsys.readouterr().err
            assert "Traceback" not in err and KEY not in err
            seen = [line for line in err.splitlines() if line.startswith("paused:")]
            assert code == (0 if done.startswith("goes on") else 1), (fault, err)
            assert len(seen) == code
            if code:
                assert "the same command goes on from here" in seen[0]
                assert tries == (1 if done == "paused at once" else 5)
            server.script = []
            assert run(folder, *flags) == 0
            capsys.readouterr()
            summary = json.loads((folder / "run" / "summary.json").read_text())
            assert summary["status"] == "complete"
            rows.append((fault, done, seen[0] if seen else f"{summary['refused']} refused"))
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    with capsys.disabled():
        print("\n| fault | what is done | what the user sees |\n| --- | --- | --- |")
        for row in rows:
            print("| " + " | ".join(map(str, row)) + " |")


@pytest.mark.parametrize(("fault", "tries"), [(401, 1), (400, 1), (503, 10), ("half", 10)])
def test_beside_the_rewriter_a_language_model_that_does_not_answer_pauses_nothing(
    tmp_path, quick, capsys, fault, tries
):
    """A refusal is not asked about again; a server that was not reached is, in the next round."""
    with serve(reply, [fault] * 99) as server:
        assert run(tmp_path, "--lm-base-url", server.url, "--lm-model", "test") == 0
    assert len(server.requests) == tries
    told = [x for x in capsys.readouterr().err.splitlines() if "the rewriter goes on" in x]
    assert len(told) == 1 and "paused" not in told[0]
    lines = [json.loads(x) for x in (tmp_path / "run" / "proposals.jsonl").read_text().splitlines()]
    journalled = [line["unanswered"] for line in lines if "unanswered" in line]
    assert len(journalled) == 1 and journalled[0] in told[0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["proposed"]["rewriter"] == 8 and summary["lost"] == (fault == "half") * tries


def test_a_language_model_that_answers_again_is_asked_again_on_resume(tmp_path, quick, capsys):
    with serve(reply, [None, 401]) as server:
        flags = ["--lm-base-url", server.url, "--lm-model", "test"]
        assert run(tmp_path, *flags) == 0
        (tmp_path / "run" / "summary.json").unlink()
        journal = tmp_path / "run" / "trials.jsonl"
        events = journal.read_text().splitlines(keepends=True)
        begun = next(i for i, e in enumerate(events) if '"propose"' in e and '"iteration": 2' in e)
        journal.write_text("".join(events[:begun]))
        before = len(server.requests)
        assert run(tmp_path, *flags) == 0
    assert len(server.requests) == before + 2  # for prompts, and for fragments
    lines = (tmp_path / "run" / "proposals.jsonl").read_text().splitlines()
    calls = [json.loads(x) for x in lines if "meta_prompt" in x]
    assert [c["iteration"] for c in calls] == [1, 2, 1] and calls[2]["call"] == -1


def test_no_budget_is_exceeded_by_replies_that_never_came(tmp_path, quick, capsys):
    with serve(reply, ["half"] * 50) as server:
        limit = 4000
        flags = ["--lm-base-url", server.url, "--lm-model", "test", "--max-tokens", limit]
        assert run(tmp_path, *flags) == 0  # the rewriter goes on alone
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    spent = summary["lm"]
    assert summary["lost"] == len(server.requests) > 0
    assert 0 < spent["tokens_in"] + spent["tokens_out"] <= limit
    assert "leaves no room for another call" in (tmp_path / "run" / "log.txt").read_text()


def test_what_was_lost_before_a_pause_still_counts_after_it(tmp_path, quick, capsys):
    with serve(reply, ["half", 401]) as server:
        flags = ["--lm-base-url", server.url, "--lm-model", "test", "--proposer", "lm"]
        assert run(tmp_path, *flags) == 1
        assert run(tmp_path, *flags) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["lost"] == 1


@pytest.mark.parametrize(
    ("fault", "code", "sentence"),
    [
        (DeviceLostError("the device was lost (CUDA error: unspecified launch failure)"), 1, "paused: the device was"),
        (PauseError("out of memory even with the smallest batches"), 1, "paused: out of memory"),
        (UserError("prompt 1 on clip 'x' gave NaN"), 2, "error: prompt 1 on clip 'x' gave NaN"),
    ],
)  # fmt: skip
def test_a_fault_of_the_device_stops_the_run_which_resumes(
    tmp_path, monkeypatch, capsys, fault, code, sentence
):
    assert run(tmp_path / "whole") == 0
    original, calls = FakeEvaluator.score, []

    def score(self, prompts, clips):
        calls.append(1)
        if len(calls) == 5:
            raise fault
        return original(self, prompts, clips)

    monkeypatch.setattr(FakeEvaluator, "score", score)
    assert run(tmp_path / "hurt") == code
    assert sentence in capsys.readouterr().err
    assert run(tmp_path / "hurt") == 0
    for name in ("trials.jsonl", "leaderboard.csv"):
        whole = (tmp_path / "whole" / "run" / name).read_bytes()
        assert (tmp_path / "hurt" / "run" / name).read_bytes() == whole


@pytest.mark.parametrize(
    ("fault", "code", "sentence"),
    [
        (PauseError("the disk is full"), 1, "paused: the disk is full"),
        (UserError("clip 'x' is broken"), 2, "error: clip 'x' is broken"),
        (KeyboardInterrupt(), 1, "interrupted: nothing is lost"),
    ],
)
def test_what_ends_a_search_is_told_though_its_study_cannot_be_written(
    tmp_path, monkeypatch, capsys, fault, code, sentence
):
    score, calls = FakeEvaluator.score, []

    def failing(self, prompts, clips):
        calls.append(len(clips))
        if len(calls) == 2:
            raise fault
        return score(self, prompts, clips)

    def opened(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FakeEvaluator, "score", failing)
        patch.setattr(LiveStudy, "_open", opened)
        assert run(tmp_path) == code
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith(sentence) and "Traceback" not in err
    assert "optuna.log could not be written" in (tmp_path / "run" / "log.txt").read_text()
    assert run(tmp_path) == 0 and (tmp_path / "run" / "optuna.log").is_file()


def test_a_run_that_ends_before_its_first_trial_leaves_no_study(tmp_path, monkeypatch, capsys):
    def score(self, prompts, clips):
        raise PauseError("enough")

    with monkeypatch.context() as patch:
        patch.setattr(FakeEvaluator, "score", score)
        for _ in range(2):
            assert run(tmp_path) == 1
    assert not (tmp_path / "run" / "optuna.log").exists()


def test_a_new_runs_study_is_opened_after_the_first_scores_a_resumed_ones_before(
    tmp_path, monkeypatch
):
    study, score, opened = tmp_path / "run" / "optuna.log", FakeEvaluator.score, list[bool]()

    def watched(self, prompts, clips):
        opened.append(study.is_file())
        if opened.count(True) == 1:
            raise PauseError("enough")
        return score(self, prompts, clips)

    monkeypatch.setattr(FakeEvaluator, "score", watched)
    assert run(tmp_path) == 1 and not opened[0] and opened[-1]
    study.unlink()
    assert run(tmp_path) == 0 and all(opened[opened.index(True) :])


@pytest.mark.tiny
def test_faults_of_the_device_are_known_for_what_they_are(monkeypatch, seeds, dev_clips):
    import torch

    from evaluators.audio_lm.checkpoint import open_checkpoint
    from evaluators.audio_lm.scorer import AudioScorer

    evaluator = AudioScorer(open_checkpoint("pocket-base"), "cpu", "float32")
    expected = evaluator.score(seeds, dev_clips[:6]).logp
    step, size = evaluator.decoder.step, evaluator.shape.tokens

    def fail(error, times):
        left = [error] * times

        def failing(*args, **kwargs):
            if left:
                raise left.pop()
            return step(*args, **kwargs)

        evaluator.forget()
        monkeypatch.setattr(evaluator.decoder, "step", failing)
        return evaluator.score(seeds, dev_clips[:6]).logp

    # What is kept goes first, then batches are halved for the call.
    np.testing.assert_allclose(fail(torch.OutOfMemoryError("x"), 2), expected, atol=1e-5)
    assert evaluator.shape.tokens == size
    np.testing.assert_allclose(fail(torch.OutOfMemoryError("x"), 2), expected, atol=1e-5)
    assert evaluator.shape.tokens == size // 4
    with pytest.raises(PauseError, match="out of memory even with the smallest batches"):
        fail(torch.OutOfMemoryError("x"), 99)
    with pytest.raises(DeviceLostError, match=r"the device was lost \(CUDA error: gone\)"):
        fail(RuntimeError("CUDA error: gone\nmore"), 1)
    with pytest.raises(
        RuntimeError, match="shapes differ"
    ):  # a fault of the program keeps its traceback
        fail(RuntimeError("shapes differ"), 1)
    read = evaluator.decoder.read
    monkeypatch.setattr(evaluator.decoder, "step", step)
    monkeypatch.setattr(evaluator.decoder, "read", lambda *a: read(*a) * float("nan"))
    with pytest.raises(
        UserError, match=rf"prompt {seeds[0].prompt_id} on clip '{dev_clips[0].clip_id}' gave NaN"
    ):
        evaluator.score(seeds, dev_clips[:6])


@pytest.mark.parametrize("room", [2_000, 20_000, 120_000])
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(tmp_path, room):
    """No file may grow beyond `room` bytes: journal, cache and scores meet the limit in turn."""
    flags = [
        "--checkpoint", "fake", "--iterations", "2", "--candidates", "4", "--clips", "80", "--name", "run",
        "--runs-dir",
    ]  # fmt: skip
    assert optimize.main([*flags, str(tmp_path / "whole")]) == 0
    full = subprocess.run(
        [sys.executable, "-m", "opro.optimize", *flags, tmp_path / "full"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert full.returncode in (1, 2), full.stderr
    assert "Traceback" not in full.stderr
    assert len([x for x in full.stderr.splitlines() if x.startswith(("paused:", "error:"))]) == 1
    assert optimize.main([*flags, str(tmp_path / "full")]) == 0
    for name in ("trials.jsonl", "leaderboard.csv", "best.yaml"):
        whole = (tmp_path / "whole" / "run" / name).read_bytes()
        assert (tmp_path / "full" / "run" / name).read_bytes() == whole


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    assert run(tmp_path / "whole") == 0
    now, jumps = time.time, iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now() + (-1) ** next(jumps) * 10**8)
    assert run(tmp_path / "jumps") == 0
    for name in ("trials.jsonl", "leaderboard.csv"):
        whole = (tmp_path / "whole" / "run" / name).read_bytes()
        assert (tmp_path / "jumps" / "run" / name).read_bytes() == whole
    seconds = json.loads(Path(tmp_path / "jumps" / "run" / "summary.json").read_text())["seconds"]
    assert 0 <= seconds["total"] < 600


def test_a_cache_that_is_damaged_is_one_sentence(tmp_path, capsys):
    assert run(tmp_path) == 0
    for path in (tmp_path / ".cache").glob("cache.db*"):
        path.write_bytes(b"no database" * 1000)
    capsys.readouterr()
    argv = [
        "--checkpoint",
        "fake",
        "--iterations",
        "1",
        "--name",
        "other",
        "--runs-dir",
        str(tmp_path),
    ]
    assert optimize.run_verb(lambda: optimize.main(argv)) == 2
    err = capsys.readouterr().err
    assert "the score cache" in err and "delete the cache folder" in err and "Traceback" not in err
