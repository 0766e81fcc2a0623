"""`import opro`: the typed functions, and that they are the command line's."""

import inspect
import json
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

import opro
from evaluators.prompts import Prompt
from opro import optimize as optimize_verb
from opro.examples.evaluator import SEED, Keywords
from opro.examples.metric import f1
from opro.examples.proposer import WORDS, Exchange
from opro.optimize import Options
from opro.predict import Options as PredictOptions
from opro.predict import PredictSettings
from opro.search.history import Candidate
from opro.settings import OptimizeSettings

TEXTS = ["Is there speech in this clip? A) yes B) no", "A voice?\nA) yes\nB) no"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return opro.optimize(
        "fake", TEXTS, "data/demo", iterations=1, runs_dir=tmp_path_factory.mktemp("runs")
    )


def test_every_name_is_there_and_importing_loads_nothing():
    assert all(getattr(opro, name) is not None for name in opro.__all__)
    assert set(opro.__all__) <= set(dir(opro))
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        opro.optimise  # noqa: B018
    code = "import opro, sys; print([m for m in ('numpy', 'pandas', 'torch') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_verb_is_a_module_and_a_function_in_any_order_of_imports():
    code = (
        "import opro\nfirst = opro.optimize\nimport opro.optimize as module\n"
        "from opro.optimize import main\nassert first is module is opro.optimize and module.main is main\n"
        "try: opro.optimize('fake', 'no prompt at all.yaml', 'data/demo')\n"
        "except opro.UserError as error: print(error)"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "no prompt at all.yaml" in said
    assert list(inspect.signature(opro.predict).parameters)[:2] == ["classifier", "audio"]


@pytest.mark.parametrize(
    ("options", "settings"), [(Options, OptimizeSettings), (PredictOptions, PredictSettings)]
)
def test_options_are_flags(options, settings):
    assert options.__annotations__.keys() <= {f.name for f in fields(settings)}


def test_python_makes_the_run_of_the_command_line(tmp_path):
    seeds = "prompts/seeds/baselines.yaml"
    flags = ["--checkpoint", "fake", "--iterations", "1", "--runs-dir", str(tmp_path / "a")]
    assert optimize_verb.main(flags) == 0
    run = opro.optimize("fake", seeds, "data/demo", iterations=1, runs_dir=tmp_path / "b")
    (other,) = (tmp_path / "a").glob("*/trials.jsonl")
    assert other.parent.name == run.path.name
    assert other.read_bytes() == (run.path / "trials.jsonl").read_bytes()
    assert optimize_verb.main([*flags[:-1], str(tmp_path / "b")]) == 0  # and goes on there
    again = opro.optimize("fake", seeds, "data/demo", iterations=1, runs_dir=tmp_path / "b")
    assert again.path == run.path


def test_a_result_is_frames_of_its_files(run):
    assert opro.load_run(run.path) == run
    board = run.leaderboard
    assert len(board) == len(run.folder.history.trials) and board.chosen.sum() == 1
    assert board[board.chosen].prompt_id.item() == run.best.prompt_id
    assert set(run.holdout.prompt_id) >= {run.best.prompt_id, run.summary.baseline.prompt_id}
    found = run.scores(run.best.prompt_id)
    assert len(found) == len(pd.read_csv(run.path / "scores" / f"{run.best.prompt_id}.csv"))
    assert run.summary.reason.partition(":")[0].upper() in str(run)
    assert set(run.slices.prompt_id) <= set(board.prompt_id)
    with pytest.raises(KeyError, match="no prompt 'x'"):
        run.scores("x")


def test_hostile_words_stay_text_in_a_notebook(tmp_path):
    text = "<script>alert(1)</script> Speech? A) yes B) no"
    run = opro.optimize("fake", [text], "data/demo", iterations=0, runs_dir=tmp_path)
    assert "<script>" not in run._repr_html_() and "&lt;script&gt;" in run._repr_html_()


def test_scores_decide_as_the_run_did(run, tmp_path):
    clips = opro.load_clips("data/demo", "dev")
    found = opro.score("fake", run.best, clips, runs_dir=tmp_path).set_index("clip_id")
    held = run.holdout.query(f"prompt_id == '{run.best.prompt_id}'").set_index("clip_id")
    same = found.loc[held.index]
    assert (same.predicted == held.predicted).all()
    assert np.allclose(same.score, held.score, atol=1e-6)
    labels = ["logp_SPEECH", "logp_NONSPEECH"]
    assert np.allclose(np.exp(found[labels]).sum(axis=1) + found.outside, 1, atol=1e-5)


def test_comparing_frames_is_opro_stats(run, tmp_path, capsys):
    from opro import stats

    parts = {name: frame for name, frame in run.holdout.groupby("prompt_id")}
    parts = dict(list(parts.items())[:2])
    for name, frame in parts.items():
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    found = opro.compare(parts)
    files = [str(tmp_path / f"{name}.csv") for name in parts]
    assert stats.main([*files, "--format", "json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    for name in ("difference", "low", "high", "p"):
        assert abs(found[name].item() - pair[name]) < 1e-9
    assert opro.compare({n: tmp_path / f"{n}.csv" for n in parts}).p.item() == found.p.item()
    with pytest.raises(opro.UserError, match="do not hold the same clips"):
        first, second = parts.items()
        opro.compare(dict([first, (second[0], second[1].iloc[1:])]))


def test_uses_of_the_test_split_are_counted(tmp_path):
    test = opro.load_clips("data/demo", "test")
    for prompts, uses in ((TEXTS, 1), (TEXTS[:1], 1), (["Other words? A) yes B) no"], 2)):
        opro.score("fake", prompts, test, runs_dir=tmp_path)
        assert len((tmp_path / "test_openings.jsonl").read_text().splitlines()) == uses


def test_an_evaluator_a_proposer_and_a_metric_of_ones_own(tmp_path):
    opro.add_metric("f1", f1, "F1 of speech in percent")
    with pytest.raises(opro.UserError, match="'f1' is there already"):
        opro.add_metric("f1", f1, "again")
    words = {**WORDS, "voice": ("speech", "words"), "shrill": ("noise", "music")}
    more = {"iterations": 2, "objective": "f1", "runs_dir": tmp_path}
    run = opro.optimize(Keywords(), [SEED], "data/demo", proposer=Exchange(words), **more)
    assert run.summary.objective == "f1"
    origins = set(run.leaderboard.origin)
    assert origins <= {"seed", *(f"exchange:{word}" for word in words)} and len(origins) > 1
    said = run.holdout[run.holdout.prompt_id == run.summary.baseline.prompt_id]
    asked, found = said.label == "SPEECH", said.predicted == "SPEECH"
    value = 2 * (asked & found).sum() / (asked.sum() + found.sum())
    assert abs(run.summary.baseline.score - value) < 1e-9
    assert run.summary.checkpoint == "python:Keywords"
    assert any("trained on is unknown" in text for text in run.summary.warnings)


def test_a_proposer_is_held_to_the_contract(tmp_path, capsys):
    class Careless:
        name = "careless"

        def propose(self, view, n):
            known = view.trials[0].prompt
            fresh = replace(known, text=f"{known.text} Round {view.iteration}.")
            other = replace(known, answers=(("YES", ("A",)), ("NO", ("B",))), text="Other?")
            return [Candidate(p, "x") for p in (known, fresh, fresh, other)]

    options = {"iterations": 2, "runs_dir": tmp_path}
    run = opro.optimize("fake", TEXTS, "data/demo", proposer=Careless(), **options)
    assert sorted(t.prompt.text[-8:] for t in run.folder.history.trials if t.iteration) == [
        "Round 1.",
        "Round 2.",
    ]
    assert "3 of 4 candidates of careless are left out" in capsys.readouterr().err


def test_a_checkpoint_takes_its_flags(tmp_path):
    small = opro.load_clips("data/demo", "dev")[:80]
    options = {"iterations": 0, "runs_dir": tmp_path, "device": "cpu", "dtype": "bfloat16"}
    run = opro.optimize("pocket-base", TEXTS[:1], small, **options)
    config = run.folder.config
    assert (config["device"], config["dtype"], config["checkpoint"]) == (
        "cpu",
        "bfloat16",
        "pocket-base",
    )
    with pytest.raises(opro.UserError, match="go with the name of a checkpoint"):
        opro.optimize(Keywords(), [SEED], small, quantization="nf4", runs_dir=tmp_path)


def test_a_part_of_a_clip_set_is_another_run(tmp_path):
    dev, more = opro.load_clips("data/demo", "dev"), {"iterations": 0, "runs_dir": tmp_path}
    whole = opro.optimize("fake", TEXTS, dev, **more)
    part = opro.optimize("fake", TEXTS, dev[:100], **more)
    assert part.path != whole.path
    ids = {c.clip_id for c in dev[:100]}
    assert set(part.holdout.clip_id) < ids and not set(whole.holdout.clip_id) <= ids
    assert opro.optimize("fake", TEXTS, "data/demo", **more).path == whole.path
    assert part.folder.history.header["data"] != whole.folder.history.header["data"]


def test_given_halves_may_not_share_a_source(tmp_path):
    dev = opro.load_clips("data/demo", "dev")
    with pytest.raises(opro.UserError, match="searched on and held out"):
        opro.optimize("fake", TEXTS, (dev[:200], dev[100:300]), runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_wrong_objects_are_one_sentence(run, tmp_path):
    clips = opro.load_clips("data/demo", "dev")
    paths, quiet = [c.path for c in clips], {"runs_dir": tmp_path / "x"}
    nameless = type("Nameless", (), {"propose": lambda self, view, n: []})()
    for call, said in (
        (lambda: opro.optimize("fake", TEXTS, paths, **quiet), "clips is a list; expected"),
        (lambda: opro.optimize("fake", TEXTS, None, **quiet), "clips is a NoneType"),
        (lambda: opro.optimize(None, TEXTS, clips, **quiet), "evaluator is NoneType; expected"),
        (
            lambda: opro.optimize(Keywords, [SEED], clips, **quiet),
            "evaluator is the class Keywords",
        ),
        (lambda: opro.optimize("fake", None, clips, **quiet), "prompts are a NoneType"),
        (lambda: opro.optimize("fake", [run], clips, **quiet), "prompt 1 is a Result"),
        (lambda: opro.optimize("fake", TEXTS, clips, iteration=1), "did you mean iterations"),
        (lambda: opro.optimize("fake", TEXTS, clips, proposer="rewriter"), "proposer is a str"),
        (lambda: opro.optimize("fake", TEXTS, clips, proposer=nameless), "proposer is a Nameless"),
        (
            lambda: opro.score("fake", TEXTS, "data/demo", **quiet),
            "clips is a str; expected a ClipSet",
        ),
        (lambda: opro.score("fake", run, clips, **quiet), "prompts are a Result"),
        (lambda: opro.compare(run.holdout), "compare was given a DataFrame"),
        (lambda: opro.predict(None, paths[:1]), "predict was given NoneType"),
        (lambda: opro.predict(run, paths[:1], hop=3), "did you mean hop_ms"),
        (lambda: opro.predict(run, paths[:1], gate=True), "give out=FOLDER"),
        (lambda: opro.predict(tmp_path / "none", paths[:1]), "is no run folder"),
        (lambda: opro.add_metric("a b", f1, ""), "'a b' is no name"),
    ):
        with pytest.raises(opro.UserError, match=said):
            call()
    assert not (tmp_path / "x" / "trials.jsonl").exists()


@pytest.mark.tiny
def test_a_text_that_offers_no_answers_is_told(tmp_path):
    clips = opro.load_clips("data/demo", "dev")[:8]
    with pytest.warns(UserWarning, match="goes to no answer; it is read by SPEECH = A"):
        opro.score("pocket-base", "Is there speech", clips, runs_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "fast"}, "strategy is 'fast'; expected one of race, opro, random"),
        ({"objective": "f2"}, "objective is 'f2'; expected one of balanced_accuracy"),
        ({"iterations": "5"}, "iterations is '5'; expected int"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"name": "a/b"}, "'a/b' is no run name"),
    ],
)
def test_a_wrong_value_is_one_sentence(tmp_path, options, said):
    with pytest.raises(opro.UserError, match=said):
        opro.optimize("fake", TEXTS, "data/demo", runs_dir=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "no prompt was given"),
        (["a? A B", "a? A B"], "given twice"),
        ([Prompt("a?", (("YES", ("A",)), ("NO", ("B",))))], "expected the clips' labels SPEECH"),
        ([" "], "expected the prompt's words"),
    ],
)
def test_wrong_prompts_are_one_sentence(tmp_path, prompts, said):
    clips = opro.load_clips("data/demo", "dev")
    with pytest.raises(opro.UserError, match=said):
        opro.score("fake", prompts, clips, runs_dir=tmp_path)


def test_predict_gives_the_rows_of_the_files(run, tmp_path):
    clips = opro.load_clips("data/demo", "dev")[:6]
    paths = [c.path for c in clips]
    with_files = opro.predict(run, paths, out=tmp_path / "out")
    without = opro.predict(run.path, paths)
    pd.testing.assert_frame_equal(with_files.windows, without.windows)
    assert len(without.recordings) == 6 and without.rejected.empty
    assert (tmp_path / "out" / "labels.csv").is_file()
    bare = opro.predict(run.best, paths, evaluator="fake")
    assert (bare.windows.label == without.windows.label).all() and "alone" in bare.notes[0]


def test_a_run_with_an_evaluator_of_ones_own_says_where_it_can_be_scored(tmp_path):
    run = opro.optimize(Keywords(), [SEED], "data/demo", iterations=0, runs_dir=tmp_path)
    clip = opro.load_clips("data/demo", "dev")[0].path
    with pytest.raises(opro.UserError, match="given from Python"):
        opro.predict(run, clip)
    assert len(opro.predict(run, clip, evaluator=Keywords()).windows) == 1
