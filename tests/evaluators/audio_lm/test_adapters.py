"""Adapters score as with plain transformers and peft, in the layouts of both; what does not is refused by name."""

import dataclasses
import json
import shutil

import numpy as np
import peft
import pytest
import torch
from adapters import BASE, EXACT, in_old_layout, lora, make_adapter, plain_peft, plain_scores
from bench_adapters import REFUSED
from safetensors.torch import load_file, save_file

from evaluators.audio_lm.adapter_kinds import APPLIED, HARMLESS, check_kind
from evaluators.audio_lm.adapters import attach, merge
from evaluators.audio_lm.checkpoint import POCKET, open_checkpoint
from evaluators.audio_lm.families import QWEN2_AUDIO
from evaluators.audio_lm.loading import load_model
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError
from evaluators.finetuning.model import adapted_model
from evaluators.finetuning.recipe import Recipe

pytestmark = pytest.mark.tiny
CLOSE = 2e-4  # nats, float32
CPU = torch.device("cpu")


def scores(folder, prompts, clips, dtype="float32"):
    return AudioScorer(open_checkpoint(str(folder)), "cpu", dtype).score(prompts, clips).logp[0]


def edited(source, folder, tensors=None, **config):
    """A copy with some of its configuration and with its tensors, by a function of them, changed."""
    shutil.copytree(source, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if tensors is not None:
        path = folder / "adapter_model.safetensors"
        save_file(tensors(load_file(path)), path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return make_adapter(lora(), tmp_path_factory.mktemp("lora") / "a")


@pytest.fixture(scope="module")
def of_base(seeds, dev_clips):
    return scores(BASE, seeds[:1], dev_clips[:2])


QUICK = ("LoRA", "rsLoRA", "DoRA", "lora_bias", "LoRA on head and embeddings")


@pytest.mark.parametrize(
    "title", [t if t in QUICK else pytest.param(t, marks=pytest.mark.slow) for t in EXACT]
)
def test_every_kind_in_both_layouts_scores_as_plain_peft(
    title, of_base, tmp_path, seeds, dev_clips
):
    """python tests/bench_adapters.py prints the table."""
    kind = EXACT[title]
    new = make_adapter(kind, tmp_path / "new")
    plain = plain_scores(plain_peft(new), seeds[0], dev_clips[:2])
    for folder in (new, in_old_layout(kind, new, tmp_path / "old")):
        assert np.abs(scores(folder, seeds[:1], dev_clips[:2]) - plain).max() < CLOSE
    assert np.abs(of_base - plain).max() > 3 * CLOSE


def test_a_trained_adapter_in_the_layout_of_transformers_4_is_the_same_adapter(
    tmp_path, seeds, dev_clips
):
    trained = POCKET / "lora"
    old = in_old_layout(lora(), trained, tmp_path / "old")
    config = json.loads((old / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "pocket-base"
    (old / "adapter_config.json").write_text(json.dumps(config))
    keys = load_file(old / "adapter_model.safetensors").keys()
    assert {k.removeprefix("base_model.model.").split(".")[0] for k in keys} == {
        "audio_tower",
        "language_model",
    }
    for dtype in ("float32", "bfloat16"):
        one, two = (scores(f, seeds[:1], dev_clips[:4], dtype) for f in (trained, old))
        assert np.array_equal(one, two)
    further = adapted_model(open_checkpoint(str(old)), Recipe(), CPU, torch.float32)
    assert further.trainable() == 219_136


def test_an_adapter_on_bfloat16_weights_is_added_in_float32_and_rounded_once(adapter):
    merged = load_model(open_checkpoint(str(adapter)), QWEN2_AUDIO, CPU, torch.bfloat16)
    layer = merged.model.language_model.layers[0].self_attn.q_proj
    exact = layer.get_base_layer().weight.float() + layer.get_delta_weight("default").float()
    merge(merged, torch.bfloat16, False)
    plain = merged.model.language_model.layers[0].self_attn.q_proj
    assert type(plain) is torch.nn.Linear and not plain.weight.requires_grad
    assert torch.equal(plain.weight, exact.to(torch.bfloat16))


def without_tower(tensors):
    return {k: v for k, v in tensors.items() if "audio_tower" not in k}


def one_too_many(tensors):
    return tensors | {"base_model.model.model.vision_tower.x.lora_A.weight": torch.zeros(1)}


def one_twice(tensors):
    key = "base_model.model.model.audio_tower.layers.0.self_attn.k_proj.lora_A.weight"
    return tensors | {key.replace("model.model.model", "model.model"): tensors[key].clone()}


def too_wide(tensors):
    key = "base_model.model.model.audio_tower.layers.0.self_attn.k_proj.lora_A.weight"
    return tensors | {key: torch.zeros(4, 7)}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (without_tower, {}, r"lacks '\S*audio_tower\.layers\.0\S*' and \d+ more"),
        (one_too_many, {}, r"'\S*vision_tower\.x\.lora_A\.weight' fits nothing there"),
        (one_twice, {}, r"k_proj\.lora_A\.weight' fits nothing there"),
        (too_wide, {}, r"audio_tower\S*k_proj\.lora_A\.weight' is \[4, 7\] where \[4, \d+\] is"),
        (None, {"r": 5}, r"is \[4, \d+\] where \[5, \d+\] is expected and \d+ more"),
        (None, {"target_modules": ["q_proj"]}, r"\.lora_A\.weight' and \d+ more fits nothing"),
        (None, {"modules_to_save": ["lm_head"]}, r"lacks 'base_model\.model\.lm_head\.weight'"),
        (None, {"target_modules": ["nothing"]}, r"cannot join its base \(.*nothing"),
        (None, {"use_dora": True}, r"lacks '\S*lora_magnitude_vector'"),
    ],
)
def test_a_tensor_that_is_missing_left_over_or_of_another_shape_is_named(
    adapter, tmp_path, seeds, dev_clips, change, config, message
):
    folder = edited(adapter, tmp_path / "edited", change, **config)
    with pytest.raises(UserError, match=message) as caught:
        scores(folder, seeds[:1], dev_clips[:1])
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("title", REFUSED)
def test_what_is_not_known_to_be_exact_is_refused_before_weights_are_loaded(title, tmp_path):
    config = REFUSED[title]
    config.base_model_name_or_path = str(BASE)
    config.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"merge_and_unload|path_initial_model") as caught:
        open_checkpoint(str(tmp_path))
    assert "\n" not in str(caught.value)


FIELDS = [field.name for field in dataclasses.fields(peft.LoraConfig)]


@pytest.mark.parametrize("name", [*FIELDS, "invented_by_a_later_peft"])
def test_every_setting_of_the_installed_peft_is_known_or_refused_when_it_is_set(name, tmp_path):
    """A setting that peft has added is refused here until it stands in one of the two lists."""
    if name not in HARMLESS | APPLIED:
        raw = peft.LoraConfig(target_modules=["q_proj"]).to_dict() | {"peft_type": "LORA"}
        check_kind(raw, tmp_path, "none")  # harmless as it is
        for value in (True, 7, "x", {"x": 1}, ["x"]):
            with pytest.raises(UserError, match=f"sets {name} to .* not known to be scored"):
                check_kind(raw | {name: value}, tmp_path, "none")


def test_the_lists_name_settings_of_peft_and_none_twice():
    assert not HARMLESS & APPLIED and set(FIELDS) >= APPLIED
    assert set(FIELDS) >= HARMLESS - {"peft_type"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"init_lora_weights": "loftq"}, "sets init_lora_weights to 'loftq'"),
        ({"init_lora_weights": "corda"}, "cannot be repeated"),
        ({"bias": "some"}, "sets bias to 'some'; expected one of none, all, lora_only"),
        ({"peft_type": None}, "is of peft_type None; expected LORA"),
    ],
)
def test_values_that_are_not_exact_are_refused(adapter, tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        open_checkpoint(str(edited(adapter, tmp_path / "edited", **config)))


@pytest.mark.parametrize("name", ["use_dora", "lora_bias", "init_lora_weights"])
def test_what_would_change_on_4_bit_weights_is_refused_there(adapter, tmp_path, name):
    value = "pissa" if name == "init_lora_weights" else True
    folder = edited(adapter, tmp_path / "edited", **{name: value})
    with pytest.raises(UserError, match=f"sets {name}, which is not exact on weights with"):
        open_checkpoint(str(folder), None, "nf4")


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_an_adapter_whose_numbers_are_no_floats_is_refused(adapter, tmp_path, kind):
    def cast(tensors):
        return {k: v.to(kind) for k, v in tensors.items()}

    with pytest.raises(UserError, match=r"is of type (I8|F8_E4M3); expected one of F64, F32"):
        open_checkpoint(str(edited(adapter, tmp_path / "edited", cast)))


@pytest.mark.parametrize(
    "base",
    [
        None,
        "",
        "/home/somebody/models/Qwen2-Audio",
        r"C:\models\Qwen2-Audio",
        "../gone/base",
        "~/m",
    ],
)
def test_a_base_that_is_not_here_is_one_sentence_with_the_flags_that_mend_it(
    adapter, tmp_path, base
):
    folder = edited(adapter, tmp_path / "edited", base_model_name_or_path=base)
    with pytest.raises(UserError, match=f"--checkpoint BASE --adapter {folder}") as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)
    assert open_checkpoint("pocket-base", folder).adapter == folder


def test_a_base_on_the_hub_that_cannot_be_had_names_the_flags_too(adapter, tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def refuse(name, **options):
        asked[name] = options
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    folder = edited(
        adapter, tmp_path / "edited", base_model_name_or_path="someone/model", revision="v2"
    )
    with pytest.raises(UserError, match=r"base of adapter .* \(offline\).*--checkpoint BASE"):
        open_checkpoint(str(folder))
    assert asked["someone/model"]["revision"] == "v2"  # that of the base, as peft means it


@pytest.mark.parametrize("title", ["rank and alpha patterns", "regular expression"])
def test_an_adapter_is_put_in_without_a_word_of_transformers_4_in_its_configuration(
    title, tmp_path
):
    """What is trained further from an old layout is saved in the new one."""
    kind = EXACT[title]
    old = in_old_layout(kind, make_adapter(kind, tmp_path / "new"), tmp_path / "old")
    model = load_model(open_checkpoint("pocket-base"), QWEN2_AUDIO, CPU, torch.float32)
    attach(model, old, trainable=True).save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert "language_model.model" not in json.dumps(config)
    one, two = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("new", "again")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
