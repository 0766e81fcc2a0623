"""The verb: adapters that every verb takes, wrong use in one sentence, nothing lost by a kill."""

import csv
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from common import start_processes
from safetensors.torch import load_file

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError
from evaluators.finetuning.memory import TrainingPlan
from evaluators.finetuning.recipe import Recipe, own_defaults
from evaluators.finetuning.train import Machine, Training, train
from evaluators.manifest import read_manifest
from evaluators.splits import balanced_order
from opro.finetune import main as finetune

pytestmark = pytest.mark.tiny
ROOT = Path(__file__).resolve().parents[2]
LABELS = ("SPEECH", "NONSPEECH")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A manifest of 32 train and 24 dev clips of the demo."""
    folder = tmp_path_factory.mktemp("small")
    rows = list(csv.DictReader((ROOT / "data/demo/manifest.csv").open()))
    order = {c.clip_id: i for i, c in enumerate(balanced_order(
        read_manifest(ROOT / "data/demo", LABELS)))}  # fmt: skip
    rows.sort(key=lambda r: order[r["clip_id"]])
    kept = [r for r in rows if r["split"] == "train"][:32]
    kept += [r for r in rows if r["split"] == "dev"][:24]
    for row in kept:
        target = folder / row["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "data/demo" / row["path"], target)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(kept)
    return folder


def flags(small, out, *more):
    return ["--manifest", str(small), "--out", str(out), "--runs-dir", str(out.parent / "runs"),
            "--epochs", "2", *more]  # fmt: skip


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "lora"
    assert finetune(flags(small, out)) == 0
    return out


def test_the_result_is_a_checkpoint_that_tells_its_story(
    small, trained, dev_clips, seeds, capsys, monkeypatch
):
    about = json.loads((trained / "training.json").read_text())
    assert about["prompt"]["text"] == seeds[0].text and about["quantisation"] == "none"
    sources = {c.source_id for c in read_manifest(small, LABELS, "train")}
    assert sources < set(about["sources"])  # and those of the base
    assert about["trainable"] == 219_136 and about["versions"]["peft"]
    assert [e for e in about["curve"] if "eval_loss" in e] and not (
        trained / ".checkpoints"
    ).exists()
    opened = open_checkpoint(str(trained))
    assert opened.prompt == seeds[0] and opened.self_test is not None
    one = AudioScorer(opened, "cpu")
    table = one.score(seeds[:1], dev_clips[:8])
    plain = AudioScorer(open_checkpoint("pocket-base"), "cpu").score(seeds[:1], dev_clips[:8])
    assert np.abs(table.logp - plain.logp).max() > 0.01
    before = (trained / "adapter_model.safetensors").stat().st_mtime_ns
    assert finetune(flags(small, trained)) == 0  # shows what is there
    assert (trained / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert "32 clips x 2 epochs" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")  # other processes do not wait for a training that is over
    assert finetune(flags(small, trained)) == 0


def test_an_adapter_is_trained_further(small, trained, tmp_path):
    out = tmp_path / "further"
    assert finetune(flags(small, out, "--checkpoint", str(trained), "--lr", "1e-4")) == 0
    first = load_file(trained / "adapter_model.safetensors")
    second = load_file(out / "adapter_model.safetensors")
    assert first.keys() == second.keys()
    apart = max(float((first[k] - second[k]).abs().max()) for k in first)
    assert 0 < apart < 0.01
    with pytest.raises(UserError, match="has rank 16"):
        finetune(flags(small, tmp_path / "x", "--checkpoint", str(trained), "--rank", "4"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--clips", "5000"], "--clips is '5000'; expected all, or a number up to 32"),
        (["--checkpoint", "nothing"], "neither one of"),
        (["--batch", "64", "--epochs", "1"], "less than a batch of 64"),
        (["--swap", "--prompts", "PLAIN"], "has no lettered options to exchange"),
        (["--prompts", "missing.yaml"], "does not exist"),
    ],
)
def test_wrong_use_is_one_sentence(small, tmp_path, more, message):
    plain = tmp_path / "plain.yaml"
    plain.write_text(
        "prompts:\n- text: Is it speech?\n  answers: {SPEECH: 'Yes', NONSPEECH: 'No'}\n"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        finetune(flags(small, tmp_path / "out", *[str(plain) if m == "PLAIN" else m for m in more]))


def test_a_dry_run_writes_nothing(small, tmp_path, capsys):
    assert finetune([*flags(small, tmp_path / "out"), "--dry-run"]) == 0
    assert "4 steps of 16" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_a_frozen_tower_and_a_plain_loss(small, tmp_path):
    out = tmp_path / "out"
    more = ["--clips", "16", "--targets", "llm-only", "--loss", "full", "--swap", "--prompts",
            str(ROOT / "prompts/seeds/baselines.yaml")]  # fmt: skip
    assert finetune(flags(small, out, *more)) == 0
    assert not [k for k in load_file(out / "adapter_model.safetensors") if "audio_tower" in k]
    about = json.loads((out / "training.json").read_text())
    assert len(about["prompts"]) == 3 and about["recipe"]["swap"]


def command(*arguments):
    return [sys.executable, str(ROOT / "tests" / "train_fast_saves.py"), *arguments]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def kill_in_training(arguments, wait):
    """Starts the command and kills it some time after its second line. Returns whether it was still at work."""
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    lines = (line for line in process.stderr if line.startswith("step"))
    next(lines, None), next(lines, None)
    time.sleep(wait)
    at_work = process.poll() is None
    process.kill()
    process.communicate()
    return at_work


def test_a_killed_training_goes_on_to_the_same_adapter(small, tmp_path, capsys):
    """KILLS=20 pytest tests/opro/test_finetune.py -k killed"""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ["--clips", "16", "--batch", "4", "--epochs", "1"]
    assert finetune(flags(small, whole, *more)) == 0
    assert capsys.readouterr().err.startswith("step 1/4")
    rng, kills = random.Random(0), 0
    while kills < int(os.environ.get("KILLS", "1")):
        if kill_in_training(flags(small, broken, *more), rng.uniform(0, 0.3)):
            kills += 1
        else:  # it came to its end: begin again
            shutil.rmtree(broken)
    assert finetune(flags(small, broken, *more)) == 0
    resumed = re.match(r"step (\d+)/4", capsys.readouterr().err)
    assert resumed and int(resumed[1]) > 1
    one, two = (load_file(p / "adapter_model.safetensors") for p in (whole, broken))
    assert all(torch.equal(one[k], two[k]) for k in one)
    about = [json.loads((p / "training.json").read_text()) for p in (whole, broken)]
    assert about[0]["curve"][-1]["step"] == about[1]["curve"][-1]["step"]
    assert about[0]["dev_loss"] == about[1]["dev_loss"]
    configs = [(p / "adapter_config.json").read_text() for p in (whole, broken)]
    assert configs[0] == configs[1]


def ends(processes):
    """[(Exit code, stdout, stderr)] of processes, which must all end."""
    out = [(*process.communicate(timeout=100),) for process in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, out, strict=True)]


def whole_training(small, prompts):
    """Sixteen clips in steps of four, without dropout, which two processes draw otherwise than one."""
    base = open_checkpoint("pocket-base")
    return Training(
        checkpoint=base,
        prompts=tuple(prompts),
        labels=LABELS,
        clips=balanced_order(read_manifest(small, LABELS, "train"))[:16],
        validation=balanced_order(read_manifest(small, LABELS, "dev"))[:12],
        processor=QWEN2_AUDIO.processor(base.base),
        recipe=Recipe(epochs=1, lr=1e-3, dropout=0.0, batch=4),
        plan=TrainingPlan(False, 4, False, 0.0, None),
        machine=Machine(torch.device("cpu"), torch.float32),
    )


ONE_AFTER_ANOTHER = """
import pickle, sys, torch
from evaluators.finetuning.train import train
from opro.cli import run_verb
from opro.finetune import main

