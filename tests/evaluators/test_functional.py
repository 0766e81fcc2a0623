"""Broken stacks are named, each by its own sentence; whole ones get none of these sentences."""

import base64
import dataclasses
import io
import json
import math
import re
import shutil
import threading
import time
import weakref
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
import soundfile
import torch
from chat_server import serve
from common import DEMO, LABELS
from safetensors.torch import load_file, save_file
from test_endpoint import heard, listing
from transformers import Qwen2AudioProcessor

from evaluators.audio_lm import loading, stack
from evaluators.audio_lm import scorer as scoring
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.packed_tower import embed_qwen2_audio
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.selftest import score_made_up
from evaluators.audio_lm.templates import QWEN2_AUDIO, WithoutRoles, WithoutSystem
from evaluators.clips import ClipSet
from evaluators.endpoint import Endpoint, _wav
from evaluators.fakes import FakeEvaluator
from evaluators.functional import CONTROLS, ask_stock, check_company, check_hearing, check_loaded
from evaluators.known_broken import check_installed, check_trainer, trained_with
from evaluators.manifest import read_manifest
from evaluators.splits import clearest
from evaluators.tasks import SPEECH_TASK
from opro import doctor

pytestmark = pytest.mark.tiny
PARTS = dataclasses.astuple(QWEN2_AUDIO)


@pytest.fixture(scope="module")
def clear():
    """Clear clips of the shipped set, little more than the least that the checks take."""
    return ClipSet(SPEECH_TASK, clearest(read_manifest(DEMO, LABELS, "dev"), LABELS, 22))


BEFORE_HEARING, BY_HEARING, BY_STOCK = ("weights", "self-test"), ("audio", "hearing"), ("stock",)


def findings(evaluator, prompts, clips, reference=None, about=None):
    """All findings on an evaluator; where one thing is looked for, without checks that say nothing about it."""

    some = read_manifest(DEMO, LABELS, "dev")[::34]

    def all_of_them():
        stock = None
        if about not in BEFORE_HEARING + BY_HEARING:
            stock = ask_stock(evaluator, prompts, some)
        later = yield from check_loaded(evaluator, prompts)
        if about in BEFORE_HEARING:
            return
        arrives = True
        if about not in BY_STOCK:
            arrives = yield from check_hearing(later, prompts, clips, reference or clips)
        if about in BY_HEARING:
            return
        yield from check_company(later, later.score(prompts, some), stock, arrives)

    return list(all_of_them())


def open_scorer(name="pocket-base", dtype="float32"):
    return AudioScorer(open_checkpoint(str(name)), "cpu", dtype)


def saved(folder, change):
    """A copy of the base in which `change` has damaged the tensors: (name -> tensor), in place."""
    shutil.copytree(open_checkpoint("pocket-base").base, folder)
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return open_scorer(folder)


def redraw(part, deviation=None):
    """Matrices of a part are drawn anew: as before training, or with the deviation that they have."""

    def change(tensors):
        for name, tensor in tensors.items():
            if re.search(part, name) and tensor.dim() > 1:
                drawn = torch.randn(tensor.shape) * (deviation or tensor.float().std())
                tensors[name] = drawn.to(tensor.dtype)

    return change


def zero(part):
    def change(tensors):
        for name, tensor in tensors.items():
            if part in name:
                tensors[name] = torch.zeros_like(tensor)

    return change


def random_head(folder, monkeypatch):
    return saved(folder, redraw("lm_head", 0.02))


def tied_head(folder, monkeypatch):
    scorer = open_scorer()
    model = scorer.decoder.model  # as transformers 5.10 makes it from a configuration
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    return scorer


def control_tokens(folder, monkeypatch):
    scorer = open_scorer()
    ids = scorer.processor.tokenizer.convert_tokens_to_ids(["<|audio_bos|>", "A", "B"])
    head = scorer.decoder.model.lm_head.weight.data
    head[ids[0]] = head[ids[1]] + head[ids[2]]  # likelier than either answer
    return scorer


def zero_projector(folder, monkeypatch):
    return saved(folder, zero("multi_modal_projector"))


def deaf_language_model(folder, monkeypatch):
    return saved(folder, zero("self_attn.v_proj"))


