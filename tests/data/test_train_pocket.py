"""The pocket base can be trained: steps on small recordings, and answers as the grammar's table says."""

import math
import random

import pytest
import torch
from common import ROOT
from small_recordings import make_recordings
from transformers import AutoProcessor

from data.makers import grammar, train_pocket
from evaluators.audio import RATE


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_pocket, "QUESTIONS", 120)
        patch.setattr(train_pocket, "TEXT_BATCH", 4)
        root = make_recordings(tmp_path_factory.mktemp("source"), speech=4, other=3)
        table = root / "manifest.csv"
        table.write_text(table.read_text().replace("source_id", "group"))
        splits = {
            f"{k}{i}": "train" for k in ("speech", "music", "animal", "noise") for i in (0, 1)
        }
        torch.manual_seed(0)
        sounds = train_pocket.Recordings(root, splits, "cpu")
        processor = AutoProcessor.from_pretrained(ROOT / "data" / "pocket" / "base")
        model = train_pocket.make_model(processor)
        yield train_pocket.Trainer(model, processor, sounds, seed=0, batch=8)


def test_only_train_sources_are_read(trainer):
    assert len(trainer.sounds.sources) == 8


@pytest.mark.parametrize("done", [0.1, 0.5, 0.9])
def test_every_step_has_losses_and_gradients(trainer, done):
    losses = trainer.losses(done)
    assert len(losses) == 3 and all(torch.isfinite(loss) for loss in losses)
    sum(losses).backward()
    assert trainer.model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("samples", "snrs", "faint"),
    [(RATE, (10.0,), False), (RATE, (0.0,), True), (RATE // 5, (20.0,), True)],
)
def test_short_and_noisy_speech_is_faint(trainer, samples, snrs, faint):
    wave, kind = trainer.sounds.clips(64, samples, snrs)
    speech, faint_speech = ((kind == i).any() for i in (0, grammar.KINDS.index("faint speech")))
    assert wave.shape == (64, RATE) and faint_speech == faint and speech != faint


def test_a_soft_loss_is_least_at_its_shares():
    tokens, shares = torch.tensor([[3, 1, 0]]), torch.tensor([[0.8, 0.2, 0.0]])
    logits = torch.full((1, 5), -30.0)
    logits[0, 3], logits[0, 1] = math.log(0.8), math.log(0.2)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert float(train_pocket.soft_loss(logits, tokens, shares)) == pytest.approx(entropy, abs=1e-6)
    assert float(train_pocket.soft_loss(logits + torch.randn(5), tokens, shares)) > entropy


def test_a_bank_gives_each_question_its_answers(trainer):
    bank = trainer.asking
    ids, lengths, tokens, shares = bank.draw(50, random.Random(0))
    assert torch.allclose(shares.sum(-1), torch.ones(50, len(grammar.KINDS)))
    assert (lengths <= ids.shape[1]).all() and ((shares > 0).sum(-1) >= 1).all()
    a = trainer.token["A"]
    assert (tokens == a).any(1).float().mean() > 0.5  # most questions have lettered options


def test_phrases_pull_the_answers_and_other_questions_are_answered_by_what_is_there():
    rng = random.Random(0)
    table = grammar.WORDS["speech"]
    for _ in range(200):
        question = grammar.two_options(rng, "speech")
        yes = max("AB", key=lambda letter: question.answers["speech"][letter])
        odds = [
            math.log(question.answers[k][yes] / (1 - question.answers[k][yes]))
            for k in grammar.KINDS
        ]
        assert odds[0] == pytest.approx(table["clear"])
        assert all(-4.001 <= value <= 4.001 for value in odds)
    other = grammar.two_options(rng, "music").answers
    assert max(other["music"].values()) > 0.95 and other["noise"] == other["speech"]
    for sound in grammar.SOUNDS:
        for kind in ("nouns", "positive", "negative", "why_positive", "why_negative"):
            assert table[kind] if sound == "speech" else grammar.WORDS[kind][sound]
    for kind in ("nouns", "positive", "negative", "why_positive", "why_negative", "hints"):
        assert all(len(pulls) == len(grammar.KINDS) - 1 for pulls in table[kind].values())


def test_features_are_whispers(trainer):
    wave = torch.randn(3, RATE) * 0.1
    extractor = trainer.extractor
    power = torch.stft(
        wave, extractor.n_fft, extractor.hop_length,
        window=torch.hann_window(extractor.n_fft), return_complex=True,
    )[..., :-1].abs() ** 2  # fmt: skip
    mel = torch.tensor(extractor.mel_filters.T, dtype=torch.float32) @ power
    mel = mel.clamp(min=1e-10).log10()
    mel = (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4
    assert torch.allclose(trainer._log_mel(wave), mel, atol=1e-5)
