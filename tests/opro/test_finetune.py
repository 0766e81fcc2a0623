"""Fine-tuning: the same gradients as the plain way, adapters that every verb takes, nothing lost by a kill."""

import json
import os
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
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO, QWEN3_OMNI
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.loading import load_model
from evaluators.audio_lm.memory import TrainingPlan, plan_training
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.stock import StockModel
from evaluators.errors import UserError
from evaluators.finetuning.samples import Collate, Samples, mask, wordings
from evaluators.finetuning.train import Recipe, adapted, train
from evaluators.manifest import read_manifest
from evaluators.splits import balanced_order
from opro.finetune import main as finetune

pytestmark = pytest.mark.tiny
ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
LABELS = ("SPEECH", "NONSPEECH")


@pytest.fixture(scope="module")
def base():
    checkpoint = open_checkpoint("pocket-base")
    return checkpoint, AudioScorer(checkpoint, "cpu").processor


@pytest.fixture(scope="module")
def train_clips():
    return balanced_order(read_manifest(ROOT / "data" / "demo", LABELS, "train"))


def fresh(checkpoint):
    """A peft model whose adapter is not zero, so that no gradient is."""
    peft = adapted(checkpoint, Recipe(dropout=0.0), CPU, torch.float32, False)
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            weight.data.copy_(0.02 * noise)
    return peft


def gradients(peft, loss):
    peft.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in peft.parameters() if p.requires_grad])