def empty_features(folder, monkeypatch):
    scorer = open_scorer()
    scorer.processor.feature_extractor.mel_filters[:] = 0
    return scorer


def random_tower(folder, monkeypatch):
    return saved(folder, redraw("audio_tower", 0.02))


def half_a_tower(folder, monkeypatch):
    return saved(folder, redraw(r"audio_tower\.layers\.[12]", 0.02))


def other_tower(folder, monkeypatch):
    return saved(folder, redraw("audio_tower"))


def shuffled_is_the_same(folder, monkeypatch):
    scorer = open_scorer()
    filters = scorer.processor.feature_extractor.mel_filters
    filters[:] = filters.mean(axis=1, keepdims=True)  # every band is all of the spectrum
    return scorer


def next_to_nothing(folder, monkeypatch):
    return saved(folder, redraw(r"audio_tower\.conv", 0.001))


def other_template(folder, monkeypatch):
    """An adapter whose trainer left the system message out, as its record shows."""
    shutil.copytree(open_checkpoint("pocket-lora").adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "pocket-base"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    trainer = open_scorer(folder)
    trainer._untested = None
    trainer.family = replace(trainer.family, template=WithoutSystem(*PARTS))
    record = json.loads((folder / "training.json").read_text())
    logp = score_made_up(trainer, trainer.checkpoint.prompt)
    record["self_test"] = {"dtype": "float32", "logp": logp}
    (folder / "training.json").write_text(json.dumps(record))
    return open_scorer(folder)


def other_record(folder, monkeypatch):
    other_template(folder, monkeypatch)
    record = json.loads((folder / "training.json").read_text())
    record["self_test"]["logp"][0] = [-3.0, -0.05]
    record["versions"]["peft"] = "0.1"
    (folder / "training.json").write_text(json.dumps(record))
    return open_scorer(folder)


def no_roles(folder, monkeypatch):
    scorer = open_scorer()
    scorer.family = replace(scorer.family, template=WithoutRoles(*PARTS))
    return scorer


def padding_is_heard(folder, monkeypatch):
    """The installed processor hands on no attention mask."""
    call = Qwen2AudioProcessor.__call__

    def without_mask(self, *args, **more):
        made = call(self, *args, **more)
        made["attention_mask"] = torch.ones_like(made["attention_mask"])
        return made

    monkeypatch.setattr(Qwen2AudioProcessor, "__call__", without_mask)
    return open_scorer()


def processor_drops_audio(folder, monkeypatch):
    """The installed processor takes audio under another name, and ignores what it does not know."""
    call = Qwen2AudioProcessor.__call__

    def silent(self, *args, audio=None, **more):
        return call(self, *args, audio=[np.zeros_like(wave) for wave in audio], **more)

    monkeypatch.setattr(Qwen2AudioProcessor, "__call__", silent)
    return open_scorer()


def processor_fails(folder, monkeypatch):
    def fail(self, *args, **more):
        raise KeyError("audios")

    monkeypatch.setattr(Qwen2AudioProcessor, "__call__", fail)
    return open_scorer()


def own_chat_template(folder, monkeypatch):
    scorer = open_scorer()
    scorer.processor.chat_template = scorer.processor.chat_template.replace("Audio ", "Sound ")
    return scorer


def scorer_and_stock_differ(folder, monkeypatch):
    scorer = open_scorer()
    scorer.family = replace(
        scorer.family,
        embed=lambda *line: [1.3 * tokens for tokens in embed_qwen2_audio(*line)],
    )
    return scorer


def a_tensor_is_loaded_wrong(folder, monkeypatch):
    """Of the way without transformers, whose own way has it right: two matrices of one shape are exchanged."""
    load = scoring.load_plain

    def exchanged(*args):
        model = load(*args)
        mlp = model.model.language_model.layers[-1].mlp
        mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
        return model

    monkeypatch.setattr(scoring, "load_plain", exchanged)
    return open_scorer()


BROKEN = {
    random_head: ("broken", "head", r"1,971 tokens has by chance: the output head \(lm_head\) is not the one"),
    tied_head: ("broken", "head", "the output head is the embeddings, though the checkpoint's files hold"),
    control_tokens: ("broken", "head", r"the control token <\|audio_...\|> the most: the output head"),
    zero_projector: ("broken", "audio", "not reach the model; audio tower and projector make the same emb"),
    deaf_language_model: ("broken", "audio", "not reach the model; the language model gives the same"),
    empty_features: ("broken", "audio", "not reach the model; the feature extractor makes the same features"),
    random_tower: ("broken", "weights", "of the audio tower look as they are drawn at random before training"),
    half_a_tower: ("broken", "weights", "12 of 20 weight matrices of the audio tower look as they are drawn"),
    other_tower: ("broken", "hearing", "taken for SPEECH: labels are told apart by accident, as where audio tower"),
    shuffled_is_the_same: ("broken", "hearing", "it hears sound but not what it is, as where audio tower"),
    next_to_nothing: ("broken", "audio", "audio tower and projector make the same embeddings"),
    other_template: ("broken", "template", "only without a system message: trainer and scorer have different"),
    other_record: ("broken", "self-test", "those of the training, .*peft 0.1 then and .* now; no known template"),
    no_roles: ("broken", "template", "with the usual chat template the model tells clear clips apart"),
    padding_is_heard: ("look", "stock", "alone than padded in a batch, by .*: padding is heard"),
    processor_drops_audio: ("look", "stock", "same answers to a clip and to silence: its processor hands no audio"),
    processor_fails: ("look", "stock", r"cannot run this model \(KeyError: 'audios'\)"),
    own_chat_template: ("look", "template", "own chat template writes another text"),
    scorer_and_stock_differ: ("broken", "stock", "and the scores here differ by .*: one of them is wrong"),
    a_tensor_is_loaded_wrong: ("broken", "stock", "and the scores here differ by .*: one of them is wrong"),
}  # fmt: skip


QUICK = (  # one of each check; what the doctor's own tests below break is a slow case here
    deaf_language_model,
    half_a_tower,
    other_tower,
    other_record,
    padding_is_heard,
    processor_drops_audio,
    a_tensor_is_loaded_wrong,
)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, id=build.__name__, marks=[] if build in QUICK else pytest.mark.slow)
        for build in BROKEN
    ],
)
def test_a_broken_stack_is_named(tmp_path, monkeypatch, seeds, clear, build):
    level, about, text = BROKEN[build]
    scorer = build(tmp_path / "checkpoint", monkeypatch)
    found = findings(scorer, seeds[:2], clear, about=about)
    named = [f for f in found if f.about == about and re.search(text, f.text)]
    assert [f.level for f in named] == [level], "\n".join(map(str, found))
    assert named[0].fix and "\n" not in named[0].text + named[0].fix


