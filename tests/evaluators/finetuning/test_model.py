"""The loss and its gradients equal the plain implementation; Qwen3-Omni's thinker is trained the same way."""

import contextlib
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
from evaluators.finetuning import stack
from evaluators.finetuning.line import in_line
from evaluators.finetuning.model import adapted_model
from evaluators.finetuning.packed import is_packable
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.samples import Collate, Samples, Schedule, tokenize_prompts
from evaluators.finetuning.tower_layers import has_plain_layers
from evaluators.finetuning.train import train

pytestmark = pytest.mark.tiny
CPU = torch.device("cpu")
OMNI_TESTS = Path(__file__).resolve().parents[1] / "audio_lm" / "test_omni.py"


def adapted_pocket(packed=False, max_graphs=0, **recipe):
    """A model whose adapter is not zero, so that no gradient is."""
    recipe = Recipe(**{"dropout": 0.0, **recipe})
    adapted = adapted_model(
        open_checkpoint("pocket-base"), recipe, CPU, torch.float32, max_graphs=max_graphs,
        packed=packed,
    )  # fmt: skip
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
    processor, train_clips, seeds, labels, loss, monkeypatch
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

    peft = adapted_pocket(packed=True).peft.train()  # layers whose gradients are written out
    for checkpointing in (False, True):
        if checkpointing:
            peft.gradient_checkpointing_enable({"use_reentrant": False})
        ours = peft(**batch)["loss"]
        assert float(ours.detach()) == pytest.approx(float(total.detach()), abs=1e-5)
        assert float((gradients(peft, ours) - expected).norm() / expected.norm()) < 1e-4
    adapted = graphed_pocket(monkeypatch)
    batch = Collate(QWEN2_AUDIO, model.config, loss, padded=True)([samples[i] for i in range(8)])
    ids, index = batch["packed"]["line"]["ids"], batch["packed"]["line"]["index"]
    assert len(ids) % index.shape[1] == 0 and len(index) == 9  # one more row of zeros
    for _ in range(2):  # as it comes, by a graph
        found = gradients(adapted.peft, adapted.peft(**batch)["loss"])
        assert float((found - expected).norm() / expected.norm()) < 1e-4


