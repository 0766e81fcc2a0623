"""Command lines: flags over a file over defaults, and every mistake is one sentence."""

import gc
import io
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from common import ROOT

from evaluators.errors import PauseError, UserError
from opro.cli import DONE, FAULT, VERBS, WRONG_USE, flag, parse, run_verb


@dataclass(frozen=True)
class Machine:
    """The machine."""

    runs_dir: Path = flag(Path("runs"), "where runs lie")


@dataclass(frozen=True)
class Settings(Machine):
    """The search.

    More of it.
    """

    rounds: int = flag(5, "rounds", min=0)
    cost: float | None = flag(None, "dollars", min=0)
    kind: Literal["race", "random"] = flag("race", "how")
    swap: bool = flag(False, "both orders")
    name: str | None = flag(None, "run name")


def given(*argv, config=None, tmp_path=None):
    if config is not None:
        (tmp_path / "c.yaml").write_text(config)
        argv = ("--config", str(tmp_path / "c.yaml"), *argv)
    return parse(Settings, list(argv), "about")[0]


def test_defaults_flags_and_types():
    assert given() == Settings()
    found = given("--rounds", "7", "--cost", "0.5", "--kind", "random", "--swap", "--runs-dir", "x")
    assert found == Settings(Path("x"), 7, 0.5, "random", True)


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    text = "rounds: 7\nkind: random\nruns-dir: here\nswap: true\nname: 3\ncost: null\n"
    found = given("--rounds", "8", config=text, tmp_path=tmp_path)
    assert found == Settings(Path("here"), 8, None, "random", True, "3")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--round", "3"], "flag '--round' is unknown; did you mean --rounds?"),
        (["--zzz"], "flag '--zzz' is unknown; --help lists the flags"),
        (["--rounds", "many"], "expected a whole number"),
        (["--rounds", "1.5"], "expected a whole number"),
        (["--rounds", "-1"], "expected at least 0"),
        (["--cost", "nan"], "expected at least 0"),
        (["--cost", "x"], "expected a number"),
        (["--kind", "best"], "invalid choice: 'best'"),
        (["--swap=yes"], "--swap"),
        (["stray"], "'stray' is unknown"),
        (["--rounds"], "expected one argument"),
    ],
)
def test_wrong_flags_are_one_sentence(capsys, argv, words):
    with pytest.raises(SystemExit) as stop:
        given(*argv)
    err = capsys.readouterr().err
    assert stop.value.code == WRONG_USE and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("round: 3", "key 'round' is unknown; did you mean 'rounds'?"),
        ("zzz: 3", "key 'zzz' is unknown; known are "),
        ("rounds: many", "rounds is 'many'; expected a whole number"),
        ("rounds: -1", "rounds is '-1'; expected at least 0"),
        ("rounds:", "rounds is empty; expected a value"),
        ("rounds: true", "rounds is True; expected a plain value"),
        ("rounds: [1]", "rounds is [1]; expected a plain value"),
        ("kind: best", "kind is 'best'; expected one of race, random"),
        ("kind: [race]", "expected one of race, random"),
        ("swap: 1", "swap is 1; expected true or false"),
        ("- a", "expected names and values"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        given(config=text, tmp_path=tmp_path)
    assert words in str(caught.value) and str(caught.value).startswith(str(tmp_path / "c.yaml"))


def test_help_shows_the_groups_with_their_flags_once(capsys):
    with pytest.raises(SystemExit) as stop:
        given("--help")
    out = capsys.readouterr().out
    assert stop.value.code == DONE
    assert "machine:\n  --runs-dir PATH" in out and "search:\n  --rounds N" in out
    for name in ("rounds", "cost", "kind", "swap", "name", "runs-dir"):
        assert out.count(f"  --{name}") == 1
    assert "(default: 5)" in out and "{race,random}" in out and "about" in out
    assert "(default: None)" not in out


@pytest.mark.parametrize(
    "module", [f"{'data' if v in ('build', 'audit') else 'opro'}.{v}" for v in VERBS]
)
def test_every_command_runs_as_a_module_and_refuses_an_unknown_flag(capsys, monkeypatch, module):
    """What stands below ``__main__``: without it ``python -m opro.rescore`` does nothing, and says so to nobody."""
    monkeypatch.setattr("sys.argv", [module, "--unheard-of"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__")
    assert stop.value.code == WRONG_USE and capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("verb", ["optimize", "doctor", "rescore", "matrix", "leaderboard"])
def test_every_flag_of_a_verb_stands_in_one_group(capsys, verb):
    import importlib

    module = importlib.import_module(f"opro.{verb}")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    lines = [x.split()[0] for x in capsys.readouterr().out.split("\n") if x.startswith("  --")]
    assert len(lines) == len(set(lines)) > 2


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (UserError("a thing is wrong"), WRONG_USE, "error: a thing is wrong\n"),
        (PauseError("the server is gone"), FAULT, "paused: the server is gone\n"),
        (
            KeyboardInterrupt(),
            FAULT,
            "interrupted: nothing is lost, the same command goes on from here\n",
        ),
    ],
)
def test_faults_are_one_sentence_and_a_code(capsys, fault, code, said):
    def main():
        raise fault

    before = signal.getsignal(signal.SIGTERM)
    assert run_verb(main) == code
    assert capsys.readouterr().err == said
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_verb(lambda: 1 // 0)


def test_a_termination_is_an_interruption(capsys):
    def main():
        os.kill(os.getpid(), signal.SIGTERM)
        return DONE

    assert run_verb(main) == FAULT and "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_within_an_import_has_its_exit_code_too(tmp_path, number):
    """Imports run texts by `exec`, as dataclasses do, and Python then took the signal's code."""
    body = f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(60)"
    (tmp_path / "verb.py").write_text(
        f"import sys\nfrom opro import cli\nsys.exit(cli.run_verb(lambda: exec({body!r})))\n"
    )
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    done = subprocess.run(
        [sys.executable, "-m", "verb"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == FAULT and done.stderr.startswith("interrupted"), done


def test_a_pipe_that_is_closed_early_is_no_fault():
    command = f"{sys.executable} -m opro.leaderboard --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    many = (
        f'{sys.executable} -c "import sys\nfrom opro.cli import run_verb\ndef main():\n'
        " for _ in range(200000): print('line')\n return 0\nsys.exit(run_verb(main))\""
        " | head -n 1; exit ${PIPESTATUS[0]}"
    )
    for line in (command, many):
        done = subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr


def test_the_garbage_collector_looks_less_often_in_a_verb_and_as_before_after_it():
    before, inside = gc.get_threshold(), []
    assert run_verb(lambda: inside.append(gc.get_threshold()) or 0) == 0
    assert inside[0][0] > before[0] and gc.get_threshold() == before
    with pytest.raises(ZeroDivisionError):
        run_verb(lambda: 1 // 0)
    assert gc.get_threshold() == before


@pytest.mark.parametrize(
    ("stream", "encoding"),
    [(io.StringIO(), None), (io.TextIOWrapper(io.BytesIO(), encoding="latin-1"), "latin-1")],
    ids=["text in memory", "a file"],
)
def test_what_a_verb_prints_to_has_the_encoding_of_the_stream_below(monkeypatch, stream, encoding):
    monkeypatch.setattr(sys, "stdout", stream)
    seen = []
    assert run_verb(lambda: seen.append(sys.stdout) or DONE) == DONE
    assert seen[0] is not stream and seen[0].encoding == encoding