def test_a_tensor_that_holds_no_number_is_named():
    scorer = open_scorer()
    scorer.decoder.model.model.language_model.layers[1].mlp.down_proj.weight[0, 0] = math.inf
    (found,) = stack.check_weights(scorer)
    assert (found.level, found.about) == ("broken", "weights")
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    assert found.text == f"1 of the model's tensors hold NaN or infinity, {name} first"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("pocket-base", "float32", marks=pytest.mark.slow),
        pytest.param("pocket-base", "bfloat16", marks=pytest.mark.slow),
        pytest.param("pocket-base", "float16", marks=pytest.mark.slow),
        ("pocket-lora", "float32"),
        ("fake", "none"),
    ],
)
def test_a_whole_stack_is_called_broken_nowhere(seeds, clear, name, dtype):
    evaluator = FakeEvaluator() if name == "fake" else open_scorer(name, dtype)
    found = findings(evaluator, seeds, clear)
    assert {f.level for f in found} == {"ok"}, found
    abouts = {f.about for f in found}
    assert {"audio", "hearing", "neighbours"} <= abouts
    assert ("self-test" in abouts) == (name == "pocket-lora")
    sentences = [text for _, _, text in BROKEN.values()]
    assert not [f for f in found for text in sentences if re.search(text, f.text)]


