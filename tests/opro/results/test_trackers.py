"""Searches in trackers: the real packages where they are installed; they get no secret and can do no harm."""

import importlib.util
import json
import logging
import sys
from unittest.mock import MagicMock

import pytest

from opro import optimize
from opro.cli import DONE, WRONG_USE, run_verb
from opro.results import trackers
from opro.results.run_folder import RunFolder

SECRET = "sk-0123456789abcdef"


@pytest.fixture
def search(make_manifest, tmp_path, monkeypatch):
    """`optimize` with the stand-in and further flags."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    folder = make_manifest(sources=48, per_source=2)

    def search(*more):
        argv = ["--checkpoint", "fake", "--manifest", folder, "--runs-dir", tmp_path]
        argv += [
            "--name",
            "r",
            "--iterations",
            1,
            "--candidates",
            3,
            "--proposer",
            "rewriter",
            *more,
        ]
        monkeypatch.setattr("sys.argv", ["opro", *map(str, argv)])
        return run_verb(optimize.main)

    return search


class Kept:
    """A tracker that keeps what it is told, and fails at step `at`."""

    def __init__(self, run, at=None):
        self.settings, self.told, self.ends, self.at = trackers._settings(run), [], [], at
        KEPT.append(self)

    def log(self, numbers, text, step):
        if step == self.at:
            raise RuntimeError(SECRET)
        self.told.append((step, text, numbers))

    def finish(self, summary):
        self.ends.append(summary)


KEPT: list[Kept] = []


@pytest.fixture
def kept(monkeypatch):
    KEPT.clear()
    monkeypatch.setattr(trackers, "KINDS", {"wandb": Kept, "mlflow": lambda run: Kept(run, at=1)})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return KEPT


def test_every_trial_is_told_once_and_the_run_is_not_changed(search, kept, tmp_path):
    assert search() == DONE
    before = (tmp_path / "r" / "trials.jsonl").read_bytes()
    config = (tmp_path / "r" / "config.yaml").read_text()
    (tmp_path / "r").rename(tmp_path / "old")
    assert search("--report-to", "wandb") == DONE
    assert (tmp_path / "r" / "trials.jsonl").read_bytes() == before
    assert (tmp_path / "r" / "config.yaml").read_text() == config
    (one,) = kept
    run = RunFolder.read(tmp_path / "r")
    assert [(n, text) for n, text, _ in one.told] == [
        (t.number, t.prompt.text) for t in run.history.trials
    ]
    kinds = {"complete": "trial/reward", "dropped": "trial/forecast"}
    for trial, (_, _, numbers) in zip(run.history.trials, one.told, strict=True):
        assert round(numbers[kinds[trial.state]], 6) == trial.reward
        assert numbers["trial/clips"] == trial.n_scored
    best = [numbers["best/reward"] for _, _, numbers in one.told]
    assert best == sorted(best) and round(best[-1], 6) == run.history.best.reward
    assert [s.reason for s in one.ends] == [run.finished().reason]


def test_a_tracker_that_fails_is_left_alone_and_its_words_are_not_repeated(
    search, kept, tmp_path, capsys
):
    assert search("--report-to", "all") == DONE
    one, other = kept
    assert len(one.told) == 6 and one.ends and len(other.told) == 1 and not other.ends
    text = capsys.readouterr().err + (tmp_path / "r" / "log.txt").read_text()
    assert "mlflow failed (RuntimeError): this process reports no more to it" in text
    assert SECRET not in text


def test_an_interrupted_search_is_ended_as_interrupted(search, kept, monkeypatch):
    def decide(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(optimize, "decide", decide)
    assert search("--report-to", "wandb") == 1 and kept[0].ends == [None]


def test_settings_hold_no_address_and_no_key(search, kept, tmp_path):
    server = "http://127.0.0.1:9/v1"
    more = ("--proposer", "auto", "--lm-model", "m", "--lm-base-url", server, "--iterations", 0)
    assert search("--report-to", "wandb", *more) == DONE
    assert kept and SECRET not in json.dumps(kept[0].settings)
    assert "lm_base_url" not in kept[0].settings and kept[0].settings["lm_model"] == "m"


def test_what_is_not_installed_is_one_sentence(search, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for asked, words in (
        ("wandb", "wandb is not installed; pip install wandb"),
        ("all", "none of wandb, mlflow, tensorboard is installed"),
        ("aim", "'aim' is unknown; expected wandb, mlflow, tensorboard"),
    ):
        assert search("--report-to", asked) == WRONG_USE
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_tracker_that_cannot_begin_is_one_sentence(search, kept, monkeypatch, capsys):
    def refuses(run):
        raise ValueError(f"api key {SECRET} is wrong")

    monkeypatch.setitem(trackers.KINDS, "wandb", refuses)
    assert search("--report-to", "wandb") == WRONG_USE
    err = capsys.readouterr().err
    assert "--report-to wandb: it could not begin (ValueError)" in err and SECRET not in err


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_report_is_ended_as_the_search_ended(search, tmp_path, monkeypatch, name):
    """With the packages' names alone: the real ones are asked below, where they are installed."""
    assert search() == DONE
    run = RunFolder.read(tmp_path / "r")
    package = MagicMock()
    for module in (name, f"{name}.genai"):
        monkeypatch.setitem(sys.modules, module, package)
    package.search_runs.return_value = []
    whole, cut = trackers.KINDS[name](run), trackers.KINDS[name](run)
    whole.finish(run.finished())
    ends = {"mlflow": package.end_run, "wandb": package.init.return_value.finish}[name]
    assert ends.call_count == 1 and not ends.call_args.args
    cut.finish(None)
    said = {"mlflow": (("KILLED",), {}), "wandb": ((), {"exit_code": 1})}[name]
    assert ends.call_count == 2 and tuple(ends.call_args) == said
    if name == "mlflow":
        package.set_tag.assert_called_once_with("opro.decision", run.finished().reason)
        (registered,) = package.register_prompt.call_args_list
        assert registered.kwargs["template"] == run.best.prompt.text
        assert registered.kwargs["tags"]["bias_nats"] == f"{run.best.bias:.6g}"


def test_tensorboard_draws_the_search(search, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert search("--report-to", "tensorboard") == DONE
    drawn = EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    drawn.Reload()
    trials = RunFolder.read(tmp_path / "r").history.trials
    assert [e.step for e in drawn.Scalars("best/reward")] == [t.number for t in trials]
    assert drawn.Scalars("decision/gain") and "decision" in str(drawn.Tags()["tensors"])


def test_mlflow_gets_trials_and_the_chosen_prompt(search, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
    mlflow.set_tracking_uri(None)
    assert search("--report-to", "mlflow") == DONE
    run = RunFolder.read(tmp_path / "r")
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert found.info.status == "FINISHED" and found.data.params["checkpoint"] == "fake"
    told = mlflow.MlflowClient().get_metric_history(found.info.run_id, "best/reward")
    assert [m.step for m in told] == [t.number for t in run.history.trials]
    if "mlflow.genai" in sys.modules:
        prompt = sys.modules["mlflow.genai"].load_prompt("prompts:/speech-fake/1")
        assert prompt.template == run.best.prompt.text


def test_wandb_runs_offline(search, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert search("--report-to", "wandb") == DONE
    held = [p.read_bytes() for p in (tmp_path / "r").rglob("*.wandb")]
    assert len(held) == 1 and b"best/reward" in held[0] and SECRET.encode() not in held[0]
    logging.getLogger("wandb").handlers.clear()