training, folder, calls = pickle.load(open(sys.argv[1], "rb"))
train(training, folder)
assert torch.distributed.get_world_size() == 2
for arguments in calls:
    print("begin", file=sys.stderr)
    code = run_verb(lambda: main(arguments))
    print("exit code", code, file=sys.stderr)
sys.exit(code)
"""


def test_two_processes_train_as_one_and_end_after_a_training_over_a_finished_one_and_on_wrong_use(
    small, seeds, tmp_path
):
    same = [*flags(small, tmp_path / "out")[:-2], "--epochs", "1", "--micro", "8", "--clips", "16"]
    calls = [same, same, [*same, "--seed", "5"]]  # one start of Python for all of it
    alone = whole_training(small, seeds[:1])
    halved = replace(
        alone,
        plan=replace(alone.plan, micro_batch_size=2),
        machine=replace(alone.machine, processes=2),
    )
    (tmp_path / "work").write_bytes(pickle.dumps((halved, tmp_path / "2", calls)))
    processes = start_processes("-c", ONE_AFTER_ANOTHER, str(tmp_path / "work"))
    train(alone, tmp_path / "1")
    first, second = ends(processes)
    assert first[0] == second[0] == 2, first[2] + second[2]
    assert first[1].count("step 1 kept") == 2 and not second[1]
    for _, _, err in (first, second):
        _, trained, shown, wrong = re.split(r"^begin\n", err, flags=re.MULTILINE)
        assert re.findall(r"^exit code (\d)", err, re.MULTILINE) == ["0", "0", "2"]
        assert shown == "exit code 0\n"
        assert re.fullmatch(r"error: .*started with seed.*\nexit code 2\n", wrong)
        assert err is second[2] or "step 1/1" in trained
    one, two = (load_file(tmp_path / n / "best" / "adapter_model.safetensors") for n in "12")
    # Single weights with hardly any gradient differ more: Adam divides by its size.
    apart = torch.cat([(one[k] - two[k]).flatten() for k in one]).norm()
    moved = torch.cat([v.flatten() for k, v in one.items() if "lora_B" in k]).norm()
    assert moved > 0.1 and apart < 0.01 * moved


def test_a_study_is_opened_again(small, tmp_path, capsys):
    out = tmp_path / "study"
    for _ in range(2):
        assert finetune([*flags(small, out, "--study", "1"), "--epochs", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("best dev loss") == 1 and captured.out.count("adapter ") == 2
    best = json.loads((out / "training.json").read_text())
    assert best["recipe"]["epochs"] == 1  # what was asked for comes first
    assert open_checkpoint(str(out)).base == open_checkpoint("pocket-base").base


def test_a_study_searches_nothing_that_a_flag_has_set(small, tmp_path):
    out = tmp_path / "study"
    more = ["--clips", "16", "--study", "2", "--epochs", "1", "--rank", "5"]
    assert finetune([*flags(small, out)[:-2], *more]) == 0
    recipes = [
        json.loads(p.read_text())["recipe"] for p in (out / "trials").glob("*/training.json")
    ]
    assert {(r["epochs"], r["rank"]) for r in recipes} == {(1, 5)}
    assert len({r["lr"] for r in recipes}) == len(recipes) > 1


def test_help_tells_the_defaults_that_are_taken(capsys):
    with pytest.raises(SystemExit):
        finetune(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    own = own_defaults(open_checkpoint("pocket-base").base)
    for name, general in (("epochs", Recipe.epochs), ("lr", Recipe.lr), ("rank", Recipe.rank)):
        here = re.search(rf"--{name} \w+ .*?\(default: ([^)]*)\)", text).group(1)
        told = [float(x) for x in re.findall(r"\d[\d.]*(?:e-\d+)?", here)]
        assert told == [general, own[name]] and "pocket-base" in here and "finetune.yaml" in here


def test_help_waits_for_nothing_heavy():
    code = (
        "import opro.finetune, sys\ntry: opro.finetune.main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers', 'peft', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), stdout=-3)
    assert done.returncode == 0