def test_a_model_to_compare_with_is_read_by_the_library_and_gone_before_ours_is(
    monkeypatch, seeds, clear
):
    scorer, load, made = open_scorer(), stack.load_model, []
    for name in ("open_reader", "kept_folder"):  # our own ways to read weights
        monkeypatch.setattr(loading, name, lambda *_: pytest.fail("ours"))

    def watched(*args, **options):
        assert scorer._loaded is None
        model = load(*args, **options)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(stack, "load_model", watched)
    said = ask_stock(scorer, seeds, clear.clips[:2])
    assert said.alone.shape == said.batch.shape == (2, len(said.silence))
    assert len(made) == 1 and made[0]() is None and scorer._loaded is None


def test_the_doctor_itself_names_a_broken_checkpoint_and_exits_with_1(
    tmp_path, monkeypatch, capsys
):
    random_head(tmp_path / "checkpoint", monkeypatch)
    flags = ["--clips", "20", "--heard", "allow"]
    assert doctor.main(["--checkpoint", str(tmp_path / "checkpoint"), *flags]) == 1
    said = capsys.readouterr().out
    assert "BROKEN  head " in said and "-> take a transformers that does not tie it" in said
    assert "BROKEN  weights" in said and "1 of 1 weight matrices of the output head" in said


def test_a_failing_self_test_does_not_end_the_other_checks(tmp_path, monkeypatch, capsys):
    other_template(tmp_path / "adapter", monkeypatch)
    assert doctor.main(["--checkpoint", str(tmp_path / "adapter"), "--clips", "20"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN  template" in said and "ok      hearing" in said and "prompt " in said


def mislabelled(clips, share):
    """The clips with so large a share of the labels of each kind exchanged."""
    by_label = [[c for c in clips if c.label == label] for label in LABELS]
    out = []
    for own, other in zip(by_label, LABELS[::-1], strict=True):
        wrong = round(share * len(own))
        out += [replace(c, label=other) for c in own[:wrong]] + own[wrong:]
    return ClipSet(SPEECH_TASK, tuple(out))


def test_wrong_labels_are_no_fault_of_the_model(seeds, clear):
    lora = open_scorer("pocket-lora")
    own = mislabelled(clear, 0.5)
    (told,) = [f for f in findings(lora, seeds[:2], own, clear, "hearing") if f.about == "hearing"]
    assert told.level == "look" and "the cause is the clips or their labels" in told.text


def test_another_task_without_a_reference_is_for_a_person_to_judge(seeds, clear):
    lora = open_scorer("pocket-lora")
    found = list(check_hearing(lora, seeds[:2], mislabelled(clear, 0.5), None))
    (told,) = [f for f in found if f.about == "hearing"]
    assert (
        told.level == "look" and "the prompts, the labels of the clips, or the model" in told.text
    )


def test_too_few_clear_clips_say_nothing(seeds, clear):
    few = ClipSet(SPEECH_TASK, clearest(clear.clips, LABELS, 18))
    (told,) = [
        f for f in findings(open_scorer(), seeds[:1], few, about="hearing") if f.about == "hearing"
    ]
    assert told.level == "look" and "9 clear clips of a label are too few" in told.text


def samples_of(wave):
    return np.asarray(wave, dtype=np.float32).tobytes()


class Pocket:
    """The tuned pocket checkpoint behind a server: what it answers to the samples of a request."""

    def __init__(self, folder, prompt, clips):
        """Answers to the clips and their controls are known beforehand, since one by one costs far more."""
        self.scorer, self.folder = open_scorer("pocket-lora"), folder
        self.prompt, self.clip = prompt, clips[0]
        self.lock, self.under_way, self.number = threading.Lock(), [], 0
        self.known = {}  # by samples
        sent = [replace(clip, audio=a) for clip in clips for a in ("recorded", *CONTROLS)]
        raw = [base64.b64decode(_wav(clip, prompt.presentation.sound)) for clip in sent]
        self.learn([soundfile.read(io.BytesIO(one))[0] for one in raw])

    def say(self, wave):
        with self.lock:
            if samples_of(wave) not in self.known:
                self.learn([wave])
            return self.known[samples_of(wave)]

    def learn(self, waves):
        played = []
        for wave in waves:
            self.number += 1
            path = self.folder / f"{self.number}.wav"
            soundfile.write(path, wave, 16000, subtype="FLOAT")
            played.append(replace(self.clip, path=path, sha256=f"asked {self.number}"))
        logp = self.scorer.score([self.prompt], played).logp[0]
        self.scorer.forget()
        for wave, (a, b) in zip(waves, logp, strict=True):
            odds = 8 * float(a - b)  # a model that is surer of itself
            yes, no = -math.log1p(math.exp(-odds)), -math.log1p(math.exp(odds))
            self.known[samples_of(wave)] = listing(("A", yes), ("B", no))

    def padded(self, wave):
        """The samples with silence behind them, up to the longest that is asked about at the time."""
        with self.lock:
            self.under_way.append(len(wave))
        time.sleep(0.05)
        with self.lock:
            longest = max(self.under_way)
            self.under_way.remove(len(wave))
        return np.concatenate([wave, np.zeros(longest - len(wave))])


@pytest.fixture(scope="module")
def pocket(tmp_path_factory, seeds, clear):
    return Pocket(tmp_path_factory.mktemp("asked"), seeds[1], clear)


@pytest.mark.parametrize(
    ("server", "about", "text"),
    [
        ("whole", None, None),
        ("deaf", "audio", "audio does not reach the model; the server drops it"),
        (
            "pads",
            "neighbours",
            "depends on what else is asked at the time, as where a batch is padded",
        ),
    ],
)
def test_a_broken_server_is_named(pocket, seeds, clear, server, about, text):
    def reply(request):
        wave, _ = heard(request)
        if server == "deaf":
            wave = np.zeros(8000)
        if server == "pads":
            wave = pocket.padded(wave)
        return pocket.say(wave)

    with serve(reply) as running:
        asked = len(pocket.known)
        found = findings(Endpoint("m", running.url), seeds[1:2], clear)
    assert server == "pads" or len(pocket.known) <= asked + 30  # what is sent was known
    broken = [f for f in found if f.level == "broken"]
    assert [f.about for f in broken] == ([about] if about else [])
    assert not about or (re.search(text, broken[0].text) and "server" in broken[0].fix)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("5.10.0", "ties the output head of Qwen2-Audio"),
        ("5.10.3", "ties the output head of Qwen2-Audio"),
        ("4.54.1", "cannot generate with Qwen2-Audio"),
        ("5.10.4", None),
        ("5.11.0", None),
        ("4.53.3", None),
        ("4.55.0", None),
        ("no version", None),
    ],
)
def test_a_version_that_is_known_to_be_broken_is_named(monkeypatch, tmp_path, version, words):
    monkeypatch.setattr(metadata, "version", lambda name: version)
    (tmp_path / "training.json").write_text(json.dumps({"versions": {"transformers": version}}))
    installed, trained = list(check_installed()), list(check_trainer(tmp_path))
    if words is None:
        assert installed == trained == []
        return
    (here,), (there,) = installed, trained
    assert here.level == "broken" and f"transformers {version} {words}" in here.text
    assert there.level == "look" and f"transformers {version}, which {words}" in there.text
    assert here.fix.startswith("pip install -U transformers: transformers") and there.fix


