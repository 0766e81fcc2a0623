"""A finished run is shown again by its files alone, and only as what it was."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from common import DEMO, ROOT

from evaluators import fakes
from evaluators.audio import DECODERS
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.identity import versions
from evaluators.errors import UserError
from evaluators.evaluator import About
from opro import optimize, problem
from opro.results.again import finished_run
from opro.settings import OptimizeSettings

HEAVY = ("torch", "transformers", "peft", "optuna", "pandas", "scipy.special", "numpy.random")


class StandIn(fakes.FakeEvaluator):
    """Scores as the fake one, and says that it runs the weights of `checkpoint`."""

    checkpoint: str

    def about(self) -> About:
        libraries = {**DECODERS, **versions("torch", "transformers"), "kernels": "1"}
        return About("cuda:0", "bfloat16", open_checkpoint(self.checkpoint), versions=libraries)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(Flags, runs folder) of a run that has ended, on weights, clips and seeds of its own."""
    place = tmp_path_factory.mktemp("again")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patched.setattr(problem, "build_evaluator", lambda *_, **__: (StandIn(), frozenset()))
        shutil.copytree(ROOT / "data/pocket/base", place / "weights")
        shutil.copytree(DEMO, place / "clips", copy_function=os.link)
        (place / "clips/manifest.csv").unlink()  # it is changed
        shutil.copy(DEMO / "manifest.csv", place / "clips/manifest.csv")
        shutil.copy(ROOT / "prompts/seeds/baselines.yaml", place / "seeds.yaml")
        StandIn.checkpoint = str(place / "weights")
        flags = ["--checkpoint", StandIn.checkpoint, "--manifest", str(place / "clips"), "--seeds",
                 str(place / "seeds.yaml"), "--iterations", "0", "--clips", "60"]  # fmt: skip
        assert optimize.main([*flags, "--name", "run", "--runs-dir", str(place / "runs")]) == 0
        yield place, flags


def again(place, flags):
    settings = dict(zip(flags[::2], flags[1::2], strict=True))
    return finished_run(
        OptimizeSettings(
            checkpoint=settings["--checkpoint"],
            manifest=place / "clips",
            seeds=place / "seeds.yaml",
            iterations=0,
            clips="60",
            name="run",
            runs_dir=place / "runs",
        ).checked()
    )


def test_a_finished_run_is_shown_without_the_libraries_that_score(finished):
    place, flags = finished
    argv = [*flags, "--name", "run", "--runs-dir", str(place / "runs")]
    code = (
        f"import sys\nfrom opro import optimize\nassert optimize.main({argv!r}) == 0\n"
        f"print('loaded', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(place / "cache"), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "decision" in done.stdout and done.stdout.splitlines()[-1] == "loaded"


@pytest.mark.parametrize("what", ["nothing", "weights", "clips", "seeds", "library", "no record"])
def test_it_is_the_run_only_where_all_that_made_it_is_as_it_was(finished, what, monkeypatch):
    place, flags = finished
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    path, old, new = {
        "nothing": (place / "seeds.yaml", "", ""),
        "weights": (
            place / "weights/config.json",
            '"rms_norm_eps": 1e-06',
            '"rms_norm_eps": 1e-05',
        ),
        "clips": (place / "clips/manifest.csv", "dev-n000", "dev-other"),
        "seeds": (place / "seeds.yaml", "speech", "talking"),
        "library": (place / "runs/run/provenance.json", versions("torch")["torch"], "1.0"),
        "no record": (place / "runs/run/provenance.json", '"weights"', '"others"'),
    }[what]
    before = path.read_text()
    assert what == "nothing" or old in before
    path.write_text(before.replace(old, new))
    try:
        found = again(place, flags)
    finally:
        path.write_text(before)
    assert (found is not None) == (what == "nothing")


def test_other_settings_are_refused_as_ever(finished, monkeypatch):
    place, flags = finished
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    path = place / "runs/run/config.yaml"
    before = path.read_text()
    path.write_text(before.replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match="was started with seed = 1, now it is 0"):
        again(place, flags)
    path.write_text(before)


def test_a_run_that_has_not_ended_is_not_shown(finished, monkeypatch):
    place, flags = finished
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    journal = place / "runs/run/trials.jsonl"
    before = journal.read_text()
    lines = [line for line in before.splitlines() if json.loads(line)["event"] != "select"]
    journal.write_text("\n".join(lines) + "\n")
    found = again(place, flags)
    journal.write_text(before)
    assert found is None
