"""Qwen2.5-Omni's thinker, Audio Flamingo 3 and Voxtral behind the same evaluator: tiny models against the stock one."""

import base64
import json
import shutil
from dataclasses import replace

import jinja2
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import evaluator_with, noise, stock_scores

from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.checkpoint import MODEL_TYPES, open_checkpoint
from evaluators.audio_lm.families import FAMILIES
from evaluators.audio_lm.features import FeatureStore
from evaluators.audio_lm.memory import plan_memory
from evaluators.audio_lm.packed_tower import LogMel, filled
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.shapes import SHAPES, random_model, tiny
from evaluators.audio_lm.stock import FamilyStock, stock_features, template_text
from evaluators.audio_lm.templates import VOXTRAL, InstructWithoutSystem, encode, other_templates
from evaluators.clips import clip_wave
from evaluators.errors import UserError
from evaluators.finetuning.exported import chat_template
from evaluators.finetuning.model import adapted_model
from evaluators.finetuning.recipe import Recipe
from evaluators.finetuning.samples import Collate, Samples, tokenize_prompts
from evaluators.orders import swapped
from evaluators.prompts import Prompt

pytestmark = pytest.mark.tiny
CPU = torch.device("cpu")
LABELS = ["SPEECH", "NONSPEECH"]
NAMES = ("qwen2.5-omni-7b", "audio-flamingo-3", "voxtral-mini-3b")
# (language model, audio tower) in adapters of transformers 4, and of whole Omni models
QWEN2_AUDIOS = (("language_model.model", "audio_tower"),)
OLD_NAMES = {
    "Qwen2_5OmniThinkerForConditionalGeneration": (
        ("model", "audio_tower"),
        ("thinker.model", "thinker.audio_tower"),
    ),
    "AudioFlamingo3ForConditionalGeneration": QWEN2_AUDIOS,
    "VoxtralForConditionalGeneration": QWEN2_AUDIOS,
}
SECONDS = {"qwen2.5-omni-7b": 32, "audio-flamingo-3": 2, "voxtral-mini-3b": 2}  # of a window
LETTERS = Prompt("Does this clip contain human speech? A) yes B) no")
WORDS = Prompt(
    "Is there speech?",
    (("SPEECH", ("present", "there is")), ("NONSPEECH", ("absent",))),
    system="You hear well.",
)
UNTOLD = replace(LETTERS, system="")
# One sample, no token, odd and even numbers of frames, chunks of 2 s and their rests, windows and theirs.
SAMPLES = (1, 320, 481, 1600, 3307, 8000, 31_999, 32_000, 32_001, 32_161, 33_001, 64_000, 70_003)


def random_family(name, seconds):
    """(Model, processor) whose answers differ from clip to clip."""
    model, processor = random_model(tiny(SHAPES[name], seconds), CPU, torch.float32)
    torch.manual_seed(1)
    for part, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0, 0.1 if "conv" in part else 0.3)
        elif part.endswith("bias"):
            weight.normal_(0, 0.1)
    return model, processor


@pytest.fixture(scope="session", params=NAMES)
def loaded(request):
    """A tiny model of each family, never changed."""
    return random_family(request.param, SECONDS[request.param])


@pytest.fixture(scope="session")
def scorer(loaded):
    return evaluator_with(*loaded)


@pytest.fixture(scope="session")
def stock(loaded, scorer):
    return FamilyStock(*loaded, CPU, scorer.family)


