"""Threads sleep while they wait and are as many as is asked for, unless the environment says otherwise."""

import os
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from common import ROOT

from evaluators import threads
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.bench import prompts_of_length
from evaluators.splits import balanced_order
from evaluators.threads import COUNTS, WAITING, sum_alike, use_threads, wait_asleep
from opro import doctor, finetune, matrix, optimize, rescore

NAMES = (*WAITING, *COUNTS)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """An environment that says nothing of threads, and torch's own number of them afterwards."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def said() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}),
        *(({name: "7"}, {name: "7"}) for name in WAITING),
    ],
)
def test_threads_sleep_unless_the_environment_says_how_they_wait(monkeypatch, given, expected):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_asleep()
    assert said() == expected


@pytest.mark.parametrize("given", [None, "COMPATIBLE"])
def test_products_are_summed_alike_unless_the_environment_says_how(monkeypatch, given):
    monkeypatch.setenv("MKL_CBWR", given or "")
    if given is None:
        monkeypatch.delenv("MKL_CBWR")
    sum_alike()
    assert os.environ["MKL_CBWR"] == (given or "AUTO")


def test_it_is_in_force_before_anything_is_computed():
    """Whoever scores, from a command or from Python."""
    code = "import os, evaluators.audio_lm.scorer; print(os.environ['MKL_CBWR'])"
    env = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.stdout.strip() == "AUTO", done.stderr


@pytest.mark.parametrize("lent", [1, 3, 4, 9])
def test_no_more_threads_than_a_container_lends(monkeypatch, lent):
    monkeypatch.setattr(joblib, "cpu_count", lambda: lent)
    monkeypatch.setattr(threads, "_visible_cores", lambda: 4)
    before = torch.get_num_threads()
    use_threads(0)
    limited = lent < 4
    assert said() == (dict.fromkeys(COUNTS, str(lent)) if limited else {})
    assert torch.get_num_threads() == (lent if limited else before)


@pytest.mark.parametrize("name", COUNTS)
def test_what_the_environment_says_stays_and_the_flag_wins_over_it(monkeypatch, name):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    monkeypatch.setattr(threads, "_visible_cores", lambda: 4)
    monkeypatch.setenv(name, "2")
    use_threads(0)
    assert said() == {name: "2"}
    use_threads(3)
    assert said() == dict.fromkeys(COUNTS, "3") and torch.get_num_threads() == 3


CODE = """
import os, sys
from opro import doctor
from opro.cli import run_verb
def main():
    assert "torch" not in sys.modules
    doctor.examine = lambda settings: iter(())
    doctor.main(sys.argv[1:])
    assert "torch" not in sys.modules
    import torch
    print(torch.get_num_threads(), os.environ["OMP_WAIT_POLICY"])
    return 0
sys.exit(run_verb(main))
"""


@pytest.mark.parametrize(
    ("flags", "more", "expected"),
    [
        pytest.param(["--threads", "1"], {}, "1 PASSIVE", marks=pytest.mark.slow),
        (["--threads", "2"], {"OMP_NUM_THREADS": "1"}, "2 PASSIVE"),
        ([], {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "ACTIVE"}, "1 ACTIVE"),
    ],
)
def test_it_is_in_force_when_torch_is_imported(flags, more, expected):
    command = [sys.executable, "-c", CODE, *flags]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **more}, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected, done.stderr


class StopError(Exception):
    pass


@pytest.mark.parametrize(
    ("verb", "more"),
    [(optimize, []), (rescore, ["x.yaml"]), (matrix, []), (finetune, []), (doctor, [])],
)
def test_every_verb_that_runs_a_model_takes_the_flag(monkeypatch, verb, more):
    found = []

    def stop(count):
        found.append(count)
        raise StopError

    monkeypatch.setattr(verb, "use_threads", stop)
    with pytest.raises(StopError):
        verb.main(["--threads", "5", *more])
    with pytest.raises(SystemExit):
        verb.main(["--threads", "-1", *more])
    assert found == [5]


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("dtype", "counts"),
    [
        ("float32", (1, 2)),  # more than there are cores wait for one another
        pytest.param("float32", (1, 2, 3), marks=pytest.mark.slow),
        pytest.param("bfloat16", (1, 2, 3), marks=pytest.mark.slow),
    ],
)
def test_a_score_does_not_depend_on_the_number_of_threads(dev_clips, dtype, counts):
    """To the bit: without `sum_alike` one of these differs on a processor of AMD."""
    clips, tables = balanced_order(dev_clips)[:20], []
    checkpoint = open_checkpoint("pocket-base")
    for count in counts:
        use_threads(count)
        evaluator = AudioScorer(checkpoint, "cpu", dtype)
        tokenizer = evaluator.processor.tokenizer
        prompts = prompts_of_length(tokenizer, 10, 46, evaluator.family.template)
        tables.append(evaluator.score(prompts, clips).logp)
    for other in tables[1:]:
        assert np.array_equal(other, tables[0])
