"""The pocket base can be trained: a step of every kind on small recordings."""

import pytest
import torch
from common import ROOT
from small_recordings import make_recordings
from transformers import AutoProcessor

from data.makers import train_pocket
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
        made = train_pocket.Trainer(model, processor, sounds, seed=0, batch=8)
        phases = [
            train_pocket.Phase(contrast, made.hinted, made._text_bank(0.0))
            for contrast in (False, True)
        ]
        yield made, phases


def test_only_train_sources_are_read(trainer):
    assert len(trainer[0].sounds.sources) == 8


@pytest.mark.parametrize(
    ("contrast", "kind"), [(False, "clean"), (False, "hinted"), (True, "unhinted")]
)
def test_every_kind_of_step_has_a_loss_and_gradients(trainer, contrast, kind):
    made, phases = trainer
    losses = made.losses(phases[contrast], kind, 0.5)
    assert len(losses) == 3 and all(torch.isfinite(loss) for loss in losses)
    sum(losses).backward()
    assert made.model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_phases_choose_rate_kind_and_snrs(trainer):
    made, (hear, contrast) = trainer
    assert hear.step(0.1, 0, made.rng)[1] == "clean"
    assert {contrast.step(0.5, n, made.rng)[1] for n in range(50)} == {
        "clean",
        "hinted",
        "unhinted",
    }
    assert hear.step(0.99, 10**6, made.rng)[0] == pytest.approx(1.2e-3 * 0.02)
    assert contrast.snrs_db("hinted") == train_pocket.SNRS_DB
    assert hear.snrs_db("clean") == (10.0, 20.0)


def test_features_are_whispers(trainer):
    made, _ = trainer
    wave = torch.randn(3, RATE) * 0.1
    extractor = made.extractor
    power = torch.stft(
        wave, extractor.n_fft, extractor.hop_length,
        window=torch.hann_window(extractor.n_fft), return_complex=True,
    )[..., :-1].abs() ** 2  # fmt: skip
    mel = torch.tensor(extractor.mel_filters.T, dtype=torch.float32) @ power
    mel = mel.clamp(min=1e-10).log10()
    mel = (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4
    assert torch.allclose(made._log_mel(wave), mel, atol=1e-5)
