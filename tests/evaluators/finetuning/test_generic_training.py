"""Training the generic way: the loss of a whole forward, every layer that was asked for, the packed path's losses."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny_generic
import torch
from safetensors.torch import load_file

from evaluators.audio_lm import selftest
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.generic import GenericScorer
from evaluators.audio_lm.generic_chat import extended, read_chat
from evaluators.errors import UserError
from evaluators.finetuning.generic import CollateOne, GenericSamples, generic_model
from evaluators.finetuning.memory import TrainingPlan
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.train import open_parts, train
from evaluators.prompts import Prompt
from opro.finetune import main as finetune

pytestmark = pytest.mark.tiny
CPU = torch.device("cpu")
LETTER = Prompt("Is it speech? A) yes B) no")
WORDS = Prompt(  # answers of several tokens
    "Does somebody speak? Say present or absent.",
    (("SPEECH", ("present",)), ("NONSPEECH", ("absent",))),
)
FAMILIES = [name for name in tiny_generic.FAMILIES if name != "qwen2_audio"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Family -> the checkpoint of its folder, made once."""
    root, made = tmp_path_factory.mktemp("generic"), {}

    def make(name):
        if name not in made:
            if lacking := tiny_generic.lacking(name):
                pytest.skip(f"{name} needs {', '.join(lacking)}")
            folder = tiny_generic.write_folder(root / name, tiny_generic.FAMILIES[name][0])
            made[name] = open_checkpoint(str(folder))
        return made[name]

    return make


@pytest.fixture
def clips_folder(make_manifest):
    """A manifest of 8 train and 16 dev clips."""

    def share(rows):
        for row in rows[:8]:
            row["split"] = "train"

    return make_manifest(12, change=share)


def samples_of(checkpoint, clips, labels, prompts=(LETTER, WORDS)):
    return GenericSamples(clips, prompts, labels, read_chat(checkpoint.base, "it"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_has_the_loss_of_a_whole_forward_and_every_layer_asked_for_learns(
    name, checkpoint, train_clips, labels
):
    one = checkpoint(name)
    clips = [next(c for c in train_clips if c.label == label) for label in labels]
    for targets in ("attention+mlp", "llm-only"):
        recipe = Recipe(dropout=0.0, rank=2, targets=targets)
        model = generic_model(one, recipe, CPU, torch.float32)
        samples = samples_of(one, clips, labels)
        collate = CollateOne(samples.chat.audio_id, "answer")
        for number, (c, w) in enumerate(samples.order):
            out = model.peft(**collate([samples[number]]))
            answer = samples.answers[w][labels.index(clips[c].label)]
            asked = samples.chat.inputs(samples.prompts[w], clips[c])
            with torch.no_grad():  # as transformers does, with logits at every place
                said = model.forward(**extended(asked, answer[:-1])).logits[0].log_softmax(-1)
            places = range(-len(answer), 0)
            expected = sum(said[p, token] for p, token in zip(places, answer, strict=True))
            assert float(out["logp"].sum()) == pytest.approx(float(expected), abs=2e-5)
            out["loss"].backward()
        learns = {n: p.grad for n, p in model.peft.named_parameters() if p.requires_grad}
        seconds = [n for n in learns if "lora_B" in n]
        assert seconds and all(learns[n] is not None for n in seconds)
        silent = [n for n in seconds if not learns[n].abs().max() > 0]
        assert not silent
        heard = [n for n in seconds if "audio" in n or "encoder" in n or "qformer" in n]
        assert bool(heard) == (targets == "attention+mlp")


def test_the_plain_loss_is_taken_at_every_token_but_the_audio(checkpoint, train_clips, labels):
    one = checkpoint("glmasr")
    samples = samples_of(one, train_clips[:1], labels, [WORDS])
    audio = samples.chat.audio_id
    answer, full = (CollateOne(audio, loss)([samples[0]]) for loss in ("answer", "full"))
    ids = full["inputs"]["input_ids"][0]
    text = int((ids != audio).sum())
    assert len(full["target_id"]) == text  # all but the first, and the last of the answer
    many = len(answer["target_id"])
    assert many > 1 and torch.equal(full["target_id"][-many:], answer["target_id"])
    assert audio not in full["target_id"]
    assert float(full["target_weight"].sum()) == pytest.approx(1)


def test_both_paths_train_alike(make_training, train_clips, tmp_path):
    recipe = Recipe(epochs=1, lr=2e-3, dropout=0.0, targets="llm-only", augment=False, batch=8)
    packed = make_training(recipe, clips=train_clips[:16])
    chat = read_chat(packed.checkpoint.base, "it")
    generic = replace(packed, chat=chat, plan=TrainingPlan(False, 1, False, 0.0, None))
    ours, theirs = train(packed, tmp_path / "packed"), train(generic, tmp_path / "generic")
    assert ours.model.trainable() == theirs.model.trainable()
    losses = [[e.get("loss", e.get("eval_loss")) for e in one.curve] for one in (ours, theirs)]
    np.testing.assert_allclose(losses[0], losses[1], atol=2e-3)
    assert ours.best_loss == pytest.approx(theirs.best_loss, abs=2e-3)


@pytest.mark.parametrize("way", ["packed", "generic"])
def test_one_epoch_shows_all_wordings(way, make_training, seeds):
    recipe = Recipe(epochs=1, targets="llm-only", augment=False)
    training = make_training(recipe, prompts=tuple(seeds[:3]))
    if way == "generic":
        chat = read_chat(training.checkpoint.base, "it")
        training = replace(training, chat=chat, plan=TrainingPlan(False, 1, False, 0.0, None))
    _, (samples, validation), _ = open_parts(training)
    for part in (samples, validation):
        assert {wording for _, wording in part.order} == {0, 1, 2}


def test_a_training_leaves_a_checkpoint_that_is_trained_further(
    checkpoint, clips_folder, tmp_path, capsys
):
    one = checkpoint("glmasr")
    flags = ["--manifest", str(clips_folder), "--epochs", "1", "--batch", "4", "--rank", "4"]
    run = partial(lambda out, *more: finetune([*flags, "--out", str(tmp_path / out), *more]))
    assert run("dry", "--checkpoint", str(one.base), "--dry-run") == 0
    assert "generic: the model's own forward, one sample at a time" in capsys.readouterr().out
    assert run("first", "--checkpoint", str(one.base), "--lr", "0.01") == 0
    trained = open_checkpoint(str(tmp_path / "first"))
    record = json.loads((tmp_path / "first" / "training.json").read_text())
    assert not record["recipe"]["augment"]  # it is not done, and not claimed
    told = np.array(record["self_test"]["logp"])
    again = selftest.score_made_up(GenericScorer(trained, "cpu", "float32"), trained.prompt)
    np.testing.assert_allclose(told, np.array(again), atol=1e-4)
    base = selftest.score_made_up(GenericScorer(one, "cpu", "float32"), trained.prompt)
    assert np.abs(told - np.array(base)).max() > 1e-3
    assert run("second", "--checkpoint", str(tmp_path / "first"), "--lr", "0.001") == 0
    first, second = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second")
    )
    assert first.keys() == second.keys()
    assert 0 < max(float((first[k] - second[k]).abs().max()) for k in first) < 0.02


def test_samples_at_once_are_refused(checkpoint, clips_folder, tmp_path):
    one = checkpoint("glmasr")
    with pytest.raises(UserError, match="--micro is 4; a model without a packed path is trained"):
        finetune(["--manifest", str(clips_folder), "--checkpoint", str(one.base), "--micro", "4",
                  "--epochs", "2", "--batch", "4", "--out", str(tmp_path / "out")])  # fmt: skip