def graphed_pocket(monkeypatch):
    """A model with graphs whose replay computes again what was captured, from the same places in memory."""

    def capture(run, pool):
        run()
        return run

    monkeypatch.setattr(stack, "capture", capture)
    monkeypatch.setattr(stack, "side_stream", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    adapted = adapted_pocket(packed=True, max_graphs=1)
    adapted.peft.train()
    return adapted


def test_graphs_take_what_each_batch_brings_and_their_gradients_add_up(
    processor, train_clips, seeds, labels, monkeypatch
):
    adapted = graphed_pocket(monkeypatch)
    clips = [c for c in train_clips if c.duration_ms == train_clips[0].duration_ms]
    parts = [clips[i : i + 2] for i in (0, 2, 4)]  # of the same shape
    batches = [small_batch(adapted, processor, part, seeds[:1], labels) for part in parts]
    packed = adapted_pocket(packed=True)
    packed.peft.train()
    expected = [gradients(packed.peft, packed.peft(**batch)["loss"]) for batch in batches]
    for batch, one in zip(batches, expected, strict=True):
        found = gradients(adapted.peft, adapted.peft(**batch)["loss"])
        assert float((found - one).norm() / one.norm()) < 1e-4
    assert len(adapted.packed.stack._graphs) == len(adapted.tower.stack._graphs) == 1
    adapted.peft(**batches[0])["loss"].backward()  # to those of the last
    both = torch.cat([p.grad.flatten() for p in adapted.peft.parameters() if p.requires_grad])
    assert float((both - expected[0] - expected[2]).norm() / both.norm()) < 1e-4
    ours = adapted.packed.stack.adapters
    assert len({weight.grad.untyped_storage().data_ptr() for weight in ours}) == 1  # side by side
    first = adapted.peft(**batches[0])["loss"]
    adapted.peft(**batches[1])
    with pytest.raises(AssertionError, match="share memory"):
        first.backward()


def small_batch(adapted, processor, clips, seeds, labels):
    store = FeatureStore(None, processor.feature_extractor)
    wordings = tokenize_prompts(seeds[:2], labels, processor.tokenizer, QWEN2_AUDIO, False)
    samples = Samples(clips, wordings, labels, store, schedule=Schedule(shuffle=True))
    collate = Collate(QWEN2_AUDIO, adapted.base.config, "answer")
    return collate([samples[i] for i in range(len(clips))])


def test_dropout_in_written_out_layers_leaves_out_the_same_inputs_backward(
    processor, train_clips, seeds, labels
):
    adapted = adapted_pocket(packed=True, dropout=0.3, targets="attention+mlp")
    peft, weights = adapted.peft.train(), [p for p in adapted.peft.parameters() if p.requires_grad]
    batch = small_batch(adapted, processor, train_clips[:2], seeds, labels)

    def loss(seed):
        torch.manual_seed(seed)
        return peft(**batch)["loss"]

    found = gradients(peft, loss(5))
    peft.gradient_checkpointing_enable({"use_reentrant": False})  # computed again, with the same
    assert torch.allclose(gradients(peft, loss(5)), found, atol=1e-6)
    parts = found.split([p.numel() for p in weights])
    names = [name for name, weight in peft.named_parameters() if weight.requires_grad]
    with torch.no_grad():
        assert float(loss(5)) != float(loss(6))
        for kind in ("lora_A", "lora_B"):
            own = [
                g if kind in n else torch.zeros_like(g) for n, g in zip(names, parts, strict=True)
            ]
            length = torch.cat(own).norm()
            step = [1e-3 / length * g.view(p.shape) for p, g in zip(weights, own, strict=True)]
            torch._foreach_add_(weights, step)
            above = loss(5)
            torch._foreach_sub_(weights, [2 * s for s in step])
            slope = (above - loss(5)) / 2e-3
            torch._foreach_add_(weights, step)
            assert float(slope) == pytest.approx(float(length), rel=0.03)


def test_adapters_of_some_layers_and_of_no_tower_are_trained_written_out(
    processor, train_clips, seeds, labels
):
    batch, found = None, []
    for packed in (False, True):
        adapted = adapted_pocket(packed, targets="llm-only")
        batch = batch or small_batch(adapted, processor, train_clips[:2], seeds, labels)
        found.append(gradients(adapted.peft, adapted.peft(**batch)["loss"]))
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 1e-4


def test_layers_are_written_out_only_where_they_compute_what_the_stock_ones_do(processor):
    model = adapted_pocket().base
    layer = model.model.language_model.layers[1]
    assert is_packable(model) and has_plain_layers(model.model.audio_tower)
    layer.self_attn.q_norm = torch.nn.Identity()  # as in Qwen3
    assert not is_packable(model)
    del layer.self_attn.q_norm
    for field, value in (("hidden_act", "gelu"), ("attention_dropout", 0.1)):
        known = getattr(model.config.text_config, field)
        setattr(model.config.text_config, field, value)
        assert not is_packable(model)
        setattr(model.config.text_config, field, known)
    layer.input_layernorm.weight.requires_grad_()  # as an adapter that trains norms whole
    assert not is_packable(model)
    layer.input_layernorm.weight.requires_grad_(False)
    assert is_packable(model)
    layer.self_attn.v_proj.lora_variant["default"] = object()  # as of DoRA
    assert not is_packable(model)
    tower_layer = model.model.audio_tower.layers[0]
    tower_layer.fc2 = torch.nn.Sequential(tower_layer.fc2)
    assert not has_plain_layers(model.model.audio_tower)


def test_what_rows_begin_with_stands_once_in_a_line():
    line = in_line([[7, 8, 9, 1, 2], [7, 8, 3]], 2)
    assert line.ids.tolist() == [7, 8, 9, 1, 2, 3] and line.shared == 2
    assert line.position.tolist() == [0, 1, 2, 3, 4, 2]
    assert line.index.tolist() == [[0, 1, 2, 3, 4], [0, 1, 5, 0, 0]]
    assert line.first.tolist() == [0, 1, 2, 3, 4, 7]
    assert in_line([[7, 8, 9], [7, 8, 3]], 1).shared == 1  # no more than stands before the audio
    assert in_line([[7, 8]], 2).ids.tolist() == [7, 8]
    assert in_line([[7], [8]], 1).shared == 0
    filled = in_line([[7, 8, 9, 1, 2], [7, 8, 3]], 2, padded=True)
    assert filled.ids.tolist() == [7, 8, 9, 1, 2, 3, 0, 0] and filled.index.shape == (3, 8)
    assert filled.index[2].tolist() == [6, 7, 0, 0, 0, 0, 0, 0]
    assert filled.first.tolist() == [0, 1, 2, 3, 4, 10, 16, 17]


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