@pytest.fixture(scope="session")
def clips(dev_clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    return [noise(folder, dev_clips[0], n, n) for n in SAMPLES]


@pytest.fixture(scope="session")
def folder(loaded, tmp_path_factory):
    """The model's folder, as on the hub."""
    path, (model, processor) = tmp_path_factory.mktemp("model"), loaded
    model.save_pretrained(path)
    processor.tokenizer.save_pretrained(path)
    processor.feature_extractor.save_pretrained(path)
    return path


def apart(scorer, stock, prompts, clips):
    """Largest distance in nats to the stock forward, one clip at a time."""
    table, worst = scorer.score(prompts, clips), 0.0
    for p, prompt in enumerate(prompts):
        for c, clip in enumerate(clips):
            whole, top = stock_scores(stock, prompt, clip)
            worst = max(worst, np.abs(whole - table.logp[p, c]).max())
            worst = max(worst, np.abs(top - table.logp_top[p, c]).max())
    return worst


def test_each_model_type_that_is_opened_has_a_family():
    assert tuple(FAMILIES) == MODEL_TYPES


def test_clips_of_any_length_equal_the_stock_forward(scorer, stock, clips):
    assert len(find_answers(scorer.processor.tokenizer, WORDS).sequences[0][0]) > 1
    assert apart(scorer, stock, [LETTERS, WORDS], clips) < 1e-4
    silent = [replace(clips[5], audio="silence", sha256=name) for name in "ab"]  # are one sound
    assert apart(scorer, stock, [swapped(LETTERS), UNTOLD], [*clips[5:8], *silent]) < 1e-4
    spread = scorer.score([LETTERS, WORDS, UNTOLD], clips).logp[..., 0]
    assert np.ptp(spread, 0).min() > 1e-3 and np.ptp(spread, 1).min() > 1e-3  # both matter


def test_thirty_one_seconds_equal_the_stock_forward(scorer, stock, clips, tmp_path):
    long = noise(tmp_path, clips[0], 31, 496_000)
    assert apart(scorer, stock, [LETTERS], [long, clips[4]]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_windows_of_thirty_seconds_equal_the_stock_forward(name, clips, tmp_path):
    loaded = random_family(name, 30)
    scorer = evaluator_with(*loaded)
    seconds = 30 if name.startswith("qwen") else 31
    made = [noise(tmp_path, clips[0], n, n) for n in (320, 16_000, 479_000, 16_000 * seconds)]
    assert apart(scorer, FamilyStock(*loaded, CPU, scorer.family), [LETTERS], made) < 1e-4


def test_scores_do_not_depend_on_their_company(scorer, clips):
    whole = scorer.score([LETTERS, WORDS], clips).logp
    order = np.random.default_rng(0).permutation(len(clips))
    scorer.forget()
    turned = scorer.score([WORDS, LETTERS], [clips[i] for i in order]).logp
    assert np.abs(turned[::-1] - whole[:, order]).max() < 1e-5
    for c in (0, 4, 12):
        scorer.forget()
        assert np.abs(scorer.score([WORDS], [clips[c]]).logp[0, 0] - whole[1, c]).max() < 1e-5


def test_features_are_those_of_the_familys_own_processor(scorer, clips):
    extractor, family = scorer.processor.feature_extractor, scorer.family
    waves = [clip_wave(clip) for clip in clips]
    together = family.feature_store(None, extractor).log_mel(waves)
    for wave, mel in zip(waves, together, strict=True):
        frames = -(-len(wave) // extractor.hop_length)
        theirs = stock_features(family, extractor, [wave])["input_features"]
        whole = filled(LogMel(mel, frames), extractor.nb_max_frames)
        parts = np.stack(np.split(whole, len(theirs), axis=1))
        # What comes after the clip is heard by Voxtral alone; the others mask it, and keep no more than they need.
        seen = whole.shape[1] if family.template is VOXTRAL else frames
        both = (np.concatenate(list(x), 1)[:, :seen] for x in (parts, theirs.numpy()))
        assert np.array_equal(*both), len(wave)


def test_training_hears_what_scoring_hears(loaded, scorer, clips):
    """In batches of clips of one length, and through what is differentiated."""
    model, store = loaded[0], scorer.feature_store
    embedded = scorer.embeddings(clips)
    for clip, ours in zip(clips, embedded, strict=True):
        decoded = store.decode(clip)
        mel = torch.from_numpy(store.log_mel([decoded.wave])[0])
        both = scorer.family.encode(model, torch.stack([mel, mel.flip(0)]), decoded.frames)
        assert both.shape[1:] == ours.shape
        assert len(ours) == scorer.family.tokens(model.config, decoded.frames)
        assert torch.allclose(both[0], ours, atol=2e-5), decoded.frames


def voxtral_with(**text):
    """Voxtral with another language model."""
    shape = tiny(SHAPES["voxtral-mini-3b"], 2)
    return random_model(replace(shape, text={**shape.text, **text}), CPU, torch.float32)


def test_the_decoder_takes_what_the_configuration_says(clips):
    """Llama 3's scaling of angles, biases, heads of any size, one head of keys, another epsilon."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    loaded = voxtral_with(
        rope_parameters=rope, attention_bias=True, mlp_bias=True, head_dim=24,
        num_key_value_heads=1, rms_norm_eps=1e-2,
    )  # fmt: skip
    torch.manual_seed(2)
    for name, weight in loaded[0].named_parameters():
        weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    scorer = evaluator_with(*loaded)
    stock = FamilyStock(*loaded, CPU, scorer.family)
    assert apart(scorer, stock, [LETTERS, WORDS], clips[3:6]) < 1e-4


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_act", "gelu"), ("rope_type", "dynamic"), ("layer_types", "sliding_attention")],
)
def test_a_decoder_that_computes_something_else_is_refused(name, value, clips):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    shape = tiny(SHAPES["audio-flamingo-3"], 2)
    odd = {
        "hidden_act": {"hidden_act": "gelu"},
        "rope_type": {"rope_parameters": rope},
        "layer_types": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    }[name]
    loaded = random_model(replace(shape, text={**shape.text, **odd}), CPU, torch.float32)
    with pytest.raises(UserError) as caught:
        evaluator_with(*loaded).score([LETTERS], clips[3:4])
    assert str(caught.value).startswith(f"the language model has {name} {value!r}, which is not")


def test_a_folder_is_scored_by_name(scorer, folder, clips):
    found = AudioScorer(open_checkpoint(str(folder)), "cpu", "float32")
    expected = scorer.score([LETTERS, WORDS], clips[:6]).logp
    assert np.abs(found.score([LETTERS, WORDS], clips[:6]).logp - expected).max() < 1e-5


def test_an_adapter_scores_as_plain_peft_does(loaded, folder, stock, clips, tmp_path):
    checkpoint = open_checkpoint(str(folder))
    adapted = adapted_model(checkpoint, Recipe(rank=4, dropout=0.0), CPU, torch.float32)
    for name, weight in adapted.peft.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.1)
    adapted.peft.save_pretrained(tmp_path)
    base, plain = AudioScorer(checkpoint, "cpu", "float32"), adapted.base
    scorer = AudioScorer(open_checkpoint(str(folder), tmp_path), "cpu", "float32")
    del plain.forward  # the loss of training
    assert isinstance(adapted.peft, peft.PeftModel)
    theirs = FamilyStock(plain, stock.processor, CPU, stock.family)
    assert apart(scorer, theirs, [LETTERS], clips[3:7]) < 1e-4
    whole = scorer.score([LETTERS], clips[3:7]).logp
    for number, (head, tail) in enumerate(OLD_NAMES[stock.family.model_class]):
        old = renamed(tmp_path, tmp_path.parent / f"{tmp_path.name}-{number}", head, tail)
        again = AudioScorer(open_checkpoint(str(folder), old), "cpu", "float32")
        assert np.abs(again.score([LETTERS], clips[3:7]).logp - whole).max() < 1e-6
    moved = scorer.score([LETTERS], clips[3:7]).logp - base.score([LETTERS], clips[3:7]).logp
    assert np.abs(moved).min() > 1e-3


def renamed(source, folder, lm, tower):
    """A copy of an adapter whose tensors have the names of another layout."""
    shutil.copytree(source, folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    inside = {
        "base_model.model.model.language_model": lm,
        "base_model.model.model.audio_tower": tower,
    }
    for new, old in inside.items():
        tensors = {key.replace(new, f"base_model.model.{old}"): t for key, t in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_a_step_of_training_lowers_the_loss(folder, stock, clips):
    checkpoint = open_checkpoint(str(folder))
    adapted = adapted_model(checkpoint, Recipe(rank=4, dropout=0.0), CPU, torch.float32)
    labelled = [
        replace(clip, label=LABELS[i % 2]) for i, clip in enumerate([*clips[4:8], clips[12]])
    ]
    processor, family = stock.processor, adapted.family
    store = family.feature_store(None, processor.feature_extractor)
    wordings = tokenize_prompts([LETTERS], LABELS, processor.tokenizer, family, swap=True)
    samples = Samples(labelled, wordings, LABELS, store)
    batch = Collate(family, adapted.base.config, "answer")([samples[i] for i in range(5)])
    optimizer = torch.optim.SGD([w for w in adapted.peft.parameters() if w.requires_grad], 0.05)
    first = adapted.peft(**batch)
    answer = batch["target_id"][0]
    asked = LETTERS if samples.order[0][1] == 0 else swapped(LETTERS)
    assert abs(stock.logp(asked, labelled[0])[answer] - first["logp"][0]) < 1e-4
    first["loss"].backward()
    optimizer.step()
    assert adapted.peft(**batch)["loss"] < first["loss"] - 1e-3


def test_a_clip_longer_than_the_windows_is_one_sentence(scorer, clips, tmp_path):
    most, seconds = scorer.family.windows.most, scorer.processor.feature_extractor.chunk_length
    store = FeatureStore(None, scorer.processor.feature_extractor, windows=scorer.family.windows)
    with pytest.raises(UserError) as caught:
        store.decode(noise(tmp_path, clips[0], 1, 16_000 * most * seconds + 1))
    lasts = f"lasts {most * seconds:.2f} s, the model hears {most * seconds} s; cut it first"
    assert str(caught.value) == f"clip 'noise 1' {lasts}"


def test_prompts_bring_no_control_token_along(scorer):
    tokenizer, template = scorer.processor.tokenizer, scorer.family.template
    controls = [text for text, control in template.after("") if control] + [template.audio]
    for token in controls:
        ids = encode(tokenizer, template.after(f"say {token} now"))
        plain = encode(tokenizer, template.after("say now"))
        special = tokenizer.convert_tokens_to_ids(token)
        assert ids.count(special) == plain.count(special)
        assert token in tokenizer.decode(ids)


def test_the_exported_chat_template_gives_the_text_that_is_scored(scorer):
    jinja, messages = jinja2.Environment(), [{"role": "user", "content": [{"type": "audio"}]}]
    for prompt in (LETTERS, WORDS, UNTOLD):
        source = jinja.from_string(chat_template(scorer.family.template, prompt))
        said = source.render(messages=messages, add_generation_prompt=True)
        assert said == template_text(prompt, scorer.family.template)


def test_fewer_clips_of_voxtral_are_kept(scorer):
    """A clip of 500 ms takes a whole window there."""
    config = scorer.config
    many = 25 if scorer.family.template is VOXTRAL else 12
    assert scorer.family.tokens(config, 50) == many
    kept = plan_memory(config, "none", 8).clips
    place = 2 * config.text_config.num_hidden_layers * scorer.decoder.heads.key_width * 2
    assert kept == pytest.approx(15 / 16 * 0.3 * 8 * 2**30 / place / many, rel=1e-3)


def test_ids_of_audio_flamingo_3_are_those_of_its_processor(clips):
    from transformers import AudioFlamingo3Processor

    model, both = random_family("audio-flamingo-3", 2)
    processor = AudioFlamingo3Processor(both.feature_extractor, both.tokenizer)
    family = FAMILIES["audioflamingo3"]
    stock = FamilyStock(model, both, CPU, family)
    for clip in clips[2:]:
        ours = stock.inputs(WORDS, clip)
        text = template_text(WORDS, family.template)
        theirs = processor(text=[text], audio=[clip_wave(clip)], sampling_rate=16000)
        for name in ("input_ids", "input_features", "input_features_mask"):
            assert torch.equal(ours[name], theirs[name].to(ours[name].dtype)), name


def test_features_and_tokens_of_voxtral_are_those_of_its_processor(clips):
    from transformers import VoxtralProcessor

    model, both = random_family("voxtral-mini-3b", 2)
    shell = VoxtralProcessor.__new__(VoxtralProcessor)  # its own reading needs mistral-common
    shell.feature_extractor = both.feature_extractor
    given = {"padding": True, "truncation": False, "pad_to_multiple_of": 32_000}
    given |= {"sampling_rate": 16000, "return_tensors": "pt"}
    for clip in clips:
        theirs = shell._retrieve_input_features([clip_wave(clip)], 200, **given)
        ours = FamilyStock(model, both, CPU, FAMILIES["voxtral"]).inputs(LETTERS, clip)
        assert torch.equal(ours["input_features"], theirs)
        assert int((ours["input_ids"] == model.config.audio_token_id).sum()) == 25 * len(theirs)


def test_positions_of_audio_and_text_are_one_line_in_each_row(clips):
    """TMRoPE: time, height and width are the same where there is no picture, so that one row of positions is enough."""
    model, both = random_family("qwen2.5-omni-7b", 2)
    inputs = FamilyStock(model, both, CPU, FAMILIES["qwen2_5_omni"]).inputs(LETTERS, clips[5])
    rows, shift = model.model.get_rope_index(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        audio_seqlens=inputs["feature_attention_mask"].sum(-1),
    )
    line = torch.arange(inputs["input_ids"].shape[1])
    assert rows.shape[0] == 3 and all(torch.equal(row[0], line) for row in rows)
    assert not shift.any()


def test_the_thinker_of_a_whole_omni_folder_is_scored(clips, tmp_path):
    """As on the hub: beside talker and vocoder, whose weights are not read."""
    model, both = random_family("qwen2.5-omni-7b", 32)
    for part in (model, both.tokenizer, both.feature_extractor):
        part.save_pretrained(tmp_path)
    thinker = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "qwen2_5_omni", "thinker_config": thinker}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    weights = load_file(tmp_path / "model.safetensors")
    named = {f"thinker.{key}": weight for key, weight in weights.items()}
    named["talker.codec_head.weight"] = torch.zeros(2, 2)
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    scorer = AudioScorer(open_checkpoint(str(tmp_path)), "cpu", "float32")
    expected = evaluator_with(model, both).score([LETTERS], clips[4:6]).logp
    assert np.abs(scorer.score([LETTERS], clips[4:6]).logp - expected).max() < 1e-5


def tekken(controls):
    """What tekken.json holds: bytes and two merges of them, after a thousand control tokens."""
    words = [bytes([n]) for n in range(256)] + [b"ye", b"yes"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
        for rank, word in enumerate(words)
    ]
    names = [controls.get(n, f"<SPECIAL_{n}>") for n in range(1000)]
    special = [{"rank": n, "token_str": s, "is_control": True} for n, s in enumerate(names)]
    config = {"pattern": r"\p{L}+|\p{N}|\s+|[^\p{L}\p{N}\s]+", "version": "v7"}
    config |= {"default_vocab_size": 1258, "default_num_special_tokens": 1000}
    return {"config": config, "vocab": vocab, "special_tokens": special}


def test_the_tokenizer_that_voxtral_comes_with_is_read_as_it_is(tmp_path):
    """Ids of control tokens as in tekken.json of Voxtral-Mini-3B-2507."""
    controls = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 11: "<pad>"}
    controls |= {17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "voxtral"}))
    random_family("voxtral-mini-3b", 2)[1].feature_extractor.save_pretrained(tmp_path)
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(controls)))
    tokenizer = FAMILIES["voxtral"].processor(tmp_path).tokenizer
    ids = encode(tokenizer, (*VOXTRAL.before("é"), *VOXTRAL.after("yes [INST]")))
    told = [17, 1000 + 0xC3, 1000 + 0xA9, 18]
    assert ids == [1, *told, 3, 25, 1257, *(1000 + ord(c) for c in " [INST]"), 4]
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(controls | {25: "[OTHER]"})))
    with pytest.raises(UserError, match=r"does not know \[BEGIN_AUDIO\], which the chat template"):
        FAMILIES["voxtral"].processor(tmp_path)


def test_voxtral_says_where_the_system_message_stands():
    told = VOXTRAL.before("be brief")
    assert "".join(text for text, _ in told) == (
        "<s>[SYSTEM_PROMPT]be brief[/SYSTEM_PROMPT][INST][BEGIN_AUDIO]"
    )
    assert "".join(text for text, _ in VOXTRAL.before("")) == "<s>[INST][BEGIN_AUDIO]"
    assert "".join(text for text, _ in VOXTRAL.after("why?")) == "why?[/INST]"
    others = other_templates(VOXTRAL, VOXTRAL)
    assert type(others["without a system message"]) is InstructWithoutSystem
    assert len({other.before("be brief") for other in others.values()}) == len(others) == 2
    scorer = evaluator_with(*random_family("voxtral-mini-3b", 2))
    assert (
        sum("refuses a system message beside audio" in line for line in scorer.about().memory) == 1
    )