@pytest.mark.parametrize("loss", ["answer", "full"])
def test_loss_and_gradients_equal_the_plain_implementation(base, train_clips, seeds, loss):
    checkpoint, processor = base
    clips = [*train_clips[:7], train_clips[9]]
    peft = fresh(checkpoint)
    model = peft.get_base_model()
    store = FeatureStore(None, processor.feature_extractor)
    asked = wordings(seeds, LABELS, processor.tokenizer, QWEN2_AUDIO, True)
    samples = Samples(clips, asked, LABELS, store, epochs=1, seed=3, augment=False)
    assert len({len(samples[i]["mel"][0]) for i in range(8)}) > 1  # of several lengths
    batch = Collate(QWEN2_AUDIO, model.config, loss)([samples[i] for i in range(8)])
    ours = peft(**batch)["loss"]
    found = gradients(peft, ours)

    plain = load_model(checkpoint, QWEN2_AUDIO, CPU, torch.float32)  # its own forward
    stock_forward = plain.forward.__func__
    stock = StockModel(model, processor, CPU)
    total = torch.zeros(())
    for i in range(8):
        c, _ = samples.order[i]
        inputs = {k: v.clone() for k, v in stock.inputs(seeds[0], clips[c]).items()}
        row, answer = inputs["input_ids"], samples[i]["answer"]
        inputs["input_ids"] = torch.cat([row, torch.tensor([answer])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits = stock_forward(model, **inputs).logits[0, :-1]
        targets = inputs["input_ids"][0, 1:].clone()
        if loss == "answer":
            targets[: -len(answer)] = -100
        targets[targets == model.config.audio_token_id] = -100
        total = total + samples[i]["weight"] * F.cross_entropy(logits, targets) / 8
    assert float(ours.detach()) == pytest.approx(float(total.detach()), abs=1e-5)
    expected = gradients(peft, total)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_exactly_the_answer_is_supervised(base, train_clips, seeds):
    checkpoint, processor = base
    store = FeatureStore(None, processor.feature_extractor)
    asked = wordings(seeds, LABELS, processor.tokenizer, QWEN2_AUDIO, True)
    samples = Samples(train_clips[:32], asked, LABELS, store, epochs=2, multiple=16, seed=0)
    config = AudioScorer(checkpoint, "cpu").config
    for i in range(0, len(samples), 16):
        batch = Collate(QWEN2_AUDIO, config, "answer")([samples[j] for j in range(i, i + 16)])
        assert len(batch["target_id"]) == 16  # one token a sample
        assert set(processor.tokenizer.convert_ids_to_tokens(batch["target_id"])) == {"A", "B"}
        assert float(batch["target_weight"].sum()) == pytest.approx(1, abs=0.5)
        for row, place, token in zip(
            batch["target_row"], batch["target_place"], batch["target_id"], strict=True
        ):
            assert batch["ids"][row, place + 1] == token
            assert not batch["ids"][row, place + 2 :].any()  # nothing but padding follows
    both = {samples.order[i][1] for i in range(len(samples))}
    assert both == set(range(6))  # all wordings, in both orders


def test_rare_labels_weigh_more(base, train_clips, seeds):
    speech = [c for c in train_clips if c.label == "SPEECH"][:4]
    other = [c for c in train_clips if c.label != "SPEECH"][:12]
    store = FeatureStore(None, base[1].feature_extractor)
    asked = wordings(seeds[:1], LABELS, base[1].tokenizer, QWEN2_AUDIO, False)
    samples = Samples([*speech, *other], asked, LABELS, store)
    weight = np.array([samples[i]["weight"] for i in range(16)])
    assert weight[:4].sum() == pytest.approx(weight[4:].sum()) == pytest.approx(8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 100))
def test_masks_are_small_and_stay_within_the_clip(seed, frames):
    mel = np.arange(80 * 110, dtype=np.float32).reshape(80, 110) + 1e6
    out = mask(mel, frames, np.random.default_rng(seed))
    changed = out != mel
    assert not changed[:, frames:].any()
    whole_bins = changed[:, :frames].all(1).sum()
    assert whole_bins <= 11 or frames == 1
    rest = changed[~changed[:, :frames].all(1), :frames]
    assert rest.any(0).sum() <= max(1, round(0.05 * frames))


def test_what_fits_which_card(monkeypatch):
    from evaluators.audio_lm.stock import config_7b

    config = config_7b()
    small = plan_training(config, "nf4", 8, 85, 25, 16)
    large = plan_training(config, "nf4", 80, 85, 25, 16)
    assert small.checkpointing and not small.expand and small.gib < 8
    assert large == replace(large, expand=True, micro=16, checkpointing=False)
    assert plan_training(config, "none", 12, 85, 25, 16) is None


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A manifest of 32 train and 24 dev clips of the demo."""
    import csv

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


def test_the_result_is_a_checkpoint_that_tells_its_story(small, trained, dev_clips, seeds, capsys):
    about = json.loads((trained / "training.json").read_text())
    assert about["prompt"]["text"] == seeds[0].text and about["quantisation"] == "none"
    heard = {c.source_id for c in read_manifest(small, LABELS, "train")}
    assert heard < set(about["sources"])  # and those of the base
    assert about["trainable"] == 219_136 and about["versions"]["peft"]
    assert [e for e in about["curve"] if "eval_loss" in e] and not (
        trained / ".checkpoints"
    ).exists()
    opened = open_checkpoint(str(trained))
    assert opened.prompt == seeds[0] and opened.self_test is not None
    one = AudioScorer(opened, "cpu")
    table = one.score(seeds[:1], dev_clips[:8])
    plain = AudioScorer(open_checkpoint("pocket-base"), "cpu").score(seeds[:1], dev_clips[:8])
    assert np.abs(table.logp - plain.logp).max() > 0.05
    before = (trained / "adapter_model.safetensors").stat().st_mtime_ns
    assert finetune(flags(small, trained)) == 0  # shows what is there
    assert (trained / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert "32 clips x 2 epochs" in capsys.readouterr().out


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


def test_wrong_adapters_are_refused_by_name(trained, tmp_path, dev_clips, seeds):
    def copy(name):
        shutil.copytree(trained, tmp_path / name)
        return tmp_path / name

    with pytest.raises(UserError, match="quantization none, not nf4; give"):
        open_checkpoint(str(trained), quantization="nf4")
    torn = copy("torn") / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:5000])
    with pytest.raises(UserError, match="is truncated or no safetensors file"):
        open_checkpoint(str(torn.parent))
    changed = copy("changed") / "adapter_model.safetensors"
    weights = load_file(changed)
    save_file({k: v + 1e-3 for k, v in weights.items()}, changed, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"not the one that training\.json tells of"):
        open_checkpoint(str(changed.parent))
    other = tmp_path / "other-base"
    shutil.copytree(open_checkpoint("pocket-base").base, other)
    tensors = load_file(other / "model.safetensors")
    save_file({k: v * 1.01 for k, v in tensors.items()}, other / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    moved = copy("moved")
    config = json.loads((moved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(other)
    (moved / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="trained on other base weights"):
        AudioScorer(open_checkpoint(str(moved)), "cpu").fingerprint  # noqa: B018
    wrong = open_checkpoint(str(moved))
    with pytest.raises(UserError, match="does not load as the model that was trained"):
        AudioScorer(wrong, "cpu").score(seeds[:1], dev_clips[:1])


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
    more = ["--targets", "llm-only", "--loss", "full", "--swap", "--prompts",
            str(ROOT / "prompts/seeds/baselines.yaml")]  # fmt: skip
    assert finetune(flags(small, out, *more)) == 0
    assert not [k for k in load_file(out / "adapter_model.safetensors") if "audio_tower" in k]
    about = json.loads((out / "training.json").read_text())
    assert len(about["prompts"]) == 3 and about["recipe"]["swap"]


def command(*arguments):
    return [sys.executable, str(ROOT / "tests" / "train_fast_saves.py"), *arguments]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def test_a_killed_training_goes_on_to_the_same_adapter(small, tmp_path):
    """KILLS=20 pytest tests/opro/test_finetune.py -k killed"""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    more = ["--epochs", "3", "--batch", "8"]
    subprocess.run(
        command(*flags(small, whole, *more)), env=environment(), check=True, capture_output=True
    )
    rng, kills, resumed = random.Random(0), 0, 0
    while kills < int(os.environ.get("KILLS", "2")):
        process = subprocess.Popen(
            command(*flags(small, broken, *more)), env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        first = next((line for line in process.stderr if line.startswith("step")), None)
        time.sleep(rng.uniform(0, 1.5))
        if process.poll() is not None:  # it came to its end: begin again
            process.communicate()
            shutil.rmtree(broken)
            continue
        process.kill()
        process.communicate()
        kills += 1
        resumed += first is not None and not first.startswith("step 1/")
    subprocess.run(
        command(*flags(small, broken, *more)), env=environment(), check=True, capture_output=True
    )
    assert resumed > 0
    one, two = (load_file(p / "adapter_model.safetensors") for p in (whole, broken))
    assert all(torch.equal(one[k], two[k]) for k in one)
    about = [json.loads((p / "training.json").read_text()) for p in (whole, broken)]
    assert about[0]["curve"][-1]["step"] == about[1]["curve"][-1]["step"]
    assert about[0]["dev_loss"] == about[1]["dev_loss"]


SCRIPT = """
import sys
from pathlib import Path
import torch
from evaluators.checkpoint import open_checkpoint
from evaluators.clips import balanced_order, read_manifest
from evaluators.finetune import Recipe, train
from evaluators.memory import TrainingPlan
from evaluators.files import shipped
from evaluators.prompts import read_prompts
from evaluators.qwen_audio import AudioScorer

labels = ("SPEECH", "NONSPEECH")
checkpoint = open_checkpoint("pocket-base")
processes = int(sys.argv[3])
clips = balanced_order(read_manifest(Path(sys.argv[1]), labels, "train"))
peft, trained = train(
    checkpoint, Recipe(epochs=2, lr=1e-3, dropout=0.0), AudioScorer(checkpoint, "cpu").processor,
    read_prompts(shipped("prompts/seeds/baselines.yaml"), labels)[:1], labels, clips,
    read_manifest(Path(sys.argv[1]), labels, "dev"), Path(sys.argv[2]),
    TrainingPlan(False, 16 // processes, False, 0.0, None), torch.device("cpu"), torch.float32,
)
print(trained.steps, trained.best_loss)
"""


def test_two_processes_train_as_one(small, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
    for start, name in (([sys.executable], "1"), (launch, "2")):
        done = subprocess.run(
            [*start, str(script), str(small), str(tmp_path / name), name],
            env={**environment(), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(tmp_path / n / "best" / "adapter_model.safetensors") for n in "12")
    apart = max(float((one[k] - two[k]).abs().max()) for k in one)
    moved = max(float(v.abs().max()) for k, v in one.items() if "lora_B" in k)
    assert moved > 1e-3 and apart < 0.02 * moved


def test_a_study_is_resumed_pruned_and_opened(small, tmp_path):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    out = tmp_path / "study"
    assert finetune(flags(small, out, "--study", "2")) == 0
    study = optuna.load_study(
        study_name="study", storage=JournalStorage(JournalFileBackend(str(out / "optuna.log")))
    )
    assert len(study.trials) == 2 and study.best_value > 0
    assert study.trials[0].params["epochs"] == 2  # what was asked for comes first
    best = json.loads((out / "training.json").read_text())
    assert best["dev_loss"] == pytest.approx(study.best_value)
    assert open_checkpoint(str(out)).base == open_checkpoint("pocket-base").base


def test_the_thinker_of_qwen3_omni_is_trained_the_same_way(seeds, train_clips, tmp_path):
    from test_qwen_omni import tiny_omni

    tokenizer = AudioScorer(open_checkpoint("pocket-base"), "cpu").processor.tokenizer
    model, processor = tiny_omni(tokenizer)
    recipe = Recipe(epochs=2, lr=3e-3, dropout=0.0)
    plan = TrainingPlan(False, 16, False, 0.0, None)
    checkpoint = open_checkpoint("pocket-base")
    peft, trained = train(
        checkpoint, recipe, processor, seeds[:1], LABELS, train_clips[:48], train_clips[48:64],
        tmp_path, plan, CPU, torch.float32, loaded=model,
    )  # fmt: skip
    losses = [e["loss"] for e in trained.curve if "loss" in e]
    assert trained.steps == 6 and losses[-1] < losses[0]
    store = FeatureStore(None, processor.feature_extractor, QWEN3_OMNI.whole_window)
    asked = wordings(seeds[:1], LABELS, tokenizer, QWEN3_OMNI, False)
    samples = Samples(train_clips[:4], asked, LABELS, store)
    batch = Collate(QWEN3_OMNI, model.config, "answer")([samples[i] for i in range(4)])
    with torch.no_grad():
        logp = peft.eval()(**batch)["logp"]
    scored = AudioScorer(checkpoint, "cpu", loaded=(model, processor)).score(
        seeds[:1], train_clips[:4]
    )
    for i, clip in enumerate(train_clips[:4]):
        assert float(logp[i]) <= scored.logp[0, i, LABELS.index(clip.label)] + 1e-4
