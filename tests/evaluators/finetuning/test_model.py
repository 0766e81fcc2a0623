"""The loss and its gradients equal the plain implementation; Qwen3-Omni's thinker is trained the same way."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO, QWEN3_OMNI
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.loading import load_model
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.stock import StockModel
from evaluators.finetuning.model import adapted_model
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.samples import Collate, Samples, Schedule, tokenize_prompts
from evaluators.finetuning.train import train

pytestmark = pytest.mark.tiny
CPU = torch.device("cpu")
OMNI_TESTS = Path(__file__).resolve().parents[1] / "audio_lm" / "test_omni.py"


def adapted_pocket():
    """A model whose adapter is not zero, so that no gradient is."""
    adapted = adapted_model(open_checkpoint("pocket-base"), Recipe(dropout=0.0), CPU, torch.float32)
    for name, weight in adapted.peft.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            weight.data.copy_(0.02 * noise)
    return adapted


def gradients(peft, loss):
    peft.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in peft.parameters() if p.requires_grad])


@pytest.mark.parametrize("loss", ["answer", "full"])
def test_loss_and_gradients_equal_the_plain_implementation(
    processor, train_clips, seeds, labels, loss
):
    clips = [*train_clips[:7], train_clips[9]]
    adapted = adapted_pocket()
    peft, model = adapted.peft, adapted.base
    store = FeatureStore(None, processor.feature_extractor)
    wordings = tokenize_prompts(seeds, labels, processor.tokenizer, QWEN2_AUDIO, True)
    samples = Samples(clips, wordings, labels, store, schedule=Schedule(seed=3))
    assert len({len(samples[i]["mel"][0]) for i in range(8)}) > 1  # of several lengths
    batch = Collate(QWEN2_AUDIO, model.config, loss)([samples[i] for i in range(8)])
    ours = peft(**batch)["loss"]
    found = gradients(peft, ours)

    plain = load_model(open_checkpoint("pocket-base"), QWEN2_AUDIO, CPU, torch.float32)
    stock_forward = plain.forward.__func__  # its own forward
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


def tiny_omni(tokenizer):
    """(model, processor) of the scorer's own test."""
    spec = importlib.util.spec_from_file_location("omni_tests", OMNI_TESTS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tiny_omni(tokenizer)


def test_the_thinker_of_qwen3_omni_is_trained_the_same_way(
    make_training, train_clips, seeds, labels, tmp_path
):
    checkpoint = open_checkpoint("pocket-base")
    tokenizer = QWEN2_AUDIO.processor(checkpoint.base).tokenizer
    model, processor = tiny_omni(tokenizer)
    training = make_training(
        Recipe(epochs=2, lr=3e-3, dropout=0.0), processor=processor, clips=train_clips[:48],
        validation=train_clips[48:64],
    )  # fmt: skip
    trained = train(training, tmp_path, loaded=model)
    losses = [e["loss"] for e in trained.curve if "loss" in e]
    assert trained.steps == 6 and losses[-1] < losses[0]
    store = FeatureStore(None, processor.feature_extractor, QWEN3_OMNI.whole_window)
    wordings = tokenize_prompts(seeds[:1], labels, tokenizer, QWEN3_OMNI, False)
    samples = Samples(train_clips[:4], wordings, labels, store)
    batch = Collate(QWEN3_OMNI, model.config, "answer")([samples[i] for i in range(4)])
    with torch.no_grad():
        logp = trained.model.peft.eval()(**batch)["logp"]
    scored = AudioScorer(checkpoint, "cpu", loaded=(model, processor)).score(
        seeds[:1], train_clips[:4]
    )
    for i, clip in enumerate(train_clips[:4]):
        assert float(logp[i]) <= scored.logp[0, i, labels.index(clip.label)] + 1e-4
