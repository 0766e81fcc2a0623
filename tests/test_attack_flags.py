"""Values that no flag can take, of every verb: one sentence, exit code 2, at once, and nothing written."""

import importlib
import logging
import os
import sys

import pytest
from common import ROOT

from evaluators.errors import UserError
from opro.cli import run_verb

FAKE = ("--checkpoint", "fake")
ATTACKS = [  # verb, flags, part of the sentence
    ("optimize", ("--seed", "-1"), "--seed: is '-1'; expected at least 0"),
    ("optimize", ("--seed", "1" + "0" * 30), "expected at most 1,000,000,000,000"),
    (
        "optimize",
        ("--iterations", "1" + "0" * 12),
        "--iterations: is '1000000000000'; expected at most",
    ),
    (
        "optimize",
        ("--candidates", "1" + "0" * 12),
        "--candidates: is '1000000000000'; expected at most",
    ),
    ("optimize", ("--max-cost", "inf"), "--max-cost: is 'inf'; expected at most"),
    ("optimize", ("--max-cost", "nan"), "--max-cost: is 'nan'; expected at least 0"),
    ("optimize", ("--max-cost", "-0.1"), "expected at least 0"),
    ("optimize", ("--threads", "1000000000"), "expected at most 1,024"),
    ("optimize", ("--checkpoint", ""), "--checkpoint: is ''; expected a name"),
    ("optimize", ("--checkpoint", " "), "--checkpoint: is ' '; expected a name"),
    (
        "optimize",
        ("--checkpoint", "pocket-base", "--device", "meta"),
        "device 'meta' cannot be used",
    ),
    ("optimize", (*FAKE, "--adapter", "x"), "--adapter is 'x'; checkpoint 'fake' has no weights"),
    ("optimize", (*FAKE, "--quantization", "nf4"), "--quantization is 'nf4'; checkpoint 'fake'"),
    ("optimize", (*FAKE, "--dtype", "bfloat16"), "--dtype is 'bfloat16'; checkpoint 'fake'"),
    ("optimize", (*FAKE, "--runs-dir", "a\udcff"), "expected text in UTF-8"),
    ("optimize", (*FAKE, "--manifest", "a\x1b[2J"), r"is 'a\x1b[2J'; expected text in UTF-8"),
    ("optimize", (*FAKE, "--name", "../x"), "is no run name"),
    ("finetune", ("--rank", "100000000"), "expected at most 4,096"),
    ("finetune", ("--lr", "inf"), "--lr: is 'inf'; expected at most 1"),
    ("finetune", ("--lr", "nan"), "--lr: is 'nan'; expected at least 0"),
    ("finetune", ("--epochs", "1" + "0" * 15), "expected at most 1,000"),
    ("finetune", ("--batch", "1" + "0" * 9), "expected at most 65,536"),
    ("ceiling", ("--lr", "nan"), "--lr: is 'nan'; expected at least 0"),
    ("ceiling", ("--seeds", "1" + "0" * 9), "expected at most 100"),
    ("ceiling", ("--epochs", "0"), "--epochs: is '0'; expected at least 1"),
    ("finetune", ("--device", "meta"), "invalid choice: 'meta'"),
    ("profile", ("--wordings", "0"), "--wordings: is '0'; expected at least 1"),
    ("profile", ("--split", "test"), "invalid choice: 'test'"),
    ("power", ("--seed", "-3"), "--seed: is '-3'; expected at least 0"),
    ("power", ("--accuracy", "2"), "--accuracy is 2"),
    ("stats", ("--resamples", "1000000000", "x.csv"), "expected at most 1,000,000"),
    ("stats", ("--seed", "-1", "x.csv"), "--seed: is '-1'; expected at least 0"),
    ("rescore", ("nowhere\udcff",), "does not exist"),
    ("brittle", ("n" * 5000,), "is too long; give a shorter one"),
    ("brittle", ("nowhere", "--edits", "51"), "--edits: is '51'; expected at most 50"),
    ("rescore", ("n" * 5000,), "nnn...' is too long; give a shorter one"),
    ("seal", ("n" * 5000,), "nnn...' is too long; give a shorter one"),
    ("optimize", (*FAKE, "--runs-dir", "n" * 5000), "nnn...' is too long; give a shorter one"),
    ("optimize", ("",), "flag '' is unknown"),
    ("doctor", ("",), "flag '' is unknown"),
]


def run(verb, *flags):
    sys.argv[1:] = flags
    try:
        return run_verb(importlib.import_module(f"opro.{verb}").main)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(("verb", "flags", "sentence"), ATTACKS)
def test_a_value_that_cannot_be_is_one_sentence(
    verb, flags, sentence, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [verb])
    assert run(verb, *flags) == 2
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert sentence in line and "\x1b" not in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


FORBIDDEN = [
    ("doctor", ("--checkpoint", "{}")),
    ("doctor", ("--manifest", "{}")),
    ("report", ("{}",)),
    ("brittle", ("{}",)),
    ("power", ("--manifest", "{}")),
    ("leaderboard", ("--runs-dir", "{}")),
]


@pytest.mark.parametrize(("verb", "flags"), FORBIDDEN)
def test_a_place_that_this_user_may_not_use_is_one_sentence(
    verb, flags, tmp_path, monkeypatch, capsys
):
    place, real = tmp_path / "inside" / "x", os.stat

    def stat(path, **options):  # a user may be root, who may do anything
        if str(path).startswith(str(place)):
            raise PermissionError(13, "Permission denied", path)
        return real(path, **options)

    monkeypatch.setattr(sys, "argv", [verb])
    monkeypatch.setattr(os, "stat", stat)
    code = run(verb, *(flag.format(place) for flag in flags))
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said
    assert f"error: path '{place}" in said and "may not be used (Permission denied)" in said


@pytest.mark.parametrize("verb", ["rescore", "matrix"])
def test_a_split_of_one_class_is_refused_before_it_counts_as_opened(
    verb, make_manifest, tmp_path, monkeypatch, capsys
):
    def share(rows):
        for row in rows[:16]:
            row["split"] = "test" if row["label"] == "SPEECH" else "dev"

    monkeypatch.setattr(sys, "argv", [verb])
    folder = make_manifest(24, change=share)
    flags = ["--manifest", str(folder), "--runs-dir", str(tmp_path / "runs"), *FAKE]
    if verb == "rescore":
        flags.insert(0, str(ROOT / "prompts/seeds/baselines.yaml"))
    assert run(verb, *flags, "--split", "test") == 2
    said = capsys.readouterr().err
    assert "holds clips of SPEECH alone" in said and "add clips of NONSPEECH" in said
    assert not (tmp_path / "runs" / "test_openings.jsonl").exists()


def test_what_a_reader_says_steers_no_terminal(tmp_path, monkeypatch, capsys):
    def verb():
        print("shown \x1b[31mred\x1b[0m\u202e")
        logging.getLogger("opro").warning("logged \x1b]0;title\x07\nand a line")
        raise UserError("refused \x1b[2J" + "x" * 10_000)

    monkeypatch.setattr(sys, "argv", ["verb"])
    assert run_verb(verb) == 2
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\u202e" not in out
    assert r"shown \x1b[31mred\x1b[0m\u202e" in out and r"refused \x1b[2J" in err
    assert len(err) < 5_000


def test_a_setting_that_stands_twice_in_two_spellings_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["optimize"])
    (tmp_path / "c.yaml").write_text("max-cost: 1\nmax_cost: 2\n")
    assert run("optimize", *FAKE, "--config", str(tmp_path / "c.yaml")) == 2
    assert "key 'max_cost' stands twice" in capsys.readouterr().err