def test_what_is_not_installed_is_not_broken(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert list(check_installed()) == []


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("### Framework versions\n\n- PEFT 0.11.1\n", {"peft": "0.11.1"}),
        ("- TRL: 0.9\n- Transformers: 5.10.1\n- Pytorch: 2.1\n", {"transformers": "5.10.1"}),
        ("* Transformers 4.48.0.dev0\n", {"transformers": "4.48.0.dev0"}),
        ("Made with transformers.\n", {}),
        (None, {}),
    ],
)
def test_the_versions_of_a_trainer_are_read_from_its_card(tmp_path, card, found):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert trained_with(tmp_path) == found


def test_the_clearest_clips_have_little_noise_are_long_and_of_every_label():
    dev = read_manifest(DEMO, LABELS, "dev")
    found = clearest(dev, LABELS, 41)
    assert [sum(c.label == label for c in found) for label in LABELS] == [20, 20]
    speech = [c for c in found if c.label == "SPEECH"]
    assert all(c.snr_db == 20 for c in speech)
    assert min(c.duration_ms for c in speech) == 1000 or len(speech) > sum(
        c.label == "SPEECH" and c.snr_db == 20 and c.duration_ms == 1000 for c in dev
    )
    assert clearest(dev[:1], LABELS, 10) == ()
