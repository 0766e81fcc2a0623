"""`--json`: of every verb standard output is one document, whatever happens, and what is for people is elsewhere."""

import importlib
import json
import sys

import pytest
from common import DEMO

from opro.cli import DONE, FAULT, VERBS, WRONG_USE, command, hand_over, run_verb
from opro.results.run_folder import BEST, HOLDOUT, SUMMARY


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of the stand-in, and recordings of two labels in two folders."""
    folder = tmp_path_factory.mktemp("json")
    patch = pytest.MonkeyPatch()
    patch.delenv("OPENAI_API_KEY", raising=False)
    words = (
        f"--checkpoint fake --runs-dir {folder} --name r --iterations 1 --candidates 2 --clips 120"
    )
    patch.setattr("sys.argv", ["opro", "optimize", *words.split()])
    assert command() == DONE
    patch.setattr("sys.argv", ["opro", "seal", f"{folder}/r"])
    assert command() == DONE
    best = json.loads((folder / "r" / SUMMARY).read_text())["chosen"]["prompt_id"]
    (folder / "p.csv").write_bytes((folder / "r" / HOLDOUT / f"{best}.csv").read_bytes())
    for label in ("speech", "noise"):
        (folder / label).mkdir()
        for i, path in enumerate(sorted((DEMO / "clips").glob(f"dev-{label[0]}*"))[:12]):
            (folder / label / f"{label}{i}{path.suffix}").write_bytes(path.read_bytes())
    yield folder
    patch.undo()


def argv_of(verb, folder):
    words = {
        "optimize": "--checkpoint fake --runs-dir {0} --name r --iterations 1 --candidates 2 --clips 120",
        "rescore": "{0}/r --runs-dir {0} --top 1",
        "brittle": "{0}/r --runs-dir {0} --edits 2",
        "seal": "{0}/r --out {0}/again.yaml",
        "verify": "{0}/r/card.yaml",
        "check": "{0}/r/card.yaml --checkpoint fake --runs-dir {0}",
        "export": "{0}/r --to {0}/exported",  # whose model has no weights
        "predict": "{0}/r {0}/speech --out {0}/labels",
        "matrix": "--checkpoint fake --runs-dir {0} --out {0}/m",
        "leaderboard": "--runs-dir {0}",
        "report": "{0}/r",
        "stats": "{0}/p.csv --resamples 100",
        "power": "--searches 10 --candidates 1",
        "profile": "--checkpoint fake --wordings 20 --clips 120 --runs-dir {0}",
        "doctor": "--checkpoint fake --clips 8",
        "ceiling": "--dry-run --runs-dir {0}",
        "finetune": "--dry-run --runs-dir {0}",
        "cotune": "--dry-run --runs-dir {0}",
        "curve": "--dry-run --clips 64 --runs-dir {0}",
        "build": "folder --speech {0}/speech --other {0}/noise --out {0}/clips --dry-run",
        "audit": "{0}/no-such-manifest",
    }
    return [verb, *words[verb].format(folder).split()]


def called(argv, monkeypatch, capsys):
    """(exit code, the document, what people were told)"""
    package = "data" if argv[0] in ("build", "audit") else "opro"
    name = "view.__main__" if argv[0] == "view" else argv[0]
    module = importlib.import_module(f"{package}.{name}")
    monkeypatch.setattr("sys.argv", argv)
    try:
        code = run_verb(module.main)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, json.loads(out), err


ANSWERING = [verb for verb in VERBS if verb != "view"]  # which serves a page until it is stopped


@pytest.mark.parametrize("verb", ANSWERING)
def test_standard_output_is_one_document(made, monkeypatch, capsys, verb):
    code, found, err = called([*argv_of(verb, made), "--json"], monkeypatch, capsys)
    if verb in ("audit", "export"):
        assert code == WRONG_USE and found == {"error": found["error"], "exit": WRONG_USE}
        assert err == f"error: {found['error']}\n"
        return
    assert code == DONE and found and "error" not in found, err
    assert err.strip()  # people are told as without it
    if verb == "matrix":
        assert json.loads((made / "m" / "matrix.json").read_text()).items() <= found.items()


@pytest.mark.parametrize("verb", VERBS)
def test_wrong_use_is_a_document_too(monkeypatch, capsys, verb):
    code, found, err = called([verb, "--json", "--unheard-of"], monkeypatch, capsys)
    assert code == WRONG_USE and set(found) == {"error", "exit"} and found["exit"] == code
    assert found["error"] in err


def test_a_run_is_its_summary_and_its_files(made, monkeypatch, capsys):
    _, found, _ = called([*argv_of("optimize", made), "--json"], monkeypatch, capsys)
    summary = json.loads((made / "r" / SUMMARY).read_text())
    assert summary.items() <= found.items()
    assert found["paths"]["best"] == str(made / "r" / BEST)


@pytest.mark.parametrize("verb", ["leaderboard", "stats"])
def test_it_is_what_format_json_prints(made, monkeypatch, capsys, verb):
    argv = argv_of(verb, made)
    _, one, _ = called([*argv, "--json"], monkeypatch, capsys)
    _, other, _ = called([*argv, "--format", "json"], monkeypatch, capsys)
    assert one == other


def test_the_command_tells_of_an_unknown_verb(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["opro", "optimise", "--json"])
    assert command() == WRONG_USE
    said = "verb 'optimise' is unknown; did you mean optimize?"
    assert json.loads(capsys.readouterr().out) == {"error": said, "exit": WRONG_USE}


def test_a_fault_is_told_and_keeps_its_traceback(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["opro", "--json"])
    with pytest.raises(ZeroDivisionError):
        run_verb(lambda: 1 // 0)
    found = json.loads(capsys.readouterr().out)
    assert found["exit"] == FAULT and found["error"].startswith("ZeroDivisionError: ")


def test_without_the_flag_a_document_is_not_printed(monkeypatch, capsys):
    def main():
        hand_over({"a": 1})
        print("words", file=sys.stdout)
        return DONE

    monkeypatch.setattr("sys.argv", ["opro"])
    assert run_verb(main) == DONE and capsys.readouterr().out == "words\n"
    monkeypatch.setattr("sys.argv", ["opro", "--json"])
    assert run_verb(main) == DONE
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": 1} and err == "words\n"
